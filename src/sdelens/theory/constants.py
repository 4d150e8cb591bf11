"""Constants of a loss that bounds need: exact on quadratics, by Lanczos and Hutchinson on other problems."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matfree import decomp, stochtrace

from sdelens.core import check
from sdelens.problems import AbstractProblem, LinearRegression, Quadratic

__all__ = ["Constants", "constants", "spectrum"]

_DENSE = 64
"""Largest dimension for which the full Hessian is computed."""
_DEPTH = 40
_PROBES = 64


class Constants(NamedTuple):
    """Curvature constants of a loss.

    Attributes:
        convexity: μ, the smallest eigenvalue of ∇²f.
        smoothness: L, the largest eigenvalue of ∇²f.
        trace: L_τ = tr ∇²f.
        box: the largest sᵀ∇²f s over s in [−1, 1]ᵈ, or a bound of it; equal to the trace if ∇²f is diagonal.
        row: row sums of |∇²f|, shape (d,); None if they are not known.
        minimiser: x*, None if it is not known.
        separable: whether ∇²f is diagonal.
        exact: True if the constants hold everywhere, as on a quadratic; False if they were measured at the start.
        source: how the constants were computed.
    """

    convexity: float
    smoothness: float
    trace: float
    box: float
    row: np.ndarray | None
    minimiser: np.ndarray | None
    separable: bool
    exact: bool
    source: str


def constants(problem: AbstractProblem) -> Constants:
    """Compute the curvature constants of a problem."""
    if not isinstance(problem, Quadratic | LinearRegression):
        with check.evaluated(problem):
            return _measured(problem)
    with check.evaluated(problem):
        minimiser = problem.minimiser
    if check.any_traced(problem.curvature, minimiser):
        return _traced(problem.curvature, minimiser)
    curvature, at = np.asarray(problem.curvature, np.float64), np.asarray(minimiser, np.float64)
    if curvature.ndim == 1:
        total = float(curvature.sum())
        return Constants(
            float(curvature.min()), float(curvature.max()), total, total, np.abs(curvature), at, True, True, "diagonal"
        )
    values = np.linalg.eigvalsh(curvature)
    row = np.abs(curvature).sum(axis=1)
    box = min(float(row.sum()), len(values) * float(values[-1]))
    trace = float(values.sum())
    return Constants(float(values[0]), float(values[-1]), trace, box, row, at, False, True, "eigenvalues")


def _traced(curvature: Any, at: Any) -> Constants:
    """The constants of a quadratic whose numbers are traced."""
    row = jnp.abs(curvature) if curvature.ndim == 1 else jnp.abs(curvature).sum(axis=1)
    if curvature.ndim == 1:
        total = curvature.sum()
        return Constants(curvature.min(), curvature.max(), total, total, row, at, True, True, "diagonal")  # type: ignore[arg-type]
    values = jnp.linalg.eigvalsh(curvature)
    box, trace = jnp.minimum(row.sum(), len(values) * values[-1]), values.sum()
    return Constants(values[0], values[-1], trace, box, row, at, False, True, "eigenvalues")  # type: ignore[arg-type]


def _measured(problem: AbstractProblem) -> Constants:
    """The constants measured at the start, from Hessian-vector products alone."""
    x = problem.start

    def product(v: Array) -> Array:
        return jax.jvp(lambda x: problem.evaluate(x)[1], (x,), (v.astype(x.dtype),))[1]

    first, second = jax.random.split(jax.random.key(0))
    values = spectrum(product, x, first)
    low, high = float(values[0]), float(values[-1])
    if problem.dim <= _DENSE:
        source = "the Hessian at the start"
        return Constants(low, high, float(values.sum()), problem.dim * high, None, None, False, False, source)
    probes = stochtrace.sampler_signs(x, num=_PROBES)
    estimate = stochtrace.estimator_monte_carlo_mean_and_sem(stochtrace.monte_carlo_trace(), probes)
    trace, error = (float(v) for v in jax.jit(lambda key: estimate(product, key))(second))
    source = f"at the start: Lanczos to depth {_DEPTH}, Hutchinson with {_PROBES} probes (tr ± {error:.2g})"
    return Constants(low, high, trace, problem.dim * high, None, None, False, False, source)


def spectrum(product: Callable[[Array], Array], x: Array, key: Array) -> np.ndarray:
    """Eigenvalues of a symmetric matrix H, ascending, from products with vectors.

    For a large matrix these are the Lanczos approximations, which are accurate at both ends of the spectrum.

    Args:
        product: v ↦ Hv, both of x's shape (d,).
        x: an array with the shape and dtype of the vectors.
        key: random key of the first Lanczos vector.
    """
    if x.size <= _DENSE:
        whole = np.asarray(jax.jit(jax.vmap(product))(jnp.eye(x.size)), np.float64)
        return np.linalg.eigvalsh(whole)
    tridiagonal = jax.jit(lambda v: decomp.tridiag_sym(_DEPTH, custom_vjp=False)(product, v)[1])
    return np.linalg.eigvalsh(np.asarray(tridiagonal(jax.random.normal(key, x.shape, x.dtype)), np.float64))
