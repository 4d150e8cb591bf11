"""Figures of fits: fitted over logged curves, and their differences."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from matplotlib.ticker import NullFormatter

from sdelens.forecast._range import FittedRun
from sdelens.results.figures import Sheet, line_scale

__all__ = ["plot_fit"]

_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#882255", "#117733")
_LEGEND: Final = 9
"""Most runs that are named."""
_WITHIN: Final = "90\u00a0% of the differences"


def plot_fit(sheet: Sheet, runs: Sequence[FittedRun], scatter: float) -> None:
    """Fitted curves over logged losses, and below their relative differences with the scatter of the fit."""
    top, *rest = sheet.panels(2, size=(5.6, 4.8), sharex=True, height_ratios=[2.2, 1])
    for i, run in enumerate(runs):
        colour = _COLOURS[i % len(_COLOURS)]
        fitted = run.losses * np.exp(-run.residuals)
        top.plot(run.steps, run.losses, ".", markersize=3 if run.points > 1 else 6, color=colour, alpha=0.5)
        name = run.name or f"run {i + 1}"
        top.plot(run.steps, fitted, "-" if run.points > 1 else "x", color=colour, label=name)
        style = "-" if run.points > 1 else "."
        for bottom in rest:
            bottom.plot(run.steps, 100 * np.expm1(run.residuals), style, color=colour, linewidth=0.8 * line_scale())
    for bottom in rest:
        bottom.axhspan(-164.5 * scatter, 164.5 * scatter, color="0.5", alpha=0.15, linewidth=0)
        bottom.axhline(0, color="black", linewidth=0.8)
        bottom.set_ylabel("logged $-$ fitted (%)")
    top.set_xscale("log")
    first, last = min(run.steps[0] for run in runs), max(run.steps[-1] for run in runs)
    lowest = (rest or [top])[-1]
    if last > 10 * first:  # labels between powers of 10 would overlap
        lowest.xaxis.set_minor_formatter(NullFormatter())
    top.set_ylabel("loss")
    lowest.set_xlabel("optimizer step")
    number = f"{len(runs)} runs" if len(runs) > 1 else "one run"
    sheet.headline(
        f"One quadratic fits {number} to {100 * scatter:.2g}\u00a0% (one standard deviation)\n"
        f"points: logged; lines: fitted; grey: {_WITHIN}",
        top,
    )
    if len(runs) <= _LEGEND:
        top.margins(x=0)
        sheet.label_lines(top, fontsize=7)
    sheet.align()
