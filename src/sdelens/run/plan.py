"""The plan of a run: its options, checked against the problem, the devices and the processes."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from sdelens.core import check
from sdelens.run import processes
from sdelens.run.ensemble import Plan, record_steps
from sdelens.run.options import Options

__all__ = ["checked_seed", "plan_of"]


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
    group = processes.current()
    if paths < group.count:
        raise ValueError(f"paths: got {paths}; give at least one path for each of the {group.count} processes.")
    every, keep = min(int(options.record.every), steps), min(int(options.record.keep_paths), paths)
    share = group.share(paths)
    own = share[1] - share[0]
    found, shards = _chosen_devices(options.execution.devices), int(options.execution.parameter_shards)
    if shards > 1 and (shards > dim or len(found) % shards):
        raise ValueError(
            f"parameter_shards: got {shards}; it must divide the number of devices, {len(found)}, and be at most the "
            f"number of parameters, {dim}."
        )
    used = found[: own * shards]
    width = len(used) // shards
    chunk = own if options.execution.chunk is None else min(int(options.execution.chunk), own)
    chunk = -(-chunk // width) * width
    marginals = _chosen_marginals(options.record.marginals, dim)
    moments = _chosen_moments(options.record.times, bool(marginals), record_steps(steps, every))
    kept = tuple(options.record.keep)
    return Plan(steps, paths, every, chunk, keep, used, marginals, moments, kept, share, shards)


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
