"""Simulation of thousands of paths, sharded over the devices, chunked in memory and reduced while they run.

Paths are the last axis of every array. A chunk of paths is split over all devices with `shard_map`; each device
advances its paths and reduces their statistics at the recorded steps, so memory does not depend on the number of steps.
The host runs short segments one after another, long enough (about half a second) that their start-up time is
negligible, joins their records and reports progress. Random numbers depend on the global index of a path
(`core.random`), never on the device or on the other paths. A share of a run is therefore a range of paths, and a run is
the join of its shares: `run_paths` returns the summaries of a range, `sdelens.run.summary` joins them.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdelens.cases.observables import Observables
from sdelens.core.captured import alike, captured
from sdelens.core.random import Stream, stream_key
from sdelens.integrate import Stepper, Watched
from sdelens.run.checkpoint import Checkpoints, Position, digest
from sdelens.run.options import record_steps
from sdelens.run.plan import Plan
from sdelens.run.segment import (
    PARAMETERS,
    PATHS,
    Carry,
    CompileKey,
    RecordRange,
    initialised,
    placed,
    segment,
    start,
    values,
)
from sdelens.run.statistics import StepStatistics, unpack
from sdelens.run.summary import BUCKETS, GROUPS, Nodes, Summary, add, concatenated, total

__all__ = [
    "chunk_size",
    "compilations",
    "fingerprint",
    "kept_rows",
    "kept_shapes",
    "padded_paths",
    "part_shapes",
    "path_bytes",
    "path_steps",
    "run_ensemble",
    "run_paths",
]

_SEGMENT_SECONDS = 0.5
_SEGMENT_RECORDS, _CPU_SEGMENT_RECORDS = 256, 64
"""Records of one segment at most. A small run pays for all of them; a GPU would pay for the start of more segments."""
_BUFFER_BYTES = 2**26
_CHUNK_BYTES = 2**30
_CACHED_BYTES, _CACHED_PATHS = 2**26, 64
_SKETCH_BYTES = 2**28
_FEWEST_PATHS, _SMALL_BYTES = 16, 1024
"""The paths of a device are a multiple of 16 where a path has at most 1 KiB: so few cost no more than one."""


def path_bytes(stepper: Stepper) -> int:
    """Memory in bytes of a running path: its state, about three copies (gradient, noise, increments) and its draws."""
    one = Stream(np.zeros(2, np.uint32), np.zeros(1, np.uint32))  # type: ignore[arg-type]
    leaves = jax.tree.leaves(jax.eval_shape(initialised, stepper, one))
    widest = max(a.dtype.itemsize for a in leaves)
    return 4 * sum(int(np.prod(a.shape)) * a.dtype.itemsize for a in leaves) + 2 * widest * stepper.draws


def part_shapes(stepper: Stepper) -> dict[str, Any]:
    """Shapes of the named parts of the states of a stepper, for two paths."""
    stream = Stream(np.zeros(2, np.uint32), np.zeros(2, np.uint32))  # type: ignore[arg-type]
    state = jax.eval_shape(initialised, stepper, stream)
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


def path_steps(plan: Plan, position: Position | None) -> int:
    """Number of path-steps, over all paths that are run, that are done at a position of an ensemble."""
    if position is None:
        return 0
    counted = max(min(plan.chunk, plan.own.stop - position.first), 0)
    return (min(position.first, plan.own.stop) - plan.own.start) * plan.steps + min(
        position.done * plan.record_every, plan.steps
    ) * counted


def run_ensemble(
    stepper: Stepper,
    plan: Plan,
    seed: int,
    stream: str,
    offset: float,
    levels: np.ndarray,
    progress: Callable[[int], None] | None = None,
    observables: Observables | None = None,
) -> Summary:
    """The statistics of all paths of `stepper`, with the arguments of `run_paths`."""
    return total(run_paths(stepper, plan, seed, stream, offset, levels, progress, observables))


def run_paths(
    stepper: Stepper,
    plan: Plan,
    seed: int,
    stream: str,
    offset: float,
    levels: np.ndarray | None,
    progress: Callable[[int], None] | None = None,
    observables: Observables | None = None,
    checkpoints: Checkpoints | None = None,
) -> Nodes:
    """Run the paths of `stepper` in `plan.own` and return their statistics at the recorded steps.

    Args:
        stepper: what to run.
        plan: sizes and devices.
        seed: seed of all randomness.
        stream: name of the stream of random numbers; equal names share their draws.
        offset: subtracted from the loss before the quantiles are computed.
        levels: levels of the quantiles, which replace the sketches, of a run of all paths, whose statistics are joined;
            None for a share, whose statistics are to be joined with those of others.
        progress: called with the number of path-steps done since its last call.
        observables: what is recorded in addition to the loss.
        checkpoints: where to resume from and where to save; they do not affect the results.
    """
    position = None if checkpoints is None else checkpoints.position
    position = position or Position(plan.own.start, 0, {}, {}, [])
    nodes = dict(position.merged)
    at_once = levels if len(plan.own) <= plan.chunk else None
    for first in range(position.first, plan.own.stop, plan.chunk):
        found = _run_chunk(stepper, plan, seed, stream, offset, position, at_once, progress, observables, checkpoints)
        for node, summary in found.items():
            add(nodes, node, summary)
        position = Position(first + plan.chunk, 0, dict(nodes), {}, [])
        if checkpoints is not None and position.first < plan.own.stop and checkpoints.due():
            checkpoints.save(position)
    return nodes if levels is None else {(0, 0): total(nodes).with_quantiles(levels)}


def _run_chunk(
    stepper: Stepper,
    plan: Plan,
    seed: int,
    stream: str,
    offset: float,
    position: Position,
    levels: np.ndarray | None,
    progress: Callable[[int], None] | None,
    observables: Observables | None,
    checkpoints: Checkpoints | None,
) -> Nodes:
    """Run one chunk from a position on; if `levels` are given, sketches become quantiles at once, which saves memory.

    All chunks have the same size, so they share one compilation; surplus paths of the last chunk are never counted.
    """
    static, sharded = _laid_out(plan, stepper, observables)
    first = position.first
    paths = jax.device_put(np.arange(first, first + plan.chunk, dtype=np.uint32), sharded)
    key = stream_key(seed, stream)
    stepper, observables = _everywhere(alike((stepper, observables)), static.mesh)
    carry = start(stepper, paths, stream_key(seed, f"start/{stream}"), plan.own.stop, _of_start(static, stepper))
    records = len(record_steps(plan.steps, plan.record_every))
    buffer = _buffer(plan, stepper)
    counted = min(plan.chunk, plan.own.stop - first)
    parts: list[Nodes] = []
    done, length = position.done, 2
    span = RecordRange(done, length, plan.steps, plan.record_every, offset)
    advance = segment.chosen(_repeats(plan), stepper, observables, carry, paths, key, span, static, buffer)
    watched = 1 if observables is None else 1 + len(observables.names)
    if position.records:
        carry, parts = _restored(carry, position.carry), [position.records]
    reported = min(done * plan.record_every, plan.steps)
    cadence = records if checkpoints is None else checkpoints.cadence(plan.record_every, records)

    def laws(at: int, last: bool) -> np.ndarray:
        """Values of every path, shape (1, counted, K), if this record is one of the moments; else (0, counted, K)."""
        if at not in plan.moments or (at == records - 1) != last:
            return np.zeros((0, counted, watched + len(plan.marginals)), np.float32)
        step = np.int32(min(at * plan.record_every, plan.steps))
        found = values(stepper, observables, carry, np.array(plan.marginals, np.int32), step, static)
        return np.asarray(found).T[None, :counted]

    while done < records:
        to_moment = min((m - done for m in plan.moments if done < m < records - 1), default=records)
        length = min(length, records - done, buffer, cadence - done % cadence, to_moment)
        now = laws(done, last=False)
        begin = time.perf_counter()
        span = RecordRange(done, length, plan.steps, plan.record_every, offset)
        carry, out = advance(stepper, observables, carry, paths, key, span, static, buffer)
        part = _to_nodes(jax.tree.map(np.asarray, out), length, first, plan, watched)
        if levels is not None:
            part = {((plan.width - 1).bit_length(), 0): total(part).with_quantiles(levels)}
        parts.append({node: s._replace(laws=now[:, plan.within(node, first)]) for node, s in part.items()})
        seconds = max(time.perf_counter() - begin, 1e-6)
        done += length
        if progress is not None:
            steps_done = min(done * plan.record_every, plan.steps)
            progress((steps_done - reported) * counted)
            reported = steps_done
        if checkpoints is not None and done < records and checkpoints.due(done % cadence == 0):
            parts = [_joined(parts)]
            checkpoints.save(Position(first, done, position.merged, parts[0], jax.tree.leaves(carry)))
        # The first segment may include compilation, so the second is short as well; then lengths grow to the target.
        length = max(1, min(16 * length, int(length * _SEGMENT_SECONDS / seconds)))
    joined = _joined(parts)
    last, hits = laws(records - 1, last=True), _hits(stepper, carry)[:counted]
    return {
        node: summary._replace(
            laws=np.concatenate([summary.laws, last[:, plan.within(node, first)]]),
            hits=hits[plan.within(node, first)],
        )
        for node, summary in joined.items()
    }


def _everywhere(tree: Any, mesh: Mesh) -> Any:
    """Copy the arrays of a tree to all devices once; otherwise every segment would transfer the data again."""
    sharding, placed = NamedSharding(mesh, PartitionSpec()), dict[int, Array]()

    def place(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf
        if id(leaf) not in placed:
            placed[id(leaf)] = jax.device_put(leaf, sharding)
        return placed[id(leaf)]

    return jax.tree.map(place, tree)


def _hits(stepper: Stepper, carry: Carry) -> np.ndarray:
    """The first steps at which conditions held on every path, shape (paths, H + 1); without conditions (paths, 0)."""
    if not isinstance(stepper, Watched) or not stepper.conditions:
        return np.zeros((carry.alive.shape[0], 0), np.int32)
    return np.asarray(carry.state.firsts)[: len(stepper.conditions) + 1].T  # without what fills up the devices


def fingerprint(stepper: Stepper, plan: Plan, observables: Observables | None = None) -> str:
    """SHA-256 of what a run computes: the code of its start and of its segments, and the numbers in them.

    It changes if any function changes from which the code was traced, wherever that function is defined.
    """
    begin, move = _arguments(stepper, plan, 0.0, observables)
    return digest((stepper, observables), start.lower(*begin).as_text() + segment.lower(*move[:-1], 1).as_text())


def compilations(
    stepper: Stepper, plan: Plan, offset: float, observables: Observables | None
) -> tuple[Callable[[], Any] | None, ...]:
    """Trace the programs of a run; returns functions that compile what is not compiled yet (`Program.compilation`)."""
    begin, move = _arguments(stepper, plan, offset, observables)
    found = [start.compilation(1, *begin), segment.compilation(_repeats(plan), *move)]
    if plan.moments:
        stepper, observables, carry, *_, static, _ = move
        chosen = np.array(plan.marginals, np.int32)
        found.append(values.compilation(1, stepper, observables, carry, chosen, 0, static))
    return tuple(found)


def _arguments(
    stepper: Stepper, plan: Plan, offset: float, observables: Observables | None
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The arguments of `start` and of `segment` in a run; large arrays are replaced by their shapes."""
    static, sharded = _laid_out(plan, stepper, observables)
    paths = jax.ShapeDtypeStruct((plan.chunk,), np.uint32, sharding=sharded)
    key = jax.ShapeDtypeStruct((2,), np.uint32)
    stepper, observables = _everywhere(alike((stepper, observables)), static.mesh)
    begin = (stepper, paths, key, plan.own.stop, _of_start(static, stepper))
    carry = placed(start.shapes(*begin), static)
    span = RecordRange(0, 1, plan.steps, plan.record_every, offset)
    buffer = _buffer(plan, stepper)
    return begin, (stepper, observables, carry, paths, key, span, static, buffer)


def _laid_out(plan: Plan, *run: Any) -> tuple[CompileKey, NamedSharding]:
    """The key of the compiled code of `run`, a stepper and observables, and how paths are spread over the devices."""
    shape, axes = (plan.width, plan.parameter_shards), (PATHS, PARAMETERS)
    split = 2 if plan.parameter_shards > 1 else 1
    mesh = Mesh(np.array(plan.devices).reshape(shape[:split]), axes[:split])
    kept = min(plan.own_kept, plan.chunk // plan.width)
    static = CompileKey(mesh, plan.record_every > 1, kept, plan.keep, captured(*run))
    return static, NamedSharding(mesh, PartitionSpec(PATHS))


def _of_start(static: CompileKey, stepper: Stepper) -> CompileKey:
    """The key of the compiled code of the start, which does not depend on what is recorded."""
    return CompileKey(static.mesh, thinned=False, keep_paths=0, captured=captured(stepper))


def _joined(parts: list[Nodes]) -> Nodes:
    """Concatenate the records of one chunk."""
    return {node: concatenated([part[node] for part in parts]) for node in parts[0]}


def _restored(start: Carry, leaves: list[Any]) -> Carry:
    """A carry with the given leaves, with the same sharding as `start`."""
    old, tree = jax.tree.flatten(start)
    return jax.tree.unflatten(tree, [jax.device_put(new, a.sharding) for a, new in zip(old, leaves, strict=True)])


def _buffer(plan: Plan, stepper: Stepper) -> int:
    """Records of one segment at most, whatever the length of the run, so that all lengths share a compilation."""
    fitting = max(1, _BUFFER_BYTES // (4 * (BUCKETS + plan.own_kept * kept_rows(stepper, plan))))
    most = _CPU_SEGMENT_RECORDS if plan.devices[0].platform == "cpu" else _SEGMENT_RECORDS
    return 1 << (min(fitting, most).bit_length() - 1)


def _repeats(plan: Plan) -> int:
    """How often the compiled step is executed on the devices in total, by all runs that share the programs."""
    return plan.runs * plan.steps * plan.width * -(-len(plan.own) // plan.chunk)


def _to_nodes(out: StepStatistics, length: int, first: int, plan: Plan, watched: int) -> Nodes:
    """Join the shards' records of one segment of a chunk from path `first` on: leaves of shape (shards, buffer, …)."""
    nodes: Nodes = {}
    for shard, begin in enumerate(range(first, min(first + plan.chunk, plan.own.stop), plan.block)):
        record = StepStatistics(*(np.asarray(leaf[shard, :length]) for leaf in out))
        whole = unpack(record, begin, GROUPS, watched)
        living, mean, m2 = (a[..., : plan.groups] for a in (whole.living, whole.mean, whole.m2))
        kept = whole.kept[:, : max(min(plan.keep_paths, plan.own.stop) - begin, 0)]
        add(nodes, plan.node(begin), whole._replace(living=living, mean=mean, m2=m2, kept=kept))
    return nodes
