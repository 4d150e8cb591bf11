"""The datasets of results and sweeps, from the statistics of all paths, and the warnings that these call for.

This module does not import JAX.
"""

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sdelens.results.edge import sharpness_notes
from sdelens.run.description import LEVELS, Description, SweepDescription, divergence_warning, infimum_warning
from sdelens.run.summary import Parts, Summary, total
from sdelens.run.variables import Variables, variables_of

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["part_name", "result_dataset", "sweep_dataset"]


def result_dataset(description: Description, parts: Parts, shares: int = 1) -> "tuple[xr.Dataset, list[str]]":
    """The dataset of a result, and the texts of warnings.

    Args:
        description: that of the run.
        parts: what has been computed, by label of the model.
        shares: number of shares in which it was computed.
    """
    import xarray as xr

    texts: list[str] = []
    summaries = {label: _whole(parts, label) for label in description.models}
    for label, summary in summaries.items():
        for warning in (divergence_warning, infimum_warning):
            text = warning(description, label, summary)
            texts += [] if text is None else [text]
    seconds = {label: parts[label].seconds for label in summaries}
    attrs = description.attributes_with(seconds, shares)
    dataset = xr.Dataset(_of_models(description, summaries), description.coordinates(), attrs)
    return dataset, texts + sharpness_notes(dataset, json.loads(attrs["optimizer"]))


def sweep_dataset(sweep: SweepDescription, parts: Parts, shares: int = 1) -> "tuple[xr.Dataset, list[str]]":
    """The dataset of a sweep, and the texts of warnings, with the arguments of `result_dataset`.

    The names of `parts` are those of the points and the labels of the models, `part_name`.
    """
    import xarray as xr

    shape = tuple(len(values) for values in sweep.over.values())
    columns: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    attrs, times, diverged, others = [], [], [], []
    for i, (name, description) in enumerate(zip(sweep.names, sweep.points, strict=True)):
        summaries = {label: _whole(parts, part_name(name, label)) for label in description.models}
        seconds = {label: parts[part_name(name, label)].seconds for label in summaries}
        lost = [divergence_warning(description, label, summary) for label, summary in summaries.items()]
        below = [infimum_warning(description, label, summary) for label, summary in summaries.items()]
        diverged += [name] if any(lost) else []
        others += [f"at {name}: {text}" for text in below if text is not None]
        variables = _of_models(description, summaries)
        variables["wall_time"] = ("model",), np.array([round(s, 3) for s in seconds.values()])
        for variable, (dims, array) in variables.items():
            if variable not in columns:
                columns[variable] = dims, np.empty((math.prod(shape), *array.shape), array.dtype)
            columns[variable][1][i] = array
        attrs.append(description.attributes_with(seconds, shares))
        times.append(description.recorded * description.lr)
    over, coordinates = tuple(sweep.over), sweep.points[0].coordinates()
    arrays = {name: ((*over, *dims), a.reshape(*shape, *a.shape[1:])) for name, (dims, a) in columns.items()}
    if sweep.rate is not None:
        of_lr = np.stack(times).reshape(*shape, -1)[tuple(slice(None) if key == sweep.rate else 0 for key in over)]
        coordinates["time"] = (sweep.rate, "step"), of_lr
    own = [{k: v for k, v in a.items() if _settings(k, v) != _settings(k, attrs[0][k])} for a in attrs]
    arrays["point"] = over, np.array([json.dumps(differing) for differing in own]).reshape(shape)
    common = attrs[0] | {"over": sweep.settings, "rerunnable": min(a["rerunnable"] for a in attrs)}
    dataset = xr.Dataset(arrays, {key: np.array(vs) for key, vs in sweep.over.items()} | coordinates, common)
    for key, text in sweep.values.items():
        dataset[key].attrs["values"] = text
    return dataset, _of_points(len(sweep.points), diverged, others)


def part_name(point: str, label: str) -> str:
    """The name of what a sweep computes of a model at a point."""
    return f"{point}: {label}"


def _whole(parts: Parts, name: str) -> Summary:
    return total(parts[name].nodes).with_quantiles(np.array(LEVELS))


def _of_models(description: Description, summaries: dict[str, Summary]) -> Variables:
    """Variables of all models, each with its dimensions."""
    columns: dict[str, tuple[tuple[str, ...], list[np.ndarray]]] = {}
    for label, summary in summaries.items():
        for name, (dims, array) in variables_of(summary, description, label).items():
            columns.setdefault(name, (("model", *dims), []))[1].append(array)
    return {name: (dims, np.stack(arrays)) for name, (dims, arrays) in columns.items()}


def _settings(name: str, value: Any) -> str:
    """An attribute as text, without the wall times of the models."""
    if name != "models":
        return json.dumps(value)
    return json.dumps([{k: v for k, v in m.items() if k != "wall_time"} for m in json.loads(value).values()])


def _of_points(count: int, diverged: Sequence[str], others: Sequence[str]) -> list[str]:
    """One warning of each kind for the whole sweep."""
    texts: list[str] = []
    if diverged:
        more = f" and {len(diverged) - 5} more" if len(diverged) > 5 else ""
        texts.append(
            f"paths diverged at {len(diverged)} of {count} points ({'; '.join(diverged[:5])}{more}); "
            "these points are missing (NaN) in all summaries. Try a smaller lr."
        )
    if others:
        more = f" The same holds at {len(others) - 1} more points." if len(others) > 1 else ""
        texts.append(f"{others[0]}{more}")
    return texts
