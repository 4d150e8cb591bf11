"""The rows of an account: what a rule changed in a record of hyperparameters, with reasons in plain language."""

import math
from dataclasses import dataclass

from sdelens.core.names import MOMENTA
from sdelens.scaling._factors import Change, exact, rate_range, regime_of, second_moments
from sdelens.scaling.hyperparameters import L2, Hyperparameters

__all__ = ["Row", "row", "rows_of"]


@dataclass(frozen=True)
class Row:
    """The change of one number.

    Attributes:
        name: name of the number.
        before: value at the old batch size.
        after: value at the new batch size.
        factor: ratio of the two values; for a decay β the ratio of 1 − β.
        why: the reason in plain language.
        of: the quantity that the factor multiplies.
        group: index of the parameter group, None if there is only one.
        limits: smallest and largest value at the new batch size within the limits of a measured SNR, None if there are
            none.
    """

    name: str
    before: float
    after: float
    factor: float
    why: str
    of: str
    group: int | None = None
    limits: tuple[float, float] | None = None


def row(name: str, before: float, after: float, why: str, limits: tuple[float, float] | None = None) -> Row:
    """A row for a number that is multiplied by a factor."""
    return Row(name, before, after, after / before if before else 1.0, why, name, limits=limits)


def rows_of(old: Hyperparameters, new: Hyperparameters, change: Change) -> list[Row]:
    """A row for every number of a record."""
    rows = [_rate_row(old, new, change), *_memory_rows(old, new, change)]
    if old.family == "lion" and old.blend is not None:
        why = "it only weights the newest gradient in the argument of the sign and does not change"
        rows.append(row("b1", old.blend, old.blend, why))
    squares = _squares_reason(old, change)
    small = (
        ("eps", old.eps, new.eps),
        ("eps_root", old.eps_root, new.eps_root),
        ("initial_accumulator", old.accumulator, new.accumulator),
    )
    rows += [row(name, a, b, squares) for name, a, b in small if a is not None and b is not None]
    if old.weight_decay > 0:
        rows.append(row("weight_decay", old.weight_decay, new.weight_decay, _decay_reason(old, new, change)))
    return rows


_RATES = {
    "sqrt": "√δ: where noise dominates, a step moves x by η√B ∇f/σ and adds the variance η², and 1/δ as many steps "
    "keep both",
    "malladi2022": "√δ, the square-root scaling rule of Malladi et al. 2022",
    "sqrt-lr": "√δ: the variance of one update of SGD, η²σ²/B, is kept",
    "linear": "δ: 1/δ as many steps go equally far along the gradient",
    "goyal2017": "δ, the linear scaling rule of Goyal et al. 2017",
    "sign-momentum": "√δ times the change of the standard deviation of the argument of the sign, in units of σ/√B: "
    "this keeps the mean sign per sample",
    "sum-of-squares": "1: at the same number of samples the sum of squares is 1/δ² times as large, and 1/δ as many "
    "steps are divided by its root",
}


def _rate_row(old: Hyperparameters, new: Hyperparameters, change: Change) -> Row:
    rate, delta = new.lr / old.lr, float(change.ratio)
    why = _RATES.get(change.rule.name, "not changed by this rule")
    if change.rule.regime == "measured":
        why = _measured_reason(old, change)
    if old.family in ("sgd", "momentum") and change.rule.name == "sqrt":
        why = (
            "√δ, as requested; SGD's drift per sample is then multiplied by 1/√δ, and the variance of its noise per "
            "sample by 1/δ"
        )
    ends = rate_range(old, new, change)
    limits = None
    if ends is not None:
        per = new.written_lr / rate
        limits = ends[0] * per, ends[1] * per
        why += (
            f"; within the limits of the SNR lr lies between {limits[0]:.4g} and {limits[1]:.4g}, where √δ gives "
            f"{math.sqrt(delta) * per:.4g} and δ gives {delta * per:.4g}"
        )
    if old.undamped is not None:
        why += (
            f"; the buffer is a sum of gradients, not a mean, so the effective rate is lr/(1 − {old.undamped}); it "
            f"changes by the factor {rate:.4g}, and lr also compensates the change of 1 − {old.undamped}"
        )
    return row("lr", old.written_lr, new.written_lr, why, limits)


def _measured_reason(old: Hyperparameters, change: Change) -> str:
    assert change.snr is not None
    read = f"at the SNR u = {change.snr.snr:.3g} of the old batch"
    if old.family in ("signsgd", "signum", "lion"):
        return f"δ divided by the change of the mean sign, {read}: this keeps the mean sign per sample"
    return (
        f"√(δ(1 + δu²)/(1 + u²)) {read}: drift and noise per sample of a step η g/√E g² are kept, because η/√E g² is "
        "multiplied by δ; between √δ (noise only) and δ (no noise)"
    )


def _memory_rows(old: Hyperparameters, new: Hyperparameters, change: Change) -> list[Row]:
    rows = []
    for name, beta in old.memories.items():
        after = new.memories[name]
        factor = float((1 - exact(after)) / (1 - exact(beta)))
        why = MOMENTA[change.momentum].split(" (")[0]
        if change.momentum == "second-moment":
            why = (
                "to the power δ: the mean of squares keeps its half-life in samples"
                if name in second_moments(old)
                else "not changed: momentum keeps its damping"
            )
        if beta == 0:
            why = "0 means no memory and does not change"
        rows.append(Row(name, beta, after, factor, why, f"1 − {name}"))
    return rows


def _squares_reason(old: Hyperparameters, change: Change) -> str:
    squares = {
        None: "not changed by this rule",
        "noise": "where noise dominates, squared gradients are of size σ²/B, and this number scales with them",
        "signal": "the gradient dominates, and its size does not depend on the batch size",
        "measured": "squared gradients are multiplied by (u² + 1/δ)/(u² + 1), and this number scales with them",
    }[regime_of(change.rule, old.family)]
    if old.family == "adagrad" and change.rule.regime:
        return f"like the sum of squares over 1/δ as many steps: {squares}"
    return squares


def _decay_reason(old: Hyperparameters, new: Hyperparameters, change: Change) -> str:
    if old.decay == L2:
        return (
            "L2 is part of the gradient and does not change: the objective f + θ‖x‖²/2 is the same at every batch size"
        )
    tokens = float(change.tokens)
    run = (
        ""
        if tokens == 1
        else f"; divided by {tokens:g}, which keeps the decay time scale as a fraction of the run with {tokens:g} "
        "times as many samples (Bergsma et al. 2025, arXiv 2505.13738)"
    )
    if change.rule.decay and old.decay == "coupled":
        return (
            "δ divided by the factor of lr: this keeps the decay per sample, nηθ, and thus the time scale B/(ηθ) in "
            f"samples (Wang and Aitchison 2024, arXiv 2405.13698){run}"
        )
    if change.rule.decay:
        return f"δ: this decay is not multiplied by lr, and δ keeps nθ, the decay per sample{run}"
    strength = (new.lr / old.lr if old.decay == "coupled" else 1.0) / float(change.ratio)
    if math.isclose(strength, 1):
        return f"not changed by this rule, which keeps the decay per sample here{run}"
    return f"not changed by this rule: the decay per sample is multiplied by {strength:.4g}{run}"
