"""Conversion of sdelens specifications to hyperparameters and back, with their schedules."""

import dataclasses
from typing import Any

from sdelens.core.declarations import OPTIMIZERS
from sdelens.optimizers import DecayedOptimizer, Optimizer
from sdelens.optimizers.schedules import Cosine, Schedule, Warmup
from sdelens.scaling.hyperparameters import Hyperparameters, Reading

__all__ = ["read_specification", "scaled_schedule", "specification_of"]


def read_specification(given: Any) -> Reading:
    """The hyperparameters of a specification of sdelens.

    Raises:
        TypeError: if it is not a specification, or one whose numbers rules cannot access.
    """
    if not isinstance(given, DecayedOptimizer) or given.name not in OPTIMIZERS:
        kind = (
            "an optax transformation, whose hyperparameters cannot be read"
            if isinstance(given, Optimizer)
            else "which is not supported"
        )
        raise TypeError(
            f"optimizer: got {type(given).__name__}, {kind}; give one of sl.SGD, sl.AdamW, …, a dict of its "
            "hyperparameters, a list of dicts, or the state of optax.inject_hyperparams."
        )
    family = OPTIMIZERS[str(given.name)].of_family
    memories = {name: float(getattr(given, name)) for name in given.memories if hasattr(given, name)}
    spec: Any = given  # some fields exist only in some specifications
    accumulator = float(spec.initial_accumulator) if family == "adagrad" else None
    numbers = Hyperparameters(
        family=family,
        lr=float(given.lr),
        memories=memories,
        blend=float(spec.b1) if family in ("signum", "lion") else None,
        eps=float(spec.eps) if hasattr(given, "eps") else None,
        inside=family == "adagrad",
        accumulator=accumulator,
        weight_decay=float(given.weight_decay),
        decay=given.decay,
    )

    def write(new: Hyperparameters) -> DecayedOptimizer:
        changed: dict[str, Any] = {"lr": new.lr, "weight_decay": new.weight_decay, **new.memories}
        if new.eps is not None:
            changed["eps"] = new.eps
        if new.accumulator is not None:
            changed["initial_accumulator"] = new.accumulator
        return dataclasses.replace(given, **changed)

    return Reading(numbers, write)


def scaled_schedule(schedule: Schedule, ratio: float, rate: float) -> tuple[Schedule, list[tuple[str, float, float]]]:
    """The schedule, kept as the same function of the number of samples.

    Args:
        schedule: h at the old batch size.
        ratio: δ.
        rate: factor of the learning rate.

    Returns:
        The new schedule, and the step numbers in it: name, before, after.
    """
    if isinstance(schedule, Cosine):
        steps = max(1, round(schedule.steps / ratio))
        return Cosine(steps, schedule.end), [("cosine steps", schedule.steps, float(steps))]
    if isinstance(schedule, Warmup):
        steps = max(1, round(schedule.steps / ratio))
        row = ("warm-up steps", schedule.steps, float(steps))
        if schedule.then is None:
            return Warmup(steps), [row]
        then, rows = scaled_schedule(schedule.then, ratio, rate)
        return Warmup(steps, then), [row, *rows]
    return schedule.stretched(1 / ratio, 1 / rate), []


def specification_of(numbers: Hyperparameters, given: Any, nesterov: bool | None) -> DecayedOptimizer:
    """The specification for a record, with coupled decay; if a specification was given, that one.

    Args:
        numbers: the record.
        given: the object that the record was read from.
        nesterov: whether momentum is Nesterov's, if the record was read from a dict.

    Raises:
        ValueError: for RMSprop with momentum.
    """
    if isinstance(given, DecayedOptimizer):
        return given
    names = {"alpha": "b2", "momentum": "b1"}
    memories = {names.get(name, name): beta for name, beta in numbers.memories.items()}
    if (numbers.family == "rmspropw" and "b1" in memories) or numbers.eps_root:
        raise ValueError(
            "optimizer: got RMSprop with momentum or with a second ε inside the root, for which no schedules can be "
            "built; set the numbers of Ramp.at(step) at each step instead."
        )
    own: dict[str, Any] = {"nesterov": bool(nesterov)} if numbers.family == "momentum" else {}
    own |= {"b1": numbers.blend} if numbers.family == "lion" else {}
    own |= {"eps": numbers.eps} if numbers.eps is not None else {}
    return OPTIMIZERS[numbers.family].load()(lr=numbers.lr, **memories, **own)
