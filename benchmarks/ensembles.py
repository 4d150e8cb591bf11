"""Ensembles of the SDEs of RMSpropW and SignSGD, against diffrax, torchsde, a plain PyTorch loop, and what is least."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from benchmarks.report import Table, Target, number, spaced, spread
from benchmarks.timing import ALL, ONE, Contender, Ratio, Size, Workers, contest, ratio

__all__ = ["TITLE", "costs", "measure", "summary", "tables", "targets"]

TITLE = "Ensembles"
_EVERY = 10
_TASKS: Final = {10: Size(4000, 200), 1000: Size(64, 100), 100_000: Size(16, 10)}
"""Paths and checked steps by dimension."""
_TASKS_GPU: Final = {10: Size(1_000_000, 300), 1000: Size(16_384, 300), 100_000: Size(128, 300)}
"""The same where ten million numbers at once are needed to fill a device."""
_SLOW: Final = {10: Size(400, 50), 1000: Size(4, 50), 100_000: Size(2, 10)}
"""The same for `VirtualBrownianTree`, whose draw costs the logarithm of the number of steps."""


_KERNEL: Final = "sdelens, one kernel between records"
_FEW: Final = 10
_LESS: Final = (
    ("diffrax Unsafe, vmap", ALL),
    ("our normals alone", ALL),
    ("arithmetic alone", ALL),
    ("our signs alone", ONE),
)


def contenders(
    optimizer: str, dim: int, scale: int = 1, accelerated: bool = False, settings: Sequence[str] = (ONE, ALL)
) -> list[Contender]:
    """All ways of one task in some settings; `scale` divides the paths."""
    size, slow = _TASKS[dim], _SLOW[dim]
    if accelerated:
        size = _TASKS_GPU[dim]
        slow = replace(slow, paths=size.paths // 8)
    size, slow = (replace(s, paths=max(s.paths // scale, 2)) for s in (size, slow))
    task = dict(optimizer=optimizer, dim=dim)
    recorded = task | dict(every=_EVERY)
    where = "benchmarks.contenders."

    def both(name: str, group: str, make: str, options: dict[str, Any], size: Size = size) -> list[Contender]:
        return [Contender(name, group, setting, where + make, options, size) for setting in settings]

    ours, unsafe = "ours:ensemble", "with_diffrax:ensemble"
    found = [
        *both("sdelens", "sdelens", ours, recorded),
        *both("sdelens, Rademacher", "sdelens", ours, recorded | dict(increments="rademacher")),
        *both("PyTorch loop", "torch", "with_torch:ensemble", recorded),
        *both("diffrax Unsafe, vmap", "diffrax", unsafe, recorded),
        Contender("diffrax Unsafe, vmap, sharded", "diffrax", ALL, where + unsafe, recorded | dict(sharded=True), size),
        *both("diffrax Unsafe, one solve", "diffrax", unsafe, recorded | dict(batch="one", sharded=True)),
        *both("torchsde, diagonal", "torchsde", "with_torchsde:ensemble", recorded),
        both("diffrax Tree, vmap", "diffrax", unsafe, recorded | dict(path="tree"), slow)[0],
        *both("our normals alone", "floor", "floors:draws", dict(dim=dim, kind="normal")),
        both("our signs alone", "floor", "floors:draws", dict(dim=dim, kind="signs"))[0],
        both("jax.random.normal alone", "floor", "floors:draws", dict(dim=dim, kind="jax"))[0],
        *both("arithmetic alone", "floor", "floors:arithmetic", task),
    ]
    if dim > _FEW:  # every way was shown at d = 10
        found = [way for way in found if way.key not in _LESS]
    elif optimizer == "rmspropw":
        product = recorded | dict(noise="product")
        found.insert(11, both("torchsde, product written", "torchsde", "with_torchsde:ensemble", product)[0])
    if accelerated:
        found[len(settings) : len(settings)] = both(_KERNEL, "sdelens", ours, recorded | dict(kernel=True))
    return [way for way in found if way.setting in settings]


def measure(workers: Workers, rounds: int, seconds: float, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """All tasks; all contenders of one must agree on the mean loss."""
    accelerated, settings = workers.accelerators > 0, workers.settings
    machine = {setting: workers.call(setting, "benchmarks.contenders.floors:machine") for setting in settings}
    operations = workers.call(ONE, "benchmarks.contenders.floors:operations")
    tasks = []
    for optimizer in ("rmspropw",) if quick else ("rmspropw", "signsgd"):
        # every way is shown at d = 10; the minutes of a GPU are dear
        for dim in (10,) if quick or (accelerated and optimizer == "signsgd") else _TASKS:
            say(f"{optimizer}, d = {dim}")
            ways = contenders(optimizer, dim, 4 if quick else 1, accelerated, settings)
            tasks.append({"optimizer": optimizer, "dim": dim, "rows": contest(workers, ways, rounds, seconds)})
            workers.forget()
    return {"machine": machine, "operations": operations, "tasks": tasks}


def costs(row: dict[str, Any], dim: int) -> list[float]:
    """Nanoseconds per path, step and coordinate, of each round."""
    return [1e9 * s / (row["paths"] * row["steps"] * dim) for s in row["seconds"]]


def compared(task: dict[str, Any], slow: tuple[str, str], fast: tuple[str, str]) -> Ratio:
    """The quotient of the costs of two contenders, by name and setting."""
    found = {(row["name"], row["setting"]): costs(row, task["dim"]) for row in task["rows"]}
    return ratio(found[slow], found[fast])


def tables(found: dict[str, Any]) -> list[Table]:
    """What the machine can do and how much of it is used, and a table for each task."""
    result = _machine(found)
    for task in found["tasks"]:
        rows = []
        for row in task["rows"]:
            ns = costs(row, task["dim"])
            over = ratio(ns, costs(_row(task, "sdelens", row["setting"]), task["dim"]))
            deviates = "-" if row["deviation"] is None else f"{row['deviation']:.1f}"
            where = f"1 {found['unit']}" if row["setting"] == ONE else "all"
            rows.append(
                [row["name"], where, f"{row['paths']} × {row['steps']}", number(np.median(ns)), spread(over), deviates]
            )
        head = ["contender", "on", "paths × steps", "ns", "over sdelens there (quartiles)", "deviation"]
        result.append(Table(f"{_LABELS[task['optimizer']]} SDE, d = {spaced(task['dim'])}", head, rows))
    return result


def summary(found: dict[str, Any]) -> Table:
    """Costs of the RMSpropW SDE on one device, and their quotients to that of sdelens, for the usual ways."""
    tasks = [task for task in found["tasks"] if task["optimizer"] == "rmspropw"]
    rows = []
    for name in _USUAL:
        cells = []
        for task in tasks:
            ns = costs(_row(task, name, ONE), task["dim"])
            over = compared(task, (name, ONE), ("sdelens", ONE)).median
            cells.append(number(np.median(ns)) + ("" if name == "sdelens" else f" (× {number(over)})"))
        rows.append([name, *cells])
    return Table("Summary", ["", *(f"d = {spaced(task['dim'])}" for task in tasks)], rows)


def _machine(found: dict[str, Any]) -> list[Table]:
    """Measured rates, and the shares of them that sdelens reaches."""
    units = {"triad_bytes_per_s": "triad, GB/s", "element_operations_per_s": "element-wise 32-bit operations, 10⁹/s"}
    units |= {"matrix_flops_per_s": "matrix product, Gflop/s"}
    places = {ONE: f"1 {found['unit']}", ALL: "all"}
    places = {setting: name for setting, name in places.items() if setting in found["machine"]}
    rows = [[name, *(number(found["machine"][s][key] / 1e9) for s in places)] for key, name in units.items()]
    made = [Table("What the machine does (float32)", ["", *places.values()], rows)]
    rows = []
    for task in found["tasks"]:
        count = found["operations"]["draw"] + found["operations"][task["optimizer"]]
        size = _BYTES[task["optimizer"]]
        for setting, where in places.items():
            rate = 1e9 / float(np.median(costs(_row(task, "sdelens", setting), task["dim"])))
            machine = found["machine"][setting]
            shares = [size * rate / machine["triad_bytes_per_s"], count * rate / machine["element_operations_per_s"]]
            state = task["dim"] * _row(task, "sdelens", setting)["paths"] * size / 2 / 2**20
            label = f"{_LABELS[task['optimizer']]}, d = {spaced(task['dim'])}"
            rows.append([label, where, number(state), *(f"{100 * share:.0f} %" for share in shares)])
    head = [
        "sdelens",
        "on",
        "state, MiB",
        "state's traffic / triad (none from a cache)",
        "operations / element-wise rate",
    ]
    made.append(Table("What of it sdelens uses", head, rows))
    return made


_USUAL: Final = (
    "sdelens",
    "PyTorch loop",
    "diffrax Unsafe, one solve",
    "diffrax Unsafe, vmap",
    "torchsde, diagonal",
    "diffrax Tree, vmap",
    "our normals alone",
)
"""The rows of the summary: every library, and the random numbers that any of them needs."""
_BYTES: Final = {"rmspropw": 16, "signsgd": 8}
"""Reading and writing the state once a step, per coordinate; where it stays in a cache, no memory is needed for it."""
_LABELS: Final = {"rmspropw": "RMSpropW", "signsgd": "SignSGD"}


def _row(task: dict[str, Any], name: str, setting: str) -> dict[str, Any]:
    return next(row for row in task["rows"] if (row["name"], row["setting"]) == (name, setting))


def targets(found: dict[str, Any]) -> list[Target]:
    """What was asked of the ensembles, where it was measured."""
    ten = next(t for t in found["tasks"] if (t["optimizer"], t["dim"]) == ("rmspropw", 10))
    unit, several = f"one {found['unit']}", ALL in found["machine"]
    one, most = ("sdelens", ONE), ("sdelens", ALL if several else ONE)
    unsafe, torchsde, loop = ("diffrax Unsafe, vmap", ONE), ("torchsde, diagonal", ONE), ("PyTorch loop", most[1])
    asked = [
        (f"{unit}: diffrax Unsafe / sdelens", unsafe, one, 5.0),
        (f"{unit}: torchsde / sdelens", torchsde, one, 8.0),
        (f"diffrax Unsafe on {unit} / sdelens on all", unsafe, most, 12.0),
        (f"torchsde on {unit} / sdelens on all", torchsde, most, 20.0),
        (f"{f'all {unit[4:]}s' if several else unit}: PyTorch loop / sdelens", loop, most, 2.0),
        (f"{unit}: Gaussian / Rademacher", one, ("sdelens, Rademacher", ONE), 2.0),
        (f"sdelens on {unit} / on all", one, most, 1.7),
    ]
    result = [
        Target(f"RMSpropW, d = 10, {claim}", "≥", limit, compared(ten, slow, fast))
        for claim, slow, fast, limit in asked
        if several or " on all" not in claim
    ]
    for task in found["tasks"]:
        asked_of_kernel = {10: 2.5, 100_000: 1.5}.get(task["dim"])
        if asked_of_kernel and any(row["name"] == _KERNEL for row in task["rows"]):
            claim = (
                f"{_LABELS[task['optimizer']]}, d = {spaced(task['dim'])}, {unit}: diffrax in one solve / one kernel"
            )
            quotient = compared(task, ("diffrax Unsafe, one solve", ONE), (_KERNEL, ONE))
            result.append(Target(claim, "≥", asked_of_kernel, quotient))
        claim = f"{_LABELS[task['optimizer']]}, d = {spaced(task['dim'])}, {unit}: sdelens / its normal draws alone"
        result.append(Target(claim, "≤", 1.3, compared(task, one, ("our normals alone", ONE))))
    return result
