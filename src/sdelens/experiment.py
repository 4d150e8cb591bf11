"""The front door: check everything once, run the models, return a `Result`."""

import json
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from sdelens import _check
from sdelens._progress import progress_bar
from sdelens.case import Case, Estimate, check_subject
from sdelens.checkpoint import Checkpoints, digest, open_checkpoints
from sdelens.ensemble import Plan, chunk_size, path_bytes, path_steps, program, record_steps, run_ensemble
from sdelens.integrate import MAX_COORDINATES, Discrete, EulerMaruyama, Stepper
from sdelens.noise import AbstractNoise
from sdelens.optimizers import Optimizer
from sdelens.problems import AbstractProblem
from sdelens.result import Result
from sdelens.sdes import build_sde
from sdelens.settings import Model, Options, chosen_models
from sdelens.statistics import BUCKETS, Summary

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["compare", "estimate", "simulate"]

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Quantiles of the loss over paths that a result holds."""

_VERSIONS = ("sdelens", "jax", "jaxlib", "optax", "equinox", "numpy")


@dataclass(frozen=True)
class _Experiment:
    """Everything validated, ready to run."""

    case: Case
    models: dict[str, Model]
    plan: Plan
    seed: int

    def stepper(self, model: Model) -> Stepper:
        case = self.case
        if model.model == "optimizer":
            return Discrete(case.problem, case.noise, case.optimizer, case.start)
        sde = build_sde(model.model, case.problem, case.noise, case.optimizer, model.bias_correction)
        options = (model.integrator, model.substeps, model.increments)
        return EulerMaruyama(sde, case.optimizer.lr, case.start, *options)

    @property
    def start_loss(self) -> float | None:
        """The loss at the start, None where that is random."""
        start = self.case.start.x
        return None if start is None else float(self.case.problem.loss(start))


def simulate(
    problem: AbstractProblem,
    noise: AbstractNoise,
    optimizer: Optimizer,
    model: str = "sde",
    *,
    steps: int,
    paths: int = 1024,
    seed: int = 0,
    record_every: int = 1,
    integrator: str = "sequential",
    substeps: int = 1,
    bias_correction: str = "discrete",
    increments: str = "gaussian",
    start: Any = None,
    keep_paths: int = 0,
    chunk: int | None = None,
    devices: int | Sequence[Any] | None = None,
    progress: bool | None = None,
    checkpoint: str | os.PathLike[str] | Checkpoints | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
) -> Result:
    """Run one model of an optimizer on a problem under noise, over many paths.

    Args:
        problem: what is minimised.
        noise: law of the gradient noise.
        optimizer: specification of the optimizer.
        model: ``"optimizer"`` (discrete, through optax), ``"sde"``, ``"malladi2022"`` (RMSprop and Adam only), or
            ``"second-order"`` (SGD only).
        steps: optimizer steps.
        paths: independent paths.
        seed: seed of all randomness; equal seeds on one machine give equal bits.
        record_every: steps between records; the start and the last step are always recorded.
        integrator: ``"sequential"`` or ``"euler"``; see `sdelens.integrate`.
        substeps: integration steps per optimizer step.
        bias_correction: for Adam's SDEs, ``"discrete"`` (1 − βᵏ⁺¹) or ``"exponential"`` (the paper's).
        increments: of Brownian motion: ``"gaussian"``, or ``"rademacher"`` (±√Δt, of the same weak order and faster).
        start: where to start: parameters like the problem's, by default its own; a function from a random key to such
            parameters, a draw for every path of every model; or a saved `State` of the optimizer (x, m, v, and for Adam
            the count of gradients in m and v), each part a flat vector or a pytree like the parameters. Accumulators
            that are not given start as the optimizer's ``v0`` says.
        keep_paths: number of paths whose whole course is kept, as ``path_x``.
        chunk: paths in flight at once, by default as many as keep their states near 1 GiB.
        devices: how many or which devices, by default all; the numbers do not depend on them beyond rounding.
        progress: show a bar, or a line every 10 s where standard error is no terminal; by default if it is one.
        checkpoint: folder for checkpoints, removed at the end, or what `keep_checkpoints` yields; a run that is killed
            can be resumed from there, to the same bits.
        checkpoint_every: optimizer steps from one checkpoint to the next, of each chunk of paths; by default every
            30 s, or less often where writing would take more than 2 % of the time.
        resume: go on from the checkpoint in that folder; where there is none, start from the beginning.

    Returns:
        A `Result` with one model.

    Raises:
        ValueError, TypeError: naming the argument, before anything runs; with `resume` also if the checkpoint is of
            another run, naming what differs.
        OSError: if `checkpoint` cannot be written or read, another run uses it, or it holds an unfinished run and
            `resume` is False.

    Warns:
        RuntimeWarning: if paths diverged; they are counted and leave the averages. If the newest checkpoint is damaged;
            the one before is used.
    """
    options = Options(
        steps=steps,
        paths=paths,
        seed=seed,
        record_every=record_every,
        integrator=integrator,
        substeps=substeps,
        bias_correction=bias_correction,
        increments=increments,
        start=start,
        keep_paths=keep_paths,
        chunk=chunk,
        devices=devices,
    )
    experiment = _prepare(problem, noise, optimizer, [model], options)
    with open_checkpoints(checkpoint, checkpoint_every, resume) as checkpoints:
        return _run(experiment, progress, checkpoints)


def compare(
    problem: AbstractProblem,
    noise: AbstractNoise,
    optimizer: Optimizer,
    models: Sequence[str] | Mapping[str, Mapping[str, Any]] | None = None,
    *,
    steps: int,
    paths: int = 1024,
    seed: int = 0,
    record_every: int = 1,
    integrator: str = "sequential",
    substeps: int = 1,
    bias_correction: str = "discrete",
    increments: str = "gaussian",
    start: Any = None,
    keep_paths: int = 0,
    chunk: int | None = None,
    devices: int | Sequence[Any] | None = None,
    progress: bool | None = None,
    checkpoint: str | os.PathLike[str] | Checkpoints | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
) -> Result:
    """Run several models of one optimizer side by side.

    The optimizer has its own noise; SDEs share one Brownian motion. With ``substeps`` > 1 every SDE is also
    run at Δt = η, as ``"<name>, 1 substep"``, so that the table tells modelling from discretisation error.

    Args:
        problem: what is minimised.
        noise: law of the gradient noise.
        optimizer: specification of the optimizer.
        models: names, by default all that exist for this optimizer but ``"second-order"``, which needs substeps; or a
            mapping from labels of your own to options (``model``, ``integrator``, ``substeps``, ``bias_correction``,
            ``increments``), for example
            ``{"optimizer": {}, "euler": {"model": "sde", "integrator": "euler"}}``.
        steps: optimizer steps.
        paths: independent paths per model.
        seed: seed of all randomness; equal seeds on one machine give equal bits.
        record_every: steps between records; the start and the last step are always recorded.
        integrator: ``"sequential"`` or ``"euler"``; see `sdelens.integrate`.
        substeps: integration steps per optimizer step.
        bias_correction: for Adam's SDEs, ``"discrete"`` (1 − βᵏ⁺¹) or ``"exponential"`` (the paper's).
        increments: of Brownian motion: ``"gaussian"``, or ``"rademacher"`` (±√Δt, of the same weak order and faster).
        start: where to start: parameters like the problem's, by default its own; a function from a random key to such
            parameters, a draw for every path of every model; or a saved `State` of the optimizer (x, m, v, and for Adam
            the count of gradients in m and v), each part a flat vector or a pytree like the parameters. Accumulators
            that are not given start as the optimizer's ``v0`` says.
        keep_paths: number of paths per model whose whole course is kept, as ``path_x``.
        chunk: paths in flight at once, by default as many as keep their states near 1 GiB.
        devices: how many or which devices, by default all; the numbers do not depend on them beyond rounding.
        progress: show a bar, or a line every 10 s where standard error is no terminal; by default if it is one.
        checkpoint: folder for checkpoints, removed at the end, or what `keep_checkpoints` yields; a run that is killed
            can be resumed from there, to the same bits.
        checkpoint_every: optimizer steps from one checkpoint to the next, of each chunk of paths; by default every
            30 s, or less often where writing would take more than 2 % of the time.
        resume: go on from the checkpoint in that folder; where there is none, start from the beginning.

    Returns:
        A `Result`; print it, or see its `errors`, `plot`, `save`.

    Raises:
        ValueError, TypeError: naming the argument, before anything runs; with `resume` also if the checkpoint is of
            another run, naming what differs.
        OSError: if `checkpoint` cannot be written or read, another run uses it, or it holds an unfinished run and
            `resume` is False.

    Warns:
        RuntimeWarning: if paths diverged; they are counted and leave the averages. If the newest checkpoint is damaged;
            the one before is used.

    Example:
        >>> import sdelens as sl
        >>> result = sl.compare(sl.Quadratic([1.0, 2.0]), sl.GaussianNoise(1.0), sl.SGD(lr=0.1), steps=20, paths=64)
        >>> result.models
        ['optimizer', 'sde']
    """
    options = Options(
        steps=steps,
        paths=paths,
        seed=seed,
        record_every=record_every,
        integrator=integrator,
        substeps=substeps,
        bias_correction=bias_correction,
        increments=increments,
        start=start,
        keep_paths=keep_paths,
        chunk=chunk,
        devices=devices,
    )
    experiment = _prepare(problem, noise, optimizer, models, options)
    with open_checkpoints(checkpoint, checkpoint_every, resume) as checkpoints:
        return _run(experiment, progress, checkpoints)


def estimate(
    problem: AbstractProblem,
    noise: AbstractNoise,
    optimizer: Optimizer,
    models: Sequence[str] | Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> Estimate:
    """Time and memory that `compare` with the same arguments would take, measured on a few steps of each model.

    Args:
        problem: what is minimised.
        noise: law of the gradient noise.
        optimizer: specification of the optimizer.
        models: as in `compare`.
        **options: the keyword options of `compare`, but for ``progress`` and those of checkpoints.

    Raises:
        ValueError, TypeError: as `compare`.
    """
    for name in options:
        _check.choice("estimate's option", name, [f.name for f in fields(Options)])
    if "steps" not in options:
        raise TypeError("steps: is missing; give the number of optimizer steps.")
    experiment = _prepare(problem, noise, optimizer, models, Options(**options))
    plan = experiment.plan
    records = min(3, len(record_steps(plan.steps, plan.record_every)) - 1)
    few = plan._replace(steps=min(plan.steps, records * plan.record_every), paths=min(plan.paths, plan.chunk))
    seconds = compiling = 0.0
    flight = 0
    for model in experiment.models.values():
        stepper = experiment.stepper(model)
        times = []
        for _ in range(2):
            begin = time.perf_counter()
            run_ensemble(stepper, few, experiment.seed, model.stream, 0.0, np.array(LEVELS))
            times.append(time.perf_counter() - begin)
        scale = (plan.steps + 1) / (few.steps + 1) * plan.paths / few.paths
        seconds += times[0] - times[1] + times[1] * scale
        compiling += times[0] - times[1]
        flight = max(flight, path_bytes(stepper) * plan.chunk)
    numbers = 12 + plan.groups * 2 + (2 * problem.dim if problem.dim <= MAX_COORDINATES else 0)
    numbers += plan.keep_paths * problem.dim
    recorded = len(record_steps(plan.steps, plan.record_every))
    results = 8 * numbers * recorded * len(experiment.models)
    sketches = 4 * BUCKETS * (recorded if plan.paths > plan.chunk else min(recorded, 256))
    return Estimate(seconds, compiling, flight + 2 * results + sketches, results)


def _prepare(problem: Any, noise: Any, optimizer: Any, models: Any, options: Options) -> _Experiment:
    check_subject(problem, noise, optimizer)
    plan, seed = options.plan(), options.checked_seed()
    chosen = chosen_models(optimizer, models, options)
    case = Case.checked(problem, noise, optimizer, options.start, plan.steps)
    experiment = _Experiment(case, chosen, plan, seed)
    for model in chosen.values():  # what cannot be built is refused before anything runs
        experiment.stepper(model)
    if options.chunk is None:
        fitting = [chunk_size(experiment.stepper(m), plan.paths, len(plan.devices)) for m in chosen.values()]
        experiment = replace(experiment, plan=plan._replace(chunk=min(fitting)))
    return experiment


def _run(experiment: _Experiment, progress: bool | None, checkpoints: Checkpoints | None) -> Result:
    plan, models = experiment.plan, experiment.models
    infimum = experiment.case.problem.infimum
    start_loss = experiment.start_loss
    parts = {}
    done = 0
    if checkpoints is not None:
        checkpoints.start(_identity(experiment))
        done = len(checkpoints.finished) * plan.steps * plan.paths + path_steps(plan, checkpoints.position)
    with progress_bar(progress, plan.steps * plan.paths * len(models), done) as report:
        for label in models:
            summary, seconds = _simulated(experiment, label, report, checkpoints)
            parts[label] = (summary, seconds)
            _warn_of_divergence(label, summary, plan)
            mean = summary.overall()[0]
            first = mean[0]
            if infimum is not None and np.nanmin(mean) < infimum - 1e-6 * abs(first - infimum):
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
    return Result(_dataset(experiment, parts))


def _simulated(
    experiment: _Experiment, label: str, report: Callable[[int, str], None], checkpoints: Checkpoints | None
) -> tuple[Summary, float]:
    """Summary and wall time in s of one model, as far as they are not saved already."""
    if checkpoints is not None and label in checkpoints.finished:
        return checkpoints.finished[label]
    model, begin = experiment.models[label], time.perf_counter()
    report(0, label)
    if checkpoints is not None:
        checkpoints.begin(label)
    summary = run_ensemble(
        experiment.stepper(model),
        experiment.plan,
        experiment.seed,
        model.stream,
        experiment.case.problem.infimum or 0.0,
        np.array(LEVELS),
        lambda done: report(done, label),
        checkpoints,
    )
    seconds = time.perf_counter() - begin if checkpoints is None else checkpoints.finish(label, summary)
    return summary, seconds


def _identity(experiment: _Experiment) -> dict[str, Any]:
    """What tells a run from others: its description, sizes, devices, versions, numbers and code."""
    attributes = _attributes(experiment, dict.fromkeys(experiment.models, 0.0))
    parts = ("problem", "noise", "optimizer", "models", "run", "device", "versions")
    identity: dict[str, Any] = {part: json.loads(attributes[part]) for part in parts}
    identity["versions"] = {name: version(name) for name in _VERSIONS}
    case, plan = experiment.case, experiment.plan
    identity["values"] = {part: digest(getattr(case, part)) for part in ("problem", "noise", "optimizer", "start")}
    identity["code"] = {label: program(experiment.stepper(m), plan) for label, m in experiment.models.items()}
    return identity


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


def _dataset(experiment: _Experiment, parts: dict[str, tuple[Summary, float]]) -> "xr.Dataset":
    import xarray as xr

    plan, case = experiment.plan, experiment.case
    problem, optimizer = case.problem, case.optimizer
    steps = record_steps(plan.steps, plan.record_every)
    offset = problem.infimum or 0.0
    levels = np.array(LEVELS)
    columns: dict[str, tuple[tuple[str, ...], list[np.ndarray]]] = {}
    for summary, _ in parts.values():
        mean, std = summary.overall()
        n_paths = summary.paths
        empty = summary.living == 0
        values: dict[str, tuple[tuple[str, ...], np.ndarray]] = {
            "loss_mean": (("step",), mean),
            "loss_std": (("step",), std),
            "loss_sem": (("step",), std / np.sqrt(np.maximum(n_paths, 1))),
            "loss_group_mean": (("group", "step"), np.where(empty, np.nan, summary.mean).T),
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
    attributes = _attributes(experiment, {label: seconds for label, (_, seconds) in parts.items()})
    variables = {name: (dims, np.stack(arrays)) for name, (dims, arrays) in columns.items()}
    return xr.Dataset(variables, coordinates, attributes)


def _attributes(experiment: _Experiment, seconds: dict[str, float]) -> dict[str, Any]:
    plan, devices = experiment.plan, experiment.plan.devices
    models = {
        label: {f.name: getattr(m, f.name) for f in fields(m)}
        | {"stream": m.stream, "wall_time": round(seconds[label], 3)}
        for label, m in experiment.models.items()
    }
    run = {
        "steps": plan.steps,
        "paths": plan.paths,
        "seed": experiment.seed,
        "record_every": plan.record_every,
        "keep_paths": plan.keep_paths,
    }
    device = {
        "platform": devices[0].platform,
        "kind": devices[0].device_kind,
        "count": len(devices),
        "cores": os.cpu_count() or 1,
        "chunk": plan.chunk,
    }
    return experiment.case.attributes(run, models, device)
