"""Learning-rate schedulers of PyTorch as plain records, from live objects or from state dicts, and back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sdelens.torch._optimizers import plain_number

__all__ = ["Schedule", "Stretched", "is_state", "of_live", "of_state", "rates_at", "to_state", "write"]

_COMMON: Final = frozenset(
    {"base_lrs", "last_epoch", "_step_count", "_last_lr", "_get_lr_called_within_step", "_is_initial", "verbose"}
)
_FIELDS: Final = {
    "LambdaLR": frozenset({"lr_lambdas"}),
    "MultiplicativeLR": frozenset({"lr_lambdas"}),
    "StepLR": frozenset({"step_size", "gamma"}),
    "MultiStepLR": frozenset({"milestones", "gamma"}),
    "ConstantLR": frozenset({"factor", "total_iters"}),
    "LinearLR": frozenset({"start_factor", "end_factor", "total_iters"}),
    "ExponentialLR": frozenset({"gamma"}),
    "PolynomialLR": frozenset({"total_iters", "power"}),
    "CosineAnnealingLR": frozenset({"T_max", "eta_min"}),
    "CosineAnnealingWarmRestarts": frozenset({"T_0", "T_i", "T_mult", "T_cur", "eta_min"}),
    "OneCycleLR": frozenset({"total_steps", "_schedule_phases", "_anneal_func_type", "cycle_momentum"}),
    "CyclicLR": frozenset({"total_size", "step_ratio", "max_lrs", "mode", "gamma", "scale_mode", "cycle_momentum"}),
    "SequentialLR": frozenset({"_schedulers", "_milestones"}),
    "ChainedScheduler": frozenset({"_schedulers"}),
    "ReduceLROnPlateau": frozenset({"factor", "patience", "cooldown", "min_lrs", "num_bad_epochs", "best", "eps"}),
}
"""What each scheduler keeps besides `_COMMON`; the order decides where one set contains another."""
_FUNCTIONS: Final = ("LambdaLR", "MultiplicativeLR")
_JOINED: Final = ("SequentialLR", "ChainedScheduler")


@dataclass(frozen=True)
class Schedule:
    """A scheduler.

    Attributes:
        kind: name of its class in ``torch.optim.lr_scheduler``.
        state: its attributes other than the optimizer and the schedulers that it joins.
        parts: the schedulers that it joins.
        live: the object; None if it was read from a state dict.
    """

    kind: str
    state: Mapping[str, Any]
    parts: tuple["Schedule", ...] = ()
    live: Any = None


class Stretched:
    """A function of the step, evaluated at k δ for step k, between whole steps by linear interpolation.

    Like the function itself, it appears in the state dict of a scheduler with its attributes, if it has any.
    """

    __slots__ = ("function", "product", "ratio")

    def __init__(self, function: Callable[[int], float], ratio: float, product: bool = False) -> None:
        """Evaluate `function` at another batch size.

        Args:
            function: the function of the old step.
            ratio: δ.
            product: whether the function is the factor of one step, so that those of several steps are multiplied.
        """
        inner = function if isinstance(function, Stretched) else None
        self.function: Callable[[int], float] = function if inner is None else inner.function
        self.ratio: float = ratio if inner is None else ratio * inner.ratio
        self.product = product

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        return getattr(self.function, "__dict__", {})

    def __reduce__(self) -> tuple[Any, ...]:
        return Stretched, (self.function, self.ratio, self.product)

    def __call__(self, step: int) -> float:
        """The value at a step of the new batch size."""
        if self.product:
            found = 1.0
            for old in range(int((step - 1) * self.ratio + 1e-9) + 1, int(step * self.ratio + 1e-9) + 1):
                found *= self.function(old)
            return found
        at = step * self.ratio
        below = int(at + 1e-9)
        rest = max(0.0, at - below)
        low = self.function(below)
        return low if rest < 1e-6 else low + rest * (self.function(below + 1) - low)


def of_live(scheduler: Any) -> Schedule:
    """The record of a live scheduler.

    Raises:
        TypeError: if it is not one of PyTorch's, or computes learning rates by itself; the message names it.
    """
    import torch

    kind = type(scheduler)
    for name in _FIELDS:
        base = getattr(torch.optim.lr_scheduler, name)
        own = [m for m in ("get_lr", "step") if getattr(kind, m, None) is not getattr(base, m, None)]
        if isinstance(scheduler, base) and not own:
            state = {k: v for k, v in vars(scheduler).items() if k not in ("optimizer", "_schedulers")}
            parts = tuple(of_live(part) for part in vars(scheduler).get("_schedulers", ()))
            return Schedule(name, state, parts, scheduler)
    raise TypeError(
        f"scheduler: got {kind.__module__}.{kind.__name__}, whose function of the step is not known; give one of "
        f"torch.optim.lr_scheduler's {', '.join(_FIELDS)} (LambdaLR takes any function), or create a new scheduler for "
        "the new batch size."
    )


def is_state(given: Any) -> bool:
    """Whether `given` looks like the state dict of a scheduler."""
    if not isinstance(given, Mapping) or "param_groups" in given:
        return False
    return ("last_epoch" in given and "_last_lr" in given) or ("_schedulers" in given and "_last_lr" in given)


def of_state(state: Mapping[str, Any]) -> Schedule:
    """The record of a state dict.

    Raises:
        ValueError: if it is that of no scheduler that is known; the message names its fields.
    """
    fields = set(state) - _COMMON
    sizes = {name: len(own) for name, own in _FIELDS.items() if own <= fields}
    if not sizes:
        raise ValueError(
            f"scheduler: cannot tell which scheduler has a state dict with {', '.join(sorted(fields)) or 'no fields'}; "
            f"it must be one of torch.optim.lr_scheduler's {', '.join(_FIELDS)}. Remove it from the checkpoint, and "
            "create a new scheduler for the new batch size."
        )
    kind = max(sizes, key=lambda name: sizes[name])
    if "base_lrs" not in state and kind not in (*_JOINED, "ReduceLROnPlateau"):
        raise ValueError(f"scheduler: the state dict of {kind} has no base_lrs; save scheduler.state_dict() again.")
    parts = tuple(of_state(part) for part in state.get("_schedulers", ()))
    return Schedule(kind, {k: v for k, v in state.items() if k != "_schedulers"}, parts)


def to_state(schedule: Schedule) -> dict[str, Any]:
    """The state dict of a record that was read from one."""
    own = {} if schedule.kind not in _JOINED else {"_schedulers": [to_state(part) for part in schedule.parts]}
    return {**schedule.state, **own}


def write(old: Schedule, new: Schedule) -> None:
    """Change the live scheduler of a record, and all that it joins; it becomes one of the new kind."""
    import torch

    live = old.live
    if new.kind != old.kind:
        live.__class__ = getattr(torch.optim.lr_scheduler, new.kind)
    for gone in old.state.keys() - new.state.keys():
        delattr(live, gone)
    vars(live).update(new.state)
    for before, after in zip(old.parts, new.parts, strict=True):
        write(before, after)


class _Groups:
    """What a scheduler needs of an optimizer to compute learning rates."""

    def __init__(self, groups: Sequence[Mapping[str, Any]]) -> None:
        self.param_groups = [{k: plain_number(v) for k, v in g.items() if k != "params"} for g in groups]


def rates_at(schedule: Schedule, groups: Sequence[Mapping[str, Any]]) -> list[float] | None:
    """The learning rates of all groups at the scheduler's present step, by its own formula.

    Returns:
        None if it has no formula, but only changes the last learning rate, or if its function is not in the state dict.
    """
    import torch

    if schedule.kind in (*_JOINED, "ReduceLROnPlateau", "MultiplicativeLR"):
        return None
    if schedule.kind in _FUNCTIONS and not all(callable(f) for f in schedule.state["lr_lambdas"]):
        return None
    kind = getattr(torch.optim.lr_scheduler, schedule.kind)
    scheduler = kind.__new__(kind)
    state = {k: plain_number(v) for k, v in schedule.state.items()}
    vars(scheduler).update({**state, "optimizer": _Groups(groups), "_get_lr_called_within_step": True})
    if schedule.kind == "CyclicLR":
        scheduler._init_scale_fn()
    compute = getattr(scheduler, "_get_closed_form_lr", scheduler.get_lr)
    return [float(rate) for rate in compute()]
