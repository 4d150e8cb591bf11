"""Networks of sdelens under noise injected into their gradients, through the public API of sdelens."""

import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from benchmarks.contenders.task import Curve

__all__ = [
    "LR",
    "MODELS",
    "NETWORKS",
    "NOISE",
    "compare",
    "compilation",
    "flops",
    "problem_of",
    "simulate",
    "specification",
]

LR, NOISE = 1e-3, 0.01
MODELS: Final = ("optimizer", "sde", "malladi2022", "empirical")
NETWORKS: Final[dict[str, dict[str, Any]]] = {
    "mlp": {},
    "cnn": dict(subset=128, channels=8, dense=32),
    "resnet": dict(subset=128, channels=8, dense=32),
    "vit": dict(subset=128, width=16, depth=1, heads=2, mlp=32),
}
"""Small enough for a minute on two cores; the MLP has 10 layers of 20 on all of Breast Cancer."""
_WHOLE: Final[dict[str, dict[str, Any]]] = {name: {} if name == "mlp" else dict(subset=128) for name in NETWORKS}
"""The default sizes, whose programs are compiled anywhere, and which are run on a GPU."""


def problem_of(network: str, whole: bool) -> Any:
    """The network's loss, at its default sizes or at small ones."""
    import sdelens as sl

    return sl.network(network, **(_WHOLE if whole else NETWORKS)[network])


def specification(optimizer: str = "rmspropw") -> Any:
    """An optimizer for networks."""
    import sdelens as sl

    made = {"rmspropw": lambda: sl.RMSpropW(LR, 0.99), "adamw": lambda: sl.AdamW(LR), "signsgd": lambda: sl.SignSGD(LR)}
    return made[optimizer]()


def simulate(
    network: str,
    model: str,
    every: int,
    optimizer: str = "rmspropw",
    batch_size: int | None = None,
    refresh: int = 1,
    whole: bool = False,
) -> Callable[[int, int, int], None]:
    """One model of a network, under injected noise or that of real mini-batches."""
    import sdelens as sl

    if network == "mlp" and batch_size:
        problem = sl.network(network, dataset="digits", width=32, depth=1)
    else:
        problem = problem_of(network, whole)
    noise: Any = sl.GaussianNoise(NOISE)
    if batch_size:
        noise = (
            sl.MinibatchNoise(batch_size, refresh=refresh, samples=10) if refresh > 1 else sl.MinibatchNoise(batch_size)
        )

    def run(seed: int, paths: int, steps: int) -> None:
        options: dict[str, Any] = dict(steps=steps, paths=paths, seed=seed, record=sl.Record(every=every))
        sl.simulate(problem, noise, specification(optimizer), model, **options, execution=sl.Execution(progress=False))

    return run


def compare(network: str, every: int, whole: bool) -> Callable[[int, int, int], Curve]:
    """RMSprop on a network, its SDE and the earlier one, mean losses one after another."""
    import sdelens as sl

    problem, noise = problem_of(network, whole), sl.GaussianNoise(NOISE)

    def run(seed: int, paths: int, steps: int) -> Curve:
        options: dict[str, Any] = dict(steps=steps, paths=paths, seed=seed, record=sl.Record(every=every))
        execution = sl.Execution(progress=False)
        found = sl.compare(problem, noise, specification(), list(MODELS[:3]), **options, execution=execution).dataset
        return Curve(np.asarray(found.loss_mean).ravel(), np.asarray(found.loss_sem).ravel(), paths)

    return run


def compilation(network: str, paths: int, every: int) -> list[dict[str, Any]]:
    """Seconds to trace, lower and compile each program of each model, one after another, without JAX's cache on disk.

    The network has its default sizes. What JAX keeps of a function that it traced counts for the first model.
    """
    import jax

    import sdelens as sl
    from sdelens.run.experiment import prepare
    from sdelens.run.options import Options
    from sdelens.run.programs import Programs

    jax.config.update("jax_enable_compilation_cache", False)
    jax.jit(lambda x: x + 1)(np.ones(2, np.float32)).block_until_ready()  # what the first program of a process costs
    options = Options(
        steps=1000,
        paths=paths,
        seed=0,
        record=sl.Record(every=every),
        execution=sl.Execution(devices=1, progress=False),
    )
    experiment = prepare(problem_of(network, True), sl.GaussianNoise(NOISE), specification(), list(MODELS), options)
    rows = []
    for model, stepper in experiment.steppers.items():
        programs = Programs(stepper, experiment.plan, 0.0, experiment.observables)
        for name in ("start", "segment"):
            moments = [time.perf_counter()]
            traced = getattr(programs, name)
            moments.append(time.perf_counter())
            compiling = traced.compilation()
            moments.append(time.perf_counter())
            if compiling is not None:  # otherwise another model has the same program
                compiling()
            moments.append(time.perf_counter())
            parts = dict(zip(("trace", "lower", "compile"), np.diff(moments).tolist(), strict=True))
            rows.append({"network": network, "model": model, "program": name, **parts})
    return rows


def flops(network: str, whole: bool) -> float:
    """Floating-point operations of the loss and the gradient of one path, as XLA counts them."""
    import jax

    problem = problem_of(network, whole)
    found: Any = jax.jit(type(problem).evaluate).lower(problem, problem.start).cost_analysis()
    return float(found["flops"])
