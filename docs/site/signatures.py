"""Signatures of the library's Equinox modules, whose constructors are made at run time, unseen by static analysis."""

import importlib
import inspect
from typing import Any

import equinox as eqx
import griffe


class Signatures(griffe.Extension):
    """Give every Equinox module of the package the signature it has when imported."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Walk the package once it is read."""
        self._visit(pkg)

    def _visit(self, module: griffe.Module) -> None:
        for member in list(module.members.values()):
            if member.is_alias:
                continue
            if member.is_module:
                self._visit(member)
            elif member.is_class and "__init__" not in member.members:
                found = getattr(importlib.import_module(module.path), member.name, None)
                if isinstance(found, type) and issubclass(found, eqx.Module) and not inspect.isabstract(found):
                    member.set_member("__init__", _constructor(found))


def _constructor(found: type) -> griffe.Function:
    parameters = [griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)]
    for name, parameter in inspect.signature(found).parameters.items():
        default = None if parameter.default is parameter.empty else _shown(parameter.default)
        kind = griffe.ParameterKind[parameter.kind.name.lower()]
        parameters.append(griffe.Parameter(name, kind=kind, default=default))
    return griffe.Function("__init__", parameters=griffe.Parameters(*parameters))


def _shown(default: Any) -> str:
    plain = default is None or isinstance(default, bool | int | float | str | tuple)
    return repr(default) if plain else "..."
