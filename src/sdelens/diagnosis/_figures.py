"""Figures of what a user's own run says of its noise."""

import math
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from sdelens.results.figures import Sheet

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["plot_noise_scales", "plot_rule"]

_BLUE, _ORANGE, _GREEN = "#0072B2", "#D55E00", "#009E73"
_SHOWN: Final = 12
"""Most groups that a figure shows."""
_POINTS: Final = 60


class _Ruled(Protocol):
    @property
    def tolerance(self) -> float: ...
    @property
    def legal_ratio(self) -> float: ...
    @property
    def ratios(self) -> tuple[float, ...]: ...
    @property
    def largest_ratio_limits(self) -> tuple[float, float]: ...
    def expected_error(self, batch_ratio: float) -> float: ...
    def error_range(self, batch_ratio: float) -> tuple[float, float]: ...


def plot_noise_scales(sheet: Sheet, groups: "pd.DataFrame", batch_size: float, confidence: float) -> None:
    """The noise scale of every group with its limits, and the batch size; of many groups, the largest ones.

    Args:
        sheet: where they are drawn.
        groups: a row per group, with columns size, noise_scale, noise_scale_lower and noise_scale_upper.
        batch_size: the batch size of the run.
        confidence: that of the limits.
    """
    rest = groups.drop(index="all", errors="ignore").sort_values("size", ascending=False).head(_SHOWN - 1)
    chosen = [*[name for name in groups.index if name in rest.index], "all"]
    (axes,) = sheet.panels(size=(5.6, 1.3 + 0.24 * len(chosen)))
    finite = groups.loc[chosen, ["noise_scale", "noise_scale_lower", "noise_scale_upper"]].to_numpy(float)
    known = finite[np.isfinite(finite) & (finite > 0)]
    low, high = (min(known.min(), batch_size) / 3, max(known.max(), batch_size) * 3) if known.size else (1, 2)
    for i, name in enumerate(reversed(chosen)):
        row = groups.loc[name]
        colour = "black" if name == "all" else _BLUE
        ends = [row.noise_scale_lower, row.noise_scale_upper]
        left = ends[0] if ends[0] > 0 else low
        right = ends[1] if math.isfinite(ends[1]) else high
        if not math.isnan(ends[0]):
            axes.plot([left, right], [i, i], color=colour, solid_capstyle="butt")
            if not math.isfinite(ends[1]):
                axes.plot([right], [i], ">", color=colour, markersize=5, clip_on=False)
        if math.isfinite(row.noise_scale) and row.noise_scale > 0:
            axes.plot([row.noise_scale], [i], "o", color=colour, markersize=5)
    axes.axvline(batch_size, color=_ORANGE, linestyle=(0, (4, 2)))
    words, place = f"batch size {batch_size:g}", (batch_size, len(chosen) - 0.2)
    axes.annotate(words, place, xytext=(4, 0), textcoords="offset points", color=_ORANGE, va="center", fontsize=7)
    axes.set(xscale="log", xlim=(low, high), ylim=(-0.6, len(chosen) + 0.2), xlabel="noise scale (samples)")
    axes.set_yticks(range(len(chosen)), [str(name) for name in reversed(chosen)])
    whole = groups.loc["all"]
    if whole.noise_scale_lower > batch_size:
        said = f"Noise dominates: the noise scale is {whole.noise_scale / batch_size:.3g} times the batch size"
    elif whole.noise_scale_upper < batch_size:
        said = f"Signal dominates: the noise scale is {whole.noise_scale / batch_size:.3g} times the batch size"
    else:
        said = "It cannot be told whether noise dominates: the limits contain the batch size"
    sheet.headline(f"{said}\nbars: {100 * confidence:g} % limits; right of the dashed line noise dominates", axes)


def plot_rule(sheet: Sheet, found: _Ruled) -> None:
    """The error of the square-root rule that is expected at each batch ratio, with its range and the tolerance."""
    (axes,) = sheet.panels(size=(5.6, 3.2))
    top = max([*found.ratios, 2.0])
    ratios = np.geomspace(1, top, _POINTS)[1:]
    ranges = 100 * np.array([found.error_range(float(r)) for r in ratios])
    expected = 100 * np.array([found.expected_error(float(r)) for r in ratios])
    # What is not limited lies between nothing and everything.
    low, high = np.nan_to_num(ranges[:, 0], nan=0.0), np.nan_to_num(ranges[:, 1], nan=1e4, posinf=1e4)
    axes.fill_between(ratios, low, high, color=_BLUE, alpha=0.15, linewidth=0, label="range that is not excluded")
    if np.isfinite(expected).any():
        axes.plot(ratios, expected, color=_BLUE, label="expected error")
    axes.axhline(
        100 * found.tolerance, color="0.35", linestyle=(0, (4, 2)), label=f"tolerance {100 * found.tolerance:g} %"
    )
    sure, fails = found.largest_ratio_limits
    for at, colour, words in ((sure, _GREEN, "holds up to here"), (fails, _ORANGE, "fails from here on")):
        if 1 < at < top:
            axes.axvline(at, color=colour, linestyle=(0, (2, 2)), label=words)
    bounded = expected[np.isfinite(expected)]
    height = max(300 * found.tolerance, 1.2 * float(bounded.max(initial=0)), 1.0)
    axes.set(xscale="log", xlim=(1, top), ylim=(0, min(height, 100)))
    ticks = [r for r in found.ratios if 1 <= r <= top]
    axes.set_xticks(ticks, [f"{r:g}" for r in ticks])
    axes.set_xticks([], minor=True)
    axes.set(xlabel="batch size / present batch size", ylabel="error of the loss curve (%)")
    axes.legend(loc="upper left", frameon=True, framealpha=0.8, edgecolor="none")
    kept = f"keeps the loss curve within {100 * found.tolerance:g} %"
    said = (
        f"{kept} up to {sure:.3g} times the batch" if sure > 1 else f"is not certain to {kept.replace('keeps', 'keep')}"
    )
    sheet.headline(f"The square-root rule {said}", axes)
