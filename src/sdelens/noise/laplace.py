"""Laplace noise."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sdelens.core.random import Stream
from sdelens.noise._values import nonnegative
from sdelens.noise.scaled import ScaledNoise, half_rule

__all__ = ["LaplaceNoise"]


class LaplaceNoise(ScaledNoise):
    r"""Laplace noise with density e^{−|z|/b}/(2b), independent on every coordinate; its variance is 2b².

    E sign(g) = sign(s)(1 − e^{−|s|}), s = ∇f/b.

    Args:
        scale: b ≥ 0: as for `GaussianNoise`.
    """

    name: ClassVar[str] = "laplace"
    scale: Any

    def __init__(self, scale: Any) -> None:
        self.scale = nonnegative("scale", scale, "the scale")

    def standard_sample(self, x: Array, stream: Stream) -> Array:
        size, side = stream.uniforms(x.shape[0], x.dtype)
        return jnp.where(side < 0.5, 1, -1) * -jnp.log(size)

    def standard_variance(self, x: Array) -> float:
        return 2.0

    def standard_mean_sign(self, s: Array) -> Array:
        return _laplace_mean_sign(s)

    def standard_density(self, s: Array) -> Array:
        return 0.5 * jnp.exp(-jnp.abs(s))

    def standard_signed_mean(self, s: Array) -> Array:
        return (1 + jnp.abs(s)) * jnp.exp(-jnp.abs(s))

    def standard_fourth_cumulant(self, x: Array) -> float:
        return 12.0

    def quadrature(self, x: Array) -> tuple[Array, Array]:
        share, weight = half_rule()
        standard = -np.log(share)
        return self._nodes(np.concatenate([standard, -standard]), np.concatenate([weight, weight]) / 2, x)


@jax.custom_jvp
def _laplace_mean_sign(s: Array) -> Array:
    return -jnp.sign(s) * jnp.expm1(-jnp.abs(s))


_laplace_mean_sign.defjvps(lambda t, _, s: jnp.exp(-jnp.abs(s)) * t)
