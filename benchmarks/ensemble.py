"""Speed of an ensemble against diffrax, both doing the same in one run: ratios, interleaved, medians.

The task: the RMSpropW SDE on a quadratic (d = 10), 4000 paths × 2000 steps of Δt = η, the mean loss every 10 steps.
diffrax runs `Euler` with `UnsafeBrownianPath` (its fastest) over `vmap`ped paths: on one device, where XLA may use all
cores (the usual way), and sharded by hand over one device per core. sdelens runs with normal increments and with
Rademacher ones, and records what it always does: moments, groups and quantiles. Compilation is left out of all.

    python benchmarks/ensemble.py --json ensemble.json
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

jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)

import diffrax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

import sdelens as sl

DIM, ETA, B2, THETA, EPS, SIGMA = 10, 0.01, 0.99, 0.1, 1e-8, 1.0
CURVATURE = np.linspace(1.0, 5.0, DIM)


def sdelens_run(paths, steps, every, increments):
    """The public API, from a specification to a `Result`."""
    problem, noise = sl.Quadratic(CURVATURE, start=2.0), sl.GaussianNoise(SIGMA)
    optimizer = sl.RMSpropW(ETA, B2, EPS, THETA)

    def run(seed):
        options = {"steps": steps, "paths": paths, "record_every": every, "increments": increments}
        result = sl.simulate(problem, noise, optimizer, seed=seed, **options)
        return result.dataset.loss_mean.values[0]

    return run


class Diffusion(diffrax.AbstractTerm):
    """Noise on x alone, as cheaply as diffrax allows: an element-wise product."""

    path: diffrax.UnsafeBrownianPath

    def vf(self, t, y, args):
        """-√η σ / (√v + ε)."""
        return -jnp.sqrt(ETA) * SIGMA / (jnp.sqrt(y[1]) + EPS)

    def contr(self, t0, t1, **kwargs):
        """Brownian increment."""
        return self.path.evaluate(t0, t1)

    def prod(self, vf, control):
        """Increments of x and v."""
        return vf * control, jnp.zeros_like(vf)


def diffrax_run(paths, steps, every, devices):
    """The same equation and records: one `diffeqsolve` per path, vmapped, and the mean over paths."""
    curvature, rho = jnp.asarray(CURVATURE, jnp.float32), (1 - B2) / ETA
    times = jnp.arange(0, steps + 1, every) * ETA

    def drift(t, y, args):
        x, v = y
        grad = curvature * x
        return -grad / (jnp.sqrt(v) + EPS) - THETA * x, rho * (grad**2 + SIGMA**2 - v)

    def one(key):
        noise = diffrax.UnsafeBrownianPath(shape=(DIM,), key=key)
        terms = diffrax.MultiTerm(diffrax.ODETerm(drift), Diffusion(noise))
        x0 = jnp.full(DIM, 2.0, jnp.float32)
        solution = diffrax.diffeqsolve(
            terms,
            diffrax.Euler(),
            0.0,
            steps * ETA,
            ETA,
            (x0, (curvature * x0) ** 2 + SIGMA**2),
            saveat=diffrax.SaveAt(ts=times, fn=lambda t, y, args: 0.5 * jnp.sum(curvature * y[0] ** 2)),
            stepsize_controller=diffrax.ConstantStepSize(),
            adjoint=diffrax.ForwardMode(),
            max_steps=steps + 2,
        )
        return solution.ys

    mesh = Mesh(np.array(devices), ("paths",))
    shard = jax.shard_map(
        lambda keys: jax.lax.pmean(jax.vmap(one)(keys).mean(axis=0), "paths"),
        mesh=mesh,
        in_specs=PartitionSpec("paths"),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    compiled = jax.jit(shard)
    sharding = jax.sharding.NamedSharding(mesh, PartitionSpec("paths"))

    def run(seed):
        keys = jax.device_put(jax.random.split(jax.random.key(seed), paths), sharding)
        return np.asarray(compiled(keys))

    return run


def main():
    """Interleave the contenders, print medians and ratios, write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paths", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--record-every", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the measurements and the environment here")
    a = parser.parse_args()
    size = (a.paths, a.steps, a.record_every)
    contenders = {
        "sdelens": sdelens_run(*size, "gaussian"),
        "sdelens, rademacher": sdelens_run(*size, "rademacher"),
        "diffrax, one device": diffrax_run(*size, jax.devices()[:1]),
        f"diffrax, {len(jax.devices())} devices": diffrax_run(*size, jax.devices()),
    }
    curves = {name: run(0) for name, run in contenders.items()}
    ours = curves["sdelens"]
    for name, curve in curves.items():
        difference = np.linalg.norm(curve - ours) / np.linalg.norm(ours)
        print(f"{name:22} mean-loss curve differs from sdelens' by {100 * difference:.2f} %")
        assert difference < 0.02, "the contenders do not compute the same"
    seconds = {name: [] for name in contenders}
    for round_ in range(a.rounds):
        for name, run in contenders.items():
            begin = time.perf_counter()
            run(1 + round_)
            seconds[name].append(time.perf_counter() - begin)
    work = a.paths * a.steps * DIM
    print(
        f"\n{'':22} {'median s':>9} {'min':>8} {'max':>8} {'ns':>7} {'ratio':>7}   (ns per path, step and coordinate)"
    )
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        ratio = statistics.median(v / s for v, s in zip(values, seconds["sdelens"], strict=True))
        row = (
            f"{medians[name]:9.3f} {min(values):8.3f} {max(values):8.3f} {1e9 * medians[name] / work:7.2f} {ratio:7.2f}"
        )
        print(f"{name:22} {row}")
    if a.json:
        packages = {name: version(name) for name in ("sdelens", "jax", "jaxlib", "diffrax", "numpy")}
        environment = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
        environment |= {"devices": [str(d) for d in jax.devices()], "packages": packages}
        record = {"task": dict(zip(("paths", "steps", "record_every"), size, strict=True)), "seconds": seconds}
        a.json.write_text(json.dumps(record | {"environment": environment}, indent=2))


if __name__ == "__main__":
    main()
