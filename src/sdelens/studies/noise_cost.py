"""What does more noise cost SGD and SignSGD, in speed and in the loss at rest?"""

from typing import TYPE_CHECKING, Any

import numpy as np

import sdelens as sl
from sdelens.studies._draw import log_axes, mark_series, panels
from sdelens.studies._measure import exponent, late_loss, mean_x
from sdelens.studies._study import Outcome, Picture, Plan, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["STUDY"]

CURVATURE = np.array([1.0, 2.0, 5.0])
LR, STEPS, EARLY = 0.01, 8000, 100
SCALES = [2.0, 4.0, 8.0]


def _rate(result: Any) -> tuple[float, float]:
    """Decay rate of E x of the first coordinate over the first `EARLY` steps, and its standard error."""
    x, error = mean_x(result)
    at = int(np.argmax(result.dataset.step.values >= EARLY))
    time = float(result.dataset.time.values[at])
    return float(np.log(x[0, 0] / x[at, 0]) / time), float(error[at, 0] / abs(x[at, 0]) / time)


def run(plan: Plan) -> Outcome:
    """Run both optimizers at three noise scales, from one start to the stationary state."""
    problem = sl.Quadratic(CURVATURE, start=2.0)
    items, losses, rates = [], {}, {}
    grown = {"SGD": (1.9, 2.1), "SignSGD": (0.9, 1.1)}
    slowed = {"SGD": (-0.1, 0.1), "SignSGD": (-1.1, -0.9)}
    for name, optimizer in {"SGD": sl.SGD(LR), "SignSGD": sl.SignSGD(LR)}.items():
        # Each run has different random numbers: in a sweep they are common, and SGD's losses would be multiples.
        runs = [
            plan.compare(
                f"{name.lower()}-{scale:g}",
                problem,
                sl.GaussianNoise(scale),
                optimizer,
                ["optimizer"],
                steps=STEPS,
                paths=plan.size["paths"],
                record=sl.Record(every=20),
                seed=len(SCALES) * plan.seed + number,
            )
            for number, scale in enumerate(SCALES)
        ]
        losses[name], rates[name] = [late_loss(r) for r in runs], [_rate(r) for r in runs]
        for i, (low, high) in enumerate(((SCALES[0], SCALES[1]), (SCALES[1], SCALES[2]))):
            growth = exponent(plan, losses[name][i + 1], losses[name][i], high / low)
            items.append(plan.within(f"{name}: stationary loss, σ {low:g} to {high:g}", growth, grown[name]))
        slowing = exponent(plan, rates[name][2], rates[name][1], SCALES[2] / SCALES[1])
        items.append(plan.within(f"{name}: speed, σ {SCALES[1]:g} to {SCALES[2]:g}", slowing, slowed[name]))

    def draw() -> "Figure":
        figure, axes = panels(2, 2, height=2.8)
        for axis, table, label in zip(
            axes, (losses, rates), ("stationary mean loss", "decay rate of E x"), strict=True
        ):
            mark_series(axis, SCALES, table)
            log_axes(axis, SCALES, "noise scale $\\sigma$", label)
        axes[0].legend()
        return figure

    settings = [
        f"quadratic of curvature 1, 2, 5 from x₀ = 2, Gaussian noise, η = {LR}, {STEPS} steps, {plan.size['paths']} "
        f"paths; stationary loss: over the last third; speed: of the first coordinate over {EARLY} steps"
    ]
    picture = Picture(
        "noise",
        draw,
        "Stationary loss (left) and decay rate of the mean position (right) against the noise scale, with 99 % "
        "intervals.",
        "Two log-log panels with a line per optimizer: stationary loss and decay rate against the noise scale.",
    )
    return Outcome(items, settings, [picture])


STUDY = Study(
    name="noise-cost",
    statement="Noise of scale σ multiplies SGD's stationary loss by σ² and does not change its speed; it multiplies "
    "SignSGD's stationary loss only by σ, but also its speed by 1/σ.",
    source="arXiv 2411.15958, SignSGD against SGD as the noise grows.",
    criterion="Exponents of σ over each doubling: for the stationary loss between 1.9 and 2.1 (SGD) and between 0.9 "
    "and 1.1 (SignSGD); for the decay rate of E x where noise dominates, between −0.1 and 0.1 (SGD) and between "
    "−1.1 and −0.9 (SignSGD).",
    items=6,
    sizes={"quick": {"paths": 16_384}, "full": {"paths": 200_000}, "paper": {"paths": 1_000_000}},
    run=run,
)
