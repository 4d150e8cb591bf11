"""Does SignSGD go through three phases, at the speeds and times predicted by theory?"""

import math
from typing import TYPE_CHECKING

import numpy as np

import sdelens as sl
from sdelens.studies._draw import KEY, MARKS, ROWS, draw_items, panels
from sdelens.studies._measure import mean_x
from sdelens.studies._study import Outcome, Picture, Plan, Study
from sdelens.studies._verdicts import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["STUDY"]

CURVATURE = np.array([1.0, 2.0, 4.0])
START, LR, HORIZON = 4.0, 0.002, 10.0
"""|Y| at the start, learning rate, and duration."""


def _signal(x: np.ndarray) -> np.ndarray:
    """Y = ∂f/(√2 σ), σ = 1."""
    return CURVATURE * x / math.sqrt(2)


def _crossing(time: np.ndarray, signal: np.ndarray, level: float) -> float:
    """The time at which a decreasing |Y| crosses a level; NaN if it does not."""
    after = int(np.argmax(signal < level))
    if after == 0:
        return math.nan
    share = (signal[after - 1] - level) / (signal[after - 1] - signal[after])
    return float(time[after - 1] + share * (time[after] - time[after - 1]))


def _rates(plan: Plan, i: int, time: np.ndarray, x: np.ndarray, error: np.ndarray) -> dict[str, Estimate]:
    """Speeds in phases 1 and 2, decay rate over λ/σ in phase 3, and times at which phases 1 and 2 end."""
    y = np.abs(_signal(x)[:, i])
    times = {level: _crossing(time, y, level) for level in (1.5, 1.0, 0.1)}
    at = {level: float(np.interp(t, time, error[:, i])) for level, t in times.items()}
    place = {level: math.sqrt(2) * level / CURVATURE[i] for level in times}
    begin = math.sqrt(2) * START / CURVATURE[i]
    first = (begin - place[1.5]) / times[1.5]
    second = (place[1.5] - place[1.0]) / (times[1.0] - times[1.5])
    span = times[0.1] - times[1.0]
    third = math.log(10) / span / CURVATURE[i]
    return {
        "speed in phase 1": plan.normal(first, first**2 * at[1.5] / (math.erf(1.5) * (begin - place[1.5]))),
        "speed in phase 2": plan.normal(second, second * (at[1.5] + at[1.0]) / (place[1.5] - place[1.0])),
        "decay rate in phase 3": plan.normal(
            third, (at[1.0] / place[1.0] + at[0.1] / place[0.1]) / span / CURVATURE[i]
        ),
        "end of phase 1": plan.normal(times[1.5], at[1.5] / math.erf(1.5)),
        "end of phase 2": plan.normal(times[1.0], at[1.0] / math.erf(1.0)),
    }


def _picture(time: np.ndarray, x: np.ndarray) -> "Figure":
    figure, (axis,) = panels(1, 1, width=5.6, height=3.6)
    for i, value in enumerate(CURVATURE):
        look = {key: v for key, v in MARKS[i].items() if key != "marker"}
        axis.plot(time, np.abs(_signal(x)[:, i]), label=f"curvature {value:g}", **look)
        straight = START - value * time / math.sqrt(2)
        axis.plot(time, np.where(straight > 0.3, straight, np.nan), color="0.5", linewidth=0.8)
    axis.plot([], [], color="0.5", linewidth=0.8, label="sign descent, no noise")
    for level, text in ((1.5, "phase 1 above"), (1.0, "phase 3 below")):
        axis.axhline(level, color="0.3", linewidth=0.8, linestyle=(0, (1, 2)))
        axis.text(time[-1], level, text, ha="right", va="bottom", fontsize=8)
    axis.set_yscale("log")
    axis.set_ylim(0.01, 6)
    axis.set_xlabel("time  $t = k\\eta$")
    axis.set_ylabel("$|Y| = |\\partial f|/(\\sqrt{2}\\,\\sigma)$ at E x")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def run(plan: Plan) -> Outcome:
    """Run one quadratic from far away, so that each coordinate goes through all phases."""
    problem = sl.Quadratic(CURVATURE, start=math.sqrt(2) * START / CURVATURE)
    noise, optimizer, steps = sl.GaussianNoise(1.0), sl.SignSGD(LR), round(HORIZON / LR)
    options = dict(steps=steps, paths=plan.size["paths"], record=sl.Record(every=10))
    result = plan.compare("run", problem, noise, optimizer, ["optimizer"], **options)
    predicted = sl.theory.predict(problem, noise, optimizer, steps=steps, record_every=10)
    time, (x, error) = result.dataset.time.values, mean_x(result)
    theirs = predicted.dataset.x_mean.values[0]
    limits = {
        "speed in phase 1": (math.erf(1.5) - 0.005, 1.005),
        "speed in phase 2": (math.erf(1.0) - 0.005, math.erf(1.5) + 0.005),
        "decay rate in phase 3": (math.erf(1.0) / math.sqrt(2) - 0.005, math.sqrt(2 / math.pi) + 0.005),
    }
    items, ends = [], []
    for i, curvature in enumerate(CURVATURE):
        found, foretold = _rates(plan, i, time, x, error), _rates(plan, i, time, theirs, np.zeros_like(theirs))
        for name, number in found.items():
            label, expected = f"{name}, curvature {curvature:g}", foretold[name].value
            if name in limits:
                items.append(plan.within(label, number, limits[name], expected))
            else:
                relative = number.times(1 / expected)
                ends.append(plan.within(f"{label}, ratio to predicted", relative, (0.98, 1.02)))
    settings = [
        f"quadratic of curvature 1, 2, 4, Gaussian noise, σ = 1, from |Y| = {START:g} in every coordinate, η = {LR}, "
        f"{steps} steps, {plan.size['paths']} paths"
    ]
    pictures = [
        Picture(
            "signal",
            lambda: _picture(time, x),
            "Signal-to-noise ratio at the mean position: a straight line while the noise is negligible (thin lines: "
            "sign descent without noise), and exponential decay at the end.",
            "A curve of the signal-to-noise ratio over time for each of three coordinates, on a logarithmic axis.",
        ),
        Picture(
            "ends",
            lambda: draw_items(ends, "measured time / predicted time"),
            f"When phases end, relative to the prediction of the Gaussian closure. {KEY}",
            ROWS,
        ),
    ]
    return Outcome([*items, *ends], settings, pictures)


STUDY = Study(
    name="signsgd-phases",
    statement="SignSGD goes through three phases: above a signal-to-noise ratio |Y| of 3/2 it moves like sign "
    "descent without noise, then follows a short transition, and below 1 an exponential decay at a rate of 0.6 to "
    "0.8 λ/σ. The phases end when theory predicts.",
    source="arXiv 2411.15958, the phases of SignSGD; the times come from this library's Gaussian closure.",
    criterion="For E x, in every coordinate: speed between erf(3/2) and 1 in phase 1 and between erf(1) and "
    "erf(3/2) in phase 2; decay rate over λ/σ between erf(1)/√2 and √(2/π) in phase 3 (each ± 0.005 for the spread "
    "of x); the ends of phases 1 and 2 within 2 % of the predicted times.",
    items=15,
    sizes={"quick": {"paths": 4096}, "full": {"paths": 65_536}, "paper": {"paths": 1_000_000}},
    run=run,
)
