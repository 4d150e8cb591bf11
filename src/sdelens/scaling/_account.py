"""The result of `rescale`: the new optimizer, and an account of what was changed and assumed."""

from dataclasses import dataclass
from typing import Any, Final

from sdelens.results.printable import Parts, Printable, Remarks, Table
from sdelens.scaling._factors import Change, damping, largest_curvature, regime_of
from sdelens.scaling._horizon import DecayTime
from sdelens.scaling._reasons import Row
from sdelens.scaling._rules import ADAPTIVE, RULES, Rule, default_rule
from sdelens.scaling.hyperparameters import Hyperparameters

__all__ = ["Rescaled", "assumptions"]

_SIGNS: Final = ("signsgd", "signum", "lion")


@dataclass(frozen=True, repr=False)
class Rescaled(Printable):
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
        decay_times: time scale of decoupled weight decay, for every group that has some.
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
    decay_times: tuple[DecayTime, ...] = ()

    def _parts(self) -> Parts:
        """A table of the numbers, the reasons, and the assumptions."""
        head = ["number", "before", "after", "factor", "of"]
        rows = [[_label(r), f"{r.before:.6g}", f"{r.after:.6g}", f"{r.factor:.6g}", r.of] for r in self.account]
        why = dict.fromkeys([*(f"{r.name}: {r.why}." for r in self.account), *map(str, self.decay_times)])
        title = f"Batch × {self.batch_ratio:g}: rule {self.rule}, momentum {self.momentum}"
        return [title, Table(head, rows), Remarks([*why]), Remarks(self.assumed, "Assumptions:")]


def _label(row: Row) -> str:
    return row.name if row.group is None else f"{row.name} [{row.group}]"


def assumptions(old: Hyperparameters, new: Hyperparameters, change: Change, clip: bool) -> list[str]:
    """Sentences that state what a rule assumes and what it does not cover."""
    family, rule, ratio = old.family, change.rule, float(change.ratio)
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
    said += _stability(old, new, ratio)
    if change.tokens != 1:
        said.append(
            "Only the decay time scale and the schedule follow the length of the run. The best learning rate of a "
            "longer run is often lower, and is not predicted here."
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


def _stability(old: Hyperparameters, new: Hyperparameters, ratio: float) -> list[str]:
    """Whether steps stay stable, if the largest stable curvature falls; a warning if it falls by more than δ."""
    if old.family not in (*ADAPTIVE, "momentum"):
        return []
    before, after = largest_curvature(old), largest_curvature(new)
    if after >= before:
        return []
    adaptive = old.family in ADAPTIVE
    where = ", preconditioned by 1/√v," if adaptive else ""
    said = (
        f"They are stable up to a curvature{where} of (2 + 2β)/((1 − β)η), where β is the decay of the momentum (Cohen "
        f"et al. 2022, arXiv 2207.14484). This limit is {before:.3g} before and {after:.3g} after rescaling"
    )
    said += ", while 1/√v grows by up to √δ; " if adaptive else "; "
    said += "sl.scaling.verify measures the curvature relative to the limit."
    if damping(new) >= damping(old) or before <= ratio * after:
        return [f"Steps stay stable. {said}"]
    kept = "'second-moment' and 'fixed' keep" if adaptive else "'fixed' keeps"
    return [
        f"It is in doubt whether steps stay stable: with β = {damping(new):.3g} in place of {damping(old):.3g}, "
        f"momentum loses its damping (momentum={kept} it). {said}"
    ]


def _regime(family: str, ratio: float, rule: Rule) -> list[str]:
    said = []
    own = default_rule(family)
    same = RULES[own].lr == rule.lr and (rule.regime is not None or family in ("sgd", "momentum"))
    keeps = rule.regime == "measured" or (family in ADAPTIVE and rule.name == "malladi2022")
    if rule.name != own and not keeps and not same:
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
    elif regime_of(rule, family) == "measured":
        said.append(
            "The SNR is that of the old batch now, and of all coordinates alike: where it differs between layers, the "
            "factor of lr is too small for some and too large for others, and it decreases towards √δ as the SNR falls "
            "later in the run. An SNR read from an optimizer's moments is a lower bound; measure it from gradients "
            "(sdelens.torch.watch, sl.gradient_noise)."
        )
    elif regime_of(rule, family) == "signal":
        said.append(
            "The gradient dominates the noise at both batch sizes. Near the end of a run it may not, and the noise "
            f"of the run with the {larger} batch then differs from that of the other run."
        )
    return said
