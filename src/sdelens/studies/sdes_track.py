"""Do the SDEs of SignSGD, RMSpropW and AdamW track the optimizers on analytic losses, and earlier SDEs not?"""

import numpy as np

import sdelens as sl
from sdelens.studies._draw import track_pictures
from sdelens.studies._study import Outcome, Plan, Study
from sdelens.studies._verdicts import Item

__all__ = ["STUDY"]

TOLERANCE = 0.01
"""Largest relative L2 error of (mean loss − infimum) over the whole run that counts as tracking."""
EARLIER = {"RMSpropW, quadratic": 0.096, "AdamW, quadratic": 0.72, "RMSpropW, saddle": 0.11, "AdamW, saddle": 0.87}
EARLIER |= {"RMSpropW, Rosenbrock": 0.063, "AdamW, Rosenbrock": 0.43}
"""Previously measured errors of the earlier SDEs, for computing the power."""


def _cases() -> dict:
    """Problem, noise scale, learning rate and steps, by name."""
    return {
        "quadratic": (sl.Quadratic(np.linspace(1.0, 5.0, 10), start=2.0), 1.0, 0.01, 600),
        "saddle": (sl.EmbeddedSaddle(), 0.1, 0.005, 1000),
        "Rosenbrock": (sl.Rosenbrock(), 10.0, 0.001, 2000),
    }


def _optimizers(lr: float) -> list:
    rms = sl.RMSpropW(lr, b2=0.99, weight_decay=0.1)
    return [sl.SignSGD(lr, 0.1), rms, sl.AdamW(lr, b1=0.9, b2=0.99, weight_decay=0.1)]


def run(plan: Plan) -> Outcome:
    """Run every optimizer on every problem, with all its SDEs."""
    items: list[Item] = []
    earlier, results, settings, spreads = [], {}, [], []
    for name, (problem, scale, lr, steps) in _cases().items():
        settings.append(
            f"{name}: d = {problem.dim}, Gaussian noise of scale {scale:g}, η = {lr:g}, θ = 0.1, β₁ = 0.9, β₂ = 0.99, "
            f"{steps} steps, {plan.size['paths']} paths"
        )
        for optimizer in _optimizers(lr):
            label = f"{type(optimizer).__name__}, {name}"
            result = plan.compare(
                label.replace(", ", "-").lower(),
                problem,
                sl.GaussianNoise(scale),
                optimizer,
                steps=steps,
                paths=plan.size["paths"],
                record=sl.Record(every=steps // 100),
            )
            results[label] = result
            items += plan.tracked(f"SDE, {label}", result, whole=(TOLERANCE, 1e-3))
            spreads.append((plan.errors(result).loc["sde", "spread"], label))
            if "malladi2022" in result.models:
                number = plan.error(result, "malladi2022")
                earlier.append(plan.at_least(f"earlier SDE, {label}", number, TOLERANCE, EARLIER[label], percent=True))
    worst, where = max(spreads)
    remark = (
        "The claim is about the mean loss, not about the spread of the loss over paths: the largest ratio of the "
        f"SDE's standard deviation to the optimizer's is {worst:.2g} ({where}). These SDEs leave out the noise of V, "
        "which damps the optimizer's spread where gradients dominate."
    )
    off = {"sde": [0.0], "malladi2022": [0.0]}
    for result in results.values():
        for model, (error, floor) in result.point_errors().items():
            off[model].append(100 * max(error, floor))
    pictures = track_pictures(
        results,
        [*items, *earlier],
        title=f"The SDEs are within {max(off['sde']):.2g} % of the optimizers' mean loss, the earlier SDEs up to "
        f"{max(off['malladi2022']):.2g} % off",
        shared=True,
        losses="Mean loss over time of each optimizer, its SDE and, for RMSpropW and AdamW, the earlier SDE.",
        alt="Nine panels of loss curves, one per optimizer and loss, with a curve for the optimizer and for each of "
        "its SDEs.",
        errors="Relative L2 error of every SDE, over the whole run and over its last third (late).",
        axis="relative error of the mean loss (%)",
        logarithmic=True,
    )
    return Outcome([*items, *earlier], settings, pictures, remarks=[remark])


STUDY = Study(
    name="sdes-track",
    statement="The SDEs of SignSGD, RMSpropW and AdamW track the mean loss of their optimizers on a quadratic, an "
    "embedded saddle and Rosenbrock's valley; the earlier SDEs of RMSprop and Adam, which leave (∇f)² out of V, do "
    "not.",
    source="arXiv 2411.15958, the SDEs of SignSGD, RMSpropW and AdamW; the earlier SDEs are those of arXiv "
    "2205.10287, with the same decoupled decay.",
    criterion="Relative L2 error of the mean loss above its infimum, with Monte-Carlo noise removed: for every SDE "
    "at most 1 % over the whole run and at most 5 % over its last third; for every earlier SDE at least 1 % over "
    "the whole run.",
    items=24,
    sizes={"quick": {"paths": 8192}, "full": {"paths": 100_000}, "paper": {"paths": 1_000_000}},
    run=run,
)
