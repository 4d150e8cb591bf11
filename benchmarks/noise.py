"""Noise laws: the cost of a draw against a normal one and against `jax.random`, accumulated in a loop, on one core."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from benchmarks.report import Table, Target, number, spread
from benchmarks.timing import ONE, Contender, Size, Workers, contest, ratio

__all__ = ["TITLE", "measure", "tables", "targets"]

TITLE = "Noise laws"
_DIM = 10
_LAWS: Final = (
    "normal",
    "uniform",
    "Laplace",
    "Student t, df 1",
    "Student t, df 2.5",
    "Student t, df 5",
    "normal + Student t",
    "jax.random.normal",
    "jax.random.t, df 3",
)


def measure(workers: Workers, rounds: int, seconds: float, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """All laws."""
    say("laws")
    size = Size(4000, 10)
    ways = [
        Contender(law, "floor", ONE, "benchmarks.contenders.laws:law", dict(name=law, dim=_DIM), size) for law in _LAWS
    ]
    rows = contest(workers, ways, rounds, seconds)
    workers.forget()
    return {"rows": rows}


def costs(row: dict[str, Any]) -> list[float]:
    """Nanoseconds per draw, of each round."""
    return [1e9 * s / (row["paths"] * row["steps"] * _DIM) for s in row["seconds"]]


def tables(found: dict[str, Any]) -> list[Table]:
    """One row a law."""
    normal = costs(found["rows"][0])
    rows = [[r["name"], number(np.median(costs(r))), spread(ratio(costs(r), normal))] for r in found["rows"]]
    return [Table(TITLE, ["law", "ns per draw", "over the normal law (quartiles)"], rows)]


def targets(found: dict[str, Any]) -> list[Target]:
    """Nothing was asked."""
    return []
