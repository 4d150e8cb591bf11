"""What a run costs against paths, dimension, steps, records and devices; its memory; and where that ends."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from benchmarks.report import Table, Target, number, spaced
from benchmarks.timing import ALL, ONE, Contender, Ratio, Size, Workers, contest, ratio

__all__ = ["TITLE", "measure", "peak", "tables", "targets"]

TITLE = "Cost"
_BASE: Final = dict(optimizer="rmspropw", dim=10, every=10)
_PATHS, _STEPS, _DIMS, _EVERY = (
    (10_000, 100_000, 1_000_000),
    (200, 2000, 20_000),
    (1, 10, 100, 1000, 10_000, 100_000),
    (1, 10, 100, 1000),
)
_FEW: Final = (100, 1000)
"""Paths so few that what a step costs whatever its size shows."""
_VECTOR: Final = 16
"""Fewest paths of a row about dimensions: loops run over paths, and fewer do not fill a CPU's vectors."""
_MEMORY: Final = (500, 5000, 50_000)
_FAR = 1.15
_WORDS: Final = {"few": "few paths", "records": "steps between records"}


def _ways(quick: bool) -> dict[str, list[tuple[float, Contender]]]:
    """Panels: contenders with their place on its axis; runs too short to be timed are repeated."""
    less = 4 if quick else 1

    def way(panel: str, value: float, paths: int, steps: int, repeat: int = 1, where: str = ALL, **own: Any) -> Any:
        options = _BASE | own
        size = Size(paths, steps)
        return value, Contender(f"{panel} {value:g}", "sdelens", where, _MAKE, options, size, repeat)

    work = 64_000 // less
    return {
        "start": [way("start", paths, paths, 10, 10) for paths in (_FEW[-1], _PATHS[1] // less)],
        "few": [way("few", p, p, 4000 // less) for p in _FEW],
        "paths": [way("paths", p // less, p // less, 200, 10 if p == _PATHS[0] else 1) for p in _PATHS],
        "steps": [way("steps", s // less, 4000, s // less, 10 if s == _STEPS[0] else 1) for s in _STEPS],
        "dimension": [way("dimension", d, max(work // d, _VECTOR), 1000 // less, dim=d) for d in _DIMS],
        "records": [way("records", e, 4000, 2000 // less, every=e) for e in _EVERY],
        "devices": [
            way("devices", 1, 4000, 4000 // less, where=ONE),
            way("devices", 0, 4000, 4000 // less, where=ALL),
        ],
    }


_MAKE = "benchmarks.contenders.ours:ensemble"


def measure(workers: Workers, rounds: int, seconds: float, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """All panels in the same rounds, and the peak memory of processes of their own."""
    panels = _ways(quick)
    say("paths, steps, dimension, records, devices")
    every = [way for panel in panels.values() for _, way in panel]
    rows = {row["name"] + row["setting"]: row for row in contest(workers, every, rounds, None, held=False)}
    found: dict[str, Any] = {
        name: [rows[way.name + way.setting] | {"at": value, **dict(way.options)} for value, way in panel]
        for name, panel in panels.items()
    }
    workers.forget()
    found["cores"] = len(workers.call(ALL, "benchmarks.environment:devices")["devices"])
    say("memory")
    steps = _MEMORY[:2] if quick else _MEMORY
    found["memory"] = [
        workers.fresh(ALL, "benchmarks.costs:peak", steps=s, every=s // 100) | {"steps": s} for s in steps
    ]
    return found


def peak(steps: int, every: int) -> dict[str, float]:
    """Peak memory of a run in this process, in bytes (Linux; else NaN)."""
    from benchmarks.contenders.ours import ensemble
    from benchmarks.environment import resident_peak

    ensemble("rmspropw", 10, every)(0, 4000, steps)
    return {"bytes": resident_peak()}


def costs(row: dict[str, Any], start: list[float] | None = None) -> list[float]:
    """Nanoseconds per path, step and coordinate of each round, less the seconds of the start-up."""
    less = start or [0.0] * len(row["seconds"])
    return [
        1e9 * (s - a) / (row["paths"] * row["steps"] * row["dim"]) for s, a in zip(row["seconds"], less, strict=True)
    ]


def start_up(found: dict[str, Any]) -> list[float]:
    """Seconds of each round that do not depend on the size: a run of ten steps of the fewest paths."""
    return found["start"][0]["seconds"]


def linearity(found: dict[str, Any], panel: str) -> Ratio:
    """Cost per unit at the largest size over that at the smallest, both beyond the start-up."""
    rows, start = found[panel], start_up(found)
    return ratio(costs(rows[-1], start), costs(rows[0], start))


def tables(found: dict[str, Any]) -> list[Table]:
    """A table of all panels, and one of memory."""
    start, rows = start_up(found), []
    for panel in ("few", "paths", "steps", "dimension", "records", "devices"):
        for row in found[panel]:
            at = spaced(found["cores"] if row["at"] == 0 else row["at"])
            size = f"{row['paths']} × {row['steps']} × {row['dim']}"
            cells = [
                number(np.median(row["seconds"])),
                number(np.median(costs(row))),
                number(np.median(costs(row, start))),
            ]
            rows.append([f"{_WORDS.get(panel, panel)} = {at}", size, *cells])
    head = ["", "paths × steps × d", "s", "ns", "ns beyond the start-up"]
    small, large = (np.median(row["seconds"]) for row in found["start"])
    sizes = [f"{row['paths']}" for row in found["start"]]
    title = (
        f"RMSpropW SDE; start-up of a run: {1000 * small:.0f} ms ({sizes[0]} paths, 10 steps), "
        f"{1000 * large:.0f} ms ({sizes[1]} paths)"
    )
    memory = [[f"{row['steps']}", f"{row['bytes'] / 2**20:.0f}"] for row in found["memory"]]
    return [Table(title, head, rows), Table("Peak memory, 100 records", ["steps", "MiB"], memory)]


def targets(found: dict[str, Any]) -> list[Target]:
    """What was asked of costs."""
    asked = []
    for panel in ("paths", "steps"):
        factor = found[panel][-1]["at"] / found[panel][0]["at"]
        claim = f"cost of {panel} beyond the start-up, over a factor {factor:g}: largest / smallest"
        asked += [Target(claim, sign, limit, linearity(found, panel)) for sign, limit in (("≤", _FAR), ("≥", 0.85))]
    flat = found["memory"][-1]["bytes"] / found["memory"][0]["bytes"]
    steps = [row["steps"] for row in (found["memory"][0], found["memory"][-1])]
    asked.append(Target(f"peak memory, {steps[1]} / {steps[0]} steps", "≤", 1.05, Ratio(flat, flat, flat)))
    return asked
