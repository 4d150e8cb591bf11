"""Test functions u, whose expectations are compared, and their parts if they are sums or products over coordinates."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from sdelens.core.tree import sum_coordinates
from sdelens.problems import AbstractProblem

__all__ = ["TestFunction", "test_functions"]


@dataclass(frozen=True)
class TestFunction:
    """A test function u of positions, with its parts if it is a sum or product over coordinates."""

    name: str
    value: Callable[[Array], Array]
    parts: Callable[[Array], Array] | None = None
    product: bool = False


def test_functions(
    problem: AbstractProblem, given: Mapping[str, Callable[[Any], Any]] | None, start: Array
) -> list[TestFunction]:
    """The user's test functions, or the default ones, which include a bump centred at `start`.

    Raises:
        ValueError, TypeError: naming the function that cannot be used.
    """
    if given is not None:
        if not isinstance(given, Mapping) or not given:
            raise TypeError(f"functions: got {given!r}; give a mapping from names to functions of the parameters.")
        return [_user_function(problem, str(name), function) for name, function in given.items()]
    dim = problem.dim
    functions = [TestFunction("loss", problem.loss, partial(_loss_parts, problem))]
    if dim <= 4:
        for i in range(dim):
            functions.append(TestFunction(f"x{i + 1}", partial(_coordinate, i, 1), partial(_coordinate_part, i, 1)))
            functions.append(TestFunction(f"x{i + 1}²", partial(_coordinate, i, 2), partial(_coordinate_part, i, 2)))
    else:
        for power, name in ((1, "mean x"), (2, "mean x²")):
            functions.append(TestFunction(name, partial(_mean_power, power), partial(_mean_power_part, power)))
    mean_square = float(jnp.mean(start**2))
    width = 2 * dim * (mean_square if mean_square > 0 else 1.0)

    def bump_part(z: Array) -> Array:
        return jnp.exp(-((z - start[:, None].astype(z.dtype)) ** 2) / width)

    def bump(x: Array) -> Array:
        return jnp.exp(-sum_coordinates((x - start[:, None].astype(x.dtype)) ** 2) / width)

    return [*functions, TestFunction("bump", bump, bump_part, product=True)]


def _coordinate(i: int, power: int, x: Array) -> Array:
    return x[i] ** power


def _coordinate_part(i: int, power: int, z: Array) -> Array:
    return jnp.zeros_like(z).at[i].set(z[i] ** power)


def _mean_power(power: int, x: Array) -> Array:
    return sum_coordinates(x**power) / x.shape[0]


def _mean_power_part(power: int, z: Array) -> Array:
    return z**power / z.shape[0]


def _loss_parts(problem: AbstractProblem, z: Array) -> Array:
    """Parts of a separable loss: f with one coordinate moved, minus (d − 1)/d of f at the start; their sum is f."""
    x0 = problem.start.astype(z.dtype)
    base = problem.loss(x0) * (len(x0) - 1) / len(x0)

    def moved(i: Array, value: Array) -> Array:
        return problem.loss(jnp.tile(x0[:, None], (1, value.shape[0])).at[i].set(value))

    return jnp.stack([moved(jnp.asarray(i), z[i]) for i in range(len(x0))]) - base


def _user_function(problem: AbstractProblem, name: str, function: Callable[[Any], Any]) -> TestFunction:
    layout = problem.layout
    if name == "all":
        raise ValueError("functions: got the name 'all', which stands for all functions together; choose another name.")

    def value(x: Array) -> Array:
        return jax.vmap(lambda p: jnp.asarray(function(layout.unravel(p)), x.dtype), in_axes=-1)(x)

    try:
        shape = jax.eval_shape(value, problem.start[:, None]).shape
    except (jax.errors.JAXTypeError, TypeError) as error:
        raise TypeError(f"functions[{name!r}]: cannot be compiled ({error}); use jax.numpy in it.") from error
    if shape != (1,):
        raise ValueError(f"functions[{name!r}]: returned shape {shape[:-1]}; return a scalar.")
    return TestFunction(name, value)
