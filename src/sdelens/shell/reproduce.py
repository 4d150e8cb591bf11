"""The shell's `reproduce`: runs or lists claims by name and writes the report."""

from pathlib import Path
from typing import Annotated

import typer

from sdelens.core import text
from sdelens.shell.panels import Devices
from sdelens.shell.session import shell

__all__ = ["reproduce"]


def reproduce(
    claims: Annotated[
        list[str] | None, typer.Argument(help="Names of claims, as --list shows them; default: all.")
    ] = None,
    preset: Annotated[
        str, typer.Option(help="'quick' (15 minutes on two cores), 'full' (some hours) or 'paper' (for a GPU).")
    ] = "quick",
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the report and the files of each claim.")] = Path(
        "reproduction"
    ),
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep finished claims in that folder, and run the others.")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace results in the folder; with --resume, those that cannot be kept."),
    ] = False,
    listed: Annotated[bool, typer.Option("--list", help="List the claims; nothing is run.")] = False,
    devices: Devices = None,
) -> None:
    """Run every claim of the paper and of this library, and write a report with a verdict on each.

    The exit status is 0 even if claims fail, because that is a result. It is 1 if a claim could not be run.
    """
    with shell(devices):
        import sdelens as sl

        if listed:
            rows = [[name, study.statement] for name, study in sl.studies.STUDIES.items()]
            typer.echo("\n".join(text.listed(rows)))
            return
        found = sl.reproduce(claims, preset, seed=seed, out=out, resume=resume, overwrite=overwrite, tell=typer.echo)
        typer.echo(f"\nWritten to {found.page}")
        if any(record.error for record in found.records.values()):
            raise typer.Exit(1)
