"""Predicted loss curves, and the simulation they spare."""

from collections.abc import Callable
from typing import Any

import numpy as np

import sdelens as sl

__all__ = ["predict", "simulate"]


def _subject(optimizer: str, dim: int) -> Any:
    made = {
        "sgd": lambda: sl.SGD(0.01),
        "signsgd": lambda: sl.SignSGD(0.01),
        "rmspropw": lambda: sl.RMSpropW(0.01, 0.99, weight_decay=0.1),
        "adamw": lambda: sl.AdamW(0.01, 0.9, 0.99, weight_decay=0.1),
    }
    problem = sl.Quadratic(np.linspace(1.0, 5.0, dim, dtype=np.float32), start=np.float32(2.0))
    return problem, sl.GaussianNoise(1.0), made[optimizer]()


def predict(optimizer: str, dim: int) -> Callable[[int, int, int], None]:
    """`sdelens.theory.predict`."""
    subject = _subject(optimizer, dim)
    return lambda seed, paths, steps: sl.theory.predict(*subject, steps=steps) and None


def simulate(optimizer: str) -> Callable[[int, int, int], None]:
    """`sdelens.simulate` of the optimizer itself, d = 10."""
    subject = _subject(optimizer, 10)

    def run(seed: int, paths: int, steps: int) -> None:
        sl.simulate(*subject, "optimizer", steps=steps, paths=paths, seed=seed, execution=sl.Execution(progress=False))

    return run
