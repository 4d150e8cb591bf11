"""Optimizers with a second-moment accumulator where the spread over paths shows whether its noise is in the SDE."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import sdelens as sl
from sdelens.studies._draw import KEY, ROWS, draw_items, track_pictures
from sdelens.studies._study import Picture, Plan
from sdelens.studies._verdicts import Item

__all__ = ["SpreadCase", "run_case", "spread_cases", "spread_pictures", "spread_without_noise"]

LR, STEPS = 0.01, 600
RATIOS = (0.5, 1.0, 2.0)
"""Ratios |∂f|/σ of the losses with a constant gradient."""


class SpreadCase(NamedTuple):
    """A problem and an optimizer.

    Attributes:
        problem: what is minimised, under normal noise with σ = 1.
        optimizer: the optimizer.
        ratio: |∂f|/σ where that is constant, else None.
        setting: description for the report.
    """

    problem: Any
    optimizer: Any
    ratio: float | None
    setting: str


def spread_cases() -> dict[str, SpreadCase]:
    """The cases by label."""
    quadratic = sl.Quadratic(np.linspace(1.0, 5.0, 10), start=2.0)
    adam = sl.AdamW(LR, b1=0.9, b2=0.99, weight_decay=0.1)
    rms = sl.RMSpropW(LR, b2=0.99, weight_decay=0.1)
    common = f"σ = 1, η = {LR}, {STEPS} steps"
    where = "on a quadratic of curvature 1 to 5, d = 10, from x₀ = 2"
    found = {
        "AdamW, quadratic": SpreadCase(
            quadratic, adam, None, f"AdamW (θ = 0.1, β₁ = 0.9, β₂ = 0.99) {where}, {common}"
        ),
        "RMSpropW, quadratic": SpreadCase(quadratic, rms, None, f"RMSpropW (θ = 0.1, β₂ = 0.99) {where}, {common}"),
    }
    for s in RATIOS:
        slope = sl.Problem(lambda x, s=s: s * x.sum(), np.zeros(1))
        label = f"RMSprop, |∂f| = {s:g}σ"
        setting = f"RMSprop (β₂ = 0.99, from V = E g²) on a loss with the constant gradient {s:g}, {common}"
        found[label] = SpreadCase(slope, sl.RMSpropW(LR, b2=0.99), s, setting)
    return found


def run_case(plan: Plan, label: str, case: SpreadCase, models: Any) -> sl.Result:
    """Run a case with the given models, or read the result kept under its label."""
    kept = label.replace(", ", "-").replace(" = ", "-").replace("|∂f|", "slope").replace("σ", "").lower()
    return plan.compare(
        kept,
        case.problem,
        sl.GaussianNoise(1.0),
        case.optimizer,
        models,
        steps=STEPS,
        paths=plan.size["paths"],
        record=sl.Record(every=6),
    )


def spread_pictures(
    results: Mapping[str, sl.Result], means: Sequence[Item], spreads: Sequence[Item], errors: str, axis: str
) -> list[Picture]:
    """Figures of mean losses, of the items about them (with the given caption and axis), and of the spreads."""
    return [
        *track_pictures(
            results,
            means,
            losses="Mean loss over time of each optimizer and of its SDE.",
            alt="Two panels of loss curves, one per optimizer, with a curve for the optimizer and one for its SDE.",
            errors=errors,
            axis=axis,
        ),
        Picture(
            "spreads",
            lambda: draw_items(spreads, "ratio of standard deviations"),
            f"Standard deviation of the loss over paths, relative to the optimizer's. {KEY}",
            ROWS,
        ),
    ]


def spread_without_noise(ratio: float, memories: float = math.inf) -> float:
    """Standard deviation of the SDE without the noise of V over the optimizer's, for a constant gradient s = |∂f|/σ.

    x moves by −g/√V. A change δ of g² changes V by (1 − β₂)δ, which decays, so that the noise of one step moves x, at u
    memories −1/log β₂ later, by A Z + r e^{−u} Z − c(1 − e^{−u})(Z² − 1)/√2 per √V, with A = 1/(1 + s²), r = 1 − A and
    c² = (s²/2)/(1 + s²)². The variance is the mean of its square over u in (0, U); U → ∞ gives
    (1 + s²)/√(1 + s²/2).

    Args:
        ratio: s.
        memories: U, the time since the start in memories of V.
    """
    kept, c2 = 1 / (1 + ratio**2), 0.5 * ratio**2 / (1 + ratio**2) ** 2
    lost = 1 - kept
    if math.isinf(memories):
        return 1 / math.sqrt(kept**2 + c2)
    first, second = -math.expm1(-memories) / memories, -math.expm1(-2 * memories) / (2 * memories)
    return 1 / math.sqrt(kept**2 + c2 + 2 * (kept * lost - c2) * first + (lost**2 + c2) * second)
