"""Simulation of thousands of paths, sharded over the devices, chunked in memory and reduced while they run.

Paths are the last axis of every array. A chunk of paths is split over all devices with `shard_map`; each device
advances its paths and reduces their statistics at the recorded steps, so memory does not depend on the number of steps.
The host runs short segments one after another, long enough (about half a second) that their start-up time is
negligible, joins their records and reports progress. Random numbers depend on the global index of a path
(`core.random`), never on the device or on the other paths. A share of a run is therefore a range of paths, and a run is
the join of its shares: `run_paths` returns the summaries of a range, `sdelens.run.summary` joins them.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sdelens.cases.observables import Observables
from sdelens.core.random import stream_key
from sdelens.integrate import Stepper, Watched
from sdelens.run.checkpoint import Checkpoints, Position
from sdelens.run.options import record_steps
from sdelens.run.plan import Plan
from sdelens.run.programs import Programs
from sdelens.run.segment import Carry, RecordRange, values
from sdelens.run.statistics import StepStatistics, unpack
from sdelens.run.summary import GROUPS, Nodes, Summary, add, concatenated, total

__all__ = ["path_steps", "run_ensemble", "run_paths"]

_SEGMENT_SECONDS = 0.5


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
    """The statistics of all paths of `stepper`, with the arguments of `Programs` and `run_paths`."""
    return total(run_paths(Programs(stepper, plan, offset, observables), seed, stream, levels, progress))


def run_paths(
    programs: Programs,
    seed: int,
    stream: str,
    levels: np.ndarray | None,
    progress: Callable[[int], None] | None = None,
    checkpoints: Checkpoints | None = None,
) -> Nodes:
    """Run the paths of a plan and return their statistics at the recorded steps.

    Args:
        programs: what to run.
        seed: seed of all randomness.
        stream: name of the stream of random numbers; equal names share their draws.
        levels: levels of the quantiles, which replace the sketches, of a run of all paths, whose statistics are joined;
            None for a share, whose statistics are to be joined with those of others.
        progress: called with the number of path-steps done since its last call.
        checkpoints: where to resume from and where to save; they do not affect the results.
    """
    plan = programs.plan
    position = None if checkpoints is None else checkpoints.position
    position = position or Position(plan.own.start, 0, {}, {}, [])
    nodes = dict(position.merged)
    at_once = levels if len(plan.own) <= plan.chunk else None
    held = programs.placed()
    for first in range(position.first, plan.own.stop, plan.chunk):
        found = _run_chunk(programs, *held, seed, stream, position, at_once, progress, checkpoints)
        for node, summary in found.items():
            add(nodes, node, summary)
        position = Position(first + plan.chunk, 0, dict(nodes), {}, [])
        if checkpoints is not None and position.first < plan.own.stop and checkpoints.due():
            checkpoints.save(position)
    return nodes if levels is None else {(0, 0): total(nodes).with_quantiles(levels)}


def _run_chunk(
    programs: Programs,
    stepper: Stepper,
    observables: Observables | None,
    seed: int,
    stream: str,
    position: Position,
    levels: np.ndarray | None,
    progress: Callable[[int], None] | None,
    checkpoints: Checkpoints | None,
) -> Nodes:
    """Run one chunk from a position on; if `levels` are given, sketches become quantiles at once, which saves memory.

    All chunks have the same size, so they share one compilation; surplus paths of the last chunk are never counted.
    """
    plan, static, buffer, watched = programs.plan, programs.static, programs.buffer, programs.watched
    first = position.first
    paths = jax.device_put(np.arange(first, first + plan.chunk, dtype=np.uint32), programs.sharded)
    key = stream_key(seed, stream)
    carry = programs.started(stepper, paths, seed, stream)
    records = len(record_steps(plan.steps, plan.record_every))
    counted = min(plan.chunk, plan.own.stop - first)
    parts: list[Nodes] = []
    done, pace, advance = position.done, programs.pace, programs.segment.function
    length = 2 if pace is None else max(1, int(_SEGMENT_SECONDS / pace))
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
        span = RecordRange(done, length, plan.steps, plan.record_every, programs.offset)
        carry, out = advance(stepper, observables, carry, paths, key, span, static, buffer)
        part = _to_nodes(jax.tree.map(np.asarray, out), length, first, plan, watched)
        if levels is not None:
            part = {((plan.width - 1).bit_length(), 0): total(part).with_quantiles(levels)}
        parts.append({node: s._replace(laws=now[:, plan.within(node, first)]) for node, s in part.items()})
        seconds = max(time.perf_counter() - begin, 1e-6)
        done += length
        steps_done = min(done * plan.record_every, plan.steps)
        programs.timed(steps_done - reported, seconds)
        if progress is not None:
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


def _hits(stepper: Stepper, carry: Carry) -> np.ndarray:
    """The first steps at which conditions held on every path, shape (paths, H + 1); without conditions (paths, 0)."""
    if not isinstance(stepper, Watched) or not stepper.conditions:
        return np.zeros((carry.alive.shape[0], 0), np.int32)
    return np.asarray(carry.state.firsts)[: len(stepper.conditions) + 1].T  # without what fills up the devices


def _joined(parts: list[Nodes]) -> Nodes:
    """Concatenate the records of one chunk."""
    return {node: concatenated([part[node] for part in parts]) for node in parts[0]}


def _restored(start: Carry, leaves: list[Any]) -> Carry:
    """A carry with the given leaves, with the same sharding as `start`."""
    old, tree = jax.tree.flatten(start)
    return jax.tree.unflatten(tree, [jax.device_put(new, a.sharding) for a, new in zip(old, leaves, strict=True)])


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
