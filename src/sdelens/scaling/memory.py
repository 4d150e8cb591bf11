"""Conversion of an optimizer's accumulators at a jump of the batch size to the new hyperparameters."""

import math

from sdelens.diagnosis.moments import Weights
from sdelens.scaling.hyperparameters import Hyperparameters

__all__ = ["ACCUMULATORS", "buffer_gain", "clock", "square_factor", "sum_factor"]

ACCUMULATORS = ("scale", "keep")
"""Ways to treat second moments."""


def buffer_gain(old: Hyperparameters, new: Hyperparameters) -> float:
    """The factor of a sum of gradients that keeps (1 − μ) times it, the mean, unchanged."""
    if old.undamped is None:
        return 1.0
    return (1 - old.memories[old.undamped]) / (1 - new.memories[old.undamped])


def clock(old: Hyperparameters, new: Hyperparameters) -> float:
    """Old steps per new step for the longest memory, ln β′/ln β; dividing k by it keeps 1 − βᵏ as before."""
    before, after = (max(n.memories.values(), default=0.0) for n in (old, new))
    return math.log(after) / math.log(before) if 0 < before < 1 and 0 < after < 1 else 1.0


def square_factor(numbers: Hyperparameters, ratio: float, step: float, v: float, m: float) -> float:
    """(ĝ² + σ̂²/δ)/(ĝ² + σ̂²) for a tensor of Adam's state, from averages over the tensor.

    For a steady gradient E v̂ = g² + σ² and E m̂² = g² + cσ², c = (1 − β₁)(1 + β₁ᵏ)/((1 + β₁)(1 − β₁ᵏ)). The averages are
    over the whole tensor before anything is clipped, since one coordinate is uninformative below a ratio √c.

    Args:
        numbers: hyperparameters of the old batch.
        ratio: δ.
        step: k.
        v: mean of the second-moment accumulator, without bias correction.
        m: mean square of the first-moment accumulator, without bias correction.

    Returns:
        The factor; 1 if it cannot be estimated: k < 2, no first moment, or v = 0.
    """
    b1, b2 = numbers.memories["b1"], numbers.memories["b2"]
    if step < 2 or b1 == 0 or not v > 0:
        return 1.0
    weights = Weights.of(b1, b2, step)
    square, mean = v / weights.bias2, m / weights.bias1**2
    share = min(1.0, max(0.0, (square - mean) / ((1 - weights.first) * square)))
    return 1 - share + share / ratio


def sum_factor(old: Hyperparameters, new: Hyperparameters) -> float:
    """The factor of Adagrad's sum of squares: that of its initial value, which is also that of ε².

    Raises:
        ValueError: if both are 0, so that no factor can be read from them.
    """
    if old.accumulator and new.accumulator is not None:
        return new.accumulator / old.accumulator
    if old.eps and new.eps is not None:
        return (new.eps / old.eps) ** (1 if old.inside else 2)
    raise ValueError(
        "eps: got 0 with an initial accumulator of 0, so that the factor of Adagrad's sum of squares is unknown; give "
        "a positive eps, for example 1e-10."
    )
