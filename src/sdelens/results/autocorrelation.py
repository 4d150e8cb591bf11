r"""Autocorrelation of paths at rest, with limits from the differences between paths.

With a_i(t) the values of path i = 1, …, P at T recorded steps and ā their mean over all paths and steps,

    r(l) = Σ_i Σ_t (a_i(t) − ā)(a_i(t + l) − ā) T / ((T − l) Σ_i Σ_t (a_i(t) − ā)²),   t + l < T,

in records l. The integrated autocorrelation time is τ = 1 + 2 Σ_{l ≤ W} r(l), with the smallest window W ≥ 5 τ(W)
(Sokal 1997), in steps: T/τ is the number of independent values among those of one path. Limits are those of the
delete-one jackknife over paths (Tukey 1958) and Student's t with P − 1 degrees of freedom, with W kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from sdelens.core import check
from sdelens.core.limits import CONFIDENCE
from sdelens.core.numerals import MISSING, between, number
from sdelens.results.printable import Parts, Plotted, Table
from sdelens.results.tracking import Interval, late_window

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from sdelens.results.figures import Sheet

__all__ = ["Autocorrelation", "autocorrelation_of", "correlated"]

_FEWEST_PATHS = 8
_WINDOWS = 5.0


@dataclass(frozen=True, repr=False)
class Autocorrelation(Plotted):
    """The autocorrelation of kept paths, as `Result.autocorrelation` returns it.

    Attributes:
        table: one row per model and lag in steps, with columns value, lower and upper.
        times: integrated autocorrelation time in steps of every model, with columns value, lower and upper.
        of: what is correlated.
        kinds: kind of each model by label.
        confidence: one-sided confidence of each limit.
        remarks: why a time or its limits are missing, if they are.
    """

    table: "pd.DataFrame"
    times: "pd.DataFrame"
    of: str
    kinds: Mapping[str, str]
    confidence: float
    remarks: tuple[str, ...] = ()

    def _parts(self) -> Parts:
        rows = []
        for model, row in self.times.iterrows():
            limits = MISSING if np.isnan(row.upper) else between(row.lower, row.upper, _written)
            rows.append([str(model), _written(row.value), limits])
        said = f"Integrated autocorrelation time of {self.of} in steps."
        table = Table(["model", "steps", f"{100 * self.confidence:g} % limits"], rows)
        return [said, table.without_empty(), *self.remarks]

    def _draw(self, sheet: "Sheet") -> None:
        from sdelens.results.plotting import look_of, written

        axes, looks = sheet.panels(size=(5.0, 3.2))[0], look_of(dict(self.kinds))
        for model in self.kinds:
            own, look = self.table.xs(model, level="model"), looks[model]
            axes.plot(own.index.to_numpy(), own.value, label=written(model), **look)
            axes.fill_between(own.index.to_numpy(), own.lower, own.upper, color=look["color"], alpha=0.15, linewidth=0)
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.set_xlabel("lag in steps")
        axes.set_ylabel(f"autocorrelation of {self.of}")
        axes.margins(x=0)
        sheet.label_lines(axes)
        each = ", ".join(f"{written(model)} {self.times.value[model]:.3g}" for model in self.kinds)
        sheet.headline(f"Steps between independent values: {each}", axes)


_written = partial(number, digits=4)


def correlated(values: np.ndarray, lags: int, confidence: float = CONFIDENCE) -> tuple[list[Interval], Interval]:
    """Autocorrelation at the lags 0, …, `lags`, and the integrated autocorrelation time, in records.

    Args:
        values: shape (P, T).
        lags: largest lag, less than T.
        confidence: one-sided confidence of each limit.

    Returns:
        Limits are NaN for fewer than eight paths. The time is NaN if no window fits into the lags.
    """
    from scipy.special import stdtrit

    paths, records = values.shape
    sums = values.sum(axis=1)
    shifted = values - values.mean()  # any constant does; the mean keeps the digits
    size = 1 << (2 * records - 1).bit_length()
    spectrum = np.abs(np.fft.rfft(shifted, size, axis=1)) ** 2
    products = np.fft.irfft(spectrum, size, axis=1)[:, : lags + 1]
    heads = np.cumsum(shifted, axis=1)
    pairs = records - np.arange(lags + 1)
    first = heads[:, pairs - 1]  # Σ_{t < T − l} a(t)
    last = heads[:, -1:] - np.where(np.arange(lags + 1) > 0, heads[:, np.maximum(np.arange(lags + 1) - 1, 0)], 0.0)

    def correlations(weights: np.ndarray) -> np.ndarray:
        """The autocorrelations of weighted paths, one row per row of weights."""
        total = weights.sum(axis=1, keepdims=True)
        mean = weights @ (sums - records * values.mean()) / (total[:, 0] * records)
        moments = weights @ products - mean[:, None] * (weights @ (first + last)) + total * pairs * mean[:, None] ** 2
        moments = moments / (total * pairs)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(moments / moments[:, :1])

    whole = correlations(np.ones((1, paths)))[0]
    times = 1 + 2 * np.cumsum(whole[1:])
    windows = np.flatnonzero(np.arange(1, lags + 1) >= _WINDOWS * times) if lags else np.zeros(0, int)
    if paths < _FEWEST_PATHS:
        time = Interval(float(times[windows[0]])) if windows.size else Interval(np.nan)
        return [Interval(float(r)) for r in whole], time
    without = correlations(1 - np.eye(paths))
    t = float(stdtrit(paths - 1, confidence))

    def limits(value: Any, parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        centre = paths * value - (paths - 1) * parts.mean(axis=0)
        margin = t * np.sqrt((paths - 1) / paths * ((parts - parts.mean(axis=0)) ** 2).sum(axis=0))
        return centre - margin, centre + margin

    rows = [Interval(*map(float, row)) for row in zip(whole, *limits(whole, without), strict=True)]
    if not windows.size:
        return rows, Interval(np.nan)
    parts = 1 + 2 * without[:, 1 : windows[0] + 2].sum(axis=1)
    value = float(times[windows[0]])
    return rows, Interval(value, *map(float, limits(value, parts)))


def autocorrelation_of(
    dataset: "xr.Dataset",
    kinds: Mapping[str, str],
    of: Any = 0,
    since: int | None = None,
    lags: int | None = None,
    confidence: float = CONFIDENCE,
) -> Autocorrelation:
    """Autocorrelation of the kept paths; see `Result.autocorrelation`.

    Args:
        dataset: the dataset of a result.
        kinds: kinds of the models that have paths, by label.
        of: a coordinate by its index, the name of a kept quantity that is one number, or (name, index).
        since: first step that counts, by default that of the last third.
        lags: largest lag in steps.
        confidence: one-sided confidence of each limit.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    import pandas as pd

    confidence = check.confidence(confidence)
    values, name = _series(dataset, of)
    steps = dataset.step.values
    chosen = late_window(steps) if since is None else steps >= check.at_least("since", since, 0)
    every = int(steps[1] - steps[0])
    chosen &= steps % every == 0  # the last step may follow the one before it sooner
    records = int(chosen.sum())
    if records < 3:
        raise ValueError(
            f"since: got {since}; only {records} records at equal distances follow. Give an earlier step, or record "
            "more often."
        )
    wanted = (records - 1) // 2 if lags is None else check.at_least("lags", lags, every) // every
    if wanted >= records:
        raise ValueError(f"lags: got {lags}; the chosen records cover {(records - 1) * every} steps, give fewer.")
    tables, times, counts = {}, {}, {}
    for model in kinds:
        own = values.sel(model=model).transpose("path", "step").values[:, chosen]
        own = own[np.isfinite(own).all(axis=1)].astype(float)
        if not len(own):
            continue
        rows, time = correlated(own, wanted, confidence)
        index = pd.Index(np.arange(wanted + 1) * every, name="lag")
        tables[model] = pd.DataFrame(rows, index, columns=list(Interval._fields))
        times[model] = [every * value for value in time]
        counts[model] = len(own)
    if not tables:
        raise ValueError("of: no kept path is finite in the chosen window.")
    frame = pd.DataFrame.from_dict(times, orient="index", columns=list(Interval._fields), dtype=float)
    frame.index.name = "model"
    kept = {m: kinds[m] for m in tables}
    remarks = _remarks(frame, counts, every * wanted, every * (records - 1))
    return Autocorrelation(pd.concat(tables, names=["model"]), frame, name, kept, confidence, remarks)


def _remarks(times: "pd.DataFrame", counts: Mapping[str, int], lags: int, covered: int) -> tuple[str, ...]:
    """Why times or limits are missing: too few lags, or too few paths."""
    said = []
    without = [str(model) for model in times.index[times.value.isna()]]
    if without:
        remedy = "give more lags, or a longer run" if lags < covered // 2 else "give a longer run, or an earlier since"
        said.append(
            f"No time of {', '.join(without)}: no window of {_WINDOWS:g} times the time fits into the lags up to "
            f"{lags} steps; the records cover {covered} steps. To get one, {remedy}."
        )
    few = [f"{model} ({count})" for model, count in counts.items() if count < _FEWEST_PATHS]
    if few:
        said.append(f"No limits of {', '.join(few)}: they need {_FEWEST_PATHS} kept paths that are finite.")
    return tuple(said)


def _series(dataset: "xr.Dataset", of: Any) -> tuple["xr.DataArray", str]:
    """The values of all models' kept paths, with dimensions model, path and step, and their name."""
    kept = [str(name).removeprefix("path_") for name in dataset.data_vars if str(name).startswith("path_")]
    if not kept:
        raise ValueError(
            "of: the run kept no paths; repeat it with record=sl.Record(keep_paths=64), and with keep= for other "
            "quantities than x."
        )
    name, index = of if isinstance(of, tuple) and len(of) == 2 else (of, None) if isinstance(of, str) else ("x", of)
    values = dataset[f"path_{check.choice('of', name, kept)}"]
    own = [dim for dim in values.dims if dim not in ("model", "path", "step")]
    if not own:
        return values, name
    size = values.sizes[own[0]]
    if index is None and size > 1:
        raise ValueError(f"of: {name!r} has {size} numbers; give one of them as ({name!r}, index).")
    index = check.at_least("of", 0 if index is None else index, 0)
    if index >= size:
        raise ValueError(f"of: got the index {index}; give one from 0 to {size - 1}.")
    return values.isel({own[0]: index}), f"{name}[{index}]"
