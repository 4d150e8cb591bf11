"""Contenders measured in turn: processes of their own, interleaved rounds, ratios round by round.

A contender is a function that does a run and returns what it found. Every contender lives in a worker: a process that
is confined, before JAX or PyTorch are imported, to one core or to all (`Setting`). One worker runs at a time. In every
round each contender runs once, so that what disturbs the machine for a while disturbs all of them; what is compared
are the quotients of one round.
"""

import importlib
import math
import multiprocessing
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Self

import numpy as np

from sdelens.core.machine import cores

__all__ = [
    "ALL",
    "ONE",
    "SIGMAS",
    "Contender",
    "Ratio",
    "Size",
    "Workers",
    "contest",
    "deviation",
    "interleave",
    "quartiles",
    "ratio",
    "sized",
]

ONE, ALL = "one", "all"
"""Settings: one core (or one GPU), and all of them."""
_TRIES = 8
SIGMAS, ROUNDING = 5.0, 1e-4
"""Standard errors within which mean losses must agree, and what rounding adds to one, relative to the loss."""


class Ratio(NamedTuple):
    """The quotients of the rounds: their median, and their lower and upper quartile."""

    median: float
    lower: float
    upper: float


def ratio(slow: Sequence[float], fast: Sequence[float]) -> Ratio:
    """slow/fast round by round; both lists have the times of the same rounds, in order."""
    return quartiles([a / b for a, b in zip(slow, fast, strict=True)])


def quartiles(values: Sequence[float]) -> Ratio:
    """Median, lower and upper quartile of one value a round."""
    return Ratio(*(float(np.quantile(values, q)) for q in (0.5, 0.25, 0.75)))


@dataclass(frozen=True)
class Size:
    """How much one run does: paths side by side, and steps of each."""

    paths: int
    steps: int


@dataclass(frozen=True)
class Contender:
    """One way of doing the task.

    Attributes:
        name: in tables.
        group: of ways that belong together: ``"sdelens"``, ``"diffrax"``, ``"torchsde"``, ``"torch"``, ``"floor"``, ….
        setting: `ONE` or `ALL`.
        make: ``"module:function"``; called once in the worker with the options, it returns a function of (seed, paths,
            steps) that runs, waits for the end, and returns what it found.
        options: of `make`.
        size: of the run that is checked; `sized` multiplies its steps.
        repeat: runs within one measurement, for runs too short to be timed alone.
    """

    name: str
    group: str
    setting: str
    make: str
    options: Mapping[str, Any] = field(default_factory=dict)
    size: Size = Size(1, 1)
    repeat: int = 1

    @property
    def key(self) -> tuple[str, str]:
        """Name and setting: unique within a task."""
        return self.name, self.setting


class _Worker:
    """A process confined to a setting."""

    def __init__(self, setting: str, accelerated: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, setting, accelerated), daemon=True)
        self._process.start()
        other.close()

    def ask(self, *question: Any) -> Any:
        self._pipe.send(question)
        try:
            good, answer = self._pipe.recv()
        except EOFError:
            self._process.join(5)
            raise RuntimeError(f"The process of {question[1:2]} died (exit code {self._process.exitcode}).") from None
        if not good:
            raise RuntimeError(answer)
        return answer

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def close(self) -> None:
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.terminate()


class Workers:
    """The processes of a session: one for JAX and one for PyTorch in each setting, started when first needed.

    Args:
        accelerators: devices other than CPUs that JAX computes on; counted if not given.
    """

    def __init__(self, accelerators: int | None = None) -> None:
        self._workers: dict[tuple[str, str], _Worker] = {}
        self.accelerators = _accelerators() if accelerators is None else accelerators

    @property
    def settings(self) -> tuple[str, ...]:
        """`ONE` and `ALL`; a single accelerator is both."""
        return (ONE,) if self.accelerators == 1 else (ONE, ALL)

    def run(self, contender: Contender, seed: int, size: Size) -> tuple[float, Any]:
        """Seconds of a run, and what it found."""
        worker = self._worker("torch" if contender.group in ("torch", "torchsde") else "jax", contender.setting)
        options = tuple(sorted(contender.options.items()))
        return worker.ask("run", contender.make, options, seed, size.paths, size.steps, contender.repeat)

    def call(self, setting: str, function: str, **options: Any) -> Any:
        """What ``"module:function"`` returns in the JAX worker of a setting."""
        return self._worker("jax", setting).ask("call", function, options)

    def fresh(self, setting: str, function: str, **options: Any) -> Any:
        """The same in a process that is started for it."""
        worker = _Worker(self._known(setting), self.accelerators > 0)
        try:
            return worker.ask("call", function, options)
        finally:
            worker.close()

    def forget(self) -> None:
        """Let go of what the contenders of a task hold: compiled programs and arrays."""
        for worker in self._workers.values():
            if worker.alive:
                worker.ask("forget")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()

    def _known(self, setting: str) -> str:
        return setting if setting in self.settings else ONE

    def _worker(self, library: str, setting: str) -> _Worker:
        setting = self._known(setting)
        found = self._workers.get((library, setting))
        if found is None or not found.alive:  # one that died, for want of memory, is replaced
            found = self._workers[library, setting] = _Worker(setting, self.accelerators > 0)
        return found


def sized(workers: Workers, contender: Contender, seconds: float) -> tuple[Size, Any]:
    """The size whose measurement takes at least `seconds`, by whole multiples of the steps, and what the first found.

    The first run compiles, the second is timed, and the third, at the new size, compiles what depends on it.
    """
    _, found = workers.run(contender, 0, contender.size)
    took, _ = workers.run(contender, 0, contender.size)
    size = contender.size
    for _ in range(_TRIES):
        if took >= seconds:
            break
        more = max(2, math.ceil(1.1 * seconds / max(took, 1e-4)))
        size = Size(size.paths, size.steps * min(more, 50))
        workers.run(contender, 0, size)
        took, _ = workers.run(contender, 0, size)
    return size, found


def contest(
    workers: Workers, ways: Sequence[Contender], rounds: int, seconds: float | None, held: bool = True
) -> list[dict[str, Any]]:
    """A row for each contender, as JSON types, with its seconds in each round.

    Args:
        workers: where they run.
        ways: the contenders; the first is the one that the mean losses of the others are held to.
        rounds: how many.
        seconds: what a measurement takes at least, by more steps; None leaves the sizes as they are.
        held: whether the mean losses are to agree.

    Raises:
        AssertionError: if two do not compute the same mean loss.
    """
    sizes, curves = {}, {}
    for way in ways:
        if seconds is None:
            sizes[way.key], (_, curves[way.key]) = way.size, workers.run(way, 0, way.size)
        else:
            sizes[way.key], curves[way.key] = sized(workers, way, seconds)
    first = curves[ways[0].key]
    away = {key: deviation(curve, first) for key, curve in curves.items() if held and curve is not None}
    for key, found in away.items():
        if not found <= SIGMAS:
            raise AssertionError(
                f"{key}: its mean loss is {found:.1f} standard errors away from that of {ways[0].key}."
            )
    times = interleave({w.key: lambda turn, w=w: workers.run(w, 1 + turn, sizes[w.key])[0] for w in ways}, rounds)
    return [
        {
            "name": way.name,
            "group": way.group,
            "setting": way.setting,
            "paths": sizes[way.key].paths,
            "steps": sizes[way.key].steps,
            "seconds": times[way.key],
            "deviation": away.get(way.key),
        }
        for way in ways
    ]


def deviation(curve: Any, other: Any) -> float:
    """Largest distance of two mean-loss curves over their common records, in standard errors of the difference.

    A standard error is at least what the other's spread over paths makes it, since that of a few paths can be small by
    chance; rounding in float32 counts as one of 1e-4 of the loss.
    """
    n = min(len(curve.mean), len(other.mean))
    a, b, s, t = (np.asarray(values)[:n] for values in (curve.mean, other.mean, curve.sem, other.sem))
    s, t = np.maximum(s, t * (other.paths / curve.paths) ** 0.5), np.maximum(t, s * (curve.paths / other.paths) ** 0.5)
    return float(np.max(np.abs(a - b) / np.sqrt(s**2 + t**2 + (ROUNDING * b) ** 2)))


def interleave(runs: Mapping[Any, Callable[[int], float]], rounds: int) -> dict[Any, list[float]]:
    """Seconds of each run in each round; a run is called with the number of the round and returns its seconds."""
    seconds: dict[Any, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        for name, run in runs.items():
            seconds[name].append(run(turn))
    return seconds


def _accelerators() -> int:
    """How many devices JAX computes on that are not CPUs; asked in a process of its own."""
    asked = [sys.executable, "-c", "import jax; print(sum(d.platform != 'cpu' for d in jax.devices()))"]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def _serve(pipe: Connection, setting: str, accelerated: bool) -> None:
    """A worker's life: be confined, then answer until the pipe closes."""
    _confine(setting, accelerated)
    made: dict[Any, Any] = {}
    while True:
        try:
            kind, *question = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            pipe.send((True, _answer(kind, question, made)))
        except Exception:
            pipe.send((False, f"{question[:1]} failed:\n{traceback.format_exc()}"))


def _answer(kind: str, question: Sequence[Any], made: dict[Any, Any]) -> Any:
    if kind == "forget":
        made.clear()
        if "jax" in sys.modules:
            sys.modules["jax"].clear_caches()
        return None
    if kind == "call":
        name, options = question
        return _function(name)(**options)
    name, options, seed, paths, steps, repeat = question
    if (name, options) not in made:
        made[name, options] = _function(name)(**dict(options))
    run = made[name, options]
    begin = time.perf_counter()
    for _ in range(repeat):
        found = run(seed, paths, steps)
    return (time.perf_counter() - begin) / repeat, found


def _function(name: str) -> Callable[..., Any]:
    module, function = name.split(":")
    return getattr(importlib.import_module(module), function)


def _confine(setting: str, accelerated: bool) -> None:
    """One core: the last that is allowed, by affinity where the system has it, and one thread of every library.

    All: JAX gets a device for every core. Of accelerators, one is the first, and none is claimed with all its memory.
    """
    allowed = cores()
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if accelerated:
        if setting == ONE:
            os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for PyTorch: both on the same device
    count = 1 if setting == ONE else len(allowed)
    if setting == ONE and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {allowed[-1]})
    elif setting == ONE:
        flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "JAX_NUM_CPU_DEVICES"):
        os.environ[name] = str(count)
