r"""Largest eigenvalues of Hessians along a run, from Hessian-vector products alone.

Everything is element-wise in the paths and in elementary operations: LAPACK inside a run can deadlock when two CPU
devices call it at once.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sdelens.cases.case import Case
from sdelens.core.random import Stream
from sdelens.core.tree import column, sum_coordinates
from sdelens.noise import NoiseLaw
from sdelens.noise.regression import StreamingLaw
from sdelens.optimizers import CONVERGED, Adagrad, AdamW, RMSpropW
from sdelens.problems import AbstractProblem

__all__ = [
    "Divisor",
    "batch_sharpness",
    "check_batch_sharpness",
    "divisor_of",
    "largest_eigenvalue",
    "sharpness",
]

_DEPTH = 24
_HALVINGS = 30
_BATCHES = 8
_Lanczos = tuple[Array, Array, Array, Array]
"""The last vector and this one, the β between them, and the first Rayleigh quotient."""


def sharpness(problem: AbstractProblem, x: Array, divisor: Array | None = None) -> Array:
    """λ_max of P^{−½}∇²f(x)P^{−½} for every path: shape (P,).

    Args:
        problem: whose loss f is.
        x: parameters, shape (d, P).
        divisor: P > 0, shape (d, P); None is 1.
    """
    size = jnp.ones_like(x) if divisor is None else 1 / jnp.sqrt(divisor)
    return largest_eigenvalue(lambda v: size * _hessian_product(problem, x, size * v), x)


def _hessian_product(problem: AbstractProblem, x: Array, v: Array) -> Array:
    """∇²f(x) v for every path, shape (d, P)."""
    return jax.jvp(lambda x: problem.evaluate(x)[1], (x,), (v,))[1]


def batch_sharpness(problem: AbstractProblem, noise: NoiseLaw, x: Array) -> Array:
    r"""E[gᵀ(∂g/∂x)g/‖g‖²] over 8 draws of a step's stochastic gradient g, for every path: shape (P,).

    ∂g/∂x is taken at the same draw: for mini-batches it is the Hessian of the mini-batch's loss, for other noise that
    of f. The draws differ between positions, since their random numbers depend on x.

    Source: Andreyev and Beneventano 2024 (*Edge of Stochastic Stability: Revisiting the Edge of Stability for SGD*,
    arXiv 2412.20553).
    """
    words = lax.bitcast_convert_type(sum_coordinates(x).astype(jnp.float32), jnp.uint32)
    stream = Stream(jnp.asarray([0x5A, 0x5B], jnp.uint32), words)

    def add(j: Array, total: Array) -> Array:
        def gradient(x: Array) -> Array:
            return noise.gradient(j, x, problem.evaluate(x)[1] if noise.needs_gradient else x, stream)

        g = gradient(x)
        image = jax.jvp(gradient, (x,), (g,))[1]
        return total + sum_coordinates(g * image) / jnp.maximum(sum_coordinates(g * g), jnp.finfo(x.dtype).tiny)

    return lax.fori_loop(0, _BATCHES, add, jnp.zeros(x.shape[-1], x.dtype)) / _BATCHES


def check_batch_sharpness(noise: NoiseLaw) -> None:
    """Refuse a law whose draws are not gradients of mini-batches at every x, or that changes with the step.

    Raises:
        ValueError: naming the observable.
    """
    if noise.scheduled:
        raise ValueError("observables: got 'batch_sharpness', but the noise changes with the step; leave it out.")
    if isinstance(noise, StreamingLaw):
        raise ValueError(
            "observables: got 'batch_sharpness', but gradients of fresh examples are drawn by their law, not from "
            "examples; give the regression samples=n."
        )


class Divisor(eqx.Module):
    """P = √v̂ + ε, or √(v + ε) for Adagrad.

    Attributes:
        eps: ε.
        b2: β₂ of the bias correction, None without one.
        count: number of gradients that v has averaged at step 0.
        inside: whether ε is inside the root.
    """

    eps: Any
    b2: Any
    count: Any
    inside: bool = eqx.field(static=True)

    def __call__(self, v: Array, step: Any) -> Array:
        """P after `step` steps; infinite where v averages no gradient yet."""
        eps = jnp.maximum(self.eps, jnp.finfo(v.dtype).tiny)
        if self.inside:
            return jnp.sqrt(v + eps)
        if self.b2 is None:
            return jnp.sqrt(v) + eps
        steps = (step + self.count).astype(v.dtype)
        share = -jnp.expm1(steps * jnp.log(self.b2))
        return jnp.where(steps > 0, jnp.sqrt(v / jnp.where(steps > 0, share, 1)) + eps, jnp.inf)


def divisor_of(case: Case) -> Divisor:
    """What a case's optimizer divides gradients by.

    Raises:
        ValueError: if it has no second moment.
    """
    optimizer: Any = case.optimizer.unwrapped
    if isinstance(optimizer, Adagrad):
        return Divisor(optimizer.eps, None, 0, True)
    if not isinstance(optimizer, AdamW | RMSpropW):
        raise ValueError(
            f"observables: got 'preconditioned_sharpness', but {optimizer.name} is not known to divide gradients by a "
            "second moment; it is recorded for sl.AdamW, sl.RMSpropW and sl.Adagrad."
        )
    corrected = isinstance(optimizer, AdamW)
    saved = case.start.saved.count
    count = (0 if optimizer.v0 == "zero" else CONVERGED) if saved is None else saved
    return Divisor(optimizer.eps, optimizer.b2 if corrected else None, jnp.asarray(count, jnp.int32), False)


def largest_eigenvalue(product: Callable[[Array], Array], x: Array) -> Array:
    """Largest eigenvalue of a symmetric matrix per path, by 24 Lanczos steps from a fixed random vector.

    It approaches λ_max from below. For d ≤ 24 it is exact but for rounding; of 150 and 300 evenly spaced eigenvalues,
    where many lie close to the largest, it finds one .4 % of their range lower, and a separate one to rounding.

    Args:
        product: v ↦ Hv, of shape (d, P), path by path.
        x: an array with the shape and dtype of the vectors.
    """
    depth = min(_DEPTH, x.shape[0])
    first = np.random.default_rng(0).standard_normal(x.shape[0])
    start = column(jnp.asarray(first / np.linalg.norm(first), x.dtype), x) * jnp.ones_like(x)
    tiny = jnp.finfo(x.dtype).eps

    def step(state: _Lanczos, _: None) -> tuple[_Lanczos, tuple[Array, Array]]:
        before, here, beta, rayleigh = state
        image = product(here)
        alpha = sum_coordinates(here * image)
        rest = image - alpha * here - beta * before
        size = jnp.sqrt(sum_coordinates(rest * rest))
        # Where the vectors are exhausted, the matrix gets further rows with its first Rayleigh quotient, which does not
        # change the largest eigenvalue.
        rayleigh = jnp.where(jnp.isnan(rayleigh), alpha, rayleigh)
        lives = sum_coordinates(here * here) > 0.5
        alpha = jnp.where(lives, alpha, rayleigh)
        goes_on = lives & (size > 10 * tiny * jnp.sqrt(sum_coordinates(image * image)))
        after = jnp.where(goes_on, rest / jnp.where(goes_on, size, 1), 0)
        size = jnp.where(goes_on, size, 0)
        return (here, after, size, rayleigh), (alpha, size)

    none = jnp.zeros(x.shape[-1], x.dtype)
    _, (alpha, beta) = lax.scan(step, (jnp.zeros_like(x), start, none, jnp.full_like(none, jnp.nan)), length=depth)
    return _largest_of_tridiagonal(alpha, beta[:-1])


def _largest_of_tridiagonal(alpha: Array, beta: Array) -> Array:
    """Largest eigenvalue, by bisection with Sturm's count; α of shape (m, P), β of shape (m − 1, P)."""
    none = jnp.zeros_like(alpha[:1])
    radius = jnp.concatenate([none, beta]) + jnp.concatenate([beta, none])
    low, high = alpha.max(axis=0), (alpha + radius).max(axis=0)
    tiny = jnp.finfo(alpha.dtype).tiny
    squares = jnp.concatenate([none, beta**2])

    def below(value: Array) -> Array:
        """Whether all eigenvalues are below the value: all pivots of T − value are negative."""

        def pivot(state: tuple[Array, Array], row: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
            last, negative = state
            last = row[0] - value - row[1] / last
            last = jnp.where(jnp.abs(last) < tiny, -tiny, last)
            return (last, negative & (last < 0)), None

        begin = (-jnp.ones_like(value), jnp.ones(value.shape, bool))
        return lax.scan(pivot, begin, (alpha, squares))[0][1]

    def halve(_: Array, interval: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = interval
        middle = 0.5 * (low + high)
        inside = below(middle)
        return jnp.where(inside, low, middle), jnp.where(inside, middle, high)

    low, high = lax.fori_loop(0, _HALVINGS, halve, (low, high))
    return 0.5 * (low + high)
