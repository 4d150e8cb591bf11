"""Groups of options in the output of ``--help``: each is `typer.Option` with the heading of the group."""

from functools import partial

import typer

__all__ = ["MODELS", "OUTPUT", "PLACE", "RECORD", "SIZE", "WHAT"]

WHAT = partial(typer.Option, rich_help_panel="What is run")
SIZE = partial(typer.Option, rich_help_panel="How much is run")
MODELS = partial(typer.Option, rich_help_panel="Models")
RECORD = partial(typer.Option, rich_help_panel="What is recorded")
OUTPUT = partial(typer.Option, rich_help_panel="Output")
PLACE = partial(typer.Option, rich_help_panel="Where it runs")
