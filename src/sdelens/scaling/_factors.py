"""How a rule changes a record of hyperparameters, number by number."""

import dataclasses
import math
from dataclasses import dataclass
from fractions import Fraction

from sdelens.scaling._rules import ADAPTIVE, Rule
from sdelens.scaling._snr import Measured, inverse_factor, preconditioned_factor, sign_factor, square_change
from sdelens.scaling.hyperparameters import L2, Hyperparameters

__all__ = [
    "Change",
    "check_legal",
    "damping",
    "exact",
    "expected_square",
    "largest_curvature",
    "rate_factor",
    "rate_range",
    "regime_of",
    "scaled",
    "second_moments",
]

_SIGNS = ("signsgd", "signum", "lion")


@dataclass(frozen=True)
class Change:
    """What a rescaling is asked to do.

    Attributes:
        ratio: δ, the new batch size over the old one.
        rule: the scaling rule.
        momentum: how decays β are scaled, a key of `core.names.MOMENTA`.
        snr: the measured SNR at the old batch, for a rule that uses it.
        tokens: samples of the new run over those of the old one.
    """

    ratio: Fraction
    rule: Rule
    momentum: str
    snr: Measured | None = None
    tokens: Fraction = Fraction(1)


def regime_of(rule: Rule, family: str) -> str | None:
    """What squared gradients consist of; SGD's rule holds for signal and noise and is assumed noise-dominated."""
    return "noise" if rule.regime and family in ("sgd", "momentum") else rule.regime


def second_moments(numbers: Hyperparameters) -> tuple[str, ...]:
    """Names of the memories of squared gradients."""
    return tuple(k for k in numbers.memories if k in ("b2", "alpha")) if numbers.family in ADAPTIVE else ()


def damping(numbers: Hyperparameters) -> float:
    """Decay of the mean of gradients along which x moves."""
    return numbers.memories.get("b1", numbers.memories.get("momentum", 0.0))


def largest_curvature(numbers: Hyperparameters) -> float:
    """(2 + 2β)/((1 − β)η), the curvature up to which steps are stable; for adaptive optimizers preconditioned."""
    beta = damping(numbers)
    return (2 + 2 * beta) / ((1 - beta) * numbers.lr)


def scaled(numbers: Hyperparameters, change: Change) -> Hyperparameters:
    """The record at a batch δ times as large.

    Raises:
        ValueError: if a decay β would be negative.
    """
    check_legal(numbers, change)
    delta, rule = float(change.ratio), change.rule
    memories = {name: _memory(name, numbers, change) for name in numbers.memories}
    new = dataclasses.replace(numbers, memories=memories)
    if numbers.family == "signum":
        new = dataclasses.replace(new, blend=memories["b1"])
    rate = rate_factor(numbers, new, change)
    square = expected_square(numbers, change)
    decay = {L2: 1.0, "independent": delta, "coupled": delta / rate}[numbers.decay] if rule.decay else 1.0
    horizon = 1.0 if numbers.decay == L2 else 1 / float(change.tokens)
    return dataclasses.replace(
        new,
        lr=numbers.lr * rate,
        eps=_times(numbers.eps, square if numbers.inside else math.sqrt(square)),
        eps_root=_times(numbers.eps_root, square),
        accumulator=_times(numbers.accumulator, square),
        weight_decay=numbers.weight_decay * decay * horizon,
    )


def rate_factor(numbers: Hyperparameters, new: Hyperparameters, change: Change, snr: float | None = None) -> float:
    """The factor of η.

    Args:
        numbers: the old record.
        new: the record with rescaled decays β.
        change: what is asked for.
        snr: a signal-to-noise ratio other than the estimate.
    """
    rule, ratio = change.rule, float(change.ratio)
    if rule.lr is not None:
        return ratio**rule.lr
    if rule.regime != "measured":
        return math.sqrt(ratio) * _spread(new) / _spread(numbers)
    assert change.snr is not None
    snr = change.snr.snr if snr is None else snr
    if numbers.family in _SIGNS:
        return sign_factor(ratio, snr, _spread(numbers), _spread(new))
    return preconditioned_factor(ratio, snr)


def rate_range(numbers: Hyperparameters, new: Hyperparameters, change: Change) -> tuple[float, float] | None:
    """Smallest and largest factor of η within the limits of the SNR; None if there are none."""
    if change.snr is None or change.rule.regime != "measured" or not change.snr.ends:
        return None
    found = [rate_factor(numbers, new, change, snr) for snr in change.snr.ends]
    return min(found), max(found)


def check_legal(numbers: Hyperparameters, change: Change) -> None:
    """Refuse a ratio at which a decay β would be negative.

    Raises:
        ValueError: if it would be; the message names the largest legal ratio and the alternatives.
    """
    if change.momentum not in ("samples", "time"):
        return
    ratio = change.ratio
    limits = {name: _largest_ratio(beta, change) for name, beta in numbers.memories.items() if beta > 0}
    slack = 1 if change.momentum == "samples" else 1 + 1e-12
    bad = {name: limit for name, limit in limits.items() if ratio > limit * slack}
    if not bad:
        return
    name = min(bad, key=lambda k: bad[k])
    forgets = 1 - numbers.memories[name]
    factor = float(ratio) if change.momentum == "samples" else _time_factor(change)
    listed = ", ".join(f"{float(limit):g} for {k} = {numbers.memories[k]:g}" for k, limit in sorted(limits.items()))
    least = float(min(limits.values()))
    raise ValueError(
        f"batch_ratio: got {float(ratio):g}, at which 1 − {name} = {factor:g} × {forgets:.6g} = "
        f"{factor * forgets:.4g} exceeds 1, so that {name} would be negative. The largest possible ratio is "
        f"{least:g} ({listed}). Alternatives: momentum {'; '.join(_alternatives(numbers, change, name))}; or a ratio "
        f"of at most {least:g}, in one step or by a ramp (sl.scaling.ramp)."
    )


def exact(beta: float) -> Fraction:
    """β as its shortest decimal: 1 − 0.9 is then exactly 0.1, and ten times that is exactly 1."""
    return Fraction(repr(float(beta)))


def _alternatives(numbers: Hyperparameters, change: Change, name: str) -> list[str]:
    """Treatments of β that are possible at this ratio, those that keep the damping by momentum first."""
    ways = []
    squares = second_moments(numbers)
    if squares:
        ways.append(f"'second-moment' (only {', '.join(squares)} changes, to the power {float(change.ratio):g})")
    if change.momentum == "samples" and (change.rule.lr is not None or numbers.family in ADAPTIVE):
        factor = _time_factor(change)
        if factor * (1 - numbers.memories[name]) <= 1:
            ways.append(f"'time' (1 − {name} is multiplied by {factor:.6g}, like lr)")
    ways.append("'fixed'")
    beta, ratio = numbers.memories[name], float(change.ratio)
    half = f"'half-life' ({name} to the power {ratio:g} is {beta**ratio:.3g}"
    if damping(numbers) > 0 and numbers.family not in _SIGNS:
        there = {k: b**ratio for k, b in numbers.memories.items()}
        new = dataclasses.replace(numbers, memories=there)
        new = dataclasses.replace(new, lr=numbers.lr * rate_factor(numbers, new, change))
        half += (
            "; momentum then loses its damping, and steps are stable up to a curvature of "
            f"{largest_curvature(new):.3g}, now {largest_curvature(numbers):.3g}"
        )
    return [*ways, half + ")"]


def _time_factor(change: Change) -> float:
    """The factor of η, and with momentum='time' of 1 − β, of an optimizer for which it does not depend on β."""
    if change.rule.lr is not None:
        return float(change.ratio) ** change.rule.lr
    assert change.snr is not None
    return preconditioned_factor(float(change.ratio), change.snr.snr)


def _largest_ratio(beta: float, change: Change) -> Fraction | float:
    limit = 1 / (1 - exact(beta))
    if change.momentum == "samples" or change.rule.lr == 1:
        return limit
    if change.rule.lr is not None:
        return math.inf if change.rule.lr == 0 else float(limit) ** (1 / change.rule.lr)
    assert change.snr is not None
    return inverse_factor(float(limit), change.snr.snr)


def _memory(name: str, numbers: Hyperparameters, change: Change) -> float:
    beta, ratio, momentum = numbers.memories[name], change.ratio, change.momentum
    if beta == 0 or momentum == "fixed" or (momentum == "second-moment" and name not in second_moments(numbers)):
        return beta
    if momentum in ("half-life", "second-moment"):
        left = float(beta ** float(ratio))
        return left if left > 1e-30 else 0.0  # below this, float32 has no memory
    if momentum == "samples" or change.rule.lr == 1:
        return float(1 - ratio * (1 - exact(beta)))
    return max(0.0, 1 - _time_factor(change) * float(1 - exact(beta)))


def expected_square(numbers: Hyperparameters, change: Change) -> float:
    """The factor of the square under the root at equal numbers of samples; 1 if the rule leaves it unchanged."""
    ratio = float(change.ratio)
    if change.rule.regime is None or numbers.family not in (*ADAPTIVE, "adagrad"):
        return 1.0
    if change.rule.regime == "measured":
        assert change.snr is not None
        return square_change(ratio, change.snr.snr)
    power = -1.0 if change.rule.regime == "noise" else 0.0
    return float(ratio ** (power - 1 if numbers.family == "adagrad" else power))


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _spread(numbers: Hyperparameters) -> float:
    """Standard deviation of bm + (1 − b)g in units of σ/√B, where m is a stationary mean with decay β."""
    b = 0.0 if numbers.blend is None else numbers.blend
    beta = next(iter(numbers.memories.values()), 0.0)
    return math.sqrt((1 - b) ** 2 + b**2 * (1 - beta) / (1 + beta))
