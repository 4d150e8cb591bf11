"""Read steps, losses and learning rates from what training loops log: tables, W&B, TensorBoard, Hugging Face."""

import importlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from sdelens.core.text import brief

__all__ = ["Logged", "read_log"]

_STEPS: Final = re.compile(
    r"((train|trainer|training|optimizer)_)?(global_)?(steps?|iterations?|iters?|(num_)?updates?)"
)
_LOSSES: Final = (
    re.compile(
        r"((train|trainer|training)_)?((lm|ce|nll|cross_?entropy|mean|total)_)?loss(_(step|train|training))?"
        r"|lm_loss_training_lm_loss|(train_)?crossentropyloss|(train_)?(nll|cross_entropy)"
    ),
    re.compile(r"(val|valid|validation|eval|evaluation|test)_(lm_|ce_)?loss(_step|_epoch)?|loss_(val|validation|eval)"),
    re.compile(r"values?"),  # what TensorBoard's own page exports
)
"""Names of the loss, the best first: of training, of validation, of whatever the table holds."""
_RATES: Final = re.compile(
    r"((train|trainer|training|optim|optimizer)_)?(lr|learning_rate)(_(learning_rate|adamw?|sgd|group_?0|pg_?1|0))*"
)
_NUMBER: Final = re.compile(r"\s*[-+]?(\d+([.,]\d*)?|[.,]\d+)([eE][-+]?\d+)?\s*")
_MISSING: Final = ("", "none", "null", "na", "n/a")
_KINDS: Final = (
    "a pair (steps, losses) of arrays, a pandas DataFrame, or the path of a CSV file, of a JSON or JSONL log, or of a "
    "TensorBoard event file or its folder"
)


@dataclass(frozen=True, repr=False)
class Logged:
    """What a log says, before it is checked.

    Attributes:
        steps: optimizer steps, shape (n,), float64.
        losses: losses at these steps, shape (n,), float64.
        rate_steps: steps at which learning rates are logged, shape (r,); None if the log has none.
        rates: learning rates at these steps, shape (r,); None if the log has none.
        source: what it was read from, in words.
        name: name of the run in the log, or of the file; None for arrays.
        where: how a message says where the losses are.
    """

    steps: np.ndarray
    losses: np.ndarray
    rate_steps: np.ndarray | None
    rates: np.ndarray | None
    source: str
    name: str | None
    where: str

    __repr__ = brief


@dataclass(frozen=True)
class _Column:
    """One quantity: values at steps, which are None where another column of the same rows holds them."""

    values: np.ndarray
    known: np.ndarray
    steps: np.ndarray | None = None

    def same(self, other: "_Column", rows: Any = slice(None)) -> bool:
        """Whether both hold the same numbers in these rows."""
        pairs = [(self.values[rows], other.values[rows]), (self.known[rows], other.known[rows])]
        if self.steps is not None and other.steps is not None:
            pairs.append((self.steps, other.steps))
        return all(a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype != bool) for a, b in pairs)


@dataclass(frozen=True)
class _Table:
    """Named quantities, read only when they are asked for.

    Attributes:
        names: their names.
        column: function from a name to its values.
        source: what was read, in words.
        stem: name of the file, None if there is none.
        stepped: whether every quantity has steps of its own.
    """

    names: tuple[str, ...]
    column: Callable[[str], _Column]
    source: str
    stem: str | None = None
    stepped: bool = False


def read_log(curve: Any, *, loss: str | None = None, step: str | None = None, lr: Any = None) -> Logged:
    """Steps, losses and, where there are any, learning rates of a log.

    Args:
        curve: the log, as `Run` takes it.
        loss: name of the column or tag of the loss; default: one of the usual names.
        step: name of the column of the step; default: one of the usual names.
        lr: name of the column or tag of the learning rate; default: one of the usual names, if there is one. For a pair
            of arrays: the learning rates themselves, shape (n,).

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if it is a log of TensorBoard, which is not installed.
        TypeError: if `curve` is none of these.
        ValueError: if it cannot be read, or a column is not found or is not the only one; the message lists them.
    """
    if isinstance(curve, str | os.PathLike):
        table = _file(Path(curve))
    elif isinstance(curve, tuple | list) and len(curve) == 2 and not isinstance(curve[0], Mapping | str):
        return _pair(curve, loss, step, lr)
    elif isinstance(curve, Mapping) or (hasattr(curve, "columns") and hasattr(curve, "iloc")):
        table = _frame(curve)
    else:
        shape = f" of shape {np.shape(curve)}" if isinstance(curve, np.ndarray) else ""
        raise TypeError(f"curve: got {type(curve).__name__}{shape}; give {_KINDS}.")
    for argument, value in (("loss", loss), ("step", step), ("lr", lr)):
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{argument}: got {type(value).__name__}; give the name of a column of the log.")
    return _chosen(table, loss, step, lr)


def _pair(curve: Any, loss: str | None, step: str | None, lr: Any) -> Logged:
    """A pair of arrays, whose learning rates are a third."""
    for argument, name in (("loss", loss), ("step", step)):
        if name is not None:
            raise ValueError(f"{argument}: got {name!r}, but curve is a pair of arrays without names; leave it out.")
    if isinstance(lr, str):
        raise ValueError(f"lr: got {lr!r}, but curve is a pair of arrays without names; give the learning rates.")
    steps, losses = (_numbers(f"curve: its {n}", v) for n, v in zip(("steps", "losses"), curve, strict=True))
    if steps.shape != losses.shape:
        raise ValueError(f"curve: got {steps.size} steps and {losses.size} losses; give one loss for every step.")
    rates = None if lr is None else _numbers("lr", lr)
    if rates is not None and rates.shape != steps.shape:
        raise ValueError(f"lr: got {rates.size} learning rates for {steps.size} steps; give one for every step.")
    return Logged(steps, losses, None if rates is None else steps, rates, "arrays", None, "losses")


def _numbers(name: str, value: Any) -> np.ndarray:
    try:
        found = np.atleast_1d(np.asarray(value, np.float64))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: got {value!r}; give an array of real numbers.") from error
    if found.ndim != 1:
        raise ValueError(f"{name}: got an array of shape {found.shape}; give one of shape (n,).")
    return found


# Which column is which


def _chosen(table: _Table, loss: str | None, step: str | None, lr: str | None) -> Logged:
    """The columns of a table that are meant."""
    plain = [name for name in table.names if not re.search(r"__(MIN|MAX)$", name)]  # W&B's range of each mean
    losses = _named("loss", loss, _LOSSES, table, plain)
    for usual in _LOSSES:
        losses = losses or _usual("loss", usual, table, plain)
    if losses is None:
        raise ValueError(
            f"loss: no column of {table.source} has a usual name of a loss, such as 'loss' or 'train/loss'; name one "
            f"of its columns with loss=: {_listed(plain)}."
        )
    run, _ = _split(losses)
    near = [name for name in plain if name != losses and _split(name)[0] in (run, None)]  # W&B: of the same run
    rates = _named("lr", lr, (_RATES,), table, plain) or _usual("lr", _RATES, table, near)
    column = table.column(losses)
    if table.stepped:
        if step is not None:
            raise ValueError(f"step: got {step!r}, but TensorBoard keeps the step of every number; leave it out.")
        steps = column.steps
    else:
        named = _named("step", step, (_STEPS,), table, plain) or _usual("step", _STEPS, table, near, column.known)
        if named is None:
            raise ValueError(
                f"step: no column of {table.source} has a usual name of the step, such as 'step' or 'iteration'; name "
                f"one of its columns with step=: {_listed(near)}."
            )
        steps = _steps(table, named, column.known)
    assert steps is not None
    known = column.known
    where = f"tag {losses!r}" if table.stepped else f"column {losses!r}"
    about = f"{table.source}, {where}", run or table.stem, f"{where} of {table.source}"
    logged = Logged(steps[known], column.values[known], None, None, *about)
    if rates is None:
        return logged
    column = table.column(rates)
    steps = column.steps if table.stepped else steps
    if steps is None or not column.known.any():
        return logged
    return replace(logged, rate_steps=steps[column.known], rates=column.values[column.known])


def _steps(table: _Table, name: str, needed: np.ndarray) -> np.ndarray:
    """The step of every row; an error if one with a loss has none."""
    column = table.column(name)
    lost = np.flatnonzero(needed & (~column.known | np.isnan(column.values)))
    if lost.size:
        raise ValueError(
            f"step: row {lost[0] + 1} of {table.source} has a loss but no {name!r} ({lost.size} such rows); drop these "
            "rows, or name another column with step=."
        )
    return np.where(column.known, column.values, np.nan)


def _named(
    argument: str, name: str | None, usual: Sequence[re.Pattern[str]], table: _Table, plain: Sequence[str]
) -> str | None:
    """The column with a name, or that of a run of W&B with this name; None if no name was given."""
    if name is None or name in table.names:
        return name
    for test in (lambda other: _split(other)[1] == name, lambda other: _key(other) == _key(name)):
        found = [other for other in plain if test(other)]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(
                f"{argument}: {name!r} fits several columns of {table.source}: {_listed(found)}; name one of them."
            )
    of_run = [other for other in plain if _split(other)[0] == name]
    for pattern in usual:
        if (only := _usual(argument, pattern, table, of_run)) is not None:
            return only
    raise ValueError(f"{argument}: {table.source} has no column {name!r}; its columns are {_listed(plain)}.")


def _usual(
    argument: str, names: re.Pattern[str], table: _Table, among: Sequence[str], rows: Any = slice(None)
) -> str | None:
    """The one column whose name is usual; columns of equal values in these rows count as one."""
    found = [name for name in among if names.fullmatch(_key(name))]
    first = table.column(found[0]) if len(found) > 1 else None
    if first is not None and not all(first.same(table.column(name), rows) for name in found[1:]):
        raise ValueError(
            f"{argument}: {table.source} has several columns that can be meant: {_listed(found)}; name one with "
            f"{argument}=."
        )
    return found[0] if found else None


def _split(name: str) -> tuple[str | None, str]:
    """Run and quantity of a column of W&B, 'run - quantity'; the run is None in other tables."""
    run, found, quantity = name.rpartition(" - ")
    return (run, quantity) if found else (None, name)


def _key(name: str) -> str:
    """The name of the quantity in lower case with words joined by underscores."""
    return re.sub(r"[^a-z0-9]+", "_", _split(name)[1].lower()).strip("_")


def _listed(names: Iterable[str], most: int = 20) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(map(repr, names[:most])) or "none") + more


# Files


def _file(path: Path) -> _Table:
    """The table in a file or folder, by its name and its first bytes."""
    if not path.exists():
        raise FileNotFoundError(f"curve: there is no file {str(path)!r}; give {_KINDS}.")
    if path.is_dir():
        state = path / "trainer_state.json"
        return _json(state) if state.is_file() else _events(path)
    if ".tfevents." in path.name:
        return _events(path)
    if path.suffix.lower() in (".json", ".jsonl", ".ndjson"):
        return _json(path)
    return _csv(path)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"curve: {str(path)!r} is not a text file; give {_KINDS}.") from error


def _csv(path: Path) -> _Table:
    """A table with commas, semicolons or tabs; without a header if its first line is two numbers."""
    import pandas as pd

    text = _text(path).lstrip("\r\n")
    if not text.strip():
        raise ValueError(f"curve: {str(path)!r} is empty; give a log with at least one row.")
    bare = re.sub(r'"[^"]*"', "", text.partition("\n")[0])
    separator = max(("\t", ";", ","), key=bare.count)
    fields = [field for field in bare.split(separator) if field.strip()]
    headless = len(fields) == 2 and all(_NUMBER.fullmatch(field) for field in fields)
    names = ["step", "loss"] if headless else None
    options: dict[str, Any] = {"dtype": str, "keep_default_na": False, "skipinitialspace": True, "index_col": False}
    try:
        frame = pd.read_csv(io.StringIO(text), sep=separator, names=names, **options)
    except pd.errors.ParserError as error:
        raise ValueError(
            f"curve: {str(path)!r} cannot be read as a table ({str(error).strip()}); give a CSV file with a line of "
            "names and the same number of fields in every line."
        ) from error
    source = f"the file {path.name}"

    def column(name: str) -> _Column:
        cells = frame[name].to_list()
        if separator == ";":
            cells = [str(cell).replace(",", ".") for cell in cells]  # decimal commas
        return _cells(name, cells, source)

    return _Table(tuple(str(c).strip() for c in _stripped(frame)), column, source, path.stem)


def _stripped(frame: Any) -> list[str]:
    frame.columns = [str(name).strip() for name in frame.columns]
    return list(frame.columns)


def _cells(name: str, cells: Sequence[Any], source: str) -> _Column:
    """Cells of text or of JSON as numbers; an empty one is not known, while NaN is a number."""
    import pandas as pd

    values = np.array(pd.to_numeric(pd.Series(list(cells), dtype=object), errors="coerce"), np.float64)
    known = np.ones(values.size, bool)
    for row in map(int, np.flatnonzero(np.isnan(values))):
        cell = cells[row]
        known[row] = cell is not None and str(cell).strip().lower() not in _MISSING
        try:
            values[row] = float(cell) if known[row] else np.nan
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"curve: row {row + 1} of column {name!r} of {source} is {cell!r}; give numbers, or name another "
                "column."
            ) from error
    return _Column(values, known)


def _frame(curve: Any) -> _Table:
    """A DataFrame, or a dict of columns; an index with the usual name of a step is a column too."""
    import pandas as pd

    try:
        frame = pd.DataFrame(curve)
    except ValueError as error:
        raise ValueError(f"curve: its columns do not make a table ({error}); give columns of equal length.") from error
    if frame.index.name is not None and frame.index.name not in frame.columns:
        frame = frame.reset_index()
    frame = frame.set_axis([str(name) for name in frame.columns], axis=1)
    source = "the table" if isinstance(curve, Mapping) else "the DataFrame"

    def column(name: str) -> _Column:
        cells = frame[name]
        if cells.ndim != 1:
            raise ValueError(f"curve: {source} has several columns {name!r}; give every column a name of its own.")
        if pd.api.types.is_numeric_dtype(cells.dtype):
            values = cells.to_numpy(np.float64, na_value=np.nan)
            # W&B leaves a row of another quantity empty, which pandas reads as NaN.
            return _Column(values, np.ones(len(values), bool) if _split(name)[0] is None else ~np.isnan(values))
        return _cells(name, cells.to_list(), source)

    return _Table(tuple(frame.columns), column, source)


def _json(path: Path) -> _Table:
    """Records of JSON: a list, one in every line, a dict of columns, or the state of the Hugging Face Trainer."""
    text = _text(path)
    try:
        content: Any = json.loads(text)
        if path.suffix.lower() != ".json" and isinstance(content, dict) and not _has_lists(content):
            content = [content]
    except json.JSONDecodeError as first:
        try:
            content = [json.loads(line) for line in text.splitlines() if line.strip()]
        except json.JSONDecodeError as error:
            raise ValueError(f"curve: {str(path)!r} is not JSON ({error}); save the log again.") from (
                error if path.suffix.lower() != ".json" else first
            )
    stem = path.stem
    if isinstance(content, dict) and isinstance(content.get("log_history"), list):
        # The last record is a summary, whose train_loss is the mean over all steps.
        content = [row for row in content["log_history"] if "train_runtime" not in row]
        stem = path.resolve().parent.name or stem
    if isinstance(content, dict) and _has_lists(content):
        table = _frame({k: v for k, v in content.items() if isinstance(v, list)})
        return _Table(table.names, table.column, f"the file {path.name}", stem)
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise ValueError(
            f"curve: {str(path)!r} holds no records; give a list of objects such as "
            '{"step": 100, "loss": 3.2}, one such object a line, or the trainer_state.json of the Hugging Face Trainer.'
        )
    rows = content
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    source = f"the file {path.name}"
    return _Table(names, lambda name: _cells(name, [row.get(name) for row in rows], source), source, stem)


def _has_lists(content: Mapping[str, Any]) -> bool:
    return any(isinstance(value, list) for value in content.values())


def _events(path: Path) -> _Table:
    """Scalars in TensorBoard's event files, read with its own library; all of one folder belong to one run."""
    if path.is_dir():
        folders = sorted({found.parent for found in path.rglob("*.tfevents.*")})
        if not folders:
            raise ValueError(
                f"curve: the folder {str(path)!r} holds no event file of TensorBoard (events.out.tfevents.…) and no "
                f"trainer_state.json; give {_KINDS}."
            )
        if len(folders) > 1 and path not in folders:
            inner = _listed(str(folder.relative_to(path)) for folder in folders)
            raise ValueError(f"curve: {str(path)!r} holds the event files of several runs: {inner}; give one of these.")
        path = path if path in folders else folders[0]
    try:
        event_accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
        tensor_util = importlib.import_module("tensorboard.util.tensor_util")
    except ImportError as error:
        raise ImportError(
            "curve: reading the event files of TensorBoard needs its library; install it with pip install tensorboard, "
            "or export the curve as CSV."
        ) from error
    every = {event_accumulator.SCALARS: 0, event_accumulator.TENSORS: 0}  # 0: keep them all
    events = event_accumulator.EventAccumulator(str(path), size_guidance=every).Reload()
    tags = events.Tags()
    scalars, tensors = tags[event_accumulator.SCALARS], tags[event_accumulator.TENSORS]
    source = f"the event {'folder' if path.is_dir() else 'file'} {path.name}"
    if not scalars and not tensors:
        raise ValueError(f"curve: {source} holds no scalars; give the file of the run that logged the loss.")

    def column(name: str) -> _Column:
        if name in scalars:
            found = [(event.step, event.value) for event in events.Scalars(name)]
        else:
            made = [(event.step, tensor_util.make_ndarray(event.tensor_proto)) for event in events.Tensors(name)]
            if any(np.size(value) != 1 or np.asarray(value).dtype.kind not in "fiu" for _, value in made):
                raise ValueError(f"loss: the tag {name!r} of {source} holds no scalars; name another one.")
            found = [(step, np.ravel(value)[0]) for step, value in made]
        steps, values = np.array(found, np.float64).reshape(-1, 2).T
        return _Column(values, np.ones(values.size, bool), steps)

    return _Table((*scalars, *tensors), column, source, path.name if path.is_dir() else path.parent.name, True)
