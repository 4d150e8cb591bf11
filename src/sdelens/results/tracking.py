r"""How well one mean curve tracks another: relative L2 errors, corrected for Monte-Carlo noise, with limits.

Everything is a function of group means: paths are split into G groups, and each curve is the weighted mean of its
groups' curves a_g (R recorded steps). With â, b̂ the two means and D = â − b̂,

    error² = (‖D‖² − tr Ĉ) / (‖b̂ − b_min‖² − tr Ĉ_b),    floor² = tr Ĉ / (‖b̂ − b_min‖² − tr Ĉ_b),

where Ĉ is the covariance of D estimated from the scatter of the groups: E‖D‖² = ‖δ‖² + tr C for the true difference δ,
so the bias of the naive error is removed, and the floor is what a perfect model would show without this correction.

The limits invert a test. If the true difference had length θ, ‖D‖² would have the law of ‖θu + n‖², where n is the
noise of D and u the unknown direction of the difference. We take for u the direction in which the noise is largest;
this is the least favourable case, since it spreads ‖D‖² the most. Of the two signs of u, the one with the wider limit
is used. The upper limit is the largest θ at which a ‖D‖ as small as the observed one has a probability of at least
1 − confidence; the lower limit is the smallest θ at which one as large has that probability. The noise n, and with it
the scale ‖b̂ − b_min‖, is drawn by bootstrap over groups. Curves enter only through their inner products, so the cost
of a resample hardly depends on the number of steps.

Limits of the shift and of the spread are those of Student's t. With T the logarithm of a ratio (of two mean heights, or
the mean over steps of the ratio of two standard deviations) and T₋g the same without group g, for equal groups,

    T_J = T − Σ_sides (G − 1)(T̄₋ − T),    s² = Σ_sides (G − 1)/G Σ_g (T₋g − T̄₋)²,    limits exp(T_J ± t s),

where T̄₋ is the mean of T₋g and t the quantile for Welch's degrees of freedom s⁴/Σ_sides s_side⁴/(G − 1): the delete-one
jackknife (Tukey 1958), for unequal groups that of Busing, Meijer and van der Leeden (1999). The logarithm makes two
losses of one law, up to a factor, symmetric, so that their skewness cancels; otherwise the limits miss more often than
stated on one side (measured in docs/method.md).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sdelens.core.limits import CONFIDENCE
from sdelens.core.machine import one_blas_thread
from sdelens.results.bootstrap import Bootstrap, draws_of, inverted

__all__ = [
    "FEWEST_GROUPS",
    "Curves",
    "Interval",
    "TrackingError",
    "late_window",
    "spread_ratio",
    "thirds",
    "tracking_error",
]

FEWEST_GROUPS = 8
"""With fewer groups the bootstrap estimates the noise too poorly, and no limits are computed."""


class Curves(NamedTuple):
    """Group means of one model.

    Attributes:
        groups: mean loss per group and recorded step, shape (G, R).
        counts: paths per group, shape (G,).
        stream: name of the stream of random numbers; two models on one stream are compared path by path.
        m2: sums of squared deviations from the groups' means, shape (G, R); None where there are no paths.
        living: paths per group and recorded step, shape (G, R); by default `counts` throughout.
    """

    groups: np.ndarray
    counts: np.ndarray
    stream: str
    m2: np.ndarray | None = None
    living: np.ndarray | None = None


class Interval(NamedTuple):
    """An estimate with one-sided confidence limits; NaN where they cannot be computed."""

    value: float
    lower: float = np.nan
    upper: float = np.nan


class TrackingError(NamedTuple):
    """Error of one curve against a reference.

    Attributes:
        error: relative L2 error, bias-corrected; 0 if noise explains the whole difference.
        lower: lower confidence limit, one-sided.
        upper: upper confidence limit, one-sided.
        floor: relative L2 error that a perfect model would show, on average, without the correction.
        shift: (mean of the curve − mean of the reference) / (mean of the reference − b_min), signed; relative to
            the given height where there is one.
        shift_lower: one-sided lower limit of the shift.
        shift_upper: one-sided upper limit of the shift.
    """

    error: float
    lower: float
    upper: float
    floor: float
    shift: float
    shift_lower: float
    shift_upper: float


@one_blas_thread()
def tracking_error(
    curve: Curves,
    reference: Curves,
    minimum: float,
    confidence: float = CONFIDENCE,
    resamples: int = 4000,
    seed: int = 0,
    height: float | None = None,
) -> TrackingError:
    """Bias-corrected relative L2 error of `curve` against `reference`, with one-sided confidence limits.

    Args:
        curve: the model's group means.
        reference: the reference's group means.
        minimum: b_min, which is subtracted from the loss.
        confidence: one-sided confidence of each limit.
        resamples: least number of bootstrap resamples; a high confidence takes more; with 0 there are no limits.
        seed: seed of the resamples.
        height: root mean square of the reference minus `minimum`, to which errors are relative; by default computed
            from `reference`.

    Returns:
        The error and its limits; NaN throughout where a group has no finite path at some step or the height is not
        positive, and NaN limits and floor where there are fewer than eight groups or the height is not resolved. The
        limits of the shift are also NaN where one of the means, without some group, is not above `minimum`.
    """
    a, b = curve.groups, reference.groups
    if not (a.shape[1] and np.isfinite(a).all() and np.isfinite(b).all()):
        return TrackingError(*[np.nan] * 7)
    paired = curve.stream == reference.stream and a.shape[0] == b.shape[0]
    model = Bootstrap(a, b, curve.counts, reference.counts, minimum, paired, height, limits=resamples > 0)
    point = model.statistics(np.ones((1, a.shape[0])), np.ones((1, b.shape[0])))
    norm2, noise2, scale2 = float(point.norm2[0]), float(point.noise2[0]), float(point.scale2[0])
    if scale2 <= 0:
        return TrackingError(*[np.nan] * 7)
    error = float(np.sqrt(max(norm2 - noise2, 0.0) / scale2))
    first, second = _LeftOut.mean(curve), _LeftOut.mean(reference)
    with np.errstate(divide="ignore", invalid="ignore"):  # there is no relative shift for a height of 0
        above = np.float64(height) if height is not None else second.values[0] - minimum
        shift = float((first.values[0] - second.values[0]) / above)
    if min(a.shape[0], b.shape[0]) < FEWEST_GROUPS:
        return TrackingError(error, np.nan, np.nan, np.nan, shift, np.nan, np.nan)
    floor = float(np.sqrt(max(noise2, 0.0) / scale2))
    if not resamples:
        return TrackingError(error, np.nan, np.nan, floor, shift, np.nan, np.nan)
    draws_a, draws_b = draws_of((a.shape[0], b.shape[0]), resamples, confidence, seed, paired)
    star = model.statistics(draws_a, draws_b)
    if star.scale2.min() <= 0:  # the height is indistinguishable from noise, so nothing relative to it has limits
        return TrackingError(error, np.nan, np.nan, np.nan, shift, np.nan, np.nan)
    lower, upper = inverted(norm2 / scale2, star, confidence)
    limits = _shift_limits(first, second, minimum, height, paired, confidence)
    return TrackingError(error, lower, upper, floor, shift, *limits)


def spread_ratio(curve: Curves, reference: Curves, confidence: float = CONFIDENCE) -> Interval:
    """Standard deviation over paths relative to the reference's, averaged over the recorded steps.

    Steps at which all paths, or all paths outside one group, agree up to rounding (the start) are left out. The limits
    are those of the average's logarithm, by the jackknife over groups of paths.

    Args:
        curve: the model's group means and scatter.
        reference: the reference's group means and scatter.
        confidence: one-sided confidence of each limit.

    Returns:
        The ratio with its limits; NaN throughout without scatter, and NaN limits where there are fewer than eight
        groups, or the paths of only one of them differ.
    """
    sides = [curve, reference]
    if any(c.m2 is None or not (np.isfinite(c.groups).all() and np.isfinite(c.m2).all()) for c in sides):
        return Interval(np.nan)
    first, second = (_LeftOut.spread(side) for side in sides)
    tiny = [1e-6 * np.abs(c.counts @ c.groups / c.counts.sum()) for c in sides]
    differ = [side.values > least for side, least in zip((first, second), tiny, strict=True)]
    whole, always = (np.logical_and(*(d[rows].all(axis=0) for d in differ)) for rows in (slice(1), slice(None)))
    limited = bool(always.any()) and min(c.counts.size for c in sides) >= FEWEST_GROUPS
    steps = always if limited else whole
    if not steps.any():
        return Interval(np.nan)
    first, second = (side._replace(values=side.values[:, steps]) for side in (first, second))
    value = float((first.values[0] / second.values[0]).mean())
    if not limited:
        return Interval(value)
    paired = curve.stream == reference.stream and curve.counts.size == reference.counts.size
    low, high = _jackknife(lambda a, b: np.log((a / b).mean(axis=1)), first, second, paired, confidence)
    return Interval(value, float(np.exp(low)), float(np.exp(high)))


class _LeftOut(NamedTuple):
    """A statistic of one side: in row 0 that of all groups, in row g that of all but group g.

    Attributes:
        values: shape (1 + G,), or (1 + G, R) of every recorded step.
        counts: paths per group, shape (G,).
    """

    values: np.ndarray
    counts: np.ndarray

    @classmethod
    def mean(cls, curve: Curves) -> "_LeftOut":
        """The mean over paths and recorded steps."""
        counts, groups = curve.counts, curve.groups.mean(axis=1)
        mean = counts @ groups / counts.sum()
        rest = np.maximum(counts.sum() - counts, 1)
        return cls(mean - np.append(0.0, counts * (groups - mean) / rest), counts)

    @classmethod
    def spread(cls, curve: Curves) -> "_LeftOut":
        """The standard deviation over the living paths at every recorded step."""
        assert curve.m2 is not None
        living = np.broadcast_to(curve.counts[:, None], curve.groups.shape) if curve.living is None else curve.living
        total = living.sum(axis=0)
        off = curve.groups - (living * curve.groups).sum(axis=0) / np.maximum(total, 1)
        squares = (curve.m2 + living * off**2).sum(axis=0)
        rest = np.maximum(total - living, 1)
        without = squares - curve.m2 - living * total / rest * off**2
        variances = np.vstack([squares / np.maximum(total - 1, 1), without / np.maximum(rest - 1, 1)])
        return cls(np.sqrt(np.maximum(variances, 0)), curve.counts)


def _jackknife(
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray],
    first: _LeftOut,
    second: _LeftOut,
    paired: bool,
    confidence: float,
) -> tuple[float, float]:
    """One-sided limits of a statistic of both sides, row by row, by the delete-one jackknife and Student's t.

    If `paired`, a group is left out of both sides at once.
    """
    from scipy.special import stdtrit

    (all_first, but_first), (all_second, but_second) = ((s.values[:1], s.values[1:]) for s in (first, second))
    if paired:
        parts = [(statistic(but_first, but_second), first.counts)]
    else:
        parts = [
            (statistic(but_first, all_second), first.counts),
            (statistic(all_first, but_second), second.counts),
        ]
    value = centre = float(statistic(all_first, all_second)[0])
    variances, freedoms = np.zeros(len(parts)), np.zeros(len(parts))
    for i, (without, counts) in enumerate(parts):
        size = counts.sum() / counts
        off = without - value
        bias = ((1 - 1 / size) * off).sum()
        centre -= bias
        variances[i] = ((bias - (size - 1) * off) ** 2 / (size - 1)).mean()
        freedoms[i] = len(counts) - 1
    if not variances.any():
        return centre, centre
    freedom = variances.sum() ** 2 / (variances**2 / freedoms).sum()
    margin = float(stdtrit(freedom, confidence)) * float(np.sqrt(variances.sum()))
    return centre - margin, centre + margin


def _shift_limits(
    first: _LeftOut, second: _LeftOut, minimum: float, height: float | None, paired: bool, confidence: float
) -> tuple[float, float]:
    """Limits of the relative shift of two means: of the ratio of their heights above `minimum`, if none is given."""
    if height is not None:
        return _jackknife(lambda a, b: (a - b) / height, first, second, paired, confidence)
    if min(first.values.min(), second.values.min()) <= minimum:
        return np.nan, np.nan
    ratio = _jackknife(lambda a, b: np.log((a - minimum) / (b - minimum)), first, second, paired, confidence)
    return float(np.expm1(ratio[0])), float(np.expm1(ratio[1]))


def late_window(steps: np.ndarray) -> np.ndarray:
    """Whether each record is in the last third of the run, shape (R,)."""
    return np.asarray(steps >= steps[-1] * 2 / 3)


def thirds(steps: np.ndarray) -> dict[str, np.ndarray]:
    """Whether each record is in the first, second or last third of the run: arrays of shape (R,), by name."""
    late, early = late_window(steps), np.asarray(steps < steps[-1] / 3)
    return {"early": early, "middle": ~(early | late), "late": late}
