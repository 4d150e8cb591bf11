"""The error of the square-root rule that follows from the groups of a diagnosis, and its range."""

import math
from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np

from sdelens.diagnosis.expected import path_error
from sdelens.diagnosis.moments import Group

__all__ = ["Mixture", "expected_error", "greatest_error", "least_error", "mixture"]

_COUNTS: Final = 0.01
"""Least share of the signal for a group to be considered as the best or the worst."""
_QUIET: Final = 1e-12
"""Noise of a group without noise, relative to its signal."""
_MOST: Final = 1e6
"""SNR at which the error of an infinite one is computed."""


class Mixture(NamedTuple):
    """Signal, noise, number of coordinates and pull of the decay of groups, each of shape (G,)."""

    signal: np.ndarray
    noise: np.ndarray
    size: np.ndarray
    pull: np.ndarray

    @property
    def snrs(self) -> np.ndarray:
        """SNR of the groups with at least 1 % of the signal."""
        heavy = self.signal >= max(_COUNTS * float(self.signal.sum()), 1e-300)
        return np.sqrt(self.signal[heavy] / self.noise[heavy])

    def error(self, ratio: float, progress: float, **options: object) -> float:
        """`path_error` of the mixture, with its weight decay."""
        return path_error(self.signal, self.noise, self.size, ratio, pull=self.pull, progress=progress, **options)  # type: ignore[arg-type]


def mixture(parts: Iterable[Group], level: str) -> Mixture:
    """Every resolved group with its estimated signal, or that at a limit of its SNR, and all other groups as one.

    Args:
        parts: the groups.
        level: ``"estimate"``, ``"lower"`` or ``"upper"``. Of the other groups, whose lower limit is 0, the estimate
            stands for the upper limit.
    """
    groups = [part for part in parts if part.size]
    rows = [(*_at(part, level), part.size, part.pull) for part in groups if part.resolved]
    rest = [part for part in groups if not part.resolved]
    if rest:
        signal, noise, size, pull = (
            sum(getattr(part, name) for part in rest) for name in ("signal", "noise", "size", "pull")
        )
        signal = 0.0 if level == "lower" else max(signal, 0.0)
        rows.append((signal, max(noise, _QUIET * signal, 1e-300), size, pull))
    return Mixture(*np.asarray(rows, float).reshape(-1, 4).T)


def _at(part: Group, level: str) -> tuple[float, float]:
    """Signal and noise of a group."""
    noise = max(part.noise, _QUIET * abs(part.signal), 1e-300)
    snr = {"estimate": math.nan, "lower": part.lower, "upper": part.upper}[level]
    return (max(part.signal, 0.0) if not math.isfinite(snr) else snr**2 * noise), noise


def expected_error(parts: Iterable[Group], ratio: float, progress: float) -> float:
    """The error with the estimated signals."""
    return mixture(parts, "estimate").error(ratio, progress)


def least_error(parts: Iterable[Group], total: Group, ratio: float, progress: float) -> float:
    """Smallest error with the lower limits of the SNR, under other assumptions.

    They are: v too slow to follow the gradient; no weight decay, or one that pulls away from rest; curvature
    proportional to the gradient; all coordinates alike; the best and the worst group with at least 1 % of the signal.
    """
    if ratio == 1:
        return 0.0
    return min(_variants(mixture(parts, "lower"), [total.lower], ratio, progress))


def greatest_error(parts: Iterable[Group], total: Group, ratio: float, progress: float) -> float:
    """Largest error with the upper limits, under these assumptions and for signal concentrated within groups."""
    if ratio == 1:
        return 0.0
    if math.isinf(total.upper):
        return math.inf
    return max(_variants(mixture(parts, "upper"), [total.upper, total.concentrated], ratio, progress))


def _variants(mix: Mixture, others: list[float], ratio: float, progress: float) -> list[float]:
    """Errors of a mixture under all assumptions, and of single SNRs."""
    steep = np.sqrt(np.maximum(mix.signal, 1e-300) / mix.size)
    found = [mix.error(ratio, progress, **options) for options in ({}, {"settled": False}, {"curvature": steep})]
    found.append(path_error(mix.signal, mix.noise, mix.size, ratio, progress=progress))
    snrs = mix.snrs
    single = [min(snr, _MOST) for snr in others if not math.isnan(snr)]
    single += [float(snrs.min()), float(snrs.max())] if snrs.size else []
    one = np.ones(1)
    return found + [path_error(one * snr**2, one, one, ratio, progress=progress) for snr in single]
