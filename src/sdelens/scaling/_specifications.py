"""Conversion of sdelens specifications to hyperparameters and back, with their schedules."""

import dataclasses
from typing import TYPE_CHECKING, Any

from sdelens.core.declarations import OPTIMIZERS, scaled_names
from sdelens.optimizers import DecayedOptimizer, FromOptax, Wrapped
from sdelens.optimizers.schedules import Cosine, Polynomial, Schedule, Warmup
from sdelens.scaling.hyperparameters import Hyperparameters, Reading

if TYPE_CHECKING:
    import optax

__all__ = ["read_specification", "scaled_schedule", "scaling_squares", "specification_of"]


def read_specification(given: Any) -> Reading:
    """The hyperparameters of a specification of sdelens.

    Raises:
        TypeError: if it is not a specification, or one whose numbers rules cannot access.
    """
    if not isinstance(given, DecayedOptimizer) or given.name not in scaled_names():
        kind = (
            "an optax transformation, whose hyperparameters cannot be read"
            if isinstance(given, FromOptax)
            else "which asks for gradients at other points, for which no rule is known (rescale its base)"
            if isinstance(given, Wrapped)
            else "for which no scaling rule is known"
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


def scaled_schedule(
    schedule: Schedule, ratio: float, rate: float, tokens: float = 1.0
) -> tuple[Schedule, list[tuple[str, float, float, float]]]:
    """The schedule, kept as the same function of the number of samples.

    For a run of `tokens` times as many samples, it is that function of the share of the run; a warm-up and a decay by a
    power of time are still functions of the number of samples.

    Args:
        schedule: h at the old batch size.
        ratio: δ.
        rate: factor of the learning rate.
        tokens: samples of the new run over those of the old one.

    Returns:
        The new schedule, and the step numbers in it: name, before, exactly after, after as a whole number.
    """
    if isinstance(schedule, Cosine):
        return _cosine(schedule, schedule.steps * tokens / ratio)
    if isinstance(schedule, Warmup):
        exact = schedule.steps / ratio
        steps = max(1, round(exact))
        row = ("warm-up steps", schedule.steps, exact, float(steps))
        if schedule.then is None:
            return Warmup(steps), [row]
        if isinstance(schedule.then, Cosine):  # what the whole run has, less the warm-up
            then, rows = _cosine(
                schedule.then, ((schedule.steps + schedule.then.steps) * tokens - schedule.steps) / ratio
            )
        else:
            then, rows = scaled_schedule(schedule.then, ratio, rate, tokens)
        return Warmup(steps, then), [row, *rows]
    longer = 1.0 if isinstance(schedule, Polynomial) else tokens
    return schedule.stretched(longer / ratio, 1 / rate), []


def _cosine(schedule: Cosine, exact: float) -> tuple[Schedule, list[tuple[str, float, float, float]]]:
    if exact <= 0:
        raise ValueError("tokens: the new run is shorter than the warm-up; give more tokens, or a shorter warm-up.")
    steps = max(1, round(exact))
    return Cosine(steps, schedule.end), [("cosine steps", schedule.steps, exact, float(steps))]


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


def scaling_squares(transformation: "optax.GradientTransformation", factor: Any) -> "optax.GradientTransformation":
    """A transformation whose second moments are multiplied by a factor before every update."""
    import jax
    import optax

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def scaled(part: Any) -> Any:
            return (
                part._replace(nu=jax.tree.map(lambda v: (v * factor).astype(v.dtype), part.nu)) if held(part) else part
            )

        def held(part: Any) -> bool:
            return isinstance(part, optax.ScaleByAdamState | optax.ScaleByRmsState)

        return transformation.update(updates, jax.tree.map(scaled, state, is_leaf=held), params)

    return optax.GradientTransformation(transformation.init, update)
