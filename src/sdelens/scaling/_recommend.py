"""Which rule to use at a batch ratio, from what is known of the signal-to-noise ratio."""

import math
from typing import NamedTuple

from sdelens.core import check
from sdelens.core.declarations import OPTIMIZERS, canonical_name, scaled_names
from sdelens.scaling._rules import ADAPTIVE, default_rule

__all__ = ["Recommendation", "recommended"]


class Recommendation(NamedTuple):
    """A rule and a treatment of β, as `rescale` takes them.

    Attributes:
        rule: name of the rule.
        momentum: how decays β are scaled.
        why: the reason in one sentence.
        snr: the SNR to give to `rescale`, None if the rule uses none.
    """

    rule: str
    momentum: str
    why: str
    snr: float | None = None


def recommended(
    ratio: float,
    snr: float = math.nan,
    snr_limits: tuple[float, float] = (math.nan, math.nan),
    family: str = "adamw",
    b1: float = 0.9,
) -> Recommendation:
    """The rule that `advise` recommends at a batch ratio.

    Args:
        ratio: δ, the new batch size over the old one.
        snr: the measured √(B‖∇f‖²/tr Σ) at the old batch; NaN if it is unknown.
        snr_limits: its limits, NaN where they are unknown.
        family: the optimizer's name.
        b1: decay of its momentum.

    Returns:
        A `Recommendation`.

    Raises:
        ValueError: if the optimizer is unknown or a number is out of its range; the message names it.
    """
    delta = check.positive("ratio", ratio)
    name = OPTIMIZERS[canonical_name(check.choice("family", family, scaled_names()))].of_family
    beta = check.fraction("b1", b1)
    if name not in (*ADAPTIVE, "signsgd"):
        return _own(name, delta, beta)
    held = "fixed"
    if math.isnan(snr) and not snr_limits[0] > 0:
        bound = "" if math.isnan(snr_limits[1]) else f", except that it is at most {snr_limits[1]:.2g}"
        why = (
            f"The SNR is unknown{bound}, and the square-root rule is the smallest change of lr that any SNR gives; if "
            "the gradient dominates, the change is too small."
        )
        return Recommendation("sqrt", held, why)
    damped = ""
    if name in ADAPTIVE:
        damped = (
            "; the decays β are held, because a smaller β₁ loses the damping by momentum, and with a smaller β₂ the "
            "loss of a real run was higher or equal"
        )
    if math.isnan(snr):
        why = (
            f"The SNR is at least {snr_limits[0]:.2g}, and at this limit drift and noise per sample are kept by the "
            f"smallest change of lr{damped}; if the SNR is larger, the change is too small."
        )
        return Recommendation("signal-to-noise", held, why, snr_limits[0])
    wide = (
        "" if any(math.isnan(v) or v == snr for v in snr_limits) else f" ({snr_limits[0]:.2g} to {snr_limits[1]:.2g})"
    )
    why = (
        f"At the measured SNR of {snr:.2g}{wide}, drift and noise per sample are kept by a factor of lr between √δ and "
        f"δ{damped}."
    )
    return Recommendation("signal-to-noise", held, why, snr)


def _own(name: str, delta: float, beta: float) -> Recommendation:
    """The rule that keeps the optimizer's SDE, for one whose rule does not use the SNR."""
    held = "samples" if delta * (1 - beta) <= 1 else "fixed"
    why = "This rule keeps drift and noise per sample, whatever the SNR."
    if name in ("signum", "lion"):
        why = (
            "This rule keeps the mean sign per sample where noise dominates in most coordinates, whose own SNR are not "
            "known; where it does not, the factor of lr is larger, up to δ."
        )
    if name == "adagrad":
        why = "This rule keeps drift and noise per sample where noise dominates."
    return Recommendation(default_rule(name), held, why)
