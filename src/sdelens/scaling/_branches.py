"""The result of `branch`: losses at equal samples, with limits, and the largest batch ratio within a tolerance."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sdelens.core.numerals import percent, signed
from sdelens.core.text import brief
from sdelens.results.paired import MEASURED, Change, late_part, measured, on_grid, scale_of, seeds_needed, shown
from sdelens.results.paired_plot import Compared, plot_paired
from sdelens.results.printable import Parts, Plotted, Table
from sdelens.scaling._account import Rescaled

if TYPE_CHECKING:
    import pandas as pd

    from sdelens.diagnosis import Diagnosis
    from sdelens.results.figures import Sheet

__all__ = ["BASE", "BranchRun", "Branches", "Curve", "Plan"]

BASE: Final = "base"
"""Label of the runs at the present batch size."""
WITHIN, BEYOND, UNTOLD, FAILED, REFUSED = "within", "beyond", "cannot tell", "failed", "refused"
_PREDICTED: Final = "sqrt"
"""The rule whose error a diagnosis predicts."""


@dataclass(frozen=True)
class BranchRun:
    """What one call of the training function is to do.

    Attributes:
        label: label of the rule, ``"base"`` at the present batch size.
        ratio: δ.
        batch_size: batch size of this run.
        steps: number of optimizer steps, for the same number of samples in all runs.
        seed: seed of this run's batches; every batch size runs with the same seeds.
        optimizer: hyperparameters for this batch size, in the form in which they were given.
        rescaled: the account of them, with the clipping norm and the warm-up of this batch size.
        options: options of `rescale` under this label, for example for
            ``sdelens.torch.rescale(optimizer, run.ratio, **run.options)``.
    """

    label: str
    ratio: float
    batch_size: int
    steps: int
    seed: int
    optimizer: Any
    rescaled: Rescaled
    options: Mapping[str, Any]


@dataclass(frozen=True, repr=False)
class Curve:
    """Losses of one run.

    Attributes:
        label: label of its rule.
        ratio: δ.
        seed: its seed.
        samples: samples since the checkpoint at every record, shape (n,).
        losses: loss at every record, shape (n,).
        failure: why there are no losses, else None.
        raised: whether the training function raised an exception.
    """

    label: str
    ratio: float
    seed: int
    samples: np.ndarray = field(default_factory=lambda: np.zeros(0))
    losses: np.ndarray = field(default_factory=lambda: np.zeros(0))
    failure: str | None = None
    raised: bool = False

    __repr__ = brief


@dataclass(frozen=True)
class Plan:
    """What was asked for: arguments of `branch` of the same names; the seeds are a tuple."""

    batch_size: int
    samples: int
    seeds: tuple[int, ...]
    tolerance: float
    minimum: float | None
    confidence: float


@dataclass(frozen=True, repr=False)
class Branches(Plotted):
    """Runs continued from one checkpoint at several batch sizes.

    Attributes:
        plan: batch size, samples, seeds, tolerance, minimum and confidence, as given.
        curves: a `Curve` for every run.
        accounts: the `Rescaled` of every label and ratio.
        refused: why the rule cannot be applied, by label and ratio.
        predicted: the diagnosis that was given.
    """

    plan: Plan
    curves: tuple[Curve, ...]
    accounts: Mapping[tuple[str, float], Rescaled]
    refused: Mapping[tuple[str, float], str]
    predicted: "Diagnosis | None" = None

    @functools.cached_property
    def table(self) -> "pd.DataFrame":
        """A row per label and ratio.

        Columns: ``batch_size``, ``steps``; ``loss``, the mean over the last third; ``difference``, ``relative`` and
        ``error``, each with ``_lower`` and ``_upper``; ``predicted``, ``predicted_lower``, ``predicted_upper``, the
        error that the diagnosis expects of the square-root rule; ``verdict``; ``seeds_needed``, with which the verdict
        would be decided if the losses stay as they are; ``reason`` of a failure.
        """
        import pandas as pd

        return pd.DataFrame(self._rows).set_index(["rule", "ratio"])

    @functools.cached_property
    def _rows(self) -> list[dict[str, Any]]:
        keys = sorted({*self.accounts, *self.refused} - {(BASE, 1.0)})
        return [{"rule": label, "ratio": ratio, **self._row(label, ratio)} for label, ratio in keys]

    @property
    def largest_ratio(self) -> float:
        """Largest ratio that is within the tolerance under one of the rules.

        It is 1 if all ratios are beyond it, failed or refused, and NaN if none is within and some cannot be told.
        """
        within = [row["ratio"] for row in self._rows if row["verdict"] == WITHIN]
        untold = any(row["verdict"] == UNTOLD for row in self._rows)
        return max(within) if within else math.nan if untold else 1.0

    def verdict(self) -> str:
        """The largest ratio, what cannot be told, and what was predicted, in sentences."""
        percent, largest = f"{100 * self.plan.tolerance:g} %", self.largest_ratio
        names = [row["rule"] for row in self._rows if row["verdict"] == WITHIN and row["ratio"] == largest]
        if math.isnan(largest):
            said = ["These runs cannot tell whether any of the ratios is within the tolerance."]
        elif not names:
            said = ["No ratio is within the tolerance."]
        else:
            said = [
                f"Up to {largest:g} times the batch size ({self.plan.batch_size * largest:g}), the loss at equal "
                f"samples is higher by at most {percent}{self._of} (rule {', '.join(names)})."
            ]
        for row in self._rows:
            what = f"Ratio {row['ratio']:g}, {row['rule']}: {row['verdict']}"
            if row["verdict"] == UNTOLD:
                said.append(f"{what}{_remedy(row['seeds_needed'], self.plan.seeds)}.")
            elif row["verdict"] in (FAILED, REFUSED):
                said.append(f"{what}: {row['reason']}.")
            elif row["verdict"] == BEYOND and not names:
                said.append(f"{what}, the loss is higher by more than {percent}{self._of}.")
        if self.predicted is not None:
            said.append(_foretold(self.predicted))
        return " ".join(said)

    @property
    def _of(self) -> str:
        return " of its decrease" if self.plan.minimum is None else ""

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types; unknown numbers are None."""
        plan = {**vars(self.plan), "seeds": list(self.plan.seeds)}
        rows = [{k: _plain(v) for k, v in row.items()} for row in self._rows]
        curves = [
            {
                **{k: getattr(c, k) for k in ("label", "ratio", "seed", "failure")},
                "samples": c.samples.tolist(),
                "losses": c.losses.tolist(),
            }
            for c in self.curves
        ]
        return {
            **plan,
            "largest_ratio": _plain(self.largest_ratio),
            "verdict": self.verdict(),
            "table": rows,
            "curves": curves,
        }

    def _draw(self, sheet: "Sheet") -> None:
        """Mean losses against samples, with the single runs, and their differences below."""
        edges, level = self._on_grid(list(self.of(BASE, 1.0).values()))
        runs = {"batch × 1": Compared(edges, level, level)}
        keys = [(row["rule"], row["ratio"]) for row in self._rows if row["verdict"] not in (FAILED, REFUSED)]
        several = len({label for label, _ in keys}) > 1
        runs |= {f"batch × {ratio:g}" + f", {label}" * several: self.compared(label, ratio) for label, ratio in keys}
        title = f"From one checkpoint, batch size {self.plan.batch_size} and others"
        plot_paired(sheet, runs, self.plan.confidence, title, "samples since the checkpoint")

    def _parts(self) -> Parts:
        plan = self.plan
        base = self.of(BASE, 1.0)
        level = self._on_grid(list(base.values()))
        late = level[1][:, late_part(level[0])].mean(axis=1)
        title = (
            f"Batch × 1 ({plan.batch_size}) against others, {plan.samples:,} samples from one checkpoint, "
            f"{len(plan.seeds)} seed{'s' * (len(plan.seeds) > 1)}: loss {late.mean():.4g} at batch × 1"
        )
        head = ["rule", "batch ×", "steps", "loss", "difference", "relative", "error", "predicted", "verdict"]
        rows = [
            [
                row["rule"],
                f"{row['ratio']:g}",
                "–" if row["steps"] is None else f"{row['steps']:g}",
                f"{row['loss']:.4g}" if math.isfinite(row["loss"]) else "–",
                shown(row, "difference", signed),
                shown(row, "relative", partial(percent, plus=True)),
                shown(row, "error", percent),
                shown(row, "predicted", percent),
                row["verdict"],
            ]
            for row in self._rows
        ]
        note = (
            f"loss: mean over the last third of the samples; difference and relative: its change, with "
            f"{100 * plan.confidence:g} % limits over the seeds; error: relative L2 distance of the mean curves, with "
            f"the noise removed{'' if len(plan.seeds) >= 8 else ' (limits need 8 seeds)'}; relative and error "
            f"refer to {'the decrease of the loss at batch × 1' if plan.minimum is None else scale_of(plan.minimum)}."
        )
        return [title, Table(head, rows, keys=2).without_empty(), self.verdict(), note]

    def of(self, label: str, ratio: float) -> dict[int, Curve]:
        """The finished runs of one label and ratio by seed."""
        found = (c for c in self.curves if (c.label, c.ratio) == (label, ratio))
        return {c.seed: c for c in found if c.failure is None}

    def compared(self, label: str, ratio: float) -> Compared:
        """Losses of one label and ratio and of batch × 1 on a common grid, for their common seeds."""
        ours, base = self.of(label, ratio), self.of(BASE, 1.0)
        seeds = [s for s in base if s in ours]
        edges, means = self._on_grid([*(ours[s] for s in seeds), *(base[s] for s in seeds)])
        return Compared(edges, means[: len(seeds)], means[len(seeds) :])

    @staticmethod
    def _on_grid(curves: list[Curve]) -> tuple[np.ndarray, np.ndarray]:
        return on_grid([(c.samples, c.losses) for c in curves])

    def _row(self, label: str, ratio: float) -> dict[str, Any]:
        account = self.accounts.get((label, ratio))
        row: dict[str, Any] = {"batch_size": self.plan.batch_size * ratio, "steps": getattr(account, "steps", None)}
        row |= dict.fromkeys(MEASURED, math.nan) | {"seeds_needed": math.nan, "reason": ""}
        row |= self._expected(account, ratio)
        failures = [c.failure for c in self.curves if (c.label, c.ratio) == (label, ratio) and c.failure]
        if account is None or failures:
            count = f"{len(failures)} of {len(self.plan.seeds)} runs: " if account is not None else ""
            reason = self.refused.get((label, ratio)) or "; ".join(dict.fromkeys(map(str, failures)))
            return row | {"verdict": REFUSED if account is None else FAILED, "reason": f"{count}{reason}".rstrip(".")}
        found, numbers = measured(*self.compared(label, ratio), self.plan.minimum, self.plan.confidence)
        row |= numbers
        word = self._word(found)
        if word == UNTOLD:
            row["seeds_needed"] = seeds_needed(found, self.plan.tolerance, self.plan.confidence)
        return row | {"verdict": word}

    def _word(self, found: Change) -> str:
        if found.relative_upper <= self.plan.tolerance:
            return WITHIN
        return BEYOND if found.relative_lower > self.plan.tolerance else UNTOLD

    def _expected(self, account: Rescaled | None, ratio: float) -> dict[str, float]:
        names = ("predicted", "predicted_lower", "predicted_upper")
        if self.predicted is None or account is None or account.rule != _PREDICTED:
            return dict.fromkeys(names, math.nan)
        values = (self.predicted.expected_error(ratio), *self.predicted.error_range(ratio))
        return dict(zip(names, map(float, values), strict=True))


def _foretold(diagnosis: "Diagnosis") -> str:
    """What a diagnosis predicts of the square-root rule, in a sentence."""
    low, high = diagnosis.largest_ratio_limits
    if math.isnan(low):
        return "The diagnosis predicts nothing."
    holds = f"holds up to {low:.3g}" if low > 1 else "is not known to hold at any ratio"
    fails = f" and fails from {high:.3g} on" if math.isfinite(high) else ""
    return f"Predicted, within {100 * diagnosis.tolerance:g} % of the curve: the square-root rule {holds}{fails}."


def _remedy(needed: float, seeds: tuple[int, ...]) -> str:
    if math.isfinite(needed):
        return f" with {len(seeds)} seeds; about {max(needed, len(seeds) + 1):.0f} would be needed"
    if math.isinf(needed):
        return "; more than 1000 seeds would be needed, because the change is too close to the tolerance"
    return "; give two or more seeds" if len(seeds) < 2 else ""


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
