"""A batch size that changes during a run, with the hyperparameters of every step."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sdelens.core import check
from sdelens.core.files import text_table
from sdelens.scaling._account import assumptions
from sdelens.scaling._factors import scaled
from sdelens.scaling._rescale import chosen, read
from sdelens.scaling.hyperparameters import L2, Hyperparameters

if TYPE_CHECKING:
    import optax

__all__ = ["Ramp", "ramp"]

_MOST: Final = 20_000_000
_UNITS: Final = ("samples", "steps")
_ROWS: Final = 12


@dataclass(frozen=True)
class Ramp:
    """A run with a changing batch size.

    Attributes:
        batch_size: batch size of every step, shape (n,).
        samples: number of samples seen before every step, shape (n,).
        numbers: hyperparameters of every step by name, each of shape (n,); lr includes the optimizer's schedule.
        rule: name of the rule.
        momentum: how decays β are scaled.
        assumed: sentences that state what is assumed.
        records: the hyperparameters of every batch size, without the schedule.
        optimizer: the optimizer that was given.
    """

    batch_size: np.ndarray
    samples: np.ndarray
    numbers: dict[str, np.ndarray]
    rule: str
    momentum: str
    assumed: tuple[str, ...]
    records: dict[int, Hyperparameters]
    optimizer: Any

    @property
    def steps(self) -> int:
        """Number of optimizer steps."""
        return len(self.batch_size)

    @property
    def schedules(self) -> dict[str, Callable[[Any], Any]]:
        """Functions of the step number for ``optax.inject_hyperparams``, by name; the last value is kept afterwards."""
        return {name: _schedule(values) for name, values in self.numbers.items()}

    def at(self, step: int) -> dict[str, float]:
        """Batch size, samples seen and every hyperparameter at a step; after the end, those of the last step.

        Raises:
            ValueError, TypeError: if `step` is not a whole number of at least 0.
        """
        k = min(check.at_least("step", step, 0), self.steps - 1)
        found = {"batch_size": int(self.batch_size[k]), "samples": int(self.samples[k])}
        return {**found, **{name: float(values[k]) for name, values in self.numbers.items()}}

    def to_optax(self) -> "optax.GradientTransformation":
        """The optimizer with all its numbers scheduled by ``optax.inject_hyperparams``; its update needs parameters.

        Momentum is damped, that is a mean of gradients, so a change of its decay does not change its size.

        Raises:
            ValueError: for RMSprop with momentum, for which the library has no specification.
        """
        import optax

        from sdelens.scaling._specifications import specification_of

        first = next(iter(self.records.values()))
        nesterov = bool(self.optimizer.get("nesterov")) if isinstance(self.optimizer, dict) else None
        base = specification_of(first, self.optimizer, nesterov)
        order = [self.records[int(b)] for b in np.unique(self.batch_size)]
        which = np.unique(self.batch_size, return_inverse=True)[1]
        rates = np.array([r.lr for r in order])[which]
        # `numbers` has learning rates as written; η is the rate of damped momentum; the schedule multiplies both.
        multiplier = self.numbers["lr"] / np.array([r.written_lr for r in order])[which]
        decays = np.array([r.weight_decay for r in order])[which]
        l2 = first.decay == L2
        parts = {"lr": rates * multiplier, "weight_decay": decays / rates if first.decay == "independent" else decays}
        names = {"alpha": "b2", "momentum": "b1"}
        for name in first.memories:
            parts[names.get(name, name)] = np.array([r.memories[name] for r in order])[which]
        if first.eps is not None:
            parts["eps"] = np.array([r.eps for r in order], float)[which]

        def build(lr: Any, weight_decay: Any, b1: Any = None, b2: Any = None, eps: Any = None) -> Any:
            given = {"b1": b1, "b2": b2, "eps": eps, "weight_decay": None if l2 else weight_decay}
            changed = {name: value for name, value in given.items() if value is not None}
            own = dataclasses.replace(base, lr=1.0, decay="coupled", schedule=None, **changed)
            before = [optax.add_decayed_weights(weight_decay)] if l2 else []
            return optax.chain(*before, own.to_optax(), optax.scale(lr))  # lr may be 0 at the end of a schedule

        return optax.inject_hyperparams(build)(**{name: _schedule(values) for name, values in parts.items()})

    def __str__(self) -> str:
        """A table of the stages; if there are many, a selection spread over the run."""
        starts = np.flatnonzero(np.diff(self.batch_size, prepend=0))
        shown = starts if len(starts) <= _ROWS else starts[np.linspace(0, len(starts) - 1, _ROWS).round().astype(int)]
        head = ["from step", "samples", "batch size", *self.numbers]
        rows = [
            [str(k), str(self.samples[k]), str(self.batch_size[k]), *(f"{v[k]:.6g}" for v in self.numbers.values())]
            for k in shown
        ]
        title = f"{self.steps} steps, rule {self.rule}, momentum {self.momentum}"
        more = [f"{len(starts)} batch sizes, of which {len(shown)} are shown."] if len(shown) < len(starts) else []
        return "\n".join([title, "", *text_table(head, rows), *more])


def ramp(
    optimizer: Any,
    batches: Sequence[tuple[float, int]] | Callable[[float], float],
    *,
    samples: float | None = None,
    steps: int | None = None,
    unit: str = "samples",
    batch_size: int | None = None,
    rule: str | None = None,
    momentum: str | None = None,
    decay: str | None = None,
) -> Ramp:
    r"""Hyperparameters of a run whose batch size changes, as `rescale` would set them for each batch size.

    A schedule h of the optimizer is treated as a function of the samples seen s: h(s/B₀), where B₀ is `batch_size`.

    Args:
        optimizer: a specification, or a dict, as for `rescale`.
        batches: list of (samples seen, batch size), ascending from 0, where each batch size holds until the next; or a
            function from the samples seen to the batch size, which is rounded.
        samples: number of samples after which the run ends: the step that reaches it is the last.
        steps: number of steps of the run, instead of `samples`.
        unit: ``"steps"`` if the first numbers of `batches` are steps, not samples.
        batch_size: B₀, for which the optimizer's hyperparameters were chosen; by default the first of the ramp.
        rule: as for `rescale`.
        momentum: as for `rescale`.
        decay: as for `rescale`.

    Returns:
        A `Ramp`: the hyperparameters of every step, and their schedules.

    Raises:
        ValueError: if a batch size of the ramp is not legal, naming it and the largest legal ratio; if `batches` do not
            start at 0 or do not ascend; for Adagrad, whose sum of squares remembers all earlier batches.
        TypeError: if an argument is of the wrong kind.

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
    if callable(batches):
        if unit == "steps":
            raise ValueError(
                "unit: got 'steps', but a function given as batches receives the number of samples seen; leave unit "
                "out."
            )
        sizes = _sizes_of(batches, total, count)
    else:
        sizes = _sizes_in(batches, unit, total, count)
    first = int(sizes[0]) if batch_size is None else check.at_least("batch_size", batch_size, 1)
    readings, _ = read(optimizer, decay)
    numbers = readings[0].numbers
    if numbers.family == "adagrad":
        raise ValueError(
            "optimizer: got Adagrad, whose sum of squares includes all earlier batches, so that hyperparameters of "
            "later steps cannot compensate for them; rescale a whole run instead."
        )
    found, how = chosen(numbers, rule, momentum)
    records, largest = {}, int(sizes.max())
    different, which = np.unique(sizes, return_inverse=True)
    for size in different:
        try:
            records[int(size)] = scaled(numbers, Fraction(int(size), first), found, how)[0]
        except ValueError as error:
            raise ValueError(
                f"batches: a change of the batch size from {first} to {size} is not possible: {error}"
            ) from error
    seen = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    table = {name: np.array([v[name] for v in map(_row, records.values())])[which] for name in _row(numbers)}
    table["lr"] = table["lr"] * _multiplier(optimizer, seen / first)
    said = assumptions(numbers, records[largest], largest / first, found, False)
    said.append(
        "After a jump of the batch size, second moments are still those of the previous batch size for about 1/(1 − "
        "b2) steps, and PyTorch's momentum buffer, a sum of gradients, is not rescaled. Increase the batch size in "
        "small steps, or call sdelens.torch.rescale at each jump."
    )
    return Ramp(sizes, seen, table, found.name, how, tuple(said), records, optimizer)


def _schedule(values: np.ndarray) -> Callable[[Any], Any]:
    def at(count: Any) -> Any:
        import jax.numpy as jnp

        return jnp.asarray(values, float)[jnp.clip(count, 0, len(values) - 1)]

    return at


def _row(numbers: Hyperparameters) -> dict[str, float]:
    named = {"lr": numbers.written_lr, **numbers.memories, "eps": numbers.eps, "weight_decay": numbers.weight_decay}
    return {name: float(value) for name, value in named.items() if value is not None}


def _multiplier(optimizer: Any, steps: np.ndarray) -> np.ndarray | float:
    schedule = None if isinstance(optimizer, dict) else getattr(optimizer, "schedule", None)
    return 1.0 if schedule is None else np.asarray(schedule(steps, optimizer.lr), float)


def _sizes_of(batches: Callable[[float], float], total: float | None, count: int | None) -> np.ndarray:
    sizes: list[int] = []
    seen = 0
    while (seen < total) if total is not None else (len(sizes) < (count or 0)):
        sizes.append(check.at_least("batches", round(check.positive("batches", batches(seen))), 1))
        seen += sizes[-1]
        _bounded(len(sizes))
    return np.array(sizes)


def _sizes_in(batches: Any, unit: str, total: float | None, count: int | None) -> np.ndarray:
    try:
        given = [(begin, size) for begin, size in batches]
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"batches: got {batches!r}; give a list of pairs ({unit}, batch size), or a function."
        ) from error
    pairs = [(check.nonnegative("batches", begin), check.at_least("batches", size, 1)) for begin, size in given]
    if not pairs or pairs[0][0] != 0 or any(b[0] <= a[0] for a, b in pairwise(pairs)):
        raise ValueError(f"batches: got {batches!r}; the numbers of {unit} must start at 0 and increase.")
    sizes, seen, made = [], 0, 0
    for i, (_, size) in enumerate(pairs):
        limits: list[float] = []
        if i + 1 < len(pairs):
            end = pairs[i + 1][0]
            limits.append(math.ceil((end - seen) / size) if unit == "samples" else math.ceil(end) - made)
        if total is not None:
            limits.append(math.ceil((total - seen) / size))
        if count is not None:
            limits.append(count - made)
        n = max(0, int(min(limits)))
        _bounded(made + n)
        sizes.append(np.full(n, size))
        seen, made = seen + n * size, made + n
    return np.concatenate(sizes)


def _bounded(steps: int) -> None:
    if steps > _MOST:
        raise ValueError(
            f"batches: the run would have more than {_MOST:,} steps; give larger batches or fewer samples."
        )
