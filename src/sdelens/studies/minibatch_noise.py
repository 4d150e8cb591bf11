"""Do the SDEs track under the noise of real mini-batches?"""

from typing import Any

import sdelens as sl
from sdelens.studies._draw import track_pictures
from sdelens.studies._study import Outcome, Plan, Study

__all__ = ["STUDY"]

BATCH = 32


def _optimizers() -> dict[str, Any]:
    return {
        "SGD": sl.SGD(0.05),
        "SignSGD": sl.SignSGD(1e-3),
        "RMSprop": sl.RMSpropW(1e-3, b2=0.99),
        "Adam": sl.AdamW(1e-3, b1=0.9, b2=0.99),
    }


def run(plan: Plan) -> Outcome:
    """Run every optimizer on real mini-batches; SGD also with independent noise of the same variances."""
    size, items, results = plan.size, [], {}
    problem = sl.network("mlp", "digits", **size["network"])
    options = dict(steps=size["steps"], paths=size["paths"], record=sl.Record(every=size["steps"] // 15))
    for name, optimizer in _optimizers().items():
        noise = sl.MinibatchNoise(BATCH, refresh=1 if name == "SignSGD" else 10)
        result = plan.compare(name.lower(), problem, noise, optimizer, ["optimizer", "sde"], **options)
        results[name] = result
        items.append(plan.at_most(f"{name}: error of the mean loss", plan.error(result), 0.02, 3e-3, percent=True))
    spread = plan.error(results["SGD"], column="spread")
    items.append(plan.within("SGD: spread, ratio of SDE to optimizer", spread, (0.75, 1.33), 1.0))
    diagonal = sl.MinibatchNoise(BATCH, covariance="diagonal", refresh=10)
    other = plan.compare("sgd-diagonal", problem, diagonal, _optimizers()["SGD"], ["optimizer", "sde"], **options)
    results["SGD, independent noise"] = other
    number = plan.error(other, column="spread")
    items.append(plan.at_most("SGD, independent noise: spread, ratio of SDE to optimizer", number, 0.8, 0.5))
    given = ", ".join(f"{key} {value}" for key, value in size["network"].items())
    settings = [
        f"MLP on digits ({given}; d = {problem.dim}), batches of {BATCH} with replacement, {size['steps']} steps, "
        f"{size['paths']} paths; SGD η = 0.05, others η = 1e-3, β₁ = 0.9, β₂ = 0.99"
    ]
    pictures = track_pictures(
        results,
        items[:4],
        losses="Mean loss on all examples of each optimizer and its SDE.",
        alt="A panel of loss curves per optimizer, each with the optimizer and its SDE.",
        errors="Relative L2 error of every SDE.",
        axis="relative error of the mean loss (%)",
    )
    return Outcome(items, settings, pictures)


STUDY = Study(
    name="minibatch-noise",
    statement="With real mini-batches, not only with injected noise, the SDEs of SGD, SignSGD, RMSprop and Adam "
    "track the mean loss. With the exact covariance they also reproduce the spread over paths, which is about half "
    "as large with independent noise of the same variances.",
    source="This library (docs/minibatch.md).",
    criterion="Relative L2 error of the mean loss at most 2 % for every SDE; ratio of the SDE's standard deviation "
    "over paths to the optimizer's, for SGD: between 0.75 and 1.33 with the exact covariance, below 0.8 with "
    "independent noise.",
    items=6,
    sizes={
        "quick": {"network": {"width": 32, "depth": 1}, "steps": 200, "paths": 192},
        "full": {"network": {"width": 32, "depth": 1}, "steps": 300, "paths": 512},
        "paper": {"network": {"width": 32, "depth": 1}, "steps": 2000, "paths": 4096},
    },
    run=run,
)
