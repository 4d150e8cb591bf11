r"""How far the law of a model's paths is from that of a reference: distances, quantiles and covariances, with limits.

Both laws are known by one value per path and column; the columns are coordinates, the loss and observables, each in
units of its standard deviation in the reference. With F and G the distribution functions of one column,

    W₁ = ∫ |F − G| dz,    energy distance = (2 ∫ (F − G)² dz)^½,

and jointly for the coordinates z ∈ ℝᴹ, with θ uniform on the sphere (Székely and Rizzo 2013; Rabin et al. 2011),

    sliced W₁ = E_θ W₁(θ·z),    energy distance = (E_θ 2 ∫ (F_θ − G_θ)² ds / E|θ₁|)^½,

which equals (2 E‖X − Y‖ − E‖X − X'‖ − E‖Y − Y'‖)^½. E_θ is the mean over random orthonormal frames of directions.
The error of the covariance is ‖Cov X − Cov Y‖_F/‖Cov Y‖_F.

All of these are norms of a difference Δ of the two laws, which is known up to noise: Δ̂ = Δ + N. A bootstrap over paths
(over pairs of paths that share their random numbers) gives copies N* of the noise, and

    floor = the mean of ‖N*‖ for W₁, (mean ‖N*‖²)^½ for the others: what a perfect model would show;
    value = ‖Δ̂‖ for W₁, (‖Δ̂‖² − floor²)^½ or 0 for the others;
    limits ‖Δ̂‖ ∓ q, with q the quantile of ‖N*‖ at the confidence: by the triangle inequality |‖Δ̂‖ − ‖Δ‖| ≤ ‖N‖,

so both limits hold together with at least that confidence for many paths, whether the laws differ or not, provided that
the columns have finite variance (the covariance needs fourth moments). They are wide where the laws differ much.

The p-value is the share of permutations of the pooled paths (swaps within pairs) that reach ‖Δ̂‖, and ``null`` is the
quantile of ‖Δ̂‖ under them; for paths that do not share their random numbers, P(p ≤ α) ≤ α for one law, exactly.
Differences of quantiles have the limits of the percentile bootstrap.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from sdelens.core.limits import CONFIDENCE

__all__ = ["LEVELS", "QUANTITIES", "LawDifference", "law_differences"]

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Levels of the compared quantiles."""
QUANTITIES = ("w1", "energy", "quantiles", "covariance")
_DIRECTIONS = 16
_BLOCK_NUMBERS = 2**19
"""Numbers of a block of resamples, so that it fits in the caches."""
_ROUNDING = 1e-5


class LawDifference(NamedTuple):
    """A difference of two laws; NaN where there is none.

    Attributes:
        value: the estimate.
        lower: lower confidence limit, one-sided.
        upper: upper confidence limit, one-sided.
        floor: what two samples of one law would show on average.
        null: the quantile, at the confidence, of what they would show.
        p_value: how often they would show as much as was observed.
    """

    value: float
    lower: float = np.nan
    upper: float = np.nan
    floor: float = np.nan
    null: float = np.nan
    p_value: float = np.nan


Rows = dict[tuple[str, str], LawDifference]
"""Differences by quantity and column; the column ``"all"`` is all coordinates together."""


def law_differences(
    first: np.ndarray,
    second: np.ndarray,
    columns: Sequence[str],
    joint: Sequence[int],
    paired: bool,
    quantities: Sequence[str] = QUANTITIES,
    confidence: float = CONFIDENCE,
    resamples: int = 999,
    seed: int = 0,
) -> Rows:
    """Differences of the laws of two samples.

    Args:
        first: values of the model, shape (n, C); rows that are not finite are left out.
        second: values of the reference, shape (m, C).
        columns: names of the columns.
        joint: indices of the columns whose joint law is compared.
        paired: whether row i of both belongs together.
        quantities: which of `QUANTITIES`.
        confidence: one-sided confidence of each limit.
        resamples: number of permutations and of bootstrap samples.
        seed: seed of both, and of the directions.
    """
    usable = np.isfinite(first).any(axis=0) & np.isfinite(second).any(axis=0)
    names = [name for name, use in zip(columns, usable, strict=True) if use]
    place = np.cumsum(usable) - 1
    first, second = first[:, usable].astype(float), second[:, usable].astype(float)
    wanted, joint = joint, [int(place[i]) for i in joint if usable[i]]
    paired = paired and len(first) == len(second)
    if paired:
        both = np.isfinite(first).all(axis=1) & np.isfinite(second).all(axis=1)
        first, second = first[both], second[both]
    first, second = (a[np.isfinite(a).all(axis=1)] for a in (first, second))
    found: Rows = {}
    if names and min(len(first), len(second)) > 1:
        scale = _scale(first, second)
        pair = _Pair(first / scale, second / scale, paired, confidence, resamples, seed)
        distances = [name for name in ("w1", "energy") if name in quantities]
        found |= _distances(pair, names, joint, distances) if distances else {}
        if "quantiles" in quantities:
            found |= _quantiles(pair, names)
        if "covariance" in quantities and joint:
            found["covariance", "all"] = _covariance(pair, joint)
    missing = LawDifference(np.nan)
    return {key: found.get(key, missing) for key in _keys(columns, len(wanted), quantities)}


def _keys(columns: Sequence[str], joint: int, quantities: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every quantity and column, in the order of the table; a single coordinate has no joint law."""
    together = joint > 1
    for quantity in quantities:
        if quantity == "covariance":
            yield from [("covariance", "all")] if joint else []
        elif quantity == "quantiles":
            yield from ((f"quantile_{100 * level:g}", name) for level in LEVELS for name in columns)
        else:
            yield from ((quantity, name) for name in [*columns, *(["all"] if together else [])])


def _scale(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Standard deviations of the second sample; where that is 0 those of both together, or 1."""
    pooled = np.concatenate([first, second])
    scale = second.std(axis=0, ddof=1)
    scale = np.where(scale > 1e-6 * np.abs(pooled).max(axis=0), scale, pooled.std(axis=0))
    return np.where(scale > 0, scale, 1.0)


class _Pair:
    """Two samples, with their resamples as weights of the pooled rows: first − second, for each of N rows."""

    def __init__(
        self, first: np.ndarray, second: np.ndarray, paired: bool, confidence: float, resamples: int, seed: int
    ) -> None:
        self.first, self.second, self.paired = first, second, paired
        self.confidence, self.resamples, self.seed = confidence, resamples, seed
        self.pooled = np.concatenate([first, second])
        self.n, self.m = len(first), len(second)
        self.weights = np.concatenate([np.full(self.n, 1 / self.n), np.full(self.m, -1 / self.m)])

    def permutations(self) -> Iterator[np.ndarray]:
        """Blocks of permuted weights, (rows, N)."""
        rng = np.random.default_rng([self.seed, 1])
        for rows in self._blocks():
            if self.paired:
                signs = rng.choice([-1.0, 1.0], (rows, self.n))
                yield np.hstack([signs, signs]) * self.weights
            else:
                yield rng.permuted(np.broadcast_to(self.weights, (rows, len(self.weights))), axis=1)

    def counts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Blocks of how often each row of both samples is drawn, (rows, n) and (rows, m)."""
        rng = np.random.default_rng([self.seed, 2])
        for rows in self._blocks():
            drawn = _drawn(rng, rows, self.n)
            yield drawn, drawn if self.paired else _drawn(rng, rows, self.m)

    def noise(self) -> Iterator[np.ndarray]:
        """Blocks of the noise of the weights: those of a bootstrap sample less those of the samples, (rows, N)."""
        for a, b in self.counts():
            yield np.hstack([(a - 1) / self.n, (1 - b) / self.m])

    def _blocks(self) -> Iterator[int]:
        size = max(1, _BLOCK_NUMBERS // len(self.weights))
        for done in range(0, self.resamples, size):
            yield min(size, self.resamples - done)

    def difference(
        self, observed: float, noise: np.ndarray, permuted: np.ndarray | None, squared: bool
    ) -> LawDifference:
        """The norm of a difference with its limits, from the norms of the noise and of permutations."""
        reach = float(np.quantile(noise, self.confidence))
        floor = float(np.sqrt(np.mean(noise**2))) if squared else float(noise.mean())
        value = float(np.sqrt(max(observed**2 - floor**2, 0.0))) if squared else observed
        limits = max(observed - reach, 0.0), observed + reach
        if permuted is None:
            return LawDifference(value, *limits, floor)
        p_value = (1 + int((permuted >= observed * (1 - _ROUNDING)).sum())) / (len(permuted) + 1)
        return LawDifference(value, *limits, floor, float(np.quantile(permuted, self.confidence)), p_value)


def _drawn(rng: np.random.Generator, rows: int, size: int) -> np.ndarray:
    drawn = rng.integers(0, size, (rows, size)) + size * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size)


def _distances(pair: _Pair, names: Sequence[str], joint: Sequence[int], quantities: Sequence[str]) -> Rows:
    """W₁ and the energy distance of every column, and jointly of some."""
    count = pair.pooled.shape[1]
    directions = np.eye(count)
    if len(joint) > 1:
        across = np.zeros((len(joint) * -(-_DIRECTIONS // len(joint)), count))
        across[:, joint] = _frames(len(joint), len(across), pair.seed)
        directions = np.vstack([directions, across])
    lines = [_Line(pair.pooled @ direction) for direction in directions]
    observed, permuted, noise = (
        np.concatenate([np.stack([line.norms(part) for line in lines]) for part in map(_columns, blocks)], axis=2)
        for blocks in ([pair.weights[None]], pair.permutations(), pair.noise())
    )  # each (directions, 2, resamples): ∫ |F − G| and 2 ∫ (F − G)²
    at: dict[str, tuple[Sequence[int], float]] = {name: ([i], 1.0) for i, name in enumerate(names)}
    if len(joint) > 1:
        at["all"] = range(count, len(lines)), _mean_of_first(len(joint))
    found: Rows = {}
    for quantity in quantities:
        for name, (rows, share) in at.items():
            if quantity == "w1":
                one, other, third = (a[list(rows), 0].mean(axis=0) for a in (observed, noise, permuted))
            else:
                one, other, third = (
                    np.sqrt(a[list(rows), 1].mean(axis=0) / share) for a in (observed, noise, permuted)
                )
            found[quantity, name] = pair.difference(float(one[0]), other, third, quantity == "energy")
    return found


def _columns(weights: np.ndarray) -> np.ndarray:
    """Rows of weights as columns, since sums over the paths are then vectorised."""
    return np.ascontiguousarray(weights.T, np.float32)


class _Line:
    """The pooled sample along one direction, sorted."""

    def __init__(self, values: np.ndarray) -> None:
        self.order = np.argsort(values, kind="stable")
        self.gaps = np.diff(values[self.order]).astype(np.float32)

    def norms(self, weights: np.ndarray) -> np.ndarray:
        """∫ |Δ| and 2 ∫ Δ² for the step functions Δ of columns of weights, of shape (N, rows): shape (2, rows)."""
        steps = weights[self.order[:-1]]
        np.cumsum(steps, axis=0, out=steps)
        squares = 2 * np.einsum("n,nr,nr->r", self.gaps, steps, steps)
        return np.stack([self.gaps @ np.abs(steps), squares]).astype(float)


def _frames(dim: int, count: int, seed: int) -> np.ndarray:
    """Random directions in `dim` dimensions as orthonormal frames, shape (count, dim); `count` is a multiple of dim."""
    rng = np.random.default_rng([seed, 3])
    frames = np.linalg.qr(rng.normal(size=(count // dim, dim, dim)))[0]
    return frames.reshape(count, dim)


def _mean_of_first(dim: int) -> float:
    """E|θ₁| for θ uniform on the sphere in `dim` dimensions."""
    from scipy.special import gammaln

    return float(np.exp(gammaln(dim / 2) - gammaln((dim + 1) / 2)) / np.sqrt(np.pi))


def _quantiles(pair: _Pair, names: Sequence[str]) -> Rows:
    """Differences of the quantiles of every column."""
    levels = np.array(LEVELS)
    sides = [(a, np.argsort(a, axis=0)) for a in (pair.first, pair.second)]
    value = np.quantile(pair.first, levels, axis=0) - np.quantile(pair.second, levels, axis=0)
    found = [
        np.stack([_resampled(*sides[0], i, a, levels) - _resampled(*sides[1], i, b, levels) for i in range(len(names))])
        for a, b in pair.counts()
    ]
    differences = np.concatenate(found, axis=1)  # (C, resamples, levels)
    low, high = np.quantile(differences, [1 - pair.confidence, pair.confidence], axis=1)
    floor = np.abs(differences - differences.mean(axis=1, keepdims=True)).mean(axis=1)
    return {
        (f"quantile_{100 * level:g}", name): LawDifference(
            *map(float, (value[j, i], low[i, j], high[i, j], floor[i, j]))
        )
        for j, level in enumerate(LEVELS)
        for i, name in enumerate(names)
    }


def _resampled(
    values: np.ndarray, order: np.ndarray, column: int, counts: np.ndarray, levels: np.ndarray
) -> np.ndarray:
    """Quantiles of a column of bootstrap samples, shape (rows, levels)."""
    own = order[:, column]
    below = np.cumsum(counts[:, own], axis=1)
    index = np.stack([(below < level * len(own)).sum(axis=1) for level in levels], axis=1)
    return np.asarray(values[own, column][np.minimum(index, len(own) - 1)])


def _covariance(pair: _Pair, joint: Sequence[int]) -> LawDifference:
    """The relative error of the covariance matrix of some columns."""
    first, second = (a[:, joint] - a[:, joint].mean(axis=0) for a in (pair.first, pair.second))
    sides = [np.hstack([a, _products(a)]) for a in (first, second)]
    own = [_covariances(np.full((1, len(a)), 1 / len(a)), a, len(a))[0] for a in sides]
    size = np.linalg.norm(own[1])
    if size == 0:
        return LawDifference(np.nan)
    noise, permuted, pooled = [], [], np.concatenate(sides)
    for a, b in pair.counts():
        drawn = _covariances(a / pair.n, sides[0], pair.n), _covariances(b / pair.m, sides[1], pair.m)
        noise.append((drawn[0] - own[0]) - (drawn[1] - own[1]))
    for weights in pair.permutations():
        one, other = np.maximum(weights, 0), np.maximum(-weights, 0)
        permuted.append(_covariances(one, pooled, pair.n) - _covariances(other, pooled, pair.m))
    norms = [np.linalg.norm(np.concatenate(part), axis=(1, 2)) / size for part in (noise, permuted)]
    return pair.difference(float(np.linalg.norm(own[0] - own[1]) / size), norms[0], norms[1], squared=True)


def _products(values: np.ndarray) -> np.ndarray:
    """All products of two columns, shape (n, M²)."""
    return (values[:, :, None] * values[:, None, :]).reshape(len(values), -1)


def _covariances(weights: np.ndarray, columns: np.ndarray, size: int) -> np.ndarray:
    """Covariances (resamples, M, M) of samples of `size` rows from weights of rows of M values and M² products."""
    dim = round((np.sqrt(1 + 4 * columns.shape[1]) - 1) / 2)
    moments = weights @ columns
    mean, square = moments[:, :dim], moments[:, dim:].reshape(-1, dim, dim)
    return (square - mean[:, :, None] * mean[:, None, :]) * (size / (size - 1))
