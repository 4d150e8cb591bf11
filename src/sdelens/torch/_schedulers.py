"""Convert learning-rate schedulers to another batch size: the same functions of the number of samples, scaled.

Let δ be the ratio of batch sizes and φ the factor of the learning rate. A scheduler whose learning rate at step k is
η(k) becomes one with φ η(kδ). Where its formula allows fractions of a step, numbers of steps are divided by δ exactly;
where it does not (the ends of warm-up, milestones), they are rounded to whole steps, which moves them by at most half a
step.
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Final

from sdelens.core import check
from sdelens.torch._optimizers import plain_number
from sdelens.torch._schedules import Schedule, Stretched, rates_at

__all__ = ["Jump", "at_new_batch", "changes", "cycles_momentum", "interval_of", "nearest"]

_LEAST: Final = 1e-9
"""Milestones that stand for a period of StepLR end where the learning rate has been multiplied by this."""
_MOST: Final = 10_000
_INTERVALS: Final = ("step", "epoch")
_AGREE: Final = 1.25
"""Steps of the optimizer per call of its scheduler up to which it is called after every step; after an earlier change
of the batch size, Adam's step count is only about that of the new batch."""


def nearest(steps: float, ratio: Fraction, least: int = 0) -> int:
    """A number of steps divided by the ratio and rounded, halves up."""
    return max(math.floor(_divided(steps, ratio) + Fraction(1, 2)), least)


def _divided(steps: float, ratio: Fraction) -> Fraction:
    if not isinstance(steps, int | float) or not math.isfinite(steps):
        raise ValueError(f"scheduler: got {steps!r} as a number of steps; load a complete state.")
    return Fraction(steps) / ratio


@dataclass(frozen=True)
class Jump:
    """A change of the batch size, as schedulers see it.

    Attributes:
        ratio: δ; 1 for a scheduler that counts epochs.
        factors: φ for every parameter group.
        momentum: the map of a decay β of a group (by its index) to that at the new batch size.
    """

    ratio: Fraction
    factors: Sequence[float]
    momentum: Callable[[int, float], float]

    def exactly(self, steps: float) -> float:
        """A number of steps divided by δ; whole if it is."""
        found = _divided(steps, self.ratio)
        return int(found) if found.denominator == 1 else float(found)

    def nearest(self, steps: float, least: int = 0) -> int:
        """A number of steps divided by δ and rounded."""
        return nearest(steps, self.ratio, least)

    def rates(self, rates: Sequence[Any]) -> list[Any]:
        """Learning rates of all groups, scaled.

        Raises:
            ValueError: if there are not as many as groups.
        """
        if len(rates) != len(self.factors):
            raise ValueError(
                f"scheduler: it has {len(rates)} learning rates, but the optimizer has {len(self.factors)} parameter "
                "groups; create a new scheduler after adding groups."
            )
        return [rate * factor for rate, factor in zip(rates, self.factors, strict=True)]

    def common(self, name: str, rate: float) -> float:
        """A learning rate that all groups share, scaled.

        Raises:
            ValueError: if it is not 0 and the factors differ.
        """
        if rate and not math.isclose(min(self.factors), max(self.factors), rel_tol=1e-9):
            raise ValueError(
                f"scheduler: {name} = {rate:g} is one learning rate for all parameter groups, whose factors differ "
                f"({', '.join(f'{f:.4g}' for f in self.factors)}); create a new scheduler for the new batch size."
            )
        return rate * self.factors[0]


def cycles_momentum(schedule: Schedule) -> bool:
    """Whether the scheduler changes the momentum too."""
    return bool(schedule.state.get("cycle_momentum")) or any(map(cycles_momentum, schedule.parts))


def interval_of(asked: str | None, schedule: Schedule, steps: float | None) -> str:
    """Whether the scheduler is called after every step or after every epoch: as asked, else from its count.

    Args:
        asked: the user's answer.
        schedule: the scheduler.
        steps: steps that the optimizer has made; None if its state does not tell.

    Raises:
        ValueError: if nothing was asked, and the optimizer has made clearly more steps, or does not count them.
    """
    if asked is not None:
        return check.choice("interval", asked, _INTERVALS)
    calls = _position(schedule)
    if steps is not None and steps <= _AGREE * calls + 1:
        return "step"
    made = "keeps no count of its steps" if steps is None else f"has made {steps:.8g} steps"
    raise ValueError(
        f"interval: not given, and it cannot be told when the scheduler is called: it was called {calls} times, and "
        f"the optimizer {made}. Give interval='step' if it is called after every step, or interval='epoch' if once per "
        "epoch or validation; its numbers of steps then do not change."
    )


def _position(schedule: Schedule) -> int:
    """How often it has been called."""
    if "last_epoch" in schedule.state:
        return int(schedule.state["last_epoch"])
    return max((_position(part) for part in schedule.parts), default=0)


def at_new_batch(
    schedule: Schedule, jump: Jump, old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]
) -> tuple[Schedule, list[float]]:
    """The scheduler at the new batch size, and the learning rates there.

    A scheduler that multiplies the last learning rate needs one that fits the rounded step; that of the old step is
    therefore multiplied by the ratio of what its formula gives at the two.

    Args:
        schedule: the scheduler.
        jump: the change.
        old: the parameter groups.
        new: the rescaled parameter groups.

    Raises:
        ValueError: if a number of the scheduler cannot be converted; the message names it.
    """
    found = _converted(schedule, jump, None)
    rates = [float(plain_number(group["lr"])) for group in new]
    chained = any(len(s.parts) > 1 and s.kind == "ChainedScheduler" for s in _active(schedule))
    for before, after in zip(_leaves(schedule), _leaves(found), strict=True):
        past, now = rates_at(before, old), rates_at(after, new)
        if past is None or now is None:
            continue
        for i, (a, b) in enumerate(zip(past, now, strict=True)):
            if a > 0:
                rates[i] *= b / (a * jump.factors[i])
            elif rates[i] == 0 and not chained:
                rates[i] = b
    return _with_rates(found, rates), rates


def _active(schedule: Schedule) -> list[Schedule]:
    """The scheduler and all within it that act at its present step."""
    parts = schedule.parts
    if schedule.kind == "SequentialLR":
        parts = (parts[bisect_right(schedule.state["_milestones"], schedule.state["last_epoch"])],)
    return [schedule, *(found for part in parts for found in _active(part))]


def _leaves(schedule: Schedule) -> list[Schedule]:
    return [found for found in _active(schedule) if not found.parts]


def _with_rates(schedule: Schedule, rates: Sequence[float]) -> Schedule:
    """The scheduler with the learning rates that it reports."""
    own = {"_last_lr": list(rates)} if "_last_lr" in schedule.state else {}
    return replace(
        schedule, state={**schedule.state, **own}, parts=tuple(_with_rates(p, rates) for p in schedule.parts)
    )


def _converted(schedule: Schedule, jump: Jump, position: int | None) -> Schedule:
    """The scheduler at the new batch size.

    Args:
        schedule: the scheduler.
        jump: the change.
        position: the new step, if that of a scheduler which it belongs to decides.
    """
    state = dict(schedule.state)
    if "base_lrs" in state:
        state["base_lrs"] = jump.rates(state["base_lrs"])
    if "last_epoch" in state:
        last = state["last_epoch"]
        state["last_epoch"] = last if last < 0 else jump.nearest(last) if position is None else position
        if "_step_count" in state and last >= 0:
            state["_step_count"] = max(1, state["_step_count"] - last + state["last_epoch"])
    if schedule.kind == "SequentialLR":
        return _sequence(schedule, state, jump)
    if schedule.kind == "ChainedScheduler":
        return replace(schedule, parts=tuple(_converted(part, jump, position) for part in schedule.parts))
    kind, changed = _RULES[schedule.kind](state, jump)
    gone = {"step_size"} if kind != schedule.kind else set()
    kept = {key: value for key, value in state.items() if key not in gone}
    return replace(schedule, kind=kind, state={**kept, **changed})


def _sequence(schedule: Schedule, state: dict[str, Any], jump: Jump) -> Schedule:
    """SequentialLR: a milestone that is still to come stays so, because it starts its scheduler when it is reached."""
    last, ends = schedule.state["last_epoch"], [jump.nearest(m, 1) for m in state["_milestones"]]
    active = bisect_right(schedule.state["_milestones"], last)
    start = ends[active - 1] if active else 0
    new = max(start, min([state["last_epoch"], *(end - 1 for end in ends[active:])]))
    ends = [end if i < active else max(end, new + 1) for i, end in enumerate(ends)]
    parts = [_converted(p, jump, new - start if i == active else None) for i, p in enumerate(schedule.parts)]
    return replace(schedule, state={**state, "last_epoch": new, "_milestones": ends}, parts=tuple(parts))


Converted = tuple[str, dict[str, Any]]


def _lambda(state: dict[str, Any], jump: Jump) -> Converted:
    return "LambdaLR", {"lr_lambdas": [_stretched(f, jump) for f in state["lr_lambdas"]]}


def _multiplicative(state: dict[str, Any], jump: Jump) -> Converted:
    return "MultiplicativeLR", {"lr_lambdas": [_stretched(f, jump, True) for f in state["lr_lambdas"]]}


def _stretched(function: Any, jump: Jump, product: bool = False) -> Any:
    return Stretched(function, float(jump.ratio), product) if callable(function) and jump.ratio != 1 else function


def _step(state: dict[str, Any], jump: Jump) -> Converted:
    """StepLR; if its period is then no whole number of steps, MultiStepLR with the periods rounded one by one."""
    period = jump.exactly(state["step_size"])
    if isinstance(period, int):
        return "StepLR", {"step_size": period}
    gamma = plain_number(state["gamma"])
    count = math.ceil(math.log(_LEAST) / math.log(gamma)) if 0 < gamma < 1 else 1 if gamma == 0 else _MOST + 1
    if count > _MOST:
        raise ValueError(
            f"scheduler: StepLR with step_size = {state['step_size']} and gamma = {gamma:g} has no whole step_size at "
            f"batch ratio {float(jump.ratio):g}; choose a ratio that divides it, or create a new scheduler."
        )
    return "MultiStepLR", {"milestones": Counter(jump.nearest(i * state["step_size"], 1) for i in range(1, count + 1))}


def _milestones(state: dict[str, Any], jump: Jump) -> Converted:
    found: Counter[int] = Counter()
    for step, times in state["milestones"].items():
        found[jump.nearest(step, 1)] += times
    return "MultiStepLR", {"milestones": found}


def _until(kind: str) -> Callable[[dict[str, Any], Jump], Converted]:
    """A scheduler that stops after `total_iters` steps, which it must reach exactly."""
    return lambda state, jump: (kind, {"total_iters": jump.nearest(state["total_iters"], min(1, state["total_iters"]))})


def _exponential(state: dict[str, Any], jump: Jump) -> Converted:
    return "ExponentialLR", {"gamma": state["gamma"] ** float(jump.ratio)}


def _cosine(state: dict[str, Any], jump: Jump) -> Converted:
    found = {"T_max": jump.exactly(state["T_max"]), "eta_min": jump.common("eta_min", state["eta_min"])}
    return "CosineAnnealingLR", found


def _restarts(state: dict[str, Any], jump: Jump) -> Converted:
    found = {name: jump.exactly(state[name]) for name in ("T_0", "T_i", "T_cur")}
    return "CosineAnnealingWarmRestarts", {**found, "eta_min": jump.common("eta_min", state["eta_min"])}


def _one_cycle(state: dict[str, Any], jump: Jump) -> Converted:
    phases = [{**phase, "end_step": jump.exactly(phase["end_step"])} for phase in state["_schedule_phases"]]
    return "OneCycleLR", {"total_steps": math.ceil(state["total_steps"] / jump.ratio), "_schedule_phases": phases}


def _cyclic(state: dict[str, Any], jump: Jump) -> Converted:
    found: dict[str, Any] = {"total_size": jump.exactly(state["total_size"]), "max_lrs": jump.rates(state["max_lrs"])}
    for name in ("base_momentums", "max_momentums"):
        if name in state:
            found[name] = [jump.momentum(i, plain_number(beta)) for i, beta in enumerate(state[name])]
    if state["scale_mode"] == "iterations":
        found["gamma"] = state["gamma"] ** float(jump.ratio)
        if state.get("_scale_fn_custom") is not None:
            found["_scale_fn_custom"] = _stretched(state["_scale_fn_custom"], jump)
        elif "_scale_fn_ref" in state:
            found["_scale_fn_ref"] = _PowerOf(found["gamma"])
    return "CyclicLR", found


class _PowerOf:
    """k ↦ γ to the power k, the scale of CyclicLR in mode exp_range."""

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma

    def __call__(self, step: float) -> float:
        return float(self.gamma**step)


def _plateau(state: dict[str, Any], jump: Jump) -> Converted:
    """ReduceLROnPlateau: patience and cool-down in samples."""
    counts = ("patience", "cooldown", "cooldown_counter", "num_bad_epochs")
    found: dict[str, Any] = {name: jump.nearest(state[name]) for name in counts}
    found["cooldown"] = jump.nearest(state["cooldown"], min(1, state["cooldown"]))
    found["min_lrs"] = jump.rates(state["min_lrs"])
    found["eps"] = state["eps"] * min(jump.factors)
    if state.get("default_min_lr"):
        found["default_min_lr"] = jump.common("min_lr", state["default_min_lr"])
    return "ReduceLROnPlateau", found


_RULES: Final[dict[str, Callable[[dict[str, Any], Jump], Converted]]] = {
    "LambdaLR": _lambda,
    "MultiplicativeLR": _multiplicative,
    "StepLR": _step,
    "MultiStepLR": _milestones,
    "ConstantLR": _until("ConstantLR"),
    "LinearLR": _until("LinearLR"),
    "ExponentialLR": _exponential,
    "PolynomialLR": _until("PolynomialLR"),
    "CosineAnnealingLR": _cosine,
    "CosineAnnealingWarmRestarts": _restarts,
    "OneCycleLR": _one_cycle,
    "CyclicLR": _cyclic,
    "ReduceLROnPlateau": _plateau,
}


_RATES: Final = ("eta_min", "eps", "default_min_lr")


def changes(old: Schedule, new: Schedule, label: str = "") -> list[tuple[str, float, float, str]]:
    """Name, old value, new value and reason of every number of a scheduler that changes; not its lists of rates."""
    found: list[tuple[str, float, float, str]] = []
    for key, before in old.state.items():
        name, why = (
            f"{label}{new.kind}.{key.lstrip('_')}",
            "the scheduler is the same function of the number of samples",
        )
        if key == "_milestones":
            found += [(f"{name}[{i}]", *pair, why) for i, pair in enumerate(zip(before, new.state[key], strict=True))]
        elif key[0] != "_" and not (label and key == "last_epoch"):
            a, b = _number(before), _number(new.state.get(key))
            found += [] if a is None or b is None or a == b else [(name, a, b, "like lr" if key in _RATES else why)]
    for number, (part, after) in enumerate(zip(old.parts, new.parts, strict=True)):
        found += changes(part, after, f"[{number}].")
    return found


def _number(value: Any) -> float | None:
    """A number, or None for anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
