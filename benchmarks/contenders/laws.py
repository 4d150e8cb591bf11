"""Draws of the noise laws, accumulated inside one compiled loop over steps as an optimizer uses them."""

from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

import sdelens as sl
from sdelens.core.random import Stream, stream_key

__all__ = ["law"]

_LAWS: Final[dict[str, Any]] = {
    "normal": sl.GaussianNoise(1.0),
    "uniform": sl.UniformNoise(1.0),
    "Laplace": sl.LaplaceNoise(1.0),
    "Student t, df 1": sl.StudentTNoise(1.0, 1),
    "Student t, df 2.5": sl.StudentTNoise(1.0, 2.5),
    "Student t, df 5": sl.StudentTNoise(1.0, 5),
    "normal + Student t": sl.GaussianNoise(1.0) + sl.StudentTNoise(1.0, 3),
}


def law(name: str, dim: int) -> Callable[[int, int, int], None]:
    """The sum of the draws of a law of ours, or of one of `jax.random`."""
    bound = _LAWS[name].bind(sl.Quadratic(np.ones(dim))) if name in _LAWS else None

    @jax.jit
    def total(key: jax.Array, paths: jax.Array, steps: Any) -> jax.Array:
        stream, shape = Stream(key, paths), (dim, paths.shape[0])

        def draw(k: Any) -> jax.Array:
            own = jax.random.fold_in(jax.random.wrap_key_data(key), k)
            if name == "jax.random.normal":
                return jax.random.normal(own, shape)
            if name == "jax.random.t, df 3":
                return jax.random.t(own, 3.0, shape)
            return bound.sample(jnp.ones(shape), stream.at(k))

        return jax.lax.fori_loop(0, steps, lambda k, total: total + draw(k), jnp.zeros(shape))

    def run(seed: int, paths: int, steps: int) -> None:
        total(stream_key(seed, "benchmark"), np.arange(paths, dtype=np.uint32), steps).block_until_ready()

    return run
