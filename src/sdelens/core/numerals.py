"""Numbers in tables, sentences and figures, written in one way.

Negative numbers have a minus sign (U+2212), like those that matplotlib draws. Code, JSON, CSV and the exponent of 1e-05
have a hyphen, because they are copied; `sdelens.shell.streams` writes a hyphen where an encoding lacks the sign.
"""

import math
from collections.abc import Callable
from typing import Final

__all__ = ["MISSING", "between", "fixed", "number", "percent", "resolved", "signed", "with_limits"]

MISSING: Final = "-"
"""What is written for a number that is not known."""
_MINUS: Final = "−"
_LARGE: Final = 1e5
"""From here on numbers are written with an exponent."""


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


def between(low: float, high: float, write: Callable[[float], str] = number) -> str:
    """A range, such as 0.1 – 0.2."""
    return f"{write(low)} – {write(high)}"


def with_limits(value: float, low: float, high: float, write: Callable[[float], str] = number) -> str:
    """A number followed by its limits if both are finite; what is not known is `MISSING`."""
    found = write(value) if math.isfinite(value) else MISSING
    return f"{found} ({between(low, high, write)})" if math.isfinite(low + high) else found


def resolved(error: float, floor: float, write: Callable[[float], str] = percent, upper: float = math.nan) -> str:
    """An error; if it is not larger than what a perfect model would show, "<" and a number that it is below.

    Args:
        error: the error.
        floor: the error that a perfect model would show on average; 0 or NaN if there is none.
        write: writes one of them.
        upper: the upper limit of the error, which is written after "<"; where it is not known, the floor is.
    """
    if floor > 0 and error <= floor:
        return f"< {write(upper if math.isfinite(upper) else floor)}"
    return write(error)
