"""Cost of one draw of each noise law, against a normal one and against `jax.random`: ratios, interleaved, medians.

The draws are accumulated inside one compiled loop over steps, as the optimizer uses them, on one device.

    python benchmarks/noise.py --json noise.json
"""

import argparse
import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import sdelens as sl
from sdelens._random import Stream, stream_key

DIM, PATHS, STEPS = 10, 4000, 200
PROBLEM = sl.Quadratic(np.ones(DIM))
LAWS = {
    "normal": sl.GaussianNoise(1.0),
    "uniform": sl.UniformNoise(1.0),
    "Laplace": sl.LaplaceNoise(1.0),
    "Student t, df 1": sl.StudentTNoise(1.0, 1),
    "Student t, df 2.5": sl.StudentTNoise(1.0, 2.5),
    "Student t, df 5": sl.StudentTNoise(1.0, 5),
    "normal + Student t": sl.GaussianNoise(1.0) + sl.StudentTNoise(1.0, 3),
}


def accumulated(draw):
    """A compiled sum of the draws of all steps; `draw` maps a step to an array of shape (DIM, PATHS)."""
    return jax.jit(lambda: jax.lax.fori_loop(0, STEPS, lambda k, total: total + draw(k), jnp.zeros((DIM, PATHS))))


def sampled(law, stream):
    """Draws of a law by step."""
    bound, x = law.bind(PROBLEM), jnp.ones((DIM, PATHS))
    return lambda k: bound.sample(x, stream.at(k))


def main():
    """Interleave the laws, print medians and ratios, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the measurements and the environment here")
    a = parser.parse_args()
    stream = Stream(jnp.asarray(stream_key(0, "benchmark")), jnp.arange(PATHS, dtype=jnp.uint32))
    runs = {name: accumulated(sampled(law, stream)) for name, law in LAWS.items()}
    key = jax.random.key(0)
    runs["jax.random.normal"] = accumulated(lambda k: jax.random.normal(jax.random.fold_in(key, k), (DIM, PATHS)))
    runs["jax.random.t, df 3"] = accumulated(lambda k: jax.random.t(jax.random.fold_in(key, k), 3.0, (DIM, PATHS)))
    seconds = {name: [] for name in runs}
    for run in runs.values():
        run().block_until_ready()
    for _ in range(a.rounds):
        for name, run in runs.items():
            begin = time.perf_counter()
            run().block_until_ready()
            seconds[name].append(time.perf_counter() - begin)
    print(f"{'':20} {'ns per draw':>11} {'ratio':>7}")
    for name, values in seconds.items():
        ratio = statistics.median(v / s for v, s in zip(values, seconds["normal"], strict=True))
        print(f"{name:20} {1e9 * statistics.median(values) / (STEPS * DIM * PATHS):11.2f} {ratio:7.2f}")
    if a.json:
        environment = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
        environment["packages"] = {name: version(name) for name in ("sdelens", "jax", "jaxlib", "numpy")}
        a.json.write_text(json.dumps({"seconds": seconds, "environment": environment}, indent=2))


if __name__ == "__main__":
    main()
