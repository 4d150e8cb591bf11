"""One run: what was checked and settled for it, its models one after another, and the dataset they make."""

import json
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from sdelens._processes import Group, current
from sdelens._progress import progress_bar
from sdelens.case import Case, check_subject
from sdelens.checkpoint import Checkpoints, differences, digest
from sdelens.ensemble import Plan, chunk_size, path_steps, program, record_steps, run_ensemble
from sdelens.integrate import MAX_COORDINATES, Discrete, Empirical, EulerMaruyama, Quadrature, Stepper
from sdelens.observables import Observables, observables_of
from sdelens.optimizers import FromOptax
from sdelens.result import Result
from sdelens.sdes import build_sde
from sdelens.settings import Model, Options, chosen_models
from sdelens.statistics import Summary

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["LEVELS", "Experiment", "prepare", "run"]

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Quantiles of the loss over paths that a result holds."""

_VERSIONS = ("sdelens", "jax", "jaxlib", "optax", "equinox", "numpy")


@dataclass(frozen=True)
class Experiment:
    """Everything validated, ready to run.

    Attributes:
        case: problem, noise, optimizer and start.
        models: by label.
        plan: sizes and devices.
        seed: of all randomness.
        observables: what is recorded beside the loss.
        group: the processes that run a share of the paths each.
    """

    case: Case
    models: dict[str, Model]
    plan: Plan
    seed: int
    observables: Observables
    group: Group

    def stepper(self, model: Model) -> Stepper:
        """What the ensemble runs for a model."""
        case = self.case
        own = (case.problem, case.noise, case.optimizer, case.start, case.problem.layout)
        if model.model == "optimizer":
            return Discrete(*own)
        if model.model == "empirical" and model.coefficients == "quadrature":
            return Quadrature(Discrete(*own), model.substeps, model.increments, model.accumulators)
        if model.model == "empirical":
            return Empirical(*own, model.samples, model.substeps, model.increments, model.accumulators)
        sde = build_sde(model.sde or model.model, case.problem, case.noise, case.optimizer, model.bias_correction)
        options = (model.integrator, model.substeps, model.increments)
        return EulerMaruyama(sde, case.optimizer.lr, case.start, *options)

    @property
    def start_loss(self) -> float | None:
        """The loss at the start, None where that is random."""
        start = self.case.start.x
        return None if start is None else float(self.case.problem.loss(start))


def prepare(problem: Any, noise: Any, optimizer: Any, models: Any, options: Options) -> Experiment:
    """A user's arguments, checked, with the chunk settled.

    Raises:
        ValueError, TypeError: naming the argument that does not fit.
    """
    check_subject(problem, noise, optimizer)
    plan, seed = options.plan(problem.dim), options.checked_seed()
    chosen = chosen_models(optimizer, models, options)
    case = Case.checked(problem, noise, optimizer, options.start, plan.steps)
    _check_factorisations(case, plan)
    observables = observables_of(options.observables, case.problem, case.noise)
    experiment = Experiment(case, chosen, plan, seed, observables, current())
    for model in chosen.values():  # what cannot be built is refused before anything runs
        experiment.stepper(model)
    if options.chunk is None:
        fitting = [chunk_size(experiment.stepper(m), len(plan.own), len(plan.devices)) for m in chosen.values()]
        experiment = replace(experiment, plan=plan._replace(chunk=min(fitting)))
    return experiment


def _check_factorisations(case: Case, plan: Plan) -> None:
    """Refuse several CPU devices where LAPACK would be called on each: they can wait for one another without end."""
    if len(plan.devices) == 1 or plan.devices[0].platform != "cpu" or not isinstance(case.optimizer, FromOptax):
        return
    called = case.optimizer.factorisations(case.problem.layout)
    if called:
        raise ValueError(
            f"devices: {case.optimizer.name} factorises matrices ({', '.join(sorted(called))}), which on several CPU "
            "devices can wait without end; give devices=1."
        )


def run(experiment: Experiment, progress: bool | None, checkpoints: Checkpoints | None) -> Result:
    """Run all models, going on from checkpoints if there are any."""
    plan, models, group = experiment.plan, experiment.models, experiment.group
    first_process, own = group.index == 0, len(plan.own)
    infimum = experiment.case.problem.infimum
    start_loss = experiment.start_loss
    parts = {}
    done = 0
    devices = _agreed_devices(experiment, checkpoints is not None)
    if checkpoints is not None:
        checkpoints.start(_identity(experiment) | {"code": _code(experiment)})
        checkpoints.agree(group)
        done = len(checkpoints.finished) * plan.steps * own + path_steps(plan, checkpoints.position)
    with progress_bar(progress if first_process else False, plan.steps * own * len(models), done) as report:
        for label in models:
            summary, seconds = _simulated(experiment, label, report, checkpoints)
            parts[label] = (summary, seconds)
            if first_process:
                _warn_of_divergence(label, summary, plan)
            mean = summary.overall()[0]
            first = mean[0]
            if first_process and infimum is not None and np.nanmin(mean) < infimum - 1e-6 * abs(first - infimum):
                warnings.warn(
                    f"infimum: was given as {infimum:g}, but the mean loss of {label!r} falls to {np.nanmin(mean):g}; "
                    "errors relative to it are wrong. Give the true infimum, or None.",
                    RuntimeWarning,
                    stacklevel=3,
                )
            # Rounding differs between the two; only what matters against the losses of the run tells a changed loss.
            if start_loss is not None and not np.isclose(
                first, start_loss, rtol=1e-2, atol=1e-3 * np.nanmax(np.abs(mean))
            ):
                raise ValueError(
                    f"loss: is {start_loss:.6g} at the start now, but {first:.6g} in the compiled run. It must depend "
                    "on its arguments alone; a function or object changed after an earlier run is not noticed. "
                    "Define it anew."
                )
    return Result(_dataset(experiment, parts, devices))


def _simulated(
    experiment: Experiment, label: str, report: Callable[[int, str], None], checkpoints: Checkpoints | None
) -> tuple[Summary, float]:
    """Summary and wall time in s of one model, as far as they are not saved already."""
    if checkpoints is not None and label in checkpoints.finished:
        return checkpoints.finished[label]
    model, begin = experiment.models[label], time.perf_counter()
    report(0, label)

    def tick(done: int) -> None:
        experiment.group.check()
        report(done, label)

    if checkpoints is not None:
        checkpoints.begin(label)
    summary = run_ensemble(
        experiment.stepper(model),
        experiment.plan,
        experiment.seed,
        model.stream,
        experiment.case.problem.infimum or 0.0,
        np.array(LEVELS),
        tick,
        experiment.observables,
        checkpoints,
        experiment.group,
    )
    seconds = time.perf_counter() - begin if checkpoints is None else checkpoints.finish(label, summary)
    return summary, seconds


def _identity(experiment: Experiment) -> dict[str, Any]:
    """What tells a run from others, but for its code: its description, sizes, devices, versions and numbers."""
    attributes = _attributes(experiment, dict.fromkeys(experiment.models, 0.0), len(experiment.plan.devices))
    parts = ("problem", "noise", "optimizer", "models", "run", "device", "versions")
    identity: dict[str, Any] = {part: json.loads(attributes[part]) for part in parts}
    identity["versions"] = {name: version(name) for name in _VERSIONS}
    case = experiment.case
    identity["values"] = {part: digest(getattr(case, part)) for part in ("problem", "noise", "optimizer", "start")}
    return identity


def _code(experiment: Experiment) -> dict[str, str]:
    """A hash of every model's code, as it is traced."""
    plan, observables = experiment.plan, experiment.observables
    return {label: program(experiment.stepper(m), plan, observables) for label, m in experiment.models.items()}


def _agreed_devices(experiment: Experiment, saves: bool) -> int:
    """Devices of all processes, which are about to run the same.

    Raises:
        ValueError: naming what differs between them.
    """
    group, count = experiment.group, len(experiment.plan.devices)
    if group.count == 1:
        return count
    identity = _identity(experiment)
    identity["device"] = {"platform": identity["device"]["platform"]}
    identity |= {"checkpoint": saves}

    def join(parts: list[bytes]) -> bytes:
        found = [json.loads(part) for part in parts]
        for index, (theirs, _) in enumerate(found):
            if differing := differences(theirs, identity, where="in process 0"):
                return f"in process {index}, {'; '.join(differing)}".encode()
        return str(sum(number for _, number in found)).encode()

    text = group.combine("what runs", json.dumps((identity, count)).encode(), join).decode()
    if not text.isdecimal():
        raise ValueError(f"processes: {text}. Give all of them the same.")
    return int(text)


def _warn_of_divergence(label: str, summary: Summary, plan: Plan) -> None:
    lost = int(plan.paths - summary.paths[-1])
    if lost:
        steps = record_steps(plan.steps, plan.record_every)
        first = int(steps[np.argmax(summary.paths < plan.paths)])
        warnings.warn(
            f"{lost} of {plan.paths} paths of {label!r} diverged, the first by step {first}; they have left the "
            "averages from then on. A smaller lr may keep them.",
            RuntimeWarning,
            stacklevel=4,
        )


def _dataset(experiment: Experiment, parts: dict[str, tuple[Summary, float]], devices: int) -> "xr.Dataset":
    import xarray as xr

    plan, case = experiment.plan, experiment.case
    problem, optimizer = case.problem, case.optimizer
    steps = record_steps(plan.steps, plan.record_every)
    offset = problem.infimum or 0.0
    levels, names = np.array(LEVELS), list(experiment.observables.names)
    columns: dict[str, tuple[tuple[str, ...], list[np.ndarray]]] = {}
    for summary, _ in parts.values():
        mean, std = summary.overall()
        n_paths = summary.paths
        empty = summary.living == 0
        values: dict[str, tuple[tuple[str, ...], np.ndarray]] = {
            "loss_mean": (("step",), mean),
            "loss_std": (("step",), std),
            "loss_sem": (("step",), std / np.sqrt(np.maximum(n_paths, 1))),
            "loss_group_mean": (("group", "step"), np.where(empty, np.nan, summary.mean[:, 0]).T),
            "loss_group_m2": (("group", "step"), np.where(empty, np.nan, summary.m2[:, 0]).T),
            "group_paths": (("group", "step"), summary.living.astype(np.int64).T),
            "loss_quantile": (("quantile", "step"), (summary.histogram + offset).T),
            "grad_norm_mean": (("step",), np.where(n_paths == 0, np.nan, summary.grad_norm)),
            "n_paths": (("step",), n_paths.astype(np.int64)),
        }
        if problem.dim <= MAX_COORDINATES:
            alive = n_paths[:, None]
            values["x_mean"] = (("step", "coordinate"), np.where(alive == 0, np.nan, summary.seen_mean))
            x_var = np.where(alive < 2, np.nan, summary.seen_m2 / np.maximum(alive - 1, 1))
            values["x_var"] = (("step", "coordinate"), x_var)
        if names:
            overall = [summary.overall(row) for row in range(1, len(names) + 1)]
            by_name = ("observable", "step")
            values["observable_mean"] = (by_name, np.stack([m for m, _ in overall]))
            values["observable_std"] = (by_name, np.stack([s for _, s in overall]))
            for name, array in (("mean", summary.mean), ("m2", summary.m2)):
                groups = np.where(empty[:, None], np.nan, array[:, 1:])
                values[f"observable_group_{name}"] = (("observable", "group", "step"), groups.transpose(1, 2, 0))
        if plan.marginals:
            values["end_x"] = (("end_path", "marginal"), summary.ends)
        if plan.keep_paths:
            values["path_x"] = (("path", "step", "parameter"), summary.kept.transpose(1, 0, 2))
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
    attributes = _attributes(experiment, {label: seconds for label, (_, seconds) in parts.items()}, devices)
    variables = {name: (dims, np.stack(arrays)) for name, (dims, arrays) in columns.items()}
    return xr.Dataset(variables, coordinates, attributes)


def _attributes(experiment: Experiment, seconds: dict[str, float], count: int) -> dict[str, Any]:
    plan, devices, group = experiment.plan, experiment.plan.devices, experiment.group
    models = {
        label: {f.name: getattr(m, f.name) for f in fields(m) if f.name != "sde"}
        | {"stream": m.stream, "wall_time": round(seconds[label], 3)}
        | ({"rerunnable": False} if m.sde is not None else {})
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
    device = {
        "platform": devices[0].platform,
        "kind": devices[0].device_kind,
        "count": count,
        "cores": os.cpu_count() or 1,
        "chunk": plan.chunk,
    }
    device |= {"processes": group.count} if group.count > 1 else {}
    return experiment.case.attributes(run, models, device)
