"""Output on terminals and files that cannot represent every character: what is printed never stops a command."""

import codecs
import sys
import unicodedata

__all__ = ["protect_streams"]

_HANDLER = "sdelens"
_PLAIN = {
    **dict.fromkeys("−–—‐‑", "-"),
    **dict.fromkeys("│┃╎", "|"),
    **dict.fromkeys("─━═╌", "-"),
    **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╯╰╞╡╪", "+"),
    **dict.fromkeys("‘’", "'"),
    **dict.fromkeys("“”", '"'),
    "±": "+/-", "≤": "<=", "≥": ">=", "≈": "~", "≠": "!=", "≪": "<<", "≫": ">>", "×": "x", "·": "*", "÷": "/",
    "√": "sqrt ", "∞": "inf", "∂": "d", "∇": "grad ", "∫": "integral ", "Σ": "Sigma", "‖": "||", "∝": "~",
    "→": "->", "←": "<-", "…": "...", "•": "*", "✓": "yes", "✗": "no", "⟨": "<", "⟩": ">", "⌊": "floor(", "⌋": ")",
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "eps", "η": "eta", "θ": "theta", "κ": "kappa",
    "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma", "ς": "sigma", "τ": "tau",
    "φ": "phi", "Φ": "Phi", "χ": "chi", "ω": "omega", "Δ": "Delta", "Ξ": "Xi", "ϑ": "theta",
}  # fmt: skip
"""Plain forms of characters that the library prints and that have no decomposition into ASCII."""


def protect_streams() -> None:
    """Write a plain form of every character that the encoding of standard output or standard error lacks.

    UTF-8 is not changed. With others, such as latin-1, cp1252 and cp437, "η ≤ ½" becomes "eta <= 1/2" instead of an
    error after hours of computation.
    """
    codecs.register_error(_HANDLER, _replaced)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and codecs.lookup(stream.encoding or "ascii").name != "utf-8":
            reconfigure(errors=_HANDLER)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_plain(character) for character in error.object[error.start : error.end]), error.end


def _plain(character: str) -> str:
    """A form in ASCII, "?" if there is none."""
    if character in _PLAIN:
        return _PLAIN[character]
    parts = unicodedata.normalize("NFKD", character)
    if parts == character:
        return "" if unicodedata.combining(character) else "?"
    return "".join(
        part if part.isascii() else _PLAIN.get(part, "/" if part == "\N{FRACTION SLASH}" else "") for part in parts
    )
