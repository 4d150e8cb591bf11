"""Figures of a sweep: a line with error bars for one key, a heat map for two, a heat map per value of a third."""

import math
import textwrap
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.patches import Rectangle

from sdelens.core.names import value_labels
from sdelens.core.numerals import number, resolved
from sdelens.results.figures import Sheet
from sdelens.results.plotting import look_of, written

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

__all__ = ["Panel", "plot_sweep"]

_MAP: Final = "cividis"
"""Perceptually uniform, also for colour-blind readers; lightness increases, so it is readable in grey."""
_LOG_FROM: Final = 5.0
_EVEN: Final = 4.0
"""Largest ratio of the widest to the narrowest step at which an axis is treated as evenly spaced."""
_MOST_CELLS: Final = 100
_NARROW: Final = 0.3
"""Width in inches of a cell that has room for a number."""
_LETTERS: Final = 7.0
"""Size of the numbers in cells, in points, if they fit."""
_WIDTH: Final = 0.85
"""Width of a digit with its share of the margins, of cell and figure, relative to its size."""
_FAR: Final = 1e3
_COLUMNS: Final = 3
_BEST: Final = {"linestyle": "-", "linewidth": 2.2}
_TIE: Final = {"linestyle": (0, (2, 1.5)), "linewidth": 1.4}
_NAMES: Final = {
    "lr": "learning rate $\\eta$",
    "b1": "$\\beta_1$",
    "b2": "$\\beta_2$",
    "eps": "$\\epsilon$",
    "weight_decay": "weight decay $\\theta$",
}
_SYMBOLS: Final = {"lr": "η", "b1": "β₁", "b2": "β₂", "eps": "ε", "weight_decay": "θ"}


class Panel(NamedTuple):
    """A quantity of one model over the grid.

    Attributes:
        value: the quantity; NaN where there is none.
        low: lower limit.
        high: upper limit.
        floor: for an error, the one that a perfect model would show; NaN for other quantities.
        lost: whether paths diverged.
        marks: indices of the best point, then of the points indistinguishable from it; only for the late loss.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    floor: np.ndarray
    lost: np.ndarray
    marks: list[tuple[int, ...]]


class _Axis(NamedTuple):
    """Positions of values along an axis, the edges of their cells, the scale and the labels."""

    at: np.ndarray
    edges: np.ndarray
    scale: str
    labels: list[str]


def plot_sweep(
    sheet: Sheet,
    over: Mapping[str, list[Any]],
    panels: Mapping[str, Panel],
    kinds: Mapping[str, str],
    label: str,
    title: str,
) -> None:
    """Draw the figure for one to three keys.

    Args:
        sheet: where it is drawn.
        over: values by key.
        panels: the panel of every model shown, with one array axis per key; several models only with one key.
        kinds: kind of every model of the sweep, by label.
        label: label of the quantity, with its unit.
        title: title of the whole figure.
    """
    if len(over) == 1:
        _lines(sheet, over, panels, look_of(kinds), label)
    else:
        ((model, panel),) = panels.items()
        _heat_maps(sheet, over, panel, f"{label}\n{written(model)}")
    sheet.headline(f"{message(over, panels, label)}\n{title}")


def message(over: Mapping[str, list[Any]], panels: Mapping[str, Panel], label: str) -> str:
    """What the figure shows: where the late loss is smallest; of another quantity, its extremes and where they are."""
    (model, panel), *others = panels.items()
    shape = tuple(map(len, over.values()))
    names = {key: value_labels(values) for key, values in over.items()}
    unit = "\u00a0%" if label.endswith(" (%)") else ""
    label = label.removesuffix(" (%)")

    def at(flat: int) -> str:
        point = np.unravel_index(flat, shape)
        return ", ".join(
            f"{_SYMBOLS.get(key, _name(key))} = {names[key][int(i)]}" for key, i in zip(names, point, strict=True)
        )

    known = np.where(np.isfinite(panel.value) & ~panel.lost, panel.value, np.nan)
    if others or not np.isfinite(known).any():
        return label
    if panel.marks:
        best = int(np.ravel_multi_index(panel.marks[0], shape))
        also = len(panel.marks) - 1
        told = f"; {also} other{'s' * (also > 1)} cannot be told from it" if also else ""
        return f"{written(model)}: smallest late loss {_two(float(panel.value.flat[best]))} at {at(best)}{told}"
    low, high = int(np.nanargmin(known)), int(np.nanargmax(known))
    least, most = (_stated(panel, np.unravel_index(i, shape)) for i in (low, high))
    return f"{written(model)}: {label} {least}{unit} at {at(low)}, {most}{unit} at {at(high)}"


def _lines(
    sheet: Sheet, over: Mapping[str, list[Any]], panels: Mapping[str, Panel], looks: dict[str, Any], label: str
) -> None:
    ((key, values),) = over.items()
    axis = _axis(values)
    (axes,) = sheet.panels(size=(5.6, 4.8))
    for model, panel in panels.items():
        ends = np.abs(np.stack([panel.value - panel.low, panel.high - panel.value]))
        ends = np.where(np.isfinite(ends), ends, 0)
        look = {k: v for k, v in looks[model].items() if k != "alpha"}
        axes.errorbar(
            axis.at, panel.value, ends, label=written(model), marker="o", markersize=4, capsize=2, elinewidth=1, **look
        )
    shown = np.concatenate([panel.value for panel in panels.values()])
    if _is_wide(shown):
        low = np.concatenate([panel.low for panel in panels.values()])
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7 * low[low > 0.05 * np.nanmin(shown)].min(initial=np.nanmin(shown)))
    _dress(axes, axis)
    axes.set_xlim(axis.edges[0], axis.edges[-1])
    lost = np.any([panel.lost for panel in panels.values()], axis=0)
    for i, position in enumerate(axis.at[lost]):
        say: dict[str, Any] = {"label": "paths diverged"} if i == 0 else {}
        axes.plot(position, 0.03, "x", color="black", transform=axes.get_xaxis_transform(), clip_on=False, **say)
    axes.set_xlabel(_name(key))
    axes.set_ylabel(label)
    sheet.label_lines(axes)


def _heat_maps(sheet: Sheet, over: Mapping[str, list[Any]], panel: Panel, label: str) -> None:
    """Draw heat maps: first key along x, second along y, a panel for every value of the third."""
    (across, xs), (up, ys), *rest = over.items()
    facets = rest[0][1] if rest else [None]
    shape = (len(xs), len(ys), len(facets))
    columns = len(facets) if sheet.is_given else min(len(facets), _COLUMNS)
    rows = math.ceil(len(facets) / columns)
    x, y = _axis(xs), _axis(ys)
    size = (1.5 + columns * max(2.4, min(5.0, 0.62 * len(xs))), 1.1 + rows * max(2.0, min(4.2, 0.42 * len(ys) + 0.5)))
    grid = sheet.panels(rows, columns, size=size, equal=True, sharex=True, sharey=True)
    norm, extend = _norm(panel.value)
    colours: Any = plt.get_cmap(_MAP).with_extremes(over="#d9d9d9")
    wide = 0.7 * float(sheet.figure.get_size_inches()[0]) / (columns * len(xs))
    few = len(xs) * len(ys) <= _MOST_CELLS and (sheet.is_given or wide > _NARROW)
    longest = max((len(_stated(panel, index)) for index in np.ndindex(panel.value.shape)), default=1)
    letters = min(_LETTERS, 72 * wide / (_WIDTH * longest)) if few else 0.0
    image: ScalarMappable | None = None
    for f, axes in enumerate(grid):
        if f >= len(facets):
            axes.set_axis_off()
            continue
        value, low, high, floor, lost = (a.reshape(shape)[:, :, f] for a in panel[:5])
        own = Panel(value, low, high, floor, lost, [])
        shown = np.ma.masked_invalid(value.T)
        image = axes.pcolormesh(x.edges, y.edges, shown, norm=norm, cmap=colours, edgecolors="white", linewidth=0.5)
        axes.grid(visible=False)
        _cells(axes, own, x, y, lambda v: colours(norm(v)), letters)
        for n, mark in enumerate(panel.marks):
            if mark[2:] in ((), (f,)):
                style: dict[str, Any] = _TIE if n else _BEST
                axes.add_patch(_box(x, y, mark[0], mark[1], fill=False, edgecolor="#D55E00", zorder=3, **style))
        _dress(axes, x, y)
        if rest:
            axes.set_title(f"{_name(rest[0][0])} = {value_labels(facets)[f]}", loc="left")
        if f % columns == 0:
            axes.set_ylabel(_name(up))
        if f + columns >= len(facets):
            axes.set_xlabel(_name(across))
            axes.xaxis.set_tick_params(labelbottom=True)
    assert image is not None
    sheet.figure.colorbar(image, ax=grid, extend=extend, label=label, pad=0.02)
    said = ["crosses: paths diverged"] if panel.lost.any() else []
    said += ["frame: smallest"] if panel.marks else []
    said += ["dashed: not distinguishable from it"] if len(panel.marks) > 1 else []
    if said and not sheet.is_given:
        width = int(sheet.figure.get_size_inches()[0] * 19)
        words = "\n".join(textwrap.wrap("; ".join(said), width))
        sheet.figure.supxlabel(words, fontsize=7, color="0.35", x=0.02, ha="left")


def _stated(panel: Panel, index: tuple[Any, ...]) -> str:
    """The value at a point, an error that is not resolved by its upper limit; nothing where there is none."""
    value, floor, upper = (float(part[index]) for part in (panel.value, panel.floor, panel.high))
    return resolved(value, floor, upper, _two) if np.isfinite(value) else ""


def _cells(axes: "Axes", panel: Panel, x: _Axis, y: _Axis, colour: Any, letters: float) -> None:
    """Write numbers in the cells, in letters of so many points (0: none), and draw crosses where paths diverged."""
    for i, j in np.ndindex(panel.value.shape):
        value = float(panel.value[i, j])
        if panel.lost[i, j]:
            axes.add_patch(_box(x, y, i, j, facecolor="#f2f2f2", edgecolor="0.55", hatch="xxx", linewidth=0.5))
        elif letters and np.isfinite(value):
            text = _stated(panel, (i, j))
            red, green, blue, _ = colour(value)
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": letters}
            axes.text(float(x.at[i]), float(y.at[j]), text, color="white" if dark else "black", **look)


def _box(x: _Axis, y: _Axis, i: int, j: int, **look: Any) -> Rectangle:
    """The outline of a cell."""
    (left, right), (low, high) = (map(float, axis.edges[k : k + 2]) for axis, k in ((x, i), (y, j)))
    return Rectangle((left, low), right - left, high - low, **look)


def _norm(value: np.ndarray) -> tuple[Normalize, str]:
    """Colour scale of the values; positive values above 1000 times the median lie beyond its end."""
    finite = value[np.isfinite(value)]
    if not finite.size:
        return Normalize(0, 1), "neither"
    low, high, extend = float(finite.min()), float(finite.max()), "neither"
    if low > 0 and high > _FAR * float(np.median(finite)):
        high, extend = float(finite[finite <= _FAR * np.median(finite)].max()), "max"
    if high <= low:
        high = low + (abs(low) or 1.0)
    return (LogNorm(low, high) if low > 0 and high > _LOG_FROM * low else Normalize(low, high)), extend


def _axis(values: list[Any]) -> _Axis:
    """Axis of the values: logarithmic or linear where they are then evenly spaced, else one after another."""
    labels, count = value_labels(values), len(values)
    plain = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    numbers = np.array(values, float) if plain else np.arange(count, dtype=float)
    if plain and count > 1:
        if (numbers > 0).all() and _is_even(logs := np.log(numbers)) and _is_log(numbers):
            edges = np.exp(_edges(logs))
            return _Axis(numbers, edges, "log", labels)
        if _is_even(numbers):
            return _Axis(numbers, _edges(numbers), "linear", labels)
    at = np.arange(count, dtype=float)
    return _Axis(at, _edges(at) if count > 1 else np.array([-0.5, 0.5]), "linear", labels)


def _is_even(numbers: np.ndarray) -> bool:
    steps = np.diff(numbers)
    return bool((np.sign(steps) == np.sign(steps[0])).all() and steps[0] != 0) and bool(
        np.abs(steps).max() <= _EVEN * np.abs(steps).min()
    )


def _is_log(numbers: np.ndarray) -> bool:
    """Whether the ratios of neighbours vary less than their differences."""
    ratios, steps = np.abs(np.diff(np.log(numbers))), np.abs(np.diff(numbers))
    if len(numbers) == 2:
        return bool(numbers.max() > 2 * numbers.min())
    return bool(ratios.max() / ratios.min() < steps.max() / steps.min())


def _edges(at: np.ndarray) -> np.ndarray:
    middle = (at[1:] + at[:-1]) / 2
    return np.concatenate([[2 * at[0] - middle[0]], middle, [2 * at[-1] - middle[-1]]])


def _dress(axes: "Axes", *given: _Axis) -> None:
    """Set scales and ticks at the values of the x and y axes; of many values, only every second or third has a tick."""
    for values, axis, rescale in zip(given, (axes.xaxis, axes.yaxis), (axes.set_xscale, axes.set_yscale), strict=False):
        rescale(values.scale)
        stride = math.ceil(len(values.labels) / 10)
        axis.set_ticks(values.at[::stride], values.labels[::stride])
        axis.set_ticks([], minor=True)


def _is_wide(values: np.ndarray) -> bool:
    finite = values[np.isfinite(values)]
    return bool(finite.size and finite.min() > 0 and finite.max() > _LOG_FROM * finite.min())


_two = partial(number, digits=2)


def _name(key: str) -> str:
    return _NAMES.get(key, key.replace("_", " ").replace("$", r"\$"))
