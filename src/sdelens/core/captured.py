"""The values that functions read from outside: closure variables, globals and class attributes.

JAX identifies a function by its identity, so a program that was traced from it would be used again although a variable
that the function reads has changed. `captured` is a key that changes with these variables.
"""

import dataclasses
import hashlib
import types
import weakref
from collections.abc import Hashable, Iterator
from functools import partial
from typing import Any, Final

import jax
import numpy as np

__all__ = ["captured"]

_LIBRARIES: Final = ("sdelens", "jax", "jaxlib", "numpy", "scipy", "optax", "equinox", "builtins", "abc", "typing")
_PLAIN: Final = (bool, int, str, bytes, type(None))
_MOST: Final = 10_000
"""Entries of lists and mappings up to which their contents count; longer ones count by their identity."""


_DIGESTS: dict[int, tuple[Any, str]] = {}
"""Arrays that functions have read, by their identity, with the digest of their contents."""


def captured(*trees: Any) -> Hashable:
    """A key of the values that the functions within pytrees, and the classes of their nodes, read from outside.

    Numbers, texts, NumPy arrays, lists, tuples and mappings of them count by their contents, and functions by what they
    read in turn; other objects count by their identity. Functions of libraries are searched for the functions that they
    hold, but not for their globals. A function that the user has compiled by `jax.jit` is not searched, since it keeps
    what it was traced with.

    Raises:
        ValueError: if a NumPy array has been changed in place since it was first seen.
    """
    found: list[Hashable] = []
    seen: set[int] = set()
    for tree in trees:
        _search(tree, found, seen)
    return tuple(found)


class _Same:
    """An object that equals only itself."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _search(node: Any, found: list[Hashable], seen: set[int]) -> None:
    """Add what the functions in a node of a specification read; arrays and numbers of the node itself are no keys."""
    if isinstance(node, types.FunctionType | types.MethodType | partial | type):
        _add(node, found, seen)
    elif dataclasses.is_dataclass(node) and id(node) not in seen:
        seen.add(id(node))
        _add(type(node), found, seen)
        for field in dataclasses.fields(node):
            _search(getattr(node, field.name, None), found, seen)
    elif isinstance(node, tuple | list):
        for part in node:
            _search(part, found, seen)
    elif isinstance(node, dict):
        for part in node.values():
            _search(part, found, seen)


def _add(value: Any, found: list[Hashable], seen: set[int]) -> None:
    """Add a value that a function reads, and what that reads in turn."""
    if isinstance(value, _PLAIN):
        found.append((type(value), value))
    elif isinstance(value, float | complex | np.generic):
        found.append((type(value), repr(value)))
    elif isinstance(value, np.ndarray) and value.dtype != object:
        found.append((value.shape, str(value.dtype), _digest(value)))
    elif isinstance(value, _Same):
        found.append(value)
    elif isinstance(value, types.ModuleType | jax.Array) or id(value) in seen:
        found.append(_Same(value))
    else:
        seen.add(id(value))
        contained = isinstance(value, list | tuple | dict | types.MethodType)
        found.append(type(value).__name__ if contained else _Same(value))
        for part in _parts(value):
            _add(part, found, seen)


def _digest(array: np.ndarray) -> str:
    """SHA-256 of the contents of an array that has not changed since it was first seen."""
    found = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    kept, before = _DIGESTS.get(id(array), (None, ""))
    if kept is not None and kept() is array and found != before:
        raise ValueError(
            f"functions: a NumPy array of shape {array.shape} that a function reads was changed in place after an "
            "earlier run, which compiled programs do not notice; assign a new array to its variable instead."
        )
    if kept is None or kept() is not array:
        _DIGESTS[id(array)] = weakref.ref(array, partial(_forget, id(array))), found
    return found


def _forget(key: int, reference: Any) -> None:
    """Drop the digest of an array that no longer exists."""
    if key in _DIGESTS and _DIGESTS[key][0] is reference:
        del _DIGESTS[key]


def _parts(value: Any) -> Iterator[Any]:
    """The values that a value reads or contains."""
    if isinstance(value, dict) and len(value) <= _MOST:
        for pair in value.items():
            yield from pair
    elif isinstance(value, tuple | list | dict) and len(value) > _MOST:
        yield _Same(value)
    elif isinstance(value, tuple | list):
        yield len(value)
        yield from value
    elif isinstance(value, partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, types.MethodType):
        yield from (value.__func__, _Same(value.__self__))
    elif isinstance(value, types.FunctionType):
        yield from _read(value)
    elif isinstance(value, type):
        yield from _attributes(value)


def _read(function: types.FunctionType) -> Iterator[Any]:
    """The values of a function's closure and default arguments and, where it is the user's, of the globals it names."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            yield None
    yield from (function.__code__, function.__defaults__, function.__kwdefaults__)
    if not _of_library(str(function.__globals__.get("__name__", ""))):
        for name in sorted(_names(function.__code__)):
            if name in function.__globals__:
                yield function.__globals__[name]


def _attributes(kind: type) -> Iterator[Any]:
    """The methods and other attributes of a class and of those from which it inherits, without those of libraries."""
    for own in kind.__mro__:
        if not _of_library(own.__module__):
            for name, part in vars(own).items():
                if not name.startswith(("__", "_abc_")) or name == "__call__":
                    yield _unwrapped(part)


def _names(code: types.CodeType) -> set[str]:
    """Names that a function and the functions within it use."""
    return set(code.co_names).union(*(_names(part) for part in code.co_consts if isinstance(part, types.CodeType)))


def _unwrapped(attribute: Any) -> Any:
    """The function behind an attribute of a class."""
    for name in ("__func__", "fget", "__wrapped__", "method"):
        inner = getattr(attribute, name, None)
        if isinstance(inner, types.FunctionType):
            return inner
    return attribute


def _of_library(module: str) -> bool:
    return module.partition(".")[0] in _LIBRARIES
