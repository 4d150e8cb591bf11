"""Fields of specifications: their names, and copies of a specification with some values replaced."""

import inspect
from collections.abc import Mapping
from typing import Any

import equinox as eqx

from sdelens.optimizers import FromOptax

__all__ = ["field_names", "replaced"]


def field_names(specification: Any) -> list[str]:
    """What `replaced` can replace: constructor arguments, and those of nested specifications as ``outer.inner``."""
    names: list[str] = []
    for name, value in (_arguments(specification) or {}).items():
        if not (callable(value) or isinstance(value, tuple)) or isinstance(value, eqx.Module):
            names.append(name)
        if isinstance(value, eqx.Module):
            names += [f"{name}.{inner}" for inner in field_names(value)]
        elif isinstance(value, tuple):
            names += [f"{name}.{i}.{inner}" for i, part in enumerate(value) for inner in field_names(part)]
    return names


def replaced(specification: Any, changes: Mapping[str, Any]) -> Any:
    """A copy of the specification with some values replaced, made by its constructor, which checks the values.

    Args:
        specification: an optimizer, a noise, a problem, or a specification nested in one of them.
        changes: new values by name; the names are those of `field_names`.

    Raises:
        ValueError, TypeError: raised by the constructor, naming the argument.
    """
    own: dict[str, Any] = {}
    within: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        head, _, rest = name.partition(".")
        if rest:
            within.setdefault(head, {})[rest] = value
        else:
            own[head] = value
    if isinstance(specification, tuple):
        parts = list(specification)
        for index, inner in within.items():
            parts[int(index)] = replaced(parts[int(index)], inner)
        return tuple(parts)
    if isinstance(specification, FromOptax):
        return specification.at_lr(own["lr"])
    arguments = _arguments(specification)
    assert arguments is not None
    own |= {head: replaced(arguments[head], inner) for head, inner in within.items()}
    return type(specification)(**{**arguments, **own})


def _arguments(specification: Any) -> dict[str, Any] | None:
    """The values of a constructor's arguments, or None if they cannot all be read from the specification."""
    if isinstance(specification, FromOptax):
        return {"lr": specification.lr}
    found = {}
    for name in inspect.signature(type(specification)).parameters:
        if name.startswith("_"):
            continue
        places = ((specification, name), (specification, f"_{name}"), (getattr(specification, "options", None), name))
        held = [getattr(holder, attribute) for holder, attribute in places if hasattr(holder, attribute)]
        if not held:
            return None
        found[name] = held[0]
    return found
