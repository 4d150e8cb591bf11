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
                "Taken for granted:",
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
    said = ["Runs are compared at equal numbers of samples: 1/δ as many steps."]
    said += _regime(family, ratio, rule)
    if family in _SIGNS and rule.regime == "noise":
        said.append(
            "The noise of one example has a finite variance, and a batch is large enough for the central limit: "
            "averaging does not shrink noise with tails like Student's t of 2 degrees of freedom or fewer (a mean of "
            "Cauchy draws is Cauchy again), and then nothing here holds."
        )
    if rule.name == "sign-momentum":
        said.append(
            "The noise under the sign is normal and m has settled. Mean sign per sample is kept; the long-run noise is "
            "kept to first order in 1 − β."
        )
    short = [
        f"{name} = {beta:.4g}" for name, beta in new.memories.items() if 0 < beta < 0.7 and beta != old.memories[name]
    ]
    if short:
        said.append(
            f"{', '.join(short)}: a memory of about {1 / (1 - min(b for b in new.memories.values() if b > 0)):.1f} "
            "steps. The rule is exact to first order in 1 − β, and coarse here."
        )
    if family in ADAPTIVE:
        limits = [(2 + 2 * b) / ((1 - b) * n.lr) for n in (old, new) for b in (_damping(n),)]
        if limits[1] < limits[0]:
            said.append(
                "Steps stay stable: they are up to a curvature, preconditioned by 1/√v, of (2 + 2β)/((1 − β)η), β the "
                f"decay of the momentum (Cohen et al. 2022, arXiv 2207.14484), {limits[0]:.3g} before and "
                f"{limits[1]:.3g} now, while 1/√v grows by up to √δ; sl.scaling.verify measures it."
            )
    if clip:
        said.append(
            "Clipping: where noise dominates, ‖g‖ falls like 1/√B, and the norm with it keeps the share of steps that "
            "are clipped; where the gradient dominates ‖g‖ does not change, and neither should the norm."
        )
    said.append(
        "Not covered: layers whose statistics depend on the batch (batch normalisation), and data order, where batches "
        "are no independent samples."
    )
    if family == "adamw":
        said.append(
            "A run that goes on from a checkpoint keeps accumulators of the old batch for about 1/(1 − β) steps, and "
            "Adam's bias correction counts steps, not samples: it matters within the first 1/(1 − b2) steps "
            "(sdelens.torch.rescale and optax states take care of both)."
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
        said.append(f"Rule {rule.name} does not keep the SDE of {family}; {own} does. It keeps {rule.keeps}.")
    larger = "larger" if ratio >= 1 else "smaller"
    if family in ("sgd", "momentum"):
        if rule.lr == 1:
            said.append(
                "Steps are small: ηλ well below 1 for the largest curvature λ, at the new η too; SGD diverges "
                "where it exceeds 2."
            )
    elif regime_of(rule, family) == "noise":
        at = "at the larger batch, the new one" if ratio >= 1 else "at the larger batch, the old one"
        said.append(
            f"Noise dominates the gradient: the signal-to-noise ratio |∂f|/σ is small {at}; sl.diagnose measures it. "
            "Where it is 0.5 there the path is off by some 5 %, at 1 by 15 to 20 %, at 2 by 30 to 50 % (AdamW on a "
            "quadratic without decay)."
        )
    elif regime_of(rule, family) == "signal":
        said.append(
            "The gradient dominates the noise at both batch sizes; near the end of a run, where it does not, the "
            f"noise of the {larger} batch's run is not that of the other."
        )
    return said
