"""How a rule changes a record of hyperparameters, number by number, with reasons."""

import dataclasses
import math
from dataclasses import dataclass
from fractions import Fraction

from sdelens.core.names import MOMENTA
from sdelens.scaling._rules import ADAPTIVE, Rule
from sdelens.scaling.hyperparameters import L2, Hyperparameters

__all__ = ["Row", "check_legal", "rate_factor", "regime_of", "scaled"]


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
    """

    name: str
    before: float
    after: float
    factor: float
    why: str
    of: str
    group: int | None = None


def row(name: str, before: float, after: float, why: str) -> Row:
    """A row for a number that is multiplied by a factor."""
    return Row(name, before, after, after / before if before else 1.0, why, name)


def regime_of(rule: Rule, family: str) -> str | None:
    """Whether noise or signal makes up squared gradients; SGD's rule holds for both and is assumed noise-dominated."""
    return "noise" if rule.regime and family in ("sgd", "momentum") else rule.regime


def check_legal(numbers: Hyperparameters, ratio: Fraction, rule: Rule, momentum: str) -> None:
    """Refuse a ratio at which a decay β would be negative.

    Raises:
        ValueError: if it would be; the message names the largest legal ratio and the alternatives.
    """
    if momentum not in ("samples", "time"):
        return
    power = 1.0 if momentum == "samples" or rule.lr is None else rule.lr
    largest = {name: (1 / (1 - _exact(beta))) for name, beta in numbers.memories.items() if beta > 0}
    if power == 1:
        bad = {name: float(limit) for name, limit in largest.items() if ratio > limit}
        limits = {name: float(limit) for name, limit in largest.items()}
    else:
        limits = {name: math.inf if power == 0 else float(limit) ** (1 / power) for name, limit in largest.items()}
        bad = {name: limit for name, limit in limits.items() if float(ratio) > limit * (1 + 1e-12)}
    if not bad:
        return
    name = min(bad, key=lambda k: bad[k])
    forgets = 1 - numbers.memories[name]
    factor = float(ratio) ** power
    listed = ", ".join(f"{limit:g} for {key} = {numbers.memories[key]:g}" for key, limit in sorted(limits.items()))
    ways = [
        f"momentum='half-life' ({name} to the power {float(ratio):g} is {numbers.memories[name] ** float(ratio):.3g})"
    ]
    if momentum == "samples" and rule.lr is not None and float(ratio) ** rule.lr * forgets <= 1:
        ways.append(f"momentum='time' (1 − {name} is multiplied by {float(ratio) ** rule.lr:g}, like lr)")
    ways.append("momentum='fixed'")
    raise ValueError(
        f"batch_ratio: got {float(ratio):g}, at which 1 − {name} = {factor:g} × {forgets:.6g} = "
        f"{factor * forgets:.4g} exceeds 1, so that {name} would be negative. The largest possible ratio is "
        f"{min(limits.values()):g} ({listed}). Alternatives: {'; '.join(ways)}; or a ratio of at most "
        f"{min(limits.values()):g}, in one step or by a ramp (sl.scaling.ramp)."
    )


def rate_factor(numbers: Hyperparameters, new: Hyperparameters, ratio: Fraction, rule: Rule) -> float:
    """The factor of η; `new` already has the rescaled decays β."""
    if rule.lr is not None:
        return float(ratio) ** rule.lr
    return math.sqrt(ratio) * _spread(new) / _spread(numbers)


def scaled(numbers: Hyperparameters, ratio: Fraction, rule: Rule, momentum: str) -> tuple[Hyperparameters, list[Row]]:
    """The record at a batch δ times as large, and an account of the changes.

    Raises:
        ValueError: if a decay β would be negative.
    """
    check_legal(numbers, ratio, rule, momentum)
    delta = float(ratio)
    memories = {name: _memory(beta, ratio, rule, momentum) for name, beta in numbers.memories.items()}
    new = dataclasses.replace(numbers, memories=memories)
    if numbers.family == "signum":
        new = dataclasses.replace(new, blend=memories["b1"])
    rate = rate_factor(numbers, new, ratio, rule)
    power = _power(numbers, rule)
    decay = {L2: 1.0, "independent": delta, "coupled": delta / rate}[numbers.decay] if rule.decay else 1.0
    new = dataclasses.replace(
        new,
        lr=numbers.lr * rate,
        eps=_times(numbers.eps, delta ** (power if numbers.inside else power / 2)),
        eps_root=_times(numbers.eps_root, delta**power),
        accumulator=_times(numbers.accumulator, delta**power),
        weight_decay=numbers.weight_decay * decay,
    )
    return new, [
        *_rate_rows(numbers, new, rate, rule),
        *_other_rows(numbers, new, rule, momentum, rate / delta if numbers.decay == "coupled" else 1 / delta),
    ]


def _rate_rows(old: Hyperparameters, new: Hyperparameters, rate: float, rule: Rule) -> list[Row]:
    why = {
        "sqrt": "√δ: where noise dominates, a step moves x by η√B ∇f/σ and adds the variance η², and 1/δ as many steps "
        "keep both",
        "malladi2022": "√δ, the square-root scaling rule of Malladi et al. 2022",
        "sqrt-lr": "√δ: the variance of one update of SGD, η²σ²/B, is kept",
        "linear": "δ: 1/δ as many steps go equally far along the gradient",
        "goyal2017": "δ, the linear scaling rule of Goyal et al. 2017",
        "sign-momentum": "√δ times the change of the standard deviation of the argument of the sign, in units of "
        "σ/√B: this keeps the mean sign per sample",
        "sum-of-squares": "1: at the same number of samples the sum of squares is 1/δ² times as large, and 1/δ as "
        "many steps are divided by its root",
    }.get(rule.name, "not changed by this rule")
    if old.family in ("sgd", "momentum") and rule.name == "sqrt":
        why = (
            "√δ, as requested; SGD's drift per sample is then multiplied by 1/√δ, and the variance of its noise per "
            "sample by 1/δ"
        )
    if old.undamped is not None:
        why += (
            f"; the buffer is a sum of gradients, not a mean, so the effective rate is lr/(1 − {old.undamped}); it "
            f"changes by the factor {rate:.4g}, and lr also compensates the change of 1 − {old.undamped}"
        )
    return [row("lr", old.written_lr, new.written_lr, why)]


def _other_rows(old: Hyperparameters, new: Hyperparameters, rule: Rule, momentum: str, strength: float) -> list[Row]:
    rows = []
    for name, beta in old.memories.items():
        after = new.memories[name]
        factor = float((1 - _exact(after)) / (1 - _exact(beta)))
        why = MOMENTA[momentum].split(" (")[0] if beta > 0 else "0 means no memory and does not change"
        rows.append(Row(name, beta, after, factor, why, f"1 − {name}"))
    if old.family == "lion" and old.blend is not None:
        rows.append(
            row(
                "b1",
                old.blend,
                old.blend,
                "it only weights the newest gradient in the argument of the sign and does not change",
            )
        )
    squares = {
        None: "not changed by this rule",
        "noise": "where noise dominates, squared gradients are of size σ²/B, and this number scales with them",
        "signal": "the gradient dominates, and its size does not depend on the batch size",
    }[regime_of(rule, old.family)]
    if old.family == "adagrad" and rule.regime:
        squares = f"like the sum of squares over 1/δ as many steps: {squares}"
    small = (
        ("eps", old.eps, new.eps),
        ("eps_root", old.eps_root, new.eps_root),
        ("initial_accumulator", old.accumulator, new.accumulator),
    )
    rows += [row(name, a, b, squares) for name, a, b in small if a is not None and b is not None]
    if old.weight_decay > 0:
        rows.append(row("weight_decay", old.weight_decay, new.weight_decay, _decay_reason(old, rule, strength)))
    return rows


def _decay_reason(old: Hyperparameters, rule: Rule, strength: float) -> str:
    if old.decay == L2:
        return (
            "L2 is part of the gradient and does not change: the objective f + θ‖x‖²/2 is the same at every batch size"
        )
    if rule.decay and old.decay == "coupled":
        return (
            "δ divided by the factor of lr: this keeps the decay per sample, nηθ, and thus the time scale B/(ηθ) in "
            "samples (Wang and Aitchison 2024, arXiv 2405.13698)"
        )
    if rule.decay:
        return "δ: this decay is not multiplied by lr, and δ keeps nθ, the decay per sample"
    if math.isclose(strength, 1):
        return "not changed by this rule, which keeps the decay per sample here"
    return f"not changed by this rule: the decay per sample is multiplied by {strength:.4g}"


def _memory(beta: float, ratio: Fraction, rule: Rule, momentum: str) -> float:
    if beta == 0 or momentum == "fixed":
        return beta
    if momentum == "half-life":
        left = beta ** float(ratio)
        return left if left > 1e-30 else 0.0  # below this, float32 has no memory
    if momentum == "samples" or rule.lr == 1:
        return float(1 - ratio * (1 - _exact(beta)))
    assert rule.lr is not None
    return max(0.0, 1 - float(ratio) ** rule.lr * float(1 - _exact(beta)))


def _exact(beta: float) -> Fraction:
    """β as its shortest decimal: 1 − 0.9 is then exactly 0.1, and ten times that is exactly 1."""
    return Fraction(repr(float(beta)))


def _power(numbers: Hyperparameters, rule: Rule) -> float:
    """The power of δ by which the square under the root scales at equal numbers of samples."""
    if rule.regime is None or numbers.family not in (*ADAPTIVE, "adagrad"):
        return 0.0
    mean = -1.0 if rule.regime == "noise" else 0.0
    return mean - 1 if numbers.family == "adagrad" else mean


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _spread(numbers: Hyperparameters) -> float:
    """Standard deviation of bm + (1 − b)g in units of σ/√B, where m is a stationary mean with decay β."""
    b = 0.0 if numbers.blend is None else numbers.blend
    beta = next(iter(numbers.memories.values()))
    return math.sqrt((1 - b) ** 2 + b**2 * (1 - beta) / (1 + beta))
