r"""How far the square-root rule errs along the way, as a function of the signal-to-noise ratio alone.

Where v has settled, Adam moves x by its gradient over √(g² + σ²). In time of samples, with curvature λ, learning rate η
and u = g/σ (σ of the run that is scaled), the run moves as

    du/dt = −κ u/√(1 + u²)          and under the rule at δ times the batch      du/dt = −κ u/√(1 + δu²),

κ = ηλ/σ: both are one curve, T(√a u) = T(√a u₀) − κt with T(y) = √(1 + y²) − arsinh(1/y), a = 1 or δ. The loss is
Σ g²/2λ, and the error the relative L2 distance of its two courses from the present state to rest. For small u it is
0.204 (1 − 1/δ) (√δ u)²: what counts is the SNR at the larger batch. Where v is so slow that it stays at its first
value, 0.354 takes the place of 0.204.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["largest_ratio", "path_error"]

_POINTS = 60
"""Per factor of ten in time."""
_MOST = 1e4
"""SNR above which a coordinate is as good as without noise."""
_LEAST_SHARE = 1e-6


def path_error(
    signal: np.ndarray,
    noise: np.ndarray,
    size: np.ndarray,
    ratio: float,
    *,
    curvature: Sequence[float] | np.ndarray | None = None,
    settled: bool = True,
) -> float:
    r"""Expected relative L2 error of the loss curve under the square-root rule, from the present state to rest.

    ‖L_δ − L₁‖/‖L₁‖ over time of samples, L = Σ over groups of g²/2λ.

    Args:
        signal: Σ(∇f)² of every group, ≥ 0.
        noise: Σσ² of every group at the present batch.
        size: coordinates of every group, taken as equals.
        ratio: δ > 0, new over present batch.
        curvature: λ of every group, up to a factor; None is the same in all.
        settled: whether v follows the gradient; False: it stays as it is at first.
    """
    if ratio == 1:
        return 0.0
    signal, noise, size = (np.asarray(a, dtype=float) for a in (signal, noise, size))
    steep = np.ones_like(signal) if curvature is None else np.asarray(curvature, dtype=float)
    weight = signal / steep
    known = weight > _LEAST_SHARE * weight.sum()
    if not known.any():
        return 0.0
    signal, noise, size, steep, weight = (a[known] for a in (signal, noise, size, steep, weight))
    start = np.sqrt(signal / np.maximum(noise, signal / _MOST**2))
    rate = steep / np.sqrt(np.maximum(noise, signal / _MOST**2) / size)
    start, rate, weight = _pooled(start, rate, weight)
    # From before anything moves until the slowest has come to rest.
    first, last = 1e-4 * _duration(start, rate, min(1.0, ratio)), 14 * _duration(start, rate, max(1.0, ratio))
    times = np.geomspace(first.min(), last.max(), math.ceil(_POINTS * math.log10(last.max() / first.min())))
    curves = [
        np.sum((weight / weight.sum())[:, None] * _decline(start[:, None], rate[:, None] * times, a, settled), axis=0)
        for a in (1.0, ratio)
    ]
    steps = times * np.gradient(np.log(times))  # dt = t d(log t)
    return math.sqrt(float(np.sum((curves[1] - curves[0]) ** 2 * steps) / np.sum(curves[0] ** 2 * steps)))


def largest_ratio(error: Callable[[float], float], tolerance: float, most: float = 1e9) -> float:
    """Largest δ ≥ 1 at which `error(δ)`, which rises, is at most `tolerance`; infinite if above `most`."""
    low, high = 0.0, math.log(most)
    if error(most) <= tolerance:
        return math.inf
    for _ in range(30):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if error(math.exp(middle)) <= tolerance else (low, middle)
    return math.exp(low)


def _pooled(start: np.ndarray, rate: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Groups within 10 % of each other in both as one: a thousand tensors cost no more than a hundred."""
    if start.size <= 64:
        return start, rate, weight
    cells = np.stack([np.round(10 * np.log(start)), np.round(10 * np.log(rate))])
    found, member = np.unique(cells, axis=1, return_inverse=True)
    member = member.reshape(-1)
    total = np.bincount(member, weight, found.shape[1])
    start, rate = (np.exp(np.bincount(member, weight * np.log(a), found.shape[1]) / total) for a in (start, rate))
    return start, rate, total


def _duration(start: np.ndarray, rate: np.ndarray, factor: float) -> np.ndarray:
    """Time in which a group comes down to e⁻¹ or so."""
    return (1 + math.sqrt(factor) * start) / rate


def _decline(start: np.ndarray, time: np.ndarray, factor: float, settled: bool) -> np.ndarray:
    """(u/u₀)² at κt = `time`."""
    root = math.sqrt(factor)
    if not settled:
        return np.exp(-2 * time / np.sqrt(1 + factor * start**2))
    log_y = np.log(root * start)
    return np.exp(2 * (_inverse(_elapsed(log_y) - time) - log_y))


def _elapsed(log_y: np.ndarray) -> np.ndarray:
    """T(y) as a function of log y."""
    return np.sqrt(1 + np.exp(2 * log_y)) - np.arcsinh(np.exp(-log_y))


def _inverse(value: np.ndarray) -> np.ndarray:
    """Log y with T(y) = `value`: T is convex in log y with slope √(1 + y²), so Newton from above comes down to it."""
    low = value < 1.5
    small = math.log(2) + np.where(low, value, 1.0) - 1  # y = 2 exp(T − 1) as y → 0
    log_y = np.where(low, small, np.log(np.where(low, 1.0, value) + 2))
    log_y = np.maximum(log_y, -300)
    for _ in range(8):
        log_y = np.maximum(log_y - (_elapsed(log_y) - value) / np.sqrt(1 + np.exp(2 * log_y)), -300)
    return log_y
