"""Figures shared by several claims, in the style of the library."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sdelens.core.limits import normal_point
from sdelens.core.numerals import resolved
from sdelens.results.figures import plain_ticks
from sdelens.results.plotting import look_of, written
from sdelens.studies._study import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sdelens.results.result import Result

__all__ = [
    "KEY",
    "MARKS",
    "ROWS",
    "add_ellipse",
    "draw_items",
    "log_axes",
    "mark_series",
    "panels",
    "scale_y",
    "track_pictures",
]

MARKS: list[dict[str, Any]] = [
    {"color": "#332288", "linestyle": "-", "marker": "o"},
    {"color": "#CC79A7", "linestyle": (0, (5, 2)), "marker": "s"},
    {"color": "#8C510A", "linestyle": (0, (1, 1.2)), "marker": "^"},
    {"color": "#009E73", "linestyle": (0, (6, 1.5, 1, 1.5)), "marker": "D"},
]
"""Styles of lines that are not models: in other colours, and also distinguishable in black and white."""

KEY = (
    "Grey: the range that the criterion allows. Lines: limits of the number, at the confidence given with the "
    "table. Dots: the number holds; crosses: it fails; diamonds: it is not resolved."
)
"""Key in the caption of every figure of numbers."""
ROWS = "A row for each number with its limits and the range it must lie in; the table below has the same numbers."


def panels(count: int, columns: int, width: float = 3.0, height: float = 2.4) -> tuple["Figure", list["Axes"]]:
    """A figure of `count` panels in rows of `columns`, closed so that no window opens."""
    import matplotlib.pyplot as plt

    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure, axes = plt.subplots(rows, columns, squeeze=False, figsize=(width * columns, height * rows + 0.5))
    plt.close(figure)
    flat = list(axes.ravel())
    for unused in flat[count:]:
        unused.remove()
    return figure, flat[:count]


def track_pictures(
    results: Mapping[str, "Result"],
    items: Sequence[Any],
    *,
    losses: str,
    alt: str,
    errors: str,
    axis: str,
    columns: int = 3,
    logarithmic: bool = False,
    normal: bool = False,
    title: str = "",
    shared: bool = False,
) -> list[Picture]:
    """Two figures of how well models track optimizers: loss curves, and errors with their allowed range.

    Args:
        results: results by the title of their panel.
        items: items with the same unit.
        losses: caption of the curves; an explanation of the band is added.
        alt: alternative text of the figure of curves.
        errors: caption of the errors; the key is added.
        axis: label of the errors' axis.
        columns: number of panels in a row.
        logarithmic: whether the errors' axis is logarithmic.
        normal: compute the band from the standard deviation; if the loss hardly differs between paths, the resolution
            of the quantiles, 1.6 % of the loss, would be visible.
        title: title above the curves.
        shared: whether the panels of a row share their axes.
    """
    band = "the mean ± 1.645 standard deviations over the optimizer's paths"
    band = band if normal else "the middle 90 % of the optimizer's paths"
    return [
        Picture(
            "losses",
            lambda: _draw_losses(results, columns, normal, title, shared),
            f"{losses} The grey band is {band}; numbers: relative L2 errors against the optimizer.",
            alt,
        ),
        Picture("errors", lambda: draw_items(items, axis, logarithmic), f"{errors} {KEY}", ROWS),
    ]


def _draw_losses(results: Mapping[str, "Result"], columns: int, normal: bool, title: str, shared: bool) -> "Figure":
    """Mean loss minus infimum of every model with its error, a panel per result, with one legend."""
    figure, axes = panels(len(results), columns)
    entries: dict[str, Any] = {}
    for axis, (name, result) in zip(axes, results.items(), strict=True):
        data, kinds = result.dataset, {label: s["model"] for label, s in result.settings.items()}
        looks, infimum = look_of(kinds), float(data.attrs["infimum"])
        infimum = infimum if np.isfinite(infimum) else 0.0
        time, curves = data.time.values, {}
        for label in result.models:
            curves[label] = data.loss_mean.sel(model=label).values - infimum
        finite = np.concatenate([c[np.isfinite(c)] for c in curves.values()])
        if result.optimizer is not None and "loss_quantile" in data:
            own = data.sel(model=result.optimizer)
            low, high = (own.loss_quantile.sel(quantile=q).values - infimum for q in (0.05, 0.95))
            if normal:
                half = normal_point(0.9) * own.loss_std.values
                low, high = (curves[result.optimizer] + sign * half for sign in (-1, 1))
            axis.fill_between(time, np.maximum(low, 0.3 * finite.min()), high, color="0.85", linewidth=0)
        for label, curve in curves.items():
            (entries[label],) = axis.plot(time, curve, label=written(label), **looks[label])
        scale_y(axis, finite)
        axis.set_title(name, loc="left")
        axis.set_xlabel("time  $t = k\\eta$")
        if result.optimizer is not None:
            _write_errors(axis, result, looks)
    for first in range(0, len(axes), columns):
        row = axes[first : first + columns]
        row[0].set_ylabel("mean loss $-$ infimum")
        ends = np.array([axis.get_ylim() for axis in row])
        for other in row[1:] if shared else []:
            other.sharex(row[0])
            other.sharey(row[0])
            other.tick_params(labelleft=False)
        if shared:
            row[0].set_ylim(ends[:, 0].min(), ends[:, 1].max())
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium")
    figure.legend(
        list(entries.values()),
        [line.get_label() for line in entries.values()],
        loc="outside lower center",
        ncols=min(len(entries), 4),
        handlelength=3.2,
    )
    return figure


def _write_errors(axis: "Axes", result: "Result", looks: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the error of every model into the upper right corner, where a falling loss leaves room."""
    for row, (label, error) in enumerate(result.stated_errors().items()):
        place: dict[str, Any] = {"xytext": (-3, -3 - 12 * row), "xycoords": "axes fraction"}
        look = {"color": looks[label]["color"], "ha": "right", "va": "top"}
        axis.annotate(f"{written(label)}: {resolved(*error)}", (1, 1), textcoords="offset points", **place, **look)


def scale_y(axis: "Axes", values: Any) -> None:
    """Set a logarithmic scale if values span a factor of 5, with ticks at 1, 2, 5 if they do not span one of 50."""
    values = np.asarray(values, float)
    low, high = values.min(), values.max()
    if low <= 0 or high < 5 * low:
        return
    axis.set_yscale("log")
    plain_ticks(axis.yaxis)


def log_axes(axis: "Axes", ticks: Sequence[float], xlabel: str, ylabel: str) -> None:
    """Set a logarithmic x axis with its few values as ticks, and the y axis as in `scale_y`."""
    axis.set_xscale("log")
    scale_y(axis, np.concatenate([line.get_ydata() for line in axis.get_lines()]))
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)


def mark_series(axis: "Axes", at: Sequence[float], table: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Draw a line with markers for each name; standard errors are drawn as 99 % intervals."""
    for look, (name, values) in zip(MARKS, table.items(), strict=False):
        value, error = np.array(values).T
        axis.errorbar(at, value, normal_point() * error, label=name, capsize=2, markersize=4, **look)


def draw_items(items: Sequence[Any], label: str, logarithmic: bool = False) -> "Figure":
    """Draw numbers with their limits, one above the other; the allowed range of each is grey.

    Args:
        items: items with the same unit.
        label: label of the axis.
        logarithmic: whether the axis is logarithmic.
    """
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.2, 0.27 * len(items) + 1.1))
    plt.close(figure)
    factor = 100 if items and items[0].percent else 1
    ends = [v for i in items for v in (i.lower, i.upper, i.value, i.low, i.high) if np.isfinite(v)]
    ends = [factor * v for v in ends if v > 0 or not logarithmic]
    span = max(ends) - min(ends)
    left, right = (0.5 * min(ends), 2 * max(ends)) if logarithmic else (min(ends) - 0.1 * span, max(ends) + 0.1 * span)
    shapes = {"holds": "o", "fails": "X", "not resolved": "D"}
    for row, item in enumerate(items):
        low, high = max(factor * item.low, left), min(factor * item.high, right)
        axis.fill_betweenx([row - 0.4, row + 0.4], low, high, color="0.9", linewidth=0)
        lower, upper = max(factor * item.lower, left), min(factor * item.upper, right)
        axis.plot([lower, upper], [row, row], color="#0072B2", linewidth=1.4)
        value = min(max(factor * item.value, left), right)
        axis.plot([value], [row], shapes[item.verdict], color="#000000", markersize=4)
    if logarithmic:
        axis.set_xscale("log")
    axis.set_xlim(left, right)
    axis.set_yticks(range(len(items)), [item.label for item in items])
    axis.set_ylim(len(items) - 0.4, -0.6)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel(label)
    return figure


def add_ellipse(axis: "Axes", mean: Any, covariance: Any, share: float = 0.9, **look: Any) -> None:
    """Draw the ellipse that contains a share of a normal law of two coordinates."""
    values, vectors = np.linalg.eigh(np.asarray(covariance, float))
    angle = np.linspace(0, 2 * np.pi, 181)
    circle = np.sqrt(-2 * np.log(1 - share)) * np.array([np.cos(angle), np.sin(angle)])
    points = np.asarray(mean, float)[:, None] + vectors @ (np.sqrt(np.maximum(values, 0))[:, None] * circle)
    axis.plot(*points, **look)
