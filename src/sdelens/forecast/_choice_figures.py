"""Figures of choices: schedules with their curves, losses along what is chosen, and steps against samples."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from sdelens.results.figures import Sheet, plain_ticks

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["plot_frontier", "plot_losses_along", "plot_schedules"]

_BLUE, _ORANGE, _GREEN = "#0072B2", "#D55E00", "#009E73"
_LOOKS: Final[tuple[dict[str, Any], ...]] = (
    {"color": _BLUE, "linestyle": "-"},
    {"color": _ORANGE, "linestyle": (0, (5, 2))},
    {"color": _GREEN, "linestyle": (0, (2, 1.5))},
)
_LATE: Final = 0.15
"""Share of a run after which losses are drawn: earlier ones are much larger."""
_CLOSE: Final = 0.03
"""Excess over the smallest loss, relative to it, that a figure of losses shows at least."""


def plot_schedules(sheet: Sheet, curves: Sequence[Any], loss: Any) -> None:
    """Learning rates above; below, the predicted losses under them, with the limits of the first at its end."""
    top, *rest = sheet.panels(2, size=(5.6, 5.2), sharex=True)
    for curve, look in zip(curves, _LOOKS, strict=True):
        label = "best schedule" if curve is curves[0] else curve.name.removeprefix("a ")
        top.plot(curve.steps, curve.rates, label=label, **look)
        late = curve.steps >= _LATE * curve.steps[-1]
        for bottom in rest:
            bottom.plot(curve.steps[late], curve.losses[late], **look)
    end = curves[0].steps[-1]
    bars = [[loss.value - loss.lower], [loss.upper - loss.value]]
    top.set_ylabel("learning rate")
    top.set_ylim(0, None)
    top.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    for bottom in rest:
        bottom.errorbar([end], [loss.value], bars, color=_BLUE, capsize=3, linewidth=1, clip_on=False)
        bottom.set_ylabel("predicted loss")
    (rest or [top])[-1].set(xlabel="optimizer step", xlim=(0, end * 1.02))
    over = min(float(curve.losses[-1]) for curve in curves[1:]) - loss.value
    said = f"The best schedule ends at a predicted loss of {loss.value:.4g} (bar: limits), the next {over:.2g} higher"
    sheet.headline(said, top)
    sheet.label_lines(top, above=True)
    sheet.align()


def plot_losses_along(
    sheet: Sheet,
    axis: NDArray[np.float64],
    table: "pd.DataFrame",
    best: float,
    near: tuple[float, float],
    label: str,
    scale: str,
    unit: str = "",
) -> None:
    """Predicted final losses with limits along one axis, the best place, and the range that is as good."""
    (axes,) = sheet.panels(size=(5.6, 3.6))
    loss = table["loss"].to_numpy(float)
    axes.fill_between(axis, table["lower"], table["upper"], color=_BLUE, alpha=0.15, linewidth=0)
    axes.plot(axis, loss, color=_BLUE, label="forecast with 90 % limits")
    axes.axvspan(*near, color=_GREEN, alpha=0.15, linewidth=0, label="at most 0.1 % above the smallest loss")
    axes.plot(
        [best], [loss.min()], "o", color=_ORANGE, label=f"smallest loss, at {best:.3g}{unit}", zorder=3, clip_on=False
    )
    axes.set_xscale(scale)
    low = float(table["lower"].min())
    shown = max(float(np.quantile(table["upper"], 0.75)), (1 + _CLOSE) * float(loss.min()))
    top = min(float(table["upper"].max()), shown)
    margin = 0.05 * (top - low)
    axes.set_ylim(low - margin, top + margin)
    inside = np.flatnonzero(table["lower"].to_numpy(float) < top + margin)
    first, last = max(inside[0] - 1, 0), min(inside[-1] + 1, len(axis) - 1)
    axes.set_xlim(axis[first], axis[last])
    if scale == "log":
        plain_ticks(axes.xaxis)
    axes.set_xlabel(label)
    axes.set_ylabel("predicted final loss")
    sheet.legend_above(axes)
    where = label.removesuffix(" (%)")
    sheet.headline(f"Smallest predicted loss {loss.min():.4g}, {where}: {best:.3g}{unit}", axes)


def plot_frontier(sheet: Sheet, table: "pd.DataFrame", target: float, best: float, critical: Any) -> None:
    """Steps against samples to a loss, with the batch sizes and the critical one."""
    (axes,) = sheet.panels(size=(5.6, 4.4))
    reached = table[np.isfinite(table["steps_to_loss"])]
    steps, samples = reached["steps_to_loss"].to_numpy(float), reached["samples_to_loss"].to_numpy(float)
    axes.plot(samples, steps, "o-", color=_BLUE, markersize=4, label="batch sizes (numbers)")
    every = max(len(reached) // 8, 1)
    for i in range(0, len(reached), every):
        axes.annotate(
            _short(reached.index[i]),
            (samples[i], steps[i]),
            xytext=(5, 4),
            textcoords="offset points",
            fontsize=7,
            color=_BLUE,
        )
    if best in reached.index:
        row = reached.loc[best]
        axes.plot(row.samples_to_loss, row.steps_to_loss, "s", color=_ORANGE, label="best batch size", zorder=3)
    if math.isfinite(critical.batch_size):
        label = f"critical batch size, {_short(critical.batch_size)}"
        axes.plot(critical.samples, critical.steps, "D", color=_GREEN, label=label, zorder=3)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(0.08)
    plain_ticks(axes.xaxis, axes.yaxis)
    axes.set_xlabel(f"samples to a loss of {target:.4g}")
    axes.set_ylabel(f"optimizer steps to a loss of {target:.4g}")
    sheet.legend_above(axes, 2)
    known = math.isfinite(critical.batch_size)
    above = f"; above {_short(critical.batch_size)}, larger ones cost more samples than they save steps" * known
    sheet.headline(f"Batches of {_short(best)} end at the smallest loss{above}", axes)


def _short(size: float) -> str:
    """A batch size as text: 512, 16.4k, 4.19M."""
    for unit, suffix in ((1e6, "M"), (1e3, "k")):
        if size >= 10 * unit:
            return f"{size / unit:.3g}{suffix}"
    return f"{size:.4g}"
