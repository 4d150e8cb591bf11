"""The shell's `sweep`: turns values by name into a grid, runs it and writes the results."""

from pathlib import Path
from typing import Annotated, Any

import typer

from sdelens.shell.case_options import build_subject, made_value, takes_subject
from sdelens.shell.constructors import values_of
from sdelens.shell.members import Members, takes_members
from sdelens.shell.panels import OUTPUT
from sdelens.shell.run_options import RunOptions, saved_to, takes_run
from sdelens.shell.session import claimed, command_line, shell

__all__ = ["sweep"]


@takes_subject
@takes_members
@takes_run
def sweep(
    subject: dict[str, Any],
    run: RunOptions,
    members: Members,
    over: Annotated[
        list[str],
        typer.Option(
            help="KEY=VALUE,VALUE, repeated for a grid: lr=1e-3,1e-2; noise.scale=1,2 and problem.start=0,1 for "
            "those of noise and problem."
        ),
    ],
    quantity: Annotated[
        list[str] | None,
        OUTPUT(help="What figures show, repeated: late_loss, error, late_error, late_shift, spread."),
    ] = None,
    out: Annotated[
        Path | None,
        OUTPUT(help="Folder for NetCDF, figures (PNG, PDF), table (CSV) and index.html."),
    ] = None,
    overwrite: Annotated[bool, OUTPUT("--overwrite", help="Replace results in the folder.")] = False,
    checkpoint_every: Annotated[
        int | None,
        OUTPUT(help="Save where the sweep stands every so many steps, in the folder checkpoint in --out."),
    ] = None,
    resume: Annotated[
        bool,
        OUTPUT("--resume", help="Go on from the checkpoint in --out, from the beginning if there is none."),
    ] = False,
    dry_run: Annotated[bool, OUTPUT("--dry-run", help="Only say what it would cost.")] = False,
) -> None:
    """Run an optimizer and its SDEs at every point of a grid of numbers, compiled once."""
    with shell(run.devices, members) as first:
        import sdelens as sl

        setting = build_subject(subject)
        case, grid = (setting.problem, setting.noise, setting.optimizer), _values(over)
        options = run.arguments()
        if dry_run:
            cost = sl.estimate(*case, over=grid, **options)
            if first:
                typer.echo(f"This would take {cost}.")
            return
        from sdelens.core import check
        from sdelens.results.sweep import QUANTITIES

        for name in quantity or []:
            check.choice("quantity", name, QUANTITIES)
        with claimed(out, overwrite, checkpoint_every, resume, first) as (folder, checkpoints):
            found = sl.sweep(*case, over=grid, **saved_to(options, checkpoints))
            if first:
                typer.echo(str(found))
            if folder is not None:
                from sdelens.results.report import write_sweep

                name = f"sweep-{setting.optimizer.name}-{setting.problem.describe()['name']}"
                page = write_sweep(folder, name, found, f"sdelens {command_line()}", quantity)
                typer.echo(f"\nWritten to {page}")


def _values(given: list[str]) -> dict[str, list[Any]]:
    """Values by key from KEY=VALUE,VALUE."""
    found: dict[str, list[Any]] = {}
    for text in given:
        key, equals, values = text.partition("=")
        key = key.strip()
        if not equals or not key or not values.strip():
            raise ValueError(f"over: got {text!r}; give KEY=VALUE,VALUE, for example lr=1e-3,1e-2.")
        if key in found:
            raise ValueError(f"over: {key} is given twice; join its values by commas.")
        found[key] = [made_value(key.rpartition(".")[2], value) for value in values_of("over", values)]
    return found
