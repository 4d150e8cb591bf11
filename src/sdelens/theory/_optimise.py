r"""Optimal hyperparameters by gradient descent through the Gaussian closure."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, Final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.optimize import minimize

from sdelens.core import check
from sdelens.core.compilation import program
from sdelens.core.numerals import percent
from sdelens.noise import AbstractNoise
from sdelens.optimizers import AdamW, DecayedOptimizer, Optimizer, RMSpropW
from sdelens.optimizers.schedules import Interpolated
from sdelens.problems import AbstractProblem
from sdelens.theory._closure import Moments
from sdelens.theory._fluctuation import law_is_needed
from sdelens.theory._moments import LinearGradient
from sdelens.theory._optimum import Optimum, OptimumByBatch
from sdelens.theory._predict import prepared
from sdelens.theory._propagation import scanned
from sdelens.theory._time_to import crossing

__all__ = ["optimise"]

_NUMBERS: Final = ("lr", "b1", "b2", "weight_decay", "eps")
_BOUNDS: Final = {
    "b1": (0.001, 0.9999),
    "b2": (0.1, 0.99999),
    "weight_decay": (1e-6, 100.0),
    "eps": (1e-12, 100.0),
    "schedule": (0.0, 1.0),
}
_LR_RANGE: Final = 1e4
_GRID: Final = 25
"""Learning rates that are tried before the descent."""
_FLAT: Final = 0.01
"""Relative change of the excess loss, or of the time, below which a number is reported not to matter."""
_WORST: Final = 1e4


def optimise(
    problem: AbstractProblem,
    noise: AbstractNoise,
    optimizer: Optimizer,
    *,
    steps: int,
    over: str | Sequence[str] = "lr",
    loss: float | None = None,
    batch_ratios: Sequence[float] | None = None,
    knots: int = 8,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    start: Any = None,
) -> Any:
    r"""Find the learning rate, decays and schedule that minimise the predicted loss, or the time to a loss.

    The objective is the logarithm of the mean loss of `predict` after `steps` steps, minus its infimum, or of the steps
    that `time_to` needs. It is minimised by L-BFGS-B with derivatives through the closure, in the coordinates log lr,
    log(1 − β), log θ, log ε and the values of the schedule's knots, from the best of 25 learning rates if the learning
    rate is free. All is computed in float64.

    The minimum is a local one. With several numbers the loss often depends on a combination of them only; the table
    shows what halving and doubling each does.

    Args:
        problem: as in `predict`.
        noise: as in `predict`.
        optimizer: specification, whose numbers are the start of the descent.
        steps: optimizer steps; with `loss`, the largest number that is looked at.
        over: what is free, one or several of ``"lr"``, ``"b1"``, ``"b2"``, ``"weight_decay"``, ``"eps"`` and
            ``"schedule"``. The schedule is linear between knots: those of an `Interpolated`, otherwise `knots` evenly
            spaced ones.
        loss: the loss to be reached in the smallest number of steps; None minimises the final loss.
        batch_ratios: batch sizes relative to that of `noise`; see `AbstractNoise.at_batch_ratio`.
        knots: number of knots of a schedule, at least 2.
        bounds: lowest and highest value by name, in place of the defaults: lr within a factor of 10⁴, b1 from .001 to
            .9999, b2 from .1 to .99999, weight_decay from 10⁻⁶ to 100, eps from 10⁻¹² to 100, a schedule from 0 to 1.
        start: as in `predict`.

    Returns:
        An `Optimum`, or with `batch_ratios` an `OptimumByBatch`; print it.

    Raises:
        ValueError, TypeError: as `predict`; if a name is not a number of the optimizer; or if the loss is not above the
            infimum.

    Source: derived here; steps = S(1 + B_c/B) is the law of McCandlish et al. 2018 (*An Empirical Model of Large-Batch
    Training*, arXiv 1812.06162).

    Examples:
        >>> import sdelens as sl
        >>> problem, noise = sl.Quadratic([1.0, 4.0]), sl.GaussianNoise(1.0)
        >>> best = sl.theory.optimise(problem, noise, sl.SGD(0.1), steps=100)
        >>> round(best.values["lr"], 4)
        0.0259
    """
    names = _names(optimizer, over)
    if check.any_traced(problem, noise, optimizer, start):
        raise TypeError(
            "optimise: JAX is tracing an argument (jit, grad or vmap), and the descent runs in NumPy; call it outside "
            "of the transformation."
        )
    knots = check.at_least("knots", knots, 2)
    limits = _limits(optimizer, names, bounds or {})
    if batch_ratios is None:
        return _optimum(problem, noise, optimizer, steps, names, loss, knots, limits, start)
    ratios = [check.positive("batch_ratios", ratio) for ratio in batch_ratios]
    if not ratios:
        raise ValueError("batch_ratios: is empty; give at least one ratio, such as [1, 4, 16].")
    optima = [
        _optimum(problem, noise.at_batch_ratio(ratio), optimizer, steps, names, loss, knots, limits, start)
        for ratio in ratios
    ]
    exponents = []
    if "lr" in names:
        logs = np.log([[r, o.values["lr"]] for r, o in zip(ratios, optima, strict=True)])
        exponents = [float(b / a) for a, b in np.diff(logs, axis=0)]
    needed = np.array([math.inf if o.steps_to is None else o.steps_to for o in optima])
    critical = None
    if loss is not None and len(ratios) > 1 and np.isfinite(needed).all():
        slope, least = np.polyfit(1 / np.array(ratios), needed, 1)
        critical = float(slope / least)
    return OptimumByBatch(ratios, optima, exponents, critical)


def _names(optimizer: Any, over: str | Sequence[str]) -> tuple[str, ...]:
    names = (over,) if isinstance(over, str) else tuple(over)
    if not isinstance(optimizer, DecayedOptimizer):
        raise TypeError(f"optimizer: got {type(optimizer).__name__}; give sl.SGD, sl.AdamW or another specification.")
    known = [*(n for n in _NUMBERS if hasattr(optimizer, n)), "schedule"]
    for name in names:
        check.choice("over", name, known)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"over: got {list(names)}; give one or several different names of {', '.join(known)}.")
    return tuple(sorted(names, key=lambda name: name == "schedule"))


def _limits(
    optimizer: Any, names: tuple[str, ...], given: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    lr = float(optimizer.lr)
    limits = {"lr": (lr / _LR_RANGE, lr * _LR_RANGE), **_BOUNDS}
    for name, pair in given.items():
        check.choice("bounds", name, names)
        low, high = (check.number(f"bounds[{name!r}]", v) for v in pair)
        if not low < high or low < 0 or (name != "schedule" and low == 0):
            raise ValueError(f"bounds[{name!r}]: got {low:g} and {high:g}; give two positive numbers that increase.")
        if name in ("b1", "b2", "schedule") and (high > 1 or (high == 1 and name != "schedule")):
            raise ValueError(f"bounds[{name!r}]: got {high:g} as the highest value; it must be less than 1.")
        limits[name] = (low, high)
    return {name: limits[name] for name in names}


def _optimum(
    problem: Any,
    noise: Any,
    optimizer: Any,
    steps: int,
    names: tuple[str, ...],
    target: float | None,
    knots: int,
    limits: dict[str, tuple[float, float]],
    start: Any,
) -> Optimum:
    case, model, moments, (steps, _) = prepared(problem, noise, optimizer, (steps, 1), start)
    infimum = float(model.infimum)
    if target is not None and check.number("loss", target) <= infimum:
        raise ValueError(f"loss: got {target:g}, which is not above the infimum {infimum:g}; give a larger loss.")
    optimizer = case.optimizer
    if "schedule" in names and not isinstance(optimizer.schedule, Interpolated):
        at = np.linspace(0, steps, knots)
        values = [float(optimizer.multiplier(k)) for k in at]
        optimizer = dataclasses.replace(optimizer, schedule=Interpolated(at, values))
    first = moments()
    use_law = _uses_law(model, optimizer, first)
    with jax.enable_x64(True):
        fixed: Any = jax.tree.map(_precise, (model, optimizer, first))
        excess = -1.0 if target is None else target - infimum

        def objective(u: np.ndarray) -> tuple[float, np.ndarray]:
            value, slope = _objective(*fixed, u, excess, names, steps, use_law)
            value, slope = float(value), np.asarray(slope)
            return (value, slope) if math.isfinite(value) and np.isfinite(slope).all() else (_WORST, 0 * u)

        begin = _coordinates(optimizer, names)
        box = _box(optimizer, names, limits)
        best = np.clip(begin, *box.T)
        if "lr" in names:
            i = names.index("lr")
            tried = [np.where(np.arange(len(best)) == i, v, best) for v in np.linspace(box[i, 0], box[i, 1], _GRID)]
            best = min([best, *tried], key=lambda v: objective(v)[0])
        for _ in range(2):
            found: Any = minimize(objective, best, jac=True, method="L-BFGS-B", bounds=box)  # type: ignore[call-overload]
            best = found.x if found.fun <= objective(best)[0] else best
            if _uses_law(model, _with(optimizer, names, best), first) == use_law:
                break
            use_law = not use_law  # by the law of the noise if β₂ has become small
        lowest = objective(best)[0]
        changes: dict[str, tuple[float, float]] = {}
        for j, name in enumerate(n for n in names if n != "schedule"):
            less, more = (objective(best + math.log(2) * s * (np.arange(len(best)) == j))[0] for s in (-1, 1))
            changes[name] = (math.exp(min(less - lowest, 300)), math.exp(min(more - lowest, 300)))
        losses, needed = zip(*(_outcome(fixed, v, target, names, steps, use_law) for v in (best, begin)), strict=True)
    optimal = _with(optimizer, names, best)
    optimal = jax.tree.map(lambda a: float(a) if np.ndim(a) == 0 else np.asarray(a), optimal)
    remarks = _remarks(optimal, names, best, box, changes, target is not None)
    if lowest >= _WORST:
        remarks.append("no finite prediction was found; give a smaller lr or other bounds")
    elif target is not None and not math.isfinite(needed[0]):
        remarks.append(f"the loss {target:g} is not reached within {steps} steps; the final loss was minimised")
    elif not found.success:
        remarks.append(f"the descent stopped before it converged ({found.message})")
    return Optimum(
        optimal,
        _values(optimal, names),
        _values(optimizer, names),
        losses[0],
        losses[1],
        infimum,
        steps,
        target,
        None if target is None else needed[0],
        None if target is None else needed[1],
        changes,
        remarks,
    )


@program(static_argnums=(5, 6, 7))
def _objective(
    model: LinearGradient,
    optimizer: Any,
    start: Moments,
    u: Array,
    excess: Any,
    names: tuple[str, ...],
    steps: int,
    use_law: bool,
) -> tuple[Array, Array]:
    """Logarithm of the final excess loss, or if `excess` > 0 of the steps until it is reached, with its gradient."""

    def value(u: Array) -> Array:
        curve = _curve(model, _with(optimizer, names, u), start, steps, use_law)
        tiny = jnp.finfo(curve.dtype).tiny
        final = jnp.log(jnp.maximum(curve[-1], tiny))
        # If it is not reached, the objective goes on with the final loss, and is continuous where it just is.
        needed = crossing(curve, excess)
        reached = jnp.isfinite(needed)
        time = jnp.log(jnp.maximum(jnp.where(reached, needed, 1), 1e-3))
        beyond = jnp.log(float(steps)) + final - jnp.log(jnp.maximum(excess, tiny))
        return jnp.where(jnp.asarray(excess) > 0, jnp.where(reached, time, beyond), final)

    return jax.value_and_grad(value)(u)


def _outcome(
    fixed: tuple[LinearGradient, Any, Moments],
    u: np.ndarray,
    target: float | None,
    names: tuple[str, ...],
    steps: int,
    use_law: bool,
) -> tuple[float, float]:
    """The final loss and the steps to the target, at one point."""
    infimum = float(fixed[0].infimum)
    loss = math.exp(min(float(_objective(*fixed, u, -1.0, names, steps, use_law)[0]), 700)) + infimum
    if target is None:
        return loss, math.inf
    value = float(_objective(*fixed, u, target - infimum, names, steps, use_law)[0])
    needed = math.exp(min(value, 700))
    return loss, needed if loss <= target or needed < steps else math.inf


def _curve(model: LinearGradient, optimizer: Any, start: Moments, steps: int, use_law: bool) -> Array:
    """The excess loss at every step."""
    return jnp.asarray(scanned(model, optimizer, start, steps, 1, 0, use_law).loss) - model.infimum


def _uses_law(model: LinearGradient, optimizer: Any, start: Moments) -> bool:
    return isinstance(optimizer, RMSpropW | AdamW) and bool(law_is_needed(model.noise, float(optimizer.b2), start.x))


def _coordinates(optimizer: Any, names: tuple[str, ...]) -> np.ndarray:
    """The coordinates of the optimizer's own values."""
    parts = []
    for name in names:
        value = optimizer.schedule.values if name == "schedule" else getattr(optimizer, name)
        parts.append(np.atleast_1d(_to(name, np.asarray(value, np.float64))))
    return np.concatenate(parts)


def _box(optimizer: Any, names: tuple[str, ...], limits: dict[str, tuple[float, float]]) -> np.ndarray:
    """Lowest and highest value of every coordinate, shape (n, 2)."""
    rows = []
    for name in names:
        pair = np.sort([float(_to(name, np.asarray(v, np.float64))) for v in limits[name]])
        rows += [pair] * (len(optimizer.schedule.values) if name == "schedule" else 1)
    return np.array(rows)


def _to(name: str, value: Any) -> Any:
    """The coordinate of a value."""
    if name == "schedule":
        return value
    return np.log(np.maximum(1 - value if name in ("b1", "b2") else value, 1e-300))


def _with(optimizer: Any, names: tuple[str, ...], u: Any) -> Any:
    """The optimizer at a point in the coordinates."""
    new, i = optimizer, 0
    for name in names:
        if name == "schedule":
            count = len(optimizer.schedule.values)
            new = eqx.tree_at(lambda o: o.schedule.values, new, u[i : i + count])
            i += count
            continue
        value = (np if isinstance(u, np.ndarray) else jnp).exp(u[i])
        value = 1 - value if name in ("b1", "b2") else value
        new = eqx.tree_at(attrgetter(name), new, value)
        i += 1
    return new


def _values(optimizer: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {n: optimizer.schedule.values if n == "schedule" else float(getattr(optimizer, n)) for n in names}


def _remarks(
    optimizer: Any,
    names: tuple[str, ...],
    u: np.ndarray,
    box: np.ndarray,
    changes: Mapping[str, tuple[float, float]],
    timed: bool,
) -> list[str]:
    remarks = []
    what = "number of steps" if timed else "excess loss"
    for j, name in enumerate(n for n in names if n != "schedule"):
        value = getattr(optimizer, name)
        if np.abs(u[j] - box[j]).min() < 1e-3:
            remarks.append(f"{name}: {value:.4g} is a bound; the best value may lie beyond it, see bounds=")
        if max(abs(c - 1) for c in changes[name]) < _FLAT:
            least = percent(_FLAT)
            remarks.append(f"{name}: hardly matters; halving or doubling changes the {what} by less than {least}")
    return remarks


def _precise(leaf: Any) -> Any:
    floating = isinstance(leaf, np.ndarray | jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)
    return np.asarray(leaf, np.float64) if floating else leaf
