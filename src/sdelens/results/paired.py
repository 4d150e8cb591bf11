r"""Loss curves of a few runs, compared seed by seed: on one grid, with Student's limits.

A run with seed s has mean losses aₛ, and the reference run with the same seed bₛ. The differences aₛ − bₛ are
independent, so that their mean has Student's limits with S − 1 degrees of freedom. The relative change ρ, the mean of
aₛ − bₛ divided by that of a height hₛ, has Fieller's: the set of all ρ at which the mean of aₛ − bₛ − ρhₛ is within t
standard errors of 0. Both are exact for normal losses. The height is what the reference has gained since the start,
or its loss above a given infimum.
"""

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from scipy.special import stdtrit

from sdelens.core.limits import OF_FEW
from sdelens.core.numerals import Writer, with_limits
from sdelens.results.tracking import Curves, TrackingError, tracking_error

__all__ = ["MEASURED", "Change", "change", "late_part", "measured", "on_grid", "scale_of", "seeds_needed", "shown"]

MEASURED: Final = (
    "loss",
    *(f"{name}{side}" for name in ("difference", "relative", "error") for side in ("", "_lower", "_upper")),
)
"""The numbers that `measured` reports of one comparison."""
_BINS: Final = 60
_MOST: Final = 1000


class Change(NamedTuple):
    """Change of a mean loss against a reference; what is not known is NaN.

    Attributes:
        difference: the mean of a − b.
        difference_lower, difference_upper: its limits.
        relative: mean of a − b, divided by the mean of h.
        relative_lower, relative_upper: its limits; infinite on both sides if h may be 0.
        deviation: standard deviation over the seeds of a − b − ρh, divided by the mean of h, at the estimated ρ.
        seeds: number of seeds S.
    """

    difference: float
    difference_lower: float
    difference_upper: float
    relative: float
    relative_lower: float
    relative_upper: float
    deviation: float
    seeds: int


def change(ours: np.ndarray, reference: np.ndarray, height: np.ndarray, confidence: float = OF_FEW) -> Change:
    """Change of the mean of a against that of b, one number per seed, with two-sided limits.

    Args:
        ours: a, shape (S,).
        reference: b, shape (S,), of the same seeds in the same order.
        height: h, shape (S,), to which the change is relative.
        confidence: two-sided confidence of the limits.
    """
    moved, scale = np.asarray(ours, float) - np.asarray(reference, float), np.asarray(height, float)
    count = moved.size
    if not (count and np.isfinite(moved).all() and np.isfinite(scale).all()):
        return Change(math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, count)
    difference, mean = float(moved.mean()), float(scale.mean())
    ratio = difference / mean if mean > 0 else math.nan
    if count < 2:
        return Change(difference, math.nan, math.nan, ratio, math.nan, math.nan, math.nan, count)
    t = _quantile(confidence, count)
    half = t * float(moved.std(ddof=1)) / math.sqrt(count)
    deviation = float((moved - ratio * scale).std(ddof=1)) / mean if mean > 0 else math.nan
    limits = _fieller(moved, scale, t)
    return Change(difference, difference - half, difference + half, ratio, *limits, deviation, count)


def seeds_needed(found: Change, bound: float, confidence: float = OF_FEW) -> float:
    """Number of seeds at which a relative change as estimated would be told from `bound`; infinite beyond 1000.

    It is NaN if the scatter over seeds is not known.
    """
    distance = abs(found.relative - bound)
    if math.isnan(found.deviation) or math.isnan(distance):
        return math.nan
    enough = (
        count
        for count in range(2, _MOST + 1)
        if _quantile(confidence, count) * found.deviation <= distance * math.sqrt(count)
    )
    return float(next(enough, math.inf))


def on_grid(curves: Sequence[tuple[np.ndarray, np.ndarray]], bins: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Means of curves over the bins of one grid, each curve taken as linear between its records.

    Args:
        curves: positions (rising) and losses of every curve; they may have different records.
        bins: number of bins; by default 60, or fewer if a curve has fewer records.

    Returns:
        The edges of the bins, shape (R + 1,), within the range that is common to all curves; and the means, shape
        (number of curves, R).
    """
    first = max(float(x[0]) for x, _ in curves)
    last = min(float(x[-1]) for x, _ in curves)
    fewest = min(int(((x >= first) & (x <= last)).sum()) for x, _ in curves)
    edges = np.linspace(first, last, max(2, min(_BINS, fewest - 1) if bins is None else bins) + 1)
    return edges, np.stack([_bin_means(x, y, edges) for x, y in curves])


def late_part(edges: np.ndarray) -> np.ndarray:
    """Whether each bin's middle is in the last third of the grid, shape (R,)."""
    middle = (edges[1:] + edges[:-1]) / 2
    return np.asarray(middle >= edges[0] + (edges[-1] - edges[0]) * 2 / 3)


def measured(
    edges: np.ndarray, ours: np.ndarray, reference: np.ndarray, minimum: float | None, confidence: float
) -> tuple[Change, dict[str, float]]:
    """The change over the last third of a grid, and everything in `MEASURED`.

    The error is the relative L2 distance of the mean curves, with the noise removed: it needs two seeds, and eight for
    its limits.

    Args:
        edges: edges of the bins.
        ours: shape (S, R).
        reference: shape (S, R), with the same seeds.
        minimum: infimum of the loss; None: changes are relative to the reference's decrease from the first bin to the
            last third, and the error to its curve above the mean of the last third.
        confidence: two-sided confidence of the limits.
    """
    late = late_part(edges)
    means = (ours[:, late].mean(axis=1), reference[:, late].mean(axis=1))
    height = reference[:, 0] - means[1] if minimum is None else means[1] - minimum
    found, error = change(*means, height, confidence), TrackingError(*[math.nan] * 7)
    if len(ours) > 1:
        ones = np.ones(len(ours))
        curve, base = Curves(ours, ones, "seed"), Curves(reference, ones, "seed")
        floor = float(means[1].mean()) if minimum is None else minimum
        error = tracking_error(curve, base, floor, 0.5 + confidence / 2)
    numbers = {k: v for k, v in found._asdict().items() if k in MEASURED}
    numbers |= {"error": error.error, "error_lower": error.lower, "error_upper": error.upper}
    return found, {"loss": float(means[0].mean()), **numbers}


def scale_of(minimum: float | None) -> str:
    """To what changes are relative, in words."""
    return "the decrease of the reference" if minimum is None else f"the loss minus {minimum:g}"


def shown(row: Any, name: str, write: Writer) -> str:
    """A number of a row with its limits, as text."""
    return with_limits(row[name], row[f"{name}_lower"], row[f"{name}_upper"], write)


def _quantile(confidence: float, count: int) -> float:
    return float(stdtrit(count - 1, 0.5 + confidence / 2))


def _fieller(a: np.ndarray, b: np.ndarray, t: float) -> tuple[float, float]:
    """Limits of the ratio of two means: the roots ρ of (ā − ρb̄)² = t² Var(ā − ρb̄)."""
    mean = np.array([a.mean(), b.mean()])
    covariance = np.cov(a, b) / a.size
    square, linear, constant = (mean[i] * mean[j] - t**2 * covariance[i, j] for i, j in ((1, 1), (0, 1), (0, 0)))
    if square <= 0 or mean[1] <= 0:
        return -math.inf, math.inf
    root = math.sqrt(max(linear**2 - square * constant, 0.0))
    return (linear - root) / square, (linear + root) / square


def _bin_means(x: np.ndarray, y: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Exact mean over each bin of the curve that is linear between its records."""
    nodes = np.unique(np.concatenate([x, edges]))
    values = np.interp(nodes, x, y)
    integral = np.concatenate([[0.0], np.cumsum(np.diff(nodes) * (values[1:] + values[:-1]) / 2)])
    found: np.ndarray = np.diff(np.interp(edges, nodes, integral)) / np.diff(edges)
    return found
