"""Does an SDE whose coefficients come from the optimizer's own update track any optimizer?"""

from collections.abc import Callable
from typing import Any

import sdelens as sl
from sdelens.studies._draw import track_pictures
from sdelens.studies._study import Outcome, Plan, Study
from sdelens.studies._verdicts import Item

__all__ = ["STUDY"]

STEPS = 200


def _optimizers() -> dict[str, tuple[float, Callable[[float], Any]]]:
    import optax

    return {
        "momentum": (0.02, lambda lr: optax.sgd(lr, momentum=0.9)),
        "clipped momentum": (0.02, lambda lr: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(lr, momentum=0.9))),
        "Lion": (0.01, optax.lion),
        "Adam": (0.01, lambda lr: optax.adam(lr, b2=0.99)),
        "Adagrad": (0.1, optax.adagrad),
        "Yogi": (0.02, optax.yogi),
    }


def run(plan: Plan) -> Outcome:
    """Compare optax optimizers that have no SDE in closed form with their empirical SDEs."""
    items: list[Item] = []
    problem, results = sl.Quadratic([0.5, 1.0, 2.0, 5.0], start=1.0), {}
    noise = sl.GaussianNoise([1.0, 0.5, 1.0, 2.0])
    models = {"optimizer": "optimizer", "empirical": sl.Empirical(samples=plan.size["samples"])}
    for name, (lr, make) in _optimizers().items():
        optimizer = sl.FromOptax(make, lr=lr, name=name)
        result = plan.compare(
            name.replace(" ", "-").lower(),
            problem,
            noise,
            optimizer,
            models,
            steps=STEPS,
            paths=plan.size["paths"],
            record=sl.Record(every=4),
        )
        results[name] = result
        items += plan.tracked(name, result, "empirical")
    settings = [
        f"quadratic of curvature ½, 1, 2, 5 from x₀ = 1, Gaussian noise of scale 1, ½, 1, 2; {STEPS} steps, "
        f"{plan.size['paths']} paths, K = {plan.size['samples']} updates per step of the SDE",
        "learning rates: " + ", ".join(f"{name} {lr:g}" for name, (lr, _) in _optimizers().items()),
    ]
    pictures = track_pictures(
        results,
        items,
        losses="Mean loss of optax optimizers and of the SDEs computed from their updates.",
        alt="Six panels of loss curves, one per optimizer, each with the optimizer and the SDE computed from its "
        "updates.",
        errors="Relative L2 error of every SDE, over the whole run and over its last third (late).",
        axis="relative error of the mean loss (%)",
    )
    return Outcome(items, settings, pictures)


STUDY = Study(
    name="any-optimizer",
    statement="An SDE whose coefficients are estimated from sampled updates of the optimizer tracks momentum, "
    "clipping, Lion, Adam, Adagrad and Yogi, without a formula derived for any of them.",
    source="This library (docs/any-optimizer.md).",
    criterion="Relative L2 error of the mean loss above its infimum, with Monte-Carlo noise removed: at most 1 % "
    "over the whole run and 5 % over its last third.",
    items=12,
    sizes={
        "quick": {"paths": 24_576, "samples": 8},
        "full": {"paths": 100_000, "samples": 8},
        "paper": {"paths": 1_000_000, "samples": 8},
    },
    run=run,
)
