"""Stationary loss as a function of the noise: a figure with predicted curves and simulated points.

It grows like σ² for SGD and like σ for SignSGD. For AdamW with decoupled weight decay it is bounded. Without weight
decay it grows like σ, and also for Adam with the same decay in the loss (L2).
"""

import argparse
import os
from pathlib import Path

import jax

jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)

import matplotlib.pyplot as plt
import numpy as np

import sdelens as sl
from sdelens.core.files import save_figure

CURVATURE = np.array([0.5, 1.0, 2.0, 5.0])
THETA = 1.0
LR = 0.01


def cases():
    """Label, problem, optimizer and line style of every case."""
    plain = sl.Quadratic(CURVATURE, start=0.0)
    slow = dict(b1=0.9, b2=0.999, v0="second-moment")
    free, decayed, dashed = sl.AdamW(LR, **slow), sl.AdamW(LR, weight_decay=THETA, **slow), (0, (6, 1.5, 1, 1.5))
    return {
        "SGD": (plain, sl.SGD(LR), dict(color="#000000", marker="o")),
        "SignSGD": (plain, sl.SignSGD(LR), dict(color="#0072B2", marker="s", linestyle=(0, (5, 2)))),
        "AdamW without decay": (
            plain,
            free,
            dict(color="#D55E00", marker="^", linestyle=(0, (1, 1.2))),
        ),
        "AdamW, decay 1": (plain, decayed, dict(color="#009E73", marker="D")),
        "Adam, L2 term 1": (
            plain.with_l2(THETA),
            free,
            dict(color="#CC79A7", marker="v", linestyle=dashed),
        ),
    }


def loss_at_rest(variance):
    """½ Σ λ Var: the loss without the L2 term."""
    return 0.5 * float(CURVATURE @ variance)


def simulated(problem, scale, optimizer, paths):
    """Stationary loss of the optimizer itself, averaged over the last third of a sufficiently long run."""
    steps = int(min(12 * max(1.0, scale) / (LR * CURVATURE[0]), 60_000))
    noise, record = sl.GaussianNoise(scale), sl.Record(every=steps // 60)
    run = sl.simulate(problem, noise, optimizer, "optimizer", steps=steps, paths=paths, record=record)
    return loss_at_rest(run.dataset.x_var.isel(model=0, step=slice(40, None)).mean("step").values)


def main():
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("noise-scale.png"))
    parser.add_argument("--paths", type=int, default=500)
    arguments = parser.parse_args()
    scales, points = np.geomspace(0.5, 32, 25), [0.5, 1, 2, 4, 8, 16, 32]
    with sl.style():
        figure, axes = plt.subplots(figsize=(5.6, 3.8))
        for label, (problem, optimizer, look) in cases().items():
            laws = [sl.theory.stationary(problem, sl.GaussianNoise(float(scale)), optimizer) for scale in scales]
            dots = [simulated(problem, float(scale), optimizer, arguments.paths) for scale in points]
            line = {key: value for key, value in look.items() if key != "marker"}
            predicted = np.array([loss_at_rest(law.variance) for law in laws])
            axes.loglog(scales, predicted, label=label, **line)
            axes.loglog(points, dots, linestyle="none", marker=look["marker"], color=look["color"], markersize=4)
        problem, optimizer, look = cases()["AdamW, decay 1"]
        bounds = [sl.theory.loss_bound(problem, sl.GaussianNoise(float(s)), optimizer, [0.0]).asymptote for s in scales]
        dotted = {"color": look["color"], "linewidth": 0.9, "linestyle": (0, (1, 1))}
        axes.loglog(scales, bounds, label="bound for decay 1", **dotted)
        axes.set(xlabel="noise scale $\\sigma$", ylabel="mean loss at rest", xlim=(scales[0] / 1.1, scales[-1] * 1.1))
        axes.set_title(
            "Only decoupled weight decay bounds the loss, however large the noise\n"
            f"quadratic, $d$ = 4, $\\eta$ = {LR:g}; lines: predicted, marks: simulated",
            loc="left",
        )
        sl.label_lines(axes)
    save_figure(figure, arguments.out)
    print(f"Written to {arguments.out}")


if __name__ == "__main__":
    main()
