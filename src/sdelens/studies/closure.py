"""Does the Gaussian closure predict the whole mean-loss curve without a simulation?"""

import numpy as np

import sdelens as sl
from sdelens.studies._draw import track_pictures
from sdelens.studies._study import Outcome, Plan, Study
from sdelens.studies._verdicts import Item

__all__ = ["STUDY"]

LR, THETA, STEPS = 0.01, 0.1, 600


def _cases() -> dict:
    normal = sl.GaussianNoise(1.0)
    return {
        "SGD": (normal, sl.SGD(LR, THETA)),
        "SignSGD": (normal, sl.SignSGD(LR, THETA)),
        "SignSGD, t noise (ν = 1)": (sl.StudentTNoise(1.0, 1), sl.SignSGD(LR, THETA)),
        "SignSGD, t noise (ν = 2)": (sl.StudentTNoise(1.0, 2), sl.SignSGD(LR, THETA)),
        "RMSpropW": (normal, sl.RMSpropW(LR, b2=0.99, weight_decay=THETA)),
        "AdamW": (normal, sl.AdamW(LR, b1=0.9, b2=0.99, weight_decay=THETA)),
    }


def run(plan: Plan) -> Outcome:
    """Simulate each optimizer and compare it with its prediction."""
    items: list[Item] = []
    problem, results = sl.Quadratic(np.linspace(1.0, 5.0, 10), start=2.0), {}
    options = dict(steps=STEPS, paths=plan.size["paths"], record=sl.Record(every=5))
    for number, (label, (noise, optimizer)) in enumerate(_cases().items()):
        simulated = plan.compare(f"run-{number}", problem, noise, optimizer, ["optimizer"], **options)
        result = simulated.merge(sl.theory.predict(problem, noise, optimizer, steps=STEPS, record_every=5))
        results[label] = result
        items += plan.tracked(label, result, "prediction", whole=(0.01, 3e-4), late=(0.05, 5e-3))
    settings = [
        f"quadratic of curvature 1 to 5, d = 10, from x₀ = 2, σ = 1, η = {LR}, θ = {THETA}, β₁ = 0.9, β₂ = 0.99, "
        f"{STEPS} steps, {plan.size['paths']} paths"
    ]
    pictures = track_pictures(
        results,
        items,
        losses="Mean loss of the optimizers (black) and its prediction from mean and covariance alone (dashed).",
        alt="Six panels of loss curves, one per optimizer and noise, each with a simulation and a prediction.",
        errors="Relative L2 error of each prediction, over the whole run and over its last third (late).",
        axis="relative error of the prediction (%)",
    )
    return Outcome(items, settings, pictures)


STUDY = Study(
    name="closure",
    statement="Mean and covariance of the optimizer's state, propagated under a normal law (a Gaussian closure), "
    "predict the whole mean-loss curve on a quadratic without a simulation, including all phases and heavy tails.",
    source="This library (docs/theory.md).",
    criterion="Relative L2 error of the predicted mean-loss curve against simulated paths of the optimizer itself, "
    "with Monte-Carlo noise removed: at most 1 % over the whole run and at most 5 % over its last third.",
    items=12,
    sizes={"quick": {"paths": 12_288}, "full": {"paths": 100_000}, "paper": {"paths": 1_000_000}},
    run=run,
)
