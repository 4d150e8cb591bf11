"""A grid of runs: its values, a checked experiment for every point, its description, and its execution."""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from sdelens.cases.case import check_subject
from sdelens.core import check
from sdelens.core.names import point_label, value_labels
from sdelens.core.progress import progress_bar
from sdelens.integrate import Stepper
from sdelens.run.checkpoint import Checkpoints, digest
from sdelens.run.datasets import part_name
from sdelens.run.description import SweepDescription
from sdelens.run.experiment import (
    Experiment,
    description_of,
    identity,
    plan_of_code,
    prepare,
    share_identity,
    simulated,
    work_of,
)
from sdelens.run.models import ClosedForm, chosen_models
from sdelens.run.options import Options
from sdelens.run.programs import Programs
from sdelens.run.replace import field_names, replaced
from sdelens.run.shares import Share
from sdelens.run.summary import Parts

__all__ = ["Grid", "grid_identity", "grid_of", "run_grid", "share_code_of"]

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
            for stepper in experiment.steppers.values():
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
    chunk = min(experiment.plan.chunk for experiment in grid.experiments)
    return Grid(values, [replace(e, plan=e.plan._replace(runs=count, chunk=chunk)) for e in grid.experiments])


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
            if callable(values[twice]):
                raise ValueError(
                    f"{name}: got two functions that are both written as {plain[twice]}; give them different names, "
                    "since the points of a result are named by them."
                )
            raise ValueError(f"{name}: got {values[twice]!r} twice; give each value once.")
        found[str(key)] = values
    return found


def run_grid(
    grid: Grid, progress: bool | None, checkpoints: Checkpoints | None, points: Sequence[int] | None = None
) -> Share:
    """Run every point, or those of these numbers, continuing from checkpoints if there are any."""
    chosen = list(range(len(grid.experiments)) if points is None else points)
    is_share = grid.experiments[0].plan.share is not None or points is not None
    identified, code = dict[str, Any](), ""
    if is_share or checkpoints is not None:  # all data are read, and all code is traced
        identified, code = grid_identity(grid), (share_code_of if is_share else _code)(grid)
    if checkpoints is not None:
        more = {} if points is None else {"share of points": chosen}
        checkpoints.start(identified | more | {"code": code})
    parts: Parts = {}
    with progress_bar(progress, *work_of([grid.experiments[i] for i in chosen], checkpoints)) as report:
        for i in chosen:
            for label, part in simulated(grid.experiments[i], report, checkpoints, grid.names[i]):
                parts[part_name(grid.names[i], label)] = part
    first = grid.experiments[0]
    plan, (index, count) = first.plan, first.share
    own = None if points is None else tuple(chosen)
    paths = (plan.own.start, plan.own.stop)
    shared = share_identity(identified, code) if is_share else {}
    return Share(index, count, paths, own, plan.block, shared, _described(grid), parts)


def _described(grid: Grid) -> SweepDescription:
    """All that a sweep needs besides its statistics."""
    over = {
        key: [_number(v) for v in values] if _is_label(values) else list(range(len(values)))
        for key, values in grid.over.items()
    }
    written = {key: [_plain(v, _LONGEST) for v in values] for key, values in grid.over.items()}
    rates = (key for key in over if key.rpartition(".")[2] == "lr" and key.partition(".")[0] not in _ROOTS)
    return SweepDescription(
        over=over,
        values={key: json.dumps(written[key]) for key, values in grid.over.items() if not _is_label(values)},
        settings=json.dumps(written),
        rate=next(rates, None),
        names=grid.names,
        points=[description_of(experiment, with_doubts=False) for experiment in grid.experiments],
    )


def _number(value: Any) -> Any:
    """A value as a number or string of JSON."""
    return value.item() if isinstance(value, np.generic) else value


def grid_identity(grid: Grid) -> dict[str, Any]:
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
    plain = {key: [_plain(value) for value in values] for key, values in grid.over.items()}
    found["over"] = json.loads(json.dumps(plain))  # as it is read from a file, with lists in place of tuples
    found["points"] = digest((), json.dumps(numbers))
    return found


def _code(grid: Grid) -> str:
    """A hash of the traced code of all models."""
    code = [Programs(s, e.plan, 0.0, e.observables).fingerprint() for e, s in grid.programs().values()]
    return digest((), json.dumps(code))


def share_code_of(grid: Grid) -> str:
    """A hash of the traced code of all models, whatever the number of devices, the chunk and the share."""
    plain = [replace(e, plan=plan_of_code(e.plan)) for e in grid.experiments]
    return _code(replace(grid, experiments=plain))


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
