"""Summaries of sets of paths, joined in float64: statistics at each recorded step, and values of every path.

Means and sums of squared deviations are joined as in Chan, Golub, LeVeque 1983, which loses no digits. Sets of paths
are joined pairwise, in a tree that depends only on which blocks of paths there are, so the result has the same bits
whichever machine runs which blocks, and in whichever order they arrive. This module does not import JAX.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

__all__ = [
    "BUCKETS",
    "GROUPS",
    "QUANTILE_ERROR",
    "Nodes",
    "Part",
    "Parts",
    "Summary",
    "add",
    "concatenated",
    "merge",
    "packed",
    "quantiles",
    "total",
    "unpacked",
]

GROUPS = 64
"""Path i belongs to group i mod min(64, paths)."""

MANTISSA_BITS = 6
EXPONENTS = (-32, 32)
POSITIVE = (EXPONENTS[1] - EXPONENTS[0]) << MANTISSA_BITS
BUCKETS = 2 * POSITIVE + 1
"""Buckets of the quantile sketch: one per sign, exponent and leading 6 bits of the mantissa, and one for 0."""
QUANTILE_ERROR = 2.0**-MANTISSA_BITS
"""Largest relative error of a quantile, 1.6 %, for losses (minus the infimum) from 2⁻³² to 2³²; others saturate."""


class Summary(NamedTuple):
    """Records of a set of paths in float64: R recorded steps, W watched quantities, G groups, K coordinates.

    Attributes:
        living: living paths, shape (R, G).
        mean: means of the watched quantities over living paths, (R, W, G).
        m2: sums of squared deviations from these means, (R, W, G).
        grad_norm: mean of ‖∇f‖ over living paths, (R,).
        histogram: counts of the quantile sketch in the buckets that are used, int32 of shape (R, B); when there are no
            more paths to add, the quantiles, of shape (R, levels), because sketches of long runs are large.
        buckets: ascending numbers of these buckets, (B,); empty when the histogram holds quantiles.
        seen_mean: means of the coordinates, (R, K).
        seen_m2: sums of squared deviations from them, (R, K).
        kept: what is kept of the first paths, (R, kept, rows).
        laws: loss, observables and chosen coordinates of every path at T moments, (T, P, K), NaN for diverged paths.
        hits: first steps of every path at which conditions held, and last, at which it was not finite, (P, H + 1).
    """

    living: np.ndarray
    mean: np.ndarray
    m2: np.ndarray
    grad_norm: np.ndarray
    histogram: np.ndarray
    buckets: np.ndarray
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

    def with_quantiles(self, levels: np.ndarray) -> "Summary":
        """The summary with quantiles in place of the sketch; itself if it has them already."""
        if not self.buckets.size and self.histogram.dtype.kind == "f":
            return self
        found = quantiles(self.histogram, self.buckets, levels)
        return self._replace(histogram=found, buckets=np.zeros(0, np.int64))


Nodes = dict[tuple[int, int], Summary]
"""Summaries by their place in the tree of joins: node (l, i) holds the 2ˡ blocks of paths from block 2ˡi on."""


class Part(NamedTuple):
    """What has been computed of one model: its summaries, and the wall time in s."""

    nodes: Nodes
    seconds: float


Parts = dict[str, Part]
"""Parts by the label of the model; in a sweep, by the name of the point and the label."""


def add(nodes: Nodes, node: tuple[int, int], summary: Summary) -> None:
    """Add a summary to a tree, in place, and join it with its neighbours as far as they are complete.

    The order in which nodes are added does not matter.
    """
    level, index = node
    while (sibling := nodes.pop((level, index ^ 1), None)) is not None:
        summary = merge(sibling, summary) if index % 2 else merge(summary, sibling)
        level, index = level + 1, index // 2
    if (level, index) in nodes:
        raise ValueError(f"the paths of block {index} of level {level} are there already")
    nodes[level, index] = summary


def total(nodes: Mapping[tuple[int, int], Summary]) -> Summary:
    """The summary of all paths of a tree, joined in the order of the paths."""
    return functools.reduce(merge, (nodes[node] for node in sorted(nodes, key=lambda node: node[1] << node[0])))


def merge(a: Summary, b: Summary) -> Summary:
    """Join the summaries of two disjoint sets of paths, of which those of `a` come first."""
    living = a.living + b.living
    mean, m2 = _join(a.living[:, None], a.mean, a.m2, b.living[:, None], b.mean, b.m2)
    na, nb = a.paths[:, None], b.paths[:, None]
    seen_mean, seen_m2 = _join(na, a.seen_mean, a.seen_m2, nb, b.seen_mean, b.seen_m2)
    all_paths = np.maximum(na + nb, 1)[:, 0]
    grad_norm = (na[:, 0] * a.grad_norm + nb[:, 0] * b.grad_norm) / all_paths
    (first, second), buckets = _in_same_buckets([a, b])
    kept = np.concatenate([a.kept, b.kept], axis=1)
    laws, hits = np.concatenate([a.laws, b.laws], axis=1), np.concatenate([a.hits, b.hits])
    return Summary(living, mean, m2, grad_norm, first + second, buckets, seen_mean, seen_m2, kept, laws, hits)


def _join(
    na: np.ndarray, mean_a: np.ndarray, m2_a: np.ndarray, nb: np.ndarray, mean_b: np.ndarray, m2_b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    n = np.maximum(na + nb, 1)
    delta = mean_b - mean_a
    return mean_a + delta * (nb / n), m2_a + m2_b + delta**2 * (na * nb / n)  # exact if either set is empty


def concatenated(parts: Sequence[Summary]) -> Summary:
    """The summary of a set of paths from those of successive records."""
    if len(parts) == 1:
        return parts[0]
    histograms, buckets = _in_same_buckets(parts)
    alike = [part._replace(histogram=counts) for part, counts in zip(parts, histograms, strict=True)]
    joined = Summary(*(np.concatenate(pieces, axis=0) for pieces in zip(*alike, strict=True)))
    return joined._replace(buckets=buckets)


def _in_same_buckets(parts: Sequence[Summary]) -> tuple[list[np.ndarray], np.ndarray]:
    """The histograms of summaries with columns for all buckets that any of them uses, and these buckets."""
    if all(np.array_equal(part.buckets, parts[0].buckets) for part in parts[1:]):
        return [part.histogram for part in parts], parts[0].buckets
    buckets = functools.reduce(np.union1d, (part.buckets for part in parts))
    wide = [np.zeros((len(part.histogram), len(buckets)), part.histogram.dtype) for part in parts]
    for columns, part in zip(wide, parts, strict=True):
        columns[:, np.searchsorted(buckets, part.buckets)] = part.histogram
    return wide, buckets


@functools.cache
def _bucket_edges() -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper edge of every bucket, ascending."""
    k = np.arange(POSITIVE + 1)
    steps = 1 << MANTISSA_BITS
    edges = 2.0 ** (EXPONENTS[0] + k // steps) * (1 + (k % steps) / steps)
    low = np.concatenate([-edges[1:][::-1], [0.0], edges[:-1]])
    high = np.concatenate([-edges[:-1][::-1], [0.0], edges[1:]])
    return low, high


def quantiles(histogram: np.ndarray, buckets: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Quantiles from sketches with counts (R, B) in `buckets` (B,): shape (R, levels), NaN where there are no counts.

    Interpolates within the bucket; the error is at most the bucket's width, a fraction `QUANTILE_ERROR` of the value.
    """
    rows, columns = histogram.shape
    if not buckets.size:
        return np.full((rows, len(levels)), np.nan)
    low, high = (edge[buckets] for edge in _bucket_edges())
    # Counts up to a bucket, on from row to row: one ascending array, in which all ranks are looked up at once.
    cumulative = np.cumsum(histogram, dtype=np.int64)
    ends = cumulative[columns - 1 :: columns]
    before = np.concatenate([[0], ends[:-1]])
    counted = (ends - before)[:, None]
    rank = levels * counted
    first = columns * np.arange(rows)[:, None]
    reached = np.searchsorted(cumulative, before[:, None] + np.ceil(rank).astype(np.int64))
    i = (reached - first).clip(0, columns - 1)
    within, upto = histogram.ravel()[first + i], cumulative[first + i] - before[:, None]
    share = (rank - (upto - within)) / np.maximum(within, 1)
    return np.where(counted > 0, low[i] + share.clip(0, 1) * (high[i] - low[i]), np.nan)


def packed(nodes: Nodes, prefix: str) -> dict[str, np.ndarray]:
    """The arrays of summaries by name; counts of sketches, of which there are many, in as few bytes as they need."""
    arrays: dict[str, np.ndarray] = {}
    for (level, index), summary in nodes.items():
        own = summary._asdict()
        if summary.histogram.dtype.kind == "i":
            largest = int(summary.histogram.max(initial=0))
            own["histogram"] = summary.histogram.astype(np.min_scalar_type(largest))
        arrays |= {f"{prefix}{level}-{index}/{name}": array for name, array in own.items()}
    return arrays


def unpacked(arrays: Mapping[str, np.ndarray], prefix: str) -> Nodes:
    """Restore the summaries that `packed` stored under this prefix."""
    fields: dict[tuple[int, int], dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        if name.startswith(prefix):
            node, _, field = name.removeprefix(prefix).partition("/")
            level, index = map(int, node.split("-"))
            counts = field == "histogram" and array.dtype.kind == "u"
            fields.setdefault((level, index), {})[field] = array.astype(np.int32) if counts else array
    return {node: Summary(**found) for node, found in fields.items()}
