"""Figure of an advice: the steps–samples frontier, and learning rates against batch sizes."""

import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from sdelens.core.names import optimizer_label
from sdelens.results.figures import Sheet, plain_ticks
from sdelens.scaling._advice_text import Advised

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_advice"]

_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "0.55"


def plot_advice(sheet: Sheet, advice: Advised) -> None:
    """The frontier on the left; learning rates on the right, or efficiencies if there are none."""
    left, *rest = sheet.panels(1, 2, size=(8.6, 3.8), stack=True)
    _frontier(left, advice)
    for right in rest:
        if "lr" in advice.table:
            _rates(sheet, right, advice)
        else:
            _efficiency(sheet, right, advice)
    sheet.headline(advice.recommendation)


def _frontier(axes: "Axes", advice: Advised) -> None:
    """Steps and samples to one loss, relative to the fewest of each, with the batch sizes of the table on it."""
    scales = [v for v in (advice.noise_scale, *advice.noise_scale_limits) if not math.isnan(v)]
    unknown = not scales
    scales = scales or [1.0]
    sizes = np.asarray(advice.table.index, float)
    first, last = 0.05, 20.0
    if not unknown:
        first, last = min(float(sizes.min()) / max(scales), first), max(float(sizes.max()) / min(scales), last)
    x = np.geomspace(first, last, 400)
    axes.plot(1 + 1 / x, 1 + x, color="black", linewidth=1.2, zorder=1)
    axes.axhline(1 / advice.efficiency, color=_GREY, linewidth=1, linestyle=(0, (4, 2)))
    axes.annotate(
        f"efficiency {100 * advice.efficiency:g} %",
        (1, 1 / advice.efficiency),
        xycoords=("axes fraction", "data"),
        xytext=(-4, 3),
        textcoords="offset points",
        ha="right",
        fontsize=7,
        color="0.35",
    )
    low, high = advice.noise_scale_limits
    for size in [] if unknown else sizes:
        own = bool(size == advice.batch_size)
        colour = _ORANGE if own else _BLUE
        if not math.isnan(advice.noise_scale):
            place = size / advice.noise_scale
        else:  # an end of what is possible
            place = size / (low if not math.isnan(low) else high)
        if low < high:
            part = np.geomspace(size / high, size / low, 50)
            axes.plot(1 + 1 / part, 1 + part, color=colour, linewidth=4, alpha=0.18, solid_capstyle="butt", zorder=2)
        filled = colour if not math.isnan(advice.noise_scale) else "white"
        axes.plot([1 + 1 / place], [1 + place], "o", color=colour, markerfacecolor=filled, markersize=4, zorder=3)
        axes.annotate(
            f"{size:g}" + " (present)" * own,
            (1 + 1 / place, 1 + place),
            xytext=(-4, -3),
            ha="right",
            va="top",
            textcoords="offset points",
            fontsize=7,
            color=colour,
            bbox=dict(boxstyle="square,pad=0.1", facecolor="white", edgecolor="none", alpha=0.7),
        )
    axes.set(xscale="log", yscale="log", xlabel="optimizer steps / fewest steps", ylabel="samples / fewest samples")
    axes.set_ylim(bottom=0.75)
    plain_ticks(axes.xaxis, axes.yaxis)
    title = "Steps and samples to one loss, by batch size"
    if unknown:
        title += "\n(the noise scale is unknown)"
    elif math.isnan(advice.noise_scale):
        title += f"\n(if the noise scale is at its {'lower' if not math.isnan(low) else 'upper'} limit)"
    axes.set_title(title, loc="left")


def _rates(sheet: Sheet, axes: "Axes", advice: Advised) -> None:
    table = advice.table
    sizes = np.asarray(table.index, float)
    curved = (table.lr_lower < table.lr_upper).any() or table.lr_surge.notna().any()
    if curved:
        axes.fill_between(
            sizes, table.lr_sqrt, table.lr_linear, color="0.5", alpha=0.13, linewidth=0, label="between √δ and δ"
        )
        axes.fill_between(
            sizes, table.lr_lower, table.lr_upper, color=_BLUE, alpha=0.25, linewidth=0, label="limits of the SNR"
        )
    axes.plot(sizes, table.lr, "o-", color=_BLUE, markersize=3.5, label=f"rule {table.rule.iloc[-1]}")
    if table.lr_surge.notna().any():
        axes.plot(
            sizes, table.lr_surge, color=_ORANGE, linestyle=(0, (4, 2)), label="best single step (Li et al. 2024)"
        )
    axes.set(xscale="log", yscale="log", xlabel="batch size (samples)")
    plain_ticks(axes.yaxis)
    axes.set_ylabel("learning rate / present one" if advice.is_factor else "learning rate")
    axes.set_title(f"Learning rate, {optimizer_label({'name': advice.family})}", loc="left")
    _mark(axes, advice)
    sheet.label_lines(axes, fontsize=7, loc="upper left")


def _efficiency(sheet: Sheet, axes: "Axes", advice: Advised) -> None:
    table = advice.table
    sizes = np.asarray(table.index, float)
    low = table.efficiency_lower.fillna(0)
    high = table.efficiency_upper.fillna(1)
    axes.fill_between(sizes, low, high, color=_BLUE, alpha=0.25, linewidth=0, label="limits")
    if table.efficiency.notna().any():
        axes.plot(sizes, table.efficiency, "o-", color=_BLUE, markersize=3.5, label="efficiency")
    axes.axhline(advice.efficiency, color=_GREY, linewidth=1, linestyle=(0, (4, 2)))
    axes.set(xscale="log", ylim=(0, 1), xlabel="batch size (samples)", ylabel="fewest samples / samples")
    axes.set_title("Efficiency", loc="left")
    _mark(axes, advice)
    sheet.label_lines(axes, fontsize=7, loc="upper right")


def _mark(axes: "Axes", advice: Advised) -> None:
    """The present batch size, where the largest sensible one lies, and the batch sizes of the table on the axis."""
    sizes = np.asarray(advice.table.index, float)
    axes.xaxis.set_major_locator(FixedLocator(sizes[:: math.ceil(len(sizes) / 8)].tolist()))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if not math.isnan(advice.batch_size):
        axes.axvline(advice.batch_size, color=_ORANGE, linewidth=0.8, label="present batch size")
    low, high = advice.largest_batch, advice.largest_batch_limits[1]
    exact = all(math.isnan(end) for end in advice.noise_scale_limits)
    if low < high:
        axes.axvspan(low, high, color="#009E73", alpha=0.1, linewidth=0, label="limits of the largest sensible batch")
    words = {low: "largest sensible batch" + ", at least" * (not exact), high: "largest sensible batch, at most"}
    for end, word in words.items():
        if math.isnan(end):
            continue
        label = word if math.isnan(low) or math.isnan(high) else None
        axes.axvline(end, color="#009E73", linewidth=1, linestyle=(0, (2, 2)), label=label)
