r"""Error of the square-root rule along the loss curve, as a function of the signal-to-noise ratio alone.

When v is stationary, Adam moves x by its gradient divided by √(g² + σ²). Measure time in samples, and let λ be the
curvature, η the learning rate and u = g/σ, with σ of the original run. The run then follows

    du/dt = −κ u/√(1 + u²)          and under the rule at δ times the batch      du/dt = −κ u/√(1 + δu²),

with κ = ηλ/σ. Both follow one curve, T(√a u) = T(√a u₀) − κt with T(y) = √(1 + y²) − arsinh(1/y) and a = 1 or δ.
Decoupled weight decay adds −ηθx to both. With x at rest at 0, this is −κDu, where D is the ratio of the decay's motion
to that of the gradient if v contained no signal; at present D = θ|x|/u. Then, with s = √(1 + y²),

    T(y) = [log(s − 1)/(1 + D) − log(s + 1)/(1 − D)]/2 + log(1 + Ds)/(D(1 − D²)).

The loss is Σ g²/2λ, and the error is the relative L2 distance of its two curves from the present state to rest. For
small u and without decay it is 0.204 (1 − 1/δ) (√δ u)², so the SNR at the larger batch is decisive. If v is so slow
that it stays at its initial value, 0.354 replaces 0.204.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["largest_ratio", "path_error"]

_POINTS = 60
"""Number of time points per factor of ten in time."""
_MOST = 1e4
"""SNR above which noise of a coordinate is neglected."""
_LEAST_SHARE = 1e-6
_SLIGHT = 1e-5
"""D below which weight decay is neglected."""
_TABLE = 400
_DEPTH = 5.0
"""Points of T's table, and how far it goes below log y = 0 or the start."""


def path_error(
    signal: np.ndarray,
    noise: np.ndarray,
    size: np.ndarray,
    ratio: float,
    *,
    curvature: Sequence[float] | np.ndarray | None = None,
    pull: np.ndarray | None = None,
    settled: bool = True,
    progress: float = 1.0,
) -> float:
    r"""Expected relative L2 error of the loss curve under the square-root rule, from the present state to rest.

    ‖L_δ − L₁‖/‖L₁‖ over time of samples, L = Σ over groups of g²/2λ.

    Args:
        signal: Σ(∇f)² of every group, ≥ 0.
        noise: Σσ² of every group at the present batch.
        size: number of coordinates of every group, which are treated as equal.
        ratio: δ > 0, new over present batch.
        curvature: λ of every group, up to a factor; None: equal in all groups.
        pull: Σ(θx)² of every group, θ the decoupled weight decay that the learning rate multiplies; None: no decay.
        settled: whether v follows the gradient; False: it keeps its initial value.
        progress: share of the loss, above its value at rest, that the run at the present batch removes until the curves
            are no longer compared; 1: they are compared to rest.
    """
    if ratio == 1:
        return 0.0
    signal, noise, size = (np.asarray(a, dtype=float) for a in (signal, noise, size))
    steep = np.ones_like(signal) if curvature is None else np.asarray(curvature, dtype=float)
    pulled = np.zeros_like(signal) if pull is None else np.asarray(pull, dtype=float)
    weight = signal / steep
    known = weight > _LEAST_SHARE * weight.sum()
    if not known.any():
        return 0.0
    signal, noise, size, steep, weight, pulled = (a[known] for a in (signal, noise, size, steep, weight, pulled))
    loud = np.maximum(noise, signal / _MOST**2)
    group = _Moving(np.sqrt(signal / loud), steep / np.sqrt(loud / size), np.sqrt(pulled * loud / (size * signal)))
    group, weight = _pooled(group, weight)
    # From a time at which nothing has moved until the slowest group is at rest.
    first, last = 1e-4 * group.duration(min(1.0, ratio)), 14 * group.duration(max(1.0, ratio))
    times = np.geomspace(first.min(), last.max(), math.ceil(_POINTS * math.log10(last.max() / first.min())))
    curves = [weight / weight.sum() @ group.decline(times, a, settled) for a in (1.0, ratio)]
    steps = times * np.gradient(np.log(times))  # dt = t d(log t)
    if progress < 1:
        steps = np.where(curves[0] >= min(1 - progress, float(curves[0][1])), steps, 0.0)
    return math.sqrt(float(np.sum((curves[1] - curves[0]) ** 2 * steps) / np.sum(curves[0] ** 2 * steps)))


def largest_ratio(
    error: Callable[[float], float], tolerance: float, most: float = 1e9, precision: float = 1e-6
) -> float:
    """Largest δ ≥ 1 at which the increasing `error(δ)` is at most `tolerance`; infinite if above `most`."""
    low, high = 0.0, math.log(most)
    if error(most) <= tolerance:
        return math.inf
    for _ in range(math.ceil(math.log2(high / precision))):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if error(math.exp(middle)) <= tolerance else (low, middle)
    return math.exp(low)


class _Moving(NamedTuple):
    """Groups on their way to rest.

    Attributes:
        start: u₀, the SNR at the present batch, (G,).
        rate: κ, (G,).
        decay: D, (G,).
    """

    start: np.ndarray
    rate: np.ndarray
    decay: np.ndarray

    def duration(self, factor: float) -> np.ndarray:
        """Time in which the u of a group decreases to about e⁻¹ of its start, (G,)."""
        return 1 / (self.rate * (1 / (1 + math.sqrt(factor) * self.start) + self.decay))

    def decline(self, times: np.ndarray, factor: float, settled: bool) -> np.ndarray:
        """(u/u₀)² at the given times, (G, T)."""
        if not settled:
            speed = self.rate * (1 / np.sqrt(1 + factor * self.start**2) + self.decay)
            return np.exp(-2 * speed[:, None] * times)
        tops = 0.5 * math.log(factor) + np.log(self.start)
        fallen = [_fallen(*one, times) for one in zip(tops, self.rate, self.decay, strict=True)]
        return np.exp(-2 * np.stack(fallen))


def _fallen(top: float, rate: float, decay: float, times: np.ndarray) -> np.ndarray:
    """How far log y has decreased from `top` at the times: by a table of T, continued linearly for small y."""
    log_y = np.linspace(top, min(top, 0.0) - _DEPTH, _TABLE)
    elapsed = _elapsed(log_y[:1], decay) - _elapsed(log_y, decay)
    beyond = np.maximum(rate * times - elapsed[-1], 0.0)
    return top - np.interp(rate * times, elapsed, log_y) + (1 + decay) * beyond


def _elapsed(log_y: np.ndarray, decay: float) -> np.ndarray:
    """T(y) as a function of log y."""
    s = np.sqrt(1 + np.exp(2 * log_y))
    if decay < _SLIGHT:
        return s - np.arcsinh(np.exp(-log_y))
    decay = decay if abs(decay - 1) > _SLIGHT else 1 + _SLIGHT  # the terms cancel at D = 1
    above = np.log1p(s)
    logarithms = (2 * log_y - above) / (1 + decay) - above / (1 - decay)
    return 0.5 * logarithms + np.log1p(decay * s) / (decay * (1 - decay**2))


def _pooled(group: _Moving, weight: np.ndarray) -> tuple[_Moving, np.ndarray]:
    """Merge groups whose values all agree within 10 %, so that a thousand tensors cost no more than a hundred."""
    if weight.size <= 64:
        return group, weight
    logs = np.log(np.stack([group.start, group.rate, np.maximum(group.decay, _SLIGHT)]))
    found, member = np.unique(np.round(10 * logs), axis=1, return_inverse=True)
    member = member.reshape(-1)
    total = np.bincount(member, weight, found.shape[1])
    means = (np.exp(np.bincount(member, weight * row, found.shape[1]) / total) for row in logs)
    return _Moving(*means), total
