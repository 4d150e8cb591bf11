"""What a change of the batch size does to an optimizer and its scheduler: computed and checked, then carried out."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sdelens.core import check
from sdelens.results.printable import Parts
from sdelens.scaling import Rescaled, ratio_of, rescale_readings
from sdelens.scaling import rescale as rescale_numbers
from sdelens.scaling.hyperparameters import Hyperparameters, Reading, read_dict
from sdelens.scaling.memory import ACCUMULATORS
from sdelens.torch._accumulators import Change, Conversion, StateOf, conversions
from sdelens.torch._optimizers import Known, plain_group, plain_number, positive_rate
from sdelens.torch._schedulers import Jump, at_new_batch, changes, cycles_momentum, interval_of
from sdelens.torch._schedules import Schedule

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Options", "Plan", "RescaledRun", "Target", "plan"]


_ENDS: Final = {"max_momentum", "base_momentum"}
"""Decays between which a scheduler cycles the momentum of a group."""


@dataclass(frozen=True, repr=False)
class RescaledRun(Rescaled):
    """A run of PyTorch rescaled to another batch size, with an account of every number.

    Attributes:
        optimizer: the live optimizer that was changed; of a checkpoint, its new parameter groups.
        scheduler: the live scheduler that was changed, None if none was given; of a checkpoint, its new state dict.
        arguments: of a checkpoint: new arguments of the training script, by name.
        path: of a checkpoint: where the new one was written.
    """

    scheduler: Any = None
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    path: Path | None = None

    @classmethod
    def of(cls, account: Rescaled, **more: Any) -> "Self":
        """An account with further attributes."""
        return cls(**{field.name: getattr(account, field.name) for field in dataclasses.fields(account)} | more)

    def _parts(self) -> Parts:
        """The account, and the new arguments if there are some."""
        said = list(Rescaled._parts(self))
        if self.arguments:
            said.append("\n".join(["New arguments:", *(f"  --{k} {_shown(v)}" for k, v in self.arguments.items())]))
        return said if self.path is None else [*said, f"Written to {self.path}"]


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Options:
    """What the user asks for; see `sdelens.torch.rescale`."""

    batch_ratio: float
    rule: str | None = None
    interval: str | None = None
    steps: int | None = None
    warmup: int | None = None
    clip_norm: float | None = None
    momentum: str | None = None
    decay: str | None = None
    accumulators: str = "scale"
    snr: Any = None
    batch_size: float | None = None


@dataclass(frozen=True)
class Target:
    """An optimizer and its scheduler, live or from a checkpoint.

    Attributes:
        known: what optimizer it is.
        groups: its parameter groups; their ``params`` are the keys of `state`.
        state: the state of every parameter.
        schedules: its schedulers.
        said: sentences for the account.
    """

    known: Known
    groups: Sequence[dict[str, Any]]
    state: Mapping[Any, dict[str, Any]]
    schedules: Sequence[Schedule] = ()
    said: Sequence[str] = ()

    def states(self) -> list[list[StateOf]]:
        """The state of every parameter of every group."""
        return [
            [StateOf(self.state.get(p, {}), f"group {i}, parameter {k}") for k, p in enumerate(group["params"])]
            for i, group in enumerate(self.groups)
        ]


@dataclass(frozen=True)
class Plan:
    """What is to be written, all of it computed and checked.

    Attributes:
        account: the account.
        groups: the new numbers of every parameter group.
        conversions: what converts the accumulators.
        schedules: the new schedulers.
        per_step: whether the schedulers are called after every step.
    """

    account: Rescaled
    groups: Sequence[Mapping[str, Any]]
    conversions: Sequence[Conversion]
    schedules: Sequence[Schedule]
    per_step: bool

    def write(self, target: Target) -> None:
        """Change the numbers and the accumulators of the optimizer."""
        import torch

        with torch.no_grad():
            for convert in self.conversions:
                convert()
            for group, numbers in zip(target.groups, self.groups, strict=True):
                _set(group, numbers)


def plan(target: Target, options: Options) -> Plan:
    """What is to be written.

    Raises:
        ValueError, TypeError: as `sdelens.torch.rescale`.
    """
    check.choice("accumulators", options.accumulators, ACCUMULATORS)
    ratio = ratio_of(options.batch_ratio)
    cycled = any(map(cycles_momentum, target.schedules))
    plain = [plain_group(group, target.known, cycled) for group in target.groups]
    readings = [_read(i, plain, target, options.decay) for i in range(len(plain))]
    asked = {n: getattr(options, n) for n in ("steps", "warmup", "clip_norm", "snr", "batch_size")}
    account, records = rescale_readings(readings, lambda parts: parts, ratio, options.rule, options.momentum, **asked)
    numbers = list(zip(readings, records, strict=True))
    pairs = list(zip(target.groups, numbers, strict=True))
    made = [_change(target.known, group, *pair, options) for group, pair in pairs]
    jump = Jump(ratio, [_factor(c) for c in made], _ends(plain, made, options))
    written = [_written(i, group, made[i], reading.write(new), jump) for i, (group, (reading, new)) in enumerate(pairs)]
    states = target.states()
    found = [
        one for change, group in zip(made, states, strict=True) for state in group for one in conversions(state, change)
    ]
    intervals = [interval_of(options.interval, schedule, _steps(states)) for schedule in target.schedules]
    schedules, more = _schedules(target, jump, written, intervals)
    per_step = "epoch" not in intervals
    return Plan(_account(account, target, made, written, more), written, found, schedules, per_step)


def _read(number: int, plain: Sequence[Mapping[str, Any]], target: Target, decay: str | None) -> Reading:
    """The reading of one parameter group; for a learning rate of 0, that of a positive one in its place."""
    group = dict(plain[number])
    if hasattr(group.get("lr"), "numel"):
        raise ValueError(f"group {number}: lr: got a tensor of {group['lr'].numel()} numbers; it must be one number.")
    if group.get("lr") == 0:
        group["lr"] = positive_rate(group, plain)
    try:
        reading = read_dict(group, decay or target.known.decay)
    except (ValueError, TypeError) as error:
        raise type(error)(f"group {number}: {error}") from error
    if target.known.name == "Adagrad":  # PyTorch adds ε outside the root
        reading = dataclasses.replace(reading, numbers=dataclasses.replace(reading.numbers, inside=False))
    return reading


def _factor(change: Change) -> float:
    return change.new.written_lr / change.old.written_lr


def _change(known: Known, group: Mapping[str, Any], reading: Reading, new: Hyperparameters, options: Options) -> Change:
    """The change of one group, with the numbers that have no rule of their own."""
    old, ratio = reading.numbers, float(ratio_of(options.batch_ratio))
    # With a measured SNR, the factor of ε² is that of squared gradients.
    square = (new.eps / old.eps) ** 2 if options.snr is not None and old.eps and new.eps else None
    change = Change(known, old, new, ratio, options.accumulators, square, {})
    own = {name: plain_number(group[name]) for name in (*known.own, *known.rates) if group.get(name)}
    paces = {"momentum_decay": change.pace, "lr_decay": change.pace}
    paces |= {name: _factor(change) for name in known.rates}
    if options.accumulators == "keep":  # the count of steps goes on as it is
        paces |= {"momentum_decay": 1.0, "lr_decay": 1.0}
    return dataclasses.replace(change, own={name: (value, value * paces.get(name, 1.0)) for name, value in own.items()})


def _ends(
    plain: Sequence[Mapping[str, Any]], made: Sequence[Change], options: Options
) -> Callable[[int, float], float]:
    """The map of a decay β of a group, at which a scheduler's cycle of the momentum ends, to the new batch size."""

    def end(number: int, beta: float) -> float:
        group = dict(plain[number])
        key, at = ("betas", (beta, *group["betas"][1:])) if "betas" in group else ("momentum", beta)
        group |= {key: at, "lr": made[number].old.written_lr}
        more = {} if options.snr is None else {"snr": options.snr}
        found = rescale_numbers(
            group, options.batch_ratio, options.rule, momentum=options.momentum, decay=options.decay, **more
        ).optimizer
        if not math.isclose(found["lr"] / group["lr"], _factor(made[number]), rel_tol=1e-6):
            raise ValueError(
                f"scheduler: it changes the momentum, and with momentum {options.momentum!r} the factor of lr would "
                "change with it; choose momentum 'samples' or 'fixed', or make a new scheduler for the new batch size."
            )
        return float(found[key][0] if key == "betas" else found[key])

    return end


def _written(
    number: int, group: Mapping[str, Any], change: Change, written: Mapping[str, Any], jump: Jump
) -> dict[str, Any]:
    """All new numbers of one group."""
    new = {key: value for key, value in written.items() if key in group}
    new |= {name: after for name, (_, after) in change.own.items()}
    if plain_number(group["lr"]) == 0:
        new["lr"] = 0.0
    ends = (_ENDS & group.keys()) - written.keys()
    return new | {name: jump.momentum(number, plain_number(group[name])) for name in ends}


def _steps(states: Sequence[Sequence[StateOf]]) -> float | None:
    """Steps of the optimizer; None if its state does not count them."""
    counts = [plain_number(state.parts.get("step")) for group in states for state in group]
    return max((float(count) for count in counts if isinstance(count, int | float)), default=None)


def _schedules(
    target: Target, jump: Jump, written: Sequence[dict[str, Any]], intervals: Sequence[str]
) -> tuple[list[Schedule], list[tuple[str, float, float, str]]]:
    """The new schedulers and their rows; learning rates in `written` become those of the rounded step."""
    found, rows = [], []
    for schedule, per in zip(target.schedules, intervals, strict=True):
        own = jump if per == "step" else dataclasses.replace(jump, ratio=Fraction(1))
        groups = [{**group, **new} for group, new in zip(target.groups, written, strict=True)]
        new, rates = at_new_batch(schedule, own, target.groups, groups)
        for numbers, rate in zip(written, rates, strict=True):
            numbers["lr"] = rate
        found.append(new)
        rows += changes(schedule, new)
    return found, rows


def _account(
    account: Rescaled,
    target: Target,
    made: Sequence[Change],
    written: Sequence[Mapping[str, Any]],
    schedule: Sequence[tuple[str, float, float, str]],
) -> Rescaled:
    """The account with the rows of the scheduler and of numbers without a rule, and further sentences."""
    rows = list(account.account)

    def add(name: str, before: float, after: float, why: str, group: int | None = None) -> None:
        numbers: dict[str, Any] = {"before": before, "after": after, "factor": after / before if before else 1.0}
        rows.append(dataclasses.replace(rows[0], name=name, of=name, why=why, group=group, **numbers))

    for i, (change, group, new) in enumerate(zip(made, target.groups, written, strict=True)):
        number = i if len(made) > 1 else None
        for name, (before, after) in change.own.items():
            if name not in ("delta", "wd_ratio"):
                why = "like lr" if name in change.known.rates else "the same function of the number of samples"
                add(name, before, after, why, number)
        for name in sorted(_ENDS & group.keys() & new.keys()):
            add(name, plain_number(group[name]), new[name], "like the momentum, of whose cycle it is an end", number)
    for name, before, after, why in schedule:
        add(name, before, after, why)
    said = [*account.assumed, *target.said, *([target.known.remark] if target.known.remark else [])]
    if any(plain_number(group["lr"]) == 0 for group in target.groups):
        said.append(
            "lr is 0 at present, as at the start of a warm-up, and stays 0; its row shows a learning rate of the "
            "scheduler, or of another group, and the factor."
        )
    return dataclasses.replace(account, account=tuple(rows), assumed=tuple(dict.fromkeys(said)))


def _set(group: dict[str, Any], written: Mapping[str, Any]) -> None:
    """Write new numbers to the group; tensors are changed in place, because a captured graph reads them."""
    for key, value in written.items():
        if key not in group or value == plain_number(group[key]):
            continue
        if isinstance(value, tuple | list):
            for old, new in zip(group[key], value, strict=True):
                if hasattr(old, "fill_"):
                    old.fill_(new)
            if not any(hasattr(old, "fill_") for old in group[key]):
                group[key] = value
        elif hasattr(group[key], "fill_"):
            group[key].fill_(value)
        else:
            group[key] = value
