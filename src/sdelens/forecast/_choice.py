"""What the records of all choices have in common."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from sdelens.core.numerals import fixed
from sdelens.forecast._interval import Interval
from sdelens.results.printable import Parts, Plotted, Remarks, Table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Choice", "interval_text", "spaced_table"]


@dataclass(frozen=True, eq=False, repr=False)
class Choice(Plotted):
    """A choice made with a forecast: text, a figure and a description."""

    def describe(self) -> dict[str, Any]:
        """The record, JSON types only."""
        named = {field.name: getattr(self, field.name) for field in fields(self) if not field.name.startswith("_")}
        return {name: _plain(value) for name, value in named.items()}

    def _parts(self) -> Parts:
        remarks: tuple[str, ...] = getattr(self, "remarks", ())
        return [*self._said(), *([Remarks(remarks)] if remarks else [])]

    def _said(self) -> Parts:
        """What it says without the remarks."""
        raise NotImplementedError


def _plain(value: Any) -> Any:
    import pandas as pd

    if isinstance(value, Interval):
        return {name: _plain(part) for name, part in value._asdict().items()}
    if isinstance(value, pd.DataFrame):
        return {str(name): _plain(column.to_numpy()) for name, column in value.reset_index().items()}
    if isinstance(value, np.ndarray | tuple | list):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value.describe() if hasattr(value, "describe") else value


def interval_text(interval: Interval) -> str:
    """A value with its limits, with as many digits as they need."""
    width = max(abs(interval.upper - interval.lower), 1e-12)
    digits = int(np.clip(1 - np.floor(np.log10(width)), 0, 8))
    value, low, high = (fixed(part, digits) for part in interval)
    return f"{value} (90 % limits {low} to {high})"


def spaced_table(table: "pd.DataFrame", formats: dict[str, str], most: int = 13) -> Table:
    """At most `most` equally spaced rows of a table; missing numbers are written as a dash."""
    rows = table.iloc[np.unique(np.linspace(0, len(table) - 1, most).round().astype(int))]
    cells = [[f"{index:.4g}", *(_cell(row[name], formats[name]) for name in formats)] for index, row in rows.iterrows()]
    return Table([str(table.index.name).replace("_", " "), *(name.replace("_", " ") for name in formats)], cells)


def _cell(value: float, form: str) -> str:
    return format(value, form) if np.isfinite(value) else "-"
