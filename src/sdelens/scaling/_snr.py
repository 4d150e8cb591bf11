"""Factors between the square-root and the linear rule, from the measured signal-to-noise ratio u at the old batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sdelens.core import check

__all__ = ["Measured", "inverse_factor", "measured", "preconditioned_factor", "sign_factor", "square_change"]


@dataclass(frozen=True)
class Measured:
    """A measured SNR √(B‖∇f‖²/tr Σ) at the old batch.

    Attributes:
        snr: the estimate u; infinite if there is no noise.
        lower: its lower limit, equal to the estimate if no limits were given.
        upper: its upper limit.
    """

    snr: float
    lower: float
    upper: float

    @property
    def ends(self) -> tuple[float, ...]:
        """The limits, if there are some."""
        return () if self.lower == self.upper else (self.lower, self.upper)


def measured(value: Any) -> Measured:
    """The SNR that a user gave: a number, or (estimate, lower limit, upper limit).

    Raises:
        ValueError, TypeError: if it is not, or the estimate is unknown; the message names it.
    """
    parts = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if len(parts) not in (1, 3):
        raise ValueError(f"snr: got {len(parts)} numbers; give one, or (estimate, lower limit, upper limit).")
    found = [_ratio(part) for part in parts]
    if len(found) == 1:
        return Measured(found[0], found[0], found[0])
    if not found[1] <= found[0] <= found[2]:
        raise ValueError(f"snr: got {tuple(found)}; the estimate must lie between its limits.")
    return Measured(*found)


def _ratio(value: Any) -> float:
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(
            "snr: got nan, an unknown signal-to-noise ratio; measure it from gradients, for example by "
            "sdelens.torch.watch, or choose another rule. A lower bound from an optimizer's moments is not an estimate."
        )
    return math.inf if value == math.inf else float(check.nonnegative("snr", value))


def square_change(ratio: float, snr: float) -> float:
    """E g² at the new batch over E g² at the old one: (u² + 1/δ)/(u² + 1)."""
    if math.isinf(snr):
        return 1.0
    return (snr**2 + 1 / ratio) / (snr**2 + 1)


def preconditioned_factor(ratio: float, snr: float) -> float:
    """δ √(E g² at the new batch/E g² at the old one) = √(δ(1 + δu²)/(1 + u²)): η/√E g² is then multiplied by δ."""
    return ratio * math.sqrt(square_change(ratio, snr))


def sign_factor(ratio: float, snr: float, before: float, after: float) -> float:
    """δ times the mean sign at the old batch over that at the new one, for a normal argument of the sign.

    Args:
        ratio: δ.
        snr: u.
        before: standard deviation s of the argument at the old batch, in units of σ/√B: the mean sign is erf(u/(√2 s)).
        after: the same at the new batch.
    """
    if math.isinf(snr):
        return ratio
    old, new = snr / (math.sqrt(2) * before), math.sqrt(ratio) * snr / (math.sqrt(2) * after)
    if min(old, new) < 1e-8:  # erf is linear
        return math.sqrt(ratio) * after / before
    return ratio * math.erf(old) / math.erf(new)


def inverse_factor(factor: float, snr: float) -> float:
    """δ at which `preconditioned_factor` is `factor` ≥ 0: the positive root of δ(1 + δu²) = factor²(1 + u²)."""
    if math.isinf(snr):
        return factor
    target = factor**2 * (1 + snr**2)
    return 2 * target / (1 + math.sqrt(1 + 4 * snr**2 * target))
