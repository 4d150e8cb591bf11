"""The runs of the shell's `forecast`: logs by path or in a table of runs, with an optimizer for each."""

import csv
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from sdelens.core import check
from sdelens.core.csv_files import read_text, separator_of
from sdelens.shell.case_options import SubjectOptions
from sdelens.shell.constructors import calls
from sdelens.shell.session import named

if TYPE_CHECKING:
    from sdelens.forecast import Run
    from sdelens.optimizers import DecayedOptimizer

__all__ = ["LOGS", "Columns", "at_every_length", "optimizer_from", "runs_from", "runs_in"]

LOGS = partial(typer.Option, rich_help_panel="The logs")

_NUMBERS: Final = ("batch_size", "size", "steps", "warmup")
_TABLE: Final = ("path", "optimizer", *_NUMBERS, "name", "step", "loss")
"""Columns of a table of runs."""


@dataclass(frozen=True)
class Columns:
    """The options of a command about the columns of logs."""

    loss: Annotated[str | None, LOGS(help="Column or tag of the loss. Default: the one usual name.")] = None
    step: Annotated[str | None, LOGS(help="Column of the step. Default: the one usual name.")] = None
    lr: Annotated[
        str | None,
        LOGS(help="Column or tag of the learning rate. Default: the one usual name, if there is one."),
    ] = None

    @property
    def given(self) -> dict[str, Any]:
        """Those that are given, as arguments of `Run`."""
        return {name: column for name, column in vars(self).items() if column is not None}


def optimizer_from(text: str) -> "DecayedOptimizer":
    """The optimizer in a text such as ``adamw(lr=3e-4, b2=0.95)``, which must have a learning rate.

    Raises:
        ValueError: if it cannot be read, or has no learning rate.
    """
    for call in calls("optimizer", text):
        if not call.positional and not {"lr", "learning_rate"} & call.named.keys():
            raise ValueError(f"optimizer: {text!r} has no learning rate; write it as in {call.name}(lr=3e-4).")
    return SubjectOptions(optimizer=text).build().optimizer  # type: ignore[return-value]


def at_every_length(optimizer: "DecayedOptimizer", steps: int | None) -> Any:
    """The optimizer, or with a schedule a function of the number of steps, to which this is stretched from `steps`.

    Raises:
        ValueError: if there is a schedule, but not the number of steps for which it is meant.
    """
    schedule = optimizer.schedule
    if schedule is None:
        return optimizer
    if steps is None:
        raise ValueError(
            "steps: missing; the optimizer's schedule is stretched from this number of steps to those at every batch "
            "size. Give --steps, or leave out the schedule."
        )
    return lambda n: dataclasses.replace(optimizer, schedule=schedule.stretched(n / steps))


def _every(name: str, given: Sequence[str] | None, count: int) -> list[str | None]:
    """An option that is given once for all runs, or once for each in their order.

    Raises:
        ValueError: if it is given another number of times.
    """
    if not given:
        return [None] * count
    if len(given) not in (1, count):
        raise ValueError(
            f"{name}: was given {len(given)} times for {count} runs; give it once for all, or once for each in their "
            "order."
        )
    return [*given] * (count if len(given) == 1 else 1)


def runs_from(
    paths: Sequence[Path], optimizers: Sequence[str], numbers: Mapping[str, Sequence[str] | None], columns: Columns
) -> list["Run"]:
    """The runs in these logs.

    Args:
        paths: their logs.
        optimizers: one for all, or one for each.
        numbers: by name, an argument of `Run` as text: once for all, or once for each; or None.
        columns: names of the columns of all logs.

    Raises:
        ValueError: if a run is not as it should be; the message names its log.
    """
    if paths and not optimizers:
        raise ValueError("optimizer: missing; give --optimizer once for all runs, or once for each in their order.")
    texts = _every("optimizer", optimizers, len(paths))
    options = {name: _every(name, given, len(paths)) for name, given in numbers.items()}
    stems = [path.stem for path in paths]
    found = []
    for i, path in enumerate(paths):
        with _naming(str(path)):
            optimizer = optimizer_from(texts[i] or "")
            cells = {name: values[i] or "" for name, values in options.items()}
            name = str(path) if stems.count(path.stem) > 1 else None
            found.append(_run(path, optimizer, {**_numbers(cells), "name": name}, columns))
    return found


def runs_in(table: Path, optimizer: str | None, columns: Columns) -> list["Run"]:
    """The runs in the rows of a CSV file with the columns path (relative to the file), optimizer and so on.

    Args:
        table: the file.
        optimizer: the optimizer of the rows that have none.
        columns: names of the columns of the logs.

    Raises:
        ValueError: if a row is not as it should be; the message gives its number.
    """
    found = []
    for line, row in _rows(table):
        with _naming(f"line {line} of {str(table)!r}"):
            text = row.get("optimizer") or optimizer
            if not text:
                raise ValueError("optimizer: missing; fill the column optimizer, or give --optimizer for all runs.")
            options = {**_numbers(row), "name": row.get("name") or None}
            found.append(_run(_curve(row, table.parent), optimizer_from(text), options, columns))
    return found


def _run(curve: Any, optimizer: "DecayedOptimizer", options: dict[str, Any], columns: Columns) -> "Run":
    """A run; columns are those of a file."""
    from sdelens.forecast import Run

    return Run(curve, optimizer, **options, **(columns.given if isinstance(curve, Path) else {}))


def _curve(row: dict[str, str], folder: Path) -> Any:
    """The log of a row: its path, or its last step and loss."""
    last = {name: row.get(name, "") for name in ("step", "loss")}
    if path := row.get("path"):
        given = [name for name, text in last.items() if text]
        if given:
            raise ValueError(f"{given[0]}: given together with a path; give the path of the log, or step and loss.")
        return folder / path
    missing = [name for name, text in last.items() if not text]
    if missing:
        raise ValueError(f"{missing[0]}: missing; give the path of a log, or the last step and its loss.")
    return tuple([check.number(name, _number(name, text))] for name, text in last.items())


def _numbers(cells: dict[str, str]) -> dict[str, float | int]:
    """The arguments of `Run` that are numbers, without those that are not given."""
    found: dict[str, float | int] = {}
    for name in _NUMBERS:
        if text := cells.get(name):
            value = _number(name, text)
            found[name] = check.whole(name, value) if name in ("steps", "warmup") else value
    return found


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"{name}: got {text!r}; give a number.") from error


def _rows(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Number of the line and cells by column of every row that is not empty."""
    text = read_text("runs", table, "a CSV file with one row per run")
    reader = csv.reader(text.splitlines(keepends=True), delimiter=separator_of(text))
    names = [name.strip().lower().replace("-", "_").replace(" ", "_") for name in next(reader, [])]
    for name in names:
        check.choice(f"runs: columns of {str(table)!r}", name, _TABLE)
        if names.count(name) > 1:
            raise ValueError(f"runs: {str(table)!r} has the column {name} twice; keep one of them.")
    if "path" not in names and not {"step", "loss"} <= set(names):
        raise ValueError(f"runs: {str(table)!r} has no column path, nor columns step and loss; add one of these.")
    any_row = False
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(names):
            raise ValueError(
                f"runs: line {reader.line_num} of {str(table)!r} has {len(cells)} cells for {len(names)} columns; put "
                "an optimizer with commas in double quotes."
            )
        any_row = True
        yield reader.line_num, {name: cell.strip() for name, cell in zip(names, cells, strict=True)}
    if not any_row:
        raise ValueError(f"runs: {str(table)!r} has no rows; give one per run.")


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Say in an error which run it is about; a missing file names itself."""
    try:
        with named(curve="logs"):
            yield
    except (ValueError, TypeError) as error:
        raise ValueError(f"runs: {where}: {error}") from error
