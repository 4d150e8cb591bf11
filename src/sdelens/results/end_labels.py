"""Names of lines at their right ends, in place of a legend."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_hex, to_rgb

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

__all__ = ["End", "label_ends", "label_lines", "legible", "named_lines"]

_CONTRAST: Final = 4.5
"""Smallest contrast of text with its background, as WCAG 2.2 asks for (1.4.3, level AA)."""


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
        """The finite point of a line that is furthest to the right."""
        finite = np.flatnonzero(np.isfinite(values))
        last = finite[::-1][np.argmax(at[finite][::-1])] if finite.size else 0
        return cls(text, colour, float(at[last]) if finite.size else np.nan, float(values[last]))

    @classmethod
    def of_line(cls, text: str, line: "Line2D") -> "End":
        """That of a line of matplotlib."""
        return cls.of(text, to_hex(line.get_color()), *_points(line))


def label_lines(axes: "Axes") -> None:
    """Write the label of each line of `axes` beside its right end, in the colour of the line, in place of a legend.

    The labels are kept apart, and a thin line leads to an end that its label is not beside. Set the scale of the axes,
    and limits that are not those of the data, before; of the room at the right, matplotlib's constrained layout
    (``with sl.style():``) takes care.

    Args:
        axes: the axes, with labels given to ``plot`` or ``errorbar``.

    Raises:
        TypeError: if it is not axes.
        ValueError: if no line of the axes has a label.
    """
    if not hasattr(axes, "get_legend_handles_labels"):
        raise TypeError(f"axes: got {axes!r}; give the axes of matplotlib that contain the lines.")
    lines = named_lines(axes)
    if not lines:
        raise ValueError("axes: no line of them has a label; give label= to plot.")
    label_ends(axes, [End.of_line(name, line) for name, line in lines.items()])


def named_lines(axes: "Axes") -> "dict[str, Line2D]":
    """The lines of `axes` that have a label, without those over their whole height, which end nowhere."""
    from matplotlib.container import ErrorbarContainer
    from matplotlib.lines import Line2D

    found = {}
    for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
        line = handle.lines[0] if isinstance(handle, ErrorbarContainer) else handle
        if isinstance(line, Line2D) and len(_points(line)[0]) > 1 and not _is_straight(line):
            found[label] = line
    return found


def _points(line: "Line2D") -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)


def _is_straight(line: "Line2D") -> bool:
    x, y = _points(line)
    return len(x) == 2 and x[0] == x[1] and bool((y == [0, 1]).all())


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
    sizes = [least * (1 + shown[i].text.count("\n")) for i in order]
    heights = _spread([min(max(float(points[i][1]), 0.0), 1.0) for i in order], sizes)
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "axes fraction", "annotation_clip": False}
    for i, y in zip(order, heights, strict=True):
        end, (x, own) = shown[i], points[i]
        text = "\n".join(f" {line}" for line in end.text.splitlines())
        axes.annotate(text, (1.02, y), color=legible(end.colour), va="center", fontsize=size, **place)
        if x < 0.999 or abs(own - y) > 0.3 * least:
            line = {"arrowstyle": "-", "color": end.colour, "lw": 0.5}
            axes.annotate("", (1.02, y), (x, min(max(own, 0.0), 1.0)), arrowprops=line, **place)


def legible(colour: Any) -> str:
    """The colour for text on white: darkened, if necessary, to a contrast of 4.5."""
    own = np.array(to_rgb(colour))
    shades = [own * share for share in np.linspace(1, 0, 101)]
    return to_hex(next(shade for shade in shades if 1.05 / (_luminance(shade) + 0.05) >= _CONTRAST))


def _luminance(colour: np.ndarray) -> float:
    """Relative luminance of a colour of sRGB, between 0 and 1."""
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def _spread(wanted: list[float], sizes: list[float]) -> list[float]:
    """Rising heights of texts that do not overlap, as near as possible to those wanted in the sense of least squares.

    Args:
        wanted: rising heights of the middles of the texts.
        sizes: height of each text.
    """
    blocks: list[tuple[float, int]] = []  # mean of wanted minus the offsets within the block, and number of entries
    offsets = np.cumsum(sizes) - 0.5 * np.array(sizes)
    for y, offset in zip(wanted, offsets, strict=True):
        mean, count = y - float(offset), 1
        while blocks and blocks[-1][0] > mean:
            before, number = blocks.pop()
            mean, count = (mean * count + before * number) / (count + number), count + number
        blocks.append((mean, count))
    level = [mean for mean, count in blocks for _ in range(count)]
    return [y + float(offset) for y, offset in zip(level, offsets, strict=True)]
