r"""The rates and drives of the loss bounds, and their assumptions: one function per family of optimizers.

One step of an optimizer satisfies S₊ ≤ (1 − ηhr(1 − ηhq))S + (ηh)²c/2 with S = E f − f*; for its SDE the paper states
dS/dt ≤ −hrS + ηh²c/2. In phase 1 of SignSGD, √S decreases by ηh e₁√(μ/2) per step, and its variance is added.
"""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sdelens.cases.case import Case
from sdelens.core import check
from sdelens.core.compilation import program, quick
from sdelens.noise import NoiseLaw
from sdelens.problems import AbstractProblem, Quadratic
from sdelens.theory._fluctuation import at_rest, by_law_if, law_is_needed
from sdelens.theory._numbers import array, library, number, shown
from sdelens.theory._phases import BOUNDARIES, boundary_slope, signal
from sdelens.theory.constants import Constants

_NOISY = 0.1
"""Largest |∂f|/σ at which noise is said to dominate."""
_GENTLE = 0.1
"""Largest (1 − β₂)(1 + κ/2), with the excess kurtosis κ of the noise, at which v fluctuates little."""

__all__ = ["Assumption", "Draft", "assume_convex", "infimum_of", "of_adaptive", "of_sgd", "of_signsgd"]


class Assumption(NamedTuple):
    """One assumption of a bound.

    Attributes:
        name: what is assumed.
        holds: True or False if it was checked, None if it could not be checked; traced inside a JAX transformation.
        detail: the numbers, or why it could not be checked.
    """

    name: str
    holds: Any
    detail: str


@dataclass
class Draft:
    """The terms of a bound under construction: S₊ ≤ (1 − ηhr(1 − ηhq))S + (ηh)²c/2, or the bound of phase 1."""

    rate: Any = math.nan
    drive: Any = math.nan
    """c."""
    quadratic: Any = 0.0
    """q, the relative reduction of the rate by the finite step size, divided by ηh."""
    root: Any = 0.0
    """e₁√(2μ), for phase 1."""
    spread: Any = 0.0
    """For phase 1: η²h²/2 times this value is added for every step."""
    valid_until: Any = math.inf
    early: Any = True
    """Whether times before the limit t → ∞ are bounded, if that is traced."""
    late_only: str = ""
    """The reason why only the asymptote is bounded; empty if other times are bounded too."""
    assumptions: list[Assumption] = field(default_factory=list)

    def assume(self, name: str, holds: Any, detail: str) -> None:
        self.assumptions.append(Assumption(name, holds, detail))


def assume_convex(draft: Draft, problem: AbstractProblem, known: Constants) -> None:
    """Add the assumptions about the loss that every bound needs."""
    numbers = (
        f"mu = {shown(known.convexity)}, L = {shown(known.smoothness)}, tr = {shown(known.trace)} ({known.source})"
    )
    convex: Any = known.convexity > 0
    if not check.is_traced(convex):
        convex = (True if known.exact else None) if convex else False
    draft.assume("strongly convex and smooth", convex, numbers)
    infimum = infimum_of(problem)
    draft.assume("infimum known", infimum is not None, "not given" if infimum is None else f"{shown(infimum, 6)}")


def infimum_of(problem: AbstractProblem) -> Any:
    """The infimum; of a quadratic with traced numbers it is 0 if the assumption that it is convex holds."""
    return 0.0 if isinstance(problem, Quadratic) and check.is_traced(problem.curvature) else problem.infimum


def _assume_plain(draft: Draft, case: Case) -> None:
    theta = number(case.optimizer.decay_rate)
    draft.assume("no weight decay", theta == 0, f"theta = {shown(theta)}")


def _assume_constant(draft: Draft, noise: NoiseLaw) -> bool:
    constant = noise.constant
    draft.assume("noise of one law everywhere", constant, "it does not depend on x" if constant else "it depends on x")
    return constant


def of_sgd(draft: Draft, case: Case, known: Constants, form: str) -> None:
    """Set rate, drive and assumptions for SGD."""
    _assume_plain(draft, case)
    if _assume_constant(draft, case.noise):
        largest = _largest_variance(case)
        finite = jnp.isfinite(largest) if check.is_traced(largest) else math.isfinite(largest)
        draft.assume("finite variance", finite, f"lambda_max(Sigma) = {shown(largest)}")
        draft.drive = known.trace * largest
    draft.rate = 2 * known.convexity
    if form == "algorithm":
        draft.quadratic = known.smoothness / 2
        size = number(case.optimizer.lr) * known.smoothness
        draft.assume("stable", size < 2, f"lr L = {shown(size, 3)}, to be less than 2")


def of_signsgd(draft: Draft, case: Case, known: Constants, form: str, phase: int | None) -> int | None:
    """Set rate, drive and assumptions for SignSGD, and return the phase of the bound."""
    noise, lr = case.noise, number(case.optimizer.lr)
    _assume_plain(draft, case)
    if not _assume_constant(draft, noise):
        return phase
    grad, ratio = _start_signal(case)
    lib = library(ratio)
    if phase is None and form == "paper":
        if check.is_traced(ratio):
            raise TypeError("phase: is that of the start, which JAX traces (jit, grad, vmap); give phase=2 or 3.")
        found = sorted({1 if y > BOUNDARIES[0] else 2 if y >= BOUNDARIES[1] else 3 for y in (ratio.max(), ratio.min())})
        one = len(found) == 1
        draft.assume(
            "all coordinates start in one phase", one, f"|Y| from {shown(ratio.min(), 3)} to {shown(ratio.max(), 3)}"
        )
        if not one:
            return None
        phase = found[0]
    if phase is not None:
        low, high = ((BOUNDARIES[0], math.inf), BOUNDARIES[::-1], (-1.0, BOUNDARIES[1]))[phase - 1]
        own = (ratio >= low) & (ratio <= high) if phase == 2 else (ratio > low) & (ratio < high)
        inside = lib.all(own) if check.is_traced(ratio) else bool(own.all())
        draft.assume(f"starts in phase {phase}", inside, f"|Y| from {shown(ratio.min(), 3)} to {shown(ratio.max(), 3)}")
    if phase == 2 or form == "paper":
        draft.assume("normal noise", noise.normal, str(noise.describe()["name"]))
    if phase in (1, 2):
        draft.valid_until = _first_exit(case, known, grad, BOUNDARIES[phase - 1])
        draft.assume(
            f"stays in phase {phase}",
            None,
            f"no coordinate can leave it towards the minimum before t = {shown(draft.valid_until)}",
        )
    scale = number(_scales(case).max())
    if phase == 1:
        sure = math.erf(BOUNDARIES[0])
        draft.root, draft.drive = (
            library(known.convexity).sqrt(2 * library(known.convexity).maximum(known.convexity, 0)) * sure,
            known.box,
        )
        # Var √S grows by Var(∇f·s)/4S per step, which is at most this value; E S = (E √S)² + Var √S.
        draft.spread = (1 - sure**2) * known.smoothness * (1 if noise.independent else case.problem.dim)
        if form == "paper":  # the curve in the paper is the solution of S' = −√(μS)
            draft.root, draft.drive = (
                library(known.convexity).sqrt(library(known.convexity).maximum(known.convexity, 0)),
                0.0,
            )
    elif phase == 2:
        m, q = boundary_slope()
        slope = m / (math.sqrt(2) * scale) + lr * known.convexity * m**2 / (4 * scale**2)
        drive = known.trace if known.separable or form == "paper" else known.box
        draft.rate, draft.drive = 2 * known.convexity * slope, drive - known.convexity * case.problem.dim * q**2
    elif form == "paper":
        slope = math.sqrt(2 / math.pi) / scale + (lr / math.pi) * known.convexity / scale**2
        draft.rate, draft.drive = 2 * known.convexity * slope, known.trace
        draft.assume("linearised drift", None, "SignSGD's own drift is weaker, and its loss exceeds this")
    else:
        widest = lib.maximum(math.sqrt(2), (lib.abs(grad) / _scales(case)).max())
        top = _boundary_gradient(case, BOUNDARIES[1]) if phase == 3 else widest * _scales(case)
        _from_any_start(draft, case, known, top)
    return phase


def _from_any_start(draft: Draft, case: Case, known: Constants, top: Any) -> None:
    """Use the drift e(g) ≥ (e(G)/G) g up to the gradient G = `top`, for a law whose e is concave."""
    noise, lr, start = case.noise, number(case.optimizer.lr), case.problem.start
    sign = array(jnp.broadcast_to(noise.mean_sign(jnp.asarray(top, start.dtype), start), top.shape))
    slope = number((sign / top).min())
    draft.rate, draft.drive = 2 * known.convexity * slope, known.trace
    draft.assume("unimodal noise", _is_unimodal(case), "density falls from 0 outwards, looked at up to 8 scales")
    draft.assume(
        "gradients stay below", None, f"{shown((top / _scales(case)).max(), 3)} scales of the noise, on average"
    )
    if not known.separable:
        at_zero = number(array(noise.density(jnp.zeros_like(start), start)).max())
        coupling = lr * known.smoothness * at_zero
        # E sᵀHs ≤ tr H + λ_max‖e‖², and ‖e‖² ≤ 2p(0) ∇f·e for independent signs.
        slower = draft.rate * (1 - coupling)
        better = (slower > 0) & (known.trace * draft.rate < known.box * slower)
        if check.is_traced(better) and noise.independent:
            draft.rate, draft.drive = jnp.where(better, slower, draft.rate), jnp.where(better, known.trace, known.box)
        elif noise.independent and better:
            draft.rate = slower
        else:
            draft.drive = known.box
    draft.assume(
        "small steps", lr * draft.rate <= 1, f"lr times the rate = {shown(lr * draft.rate, 3)}, to be at most 1"
    )


def _assume_centred(draft: Draft, known: Constants, theta: Any) -> None:
    if check.any_traced(theta, known.minimiser) or theta > 0:
        centred = None if known.minimiser is None else library(known.minimiser).abs(known.minimiser).max() == 0
        if not check.any_traced(theta, centred):
            centred = None if centred is None else bool(centred)
        elif centred is not None:
            centred = (jnp.asarray(theta) == 0) | centred
        draft.assume("minimum at 0, where decay pulls to", centred, "not known" if centred is None else "checked")


def of_adaptive(draft: Draft, case: Case, known: Constants, form: str) -> None:
    """Set the terms for RMSpropW and AdamW if noise dominates: P = σ, as SGD with step η/σ and weight decay."""
    optimizer: Any = case.optimizer
    lr, theta = number(optimizer.lr), number(optimizer.decay_rate)
    no_schedule = optimizer.schedule is None
    draft.assume("constant learning rate", no_schedule, "no schedule" if no_schedule else "it has a schedule")
    _assume_centred(draft, known, theta)
    if not _assume_constant(draft, case.noise):
        return
    start = case.problem.start
    variance = array(jnp.broadcast_to(case.noise.variance(start), start.shape))
    lib = library(variance)
    finite = lib.isfinite(variance).all()
    finite = finite if check.is_traced(finite) else bool(finite)
    draft.assume("finite variance", finite, f"largest {shown(variance.max())}")
    if not check.any_traced(finite, known.convexity) and (not finite or known.convexity <= 0):
        return
    equal = lib.ptp(variance) <= 1e-6 * variance.max()
    equal = equal if check.is_traced(equal) else bool(equal)
    equal = False if case.noise.has_covariance else equal
    if form == "paper":
        draft.assume("Sigma = sigma^2 I", equal, f"variances from {shown(variance.min())} to {shown(variance.max())}")
    scale = lib.sqrt(number(variance.max()))
    grad = array(case.problem.evaluate(start)[1])
    ratio = number((library(grad).abs(grad) / lib.sqrt(variance)).max())
    dominates = ratio < _NOISY
    draft.assume(
        "noise dominates",
        None if check.is_traced(dominates) or not dominates else True,
        f"largest |∂f|/σ at the start {shown(ratio, 3)}",
    )
    scale += number(optimizer.eps)  # ε reduces the rate, and the noise of a step only decreases
    mu, smooth = known.convexity, known.smoothness
    rate = 2 * mu / scale + theta * (1 + mu / smooth)
    draft.rate, draft.drive = rate, known.trace
    if not known.separable and case.noise.has_covariance:
        draft.drive = known.box
    if form == "algorithm":
        excess = _step_excess(optimizer, mu, smooth, scale)
        stable = excess < math.inf
        known_stable = check.is_traced(stable) or stable
        draft.assume("stable", stable, "the frozen recursion comes to rest" if known_stable else "lr is too large")
        draft.quadratic = (1 - 1 / excess) / lr
        pull, spread = _of_fluctuation(draft, case)
        lib = library(pull)
        draft.rate, draft.drive = (
            rate * lib.minimum(pull, 1.0),
            draft.drive * lib.maximum(spread / lib.maximum(pull, 1.0), lib.minimum(pull, 1.0)),
        )
    if optimizer.name == "adamw":
        draft.late_only = "the bound of AdamW holds only in the limit t → ∞, see asymptote"
    elif optimizer.v0 == "zero":
        draft.late_only = "v starts at 0 and the first steps are long, so the bound holds only in the limit t → ∞"
    elif check.is_traced(dominates):
        draft.early = dominates
    elif not dominates:
        draft.late_only = (
            "noise does not dominate at the start, so the bound holds only in the limit t → ∞, see asymptote"
        )


_at_rest = program()(at_rest)


def _of_fluctuation(draft: Draft, case: Case) -> tuple[Any, Any]:
    """Effect of the fluctuation of v on m/√v if noise dominates: smallest F of the mean, largest N of the noise."""
    optimizer: Any = case.optimizer
    b1, b2 = number(getattr(optimizer, "b1", 0.0)), number(optimizer.b2)
    start = case.problem.start
    kurtosis = array(jnp.broadcast_to(case.noise.excess_kurtosis(start), start.shape))
    use_law = law_is_needed(case.noise, b2, start)
    if check.any_traced(kurtosis, b2, use_law):
        draft.assume("v fluctuates little", None, "b2 or the noise is traced")
        return _traced_fluctuation(case, b1, b2, kurtosis, use_law)
    known = bool(np.isfinite(kurtosis).all())
    gentle = known and (1 - b2) * (1 + float(kurtosis.max()) / 2) <= _GENTLE
    draft.assume(
        "v fluctuates little",
        True if gentle else None,
        f"b2 = {shown(b2)}, excess kurtosis of the noise {shown(kurtosis.max(), 3)}; taken "
        + ("from the law of the noise" if use_law else "to first order in 1 − b2"),
    )
    none, total = jnp.zeros_like(start), jnp.broadcast_to(case.noise.variance(start), start.shape)
    squares = (total, (jnp.asarray(kurtosis, total.dtype) + 2) * total**2)
    rule = case.noise.quadrature(start) if use_law else None
    pull, spread = _at_rest(rule, b1, b2, (none, none), squares, total)
    return float(jnp.min(pull)), float(jnp.max(spread))


def _traced_fluctuation(case: Case, b1: Any, b2: Any, kurtosis: Any, use_law: Any) -> tuple[Any, Any]:
    """The same with traced numbers."""
    start = case.problem.start
    none, total = jnp.zeros_like(start), jnp.broadcast_to(case.noise.variance(start), start.shape).astype(start.dtype)
    finite = jnp.where(jnp.isfinite(kurtosis), kurtosis, 0)
    squares = (total, (finite.astype(total.dtype) + 2) * total**2)

    def factors(rule: Any) -> tuple[Array, Array]:
        found = at_rest(rule, b1, b2, (none, none), squares, total)
        return jax.tree.map(lambda a: a.astype(start.dtype), found)

    pull, spread = by_law_if(use_law, lambda: factors(case.noise.quadrature(start)), lambda: factors(None))
    return pull.min(), spread.max()


def _step_excess(optimizer: Any, mu: Any, smooth: Any, scale: Any) -> Any:
    """Largest ratio, for curvatures from μ to L, of the frozen recursion's stationary variance to the SDE's (η/2)/k."""
    lr, theta, b1 = number(optimizer.lr), number(optimizer.decay_rate), number(getattr(optimizer, "b1", 0.0))
    lib = library(mu, smooth, scale, lr, theta, b1)
    pull = lib.linspace(mu, smooth, 65) / scale
    own = _pair_at_rest(pull, lr, theta, b1)
    return number(lib.maximum(1.0, (own / (0.5 * lr / (pull + theta))).max()))


def _pair_at_rest(pull: Any, lr: Any, theta: Any, b1: Any) -> Any:
    """Stationary Var x of x ← (1 − ηθ)x − ηn, n ← β₁n + (1 − β₁)(Px + z) with Var z = 1; infinite if unstable.

    It solves the 3 equations of the stationary covariance, with P = `pull` and k = P + θ:

    η(1 − β₁)(1 + β₁ − β₁ηθ)/{k(1 − β₁ + β₁ηθ)[2(1 + β₁) − ηP(1 − β₁) − ηθ(1 + β₁)]}, which is η/(k(2 − ηk)) at β₁ = 0.
    """
    c = 1 - b1
    top, bottom = 1 + b1 - b1 * lr * theta, 2 * (1 + b1) - lr * pull * c - lr * theta * (1 + b1)
    stable, lib = (bottom > 0) & (top > 0), library(bottom, top)
    return lib.where(
        stable, lr * c * top / ((pull + theta) * (c + b1 * lr * theta) * lib.where(stable, bottom, 1)), np.inf
    )


def _start_signal(case: Case) -> tuple[Any, Any]:
    """∇f and |Y| at the start."""
    start = case.problem.start
    grad = case.problem.evaluate(start)[1]
    if not check.any_traced(grad, start, case.noise):
        return np.asarray(grad, np.float64), np.abs(signal(case.noise, np.asarray(grad), start))
    if case.noise.normal:
        return grad, jnp.abs(grad) / jnp.sqrt(2 * case.noise.variance(start))
    sign = case.noise.mean_sign(grad, start)
    return grad, lax.erf_inv(jnp.abs(jnp.broadcast_to(sign, grad.shape)))


def _scales(case: Case) -> Any:
    """The scale σ of every coordinate's noise."""
    start = case.problem.start
    return array(jnp.broadcast_to(case.noise.scales(start), start.shape))


def _largest_variance(case: Case) -> Any:
    start = case.problem.start
    if case.noise.has_covariance:
        matrix = array(case.noise.covariance(start))
        return number(library(matrix).linalg.eigvalsh(matrix)[-1])
    return number(array(case.noise.variance(start)).max())


def _is_unimodal(case: Case) -> bool | None:
    start = case.problem.start
    if check.any_traced(_scales(case), case.noise):
        return True if case.noise.normal else None
    density = np.asarray(_densities(case.noise, np.asarray(_scales(case), start.dtype), start), np.float64)
    return bool((density[1:] <= density[:-1] + 1e-5 * density[0].max()).all())


@quick
def _densities(noise: NoiseLaw, scale: Array, start: Array) -> Array:
    """Densities of the noise at 200 multiples of its scale, from 0 to 8."""
    levels = jnp.linspace(0, 8, 200, dtype=start.dtype)
    return lax.map(lambda level: jnp.broadcast_to(noise.density(level * scale, start), start.shape), levels)


def _first_exit(case: Case, known: Constants, grad: Any, boundary: float) -> Any:
    """A time before which no |Y| can have fallen below `boundary`, since coordinates move by at most ηh per step."""
    if known.row is None:
        return 0.0
    limit = _boundary_gradient(case, boundary)
    lib = library(grad, limit, known.row)
    first = ((lib.abs(grad) - limit) / lib.maximum(known.row, np.finfo(np.float32).tiny)).min()
    return number(lib.maximum(first, 0.0))


def _boundary_gradient(case: Case, boundary: float) -> Any:
    """The gradient at which |Y| equals `boundary`, by bisection if the noise is not normal."""
    scale = _scales(case)
    if case.noise.normal:
        return math.sqrt(2) * boundary * scale
    if check.is_traced(scale):
        raise TypeError(
            "phase: the gradient at its boundary is found by bisection for noise that is not normal, which JAX cannot "
            "trace (jit, grad, vmap); leave phase out."
        )
    low, high = np.zeros_like(scale), 1e4 * scale
    for _ in range(60):
        middle = 0.5 * (low + high)
        below = np.abs(signal(case.noise, middle, case.problem.start)) < boundary
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return high
