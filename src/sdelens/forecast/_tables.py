"""Tables of logs: named columns of numbers, from CSV, JSON, data frames and TensorBoard's events."""

import importlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from sdelens.core.csv_files import as_frame, plain_header, read_text, separator_of

__all__ = ["FILES", "Column", "Table", "listed", "of_file", "of_frame", "split_name"]

_NUMBER: Final = re.compile(r"\s*[-+]?(\d+([.,]\d*)?|[.,]\d+)([eE][-+]?\d+)?\s*")

_MISSING: Final = ("", "none", "null", "na", "n/a")

FILES: Final = "a CSV file, a JSON or JSONL log, or an event file of TensorBoard or its folder"
"""The logs that are read from files."""


@dataclass(frozen=True)
class Column:
    """One quantity: values at steps, which are None where another column of the same rows holds them."""

    values: np.ndarray
    known: np.ndarray
    steps: np.ndarray | None = None

    def same(self, other: "Column", rows: Any = slice(None)) -> bool:
        """Whether both hold the same numbers in these rows."""
        pairs = [(self.values[rows], other.values[rows]), (self.known[rows], other.known[rows])]
        if self.steps is not None and other.steps is not None:
            pairs.append((self.steps, other.steps))
        return all(a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype != bool) for a, b in pairs)


@dataclass(frozen=True)
class Table:
    """Named quantities, read only when they are asked for.

    Attributes:
        names: their names.
        column: function from a name to its values.
        source: what was read, in words.
        stem: name of the file, None if there is none.
        stepped: whether every quantity has steps of its own.
    """

    names: tuple[str, ...]
    column: Callable[[str], Column]
    source: str
    stem: str | None = None
    stepped: bool = False


def split_name(name: str) -> tuple[str | None, str]:
    """Run and quantity of a column of W&B, 'run - quantity'; the run is None in other tables."""
    run, found, quantity = name.rpartition(" - ")
    return (run, quantity) if found else (None, name)


def listed(names: Iterable[str], most: int = 20) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(map(repr, names[:most])) or "none") + more


def of_file(path: Path) -> Table:
    """The table in a file or folder, by its name and its first bytes."""
    if not path.exists():
        raise FileNotFoundError(f"curve: there is no file {str(path)!r}; check its name and its folder.")
    if path.is_dir():
        state = path / "trainer_state.json"
        return _json(state) if state.is_file() else _events(path)
    if ".tfevents." in path.name:
        return _events(path)
    if path.suffix.lower() in (".json", ".jsonl", ".ndjson"):
        return _json(path)
    return _csv(path)


def _csv(path: Path) -> Table:
    """A table with commas, semicolons or tabs; without a header if its first line is two numbers."""
    text = read_text("curve", path, FILES).lstrip("\r\n")
    separator = separator_of(text)
    fields = [field for field in plain_header(text).split(separator) if field.strip()]
    headless = len(fields) == 2 and all(_NUMBER.fullmatch(field) for field in fields)
    options: dict[str, Any] = {"dtype": str, "keep_default_na": False, "skipinitialspace": True, "index_col": False}
    names = ["step", "loss"] if headless else None
    frame = as_frame("curve", path, text, sep=separator, names=names, **options)
    source = f"the file {path.name}"

    def column(name: str) -> Column:
        cells = frame[name].to_list()
        if separator == ";":
            cells = [str(cell).replace(",", ".") for cell in cells]  # decimal commas
        return _cells(name, cells, source)

    return Table(tuple(str(c).strip() for c in _stripped(frame)), column, source, path.stem)


def _stripped(frame: Any) -> list[str]:
    frame.columns = [str(name).strip() for name in frame.columns]
    return list(frame.columns)


def _cells(name: str, cells: Sequence[Any], source: str) -> Column:
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
    return Column(values, known)


def of_frame(curve: Any) -> Table:
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

    def column(name: str) -> Column:
        cells = frame[name]
        if cells.ndim != 1:
            raise ValueError(f"curve: {source} has several columns {name!r}; give every column a name of its own.")
        if pd.api.types.is_numeric_dtype(cells.dtype):
            values = cells.to_numpy(np.float64, na_value=np.nan)
            # W&B leaves a row of another quantity empty, which pandas reads as NaN.
            return Column(values, np.ones(len(values), bool) if split_name(name)[0] is None else ~np.isnan(values))
        return _cells(name, cells.to_list(), source)

    return Table(tuple(frame.columns), column, source)


def _json(path: Path) -> Table:
    """Records of JSON: a list, one in every line, a dict of columns, or the state of the Hugging Face Trainer."""
    text = read_text("curve", path, FILES)
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
        table = of_frame({k: v for k, v in content.items() if isinstance(v, list)})
        return Table(table.names, table.column, f"the file {path.name}", stem)
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise ValueError(
            f"curve: {str(path)!r} holds no records; give a list of objects such as "
            '{"step": 100, "loss": 3.2}, one such object a line, or the trainer_state.json of the Hugging Face Trainer.'
        )
    rows = content
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    source = f"the file {path.name}"
    return Table(names, lambda name: _cells(name, [row.get(name) for row in rows], source), source, stem)


def _has_lists(content: Mapping[str, Any]) -> bool:
    return any(isinstance(value, list) for value in content.values())


def _events(path: Path) -> Table:
    """Scalars in TensorBoard's event files, read with its own library; all of one folder belong to one run."""
    if path.is_dir():
        folders = sorted({found.parent for found in path.rglob("*.tfevents.*")})
        if not folders:
            raise ValueError(
                f"curve: the folder {str(path)!r} holds no event file of TensorBoard (events.out.tfevents.…) and no "
                f"trainer_state.json; give {FILES}."
            )
        if len(folders) > 1 and path not in folders:
            inner = listed(str(folder.relative_to(path)) for folder in folders)
            raise ValueError(f"curve: {str(path)!r} holds the event files of several runs: {inner}; give one of these.")
        path = path if path in folders else folders[0]
    try:
        event_accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
        tensor_util = importlib.import_module("tensorboard.util.tensor_util")
    except ImportError as error:
        raise ImportError(
            "curve: reading the event files of TensorBoard needs its library; install it with pip install "
            "'sdelens[forecast]', or export the curve as CSV."
        ) from error
    every = {event_accumulator.SCALARS: 0, event_accumulator.TENSORS: 0}  # 0: keep them all
    events = event_accumulator.EventAccumulator(str(path), size_guidance=every).Reload()
    tags = events.Tags()
    scalars, tensors = tags[event_accumulator.SCALARS], tags[event_accumulator.TENSORS]
    source = f"the event {'folder' if path.is_dir() else 'file'} {path.name}"
    if not scalars and not tensors:
        raise ValueError(f"curve: {source} holds no scalars; give the file of the run that logged the loss.")

    def column(name: str) -> Column:
        if name in scalars:
            found = [(event.step, event.value) for event in events.Scalars(name)]
        else:
            made = [(event.step, tensor_util.make_ndarray(event.tensor_proto)) for event in events.Tensors(name)]
            if any(np.size(value) != 1 or np.asarray(value).dtype.kind not in "fiu" for _, value in made):
                raise ValueError(f"loss: the tag {name!r} of {source} holds no scalars; name another one.")
            found = [(step, np.ravel(value)[0]) for step, value in made]
        steps, values = np.array(found, np.float64).reshape(-1, 2).T
        return Column(values, np.ones(values.size, bool), steps)

    return Table((*scalars, *tensors), column, source, path.name if path.is_dir() else path.parent.name, True)
