"""A grid of runs: its values, a checked experiment for every point, and the dataset of all points."""

import itertools
import json
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from sdelens.cases.case import check_subject
from sdelens.core import check
from sdelens.core.names import point_label, value_labels
from sdelens.core.progress import progress_bar
from sdelens.integrate import Stepper
from sdelens.run.checkpoint import Checkpoints, digest
from sdelens.run.ensemble import fingerprint
from sdelens.run.experiment import (
    Experiment,
    Parts,
    agreed_devices,
    attributes,
    dataset_of,
    described,
    divergence_warnings,
    identity,
    infimum_warnings,
    prepare,
    simulated,
    work_of,
)
from sdelens.run.models import ClosedForm, chosen_models
from sdelens.run.options import Options
from sdelens.run.replace import field_names, replaced

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Grid", "grid_of", "run_grid"]

_ROOTS = ("problem", "noise")
_LONGEST = 64
"""Arrays with more numbers than this are not written out in attributes; NetCDF attributes are short."""


@dataclass(frozen=True)
class Grid:
    """A sweep with all arguments validated.

    Attributes:
        over: values by key.
        experiments: one for every point; the last key varies fastest.
    """

    over: dict[str, list[Any]]
    experiments: list[Experiment]

    @property
    def names(self) -> list[str]:
        """Names of the points in messages."""
        written = [[(key, label) for label in _labels(values)] for key, values in self.over.items()]
        return [point_label(dict(point)) for point in itertools.product(*written)]

    def programs(self) -> dict[Any, tuple[Experiment, Stepper]]:
        """What is compiled: the first stepper of each distinct structure, with its experiment."""
        found: dict[Any, tuple[Experiment, Stepper]] = {}
        for experiment in self.experiments:
            for model in experiment.models.values():
                stepper = experiment.stepper(model)
                shapes = tuple((np.shape(a), jax.dtypes.result_type(a)) for a in jax.tree.leaves(stepper))
                found.setdefault((jax.tree.structure(stepper), shapes, experiment.plan), (experiment, stepper))
        return found


def grid_of(problem: Any, noise: Any, optimizer: Any, models: Any, over: Any, options: Options) -> Grid:
    """Check a user's arguments at every point.

    Raises:
        ValueError, TypeError: naming the key, the value and what is wrong with it.
    """
    check_subject(problem, noise, optimizer)
    roots = {"": optimizer, "noise": noise, "problem": problem}
    known = [f"{root}.{name}" if root else name for root, spec in roots.items() for name in field_names(spec)]
    named = {label: m for label, m in chosen_models(optimizer, models).items() if isinstance(m, ClosedForm)}
    of_models = {f"{label}.{name}": (label, name) for label, model in named.items() for name in model.fields()}
    values = _checked_values(over, [*known, *of_models])
    grid = Grid(values, [])
    made: dict[Any, Any] = {}  # points with equal problem and noise share the objects and the bound noise
    for index, name in zip(np.ndindex(*map(len, values.values())), grid.names, strict=True):
        changes: dict[str, dict[str, tuple[int, Any]]] = {root: {} for root in roots}
        fields: dict[str, dict[str, Any]] = {}
        for (key, theirs), i in zip(values.items(), index, strict=True):
            if key in of_models:
                label, field = of_models[key]
                fields.setdefault(label, {})[field] = theirs[i]
                continue
            root, _, field = key.partition(".") if key.partition(".")[0] in _ROOTS else ("", "", key)
            changes[root][field] = i, theirs[i]
        try:
            at = {}
            for root, spec in roots.items():
                own = changes[root]
                which = (root, *((field, i) for field, (i, _) in own.items()))
                if which not in made:
                    made[which] = replaced(spec, {field: v for field, (_, v) in own.items()}) if own else spec
                at[root] = made[which]
            pair = (id(at["problem"]), id(at["noise"]))
            changed = {label: named[label].with_fields(new) for label, new in fields.items()}
            here = chosen_models(optimizer, models) | changed if changed else models
            experiment = prepare(at["problem"], at["noise"], at[""], here, options, made.get(pair))
        except (ValueError, TypeError) as error:
            raise type(error)(f"over: the point {name} cannot be run: {error}") from error
        made[pair] = experiment.case.noise
        grid.experiments.append(experiment)
    dims = sorted({experiment.case.problem.dim for experiment in grid.experiments})
    if len(dims) > 1:
        raise ValueError(
            f"over: the problems have {' and '.join(map(str, dims))} coordinates; run a separate sweep for each "
            "number of coordinates."
        )
    count = len(grid.experiments)  # all points share their programs, so more time for compiling them pays off
    return Grid(values, [replace(e, plan=e.plan._replace(runs=count)) for e in grid.experiments])


def _checked_values(over: Any, known: list[str]) -> dict[str, list[Any]]:
    """Check `over` and return the values by key, each a list of distinct values."""
    if not isinstance(over, Mapping) or not over:
        raise TypeError(
            f"over: got {over!r}; give a mapping from names to lists of values, for example {{'lr': [1e-3, 1e-2]}}."
        )
    found = {}
    for key, given in over.items():
        check.choice("over", key, known)
        name = f"over[{key!r}]"
        if isinstance(given, str | Mapping) or not isinstance(given, Iterable) or getattr(given, "ndim", 1) == 0:
            raise TypeError(f"{name}: got {given!r}; give a list of values, for example [{given!r}].")
        values = [v.item() if getattr(v, "ndim", None) == 0 else v for v in given]
        if not values:
            raise ValueError(f"{name}: got an empty list; give at least one value.")
        plain = [json.dumps(_plain(value)) for value in values]
        twice = next((i for i, value in enumerate(plain) if value in plain[:i]), None)
        if twice is not None:
            raise ValueError(f"{name}: got {values[twice]!r} twice; give each value once.")
        found[str(key)] = values
    return found


def run_grid(grid: Grid, progress: bool | None, checkpoints: Checkpoints | None) -> "xr.Dataset":
    """Run every point, continuing from checkpoints if there are any."""
    shape = tuple(len(values) for values in grid.over.values())
    first = grid.experiments[0]
    devices = agreed_devices(first, partial(_identity, grid), checkpoints)
    if checkpoints is not None:
        checkpoints.start(_identity(grid) | {"code": _code(grid)})
        checkpoints.agree(first.group)
    columns: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    coordinates: dict[str, Any] = {}
    attrs, times, diverged, others = [], [], [], []
    with progress_bar(progress if first.group.index == 0 else False, *work_of(grid.experiments, checkpoints)) as report:
        for i, (name, experiment) in enumerate(zip(grid.names, grid.experiments, strict=True)):
            parts: Parts = dict(simulated(experiment, report, checkpoints, name))
            diverged += [name] if divergence_warnings(experiment, parts) else []
            others += [f"at {name}: {complaint}" for complaint in infimum_warnings(experiment, parts)]
            variables, coordinates = described(experiment, parts)
            variables["wall_time"] = ("model",), np.array([round(seconds, 3) for _, seconds in parts.values()])
            for variable, (dims, array) in variables.items():
                if variable not in columns:
                    columns[variable] = dims, np.empty((math.prod(shape), *array.shape), array.dtype)
                columns[variable][1][i] = array
            attrs.append(attributes(experiment, parts, devices))
            times.append(coordinates["time"][1])
    if first.group.index == 0:
        _warn(grid, diverged, others)
    over = tuple(grid.over)
    arrays = {name: ((*over, *dims), a.reshape(*shape, *a.shape[1:])) for name, (dims, a) in columns.items()}
    rate = next((key for key in over if key.rpartition(".")[2] == "lr" and key.partition(".")[0] not in _ROOTS), None)
    if rate is not None:
        of_lr = np.stack(times).reshape(*shape, -1)[tuple(slice(None) if key == rate else 0 for key in over)]
        coordinates["time"] = (rate, "step"), of_lr
    own = [{k: v for k, v in a.items() if _settings(k, v) != _settings(k, attrs[0][k])} for a in attrs]
    arrays["point"] = over, np.array([json.dumps(differing) for differing in own]).reshape(shape)
    common = attrs[0] | {"over": json.dumps({key: [_plain(v, _LONGEST) for v in vs] for key, vs in grid.over.items()})}
    common["rerunnable"] = min(a["rerunnable"] for a in attrs)
    dataset = dataset_of(arrays, _coordinates(grid) | coordinates, common)
    for key, values in grid.over.items():
        dataset[key].attrs |= {} if _is_label(values) else {"values": json.dumps([_plain(v, _LONGEST) for v in values])}
    return dataset


def _settings(name: str, value: Any) -> str:
    """An attribute as text, without the wall times of the models."""
    if name != "models":
        return json.dumps(value)
    return json.dumps([{k: v for k, v in m.items() if k != "wall_time"} for m in json.loads(value).values()])


def _warn(grid: Grid, diverged: list[str], others: list[str]) -> None:
    """One warning of each kind for the whole sweep."""
    if diverged:
        more = f" and {len(diverged) - 5} more" if len(diverged) > 5 else ""
        warnings.warn(
            f"paths diverged at {len(diverged)} of {len(grid.experiments)} points ({'; '.join(diverged[:5])}{more}); "
            "these points are missing (NaN) in all summaries. Try a smaller lr.",
            RuntimeWarning,
            stacklevel=4,
        )
    if others:
        more = f" The same holds at {len(others) - 1} more points." if len(others) > 1 else ""
        warnings.warn(f"{others[0]}{more}", RuntimeWarning, stacklevel=4)


def _identity(grid: Grid) -> dict[str, Any]:
    """The identity of a sweep: that of its first point, its values, and the numerical values of all points."""
    found = identity(grid.experiments[0])
    known: dict[int, str] = {}

    def digested(part: Any) -> str:
        if id(part) not in known:
            known[id(part)] = digest(part)
        return known[id(part)]

    numbers = [
        [digested(part) for part in (e.case.problem, e.case.noise, e.case.optimizer, e.case.start)]
        for e in grid.experiments
    ]
    found["over"] = {key: [_plain(value) for value in values] for key, values in grid.over.items()}
    found["points"] = digest((), json.dumps(numbers))
    return found


def _code(grid: Grid) -> str:
    """A hash of the traced code of all models."""
    code = [fingerprint(stepper, e.plan, e.observables) for e, stepper in grid.programs().values()]
    return digest((), json.dumps(code))


def _coordinates(grid: Grid) -> dict[str, np.ndarray]:
    """The values of every key if they are numbers or strings, otherwise their indices."""
    return {key: np.array(vs) if _is_label(vs) else np.arange(len(vs)) for key, vs in grid.over.items()}


def _is_label(values: list[Any]) -> bool:
    kinds = {bool if isinstance(v, bool) else float if isinstance(v, int | float) else type(v) for v in values}
    return len(kinds) == 1 and kinds <= {bool, float, str}


def _labels(values: list[Any]) -> list[str]:
    if _is_label(values):
        return value_labels(values)
    return [value_labels([v])[0] if np.isscalar(v) else f"#{i}" for i, v in enumerate(values)]


def _plain(value: Any, longest: int | None = None) -> Any:
    """A value as JSON types; arrays with more than `longest` numbers are described by their shape."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "describe"):
        try:
            return value.describe()
        except TypeError:  # a covariance that is not bound to a problem yet
            return {"name": type(value).__name__, "values": [_plain(leaf, longest) for leaf in jax.tree.leaves(value)]}
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(value)]
    if callable(value) or not all(leaf.dtype.kind in "biuf" for leaf in leaves):
        return getattr(value, "__qualname__", repr(value))
    if longest is not None and sum(leaf.size for leaf in leaves) > longest:
        return f"array of shape {np.shape(value)}" if len(leaves) == 1 else f"{len(leaves)} arrays"
    return jax.tree.map(lambda a: np.asarray(a).tolist(), value)
