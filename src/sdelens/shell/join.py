"""The shell's `join`, and what it shares with the commands that run all paths: writing and printing of results."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdelens.core.text import wrapped
from sdelens.shell.case_options import Subject, SubjectOptions
from sdelens.shell.output import Output
from sdelens.shell.panels import Curve, Quantities, Theory
from sdelens.shell.session import command_line, one_line_warnings, refusals, shell

if TYPE_CHECKING:
    from sdelens.forecast import Logged

__all__ = [
    "join",
    "read_curve",
    "refuse_of_share",
    "write_and_print",
    "write_and_print_comparison",
    "write_and_print_sweep",
]


def join(
    shares: Annotated[
        list[Path], typer.Argument(help="Files of the shares, or the folder that contains them.", show_default=False)
    ],
    output: Output,
    theory: Theory = False,
    curve: Curve = None,
    quantity: Quantities = None,
) -> None:
    """Print the result of a run from its shares, which compare or sweep with --share wrote.

    With --out, it writes what compare or sweep writes. A share that is missing, damaged or of another run is named.
    """
    with shell(1) if theory else refusals():  # only theory needs JAX
        from sdelens.core import check
        from sdelens.results.sweep import SHOWN
        from sdelens.run.description import SweepDescription
        from sdelens.run.shares import head, share_files
        from sdelens.run.shares import join as join_shares

        one_line_warnings()
        for name in quantity or []:
            check.choice("quantity", name, SHOWN)
        logged = None if curve is None else read_curve(curve)
        files = [file for given in shares for file in share_files(given)]
        first = head(files[0])
        if isinstance(first.description, SweepDescription):
            _refuse("sweep", "compare", theory=theory, curve=curve)
            with output.folder() as folder:
                write_and_print_sweep(folder, join_shares(files), quantity)
            return
        _refuse("compare", "sweep", quantity=quantity)
        subject = _subject_of(first, files[0]) if theory else None
        with output.folder() as folder:
            write_and_print_comparison(folder, join_shares(files), subject, logged)


def _refuse(command: str, other: str, **given: Any) -> None:
    """Refuse options of these names and values, which only another command has."""
    for name, value in given.items():
        if value:
            raise ValueError(f"{name}: got --{name}, but these are shares of {command}, not of {other}; leave it out.")


def _subject_of(share: Any, file: Path) -> Subject:
    """Problem, noise and optimizer of a share from the shell."""
    if not share.subject:
        raise ValueError(
            f"theory: got --theory, but {str(file)!r} was not written by the shell, so its problem is not known here. "
            "Leave it out; in Python, give it to sl.theory.add_theory(sl.join(...), problem, noise, optimizer)."
        )
    return SubjectOptions(**share.subject).build()


def read_curve(path: Path) -> "Logged":
    """The curve in a log, whose loss and step must have usual names here."""
    import sdelens as sl

    try:
        return sl.forecast.read_log(path)
    except ValueError as error:
        name, _, reason = str(error).partition(": ")
        if name not in ("loss", "step"):
            raise
        raise ValueError(f"curve: {reason.split(';')[0]}; rename the column of the {name} to {name!r}.") from error


def refuse_of_share(**given: Any) -> None:
    """Refuse options of these names and values, which need all paths, with ``--share``.

    Raises:
        ValueError: if one of the options is given; the message names it.
    """
    for name, value in given.items():
        if value:
            raise ValueError(f"{name}: got --{name} with --share, but a share lacks paths; give it to sdelens join.")


def write_and_print_comparison(
    folder: Path | None, result: Any, subject: Subject | None, logged: "Logged | None"
) -> None:
    """Write and print a result of compare, with theory for the subject and a logged curve if they are given."""
    remarks: list[str] = []
    if subject is not None:
        import sdelens as sl

        result, remarks = sl.theory.add_theory(result, subject.problem, subject.noise, subject.optimizer)
    if logged is not None:
        try:
            result = result.with_curve("logged", logged.losses, logged.steps)
        except (ValueError, TypeError) as error:
            raise ValueError(f"curve: {error}") from error
    said = [line for remark in remarks for line in wrapped(remark)]
    write_and_print(folder, result, "compare", "\n".join([str(result), *said]), "\n".join(remarks))


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
