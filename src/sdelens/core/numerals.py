"""Numbers in tables, sentences and figures, written in one way.

Negative numbers have a minus sign (U+2212), like those that matplotlib draws. Code, JSON, CSV and the exponent of 1e-05
have a hyphen, because they are copied; `sdelens.shell.streams` writes a hyphen where an encoding lacks the sign.
"""

import math
import re
from collections.abc import Callable
from typing import Final, TypeAlias

__all__ = ["MISSING", "Writer", "between", "fixed", "number", "percent", "resolved", "signed", "with_limits"]

MISSING: Final = "-"
"""What is written for a number that is not known."""
_MINUS: Final = "−"
_LARGE: Final = 1e5
"""From here on numbers are written with an exponent."""
_MORE_DIGITS: Final = range(3, 6)
_NUMBER: Final = re.compile(r"(\d+)(?:\.(\d+))?")
Writer: TypeAlias = Callable[..., str]
"""What writes a number; between limits that it rounds to the same text, it is asked for more `digits`."""


def number(value: float, digits: int = 3) -> str:
    """A number with at most so many significant digits."""
    return _written(value, digits, "")


def fixed(value: float, decimals: int) -> str:
    """A number with so many decimals."""
    return _signed(f"{value:.{decimals}f}")


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, also if it is positive."""
    return _written(value, digits, "+")


def percent(share: float, digits: int = 2, plus: bool = False) -> str:
    """A share in percent; with `plus`, a positive one has its sign."""
    return MISSING if math.isnan(share) else f"{_written(100 * share, digits, '+' if plus else '')} %"


def _written(value: float, digits: int, plus: str) -> str:
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        text = f"{plus}∞" if value > 0 else "-∞"
    else:
        text = f"{value:{plus}.{digits}g}"
        if "e+" in text and abs(value) < _LARGE:
            text = f"{float(text):{plus}.0f}"
    return _signed(text)


def _signed(text: str) -> str:
    return _MINUS + text[1:] if text.startswith("-") else text


def between(low: float, high: float, write: Writer = number) -> str:
    """A range, such as 0.1 – 0.2.

    Where both ends are rounded to the same text, they have as many digits as tell them apart, up to five; where these
    do not, and where the ends are equal or not known, there is one text.
    """
    ends = [write(low), write(high)]
    for digits in _MORE_DIGITS if low < high else ():
        if ends[0] == ends[1]:
            ends = _with_equal_decimals([write(low, digits=digits), write(high, digits=digits)])
    return ends[0] if ends[0] == ends[1] else " – ".join(ends)


def _with_equal_decimals(texts: list[str]) -> list[str]:
    """Numbers with zeros at their ends, so that 42 % beside 42.3 % is 42.0 %; those with an exponent as they are."""
    if any("e" in text for text in texts):
        return texts
    parts = [_NUMBER.split(text, maxsplit=1) for text in texts]  # before, whole part, decimals, after
    most = max(len(decimals or "") for _, _, decimals, _ in parts)
    return [
        f"{before}{whole}.{(decimals or '').ljust(most, '0')}{after}" if most else text
        for text, (before, whole, decimals, after) in zip(texts, parts, strict=True)
    ]


def with_limits(value: float, low: float, high: float, write: Writer = number) -> str:
    """A number followed by its limits if both are finite; what is not known is `MISSING`."""
    found = write(value) if math.isfinite(value) else MISSING
    return f"{found} ({between(low, high, write)})" if math.isfinite(low + high) else found


def resolved(error: float, floor: float, upper: float, write: Writer = percent) -> str:
    """An error; if it is not larger than what a perfect model would show, "<" and its upper limit.

    Args:
        error: the error.
        floor: the error that a perfect model would show on average; 0 or NaN if there is none.
        upper: the upper limit of the error; where it is not known, nothing can be said of an error that is not larger
            than the floor, and it is `MISSING`.
        write: writes one of them.
    """
    if not floor > 0 or error > floor:
        return write(error)
    return f"< {write(upper)}" if math.isfinite(upper) else MISSING
