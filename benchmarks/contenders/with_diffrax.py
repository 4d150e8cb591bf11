"""diffrax: `Euler` with a constant step, as its documentation shows (a solve per path, `vmap`) and as one solve."""

from collections.abc import Callable
from functools import partial
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.contenders.task import B2, DECAY, EPS, LR, SIGMA, START, Curve, curvature, recorded

__all__ = ["ensemble"]


class _Noise(diffrax.AbstractTerm):
    """Diffusion times dW on x alone, element by element: the least arithmetic that diffrax allows."""

    path: Any
    size: Callable[[Any], jax.Array]

    def vf(self, t: Any, y: Any, args: Any) -> jax.Array:
        """Diffusion of x."""
        return self.size(y)

    def contr(self, t0: Any, t1: Any, **kwargs: Any) -> jax.Array:
        """Brownian increment."""
        return self.path.evaluate(t0, t1)

    def prod(self, vf: jax.Array, control: jax.Array) -> Any:
        """Increments of the state."""
        return vf * control, jnp.zeros_like(vf)


class _NoiseAlone(_Noise):
    """The same where x is the whole state."""

    def prod(self, vf: jax.Array, control: jax.Array) -> Any:
        """Increment of x."""
        return (vf * control,)


def ensemble(
    optimizer: str, dim: int, every: int, path: str = "unsafe", batch: str = "vmap", sharded: bool = False
) -> Callable[[int, int, int], Curve]:
    """Mean loss by `diffeqsolve`.

    Args:
        optimizer: whose SDE.
        dim: d.
        every: steps between records.
        path: ``"unsafe"`` (`UnsafeBrownianPath`) or ``"tree"`` (`VirtualBrownianTree`, with a tolerance of Δt/2).
        batch: ``"vmap"``, a solve per path, or ``"one"``, a single solve whose state has all paths on its last axis.
        sharded: by hand over all devices; otherwise the first one, where XLA may use all cores.
    """
    lam = jnp.asarray(curvature(dim))
    lam = lam[:, None] if batch == "one" else lam

    def ahead(v: jax.Array, grad: jax.Array) -> jax.Array:
        return B2 * v + (1 - B2) * (grad**2 + SIGMA**2)

    def drift(t: Any, y: Any, args: Any) -> Any:
        grad = lam * y[0]
        if optimizer == "signsgd":
            return (-jax.lax.erf(grad * (0.5**0.5 / SIGMA)) - DECAY * y[0],)
        v = ahead(y[1], grad)
        return -grad / (jnp.sqrt(v) + EPS) - DECAY * y[0], (v - y[1]) / LR

    def diffusion(y: Any) -> jax.Array:
        if optimizer == "signsgd":
            mean = jax.lax.erf(lam * y[0] * (0.5**0.5 / SIGMA))  # rounded, it may be larger than 1
            return LR**0.5 * jnp.sqrt(jnp.maximum(1 - mean**2, 0))
        return LR**0.5 * SIGMA / (jnp.sqrt(ahead(y[1], lam * y[0])) + EPS)

    def loss(t: Any, y: Any, args: Any) -> jax.Array:
        return 0.5 * jnp.sum(lam * y[0] ** 2, axis=0)

    def solve(key: Any, steps: int, paths: int | None) -> jax.Array:
        shape = (dim,) if paths is None else (dim, paths)
        if path == "tree":
            motion: Any = diffrax.VirtualBrownianTree(0.0, steps * LR, tol=LR / 2, shape=shape, key=key)
        else:
            motion = diffrax.UnsafeBrownianPath(shape=shape, key=key)
        x = jnp.full(shape, START, jnp.float32)
        start = (x,) if optimizer == "signsgd" else (x, (lam * x) ** 2 + SIGMA**2)
        whole = steps - steps % every
        times = np.linspace(0, whole * LR, whole // every + 1)  # ends at the very number that the solve ends at
        noise = _NoiseAlone if optimizer == "signsgd" else _Noise
        solution = diffrax.diffeqsolve(
            diffrax.MultiTerm(diffrax.ODETerm(drift), noise(motion, diffusion)),
            diffrax.Euler(),
            0.0,
            steps * LR,
            LR,
            start,
            saveat=diffrax.SaveAt(ts=times, fn=loss),
            stepsize_controller=diffrax.ConstantStepSize(),
            adjoint=diffrax.ForwardMode(),
            max_steps=steps + 2,
        )
        return solution.ys

    devices = jax.devices() if sharded else jax.devices()[:1]
    mesh = Mesh(np.array(devices), ("paths",))
    sharding = NamedSharding(mesh, PartitionSpec("paths"))

    @partial(jax.jit, static_argnames=("paths", "steps"))
    def compiled(keys: Any, paths: int, steps: int) -> tuple[jax.Array, jax.Array]:
        def shard(keys: Any) -> jax.Array:
            if batch == "one":
                return solve(keys[0], steps, paths // len(devices))
            return jax.vmap(lambda key: solve(key, steps, None), out_axes=1)(keys)

        specs = dict(in_specs=PartitionSpec("paths"), out_specs=PartitionSpec(None, "paths"), check_vma=False)
        losses = jax.shard_map(shard, mesh=mesh, **specs)(keys)
        return losses.mean(axis=1), losses.std(axis=1)

    def run(seed: int, paths: int, steps: int) -> Curve:
        keys = jax.random.split(jax.random.key(seed), len(devices) if batch == "one" else paths)
        return recorded(*compiled(jax.device_put(keys, sharding), paths, steps), paths)

    return run
