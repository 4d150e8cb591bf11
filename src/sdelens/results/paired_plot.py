"""Figure of a few runs against a reference, compared seed by seed."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sdelens.results.figures import Sheet
from sdelens.results.paired import change
from sdelens.results.plotting import look_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Compared", "plot_paired"]


class Compared(NamedTuple):
    """Losses of one kind of run and of the reference on a common grid.

    Attributes:
        edges: edges of the bins, shape (R + 1,).
        ours: mean losses in them, shape (S, R).
        reference: those of the reference with the same seeds, shape (S, R); for the reference itself, equal to `ours`.
    """

    edges: np.ndarray
    ours: np.ndarray
    reference: np.ndarray


def plot_paired(sheet: Sheet, runs: Mapping[str, Compared], confidence: float, title: str, clock: str) -> None:
    """Mean losses and single runs above; below, the differences from the first of them, with their limits.

    Args:
        sheet: where they are drawn; on one axes only the upper panel.
        runs: what is drawn by label, the reference first.
        confidence: two-sided confidence of the limits.
        title: title of the figure.
        clock: label of the horizontal axis.
    """
    first, *others = runs
    looks = look_of({first: "optimizer", **dict.fromkeys(others, "rescaled")})
    top, *rest = sheet.panels(2, size=(5.6, 4.8), sharex=True, height_ratios=[2.0, 1.2])
    for name, run in runs.items():
        middle = (run.edges[1:] + run.edges[:-1]) / 2
        for row in run.ours if len(run.ours) > 1 else ():
            top.plot(middle, row, color=looks[name]["color"], linewidth=0.5, alpha=0.25)
        top.plot(middle, run.ours.mean(axis=0), label=name, **looks[name])
    for bottom in rest:
        bottom.axhline(0, color="black", linewidth=0.8)
        for name in others:
            _differences(bottom, runs[name], confidence, looks[name])
        bottom.set_ylabel("difference")
    top.set_ylabel("loss")
    (rest or [top])[-1].set_xlabel(clock)
    sheet.headline(title, top)
    top.margins(x=0)
    sheet.label_lines(top, fontsize=7, ncols=1 + (len(runs) > 6))
    sheet.align()


def _differences(axes: "Axes", run: Compared, confidence: float, look: dict[str, Any]) -> None:
    middle = (run.edges[1:] + run.edges[:-1]) / 2
    each = [change(a, b, np.ones(len(a)), confidence) for a, b in zip(run.ours.T, run.reference.T, strict=True)]
    axes.plot(middle, [c.difference for c in each], **look)
    low, high = (np.array([getattr(c, f"difference_{side}") for c in each]) for side in ("lower", "upper"))
    if np.isfinite(low).all():
        axes.fill_between(middle, low, high, color=look["color"], alpha=0.12, linewidth=0)
