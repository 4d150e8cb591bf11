"""Options of a run: sizes, recording and execution. This module does not import JAX, because the shell reads it."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sdelens.core import check
from sdelens.core.tasks import check_executor

if TYPE_CHECKING:
    from sdelens.run.checkpoint import Checkpoints

__all__ = [
    "AnyAverage",
    "Execution",
    "ExponentialAverage",
    "Options",
    "PolyakAverage",
    "Record",
    "record_steps",
]


@dataclass(frozen=True)
class PolyakAverage:
    """The mean of the parameters from a step on: of x_n, …, x_k after step k ≥ n, and x_k itself before.

    Args:
        start: n ≥ 0.

    Source: Polyak and Juditsky 1992 (SIAM J. Control Optim. 30:838).

    Raises:
        ValueError, TypeError: if `start` is not a whole number of at least 0.
    """

    start: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", check.at_least("start", self.start, 0))


@dataclass(frozen=True)
class ExponentialAverage:
    """The exponential moving average of the parameters, a ← βa + (1 − β)x_k after step k = 1, 2, ….

    Args:
        decay: β in (0, 1).
        bias_correction: whether a starts at 0 and is divided by 1 − βᵏ, so that it is a mean of x_1, …, x_k; otherwise
            a starts at x_0, which keeps the weight βᵏ.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    decay: float
    bias_correction: bool = True

    def __post_init__(self) -> None:
        decay = check.number("decay", self.decay)
        if not 0 < decay < 1:
            raise ValueError(f"decay: got {decay}; it must lie in (0, 1), for example 0.999.")
        if not isinstance(self.bias_correction, bool):
            raise TypeError(f"bias_correction: got {self.bias_correction!r}; give True or False.")
        object.__setattr__(self, "decay", decay)


AnyAverage = PolyakAverage | ExponentialAverage


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a run records in addition to the loss at every step.

    Args:
        every: steps between records; the start and the last step are always recorded.
        keep_paths: number of paths per model whose full trajectory is stored, as ``path_x``.
        keep: what is stored of these paths: parts of the state (``"x"``, ``"m"``, ``"v"``, or a name in ``averages``),
            ``"loss"``, and names of observables; each as ``path_NAME``.
        observables: what to record in addition to the loss: names among ``"norm"`` (‖x‖), ``"grad_norm"`` (‖∇f‖),
            ``"noise_trace"`` (tr Σ), ``"sharpness"`` (λ_max of ∇²f), ``"preconditioned_sharpness"`` (of P^−½∇²fP^−½, P
            the divisor of the run's own v), ``"batch_sharpness"`` (E gᵀ(∂g/∂x)g/‖g‖² of mini-batch gradients g) and the
            problem's metrics (networks: ``"accuracy"``); ``"loss[PART]"``,
            ``"norm[PART]"`` and ``"accuracy[PART]"`` of another part of the state than x; or a mapping that can also
            contain your functions, from the parameters (your pytree) to a number, or from the parameters and the state
            to a number, with None for the names above: ``{"norm": None, "top": lambda p: p["w"].max(), "speed": lambda
            p, state: abs(state["m"]["w"]).max()}``. The state is a mapping from the names of its parts to pytrees like
            the parameters, or to flat arrays where a part is not like them.
        marginals: coordinates whose values are stored for every path at ``times``, as ``law_x``: their indices, or a
            number of evenly spaced coordinates; `Result.laws` compares their distributions.
        times: recorded steps at which the loss, the observables and the marginals of every path are stored, as
            ``law_loss``, ``law_observable`` and ``law_x``; or a number of evenly spaced recorded steps. By default the
            last step if there are marginals, and otherwise none.
        averages: moving averages of x by name: a `PolyakAverage` or an `ExponentialAverage`, or as shorthand a whole
            number (the first step of a Polyak average) or a decay in (0, 1). They are parts of the state, and the loss
            and the recorded metrics at each are observables, such as ``"loss[ema]"``.
        hits: conditions by name, functions from the parameters, or from the parameters and the state, to a Boolean,
            which are tested at the start and after every optimizer step on every path; the first step at which each
            holds is stored as ``hit_step`` (`Result.hitting_times`).

    Raises:
        ValueError, TypeError: naming the option.
    """

    every: int = 1
    keep_paths: int = 0
    keep: Sequence[str] = ("x",)
    observables: Sequence[str] | Mapping[str, Callable[..., Any] | None] | None = None
    marginals: int | Sequence[int] | None = None
    times: int | Sequence[int] | None = None
    averages: Mapping[str, "AnyAverage | float"] | None = None
    hits: Mapping[str, Callable[..., Any]] | None = None

    def __post_init__(self) -> None:
        check.at_least("every", self.every, 1)
        check.at_least("keep_paths", self.keep_paths, 0)
        if isinstance(self.keep, str) or not all(isinstance(name, str) for name in self.keep) or not self.keep:
            raise TypeError(f"keep: got {self.keep!r}; give a list of names, for example ['x', 'm'].")
        object.__setattr__(self, "keep", tuple(dict.fromkeys(self.keep)))
        if self.keep != ("x",) and not self.keep_paths:
            raise ValueError(f"keep: got {list(self.keep)}, but keep_paths is 0, so no path is kept; give keep_paths.")
        if self.averages is not None:
            object.__setattr__(self, "averages", _averages(self.averages))


def _averages(given: Any) -> dict[str, AnyAverage]:
    """The averages by name, as objects."""
    if not isinstance(given, Mapping):
        raise TypeError(
            f"averages: got {given!r}; give a mapping from names to averages, for example {{'ema': 0.999, 'polyak': "
            "100}."
        )
    found: dict[str, AnyAverage] = {}
    for name, value in given.items():
        where = f"averages[{name!r}]"
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"averages: got the name {name!r}; give a name of letters, digits and underscores.")
        if isinstance(value, PolyakAverage | ExponentialAverage):
            found[name] = value
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(
                f"{where}: got {value!r}; give sl.PolyakAverage(start), sl.ExponentialAverage(decay), a step, or a "
                "decay in (0, 1)."
            )
        try:
            found[name] = PolyakAverage(value) if isinstance(value, int) else ExponentialAverage(value)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    return found


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Where a run executes, how it shows progress and how it is saved; it affects results only through rounding.

    Args:
        chunk: number of paths that are simulated at once; by default as many as fit into about 1 GiB with their states,
            on a CPU into about 64 MiB.
        devices: number or list of the devices of this process to use, by default all.
        parameter_shards: number of devices of this process over which the parameters and accumulators of each path are
            split, for models that do not fit on one device; the paths are split over groups of that many devices.
        kernel: on a GPU, run the steps between two records as one kernel that keeps the states in registers, for models
            whose coordinates move independently of one another (a warning names the others, which run as usual). The
            results differ by rounding. On a CPU the kernel is interpreted, which is slow and only useful for tests.
        share: run only a share of the paths, ``(i, n)`` with i from 0 to n − 1: `compare`, `simulate` and `sweep` then
            return a `Share`, and `sdelens.join` gives the result of all shares.
        executor: run shares in other processes, on this or other machines: a ``concurrent.futures.Executor``, such as
            Dask's ``client.get_executor()``, or a function that makes one, which is called again when a killed worker
            has broken it. A pool of processes must spawn them, not fork them: ``ProcessPoolExecutor(2,
            mp_context=multiprocessing.get_context("spawn"))``. Shares that are lost with their worker are run again,
            after a pause; any other error ends the run, and says in which share it was.
        shares: number of shares that the executor runs; several for each worker let fast ones take more. Those of a
            sweep are groups of points, or if there are fewer points, shares of the paths at every point.
        progress: show a progress bar, or a line every 10 s if standard error is not a terminal; by default only if it
            is a terminal.
        checkpoint: folder for checkpoints, removed at the end, or the object that `keep_checkpoints` yields; a run that
            is killed can be resumed from there, with bit-identical results. With an executor, finished shares are kept
            there, and if the workers reach the folder, the checkpoints of the others as well.
        checkpoint_every: optimizer steps of each chunk of paths between two checkpoints; by default one every 30 s, or
            less often if writing would take more than 2 % of the time.
        resume: continue from the checkpoint in that folder; if there is none, start from the beginning.

    Raises:
        ValueError, TypeError: naming the option.
    """

    chunk: int | None = None
    devices: int | Sequence[Any] | None = None
    parameter_shards: int = 1
    kernel: bool = False
    share: tuple[int, int] | None = None
    executor: "Executor | Callable[[], Executor] | None" = None
    shares: int | None = None
    progress: bool | None = None
    checkpoint: "str | os.PathLike[str] | Checkpoints | None" = None
    checkpoint_every: int | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        if self.chunk is not None:
            check.at_least("chunk", self.chunk, 1)
        check.at_least("parameter_shards", self.parameter_shards, 1)
        if not isinstance(self.kernel, bool):
            raise TypeError(f"kernel: got {self.kernel!r}; give True or False.")
        if self.kernel and self.parameter_shards > 1:
            raise ValueError("kernel: got True, but the parameters of a path are split over devices; give one of both.")
        if self.share is not None:
            object.__setattr__(self, "share", _share(self.share))
        if self.shares is not None:
            check.at_least("shares", self.shares, 1)
        if (self.executor is None) != (self.shares is None):
            given, lacking = ("shares", "executor") if self.executor is None else ("executor", "shares")
            raise ValueError(
                f"{lacking}: got None, but {given} is given; give both: what runs the shares, and how many."
            )
        if isinstance(self.checkpoint, str) and not self.checkpoint:
            raise ValueError(
                "checkpoint: got '', which is not the name of a folder; give the path of a folder, or None."
            )
        if self.executor is None:
            return
        check_executor(self.executor)
        if self.share is not None:
            raise ValueError("share: got one share and an executor, which runs all of them; give one of the two.")
        if not isinstance(self.devices, int | None):
            raise TypeError("devices: got a list, but the devices of workers are not known here; give their number.")
        if not isinstance(self.checkpoint, str | os.PathLike | None):
            raise TypeError(
                f"checkpoint: got {type(self.checkpoint).__name__}; with an executor, give the path of a folder."
            )
        if self.checkpoint is None and (self.resume or self.checkpoint_every is not None):
            name = "resume" if self.resume else "checkpoint_every"
            raise ValueError(f"{name}: got {getattr(self, name)}, but no folder; give a folder as checkpoint=.")


def _share(given: Any) -> tuple[int, int]:
    """The index and the number of shares, checked."""
    if isinstance(given, str) or not isinstance(given, Sequence) or len(given) != 2:
        raise TypeError(f"share: got {given!r}; give the index of the share, from 0, and their number: (0, 4).")
    index, count = (check.whole("share", value) for value in given)
    if count < 1:
        raise ValueError(f"share: got {index} of {count}; the number of shares must be 1 or more.")
    if not 0 <= index < count:
        raise ValueError(f"share: got {index} of {count}; the index of a share must be from 0 to {count - 1}.")
    return index, count


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


def record_steps(steps: int, record_every: int) -> np.ndarray:
    """Recorded steps: 0, every `record_every`-th, and the last."""
    return np.minimum(np.arange(-(-steps // record_every) + 1) * record_every, steps)
