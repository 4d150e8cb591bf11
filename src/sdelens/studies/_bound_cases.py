"""Random problems for testing bounds of the mean loss, all of one shape so that they compile only once."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

import sdelens as sl
from sdelens.core.limits import normal_point
from sdelens.studies._draw import KEY, ROWS, draw_items, panels, scale_y
from sdelens.studies._measure import largest_ratio
from sdelens.studies._study import Outcome, Picture, Plan

__all__ = ["MARGIN", "run_bounds"]

MARGIN = 1.02
"""Largest ratio of loss to bound that counts as bounded: a bound that is reached exactly could not be resolved."""
DIM, STEPS, RECORDS = 4, 1000, 20


class Case(NamedTuple):
    problem: Any
    noise: Any
    optimizer: Any
    late: bool
    phase: Any


def _cases(rng: np.random.Generator, name: str, isotropic: bool) -> Case:
    """A random problem for one bound; learning rates fit the horizon of the bound into `STEPS` steps."""
    values, sigma = np.exp(rng.uniform(np.log(0.3), np.log(4), DIM)), rng.uniform(0.3, 2, DIM)
    if isotropic:
        values, sigma = np.full(DIM, values[0]), np.full(DIM, sigma[0])
    mu, most = values.min(), sigma.max()

    def at(low: float, high: float) -> np.ndarray:
        """A random start at which every |Y| lies between two values."""
        return math.sqrt(2) * sigma * rng.uniform(low, high, DIM) * rng.choice([-1, 1], DIM) / values

    def problem(start: np.ndarray) -> Any:
        return sl.Quadratic(values, start=start)

    normal, theta = sl.GaussianNoise(sigma), float(rng.choice([0.0, 0.3, 1.0]))
    rest, short = 6 * most / mu / STEPS, 0.3 * math.sqrt(2) * sigma.min() / values.max() / STEPS
    if name == "SGD":
        return Case(problem(rng.uniform(-2, 2, DIM)), normal, sl.SGD(4 / mu / STEPS), False, None)
    if name == "SignSGD, any start":
        return Case(problem(at(0, 3)), normal, sl.SignSGD(rest), False, None)
    if name == "SignSGD, any start, Cauchy noise":
        return Case(problem(at(0, 3)), sl.StudentTNoise(sigma, 1), sl.SignSGD(rest), False, None)
    if name.startswith("SignSGD, phase"):
        phase = int(name[-1])
        start = at(*{1: (2.5, 5), 2: (1.2, 1.5), 3: (0, 0.99)}[phase])
        return Case(problem(start), normal, sl.SignSGD({1: 3 * short, 2: short, 3: rest}[phase]), False, phase)
    slow = 5 / (mu / most + theta) / STEPS
    if name == "AdamW, t → ∞":
        adam = sl.AdamW(slow, b1=0.9, b2=0.999, weight_decay=theta, v0="second-moment")
        return Case(problem(at(0, 0.05)), normal, adam, True, None)
    return Case(problem(at(0, 0.05)), normal, sl.RMSpropW(slow, b2=0.999, weight_decay=theta), False, None)


def _curves(plan: Plan, name: str, form: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Time, mean, standard error and bound of the excess loss, where the bound is finite, for every problem."""
    for number in range(plan.size["problems"]):
        rng = np.random.default_rng(number)  # the problems do not depend on the seed, which is only that of the paths
        case = _cases(rng, name, isotropic=number % 2 == 0 or (form == "paper" and name[0] in "AR"))
        key = "".join(c if c.isalnum() else "-" for c in name.lower())
        result = plan.compare(
            f"{key}-{number}",
            case.problem,
            case.noise,
            case.optimizer,
            ["optimizer"],
            steps=STEPS,
            paths=plan.size["paths"],
            record=sl.Record(every=STEPS // RECORDS),
        )
        data = result.dataset.isel(model=0)
        time = data.time.values
        found = sl.theory.loss_bound(case.problem, case.noise, case.optimizer, time, form=form, phase=case.phase)
        bound = np.full(time.shape, found.asymptote) if case.late else found.loss
        used = np.isfinite(bound) & (time > (0.7 * time[-1] if case.late else 0))
        if used.any():
            yield time[used], data.loss_mean.values[used], data.loss_sem.values[used], bound[used]


def run_bounds(plan: Plan, names: list[str], form: str, expected: Mapping[str, float]) -> Outcome:
    """Largest ratio of mean loss to bound over all problems, for every bound; the expected ratio is 1 if not given."""
    items, shown = [], {}
    for name in names:
        curves = list(_curves(plan, name, form))
        items.append(plan.at_most(name, largest_ratio(plan, [c[1:] for c in curves]), MARGIN, expected.get(name, 1.0)))
        shown[name] = max(curves, key=lambda c: float(np.max(c[1] / c[3])))

    def draw() -> Any:
        figure, axes = panels(len(names), 3)
        for axis, (name, (time, mean, error, bound)) in zip(axes, shown.items(), strict=True):
            half = normal_point() * error
            axis.plot(time, mean, color="#000000", linewidth=2.4, alpha=0.75, label="mean loss (band: 99 %)")
            axis.fill_between(time, mean - half, mean + half, color="0.8", linewidth=0)
            axis.plot(time, bound, color="#CC79A7", linestyle=(0, (5, 2)), label="bound")
            axis.set_title(name, loc="left")
            axis.set_xlabel("time  $t = k\\eta$")
            axis.set_ylabel("mean loss $-$ infimum")
            scale_y(axis, [*mean, *bound])
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        return figure

    settings = [
        f"{plan.size['problems']} random quadratics for each bound, d = {DIM}, curvature 0.3 to 4, σ 0.3 to 2, every "
        f"second one isotropic, {plan.size['paths']} paths, {STEPS} steps, {RECORDS} records"
    ]
    pictures = [
        Picture(
            "curves",
            draw,
            "Mean loss and bound for the problem with the largest ratio of mean loss to bound.",
            "A panel per bound with the mean loss and the bound over time.",
        ),
        Picture(
            "ratios",
            lambda: draw_items(items, "largest mean loss / bound"),
            f"Largest ratio of mean loss to bound. {KEY}",
            ROWS,
        ),
    ]
    return Outcome(items, settings, pictures)
