"""Names of lines at their right ends, in place of a legend."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["End", "label_ends"]


class End(NamedTuple):
    """The right end of a line, and what is written beside it.

    Attributes:
        text: what is written.
        colour: its colour, that of the line.
        at: horizontal position of the end; NaN if no point of the line is finite.
        value: vertical position of the end.
    """

    text: str
    colour: str
    at: float
    value: float

    @classmethod
    def of(cls, text: str, colour: str, at: np.ndarray, values: np.ndarray) -> "End":
        """The last finite point of a line."""
        finite = np.flatnonzero(np.isfinite(values))
        last = finite[-1] if finite.size else 0
        return cls(text, colour, float(at[last]) if finite.size else np.nan, float(values[last]))


def label_ends(axes: "Axes", ends: Sequence[End]) -> None:
    """Write the text of each end right of the axes, apart from the others, with a thin line where it is not beside it.

    The scale of the axes, and limits that are not those of the data, must be set before.
    """
    size = float(plt.rcParams["font.size"])
    height = axes.get_position().height * axes.get_figure(root=True).get_size_inches()[1] * 72  # type: ignore[union-attr]
    least = 1.15 * size / max(height, 1.0)
    axes.autoscale_view()  # pending until a figure is drawn
    to_axes = axes.transData + axes.transAxes.inverted()
    is_log = axes.get_yscale() == "log"
    shown = [end for end in ends if np.isfinite(end.at) and (end.value > 0 or not is_log)]
    points = [to_axes.transform((end.at, end.value)) for end in shown]
    order = np.argsort([point[1] for point in points], kind="stable")
    heights = _spread([min(max(float(points[i][1]), 0.0), 1.0) for i in order], least)
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "axes fraction", "annotation_clip": False}
    for i, y in zip(order, heights, strict=True):
        end, (x, own) = shown[i], points[i]
        axes.annotate(f" {end.text}", (1.02, y), color=end.colour, va="center", fontsize=size, **place)
        if x < 0.999 or abs(own - y) > 0.3 * least:
            line = {"arrowstyle": "-", "color": end.colour, "lw": 0.5}
            axes.annotate("", (1.02, y), (x, min(max(own, 0.0), 1.0)), arrowprops=line, **place)


def _spread(wanted: list[float], least: float) -> list[float]:
    """Rising heights at least `least` apart, as near as possible to those wanted in the sense of least squares."""
    blocks: list[tuple[float, int]] = []  # mean of wanted minus the offsets within the block, and number of entries
    for i, y in enumerate(wanted):
        mean, count = y - i * least, 1
        while blocks and blocks[-1][0] > mean:
            before, number = blocks.pop()
            mean, count = (mean * count + before * number) / (count + number), count + number
        blocks.append((mean, count))
    level = [mean for mean, count in blocks for _ in range(count)]
    return [y + i * least for i, y in enumerate(level)]
