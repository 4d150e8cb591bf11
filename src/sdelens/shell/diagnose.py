"""The shell's `diagnose`, which starts without JAX."""

import json
from pathlib import Path
from typing import Annotated, Final

import typer

from sdelens.shell.case_options import numbers
from sdelens.shell.session import check_exist, named

__all__ = ["CANNOT_TELL", "diagnose"]

CANNOT_TELL: Final = 3
"""Exit code if the rule can neither be confirmed nor refuted at any batch ratio."""


def diagnose(
    checkpoints: Annotated[list[Path], typer.Argument(help="Files or a folder of a PyTorch optimizer's checkpoint.")],
    b1: Annotated[float | None, typer.Option(help="β₁, if the checkpoint does not contain it.")] = None,
    b2: Annotated[float | None, typer.Option(help="β₂, if the checkpoint does not contain it.")] = None,
    batch_size: Annotated[
        float | None, typer.Option(help="Batch size of the run, the unit of the noise scale.")
    ] = None,
    ratios: Annotated[
        str, typer.Option(help="Batch ratios for which to check the rule, comma-separated.")
    ] = "2,4,8,16,32,64",
    tolerance: Annotated[
        float, typer.Option(help="Relative error of the loss curve up to which the square-root rule holds.")
    ] = 0.05,
    groups: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=REGEX: tensors, by a regular expression, that are counted together under this name; may be "
            "repeated. Or 'parameter groups': those of the optimizer. Default: each tensor by itself."
        ),
    ] = None,
    earlier: Annotated[Path | None, typer.Option(help="Checkpoint of the same run, 20 to 100 steps earlier.")] = None,
    noise_correlation: Annotated[
        float,
        typer.Option(
            help="Largest correlation of the noise of successive batches that is allowed for; 0 if batches are drawn "
            "independently."
        ),
    ] = 0.5,
    key: Annotated[
        str | None, typer.Option(help="Name of the optimizer, if the file has several; levels are separated by dots.")
    ] = None,
    output: Annotated[str, typer.Option("--format", help="'text' or 'json'.")] = "text",
) -> None:
    """Say from an Adam checkpoint how large the SNR of a run is at least, and where the square-root rule fails.

    The exit code is 3 if nothing can be told at any of the ratios: gradients, measured in the training loop, tell more.
    """
    from sdelens.core import check
    from sdelens.diagnosis import diagnose as of

    check.choice("format", output, ("text", "json"))
    check_exist("checkpoints", checkpoints)
    check_exist("earlier", [] if earlier is None else [earlier])
    with named(state="checkpoints"):
        found = of(
            checkpoints if len(checkpoints) > 1 else checkpoints[0],
            b1=b1,
            b2=b2,
            groups=_groups(groups),
            batch_size=batch_size,
            ratios=numbers("ratios", ratios),
            tolerance=tolerance,
            earlier=earlier,
            noise_correlation=noise_correlation,
            key=key,
        )
    typer.echo(json.dumps(found.to_dict(), indent=2) if output == "json" else str(found))
    if all(found.holds(ratio) is None for ratio in found.ratios):
        raise typer.Exit(CANNOT_TELL)


def _groups(given: list[str] | None) -> str | dict[str, str] | None:
    """Regular expressions by group name, from NAME=REGEX."""
    if not given or given == ["parameter groups"]:
        return given[0] if given else None
    wrong = [text for text in given if not text.partition("=")[2]]
    if wrong:
        raise ValueError(f"groups: got {wrong[0]!r}; give NAME=REGEX, for example attention=attn.")
    names = [text.partition("=")[0] for text in given]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"groups: {twice!r} is given twice; join its regular expressions by '|'.")
    return {name: pattern for name, _, pattern in (text.partition("=") for text in given)}
