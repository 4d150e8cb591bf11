"""The moments of an optimizer's state over all steps of a run, as records or as a loss that has a derivative."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sdelens.core import check
from sdelens.core.compilation import program
from sdelens.optimizers import (
    AdamW,
    DecayedOptimizer,
    RMSpropW,
)
from sdelens.theory._closure import Moments, advance
from sdelens.theory._fluctuation import law_is_needed
from sdelens.theory._moments import LinearGradient, diagonal

__all__ = ["Record", "propagate", "scanned"]

_MOST_STORED = 2**28
"""Bytes of moments that a derivative stores before it computes blocks of steps twice."""

_ROOM = 4096
"""Most records for which their room is rounded up to a power of 2; beyond it, to a multiple of this."""


class Record(NamedTuple):
    """The record of one step: mean and variance of the loss and of the first coordinates."""

    loss: Any
    loss_variance: Any
    x: Any
    x_variance: Any


def propagate(
    model: LinearGradient, optimizer: DecayedOptimizer, start: Moments, steps: int, record_every: int, kept: int
) -> Record:
    """Propagate moments; record every `record_every`-th step and the last, with the first `kept` coordinates.

    Steps and records are arguments of the compiled program; only the room for records, rounded up, is part of it. If
    JAX traces a number (in jit, grad or vmap), the steps are unrolled as `scanned` does, and the record consists of
    traced arrays.
    """
    full, rest = divmod(steps, record_every)
    rows = full + 1 + (rest > 0)
    room = 2 ** max(rows - 1, 63).bit_length() if rows <= _ROOM else -(-rows // _ROOM) * _ROOM
    use_law = isinstance(optimizer, RMSpropW | AdamW) and law_is_needed(model.noise, optimizer.b2, start.x)
    if check.any_traced(model, optimizer, start):
        return scanned(model, optimizer, start, steps, record_every, kept, use_law)
    records = _propagate(model, optimizer, start, full, record_every, rest, room, kept, use_law)
    return jax.tree.map(lambda a: np.asarray(a)[:rows], records)


@program(static_argnums=(6, 7, 8))
def _propagate(
    model: LinearGradient,
    optimizer: DecayedOptimizer,
    y: Moments,
    full: Array,
    every: Array,
    rest: Array,
    room: int,
    kept: int,
    use_law: bool,
) -> Record:
    def observe(y: Moments) -> Record:
        return Record(*model.loss(y.x, y.xx), y.x[:kept], diagonal(y.xx)[:kept])

    def several(k: Array, y: Moments, count: Array) -> Moments:
        return lax.fori_loop(k, k + count, lambda k, y: advance(model, optimizer, y, k, use_law), y)

    def keep(records: Record, i: Array, y: Moments) -> Record:
        return jax.tree.map(lambda a, b: a.at[i].set(b), records, observe(y))

    def body(i: Array, carry: tuple[Moments, Record]) -> tuple[Moments, Record]:
        y, records = carry
        return several(i * every, y, every), keep(records, i, y)

    records = jax.tree.map(lambda a: jnp.zeros((room, *a.shape), a.dtype), jax.eval_shape(observe, y))
    y, records = lax.fori_loop(0, full, body, (y, records))
    records = keep(records, full, y)
    return keep(records, full + jnp.minimum(rest, 1), several(full * every, y, rest))


def scanned(
    model: LinearGradient,
    optimizer: DecayedOptimizer,
    start: Moments,
    steps: int,
    every: int,
    kept: int,
    use_law: bool | Array,
) -> Record:
    """As `_propagate`, by loops of known length that reverse-mode differentiation can run backwards.

    Only the moments before every step are stored, and a step is computed again when its derivative is needed. If they
    take more than 256 MB, steps are in blocks of about √steps, of which only the first moments are stored, so that
    memory grows as √steps.
    """

    def observe(y: Moments) -> Record:
        return Record(*model.loss(y.x, y.xx), y.x[:kept], diagonal(y.xx)[:kept])

    @jax.checkpoint
    def step(y: Moments, k: Array) -> tuple[Moments, Record]:
        y = advance(model, optimizer, y, k, use_law)
        return y, observe(y)

    @jax.checkpoint
    def block(y: Moments, ks: Array) -> tuple[Moments, Record]:
        return lax.scan(step, y, ks)

    y = jax.tree.map(jnp.asarray, start)
    stored = steps * sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(y))
    length = _block_length(steps) if stored > _MOST_STORED else steps
    blocks, rest = divmod(steps, length)
    ks = jnp.arange(steps)
    parts = [jax.tree.map(lambda a: a[None], observe(y))]
    if blocks == 1:
        y, records = lax.scan(step, y, ks[:length])
        parts.append(records)
    else:
        y, records = lax.scan(block, y, ks[: blocks * length].reshape(blocks, length))
        parts.append(jax.tree.map(lambda a: a.reshape(blocks * length, *a.shape[2:]), records))
    if rest:
        parts.append(block(y, ks[blocks * length :])[1])
    at = jnp.asarray(np.unique(np.append(np.arange(0, steps + 1, every), steps)))
    return jax.tree.map(lambda *a: jnp.concatenate(a)[at], *parts)


def _block_length(steps: int) -> int:
    """A number of steps near √steps that divides them if there is one within a factor of 4, else √steps."""
    near = math.isqrt(steps)
    fits = [n for n in range(max(near // 4, 1), 4 * near + 1) if steps % n == 0]
    return min(fits, key=lambda n: abs(math.log(n / near))) if fits and max(fits) > 1 else near
