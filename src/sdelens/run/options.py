"""Options of a run: sizes, recording and execution. This module does not import JAX, because the shell reads it."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdelens.core import check

if TYPE_CHECKING:
    from sdelens.run.checkpoint import Checkpoints

__all__ = ["Execution", "Options", "Record"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a run records in addition to the loss at every step.

    Args:
        every: steps between records; the start and the last step are always recorded.
        keep_paths: number of paths per model whose full trajectory is stored, as ``path_x``.
        observables: what to record in addition to the loss: names among ``"norm"`` (‖x‖), ``"grad_norm"`` (‖∇f‖),
            ``"noise_trace"`` (tr Σ) and the problem's metrics (networks: ``"accuracy"``); or a mapping that can also
            contain your functions, from the parameters (your pytree) to a number, with None for the names above:
            ``{"norm": None, "top": lambda p: p["w"].max()}``.
        marginals: coordinates whose values at the end are stored for every path: their indices, or a number of evenly
            spaced coordinates; `Result.distances` compares their distributions.

    Raises:
        ValueError, TypeError: naming the option.
    """

    every: int = 1
    keep_paths: int = 0
    observables: Sequence[str] | Mapping[str, Callable[[Any], Any] | None] | None = None
    marginals: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        check.at_least("every", self.every, 1)
        check.at_least("keep_paths", self.keep_paths, 0)


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Where a run executes, how it shows progress and how it is saved; it affects results only through rounding.

    Args:
        chunk: number of paths that are simulated at once; by default as many as fit into about 1 GiB with their states,
            on a CPU into about 64 MiB.
        devices: number or list of the devices of this process to use, by default all.
        parameter_shards: number of devices over which the parameters and accumulators of each path are split, for
            models that do not fit on one device; the paths are split over groups of that many devices.
        progress: show a progress bar, or a line every 10 s if standard error is not a terminal; by default only if it
            is a terminal.
        checkpoint: folder for checkpoints, removed at the end, or the object that `keep_checkpoints` yields; a run that
            is killed can be resumed from there, with bit-identical results.
        checkpoint_every: optimizer steps of each chunk of paths between two checkpoints; by default one every 30 s, or
            less often if writing would take more than 2 % of the time.
        resume: continue from the checkpoint in that folder; if there is none, start from the beginning.

    Raises:
        ValueError, TypeError: naming the option.
    """

    chunk: int | None = None
    devices: int | Sequence[Any] | None = None
    parameter_shards: int = 1
    progress: bool | None = None
    checkpoint: "str | os.PathLike[str] | Checkpoints | None" = None
    checkpoint_every: int | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        if self.chunk is not None:
            check.at_least("chunk", self.chunk, 1)
        check.at_least("parameter_shards", self.parameter_shards, 1)


@dataclass(frozen=True, init=False)
class Options:
    """The options that all runs share, as the caller passed them.

    Attributes:
        steps: optimizer steps.
        paths: independent paths per model.
        seed: seed of all randomness.
        start: where paths start; see `sdelens.compare`.
        record: what is recorded; None is the default `Record`.
        execution: where and how the run executes; None is the default `Execution`.
    """

    steps: int
    paths: int
    seed: int
    start: Any
    record: Record
    execution: Execution

    def __init__(
        self,
        *,
        steps: int,
        paths: int = 1024,
        seed: int = 0,
        start: Any = None,
        record: Record | None = None,
        execution: Execution | None = None,
    ) -> None:
        values: dict[str, Any] = {"steps": steps, "paths": paths, "seed": seed, "start": start}
        for name, kind, given in (("record", Record, record), ("execution", Execution, execution)):
            if given is not None and not isinstance(given, kind):
                raise TypeError(f"{name}: got {given!r}; give sl.{kind.__name__}(...) or None.")
            values[name] = kind() if given is None else given
        for name, value in values.items():
            object.__setattr__(self, name, value)
