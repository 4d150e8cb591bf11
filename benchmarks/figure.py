"""The figures: what a step costs in each contender, with lower bounds; and how the cost scales."""

from collections.abc import Iterator, Mapping
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
_LABELS: Final = {"paths": "paths", "steps": "steps", "dimension": "dimension d", "records": "steps between records"}
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
    with _figure((8.4, 3.8)) as figure:
        axes = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
        for axis, task in zip(axes, tasks, strict=True):
            _dots(axis, task, names)
        _name_floors(axes[0], tasks[0], len(names))
        _headline(figure, _message(tasks[0], device))
        axes[len(axes) // 2].set_xlabel("ns per path, step and coordinate; medians and quartiles")
        _legend(figure, device, count if several else 1)
        _write(figure, path)


def draw_scaling(found: Mapping[str, Any], path: Path) -> None:
    """Write the figure of how the cost scales; nothing if the costs were not measured."""
    panels = found["questions"].get("costs")
    if panels is None:
        return
    with _figure((8.4, 4.8)) as figure:
        _scaling(figure.subplots(2, 3), panels)
        _headline(figure, _scaling_message(panels))
        _write(figure, path)


def _headline(figure: "Figure", text: str) -> None:
    """Above the figure, what it shows, and in a second line what was measured."""
    figure.suptitle(text, x=0.01, ha="left", fontsize="medium")


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
    """Save a figure in 128 colours, a third of its weight, with the texts that it says of itself."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from sdelens.core.files import few_colours, save_figure

    save_figure(figure, path)
    image, info = Image.open(path), PngInfo()
    for key, text in image.info.items():
        if isinstance(text, str):
            info.add_itxt(key, text)
    few_colours(image.convert("RGB")).save(path, pnginfo=info, optimize=True)


def _message(task: Mapping[str, Any], device: str) -> str:
    """What the figure shows: by how much the other libraries cost more, on one device."""
    rows = [row for row in task["rows"] if row["setting"] == ONE and row["group"] != "floor"]
    others = [
        ensembles.compared(task, (row["name"], ONE), ("sdelens", ONE)).median
        for row in rows
        if row["group"] != "sdelens"
    ]
    dim = f"d = {spaced(task['dim'])}"
    return (
        f"Other libraries take {_rounded(min(others))} to {_rounded(max(others))} times as long as sdelens, {dim}\n"
        f"RMSpropW SDE on one {device}"
    )


def _scaling_message(panels: Mapping[str, Any]) -> str:
    """What the figure shows: the range of the costs beyond the start-up, and the speed of all devices over one."""
    start = costs.start_up(panels)
    found = {name: [float(np.median(costs.costs(row, start))) for row in panels[name]] for name in _LABELS}
    sizes = [cost for name in _LABELS if name != "records" for cost in found[name]]
    one, every = (float(np.median(costs.costs(row))) for row in panels["devices"])
    return (
        f"Beyond the start-up of {_rounded(1000 * float(np.median(start)))} ms, a step of a path costs "
        f"{_rounded(min(sizes))} to {_rounded(max(sizes))} ns per coordinate,\n"
        f"{_rounded(found['records'][0])} ns if every step is recorded; {panels['cores']} devices are "
        f"{_rounded(one / every)} times as fast as one\nRMSpropW SDE; d = 10 where it is not varied"
    )


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

    if devices == 1:  # all dots are of that one
        return
    dot: dict[str, Any] = {"color": "0.3", "marker": "o", "linestyle": "none"}
    handles = [
        Line2D([], [], label=f"one {unit}", **dot),
        Line2D([], [], label=f"all {devices} {unit}s", markerfacecolor="white", **dot),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)


def _name_floors(axis: "Axes", task: Mapping[str, Any], count: int) -> None:
    """Write beside the lines of one panel what they are: outside of both, at their lower ends, where no dots are."""
    floors = {row["name"]: row for row in task["rows"] if row["name"] in _FLOORS and row["setting"] == ONE}
    at = {name: float(np.median(ensembles.costs(row, task["dim"]))) for name, row in floors.items()}
    for name, place in at.items():
        sign = -1 if place == min(at.values()) else 1
        look: dict[str, Any] = {"color": "0.4", "fontsize": 7, "rotation": 90, "va": "bottom", "zorder": 0}
        axis.annotate(
            _FLOOR_LABELS[name],
            (place, count - 0.5),
            (2 * sign, 0),
            textcoords="offset points",
            ha="left" if sign > 0 else "right",
            **look,
        )


def _scaling(axes: np.ndarray, panels: Mapping[str, Any]) -> None:
    """Cost per unit against one size at a time, with the start-up and beyond it; speed of devices; memory."""
    from sdelens.results.end_labels import label_lines

    (*sizes, last), (records, devices, memory) = axes
    start = costs.start_up(panels)
    for axis, (panel, label) in zip([*sizes, last, records], _LABELS.items(), strict=True):
        at = [row["at"] for row in panels[panel]]
        whole = [np.median(costs.costs(row)) for row in panels[panel]]
        beyond = [np.median(costs.costs(row, start)) for row in panels[panel]]
        axis.plot(at, whole, color="0.5", linestyle=(0, (4, 2)), marker="s", markersize=3, label="with start-up")
        axis.plot(at, beyond, color=_LINE, marker="o", markersize=4, label="beyond it")
        axis.set(xscale="log", xlabel=label, ylim=(0, 1.15 * max(*whole, *beyond)))
        axis.minorticks_off()
    top = max(axis.get_ylim()[1] for axis in (*sizes, last))
    for axis in (*sizes, last):
        axis.set_ylim(0, top)
    label_lines(last)
    for row in axes:
        row[0].set_ylabel("ns per path, step\nand coordinate")
    names = ["1 device", f"{panels['cores']} devices"]
    speed = [1 / np.median(costs.costs(row)) for row in panels["devices"]]
    relative = [s / speed[0] for s in speed]
    bars = devices.bar(names, relative, 0.6, color=_LINE)
    devices.bar_label(bars, [f"{r:.2f}" for r in relative], padding=2)
    devices.set(ylabel="speed, relative to one", ylim=(0, 1.2 * max(relative)))
    devices.grid(False, axis="x")
    used = [row["bytes"] / 2**20 for row in panels["memory"]]
    memory.plot([row["steps"] for row in panels["memory"]], used, color=_LINE, marker="o", markersize=4)
    memory.set(xscale="log", xlabel="steps, with 100 records", ylabel="peak memory (MiB)", ylim=(0, 1.25 * max(used)))
    memory.minorticks_off()
