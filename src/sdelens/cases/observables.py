"""Quantities recorded for every path besides the loss: accuracy, norms, the noise's trace, a user's functions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sdelens.core import check
from sdelens.core.names import OBSERVABLES
from sdelens.core.tree import Layout, sum_coordinates
from sdelens.noise import NoiseLaw
from sdelens.problems import AbstractProblem

__all__ = ["Observables", "observables_of"]


class Observables(eqx.Module):
    """Named functions of the parameters of every path.

    Attributes:
        problem: the problem whose metrics and layout of parameters they use.
        noise: the noise, bound to the problem.
        names: their names, in order.
        functions: the user's functions from a pytree of parameters to a number, by name.
        layout: layout of that pytree.
    """

    problem: AbstractProblem
    noise: NoiseLaw
    names: tuple[str, ...] = eqx.field(static=True)
    functions: tuple[tuple[str, Callable[[Any], Array]], ...] = eqx.field(static=True)
    layout: Layout = eqx.field(static=True)

    def __call__(self, x: Array, grad: Array) -> Array:
        """Values of shape (W, P) at x and ∇f of shape (d, P)."""
        own = dict(self.functions)
        rows = [self._own(own[n], x) if n in own else self._known(n, x, grad) for n in self.names]
        return jnp.stack(rows) if rows else jnp.zeros((0, x.shape[-1]), x.dtype)

    def _known(self, name: str, x: Array, grad: Array) -> Array:
        if name == "norm":
            return jnp.sqrt(sum_coordinates(x**2))
        if name == "grad_norm":
            return jnp.sqrt(sum_coordinates(grad**2))
        if name == "noise_trace":
            return sum_coordinates(jnp.broadcast_to(self.noise.variance(x), x.shape))
        return self.problem.metric(name, x)

    def _own(self, function: Callable[[Any], Array], x: Array) -> Array:
        return jax.vmap(lambda own: jnp.asarray(function(self.layout.unravel(own)), x.dtype), in_axes=-1)(x)


def observables_of(
    given: Sequence[str] | Mapping[str, Callable[[Any], Any] | None] | None,
    problem: AbstractProblem,
    noise: NoiseLaw,
) -> Observables:
    """The observables that a user's ``observables=`` specifies; see `sdelens.compare`.

    Raises:
        ValueError, TypeError: if a name is not known, or a function returns no number; the message names it.
    """
    if isinstance(given, str):
        raise TypeError(f"observables: got the text {given!r}; give a list, for example [{given!r}].")
    if given is not None and not isinstance(given, Mapping | Sequence):
        raise TypeError(
            f"observables: got {type(given).__name__}; give a list of names, or a mapping from names to functions."
        )
    for name in given or ():
        if not isinstance(name, str):
            raise TypeError(
                f"observables: got {name!r}, which is not a name; give names, or a mapping from names to functions "
                "such as {'mine': function}."
            )
    named: Mapping[str, Any] = given if isinstance(given, Mapping) else dict.fromkeys(given or ())
    known = [*OBSERVABLES, *problem.metrics]
    functions = {}
    for name, function in named.items():
        if function is None:
            check.choice("observables", name, known)
        elif name in known:
            raise ValueError(
                f"observables[{name!r}]: the name belongs to an observable of the library; give the function another "
                "name, or give None to record that observable."
            )
        elif not callable(function):
            raise TypeError(f"observables[{name!r}]: got {type(function).__name__}; give a function of the parameters.")
        else:
            functions[name] = _checked(name, function, problem)
    if "noise_trace" in named and not noise.has_variance(problem.start):
        raise ValueError("observables: got 'noise_trace', which is infinite under this noise; leave it out.")
    return Observables(problem, noise, tuple(named), tuple(functions.items()), problem.layout)


def _checked(name: str, function: Callable[[Any], Any], problem: AbstractProblem) -> Callable[[Any], Any]:
    layout = problem.layout
    try:
        found = jax.eval_shape(lambda x: jnp.asarray(function(layout.unravel(x))), problem.start)
    except jax.errors.JAXTypeError as error:
        raise TypeError(
            f"observables[{name!r}]: cannot be compiled as a function of the parameters; use jax.numpy in it ({error})."
        ) from error
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise TypeError(
            f"observables[{name!r}]: fails at the start ({type(error).__name__}: {error}); give a function of the "
            "parameters, a pytree like the problem's start, that returns a number."
        ) from error
    real = any(jnp.issubdtype(found.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))
    if found.shape != () or not real:
        raise ValueError(f"observables[{name!r}]: returned {found.dtype} of shape {found.shape}; return one number.")
    if not np.isfinite(value := float(function(layout.unravel(problem.start)))):
        raise ValueError(f"observables[{name!r}]: is {value} at the start; it must be finite.")
    return function
