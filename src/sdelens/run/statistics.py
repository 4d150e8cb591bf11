"""Statistics of an ensemble, reduced inside the loop over steps: what is stored at each recorded step.

On the device `observe` reduces the paths of one shard to counts, means and sums of squared deviations, from which the
host makes a `Summary`; `sdelens.run.summary` joins those.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sdelens.run.summary import BUCKETS, EXPONENTS, MANTISSA_BITS, POSITIVE, Summary

__all__ = ["StepStatistics", "observe", "unpack"]

_COPIES = 64
"""Copies of all counters on a GPU: losses fall into few buckets, and additions to one counter wait for each other."""


class StepStatistics(NamedTuple):
    """One recorded step of one shard of paths.

    Attributes:
        numbers: living paths per group (G numbers), means per group of the watched quantities, the loss first and then
            the observables (W G), sums of squared deviations from those means (W G), mean over living paths of the
            recorded coordinates (K), sum of squared deviations from it (K), mean of ‖∇f‖ over living paths (1). They
            are in one array because the compiler generates separate code for each array. Group 0 contains the shard's
            first path.
        histogram: counts per bucket of the quantile sketch, shape (BUCKETS,).
        kept: what is kept of the first paths of the shard, their x or more, shape (kept, rows).
    """

    numbers: Any
    histogram: Any
    kept: Any


def observe(
    loss: Array,
    watched: Array,
    norm: Array,
    rows: Array,
    seen: Array,
    alive: Array,
    groups: int,
    offset: float,
) -> StepStatistics:
    """Reduce one shard's paths to a `StepStatistics`.

    Args:
        loss: shape (P,).
        watched: observables, shape (W − 1, P).
        norm: ‖∇f‖, shape (P,).
        rows: what is kept of the first paths of the shard, shape (rows, kept).
        seen: the coordinates whose moments are recorded, shape (K, P).
        alive: which paths count, Boolean of shape (P,).
        groups: number of groups G.
        offset: subtracted from the loss before the quantile sketch.
    """
    loss32 = loss.astype(jnp.result_type(loss, jnp.float32))
    values = jnp.concatenate([loss32[None], watched.astype(loss32.dtype)])
    counted, split = _in_groups(alive, groups), _in_groups(values, groups)
    living = _sum_rows(counted.astype(loss32.dtype))
    mean = _sum_rows(jnp.where(counted, split, 0)) / jnp.maximum(living, 1)
    m2 = _sum_rows(jnp.where(counted, (split - mean[:, None]) ** 2, 0))
    total = jnp.maximum(living.sum(), 1)
    wide = seen.astype(loss32.dtype)
    ones = jnp.ones(loss.shape[0], loss32.dtype)  # a product with ones is a faster and more exact sum on a CPU
    seen_mean = jnp.matmul(jnp.where(alive, wide, 0), ones, precision="highest") / total
    seen_m2 = jnp.matmul(jnp.where(alive, (wide - seen_mean[:, None]) ** 2, 0), ones, precision="highest")
    grad_norm = jnp.sum(jnp.where(alive, norm, 0)) / total
    numbers = [living, mean.ravel(), m2.ravel(), seen_mean, seen_m2, grad_norm[None].astype(loss32.dtype)]
    histogram = _histogram(jnp.where(alive, _bucket(loss32 - offset), BUCKETS))
    return StepStatistics(jnp.concatenate(numbers), histogram, rows.T)


def unpack(records: StepStatistics, first: int, groups: int, watched: int) -> Summary:
    """Convert the records of one shard, NumPy arrays with a first axis of R records, to a `Summary` in float64.

    Args:
        records: results of `observe`.
        first: global index of the shard's first path; the others follow it.
        groups: number of groups G.
        watched: number of watched quantities W, the loss and the observables.
    """
    numbers = records.numbers.astype(np.float64)
    seen = (numbers.shape[1] - 1 - groups * (1 + 2 * watched)) // 2
    ends = np.cumsum([groups, watched * groups, watched * groups, seen, seen])
    living, mean, m2, seen_mean, seen_m2, grad_norm = np.split(numbers, ends, axis=1)
    by_group = (a.reshape(len(a), watched, groups) for a in (mean, m2))
    living, mean, m2 = (np.roll(a, first % groups, axis=-1) for a in (living, *by_group))
    used = np.flatnonzero(records.histogram.any(axis=0))
    return Summary(
        *(living, mean, m2, grad_norm[:, 0], records.histogram[:, used], used, seen_mean, seen_m2, records.kept),
        laws=np.zeros((0, 0, 0), np.float32),
        hits=np.zeros((0, 0), np.int32),
    )


def _histogram(index: Array) -> Array:
    """How often each of 0, …, BUCKETS − 1 occurs, shape (BUCKETS,); other indices are ignored."""
    return lax.platform_dependent(index, cpu=_counted, default=_counted_apart)


def _counted(index: Array) -> Array:
    return jnp.zeros(BUCKETS, jnp.int32).at[index].add(1, mode="drop")


def _counted_apart(index: Array) -> Array:
    """The same counts, where neighbouring paths use separate copies of the counters."""
    own = lax.iota(jnp.int32, index.shape[0]) % _COPIES
    return jnp.zeros((_COPIES, BUCKETS), jnp.int32).at[own, index].add(1, mode="drop").sum(axis=0, dtype=jnp.int32)


def _in_groups(values: Array, groups: int) -> Array:
    """Paths by group, (…, P) to (…, n, groups), padded with zeros; column 0 is the group of the first path."""
    rest = values.shape[:-1]
    padded = jnp.pad(values, [(0, 0)] * len(rest) + [(0, -values.shape[-1] % groups)])
    return padded.reshape(*rest, -1, groups)


def _sum_rows(values: Array) -> Array:
    """Sums over the second-to-last axis, as a product with ones, because XLA's CPU reduction there is scalar code."""
    return jnp.matmul(jnp.ones(values.shape[-2], values.dtype), values, precision="highest")


def _bucket(values: Array) -> Array:
    """Bucket of each value, computed from its float32 bit pattern and monotone in the value."""
    bits = jax.lax.bitcast_convert_type(jnp.abs(values).astype(jnp.float32), jnp.int32)
    lowest = (EXPONENTS[0] + 127) << MANTISSA_BITS
    magnitude = jnp.clip((bits >> (23 - MANTISSA_BITS)) - lowest + 1, 0, POSITIVE)
    return POSITIVE + jnp.where(values < 0, -magnitude, magnitude)
