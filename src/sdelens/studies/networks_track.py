"""Do the SDEs track on networks?"""

from typing import Any

import sdelens as sl
from sdelens.studies._draw import draw_items, draw_losses
from sdelens.studies._study import Outcome, Picture, Plan, Study

__all__ = ["STUDY"]

TOLERANCE = 0.02
_SMALL: dict[str, dict[str, Any]] = {
    "mlp": dict(dataset="breast-cancer", width=8, depth=2),
    "cnn": dict(subset=64, channels=2, dense=8),
    "resnet": dict(subset=64, channels=2, dense=8),
    "vit": dict(subset=64, width=8, depth=1, heads=2, mlp=16),
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
    """Every optimizer on every network under injected noise."""
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
                record_every=size["steps"] // 20,
            )
            results[label] = result
            items.append(plan.at_most(f"SDE, {label}", plan.error(result), TOLERANCE, 1e-3, percent=True))
            if "malladi2022" in result.models:
                number = plan.error(result, "malladi2022")
                earlier.append(plan.at_least(f"earlier SDE, {label}", number, TOLERANCE, 0.08, percent=True))
    settings.append(
        f"{size['steps']} steps, {size['paths']} paths, η = 1e-3, β₁ = 0.9, β₂ = 0.99, θ = 0.01, Gaussian noise of "
        "scale "
        "0.02 (SignSGD) and 0.01 on the gradient of all examples"
    )
    pictures = [
        Picture(
            "losses",
            lambda: draw_losses(results, columns=len(size["optimizers"])),
            "Mean loss over time of each optimizer, its SDE and the earlier SDE. The grey band is the middle 90 % of "
            "the "
            "optimizer's paths.",
            "A panel of loss curves per network and optimizer: those of optimizer and SDE lie on one another.",
        ),
        Picture(
            "errors",
            lambda: draw_items([*items, *earlier], "relative error of the mean loss (%)", logarithmic=True),
            "Relative L2 error of every SDE (dots) with its limits (lines); grey: where the claim says it must lie.",
            "Errors of the SDEs lie left of 2 %, those of the earlier SDEs right of it; the numbers are in the table.",
        ),
    ]
    remarks = [] if len(size["optimizers"]) == 3 else ["This preset leaves RMSpropW and the character model out."]
    return Outcome([*items, *earlier], settings, pictures, remarks=remarks)


STUDY = Study(
    name="networks-track",
    statement="The SDEs of SignSGD, RMSpropW and AdamW track the mean loss of their optimizers on an MLP, a CNN, a "
    "ResNet "
    "and a Transformer; the earlier SDEs do not.",
    source="arXiv 2411.15958, its experiments; widths, data and noise are this library's.",
    criterion="Relative L2 error of the mean loss above its smallest value over the whole run, Monte-Carlo noise "
    "removed: "
    "at most 2 % for every SDE, at least 2 % for every earlier SDE.",
    items=25,
    sizes={
        "quick": {"networks": _SMALL, "optimizers": ["SignSGD", "AdamW"], "steps": 100, "paths": 32},
        "full": {"networks": _MIDDLE, "optimizers": ["SignSGD", "RMSpropW", "AdamW"], "steps": 300, "paths": 128},
        "paper": {"networks": _LARGE, "optimizers": ["SignSGD", "RMSpropW", "AdamW"], "steps": 2000, "paths": 500},
    },
    run=run,
)
