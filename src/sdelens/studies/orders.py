"""Is each SDE a weak approximation of order 1?"""

from typing import Any

import numpy as np

import sdelens as sl
from sdelens.studies._study import Outcome, Picture, Plan, Study
from sdelens.studies._verdicts import Estimate

__all__ = ["STUDY"]

HORIZON, LR, THETA = 1.6, 0.1, 0.1


def _optimizers() -> dict[str, Any]:
    rms = sl.RMSpropW(LR, b2=0.8, weight_decay=THETA, v0="second-moment")
    adam = sl.AdamW(LR, b1=0.5, b2=0.8, weight_decay=THETA, v0="second-moment")
    return {"SGD": sl.SGD(LR, THETA), "SignSGD": sl.SignSGD(LR, THETA), "RMSpropW": rms, "AdamW": adam}


def _slope(plan: Plan, study: Any, model: str) -> Estimate:
    """Slope of log error between the largest and smallest η; the possible error of the integration is included."""
    table = study.errors()
    part = table[(table.model == model) & (table.scheme == "resolved") & (table.function == "all")]
    error, width = part.error.to_numpy(), np.log(part.lr.iloc[0] / part.lr.iloc[-1])
    if not (error > 0).all():
        return Estimate(np.nan, np.nan, np.nan)
    # The two errors share the paths' random numbers, so their standard errors are added, not their squares. The
    # possible error of the integration is not noise, and is added to the limits directly.
    noise, left = ((part[name].to_numpy() / error)[[0, -1]].sum() / width for name in ("sem", "unresolved"))
    slope = float(np.log(error[0] / error[-1]) / width)
    return Estimate(slope, slope - plan.z * noise - left, slope + plan.z * noise + left)


def run(plan: Plan) -> Outcome:
    """Run a weak-order study of every optimizer on one quadratic."""
    problem, noise = sl.Quadratic([1.0, 2.0, 5.0], start=[2.0, 1.0, -1.0]), sl.GaussianNoise(1.0)
    items, earlier, pictures = [], [], []
    options = dict(paths=plan.size["paths"], substeps=plan.size["substeps"], seed=plan.seed)
    for name, optimizer in _optimizers().items():
        models = ["sde", "malladi2022"] if name in ("RMSpropW", "AdamW") else ["sde"]
        study = sl.weak_order(problem, noise, optimizer, plan.size["lrs"], HORIZON, models, **options)
        items.append(plan.within(f"SDE, {name}", _slope(plan, study, "sde"), (0.75, 1.25)))
        if "malladi2022" in models:
            earlier.append(plan.at_most(f"earlier SDE, {name}", _slope(plan, study, "malladi2022"), 0.5))
        pictures.append(
            Picture(
                f"order-{name.lower()}",
                study.plot,
                f"{name}: relative weak error against the learning rate, with the SDE resolved (left) and at one "
                "step of η (right). Bars: 99 % intervals; faint lines: single test functions; grey lines: slopes 1 "
                "and 2.",
                f"Log-log plot of the weak errors of {name}'s SDEs against the learning rate, with lines of slope 1 "
                "and 2.",
            )
        )
    lrs = ", ".join(f"{lr:g}" for lr in plan.size["lrs"])
    settings = [
        "quadratic of curvature 1, 2, 5 from (2, 1, −1), Gaussian noise, σ = 1, θ = 0.1, ρ₁ = 5, ρ₂ = 2, V from E "
        f"g², up to t = {HORIZON}; η = {lrs}; {plan.size['paths']} coupled paths (SignSGD: transition kernels)",
        "test functions: the loss, every coordinate, its square, and a bump; error: root mean square over them and "
        "over four times",
    ]
    remarks = [
        "The earlier SDEs leave (∇f)² out of V, and where the gradient is as large as the noise, this term is not "
        "small at any learning rate. The limits include the remaining error of the integrator, which more substeps "
        "reduce, but more paths do not."
    ]
    return Outcome([*items, *earlier], settings, pictures, remarks=remarks)


STUDY = Study(
    name="weak-order",
    statement="The SDEs of SGD, SignSGD, RMSpropW and AdamW are weak approximations of order 1: their error falls in "
    "proportion to the learning rate. That of the earlier SDEs does not fall.",
    source="arXiv 2411.15958, its theorems on weak approximation; docs/weak-order.md describes the measurement.",
    criterion="Slope of log error against log η between the largest and the smallest η, with the SDE resolved: "
    "between 0.75 and 1.25 (a finite η changes the slope, by up to 0.1 in other measurements); for the earlier SDEs "
    "at most 0.5.",
    items=6,
    sizes={
        "quick": {"lrs": [0.08, 0.04, 0.02], "paths": 12_000, "substeps": 8},
        "full": {"lrs": [0.04, 0.02, 0.01, 0.005], "paths": 100_000, "substeps": None},
        "paper": {"lrs": [0.04, 0.02, 0.01, 0.005, 0.0025], "paths": 1_000_000, "substeps": None},
    },
    run=run,
)
