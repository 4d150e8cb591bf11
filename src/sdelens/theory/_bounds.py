"""Bounds of the loss, each with the assumptions that it requires."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from sdelens.cases.case import Case
from sdelens.core import check
from sdelens.core.names import FORMS
from sdelens.noise import AbstractNoise
from sdelens.optimizers import SGD, DecayedOptimizer, Optimizer, SignSGD
from sdelens.problems import AbstractProblem
from sdelens.results.printable import Parts, Plotted, Remarks
from sdelens.theory._bound_terms import Assumption, Draft, assume_convex, infimum_of, of_adaptive, of_sgd, of_signsgd
from sdelens.theory._numbers import library
from sdelens.theory._supported import OF_THE_PAPER, check_known, check_law
from sdelens.theory.constants import constants

if TYPE_CHECKING:
    from sdelens.results.figures import Sheet

__all__ = ["Assumption", "LossBound", "loss_bound"]


@dataclass(frozen=True, repr=False)
class LossBound(Plotted):
    """A bound of the mean loss.

    Attributes:
        times: t = kη.
        loss: bound of E f at these times; infinite where there is none.
        asymptote: bound of E f as t → ∞; infinite if there is none, as in a phase that ends.
        rate: rate r per unit of time of the exponential decay of the excess loss; NaN if it does not decay
            exponentially.
        valid_until: time after which the bound may no longer hold; infinite if it always holds.
        assumptions: the assumptions of the bound, checked if possible.
        reason: why there is no bound, at all or at some of the times; empty otherwise.
        form: ``"algorithm"`` or ``"paper"``.
        phase: phase 1, 2 or 3 of SignSGD; None for a bound from any start and for other optimizers.
        vanishes: for SGD and SignSGD, whether the schedule lets the bound go to the infimum; None if not known.
        condition: the condition for this.
        title: what is bounded.
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

    def _parts(self) -> Parts:
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
        return [*lines, Remarks([f"{marks[a.holds]}: {a.name}: {a.detail}" for a in self.assumptions])]

    def _draw(self, sheet: "Sheet") -> None:
        """The bound at its times, and its limit for t → ∞."""
        (axes,) = sheet.panels(size=(5.6, 3.4))
        finite = np.isfinite(self.loss)
        axes.plot(self.times[finite], self.loss[finite], color="#0072B2", label="bound of the mean loss")
        if math.isfinite(self.asymptote):
            axes.axhline(self.asymptote, color="0.35", linestyle=(0, (4, 2)), label="for t → ∞")
        axes.set(xlabel="time  $t = k\\eta$", ylabel="loss")
        axes.margins(x=0)
        sheet.label_lines(axes)
        sheet.headline(self.title, axes)

    @property
    def _has_figure(self) -> bool:
        return bool(np.isfinite(self.loss).any())


def loss_bound(
    problem: AbstractProblem,
    noise: AbstractNoise,
    optimizer: Optimizer,
    times: Any,
    *,
    form: str = "algorithm",
    phase: int | None = None,
) -> LossBound:
    r"""Compute an upper bound of the mean loss over time.

    f is μ-strongly convex and L-smooth with tr ∇²f ≤ L_τ, S = E f − f*, σ is the largest scale of the noise, Y the
    signal-to-noise ratio of `phases`, and m and q⁻ are slope and intercept of the secant of erf between 1 and 3/2.

    | | ``"paper"``: of the SDE | ``"algorithm"``: of the optimizer |
    |---|---|---|
    | SGD | S₀e^{−2μt} + (ηL_τλ_max(Σ)/4μ)(1 − e^{−2μt}) | per step S ← (1 − 2μη(1 − ηL/2))S + η²L_τλ_max(Σ)/2 |
    | SignSGD, phase 1 | ¼(√μ t − 2√S₀)² | √S falls by η erf(3/2)√(μ/2) per step; η²L_τ/2 and its variance are added |
    | phase 2 | Δ = m/(√2σ) + ημm²/(4σ²), L_τ − μd(q⁻)² for L_τ | the same |
    | phase 3 | Δ = √(2/π)/σ + (η/π)μ/σ²; SignSGD exceeds it, by up to 1.4 times | Δ = erf(1)/(√2σ) |
    | any start | | Δ = e(s̄)/(s̄σ), s̄ = max(√2, max \|∂f(x₀)\|/σ), any unimodal law |
    | RMSpropW | rate 2μ/σ + θ(1 + μ/L), drive L_τ, for Σ = σ²I and x* = 0 | the same, with finite steps and noisy v |
    | AdamW | limit as t → ∞ alone: (ηL_τ/2)·σL/(2μL + σθ(L + μ)) | the same, with finite steps and noisy v |

    where the rows for phases 2, 3 and any start stand for S₀e^{−2μΔt} + (ηL_τ/4μΔ)(1 − e^{−2μΔt}), computed step by
    step in the algorithm's form. If the curvature is not diagonal, SignSGD's step also couples coordinates: L_τ becomes
    the largest sᵀ∇²f s over signs s, or, with independent noise, the rate is multiplied by 1 − ηLp(0); the smaller of
    the two bounds is used.

    Inside `jax.grad`, `jax.jit` and `jax.vmap` the numbers of problem, noise and optimizer may be traced, but not the
    times, and neither a schedule nor phase 1, whose bounds are computed step by step. Loss and asymptote are then JAX
    arrays, infinite where an assumption fails, and what is checked with numbers only is not checked.

    Args:
        problem: what is minimised; μ, L and L_τ are exact for `Quadratic` and `LinearRegression`; for other problems
            they are measured at the start with Hessian-vector products (matfree), an assumption that is returned as not
            checked.
        noise: law of the gradient noise.
        optimizer: specification.
        times: t = kη, shape (T,).
        form: ``"algorithm"`` or ``"paper"``.
        phase: phase of SignSGD: 1, 2, 3, or None, which means any start in the algorithm's form and the phase of the
            start in the paper's form.

    Returns:
        A `LossBound`. If an assumption fails or a variance is infinite, the bound is infinite and its `reason` says
        why.

    Raises:
        ValueError, TypeError: naming the argument.

    Source: arXiv 2411.15958; the algorithm's column is derived here.

    Examples:
        >>> import sdelens as sl
        >>> bound = sl.theory.loss_bound(sl.Quadratic([1.0, 1.0]), sl.GaussianNoise(1.0), sl.SGD(0.1), [0.0, 50.0])
        >>> bound.loss.round(4)
        array([1.    , 0.0526])
    """
    optimizer = check_known(problem, noise, optimizer, OF_THE_PAPER)
    check.choice("form", form, FORMS)
    if check.any_traced(times):
        raise TypeError("times: got an array that JAX traces (jit, grad, vmap); give numbers.")
    times = np.asarray(check.finite_array("times", np.asarray(times), (1,)), np.float64)
    if (times < 0).any():
        raise ValueError(f"times: got {times.min():g}; give times of 0 or greater.")
    if phase is not None:
        if not isinstance(optimizer, SignSGD):
            raise ValueError(f"phase: belongs to signsgd; {optimizer.name} has one bound.")
        check.choice("phase", str(phase), ("1", "2", "3"))
    traced = check.any_traced(problem, noise, optimizer)
    if traced and (optimizer.schedule is not None or phase == 1):
        raise TypeError(
            "optimizer: with a schedule, and in phase 1, the bound is computed step by step with numbers, and cannot "
            "be traced by JAX (jit, grad, vmap)."
        )
    last = 0 if check.is_traced(optimizer.lr) else math.ceil(times.max() / optimizer.lr)
    case = Case.checked(problem, noise, optimizer, None, 1 + last)
    check_law(case.noise, case.problem.start, optimizer)
    known = constants(problem)
    draft = Draft()
    assume_convex(draft, problem, known)
    if isinstance(optimizer, SGD):
        of_sgd(draft, case, known, form)
    elif isinstance(optimizer, SignSGD):
        phase = of_signsgd(draft, case, known, form, phase)
    else:
        of_adaptive(draft, case, known, form)
    return (_traced if traced else _finished)(draft, case, times, form, phase)


def _traced(draft: Draft, case: Case, times: np.ndarray, form: str, phase: int | None) -> LossBound:
    """The bound with traced numbers; where an assumption fails, it is infinite."""
    lr, infimum = case.optimizer.lr, infimum_of(case.problem)
    failing = any(a.holds is False for a in draft.assumptions)
    if failing or infimum is None:
        values: Any = np.full(times.shape, math.inf)
        asymptote: Any = math.inf
    else:
        holds = jnp.all(jnp.asarray([a.holds for a in draft.assumptions if a.holds is not None], bool))
        start = case.problem.loss(case.problem.start) - infimum
        rest = infimum + 0.5 * lr * draft.drive / (draft.rate * (1 - lr * draft.quadratic))
        lasting = draft.valid_until is math.inf
        asymptote = jnp.where(holds, rest, jnp.inf) if lasting else math.inf
        inside = holds & draft.early & (times <= draft.valid_until * (1 + 1e-9)) & (not draft.late_only)
        curve = infimum + _evaluate(draft, start, times, lr, case.optimizer, form == "algorithm")
        values = jnp.where(inside, curve, jnp.inf)
    title = f"Bound of the mean loss ({form}): {type(case.optimizer).__name__}"
    return LossBound(
        times,
        values,
        asymptote,
        draft.rate,
        draft.valid_until,
        draft.assumptions,
        draft.late_only,
        form,
        phase,
        title=title,
    )


def _finished(draft: Draft, case: Case, times: np.ndarray, form: str, phase: int | None) -> LossBound:
    optimizer, lr = case.optimizer, float(case.optimizer.lr)
    infimum = case.problem.infimum
    failing = [a for a in draft.assumptions if a.holds is False]
    reason = "it would take " + " and ".join(f"{a.name} ({a.detail})" for a in failing) if failing else ""
    asymptote, values = math.inf, np.full(times.shape, math.inf)
    if not failing and infimum is not None:
        start = float(case.problem.loss(case.problem.start)) - infimum
        lasting = optimizer.schedule is None or optimizer.schedule.limits.lasts is True
        if draft.root == 0 and lasting and draft.valid_until == math.inf:
            # h ≤ 1, so the bound for the constant learning rate also holds here.
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
        None if failing else vanishes,
        condition,
        title,
    )


def _evaluate(draft: Draft, start: Any, times: np.ndarray, lr: Any, optimizer: DecayedOptimizer, discrete: bool) -> Any:
    """The bound of the excess loss at the times: step by step, or in continuous time within every step."""
    if draft.root and not discrete:
        return 0.25 * np.maximum(2 * math.sqrt(start) - draft.root * _passed(optimizer, times, lr), 0) ** 2
    if optimizer.schedule is None and not draft.root:
        rate = draft.rate * (1 - lr * draft.quadratic)
        rest = 0.5 * lr * draft.drive / rate
        kept = (1 - lr * rate) ** (times / lr) if discrete else library(rate, lr).exp(-rate * times)
        return start * kept + rest * (1 - kept)
    step = _step_of(draft, lr, discrete)
    last = math.ceil(times.max() / lr)
    multipliers = _multipliers(optimizer, last)
    course = [start]
    for h in multipliers:
        course.append(step(course[-1], float(h)))
    spread = np.concatenate([[0.0], 0.5 * draft.spread * np.cumsum((lr * multipliers) ** 2)])
    return np.interp(times / lr, np.arange(last + 1), course + spread)


def _step_of(draft: Draft, lr: float, discrete: bool) -> Callable[[float, float], float]:
    def step(value: float, h: float) -> float:
        size = lr * h
        fresh = 0.5 * size**2 * draft.drive
        if draft.root:  # bound of (E √S)², from √S₊ ≤ √S + (S₊ − S)/(2√S)
            return (
                max(math.sqrt(value) - 0.5 * size * draft.root, 0.0) ** 2 + fresh + 0.25 * fresh**2 / max(value, fresh)
            )
        if discrete:
            return (1 - size * draft.rate * (1 - size * draft.quadratic)) * value + fresh
        kept = math.exp(-size * draft.rate)
        return kept * value + (fresh / (size * draft.rate) * (1 - kept) if size else 0.0)

    return step


def _multipliers(optimizer: DecayedOptimizer, count: int) -> np.ndarray:
    if optimizer.schedule is None:
        return np.ones(count)
    return np.asarray(jax.vmap(lambda k: jnp.asarray(optimizer.multiplier(k), float))(jnp.arange(count)), np.float64)


def _passed(optimizer: DecayedOptimizer, times: np.ndarray, lr: float) -> np.ndarray:
    """∫ h dt up to each time."""
    h = _multipliers(optimizer, math.ceil(times.max() / lr))
    return np.interp(times, lr * np.arange(len(h) + 1), np.concatenate([[0.0], lr * np.cumsum(h)]))


def _vanishing(optimizer: DecayedOptimizer) -> tuple[bool | None, str]:
    if optimizer.name not in ("sgd", "signsgd"):
        return None, ""
    if optimizer.schedule is None:
        return False, ""
    limits = optimizer.schedule.limits
    both = None if None in limits else all(limits)
    says = {True: "yes", False: "no", None: "not known"}
    return both, (
        f"The loss goes to its infimum if the schedule h → 0 (here: {says[limits.vanishes]}) and the integral of h "
        f"diverges (here: {says[limits.lasts]})."
    )
