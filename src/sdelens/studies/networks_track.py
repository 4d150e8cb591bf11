"""Do the SDEs track on networks?"""

from typing import Any

import sdelens as sl
from sdelens.studies._draw import track_pictures
from sdelens.studies._study import Outcome, Plan, Study

__all__ = ["STUDY"]

TOLERANCE = 0.05
"""Tolerance relative to the decrease of the loss: relative to the loss, errors are small if it hardly changes."""
_SMALL: dict[str, dict[str, Any]] = {
    "mlp": dict(dataset="breast-cancer", width=8, depth=2),
    "cnn": dict(subset=64, channels=2, dense=8),
    "resnet": dict(subset=64, channels=2, dense=8),
    "vit": dict(subset=64, width=8, depth=1, heads=2, mlp=16),
    "transformer": dict(subset=64, width=8, depth=1, heads=2, mlp=16, context=16),
}
_MIDDLE: dict[str, dict[str, Any]] = {
    "mlp": dict(dataset="breast-cancer"),
    "cnn": dict(subset=256, channels=8, dense=32),
    "resnet": dict(subset=256, channels=4, dense=16),
    "vit": dict(subset=256, width=16, depth=2, heads=2, mlp=32),
    "transformer": dict(),
}
_LARGE: dict[str, dict[str, Any]] = {name: dict() for name in ("mlp", "cnn", "resnet", "vit", "transformer")}
_NAMES = {"mlp": "MLP", "cnn": "CNN", "resnet": "ResNet", "vit": "ViT", "transformer": "Transformer"}


def _optimizers() -> dict[str, tuple[Any, float]]:
    return {
        "SignSGD": (sl.SignSGD(1e-3), 0.02),
        "RMSpropW": (sl.RMSpropW(1e-3, b2=0.99, weight_decay=0.01), 0.01),
        "AdamW": (sl.AdamW(1e-3, b1=0.9, b2=0.99, weight_decay=0.01), 0.01),
    }


def run(plan: Plan) -> Outcome:
    """Run every optimizer on every network with injected noise."""
    size, items, earlier, results, settings = plan.size, [], [], {}, []
    for kind, details in size["networks"].items():
        problem = sl.network(kind, **details)
        given = ", ".join(f"{key} {value}" for key, value in details.items()) or "default size and data"
        settings.append(f"{_NAMES[kind]}: {given}; d = {problem.dim}")
        for name, (optimizer, scale) in _optimizers().items():
            if name not in size["optimizers"]:
                continue
            label = f"{name}, {_NAMES[kind]}"
            result = plan.compare(
                f"{kind}-{name.lower()}",
                problem,
                sl.GaussianNoise(scale),
                optimizer,
                steps=size["steps"],
                paths=size["paths"],
                record=sl.Record(every=size["steps"] // 20),
            )
            results[label] = result
            items.append(plan.at_most(f"SDE, {label}", plan.error_of_fall(result), TOLERANCE, 3e-3, percent=True))
            if "malladi2022" in result.models:
                number = plan.error_of_fall(result, "malladi2022")
                earlier.append(plan.at_least(f"earlier SDE, {label}", number, TOLERANCE, 0.15, percent=True))
    settings.append(
        f"{size['steps']} steps, {size['paths']} paths, η = 1e-3, β₁ = 0.9, β₂ = 0.99, θ = 0.01, Gaussian noise of "
        "scale 0.02 (SignSGD) and 0.01 on the gradient of all examples"
    )
    pictures = track_pictures(
        results,
        [*items, *earlier],
        losses="Mean loss over time of each optimizer, its SDE and the earlier SDE.",
        alt="A panel of loss curves per network and optimizer, with a curve for the optimizer and for each of its "
        "SDEs.",
        errors="L2 error of every SDE, relative to the decrease of the optimizer's loss.",
        axis="error of the mean loss (% of its decrease)",
        columns=len(size["optimizers"]),
        logarithmic=True,
        normal=True,
    )
    return Outcome([*items, *earlier], settings, pictures)


STUDY = Study(
    name="networks-track",
    statement="The SDEs of SignSGD, RMSpropW and AdamW track the mean loss of their optimizers on an MLP, a CNN, a "
    "ResNet and a Transformer; the earlier SDEs do not.",
    source="arXiv 2411.15958, its experiments; widths, data and noise are this library's.",
    criterion="L2 error of the mean loss over the whole run, with Monte-Carlo noise removed, relative to the L2 "
    "norm of the decrease of the optimizer's loss from its start: at most 5 % for every SDE, at least 5 % for every "
    "earlier SDE.",
    items=25,
    sizes={
        "quick": {"networks": _SMALL, "optimizers": ["SignSGD", "RMSpropW", "AdamW"], "steps": 200, "paths": 32},
        "full": {"networks": _MIDDLE, "optimizers": ["SignSGD", "RMSpropW", "AdamW"], "steps": 300, "paths": 128},
        "paper": {"networks": _LARGE, "optimizers": ["SignSGD", "RMSpropW", "AdamW"], "steps": 2000, "paths": 500},
    },
    run=run,
)
