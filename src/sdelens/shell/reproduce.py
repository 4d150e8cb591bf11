"""The shell's `reproduce`: runs or lists claims by name and writes the report."""

from pathlib import Path
from typing import Annotated

import typer

from sdelens.shell.session import shell

__all__ = ["reproduce"]


def reproduce(
    claims: Annotated[list[str] | None, typer.Argument(help="Claims by name; default: all. --list names them.")] = None,
    preset: Annotated[
        str, typer.Option(help="'quick' (15 minutes on two cores), 'full' (some hours) or 'paper' (for a GPU).")
    ] = "quick",
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the report and every claim's files.")] = Path("reproduction"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep what is finished in that folder and go on with the rest.")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace what claims have in the folder; with --resume, what cannot be kept."),
    ] = False,
    listed: Annotated[bool, typer.Option("--list", help="A line per claim, and nothing is run.")] = False,
    devices: Annotated[int | None, typer.Option(help="Devices to use; on a CPU default: one per core.")] = None,
) -> None:
    """Run every claim of the paper and of this library, and write a report with a verdict on each.

    The exit status is 0 even if claims fail: those are findings. It is 1 if a claim could not be run.
    """
    with shell(devices):
        import sdelens as sl

        if listed:
            for name, study in sl.studies.STUDIES.items():
                typer.echo(f"{name:22} {study.statement}")
            return
        found = sl.reproduce(claims, preset, seed=seed, out=out, resume=resume, overwrite=overwrite, tell=typer.echo)
        typer.echo(f"\nWritten to {found.page}")
        if any(record.error for record in found.records.values()):
            raise typer.Exit(1)
