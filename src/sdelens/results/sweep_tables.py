"""A sweep in words: title, table of its points and notes."""

import json
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sdelens.core.names import value_labels
from sdelens.core.numerals import resolved
from sdelens.results import latex, tables

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from sdelens.results.recorded import RecordedRun

__all__ = ["latex_table", "notes", "table", "title"]

_ROWS = 60
"""Most points for which the printed table shows all of them."""
_SHOWN = 20


class TabulatedSweep(Protocol):
    """The part of the interface of `sdelens.Sweep` that the tables use."""

    dataset: "xr.Dataset"

    @property
    def first(self) -> "RecordedRun": ...
    @property
    def over(self) -> dict[str, list[Any]]: ...
    @property
    def models(self) -> list[str]: ...
    @property
    def points(self) -> list[dict[str, Any]]: ...
    @property
    def reference(self) -> str: ...
    @property
    def compares(self) -> bool: ...
    def head(self, key: str) -> str: ...
    def late_loss(self) -> "pd.DataFrame": ...
    def best(self) -> Any: ...
    def at(self, point: dict[str, Any]) -> Any: ...


def title(sweep: TabulatedSweep) -> str:
    """One line that says what was run."""
    noise = [key.removeprefix("noise.") for key in sweep.over if key.startswith("noise.")]
    base = tables.title(sweep.first, [*sweep.over], noise)
    swept = [f"{len(values)} {key}" for key, values in sweep.over.items() if len(values) > 1]
    held = [f"{sweep.head(key)}={value_labels(values)[0]}" for key, values in sweep.over.items() if len(values) == 1]
    return f"{base}; {', '.join([' × '.join(swept)] * bool(swept) + held)}"


def table(sweep: TabulatedSweep) -> tuple[list[str], list[list[str]]]:
    """Header and rows, as text: all points, or only the best if there are many."""
    points, (cells, shown, others) = sweep.points, _chosen(sweep)
    labels = {key: value_labels(values) for key, values in sweep.over.items()}
    head = [*map(sweep.head, sweep.over), *(f"{m}: late loss ± sem" for m in sweep.models)]
    head += [*(f"{m}: error" for m in others), "diverged"]
    rows = []
    for i in shown:
        row = [labels[key][sweep.over[key].index(value)] for key, value in points[i].items()]
        row += ["diverged" if lost else f"{value:.4g} ± {sem:.1g}" for value, sem, lost in cells[i]]
        errors = sweep.at(points[i]).stated_errors() if others else {}
        row += [resolved(*errors[model]) for model in others]
        rows.append([*row, str(int(cells[i, :, 2].max()))])
    return head, rows


def latex_table(sweep: TabulatedSweep) -> tuple[list[str], list[list[str]]]:
    """Header and rows in LaTeX: late losses with standard errors, and errors with their 99 % limits."""
    points, (cells, shown, others) = sweep.points, _chosen(sweep)
    labels = {key: value_labels(values) for key, values in sweep.over.items()}
    head = [*map(sweep.head, sweep.over), *(f"{m}: late loss" for m in sweep.models)]
    head += [f"{m}: error [%]" for m in others]
    rows: list[list[str]] = []
    for i in shown:
        row = [labels[key][sweep.over[key].index(value)] for key, value in points[i].items()]
        row += ["diverged" if lost else latex.uncertain(value, sem) for value, sem, lost in cells[i]]
        errors: dict[Any, Any] = sweep.at(points[i]).errors().to_dict("index") if others else {}
        for here in (errors[model] for model in others):
            *numbers, floor = (100 * here[name] for name in ("error", "error_lower", "error_upper", "floor"))
            row.append(latex.limited(numbers, floor))
        rows.append(row)
    return head, rows


def _chosen(sweep: TabulatedSweep) -> tuple[np.ndarray, list[int], list[str]]:
    """Late loss, its standard error and lost paths by point and model; the points that tables show; other models."""
    late, points, reference = sweep.late_loss(), sweep.points, sweep.reference
    cells = late.to_numpy().reshape(len(points), len(sweep.models), 3)
    shown = list(range(len(points)))
    if len(points) > _ROWS:
        shown = np.argsort(cells[:, sweep.models.index(reference), 0], kind="stable")[:_SHOWN].tolist()
    return cells, shown, [model for model in sweep.models if model != reference] if sweep.compares else []


def notes(sweep: TabulatedSweep) -> list[str]:
    """Lines that say what the table's columns mean, which point is best, and how long the sweep took."""
    device, count = json.loads(sweep.dataset.attrs["device"]), len(sweep.points)
    found = ["late loss: mean over the last third of the run. All points share their random numbers."]
    if sweep.compares:
        found.append(
            "error: L2 of the mean-loss curve against the optimizer's, relative to that; <: not larger than what a "
            "perfect model shows at these path numbers, and below this upper 99 % limit; `errors` has all limits."
        )
    if count > _ROWS:
        found.append(f"The {_SHOWN} best of {count} points; `late_loss` has all.")
    if np.isfinite(sweep.late_loss().xs(sweep.reference, level="model").late_loss).any():
        found.append(f"Best of {sweep.reference!r}: {sweep.best().sentence()}.")
    indexed = [key for key in sweep.over if "values" in sweep.dataset[key].attrs]
    found += [f"{key}: {sweep.dataset[key].attrs['values']}." for key in indexed]
    seconds = float(sweep.dataset.wall_time.sum())
    shares = f" in {device['shares']} shares" if "shares" in device else ""
    return [*found, f"{count} points{shares} on {device['count']} × {device['kind']}, {seconds:.1f} s."]
