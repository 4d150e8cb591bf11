"""The shell's `sweep`: values by name to a grid, and what is written of it."""

import ast
from pathlib import Path
from typing import Annotated, Any

import typer

from sdelens.core import names
from sdelens.shell.case_options import build_subject, listing, takes_subject
from sdelens.shell.members import Members, takes_members
from sdelens.shell.session import claimed, command_line, shell

__all__ = ["sweep"]


@takes_subject
@takes_members
def sweep(
    subject: dict[str, Any],
    members: Members,
    over: Annotated[
        list[str],
        typer.Option(
            help="KEY=VALUE,VALUE,…, repeated for a grid: lr=1e-3,1e-2; noise.scale=1,2 and problem.start=0,1 for "
            "those of noise and problem."
        ),
    ],
    quantity: Annotated[
        list[str] | None,
        typer.Option(help="What figures show, repeated: late_loss, error, late_error, late_shift, spread."),
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(help=f"Comma-separated; default: all that exist for the optimizer. {listing(names.MODELS)}"),
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 1000,
    paths: Annotated[int, typer.Option(help="Independent paths per point.")] = 1024,
    seed: Annotated[int, typer.Option(help="Seed of all randomness, the same at every point.")] = 0,
    record_every: Annotated[int, typer.Option(help="Steps between records.")] = 1,
    integrator: Annotated[str, typer.Option(help=listing(names.INTEGRATORS))] = "sequential",
    substeps: Annotated[int, typer.Option(help="Integration steps per optimizer step.")] = 1,
    increments: Annotated[str, typer.Option(help=listing(names.INCREMENTS))] = "gaussian",
    update_samples: Annotated[
        int, typer.Option(help="Updates per step from which the empirical SDE has its coefficients.")
    ] = 8,
    chunk: Annotated[
        int | None, typer.Option(help="Paths in flight at once; default: about 1 GiB of states, on a CPU 64 MiB.")
    ] = None,
    devices: Annotated[int | None, typer.Option(help="Devices to use; on a CPU default: one per core.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for NetCDF, figures (PNG, PDF), table (CSV) and index.html.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results in the folder.")] = False,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(help="Save where the sweep stands every so many steps, in the folder checkpoint in --out."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the checkpoint in --out, from the beginning if there is none."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would cost.")] = False,
) -> None:
    """Run an optimizer and its SDEs at every point of a grid of numbers, compiled once."""
    with shell(devices, members) as first:
        import sdelens as sl

        setting = build_subject(subject)
        case = (setting.problem, setting.noise, setting.optimizer)
        wanted = None if models is None else [name.strip() for name in models.split(",")]
        run: dict[str, Any] = dict(
            steps=steps, paths=paths, seed=seed, record_every=record_every, integrator=integrator
        )
        run |= dict(substeps=substeps, increments=increments, samples=update_samples, chunk=chunk, over=_values(over))
        if dry_run:
            cost = sl.estimate(*case, wanted, **run)
            if first:
                typer.echo(f"This would take {cost}.")
            return
        with claimed(out, overwrite, checkpoint_every, resume, first) as (folder, checkpoints):
            found = sl.sweep(*case, wanted, **run, checkpoint=checkpoints)
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
        found[key] = [_value(part.strip()) for part in values.split(",")]
    return found


def _value(text: str) -> Any:
    """A number, True, False or None; anything else is a word."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
