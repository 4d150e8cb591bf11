"""Simulation of thousands of paths, sharded over the devices, chunked in memory and reduced while they run.

Paths are the last axis of every array. A chunk of paths is split over all devices with `shard_map`; each device
advances its paths and reduces their statistics at the recorded steps, so memory does not depend on the number of steps.
The host runs short segments one after another, long enough (about half a second) that their start-up time is
negligible, joins their records and reports progress. Random numbers depend on the global index of a path
(`core.random`), never on the device or on the other paths. With several processes, each process runs a range of paths
on its devices, independently of the others; only their summaries are joined.
"""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdelens.cases.observables import Observables
from sdelens.core.captured import alike, captured
from sdelens.core.random import Stream, stream_key
from sdelens.integrate import Stepper, Watched
from sdelens.run.checkpoint import Checkpoints, Position, digest, packed, unpacked
from sdelens.run.processes import ALONE, Group
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
from sdelens.run.statistics import BUCKETS, GROUPS, StepStatistics, Summary, merge, quantiles, unpack
from sdelens.run.store import decoded, encoded

__all__ = [
    "Plan",
    "chunk_size",
    "compilations",
    "fingerprint",
    "kept_rows",
    "kept_shapes",
    "padded_paths",
    "part_shapes",
    "path_bytes",
    "path_steps",
    "record_steps",
    "run_ensemble",
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


class Plan(NamedTuple):
    """Sizes and devices of an ensemble; hashable, so that equal plans share one compilation.

    Attributes:
        steps: optimizer steps.
        paths: number of paths.
        record_every: steps between records; the last step is always recorded.
        chunk: number of paths that are simulated at once.
        keep_paths: number of paths whose full trajectory is stored.
        devices: the devices to shard over.
        marginals: coordinates whose values are stored for every path at the moments.
        moments: indices of the records at which values of every path are stored.
        keep: what is stored of the paths whose trajectory is stored.
        share: first index and end (exclusive) of the paths that this process runs; None: all of them.
        parameter_shards: number of devices over which the parameters of each path are split.
        runs: number of runs of this size that share compiled programs, such as the points of a sweep.
    """

    steps: int
    paths: int
    record_every: int
    chunk: int
    keep_paths: int
    devices: tuple[Any, ...]
    marginals: tuple[int, ...] = ()
    moments: tuple[int, ...] = ()
    keep: tuple[str, ...] = ("x",)
    share: tuple[int, int] | None = None
    parameter_shards: int = 1
    runs: int = 1

    @property
    def width(self) -> int:
        """Number of shards of paths; the size of a chunk is a multiple of it."""
        return len(self.devices) // self.parameter_shards

    @property
    def groups(self) -> int:
        """Number of groups of paths."""
        return min(GROUPS, self.paths)

    @property
    def own(self) -> range:
        """The paths that this process runs."""
        return range(*(self.share or (0, self.paths)))

    @property
    def own_kept(self) -> int:
        """Number of this process's paths whose trajectory is stored (the first `keep_paths` paths of the ensemble)."""
        return len(range(self.own.start, min(self.keep_paths, self.own.stop)))


def record_steps(steps: int, record_every: int) -> np.ndarray:
    """Recorded steps: 0, every `record_every`-th, and the last."""
    return np.minimum(np.arange(-(-steps // record_every) + 1) * record_every, steps)


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
    """Number of path-steps, over all paths of this process, that are done at a position of an ensemble."""
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
    checkpoints: Checkpoints | None = None,
    group: Group = ALONE,
) -> Summary:
    """Run all paths of `stepper` and return their statistics at the recorded steps.

    Args:
        stepper: what to run.
        plan: sizes and devices.
        seed: seed of all randomness.
        stream: name of the stream of random numbers; equal names share their draws.
        offset: subtracted from the loss before the quantiles are computed.
        levels: levels of the quantiles, which replace the histogram in the summary.
        progress: called with the number of path-steps done since its last call.
        observables: what is recorded in addition to the loss.
        checkpoints: where to resume from and where to save; they do not affect the results.
        group: the processes, each of which runs a share of the paths; all return the statistics of all paths.
    """
    position = None if checkpoints is None else checkpoints.position
    position = position or Position(plan.own.start, 0, None, None, [])
    summary = position.merged
    one_chunk = group.count == 1 and len(plan.own) <= plan.chunk
    for first in range(position.first, plan.own.stop, plan.chunk):
        part = _run_chunk(
            stepper,
            plan,
            seed,
            stream,
            offset,
            position,
            levels if one_chunk else None,
            progress,
            observables,
            checkpoints,
        )
        summary = merge(summary, part)
        summary = summary._replace(kept=summary.kept[:, : plan.own_kept])
        position = Position(first + plan.chunk, 0, summary, None, [])
        if checkpoints is not None and (group.count > 1 or position.first < plan.own.stop) and checkpoints.due():
            checkpoints.save(position)
    assert summary is not None
    if group.count > 1:
        return _of_all(summary, levels, stream, group)
    return summary if one_chunk else summary._replace(histogram=quantiles(summary.histogram, levels))


def _of_all(summary: Summary, levels: np.ndarray, stream: str, group: Group) -> Summary:
    """Join the statistics of the paths of all processes, in the order of the processes."""

    def join(parts: list[bytes]) -> bytes:
        total: Summary | None = None
        for part in parts:
            total = merge(total, unpacked(decoded(part)[0], ""))
        assert total is not None
        return encoded(packed(total._replace(histogram=quantiles(total.histogram, levels)), ""), {})

    return unpacked(decoded(group.combine(stream, encoded(packed(summary, ""), {}), join))[0], "")


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
) -> Summary:
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
    parts: list[Summary] = []
    done, length = position.done, 2
    span = RecordRange(done, length, plan.steps, plan.record_every, offset)
    advance = segment.chosen(_repeats(plan), stepper, observables, carry, paths, key, span, static, buffer)
    watched = 1 if observables is None else 1 + len(observables.names)
    if position.records is not None:
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
        part = _to_summary(jax.tree.map(np.asarray, out), length, first, plan, watched)._replace(laws=now)
        if levels is not None:
            part = part._replace(histogram=quantiles(part.histogram, levels))
        parts.append(part)
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
    found = np.concatenate([joined.laws, laws(records - 1, last=True)])
    return joined._replace(laws=found, hits=_hits(stepper, carry)[:counted])


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


def _joined(parts: list[Summary]) -> Summary:
    """Concatenate the records of one chunk."""
    return Summary(*(np.concatenate(pieces, axis=0) for pieces in zip(*parts, strict=True)))


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


def _to_summary(out: StepStatistics, length: int, first: int, plan: Plan, watched: int) -> Summary:
    """Join the shards' records of one segment of a chunk from path `first` on: leaves of shape (shards, buffer, …)."""
    summary: Summary | None = None
    for shard in range(plan.width):
        record = StepStatistics(*(np.asarray(leaf[shard, :length]) for leaf in out))
        begin = first + shard * (plan.chunk // plan.width)
        summary = merge(summary, unpack(record, begin, GROUPS, watched))
    assert summary is not None
    living, mean, m2 = (a[..., : plan.groups] for a in (summary.living, summary.mean, summary.m2))
    return summary._replace(living=living, mean=mean, m2=m2)
