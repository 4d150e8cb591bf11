"""Effect of a change of batch size on AdamW, with the full square-root rule and without each of its parts.

    python examples/batch_size.py                       # a quadratic, where noise dominates from the start
    python examples/batch_size.py --signal 5            # the same with a larger start, where the gradient dominates
    python examples/batch_size.py --problem digits      # a network with real mini-batches of 16, 64 and 256
    python examples/batch_size.py --problem digits --after 1600     # the same, started after 1600 steps

All runs use the same number of training examples. Tables, figures and data are written to the folder of --out.
"""

import argparse
import dataclasses
import os
import time

import jax

jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)

import numpy as np

import sdelens as sl
from sdelens.results.report import claim_folder

CURVATURE = np.array([0.5, 1.0, 2.0, 5.0])
NETWORK = dict(dataset="digits", width=32, depth=1)
DRAWN = ("full rule", "lr as it was", "lr x ratio")
"""What the figure shows beside the original run: the square-root rule, no rule, and the linear rule."""


def variants(optimizer: sl.AdamW, ratio: float, snr: float | None) -> dict[str, sl.AdamW]:
    """The full rule, the rule without each of its parts, and other rules in use; `snr` is that at the old batch."""
    full = sl.scaling.rescale(optimizer, ratio).optimizer
    measured = {}
    if snr is not None:
        for label, momentum in (("measured SNR", "samples"), ("measured SNR, b1 held", "second-moment")):
            rescaled = sl.scaling.rescale(optimizer, ratio, "signal-to-noise", momentum=momentum, snr=snr)
            measured[label] = rescaled.optimizer
    held = {name: getattr(optimizer, name) for name in ("lr", "weight_decay", "b1", "b2")}
    return {
        "full rule": full,
        "lr as it was": dataclasses.replace(full, lr=held["lr"]),
        "decay as it was": dataclasses.replace(full, weight_decay=held["weight_decay"]),
        "b1, b2 as they were": dataclasses.replace(full, b1=held["b1"], b2=held["b2"]),
        "(1 - b)/lr held": sl.scaling.rescale(optimizer, ratio, momentum="time").optimizer,
        "lr x ratio": dataclasses.replace(full, lr=held["lr"] * ratio),
        "lr x ratio, decay as it was": dataclasses.replace(
            full, lr=held["lr"] * ratio, weight_decay=held["weight_decay"]
        ),
        "nothing but the steps": optimizer,
        **measured,
    }


def arrived(problem: sl.Problem, noise: sl.MinibatchNoise, optimizer: sl.AdamW, steps: int, seed: int) -> np.ndarray:
    """The parameters after the given number of steps of one run."""
    record = sl.Record(every=steps, keep_paths=1)
    run = sl.simulate(problem, noise, optimizer, "optimizer", steps=steps, paths=1, seed=seed, record=record)
    return run.dataset.path_x.isel(model=0, path=0, step=-1).values.astype(np.float32)


def message(found: sl.scaling.Verification, ratio: float) -> str:
    """The title of the figure: how far each rule moves the loss curve."""
    errors = found.agreement().path_error
    said = ", ".join(f"{name}: {100 * errors[name]:.2g} %" for name in DRAWN)
    return f"AdamW at {ratio:g} times the batch: how far the mean-loss curve moves\n{said}"


def main() -> None:
    """Run the comparisons, print the tables and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", choices=["quadratic", "digits"], default="quadratic")
    parser.add_argument("--ratios", default="4,16", help="comma-separated (default 4,16)")
    parser.add_argument(
        "--signal", type=float, default=0.5, help="|gradient|/noise at the start, at the larger batch (quadratic)"
    )
    parser.add_argument(
        "--after", type=int, default=0, help="steps at the smaller batch before the comparison (digits)"
    )
    parser.add_argument("--b2", type=float, default=0.999, help="at the smaller batch (digits; default 0.999)")
    parser.add_argument("--steps", type=int, help="at the smaller batch (default: 6000, and 1600 for digits)")
    parser.add_argument("--paths", type=int, help="default: 4096, and 64 for digits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="batch-size", help="folder to write (default: batch-size)")
    given = parser.parse_args()
    begin = time.perf_counter()
    with claim_folder(given.out, overwrite=True) as folder:
        start = None
        for ratio in (float(r) for r in given.ratios.split(",")):
            if given.problem == "quadratic":
                optimizer = sl.AdamW(0.002, b1=0.98, b2=0.998, weight_decay=0.5)
                problem = sl.Quadratic(CURVATURE, start=given.signal / np.sqrt(ratio) / CURVATURE)
                noise, steps, paths = sl.GaussianNoise(1.0), 6000, 4096
            else:
                optimizer = sl.AdamW(1e-3, b1=0.95, b2=given.b2, weight_decay=0.1)
                problem, noise, steps, paths = sl.network("mlp", **NETWORK), sl.MinibatchNoise(16), 1600, 64
                if given.after:
                    start = arrived(problem, noise, optimizer, given.after, given.seed)
                    optimizer = dataclasses.replace(optimizer, v0="second-moment")
            found = sl.scaling.verify(
                problem,
                noise,
                optimizer,
                ratio,
                variants(optimizer, ratio, given.signal / np.sqrt(ratio) if given.problem == "quadratic" else None),
                steps=given.steps or steps,
                paths=given.paths or paths,
                seed=given.seed,
                start=start,
            )
            print(found, flush=True)
            stem = folder / f"{given.problem}-{ratio:g}"
            original = found.result.models[0]
            drawn = found.result.select([original, *DRAWN])
            drawn.plot(stem.with_suffix(".png"), original, title=message(found, ratio))
            found.agreement().to_csv(stem.with_suffix(".csv"))
            found.result.save(stem.with_suffix(".nc"))
    print(f"\n{time.perf_counter() - begin:.0f} s in all. Figures, tables and data: {given.out}/")


if __name__ == "__main__":
    main()
