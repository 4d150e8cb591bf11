"""The batch size of every step of a ramp: from stages, a function, a learning-rate schedule or a log of noise."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final

import numpy as np

from sdelens.core import check
from sdelens.scaling._noise_source import noise_log

__all__ = ["Stages", "by_noise_scale", "by_schedule", "sizes_in", "sizes_of"]

Stages = list[tuple[float, int]]
"""Pairs (samples seen, batch size), ascending from 0."""
_MOST: Final = 20_000_000
_POINTS: Final = 100_000
"""Points at which a schedule is read to find where it halves."""


def by_schedule(multiplier: Callable[[np.ndarray], np.ndarray], first: int, samples: float, largest: int) -> Stages:
    """Stages that double the batch wherever a schedule h has fallen to half, a quarter, … of its largest value so far.

    Args:
        multiplier: h as a function of the steps at the first batch size, an array.
        first: B₀.
        samples: samples of the whole run.
        largest: batch size that is not exceeded.
    """
    if largest < first:
        raise ValueError(f"largest_batch: got {largest}, which is less than the first batch size {first}.")
    steps = np.linspace(0, samples / first, min(_POINTS, max(2, math.ceil(samples / first) + 1)))
    height = np.asarray(multiplier(steps), float)
    if not np.isfinite(height).all() or (height < 0).any() or height.max() == 0:
        raise ValueError("schedule: its values must be finite, not negative, and not all 0.")
    top = np.maximum.accumulate(height)
    most = math.floor(math.log2(largest / first))
    with np.errstate(divide="ignore", invalid="ignore"):
        doublings = np.where(top > 0, np.floor(np.log2(np.where(height > 0, top / height, 2.0**most)) + 1e-9), 0)
    return _doubled(steps * first, np.minimum(doublings, most), first)


def by_noise_scale(
    given: Any, first: int, efficiency: float, largest: int | None = None
) -> tuple[Stages, tuple[str, ...]]:
    """Stages that follow a log of noise scales B_noise: the batch is at most B_noise (1/efficiency − 1).

    Args:
        given: the log.
        first: B₀, of which batches are powers of two.
        efficiency: 1/(1 + B/B_noise), the share of the samples that is not wasted.
        largest: batch size that is not exceeded, None for no limit.

    Returns:
        The stages, and sentences that state what is assumed.
    """
    log = noise_log(given)
    if not 0 < efficiency < 1:
        raise ValueError(f"efficiency: got {efficiency}; it must lie between 0 and 1, for example 0.5.")
    sensible = log.rising() * (1 / efficiency - 1)
    if largest is not None:
        sensible = np.minimum(sensible, check.at_least("largest_batch", largest, first))
    with np.errstate(divide="ignore"):
        doublings = np.floor(np.log2(np.maximum(sensible / first, 1)) + 1e-9)
    samples = log.at * (1 if log.unit == "samples" else first)
    limits = "lower limits of the noise scale" if np.isfinite(log.lower).any() else "noise scales, which have no limits"
    said = [
        f"Batch sizes follow the {limits}, fitted so that they never decrease; at these batch sizes at least "
        f"{100 * efficiency:g} % of the samples are not wasted, 1/(1 + B/B_noise). The noise scale was measured in "
        "another run; with other batch sizes and learning rates it may grow differently."
    ]
    if log.unit == "steps":
        said.append(f"The steps of the log are taken as steps of {first} samples.")
    if sensible[0] < first:
        said.append(f"At first the batch size {first} is already larger than the noise scale justifies.")
    return _doubled(samples, doublings, first), tuple(said)


def _doubled(samples: np.ndarray, doublings: np.ndarray, first: int) -> Stages:
    """Stages from the number of doublings at each point, which never decreases."""
    level = np.maximum.accumulate(np.nan_to_num(doublings)).astype(int)
    starts = np.flatnonzero(np.diff(level, prepend=0))
    stages = [(float(samples[i]), first * 2 ** int(level[i])) for i in starts]
    return stages if stages and stages[0][0] == 0 else [(0.0, first), *stages]


def sizes_of(batches: Callable[[float], float], total: float | None, count: int | None) -> np.ndarray:
    """Batch sizes of all steps from a function of the samples seen."""
    sizes: list[int] = []
    seen = 0
    while (seen < total) if total is not None else (len(sizes) < (count or 0)):
        sizes.append(check.at_least("batches", round(check.positive("batches", batches(seen))), 1))
        seen += sizes[-1]
        _bounded(len(sizes))
    return np.array(sizes)


def sizes_in(batches: Any, unit: str, total: float | None, count: int | None) -> np.ndarray:
    """Batch sizes of all steps from stages whose starts are in samples or in steps."""
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
