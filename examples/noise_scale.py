"""How the loss at rest grows with the noise: predicted curves and simulated points, written as a figure.

SGD's grows like σ², SignSGD's like σ; AdamW's is bounded by its decoupled weight decay, without which it grows like σ,
as does that of Adam with the same decay in the loss (L2).
"""

import argparse
import os
from pathlib import Path

import jax

jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)

import matplotlib.pyplot as plt
import numpy as np

import sdelens as sl

CURVATURE = np.array([0.5, 1.0, 2.0, 5.0])
THETA = 1.0
LR = 0.01


def cases(scale):
    """Label, problem and optimizer of every case, and the colour it is drawn in."""
    plain = sl.Quadratic(CURVATURE, start=0.0)
    slow = dict(b1=0.9, b2=0.999, v0="second-moment")
    return {
        "SGD": (plain, sl.SGD(LR), "#000000"),
        "SignSGD": (plain, sl.SignSGD(LR), "#0072B2"),
        "AdamW, $\\theta = 0$": (plain, sl.AdamW(LR, **slow), "#D55E00"),
        "AdamW, $\\theta = 1$": (plain, sl.AdamW(LR, weight_decay=THETA, **slow), "#009E73"),
        "Adam, L2 of strength 1": (plain.with_l2(THETA), sl.AdamW(LR, **slow), "#CC79A7"),
    }


def loss_at_rest(variance):
    """½ Σ λ Var: the loss without the L2 term."""
    return 0.5 * float(CURVATURE @ variance)


def simulated(problem, noise, optimizer, scale, paths):
    """The loss at rest of the optimizer itself, averaged over the last third of a run that is long enough to rest."""
    steps = int(min(12 * max(1.0, scale) / (LR * CURVATURE[0]), 60_000))
    run = sl.simulate(problem, noise, optimizer, "optimizer", steps=steps, paths=paths, record_every=steps // 60)
    return loss_at_rest(run.dataset.x_var.isel(model=0, step=slice(40, None)).mean("step").values)


def main():
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("noise-scale.png"))
    parser.add_argument("--paths", type=int, default=500)
    arguments = parser.parse_args()
    scales, points = np.geomspace(0.5, 32, 25), [0.5, 1, 2, 4, 8, 16, 32]
    with plt.style.context(sl.plotting.STYLE):
        figure, axes = plt.subplots(figsize=(5.6, 3.8))
        for label in cases(1.0):
            curve, dots = [], []
            for scale in scales:
                problem, optimizer, colour = cases(scale)[label]
                law = sl.theory.stationary(problem, sl.GaussianNoise(float(scale)), optimizer)
                curve.append(loss_at_rest(law.variance))
            for scale in points:
                problem, optimizer, colour = cases(scale)[label]
                noise = sl.GaussianNoise(float(scale))
                dots.append(simulated(problem, noise, optimizer, scale, arguments.paths))
            axes.loglog(scales, curve, color=colour, label=label)
            axes.loglog(points, dots, "o", color=colour, markersize=4)
        axes.set_xlabel("noise scale $\\sigma$")
        axes.set_ylabel("mean loss at rest")
        axes.set_title(f"Quadratic, $d$ = 4, $\\eta$ = {LR:g}: predicted (lines), simulated (dots)", loc="left")
        axes.legend()
    figure.savefig(arguments.out, dpi=200)
    print(f"Written to {arguments.out}")


if __name__ == "__main__":
    main()
