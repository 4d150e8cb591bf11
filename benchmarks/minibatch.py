"""Networks under real mini-batches: steps of the SDEs against steps of their optimizers, and peak memory."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from benchmarks.report import Table, Target, number, spread
from benchmarks.timing import ALL, Contender, Size, Workers, contest, ratio

__all__ = ["TITLE", "measure", "peak", "tables", "targets"]

TITLE = "Mini-batches"
_SAMPLES, _BATCH = 8, 32
_NETWORKS: Final = ("mlp", "cnn", "resnet", "vit")
_MODELS: Final = {
    "optimizer": ("optimizer", 1),
    "sde": ("sde", 1),
    "sde, refresh 10": ("sde", 10),
    f"empirical, K = {_SAMPLES}": ("empirical", 1),
}
_STATE: Final = {"sgd": 1, "signsgd": 1, "rmspropw": 2, "adamw": 3}
_PEAKS: Final = (
    ("adamw", "gaussian", 32),
    ("rmspropw", "gaussian", 32),
    ("signsgd", "gaussian", 32),
    ("adamw", "minibatch", 8),
)
WIDE: Final[dict[str, Any]] = dict(dataset="digits", width=968, depth=2)
"""d = 1 010 602."""


def measure(workers: Workers, rounds: int, seconds: float, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """RMSpropW on each network."""
    found: dict[str, Any] = {"steps": [], "memory": []}
    for network in _NETWORKS[: 1 if quick else None]:
        say(network)
        ways = [
            Contender(
                name,
                "sdelens",
                ALL,
                "benchmarks.contenders.networks:simulate",
                dict(network=network, model=model, every=20, batch_size=_BATCH, refresh=refresh),
                Size(16, 20),
            )
            for name, (model, refresh) in _MODELS.items()
        ]
        found["steps"] += [row | {"network": network} for row in contest(workers, ways, rounds, seconds)]
        workers.forget()
    for optimizer, law, paths in () if quick else _PEAKS:
        say(f"memory, {optimizer}, {law}")
        own = dict(optimizer=optimizer, law=law, paths=paths)
        found["memory"].append(own | workers.fresh(ALL, "benchmarks.minibatch:peak", **own))
    return found


def peak(optimizer: str, law: str, paths: int) -> dict[str, float]:
    """Bytes of the state of all paths of a wide network, the peak of this process, and that before it.

    Before it: after the same run with a tiny network.
    """
    import sdelens as sl
    from benchmarks.contenders.networks import specification
    from benchmarks.environment import resident_peak

    noise: Any = sl.GaussianNoise(0.01) if law == "gaussian" else sl.MinibatchNoise(_BATCH, subsample=_BATCH)
    options: dict[str, Any] = dict(steps=2, record=sl.Record(every=2), execution=sl.Execution(progress=False))
    sl.simulate(sl.network("mlp", "digits", width=4, depth=2), noise, specification(optimizer), paths=2, **options)
    before = resident_peak()
    problem = sl.network("mlp", **WIDE)
    sl.simulate(problem, noise, specification(optimizer), paths=paths, **options)
    arrays = _STATE[optimizer] + (law == "minibatch" and optimizer != "sgd")
    return {"state": 4.0 * problem.dim * paths * arrays, "peak": resident_peak(), "before": before}


def tables(found: dict[str, Any]) -> list[Table]:
    """Steps, and memory."""
    rows = []
    for row in found["steps"]:
        first = next(r for r in found["steps"] if r["network"] == row["network"])
        over = ratio(_costs(row), _costs(first))
        share = number(over.median / _SAMPLES) if "empirical" in row["name"] else "-"
        rows.append([row["network"], row["name"], number(np.median(_costs(row))), spread(over), share])
    head = [
        "network",
        "model",
        "ms per path and step",
        "over an optimizer step (quartiles)",
        f"over {_SAMPLES} of them",
    ]
    made = [Table(f"RMSpropW, batches of {_BATCH}, 16 paths, all cores", head, rows)]
    if found["memory"]:
        rows = []
        for r in found["memory"]:
            gib = [number(b / 2**30) for b in (r["state"], r["peak"], r["peak"] - r["before"])]
            rows.append(
                [r["optimizer"], r["law"], str(r["paths"]), *gib, number((r["peak"] - r["before"]) / r["state"])]
            )
        head = ["optimizer", "noise", "paths", "state, GiB", "peak, GiB", "network's part, GiB", "part / state"]
        made.append(Table("Peak memory of a network of a million parameters", head, rows))
    return made


def _costs(row: dict[str, Any]) -> list[float]:
    """Milliseconds per path and step."""
    return [1e3 * s / (row["paths"] * row["steps"]) for s in row["seconds"]]


def targets(found: dict[str, Any]) -> list[Target]:
    """Nothing was asked."""
    return []
