"""Checks of arguments: every error message names the argument, the value that was given, and a remedy."""

import contextlib
import difflib
import importlib
import math
import numbers
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

__all__ = [
    "any_traced",
    "at_least",
    "choice",
    "evaluated",
    "finite_array",
    "float_dtype",
    "fraction",
    "nonnegative",
    "positive",
    "reading_by_pytorch",
    "whole",
]


def is_traced(value: Any) -> bool:
    """Whether `value` is abstract (inside a JAX transformation), so that it cannot be inspected."""
    jax = sys.modules.get("jax")  # JAX values exist only if JAX is imported; plain numbers are checked without it
    return jax is not None and isinstance(value, jax.core.Tracer)


def any_traced(*trees: Any) -> bool:
    """Whether a number or array within pytrees is abstract."""
    jax = sys.modules.get("jax")
    return jax is not None and any(is_traced(leaf) for leaf in jax.tree.leaves(trees))


def evaluated(*trees: Any) -> Any:
    """A context in which JAX computes at once, also within jit, if nothing in the pytrees is abstract."""
    jax = sys.modules.get("jax")
    return contextlib.nullcontext() if jax is None or any_traced(*trees) else jax.ensure_compile_time_eval()


def _is_array(value: Any) -> bool:
    jax = sys.modules.get("jax")
    return isinstance(value, np.ndarray) or (jax is not None and isinstance(value, jax.Array))


def _refuse_key(name: str, value: Any, remedy: str) -> None:
    """Refuse a random key, whose data JAX does not convert."""
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(value, jax.Array) and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
        raise TypeError(f"{name}: got a random key ({value.dtype}); {remedy}.")


def _is_real(dtype: Any) -> bool:
    """Whether the dtype holds real numbers; JAX's own floating types, such as bfloat16, count."""
    jax = sys.modules.get("jax")
    below = np.issubdtype if jax is None else jax.numpy.issubdtype
    return bool(below(dtype, np.integer) or below(dtype, np.floating))


def number(name: str, value: Any) -> Any:
    """Return `value` as a Python float; tracers are returned unchanged.

    Raises:
        TypeError: if it is not a real number.
        ValueError: if it is NaN or infinite.
    """
    if is_traced(value):
        return value
    _refuse_key(name, value, "give a real number")
    known = (isinstance(value, numbers.Real | np.generic) or _is_array(value)) and not isinstance(value, bool)
    if not known or np.ndim(value) or not _is_real(np.asarray(value).dtype):
        raise TypeError(f"{name}: got {value!r} ({type(value).__name__}); give a real number.")
    result = float(value)
    if not math.isfinite(result):
        raise ValueError(f"{name}: got {result}; give a finite number.")
    with np.errstate(over="ignore"):
        rounded = np.float32(result)
    if not np.isfinite(rounded) or (result != 0 and rounded == 0):
        raise ValueError(
            f"{name}: got {result}, which float32 cannot represent; give a number with a magnitude between 1e-38 and "
            "3e38."
        )
    return result


def positive(name: str, value: Any) -> Any:
    """Return `value` as a float > 0."""
    value = number(name, value)
    if not is_traced(value) and value <= 0:
        raise ValueError(f"{name}: got {value}; it must be greater than 0.")
    return value


def nonnegative(name: str, value: Any) -> Any:
    """Return `value` as a float ≥ 0."""
    value = number(name, value)
    if not is_traced(value) and value < 0:
        raise ValueError(f"{name}: got {value}; it must be 0 or greater.")
    return value


def confidence(value: Any) -> float:
    """Return the confidence of one-sided limits as a float in (0.5, 1)."""
    value = number("confidence", value)
    if not 0.5 < value < 1:
        raise ValueError(f"confidence: got {value}; it must lie in (0.5, 1), for example 0.99.")
    return float(value)


def fraction(name: str, value: Any) -> Any:
    """Return `value` as a float in [0, 1)."""
    value = number(name, value)
    if not is_traced(value) and not 0 <= value < 1:
        raise ValueError(f"{name}: got {value}; it must lie in [0, 1), for example 0.9.")
    return value


def whole(name: str, value: Any) -> int:
    """Return `value` as an int; floats are accepted only if they are whole numbers, such as 1e4."""
    _refuse_key(name, value, "give a whole number, such as 0")
    if _is_array(value) and value.ndim == 0:
        value = value.item()
    ok = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    ok = ok or (isinstance(value, float | np.floating) and float(value).is_integer())
    if not ok:
        raise TypeError(f"{name}: got {value!r}; give a whole number.")
    return int(value)


def at_least(name: str, value: Any, minimum: int) -> int:
    """Return `value` as an int ≥ `minimum`."""
    result = whole(name, value)
    if result < minimum:
        raise ValueError(f"{name}: got {result}; it must be {minimum} or more.")
    return result


def choice(name: str, value: Any, known: Iterable[str]) -> str:
    """Return `value` if it is one of `known`; otherwise list them and suggest the nearest."""
    options = list(known)
    if value in options:
        return str(value)
    near = difflib.get_close_matches(str(value).lower(), [o.lower() for o in options], n=1, cutoff=0.5)
    hint = ""
    if near:
        hint = f" Did you mean {next(o for o in options if o.lower() == near[0])!r}?"
    listed = ", ".join(repr(o) for o in options)
    raise ValueError(f"{name}: got {value!r}; choose one of {listed}.{hint}")


def reading_by_pytorch(name: str) -> None:
    """Refuse a checkpoint, which only PyTorch can read, if PyTorch is not installed."""
    try:
        importlib.import_module("torch")
    except ImportError as error:
        raise ImportError(
            f"{name}: reading a checkpoint needs PyTorch; install it with pip install 'sdelens[torch]'."
        ) from error


def float_dtype(name: str, value: Any, known: Iterable[str]) -> str:
    """Return the name of a floating dtype, given as a name or a type, if it is in `known` and enabled in JAX."""
    found = choice(name, getattr(value, "__name__", value), known)  # jnp.bfloat16 is a class
    jax = sys.modules.get("jax")
    if found == "float64" and jax is not None and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            f"{name}: got float64, which is disabled in JAX; call jax.config.update('jax_enable_x64', True) first."
        )
    return found


def finite_array(name: str, value: Any, dims: tuple[int, ...]) -> Any:
    """Return `value` as a floating array with a number of axes in `dims` and finite entries.

    Of an array inside a JAX transformation only the number of axes is checked.
    """
    if is_traced(value) or (isinstance(value, list | tuple) and any_traced(value)):
        value = sys.modules["jax"].numpy.asarray(value, float)
        if value.ndim not in dims:
            allowed = " or ".join(str(d) for d in dims)
            raise ValueError(f"{name}: got an array of shape {value.shape}; it must have {allowed} axes.")
        return value
    _refuse_key(name, value, "give an array of real numbers")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise TypeError(f"{name}: got rows of different lengths; give an array with rows of equal length.") from error
    if not _is_real(array.dtype):
        raise TypeError(f"{name}: got {value!r}; give real numbers.")
    if array.dtype != np.float32:
        array = array.astype(np.float64)
    if array.ndim not in dims:
        allowed = " or ".join(str(d) for d in dims)
        raise ValueError(f"{name}: got an array of shape {array.shape}; it must have {allowed} axes.")
    if array.size == 0:
        raise ValueError(f"{name}: got an empty array; give at least one number.")
    if not np.isfinite(array).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"{name}: entry {where} is {array[where]}; every entry must be finite.")
    if np.abs(array).max() > np.finfo(np.float32).max:
        raise ValueError(
            f"{name}: has an entry of size {np.abs(array).max():.3g}, which float32 cannot represent; rescale the "
            "array."
        )
    return array
