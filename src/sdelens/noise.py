"""Gradient noise: g(x) = ∇f(x) + Z with E Z = 0 and Cov Z = Σ(x)."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sdelens import _check
from sdelens._random import Stream
from sdelens._tree import column
from sdelens.problems import AbstractProblem

__all__ = ["AbstractNoise", "GaussianNoise"]


class AbstractNoise(eqx.Module):
    """The law of Z. Methods take x and ∇f of shape (d,) or (d, P) and return shapes that broadcast to it."""

    @abc.abstractmethod
    def bind(self, problem: AbstractProblem) -> "AbstractNoise":
        """The same law with its numbers laid out along the problem's flat coordinates, checked."""

    @abc.abstractmethod
    def sample(self, x: Array, stream: Stream) -> Array:
        """One draw of Z for every path: shape (d, P)."""

    @abc.abstractmethod
    def variance(self, x: Array) -> Array:
        """Diagonal of Σ."""

    @abc.abstractmethod
    def mean_sign(self, grad: Array, x: Array) -> Array:
        """E sign(∇f + Z), element-wise."""

    @abc.abstractmethod
    def noise_shape(self, dim: int) -> tuple[int, ...]:
        """Shape, per path, of the Brownian motion that `apply_root` takes."""

    @abc.abstractmethod
    def apply_root(self, x: Array, dW: Array) -> Array:
        """Σ^{1/2} dW, of the shape of x."""

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """What it takes to build the noise again, JSON types only."""


class GaussianNoise(AbstractNoise):
    r"""Independent normal noise on every coordinate: Z ~ N(0, diag σ²), the same at every x.

    Args:
        scale: σ > 0, the standard deviation: a scalar, one per coordinate (shape (d,)), or a pytree of the structure of
            the parameters whose leaves broadcast to theirs.

    Raises:
        ValueError: if a scale is not greater than 0 and finite; and, once it meets a problem, if a leaf's shape does
            not fit, naming the leaf.
    """

    scale: Any

    def __init__(self, scale: Any) -> None:
        for path, leaf in jax.tree_util.tree_flatten_with_path(scale)[0]:
            name = f"scale{jax.tree_util.keystr(path)}"
            array = _check.finite_array(name, leaf, tuple(range(9)))
            if not _check.is_traced(array) and (array <= 0).any():
                low = float(array.min())
                raise ValueError(f"{name}: got {low}; the standard deviation must be greater than 0.")
        self.scale = scale

    def bind(self, problem: AbstractProblem) -> "GaussianNoise":  # noqa: D102
        scale, dtype = self.scale, problem.start.dtype
        if _is_vector(scale) and not problem.layout.matches(scale):
            array = np.asarray(scale, dtype=np.float64)
            if array.shape == (problem.dim,) or array.ndim == 0:
                return GaussianNoise(jnp.asarray(array, dtype))
            if problem.layout.shapes[1:] == () and array.ndim > 1:
                return GaussianNoise(jnp.asarray(problem.layout.broadcast("scale", array), dtype))
            names = [name for name in problem.layout.names if name]
            raise ValueError(
                f"scale: got shape {array.shape}; the problem has {problem.dim} coordinates. Give one number, or "
                f"{problem.dim} of them" + (f", or a pytree with leaves {', '.join(names)}." if names else ".")
            )
        return GaussianNoise(jnp.asarray(problem.layout.broadcast("scale", scale), dtype))

    def sample(self, x: Array, stream: Stream) -> Array:  # noqa: D102
        return column(self.scale, x) * stream.normal(x.shape[0], x.dtype)

    def variance(self, x: Array) -> Array:  # noqa: D102
        return column(self.scale, x) ** 2

    def mean_sign(self, grad: Array, x: Array) -> Array:
        r"""E sign(∇f + Z) = erf(∇f / (√2 σ))."""
        return jax.lax.erf(grad / (np.float32(np.sqrt(2)) * column(self.scale, x)))

    def noise_shape(self, dim: int) -> tuple[int, ...]:  # noqa: D102
        return (dim,)

    def apply_root(self, x: Array, dW: Array) -> Array:  # noqa: D102
        return column(self.scale, x) * dW

    def describe(self) -> dict[str, Any]:  # noqa: D102
        flat = jax.tree.leaves(self.scale)
        values = np.concatenate([np.ravel(np.asarray(a, dtype=np.float64)) for a in flat])
        uniform = bool((values == values[0]).all())
        return {"name": "gaussian", "scale": float(values[0]) if uniform else values.tolist()}


def _is_vector(scale: Any) -> bool:
    """Whether the scale is one array or a list of numbers rather than a pytree of leaves."""
    if isinstance(scale, list | tuple):
        return all(np.ndim(a) == 0 and not isinstance(a, dict) for a in scale)
    return jax.tree_util.all_leaves([scale])
