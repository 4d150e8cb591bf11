"""Statistics of an ensemble, reduced inside the loop over steps: what is stored at each recorded step.

On the device `observe` reduces the paths of one shard; on the host `merge` joins shards and chunks in float64. Both
work on counts, means and sums of squared deviations (Chan, Golub, LeVeque 1983), so joining loses no digits in any
order.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

__all__ = [
    "BUCKETS",
    "GROUPS",
    "QUANTILE_ERROR",
    "StepStatistics",
    "Summary",
    "merge",
    "observe",
    "quantiles",
    "unpack",
]

GROUPS = 64
"""Path i belongs to group i mod min(64, paths)."""

_MANTISSA_BITS = 6
_EXPONENTS = (-32, 32)
_POSITIVE = (_EXPONENTS[1] - _EXPONENTS[0]) << _MANTISSA_BITS
BUCKETS = 2 * _POSITIVE + 1
"""Buckets of the quantile sketch: one per sign, exponent and leading 6 bits of the mantissa, and one for 0."""
QUANTILE_ERROR = 2.0**-_MANTISSA_BITS
"""Largest relative error of a quantile, 1.6 %, for losses (minus the infimum) from 2⁻³² to 2³²; others saturate."""
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


def unpack(records: StepStatistics, first: int, groups: int, watched: int) -> "Summary":
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
    return Summary(
        *(living, mean, m2, grad_norm[:, 0], records.histogram, seen_mean, seen_m2, records.kept),
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
    lowest = (_EXPONENTS[0] + 127) << _MANTISSA_BITS
    magnitude = jnp.clip((bits >> (23 - _MANTISSA_BITS)) - lowest + 1, 0, _POSITIVE)
    return _POSITIVE + jnp.where(values < 0, -magnitude, magnitude)


@functools.cache
def _bucket_edges() -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper edge of every bucket, ascending."""
    k = np.arange(_POSITIVE + 1)
    steps = 1 << _MANTISSA_BITS
    edges = 2.0 ** (_EXPONENTS[0] + k // steps) * (1 + (k % steps) / steps)
    low = np.concatenate([-edges[1:][::-1], [0.0], edges[:-1]])
    high = np.concatenate([-edges[:-1][::-1], [0.0], edges[1:]])
    return low, high


def quantiles(histogram: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Quantiles from sketches: histogram of shape (records, BUCKETS) to shape (records, levels); NaN where empty.

    Interpolates within the bucket; the error is at most the bucket's width, a fraction `QUANTILE_ERROR` of the value.
    """
    low, high = _bucket_edges()
    used = np.flatnonzero(histogram.any(axis=0))
    histogram, low, high = histogram[:, used], low[used], high[used]
    if not used.size:
        return np.full((histogram.shape[0], len(levels)), np.nan)
    cumulative = np.cumsum(histogram, axis=1)
    total = cumulative[:, -1]
    result = np.full((histogram.shape[0], len(levels)), np.nan)
    rows = np.arange(histogram.shape[0])
    for level, column in zip(levels, result.T, strict=True):
        rank = level * total
        i = (cumulative < rank[:, None]).sum(axis=1).clip(0, used.size - 1)
        within = histogram[rows, i]
        share = (rank - (cumulative[rows, i] - within)) / np.maximum(within, 1)
        column[:] = np.where(total > 0, low[i] + share.clip(0, 1) * (high[i] - low[i]), np.nan)
    return result


class Summary(NamedTuple):
    """Records of the whole ensemble in float64: R recorded steps, W watched quantities, G groups, K coordinates.

    `histogram` is the sketch, int32 of shape (R, BUCKETS), while paths are still to be added, and afterwards the
    quantiles, of shape (R, levels), because sketches of long runs are large. `laws` contains the loss, the observables
    and the chosen coordinates of every path at T moments, of shape (T, P, K), NaN for diverged paths. `hits` contains
    the first steps of every path at which conditions held, and last, at which it was not finite, of shape (P, H + 1).
    """

    living: np.ndarray
    mean: np.ndarray
    m2: np.ndarray
    grad_norm: np.ndarray
    histogram: np.ndarray
    seen_mean: np.ndarray
    seen_m2: np.ndarray
    kept: np.ndarray
    laws: np.ndarray
    hits: np.ndarray

    @property
    def paths(self) -> np.ndarray:
        """Living paths per record, shape (R,)."""
        return self.living.sum(axis=1)

    def overall(self, row: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation, each (R,), of watched quantity `row` over all living paths; 0 is the loss."""
        n = np.maximum(self.paths, 1)
        mean = (self.living * self.mean[:, row]).sum(axis=1) / n
        m2 = self.m2[:, row].sum(axis=1) + (self.living * (self.mean[:, row] - mean[:, None]) ** 2).sum(axis=1)
        std = np.sqrt(m2 / np.maximum(n - 1, 1))
        empty = self.paths == 0
        return np.where(empty, np.nan, mean), np.where(self.paths < 2, np.nan, std)


def merge(a: Summary | None, b: Summary) -> Summary:
    """Join the summaries of two disjoint sets of paths; `None` is the empty set."""
    if a is None:
        return b
    living = a.living + b.living
    mean, m2 = _join(a.living[:, None], a.mean, a.m2, b.living[:, None], b.mean, b.m2)
    na, nb = a.paths[:, None], b.paths[:, None]
    seen_mean, seen_m2 = _join(na, a.seen_mean, a.seen_m2, nb, b.seen_mean, b.seen_m2)
    total = np.maximum(na + nb, 1)[:, 0]
    grad_norm = (na[:, 0] * a.grad_norm + nb[:, 0] * b.grad_norm) / total
    kept = np.concatenate([a.kept, b.kept], axis=1)
    laws, hits = np.concatenate([a.laws, b.laws], axis=1), np.concatenate([a.hits, b.hits])
    return Summary(living, mean, m2, grad_norm, a.histogram + b.histogram, seen_mean, seen_m2, kept, laws, hits)


def _join(
    na: np.ndarray, mean_a: np.ndarray, m2_a: np.ndarray, nb: np.ndarray, mean_b: np.ndarray, m2_b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    n = np.maximum(na + nb, 1)
    delta = mean_b - mean_a
    return mean_a + delta * nb / n, m2_a + m2_b + delta**2 * na * nb / n
