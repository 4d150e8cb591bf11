"""Predictions: 2000 steps at d = 10, and at d = 10⁶ compilation included, against simulating 20 000 paths."""

import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from benchmarks.report import Table, Target, number, spread
from benchmarks.timing import ALL, Contender, Size, Workers, contest, ratio

__all__ = ["TITLE", "large", "measure", "tables", "targets"]

TITLE = "Predictions"
_STEPS, _PATHS, _LARGE = 2000, 20_000, 1_000_000
_OPTIMIZERS: Final = ("sgd", "signsgd", "rmspropw", "adamw")


def measure(workers: Workers, rounds: int, seconds: float, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Small ones in turn with a simulation; large ones once, in processes of their own for their peaks."""
    say("d = 10")
    make = "benchmarks.contenders.predictions:"
    size = Size(_PATHS // (10 if quick else 1), _STEPS)
    ways = [Contender(o, "sdelens", ALL, make + "predict", dict(optimizer=o, dim=10), size, 20) for o in _OPTIMIZERS]
    ways.append(Contender("simulation", "sdelens", ALL, make + "simulate", dict(optimizer="adamw"), size))
    rows = contest(workers, ways, rounds, None)
    workers.forget()
    found: dict[str, Any] = {"rows": rows, "large": []}
    for optimizer in () if quick else _OPTIMIZERS:
        say(f"d = {_LARGE}, {optimizer}")
        one = workers.fresh(ALL, "benchmarks.theory:large", optimizer=optimizer, dim=_LARGE)
        found["large"].append({"name": optimizer} | one)
    return found


def large(optimizer: str, dim: int) -> dict[str, float]:
    """Seconds of a first prediction in this process, and its peak memory in bytes."""
    from benchmarks.contenders.predictions import predict
    from benchmarks.environment import resident_peak

    run = predict(optimizer, dim)
    begin = time.perf_counter()
    run(0, 1, _STEPS)
    return {"seconds": time.perf_counter() - begin, "bytes": resident_peak()}


def tables(found: dict[str, Any]) -> list[Table]:
    """Small and large."""
    simulation = found["rows"][-1]
    rows = [
        [r["name"], number(1e3 * np.median(r["seconds"])), spread(ratio(simulation["seconds"], r["seconds"]))]
        for r in found["rows"]
    ]
    rows[-1][0] = f"{simulation['paths']} simulated paths of adamw"
    made = [Table(f"d = 10, {_STEPS} steps, compiled", ["", "ms", "simulation over it (quartiles)"], rows)]
    if found["large"]:
        rows = [[r["name"], number(r["seconds"]), number(r["bytes"] / 2**30)] for r in found["large"]]
        made.append(Table(f"d = 10⁶, {_STEPS} steps, compilation included", ["", "s", "peak memory, GiB"], rows))
    return made


def targets(found: dict[str, Any]) -> list[Target]:
    """Nothing was asked."""
    return []
