r"""The rates and drives of the loss bounds, and their assumptions: one function per family of optimizers.

One step of an optimizer satisfies S₊ ≤ (1 − ηhr(1 − ηhq))S + (ηh)²c/2 with S = E f − f*; for its SDE the paper states
dS/dt ≤ −hrS + ηh²c/2. In phase 1 of SignSGD, √S decreases by ηh e₁√(μ/2) per step, and its variance is added.
"""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from sdelens.cases.case import Case
from sdelens.core.compilation import program
from sdelens.noise import NoiseLaw
from sdelens.problems import AbstractProblem
from sdelens.theory._fluctuation import at_rest, law_is_needed
from sdelens.theory._phases import BOUNDARIES, boundary_slope, signal
from sdelens.theory.constants import Constants

_GENTLE = 0.1
"""Largest (1 − β₂)(1 + κ/2), with the excess kurtosis κ of the noise, at which v fluctuates little."""

__all__ = ["Assumption", "Draft", "assume_convex", "of_adaptive", "of_sgd", "of_signsgd"]


class Assumption(NamedTuple):
    """One assumption of a bound.

    Attributes:
        name: what is assumed.
        holds: True or False if it was checked, None if it could not be checked.
        detail: the numbers, or why it could not be checked.
    """

    name: str
    holds: bool | None
    detail: str


@dataclass
class Draft:
    """The terms of a bound under construction: S₊ ≤ (1 − ηhr(1 − ηhq))S + (ηh)²c/2, or the bound of phase 1."""

    rate: float = math.nan
    drive: float = math.nan
    """c."""
    quadratic: float = 0.0
    """q, the relative reduction of the rate by the finite step size, divided by ηh."""
    root: float = 0.0
    """e₁√(2μ), for phase 1."""
    spread: float = 0.0
    """For phase 1: η²h²/2 times this value is added for every step."""
    valid_until: float = math.inf
    late_only: str = ""
    """The reason why only the asymptote is bounded; empty if other times are bounded too."""
    assumptions: list[Assumption] = field(default_factory=list)

    def assume(self, name: str, holds: bool | None, detail: str) -> None:
        self.assumptions.append(Assumption(name, holds, detail))


def assume_convex(draft: Draft, problem: AbstractProblem, known: Constants) -> None:
    """Add the assumptions about the loss that every bound needs."""
    numbers = f"mu = {known.convexity:.4g}, L = {known.smoothness:.4g}, tr = {known.trace:.4g} ({known.source})"
    convex = known.convexity > 0
    draft.assume("strongly convex and smooth", (True if known.exact else None) if convex else False, numbers)
    infimum = problem.infimum
    draft.assume("infimum known", infimum is not None, "not given" if infimum is None else f"{infimum:.6g}")


def _assume_plain(draft: Draft, case: Case) -> None:
    theta = float(case.optimizer.decay_rate)
    draft.assume("no weight decay", theta == 0, f"theta = {theta:g}")


def _assume_constant(draft: Draft, noise: NoiseLaw) -> bool:
    constant = noise.constant
    draft.assume("noise of one law everywhere", constant, "it does not depend on x" if constant else "it depends on x")
    return constant


def of_sgd(draft: Draft, case: Case, known: Constants, form: str) -> None:
    """Set rate, drive and assumptions for SGD."""
    _assume_plain(draft, case)
    if _assume_constant(draft, case.noise):
        largest = _largest_variance(case)
        finite = math.isfinite(largest)
        draft.assume("finite variance", finite, f"lambda_max(Sigma) = {largest:.4g}")
        draft.drive = known.trace * largest
    draft.rate = 2 * known.convexity
    if form == "algorithm":
        draft.quadratic = known.smoothness / 2
        size = float(case.optimizer.lr) * known.smoothness
        draft.assume("stable", size < 2, f"lr L = {size:.3g}, to be less than 2")


def of_signsgd(draft: Draft, case: Case, known: Constants, form: str, phase: int | None) -> int | None:
    """Set rate, drive and assumptions for SignSGD, and return the phase of the bound."""
    noise, lr = case.noise, float(case.optimizer.lr)
    _assume_plain(draft, case)
    if not _assume_constant(draft, noise):
        return phase
    grad, ratio = _start_signal(case)
    found = sorted({1 if y > BOUNDARIES[0] else 2 if y >= BOUNDARIES[1] else 3 for y in (ratio.max(), ratio.min())})
    if phase is None and form == "paper":
        one = len(found) == 1
        draft.assume("all coordinates start in one phase", one, f"|Y| from {ratio.min():.3g} to {ratio.max():.3g}")
        if not one:
            return None
        phase = found[0]
    if phase is not None:
        inside = found == [phase]
        draft.assume(f"starts in phase {phase}", inside, f"|Y| from {ratio.min():.3g} to {ratio.max():.3g}")
    if phase == 2 or form == "paper":
        draft.assume("normal noise", noise.normal, str(noise.describe()["name"]))
    if phase in (1, 2):
        draft.valid_until = _first_exit(case, known, grad, BOUNDARIES[phase - 1])
        draft.assume(
            f"stays in phase {phase}",
            None,
            f"no coordinate can leave it towards the minimum before t = {draft.valid_until:.4g}",
        )
    scale = float(_scales(case).max())
    if phase == 1:
        sure = math.erf(BOUNDARIES[0])
        draft.root, draft.drive = math.sqrt(2 * max(known.convexity, 0)) * sure, known.box
        # Var √S grows by Var(∇f·s)/4S per step, which is at most this value; E S = (E √S)² + Var √S.
        draft.spread = (1 - sure**2) * known.smoothness * (1 if noise.independent else case.problem.dim)
        if form == "paper":  # the curve in the paper is the solution of S' = −√(μS)
            draft.root, draft.drive = math.sqrt(max(known.convexity, 0)), 0.0
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
        widest = max(math.sqrt(2), float((np.abs(grad) / _scales(case)).max()))
        top = _boundary_gradient(case, BOUNDARIES[1]) if phase == 3 else widest * _scales(case)
        _from_any_start(draft, case, known, top)
    return phase


def _from_any_start(draft: Draft, case: Case, known: Constants, top: np.ndarray) -> None:
    """Use the drift e(g) ≥ (e(G)/G) g up to the gradient G = `top`, for a law whose e is concave."""
    noise, lr, start = case.noise, float(case.optimizer.lr), case.problem.start
    sign = np.broadcast_to(np.asarray(noise.mean_sign(jnp.asarray(top, start.dtype), start), np.float64), top.shape)
    slope = float((sign / top).min())
    draft.rate, draft.drive = 2 * known.convexity * slope, known.trace
    draft.assume("unimodal noise", _is_unimodal(case), "density falls from 0 outwards, looked at up to 8 scales")
    draft.assume("gradients stay below", None, f"{(top / _scales(case)).max():.3g} scales of the noise, on average")
    if not known.separable:
        at_zero = float(np.max(np.asarray(noise.density(jnp.zeros_like(start), start))))
        coupling = lr * known.smoothness * at_zero
        # E sᵀHs ≤ tr H + λ_max‖e‖², and ‖e‖² ≤ 2p(0) ∇f·e for independent signs.
        slower = draft.rate * (1 - coupling)
        if noise.independent and slower > 0 and known.trace / slower < known.box / draft.rate:
            draft.rate = slower
        else:
            draft.drive = known.box
    draft.assume("small steps", lr * draft.rate <= 1, f"lr times the rate = {lr * draft.rate:.3g}, to be at most 1")


def of_adaptive(draft: Draft, case: Case, known: Constants, form: str) -> None:
    """Set the terms for RMSpropW and AdamW if noise dominates: P = σ, as SGD with step η/σ and weight decay."""
    optimizer: Any = case.optimizer
    lr, theta = float(optimizer.lr), float(optimizer.decay_rate)
    no_schedule = optimizer.schedule is None
    draft.assume("constant learning rate", no_schedule, "no schedule" if no_schedule else "it has a schedule")
    if theta > 0:
        centred = None if known.minimiser is None else bool(np.abs(known.minimiser).max() == 0)
        draft.assume("minimum at 0, where decay pulls to", centred, "not known" if centred is None else "checked")
    if not _assume_constant(draft, case.noise):
        return
    start = case.problem.start
    variance = np.broadcast_to(np.asarray(case.noise.variance(start), np.float64), start.shape)
    finite = bool(np.isfinite(variance).all())
    draft.assume("finite variance", finite, f"largest {variance.max():.4g}")
    if not finite or known.convexity <= 0:
        return
    equal = bool(np.ptp(variance) <= 1e-6 * variance.max()) and not case.noise.has_covariance
    if form == "paper":
        draft.assume("Sigma = sigma^2 I", equal, f"variances from {variance.min():.4g} to {variance.max():.4g}")
    scale = math.sqrt(float(variance.max()))
    grad = np.asarray(case.problem.evaluate(start)[1], np.float64)
    ratio = float((np.abs(grad) / np.sqrt(variance)).max())
    draft.assume("noise dominates", True if ratio < 0.1 else None, f"largest |grad|/sigma at the start {ratio:.3g}")
    scale += float(optimizer.eps)  # ε reduces the rate, and the noise of a step only decreases
    mu, smooth = known.convexity, known.smoothness
    rate = 2 * mu / scale + theta * (1 + mu / smooth)
    draft.rate, draft.drive = rate, known.trace
    if not known.separable and case.noise.has_covariance:
        draft.drive = known.box
    if form == "algorithm":
        excess = _step_excess(optimizer, mu, smooth, scale)
        stable = excess < math.inf
        draft.assume("stable", stable, "the frozen recursion comes to rest" if stable else "lr is too large")
        draft.quadratic = (1 - 1 / excess) / lr if stable else 0.0
        pull, spread = _of_fluctuation(draft, case)
        draft.rate, draft.drive = rate * min(pull, 1.0), draft.drive * max(spread / max(pull, 1.0), min(pull, 1.0))
    if optimizer.name == "adamw":
        draft.late_only = "the bound of AdamW holds only in the limit t → ∞, see asymptote"
    elif optimizer.v0 == "zero":
        draft.late_only = "v starts at 0 and the first steps are long, so the bound holds only in the limit t → ∞"
    elif ratio >= 0.1:
        draft.late_only = (
            "noise does not dominate at the start, so the bound holds only in the limit t → ∞, see asymptote"
        )


_at_rest = program()(at_rest)


def _of_fluctuation(draft: Draft, case: Case) -> tuple[float, float]:
    """Effect of the fluctuation of v on m/√v if noise dominates: smallest F of the mean, largest N of the noise."""
    optimizer: Any = case.optimizer
    b1, b2 = float(getattr(optimizer, "b1", 0.0)), float(optimizer.b2)
    start = case.problem.start
    kurtosis = np.broadcast_to(np.asarray(case.noise.excess_kurtosis(start), np.float64), start.shape)
    known = bool(np.isfinite(kurtosis).all())
    gentle = known and (1 - b2) * (1 + float(kurtosis.max()) / 2) <= _GENTLE
    draft.assume(
        "v fluctuates little",
        True if gentle else None,
        f"b2 = {b2:g}, excess kurtosis of the noise {kurtosis.max():.3g}; taken "
        + ("from the law of the noise" if law_is_needed(case.noise, b2, start) else "to first order in 1 - b2"),
    )
    none, total = jnp.zeros_like(start), jnp.broadcast_to(case.noise.variance(start), start.shape)
    squares = (total, (jnp.asarray(kurtosis, total.dtype) + 2) * total**2)
    rule = case.noise.quadrature(start) if law_is_needed(case.noise, b2, start) else None
    pull, spread = _at_rest(rule, b1, b2, (none, none), squares, total)
    return float(jnp.min(pull)), float(jnp.max(spread))


def _step_excess(optimizer: Any, mu: float, smooth: float, scale: float) -> float:
    """Largest ratio, for curvatures from μ to L, of the frozen recursion's stationary variance to the SDE's (η/2)/k."""
    lr, theta = float(optimizer.lr), float(optimizer.decay_rate)
    pull = np.linspace(mu, smooth, 65) / scale
    own = _pair_at_rest(pull, lr, theta, float(getattr(optimizer, "b1", 0.0)))
    return float(max(1.0, (own / (0.5 * lr / (pull + theta))).max()))


def _pair_at_rest(pull: np.ndarray, lr: float, theta: float, b1: float) -> np.ndarray:
    """Stationary Var x of x ← (1 − ηθ)x − ηn, n ← β₁n + (1 − β₁)(Px + z) with Var z = 1; infinite if unstable.

    It solves the 3 equations of the stationary covariance, with P = `pull` and k = P + θ:

    η(1 − β₁)(1 + β₁ − β₁ηθ)/{k(1 − β₁ + β₁ηθ)[2(1 + β₁) − ηP(1 − β₁) − ηθ(1 + β₁)]}, which is η/(k(2 − ηk)) at β₁ = 0.
    """
    c = 1 - b1
    top, bottom = 1 + b1 - b1 * lr * theta, 2 * (1 + b1) - lr * pull * c - lr * theta * (1 + b1)
    stable = (bottom > 0) & (top > 0)
    return np.where(
        stable, lr * c * top / ((pull + theta) * (c + b1 * lr * theta) * np.where(stable, bottom, 1)), np.inf
    )


def _start_signal(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """∇f and |Y| at the start."""
    start = case.problem.start
    grad = np.asarray(case.problem.evaluate(start)[1])
    return grad.astype(np.float64), np.abs(signal(case.noise, grad, start))


def _scales(case: Case) -> np.ndarray:
    """The scale σ of every coordinate's noise."""
    start = case.problem.start
    return np.broadcast_to(np.asarray(case.noise.scales(start), np.float64), start.shape)


def _largest_variance(case: Case) -> float:
    if case.noise.has_covariance:
        return float(np.linalg.eigvalsh(np.asarray(case.noise.covariance(case.problem.start), np.float64))[-1])
    return float(np.max(np.asarray(case.noise.variance(case.problem.start), np.float64)))


def _is_unimodal(case: Case) -> bool:
    start = case.problem.start
    scale = jnp.asarray(_scales(case), start.dtype)
    levels = (case.noise.density(level * scale, start) for level in np.linspace(0, 8, 200, dtype=np.float32))
    densities = (np.broadcast_to(np.asarray(density, np.float64), start.shape) for density in levels)
    inner = peak = next(densities)
    for outer in densities:
        if (outer > inner + 1e-5 * peak.max()).any():
            return False
        inner = outer
    return True


def _first_exit(case: Case, known: Constants, grad: np.ndarray, boundary: float) -> float:
    """A time before which no |Y| can have fallen below `boundary`, since coordinates move by at most ηh per step."""
    if known.row is None:
        return 0.0
    limit = _boundary_gradient(case, boundary)
    return max(float(((np.abs(grad) - limit) / np.maximum(known.row, 1e-300)).min()), 0.0)


def _boundary_gradient(case: Case, boundary: float) -> np.ndarray:
    """The gradient at which |Y| equals `boundary`, by bisection if the noise is not normal."""
    scale = _scales(case)
    if case.noise.normal:
        return math.sqrt(2) * boundary * scale
    low, high = np.zeros_like(scale), 1e4 * scale
    for _ in range(60):
        middle = 0.5 * (low + high)
        below = np.abs(signal(case.noise, middle, case.problem.start)) < boundary
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return high
