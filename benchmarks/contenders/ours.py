"""sdelens through its public API, from specifications to a `Result`: all its statistics are recorded."""

from collections.abc import Callable
from typing import Any

import jax

import sdelens as sl
from benchmarks.contenders.task import B2, DECAY, EPS, LR, SIGMA, START, Curve, curvature

__all__ = ["ensemble", "specification"]


def specification(optimizer: str) -> Any:
    """The optimizer of the ensembles' task."""
    return sl.SignSGD(LR, weight_decay=DECAY) if optimizer == "signsgd" else sl.RMSpropW(LR, B2, EPS, DECAY)


def ensemble(
    optimizer: str,
    dim: int,
    every: int,
    increments: str = "gaussian",
    model: str = "sde",
    devices: int | None = None,
    kernel: bool = False,
) -> Callable[[int, int, int], Curve]:
    """`sdelens.simulate` of the SDE (or of another one in closed form)."""
    problem, noise = sl.Quadratic(curvature(dim), start=START), sl.GaussianNoise(SIGMA)
    specified, sde = specification(optimizer), sl.ClosedForm(model, increments=increments)

    def run(seed: int, paths: int, steps: int) -> Curve:
        execution = sl.Execution(devices=devices or jax.devices(), progress=False, kernel=kernel)
        options: dict[str, Any] = dict(steps=steps, paths=paths, seed=seed, record=sl.Record(every=every))
        result = sl.simulate(problem, noise, specified, sde, **options, execution=execution)
        found = result.dataset
        return Curve(found.loss_mean.values[0], found.loss_sem.values[0], paths)

    return run
