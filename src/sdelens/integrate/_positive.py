"""Steps of components for which normal noise is unsuitable: squares, which are never negative, and bounded parts."""

import math

import jax.numpy as jnp
from jax import Array

__all__ = ["by_update", "kept_positive", "lognormal", "moved", "needs_variance"]

_WIDE = 0.5
"""Standard deviation of a step, relative to the mean, from which a log-normal law would put most of its mass near 0."""


def lognormal(mean: Array, noise: Array, variance: Array) -> Array:
    r"""A positive number with the given mean and variance, in place of mean + noise; a mean of 0 is returned unchanged.

    μ exp(sζ − s²/2) with ζ = noise/√variance and s² = log(1 + variance/μ²).
    """
    tiny = jnp.finfo(mean.dtype).tiny
    variance = jnp.maximum(variance, 0)
    size = jnp.sqrt(jnp.log1p(variance / jnp.maximum(mean, math.sqrt(tiny)) ** 2))
    standard = noise / jnp.sqrt(jnp.maximum(variance, tiny))
    return jnp.where(variance > 0, mean * jnp.exp(size * standard - 0.5 * size**2), mean)


def kept_positive(mean: Array, noise: Array, exact: bool) -> Array:
    """Add the noise where the sum is at least half the mean; otherwise return mean²/(−4 noise), which is positive.

    If the sum is positive except for rounding (`exact`), it is returned, but at least four rounding errors of the
    mean.
    """
    if exact:
        return jnp.maximum(mean + noise, 4 * jnp.finfo(mean.dtype).eps * mean)
    low = noise < -0.5 * mean
    return jnp.where(low, mean**2 / jnp.where(low, -4 * noise, 1), mean + noise)


def by_update(law: str, accumulators: str, substeps: int) -> bool:
    """Whether `moved` can use the value that the optimizer's update gives a leaf of this law at a normal gradient."""
    return law in ("bound", "positive") and accumulators != "drift" and substeps == 1


def needs_variance(law: str, accumulators: str, substeps: int) -> bool:
    """Whether `moved` uses the variance of the step of a leaf of this law."""
    by_lognormal = accumulators == "lognormal" or (accumulators == "update" and substeps > 1)
    return law == "positive" and by_lognormal


def moved(
    law: str, accumulators: str, mean: Array, noise: Array, variance: Array | None, updated: Array | None
) -> Array:
    """A leaf after a step with the given mean, noise, variance (if its law is positive), and value `by_update`."""
    if law == "free":
        return mean + noise
    if accumulators == "drift":
        return mean
    if updated is not None and (law == "bound" or accumulators == "update"):
        return updated
    if law == "bound":
        return mean
    assert variance is not None
    positive = lognormal(mean, noise, variance)
    return positive if updated is None else jnp.where(variance > _WIDE**2 * mean**2, updated, positive)
