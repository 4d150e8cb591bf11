"""The largest learning rate at which an optimizer is stable about the minimum of a quadratic."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sdelens.cases.case import Case
from sdelens.core import check
from sdelens.core.compilation import program
from sdelens.core.stability import threshold
from sdelens.noise import AbstractNoise
from sdelens.optimizers import SGD, AdamW, DecayedOptimizer, Momentum, Optimizer, RMSpropW
from sdelens.problems import AbstractProblem
from sdelens.results.printable import Parts, Printable, Remarks, Table
from sdelens.theory._closure import Moments, advance
from sdelens.theory._linear import linear_gradient
from sdelens.theory._moments import LinearGradient, diagonal
from sdelens.theory._predict import require_variance
from sdelens.theory._supported import check_known

__all__ = ["StabilityLimit", "stability_limit"]

_STEPS = 2000
_HALVINGS = 24


@dataclass(frozen=True, repr=False)
class StabilityLimit(Printable):
    """The largest stable learning rate.

    Attributes:
        lr: the largest stable learning rate: the smaller of the two limits below; infinite where there is none.
        mean: limit for the mean of x.
        mean_square: limit for its mean square, and so for the mean loss; smaller where the noise grows with x.
        sharpness: λ_max of P^{−½}HP^{−½}, P the divisor of the gradient at rest (1 for SGD and Momentum); NaN for
            optimizers that move by signs.
        threshold: the mean is stable while lr times the sharpness is below this number; NaN as above.
        remarks: what the limits assume.
        title: what they are the limits of.
    """

    lr: float
    mean: float
    mean_square: float
    sharpness: float
    threshold: float
    remarks: list[str]
    title: str

    def _parts(self) -> Parts:
        rows = [
            ["largest stable lr", f"{self.lr:.5g}"],
            ["for the mean", f"{self.mean:.5g}"],
            ["for the mean square", f"{self.mean_square:.5g}"],
            ["sharpness", f"{self.sharpness:.5g}"],
            ["lr times sharpness stays below", f"{self.threshold:.5g}"],
        ]
        rows = [row for row in rows if row[1] != "nan"]
        return [self.title, Table(["", ""], rows), Remarks(self.remarks)]


def stability_limit(problem: AbstractProblem, noise: AbstractNoise, optimizer: Optimizer) -> StabilityLimit:
    r"""Compute the largest learning rate at which an optimizer is stable about the minimum.

    With λ the largest eigenvalue of P^{−½}HP^{−½}, all other numbers of the optimizer being fixed, the mean of x tends
    to its limit for η below

    | optimizer | limit, decay coupled | P |
    |---|---|---|
    | SGD | 2/(λ + θ) | 1 |
    | Momentum | 2(1 + β₁)/((1 − β₁)λ + (1 + β₁)θ) | 1 |
    | the same, Nesterov's form | 2(1 + β₁)/((1 − β₁)(1 + 2β₁)λ + (1 + β₁)θ) | 1 |
    | RMSpropW | as SGD | √v + ε |
    | AdamW | as Momentum | √v + ε |
    | SignSGD, Signum, Lion | 2/θ, infinite without decay | |

    and for independent decay θ, (2 − θ)/λ for SGD and likewise for the others. v is diag Σ at the minimum: E g² at
    rest for small η. RMSpropW and AdamW do not diverge above their limit: gradients, and with them v, grow until λ has
    fallen to it, and the optimizer oscillates at the edge of stability.

    If the covariance of the noise grows with the distance from the minimum, as that of mini-batches of a regression
    does, the mean square of x is stable only up to a smaller η. For SGD and Momentum this limit is computed from the
    closure: there the linear map of the covariance of the state has the spectral radius 1. With fresh examples,
    curvature 1 in all d directions and batches of B it is 2/(1 + (d + 1)/B).

    Args:
        problem: `Quadratic` or `LinearRegression`.
        noise: law of the gradient noise.
        optimizer: specification; its lr and schedule do not matter.

    Returns:
        A `StabilityLimit`; print it.

    Raises:
        TypeError: if the gradient is not linear, the optimizer is not covered by `predict`, or JAX traces an argument.
        ValueError: if the noise has no variance and the optimizer is not SignSGD.

    Source: the thresholds follow from the recursion's characteristic polynomial; that of Adam is in Cohen et al. 2022
    (*Adaptive Gradient Methods at the Edge of Stability*, arXiv 2207.14484), (2 + 2β₁)/((1 − β₁)η) for the
    preconditioned sharpness. Weight decay, Nesterov's form in this parametrisation and the mean square are derived
    here.

    Examples:
        >>> import sdelens as sl
        >>> problem, noise = sl.Quadratic([1.0, 4.0]), sl.GaussianNoise(1.0)
        >>> round(sl.theory.stability_limit(problem, noise, sl.Momentum(0.1, b1=0.9)).lr, 6)
        9.5
    """
    optimizer = check_known(problem, noise, optimizer)
    if check.any_traced(problem, noise, optimizer):
        raise TypeError(
            "stability_limit: JAX is tracing an argument (jit, grad or vmap), and eigenvalues are computed as numbers "
            "here; call it outside of the transformation, or differentiate the formula of its documentation."
        )
    case = Case.checked(problem, noise, dataclasses.replace(optimizer, schedule=None), None, 1)
    model = linear_gradient(problem, case.noise)
    require_variance(case, "a limit of stability")
    title = f"Stability of {type(optimizer).__name__} about the minimum, d = {problem.dim}"
    theta, coupled = float(optimizer.weight_decay), optimizer.decay == "coupled"
    if not isinstance(optimizer, SGD | Momentum | RMSpropW | AdamW):
        limit = (2 / theta if theta else math.inf) if coupled else (math.inf if theta < 2 else 0.0)
        said = "steps have the size lr, whatever the gradient: x oscillates about the minimum by a multiple of lr"
        return StabilityLimit(limit, limit, limit, math.nan, math.nan, [said + "."], title)
    remarks, divisor = list[str](), None
    if isinstance(optimizer, RMSpropW | AdamW):
        divisor = _divisor(model, optimizer)
        remarks.append(
            "v is taken as diag Σ at the minimum; above the limit gradients and v grow until the preconditioned "
            "sharpness is back at it, so the optimizer oscillates and does not diverge."
        )
    sharpness = _sharpness(model, divisor)
    number = _threshold(optimizer)
    limit = number / sharpness if sharpness > 0 else math.inf
    if coupled:
        limit = 1 / (1 / limit + theta / 2) if limit > 0 else limit
    mean_square = limit
    if not model.noise.constant:
        if divisor is None:
            mean_square = _mean_square(model, optimizer, limit)
        else:
            mean_square = math.nan
            remarks.append("the noise depends on x; its effect on the mean square is not computed with a divisor.")
    lowest = limit if math.isnan(mean_square) else min(limit, mean_square)
    return StabilityLimit(lowest, limit, mean_square, sharpness, number, remarks, title)


def _threshold(optimizer: DecayedOptimizer) -> float:
    nesterov = isinstance(optimizer, Momentum) and optimizer.nesterov
    kept = 0.0 if optimizer.decay == "coupled" else float(optimizer.weight_decay)
    return threshold(float(getattr(optimizer, "b1", 0.0)), nesterov=nesterov, kept=kept)


def _divisor(model: LinearGradient, optimizer: Any) -> np.ndarray:
    """P = √v + ε at the minimum."""
    none = jnp.zeros_like(model.curvature)
    noise = np.asarray(diagonal(model.noise_covariance(model.minimiser, none, none)), np.float64)
    return np.sqrt(noise) + max(float(optimizer.eps), np.finfo(np.float32).tiny)


def _sharpness(model: LinearGradient, divisor: np.ndarray | None) -> float:
    curvature = np.asarray(model.curvature, np.float64)
    size = np.ones(len(curvature)) if divisor is None else divisor**-0.5
    if curvature.ndim == 1:
        return float((curvature * size**2).max())
    return float(np.linalg.eigvalsh(size[:, None] * curvature * size)[-1])


def _mean_square(model: LinearGradient, optimizer: DecayedOptimizer, limit: float) -> float:
    """The learning rate at which the covariance of the state neither grows nor decays, by bisection."""
    low, high = 0.0, limit
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        stable = float(_growth(model, dataclasses.replace(optimizer, lr=middle, schedule=None))) < 0
        low, high = (middle, high) if stable else (low, middle)
    return 0.5 * (low + high)


@program()
def _growth(model: LinearGradient, optimizer: DecayedOptimizer) -> Array:
    """Logarithm of the spectral radius of the linear map of the state's covariance, by power iteration.

    The map takes positive semi-definite matrices to such matrices, so its largest eigenvalue dominates from the
    identity on. It is what `advance` adds to what it makes of 0; E Σ is linear in the covariance.
    """
    at, none = model.minimiser, jnp.zeros_like(model.curvature)
    one = jnp.ones_like(none) if none.ndim == 1 else jnp.eye(len(at), dtype=none.dtype)
    pair = isinstance(optimizer, Momentum)

    def after(parts: tuple[Array, ...]) -> tuple[Array, ...]:
        still = jnp.zeros_like(at)
        y = Moments(at, parts[0], *((still, parts[1], parts[2]) if pair else ()))
        y = advance(model, optimizer, y, jnp.zeros((), jnp.int32))
        return (y.xx, y.xm, y.mm) if pair else (y.xx,)

    def body(parts: tuple[Array, ...], _: None) -> tuple[tuple[Array, ...], Array]:
        parts = tuple(a - b for a, b in zip(after(parts), of_zero, strict=True))
        size = sum((jnp.sum(a**2) for a in parts), jnp.zeros(())) ** 0.5
        return tuple(a / size for a in parts), jnp.log(size)

    start: tuple[Array, ...] = (one, none, one) if pair else (one,)
    of_zero = after((none,) * len(start))
    sizes = lax.scan(body, start, length=_STEPS)[1]
    return sizes[_STEPS // 2 :].mean()
