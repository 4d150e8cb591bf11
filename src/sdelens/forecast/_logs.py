"""Means of a raw log over blocks of steps, with their standard errors."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sdelens.core import check
from sdelens.forecast._run import Run

__all__ = ["Thinned", "thinned"]

_SHARES: Final = (0.76, 0.14, 0.1)
"""Shares of the blocks that are uniform in the logarithm of the step, in the step, and in the learning rate."""
_JUMP: Final = 0.1
"""Change of the learning rate between two logged steps, as a fraction of its peak, at which a block ends."""
_BIWEIGHT: Final = 6.0
"""Residual, in standard deviations, from which on a point counts nothing."""
_SIGMA: Final = 1.4826
"""Standard deviation of a normal variable over its median absolute deviation."""
_WINDOW: Final = 15
"""Blocks whose differences give one estimate of the noise."""
_CALIBRATED: Final = 61
"""Blocks whose differences say whether their standard errors are large enough."""
_NEIGHBOURS: Final = 3
"""Blocks on each side whose residuals are pooled."""
_LONG: Final = 32
"""Points of a block from which on its residuals tell the correlation."""
_ENOUGH: Final = 20
"""Degrees of freedom from which on residuals within blocks are preferred to differences between them."""


@dataclass(frozen=True, eq=False)
class Thinned:
    """Mean losses over m blocks of steps, all arrays of shape (m,).

    Attributes:
        steps: mean step of each block, which need not be whole.
        losses: mean loss of each block.
        scatter: standard error of each mean; NaN if there are fewer than 3 points.
        counts: logged losses in each block.
        first: first logged step of each block.
        last: last logged step of each block, inclusive.
    """

    steps: NDArray[np.float64]
    losses: NDArray[np.float64]
    scatter: NDArray[np.float64]
    counts: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]


def thinned(run: Run, points: int = 300) -> Thinned:
    r"""The curve of a run as at most `points` means over blocks of steps.

    Blocks are of equal width in a mixture of log step, step and learning rate, finer after a jump of the learning rate,
    and none contains such a jump. A curve of at most `points` losses is kept as it is.

    **Mean.** Residuals r from the broken line through the blocks are averaged with Tukey's biweight (1 − (r/6σ)²)², 0
    beyond 6σ, so that spikes do not count, and added to the mean of the line. First the line joins the blocks' medians
    and σ is 1.4826 times the median of \|r\|; this is done twice. A spike in a block of one or two points remains.

    **Standard error.** With the variance σ² of r, pooled over neighbouring blocks, and its correlation ρ at lag 1, that
    of the mean of m points is σ²/m [(1 + ρ)/(1 − ρ) − 2ρ(1 − ρᵐ)/(m(1 − ρ)²)]. If means differ from the cubic through
    their four neighbours by more than these errors explain, as with longer correlations, errors are enlarged by the
    ratio. Where blocks have too few points, σ is at least 1.4826 times the median of these \|differences\| in units of
    their own standard deviation; with 3 or 4 blocks, those from the line through two neighbours. This alone is known of
    a curve that is kept as it is: where it was smoothed before, the error is larger.

    Args:
        run: the run.
        points: most blocks, at least 10.

    Raises:
        ValueError, TypeError: if `points` is less than 10 or not a whole number.

    Examples:
        >>> import sdelens as sl
        >>> import numpy as np
        >>> from sdelens.forecast._logs import thinned
        >>> steps = np.arange(1, 20_001)
        >>> losses = 3 + 2 / np.sqrt(steps) + 0.1 * np.random.default_rng(0).normal(size=steps.size)
        >>> curve = thinned(sl.forecast.Run((steps, losses), sl.SGD(lr=0.1)))
        >>> len(curve.steps), int(curve.counts.sum())
        (300, 20000)
    """
    points = check.at_least("points", points, 10)
    at = run.steps.astype(np.float64)
    if at.size <= points:
        scatter = _differenced(at, run.losses, np.ones(at.size))
        if at.size >= 3:  # a log of 4 decimals that does not change is not free of error
            scatter = np.maximum(scatter, _rounding(run.losses))
            scatter = np.maximum(scatter, np.finfo(np.float32).eps * run.losses)
        return Thinned(at, np.array(run.losses), scatter, np.ones(at.size, np.int64), run.steps, run.steps)
    starts = _starts(at, run.lr_at(run.steps), points)
    counts = np.diff(np.append(starts, at.size))
    steps, losses, residuals, weights = _means(at, run.losses, starts, counts)
    scatter = _errors(steps, losses, residuals, weights, starts, counts)
    scatter = np.maximum(scatter, np.finfo(np.float32).eps * losses)
    first, last = run.steps[starts], run.steps[np.append(starts[1:], at.size) - 1]
    return Thinned(steps, losses, scatter, counts, first, last)


def _starts(at: NDArray[np.float64], rates: NDArray[np.float64], points: int) -> NDArray[np.int64]:
    """Index of the first point of every block."""
    gaps = np.diff(at, prepend=at[0] - (at[1] - at[0]))
    peak = max(float(rates.max()), np.finfo(np.float64).tiny)
    change = np.abs(np.diff(rates, prepend=rates[0])) / peak
    jumps = np.argsort(-change, kind="stable")[: points // 10] if (change > _JUMP).any() else np.zeros(0, int)
    jumps = jumps[change[jumps] > _JUMP]
    change[jumps] = 0
    logarithmic = gaps / np.maximum(at, 1)
    if jumps.size:
        since = np.zeros(at.size)
        since[jumps] = at[jumps]
        since = at - np.maximum.accumulate(since)
        after = since < at
        logarithmic[after] += 0.5 * gaps[after] / (since[after] + (at[-1] - at[0]) / 500)
    mass = np.zeros(at.size)
    for share, part in zip(_SHARES, (logarithmic, gaps, change), strict=True):
        total = float(part.sum())
        if total > 0:
            mass += (share / total) * part
    wanted = points - jumps.size
    scale = float(wanted)
    for _ in range(20):  # a point fills at most one block, which leaves more blocks to the others
        full = scale * mass >= 1
        before, scale = scale, (wanted - int(full.sum())) / float(mass.sum(where=~full))
        if scale <= before * (1 + 1e-9):
            break
    block = np.floor(np.cumsum(np.minimum(scale * mass, 1)) * (1 - 1e-12)).astype(np.int64)
    ends = np.diff(block, prepend=block[0] - 1) > 0
    ends[jumps] = True
    return np.flatnonzero(ends)


def _means(
    at: NDArray[np.float64], values: NDArray[np.float64], starts: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Robust mean step and loss of every block, and the residual and weight of every point."""
    slices = [slice(s, s + c) for s, c in zip(starts, counts, strict=True)]
    steps = np.add.reduceat(at, starts) / counts
    losses = np.array([_median(values[block]) for block in slices])
    line = _lines(at, steps, losses)
    residuals = values - line
    size = np.abs(residuals)
    spread = _SIGMA * np.array([_median(size[block]) for block in slices])
    known = counts >= 5
    if not known.any():
        known = counts == counts.max()
    index = np.arange(counts.size)
    spread = np.interp(index, index[known], _medians(spread[known], 2 * _NEIGHBOURS + 1))
    spread = np.maximum(spread, max(_rounding(values), 1e-12))
    bound = np.repeat(1 / (_BIWEIGHT * spread), counts)
    weights = np.ones(at.size)
    for _ in range(2):
        weights = residuals * bound
        weights *= weights
        np.subtract(1, weights, out=weights)
        np.maximum(weights, 0, out=weights)
        weights *= weights
        total = np.add.reduceat(weights, starts)
        lost = total <= 0  # a single point far from the lines of its neighbours
        if lost.any():
            weights[np.repeat(lost, counts)] = 1.0
            total[lost] = counts[lost]
        losses = np.add.reduceat(line, starts) / counts + np.add.reduceat(weights * residuals, starts) / total
        line = _lines(at, steps, losses)
        residuals = values - line
    return steps, losses, residuals, weights


def _errors(
    steps: NDArray[np.float64],
    losses: NDArray[np.float64],
    residuals: NDArray[np.float64],
    weights: NDArray[np.float64],
    starts: NDArray[np.int64],
    counts: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Standard error of every mean."""
    kept = np.add.reduceat(weights, starts)
    squares = np.add.reduceat(weights * residuals**2, starts)
    large = counts >= min(_LONG, int(counts.max()))
    scale = np.where(large & (squares > 0), np.sqrt(np.maximum(kept - 1, 1) / np.where(squares > 0, squares, 1)), 0)
    scaled = np.repeat(scale, counts)
    scaled *= residuals
    scaled *= weights > 0.5
    square = float(scaled @ scaled)
    rho = min(max(float(scaled[1:] @ scaled[:-1]) / square, 0.0), 0.999) if square > 0 else 0.0
    inflated = (1 + rho) / (1 - rho) - 2 * rho * (1 - rho**counts) / (counts * (1 - rho) ** 2)
    free = _pooled(np.maximum(kept - inflated, 0))  # a mean takes the part of the noise that its points share
    between = _differenced(steps, losses, inflated / counts) * np.sqrt(counts / inflated)  # σ of one point
    enough = free >= _ENOUGH
    sigma = between
    if enough.any():
        inside = np.sqrt(_pooled(squares)[enough] / free[enough])
        nearest = np.interp(np.arange(counts.size), np.flatnonzero(enough), inside)
        sigma = np.where(enough, nearest, np.fmax(between, nearest))
    errors = sigma * np.sqrt(inflated / counts)
    longer = _differences(steps, losses, errors**2)
    if longer.size:
        reach = (counts.size - longer.size) // 2
        errors = errors * np.maximum(1, _SIGMA * np.pad(_medians(longer, _CALIBRATED), reach, mode="edge"))
    return errors


def _differences(
    steps: NDArray[np.float64], losses: NDArray[np.float64], variance: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Distance of each loss from the cubic (or line) through its neighbours, over its standard deviation.

    The last points of each end have none, so the shape is (m − 4,), or (m − 2,) for the line.
    """
    reach = 2 if steps.size >= 5 else 1
    if steps.size < 3:
        return np.zeros(0)
    middle = slice(reach, steps.size - reach)
    others = [k for k in range(-reach, reach + 1) if k != 0]
    x = [steps[reach + k : steps.size - reach + k] for k in others]
    y, spread = losses[middle].copy(), variance[middle].copy()
    for i, k in enumerate(others):  # Lagrange's interpolation
        c = np.ones(y.size)
        for j in range(len(others)):
            if j != i:
                c *= (steps[middle] - x[j]) / (x[i] - x[j])
        y -= c * losses[reach + k : steps.size - reach + k]
        spread += c**2 * variance[reach + k : steps.size - reach + k]
    return np.abs(y) / np.sqrt(np.maximum(spread, 1e-300))


def _differenced(
    steps: NDArray[np.float64], losses: NDArray[np.float64], variance: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Standard errors from differences between neighbours, in proportion to √variance; NaN with fewer than 3."""
    found = _differences(steps, losses, variance)
    if not found.size:
        return np.full(steps.size, np.nan)
    found = _SIGMA * _medians(found, _WINDOW)
    reach = (steps.size - found.size) // 2
    return np.pad(found, reach, mode="edge") * np.sqrt(variance)


def _medians(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Running medians over `width` values; at the ends over the first or last `width`."""
    width = min(width, values.size)
    found = np.median(np.lib.stride_tricks.sliding_window_view(values, width), axis=-1)
    before = (values.size - found.size) // 2
    return np.pad(found, (before, values.size - found.size - before), mode="edge")


def _rounding(values: NDArray[np.float64]) -> float:
    """Standard deviation of the error of rounding to the smallest change from one value to the next."""
    change = np.abs(np.diff(values))
    return float(np.min(change, where=change > 0, initial=float(values.max()))) / np.sqrt(12) if change.any() else 0.0


def _median(values: NDArray[np.float64]) -> float:
    middle = values.size // 2
    if values.size % 2:
        return float(np.partition(values, middle)[middle])
    return float(np.partition(values, [middle - 1, middle])[middle - 1 : middle + 1].mean())


def _pooled(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over each block and its neighbours."""
    return np.convolve(values, np.ones(2 * _NEIGHBOURS + 1), "full")[_NEIGHBOURS:-_NEIGHBOURS]


def _lines(at: NDArray[np.float64], steps: NDArray[np.float64], losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """The broken line through (steps, losses) at sorted steps, with its first and last piece extended."""
    if steps.size < 2:
        return np.full(at.size, losses[0])
    found = np.interp(at, steps, losses)
    begin, end = np.searchsorted(at, [steps[0], steps[-1]])
    for edge, inner, part in ((0, 1, slice(begin)), (-1, -2, slice(end, None))):
        slope = (losses[edge] - losses[inner]) / (steps[edge] - steps[inner])
        found[part] = losses[edge] + slope * (at[part] - steps[edge])
    return found
