"""What a run is to do: its sizes, what is recorded, where and how it is run; without JAX, for the shell reads it."""

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
    """What is kept of a run beside the loss at every step.

    Args:
        every: steps between records; the start and the last step are always recorded.
        keep_paths: number of paths per model whose whole course is kept, as ``path_x``.
        observables: what to record beside the loss: names among ``"norm"`` (‖x‖), ``"grad_norm"`` (‖∇f‖),
            ``"noise_trace"`` (tr Σ) and the problem's own metrics (networks: ``"accuracy"``); or a mapping that also
            has functions of your own, from the parameters (your pytree) to a number, and None for the names above:
            ``{"norm": None, "top": lambda p: p["w"].max()}``.
        marginals: coordinates whose law at the end is kept, by index, or how many evenly spread ones;
            `Result.distances` compares them.

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
    """Where a run happens, how it reports, and how it is saved; numbers depend on it by rounding only.

    Args:
        chunk: paths that are simulated at once, by default as many as keep their states near 1 GiB, on a CPU near
            64 MiB.
        devices: how many or which devices of this process, by default all.
        parameter_shards: over how many of them the parameters and accumulators of each path are split, for models that
            one device does not hold; the others split the paths.
        progress: show a bar, or a line every 10 s where standard error is no terminal; by default if it is one.
        checkpoint: folder for checkpoints, removed at the end, or what `keep_checkpoints` yields; a run that is killed
            can be resumed from there, to the same bits.
        checkpoint_every: optimizer steps from one checkpoint to the next, of each chunk of paths; by default every
            30 s, or less often where writing would take more than 2 % of the time.
        resume: continue from the checkpoint in that folder; where there is none, start from the beginning.

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
    """The options that all runs share, as given.

    Attributes:
        steps: optimizer steps.
        paths: independent paths per model.
        seed: seed of all randomness.
        start: where paths start; see `sdelens.compare`.
        record: what is kept; None is the default `Record`.
        execution: where and how it runs; None is the default `Execution`.
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
