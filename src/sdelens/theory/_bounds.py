r"""Bounds of the loss, each with the assumptions it rests on.

With S = E f − f*, every bound follows from one inequality for one step, S₊ ≤ (1 − ηhr)S + (ηh)²c/2, or is what the
paper states for its SDE, dS/dt ≤ −hrS + ηh²c/2; only the rate r and the drive c differ. Phase 1 is S₊ ≤ S − ηh e₁√(2μS)
+ ….
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdelens import _check
from sdelens._names import FORMS
from sdelens.case import Case, check_subject
from sdelens.noise import AbstractNoise
from sdelens.noise._gaussian import Correlated
from sdelens.noise._symmetric import ScaledNoise
from sdelens.optimizers import SGD, Optimizer, SignSGD
from sdelens.problems import AbstractProblem
from sdelens.schedules import Limits
from sdelens.theory._constants import Constants, constants
from sdelens.theory._phases import BOUNDARIES, boundary_slope, signal

__all__ = ["Assumption", "LossBound", "loss_bound"]


class Assumption(NamedTuple):
    """One thing a bound rests on.

    Attributes:
        name: what is assumed.
        holds: True or False where it was checked, None where it could not be.
        detail: the numbers, or why it could not be checked.
    """

    name: str
    holds: bool | None
    detail: str


@dataclass(frozen=True)
class LossBound:
    """A bound of the mean loss.

    Attributes:
        times: t = kη.
        loss: bound of E f at these times; infinite where there is none.
        asymptote: bound of E f as t → ∞; infinite where there is none, as with a schedule that does not last.
        rate: r, per unit of time, of the excess loss's exponential decay; NaN where it does not decay so.
        valid_until: time from which on it need no longer hold, infinite if it always does.
        assumptions: what it rests on, checked where that can be done.
        reason: why there is no bound, at all or at some of the times; empty otherwise.
        form: ``"algorithm"`` or ``"paper"``.
        phase: 1, 2 or 3 of SignSGD, None for a bound from any start and for other optimizers.
        vanishes: with a schedule, for SGD and SignSGD, whether the bound goes to the infimum; None where not known.
        condition: when it does.
        title: what it bounds.
    """

    times: np.ndarray
    loss: np.ndarray
    asymptote: float
    rate: float
    valid_until: float
    assumptions: list[Assumption]
    reason: str
    form: str
    phase: int | None = None
    vanishes: bool | None = None
    condition: str = ""
    title: str = ""

    def __str__(self) -> str:
        """The bound at the first and last time, the asymptote, and every assumption."""
        lines = [self.title]
        ends = [i for i in (0, -1) if self.times.size and math.isfinite(self.loss[i])]
        said = [f"{self.loss[i]:.6g} at t = {self.times[i]:g}" for i in ends]
        if math.isfinite(self.asymptote):
            said.append(f"{self.asymptote:.6g} as t → ∞, approached at the rate {self.rate:.4g} per unit of time")
        lines += [f"E f ≤ {', '.join(said)}."] if said else []
        if math.isfinite(self.valid_until):
            lines.append(f"Holds until t = {self.valid_until:.4g}.")
        lines += [f"{'Not at every time' if said else 'No bound'}: {self.reason}."] if self.reason else []
        lines += [self.condition] if self.condition else []
        marks = {True: "holds", False: "FAILS", None: "not checked"}
        lines += [f"  {marks[a.holds]:11}  {a.name}: {a.detail}" for a in self.assumptions]
        return "\n".join(lines)

    __repr__ = __str__


@dataclass
class _Draft:
    """A bound in the making: S₊ ≤ (1 − ηhr(1 − ηhq))S + (ηh)²c/2, or that of phase 1."""

    rate: float = math.nan
    drive: float = math.nan
    """c."""
    quadratic: float = 0.0
    """q, what a step of finite size takes off the rate."""
    root: float = 0.0
    """e₁√(2μ) of phase 1."""
    valid_until: float = math.inf
    late_only: str = ""
    """Why only the asymptote is bounded."""
    assumptions: list[Assumption] = field(default_factory=list)

    def assume(self, name: str, holds: bool | None, detail: str) -> None:
        self.assumptions.append(Assumption(name, holds, detail))


def loss_bound(
    problem: AbstractProblem,
    noise: AbstractNoise,
    optimizer: Optimizer,
    times: Any,
    *,
    form: str = "algorithm",
    phase: int | None = None,
) -> LossBound:
    r"""An upper bound of the mean loss over time.

    f is μ-strongly convex and L-smooth with tr ∇²f ≤ L_τ, S = E f − f*, σ the largest scale of the noise, Y the
    signal-to-noise ratio of `phases`, m and q⁻ slope and intercept of erf's chord between 1 and 3/2.

    | | ``"paper"``: of the SDE | ``"algorithm"``: of the optimizer |
    |---|---|---|
    | SGD | S₀e^{−2μt} + (ηL_τλ_max(Σ)/4μ)(1 − e^{−2μt}) | per step S ← (1 − 2μη(1 − ηL/2))S + η²L_τλ_max(Σ)/2 |
    | SignSGD, phase 1 | ¼(√μ t − 2√S₀)² | S ← S − η erf(3/2)√(2μS) + η²L_τ/2 |
    | phase 2 | Δ = m/(√2σ) + ημm²/(4σ²), L_τ − μd(q⁻)² for L_τ | the same |
    | phase 3 | Δ = √(2/π)/σ + (η/π)μ/σ²; SignSGD exceeds it, by up to 1.4 times | Δ = erf(1)/(√2σ) |
    | any start | | Δ = e(s̄)/(s̄σ), s̄ = max(√2, max \|∂f(x₀)\|/σ), any unimodal law |
    | RMSpropW | rate 2μ/σ + θ(1 + μ/L), drive L_τ, for Σ = σ²I and x* = 0 | the same, with its step of finite size |
    | AdamW | limit as t → ∞ alone: (ηL_τ/2)·σL/(2μL + σθ(L + μ)) | the same, with its step of finite size |

    where phases 2, 3 and any start mean S₀e^{−2μΔt} + (ηL_τ/4μΔ)(1 − e^{−2μΔt}), step by step in the algorithm's form.
    On a curvature that is not diagonal SignSGD's step also couples coordinates: L_τ becomes the largest sᵀ∇²f s over
    signs s, or, under independent noise, the rate falls by 1 − ηLp(0); the smaller bound of the two is taken.

    Args:
        problem: what is minimised; μ, L and L_τ are exact for `Quadratic`, and for other problems measured at the start
            with products of the Hessian (matfree), an assumption that is returned as not checked.
        noise: law of the gradient noise.
        optimizer: specification.
        times: t = kη, shape (T,).
        form: ``"algorithm"`` or ``"paper"``.
        phase: of SignSGD: 1, 2, 3, or None: from any start in the algorithm's form, the phase of the start in the
            paper's.

    Returns:
        A `LossBound`. Where an assumption fails or a variance is infinite, the bound is infinite and says why.

    Raises:
        ValueError, TypeError: naming the argument.

    Source: arXiv 2411.15958; the algorithm's column is derived here.

    Example:
        >>> import sdelens as sl
        >>> bound = sl.theory.loss_bound(sl.Quadratic([1.0, 1.0]), sl.GaussianNoise(1.0), sl.SGD(0.1), [0.0, 50.0])
        >>> bound.loss.round(4)
        array([1.    , 0.0526])
    """
    check_subject(problem, noise, optimizer)
    _check.choice("form", form, FORMS)
    times = np.asarray(_check.finite_array("times", np.asarray(times), (1,)), np.float64)
    if (times < 0).any():
        raise ValueError(f"times: got {times.min():g}; give times of 0 or greater.")
    if phase is not None:
        if not isinstance(optimizer, SignSGD):
            raise ValueError(f"phase: belongs to signsgd; {optimizer.name} has one bound.")
        _check.choice("phase", str(phase), ("1", "2", "3"))
    case = Case.checked(problem, noise, optimizer, None, 1 + math.ceil(times.max() / optimizer.lr))
    known = constants(problem)
    draft = _Draft()
    _assume_convex(draft, problem, known)
    if isinstance(optimizer, SGD):
        _of_sgd(draft, case, known, form)
    elif isinstance(optimizer, SignSGD):
        phase = _of_signsgd(draft, case, known, form, phase)
    else:
        _of_adaptive(draft, case, known, form)
    return _finished(draft, case, times, form, phase)


def _assume_convex(draft: _Draft, problem: AbstractProblem, known: Constants) -> None:
    numbers = f"mu = {known.convexity:.4g}, L = {known.smoothness:.4g}, tr = {known.trace:.4g} ({known.source})"
    convex = known.convexity > 0
    draft.assume("strongly convex and smooth", (True if known.exact else None) if convex else False, numbers)
    infimum = problem.infimum
    draft.assume("infimum known", infimum is not None, "not given" if infimum is None else f"{infimum:.6g}")


def _assume_plain(draft: _Draft, case: Case) -> None:
    theta = float(case.optimizer.decay_rate)
    draft.assume("no weight decay", theta == 0, f"theta = {theta:g}")


def _assume_constant(draft: _Draft, noise: AbstractNoise) -> bool:
    constant = noise.independent or isinstance(noise, Correlated)
    draft.assume("noise of one law everywhere", constant, "it does not depend on x" if constant else "it depends on x")
    return constant


def _of_sgd(draft: _Draft, case: Case, known: Constants, form: str) -> None:
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


def _of_signsgd(draft: _Draft, case: Case, known: Constants, form: str, phase: int | None) -> int | None:
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
        draft.root, draft.drive = math.sqrt(2 * max(known.convexity, 0)) * math.erf(BOUNDARIES[0]), known.box
        if form == "paper":  # S' = −√(μS), of which the stated curve is the solution
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


def _from_any_start(draft: _Draft, case: Case, known: Constants, top: np.ndarray) -> None:
    """Drift e(g) ≥ (e(G)/G) g up to the gradient G = `top`, for a law whose e is concave."""
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


def _of_adaptive(draft: _Draft, case: Case, known: Constants, form: str) -> None:
    """Noise dominates, so that P = σ: SGD with the step η/σ and decay."""
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
    equal = bool(np.ptp(variance) <= 1e-6 * variance.max()) and not isinstance(case.noise, Correlated)
    if form == "paper":
        draft.assume("Sigma = sigma^2 I", equal, f"variances from {variance.min():.4g} to {variance.max():.4g}")
    scale = math.sqrt(float(variance.max()))
    grad = np.asarray(case.problem.evaluate(start)[1], np.float64)
    ratio = float((np.abs(grad) / np.sqrt(variance)).max())
    draft.assume("noise dominates", True if ratio < 0.1 else None, f"largest |grad|/sigma at the start {ratio:.3g}")
    mu, smooth = known.convexity, known.smoothness
    rate = 2 * mu / scale + theta * (1 + mu / smooth)
    draft.rate, draft.drive = rate, known.trace
    if not known.separable and isinstance(case.noise, Correlated):
        draft.drive = known.box
    if form == "algorithm":
        excess = _step_excess(optimizer, mu, smooth, scale)
        stable = 0 < excess < math.inf
        draft.assume("stable", stable, "the frozen recursion comes to rest" if stable else "lr is too large")
        draft.quadratic = (1 - 1 / excess) / lr if stable else 0.0
    if optimizer.name == "adamw":
        draft.late_only = "AdamW's bound is one of the limit t → ∞ alone, see asymptote"
    elif ratio >= 0.1:
        draft.late_only = (
            "noise does not dominate at the start; the bound is one of the limit t → ∞ alone, see asymptote"
        )


def _step_excess(optimizer: Any, mu: float, smooth: float, scale: float) -> float:
    """Largest ratio, over curvatures from μ to L, of the frozen recursion's variance at rest to the SDE's (η/2)/k."""
    lr, theta, b1 = float(optimizer.lr), float(optimizer.decay_rate), float(getattr(optimizer, "b1", 0.0))
    pull = np.linspace(mu, smooth, 65) / scale
    bottom = 2 * (1 + b1) - lr * pull * (1 - b1) - lr * theta * (1 + b1)
    if (bottom <= 0).any() or 1 + b1 - b1 * lr * theta <= 0:
        return math.inf
    exact = (1 - b1) * (1 + b1 - b1 * lr * theta) / ((1 - b1 + b1 * lr * theta) * bottom)
    return float(max(1.0, (2 * exact).max()))


def _finished(draft: _Draft, case: Case, times: np.ndarray, form: str, phase: int | None) -> LossBound:
    optimizer, lr = case.optimizer, float(case.optimizer.lr)
    infimum = case.problem.infimum
    failing = [a for a in draft.assumptions if a.holds is False]
    reason = "; ".join(f"{a.name}: {a.detail}" for a in failing)
    asymptote, values = math.inf, np.full(times.shape, math.inf)
    if not failing and infimum is not None:
        start = float(case.problem.loss(case.problem.start)) - infimum
        lasting = optimizer.schedule is None or optimizer.schedule.limits.lasts is True
        if draft.root == 0 and lasting:  # h ≤ 1, so that the bound at constant learning rate is one
            asymptote = infimum + 0.5 * lr * draft.drive / (draft.rate * (1 - lr * draft.quadratic))
        if draft.late_only:
            reason = draft.late_only
        else:
            values = infimum + _evaluate(draft, start, times, lr, optimizer, form == "algorithm")
            late = times > draft.valid_until * (1 + 1e-9)
            values = np.where(late, math.inf, values)
            if late.any():
                reason = f"a coordinate may have left phase {phase} from t = {draft.valid_until:.4g} on"
    vanishes, condition = _vanishing(optimizer)
    if vanishes and math.isfinite(asymptote):
        asymptote = float(infimum or 0.0)
    name = f"{type(optimizer).__name__}, {'any start' if phase is None else f'phase {phase}'}"
    title = f"Bound of the mean loss ({form}): {name if isinstance(optimizer, SignSGD) else type(optimizer).__name__}"
    return LossBound(
        times,
        values,
        asymptote,
        draft.rate if draft.root == 0 else math.nan,
        draft.valid_until,
        draft.assumptions,
        reason,
        form,
        phase,
        None if reason and failing else vanishes,
        condition,
        title,
    )


def _evaluate(
    draft: _Draft, start: float, times: np.ndarray, lr: float, optimizer: Optimizer, discrete: bool
) -> np.ndarray:
    """The excess loss at the times: step by step, or with every step resolved in continuous time."""
    if draft.root and not discrete:
        return 0.25 * np.maximum(2 * math.sqrt(start) - draft.root * _passed(optimizer, times, lr), 0) ** 2
    if optimizer.schedule is None and not draft.root:
        rate = draft.rate * (1 - lr * draft.quadratic)
        rest = 0.5 * lr * draft.drive / rate
        kept = (1 - lr * rate) ** (times / lr) if discrete else np.exp(-rate * times)
        return start * kept + rest * (1 - kept)
    step = _step_of(draft, lr, discrete)
    last = math.ceil(times.max() / lr)
    multipliers = _multipliers(optimizer, last)
    course = [start]
    for h in multipliers:
        course.append(step(course[-1], float(h)))
    return np.interp(times / lr, np.arange(last + 1), course)


def _step_of(draft: _Draft, lr: float, discrete: bool) -> Callable[[float, float], float]:
    def step(value: float, h: float) -> float:
        size = lr * h
        fresh = 0.5 * size**2 * draft.drive
        if draft.root:
            return max(value - size * draft.root * math.sqrt(value), 0.0) + fresh
        if discrete:
            return (1 - size * draft.rate * (1 - size * draft.quadratic)) * value + fresh
        kept = math.exp(-size * draft.rate)
        return kept * value + (fresh / (size * draft.rate) * (1 - kept) if size else 0.0)

    return step


def _multipliers(optimizer: Optimizer, count: int) -> np.ndarray:
    if optimizer.schedule is None:
        return np.ones(count)
    return np.asarray(jax.vmap(lambda k: jnp.asarray(optimizer.multiplier(k), float))(jnp.arange(count)), np.float64)


def _passed(optimizer: Optimizer, times: np.ndarray, lr: float) -> np.ndarray:
    """∫ h dt up to each time."""
    h = _multipliers(optimizer, math.ceil(times.max() / lr))
    return np.interp(times, lr * np.arange(len(h) + 1), np.concatenate([[0.0], lr * np.cumsum(h)]))


def _vanishing(optimizer: Optimizer) -> tuple[bool | None, str]:
    if optimizer.name not in ("sgd", "signsgd"):
        return None, ""
    limits = Limits(False, True) if optimizer.schedule is None else optimizer.schedule.limits
    both = None if None in limits else all(limits)
    if optimizer.schedule is None:
        return False, ""
    says = {True: "yes", False: "no", None: "not known"}
    return both, (
        f"The loss goes to its infimum if the schedule h → 0 (here: {says[limits.vanishes]}) and the integral of h "
        f"diverges (here: {says[limits.lasts]})."
    )


def _start_signal(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """∇f and |Y| at the start."""
    start = case.problem.start
    grad = np.asarray(case.problem.evaluate(start)[1])
    return grad.astype(np.float64), np.abs(signal(case.noise, grad, start))


def _scales(case: Case) -> np.ndarray:
    """The scale σ of every coordinate's noise; of a sum, that of a normal law with its density at 0."""
    noise, start = case.noise, case.problem.start
    if noise.normal:
        scale: Any = jnp.sqrt(noise.variance(start))
    elif isinstance(noise, ScaledNoise):
        scale = noise.scale
    else:
        scale = 1 / (math.sqrt(2 * math.pi) * noise.density(jnp.zeros_like(start), start))
    return np.broadcast_to(np.asarray(scale, np.float64), start.shape)


def _largest_variance(case: Case) -> float:
    if isinstance(case.noise, Correlated):
        return float(np.linalg.eigvalsh(np.asarray(case.noise.matrix, np.float64))[-1])
    return float(np.max(np.asarray(case.noise.variance(case.problem.start), np.float64)))


def _is_unimodal(case: Case) -> bool:
    start = case.problem.start
    scale = jnp.asarray(_scales(case), start.dtype)
    at = scale[:, None] * jnp.linspace(0, 8, 200, dtype=start.dtype) if start.size <= 4096 else None
    if at is None:
        at, start = scale[:64, None] * jnp.linspace(0, 8, 200, dtype=start.dtype), start[:64]
    density = np.asarray(case.noise.density(at, start[:, None]), np.float64)
    return bool((np.diff(density, axis=1) <= 1e-5 * density.max()).all())


def _first_exit(case: Case, known: Constants, grad: np.ndarray, boundary: float) -> float:
    """A time before which no coordinate's |Y| can have fallen below `boundary`: x moves by at most ηh a step."""
    if known.row is None:
        return 0.0
    limit = _boundary_gradient(case, boundary)
    return max(float(((np.abs(grad) - limit) / np.maximum(known.row, 1e-300)).min()), 0.0)


def _boundary_gradient(case: Case, boundary: float) -> np.ndarray:
    """The gradient at which |Y| is `boundary`, by bisection for noise that is not normal."""
    scale = _scales(case)
    if case.noise.normal:
        return math.sqrt(2) * boundary * scale
    low, high = np.zeros_like(scale), 1e4 * scale
    for _ in range(60):
        middle = 0.5 * (low + high)
        below = np.abs(signal(case.noise, middle, case.problem.start)) < boundary
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return high
