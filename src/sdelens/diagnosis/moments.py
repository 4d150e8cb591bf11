r"""Adam's moments split into signal and noise, and what they say of the SNR at least.

m̂ = Σ wⱼgⱼ and v̂ = Σ uⱼgⱼ² are weighted means of the last k gradients and of their squares. Let g = ∇f + Z with
constant ∇f and independent Z. Then E m̂² = (∇f)² + cσ² and E v̂ = (∇f)² + σ² with c = Σ wⱼ², and over a group of
coordinates

    G = Σ (m̂² − c v̂)/(1 − c),    S = Σ (v̂ − m̂²)/(1 − c)

have the means Σ(∇f)² and Σσ². Nothing is clipped before the sum: a single coordinate is only noise below SNR ≈ √c.

In a run ∇f is not constant. A gradient that turns over within the memory of m is counted as noise, so that moments
give no upper limit of the SNR. For a lower limit, two departures are allowed for: noise of successive steps with a
correlation φ, by which c becomes c_φ = Σ wᵢwⱼφ^|i−j|, and squared gradients that double within d = `DOUBLING` steps,
or within a quarter of the run if that is shorter, by which v̂ is too small by at most κ = 2^(a/d), where a is how much
older the gradients in v̂ are than those in m̂:

    SNR² ≥ Σ (m̂² − c_φ κv̂) / Σ (κv̂ − m̂²).
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np

from sdelens.core.limits import normal_point

__all__ = [
    "CHUNK",
    "DOUBLING",
    "FALSE_ALARM",
    "Group",
    "Split",
    "Weights",
    "combine",
    "concentrated",
    "flatten",
    "split",
]

CHUNK = 2**15
"""Elements converted to float64 at a time: they fit in a cache, and PyTorch converts them on one thread."""
FALSE_ALARM = 1e-3
"""Probability that the SNR of a group without any signal exceeds its limit."""
_BLOCKS, _LEAST_BLOCK = 64, 16
"""Number of contiguous blocks of a tensor used to detect correlation of coordinates, and their least size."""
DOUBLING: Final = 250.0
"""Steps within which squared gradients are allowed to double; in a young run, a quarter of its steps."""
_YOUNG: Final = 0.25


class Weights(NamedTuple):
    """Sums of the weights of k gradients in m̂ and v̂.

    Attributes:
        steps: k.
        bias1: 1 − β₁ᵏ, by which m is divided.
        bias2: 1 − β₂ᵏ.
        first: c = Σ wⱼ².
        second: Σ uⱼ².
        mixed: Σ wⱼ²uⱼ.
        cross: Σ wⱼuⱼ.
        most: largest possible m̂²/v̂, Σ wⱼ²/uⱼ.
        correlated: c_φ = Σ wᵢwⱼφ^|i−j|, `first` if φ = 0.
        growth: κ, 1 or more.
    """

    steps: float
    bias1: float
    bias2: float
    first: float
    second: float
    mixed: float
    cross: float
    most: float
    correlated: float
    growth: float

    @classmethod
    def of(
        cls, b1: float, b2: float, steps: float, correlation: float = 0.0, since_start: float | None = None
    ) -> "Weights":
        """The weights after `steps` gradients from m = v = 0, with noise of the given `correlation` φ ≥ 0.

        `since_start` is the number of steps of the run, if the means are those of its last ones only.
        """
        a, b = (1 - b1) / _rise(b1, steps), (1 - b2) / _rise(b2, steps)

        def total(ratio: float) -> float:
            return _rise(ratio, steps) / (1 - ratio)

        ratio = b1 * b1 / b2 if b2 > 0 else math.inf
        if math.isinf(ratio) or (ratio > 1 and steps * math.log(ratio) > 300):
            most = math.inf
        else:
            most = a * a / b * (steps if ratio == 1 else (1 - ratio**steps) / (1 - ratio))
        first = a * a * total(b1 * b1)
        return cls(
            steps,
            _rise(b1, steps),
            _rise(b2, steps),
            first,
            b * b * total(b2 * b2),
            a * a * b * total(b1 * b1 * b2),
            a * b * total(b1 * b2),
            most,
            first + 2 * a * a * _at_distances(b1, steps, correlation),
            2 ** (max(_age(b2, steps) - _age(b1, steps), 0.0) / min(DOUBLING, _YOUNG * (since_start or steps))),
        )


def _at_distances(beta: float, steps: float, correlation: float) -> float:
    """Σ φᵈβⁱβⁱ⁺ᵈ over d ≥ 1 and i < k − d."""
    if beta == 0 or correlation == 0:
        return 0.0
    most = min(steps - 1, math.ceil(math.log(1e-16) / math.log(correlation * beta)))
    apart = np.arange(1.0, most + 1)
    left = 1 - beta ** (2 * (steps - apart)) if math.isfinite(steps) else 1.0
    return float(np.sum((correlation * beta) ** apart * left)) / (1 - beta * beta)


def _age(beta: float, steps: float) -> float:
    """Mean number of steps since the gradients in a mean with decay β of the last k of them."""
    if beta == 0:
        return 0.0
    last = steps * beta**steps / _rise(beta, steps) if math.isfinite(steps) else 0.0
    return beta / (1 - beta) - last


def _rise(beta: float, steps: float) -> float:
    """1 − βᵏ without cancellation."""
    return 1.0 if beta == 0 else -math.expm1(steps * math.log(beta))


@dataclass
class Split:
    """Sums over one tensor.

    Attributes:
        weights: weights of its m̂ and v̂.
        size: coordinates counted.
        untouched: coordinates with m = v = 0, left out: they have not had a gradient.
        lost: coordinates with v = 0 but m ≠ 0, left out: their squares underflowed.
        nonfinite: coordinates that are NaN or infinite, left out.
        impossible: coordinates with m̂² > `Weights.most` v̂, which is impossible for any gradients.
        a: Σ m̂².
        v: Σ v̂.
        vv: Σ v̂².
        aav: Σ m̂⁴/v̂.
        blocks: Σ m̂², Σ v̂, Σ v̂² over contiguous blocks, (3, blocks).
        pull: Σ (θx)² over all coordinates, θ the decoupled weight decay; 0 where it is not known.
    """

    weights: Weights
    size: int = 0
    untouched: int = 0
    lost: int = 0
    nonfinite: int = 0
    impossible: int = 0
    a: float = 0.0
    v: float = 0.0
    vv: float = 0.0
    aav: float = 0.0
    blocks: np.ndarray = field(default_factory=lambda: np.zeros((3, 0)))
    pull: float = 0.0

    @property
    def signal(self) -> float:
        """Estimate of Σ(∇f)², which may be negative."""
        c = self.weights.first
        return (self.a - c * self.v) / (1 - c)

    @property
    def noise(self) -> float:
        """Estimate of Σσ², which may be negative."""
        return (self.v - self.a) / (1 - self.weights.first)

    @property
    def least(self) -> tuple[float, float]:
        """Signal that is left and noise that is possible with correlated noise and growing squares; see the module."""
        c, v = self.weights.correlated, self.weights.growth * self.v
        return (self.a - c * v) / (1 - c), (v - self.a) / (1 - c)

    def variance(self, ratio: float, c: float | None = None, growth: float = 1.0) -> float:
        r"""Variance of `signal` − ratio·`noise` for normal noise of independent coordinates with SNR² = `ratio`.

        With `c` = c_φ and `growth` = κ it is that of `least`, where the mean of noise in m̂ has the variance c_φσ².

        (1 − c) times it is Σ αm̂² − γv̂ with α = 1 + ratio, γ = c + ratio. With g = √p, σ² = 1 − p in units of v̂,
        p = ratio/(1 + ratio), Var m̂² = 2c²σ⁴ + 4cg²σ², Var v̂ = (2σ⁴ + 4g²σ²)Σu², and their covariance is
        2σ⁴Σw²u + 4g²σ²Σwu.
        """
        w, p = self.weights, ratio / (1 + ratio)
        c = w.first if c is None else c
        alpha, gamma, still = 1 + ratio, growth * (c + ratio), 1 - p
        pure = 2 * (alpha * c) ** 2 + 2 * gamma**2 * w.second - 4 * alpha * gamma * w.mixed
        crossed = 4 * (alpha**2 * c + gamma**2 * w.second - 2 * alpha * gamma * w.cross)
        squares = self.vv / (1 + w.second * (2 * still**2 + 4 * p * still))
        return max(still**2 * pure + p * still * crossed, 0.0) * squares / (1 - c) ** 2


def split(weights: Weights, m: Any, v: Any, earlier: tuple[Any, Any, float, float] | None = None) -> Split:
    """Sums over a tensor, a chunk at a time in float64.

    Args:
        weights: weights of the gradients in m and v; with `earlier`, of the gradients since then.
        m: first moment, not corrected for bias.
        v: second moment, not corrected for bias.
        earlier: m and v some steps before, and the factors by which they decayed, β₁ⁿ and β₂ⁿ.

    Raises:
        ValueError: if a second moment is negative, or sizes differ.
    """
    found, (flat_m, size), (flat_v, size_v) = Split(weights), flatten(m), flatten(v)
    before = None if earlier is None else (flatten(earlier[0]), flatten(earlier[1]))
    if size_v != size or (before is not None and (before[0][1] != size or before[1][1] != size)):
        raise ValueError(
            f"state: its first moment has {size} numbers, but the second has {size_v}; give the moments of one tensor."
        )
    width = max(-(-size // _BLOCKS), 1)
    blocks = np.zeros((3, -(-size // width)))
    for begin, end in _spans(size):
        first, second = read(flat_m, begin, end), read(flat_v, begin, end)
        bad = ~(np.isfinite(first) & np.isfinite(second))
        if (second[~bad] < 0).any():
            raise ValueError(
                "state: a second moment is negative, so it is not a mean of squares; give the state of an Adam "
                "optimizer."
            )
        if before is not None and earlier is not None:
            first -= earlier[2] * read(before[0][0], begin, end)
            second -= earlier[3] * read(before[1][0], begin, end)
            bad |= ~(np.isfinite(first) & np.isfinite(second))
        none, empty = (first == 0) & ~bad, (second == 0) & ~bad
        untouched, lost = none & empty, empty & ~none
        kept = ~(bad | untouched | lost)
        a = np.where(kept, first / weights.bias1, 0.0) ** 2
        second = np.where(kept, second / weights.bias2, 0.0)
        found.size += int(kept.sum())
        found.nonfinite += int(bad.sum())
        found.untouched += int(untouched.sum())
        found.lost += int(lost.sum())
        if before is None:  # in a window, rounding also produces some
            found.impossible += int((a > 1.05 * weights.most * second + 1e-300).sum())
        found.a += float(a.sum())
        found.v += float(second.sum())
        squares = second**2
        found.vv += float(squares.sum())
        found.aav += float(np.divide(a**2, second, out=np.zeros_like(a), where=second > 0).sum())
        starts = np.arange(begin // width, -(-end // width))
        at = np.maximum(starts * width - begin, 0)
        for row, values in zip(blocks, (a, second, squares), strict=True):
            row[starts] += np.add.reduceat(values, at)
    if width >= _LEAST_BLOCK:
        found.blocks = blocks
    return found


def squares(array: Any) -> float:
    """Sum of squares, a chunk at a time in float64."""
    flat, size = flatten(array)
    return float(sum(np.sum(read(flat, *span) ** 2) for span in _spans(size)))


def flatten(array: Any) -> tuple[Any, int]:
    """The flattened array and its length; a view if possible, for arrays of NumPy, JAX and PyTorch."""
    if hasattr(array, "to_local"):  # the part of a PyTorch DTensor on this process
        array = array.to_local()
    if hasattr(array, "detach"):
        flat = array.detach().reshape(-1)
        return flat, int(flat.numel())
    flat = np.asarray(array).reshape(-1)
    return flat, flat.size


def read(flat: Any, begin: int, end: int) -> np.ndarray:
    """A part of a flat array in float64, always a copy."""
    part = flat[begin:end]
    if hasattr(part, "detach"):
        part = part.to("cpu").double().numpy()
    return np.array(part, dtype=np.float64)


def _spans(size: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, size, CHUNK):
        yield begin, min(begin + CHUNK, size)


class Group(NamedTuple):
    """Results of a group of tensors, from moments or from gradients.

    Attributes:
        size: coordinates counted.
        signal: estimate of ‖∇f‖², may be negative; from moments, of what is left of it over the memory of m.
        noise: estimate of tr Σ at the present batch; from moments, with what turns over of the gradient.
        snr: estimate of √(‖∇f‖²/tr Σ); NaN if it is not resolved, and always from moments, which only bound it.
        lower: lower 99 % limit of the SNR, 0 if the signal is not resolved.
        upper: upper 99 % limit of the SNR; infinite from moments.
        limit: SNR that has to be exceeded for the signal to count as resolved; NaN if there is no such number.
        design: factor of the variance due to correlation between coordinates.
        concentrated: upper bound of the SNR of a coordinate drawn in proportion to its signal; NaN if not known.
        pull: Σ (θx)² of decoupled weight decay; 0 if it is not known.
        below: estimate of the signal in units of its standard error.
    """

    size: int
    signal: float
    noise: float
    snr: float
    lower: float
    upper: float
    limit: float = math.nan
    design: float = 1.0
    concentrated: float = math.nan
    pull: float = 0.0
    below: float = 0.0

    @property
    def resolved(self) -> bool:
        """Whether the signal is distinguishable from 0."""
        return self.lower > 0


def combine(parts: Sequence[Split]) -> Group:
    r"""Signal, noise and the lower limit of their ratio over some tensors.

    With G and S the sums of `Split.least`, the lower limit of SNR² is G/S − z √(D Var(G − (G/S)S))/S, or 0 if G/S is
    not above the limit of a group without signal. For that limit G is treated as C(χ²_ν/ν − 1), C = Σ c_φS/(1 − c_φ),
    with ν such that the variance agrees; it is exceeded with probability `FALSE_ALARM`. D ≥ 1 is the ratio of the
    scatter of contiguous blocks of a tensor to that of independent coordinates.
    """
    size, pull = sum(part.size for part in parts), sum(part.pull for part in parts)
    signal, noise = (float(sum(getattr(part, name) for part in parts)) for name in ("signal", "noise"))
    if size == 0:
        return Group(0, 0.0, 0.0, math.nan, 0.0, math.inf)
    left, possible = (float(sum(part.least[i] for part in parts)) for i in (0, 1))
    if possible <= 0:  # m̂² exceeds even κv̂: squared gradients have grown more than is allowed for
        return Group(size, signal, noise, math.nan, 0.0, math.inf, pull=pull)
    ratio = max(left, 0.0) / possible
    design = _design(parts, max(signal, 0.0) / noise if noise > 0 else ratio)
    error = math.sqrt(design * sum(_least_variance(part, ratio) for part in parts)) / possible
    limit = _without_signal(parts, ratio, design, possible)
    own = math.sqrt(design * sum(part.variance(max(signal, 0.0) / noise) for part in parts)) if noise > 0 else 0.0
    resolved = math.sqrt(ratio) > limit
    return Group(
        size,
        signal,
        noise,
        math.nan,
        math.sqrt(max(ratio - normal_point() * error, 0.0)) if resolved else 0.0,
        math.inf,
        limit,
        design,
        concentrated(((p.weights.first, p.aav, p.signal, p.v) for p in parts), signal, noise)
        if resolved and noise > 0
        else math.nan,
        pull,
        signal / own if own > 0 else 0.0,
    )


def _least_variance(part: Split, ratio: float) -> float:
    return part.variance(ratio, part.weights.correlated, part.weights.growth)


def _without_signal(parts: Sequence[Split], ratio: float, design: float, possible: float) -> float:
    """The SNR that `Split.least` shows without a signal, with probability `FALSE_ALARM` or less."""
    from scipy import special

    quiet = 1 / (1 + ratio)  # share of κv̂ that is noise
    spread = design * quiet**2 * sum(_least_variance(part, 0.0) for part in parts)
    scale = 0.0
    for part in parts:
        c = part.weights.correlated
        scale += quiet * c * part.weights.growth * part.v / (1 - c)
    degrees = 2 * scale**2 / spread if spread > 0 else math.inf
    least = scale * (special.chdtri(degrees, FALSE_ALARM) / degrees - 1) if math.isfinite(degrees) else 0.0
    return math.sqrt(least / (possible - least)) if least < possible else math.inf


def _design(parts: Sequence[Split], ratio: float) -> float:
    """Variance of block sums over that of independent coordinates, by their median deviation; 1 or more."""
    scores = []
    for part in parts:
        if part.blocks.shape[1] < _BLOCKS // 2:
            continue
        w, (a, v, vv) = part.weights, part.blocks
        known = vv > 0
        size = part.variance(ratio) * (1 - w.first) ** 2 / part.vv if part.vv > 0 else 0.0
        if size > 0:
            scores.append((((1 + ratio) * a - (w.first + ratio) * v)[known]) / np.sqrt(size * vv[known]))
    if not scores:
        return 1.0
    # Deviations are from the median of each tensor, since different SNRs of tensors are not correlation.
    deviations = np.abs(np.concatenate([score - np.median(score) for score in scores if score.size]))
    return max(float(np.median(deviations) / 0.6744898) ** 2, 1.0) if deviations.size else 1.0


def concentrated(parts: Iterable[tuple[float, float, float, float]], signal: float, noise: float) -> float:
    r"""SNR of the signal-weighted mean share of signal, p = Σ g⁴/v / Σ g²; NaN if a mean has too few gradients for it.

    For a mean m̂ of gradients in which the noise has the variance cσ², with normal noise and a long memory of v, E m̂⁴ =
    g⁴(1 − 6c + 3c²) + 6c(1 − c)g²v + 3c²v². Heavier tails add to m̂⁴, so this is an upper estimate.

    Args:
        parts: c, Σ m̂⁴/v̂, the estimate of Σ g², and Σ v̂ of every part.
        signal: estimate of Σ g² over all parts.
        noise: that of Σ σ².
    """
    total = 0.0
    for c, fourth, own, square in parts:
        factor = 1 - 6 * c + 3 * c**2
        if factor < 0.2:
            return math.nan
        total += (fourth - 6 * c * (1 - c) * own - 3 * c**2 * square) / factor
    share = min(max(total / signal, signal / (signal + noise)), 1.0)
    return math.sqrt(share / (1 - share)) if share < 1 else math.inf
