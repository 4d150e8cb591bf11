"""Sizes of a run: memory of its paths, how many of them are simulated at once, and what is kept of them."""

import math
from typing import Any

import jax
import numpy as np

from sdelens.core.random import Stream
from sdelens.integrate import Stepper
from sdelens.run.options import record_steps
from sdelens.run.plan import Plan
from sdelens.run.segment import initialised
from sdelens.run.summary import BUCKETS

__all__ = ["buffer_size", "chunk_size", "kept_rows", "kept_shapes", "padded_paths", "part_shapes", "path_bytes"]

_SEGMENT_RECORDS, _CPU_SEGMENT_RECORDS = 256, 64
"""Records of one segment at most. A small run pays for all of them; a GPU would pay for the start of more segments."""
_BUFFER_BYTES = 2**26
_CHUNK_BYTES = 2**30
_CACHED_BYTES, _CACHED_PATHS = 2**26, 64
_SKETCH_BYTES = 2**28
_FEWEST_PATHS, _SMALL_BYTES = 16, 1024
"""The paths of a device are a multiple of 16 where a path has at most 1 KiB: so few cost no more than one."""
_initialised = jax.jit(initialised)
"""Never called: only its shapes are computed, once for every structure."""


def path_bytes(stepper: Stepper) -> int:
    """Memory in bytes of a running path: its state, about three copies (gradient, noise, increments) and its draws."""
    one = Stream(np.zeros(2, np.uint32), np.zeros(1, np.uint32))  # type: ignore[arg-type]
    leaves = jax.tree.leaves(_initialised.eval_shape(stepper, one))
    widest = max(a.dtype.itemsize for a in leaves)
    return 4 * sum(int(np.prod(a.shape)) * a.dtype.itemsize for a in leaves) + 2 * widest * stepper.draws


def part_shapes(stepper: Stepper) -> dict[str, Any]:
    """Shapes of the named parts of the states of a stepper, for two paths."""
    stream = Stream(np.zeros(2, np.uint32), np.zeros(2, np.uint32))  # type: ignore[arg-type]
    state = _initialised.eval_shape(stepper, stream)
    wide = jax.tree.map(lambda a: jax.ShapeDtypeStruct((*a.shape[:1], 2), a.dtype) if a.ndim else a, state)
    return jax.eval_shape(stepper.parts, wide)


def kept_shapes(stepper: Stepper, plan: Plan) -> dict[str, tuple[int, ...]]:
    """Shapes, per path and record, of what `plan.keep` names: () for one number; empty without kept paths."""
    if not plan.keep_paths:
        return {}
    parts = part_shapes(stepper)
    return {name: tuple(parts[name].shape[:-1]) if name in parts else () for name in plan.keep}


def kept_rows(stepper: Stepper, plan: Plan) -> int:
    """How many numbers are kept per path and record."""
    return sum(math.prod(shape) for shape in kept_shapes(stepper, plan).values())


def chunk_size(stepper: Stepper, plan: Plan) -> int:
    """Paths per chunk, a multiple of the number of shards, with at most about 1 GiB of states and temporaries.

    On a CPU the limit is about 64 MiB, the size of its caches, but at least 64 paths per device. This smaller limit is
    not used if the sketches of all records, which must be kept when there are several chunks, would be large.
    """
    each = path_bytes(stepper)
    fitting = max(_CHUNK_BYTES // each, plan.width)
    sketches = len(record_steps(plan.steps, plan.record_every)) * BUCKETS * 4
    if plan.devices[0].platform == "cpu" and sketches <= _SKETCH_BYTES:
        fitting = min(fitting, max(_CACHED_BYTES // each, _CACHED_PATHS * plan.width))
    fewest = 1 if stepper.expensive_gradient or each > _SMALL_BYTES else _FEWEST_PATHS
    return min(padded_paths(-(-len(plan.own) // plan.width), fewest), fitting // plan.width) * plan.width


def padded_paths(paths: int, fewest: int = 1) -> int:
    """A number of paths to run instead of `paths`, so that different numbers of paths share a compilation.

    It is `paths` rounded up to a multiple of an eighth of the next lower power of two, which adds less than 12.5 %, or
    of `fewest`.
    """
    multiple = max(1 << max(paths.bit_length() - 4, 0), fewest)
    return -(-paths // multiple) * multiple


def buffer_size(plan: Plan, stepper: Stepper) -> int:
    """Records of one segment at most, whatever the length of the run, so that all lengths share a compilation."""
    fitting = max(1, _BUFFER_BYTES // (4 * (BUCKETS + plan.own_kept * kept_rows(stepper, plan))))
    most = _CPU_SEGMENT_RECORDS if plan.devices[0].platform == "cpu" else _SEGMENT_RECORDS
    return 1 << (min(fitting, most).bit_length() - 1)
