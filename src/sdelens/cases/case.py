"""One case: a problem, its noise, an optimizer and a start, checked together, bound, and described."""

import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jax import Array

from sdelens.cases.starts import Start, start_of
from sdelens.core import check
from sdelens.core.compilation import compiler_options, quick
from sdelens.noise import AbstractNoise, NoiseLaw, check_multipliers
from sdelens.optimizers import DecayedOptimizer, FromOptax, Optimizer
from sdelens.problems import AbstractProblem
from sdelens.results.dataset_files import FORMAT
from sdelens.results.printable import Parts, Printable

__all__ = ["Case", "Estimate", "check_schedule", "check_start", "check_subject", "result_attributes"]

_LOW_PEAK = 0.2
_COMPILED: dict[str, Any] = {}
_MOST_COMPILED = 64


@quick
def _loss(problem: AbstractProblem, x: Array) -> Array:
    """Loss f(x) of a problem that consists only of arrays."""
    return problem.loss(x)


@dataclass(frozen=True)
class Case:
    """The subject of a run or a prediction.

    Attributes:
        problem: the problem to minimise.
        noise: the gradient noise, bound to the problem.
        optimizer: specification of the optimizer.
        start: where the optimizer starts.
    """

    problem: AbstractProblem
    noise: NoiseLaw
    optimizer: Any
    start: Start

    @classmethod
    def checked(
        cls, problem: Any, noise: Any, optimizer: Any, start: Any, steps: int, bound: NoiseLaw | None = None
    ) -> "Case":
        """The case of a user's arguments; `bound` is the noise if it is already bound to the problem.

        Raises:
            ValueError, TypeError: if an argument does not fit; the message names it.
        """
        check_subject(problem, noise, optimizer)
        check_schedule(optimizer, steps)
        check_multipliers(noise, steps)
        if isinstance(optimizer.unwrapped, FromOptax):
            optimizer.unwrapped.check(problem.layout)
        begin = start_of(start, problem, optimizer)
        bound = noise.bind(problem) if bound is None else bound
        check_start(optimizer, bound, problem, begin)
        return cls(problem, bound, optimizer, begin)

    def start_loss(self) -> float | None:
        """Loss at the start, None if the start is random; a loss changed since it was compiled is noticed."""
        if self.start.x is None:
            return None
        if not self.problem.expensive_gradient:
            return float(_loss(self.problem, self.start.x))
        # Compiled as one program, since a network would otherwise compile some fifty single operations. It is traced at
        # every call, and compiled once for all runs that share it.
        arrays, rest = eqx.partition((self.problem, self.start.x), eqx.is_array)
        leaves, tree = jax.tree.flatten(arrays)

        def loss(*leaves: Array) -> Array:
            problem, x = eqx.combine(jax.tree.unflatten(tree, leaves), rest)
            return problem.loss(x)

        traced = jax.jit(loss).trace(*leaves)
        lowered = traced.lower()
        text = lowered.as_text()
        if text not in _COMPILED:
            while len(_COMPILED) >= _MOST_COMPILED:
                _COMPILED.pop(next(iter(_COMPILED)))
            _COMPILED[text] = lowered.compile(compiler_options(traced.jaxpr, 1, leaves))
        return float(_COMPILED[text](*leaves))

    def attributes(
        self, run: Mapping[str, Any], models: Mapping[str, Mapping[str, Any]], device: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Attributes of a result's dataset: what is needed to reproduce it.

        Args:
            run: sizes and seed, as numbers and text.
            models: settings of every model by label.
            device: the device on which it ran.
        """
        started = self.start.describe()
        common = {"dim": self.problem.dim, "dtype": self.problem.start.dtype.name}
        described = (self.problem.describe(), self.noise.describe(), self.optimizer.describe())
        return result_attributes(described, {**run, **common, **started}, models, device, self.problem.infimum)


def result_attributes(
    described: Sequence[Mapping[str, Any]],
    run: Mapping[str, Any],
    models: Mapping[str, Mapping[str, Any]],
    device: Mapping[str, Any],
    infimum: float | None,
) -> dict[str, Any]:
    """Attributes of a result's dataset.

    Args:
        described: descriptions of problem, noise and optimizer.
        run: sizes, seed and start, as numbers and text.
        models: settings of every model by label.
        device: the device on which it ran.
        infimum: infimum of the loss, None if it is not known.
    """
    return {
        "sdelens_format": FORMAT,
        "problem": json.dumps(described[0]),
        "noise": json.dumps(described[1]),
        "optimizer": json.dumps(described[2]),
        "models": json.dumps(models),
        "run": json.dumps(run),
        "device": json.dumps(device),
        "versions": json.dumps(_versions()),
        "infimum": float("nan") if infimum is None else infimum,
        "rerunnable": int(all(d.get("rerunnable", True) for d in [*described, run, *models.values()])),
    }


@dataclass(frozen=True, repr=False)
class Estimate(Printable):
    """What a run or a prediction would cost.

    Attributes:
        seconds: running time, including compilation.
        compile_seconds: compilation time alone.
        memory_bytes: memory of the current states, the statistics and the result, without that of computing a gradient
            (a network's activations) and of JAX itself.
        result_bytes: size of the result.
    """

    seconds: float
    compile_seconds: float
    memory_bytes: int
    result_bytes: int

    def _parts(self) -> Parts:
        """One readable line."""
        said = (
            f"about {self.seconds:.0f} s ({self.compile_seconds:.0f} s of it for compilation), "
            f"{self.memory_bytes / 2**20:.0f} MiB of memory, {self.result_bytes / 2**20:.1f} MiB of results"
        )
        return [said]


def check_subject(problem: Any, noise: Any, optimizer: Any) -> None:
    """Refuse a problem, noise or optimizer of the wrong kind.

    Raises:
        TypeError: if one is; the message names the argument and what it may be.
    """
    for name, value, kind, hint in (
        ("problem", problem, AbstractProblem, "one of sl.Quadratic, sl.Problem(loss, start), sl.network(...)"),
        ("noise", noise, AbstractNoise, "sl.GaussianNoise(scale) or another noise law"),
        (
            "optimizer",
            optimizer,
            Optimizer,
            "one of sl.SGD, sl.SignSGD, sl.RMSpropW, sl.AdamW, …, or sl.FromOptax(transformation, lr)",
        ),
    ):
        if not isinstance(value, kind):
            if isinstance(value, type):
                raise TypeError(f"{name}: got the class {value.__name__} itself; call it with its arguments.")
            raise TypeError(f"{name}: got {type(value).__name__}; give {hint}.")


def check_schedule(optimizer: Optimizer, steps: int) -> None:
    """Refuse a schedule that leaves [0, 1] within the run (checked at no more than 10 000 of its steps)."""
    optimizer = optimizer.unwrapped
    if not isinstance(optimizer, DecayedOptimizer) or optimizer.schedule is None:
        return
    if check.any_traced(optimizer.schedule, optimizer.lr):
        return
    at = np.unique(np.linspace(0, steps - 1, min(steps, 10_000)).astype(np.int32))
    with check.evaluated():
        values = np.asarray(jax.vmap(lambda k: jax.numpy.asarray(optimizer.multiplier(k), float))(at))
    if values.size and 0 <= values.max() < _LOW_PEAK:
        warnings.warn(
            f"schedule: never exceeds {values.max():g} in this run; it multiplies lr = {optimizer.lr:g}. If its "
            "values are learning rates, divide them by their maximum and give the maximum as lr.",
            UserWarning,
            stacklevel=5,
        )
    outside = ~((values >= 0) & (values <= 1))
    if outside.any():
        first = int(np.argmax(outside))
        raise ValueError(
            f"schedule: got the value {values[first]} at step {at[first]}; a schedule multiplies lr and must lie in "
            "[0, 1]. Give the maximal learning rate as lr, and divide the schedule by it."
        )


def check_start(optimizer: Optimizer, noise: NoiseLaw, problem: AbstractProblem, start: Start) -> None:
    """Refuse an accumulator that would start at an infinite second moment."""
    if getattr(optimizer.unwrapped, "v0", "zero") != "second-moment" or start.saved.v is not None:
        return
    if not noise.has_variance(problem.start):
        raise ValueError(
            f"v0: got 'second-moment', but {noise.describe()['name']} noise has no finite variance here, so E g² is "
            "infinite. Use v0='zero', or start from an sl.State with a given v."
        )


@cache
def _versions() -> dict[str, str]:
    return {"python": sys.version.split()[0], **{name: version(name) for name in ("sdelens", "jax", "optax", "numpy")}}
