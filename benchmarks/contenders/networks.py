"""Networks of sdelens under noise injected into their gradients, through the public API of sdelens."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from benchmarks.contenders.task import Curve

__all__ = ["LR", "NETWORKS", "NOISE", "compare", "simulate", "specification"]

LR, NOISE = 1e-3, 0.01
NETWORKS: Final[dict[str, dict[str, Any]]] = {
    "mlp": {},
    "cnn": dict(subset=128, channels=8, dense=32),
    "resnet": dict(subset=128, channels=8, dense=32),
    "vit": dict(subset=128, width=16, depth=1, heads=2, mlp=32),
}
"""Small enough for a minute on two cores; the MLP has 10 layers of 20 on all of Breast Cancer."""


def specification(optimizer: str = "rmspropw") -> Any:
    """An optimizer for networks."""
    import sdelens as sl

    made = {"rmspropw": lambda: sl.RMSpropW(LR, 0.99), "adamw": lambda: sl.AdamW(LR), "signsgd": lambda: sl.SignSGD(LR)}
    return made[optimizer]()


def simulate(
    network: str, model: str, every: int, optimizer: str = "rmspropw", batch_size: int | None = None, refresh: int = 1
) -> Callable[[int, int, int], None]:
    """One model of a network, under injected noise or that of real mini-batches."""
    import sdelens as sl

    sizes = dict(dataset="digits", width=32, depth=1) if network == "mlp" and batch_size else NETWORKS[network]
    problem = sl.network(network, **sizes)
    noise: Any = sl.GaussianNoise(NOISE)
    if batch_size:
        noise = (
            sl.MinibatchNoise(batch_size, refresh=refresh, samples=10) if refresh > 1 else sl.MinibatchNoise(batch_size)
        )

    def run(seed: int, paths: int, steps: int) -> None:
        options: dict[str, Any] = dict(steps=steps, paths=paths, seed=seed, record=sl.Record(every=every))
        sl.simulate(problem, noise, specification(optimizer), model, **options, execution=sl.Execution(progress=False))

    return run


def compare(every: int, devices: int | None = None) -> Callable[[int, int, int], Curve]:
    """The MLP's RMSprop, its SDE and the earlier one, mean losses one after another."""
    import sdelens as sl

    problem, noise = sl.network("mlp"), sl.GaussianNoise(NOISE)

    def run(seed: int, paths: int, steps: int) -> Curve:
        options: dict[str, Any] = dict(steps=steps, paths=paths, seed=seed, record=sl.Record(every=every))
        execution = sl.Execution(devices=devices, progress=False)
        found = sl.compare(
            problem, noise, specification(), ["optimizer", "sde", "malladi2022"], **options, execution=execution
        ).dataset
        return Curve(np.asarray(found.loss_mean).ravel(), np.asarray(found.loss_sem).ravel(), paths)

    return run
