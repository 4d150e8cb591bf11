"""Plain text for a terminal: tables that fit its width, wrapped sentences, records in one line."""

import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Final

__all__ = ["brief", "listed", "terminal_width", "text_table", "wrapped"]

_NARROWEST: Final = 40
_PROSE: Final = 24
"""Length from which on the words of a cell may be wrapped."""
_GAP: Final = 2
_SIGNS: Final = "=≈±≤≥≠<>×÷−–"
_TOGETHER: Final = re.compile(rf" (?=[{_SIGNS}%](?:[ .,;:)\]]|$))|(?<=[ \0][{_SIGNS}]) |(?<=\bseed) (?=\d)")
"""Spaces at which no line ends: those of "d = 5", "1 − β", "0.1 – 0.2", "99 %" and "seed 0"."""
_FEW, _LONG = 8, 60
"""Most entries, and most characters, that a short line shows of one part."""


def terminal_width() -> int:
    """Characters in a line of the terminal (or of the variable ``COLUMNS``); 80 where there is none."""
    return max(shutil.get_terminal_size((80, 24)).columns, _NARROWEST)


def wrapped(text: str, width: int | None = None, first: str = "", rest: str = "") -> list[str]:
    """Lines of a sentence, not longer than `width`; by default the terminal's.

    A number stays on a line with its unit, and what is on both sides of a sign with this, where the width allows it.

    Args:
        text: the sentence; its own line breaks are kept.
        width: characters in a line.
        first: what the first line begins with, for example ``"- "``.
        rest: what the other lines begin with.
    """
    width = terminal_width() if width is None else width
    lines: list[str] = []
    for part in text.split("\n"):
        begins = rest if lines else first
        found = _wrapped(_TOGETHER.sub("\0", part), width, begins, rest)
        if any(len(line) > width for line in found):
            found = _wrapped(part, width, begins, rest)
        lines += [line.replace("\0", " ") for line in found] or [begins.rstrip()]
    return lines


def _wrapped(text: str, width: int, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def listed(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of names, each with a wrapped text beside it, that fit the terminal."""
    indent = max((len(name) for name, _ in rows), default=0) + _GAP
    return [line for name, text in rows for line in wrapped(text, None, name.ljust(indent), " " * indent)]


def text_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None, keys: int = 1
) -> list[str]:
    """Lines of a table with the first column and sentences aligned left, and the others aligned right.

    A table that is wider than `width` gets headings of two lines, then wrapped sentences in its cells; what is still
    too wide is continued below, where the first columns are repeated.

    Args:
        head: headings of the columns.
        rows: cells of every row.
        width: characters in a line; by default the terminal's.
        keys: number of the first columns that say what a row is, and are repeated.
    """
    width = terminal_width() if width is None else width
    natural = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    if _total(natural) <= width:
        return _drawn(head, rows, natural)
    words = [_in_two_lines(name) for name in head]
    cells = [max((len(cell) for cell in column), default=0) for column in zip(*rows, strict=True)] or [0] * len(head)
    widths = [max(pair) for pair in zip(words, cells, strict=True)]
    spare = _total(widths) - width
    for i in sorted(range(len(head)), key=lambda i: -widths[i]):
        if spare > 0 and _is_prose(rows, i):
            least = max(words[i], _PROSE, *(len(word) for row in rows for word in row[i].split()))
            cut = min(spare, max(widths[i] - least, 0))
            widths[i], spare = widths[i] - cut, spare - cut
    lines: list[str] = []
    for columns in _folded(widths, width, keys):
        part = [[row[i] for i in columns] for row in rows]
        lines += [""] * bool(lines) + _drawn([head[i] for i in columns], part, [widths[i] for i in columns])
    return lines


def _in_two_lines(name: str) -> int:
    """The fewest characters into which a heading fits in two lines."""
    words = _TOGETHER.sub("\0", name).split(" ")
    sides = [(" ".join(words[:i]), " ".join(words[i:])) for i in range(len(words) + 1)]
    return min(max(map(len, pair)) for pair in sides)


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def _is_prose(rows: Sequence[Sequence[str]], i: int) -> bool:
    """Whether a column has sentences, not numbers."""
    long = [row[i] for row in rows if len(row[i]) > _PROSE]
    return bool(long) and all(sum(c.isalpha() for c in cell) > len(cell) / 2 for cell in long)


def _folded(widths: Sequence[int], width: int, keys: int) -> list[list[int]]:
    """Columns of the parts of a table, each with the keys: as few parts as possible, about equally wide."""
    found = _filled(widths, width, keys)
    for narrower in range(width - 1, 0, -1):
        parts = _filled(widths, narrower, keys)
        if len(parts) > len(found) or any(_total([widths[i] for i in part]) > width for part in parts):
            break
        found = parts
    return found


def _filled(widths: Sequence[int], width: int, keys: int) -> list[list[int]]:
    """Columns of parts that are each filled up to `width`; a column that is wider has a part of its own."""
    first = list(range(min(keys, len(widths))))
    parts = [list(first)]
    for i in range(len(first), len(widths)):
        if len(parts[-1]) > len(first) and _total([widths[k] for k in [*parts[-1], i]]) > width:
            parts.append(list(first))
        parts[-1].append(i)
    return parts


def _drawn(head: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int]) -> list[str]:
    def cell(text: str, i: int) -> list[str]:
        if len(text) <= widths[i]:
            return [text]
        return wrapped(text, widths[i])

    prose = [not i or _is_prose(rows, i) for i in range(len(head))]

    def lines(cells: Sequence[str], above: bool) -> list[str]:
        parts = [cell(text, i) for i, text in enumerate(cells)]
        height = max(len(part) for part in parts)
        filled = [[""] * (height - len(p)) + p if above else p + [""] * (height - len(p)) for p in parts]
        return [
            (" " * _GAP)
            .join(text.ljust(widths[i]) if prose[i] else text.rjust(widths[i]) for i, text in enumerate(row))
            .rstrip()
            for row in zip(*filled, strict=True)
        ]

    rule = (" " * _GAP).join("-" * w for w in widths)
    return [*lines(head, above=True), rule, *(line for row in rows for line in lines(row, above=False))]


def brief(record: Any) -> str:
    """A dataclass or named tuple in one short line: arrays by type and shape, long lists by their length."""
    own = getattr(record, "_fields", None) or [f.name for f in fields(record) if not f.name.startswith("_")]
    return f"{type(record).__name__}({', '.join(f'{name}={_shortened(getattr(record, name))}' for name in own)})"


def _shortened(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}" if value.shape else f"{value}"
    if isinstance(value, Mapping) and len(value) <= _FEW:
        return f"{{{', '.join(f'{key!r}: {_shortened(part)}' for key, part in value.items())}}}"
    if isinstance(value, Mapping | tuple | list) and len(value) > _FEW:
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        inner = ", ".join(map(_shortened, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' * (len(value) == 1)})"
    text = repr(value)
    return text if len(text) <= _LONG else f"{text[:_LONG]}…"
