"""Numbers that a user gives for the coordinates of a problem: their check, layout and description; a scale of 0."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sdelens.core import check
from sdelens.core.arrays import plain
from sdelens.problems import AbstractProblem

__all__ = ["density_over", "described", "laid_out", "nonnegative", "nonzero"]


def nonnegative(name: str, value: Any, meaning: str) -> Any:
    """`value`, a number, array or pytree of them, if every entry is finite and not negative, and not all are 0.

    Raises:
        ValueError, TypeError: if one is not; the message names the leaf, the value and its meaning.
    """
    largest = 0.0
    for path, leaf in jax.tree_util.tree_flatten_with_path(value, is_leaf=lambda leaf: leaf is None)[0]:
        label = f"{name}{jax.tree_util.keystr(path)}"
        array = check.finite_array(label, leaf, tuple(range(9)))
        if check.is_traced(array):
            return value
        if (array < 0).any():
            raise ValueError(f"{label}: got {float(array.min())}; {meaning} must not be negative.")
        largest = max(largest, float(array.max()))
    if largest == 0:
        raise ValueError(f"{name}: got 0 only; {meaning} must be greater than 0 in at least one coordinate.")
    return value


def laid_out(name: str, value: Any, problem: AbstractProblem) -> Array:
    """`value` as one number for all coordinates, shape (), or one for each, shape (d,).

    Args:
        name: the argument's name, for messages.
        value: a scalar, an array of d numbers, or a pytree of the parameters' structure with leaves that broadcast.
        problem: the problem whose coordinates these are.

    Raises:
        ValueError: if a shape does not fit; the message names the leaf.
    """
    dtype = problem.start.dtype
    if check.any_traced(value):  # inside a JAX transformation
        value = jnp.asarray(value, dtype) if _is_vector(value) else value
        if isinstance(value, jax.Array) and value.shape in ((), (problem.dim,)):
            return value.astype(dtype)
        parts = zip(problem.layout.treedef.flatten_up_to(value), problem.layout.shapes, strict=True)
        return jnp.concatenate([jnp.broadcast_to(leaf, s).ravel() for leaf, s in parts if s is not None]).astype(dtype)
    if _is_vector(value) and not problem.layout.matches(value):
        array = np.asarray(value, dtype=np.float64)
        if array.shape == (problem.dim,) or array.ndim == 0:
            return jax.device_put(array.astype(dtype))
        if problem.layout.shapes[1:] == () and array.ndim > 1:
            return jax.device_put(problem.layout.broadcast(name, array).astype(dtype))
        names = [leaf for leaf in problem.layout.names if leaf]
        raise ValueError(
            f"{name}: got shape {array.shape}; the problem has {problem.dim} coordinates. Give one number, or "
            f"{problem.dim} of them" + (f", or a pytree with leaves {', '.join(names)}." if names else ".")
        )
    return jnp.asarray(problem.layout.broadcast(name, value).astype(dtype))


def described(value: Any) -> Any:
    """The numbers of a scalar, array or pytree for `describe`: one number where all are equal, otherwise `plain`."""
    values = np.concatenate([np.ravel(np.asarray(a)) for a in jax.tree.leaves(value)])
    return plain(values[0] if bool((values == values[0]).all()) else values)


def nonzero(scale: Array) -> Array:
    """The scale, and 1 where it is 0."""
    return jnp.where(scale > 0, scale, 1)


def density_over(scale: Array, z: Array, density: Array) -> Array:
    """A density where σ > 0; where σ = 0, that of the constant 0: infinite at z = 0, and 0 elsewhere."""
    return jnp.where(scale > 0, density, jnp.where(z == 0, jnp.inf, 0))


def _is_vector(value: Any) -> bool:
    """Whether `value` is one array or a list of numbers rather than a pytree of leaves."""
    if isinstance(value, list | tuple):
        return all(np.ndim(a) == 0 and not isinstance(a, dict) for a in value)
    return jax.tree_util.all_leaves([value])
