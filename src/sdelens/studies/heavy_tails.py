"""What do heavy tails do to SGD and to SignSGD?"""

from typing import TYPE_CHECKING, Any

import numpy as np

import sdelens as sl
from sdelens.studies._draw import KEY, MARKS, ROWS, draw_items, panels
from sdelens.studies._measure import late_loss, quantile
from sdelens.studies._study import Outcome, Picture, Plan, Study
from sdelens.studies._verdicts import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["STUDY"]

CURVATURE = np.array([1.0, 2.0, 4.0])
LR, STEPS = 0.01, 1200
SHARE = 0.99
TAILS = {"ν = 1": 2e5, "ν = 2": 20.0, "ν = 5": 1.3, "Gaussian": 0.8}
"""Previously measured ratios of the quantiles, for computing the power."""


def _laws() -> dict[str, Any]:
    return {f"ν = {df}": sl.StudentTNoise(1.0, df) for df in (1, 2, 5)} | {"Gaussian": sl.GaussianNoise(1.0)}


def _end_loss(result: Any) -> np.ndarray:
    """Final loss of every path."""
    return np.asarray(result.dataset.law_loss.isel(moment=-1).sel(model="optimizer").values, float)


def _tail_ratio(plan: Plan, sgd: np.ndarray, sign: np.ndarray) -> Estimate:
    """Quantile of SGD's loss over that of SignSGD's; each side has half of the error rate."""
    each = 1 - (1 - plan.confidence) / 2
    above, below = quantile(sgd, SHARE, each), quantile(sign, SHARE, each)
    return Estimate(above.value / below.value, above.lower / below.upper, above.upper / below.lower)


def run(plan: Plan) -> Outcome:
    """Run both optimizers under four noise laws with the same scale."""
    problem = sl.Quadratic(CURVATURE, start=2.0)
    options = dict(steps=STEPS, paths=plan.size["paths"], record=sl.Record(every=12, times=[STEPS]))
    tracking, resting, tails, shown = [], [], [], {}
    for number, (label, noise) in enumerate(_laws().items()):
        sign = plan.compare(f"signsgd-{number}", problem, noise, sl.SignSGD(LR), **options)
        sgd = plan.compare(f"sgd-{number}", problem, noise, sl.SGD(LR), ["optimizer"], **options)
        shown[label] = (sign, sgd)
        tracking.append(plan.at_most(f"SignSGD's SDE, {label}", plan.error(sign), 0.01, 1e-3, percent=True))
        law = sl.theory.stationary(problem, noise, sl.SignSGD(LR))
        value, error = late_loss(sign)
        relative = plan.normal(value / law.excess, error / law.excess)
        resting.append(
            plan.within(f"SignSGD's stationary loss, ratio to the predicted one, {label}", relative, (0.95, 1.05))
        )
        tail = _tail_ratio(plan, _end_loss(sgd), _end_loss(sign))
        name = f"ratio of SGD's loss to SignSGD's, 99 % quantiles, {label}"
        infinite = label in ("ν = 1", "ν = 2")
        rule = plan.at_least if infinite else plan.at_most
        tails.append(rule(name, tail, 3.0, TAILS[label]))

    def draw() -> "Figure":
        figure, axes = panels(2, 2, height=2.8)
        for look, (label, pair) in zip(MARKS, shown.items(), strict=False):
            line = {key: v for key, v in look.items() if key != "marker"}
            for axis, result in zip(axes, pair, strict=True):
                data = result.dataset.sel(model="optimizer")
                axis.plot(data.time, data.loss_quantile.sel(quantile=0.95), label=label, **line)
        for axis, title in zip(axes, ("SignSGD", "SGD"), strict=True):
            axis.set_yscale("log")
            axis.set_title(title, loc="left")
            axis.set_xlabel("time  $t = k\\eta$")
        low, high = (f([a.get_ylim()[i] for a in axes]) for i, f in ((0, min), (1, max)))
        for axis in axes:
            axis.set_ylim(low, high)
        axes[0].set_ylabel("95 % quantile of the loss over paths")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        return figure

    settings = [
        "quadratic of curvature 1, 2, 4 from x₀ = 2, noise of scale 1: Student t with ν = 1 (Cauchy, no mean), 2 (no "
        f"variance), 5, and Gaussian; η = {LR}, {STEPS} steps, {plan.size['paths']} paths"
    ]
    pictures = [
        Picture(
            "quantiles",
            draw,
            "95 % quantile of the loss over paths (a mean exists for SGD only where ν > 2).",
            "Two panels, SignSGD and SGD, with the 95 % quantile of the loss over time under each of four noise laws.",
        ),
        Picture(
            "errors",
            lambda: draw_items(tracking, "relative error of the mean loss (%)"),
            f"Relative L2 error of SignSGD's SDE. {KEY}",
            ROWS,
        ),
    ]
    remarks = [
        "For ν ≤ 2 SGD's noise has no finite variance, so its mean loss is infinite at every step, whatever a "
        "finite number of paths shows. For this reason quantiles are compared. SDEs driven by the noise's "
        "covariance do not exist in this case, and the library does not run them."
    ]
    return Outcome([*tracking, *resting, *tails], settings, pictures, remarks=remarks)


STUDY = Study(
    name="heavy-tails",
    statement="Under noise without a finite variance (Student t, ν = 2) or even without a mean (ν = 1), SignSGD "
    "converges to the neighbourhood that theory predicts, and its SDE tracks it; SGD fails.",
    source="arXiv 2411.15958, SignSGD under Student t noise.",
    criterion="For ν = 1, 2, 5 and Gaussian noise: relative L2 error of SignSGD's SDE at most 1 %; SignSGD's "
    "stationary loss within 5 % of the predicted one; 99 % quantile of SGD's final loss at least 3 times SignSGD's "
    "for ν ≤ 2, at most 3 times otherwise.",
    items=12,
    sizes={"quick": {"paths": 16_384}, "full": {"paths": 100_000}, "paper": {"paths": 1_000_000}},
    run=run,
)
