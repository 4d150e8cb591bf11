"""The entry point of ramps: hyperparameters of a run whose batch size changes."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Final

import numpy as np

from sdelens.core import check
from sdelens.scaling._account import assumptions
from sdelens.scaling._factors import expected_square, scaled
from sdelens.scaling._ramp_result import Ramp, numbers_of
from sdelens.scaling._rescale import chosen, read
from sdelens.scaling._snr import measured
from sdelens.scaling._stages import by_noise_scale, by_schedule, sizes_in, sizes_of

__all__ = ["ramp"]

_UNITS: Final = ("samples", "steps")


def ramp(
    optimizer: Any,
    batches: Sequence[tuple[float, int]] | Callable[[float], float] | None = None,
    *,
    samples: float | None = None,
    steps: int | None = None,
    unit: str = "samples",
    batch_size: int | None = None,
    rule: str | None = None,
    momentum: str | None = None,
    decay: str | None = None,
    snr: Any = None,
    schedule: Callable[[Any], Any] | None = None,
    trade: str | None = None,
    noise_scale: Any = None,
    efficiency: float = 0.5,
    largest_batch: int | None = None,
) -> Ramp:
    r"""Hyperparameters of a run whose batch size changes, as `rescale` would set them for each batch size.

    A schedule h of the optimizer is treated as a function of the samples seen s: h(s/B₀), where B₀ is `batch_size`.

    With ``trade="batch"`` the batch grows in place of a decay of the learning rate: it is doubled wherever h has fallen
    to half, a quarter, … of its largest value so far. The learning rate is η h(s/B₀) times the factor of the rule. What
    moves x per sample is then the same as in the run at B₀ with the same h, because the rule keeps it at every ratio;
    with δ = 1/h the learning rate of SGD stays constant, and under a square-root rule it falls like √h. A larger δ
    would make the step along the normalised gradient, which is proportional to hδ, larger than at the start.

    With `noise_scale`, the batch follows a log of noise scales B_noise: the largest power of two times B₀ that is at
    most B_noise (1/`efficiency` − 1), never decreasing.

    Args:
        optimizer: a specification, or a dict, as for `rescale`.
        batches: list of (samples seen, batch size), ascending from 0, where each batch size holds until the next; or a
            function from the samples seen to the batch size, which is rounded.
        samples: number of samples after which the run ends: the step that reaches it is the last.
        steps: number of steps of the run, instead of `samples`.
        unit: ``"steps"`` if the first numbers of `batches` are steps, not samples.
        batch_size: B₀, for which the optimizer's hyperparameters were chosen; by default the first of `batches`.
        rule: as for `rescale`.
        momentum: as for `rescale`.
        decay: as for `rescale`.
        snr: as for `rescale`, at B₀; it is taken as constant along the run.
        schedule: h, a function of the step at B₀, for an optimizer given as a dict.
        trade: ``"batch"``, instead of `batches`; needs `batch_size`, `samples` and `largest_batch`.
        noise_scale: a log of noise scales, instead of `batches`: a data frame or the path of a CSV file with columns
            step or samples, noise_scale and, if they were measured, noise_scale_lower and noise_scale_upper; needs
            `batch_size`. Lower limits are used where there are some.
        efficiency: for `noise_scale`, 1/(1 + B/B_noise), between 0 and 1.
        largest_batch: for `trade` and `noise_scale`, a batch size that is not exceeded.

    Returns:
        A `Ramp`: the hyperparameters of every step, and their schedules.

    Raises:
        ValueError: if a batch size of the ramp is not legal, naming it and the largest legal ratio; if `batches` do not
            start at 0 or do not ascend; for Adagrad, whose sum of squares remembers all earlier batches.
        TypeError: if an argument is of the wrong kind.

    Source: Meterez et al. 2025 (arXiv 2510.14717) for the trade, which lets batches grow by α where the learning rate
    falls by α, and the learning rate by √α instead; the equivalence per sample is derived in docs/scaling.md for every
    optimizer that has a rule. McCandlish et al. 2018 (arXiv 1812.06162) for the efficiency.

    Examples:
        >>> import sdelens as sl
        >>> run = sl.scaling.ramp(sl.AdamW(lr=1e-3, b1=0.95), [(0, 256), (100_000, 512), (300_000, 1024)], samples=1e6)
        >>> run.steps, run.at(1000)["batch_size"], round(run.at(1000)["b1"], 6)
        (1466, 1024, 0.8)
    """
    check.choice("unit", unit, _UNITS)
    if (samples is None) == (steps is None):
        raise ValueError(
            "samples, steps: got both or neither; give either the number of samples or the number of steps of the "
            "whole run."
        )
    if isinstance(optimizer, list):
        raise TypeError("optimizer: got a list; make one ramp for each parameter group.")
    total = None if samples is None else check.positive("samples", samples)
    count = None if steps is None else check.at_least("steps", steps, 1)
    multiplier = _multiplier(optimizer, schedule)
    _one_source(batches, trade, noise_scale, batch_size, largest_batch)
    more: tuple[str, ...] = ()
    if trade is not None:
        batches, more = _traded(multiplier, batch_size, total, largest_batch)
    elif noise_scale is not None:
        batches, more = by_noise_scale(
            noise_scale,
            check.at_least("batch_size", batch_size, 1),
            check.number("efficiency", efficiency),
            largest_batch,
        )
    if callable(batches):
        if unit == "steps":
            raise ValueError(
                "unit: got 'steps', but a function given as batches receives the number of samples seen; leave unit "
                "out."
            )
        sizes = sizes_of(batches, total, count)
    else:
        sizes = sizes_in(batches, unit, total, count)
    first = int(sizes[0]) if batch_size is None else check.at_least("batch_size", batch_size, 1)
    readings, _ = read(optimizer, decay)
    numbers = readings[0].numbers
    if numbers.family == "adagrad":
        raise ValueError(
            "optimizer: got Adagrad, whose sum of squares includes all earlier batches, so that hyperparameters of "
            "later steps cannot compensate for them; rescale a whole run instead."
        )
    found = None if snr is None else measured(snr)
    different, which = np.unique(sizes, return_inverse=True)
    records, changes = {}, {}
    for size in different:
        change = changes[int(size)] = chosen(numbers, Fraction(int(size), first), rule, momentum, found)
        try:
            records[int(size)] = scaled(numbers, change)
        except ValueError as error:
            raise ValueError(
                f"batches: a change of the batch size from {first} to {size} is not possible: {error}"
            ) from error
    seen = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    table = {
        name: np.array([v[name] for v in map(numbers_of, records.values())])[which] for name in numbers_of(numbers)
    }
    if multiplier is not None:
        table["lr"] = table["lr"] * multiplier(seen / first)
    largest = int(different[-1])
    change = changes[largest]
    said = assumptions(numbers, records[largest], change, False)
    said.append(
        "After a jump of the batch size, second moments are still those of the previous batch size for about 1/(1 − "
        "b2) steps unless they are scaled, as Ramp.to_optax does, and PyTorch's momentum buffer, a sum of gradients, "
        "is not rescaled. Call sdelens.torch.rescale at each jump, or increase the batch size in small steps."
    )
    return Ramp(
        batch_size=sizes,
        samples=seen,
        numbers=table,
        rule=change.rule.name,
        momentum=change.momentum,
        assumed=(*more, *said),
        records=records,
        optimizer=optimizer,
        first=first,
        base=numbers,
        multiplier=multiplier,
        squares={size: expected_square(numbers, change) for size, change in changes.items()},
    )


def _one_source(batches: Any, trade: Any, noise_scale: Any, batch_size: Any, largest: Any) -> None:
    """Refuse several sources of the batch sizes, and options that would be ignored."""
    given = [
        name for name, v in (("batches", batches), ("trade", trade), ("noise_scale", noise_scale)) if v is not None
    ]
    if len(given) != 1:
        raise ValueError(
            f"batches: got {' and '.join(given) or 'none'} of batches, trade and noise_scale; give one of them."
        )
    if trade is not None:
        check.choice("trade", trade, ("batch",))
    if batches is None and batch_size is None:
        raise ValueError(f"batch_size: not given, but {given[0]} needs the batch size at which the run starts.")
    if batches is not None and largest is not None:
        raise ValueError("largest_batch: only for trade and noise_scale; leave it out.")


def _traded(
    multiplier: Callable[[np.ndarray], np.ndarray] | None, batch_size: Any, total: float | None, largest: Any
) -> tuple[Any, tuple[str, ...]]:
    if multiplier is None:
        raise ValueError(
            "schedule: trade='batch' replaces the decay of a learning-rate schedule, and there is none; give the "
            "optimizer schedule=, or a dict and schedule=."
        )
    if total is None or largest is None:
        raise ValueError(
            "samples, largest_batch: trade='batch' needs the number of samples of the run and the largest batch size "
            "that your machine and the noise scale allow (sl.advise); give both."
        )
    first, most = check.at_least("batch_size", batch_size, 1), check.at_least("largest_batch", largest, 1)
    said = (
        f"The batch size doubles wherever the schedule has halved, up to {most}; between doublings, and after the "
        "last, the learning rate follows the schedule.",
        "The equivalence holds per sample as long as the rule does; steps that are too large for the curvature, or "
        "samples too few for the gradient to fall, are not covered.",
    )
    return by_schedule(multiplier, first, total, most), said


def _multiplier(optimizer: Any, schedule: Any) -> Callable[[np.ndarray], np.ndarray] | None:
    """The schedule h as a function of an array of steps; None if there is none."""
    own = None if isinstance(optimizer, dict) else getattr(optimizer, "schedule", None)
    if schedule is not None and not isinstance(optimizer, dict):
        raise ValueError("schedule: got one, but the optimizer is no dict and has its own schedule=; leave it out.")
    if own is not None:
        return lambda steps: np.asarray(own(steps, optimizer.lr), float)
    if schedule is None:
        return None
    if not callable(schedule):
        raise TypeError(
            f"schedule: got {type(schedule).__name__}; give a function from the step to a multiplier of lr."
        )
    if hasattr(schedule, "stretched"):  # a schedule of this library, which also takes the learning rate
        rate = optimizer.get("lr", optimizer.get("learning_rate"))
        return lambda steps: np.asarray(schedule(steps, rate), float)
    return lambda steps: np.array([float(schedule(k)) for k in steps])
