"""Do the scaling rules keep the loss when the batch grows, and what does each omission cost?"""

import dataclasses
from typing import Any

import numpy as np

import sdelens as sl
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
        "lr as it was": dataclasses.replace(full, lr=optimizer.lr),
        "lr × δ": dataclasses.replace(full, lr=optimizer.lr * RATIO),
        "decay as it was": dataclasses.replace(full, weight_decay=optimizer.weight_decay),
    }


def _asymptotic(table: Any, label: str) -> Estimate:
    row = table.loc[label]
    return Estimate(*(float(row[f"asymptotic_{part}"]) for part in ("ratio", "lower", "upper")))


def _path(table: Any, label: str) -> Estimate:
    row = table.loc[label]
    return Estimate(*(float(row[f"path_{part}"]) for part in ("error", "lower", "upper")))


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
        plan.within("AdamW, full rule: loss at rest, ratio", number["full rule"], (0.95, 1.05)),
        plan.at_most("AdamW, lr as it was: loss at rest, ratio", number["lr as it was"], 0.95, 0.5),
        plan.at_least("AdamW, lr × δ: loss at rest, ratio", number["lr × δ"], 1.05, 1.9),
        plan.at_least("AdamW, decay as it was: loss at rest, ratio", number["decay as it was"], 1.05, 1.15),
    ]
    pictures = [
        Picture(
            "adamw",
            found.plot,
            "Mean loss at batch × 1 and × 4 at equal numbers of samples, and the relative difference below (bands: "
            "99 %).",
            "Loss curves at equal samples: the smaller batch, the full rule and three omissions; below, their "
            "differences.",
        )
    ]
    for name, optimizer in {"SGD": sl.SGD(LR), "SignSGD": sl.SignSGD(LR)}.items():
        other = sl.scaling.verify(problem, sl.GaussianNoise(1.0), optimizer, RATIO, **options)
        rows = other.agreement(plan.confidence)
        ratio = _asymptotic(rows, str(rows.index[0]))
        items.append(plan.within(f"{name}, its rule: loss at rest, ratio", ratio, (0.95, 1.05)))
    pictures.append(
        Picture(
            "ratios",
            lambda: draw_items(items[1:], "loss at rest, batch × 4 over batch × 1"),
            f"Ratio of the losses at rest. {KEY}",
            ROWS,
        )
    )
    settings = [
        f"quadratic of curvature ½, 1, 2, 5, Gaussian noise, σ = 1, |∂f|/σ = {SIGNAL} at the start and the larger "
        f"batch; η = {LR}, β = (0.98, 0.998), θ = 0.5; δ = 4; {plan.size['steps']} steps at batch × 1, "
        f"{plan.size['paths']} paths"
    ]
    remarks = [
        "The rule is about runs in which noise dominates. From starts where gradients dominate, the path under the "
        "full rule is off by tens of percent: docs/scaling.md."
    ]
    return Outcome(items, settings, pictures, remarks=remarks)


STUDY = Study(
    name="scaling-rules",
    statement="When the batch grows by δ and noise dominates, AdamW keeps its loss at equal numbers of samples with "
    "lr × √δ, (1 − β) × δ, ε ÷ √δ and decay × √δ, and each omission costs; SGD does with lr × δ, SignSGD with lr × "
    "√δ.",
    source="arXiv 2411.15958, the scaling rules of AdamW; arXiv 2205.10287 for Adam's.",
    criterion="δ = 4, ratio of the losses over the last third: within 5 % of 1 under the full rules; below 0.95 with "
    "lr as it was, above 1.05 with lr × δ and with decay as it was. Error along the path under AdamW's full rule: at "
    "most 5 %.",
    items=7,
    sizes={
        "quick": {"steps": 5000, "paths": 16_384},
        "full": {"steps": 10_000, "paths": 100_000},
        "paper": {"steps": 20_000, "paths": 500_000},
    },
    run=run,
)
