"""The figures: what a step costs in each contender, with lower bounds; and how the cost scales."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks import costs, ensembles
from benchmarks.report import number, spaced, unit
from benchmarks.timing import ALL, ONE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw", "draw_scaling"]

# Okabe and Ito's palette, safe for colour-blind readers.
_COLOURS: Final = {
    "sdelens": "#0072B2",
    "torch": "#E69F00",
    "diffrax": "#009E73",
    "torchsde": "#CC79A7",
    "floor": "#999999",
}
_LINE: Final = "#0072B2"
_FLOORS: Final = {"our normals alone": (0, (4, 2)), "arithmetic alone": (0, (1, 1.5))}
_FLOOR_LABELS: Final = {"our normals alone": "random numbers alone", "arithmetic alone": "arithmetic alone"}


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Write the dot plot of what a step costs in each contender; nothing if the ensembles were not measured."""
    tasks = found["questions"].get("ensembles", {}).get("tasks", [])
    tasks = [task for task in tasks if task["optimizer"] == "rmspropw"]
    if not tasks:
        return
    names = list(dict.fromkeys(r["name"] for t in tasks for r in t["rows"] if r["group"] != "floor"))
    device, count = unit(found["environment"]), len(found["environment"]["devices"])
    several = any(row["setting"] == ALL for task in tasks for row in task["rows"])
    with _figure((8.4, 3.6)) as figure:
        axes = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
        for axis, task in zip(axes, tasks, strict=True):
            _dots(axis, task, names)
        figure.suptitle(_message(tasks[0], device), fontsize=10)
        axes[len(axes) // 2].set_xlabel("ns per path, step and coordinate; medians and quartiles")
        _legend(figure, device, count if several else 1)
        _write(figure, path)


def draw_scaling(found: Mapping[str, Any], path: Path) -> None:
    """Write the figure of how the cost scales; nothing if the costs were not measured."""
    panels = found["questions"].get("costs")
    if panels is None:
        return
    with _figure((9.6, 2.3)) as figure:
        _scaling(figure.subplots(1, 5, width_ratios=[1, 1, 1, 1, 0.6]), panels)
        _write(figure, path)


@contextmanager
def _figure(size: tuple[float, float]) -> Iterator["Figure"]:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    from sdelens.results.figures import STYLE

    with plt.style.context([STYLE, {"figure.constrained_layout.use": True, "font.size": 8}]):
        figure = plt.figure(figsize=size)
        yield figure
        plt.close(figure)


def _write(figure: "Figure", path: Path) -> None:
    from sdelens.core.files import save_figure

    save_figure(figure, path)


def _message(task: Mapping[str, Any], device: str) -> str:
    """What the figure shows: by how much the other libraries cost more, on one device."""
    rows = [row for row in task["rows"] if row["setting"] == ONE and row["group"] != "floor"]
    others = [
        ensembles.compared(task, (row["name"], ONE), ("sdelens", ONE)).median
        for row in rows
        if row["group"] != "sdelens"
    ]
    where = f"RMSpropW SDE on one {device}, d = {spaced(task['dim'])}"
    return f"{where}: other libraries take {_rounded(min(others))} to {_rounded(max(others))} times as long"


def _rounded(value: float) -> str:
    return f"{float(f'{value:.2g}'):g}"


def _dots(axis: "Axes", task: Mapping[str, Any], names: list[str]) -> None:
    """Cost on one device (filled) and on all (open), medians with quartiles; lower bounds as lines."""
    rows = [row for row in task["rows"] if row["group"] != "floor"]
    furthest: dict[int, float] = {}
    label: dict[int, str] = {}
    for row in rows:
        low, middle, high = np.quantile(ensembles.costs(row, task["dim"]), [0.25, 0.5, 0.75])
        one, colour, place = row["setting"] == ONE, _COLOURS[row["group"]], names.index(row["name"])
        axis.plot([low, high], [place, place], color=colour, linewidth=1.2)
        axis.plot(middle, place, "o", color=colour, markersize=5.5, markerfacecolor=colour if one else "white")
        furthest[place] = max(furthest.get(place, high), high)
        if one:
            label[place] = number(middle)
    for place, text in label.items():
        axis.annotate(
            text,
            (furthest[place], place),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            zorder=4,
            bbox=dict(facecolor="white", edgecolor="none", pad=0.6),
        )
    for row in task["rows"]:
        if row["name"] in _FLOORS and row["setting"] == ONE:
            at = float(np.median(ensembles.costs(row, task["dim"])))
            axis.axvline(at, color="0.4", linestyle=_FLOORS[row["name"]], linewidth=1.0, zorder=0)
    medians = [float(np.median(ensembles.costs(row, task["dim"]))) for row in task["rows"]]
    axis.set(
        xscale="log",
        xlim=(min(medians) / 1.6, max(medians) * 6),
        yticks=range(len(names)),
        yticklabels=names,
        title=f"d = {spaced(task['dim'])}",
    )
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(True, axis="y", alpha=0.4)


def _legend(figure: "Figure", unit: str, devices: int) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color="0.3", marker="o", linestyle="none", label=f"one {unit}"),
        Line2D(
            [], [], color="0.3", marker="o", markerfacecolor="white", linestyle="none", label=f"all {devices} {unit}s"
        ),
        *(Line2D([], [], color="0.4", linestyle=_FLOORS[n], label=_FLOOR_LABELS[n]) for n in _FLOORS),
    ]
    if devices == 1:
        del handles[1]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)


def _scaling(axes: Sequence["Axes"], panels: Mapping[str, Any]) -> None:
    """Cost per unit against one size at a time, start-up included (line) and taken off (dots)."""
    start = costs.start_up(panels)
    labels = {"paths": "paths", "steps": "steps", "dimension": "dimension d", "records": "steps between records"}
    for axis, (panel, label) in zip(axes, labels.items(), strict=False):
        at = [row["at"] for row in panels[panel]]
        whole = [np.median(costs.costs(row)) for row in panels[panel]]
        beyond = [np.median(costs.costs(row, start)) for row in panels[panel]]
        axis.plot(at, whole, color="0.6", linestyle=(0, (4, 2)), marker="s", markersize=3, label="with start-up")
        axis.plot(at, beyond, color=_LINE, marker="o", markersize=4, label="beyond it")
        axis.set(xscale="log", xlabel=label, ylim=(0, 1.25 * max(*whole, *beyond)))
    axes[0].set_ylabel("ns per path, step\nand coordinate")
    axes[0].legend(loc="upper right")
    axis = axes[4]
    names = ["1 device", f"{panels['cores']} devices"]
    speed = [1 / np.median(costs.costs(row)) for row in panels["devices"]]
    relative = [s / speed[0] for s in speed]
    bars = axis.bar(names, relative, 0.6, color=_LINE)
    axis.bar_label(bars, [f"{r:.2f}" for r in relative], padding=2)
    axis.set(ylabel="speed", ylim=(0, 1.2 * max(relative)))
    axis.grid(False, axis="x")
