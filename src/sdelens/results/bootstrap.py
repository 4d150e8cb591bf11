"""Means of two models' groups of paths under resampling of the groups, and the limits of a distance that follow."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

__all__ = ["Bootstrap", "Statistics", "draws_of", "inverted"]

_BLOCK = 4096
"""Resamples computed at a time, so that they fit in the caches; a limit of high confidence takes millions."""


def draws_of(
    groups: tuple[int, int], resamples: int, confidence: float, seed: int, paired: bool
) -> tuple[np.ndarray, np.ndarray]:
    """How often each group is drawn in every resample of both sides, (resamples, G); the same draws if paired.

    There are at least `resamples`, and at least as many as a limit of that confidence takes.
    """
    return _draws(groups, _enough(resamples, confidence), seed, paired)


def _enough(resamples: int, confidence: float) -> int:
    """The larger of `resamples` and the number that leaves ten resamples beyond a limit of that confidence."""
    return max(resamples, round(10 / (1 - confidence)))


@functools.lru_cache(maxsize=4)
def _draws(groups: tuple[int, int], resamples: int, seed: int, paired: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)

    def often(count: int) -> np.ndarray:
        found = np.empty((resamples, count), np.min_scalar_type(count))
        for at in range(0, resamples, _BLOCK):
            rows = found[at : at + _BLOCK]
            drawn = rng.integers(0, count, rows.shape) + count * np.arange(len(rows))[:, None]
            rows[:] = np.bincount(drawn.ravel(), minlength=rows.size).reshape(rows.shape)
        found.setflags(write=False)
        return found

    first = often(groups[0])
    return first, first if paired else often(groups[1])


def inverted(observed: float, star: "Statistics", confidence: float) -> tuple[float, float]:
    """Limits of the relative error given the observed ‖D‖²/scale² and resampled noise."""
    if observed == 0 and np.max(star.noise_norm2) == 0:
        return 0.0, 0.0
    size = np.sqrt(star.scale2.mean())

    def last(share: float, sign: int) -> float:
        """The largest θ up to which ‖θu + n‖² is at most the observed value with at least this probability."""

        def holds(theta: float) -> bool:
            square = (theta * size) ** 2 + sign * 2 * theta * size * star.along + star.noise_norm2
            return float(np.mean(square / star.scale2 <= observed)) >= share

        return _bisect(holds, 0.0, 2 * top)

    # The share decreases to 0 as θ grows; beyond √observed + the longest noise it is 0.
    top = np.sqrt(observed) + np.sqrt(np.max(star.noise_norm2) / np.min(star.scale2)) + 1e-300
    return min(last(confidence, sign) for sign in (1, -1)), max(last(1 - confidence, sign) for sign in (1, -1))


def _bisect(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The largest θ in [low, high] up to which `holds` is true, to 12 digits; `low` if it never is."""
    if not holds(low):
        return low
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


class Statistics(NamedTuple):
    """Statistics of every resample, each of shape (resamples,).

    They are ‖D‖², its noise tr Ĉ and ‖b̂ − b_min‖² minus its noise; then the squared length of the noise n = D* − D and
    its component along the direction in which the noise is largest.
    """

    norm2: np.ndarray
    noise2: np.ndarray
    scale2: np.ndarray
    noise_norm2: np.ndarray
    along: np.ndarray


class Bootstrap:
    """Resampled means of two models' groups, as linear and quadratic forms in how often each group is drawn.

    Let A and B be the groups' curves about their means, in the fewest columns that keep the inner products. The noise
    of a resampled difference D* is n = pA − qB, where p and q are the weights of the means.
    """

    def __init__(
        self,
        a: np.ndarray,
        b: np.ndarray,
        na: np.ndarray,
        nb: np.ndarray,
        minimum: float,
        paired: bool,
        height: float | None,
        limits: bool = True,
    ) -> None:
        """Without `limits`, only the statistics of the sample are computed, which need no eigenvectors or `along`."""
        mean_a, mean_b = na @ a / na.sum(), nb @ b / nb.sum()
        off_a, off_b = a - mean_a, b - mean_b
        self.difference, above = mean_a - mean_b, mean_b - minimum
        columns = np.concatenate([off_a, off_b])
        columns = _few_columns(columns) if limits else columns
        few_a, few_b = columns[: len(a)], columns[len(a) :]
        loudest = _loudest(few_a, few_b, na, nb, paired) if limits else np.zeros(columns.shape[1])
        self.records, self.height, self.above2 = len(above), height, above @ above
        self.a = _Groups(few_a, na, np.stack([off_a @ self.difference, few_a @ loudest], axis=1))
        linear_b = [off_b @ self.difference, few_b @ loudest, off_b @ above]
        self.b = _Groups(few_b, nb, np.stack(linear_b, axis=1))
        self.pairs = None
        if paired:
            pairs = few_a - few_b
            self.pairs = _Groups(pairs - na @ pairs / na.sum(), na, np.zeros((len(a), 0)))

    def statistics(self, draws_a: np.ndarray, draws_b: np.ndarray) -> Statistics:
        """Statistics of draws of groups, each of shape (resamples, G)."""
        parts = [
            self._part(draws_a[at : at + _BLOCK].astype(float), draws_b[at : at + _BLOCK].astype(float))
            for at in range(0, len(draws_a), _BLOCK)
        ]
        return Statistics(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def _part(self, draws_a: np.ndarray, draws_b: np.ndarray) -> Statistics:
        a, linear_a, scatter_a = self.a.resampled(draws_a)
        b, linear_b, scatter_b = self.b.resampled(draws_b)
        noise = scatter_a + scatter_b if self.pairs is None else self.pairs.resampled(draws_a)[2]
        across, along = (linear_a - linear_b[:, :2]).T
        if self.height is not None:
            scale2 = np.full(len(a), self.height**2 * self.records)
        else:
            scale2 = self.above2 + 2 * linear_b[:, 2] + _squares(b) - scatter_b
        length2 = _squares(a - b)
        return Statistics(self.difference @ self.difference + 2 * across + length2, noise, scale2, length2, along)


class _Groups(NamedTuple):
    """One side's groups: curves about their mean (G, k), counts of paths (G,), linear functionals of curves (G, m)."""

    curves: np.ndarray
    counts: np.ndarray
    linear: np.ndarray

    def resampled(self, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For every row of draws: the mean curve, its linear functionals, and the variance of the mean.

        Resampled means are scaled by √(G/(G−1)) about the mean of the sample. The variance is Σ_g u_g ‖a_g − mean‖²,
        where u_g is the squared weight of a drawn group.
        """
        groups, k = self.curves.shape
        counts = self.counts.astype(float)
        weight = np.sqrt(groups / max(groups - 1, 1)) / (draws @ counts)
        first = (draws @ (counts[:, None] * np.hstack([self.curves, self.linear]))) * weight[:, None]
        mean, linear = first[:, :k], first[:, k:]
        second = np.column_stack([np.ones(groups), (self.curves**2).sum(axis=1)])
        total, squares = weight**2 * (draws @ (counts[:, None] ** 2 * second)).T
        if (counts == counts[0]).all():
            across = counts[0] * weight * _squares(mean)
        else:
            across = weight**2 * np.einsum("rk,rk->r", draws @ (counts[:, None] ** 2 * self.curves), mean)
        return mean, linear, squares - 2 * across + total * _squares(mean)


def _few_columns(curves: np.ndarray) -> np.ndarray:
    """Curves with the same inner products up to rounding, in as few columns as possible."""
    if curves.shape[1] <= 1:
        return curves
    values, vectors = np.linalg.eigh(curves @ curves.T)
    kept = values > 1e-15 * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept])


def _loudest(a: np.ndarray, b: np.ndarray, na: np.ndarray, nb: np.ndarray, paired: bool) -> np.ndarray:
    """The unit vector along which the noise of D varies most; 0 where there is none."""
    share_a, share_b = (na / na.sum())[:, None] * a, (nb / nb.sum())[:, None] * b
    parts = share_a - share_b if paired else np.concatenate([share_a, -share_b])
    values, vectors = np.linalg.eigh(parts.T @ parts) if parts.shape[1] else (np.zeros(1), np.zeros((0, 1)))
    return vectors[:, -1] if values[-1] > 0 else np.zeros(parts.shape[1])


def _squares(curves: np.ndarray) -> np.ndarray:
    return np.einsum("rk,rk->r", curves, curves)
