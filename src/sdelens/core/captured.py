"""Equality of functions by what they do: their code and the values that they read from outside.

JAX identifies a function by its identity. A program that was traced from it would therefore be used again although a
variable that the function reads has changed, and it would be compiled again for a function that is defined anew with
the same code. `captured` is a key that changes with the variables and is the same for equal functions, and `alike`
replaces the functions of a pytree by those of an equal one that was compiled before, and gives the key with it.
"""

import dataclasses
import hashlib
import inspect
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Untraced", "alike", "captured"]

T = TypeVar("T")

_LIBRARIES: Final = (
    *("sdelens", "jax", "jaxlib", "numpy", "scipy", "optax", "equinox", "builtins", "abc", "typing"),
    *("chex", "einops", "flax", "haiku", "jaxtyping"),
)
_COLLECTIONS: Final = (tuple, list, dict, set, frozenset, deque, types.MappingProxyType)
_OF_CREATION: Final = ("__init__", "__post_init__", "__new__", "__init_subclass__", "__repr__", "__str__")
"""Methods that a run does not call."""
_PLAIN: Final = (bool, int, str, bytes, type(None), range)
_MOST: Final = 10_000
"""Entries of lists and mappings up to which their contents count; longer ones count by their identity."""
_LARGEST: Final = 2**24
"""Bytes of a JAX array up to which its contents count; larger ones, which cannot change, count by their identity."""
_KEPT: Final = 512
"""Structures of pytrees whose functions are kept to replace equal ones."""
_WRITTEN_IN_PYTHON: Final = 1 << 9
_TREE: Final = type(jax.tree.structure(0))

_DIGESTS: dict[int, tuple[Any, str]] = {}
"""Arrays that functions have read, by their identity, with the digest of their contents."""
_STRUCTURES: "OrderedDict[_Key, tuple[Any, _Key]]" = OrderedDict()
"""The first structure of a pytree with every key, and the key itself, in the order of their last use."""


class Untraced:
    """A value on which no compiled program depends, as a static field: JAX takes all of them as equal."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        """All are equal."""
        return isinstance(other, Untraced)

    def __hash__(self) -> int:
        """The same for all."""
        return 0


def captured(tree: Any) -> Hashable:
    """A key of the structure of a pytree, that is of its functions and options but not of its arrays.

    A function counts by its code, its default arguments and the values of its closure and of the globals that it names.
    Of these, numbers, texts, arrays, lists, tuples, mappings and data classes count by their contents, and functions by
    what they read in turn. A module or an object of another class counts by its identity and by those of its attributes
    that the function or its own methods name; a class by its identity and the attributes that the user gave it.
    Functions of libraries are searched for the functions that they hold, but not for their globals. A function that the
    user has compiled by `jax.jit` counts by its identity, since it keeps what it was traced with. Not noticed are
    modules that the function itself imports, names that are texts, as in ``getattr(a, "b")``, attributes of a metaclass
    or of a class derived from a collection, and contents of collections of more than 10 000 entries.

    Raises:
        ValueError: if a NumPy array has been changed in place since it was first seen.
    """
    return _key(jax.tree.structure(tree))


def alike(tree: T) -> tuple[T, Hashable]:
    """The pytree with the functions and options of the first one with the same key, and the key: `captured` of it.

    JAX then takes both pytrees as equal.
    """
    leaves, structure = jax.tree.flatten(tree)
    key = _key(structure)
    first, known = _STRUCTURES.get(key, (None, key))
    # A program might still be traced from the earlier functions, so the values that they read must not have changed.
    if first is None or (first != structure and _key(first) != key):
        first = structure
    _STRUCTURES[known] = first, known
    _STRUCTURES.move_to_end(known)
    while len(_STRUCTURES) > _KEPT:
        _STRUCTURES.popitem(last=False)
    found: T = jax.tree.unflatten(first, leaves)
    return found, known


class _Key:
    """What functions are and read, with its hash, which a tuple would compute again whenever a program is called."""

    def __init__(self, parts: tuple[Hashable, ...]) -> None:
        self._parts, self._hash = parts, hash(parts)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, _Key) and self._hash == other._hash and self._parts == other._parts

    def __hash__(self) -> int:
        return self._hash


class _Same:
    """An object that equals only itself."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


class _Seen(NamedTuple):
    """An object that occurred before in the same key, by its number, so that keys of cyclic structures are finite."""

    number: int


class _Named(NamedTuple):
    """A variable of a function, and the names by which the function may read its attributes."""

    value: Any
    names: tuple[str, ...]


class _Met(NamedTuple):
    """An object that a key contains, its number there, and the names of the attributes that were looked up."""

    number: int
    value: Any
    names: set[str]


def _key(structure: Any) -> _Key:
    found: list[Hashable] = []
    _add(structure, found, {})
    return _Key(tuple(found))


def _add(value: Any, found: list[Hashable], seen: dict[int, _Met]) -> None:
    """Add a value that a function or a structure holds, and what that reads in turn."""
    if isinstance(value, _PLAIN):
        found.append((type(value), value))
    elif isinstance(value, float | complex | np.generic):
        found.append((type(value), repr(value)))
    elif isinstance(value, types.CodeType):
        found.append(_code(value))
    elif isinstance(value, Untraced):
        found.append(Untraced)
    elif (contents := _contents(value)) is not None:
        found.append((type(value), value.shape, str(value.dtype), contents))
    elif isinstance(value, _Same | _Seen):
        found.append(value)
    elif isinstance(value, _Named):
        _add_named(value, found, seen)
    elif isinstance(value, _TREE):
        _add_structure(value, found, seen)
    elif id(value) in seen:
        found.append(_Seen(seen[id(value)].number))
    else:
        seen[id(value)] = _Met(len(seen), value, set())
        own: Any = type(value) if _by_contents(value) else _Same(value)
        found.append(own)
        for part in _parts(value):
            _add(part, found, seen)


def _add_named(named: _Named, found: list[Hashable], seen: dict[int, _Met]) -> None:
    """Add a variable, and those of its attributes that its function names and that no earlier one named."""
    _add(named.value, found, seen)
    if (met := seen.get(id(named.value))) is not None:
        names = tuple(name for name in named.names if name not in met.names)
        met.names.update(names)
        for part in _named_attributes(_Named(named.value, names), named.names):
            _add(part, found, seen)


def _add_structure(structure: Any, found: list[Hashable], seen: dict[int, _Met]) -> None:
    """Add a node of a pytree: its type, what it holds besides its children, and its children."""
    node, children = structure.node_data(), structure.children()
    found.append(len(children))
    for part in () if node is None else node:
        _add(part, found, seen)
    for child in children:
        _add_structure(child, found, seen)


def _by_contents(value: Any) -> bool:
    """Whether two objects are equal if their parts are."""
    if isinstance(value, types.FunctionType | types.MethodType | partial | types.SimpleNamespace):
        return True
    if isinstance(value, _COLLECTIONS):
        return len(value) <= _MOST
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _contents(value: Any) -> str | None:
    """A digest of an array's contents; None for other values, and for arrays that count by their identity."""
    if isinstance(value, np.ndarray):
        return None if value.dtype == object else _digest(value)
    if not isinstance(value, jax.Array) or isinstance(value, jax.core.Tracer) or value.is_deleted():
        return None
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return None
    if value.nbytes > _LARGEST or not value.is_fully_addressable:
        return None
    kept, before = _DIGESTS.get(id(value), (None, ""))
    return before if kept is not None and kept() is value else _digest(value)


def _digest(array: Any) -> str:
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
    if isinstance(value, _COLLECTIONS):
        yield from _entries(value) if len(value) <= _MOST else ()
    elif isinstance(value, np.ndarray):  # of objects
        yield value.tolist()
    elif isinstance(value, jax.custom_jvp | jax.custom_vjp):
        yield from (getattr(value, name, None) for name in ("fun", "jvp", "fwd", "bwd"))
    elif isinstance(value, partial):
        yield from (value.func, value.args, value.keywords)
    elif isinstance(value, types.MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, types.FunctionType):
        yield from _read(value)
    elif isinstance(value, type):
        yield from _attributes(value)
    elif isinstance(value, types.SimpleNamespace):
        yield vars(value)
    elif dataclasses.is_dataclass(value):
        yield type(value)
        for field in dataclasses.fields(value):
            yield getattr(value, field.name, None)
    elif _is_users(type(value)):
        yield type(value)
        yield from _named_attributes(_Named(value, _names_of_class(type(value))))


def _entries(collection: Any) -> Iterator[Any]:
    """The number of entries of a collection, and its entries; of mappings keys and values."""
    yield len(collection)
    if isinstance(collection, dict | types.MappingProxyType):
        for entry in list(collection.items()):  # it may grow on the way: some libraries keep what they looked up
            yield from entry
    else:
        yield from sorted(collection, key=repr) if isinstance(collection, set | frozenset) else collection


def _read(function: types.FunctionType) -> Iterator[Any]:
    """The values of a function's closure and default arguments and, where it is the user's, of the globals it names."""
    module = str(function.__globals__.get("__name__", ""))
    code = function.__code__
    yield from (module, code, function.__defaults__, function.__kwdefaults__)
    names = tuple(sorted(_names(code)))
    for name in names if not _of_library(module) else ():
        if name in vars(function):
            yield name
            yield vars(function)[name]
    for cell in function.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:  # not assigned yet
            content = None
        yield content if _of_library(module) else _Named(content, names)
    if not _of_library(module):
        for name in names:
            if name in function.__globals__:
                yield name
                yield _Named(function.__globals__[name], names)


def _code(code: types.CodeType) -> Hashable:
    """What a function's code does, without the names and lines of where it was written."""
    constants = (
        _code(part) if isinstance(part, types.CodeType) else (type(part), repr(part)) for part in code.co_consts
    )
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    return code.co_code, code.co_exceptiontable, names, counts, tuple(constants)


def _named_attributes(named: _Named, further: tuple[str, ...] | None = None) -> Iterator[Any]:
    """Names and values of the attributes of a user's object or module that a function names.

    Of these values in turn the attributes with the names `further` are looked up, by default the same names.
    """
    value, module = named.value, isinstance(named.value, types.ModuleType)
    users = not _of_library(value.__name__) if module else _is_users(type(value))
    if not users or _by_contents(value):
        return
    held, kind = getattr(value, "__dict__", {}), type(value)
    for name in named.names:
        slot = isinstance(inspect.getattr_static(kind, name, None), types.MemberDescriptorType)
        if name in held or (slot and hasattr(value, name)):
            yield name
            yield _Named(held[name] if name in held else getattr(value, name), further or named.names)


def _is_users(kind: type) -> bool:
    """Whether a class is written in Python, and not by the libraries used here."""
    return not _of_library(str(kind.__module__)) and kind.__flags__ & _WRITTEN_IN_PYTHON != 0


def _attributes(kind: type) -> Iterator[Any]:
    """The methods and other attributes of a class and of those from which it inherits, without those of libraries."""
    for own in kind.__mro__:
        if not _of_library(own.__module__):
            for name, part in vars(own).items():
                operator = isinstance(part, types.FunctionType) and name not in _OF_CREATION
                if not name.startswith(("__", "_abc_")) or operator:
                    yield _unwrapped(part)


def _names_of_class(kind: type) -> tuple[str, ...]:
    """Names that the methods of a class use."""
    methods = [part for part in map(_unwrapped, _attributes(kind)) if isinstance(part, types.FunctionType)]
    return tuple(sorted(set().union(*(_names(method.__code__) for method in methods))))


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
