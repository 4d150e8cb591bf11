"""Stationary loss against the number of workers: a figure with formulas, optimizers and SDEs.

For SGD it is (1 + ω)/N times that of one worker without compression. For SignSGD with majority vote it falls like 1/√N,
even if the noise has heavy tails; with the mean of gradients it does not fall under Cauchy noise.
"""

import argparse
import math
import os
from pathlib import Path

import jax

jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)

import matplotlib.pyplot as plt
import numpy as np

import sdelens as sl
from sdelens.core.files import save_figure

CURVATURE = np.array([0.5, 1.0, 2.0, 5.0])
PROBLEM = sl.Quadratic(CURVATURE, start=0.0)
LR = 0.01
LOOKS = (("#000000", "o"), ("#0072B2", "s"), ("#D55E00", "^"), ("#009E73", "D"))


def simulated(noise, optimizer, paths, steps=2400):
    """Mean loss of the optimizer and of its SDE over the second half of a run that starts at the minimum."""
    options = dict(steps=steps, paths=paths, record=sl.Record(every=20))
    run = sl.compare(PROBLEM, noise, optimizer, ["optimizer", "sde"], **options).dataset
    return run.loss_mean.isel(step=slice(steps // 40, None)).mean("step").values


def sgd_loss(workers, omega):
    """½ Σ λ Var with Var = η(1 + ω)σ²/(Nλ(2 − ηλ) − ηωλ²), which is exact; σ = 1."""
    variance = LR * (1 + omega) / (workers * CURVATURE * (2 - LR * CURVATURE) - LR * omega * CURVATURE**2)
    return 0.5 * float(CURVATURE @ variance)


def sign_loss(gain, tie, slope):
    """½ Σ λ Var with Var = (η/2)(1 − P(tie))/(b + ηb²/2), b = gain · 2p(0) λ: linearised at the minimum."""
    b = gain * slope * CURVATURE
    return 0.5 * float(CURVATURE @ (0.5 * LR * (1 - tie) / (b + 0.5 * LR * b**2)))


def sgd_cases():
    """For each case: label, share of coordinates that is sent, and numbers of workers."""
    sent = {1.0: "all sent", 0.5: "half sent", 0.25: "a quarter sent"}
    return [(f"{said}, ω = {1 / keep - 1:g}", keep, (1, 2, 4, 8, 16, 32)) for keep, said in sent.items()]


def sign_cases():
    """For each case: look, label, noise, compression, slope 2p(0), gain as a function, and numbers of workers."""
    vote, cauchy, normal = sl.MajorityVote(), sl.StudentTNoise(1.0, df=1), sl.GaussianNoise(1.0)
    few, even, odd = (1, 4, 16), (2, 4, 8, 16, 32), (1, 3, 9, 31)
    flat, steep = 2 / math.pi, math.sqrt(2 / math.pi)
    return [
        (LOOKS[0], "Cauchy, vote, even N", cauchy, vote, flat, vote.gain, even),
        (LOOKS[0], "Cauchy, vote, odd N", cauchy, vote, flat, vote.gain, odd),
        (LOOKS[1], "Cauchy, mean", cauchy, None, flat, lambda n: 1.0, few),
        (LOOKS[2], "normal, vote, even N", normal, vote, steep, vote.gain, even),
        (LOOKS[2], "normal, vote, odd N", normal, vote, steep, vote.gain, odd),
        (LOOKS[3], "normal, mean", normal, None, steep, math.sqrt, few),
    ]


def draw(axes, label, look, workers, formula, found):
    """Draw a line for the formula, dots for the optimizer and crosses for the SDE, and print their ratios."""
    color, marker = look
    dashes = (0, (5, 2)) if "odd" in label else "-"
    axes.loglog(workers, formula, label=label, color=color, linewidth=1, linestyle=dashes)
    axes.loglog(workers, found[:, 0], color=color, marker=marker, linestyle="none", markersize=4)
    axes.loglog(workers, found[:, 1], color=color, marker="x", linestyle="none", markersize=7)
    for n, stated, (own, sde) in zip(workers, formula, found, strict=True):
        print(
            f"{label:28} N = {n:3d}: formula {stated:.3e}, optimizer {own / stated:.3f} of it, SDE {sde / stated:.3f}"
        )


def main():
    """Write the figure and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("distributed.png"))
    parser.add_argument("--paths", type=int, default=400)
    arguments = parser.parse_args()
    with sl.style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.9))
        for look, (label, keep, workers) in zip(LOOKS, sgd_cases(), strict=False):
            noises = [sl.DistributedNoise(sl.GaussianNoise(1.0), n, sl.RandomK(keep)) for n in workers]
            found = np.array([simulated(noise, sl.SGD(LR), arguments.paths) for noise in noises])
            draw(left, label, look, workers, [sgd_loss(n, 1 / keep - 1) for n in workers], found)
        for look, label, noise, compression, slope, gain, workers in sign_cases():
            noises = [sl.DistributedNoise(noise, n, compression) for n in workers]
            found = np.array([simulated(each, sl.SignSGD(LR), arguments.paths) for each in noises])
            ties = [0.0 if compression is None else compression.tie(n) for n in workers]
            formula = [sign_loss(gain(n), tie, slope) for n, tie in zip(workers, ties, strict=True)]
            draw(right, label, look, workers, formula, found)
        for axes, title in ((left, "SGD, normal noise"), (right, "SignSGD")):
            axes.set_xscale("log", base=2)
            axes.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
            axes.set_xlabel("workers $N$")
            axes.set_title(title, loc="left")
            sl.label_lines(axes)
        figure.suptitle(
            "More workers reduce the loss at rest; under Cauchy noise only a vote does, the mean does not\n"
            "lines: formula; filled marks: optimizer; crosses: SDE",
            x=0.01,
            ha="left",
            fontsize="medium",
        )
        left.set_ylabel("mean loss at rest")
    save_figure(figure, arguments.out)
    print(f"Written to {arguments.out}")


if __name__ == "__main__":
    main()
