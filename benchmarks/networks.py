"""Networks: a step of an SDE against one of its optimizer, and a comparison against eager PyTorch."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from benchmarks.report import Table, Target, number, spread
from benchmarks.timing import ALL, ONE, Contender, Ratio, Size, Workers, contest, ratio

__all__ = ["TITLE", "measure", "tables", "targets"]

TITLE = "Networks"
_EVERY, _SAMPLES = 10, 8
_PATHS: Final = {"mlp": 16, "cnn": 8, "vit": 8}
_PATHS_GPU: Final = {"mlp": 1024, "cnn": 256, "vit": 256}
_EAGER: Final = {"loop over paths": "loop", "torch.func": "func", "stacked matrices": "stacked"}


def measure(workers: Workers, rounds: int, seconds: float, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Steps of each network's models, and the MLP's comparison."""
    found: dict[str, Any] = {"steps": [], "compare": []}
    many = _PATHS_GPU if workers.accelerators else _PATHS
    for network in ("mlp",) if quick else _PATHS:
        say(f"{network}, steps")
        ways = [
            Contender(
                model,
                "sdelens",
                ALL,
                "benchmarks.contenders.networks:simulate",
                dict(network=network, model=model, every=_EVERY),
                Size(many[network], _EVERY),
            )
            for model in ("optimizer", "sde", "malladi2022", "empirical")
        ]
        found["steps"] += [row | {"network": network} for row in contest(workers, ways, rounds, seconds)]
        workers.forget()
    say("mlp, comparison")
    size = Size(many["mlp"], (2 if quick else 6) * _EVERY)
    looped = Size(4, 2 * _EVERY) if workers.accelerators else size  # path by path, whatever their number
    ways = [
        Contender("sdelens", "sdelens", setting, "benchmarks.contenders.networks:compare", dict(every=_EVERY), size)
        for setting in workers.settings[::-1]
    ]
    ways += [
        Contender(
            f"PyTorch, {name}",
            "torch",
            setting,
            "benchmarks.contenders.mlp_torch:compare",
            dict(every=_EVERY, batch=batch),
            looped if batch == "loop" else size,
        )
        for name, batch in _EAGER.items()
        for setting in workers.settings[::-1]
    ]
    found["compare"] = contest(workers, ways, rounds, seconds)
    workers.forget()
    return found


def costs(row: dict[str, Any]) -> list[float]:
    """Microseconds per path and step, of each round."""
    return [1e6 * s / (row["paths"] * row["steps"]) for s in row["seconds"]]


def _over(rows: list[dict[str, Any]], slow: str, fast: str, network: str | None = None) -> Ratio:
    chosen = {r["name"]: costs(r) for r in rows if r.get("network") == network and r["setting"] == ALL}
    return ratio(chosen[slow], chosen[fast])


def tables(found: dict[str, Any]) -> list[Table]:
    """Steps, and the comparison."""
    rows = []
    for row in found["steps"]:
        over, empirical = _over(found["steps"], row["name"], "optimizer", row["network"]), row["name"] == "empirical"
        name = f"empirical, K = {_SAMPLES}" if empirical else row["name"]
        share = number(over.median / _SAMPLES) if empirical else "-"
        rows.append([row["network"], name, number(np.median(costs(row))), spread(over), share])
    head = [
        "network",
        "model",
        "µs per path and step",
        "over an optimizer step (quartiles)",
        f"over {_SAMPLES} of them",
    ]
    steps = Table(f"RMSpropW under injected noise, all {found['unit']}s", head, rows)
    rows = []
    for row in found["compare"]:
        ours = next(r for r in found["compare"] if r["name"] == "sdelens" and r["setting"] == row["setting"])
        deviation = "-" if row["deviation"] is None else f"{row['deviation']:.1f}"
        where = f"1 {found['unit']}" if row["setting"] == ONE else "all"
        rows.append(
            [row["name"], where, number(np.median(costs(row))), spread(ratio(costs(row), costs(ours))), deviation]
        )
    head = ["contender", "on", "µs for three models", "over sdelens there (quartiles)", "deviation"]
    return [steps, Table("MLP: RMSprop, its SDE and the earlier one", head, rows)]


def targets(found: dict[str, Any]) -> list[Target]:
    """What was asked of networks."""
    asked = [Target("MLP: SDE step / optimizer step", "≤", 1.1, _over(found["steps"], "sde", "optimizer", "mlp"))]
    for setting, where in ((ALL, f"all {found['unit']}s"), (ONE, f"one {found['unit']}")):
        here = {r["name"]: costs(r) for r in found["compare"] if r["setting"] == setting}
        for name in (name for name in here if name != "sdelens"):
            claim = f"MLP, three models, {where}: {name} / sdelens"
            asked.append(Target(claim, "≥", 3.0, ratio(here[name], here["sdelens"])))
    return asked
