"""Mean of the direction g/‖g‖ of a normal gradient, and how it turns with the mean gradient, by quadrature."""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

__all__ = ["mean_direction", "turned_direction"]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_ANGLES = (_NODES + 1) * math.pi / 4


def mean_direction(mean: Array, variance: Array) -> Array:
    r"""U = E g/‖g‖ for independent normal coordinates, element-wise over paths; 0 where g = 0.

    From 1/‖g‖ = (2/√π) ∫₀^∞ exp(−s²‖g‖²) ds, with aᵢ = 1/(1 + 2s²σᵢ²),

    Uᵢ = (2/√π) ∫ P(s) aᵢμᵢ ds,  P(s) = Πⱼ √aⱼ exp(−s²μⱼ²aⱼ),

    by Gauss-Legendre quadrature with 16 nodes in θ, s = tan θ/S, S² = ‖μ‖² + tr Σ. Its error is 1e-4
    of U for variances of the same size, and was at most 5e-3 of the norm of U in the cases tried with two that differ
    by a factor of 10⁶.

    Args:
        mean: μ, shape (d, P).
        variance: σ², of the shape of `mean`.
    """
    return _integral(mean, variance, lambda s, a: a * mean)


def turned_direction(mean: Array, variance: Array, v: Array) -> Array:
    r"""∂U/∂μ v = E[(v − u(u·v))/‖g‖] with u = g/‖g‖: (2/√π) ∫ P(s) [a∘v − 2s²(a∘μ)(a∘μ·v)] ds.

    Args:
        mean: μ, shape (d, P).
        variance: σ², of the shape of `mean`.
        v: shape (d, P).
    """

    def turned(s: Array, a: Array) -> Array:
        along = a * mean
        return a * v - 2 * s * s * along * (along * v).sum(axis=0, keepdims=True)

    return _integral(mean, variance, turned)


def _integral(mean: Array, variance: Array, of: Callable[[Array, Array], Array]) -> Array:
    """(2/√π) ∫ P(s) of(s, a) ds."""
    square = (mean * mean + variance).sum(axis=0, keepdims=True)
    known = square > 0
    size = jnp.where(known, 1 / jnp.sqrt(jnp.where(known, square, 1)), 0)

    def add(total: Array, node: tuple[Array, ...]) -> tuple[Array, None]:
        tangent, weight = node
        s = tangent * size
        spread = 2 * s * s * variance
        a = 1 / (1 + spread)
        exponent = (0.5 * jnp.log1p(spread) + s * s * mean * mean * a).sum(axis=0, keepdims=True)
        return total + weight * size * jnp.exp(-exponent) * of(s, a), None

    tangents = np.tan(_ANGLES)
    weights = 2 / math.sqrt(math.pi) * math.pi / 4 * _WEIGHTS * (1 + tangents**2)
    nodes = tuple(jnp.asarray(values, mean.dtype) for values in (tangents, weights))
    return lax.scan(add, jnp.zeros_like(mean), nodes)[0]
