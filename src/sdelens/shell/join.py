"""The shell's `join`, and what it shares with the commands that run all paths: writing and printing of results."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sdelens.shell.output import Output
from sdelens.shell.panels import OUTPUT
from sdelens.shell.session import command_line, one_line_warnings, refusals

__all__ = ["join", "refuse_of_share", "write_and_print", "write_and_print_sweep"]


def join(
    shares: Annotated[
        list[Path], typer.Argument(help="Files of the shares, or the folder that contains them.", show_default=False)
    ],
    output: Output,
    quantity: Annotated[
        list[str] | None,
        OUTPUT(
            help="Quantity of a figure of a sweep: late_loss, error, late_error, late_shift or spread; may be repeated."
        ),
    ] = None,
) -> None:
    """Print the result of a run from its shares, which compare or sweep with --share wrote.

    With --out, it writes what compare or sweep writes for all paths. Shares of different runs are refused, and missing
    ones are named.
    """
    with refusals():
        from sdelens.core import check
        from sdelens.results.sweep import SHOWN, Sweep
        from sdelens.run.shares import join as join_shares
        from sdelens.run.shares import share_files

        one_line_warnings()
        for name in quantity or []:
            check.choice("quantity", name, SHOWN)
        files = [file for given in shares for file in share_files(given)]
        with output.folder() as folder:
            found = join_shares(files)
            if isinstance(found, Sweep):
                write_and_print_sweep(folder, found, quantity)
                return
            if quantity:
                raise ValueError(
                    "quantity: got --quantity, but these are shares of compare, not of sweep; leave it out."
                )
            write_and_print(folder, found, "compare", str(found), "")


def refuse_of_share(**given: Any) -> None:
    """Refuse options of these names and values, which need all paths, with ``--share``.

    Raises:
        ValueError: if one of the options is given; the message names it.
    """
    for name, value in given.items():
        if value:
            raise ValueError(f"{name}: got --{name} with --share, but a share lacks paths; leave --{name} out.")


def write_and_print(folder: Path | None, result: Any, command: str, text: str, remarks: str) -> None:
    """Write the result's files and page to the folder, if there is one, and then print the text.

    What was computed is thus kept if the output cannot be printed, for example because a pipe was closed.
    """
    from sdelens.results.report import write_report

    if folder is None:
        typer.echo(text)
        return
    name = f"{result.info['optimizer']['name']}-{result.info['problem']['name']}"
    title, made_by = f"sdelens {command}: {name}", f"sdelens {command_line()}"
    page = write_report(folder, {name: result}, title, made_by, {name: remarks})
    typer.echo(f"{text}\n\nWritten to {page}")


def write_and_print_sweep(folder: Path | None, sweep: Any, quantity: Sequence[str] | None) -> None:
    """Write the sweep's files and page to the folder, if there is one, and then print it."""
    written = ""
    if folder is not None:
        from sdelens.results.report import write_sweep

        optimizer, problem = (json.loads(sweep.dataset.attrs[part])["name"] for part in ("optimizer", "problem"))
        page = write_sweep(folder, f"sweep-{optimizer}-{problem}", sweep, f"sdelens {command_line()}", quantity)
        written = f"\n\nWritten to {page}"
    typer.echo(f"{sweep}{written}")
