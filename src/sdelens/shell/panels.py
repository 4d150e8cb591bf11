"""Groups of options in the output of ``--help``, and options that several commands have."""

from functools import partial
from typing import Annotated

import typer

__all__ = ["MODELS", "OUTPUT", "PLACE", "RECORD", "SIZE", "WHAT", "Devices", "DryRun"]

WHAT = partial(typer.Option, rich_help_panel="What is run")
SIZE = partial(typer.Option, rich_help_panel="How much is run")
MODELS = partial(typer.Option, rich_help_panel="Models")
RECORD = partial(typer.Option, rich_help_panel="What is recorded")
OUTPUT = partial(typer.Option, rich_help_panel="Output")
PLACE = partial(typer.Option, rich_help_panel="Where it runs")

Devices = Annotated[int | None, PLACE(help="Number of devices to use; default on a CPU: one per core.")]
DryRun = Annotated[
    bool, OUTPUT("--dry-run", help="Only estimate the time, the memory and the size of the results; nothing is run.")
]
