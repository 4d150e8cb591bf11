"""Steps of components that are never negative."""

import math

import jax.numpy as jnp
from jax import Array

__all__ = ["lognormal"]


def lognormal(mean: Array, noise: Array, variance: Array) -> Array:
    r"""A positive number of that mean and variance, in place of mean + noise; as it is where the mean is 0.

    μ exp(sζ − s²/2) with ζ = noise/√variance and s² = log(1 + variance/μ²).
    """
    tiny = jnp.finfo(mean.dtype).tiny
    variance = jnp.maximum(variance, 0)
    size = jnp.sqrt(jnp.log1p(variance / jnp.maximum(mean, math.sqrt(tiny)) ** 2))
    standard = noise / jnp.sqrt(jnp.maximum(variance, tiny))
    return jnp.where(variance > 0, mean * jnp.exp(size * standard - 0.5 * size**2), mean)
