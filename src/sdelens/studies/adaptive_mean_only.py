"""Do the SDEs of RMSprop and Adam without the noise of V have the mean of the loss, but not its spread?"""

import math

import numpy as np

from sdelens.results.tracking import late_window
from sdelens.studies._spread_cases import run_case, spread_cases, spread_pictures, spread_without_noise
from sdelens.studies._study import Outcome, Plan, Study
from sdelens.studies._verdicts import Item

__all__ = ["STUDY"]

MEASURED = {"AdamW, quadratic": 2.01, "RMSpropW, quadratic": 1.19}
"""Previously measured spreads over the first third, for computing the power."""


def run(plan: Plan) -> Outcome:
    """Compare every optimizer with its SDE."""
    means: list[Item] = []
    spreads: list[Item] = []
    results, settings = {}, []
    for label, case in spread_cases().items():
        result = results[label] = run_case(plan, label, case, ["optimizer", "sde"])
        settings.append(f"{case.setting}, {plan.size['paths']} paths")
        means.append(plan.at_most(f"mean, {label}", plan.error(result), 0.01, 1e-3, percent=True))
        if case.ratio is None:
            early = plan.error(result, column="spread_early")
            spreads.append(plan.at_least(f"spread, first third, {label}", early, 1.1, MEASURED[label]))
        else:
            steps = result.dataset.step.values
            memories = -math.log(case.optimizer.b2) * steps[late_window(steps)]
            expected = float(np.mean([spread_without_noise(case.ratio, u) for u in memories]))
            late = plan.error(result, column="spread_late")
            bounds = (0.95 * expected, 1.05 * expected)
            spreads.append(plan.within(f"spread, last third, {label}", late, bounds))
    shown = {label: results[label] for label in MEASURED}
    pictures = spread_pictures(
        shown,
        means[:2],
        spreads,
        "Relative L2 error of the SDE's mean loss over the whole run.",
        "relative error of the mean loss (%)",
    )
    return Outcome([*means, *spreads], settings, pictures)


STUDY = Study(
    name="adaptive-mean-only",
    statement="The SDEs of RMSprop(W) and Adam(W) without noise in V have the mean loss of their optimizers, but not "
    "its standard deviation over paths: where |∂f|/σ = s is constant and memories are short, that is too large by the "
    "factor (1 + s²)/√(1 + s²/2) at every learning rate.",
    source="Derived here, of the SDEs of arXiv 2411.15958: Var X is O(η), and the noise of V, which they leave out, "
    "changes it at the same order.",
    criterion="Error of the mean loss at most 1 % in five cases; on the quadratics, a standard deviation over the "
    "first third at least 1.1 times the optimizer's; for a constant gradient, one over the last third within 5 % of "
    "the formula for s = 0.5, 1 and 2, which takes the length of the memory into account.",
    items=10,
    sizes={"quick": {"paths": 32_768}, "full": {"paths": 200_000}, "paper": {"paths": 1_000_000}},
    run=run,
)
