"""What no implementation can do without: its random numbers alone, its arithmetic alone, memory and arithmetic units.

All are compiled loops over the steps on the devices of the worker, the paths sharded over them.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.contenders.task import SIGMA, START, curvature, scheme
from sdelens.core.compilation import WIDE
from sdelens.core.random import Stream, stream_key

__all__ = ["arithmetic", "draws", "machine", "operations"]

_Run = Callable[[int, int, int], None]


def operations() -> dict[str, float]:
    """32-bit operations for one normal draw and for one step of each scheme, as JAX counts them: a logarithm is one."""
    n = 64
    stream = Stream(jnp.zeros(2, jnp.uint32), jnp.arange(n, dtype=jnp.uint32))
    draw = jax.make_jaxpr(lambda k: stream.at(k).normal(n, jnp.dtype(jnp.float32)))(0)
    one = jnp.ones((n, n), jnp.float32)
    steps = {name: jax.make_jaxpr(partial(scheme, name, jnp))(one, one, one, one) for name in ("rmspropw", "signsgd")}
    return {"draw": _wide(draw.jaxpr, n * n)} | {name: _wide(made.jaxpr, n * n) for name, made in steps.items()}


def _wide(program: Any, size: int) -> float:
    """Operations per number of an array of that size, copies and changes of shape left out; of branches the dearest."""
    free = ("broadcast_in_dim", "reshape", "convert_element_type", "bitcast_convert_type", "squeeze", "copy")
    total = 0.0
    for equation in program.eqns:
        inner = [v.jaxpr for v in equation.params.values() if hasattr(v, "jaxpr")]
        if equation.primitive.name == "cond":
            total += max(_wide(branch.jaxpr, size) for branch in equation.params["branches"])
        elif inner:
            total += sum(_wide(p, size) for p in inner)
        elif equation.primitive.name not in free and 4 * equation.outvars[0].aval.size >= size:
            total += equation.outvars[0].aval.size / size
    return total


def draws(dim: int, kind: str) -> _Run:
    """The draws of all steps, accumulated: ``"normal"`` and ``"signs"`` are ours, ``"jax"`` is `jax.random.normal`."""

    def shard(key: jax.Array, paths: jax.Array, steps: Any) -> jax.Array:
        stream, shape = Stream(key, paths), (dim, paths.shape[0])

        def draw(k: Any) -> jax.Array:
            if kind == "jax":
                own = jax.random.fold_in(jax.random.wrap_key_data(key), paths[0])
                return jax.random.normal(jax.random.fold_in(own, k), shape, jnp.float32)
            at = stream.at(k)
            return (at.signs if kind == "signs" else at.normal)(dim, jnp.dtype(jnp.float32))

        return lax.fori_loop(0, steps, lambda k, total: total + draw(k), jnp.zeros(shape, jnp.float32))

    return _sharded(shard, None if kind == "jax" else WIDE)


def arithmetic(optimizer: str, dim: int) -> _Run:
    """The scheme without noise."""
    lam = jnp.asarray(curvature(dim))[:, None]

    def shard(key: jax.Array, paths: jax.Array, steps: Any) -> Any:
        x = jnp.full((dim, paths.shape[0]), START, jnp.float32)

        def step(k: Any, y: Any) -> Any:
            # 1e-30 times what the noise is multiplied by: no noise, and nothing that a compiler may leave out
            return scheme(optimizer, jnp, lam, *y, jnp.float32(1e-30))

        return lax.fori_loop(0, steps, step, (x, (lam * x) ** 2 + SIGMA**2))[0]

    return _sharded(shard)


def _sharded(shard: Callable[..., jax.Array], options: dict[str, Any] | None = WIDE) -> _Run:
    """A run of one function on all devices, compiled with the options of the library's own programs."""
    mesh = Mesh(np.array(jax.devices()), ("paths",))
    specs = dict(in_specs=(PartitionSpec(), PartitionSpec("paths"), PartitionSpec()), check_vma=False)
    compiled = jax.jit(
        jax.shard_map(shard, mesh=mesh, out_specs=PartitionSpec(None, "paths"), **specs), compiler_options=options
    )

    def run(seed: int, paths: int, steps: int) -> None:
        indices = jax.device_put(np.arange(paths, dtype=np.uint32), NamedSharding(mesh, PartitionSpec("paths")))
        compiled(stream_key(seed, "benchmark"), indices, steps).block_until_ready()

    return run


def machine(seconds: float = 0.3) -> dict[str, float]:
    """Bytes per second of a triad y = y/2 + c beyond the caches, and 32-bit operations per second.

    The latter are integer additions and exclusive ors in independent element-wise chains that stay in registers, what
    random numbers are made of; and the floating-point operations of a matrix product.
    """
    mesh = Mesh(np.array(jax.devices()), ("paths",))
    count, n, turns = len(jax.devices()), 2**25, 10
    wide = NamedSharding(mesh, PartitionSpec("paths"))
    y, c = (jax.device_put(jnp.full(n, value, jnp.float32), wide) for value in (1.0, 2.0))
    size = count * (2048 if jax.default_backend() == "cpu" else 2**20)
    words = jax.device_put(jnp.arange(size, dtype=jnp.uint32), wide)
    chains, length, loops = 8, 16, 2000

    @partial(jax.jit, out_shardings=wide)
    def triad(y: jax.Array, c: jax.Array) -> jax.Array:
        return lax.fori_loop(0, turns, lambda _, y: 0.5 * y + c, y)  # in place: the pages of a new array would be timed

    @partial(jax.jit, out_shardings=wide)
    def chain(x: jax.Array) -> jax.Array:
        def turn(k: Any, x: jax.Array) -> jax.Array:
            parts = [x + np.uint32(i) for i in range(chains)]
            for i in range(length):
                parts = [(part ^ np.uint32(0x9E3779B9 + i)) + np.uint32(0x7F4A7C15) for part in parts]
            return sum(parts[1:], parts[0])

        return lax.fori_loop(0, loops, turn, x)

    side = 1024 if jax.default_backend() == "cpu" else 8192
    square = jax.device_put(jnp.ones((count, side, side), jnp.float32), NamedSharding(mesh, PartitionSpec("paths")))
    product = jax.jit(lambda a: a @ a, out_shardings=NamedSharding(mesh, PartitionSpec("paths")))

    def rate(work: float, run: Callable[[], jax.Array]) -> float:
        run().block_until_ready()
        best, begin = 0.0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            start = time.perf_counter()
            run().block_until_ready()
            best = max(best, work / (time.perf_counter() - start))
        return best

    return {
        "triad_bytes_per_s": rate(12.0 * n * turns, lambda: triad(y, c)),
        "element_operations_per_s": rate(2.0 * (length + 1) * chains * loops * size, lambda: chain(words)),
        "matrix_flops_per_s": rate(2.0 * side**3 * count, lambda: product(square)),
    }
