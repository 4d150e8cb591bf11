"""The plan of a run: its options, checked against the problem and the devices, and the paths of its shares."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sdelens.core import check
from sdelens.run.options import Options, record_steps
from sdelens.run.summary import GROUPS

__all__ = ["Plan", "checked_seed", "paths_of_share", "plan_of"]


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
        share: first index and end (exclusive) of the paths that are run; None: all of them.
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
    def block(self) -> int:
        """Number of paths of a shard in a chunk; statistics are joined by these blocks."""
        return self.chunk // self.width

    @property
    def own(self) -> range:
        """The paths that are run."""
        return range(*(self.share or (0, self.paths)))

    @property
    def own_kept(self) -> int:
        """Number of the paths that are run and stored (the first `keep_paths` paths of the ensemble)."""
        return len(range(self.own.start, min(self.keep_paths, self.own.stop)))

    def node(self, path: int) -> tuple[int, int]:
        """The node of the tree of joins for the block that begins with this path, one of those that are run."""
        return 0, self.own.start // self.block + (path - self.own.start) // self.block

    def within(self, node: tuple[int, int], first: int) -> slice:
        """The paths of a node, counted from path `first`."""
        level, index = node
        begin = self.own.start + ((index << level) - self.own.start // self.block) * self.block - first
        return slice(begin, begin + (self.block << level))


def plan_of(options: Options, dim: int) -> Plan:
    """The checked plan of a run on a problem with `dim` coordinates; its default chunk is chosen later by `prepare`.

    Raises:
        ValueError, TypeError: naming the option out of range.
    """
    steps = check.at_least("steps", options.steps, 1)
    paths = check.at_least("paths", options.paths, 1)
    if paths >= 2**31:
        raise ValueError(f"paths: got {paths}; it must be less than 2³¹.")
    if steps >= 2**31:
        raise ValueError(f"steps: got {steps}; it must be less than 2³¹.")
    every, keep = min(int(options.record.every), steps), min(int(options.record.keep_paths), paths)
    share = paths_of_share(paths, options.execution.share, options.execution.chunk)
    own = paths if share is None else share[1] - share[0]
    chunk = options.execution.chunk
    if (
        share is not None
        and chunk is not None
        and share[0] % chunk == 0
        and (share[1] % chunk == 0 or share[1] == paths)
    ):
        own = paths  # whole chunks, as they are in a run of all paths
    found, shards = _chosen_devices(options.execution.devices), int(options.execution.parameter_shards)
    if shards > 1 and (shards > dim or len(found) % shards):
        raise ValueError(
            f"parameter_shards: got {shards}; it must divide the number of devices, {len(found)}, and be at most the "
            f"number of parameters, {dim}."
        )
    used = found[: own * shards]
    width = len(used) // shards
    chunk = own if chunk is None else min(int(chunk), own)
    chunk = -(-chunk // width) * width
    marginals = _chosen_marginals(options.record.marginals, dim)
    moments = _chosen_moments(options.record.times, bool(marginals), record_steps(steps, every))
    kept = tuple(options.record.keep)
    return Plan(steps, paths, every, chunk, keep, used, marginals, moments, kept, share, shards)


def paths_of_share(paths: int, share: tuple[int, int] | None, chunk: int | None) -> tuple[int, int] | None:
    """First path and end (exclusive) of share i of n: whole chunks if there are enough of a given size, else paths.

    They do not depend on the machine. With u units of a chunk or of one path, the share begins with unit ⌊iu/n⌋.

    Raises:
        ValueError: if there are more shares than paths.
    """
    if share is None:
        return None
    index, count = share
    if paths < count:
        raise ValueError(f"paths: got {paths}, which cannot be divided into {count} shares; give fewer shares.")
    unit = 1 if chunk is None or -(-paths // chunk) < count else int(chunk)
    units = -(-paths // unit)
    first, end = (min(units * i // count * unit, paths) for i in (index, index + 1))
    return first, end


def checked_seed(options: Options) -> int:
    """The seed, checked.

    Raises:
        ValueError, TypeError: if it is not a whole number in [0, 2⁶⁴).
    """
    seed = check.at_least("seed", options.seed, 0)
    if seed >= 2**64:
        raise ValueError(f"seed: got {seed}; it must be less than 2⁶⁴.")
    return seed


def _chosen_marginals(wanted: Any, dim: int) -> tuple[int, ...]:
    """The coordinates whose values are stored for every path: the given indices, or a number of evenly spaced ones."""
    if wanted is None:
        return ()
    if isinstance(wanted, str):
        raise TypeError(f"marginals: got {wanted!r}; give a number of coordinates, or a list of their indices.")
    if np.ndim(wanted) == 0 and not isinstance(wanted, set):
        count = min(check.at_least("marginals", wanted, 0), dim)
        return tuple(int(i) for i in np.linspace(0, dim - 1, count).round())
    chosen = tuple(
        check.at_least("marginals", index, 0) for index in (sorted(wanted) if isinstance(wanted, set) else wanted)
    )
    if chosen and max(chosen) >= dim:
        raise ValueError(f"marginals: got {max(chosen)}; give indices from 0 to {dim - 1}.")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"marginals: got {chosen}; give each coordinate once.")
    return chosen


def _chosen_moments(wanted: Any, marginals: bool, steps: np.ndarray) -> tuple[int, ...]:
    """The indices, among the recorded steps, of those at which values of every path are stored."""
    last = len(steps) - 1
    if wanted is None:
        return (last,) if marginals else ()
    if isinstance(wanted, str):
        raise TypeError(f"times: got {wanted!r}; give a number of recorded steps, or a list of steps.")
    if np.ndim(wanted) == 0 and not isinstance(wanted, set):
        count = check.at_least("times", wanted, 1)
        return tuple(sorted({int(i) for i in np.linspace(0, last, count + 1).round()[1:]}))
    found = sorted({check.at_least("times", step, 0) for step in wanted})
    unknown = [step for step in found if step not in steps]
    if unknown:
        raise ValueError(
            f"times: got {unknown[0]}, which is not a recorded step; give multiples of {steps[1]} or the last step, "
            f"{steps[-1]}, or choose another record.every."
        )
    return tuple(int(np.searchsorted(steps, step)) for step in found)


def _chosen_devices(wanted: Any) -> tuple[Any, ...]:
    """The devices to shard over: all devices of this process, the first few, or those that were passed."""
    found = tuple(jax.local_devices())
    if wanted is None:
        return found
    if not isinstance(wanted, Sequence) or isinstance(wanted, str):
        count = check.at_least("devices", wanted, 1)
        if count > len(found):
            raise ValueError(
                f"devices: got {count}, but JAX finds only {len(found)} ({found[0].platform}); give {len(found)} or "
                "fewer."
            )
        return found[:count]
    given = tuple(wanted)
    if not given or not set(given) <= set(found) or len(set(given)) < len(given):
        raise ValueError(f"devices: got {given}; give a number, or distinct devices from jax.local_devices().")
    return given
