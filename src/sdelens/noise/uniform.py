"""Uniform noise."""

from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array

from sdelens.core.random import Stream
from sdelens.noise._values import nonnegative
from sdelens.noise.scaled import LEGENDRE, ScaledNoise

__all__ = ["UniformNoise"]


class UniformNoise(ScaledNoise):
    r"""Uniform noise on [−a, a], independent on every coordinate; its variance is a²/3.

    E sign(g) = ∇f/a, clipped to [−1, 1]: for |∇f| > a the noise never changes a sign.

    Args:
        scale: a ≥ 0, the half-width: as for `GaussianNoise`.
    """

    name: ClassVar[str] = "uniform"
    scale: Any

    def __init__(self, scale: Any) -> None:
        self.scale = nonnegative("scale", scale, "the half-width")

    def standard_sample(self, x: Array, stream: Stream) -> Array:
        return 2 * stream.uniform(x.shape[0], x.dtype) - 1

    def standard_variance(self, x: Array) -> float:
        return 1 / 3

    def standard_mean_sign(self, s: Array) -> Array:
        return jnp.clip(s, -1, 1)

    def standard_density(self, s: Array) -> Array:
        return jnp.where(jnp.abs(s) <= 1, 0.5, 0.0)

    def standard_signed_mean(self, s: Array) -> Array:
        return 0.5 * jnp.maximum(1 - s**2, 0)

    def standard_fourth_cumulant(self, x: Array) -> float:
        return -2 / 15

    def quadrature(self, x: Array) -> tuple[Array, Array]:
        return self._nodes(LEGENDRE[0], LEGENDRE[1] / 2, x)
