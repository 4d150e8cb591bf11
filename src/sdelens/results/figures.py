"""Where figures are drawn: the library's styles, a new figure or given axes, size, title and file."""

import contextlib
import os
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from sdelens.core import check
from sdelens.core.files import check_figure_path, save_figure
from sdelens.core.text import wrapped
from sdelens.results.end_labels import End, label_ends, named_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["PAPER", "STYLE", "Sheet", "drawn", "line_scale", "plain_ticks", "short_lines", "style"]

STYLE: Final[dict[str, Any]] = {
    "figure.figsize": (5.6, 4.8),
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "savefig.dpi": 200,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
}
"""matplotlib settings of the library's figures on a screen; `style` applies them."""

PAPER: Final[dict[str, Any]] = {
    **STYLE,
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.handlelength": 1.8,
    "legend.labelspacing": 0.3,
    "axes.linewidth": 0.6,
    "axes.labelpad": 2.5,
    "grid.linewidth": 0.4,
    "lines.linewidth": 1.0,
    "lines.markersize": 3,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "figure.constrained_layout.h_pad": 0.02,
    "figure.constrained_layout.w_pad": 0.02,
    "savefig.dpi": 300,
}
"""matplotlib settings of figures for papers whose text has 9 to 10 points."""

_STYLES: Final = {"screen": STYLE, "paper": PAPER}
_WIDTHS: Final = {1: 3.25, 2: 6.75}
"""Width in inches of one and of two columns: those of ICML; IEEE has 3.5 and 7.2, ACM 3.3 and 7.0."""
_FEW: Final = 6
"""Most lines that are named at their ends."""
_BESIDE: Final = 24
"""Most letters of a line of text beside a figure."""
_LETTERS: Final = 14.2
"""Letters of a title on an inch, on a screen."""
_STACKED: Final = 0.65
"""Height of a panel of a stack, relative to that beside the others."""
_TALL: Final = 1.1
"""Height of a figure of one column, relative to that of the same proportions: labels do not shrink with it."""


class _Style(NamedTuple):
    """A style in use: its name, the width of its figures in inches (None: their own), and further settings."""

    name: str = "screen"
    width: float | None = None
    changes: tuple[tuple[str, Any], ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        size = {} if self.width is None else {"figure.figsize": (self.width, 0.72 * self.width)}
        return {**_STYLES[self.name], **size, **dict(self.changes)}


_SCREEN: Final = _Style()
_used: ContextVar[_Style] = ContextVar("sdelens_style", default=_SCREEN)


@contextlib.contextmanager
def style(
    name: str = "screen", *, columns: int | None = None, width: float | None = None, **changes: Any
) -> Iterator[None]:
    """Apply a style of the library to its figures and to your own, until the block ends.

    ``"paper"`` is for papers with text of 9 or 10 points: letters of 7 and 8 points, thin lines, the width of one or
    two columns, and no titles, in whose place a paper has captions. Fonts are embedded as TrueType (Type 42) in PDF
    and PostScript.

    Args:
        name: ``"screen"`` or ``"paper"``.
        columns: columns that a figure of a paper covers: 1 (3.25 inches, the default) or 2 (6.75 inches).
        width: width of a figure of a paper in inches instead, for example 5.5 for NeurIPS and ICLR.
        changes: matplotlib settings by name, with ``_`` for the first ``.``: ``figure_figsize=(3, 2)``.

    Raises:
        ValueError: if a name or a number of columns is not known, or both `columns` and `width` are given.

    Examples:
        >>> import matplotlib.pyplot as plt, sdelens as sl
        >>> with sl.style("paper"):
        ...     figure, axes = plt.subplots()
        >>> float(figure.get_size_inches()[0])
        3.25
    """
    own = tuple((key.replace("_", ".", 1), value) for key, value in changes.items())
    with _applied(_chosen(name, columns, width)._replace(changes=own)):
        yield


def _chosen(name: str, columns: int | None, width: float | None) -> _Style:
    check.choice("style", name, _STYLES)
    if name != "paper":
        if columns is not None or width is not None:
            given = "columns" if width is None else "width"
            raise ValueError(f"{given}: is that of a paper; give it with style 'paper', or leave it out.")
        return _Style(name)
    if columns is not None and width is not None:
        raise ValueError("columns, width: both are given; give the number of columns, or the width in inches.")
    if width is None:
        number = 1 if columns is None else check.whole("columns", columns)
        if number not in _WIDTHS:
            raise ValueError(f"columns: got {columns}; a figure covers 1 or 2 columns, or give its width in inches.")
        width = _WIDTHS[number]
    return _Style(name, float(check.positive("width", width)))


@contextlib.contextmanager
def _applied(chosen: _Style) -> Iterator[None]:
    plt.draw_if_interactive()  # the first use of a notebook's backend sets settings that must outlive the style's
    token = _used.set(chosen)
    try:
        with plt.style.context(chosen.settings):
            yield
    finally:
        _used.reset(token)


def plain_ticks(*axes: "Axis") -> None:
    """Ticks of logarithmic axes at 1, 2 and 5 times powers of 10, written as numbers, where they span less than 50."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in axes:
        low, high = sorted(axis.get_view_interval())
        if high < 50 * low:
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def line_scale() -> float:
    """Width of lines relative to those on a screen."""
    return float(_used.get().settings["lines.linewidth"]) / float(STYLE["lines.linewidth"])


class Sheet:
    """A new figure, or the axes that the caller gave, with its title.

    Attributes:
        figure: the figure, after `panels`.
        is_given: whether the caller gave the axes.
    """

    figure: "Figure"

    def __init__(self, ax: Any = None, figsize: Any = None, title: str | None = None) -> None:
        if ax is not None and figsize is not None:
            raise ValueError("figsize: is that of a new figure; leave it out with ax, or set it on the axes' figure.")
        if title is not None and not isinstance(title, str):
            raise TypeError(f"title: got {type(title).__name__}; give text, or '' for no title.")
        if figsize is not None and (np.shape(figsize) != (2,) or not np.all(np.asarray(figsize) > 0)):
            raise ValueError(f"figsize: got {figsize!r}; give width and height in inches, for example (5, 3).")
        self._axes, self._figsize, self._heading, self._used = _axes_of(ax), figsize, title, _used.get()
        self.is_given = self._axes is not None

    @property
    def is_paper(self) -> bool:
        """Whether the style is that of a paper."""
        return self._used.name == "paper"

    def panels(
        self,
        rows: int = 1,
        columns: int = 1,
        *,
        size: tuple[float, float],
        stack: bool = False,
        equal: bool = False,
        **grid: Any,
    ) -> list["Axes"]:
        """The panels of the figure, row by row: all of them, or only the first if the caller gave one axes.

        Args:
            rows: number of rows.
            columns: number of columns.
            size: size of the figure on a screen, in inches.
            stack: whether its columns become rows in one column of a paper.
            equal: whether no panel is the main one, so that the caller must give axes for all of them.
            grid: further arguments of ``plt.subplots``.

        Raises:
            ValueError: if the caller gave another number of axes.
        """
        if self._axes is not None:
            count = rows * columns
            if len(self._axes) not in ((count,) if equal else (1, count)):
                choices = f"{count}" if equal or count == 1 else f"1, for the main panel, or {count}"
                raise ValueError(f"ax: got {len(self._axes)} axes; this figure needs {choices}.")
            found = self._axes[0].get_figure(root=True)
            assert found is not None
            self.figure = found
            return self._axes
        rows, columns, size = self._fitted(rows, columns, size, stack)
        self.figure, axes = plt.subplots(rows, columns, squeeze=False, figsize=size, **grid)
        return list(axes.ravel())

    def _fitted(
        self, rows: int, columns: int, size: tuple[float, float], stack: bool
    ) -> tuple[int, int, tuple[float, float]]:
        width, height = size
        if self._used.width is not None:
            own = self._used.width
            if stack and own < 0.75 * width:
                rows, columns, width, height = rows * columns, 1, width / columns, _STACKED * height * columns
            factor = own / width
            width, height = own, height * factor * (_TALL if factor < 1 else 1)
        return rows, columns, (width, height) if self._figsize is None else tuple(self._figsize)

    def headline(self, text: str, axes: "Axes | None" = None) -> None:
        """The title above `axes`, or above the whole figure; the caller's instead, if there is one.

        Its first line says what the figure shows; lines are broken to fit the figure. A figure of a paper has only the
        caller's.
        """
        letters = int(_LETTERS * (self.figure.get_size_inches()[0] - (0.3 if axes is None else 0.7)))
        said = ("" if self.is_paper else "\n".join(wrapped(text, letters))) if self._heading is None else self._heading
        if not said:
            return
        if axes is None and self._axes is not None:
            axes = self._axes[0]
        if axes is None:
            self.figure.suptitle(said, x=0.02, ha="left", fontsize=plt.rcParams["axes.titlesize"])
        else:
            axes.set_title(said, loc="left")

    def label_lines(self, axes: "Axes", above: bool = False, **legend: Any) -> bool:
        """Name the labelled lines of `axes` at their right ends, and what else has a label in a legend.

        A legend names all of them in the caller's axes, whose margin others decide on, in the narrow columns of a
        paper, and where there are more than six lines. Scale and limits of the axes must be set before.

        Args:
            axes: the axes.
            above: whether the legend is above the panels of a new figure.
            legend: arguments of the legend.

        Returns:
            Whether the lines are named at their ends.
        """
        entries = list(zip(*axes.get_legend_handles_labels(), strict=True))
        lines = named_lines(axes)
        at_ends = not (self.is_given or self.is_paper) and 0 < len(lines) <= _FEW
        if at_ends:
            ends = [End.of_line(short_lines(name), line) for name, line in lines.items()]
            label_ends(axes, ends)
            entries = [(handle, label) for handle, label in entries if label not in lines]
        if entries and above:
            self._legend_above(axes, entries)
        elif entries:
            look: dict[str, Any] = {"frameon": True, "framealpha": 0.7, "edgecolor": "none", **legend}
            axes.legend(*zip(*entries, strict=True), **look)
        return at_ends

    def legend_above(self, axes: "Axes", columns: int = 1) -> None:
        """A legend of `axes` above the panels of a new figure, within the caller's axes."""
        self._legend_above(axes, list(zip(*axes.get_legend_handles_labels(), strict=True)), columns)

    def _legend_above(self, axes: "Axes", entries: list[tuple[Any, str]], columns: int = 1) -> None:
        handles, labels = zip(*entries, strict=True)
        if self.is_given:
            axes.legend(handles, labels)
            return
        size = min(8, float(plt.rcParams["font.size"]))
        columns = 1 if self.is_paper else columns
        letters = int(self.figure.get_size_inches()[0] * 72 / (0.6 * size) / columns) - 8
        self.figure.legend(
            handles,
            [textwrap.fill(label, letters) for label in labels],
            loc="outside upper left",
            fontsize=size,
            ncols=columns,
        )

    def align(self) -> None:
        """Align the labels of the vertical axes of a new figure."""
        if not self.is_given:
            self.figure.align_ylabels()


def short_lines(name: str) -> str:
    """A name in lines that are short enough to stand beside a figure."""
    return "\n".join(textwrap.fill(line, _BESIDE, break_long_words=False) for line in name.splitlines())


def _axes_of(ax: Any) -> "list[Axes] | None":
    from matplotlib.axes import Axes

    if ax is None:
        return None
    found = [ax] if isinstance(ax, Axes) else list(np.ravel(ax)) if isinstance(ax, Sequence | np.ndarray) else []
    if not found or not all(isinstance(one, Axes) for one in found):
        raise TypeError(f"ax: got {type(ax).__name__}; give axes of matplotlib, or several of them.")
    return found


def drawn(
    draw: Callable[[Sheet], None],
    path: str | os.PathLike[str] | None = None,
    *,
    ax: Any = None,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    style: str | None = None,
    columns: int | None = None,
) -> "Figure":
    """Draw a figure by `draw`, and save it if `path` is given; the arguments are those of `Plotted.plot`.

    Raises:
        ValueError, TypeError: if an argument does not fit.
    """
    if path is not None:
        check_figure_path(path)
    here = _used.get()
    if style is not None or columns is not None:
        here = _chosen(here.name if style is None else style, columns, None)
    with _applied(here):
        sheet = Sheet(ax, figsize, title)
        draw(sheet)
        if not sheet.is_given:
            plt.close(sheet.figure)
        if path is not None:
            save_figure(sheet.figure, path)
    return sheet.figure
