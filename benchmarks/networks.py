"""Networks under mini-batch noise: cost of a step of each SDE against one of its optimizer, and peak memory.

Times are medians of interleaved rounds in one process. Memory is the largest resident set of a process of its own, less
that of the same run with a tiny network, relative to the arrays of the state of all paths in flight.
"""

import argparse
import os
import resource
import subprocess
import sys
import time

import jax

jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)

import numpy as np

import sdelens as sl
from sdelens._output import text_table

NETWORKS = {
    "mlp": dict(dataset="digits", width=32, depth=1),
    "cnn": dict(subset=128, channels=8, dense=32),
    "resnet": dict(subset=128, channels=8, dense=32),
    "vit": dict(subset=128, width=16, depth=1, heads=2, mlp=32),
}
OPTIMIZERS = {"sgd": sl.SGD(0.01), "signsgd": sl.SignSGD(1e-3), "rmspropw": sl.RMSpropW(1e-3), "adamw": sl.AdamW(1e-3)}
STATE = {"sgd": 1, "signsgd": 1, "rmspropw": 2, "adamw": 3}
WIDE = dict(dataset="digits", width=968, depth=2)
"""d = 1 010 602."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paths", type=int, default=16)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak:
        peak(*given.peak.split(","))
        return
    rows = []
    for name, options in NETWORKS.items():
        problem = sl.network(name, **options)
        for label, optimizer in OPTIMIZERS.items():
            times = step_times(problem, optimizer, given)
            rows.append([name, label, *(f"{ms:.2f}" for ms in times), f"{times[3] / times[0] / 8:.2f}"])
            print(*text_table(["network", "optimizer", *COLUMNS], rows[-1:])[-1:], flush=True)
    print("", *text_table(["network", "optimizer", *COLUMNS], rows), "", sep="\n")
    memory = []
    for case in ("adamw,gaussian,32", "rmspropw,gaussian,32", "signsgd,gaussian,32", "adamw,minibatch,8"):
        done = subprocess.run([sys.executable, __file__, "--peak", case], check=True, capture_output=True, text=True)
        memory.append([*case.split(","), *done.stdout.split()])
    head = ["optimizer", "noise", "paths", "state, GiB", "peak, GiB", "network's part, GiB", "part / state"]
    print(*text_table(head, memory), sep="\n")


COLUMNS = ["optimizer, ms", "SDE refresh 1, ms", "SDE refresh 10, ms", "empirical K = 8, ms", "per sample / optimizer"]


def step_times(problem: sl.Problem, optimizer: object, given: argparse.Namespace) -> list[float]:
    """Milliseconds per path and step."""
    slow, kept = sl.MinibatchNoise(32), sl.MinibatchNoise(32, refresh=10, samples=10)
    runs = [("optimizer", slow), ("sde", slow), ("sde", kept), ("empirical", slow)]
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(given.rounds + 1):
        for i, (model, noise) in enumerate(runs):
            options = dict(steps=given.steps, paths=given.paths, record_every=given.steps, progress=False)
            begin = time.perf_counter()
            sl.simulate(problem, noise, optimizer, model, **options)
            if turn:  # the first compiles
                times[i].append(time.perf_counter() - begin)
    return [1e3 * float(np.median(t)) / given.paths / given.steps for t in times]


def peak(optimizer: str, law: str, paths: str) -> None:
    """Print state, peak, the part of it that is the wide network's, and their ratio."""
    noise = sl.GaussianNoise(0.01) if law == "gaussian" else sl.MinibatchNoise(32, subsample=32)
    options = dict(steps=2, record_every=2, progress=False)
    sl.simulate(sl.network("mlp", "digits", width=4, depth=2), noise, OPTIMIZERS[optimizer], paths=2, **options)
    base = resident()
    problem = sl.network("mlp", **WIDE)
    sl.simulate(problem, noise, OPTIMIZERS[optimizer], paths=int(paths), **options)
    arrays = STATE[optimizer] + (law == "minibatch" and optimizer != "sgd")
    state = 4 * problem.dim * int(paths) * arrays / 2**30
    print(f"{state:.2f} {resident():.2f} {resident() - base:.2f} {(resident() - base) / state:.1f}")


def resident() -> float:
    """Largest resident set so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
