"""Singular value decomposition and polar factor in elementary operations, of many matrices at once, paths last.

LAPACK is avoided because two CPU devices that call it at the same time can deadlock.
"""

from typing import Final

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

__all__ = ["polar_factor", "product", "singular_values", "thin_svd"]

_SWEEPS: Final = 10
"""Sweeps of Jacobi rotations; the convergence is quadratic, and 64 columns in float32 need 7 or 8."""
_UNROLL: Final = 16
_FAST: Final = (3.4445, -4.7750, 2.0315)
"""A quintic with slope 3.4 at 0 that maps (0, 1] into (0, 1.21], and [0.1, 1.21] into itself."""
_FAST_STEPS: Final = 12
_CONVERGENT: Final = (15 / 8, -10 / 8, 3 / 8)
"""The Newton-Schulz quintic of third order: with 1 − y² = e, the next one is of size e³."""
_CONVERGENT_STEPS: Final = 4


def polar_factor(matrix: Array) -> Array:
    r"""U Vᵀ of matrices U diag(s) Vᵀ, shape (n, m, P) or (n, m).

    Quintic iterations y ← ay + b y yᵀy + c y(yᵀy)² from y/‖y‖: twelve that increase the smallest singular value by 3.4
    each, then four that converge with order 3. Singular values above 1e-6 ‖y‖ become 1 to within rounding; those far
    below stay small, and those of a matrix that is 0 stay 0.
    """
    if matrix.shape[0] < matrix.shape[1]:
        return jnp.swapaxes(polar_factor(jnp.swapaxes(matrix, 0, 1)), 0, 1)
    largest = jnp.max(jnp.abs(matrix), axis=(0, 1), keepdims=True)
    y = matrix / jnp.where(largest > 0, largest, 1)  # so that no square underflows
    norm = jnp.sqrt(jnp.sum(y * y, axis=(0, 1), keepdims=True))
    y = y / jnp.where(norm > 0, norm, 1)
    table = np.array([_FAST] * _FAST_STEPS + [_CONVERGENT] * _CONVERGENT_STEPS)

    def step(k: Array, y: Array) -> Array:
        a, b, c = jnp.asarray(table, y.dtype)[k]
        gram = product(jnp.swapaxes(y, 0, 1), y)
        return a * y + product(y, b * gram + c * product(gram, gram))

    return lax.fori_loop(0, len(table), step, y)


def singular_values(matrix: Array) -> Array:
    """Singular values of a matrix, descending, in elementary operations.

    ``jnp.linalg.svd`` calls LAPACK, which can deadlock in observables of a run on several CPU devices; this function
    does not.

    Args:
        matrix: shape (n, m), or (n, m, P) for P matrices.

    Returns:
        Shape (min(n, m),), or (min(n, m), P).

    Examples:
        >>> import jax.numpy as jnp, sdelens as sl
        >>> print(sl.singular_values(jnp.array([[0.0, 2.0], [1.0, 0.0]])))
        [2. 1.]
    """
    return -jnp.sort(-thin_svd(matrix)[1], axis=0)


def thin_svd(matrix: Array) -> tuple[Array, Array, Array]:
    r"""U, s, V of matrices U diag(s) Vᵀ with n ≥ m, by one-sided Jacobi rotations.

    Pairs of columns are made orthogonal, all disjoint pairs at once, in the order of a round-robin tournament (Brent
    and Luk 1985). Small singular values are accurate relative to the norm of the matrix. The order is arbitrary.

    Args:
        matrix: shape (n, m, P) or (n, m) with n ≥ m; wider matrices are transposed, and U and V exchanged.

    Returns:
        U of shape (n, m, P), whose columns are 0 where s is below the rounding errors of the matrix; s of shape (m, P);
        V of shape (m, m, P).
    """
    if matrix.shape[0] < matrix.shape[1]:
        v, s, u = thin_svd(jnp.swapaxes(matrix, 0, 1))
        return u, s, v
    n, m = matrix.shape[:2]
    size = jnp.max(jnp.abs(matrix), axis=(0, 1))
    size = jnp.where(size > 0, size, 1)
    eye = jnp.eye(m, dtype=matrix.dtype).reshape(m, m, *[1] * (matrix.ndim - 2))
    eye = jnp.broadcast_to(eye, (m, *matrix.shape[1:]))
    columns = jnp.swapaxes(jnp.concatenate([matrix / size, eye]), 0, 1)  # (m, n + m, P): a column and its part of V
    if m > 1:
        columns = jnp.concatenate([columns, jnp.zeros_like(columns[: m % 2])])
        half = columns.shape[0] // 2

        def turn(_: Array, pair: tuple[Array, Array]) -> tuple[Array, Array]:
            first, second = _rotated(*pair, n)
            # The first column stays; the others move on by one place around the table.
            return (
                jnp.concatenate([first[:1], second[:1], first[1:-1]]) if half > 1 else first,
                jnp.concatenate([second[1:], first[-1:]]) if half > 1 else second,
            )

        rounds = _SWEEPS * max(2 * half - 1, 1)
        pair = lax.fori_loop(0, rounds, turn, (columns[:half], columns[half:]))
        columns = jnp.concatenate(pair)[:m]  # after whole sweeps every column is at its first place, the added one last
    left, v = columns[:, :n], columns[:, n:]
    s = jnp.sqrt(jnp.sum(left * left, axis=1))
    least = 4 * jnp.finfo(s.dtype).eps * jnp.max(s, axis=0)
    kept = s > least
    u = jnp.where(kept[:, None], left / jnp.where(kept, s, 1)[:, None], 0)
    return jnp.swapaxes(u, 0, 1), s * size, jnp.swapaxes(v, 0, 1)


def _rotated(first: Array, second: Array, n: int) -> tuple[Array, Array]:
    """Pairs of columns, shape (m/2, n + m, P), rotated so that their upper parts are orthogonal."""
    a, b = first[:, :n], second[:, :n]
    alpha, beta, gamma = jnp.sum(a * a, axis=1), jnp.sum(b * b, axis=1), jnp.sum(a * b, axis=1)
    coupled = jnp.abs(gamma) > jnp.finfo(a.dtype).tiny
    zeta = (beta - alpha) / (2 * jnp.where(coupled, gamma, 1))
    t = jnp.where(zeta >= 0, 1, -1) / (jnp.abs(zeta) + jnp.sqrt(1 + zeta * zeta))
    t = jnp.where(coupled, t, 0)
    cosine = 1 / jnp.sqrt(1 + t * t)
    c, s = cosine[:, None], (cosine * t)[:, None]
    return c * first - s * second, s * first + c * second


def product(a: Array, b: Array) -> Array:
    """Products of matrices of shapes (n, k, P) and (k, m, P), or (n, k) and (k, m)."""
    if a.ndim == 2:
        return jnp.matmul(a, b, precision="highest")
    if a.shape[1] > _UNROLL:
        return jnp.einsum("nkp,kmp->nmp", a, b, precision="highest")

    def add(k: Array, total: Array) -> Array:
        return total + a[:, k, None] * b[k]

    # For small matrices a loop with the paths in vector registers is up to 80 times faster (measured on a CPU).
    return lax.fori_loop(0, a.shape[1], add, jnp.zeros((a.shape[0], *b.shape[1:]), a.dtype), unroll=4)
