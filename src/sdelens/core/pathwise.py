"""Whether what a user defines treats every path by itself: the comparison of several paths with one path alone."""

from typing import Final

import jax.numpy as jnp
from jax import Array

__all__ = ["MOST_COORDINATES", "PATHS_LAST", "differs"]

MOST_COORDINATES: Final = 2**24
"""Coordinates above which paths are not compared: several might not fit into memory, and few run together."""
PATHS_LAST: Final = "with one column per path, so reductions over the coordinates need axis=0, keepdims=True"
"""How arrays of several paths of shape (d, P) are to be read, for messages."""
_TOLERANCE: Final = 1e-2
"""Relative difference that is not rounding; what mixes paths differs by about its own size."""


def differs(together: Array, alone: Array) -> Array:
    """Whether values of paths differ from those of each path alone by more than rounding, a Boolean of shape ().

    Args:
        together: values computed for several paths together, one row per path.
        alone: values of the same paths, each computed alone; values that are not finite must be equal.
    """
    least = max(_TOLERANCE, 16 * float(jnp.finfo(alone.dtype).eps))
    size = jnp.abs(jnp.where(jnp.isfinite(alone), alone, 0)).max(axis=-1, keepdims=True)
    same = (together == alone) | (jnp.isnan(together) & jnp.isnan(alone))
    return ~(same | (jnp.abs(together - alone) <= least * size)).all()
