"""Optimal hyperparameters, of one batch size or of several, and what is printed of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sdelens.results.printable import Parts, Printable, Remarks, Table

__all__ = ["Optimum", "OptimumByBatch"]


@dataclass(frozen=True, repr=False)
class Optimum(Printable):
    """Optimal hyperparameters of an optimizer.

    Attributes:
        optimizer: the specification with them.
        values: the numbers by name; those of the schedule are the values of its knots.
        before: their values before.
        loss: predicted mean loss after `steps` steps with the optimal values.
        loss_before: the same with the values before.
        infimum: infimum of the loss.
        steps: optimizer steps.
        target: the loss whose time was minimised; None if the final loss was.
        steps_to: steps to reach it, None without a target.
        steps_to_before: the same with the values before.
        changes: by number, the factors of the excess loss, or of the steps to the target, if it is halved and doubled
            (b1 and b2: if 1 − b is).
        remarks: values at a bound, numbers that do not matter, and what else to know.
    """

    optimizer: Any
    values: Mapping[str, Any]
    before: Mapping[str, Any]
    loss: float
    loss_before: float
    infimum: float
    steps: int
    target: float | None
    steps_to: float | None
    steps_to_before: float | None
    changes: Mapping[str, tuple[float, float]]
    remarks: list[str] = field(default_factory=list)

    def _parts(self) -> Parts:
        name = type(self.optimizer).__name__
        what = (
            f"the loss after {self.steps} steps" if self.target is None else f"the steps to a loss of {self.target:g}"
        )
        rows = [
            [
                f"1 - {n}" if n in ("b1", "b2") else n,
                *(_shown(n, v) for v in (self.before[n], self.values[n])),
                *_effect(c),
            ]
            for n, c in ((n, self.changes.get(n)) for n in self.values)
        ]
        said = f"Loss after {self.steps} steps: {self.loss:.5g}, before {self.loss_before:.5g}"
        said += f", infimum {self.infimum:.5g}."
        parts: list[Any] = [f"{name}: values that minimise {what}"]
        parts += [Table(["", "before", "optimal", "if halved", "if doubled"], rows), said]
        if self.target is not None:
            parts.append(f"Steps to {self.target:g}: {self.steps_to:.5g}, before {self.steps_to_before:.5g}.")
        return [*parts, Remarks(self.remarks)] if self.remarks else parts


@dataclass(frozen=True, repr=False)
class OptimumByBatch(Printable):
    """Optimal hyperparameters at several batch sizes.

    Attributes:
        ratios: batch sizes relative to that of the given noise.
        optima: the optimum at each.
        exponents: slope of log lr in log B between neighbouring batch sizes: 1 is the linear, ½ the square-root rule;
            empty if the learning rate is fixed.
        critical_ratio: B_c of the least-squares fit of steps = S(1 + B_c/B), relative to the given batch size; None
            without a target.
    """

    ratios: list[float]
    optima: list[Optimum]
    exponents: list[float]
    critical_ratio: float | None

    def _parts(self) -> Parts:
        names = list(self.optima[0].values)
        target = self.optima[0].target
        last = "loss" if target is None else "steps"
        rows = []
        for i, (ratio, best) in enumerate(zip(self.ratios, self.optima, strict=True)):
            slope = [f"{self.exponents[i - 1]:.2f}" if i else ""] if self.exponents else []
            value = best.loss if target is None else best.steps_to
            rows.append([f"{ratio:g}", *(_shown(n, best.values[n]) for n in names), *slope, f"{value:.5g}"])
        head = ["batch", *(f"1 - {n}" if n in ("b1", "b2") else n for n in names)]
        head += [*(["exponent of lr"] if self.exponents else []), last]
        parts: list[Any] = [f"{type(self.optima[0].optimizer).__name__} at several batch sizes", Table(head, rows)]
        if self.critical_ratio is not None:
            parts.append(
                f"The steps are those of S(1 + B_c/B) with B_c = {self.critical_ratio:.3g} times the given batch size."
            )
        remarks = sorted({r for best in self.optima for r in best.remarks})
        return [*parts, Remarks(remarks)] if remarks else parts


def _shown(name: str, value: Any) -> str:
    if name == "schedule":
        return " ".join(f"{v:.2g}" for v in np.asarray(value))
    return f"{1 - value if name in ('b1', 'b2') else value:.4g}"


def _effect(change: tuple[float, float] | None) -> list[str]:
    return ["", ""] if change is None else [f"× {c:.4g}" if c < 1e6 else "diverges" for c in change]
