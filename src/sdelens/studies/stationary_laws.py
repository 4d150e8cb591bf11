"""Do the stationary laws agree with theory?"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import sdelens as sl
from sdelens.studies._animation import animate_cloud
from sdelens.studies._draw import KEY, ROWS, add_ellipse, draw_items, panels
from sdelens.studies._measure import resting
from sdelens.studies._study import Animation, Outcome, Picture, Plan, Study
from sdelens.studies._verdicts import Item

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["STUDY"]

LR, THETA, STEPS = 0.01, 0.3, 1800
ANGLE = math.pi / 6
FRAMES = 60


def _problem(start: Any = 0.0) -> Any:
    """Curvature 1 and 4 along axes turned by 30°."""
    basis = np.array([[math.cos(ANGLE), -math.sin(ANGLE)], [math.sin(ANGLE), math.cos(ANGLE)]])
    return sl.Quadratic((basis * np.array([1.0, 4.0])) @ basis.T, start=np.broadcast_to(start, 2))


def _optimizers() -> dict[str, Any]:
    return {
        "SGD": sl.SGD(LR, THETA),
        "SignSGD": sl.SignSGD(LR, THETA),
        "RMSpropW": sl.RMSpropW(LR, b2=0.999, weight_decay=THETA),
        "AdamW": sl.AdamW(LR, b1=0.9, b2=0.999, weight_decay=THETA, v0="second-moment"),
    }


def run(plan: Plan) -> Outcome:
    """Run every optimizer to the stationary state on a rotated quadratic, with an animation of SignSGD."""
    problem, noise, laws, clouds = _problem(), sl.GaussianNoise(1.0), {}, {}
    ours: list[Item] = []
    papers: list[Item] = []
    for name, optimizer in _optimizers().items():
        paths = plan.size["paths"]
        result = plan.compare(
            name.lower(),
            problem,
            noise,
            optimizer,
            ["optimizer"],
            steps=STEPS,
            paths=paths,
            record=sl.Record(every=100, keep_paths=paths),
        )
        clouds[name] = result.dataset.path_x.isel(model=0, step=-1).values
        for form, items, tolerance in (("algorithm", ours, 0.05), ("paper", papers, 0.10)):
            law = sl.theory.stationary(problem, noise, optimizer, form=form)
            laws[name, form] = law
            values, axes = np.linalg.eigh(law.covariance)
            for j, which in enumerate(("short", "long")):
                variances = resting(result, lambda x, a=axes[:, j]: (x @ a) ** 2)  # type: ignore[misc]
                number = plan.mean(variances).times(1 / values[j])
                said = "ours" if form == "algorithm" else "paper"
                items.append(plan.within(f"{name}, {which} axis, {said}", number, (1 - tolerance, 1 + tolerance)))

    def draw() -> "Figure":
        figure, axes = panels(len(clouds), 4, width=2.2, height=2.2)
        for axis, (name, cloud) in zip(axes, clouds.items(), strict=True):
            axis.plot(*cloud[:1500].T, ".", color="0.6", markersize=1.5, rasterized=False)
            law = laws[name, "algorithm"]
            paper = laws[name, "paper"]
            add_ellipse(axis, law.mean, law.covariance, color="#CC79A7", linewidth=1.6, label="predicted, algorithm")
            look: dict[str, Any] = {"color": "#332288", "linestyle": (0, (4, 2)), "linewidth": 1.4}
            add_ellipse(axis, paper.mean, paper.covariance, label="predicted, paper", **look)
            axis.set_title(name, loc="left")
            axis.set_aspect("equal", adjustable="datalim")
            axis.set_xlabel("$x_1$")
        axes[0].set_ylabel("$x_2$")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        return figure

    def film(path: Path) -> None:
        start = _problem((1.5, 1.0))
        optimizer = _optimizers()["SignSGD"]
        options = dict(steps=10 * FRAMES, paths=300, record=sl.Record(every=10, keep_paths=300), seed=plan.seed)
        ensemble = sl.simulate(start, noise, optimizer, "optimizer", **options)
        animate_cloud(path, start, ensemble, laws["SignSGD", "algorithm"])

    settings = [
        f"quadratic of curvature 1 and 4 along axes turned by 30°, Gaussian noise, σ = 1, η = {LR}, θ = {THETA}, β₁ = "
        f"0.9, β₂ = 0.999, {STEPS} steps from 0, {plan.size['paths']} paths; variances over the last third"
    ]
    pictures = [
        Picture(
            "clouds",
            draw,
            "Paths at the end (dots, 1500 of them) and the ellipses that contain 90 % of the predicted normal law, "
            "of the algorithm itself (solid) and of the paper (dashed).",
            "Four clouds of points, one per optimizer, each with two ellipses: predicted for the algorithm, and by "
            "the paper.",
        ),
        Picture(
            "variances",
            lambda: draw_items([*ours, *papers], "measured variance / predicted variance"),
            f"Ratio of the measured to the predicted variance along the axes of the predicted ellipse. {KEY}",
            ROWS,
        ),
    ]
    animation = Animation(
        "signsgd",
        film,
        "SignSGD: 300 paths from one point to the stationary distribution, with contours of the loss; the ellipse "
        "contains 90 % of the predicted stationary distribution.",
        "A cloud of points moves down a valley and fills an ellipse.",
    )
    return Outcome([*ours, *papers], settings, pictures, [animation])


STUDY = Study(
    name="stationary-laws",
    statement="On a quadratic, the stationary distributions of SGD, SignSGD, RMSpropW and AdamW have the covariances "
    "that theory predicts.",
    source="arXiv 2411.15958, its stationary distributions (paper); docs/theory.md (ours, for the algorithm itself).",
    criterion="Ratio of the measured to the predicted variance along either axis of the predicted ellipse: within 5 "
    "% of 1 for the algorithm's form, within 10 % for the paper's form, which is linearised and neglects the finite "
    "step size.",
    items=16,
    sizes={"quick": {"paths": 16_384}, "full": {"paths": 65_536}, "paper": {"paths": 200_000}},
    run=run,
)
