"""Functions of the user that are evaluated on every path: of its parameters, or of its parameters and its state."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sdelens.core.tree import Layout

__all__ = ["PathFunction", "path_function"]


class PathFunction(NamedTuple):
    """A named function of the user.

    Attributes:
        name: its name.
        where: how messages name it, such as ``observables['mine']``.
        function: from a pytree of parameters to a number, or from that and the state to a number.
        of_state: whether it has the state as its second argument.
    """

    name: str
    where: str
    function: Callable[..., Any]
    of_state: bool

    def values(self, x: Array, parts: Mapping[str, Array], layout: Layout) -> Array:
        """Values of shape (P,) at x of shape (d, P), with the parts of the state as `Stepper.parts` gives them."""
        needed = parts if self.of_state else {}
        return jax.vmap(lambda x, parts: self._value(x, parts, layout), in_axes=-1)(x, dict(needed))

    def _value(self, x: Array, parts: Mapping[str, Array], layout: Layout) -> Array:
        params = layout.unravel(x)
        if not self.of_state:
            return jnp.asarray(self.function(params))
        like = {name: a.ndim == 1 and a.shape[0] == layout.size for name, a in parts.items()}
        state = {name: layout.unravel(a) if like[name] else a for name, a in parts.items()}
        return jnp.asarray(self.function(params, _State(state)))

    def check(self, model: str, x: Any, parts: Mapping[str, Any], layout: Layout) -> Any:
        """Shape of the value for one path of a model, whose state has these parts (shapes of many paths).

        Raises:
            TypeError: if it fails, or cannot be compiled.
            ValueError: if it reads a part that the model does not have, or does not return one number.
        """
        try:
            found = jax.eval_shape(lambda x, parts: self.values(x, parts, layout), x, dict(parts))
        except _MissingPartError as error:
            raise ValueError(
                f"{self.where}: reads the part {error.args[0]!r} of the state, which the model {model!r} does not have "
                f"(it has {', '.join(sorted(parts))}); test `{error.args[0]!r} in state`, or run that model separately."
            ) from error
        except jax.errors.JAXTypeError as error:
            raise TypeError(
                f"{self.where}: cannot be compiled as a function of the parameters; use jax.numpy in it ({error})."
            ) from error
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            given = "parameters and the state" if self.of_state else "parameters, a pytree like the problem's start"
            raise TypeError(
                f"{self.where}: fails at the start ({type(error).__name__}: {error}); give a function of the {given}, "
                "that returns a number."
            ) from error
        real = any(jnp.issubdtype(found.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))
        if found.shape[1:] != () or not real:
            raise ValueError(f"{self.where}: returned {found.dtype} of shape {found.shape[1:]}; return one number.")
        return found


class _MissingPartError(Exception):
    """A function reads a part that the state does not have."""


class _State(dict[str, Any]):
    """The parts of a state by name."""

    def __missing__(self, name: str) -> Any:
        raise _MissingPartError(name)


def path_function(option: str, name: str, function: Any, start: Array, layout: Layout) -> PathFunction:
    """A function of the user, checked as far as possible without a model.

    A function with one positional argument without default gets the parameters; with two, the parameters and the state.

    Raises:
        ValueError, TypeError: if it cannot be called so, fails or returns no number; the message names it.
    """
    where = f"{option}[{name!r}]"
    if not callable(function):
        raise TypeError(f"{where}: got {type(function).__name__}; give a function of the parameters.")
    count = _required(function)
    if count not in (1, 2):
        raise TypeError(
            f"{where}: has {count} positional arguments without default; give a function of the parameters, or of the "
            "parameters and the state."
        )
    made = PathFunction(name, where, function, count == 2)
    if not made.of_state:
        made.check("", jax.ShapeDtypeStruct((*start.shape, 1), start.dtype), {}, layout)
        value = float(function(layout.unravel(start)))
        if not np.isfinite(value):
            raise ValueError(f"{where}: is {value} at the start; it must be finite.")
    return made


def _required(function: Callable[..., Any]) -> int:
    """Number of positional arguments without default; 1 where Python does not tell, or they are collected by *."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 1
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = sum(p.default is p.empty for p in positional)
    if required == 0 and (positional or any(p.kind is p.VAR_POSITIONAL for p in parameters)):
        return 1
    return required
