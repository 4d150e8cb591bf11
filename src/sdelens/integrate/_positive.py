"""Steps of components that normal noise cannot move: squares, which are never negative, and what bounds another."""

import math

import jax.numpy as jnp
from jax import Array

__all__ = ["by_update", "lognormal", "moved"]


def lognormal(mean: Array, noise: Array, variance: Array) -> Array:
    r"""A positive number of that mean and variance, in place of mean + noise; as it is where the mean is 0.

    μ exp(sζ − s²/2) with ζ = noise/√variance and s² = log(1 + variance/μ²).
    """
    tiny = jnp.finfo(mean.dtype).tiny
    variance = jnp.maximum(variance, 0)
    size = jnp.sqrt(jnp.log1p(variance / jnp.maximum(mean, math.sqrt(tiny)) ** 2))
    standard = noise / jnp.sqrt(jnp.maximum(variance, tiny))
    return jnp.where(variance > 0, mean * jnp.exp(size * standard - 0.5 * size**2), mean)


def by_update(law: str, accumulators: str, substeps: int) -> bool:
    """Whether leaves of that law move as the optimizer's update moves them at a normal gradient."""
    named = "update" if law == "bound" and accumulators == "lognormal" else accumulators
    return law in ("bound", "positive") and named == "update" and substeps == 1


def moved(law: str, accumulators: str, mean: Array, noise: Array, variance: Array | None) -> Array:
    """A leaf of that law after a step of this mean, noise and, where it is positive, variance."""
    if law == "free":
        return mean + noise
    if law == "bound" or accumulators == "drift":
        return mean
    assert variance is not None
    return lognormal(mean, noise, variance)
