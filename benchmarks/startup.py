"""What comes before a run: imports, the shell, compilation, with JAX's cache of compiled code and without."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from benchmarks.report import Table, Target, number
from benchmarks.timing import ALL, Ratio, Workers, interleave, quartiles

__all__ = ["TITLE", "first_and_second", "measure", "tables", "targets"]

TITLE = "Start-up"
_COMMANDS: Final = {
    "python": ["-c", "pass"],
    "import jax": ["-c", "import jax"],
    "import jax, sdelens": ["-c", "import jax, sdelens"],
    "from sdelens import compare": ["-c", "import jax; from sdelens import compare"],
    "sdelens --help": ["-m", "sdelens", "--help"],
}
_CASES: Final = {"quadratic": "AdamW, d = 10, three models", "mlp": "RMSpropW, 10 layers of 20, three models"}


def measure(workers: Workers, rounds: int, seconds: float, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds of each command, and of first and second calls in processes of their own."""
    say("imports")
    times = interleave(
        {name: lambda _, c=c: _seconds(c) for name, c in _COMMANDS.items()}, rounds if quick else 2 * rounds
    )
    cases = {}
    for case in ("quadratic",) if quick else _CASES:
        cases[case] = []
        for turn in range(1 if quick else 3):
            say(f"compilation, {case}, round {turn + 1}")
            cases[case].append(_compilations(workers, case))
    return {"commands": times, "cases": cases}


def _seconds(arguments: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def _compilations(workers: Workers, case: str) -> dict[str, Any]:
    """First and second call in a process without the cache, in one that fills it, and in one that finds it full."""
    with tempfile.TemporaryDirectory() as folder:
        places = {"none": None, "empty": folder, "full": folder}
        return {
            name: workers.fresh(ALL, "benchmarks.startup:first_and_second", case=case, cache=place)
            for name, place in places.items()
        }


def first_and_second(case: str, cache: str | None) -> dict[str, Any]:
    """Seconds of two equal calls in this process, and how many programs each compiled."""
    if cache is not None:
        # What a user sets, before JAX is imported; without the second, JAX keeps nothing that compiled within 1 s.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    import jax

    compiled = [0]

    def heard(name: str, seconds: float, **_: Any) -> None:
        compiled[0] += name == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(heard)
    import xarray  # noqa: F401

    import sdelens as sl

    run, quiet = sl.compare, sl.Execution(progress=False)  # imported now: what follows is compilation
    if case == "mlp":
        problem, noise, optimizer = sl.network("mlp"), sl.GaussianNoise(0.01), sl.RMSpropW(1e-3)
        options: dict[str, Any] = dict(steps=10, paths=4)
    else:
        problem, noise = sl.Quadratic(np.linspace(1.0, 5.0, 10), start=2.0), sl.GaussianNoise(1.0)
        optimizer, options = sl.AdamW(0.01, b2=0.99), dict(steps=10, paths=64)
    found: dict[str, Any] = {}
    for name in ("first", "second"):
        compiled[0] = 0
        begin = time.perf_counter()
        run(problem, noise, optimizer, ["optimizer", "sde", "malladi2022"], **options, execution=quiet)
        found[name], found[f"{name}_compiled"] = time.perf_counter() - begin, compiled[0]
    return found


def compile_seconds(found: dict[str, Any]) -> float:
    """First call less the second."""
    return found["first"] - found["second"]


def tables(found: dict[str, Any]) -> list[Table]:
    """Commands, and compilations."""
    rows = [[f"`{name}`", number(np.median(seconds))] for name, seconds in found["commands"].items()]
    made = [Table("Processes", ["command", "s"], rows)]
    rows = []
    for case, rounds in found["cases"].items():
        for cache in ("none", "empty", "full"):
            own = [r[cache] for r in rounds]
            first, second = (number(np.median([o[name] for o in own])) for name in ("first", "second"))
            compiling = number(np.median([compile_seconds(o) for o in own]))
            counts = " / ".join(str(own[-1][f"{name}_compiled"]) for name in ("first", "second"))
            rows.append([_CASES[case], cache, first, second, compiling, counts])
    head = ["compare", "cache", "first call, s", "second call, s", "compilation, s", "programs, first / second"]
    return [*made, Table("Compilation", head, rows)]


def targets(found: dict[str, Any]) -> list[Target]:
    """What was asked of the start-up."""
    times = found["commands"]
    beyond = [a - b for a, b in zip(times["import jax, sdelens"], times["import jax"], strict=True)]
    asked = [
        Target("`import sdelens` beyond `import jax`, s", "≤", 0.3, quartiles(beyond)),
        Target("`sdelens --help`, s", "≤", 0.5, quartiles(times["sdelens --help"])),
    ]
    for case, rounds in found["cases"].items():
        again = [r[cache]["second_compiled"] for r in rounds for cache in r]
        asked.append(Target(f"{case}: programs compiled by a second call", "≤", 0, Ratio(*[float(max(again))] * 3)))
        shares = [compile_seconds(r["full"]) / compile_seconds(r["empty"]) for r in rounds]
        asked.append(
            Target(f"{case}: compilation with a full cache / with an empty one", "≤", 1 / 3, quartiles(shares))
        )
    return asked
