"""The figure: what a step costs in each contender, the floors, and how the cost scales."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from benchmarks import costs, ensembles
from benchmarks.report import spaced, unit
from benchmarks.timing import ALL, ONE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

__all__ = ["draw"]

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


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Write the figure of what was measured; nothing if neither ensembles nor costs were."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    from sdelens.core.files import save_figure
    from sdelens.results.plotting import STYLE

    tasks = found["questions"].get("ensembles", {}).get("tasks", [])
    tasks = [task for task in tasks if task["optimizer"] == "rmspropw"]
    panels = found["questions"].get("costs")
    if not tasks and panels is None:
        return
    heights = [5.4] * bool(tasks) + [2.3] * (panels is not None)
    with plt.style.context([STYLE, {"figure.constrained_layout.use": True, "font.size": 8}]):
        figure = plt.figure(figsize=(9.6, sum(heights)))
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        if tasks:
            axes = parts[0].subplots(1, len(tasks), sharey=True, squeeze=False)[0]
            names = list(dict.fromkeys(r["name"] for t in tasks for r in t["rows"] if r["group"] != "floor"))
            for axis, task in zip(axes, tasks, strict=True):
                _bars(axis, task, names)
            several = any(row["setting"] == ALL for task in tasks for row in task["rows"])
            _legend(parts[0], unit(found["environment"]), len(found["environment"]["devices"]) if several else 1)
        if panels is not None:
            _scaling(parts[-1].subplots(1, 5, width_ratios=[1, 1, 1, 1, 0.6]), panels)
        save_figure(figure, path)
        plt.close(figure)


def _bars(axis: "Axes", task: Mapping[str, Any], names: list[str]) -> None:
    """Nanoseconds per path, step and coordinate, on one core and on all; medians with quartiles; floors as lines."""
    rows = [row for row in task["rows"] if row["group"] != "floor"]
    settings = {name: [row["setting"] for row in rows if row["name"] == name] for name in names}
    for row in rows:
        ns, one = ensembles.costs(row, task["dim"]), row["setting"] == ONE
        low, middle, high = np.quantile(ns, [0.25, 0.5, 0.75])
        aside = 0.2 if len(settings[row["name"]]) > 1 else 0.0
        place = names.index(row["name"]) + (-aside if one else aside)
        colour = _COLOURS[row["group"]]
        axis.barh(
            place,
            middle,
            0.38,
            color=colour if one else "white",
            edgecolor=colour,
            hatch=None if one else "////",
            xerr=[[middle - low], [high - middle]],
            error_kw=dict(ecolor="black", elinewidth=0.8, capsize=1.5),
        )
        axis.annotate(
            f"{middle:.3g}",
            (high, place),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=6.5,
            zorder=4,
            bbox=dict(facecolor="white", edgecolor="none", pad=0.6),
        )
    for row in task["rows"]:
        if row["name"] in _FLOORS and row["setting"] == ONE:
            at = float(np.median(ensembles.costs(row, task["dim"])))
            axis.axvline(at, color="black", linestyle=_FLOORS[row["name"]], linewidth=1.0, zorder=3)
    highest = max(float(np.median(ensembles.costs(row, task["dim"]))) for row in rows)
    lowest = min(float(np.median(ensembles.costs(row, task["dim"]))) for row in task["rows"])
    axis.set(
        xscale="log",
        xlim=(lowest / 1.5, highest * 5),
        yticks=range(len(names)),
        yticklabels=names,
        title=f"RMSpropW SDE, d = {spaced(task['dim'])}",
        xlabel="ns per path, step and coordinate",
    )
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(False, axis="y")


def _legend(figure: "SubFigure", unit: str, devices: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor="0.5", edgecolor="0.5", label=f"one {unit}"),
        Patch(facecolor="white", edgecolor="0.5", hatch="////", label=f"all ({devices} devices)"),
        *(Line2D([], [], color="black", linestyle=_FLOORS[n], label=f"{n}, one {unit}") for n in _FLOORS),
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
