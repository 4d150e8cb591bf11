"""Which point of a sweep is best, and which others are statistically indistinguishable from it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sdelens.core import check
from sdelens.core.names import point_label
from sdelens.core.numerals import percent
from sdelens.results.printable import Parts, Printable

__all__ = ["Best", "best_of", "mean_and_sem"]


@dataclass(frozen=True, repr=False)
class Best(Printable):
    """The point with the smallest late loss.

    Attributes:
        point: values of the best point by key.
        late_loss: mean loss over the last third.
        sem: standard error of `late_loss`.
        runner_up: values of the second-best point, None if there is none.
        difference: late loss of the second-best point minus that of the best.
        lower: one-sided lower limit of `difference`.
        ties: points not distinguishable from the best at `confidence`; the second-best, if among them, comes first.
        confidence: simultaneous confidence that no point other than the ties is better.
    """

    point: dict[str, Any]
    late_loss: float
    sem: float
    runner_up: dict[str, Any] | None
    difference: float
    lower: float
    ties: tuple[dict[str, Any], ...]
    confidence: float

    @property
    def resolved(self) -> bool:
        """Whether the best point is distinguishable from every other point."""
        return not self.ties

    def _parts(self) -> Parts:
        return [f"Best: {self.sentence()}."]

    def sentence(self) -> str:
        """The best point, its late loss, and the points that are not distinguishable from it, in one sentence."""
        found = f"{point_label(self.point)}: late loss {self.late_loss:.5g} ± {self.sem:.1g}"
        if self.runner_up is None:
            return found
        found += f"; next {point_label(self.runner_up)}, {self.difference:.2g} above it"
        if self.resolved:
            return f"{found} (distinguishable from all others at {percent(self.confidence, 3)})"
        others = f"{len(self.ties)} point{'s' * (len(self.ties) > 1)}"
        return f"{found} (not distinguishable from {others} at {percent(self.confidence, 3)})"


def best_of(
    points: list[dict[str, Any]],
    value: np.ndarray,
    sem: np.ndarray,
    groups: np.ndarray,
    counts: np.ndarray,
    confidence: Any,
) -> Best:
    """The point of smallest value, compared with every other point group by group; see `Sweep.best`.

    Args:
        points: the n points.
        value: value of every point, shape (n,); points with NaN are ignored.
        sem: standard errors of the values, shape (n,).
        groups: values of every group of paths, shape (n, G).
        counts: number of paths in each group, shape (G,).
        confidence: simultaneous confidence that no point other than the ties is better.

    Raises:
        ValueError, TypeError: if `confidence` is not in (0.5, 1).
    """
    from scipy.special import stdtrit

    confidence = check.fraction("confidence", confidence)
    if confidence <= 0.5:
        raise ValueError(f"confidence: got {confidence}; it must lie in (0.5, 1), for example 0.99.")
    order = np.argsort(value, kind="stable")  # NaN comes last
    first, *others = (int(i) for i in order[: np.isfinite(value).sum()])
    here = float(value[first]), float(sem[first])
    if not others:
        return Best(points[first], *here, None, np.nan, np.nan, (), confidence)
    difference, error = mean_and_sem(groups[others] - groups[first], counts)
    freedom, share = max(len(counts) - 1, 1), (1 - confidence) / (len(points) - 1)
    lower = difference - float(stdtrit(freedom, 1 - share)) * error
    ties = tuple(points[i] for i, low in zip(others, lower, strict=True) if not low > 0)
    return Best(points[first], *here, points[others[0]], float(difference[0]), float(lower[0]), ties, float(confidence))


def mean_and_sem(groups: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over all paths and its standard error, from group means on the last axis and numbers of paths."""
    weights = counts / counts.sum(axis=-1, keepdims=True)
    mean = (weights * groups).sum(axis=-1)
    number = groups.shape[-1]
    if number < 2:
        return mean, np.full(mean.shape, np.nan)
    square = (weights**2 * (groups - mean[..., None]) ** 2).sum(axis=-1) * number / (number - 1)
    return mean, np.sqrt(square)
