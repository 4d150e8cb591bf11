"""Do the scaling rules keep the loss when the batch grows, and what does each omission cost?"""

import dataclasses
from typing import Any

import numpy as np

import sdelens as sl
from sdelens.results.quantities import columns
from sdelens.studies._draw import KEY, ROWS, draw_items
from sdelens.studies._study import Outcome, Picture, Plan, Study
from sdelens.studies._verdicts import Estimate

__all__ = ["STUDY"]

CURVATURE = np.array([0.5, 1.0, 2.0, 5.0])
RATIO, SIGNAL = 4.0, 0.25
"""δ, and |∂f|/σ at the start for the larger batch."""
LR = 0.002


def _variants(optimizer: Any) -> dict[str, Any]:
    full = sl.scaling.rescale(optimizer, RATIO).optimizer
    return {
        "full rule": full,
        "lr unchanged": dataclasses.replace(full, lr=optimizer.lr),
        "lr × δ": dataclasses.replace(full, lr=optimizer.lr * RATIO),
        "decay unchanged": dataclasses.replace(full, weight_decay=optimizer.weight_decay),
    }


def _asymptotic(table: Any, label: str) -> Estimate:
    row = table.loc[label]
    return Estimate(*(float(row[name]) for name in columns("asymptotic_ratio")))


def _path(table: Any, label: str) -> Estimate:
    row = table.loc[label]
    return Estimate(*(float(row[name]) for name in columns("path_error")))


def run(plan: Plan) -> Outcome:
    """Run AdamW with the full rule and with each part omitted, SGD and SignSGD with their rules."""
    problem = sl.Quadratic(CURVATURE, start=SIGNAL / np.sqrt(RATIO) / CURVATURE)
    adam = sl.AdamW(LR, b1=0.98, b2=0.998, weight_decay=0.5)
    variants = _variants(adam)
    # `verify` gives every run the next seed; the seeds here do not overlap with those of another `seed`.
    seed = (1 + len(variants)) * plan.seed
    execution = sl.Execution(progress=plan.progress)
    options = dict(steps=plan.size["steps"], paths=plan.size["paths"], seed=seed, execution=execution)
    found = sl.scaling.verify(problem, sl.GaussianNoise(1.0), adam, RATIO, variants, **options)
    table = found.agreement(plan.confidence)
    number = {label: _asymptotic(table, label) for label in table.index}
    path = _path(table, "full rule")
    items = [
        plan.at_most("AdamW, full rule: error along the path", path, 0.05, 0.01, percent=True),
        plan.within("AdamW, full rule: ratio of stationary losses", number["full rule"], (0.95, 1.05)),
        plan.at_most("AdamW, lr unchanged: ratio of stationary losses", number["lr unchanged"], 0.95, 0.5),
        plan.at_least("AdamW, lr × δ: ratio of stationary losses", number["lr × δ"], 1.05, 1.9),
        plan.at_least("AdamW, decay unchanged: ratio of stationary losses", number["decay unchanged"], 1.05, 1.15),
    ]
    pictures = [
        Picture(
            "adamw",
            found.plot,
            "Mean loss at batch × 1 and × 4 at equal numbers of samples, and the relative difference below (bands: "
            "99 %).",
            "Loss curves at equal numbers of samples: the smaller batch, the full rule and three incomplete rules; "
            "below, their differences.",
        )
    ]
    for name, optimizer in {"SGD": sl.SGD(LR), "SignSGD": sl.SignSGD(LR)}.items():
        other = sl.scaling.verify(problem, sl.GaussianNoise(1.0), optimizer, RATIO, **options)
        rows = other.agreement(plan.confidence)
        ratio = _asymptotic(rows, str(rows.index[0]))
        items.append(plan.within(f"{name}, its rule: ratio of stationary losses", ratio, (0.95, 1.05)))
    pictures.append(
        Picture(
            "ratios",
            lambda: draw_items(items[1:], "stationary loss at batch × 4 / at batch × 1"),
            f"Ratio of the stationary losses. {KEY}",
            ROWS,
        )
    )
    settings = [
        f"quadratic of curvature ½, 1, 2, 5, Gaussian noise, σ = 1, |∂f|/σ = {SIGNAL} at the start with the larger "
        f"batch; η = {LR}, β = (0.98, 0.998), θ = 0.5; δ = 4; {plan.size['steps']} steps at batch × 1, "
        f"{plan.size['paths']} paths"
    ]
    remarks = [
        "The rule applies to runs in which noise dominates. From starts where gradients dominate, the error of the "
        "path under the full rule is tens of percent (docs/scaling.md)."
    ]
    return Outcome(items, settings, pictures, remarks=remarks)


STUDY = Study(
    name="scaling-rules",
    statement="If the batch size is multiplied by δ and noise dominates, AdamW keeps its loss at equal numbers of "
    "samples with lr × √δ, (1 − β) × δ, ε ÷ √δ and decay × √δ, and does not with another lr or decay; SGD keeps its "
    "loss with lr × δ, SignSGD with lr × √δ.",
    source="arXiv 2411.15958, the scaling rules of AdamW; arXiv 2205.10287 for Adam's.",
    criterion="δ = 4, ratio of the losses over the last third: within 5 % of 1 under the full rules; below 0.95 "
    "with lr unchanged, above 1.05 with lr × δ and with decay unchanged. Error along the path under AdamW's full "
    "rule: at most 5 %.",
    items=7,
    sizes={
        "quick": {"steps": 5000, "paths": 16_384},
        "full": {"steps": 10_000, "paths": 100_000},
        "paper": {"steps": 20_000, "paths": 500_000},
    },
    run=run,
)
