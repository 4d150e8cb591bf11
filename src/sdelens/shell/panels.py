"""Groups of options in the output of ``--help``, and options that several commands have."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from sdelens.core import names

__all__ = [
    "MODELS",
    "OUTPUT",
    "PLACE",
    "RECORD",
    "SIZE",
    "WHAT",
    "ClipNorm",
    "Curve",
    "Devices",
    "DryRun",
    "MomentumRule",
    "OldSteps",
    "OldWarmup",
    "Quantities",
    "ScalingRule",
    "Theory",
]

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
Theory = Annotated[
    bool, OUTPUT("--theory", help="Add the predicted loss and its bound (quadratic, linear-regression).")
]
Curve = Annotated[
    Path | None,
    OUTPUT(
        help="Logged loss curve to add: CSV, also as W&B and TensorBoard export it, JSON, or a log of the Hugging Face "
        "Trainer."
    ),
]
Quantities = Annotated[
    list[str] | None,
    OUTPUT(
        help="Quantity of a figure of a sweep: late_loss, error, late_error, late_shift or spread; may be repeated."
    ),
]
ScalingRule = Annotated[
    str | None,
    typer.Option(
        help=f"Default: the one that keeps the optimizer's SDE. One of {', '.join(names.SCALING_RULES)}, which "
        "'sdelens info rules' explains."
    ),
]
MomentumRule = Annotated[
    str | None,
    typer.Option(
        help=f"How the decays β are scaled. One of {', '.join(names.MOMENTA)}, which 'sdelens info momenta' explains."
    ),
]
OldSteps = Annotated[int | None, typer.Option(help="Optimizer steps of the old run.")]
OldWarmup = Annotated[int | None, typer.Option(help="Warm-up steps of the old run.")]
ClipNorm = Annotated[float | None, typer.Option(help="Norm to which gradients are clipped.")]
