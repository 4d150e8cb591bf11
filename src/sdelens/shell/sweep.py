"""The shell's `sweep`: turns values by name into a grid, runs it and writes the results."""

from typing import Annotated, Any

import typer

from sdelens.shell.case_options import SubjectOptions, made_value
from sdelens.shell.constructors import values_of
from sdelens.shell.join import refuse_of_share, write_and_print_sweep
from sdelens.shell.output import RunOutput
from sdelens.shell.panels import Quantities
from sdelens.shell.run_options import RunOptions, saved_to
from sdelens.shell.session import say, shell

__all__ = ["sweep"]


def sweep(
    over: Annotated[
        list[str],
        typer.Option(
            help="KEY=VALUE,VALUE; may be repeated, for a grid of all combinations: lr=1e-3,1e-2 of the optimizer, "
            "noise.scale=1,2 of the noise, problem.start=0,1 of the problem."
        ),
    ],
    subject: SubjectOptions,
    run: RunOptions,
    output: RunOutput,
    quantity: Quantities = None,
) -> None:
    """Run an optimizer and its SDEs at every point of a grid of values, compiled once.

    With --out, it writes NetCDF, figures (PNG, PDF), a table (CSV) and index.html.
    """
    with shell(run.devices):
        import sdelens as sl
        from sdelens.core import check
        from sdelens.results.sweep import SHOWN

        output.require_folder(
            "a sweep writes them only to the NetCDF file in that folder",
            marginals=run.marginals,
            times=run.times,
            averages=run.averages,
            observables=run.observables,
            keep_paths=run.keep_paths or None,
        )
        for name in quantity or []:
            check.choice("quantity", name, SHOWN)
        setting = subject.build()
        case, grid = (setting.problem, setting.noise, setting.optimizer), _values(over)
        options = run.arguments()
        if output.dry_run:
            say(f"This would take {sl.estimate(*case, over=grid, **options)}.")
            return
        if (share := run.chosen_share) is not None:
            refuse_of_share(quantity=quantity)
            from sdelens.run.api import identity_of_share

            def compute(checkpoints: Any) -> Any:
                return sl.sweep(*case, over=grid, **saved_to(options, checkpoints))

            def identify() -> Any:
                return identity_of_share(*case, over=grid, **options)

            typer.echo(output.write_share(share, compute, identify, subject))
            return
        with output.claimed() as (folder, checkpoints):
            found = sl.sweep(*case, over=grid, **saved_to(options, checkpoints))
            write_and_print_sweep(folder, found, quantity)


def _values(given: list[str]) -> dict[str, list[Any]]:
    """Values by key from KEY=VALUE,VALUE."""
    found: dict[str, list[Any]] = {}
    for text in given:
        key, equals, values = text.partition("=")
        key = key.strip()
        if not equals or not key or not values.strip():
            raise ValueError(f"over: got {text!r}; give KEY=VALUE,VALUE, for example lr=1e-3,1e-2.")
        if key in found:
            raise ValueError(f"over: {key} is given twice; write all its values in one list, separated by commas.")
        found[key] = [made_value(key.rpartition(".")[2], value) for value in values_of("over", values)]
    return found
