r"""The covariance of sign(μ + N(0, R)) for correlated normal noise.

Per pair of coordinates with means a, b (in standard deviations) and correlation r, the derivative in r of
P(both positive) is the bivariate normal density at (a, b) (Plackett 1954), so that

    Cov(sign, sign) = 4 ∫₀ʳ φ₂(a, b; t) dt = (2/π) ∫₀^{arcsin r} exp(−(a² + b² − 2ab sin θ)/(2 cos² θ)) dθ.

For d ≤ 64 `SignCovariance` computes this integral by Gauss-Legendre quadrature, and a root per path. For larger d it
expands φ₂ in Hermite polynomials (Mehler 1866), Cov = Σₙ cₙ(a) cₙ(b) rⁿ/n! with cₙ(a) = 2φ(a) Heₙ₋₁(−a): powers of R,
entry by entry, are positive semi-definite (Schur), and their roots are computed once for all paths.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sdelens.core.matrix import symmetric_root

__all__ = ["EXACT_UP_TO", "SignCovariance", "lower_root", "sign_covariance"]

EXACT_UP_TO = 64
"""Largest dimension for which the covariance of the signs is computed and factored for each path."""

_TERMS = 6
_LEGENDRE = np.polynomial.legendre.leggauss(24)
_HERMITE_AT_ZERO = [float(np.polynomial.hermite_e.hermeval(0, [0] * n + [1])) for n in range(_TERMS)]
_AT_ZERO = [2 / math.pi * h**2 / math.factorial(n + 1) for n, h in enumerate(_HERMITE_AT_ZERO)]
"""cₙ(0)²/n! for n = 1, 2, …: the series at μ = 0."""


def lower_root(matrix: Array) -> Array:
    """Cholesky's factor of a positive semi-definite matrix; columns whose pivot is only rounding are set to 0.

    LAPACK's factorisations, which XLA runs on a CPU's shared threads, deadlock when several devices call them at once
    (jaxlib 0.10.2), and have no derivative where the matrix is singular.
    """
    size = matrix.shape[0]
    least = 8 * jnp.finfo(matrix.dtype).eps * jnp.diag(matrix)
    index = jnp.arange(size)

    def column(j: Array, loop: tuple[Array, Array]) -> tuple[Array, Array]:
        rest, root = loop
        pivot = rest[j, j]
        used = pivot > least[j]
        scaled = rest[:, j] / jnp.sqrt(jnp.where(used, pivot, 1))
        own = jnp.where(used & (index >= j), scaled, 0)
        return rest - own[:, None] * own[None, :], root.at[:, j].set(own)

    return jax.lax.fori_loop(0, size, column, (matrix, jnp.zeros_like(matrix)))[1]


class SignCovariance(eqx.Module):
    """Cov sign(μ + N(0, R)) as a function of μ/σ, in the form of a root applied to Brownian increments.

    Attributes:
        correlation: R, shape (d, d).
        roots: roots of the entry-wise powers R¹ … R⁶ and of the normalised remainder at μ = 0, shape (7, d, d); None
            for d ≤ 64, where none are needed.
    """

    correlation: Array
    roots: Array | None

    def __init__(self, correlation: np.ndarray, dtype: Any) -> None:
        self.correlation = jnp.asarray(correlation, dtype)
        self.roots = None
        if correlation.shape[0] > EXACT_UP_TO:
            powers = [correlation**n for n in range(1, _TERMS + 1)]
            rest = (2 / np.pi) * np.arcsin(correlation) - sum(s * p for s, p in zip(_AT_ZERO, powers, strict=True))
            self.roots = jnp.asarray(
                np.stack([symmetric_root(p) for p in [*powers, rest / (1 - sum(_AT_ZERO))]]), dtype
            )

    @classmethod
    def exact(cls, correlation: Array) -> "SignCovariance":
        """For a traced correlation of at most 64 rows."""
        blank = cls(np.eye(1), correlation.dtype)
        return eqx.tree_at(lambda c: c.correlation, blank, correlation)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, per path, of the Brownian motion that `apply_root` takes: one per root and coordinate."""
        dim = self.correlation.shape[0]
        return (dim,) if self.roots is None else (_TERMS + 1, dim)

    def apply_root(self, mean: Array, dW: Array) -> Array:
        """Root times increments: means μ/σ of shape (d,) or (d, P), increments of `shape` or `shape` and P."""
        return self._rooted(mean, dW, first=1)

    def apply_rest_root(self, mean: Array, dW: Array) -> Array:
        """The same for the residual of the signs regressed on the noise, Cov − 4φ(a)φ(b)r: the series without n = 1."""
        return self._rooted(mean, dW, first=2)

    def _rooted(self, mean: Array, dW: Array, first: int) -> Array:
        """Root times increments, with the series from term `first` on."""
        if self.roots is None:

            def one(mean: Array, dW: Array) -> Array:
                matrix = sign_covariance(self.correlation, mean)
                if first > 1:
                    slope = _coefficient(1, mean)
                    matrix = matrix - slope[:, None] * slope[None, :] * self.correlation
                return lower_root(matrix) @ dW

            return one(mean, dW) if mean.ndim == 1 else jax.vmap(one, in_axes=-1, out_axes=-1)(mean, dW)
        e = jax.lax.erf(mean / math.sqrt(2))
        rest = (1 - e) * (1 + e)
        total = jnp.zeros_like(mean)
        for n in range(1, _TERMS + 1):
            size = _coefficient(n, mean) / math.sqrt(math.factorial(n))
            rest = rest - size**2
            if n >= first:
                total = total + size * jnp.matmul(self.roots[n - 1], dW[n - 1], precision="highest")
        last = jnp.matmul(self.roots[-1], dW[-1], precision="highest")
        return total + jnp.sqrt(jnp.maximum(rest, 0)) * last


def sign_covariance(correlation: Array, mean: Array) -> Array:
    """Cov sign(μ + N(0, R)) for μ of shape (d,): exact for d ≤ 64, else by Hermite's series and its remainder."""
    e = jax.lax.erf(mean / math.sqrt(2))
    own = (1 - e) * (1 + e)
    correlation = jnp.where(jnp.eye(mean.shape[0], dtype=bool), 0, correlation)  # arcsin has no derivative at 1
    if mean.shape[0] <= EXACT_UP_TO:
        matrix = _by_quadrature(correlation, mean)
    else:
        matrix, power, rest, share = jnp.zeros_like(correlation), correlation, own, 1.0
        pattern = (2 / math.pi) * jnp.arcsin(correlation)
        for n in range(1, _TERMS + 1):
            size = _coefficient(n, mean) / math.sqrt(math.factorial(n))
            matrix, rest = matrix + size[:, None] * size[None, :] * power, rest - size**2
            pattern, share = pattern - _AT_ZERO[n - 1] * power, share - _AT_ZERO[n - 1]
            power = power * correlation
        left = jnp.sqrt(jnp.maximum(rest, 0) / share)
        matrix = matrix + left[:, None] * left[None, :] * pattern
    return matrix.at[jnp.diag_indices(mean.shape[0])].set(own)


def _by_quadrature(correlation: Array, mean: Array) -> Array:
    angle = jnp.arcsin(correlation)
    a, b = mean[:, None], mean[None, :]
    nodes, weights = (jnp.asarray(v, mean.dtype) for v in _LEGENDRE)

    def add(total: Array, node: tuple[Array, Array]) -> tuple[Array, None]:
        # Nodes in v with θ = arcsin(r) v(2 − v): the integrand is steep only near θ = ±π/2.
        position, weight = node
        v = 0.5 * (position + 1)
        theta, jacobian = angle * v * (2 - v), 2 * angle * (1 - v)
        cosine2 = jnp.maximum(jnp.cos(theta) ** 2, jnp.finfo(mean.dtype).tiny)
        exponent = (a * a + b * b - 2 * a * b * jnp.sin(theta)) / (2 * cosine2)
        return total + 0.5 * weight * jacobian * jnp.exp(-exponent), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(angle), (nodes, weights))
    return (2 / math.pi) * total


def _coefficient(n: int, a: Any) -> Any:
    """cₙ(a) = 2φ(a) Heₙ₋₁(−a)."""
    before, here = jnp.zeros_like(a), jnp.ones_like(a)
    for k in range(n - 1):
        before, here = here, -a * here - k * before
    return 2 * jnp.exp(-0.5 * a**2) / math.sqrt(2 * math.pi) * here
