"""Parse text such as ``adamw(lr=0.01, b2=0.99)``: a name with literals, words and constructors as arguments."""

import ast
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from sdelens.core import check

__all__ = ["Call", "calls", "check_argument", "terms", "value_of", "values_of"]

_NAME = re.compile(r"[A-Za-z][\w.:-]*")
_WORDS = {"true": True, "false": False, "none": None}
_OPENING, _CLOSING = "([{", ")]}"


class Call(NamedTuple):
    """A name and its arguments.

    Attributes:
        name: name of the constructor.
        positional: arguments without a name.
        named: arguments by name; hyphens in names are replaced by underscores.
    """

    name: str
    positional: tuple[Any, ...]
    named: dict[str, Any]


def calls(argument: str, text: str) -> list[Call]:
    """Parse comma-separated names with or without arguments.

    Args:
        argument: name of the option for error messages.
        text: for example ``sde, sde(substeps=8)``.

    Raises:
        ValueError: if a part cannot be read; the message names it and has an example.
    """
    return [_call(argument, part) for part in _split(argument, text)]


def terms(argument: str, text: str) -> list[str]:
    """Split a text with ``+`` between constructors into its summands.

    Raises:
        ValueError: if brackets do not match, or a summand is empty.
    """
    return _split(argument, text, "+")


def values_of(argument: str, text: str) -> list[Any]:
    """Comma-separated values, each as of `value_of`.

    Raises:
        ValueError: if brackets do not match, or a value is empty.
    """
    return [value_of(argument, part) for part in _split(argument, text)]


def value_of(argument: str, text: str) -> Any:
    """Parse a literal or a constructor (as a `Call`); any other text, such as a sum of constructors, is kept as it is.

    Raises:
        ValueError: if a constructor in the text cannot be read.
    """
    text = text.strip()
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if text.lower() in ("yes", "no"):
        raise ValueError(f"{argument}: got {text!r}; write true or false.")
    if _NAME.match(text) and text.endswith(")") and len(terms(argument, text)) == 1:
        return _call(argument, text)
    if text.startswith("[") and text.endswith("]"):
        return [value_of(argument, part) for part in _split(argument, text[1:-1])]
    return text


def _call(argument: str, text: str) -> Call:
    name, opened, rest = text.partition("(")
    name = name.strip()
    if not _NAME.fullmatch(name) or (opened and not rest.endswith(")")):
        raise ValueError(f"{argument}: cannot read {text!r}; write name or name(key=value).")
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for part in _split(argument, rest[:-1]) if opened else []:
        key, equals, value = part.partition("=")
        if not (equals and key.strip().replace("-", "_").isidentifier()):
            if named:
                raise ValueError(f"{argument}: {name} has {part!r} after an argument with a name; write key=value.")
            positional.append(value_of(argument, part))
            continue
        key = key.strip().replace("-", "_")
        if key in named:
            raise ValueError(f"{argument}: {name} has {key} twice; give it once.")
        named[key] = value_of(argument, value)
    return Call(name, tuple(positional), named)


def check_argument(label: str, name: str, known: Iterable[str]) -> None:
    """Refuse an argument that does not exist; the pair ``betas`` of PyTorch has two names here.

    Raises:
        ValueError: if it does not; the message begins with the label and says what was probably meant.
    """
    names = list(known)
    decays = [f"{decay}={value}" for decay, value in (("b1", 0.9), ("b2", 0.99)) if decay in names]
    if name in ("beta", "betas") and decays:
        raise ValueError(f"{label}: got {name!r}; write decays one by one, as in {', '.join(decays)}.")
    check.choice(label, name, names)


def _split(argument: str, text: str, separator: str = ",") -> list[str]:
    """Split at separators outside brackets and quotes; empty parts are refused."""
    parts, depth, quote, begin = [], 0, "", 0
    for i, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in _OPENING:
            depth += 1
        elif letter in _CLOSING:
            depth -= 1
        elif letter == separator and depth == 0:
            parts.append(text[begin:i].strip())
            begin = i + 1
        if depth < 0:
            break
    if depth or quote:
        what = "quotes" if quote else "brackets"
        raise ValueError(
            f"{argument}: the {what} in {text!r} do not match; add the missing one, and put the whole text in quotes."
        )
    parts.append(text[begin:].strip())
    if not all(parts) and len(parts) > 1:
        raise ValueError(f"{argument}: got {text!r}; write something on each side of every {separator!r}.")
    return [part for part in parts if part]
