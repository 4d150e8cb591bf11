"""How a function becomes a command of the shell: groups of options, their help, and checks of the command line."""

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

from typer.core import TyperCommand, TyperGroup

from sdelens.core.text import terminal_width
from sdelens.shell.session import refusals
from sdelens.shell.streams import protect_streams

__all__ = ["Command", "Group", "takes_options"]

_TYPES = {float: "<number>", int: "<integer>", str: "<text>", Path: "<path>"}
"""Types of values as the help shows them; options without a value show none."""
_NARROW = 70
"""Characters of a line below which types have no column of their own, which long names of options need."""


def takes_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the fields of a dataclass as options, for each of its parameters that is a dataclass.

    The fields are annotated as options of typer; the command gets an instance with the values that were given.
    """
    merged: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in inspect.signature(command).parameters.values():
        if dataclasses.is_dataclass(parameter.annotation):
            groups[parameter.name] = parameter.annotation
            merged += inspect.signature(groups[parameter.name]).parameters.values()
        else:
            merged.append(parameter)

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        made = {
            name: kind(**{field.name: given.pop(field.name) for field in dataclasses.fields(kind)})
            for name, kind in groups.items()
        }
        command(**made, **given)

    merged = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in merged]
    wrapped.__signature__ = inspect.Signature(merged)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in merged}
    return wrapped


class _PlainTypes:
    """A command whose help shows types in plain English."""

    callback: Any
    params: list[Any]

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, including --help."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        narrow = terminal_width() < _NARROW
        for param in params:
            shown = _TYPES.get(self.kinds.get(param.name, bool))
            beside = None if narrow else shown
            param.display_type_rich = lambda ctx, shown=beside: shown
            if shown:
                text = self.texts[param.name]
                param.help = f"{shown} {text}" if narrow else text
        return params

    @functools.cached_property
    def texts(self) -> dict[str, str]:
        """The help of each parameter, as it is written."""
        return {param.name: param.help or "" for param in self.params}

    @functools.cached_property
    def kinds(self) -> dict[str, Any]:
        """The type of each parameter's value; of a list, that of its entries."""
        return {name: _one_of(hint) for name, hint in get_type_hints(self.callback).items()}


def _one_of(hint: Any) -> Any:
    """The type itself for ``kind | None`` and ``list[kind]``."""
    inner = [part for part in get_args(hint) if part is not type(None)]
    return _one_of(inner[0]) if inner else hint


class Group(_PlainTypes, TyperGroup):
    """The program with its commands."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the program; its output never fails on a character that the terminal's encoding lacks."""
        protect_streams()
        return super().main(*args, **options)


class Command(_PlainTypes, TyperCommand):
    """A command that refuses an option that is given twice, unless it may be repeated, and a text for a number."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Check and parse the words of the command line."""
        with refusals():
            self._check(ctx, list(args))
        return super().parse_args(ctx, args)

    def _check(self, ctx: Any, words: list[str]) -> None:
        """Raise a ValueError that names the option, what was given and the remedy."""
        parser = self.make_parser(ctx)
        once: list[Any] = [p for p in self.params if p.param_type_name == "option" and not p.multiple]
        for param in once:
            every = copy.copy(param)
            every.multiple = True
            every.add_to_parser(parser, ctx)  # replaces the option by one that keeps all its values
        values = parser.parse_args(words)[0]
        if "help" in values:
            return
        for param in once:
            name, given, kind = param.opts[0].lstrip("-"), values.get(param.name) or (), self.kinds[param.name]
            if len(given) > 1:
                what = f"was given {len(given)} times" if kind is bool else f"got {' and '.join(given)}"
                raise ValueError(f"{name}: {what}; give it once.")
            if given and kind in (int, float):
                try:
                    kind(given[0])
                except ValueError as error:
                    remedy = "a number" if kind is float else "an integer, for example 100"
                    raise ValueError(f"{name}: got {given[0]!r}; give {remedy}.") from error
