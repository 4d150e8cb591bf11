"""The result of `rescale`: the new optimizer, and an account of what was changed and assumed."""

import textwrap
from dataclasses import dataclass
from typing import Any, Final

from sdelens.core.files import text_table
from sdelens.scaling._factors import Row, regime_of
from sdelens.scaling._rules import ADAPTIVE, RULES, Rule, default_rule
from sdelens.scaling.hyperparameters import Hyperparameters

__all__ = ["Rescaled", "assumptions"]

_SIGNS: Final = ("signsgd", "signum", "lion")


@dataclass(frozen=True)
class Rescaled:
    """An optimizer rescaled to another batch size, with an account of every number.

    Attributes:
        optimizer: the rescaled optimizer, of the type that was given.
        batch_ratio: δ.
        rule: name of the rule, one of `RULES`; with several groups of different kinds, their names.
        momentum: how decays β were scaled.
        steps: optimizer steps for the same number of samples, None if not given.
        warmup: warm-up steps, None if not given.
        clip_norm: norm at which gradients are clipped, None if not given.
        account: a `Row` for every number: name, before, after, factor, why.
        assumed: sentences that state what was assumed and what is not covered.
    """

    optimizer: Any
    batch_ratio: float
    rule: str
    momentum: str
    steps: int | None
    warmup: int | None
    clip_norm: float | None
    account: tuple[Row, ...]
    assumed: tuple[str, ...]

    def __str__(self) -> str:
        """A table of the numbers, the reasons, and the assumptions."""
        head = ["number", "before", "after", "factor", "of"]
        rows = [[_label(r), f"{r.before:.6g}", f"{r.after:.6g}", f"{r.factor:.6g}", r.of] for r in self.account]
        why = {f"{r.name}: {r.why}.": None for r in self.account}
        title = f"Batch × {self.batch_ratio:g}: rule {self.rule}, momentum {self.momentum}"
        return "\n".join(
            [
                title,
                "",
                *text_table(head, rows),
                "",
                *(line for text in why for line in _wrapped(text)),
                "",
                "Assumptions:",
                *(line for text in self.assumed for line in _wrapped(text)),
            ]
        )


def _label(row: Row) -> str:
    return row.name if row.group is None else f"{row.name} [{row.group}]"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 118, initial_indent="- ", subsequent_indent="  ")


def assumptions(old: Hyperparameters, new: Hyperparameters, ratio: float, rule: Rule, clip: bool) -> list[str]:
    """Sentences that state what a rule assumes and what it does not cover."""
    family = old.family
    said = ["Runs are compared at equal numbers of samples (training examples), which take 1/δ as many steps."]
    said += _regime(family, ratio, rule)
    if family in _SIGNS and rule.regime == "noise":
        said.append(
            "The noise of one example has a finite variance, and a batch is large enough for the central limit "
            "theorem. The rule does not hold for noise with tails like those of Student's t with 2 or fewer degrees "
            "of freedom, which averaging reduces differently (a mean of Cauchy variables has the same Cauchy "
            "distribution)."
        )
    if rule.name == "sign-momentum":
        said.append(
            "The noise in the argument of the sign is normal, and m has reached its stationary distribution. The "
            "mean sign per sample is kept; the long-run noise is kept to first order in 1 − β."
        )
    short = [
        f"{name} = {beta:.4g}" for name, beta in new.memories.items() if 0 < beta < 0.7 and beta != old.memories[name]
    ]
    if short:
        said.append(
            f"{', '.join(short)} is a memory of about {1 / (1 - min(b for b in new.memories.values() if b > 0)):.1f} "
            "steps. The rule is exact only to first order in 1 − β, so it is a rough approximation here."
        )
    if family in ADAPTIVE:
        limits = [(2 + 2 * b) / ((1 - b) * n.lr) for n in (old, new) for b in (_damping(n),)]
        if limits[1] < limits[0]:
            said.append(
                "Steps stay stable. They are stable up to a curvature, preconditioned by 1/√v, of (2 + 2β)/((1 − "
                "β)η), where β is the decay of the momentum (Cohen et al. 2022, arXiv 2207.14484). This limit is "
                f"{limits[0]:.3g} before and {limits[1]:.3g} after rescaling, while 1/√v grows by up to √δ; "
                "sl.scaling.verify measures the curvature relative to the limit."
            )
    if clip:
        said.append(
            "Clipping: where noise dominates, ‖g‖ decreases like 1/√B, and a clipping norm that decreases in the "
            "same way keeps the share of clipped steps; where the gradient dominates, ‖g‖ does not change, and the "
            "clipping norm should not change either."
        )
    said.append(
        "Not covered: layers whose statistics depend on the batch (batch normalisation), and data orders in which "
        "batches are not independent."
    )
    if family == "adamw":
        said.append(
            "A run that continues from a checkpoint keeps accumulators of the old batch size for about 1/(1 − β) "
            "steps, and Adam's bias correction counts steps, not samples, which matters within the first 1/(1 − b2) "
            "steps (rescaling an optax state, or a torch optimizer by sdelens.torch.rescale, accounts for both)."
        )
    return said


def _damping(numbers: Hyperparameters) -> float:
    """Decay of the mean of gradients along which x moves."""
    return numbers.memories.get("b1", numbers.memories.get("momentum", 0.0))


def _regime(family: str, ratio: float, rule: Rule) -> list[str]:
    said = []
    own = default_rule(family)
    same = RULES[own].lr == rule.lr and (rule.regime is not None or family in ("sgd", "momentum"))
    if rule.name != own and not (family in ADAPTIVE and rule.name == "malladi2022") and not same:
        said.append(
            f"Rule {rule.name} does not keep the SDE of {family}, but rule {own} does. Rule {rule.name} keeps "
            f"{rule.keeps}."
        )
    larger = "larger" if ratio >= 1 else "smaller"
    if family in ("sgd", "momentum"):
        if rule.lr == 1:
            said.append(
                "Steps are small: ηλ is well below 1 for the largest curvature λ, also at the new η; SGD diverges "
                "where ηλ exceeds 2."
            )
    elif regime_of(rule, family) == "noise":
        at = "at the larger batch size (the new one)" if ratio >= 1 else "at the larger batch size (the old one)"
        said.append(
            f"Noise dominates the gradient: the signal-to-noise ratio |∂f|/σ is small {at}; sl.diagnose measures it. "
            "Where it is 0.5 there, the error of the path is about 5 %; where it is 1, 15 to 20 %; where it is 2, "
            "30 to 50 % (for AdamW without weight decay on a quadratic)."
        )
    elif regime_of(rule, family) == "signal":
        said.append(
            "The gradient dominates the noise at both batch sizes. Near the end of a run it may not, and the noise "
            f"of the run with the {larger} batch then differs from that of the other run."
        )
    return said
