"""Result objects for readers: one list of parts, written as text, as HTML with a figure, and as LaTeX."""

import base64
import io
import os
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sdelens.core.files import few_colours
from sdelens.core.text import text_table, wrapped
from sdelens.results import latex

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sdelens.results.figures import Sheet

__all__ = ["Parts", "Plotted", "Printable", "Remarks", "Table", "html_table"]

_DASHES: Final = ("-", "–", "")
_DOTS: Final = 144
"""Resolution of a figure in a notebook, which is shown at half of it."""
_STYLE: Final = (
    "<style>.sdelens table{border-collapse:collapse;display:block;overflow-x:auto;"
    "margin:.6em 0;font-variant-numeric:tabular-nums}.sdelens th,.sdelens td{text-align:right;padding:.2em .6em;"
    "white-space:nowrap}.sdelens th:first-child,.sdelens td:first-child{text-align:left}.sdelens thead th{"
    "border-bottom:1px solid currentColor}.sdelens caption{text-align:left;font-style:italic;padding:.3em 0}"
    ".sdelens p,.sdelens li{font-size:.9em;line-height:1.4;margin:.3em 0;max-width:46em;white-space:pre-line}"
    ".sdelens .title{font-size:1em;font-weight:600;max-width:none}"
    ".sdelens img{display:block;max-width:100%;background:#fff;border-radius:4px;margin:.6em 0}</style>"
)


class Table(NamedTuple):
    """A table of text.

    Attributes:
        head: headings of the columns.
        rows: cells of every row.
        caption: what the table shows, if that needs to be said.
        keys: number of the first columns that say what a row is.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    keys: int = 1

    def without_empty(self) -> "Table":
        """The table without the columns in which every cell is a dash."""
        kept = [i for i in range(len(self.head)) if not self.rows or any(row[i] not in _DASHES for row in self.rows)]
        return self._replace(head=[self.head[i] for i in kept], rows=[[row[i] for i in kept] for row in self.rows])


class Remarks(NamedTuple):
    """Sentences that are listed below one another.

    Attributes:
        said: the sentences.
        heading: a line above them.
    """

    said: Sequence[str]
    heading: str = ""


Parts = Sequence[str | Table | Remarks]
"""What an object shows; the first part, if it is text, is its title."""


class Printable:
    """An object that prints as text, is shown as HTML in notebooks, and has its tables in LaTeX."""

    __slots__ = ()

    def _parts(self) -> Parts:
        """Title, tables, sentences and remarks, in their order."""
        raise NotImplementedError

    def __str__(self) -> str:
        """Title, tables and remarks as plain text that fits the terminal."""
        return "\n".join(_as_text(self._parts()))

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        parts = self._parts()
        title = parts[0] if parts and isinstance(parts[0], str) else ""
        shown = [f'<p class="title">{escape(title)}</p>'] if title else []
        shown += [self._picture(title), *map(_as_html, parts[bool(title) :])]
        return f'{_STYLE}<div class="sdelens">{"".join(shown)}</div>'

    def _picture(self, title: str) -> str:
        """The figure as HTML, if there is one."""
        return ""

    def to_latex(self, caption: str | None = None, label: str | None = None) -> str:
        r"""The object's tables in LaTeX, with the rules of the package booktabs.

        Numbers are typeset by mathematics alone; put ``\usepackage{booktabs}`` into the preamble, nothing else is
        needed.

        Args:
            caption: a caption in LaTeX; each tabular is then put into a floating ``table``.
            label: its label, for ``\ref``; it needs a caption.

        Raises:
            ValueError: if the object has no table, or there is a label without a caption.
        """
        found = self._tables()
        if not found:
            raise ValueError(f"to_latex: {type(self).__name__} has no table.")
        return latex.tables(found, caption, label)

    def _tables(self) -> list[Table]:
        """The tables that `to_latex` writes."""
        return [part for part in self._parts() if isinstance(part, Table)]


class Plotted(Printable):
    """A `Printable` with a figure."""

    __slots__ = ()

    def _draw(self, sheet: "Sheet") -> None:
        """Draw the figure."""
        raise NotImplementedError

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        ax: Any = None,
        figsize: tuple[float, float] | None = None,
        title: str | None = None,
        style: str | None = None,
        columns: int | None = None,
    ) -> "Figure":
        """Draw the object's figure; saved if `path` is given.

        Args:
            path: file to save it to, in the format of its suffix.
            ax: axes to draw into instead of a new figure: one, for the main panel alone, or one for each panel.
            figsize: width and height of a new figure in inches.
            title: title instead of the figure's own; ``""`` for none.
            style: ``"screen"`` or ``"paper"``, as for `style`; by default the one in use.
            columns: number of columns of a paper that the figure covers, 1 or 2.

        Returns:
            The figure.

        Raises:
            ValueError: if matplotlib does not write files with the suffix of `path`, the number of axes does not fit,
                or a name is not known.
        """
        from sdelens.results.figures import drawn

        return drawn(self._draw, path, ax=ax, figsize=figsize, title=title, style=style, columns=columns)

    def _picture(self, title: str) -> str:
        if not self._has_figure:
            return ""
        from PIL import Image

        from sdelens.results.figures import drawn

        figure, stream = drawn(self._draw, title="", style="screen"), io.BytesIO()
        figure.savefig(stream, format="png", dpi=_DOTS, facecolor="white")
        small = io.BytesIO()
        few_colours(Image.open(stream)).save(small, format="png", optimize=True)
        data = base64.b64encode(small.getvalue()).decode()
        width = round(figure.get_size_inches()[0] * _DOTS / 2)
        return f'<img width="{width}" alt="{escape(title)}" src="data:image/png;base64,{data}">'

    @property
    def _has_figure(self) -> bool:
        """Whether this object has something to draw."""
        return True


def _as_text(parts: Parts) -> list[str]:
    lines: list[str] = []
    before: Any = None
    for part in parts:
        # Sentences follow one another; tables and lists stand apart.
        apart = lines and not (isinstance(part, str) and isinstance(before, str) and before is not parts[0])
        lines += [""] * bool(apart)
        if isinstance(part, Table):
            lines += [*wrapped(part.caption), ""] if part.caption else []
            lines += text_table(part.head, part.rows, keys=part.keys)
        elif isinstance(part, Remarks):
            lines += [part.heading] * bool(part.heading)
            lines += [line for text in part.said for line in wrapped(text, None, "- ", "  ")]
        else:
            lines += wrapped(part)
        before = part
    return lines


def _as_html(part: str | Table | Remarks) -> str:
    if isinstance(part, Table):
        return html_table(part.caption, part.head, part.rows)
    if isinstance(part, Remarks):
        heading = f"<p>{escape(part.heading)}</p>" if part.heading else ""
        return f"{heading}<ul>{''.join(f'<li>{escape(said)}</li>' for said in part.said)}</ul>"
    return f"<p>{escape(part)}</p>"


def html_table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as HTML."""
    cells = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    header = "".join(f'<th scope="col">{escape(c)}</th>' for c in head)
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{said}<thead><tr>{header}</tr></thead><tbody>{cells}</tbody></table>"
