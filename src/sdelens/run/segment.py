"""The programs that run on the devices: initial states, and segments of a run, compiled once for every structure.

Paths are the last axis of every array and are split over the mesh's axis of paths by `shard_map`, without communication
along that axis. A second axis of the mesh, if there is one, splits the parameters of each path; along it the compiler
inserts the communication.
"""

from collections.abc import Hashable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdelens.cases.observables import Observables
from sdelens.core.compilation import Program
from sdelens.core.random import Stream
from sdelens.core.tree import sum_coordinates
from sdelens.integrate import Stepper
from sdelens.run.statistics import StepStatistics, observe
from sdelens.run.summary import GROUPS

__all__ = [
    "PARAMETERS",
    "PATHS",
    "Carry",
    "CompileKey",
    "RecordRange",
    "initialised",
    "placed",
    "segment",
    "start",
    "values",
]

PATHS, PARAMETERS = "paths", "parameters"
"""Axes of the mesh."""


class CompileKey(NamedTuple):
    """The static properties that compiled code depends on.

    Attributes:
        mesh: mesh of the devices, with an axis of paths and possibly one of parameters.
        thinned: whether some steps are not recorded.
        keep_paths: number of paths of a shard of which all records are kept.
        keep: names of what is kept of them: parts of the state, the loss, observables.
        captured: what the functions of the user read from outside, see `core.captured`.
    """

    mesh: Mesh
    thinned: bool
    keep_paths: int
    keep: tuple[str, ...] = ("x",)
    captured: Hashable = ()

    @property
    def shards(self) -> int:
        """Number of devices over which the parameters of one path are split."""
        return int(self.mesh.shape.get(PARAMETERS, 1))


class RecordRange(NamedTuple):
    """The records of one segment: `length` records, starting with record `done`, of a run of `steps` steps."""

    done: Any
    length: Any
    steps: Any
    record_every: Any
    offset: Any


class Carry(NamedTuple):
    """The current states of all paths, and which paths are alive.

    If parameters are split, the first axis of every leaf is padded to a multiple of the number of devices.
    """

    state: Any
    alive: Array


def initialised(stepper: Stepper, stream: Stream) -> Any:
    """Call `stepper.init`; a module-level function, which JAX recognises, so it traces each stepper structure once."""
    return stepper.init(stream)


def placed(carry: Carry, static: CompileKey) -> Carry:
    """Shapes of a carry, each with its sharding."""

    def shape(leaf: Any, spec: PartitionSpec) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(static.mesh, spec))

    return Carry(
        jax.tree.map(lambda a: shape(a, _spec(a, static)), carry.state), shape(carry.alive, PartitionSpec(PATHS))
    )


def _started(stepper: Stepper, paths: Array, key: Array, total: Any, static: CompileKey) -> Carry:
    """Initial states of all paths; paths with index `total` or above only fill up the devices and are never counted."""
    sharding = partial(NamedSharding, static.mesh)

    def spread(leaf: Array) -> Array:
        if leaf.ndim == 0:
            return lax.with_sharding_constraint(leaf, sharding(PartitionSpec()))
        wide = leaf if leaf.ndim > 1 else jnp.broadcast_to(leaf[:, None], (*leaf.shape, paths.shape[0]))
        padded = _padded(wide, static)
        return lax.with_sharding_constraint(padded, sharding(_spec(padded, static)))

    state = jax.tree.map(lambda a: spread(jnp.asarray(a)), stepper.init(Stream(key, paths)))
    return Carry(state, lax.with_sharding_constraint(paths < total, sharding(PartitionSpec(PATHS))))


start = Program(_started, static_argnames=("static",))
"""Initial states of all paths, with the arguments of `_started`."""


def _advanced(
    stepper: Stepper,
    observables: Observables | None,
    carry: Carry,
    paths: Array,
    key: Any,
    span: RecordRange,
    static: CompileKey,
    buffer: int,
) -> tuple[Carry, StepStatistics]:
    """Advance by the records of `span`; the first `span.length` entries of the buffer are filled.

    If every step is recorded, or if ∇f is needed and dominates the cost of a step, one loop over steps evaluates ∇f
    once for a record and the step after it. Otherwise a loop over records evaluates it separately for the record.
    """
    by_path = jax.tree.map(lambda a: PartitionSpec(*[None] * (a.ndim - 1), PATHS) if a.ndim else PartitionSpec(), carry)
    whole = jax.eval_shape(initialised, stepper, Stream(key, paths))
    rows = jax.tree.map(lambda a: a.shape[0] if a.ndim else 0, whole)

    @partial(
        jax.shard_map,
        mesh=static.mesh,
        in_specs=(PartitionSpec(), PartitionSpec(), by_path, PartitionSpec(PATHS), PartitionSpec(), PartitionSpec()),
        out_specs=(by_path, PartitionSpec(PATHS)),
        axis_names={PATHS},
        check_vma=False,
    )
    def shard(
        stepper: Stepper, observables: Observables | None, carry: Carry, paths: Array, key: Array, span: RecordRange
    ) -> tuple[Carry, StepStatistics]:
        stream = Stream(key, paths)
        every, end = span.record_every, span.steps

        def held(state: Any) -> Any:
            return jax.tree.map(partial(_held, static=static), state)

        def record(k: Any, carry: Carry, loss: Array, grad: Array) -> tuple[Array, StepStatistics]:
            return _recorded(stepper, observables, carry, loss, grad, k, span.offset, static)

        def written(out: StepStatistics, row: Array, new: StepStatistics) -> StepStatistics:
            return jax.tree.map(lambda a, b: lax.dynamic_update_index_in_dim(a, b.astype(a.dtype), row, 0), out, new)

        def along_steps(k: Array, loop: tuple[Carry, StepStatistics]) -> tuple[Carry, StepStatistics]:
            carry, out = loop
            loss, grad = stepper.evaluate(stepper.position(carry.state))
            row = -(-k // every) - span.done
            if static.thinned:  # steps that are not recorded are written to an extra row after the last
                due = (k % every == 0) | (k == end)
                alive, new = lax.cond(due, lambda: record(k, carry, loss, grad), lambda: (carry.alive, empty))
                row = jnp.where(due, row, buffer)
            else:
                alive, new = record(k, carry, loss, grad)
            state = lax.cond(k < end, lambda y: held(stepper.step(k, y, grad, stream)), lambda y: y, carry.state)
            return Carry(state, alive), written(out, row, new)

        def along_records(i: Array, loop: tuple[Carry, StepStatistics]) -> tuple[Carry, StepStatistics]:
            carry, out = loop
            first = (span.done + i) * every
            alive, new = record(jnp.minimum(first, end), carry, *stepper.evaluate(stepper.position(carry.state)))

            state = stepper.steps(first, jnp.minimum(first + every, end), carry.state, stream, held)
            return Carry(state, alive), written(out, i, new)

        state = jax.tree.map(lambda a, n: _held(a[:n], static) if n else a, carry.state, rows)
        shared = not static.thinned or (stepper.needs_gradient and stepper.expensive_gradient)
        carry = Carry(state, carry.alive)
        shapes = jax.eval_shape(lambda c: record(0, c, *stepper.evaluate(stepper.position(c.state)))[1], carry)
        empty = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        out = jax.tree.map(lambda a: jnp.zeros((buffer + (shared and static.thinned), *a.shape), a.dtype), shapes)
        if shared:
            beyond = span.done + span.length
            last = jnp.where((beyond - 1) * every >= end, end + 1, jnp.minimum(beyond * every, end))
            carry, out = lax.fori_loop(jnp.minimum(span.done * every, end), last, along_steps, (carry, out))
        else:
            carry, out = lax.fori_loop(0, span.length, along_records, (carry, out))
        state = jax.tree.map(partial(_padded, static=static), carry.state)
        return Carry(state, carry.alive), jax.tree.map(lambda a: a[None], out)

    carry, out = shard(stepper, observables, carry, paths, key, span)
    if static.shards > 1:
        state = jax.tree.map(
            lambda a: lax.with_sharding_constraint(a, NamedSharding(static.mesh, _spec(a, static))), carry.state
        )
        carry = Carry(state, carry.alive)
    return carry, out


segment = Program(_advanced, static_argnames=("static", "buffer"), donate_argnames=("carry",))
"""Advance by the records of a span, with the arguments of `_advanced`."""


def _recorded(
    stepper: Stepper,
    observables: Observables | None,
    carry: Carry,
    loss: Array,
    grad: Array,
    step: Any,
    offset: Any,
    static: CompileKey,
) -> tuple[Array, StepStatistics]:
    """Which of a shard's paths are alive at a record, and its statistics."""
    x, parts = stepper.position(carry.state), stepper.parts(carry.state)
    alive, square = _alive(carry.alive, x, loss, grad)
    watched = x[:0] if observables is None else observables(x, grad, parts, step)
    rows = _kept(static, parts, loss, watched, observables)
    seen = stepper.observables(carry.state)
    return alive, observe(loss, watched, jnp.sqrt(square), rows, seen, alive, GROUPS, offset)


def _alive(alive: Array, x: Array, loss: Array, grad: Array) -> tuple[Array, Array]:
    """Which paths are still finite, and ‖∇f‖².

    If a coordinate is not finite, neither are the sums; a coordinate that makes them overflow counts as diverged too.
    """
    square = sum_coordinates(grad.astype(jnp.result_type(grad, jnp.float32)) ** 2)
    return alive & jnp.isfinite(loss) & jnp.isfinite(square + sum_coordinates(x)), square


def _values(
    stepper: Stepper, observables: Observables | None, carry: Carry, coordinates: Any, step: Any, static: CompileKey
) -> Array:
    """The loss, the observables and the chosen coordinates of every path, shape (K, P); NaN for diverged paths."""
    paths = carry.alive.shape[0]
    stream = Stream(*(jax.ShapeDtypeStruct(shape, jnp.uint32) for shape in ((2,), (paths,))))  # type: ignore[arg-type]
    whole = jax.eval_shape(initialised, stepper, stream)
    state = jax.tree.map(lambda a, b: a[: b.shape[0]] if a.ndim else a, carry.state, whole)
    x = stepper.position(state)
    loss, grad = stepper.evaluate(x)
    alive, _ = _alive(carry.alive, x, loss, grad)
    watched = x[:0] if observables is None else observables(x, grad, stepper.parts(state), step)
    rows = [loss[None], watched, x[jnp.asarray(coordinates, jnp.int32)]]
    wide = jnp.result_type(loss, jnp.float32)
    return jnp.where(alive, jnp.concatenate([row.astype(wide) for row in rows]), jnp.nan)


values = Program(_values, static_argnames=("static",))
"""What is stored of every path at one moment, with the arguments of `_values`."""


def _kept(
    static: CompileKey, parts: Mapping[str, Array], loss: Array, watched: Array, observables: Observables | None
) -> Array:
    """What is kept of the first paths, one after another: parts of the state, loss, observables; (rows, kept)."""
    columns = {} if observables is None else dict(zip(observables.names, watched, strict=True))
    found = {"loss": loss, **columns, **parts}
    rows = [found[name].reshape(-1, loss.shape[0])[:, : static.keep_paths] for name in static.keep]
    return rows[0] if len(rows) == 1 else jnp.concatenate(rows)


def _spec(leaf: Array, static: CompileKey) -> PartitionSpec:
    if leaf.ndim == 0:
        return PartitionSpec()
    if leaf.ndim == 1 or static.shards == 1:
        return PartitionSpec(*[None] * (leaf.ndim - 1), PATHS)
    return PartitionSpec(PARAMETERS, *[None] * (leaf.ndim - 2), PATHS)


def _padded(leaf: Array, static: CompileKey) -> Array:
    """Pad with zeros along the first axis, because stored arrays must have equal parts on all devices."""
    missing = -leaf.shape[0] % static.shards if leaf.ndim > 1 else 0
    return jnp.pad(leaf, [(0, missing)] + [(0, 0)] * (leaf.ndim - 1)) if missing else leaf


def _held(leaf: Array, static: CompileKey) -> Array:
    """Constrain a leaf to be split over the axis of parameters, within a shard of paths."""
    if static.shards == 1 or leaf.ndim < 2:
        return leaf
    own = PartitionSpec(PARAMETERS, *[None] * (leaf.ndim - 1))
    return lax.with_sharding_constraint(leaf, NamedSharding(jax.sharding.get_abstract_mesh(), own))
