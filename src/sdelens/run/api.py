"""The front door: check everything once, run the models, return a `Result`."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from sdelens.cases.case import Estimate, check_subject
from sdelens.core import check
from sdelens.integrate import MAX_COORDINATES
from sdelens.noise import AbstractNoise
from sdelens.optimizers import Optimizer
from sdelens.problems import AbstractProblem
from sdelens.results.result import Result
from sdelens.results.sweep import Sweep
from sdelens.run import processes
from sdelens.run.checkpoint import Checkpoints, open_checkpoints
from sdelens.run.ensemble import path_bytes, record_steps, run_ensemble
from sdelens.run.experiment import LEVELS, prepare, run
from sdelens.run.grid import grid_of, run_grid
from sdelens.run.options import Options, models_of
from sdelens.run.statistics import BUCKETS

__all__ = ["compare", "estimate", "simulate", "sweep"]


def simulate(
    problem: AbstractProblem,
    noise: AbstractNoise,
    optimizer: Optimizer,
    model: str | None = None,
    *,
    steps: int,
    paths: int = 1024,
    seed: int = 0,
    record_every: int = 1,
    integrator: str = "sequential",
    substeps: int = 1,
    bias_correction: str = "discrete",
    increments: str = "gaussian",
    samples: int = 8,
    coefficients: str = "sampled",
    accumulators: str = "lognormal",
    start: Any = None,
    keep_paths: int = 0,
    observables: Sequence[str] | Mapping[str, Callable[[Any], Any] | None] | None = None,
    marginals: int | Sequence[int] | None = None,
    chunk: int | None = None,
    devices: int | Sequence[Any] | None = None,
    parameter_shards: int = 1,
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
        model: by default ``"sde"`` where there is one, else ``"empirical"``; ``"optimizer"`` (discrete, through
            optax), ``"malladi2022"`` (RMSprop and Adam only),
            ``"second-order"`` (SGD, RMSprop and Adam), or ``"empirical"`` (any optimizer; see
            `sdelens.integrate.empirical`).
        steps: optimizer steps.
        paths: independent paths.
        seed: seed of all randomness; equal seeds on one machine give equal bits.
        record_every: steps between records; the start and the last step are always recorded.
        integrator: ``"sequential"`` or ``"euler"``; see `sdelens.integrate`.
        substeps: integration steps per optimizer step.
        bias_correction: for Adam's SDEs, ``"discrete"`` (1 − βᵏ⁺¹) or ``"exponential"`` (the paper's).
        increments: of Brownian motion: ``"gaussian"``, or ``"rademacher"`` (±√Δt, of the same weak order and faster).
        samples: of ``"empirical"``: updates per step from which its coefficients are estimated, 2 or more.
        coefficients: of ``"empirical"``: ``"sampled"``, or ``"quadrature"``: no sampling error, for coordinate-wise
            optimizers under independent noise.
        accumulators: of ``"empirical"``: the noise of sums and means of squares, ``"lognormal"``, ``"update"`` or
            ``"drift"`` (none); see `sdelens.integrate.empirical`.
        start: where to start: parameters like the problem's, by default its own; a function from a random key to such
            parameters, a draw for every path of every model; or a saved `State` of the optimizer (x, m, v, and for Adam
            the count of gradients in m and v), each part a flat vector or a pytree like the parameters. Accumulators
            that are not given start as the optimizer's ``v0`` says.
        keep_paths: number of paths whose whole course is kept, as ``path_x``.
        observables: what to record beside the loss: names among ``"norm"`` (‖x‖), ``"grad_norm"`` (‖∇f‖),
            ``"noise_trace"`` (tr Σ) and the problem's own metrics (networks: ``"accuracy"``); or a mapping that also
            has functions of your own, from the parameters (your pytree) to a number, and None for the names above:
            ``{"norm": None, "top": lambda p: p["w"].max()}``.
        marginals: coordinates whose law at the end is kept, by index, or how many evenly spread ones;
            `Result.distances` compares them.
        chunk: paths in flight at once, by default as many as keep their states near 1 GiB, on a CPU near 64 MiB.
        devices: how many or which devices of this process, by default all; numbers depend on them by rounding only.
        parameter_shards: over how many of them the parameters and accumulators of each path are split, for models that
            one device does not hold; the others split the paths.
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
        RuntimeError: of several processes, if another is lost or fails; see `join_processes`.

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
        samples=samples,
        coefficients=coefficients,
        accumulators=accumulators,
        start=start,
        keep_paths=keep_paths,
        observables=observables,
        marginals=marginals,
        chunk=chunk,
        devices=devices,
        parameter_shards=parameter_shards,
    )
    with processes.current().run():
        if model is None:
            check_subject(problem, noise, optimizer)
            model = "sde" if "sde" in models_of(optimizer) else "empirical"
        experiment = prepare(problem, noise, optimizer, [model], options)
        with open_checkpoints(checkpoint, checkpoint_every, resume) as checkpoints:
            return run(experiment, progress, checkpoints)


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
    samples: int = 8,
    coefficients: str = "sampled",
    accumulators: str = "lognormal",
    start: Any = None,
    keep_paths: int = 0,
    observables: Sequence[str] | Mapping[str, Callable[[Any], Any] | None] | None = None,
    marginals: int | Sequence[int] | None = None,
    chunk: int | None = None,
    devices: int | Sequence[Any] | None = None,
    parameter_shards: int = 1,
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
        models: names, by default all that exist for this optimizer but ``"second-order"`` and,
            where there is another SDE, ``"empirical"``; or a mapping from labels of your own to options (``model``,
            ``integrator``, ``substeps`` and the others below down to ``accumulators``), for example
            ``{"optimizer": {}, "euler": {"model": "sde", "integrator": "euler"}}``. ``model`` may also be your own: a
            subclass of `OptimizerSDE`, or a function from problem, noise and optimizer to an `SDE`.
        steps: optimizer steps.
        paths: independent paths per model.
        seed: seed of all randomness; equal seeds on one machine give equal bits.
        record_every: steps between records; the start and the last step are always recorded.
        integrator: ``"sequential"`` or ``"euler"``; see `sdelens.integrate`.
        substeps: integration steps per optimizer step.
        bias_correction: for Adam's SDEs, ``"discrete"`` (1 − βᵏ⁺¹) or ``"exponential"`` (the paper's).
        increments: of Brownian motion: ``"gaussian"``, or ``"rademacher"`` (±√Δt, of the same weak order and faster).
        samples: of ``"empirical"``: updates per step from which its coefficients are estimated, 2 or more.
        coefficients: of ``"empirical"``: ``"sampled"``, or ``"quadrature"``: no sampling error, for coordinate-wise
            optimizers under independent noise.
        accumulators: of ``"empirical"``: the noise of sums and means of squares, ``"lognormal"``, ``"update"`` or
            ``"drift"`` (none); see `sdelens.integrate.empirical`.
        start: where to start: parameters like the problem's, by default its own; a function from a random key to such
            parameters, a draw for every path of every model; or a saved `State` of the optimizer (x, m, v, and for Adam
            the count of gradients in m and v), each part a flat vector or a pytree like the parameters. Accumulators
            that are not given start as the optimizer's ``v0`` says.
        keep_paths: number of paths per model whose whole course is kept, as ``path_x``.
        observables: what to record beside the loss: names among ``"norm"`` (‖x‖), ``"grad_norm"`` (‖∇f‖),
            ``"noise_trace"`` (tr Σ) and the problem's own metrics (networks: ``"accuracy"``); or a mapping that also
            has functions of your own, from the parameters (your pytree) to a number, and None for the names above:
            ``{"norm": None, "top": lambda p: p["w"].max()}``.
        marginals: coordinates whose law at the end is kept, by index, or how many evenly spread ones;
            `Result.distances` compares them.
        chunk: paths in flight at once, by default as many as keep their states near 1 GiB, on a CPU near 64 MiB.
        devices: how many or which devices of this process, by default all; numbers depend on them by rounding only.
        parameter_shards: over how many of them the parameters and accumulators of each path are split, for models that
            one device does not hold; the others split the paths.
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
        RuntimeError: of several processes, if another is lost or fails; see `join_processes`.

    Warns:
        RuntimeWarning: if paths diverged; they are counted and leave the averages. If the newest checkpoint is damaged;
            the one before is used.

    Examples:
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
        samples=samples,
        coefficients=coefficients,
        accumulators=accumulators,
        start=start,
        keep_paths=keep_paths,
        observables=observables,
        marginals=marginals,
        chunk=chunk,
        devices=devices,
        parameter_shards=parameter_shards,
    )
    with processes.current().run():
        experiment = prepare(problem, noise, optimizer, models, options)
        with open_checkpoints(checkpoint, checkpoint_every, resume) as checkpoints:
            return run(experiment, progress, checkpoints)


def sweep(
    problem: AbstractProblem,
    noise: AbstractNoise,
    optimizer: Optimizer,
    models: Sequence[str] | Mapping[str, Mapping[str, Any]] | None = None,
    *,
    over: Mapping[str, Any],
    steps: int,
    paths: int = 1024,
    seed: int = 0,
    progress: bool | None = None,
    checkpoint: str | os.PathLike[str] | Checkpoints | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    **options: Any,
) -> Sweep:
    """Run `compare` at every point of a grid of numbers, with one compilation for each model.

    Every point is, bit for bit, what `compare` gives at its numbers. All points have one seed: they share their
    random numbers, so that differences between points are seen with fewer paths (`Sweep.best` compares path by path).

    Args:
        problem: what is minimised.
        noise: law of the gradient noise.
        optimizer: specification of the optimizer; what is not swept is as here.
        models: as in `compare`.
        over: values by name, every combination of which is run: fields of the optimizer (``"lr"``, ``"b2"``,
            ``"weight_decay"``, …), of the noise (``"noise.scale"``, ``"noise.df"``) and of the problem
            (``"problem.curvature"``), those of a specification within another by further points
            (``"schedule.end"``). A value takes the place of that field and of no other: with ``"lr"``, b1 and b2 stay
            as they are. Numbers and arrays of one shape compile nothing anew; options do (``"noise.batch_size"``,
            ``"decay"``, ``"schedule"``), as do whole ``"noise.df"`` and the learning rates of `FromOptax`.
        steps: optimizer steps.
        paths: independent paths per model and point.
        seed: seed of all randomness, the same at every point.
        progress: show a bar, or a line every 10 s where standard error is no terminal; by default if it is one.
        checkpoint: folder for checkpoints of the whole sweep, as in `compare`: finished points are kept, and the one
            under way goes on where it stood.
        checkpoint_every: as in `compare`.
        resume: as in `compare`.
        options: the other keyword options of `compare`.

    Returns:
        A `Sweep`; print it, or see its `at`, `late_loss`, `errors`, `best`, `plot`, `save`.

    Raises:
        ValueError, TypeError: naming the key, value or argument, before anything runs; with `resume` also if the
            checkpoint is of another sweep, naming what differs.
        OSError: as `compare`.

    Warns:
        RuntimeWarning: if paths diverged, once for all points.

    Examples:
        >>> import sdelens as sl
        >>> problem, noise = sl.Quadratic([1.0, 2.0]), sl.GaussianNoise(1.0)
        >>> found = sl.sweep(problem, noise, sl.SGD(lr=0.1), over={"lr": [0.1, 0.2]}, steps=20, paths=64)
        >>> found.at(lr=0.2).models
        ['optimizer', 'sde']
    """
    chosen = _options("sweep", dict(steps=steps, paths=paths, seed=seed, **options))
    with processes.current().run():
        grid = grid_of(problem, noise, optimizer, models, over, chosen)
        with open_checkpoints(checkpoint, checkpoint_every, resume) as checkpoints:
            return Sweep(run_grid(grid, progress, checkpoints))


def _options(function: str, given: dict[str, Any]) -> Options:
    """The options that `compare` shares with a function that takes them by name."""
    for name in given:
        check.choice(f"{function}'s option", name, [f.name for f in fields(Options)])
    if "steps" not in given:
        raise TypeError("steps: is missing; give the number of optimizer steps.")
    return Options(**given)


def estimate(
    problem: AbstractProblem,
    noise: AbstractNoise,
    optimizer: Optimizer,
    models: Sequence[str] | Mapping[str, Mapping[str, Any]] | None = None,
    *,
    over: Mapping[str, Any] | None = None,
    **options: Any,
) -> Estimate:
    """Time and memory that `compare`, or `sweep`, would take with the same arguments.

    Measured on a few steps of each model, for a sweep those of its first point.

    Of several processes each measures its own share of the paths.

    Args:
        problem: what is minimised.
        noise: law of the gradient noise.
        optimizer: specification of the optimizer.
        models: as in `compare`.
        over: as in `sweep`.
        options: the keyword options of `compare`, but for ``progress`` and those of checkpoints.

    Raises:
        ValueError, TypeError: as `compare`.
    """
    chosen = _options("estimate", options)
    points = compilations = 1.0
    if over is None:
        experiment = prepare(problem, noise, optimizer, models, chosen)
    else:
        grid = grid_of(problem, noise, optimizer, models, over, chosen)
        experiment, points = grid.experiments[0], len(grid.experiments)
        compilations = len(grid.programs()) / len(experiment.models)
    plan = experiment.plan
    records = min(3, len(record_steps(plan.steps, plan.record_every)) - 1)
    own = plan.own
    few = plan._replace(
        steps=min(plan.steps, records * plan.record_every), share=(own.start, own.start + min(len(own), plan.chunk))
    )
    seconds = compiling = 0.0
    flight = 0
    for model in experiment.models.values():
        stepper = experiment.stepper(model)
        times = []
        for _ in range(2):
            begin = time.perf_counter()
            watched = experiment.observables
            run_ensemble(stepper, few, experiment.seed, model.stream, 0.0, np.array(LEVELS), observables=watched)
            times.append(time.perf_counter() - begin)
        scale = (plan.steps + 1) / (few.steps + 1) * len(own) / len(few.own)
        seconds += (times[0] - times[1]) * compilations + times[1] * scale * points
        compiling += (times[0] - times[1]) * compilations
        flight = max(flight, path_bytes(stepper) * plan.chunk)
    named = len(experiment.observables.names)
    numbers = (
        12 + plan.groups * (3 + 2 * named) + 3 * named + (2 * problem.dim if problem.dim <= MAX_COORDINATES else 0)
    )
    numbers += plan.keep_paths * problem.dim
    recorded = len(record_steps(plan.steps, plan.record_every))
    results = 8 * numbers * recorded * len(experiment.models) * int(points)
    sketches = 4 * BUCKETS * (recorded if len(own) > plan.chunk or experiment.group.count > 1 else min(recorded, 256))
    return Estimate(seconds, compiling, flight + 2 * results + sketches, results)
