"""Networks: compilation, a step of an SDE against one of its optimizer, and PyTorch, eager and compiled, beside it."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from benchmarks.report import Table, Target, number, spread
from benchmarks.timing import ALL, ONE, Contender, Ratio, Size, Workers, contest, quartiles, ratio

__all__ = ["TITLE", "failure", "measure", "tables", "targets"]

TITLE = "Networks"
_EVERY, _SAMPLES = 10, 8
_PATHS: Final = {"mlp": 16, "cnn": 8, "vit": 8}
_PATHS_GPU: Final = {"mlp": 1024, "cnn": 256, "vit": 256}
_COMPILED: Final = ("mlp", "cnn", "resnet", "vit")
_EAGER: Final = {
    "mlp": {"loop over paths": "loop", "torch.func": "func", "stacked matrices": "stacked"},
    "cnn": {"torch.func": "func"},
    "vit": {"torch.func": "func", "stacked matrices": "stacked"},
}
"""Ways of PyTorch to have the gradients of all paths; all but the loop are compiled as well."""
_LIMIT = 8.0
"""Seconds in which the programs of one model of the vision transformer are to be compiled."""
_FAILURES: Final = {
    "out of memory": ("OutOfMemoryError", "RESOURCE_EXHAUSTED", "out of memory", "MemoryError", "exit code -9"),
    "no C++ compiler": ("InvalidCxxCompiler",),
    "no C compiler": ("Failed to find C compiler",),
    "no Triton": ("TritonMissing",),
    "PyTorch finds no GPU": ("PyTorch finds no GPU",),
}
"""What the machine may lack, and by which words of an error it is recognised."""


def measure(workers: Workers, rounds: int, seconds: float, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Compilation and steps of each network's models, and the comparisons; `quick` leaves the convolutions out."""
    on_gpu = workers.accelerators > 0
    many = _PATHS_GPU if on_gpu else _PATHS
    found: dict[str, Any] = {"compilation": [], "steps": [], "compare": []}
    found["peak"] = {s: workers.call(s, "benchmarks.contenders.floors:machine") for s in workers.settings}
    for network in ("mlp",) if quick else _COMPILED:
        for turn in range(1 if quick else 3):
            say(f"{network}, compilation, round {turn + 1}")
            options: dict[str, Any] = dict(network=network, paths=many.get(network, many["cnn"]), every=_EVERY)
            rows = workers.fresh(ALL, "benchmarks.contenders.networks:compilation", **options)
            found["compilation"] += [row | {"round": turn} for row in rows]
    compared = [network for network in _EAGER if not (quick and network == "cnn")]
    found["flops"] = {
        network: workers.call(ALL, "benchmarks.contenders.networks:flops", network=network, whole=on_gpu)
        for network in compared
    }
    for network in ("mlp",) if quick else _PATHS:
        say(f"{network}, steps")
        ways = [
            Contender(
                model,
                "sdelens",
                ALL,
                "benchmarks.contenders.networks:simulate",
                dict(network=network, model=model, every=_EVERY, whole=on_gpu),
                Size(many[network], _EVERY),
            )
            for model in ("optimizer", "sde", "malladi2022", "empirical")
        ]
        found["steps"] += _contested(workers, ways, rounds, seconds, network)
    for network in compared:
        say(f"{network}, comparison")
        ways = _ways(network, many[network], workers.settings, on_gpu, quick)
        found["compare"] += _contested(workers, ways, rounds, seconds, network)
    return found


def _ways(network: str, paths: int, settings: Sequence[str], on_gpu: bool, quick: bool) -> list[Contender]:
    """The contenders, sdelens first; on one core the MLP alone, and nothing that takes half a minute to compile."""
    size = Size(paths, (6 if network == "mlp" and not quick else 2) * _EVERY)
    looped = Size(4, 2 * _EVERY) if on_gpu else size  # path by path, whatever their number
    where = settings[:1] if quick else settings[::-1] if network == "mlp" else settings[-1:]
    task = dict(network=network, every=_EVERY, whole=on_gpu)
    make = "benchmarks.contenders.networks:compare"
    ways = [Contender("sdelens", "sdelens", setting, make, task, size) for setting in where]
    make = "benchmarks.contenders.networks_torch:compare"
    for compiled, places in ((False, where), (True, where[:1])):
        for name, batch in _EAGER[network].items():
            if compiled and (batch == "loop" or (quick and batch == "func")):
                continue
            options = task | dict(batch=batch, compiled=compiled)
            label = f"PyTorch, {name}{', compiled' if compiled else ''}"
            for setting in places:
                ways.append(Contender(label, "torch", setting, make, options, looped if batch == "loop" else size))
    return ways


def _contested(
    workers: Workers, ways: Sequence[Contender], rounds: int, seconds: float, network: str
) -> list[dict[str, Any]]:
    """The rows of `contest` with the seconds of each first call, and rows without times of what the machine lacks.

    Raises:
        RuntimeError: if a contender fails for another reason than those of `_FAILURES`.
    """
    first: dict[tuple[str, str], float] = {}
    failed = []
    for way in ways:
        try:
            first[way.key] = workers.run(way, 0, way.size)[0]
        except RuntimeError as error:
            row = {"name": way.name, "group": way.group, "setting": way.setting, "network": network}
            failed.append(row | {"paths": way.size.paths, "steps": way.size.steps, "failed": failure(error)})
    able = [way for way in ways if way.key in first]
    rows = contest(workers, able, rounds, seconds) if able else []
    workers.forget()
    return [r | {"network": network, "first": first[r["name"], r["setting"]]} for r in rows] + failed


def failure(error: RuntimeError) -> str:
    """What the machine lacks, in a few words; any other error is raised."""
    for words, signs in _FAILURES.items():
        if any(sign in str(error) for sign in signs):
            return words
    raise error


def costs(row: dict[str, Any]) -> list[float]:
    """Microseconds per path and step, of each round."""
    return [1e6 * s / (row["paths"] * row["steps"]) for s in row["seconds"]]


def _over(rows: list[dict[str, Any]], slow: str, fast: str, network: str) -> Ratio:
    chosen = {r["name"]: costs(r) for r in _timed(rows) if r["network"] == network and r["setting"] == ALL}
    return ratio(chosen[slow], chosen[fast])


def _timed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if "failed" not in row]


def _rates(found: dict[str, Any], row: dict[str, Any], models: int) -> list[str]:
    """Gflop/s of the gradients of a row, and their share of the rate of a matrix product."""
    rate = models * found["flops"][row["network"]] / (1e-6 * float(np.median(costs(row))))
    peak = found["peak"].get(row["setting"], found["peak"][ONE])["matrix_flops_per_s"]
    return [number(rate / 1e9), f"{100 * rate / peak:.0f} %"]


def _compilation(found: dict[str, Any]) -> dict[tuple[str, str], dict[str, list[float]]]:
    """By network and model: seconds of tracing, lowering, compiling start and segments, and of all, of each round."""
    seen: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in found["compilation"]:
        kinds = seen.setdefault((row["network"], row["model"]), {})
        parts = {"trace": row["trace"], "lower": row["lower"], row["program"]: row["compile"]}
        for kind, seconds in [*parts.items(), ("all", sum(parts.values()))]:
            rounds = kinds.setdefault(kind, [])
            rounds += [0.0] * (row["round"] + 1 - len(rounds))
            rounds[row["round"]] += seconds
    return seen


def tables(found: dict[str, Any]) -> list[Table]:
    """Compilation, steps, and the comparisons."""
    made = []
    if "compilation" in found:
        kinds = ("trace", "lower", "start", "segment", "all")
        rows = [
            [network, model, *(number(np.median(seen[kind])) for kind in kinds)]
            for (network, model), seen in _compilation(found).items()
        ]
        head = ["network", "model", "trace, s", "lower, s", "XLA: start, s", "XLA: segment, s", "in all, s"]
        made.append(Table("Compilation at the default sizes, one program after another", head, rows))
    return [*made, _steps(found), *(_comparison(found, n) for n in _EAGER if _rows(found, n))]


def _steps(found: dict[str, Any]) -> Table:
    rows = []
    for row in found["steps"]:
        if "failed" in row:
            rows.append([row["network"], row["name"], row["failed"], "-", "-", "-", "-"])
            continue
        over, empirical = _over(found["steps"], row["name"], "optimizer", row["network"]), row["name"] == "empirical"
        name = f"empirical, K = {_SAMPLES}" if empirical else row["name"]
        share = number(over.median / _SAMPLES) if empirical else "-"
        cost = number(np.median(costs(row)))
        rows.append([row["network"], name, cost, spread(over), share, *_rates(found, row, 1)])
    head = [
        "network",
        "model",
        "µs per path and step",
        "over an optimizer step (quartiles)",
        f"over {_SAMPLES} of them",
        "Gflop/s",
        "of a matrix product",
    ]
    return Table(f"RMSpropW under injected noise, all {found['unit']}s", head, rows)


def _rows(found: dict[str, Any], network: str) -> list[dict[str, Any]]:
    return [row for row in found["compare"] if row["network"] == network]


def _comparison(found: dict[str, Any], network: str) -> Table:
    here = _rows(found, network)
    ours = {row["setting"]: costs(row) for row in _timed(here) if row["name"] == "sdelens"}
    rows = []
    for row in here:
        where = f"1 {found['unit']}" if row["setting"] == ONE else "all"
        if "failed" in row:
            rows.append([row["name"], where, row["failed"], *["-"] * 5])
            continue
        over = spread(ratio(costs(row), ours[row["setting"]])) if row["setting"] in ours else "-"
        deviation = "-" if row["deviation"] is None else f"{row['deviation']:.1f}"
        first = number(row["first"]) if "first" in row else "-"
        cost = number(np.median(costs(row)))
        rows.append([row["name"], where, cost, over, *_rates(found, row, 3), first, deviation])
    head = [
        "contender",
        "on",
        "µs for three models",
        "over sdelens there (quartiles)",
        "Gflop/s",
        "of a matrix product",
        "first call, s",
        "deviation",
    ]
    return Table(f"{_LABELS[network]}: RMSprop, its SDE and the earlier one", head, rows)


_LABELS: Final = {"mlp": "MLP", "cnn": "CNN", "vit": "ViT"}


def targets(found: dict[str, Any]) -> list[Target]:
    """What was asked of networks."""
    asked = []
    for (network, model), seen in _compilation(found).items() if "compilation" in found else ():
        if network == "vit":
            claim = f"ViT, default size, {model}: trace, lower and compile, s"
            asked.append(Target(claim, "≤", _LIMIT, quartiles(seen["all"])))
    if {"sde", "optimizer"} <= {row["name"] for row in _timed(found["steps"]) if row["network"] == "mlp"}:
        asked.append(
            Target("MLP: SDE step / optimizer step", "≤", 1.1, _over(found["steps"], "sde", "optimizer", "mlp"))
        )
    for setting, where in ((ALL, f"all {found['unit']}s"), (ONE, f"one {found['unit']}")):
        here = {r["name"]: costs(r) for r in _timed(_rows(found, "mlp")) if r["setting"] == setting}
        for name in (name for name in here if name != "sdelens" and "compiled" not in name and "sdelens" in here):
            claim = f"MLP, three models, {where}: {name} / sdelens"
            asked.append(Target(claim, "≥", 3.0, ratio(here[name], here["sdelens"])))
    return asked
