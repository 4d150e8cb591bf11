"""AdamW on linear regression with mini-batches, swept: where is the loss smallest, and where does the SDE track it?

Writes two figures: the optimizer's late loss over learning rate and weight decay, and the error of its SDE over learning
rate and β₂. About a minute on two cores.
"""

import argparse
import os
from pathlib import Path

import jax

jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)

import numpy as np

import sdelens as sl

PROBLEM = sl.LinearRegression(np.geomspace(1.0, 0.05, 10), label_noise=1.0, solution=0.3)
NOISE = sl.MinibatchNoise(4)
LRS = [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]


def main():
    """Write the figures, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(), help="an existing folder")
    parser.add_argument("--paths", type=int, default=512)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    options = dict(steps=arguments.steps, paths=arguments.paths, record_every=10)

    over = {"lr": LRS, "weight_decay": [0, 0.1, 0.3, 1, 3]}
    loss = sl.sweep(PROBLEM, NOISE, sl.AdamW(1e-2, b2=0.99), ["optimizer"], over=over, **options)
    print(loss)
    loss.plot(arguments.out / "sweep.png")

    over = {"lr": LRS, "b2": [0.8, 0.9, 0.95, 0.99, 0.999]}
    tracking = sl.sweep(PROBLEM, NOISE, sl.AdamW(1e-2), ["optimizer", "sde"], over=over, **options)
    print(tracking)
    tracking.plot(arguments.out / "sweep-error.png", quantity="error")


if __name__ == "__main__":
    main()
