"""Sweeps of AdamW: where is its loss smallest, and where does its SDE track it?

It writes two figures: the late loss of the optimizer over learning rate and weight decay, on linear regression with
mini-batches; and the error of its SDE over learning rate and β₂, on a quadratic. It takes about a minute on two cores.
"""

import argparse
import os
from pathlib import Path

import jax

jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)

import numpy as np

import sdelens as sl

REGRESSION = sl.LinearRegression(np.geomspace(1.0, 0.05, 10), label_noise=1.0, solution=0.3), sl.MinibatchNoise(4)
QUADRATIC = sl.Quadratic([0.5, 1.0, 2.0, 5.0], start=1.0), sl.GaussianNoise(1.0)
LRS = [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]


def main():
    """Write the figures and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(), help="an existing folder")
    parser.add_argument("--share", type=int, default=1, help="divide the numbers of paths by this, for a first look")
    arguments = parser.parse_args()
    over = {"lr": LRS, "weight_decay": [0, 0.1, 0.3, 1, 3]}
    sizes = dict(steps=300, paths=320 // arguments.share, record=sl.Record(every=10))
    loss = sl.sweep(*REGRESSION, sl.AdamW(1e-2, b2=0.99), ["optimizer"], over=over, **sizes)
    print(loss)
    loss.plot(arguments.out / "sweep.png")

    over = {"lr": LRS, "b2": [0.8, 0.9, 0.95, 0.99, 0.999]}
    sizes = dict(steps=200, paths=8192 // arguments.share, record=sl.Record(every=5))
    tracking = sl.sweep(*QUADRATIC, sl.AdamW(1e-2), ["optimizer", "sde"], over=over, **sizes)
    print(tracking)
    tracking.plot(arguments.out / "sweep-error.png", quantity="error")


if __name__ == "__main__":
    main()
