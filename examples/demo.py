"""Comparison of four optimizers with their SDEs, on a quadratic and on a neural network with real data.

`make demo` runs this file. It prints one table, and writes figures, tables, NetCDF files and an index.html to the
folder `demo`. It takes about three minutes on two cores.
"""

import argparse
import os
import shlex
import sys
import time
from pathlib import Path

import jax

# Each CPU core becomes a device; this must come before the first use of JAX. (On a GPU it does no harm.)
jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)

import numpy as np

import sdelens as sl
from sdelens.core.names import optimizer_label
from sdelens.core.text import text_table
from sdelens.results.plotting import written
from sdelens.results.report import claim_folder, write_report

# Ten coordinates of curvature 1 to 5 with unit noise: noise dominates near the minimum, and the gradient at the start.
QUADRATIC = sl.Quadratic(curvature=np.linspace(1.0, 5.0, 10), start=2.0)
ON_QUADRATIC = [
    (sl.SGD(lr=0.01, weight_decay=0.1), 1.0),
    (sl.SignSGD(lr=0.01, weight_decay=0.1), 1.0),
    (sl.RMSpropW(lr=0.01, b2=0.99, weight_decay=0.1), 1.0),
    (sl.AdamW(lr=0.01, b1=0.9, b2=0.99, weight_decay=0.1), 1.0),
]

# 10 hidden layers of 20 ReLU units on the Breast-Cancer data: full-batch gradient, to which noise is added.
NETWORK = sl.network("mlp", dataset="breast-cancer")
ON_NETWORK = [
    (sl.SGD(lr=0.01), 0.1),
    (sl.SignSGD(lr=0.001), 1.0),
    (sl.RMSpropW(lr=0.001, b2=0.999), 0.01),
    (sl.AdamW(lr=0.001, b1=0.99, b2=0.999), 0.01),
]


COLUMNS = ["error", "99 % limits", "last third"]
MEANING = (
    "Error: relative L2 distance between the mean-loss curves of the model and of the\noptimizer. Last third: "
    "relative shift of the mean loss over the last third of the run."
)


def main() -> None:
    """Run the eight comparisons, print one table, and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="demo", help="folder to write (default: demo)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="few paths and steps, to see that it runs")
    arguments = parser.parse_args()
    given = shlex.join(sys.argv[1:])
    command = f"python examples/demo.py {given}" if given else "make demo"
    with claim_folder(arguments.out, overwrite=True) as folder:
        run(folder, 50 if arguments.small else 1, arguments.seed, command)


def run(folder: Path, share: int, seed: int, command: str) -> None:
    """Run the comparisons, with sizes divided by `share`, and write them to a folder; the page names the command."""
    begin = time.perf_counter()
    results, rows = {}, []
    for on, problem, runs, steps, paths in (
        ("quadratic", QUADRATIC, ON_QUADRATIC, 600, 50_000),
        ("MLP", NETWORK, ON_NETWORK, 1000, 64),
    ):
        for optimizer, scale in runs:
            noise = sl.GaussianNoise(scale)
            steps_run, paths_run = max(steps // share, 20), max(paths // share, 8)
            result = sl.compare(problem, noise, optimizer, steps=steps_run, paths=paths_run, seed=seed)
            name = f"{optimizer.name}-{result.info['problem']['name']}"
            results[name] = result
            head, body = result.table()
            shown = [head.index(column) for column in COLUMNS]
            label = optimizer_label(result.info["optimizer"])
            rows += [[on, label, written(row[0]), *(row[i] for i in shown)] for row in body if row[0] != "optimizer"]
            print(f"{time.perf_counter() - begin:6.1f} s  {name}", flush=True)
    print("", *text_table(["on", "optimizer", "model", *COLUMNS], rows, keys=3), "", MEANING, sep="\n")
    page = write_report(folder, results, "Optimizers and their SDEs, side by side", command)
    print(f"\n{time.perf_counter() - begin:.0f} s in all. Figures, tables and data: {page}")


if __name__ == "__main__":
    main()
