r"""The law of the matrix sign of a matrix with Gaussian noise, for many matrices at once, paths last.

The matrix sign, or polar factor, of Y = A diag(s) Bᵀ is A Bᵀ. For Y = a + Z with a = U diag(s) Vᵀ of shape (n, m),
n ≥ m, and independent entries Z ~ N(0, σ²), E sign(Y) = U D Vᵀ with a diagonal D, because the law of Z does not change
when rows and columns are rotated. From sign(Y) = (2/π) ∫ Y (YᵀY + t²)⁻¹ dt over t > 0, and the deterministic
equivalent of this resolvent,

D_i = (2/π) ∫ s_i/(p + s_i²) dt,  t² = q²p − (n − m)σ²q,  q = 1 − σ²h,  h(p) = Σ_j 1/(p + s_j²),

where p starts from the largest zero p₀ of qp − (n − m)σ². The covariance follows from the same expansion in the number
of crossings of pairs of Z (ladder diagrams): in the basis of U and V, an entry (i, j) is correlated with (j, i) only.
"""

from typing import Final, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sdelens.core.singular import product, thin_svd

__all__ = ["MatrixSign", "matrix_sign"]

_NODES: Final = 16
_PAIRED_NODES: Final = 10
_POWER: Final = 6
"""Nodes in θ of the integrals over p = p₀ + tan⁶θ, which cover many orders of magnitude."""
_NEWTON: Final = 30
"""Steps of Newton's method for p₀: it is monotone on a convex function, and halves the distance to a double zero."""


class MatrixSign(NamedTuple):
    r"""Law of sign(a + Z) for matrices a of shape (n, m, P) with n ≥ m.

    sign(a + Z) = U D Vᵀ + C[Z] + R, where C is the derivative of the mean with respect to a, so that C[Z] is the
    regression on Z, and R is uncorrelated with Z. Coefficients are those in the basis of U and V; null rows are the
    n − m directions that are orthogonal to all columns of U.

    Attributes:
        u: shape (n, m, P); a column is 0 where s is 0, and then counts as a null row.
        v: shape (m, m, P).
        mean: D, shape (m, P).
        slope: α of C[Z]_ij = α_ij Z_ij − β_ij Z_ji, shape (m, m, P).
        turn: β, shape (m, m, P).
        null_slope: coefficient of Z_kj for null rows k, shape (m, P).
        rest: variance of R_ij, shape (m, m, P); for the whole sign add σ²(α² + β²), for i = j σ²(α − β)².
        cross: covariance of R_ij and R_ji for i ≠ j, shape (m, m, P); for the whole sign subtract 2σ²αβ.
        null_rest: variance of R_kj for null rows, shape (m, P); for the whole sign add σ² null_slope².
    """

    u: Array
    v: Array
    mean: Array
    slope: Array
    turn: Array
    null_slope: Array
    rest: Array
    cross: Array
    null_rest: Array

    def expectation(self) -> Array:
        """E sign(a + Z), shape (n, m, P)."""
        return product(self.u * self.mean, jnp.swapaxes(self.v, 0, 1))

    def regression(self, z: Array) -> Array:
        """C[z] for z of shape (n, m, P)."""
        inner, null = self._into(z)
        turned = self.slope * inner - self.turn * jnp.swapaxes(inner, 0, 1)
        return self._back(turned, self.null_slope * null)

    def residual(self, dW: Array) -> Array:
        """The root of the covariance of R times dW of shape (n, m, P)."""
        inner, null = self._into(dW)
        # The root of [[a, w], [w, b]] is ([[a, w], [w, b]] + τ)/√(a + b + 2τ) with τ² = ab − w².
        a, b, w = self.rest, jnp.swapaxes(self.rest, 0, 1), self.cross
        tau = jnp.sqrt(jnp.maximum(a * b - w * w, 0))
        total = jnp.sqrt(jnp.maximum(a + b + 2 * tau, jnp.finfo(a.dtype).tiny))
        mixed = ((a + tau) * inner + w * jnp.swapaxes(inner, 0, 1)) / total
        eye = jnp.eye(a.shape[0], dtype=bool).reshape(*a.shape[:2], *[1] * (a.ndim - 2))
        mixed = jnp.where(eye, jnp.sqrt(a) * inner, mixed)
        return self._back(mixed, jnp.sqrt(self.null_rest) * null)

    def _into(self, z: Array) -> tuple[Array, Array]:
        """Uᵀ z V, and (1 − UUᵀ) z V."""
        right = product(z, self.v)
        inner = product(jnp.swapaxes(self.u, 0, 1), right)
        return inner, right - product(self.u, inner)

    def _back(self, inner: Array, null: Array) -> Array:
        return product(product(self.u, inner) + null, jnp.swapaxes(self.v, 0, 1))


def matrix_sign(a: Array, variance: Array) -> MatrixSign:
    """The law of sign(a + Z).

    Args:
        a: shape (n, m, P), n ≥ m.
        variance: σ² ≥ 0 of the entries of Z, shape (P,) or ().
    """
    u, s, v = thin_svd(a)
    (n, m), tiny = a.shape[:2], jnp.finfo(a.dtype).tiny
    size = jnp.maximum(variance * n + jnp.max(s, axis=0) ** 2, tiny)
    root = jnp.sqrt(size)
    found = _coefficients(s / root, variance / size, n - m)
    return MatrixSign(
        u,
        v,
        found["mean"],
        found["slope"] / root,
        found["turn"] / root,
        found["null_slope"] / root,
        found["rest"],
        found["cross"],
        found["null_rest"],
    )


class _Nodes(NamedTuple):
    """Nodes of the integrals over t.

    Attributes:
        weight: (2/π) dt, shape (Q, P).
        late: dp (√(p − p₀) − t), shape (Q, P).
        left, right, across: size of the resolvent between left, between right, and between left and right singular
            vectors, shape (Q, m, P).
        null: its size for null rows, shape (Q, P).
    """

    weight: Array
    late: Array
    left: Array
    right: Array
    across: Array
    null: Array


def _nodes(count: int, s: Array, var: Array, p0: Array, null: int) -> _Nodes:
    tiny, s2, excess = jnp.finfo(s.dtype).tiny, s * s, null * var
    roots, weights = np.polynomial.legendre.leggauss(count)
    angle = ((roots + 1) * np.pi / 4).reshape(-1, *[1] * (s.ndim - 1))
    tan = np.tan(angle)
    jacobian = _POWER * tan ** (_POWER - 1) / np.cos(angle) ** 2 * weights.reshape(angle.shape) * np.pi / 4
    delta, jacobian = jnp.asarray(tan**_POWER, s.dtype), jnp.asarray(jacobian, s.dtype)
    p = p0 + delta
    den = p[:, None] + s2
    # f = qp − (n − m)σ² is 0 at p₀, and its difference from there is free of cancellation.
    f = delta * jnp.maximum(1 - var * jnp.sum(s2 / (den * jnp.maximum(p0 + s2, tiny)), axis=1), tiny)
    slope = 1 - var * jnp.sum(s2 / den**2, axis=1)
    t = jnp.sqrt(f * (f + excess) / p)
    dt = jacobian * (slope * (2 * f + excess) - f * (f + excess) / p) / (2 * t * p)
    a1 = t * p / (f + excess)
    return _Nodes(
        (2 / np.pi) * dt, jacobian * (jnp.sqrt(delta) - t), (p / a1)[:, None] / den, a1[:, None] / den, s / den, 1 / a1
    )


def _coefficients(s: Array, var: Array, null: int) -> dict[str, Array]:
    """Coefficients for singular values s, shape (m, P), and variances `var` with var n + max s² = 1."""
    m, p0 = s.shape[0], _first(s * s, var, null)
    base = jnp.maximum(p0 + s * s, jnp.finfo(s.dtype).tiny)
    at = _nodes(_NODES, s, var, p0, null)
    # The integral with √(p − p₀) in place of t is known.
    inverse = at.left * at.right + at.across**2  # 1/(p + s²), as left·right = p/(p + s²)² and across = s/(p + s²)
    mean = s / jnp.sqrt(base) - (2 / np.pi) * jnp.sum(at.late[:, None] * at.across * inverse, axis=0)
    root = jnp.sqrt(at.left * at.right)
    slope, turn = _pairs(at.weight, root), _pairs(at.weight, at.across)
    null_slope = jnp.sum(at.weight[:, None] * inverse, axis=0)
    rest, cross, null_rest = _residual(_nodes(_PAIRED_NODES, s, var, p0, null), var, null)
    eye = jnp.eye(m, dtype=s.dtype).reshape(m, m, *[1] * (s.ndim - 1))
    whole = rest + var * (slope**2 + turn**2)
    column = jnp.sum(whole * (1 - eye), axis=0) + null * (null_rest + var * null_slope**2)
    diagonal = 1 - mean**2 - column - var * jnp.sum(eye * (slope - turn) ** 2, axis=0)
    # Columns of the sign have norm 1, which gives the variances of its diagonal, except where they are differences of
    # much larger numbers; there D is near 1, and the ladders of both orders of the indices are accurate.
    ladders = jnp.sum(eye * (rest + cross), axis=0)
    diagonal = ladders + (1 - mean**2) * (diagonal - ladders)
    return {
        "mean": mean,
        "slope": slope,
        "turn": turn,
        "null_slope": null_slope,
        "rest": jnp.where(eye > 0, jnp.maximum(diagonal, 0), rest),
        "cross": cross,
        "null_rest": null_rest,
    }


def _residual(at: _Nodes, var: Array, null: int) -> tuple[Array, Array, Array]:
    """Variances and covariances of what C does not explain, and variances for null rows.

    The sum over ladders of all lengths, between resolvents at two nodes, without those of one rung, which C explains.
    """
    first, second = np.triu_indices(_PAIRED_NODES)
    share = jnp.asarray(np.where(first == second, 1.0, 2.0), at.weight.dtype)

    def add(k: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        q, r = jnp.asarray(first)[k], jnp.asarray(second)[k]
        w, left, right, across = share[k] * at.weight[q] * at.weight[r], at.left, at.right, at.across
        ll, rr, lr = left[q] * left[r], right[q] * right[r], across[q] * across[r]
        # Sums over all indices of the propagators from left to left, left to right and right to right.
        a, b, c = -ll.sum(axis=0) - null * at.null[q] * at.null[r], lr.sum(axis=0), -rr.sum(axis=0)
        keep = 1 - var * b
        det = keep**2 - var**2 * a * c
        t11, t12, t22 = w * var**2 * c / det, w * var * (keep / det - 1), w * var**2 * a / det
        after_left, after_right = t11 * lr - t12 * rr, t12 * lr - t22 * rr
        rest = lr[:, None] * after_right - ll[:, None] * after_left
        null_rest = -at.null[q] * at.null[r] * after_left
        cross = jnp.zeros_like(rest)
        for i, j in ((q, r), (r, q)):
            mixed, turned = left[i] * across[j], across[i] * right[j]
            other, back = across[i] * left[j], right[i] * across[j]
            cross -= 0.5 * (mixed[:, None] * (t11 * other + t12 * back) + turned[:, None] * (t12 * other + t22 * back))
        return sums[0] + rest, sums[1] + cross, sums[2] + null_rest

    m, rest_of = at.left.shape[1], at.left.shape[2:]
    zero = jnp.zeros((m, m, *rest_of), at.left.dtype)
    rest, cross, null_rest = lax.fori_loop(0, len(first), add, (zero, zero, zero[0]))
    return jnp.maximum(rest, 0), cross, jnp.maximum(null_rest, 0)


def _first(s2: Array, var: Array, null: int) -> Array:
    """p₀, the largest zero of p − σ²Σ p/(p + s²) − (n − m)σ², by Newton's method from above."""
    tiny = jnp.finfo(s2.dtype).tiny

    def step(_: Array, p: Array) -> Array:
        den = jnp.maximum(p + s2, tiny)
        value = p * (1 - var * jnp.sum(1 / den, axis=0)) - null * var
        slope = 1 - var * jnp.sum(s2 / den**2, axis=0)
        return jnp.clip(p - value / jnp.maximum(slope, tiny), 0, p)

    return lax.fori_loop(0, _NEWTON, step, jnp.broadcast_to((s2.shape[0] + null) * var, s2.shape[1:]))


def _pairs(dt: Array, x: Array) -> Array:
    """∫ x_i x_j dt."""
    return jnp.sum(dt[:, None, None] * x[:, :, None] * x[:, None], axis=0)
