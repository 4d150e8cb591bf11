"""Watching gradients: a training step of a small transformer with `sdelens.torch.watch`, against one without it."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from benchmarks.report import Table, Target, number, spread
from benchmarks.timing import ALL, Contender, Size, Workers, contest, ratio

__all__ = ["TITLE", "measure", "tables", "targets"]

TITLE = "Watching gradients"
_STEPS, _ALLOWED = 10, 1.2
_WAYS: Final = {"not watched": None, "sums": "sums", "sums, logged every 10 steps": "log", "moments": "moments"}
_SIZES: Final = ((128, 4, 8), (64, 2, 2))
"""Width, layers and sequences of a micro-batch: 0.8 and 0.1 million parameters."""
_MICRO: Final = 4


def measure(workers: Workers, rounds: int, seconds: float, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Ten steps of four micro-batches of 64 tokens, in turn."""
    rows = []
    for width, layers, batch in _SIZES[1:] if quick else _SIZES:
        say(f"width {width}")
        options = dict(width=width, layers=layers, batch=batch, micro=_MICRO)
        make = "benchmarks.contenders.watched_steps:train"
        ways = [Contender(n, "torch", ALL, make, options | {"keep": k}, Size(1, _STEPS)) for n, k in _WAYS.items()]
        rows += [row | {"width": width, "batch": batch} for row in contest(workers, ways, rounds, seconds, held=False)]
        workers.forget()
    return {"rows": rows}


def tables(found: dict[str, Any]) -> list[Table]:
    """One row per way and size."""
    rows = []
    for row in found["rows"]:
        plain = next(r for r in found["rows"] if r["width"] == row["width"])
        took = number(1e3 * float(np.median(row["seconds"])) / row["steps"])
        rows.append([f"width {row['width']}, {row['batch']} sequences", row["name"], took, spread(_over(row, plain))])
    head = ["model, micro-batch", "watch", "ms per step", "over a step that is not watched (quartiles)"]
    return [Table(f"a training step of {_MICRO} micro-batches", head, rows)]


def targets(found: dict[str, Any]) -> list[Target]:
    """The cost that is allowed of sums, in the larger model."""
    made = []
    for row in found["rows"]:
        if row["name"].startswith("sums") and row["width"] == _SIZES[0][0]:
            plain = next(r for r in found["rows"] if r["width"] == row["width"])
            name = f"{row['name']}, width {row['width']}: over a step that is not watched"
            made.append(Target(name, "≤", _ALLOWED, _over(row, plain)))
    return made


def _over(row: dict[str, Any], plain: dict[str, Any]) -> Any:
    """Seconds of a step over those of one that is not watched, round by round."""
    watched, own = (np.array(r["seconds"]) / r["steps"] for r in (row, plain))
    return ratio([*watched], [*own])
