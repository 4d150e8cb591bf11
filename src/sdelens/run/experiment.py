"""One run: its checked arguments, the execution of its models one after another, and the resulting dataset."""

import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from sdelens.cases.case import Case, check_subject
from sdelens.cases.observables import Observables, check_condition, hits_of, observables_of
from sdelens.cases.path_functions import PathFunction
from sdelens.core.compilation import compiled_ahead
from sdelens.core.progress import progress_bar
from sdelens.integrate import Average, Exponential, Polyak, Stepper, Watched
from sdelens.noise import NoiseLaw
from sdelens.optimizers import FromOptax
from sdelens.results.edge import sharpness_notes
from sdelens.results.result import Result
from sdelens.run.checkpoint import Checkpoints, differences, digest
from sdelens.run.ensemble import (
    Plan,
    chunk_size,
    compilations,
    fingerprint,
    kept_shapes,
    part_shapes,
    path_steps,
    record_steps,
    run_ensemble,
)
from sdelens.run.law_warnings import law_warnings
from sdelens.run.models import Model, check_model, chosen_models, coarse_of
from sdelens.run.options import AnyAverage, Options, PolyakAverage
from sdelens.run.plan import checked_seed, plan_of
from sdelens.run.processes import Group, current
from sdelens.run.statistics import Summary
from sdelens.run.variables import Variables, variables_of

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "LEVELS",
    "Experiment",
    "Parts",
    "agreed_devices",
    "attributes",
    "code_of",
    "dataset_of",
    "described",
    "divergence_warnings",
    "identity",
    "infimum_warnings",
    "prepare",
    "run",
    "simulated",
    "work_of",
]

Parts = dict[str, tuple[Summary, float]]
"""Summary and wall time in s of the models of an experiment, by label."""
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Levels of the quantiles of the loss over paths that a result contains."""

_VERSIONS = ("sdelens", "jax", "jaxlib", "optax", "equinox", "numpy")


@dataclass(frozen=True)
class Experiment:
    """A run with all arguments validated.

    Attributes:
        case: problem, noise, optimizer and start.
        models: models by label.
        plan: sizes and devices.
        seed: seed of all randomness.
        observables: what is recorded in addition to the loss.
        averages: moving averages of x by name.
        hits: the conditions whose first steps are stored.
        group: the processes, each of which runs a share of the paths.
    """

    case: Case
    models: dict[str, Model]
    plan: Plan
    seed: int
    observables: Observables
    averages: dict[str, AnyAverage]
    hits: tuple[PathFunction, ...]
    group: Group

    def stepper(self, model: Model) -> Stepper:
        """The stepper that the ensemble runs for a model."""
        return self._watched(model.stepper(self.case), self.hits)

    def _watched(self, stepper: Stepper, hits: tuple[PathFunction, ...]) -> Stepper:
        """A stepper that carries the averages, and tests these conditions, if there are any."""
        if not (self.averages or hits):
            return stepper
        averages = tuple(_moving(average) for average in self.averages.values())
        return Watched(stepper, averages, tuple(self.averages), hits, self.case.problem.layout)

    def check(self, label: str, model: Model) -> None:
        """Refuse a model that cannot be built, or whose state lacks a part that is to be recorded.

        Raises:
            ValueError, TypeError: naming what does not fit, and the model.
        """
        inner = check_model(model, self.case)
        if self.averages and (taken := self.averages.keys() & part_shapes(inner).keys()):
            raise ValueError(
                f"averages: got the name {min(taken)!r}, which is that of a part of the state of the model {label!r}; "
                "choose another name."
            )
        used = self.plan.keep if self.plan.keep_paths else ()
        if not (set(used) - {"x"} or self.observables.of_state or any(hit.of_state for hit in self.hits)):
            return
        parts = part_shapes(self._watched(inner, ()))
        self.observables.check(label, parts["x"], parts)
        for hit in self.hits:
            check_condition(hit, label, parts["x"], parts, self.case.problem.layout)
        names = self.observables.names
        for name in used:
            if name not in parts and name != "loss" and name not in names:
                known = [*sorted(parts), "loss", *names]
                raise ValueError(
                    f"keep: got {name!r}, which the model {label!r} does not have; choose from {', '.join(known)}, or "
                    "run that model separately."
                )
            if name in parts and name in names:
                raise ValueError(f"keep: {name!r} is an observable and a part of the state; rename the observable.")


def _moving(average: AnyAverage) -> Average:
    """The average as it is computed."""
    if isinstance(average, PolyakAverage):
        return Polyak(average.start)
    return Exponential(math.log(average.decay), average.bias_correction)


def prepare(
    problem: Any, noise: Any, optimizer: Any, models: Any, options: Options, bound: NoiseLaw | None = None
) -> Experiment:
    """Check a user's arguments and choose the chunk; `bound` is the noise if it is already bound to the problem.

    Raises:
        ValueError, TypeError: naming the argument that does not fit.
    """
    check_subject(problem, noise, optimizer)
    plan, seed = plan_of(options, problem.dim), checked_seed(options)
    chosen = chosen_models(optimizer, models)
    case = Case.checked(problem, noise, optimizer, options.start, plan.steps, bound)
    _check_factorisations(case, plan)
    record = options.record
    averages = cast("dict[str, AnyAverage]", record.averages or {})
    observables = observables_of(record.observables, case, tuple(averages))
    hits = hits_of(record.hits, case.problem)
    experiment = Experiment(case, chosen, plan, seed, observables, averages, hits, current())
    for label, model in chosen.items():
        experiment.check(label, model)
    if options.execution.chunk is None:
        fitting = [chunk_size(experiment.stepper(m), plan) for m in chosen.values()]
        experiment = replace(experiment, plan=plan._replace(chunk=min(fitting)))
    return experiment


def _check_factorisations(case: Case, plan: Plan) -> None:
    """Refuse several CPU devices if each would call LAPACK: they can wait for one another forever."""
    if (
        len(plan.devices) == 1
        or plan.devices[0].platform != "cpu"
        or not isinstance(case.optimizer.unwrapped, FromOptax)
    ):
        return
    called = case.optimizer.factorisations(case.problem.layout)
    if called:
        raise ValueError(
            f"devices: {case.optimizer.name} factorises matrices ({', '.join(sorted(called))}), which can deadlock "
            "on several CPU devices; give execution=sl.Execution(devices=1)."
        )


def run(experiment: Experiment, progress: bool | None, checkpoints: Checkpoints | None) -> Result:
    """Run all models, continuing from checkpoints if there are any."""
    devices = agreed_devices(experiment, partial(identity, experiment), checkpoints)
    for complaint in law_warnings(experiment.case, experiment.models.values()) if experiment.group.index == 0 else []:
        warnings.warn(complaint, RuntimeWarning, stacklevel=3)
    if checkpoints is not None:
        checkpoints.start(identity(experiment) | {"code": code_of(experiment)})
        checkpoints.agree(experiment.group)
    work, done = work_of([experiment], checkpoints)
    with progress_bar(progress if experiment.group.index == 0 else False, work, done) as report:
        parts: Parts = {}
        for label, part in simulated(experiment, report, checkpoints):
            parts[label] = part
            complaints = [*divergence_warnings(experiment, {label: part}), *infimum_warnings(experiment, {label: part})]
            for complaint in complaints if experiment.group.index == 0 else []:
                warnings.warn(complaint, RuntimeWarning, stacklevel=3)
    variables, coordinates = described(experiment, parts)
    result = Result(dataset_of(variables, coordinates, attributes(experiment, parts, devices)))
    for note in sharpness_notes(result.dataset, result.info["optimizer"]) if experiment.group.index == 0 else []:
        warnings.warn(note, RuntimeWarning, stacklevel=3)
    return result


def work_of(experiments: Sequence[Experiment], checkpoints: Checkpoints | None) -> tuple[int, int]:
    """Path-steps of this process over all models, and how many are done; all experiments have the same sizes."""
    plan, models = experiments[0].plan, experiments[0].models
    own = len(plan.own)
    done = 0
    if checkpoints is not None:
        done = len(checkpoints.finished) * plan.steps * own + path_steps(plan, checkpoints.position)
    return plan.steps * own * len(models) * len(experiments), done


def simulated(
    experiment: Experiment, report: Callable[[int, str], None], checkpoints: Checkpoints | None, name: str = ""
) -> Iterator[tuple[str, tuple[Summary, float]]]:
    """Run the models that are not saved yet, one after another: yields label, summary and wall time in s.

    Args:
        experiment: what to run.
        report: called with the progress.
        checkpoints: where to resume from and where to save.
        name: name of the experiment among several that share the checkpoints.

    Raises:
        ValueError: if the loss at the start differs from its value when the code was compiled.
    """

    def tick(done: int, label: str) -> None:
        experiment.group.check()
        report(done, label)

    saved = {} if checkpoints is None else checkpoints.finished
    names = {label: f"{name}: {label}" if name else label for label in experiment.models}
    steppers = {label: experiment.stepper(m) for label, m in experiment.models.items() if names[label] not in saved}
    offset = experiment.case.problem.infimum or 0.0
    ahead = (
        (label, compilation)
        for label, stepper in steppers.items()
        for compilation in compilations(stepper, experiment.plan, offset, experiment.observables)
    )
    start_loss = experiment.case.start_loss()
    with compiled_ahead(ahead) as wait:
        import xarray  # noqa: F401  (needed for the result; imported here while programs compile)

        for label, model in experiment.models.items():
            full = names[label]
            if full in saved:
                summary, seconds = saved[full]
            else:
                report(0, full)
                begin = time.perf_counter()
                wait(label)
                if checkpoints is not None:
                    checkpoints.begin(full)
                summary = run_ensemble(
                    steppers[label],
                    experiment.plan,
                    experiment.seed,
                    model.stream,
                    offset,
                    np.array(LEVELS),
                    partial(tick, label=full),
                    experiment.observables,
                    checkpoints,
                    experiment.group,
                )
                seconds = time.perf_counter() - begin if checkpoints is None else checkpoints.finish(full, summary)
            _check_start_loss(start_loss, summary)
            yield label, (summary, seconds)


def _check_start_loss(start_loss: float | None, summary: Summary) -> None:
    mean = summary.overall()[0]
    # Rounding differs between the two values; only a difference that is large compared with the losses of the run
    # shows that the loss function has changed.
    if start_loss is not None and not np.isclose(mean[0], start_loss, rtol=1e-2, atol=1e-3 * np.nanmax(np.abs(mean))):
        raise ValueError(
            f"loss: is {start_loss:.6g} at the start now, but {mean[0]:.6g} in the compiled run. It must depend only "
            "on its arguments and variables; changes to an object after an earlier run are not detected. Define the "
            "loss function again."
        )


def divergence_warnings(experiment: Experiment, parts: Parts) -> list[str]:
    """A warning text for every model with diverged paths."""
    plan, found = experiment.plan, []
    for label, (summary, _) in parts.items():
        lost = int(plan.paths - summary.paths[-1])
        if lost:
            steps = record_steps(plan.steps, plan.record_every)
            first = int(steps[np.argmax(summary.paths < plan.paths)])
            found.append(
                f"{lost} of {plan.paths} paths of {label!r} diverged, the first by step {first}; diverged paths are "
                "excluded from the averages from that step on. Try a smaller lr."
            )
    return found


def infimum_warnings(experiment: Experiment, parts: Parts) -> list[str]:
    """A warning text for every model whose mean loss falls below the infimum."""
    infimum, found = experiment.case.problem.infimum, []
    for label, (summary, _) in parts.items():
        mean = summary.overall()[0]
        if infimum is not None and np.nanmin(mean) < infimum - 1e-6 * abs(mean[0] - infimum):
            found.append(
                f"infimum: got {infimum:g}, but the mean loss of {label!r} falls to {np.nanmin(mean):g}; errors "
                "relative to it are wrong. Give the true infimum, or None."
            )
    return found


def identity(experiment: Experiment) -> dict[str, Any]:
    """The identity of a run, except for its code: description, sizes, devices, versions and numerical values."""
    attrs = attributes(experiment, {}, len(experiment.plan.devices))
    parts = ("problem", "noise", "optimizer", "models", "run", "device", "versions")
    found: dict[str, Any] = {part: json.loads(attrs[part]) for part in parts}
    found["versions"] = {name: version(name) for name in _VERSIONS}
    case = experiment.case
    found["values"] = {part: digest(getattr(case, part)) for part in ("problem", "noise", "optimizer", "start")}
    found["values"]["infimum"] = case.problem.infimum
    return found


def code_of(experiment: Experiment) -> dict[str, str]:
    """A hash of every model's traced code."""
    plan, observables = experiment.plan, experiment.observables
    return {label: fingerprint(experiment.stepper(m), plan, observables) for label, m in experiment.models.items()}


def agreed_devices(
    experiment: Experiment, identified: Callable[[], dict[str, Any]], checkpoints: Checkpoints | None
) -> int:
    """Check that all processes are about to run the same thing, and return their total number of devices.

    Args:
        experiment: the experiment of this process, or its first one.
        identified: returns the identity of the run, except for its code.
        checkpoints: the checkpoints of this process; None if it saves none.

    Raises:
        ValueError: naming what differs between the processes.
    """
    group, count = experiment.group, len(experiment.plan.devices)
    if group.count == 1:
        return count
    own = identified()
    shared = own | {"device": {"platform": own["device"]["platform"]}, "checkpoint": checkpoints is not None}

    def join(parts: list[bytes]) -> bytes:
        found = [json.loads(part) for part in parts]
        for index, (theirs, _) in enumerate(found):
            if differing := differences(theirs, found[0][0], where="in process 0"):
                return f"in process {index}, {'; '.join(differing)}".encode()
        return str(sum(number for _, number in found)).encode()

    text = group.combine("what runs", json.dumps((shared, count)).encode(), join).decode()
    if not text.isdecimal():
        raise ValueError(f"processes: {text}. Start all processes with the same settings.")
    return int(text)


def described(experiment: Experiment, parts: Parts) -> tuple[Variables, dict[str, Any]]:
    """Variables of the dataset, each with its dimensions, and its coordinates."""
    plan, case = experiment.plan, experiment.case
    problem, optimizer = case.problem, case.optimizer
    steps = record_steps(plan.steps, plan.record_every)
    levels, names = np.array(LEVELS), list(experiment.observables.names)
    hits = [hit.name for hit in experiment.hits]
    columns: dict[str, tuple[tuple[str, ...], list[np.ndarray]]] = {}
    for label, (summary, _) in parts.items():
        kept = kept_shapes(experiment.stepper(experiment.models[label]), plan)
        values = variables_of(summary, plan, problem, names, hits, kept)
        for name, (dims, array) in values.items():
            columns.setdefault(name, (("model", *dims), []))[1].append(array)
    coordinates = {
        "model": list(parts),
        "step": steps,
        "time": ("step", steps * float(optimizer.lr)),
        "quantile": levels,
        "group": np.arange(plan.groups),
    }
    coordinates |= {"observable": names} if names else {}
    coordinates |= {"marginal": list(plan.marginals)} if plan.marginals else {}
    coordinates |= {"moment": steps[list(plan.moments)]} if plan.moments else {}
    coordinates |= {"hit": hits} if hits else {}
    return {name: (dims, np.stack(arrays)) for name, (dims, arrays) in columns.items()}, coordinates


def dataset_of(variables: Variables, coordinates: dict[str, Any], attrs: dict[str, Any]) -> "xr.Dataset":
    """The dataset; xarray is imported only here."""
    import xarray as xr

    return xr.Dataset(variables, coordinates, attrs)


def attributes(experiment: Experiment, parts: Parts, count: int) -> dict[str, Any]:
    """Attributes of the dataset of a run on `count` devices; the wall time of models not yet run is 0 s."""
    group, plan, devices = experiment.group, experiment.plan, experiment.plan.devices
    coarse = coarse_of(experiment.models)
    models = {
        label: m.settings()
        | ({"coarse": coarse[label]} if label in coarse else {})
        | {"stream": m.stream, "wall_time": round(parts[label][1], 3) if label in parts else 0.0}
        for label, m in experiment.models.items()
    }
    run = {
        "steps": plan.steps,
        "paths": plan.paths,
        "seed": experiment.seed,
        "record_every": plan.record_every,
        "keep_paths": plan.keep_paths,
        "observables": list(experiment.observables.names),
        "marginals": list(plan.marginals),
    }
    run |= {"times": record_steps(plan.steps, plan.record_every)[list(plan.moments)].tolist()} if plan.moments else {}
    run |= {"keep": list(plan.keep)} if plan.keep_paths and plan.keep != ("x",) else {}
    run |= {"averages": {n: asdict(a) for n, a in experiment.averages.items()}} if experiment.averages else {}
    run |= {"hits": [hit.name for hit in experiment.hits]} if experiment.hits else {}
    device = {
        "platform": devices[0].platform,
        "kind": devices[0].device_kind,
        "count": count,
        "cores": os.cpu_count() or 1,
        "chunk": plan.chunk,
    }
    device |= {"parameter_shards": plan.parameter_shards} if plan.parameter_shards > 1 else {}
    device |= {"processes": group.count} if group.count > 1 else {}
    return experiment.case.attributes(run, models, device)
