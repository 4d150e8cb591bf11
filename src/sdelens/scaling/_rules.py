"""Scaling rules as data: how every hyperparameter changes when the batch is δ times as large."""

from dataclasses import dataclass
from typing import Final

from sdelens.core.declarations import OPTIMIZERS

__all__ = ["ADAPTIVE", "RULES", "Rule", "add_rule", "default_rule"]

ADAPTIVE: Final = ("rmspropw", "adamw")
"""Optimizers that divide by the root of an averaged square."""


@dataclass(frozen=True)
class Rule:
    """One scaling rule.

    Attributes:
        name: name of the rule.
        lr: exponent of the power of δ that multiplies η; None if the factor is computed from more than δ: from the
            measured SNR if `regime` is ``"measured"``, otherwise from the spread of the momentum under a sign.
        regime: what the squares of gradients consist of: ``"noise"`` or ``"signal"``, whichever dominates, or
            ``"measured"``, both, according to a measured SNR; ε, Adagrad's sum and the clipping norm are scaled
            accordingly; None if the rule leaves them unchanged.
        momentum: the default of `core.names.MOMENTA` under this rule; for optimizers without a mean of squares,
            ``"second-moment"`` means ``"samples"`` here.
        decay: whether decoupled decay keeps its strength per sample, nηθ; otherwise θ is unchanged.
        families: the optimizers that the rule is made for; empty for all.
        keeps: what the rule preserves at equal numbers of samples.
        source: reference for the rule.
    """

    name: str
    lr: float | None
    regime: str | None
    momentum: str
    decay: bool
    families: tuple[str, ...]
    keeps: str
    source: str


_RULES: Final = (
    Rule(
        "sqrt",
        0.5,
        "noise",
        "samples",
        True,
        (),
        "drift and noise per sample of sign and adaptive optimizers where noise dominates the gradient, decay included",
        "Malladi, Lyu, Panigrahi, Arora 2022 (arXiv 2205.10287) for RMSprop and Adam; with decay, and for SignSGD, "
        "Monzio Compagnoni et al. 2025 (arXiv 2411.15958)",
    ),
    Rule(
        "linear",
        1.0,
        "signal",
        "samples",
        True,
        (),
        "drift and noise per sample of SGD, also with momentum; for sign and adaptive optimizers the path where the "
        "gradient dominates the noise, but not their noise",
        "Goyal et al. 2017 (arXiv 1706.02677) for SGD; derived in sdelens for the other optimizers",
    ),
    Rule(
        "signal-to-noise",
        None,
        "measured",
        "second-moment",
        True,
        (*ADAPTIVE, "signsgd", "signum", "lion"),
        "drift and noise per sample of RMSprop and Adam whose squared gradients consist of signal and noise in the "
        "measured proportion; for sign methods the mean sign per sample",
        "derived in sdelens",
    ),
    Rule(
        "none",
        0.0,
        None,
        "fixed",
        False,
        (),
        "only the number of samples: steps and warm-up change, the hyperparameters do not",
        "the baseline",
    ),
    Rule(
        "sign-momentum",
        None,
        "noise",
        "samples",
        True,
        ("signum", "lion"),
        "the mean sign per sample where noise dominates the gradient, and approximately its long-run noise: the "
        "factor of lr lies between √δ (no memory) and δ (long memory)",
        "derived in sdelens",
    ),
    Rule(
        "sum-of-squares",
        0.0,
        "noise",
        "samples",
        True,
        ("adagrad",),
        "drift and noise per sample of Adagrad where noise dominates the gradient: its sum of squares falls like 1/δ²",
        "derived in sdelens",
    ),
    Rule(
        "malladi2022",
        0.5,
        "noise",
        "samples",
        False,
        ADAPTIVE,
        "drift and noise per sample of RMSprop and Adam where noise dominates; the rule does not cover decoupled "
        "decay, which does not change and is thus √δ times too weak per sample",
        "Malladi, Lyu, Panigrahi, Arora 2022 (arXiv 2205.10287)",
    ),
    Rule(
        "sqrt-lr",
        0.5,
        None,
        "fixed",
        False,
        (),
        "the variance of one update of SGD; for sign and adaptive optimizers where noise dominates, drift and noise "
        "over times longer than their memories, but not decay; only the learning rate changes",
        "the argument of Krizhevsky 2014 (arXiv 1404.5997) and Hoffer et al. 2017 (arXiv 1705.08741); for LAMB You et "
        "al. 2020 (arXiv 1904.00962)",
    ),
    Rule(
        "goyal2017",
        1.0,
        None,
        "fixed",
        False,
        (),
        "SGD's drift and noise per sample; only the learning rate changes, with a gradual warm-up",
        "Goyal et al. 2017 (arXiv 1706.02677)",
    ),
    Rule(
        "marek2025",
        0.0,
        None,
        "second-moment",
        False,
        ADAPTIVE,
        "the half-life of the second moment in samples, for small batches, down to one example; all other "
        "hyperparameters, including the learning rate, are unchanged",
        "Marek et al. 2025 (arXiv 2507.07101)",
    ),
    Rule(
        "bergsma2025",
        0.0,
        None,
        "fixed",
        True,
        ("adamw",),
        "only AdamW's time scale of decay, B/(ηθD), by scaling θ in proportion to the batch size at an unchanged "
        "learning rate",
        "Bergsma et al. 2025 (arXiv 2505.13738), after Wang and Aitchison 2024 (arXiv 2405.13698)",
    ),
)
RULES: Final = {rule.name: rule for rule in _RULES}
"""The rules by name."""


def default_rule(family: str) -> str:
    """Name of the rule that keeps the SDE of an optimizer."""
    return OPTIMIZERS[family].scaling_rule


def add_rule(rule: Rule) -> None:
    """Register a rule by its name.

    Raises:
        ValueError: if there is another rule with that name.
    """
    if rule.name in RULES:
        raise ValueError(f"name: there is a rule {rule.name!r} already; choose another name.")
    RULES[rule.name] = rule
