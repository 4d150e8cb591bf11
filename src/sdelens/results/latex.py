r"""Tables in LaTeX: rules of booktabs, escaped text, and numbers with limits in one notation, 1.8 [1.2, 2.4]."""

import math
import re
from collections.abc import Sequence
from typing import Final, Protocol

__all__ = ["Latex", "escaped", "limited", "number", "tables", "uncertain"]

_SPECIAL: Final = {
    **{c: rf"\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    "\u00b1": r"$\pm$",
    "\N{MINUS SIGN}": "$-$",
    "\N{EN DASH}": "--",
    "\N{HORIZONTAL ELLIPSIS}": r"\dots{}",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{INFINITY}": r"$\infty$",
    "\N{SQUARE ROOT}": r"$\surd$",
    "\N{LESS-THAN OR EQUAL TO}": r"$\leq$",
    "\N{GREATER-THAN OR EQUAL TO}": r"$\geq$",
    "\N{RIGHTWARDS ARROW}": r"$\to$",
    "\N{PARTIAL DIFFERENTIAL}": r"$\partial$",
    "\N{NABLA}": r"$\nabla$",
    "\N{DOUBLE VERTICAL LINE}": r"$\|$",
    "\N{INCREMENT}": r"$\Delta$",
    "\N{VULGAR FRACTION ONE HALF}": r"$\frac12$",
    "\N{MIDDLE DOT}": r"$\cdot$",
    "\N{SCRIPT SMALL L}": r"$\ell$",
    "\N{DIVISION SIGN}": r"$\div$",
    "\N{ALMOST EQUAL TO}": r"$\approx$",
    "\N{SUPERSCRIPT MINUS}": "$^{-}$",
    "\N{LOW ASTERISK}": "$_*$",
    "\N{N-ARY SUMMATION}": r"$\sum$",
    "\N{NO-BREAK SPACE}": "~",
    **{c: f"$^{{{i}}}$" for i, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    **{c: f"$_{{{i}}}$" for i, c in enumerate("₀₁₂₃₄₅₆₇₈₉")},
}
_GREEK: Final = {
    **dict(zip("αβγδεζηθκλμνξρστφχψω", (
        *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "kappa", "lambda", "mu", "nu", "xi"),
        *("rho", "sigma", "tau", "varphi", "chi", "psi", "omega"),
    ), strict=True)),
    **dict(zip("ΓΔΘΛΞΠΣΦΨΩ", (
        *("Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega"),
    ), strict=True)),
}  # fmt: skip
_POWER: Final = re.compile(r"(?<![\w.])([+-]?\d+(?:\.\d+)?)e([+-])0*(\d+)(?!\w)")
_SIGN: Final = re.compile(r"(?<![\w.)])-(?=[\d.])")
_NONE: Final = "--"
_MOST_DECIMALS: Final = 6
_LARGE: Final = 1e5


class Latex(str):
    """Text that is LaTeX already, and is not escaped."""

    __slots__ = ()


class _Table(Protocol):
    @property
    def head(self) -> Sequence[str]: ...
    @property
    def rows(self) -> Sequence[Sequence[str]]: ...
    @property
    def caption(self) -> str: ...


def escaped(text: str) -> str:
    """Text as LaTeX: special characters escaped, Greek letters and signs in mathematics, 1e-3 as a power of ten."""
    found, at = [], 0
    for match in _POWER.finditer(text):
        found += [_plain(text[at : match.start()]), _power(match[1], match[2], match[3])]
        at = match.end()
    return "".join([*found, _plain(text[at:])])


def _plain(text: str) -> str:
    text = _SIGN.sub("\N{MINUS SIGN}", text)
    return "".join(rf"$\{_GREEK[c]}$" if c in _GREEK else _SPECIAL.get(c, c) for c in text)


def _power(mantissa: str, sign: str, exponent: str) -> str:
    return rf"${mantissa}\times10^{{{'-' if sign == '-' else ''}{exponent}}}$"


def number(value: float, decimals: int | None = None) -> Latex:
    """A number in mathematics, with that many decimals, or with three digits; a dash where it is not finite."""
    return Latex(f"${_digits(value, decimals)}$" if math.isfinite(value) else _NONE)


def _digits(value: float, decimals: int | None = None) -> str:
    if decimals is not None:
        return f"{round(value, decimals) + 0.0:.{decimals}f}"
    mantissa, _, power = f"{value:.3g}".partition("e")
    return rf"{mantissa}\times10^{{{int(power)}}}" if power else mantissa


def limited(numbers: Sequence[float], below: float = math.nan) -> Latex:
    r"""A number with its limits, 1.83 [1.21, 2.45]; all have the decimals of two digits of the limits' distance.

    Args:
        numbers: the number, its lower and its upper limit; NaN for limits that are not known.
        below: a value that is not larger is not resolved: "<" and its upper limit are written, or a dash without one.
    """
    value, low, high = numbers
    if not math.isfinite(value):
        return Latex(_NONE)
    if below > 0 and value <= below:
        return Latex(f"$<{_digits(high, _decimals(high))}$" if math.isfinite(high) else _NONE)
    if not math.isfinite(low + high):
        return number(value, _decimals(abs(value)))
    decimals = _decimals(high - low)
    plain = decimals <= _MOST_DECIMALS and max(map(abs, numbers)) < _LARGE
    parts = [_digits(v, decimals if plain else None) for v in numbers]
    return Latex(rf"${parts[0]}\;[{parts[1]},\,{parts[2]}]$")


def uncertain(value: float, sem: float) -> Latex:
    r"""A number and its standard error, 1.83 \pm 0.04, in powers of ten where they are small."""
    if not math.isfinite(value):
        return Latex(_NONE)
    if not sem > 0:
        return number(value)
    power = math.floor(math.log10(max(abs(value), sem)))
    scale, tail = (1.0, "") if -3 < power < 4 else (10.0**power, rf"\times10^{{{power}}}")
    decimals = max(-math.floor(math.log10(sem / scale)), 0)
    text = rf"{_digits(value / scale, decimals)}\pm{_digits(sem / scale, decimals)}"
    return Latex(rf"$({text}){tail}$" if tail else f"${text}$")


def _decimals(size: float) -> int:
    """Decimals that show a number with two digits."""
    return max(1 - math.floor(math.log10(size)), 0) if size > 0 and math.isfinite(size) else 2


def tables(found: Sequence[_Table], caption: str | None, label: str | None) -> str:
    """Tabulars of `found`, whose cells are text; in a floating table if there is a caption.

    Raises:
        ValueError: if there is a label without a caption.
    """
    if label is not None and caption is None:
        raise ValueError(f"label: got {label!r} without a caption; a label refers to the number of a caption.")
    blocks = []
    for table in found:
        lines = [rf"\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}", r"\toprule", _row(table.head), r"\midrule"]
        lines += [*map(_row, table.rows), r"\bottomrule", r"\end{tabular}"]
        blocks.append("\n".join(lines))
    body = "\n\n\\medskip\n\n".join(blocks)
    if caption is not None:
        said = rf"\caption{{{caption}}}" + (rf"\label{{{label}}}" if label is not None else "")
        body = "\n".join([r"\begin{table}", r"\centering", said, body, r"\end{table}"])
    return body + "\n"


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cell if isinstance(cell, Latex) else escaped(cell) for cell in cells) + r" \\"
