"""The public entry points: check all arguments once, run the models and return a `Result`."""

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from sdelens.cases.case import Estimate, check_subject
from sdelens.integrate import MAX_COORDINATES
from sdelens.noise import AbstractNoise
from sdelens.optimizers import Optimizer
from sdelens.problems import AbstractProblem
from sdelens.results.result import Result
from sdelens.results.sweep import Sweep
from sdelens.run.checkpoint import open_checkpoints
from sdelens.run.datasets import result_dataset, sweep_dataset
from sdelens.run.description import LEVELS, Description, SweepDescription
from sdelens.run.ensemble import run_ensemble
from sdelens.run.experiment import Experiment, identity, prepare, run, share_code_of, share_identity
from sdelens.run.grid import Grid, grid_identity, grid_of, run_grid
from sdelens.run.grid import share_code_of as grid_code_of
from sdelens.run.law_warnings import law_warnings
from sdelens.run.models import Model, Models, models_of
from sdelens.run.options import Execution, Options, Record, record_steps
from sdelens.run.sizes import kept_rows, path_bytes
from sdelens.run.summary import BUCKETS
from sdelens.sdes import Builder

__all__ = ["compare", "estimate", "simulate", "sweep"]


def compare(
    problem: AbstractProblem,
    noise: AbstractNoise,
    optimizer: Optimizer,
    models: Models = None,
    *,
    steps: int,
    paths: int = 1024,
    seed: int = 0,
    start: Any = None,
    record: Record | None = None,
    execution: Execution | None = None,
) -> Result:
    """Run several models of one optimizer side by side.

    The optimizer's noise is independent of the SDEs'; SDEs with the same number of substeps share one Brownian motion.
    If an SDE is among the models both with one substep and with several, the table separates modelling error from
    discretisation error.

    Args:
        problem: what is minimised.
        noise: law of the gradient noise.
        optimizer: specification of the optimizer.
        models: a list of names and objects, or a mapping from labels that you choose to names and objects. Names:
            ``"optimizer"`` (the algorithm itself, through optax), ``"sde"``, ``"malladi2022"``, ``"second-order"`` and
            ``"empirical"``, if they exist for the optimizer (`models_of`). The objects `ClosedForm` and `Empirical`
            specify how an SDE is integrated; an SDE that you define can be passed directly. The default is all models
            that exist except ``"second-order"`` and, if there is another SDE, ``"empirical"``. For example
            ``["optimizer", "sde", sl.ClosedForm("sde", substeps=8)]``.
        steps: optimizer steps.
        paths: independent paths per model.
        seed: seed of all randomness; equal seeds on one machine give bit-identical results.
        start: the initial state: parameters of the same structure as the problem's, by default the problem's start; a
            function from a random key to such parameters, called for every path of every model; or a saved `State` of
            the optimizer (x, m, v, and for Adam the count of gradients in m and v), each part a flat vector or a pytree
            like the parameters. Accumulators that are not given start as the optimizer's ``v0`` says.
        record: what is recorded in addition to the loss, and how often; see `Record`.
        execution: devices, memory, progress and checkpoints; see `Execution`.

    Returns:
        A `Result`; print it, or see its `errors`, `plot`, `save`. With ``share`` in `execution`, a `Share`, to `save`.

    Raises:
        ValueError, TypeError: naming the argument, before anything runs; with ``resume`` also if the checkpoint belongs
            to another run, naming what differs.
        OSError: if the checkpoint cannot be written or read, another run uses it, or it contains an unfinished run and
            ``resume`` is False.
        RuntimeError: if an executor loses the workers of a share three times, or cannot run any more.

    Warns:
        RuntimeWarning: if paths diverged (they are counted and excluded from the averages), or if the newest checkpoint
            is damaged (the previous one is used).

    Examples:
        >>> import sdelens as sl
        >>> result = sl.compare(sl.Quadratic([1.0, 2.0]), sl.GaussianNoise(1.0), sl.SGD(lr=0.1), steps=20, paths=64)
        >>> result.models
        ['optimizer', 'sde']
    """
    options = Options(steps=steps, paths=paths, seed=seed, start=start, record=record, execution=execution)
    if options.execution.executor is not None:
        experiment = prepare(problem, noise, optimizer, models, _local(options))
        _warn(law_warnings(experiment.case, experiment.models.values()))
        subject, identified = (problem, noise, optimizer, models), _identified(experiment, options)
        found, texts = _remotely(subject, None, options, 1, identified)
        _warn(texts)
        return found
    experiment = prepare(problem, noise, optimizer, models, options)
    with _checkpoints(options) as checkpoints:
        share = run(experiment, options.execution.progress, checkpoints)
        if options.execution.share is not None:
            return cast("Result", share)  # as documented; no other option changes what is returned
        dataset, texts = result_dataset(cast("Description", share.description), share.parts)
        _warn(texts)
        return Result(dataset)


def identity_of_share(
    problem: AbstractProblem,
    noise: AbstractNoise,
    optimizer: Optimizer,
    models: Models = None,
    *,
    over: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """What shares of a run agree in, `Share.identity`, for the arguments of `compare` or of `sweep`; nothing is run.

    Raises:
        ValueError, TypeError: as `compare`.
    """
    chosen = Options(**options)
    if over is None:
        return _identified(prepare(problem, noise, optimizer, models, chosen), chosen)
    return _identified(grid_of(problem, noise, optimizer, models, over, chosen), chosen)


def _identified(given: Experiment | Grid, options: Options) -> dict[str, Any]:
    """The identity of the shares of a run; its code is traced only if it is compared with that of earlier shares."""
    compared = options.execution.executor is None or options.execution.checkpoint is not None
    if isinstance(given, Grid):
        return share_identity(grid_identity(given), grid_code_of(given) if compared else None)
    return share_identity(identity(given), share_code_of(given) if compared else None)


def _local(options: Options) -> Options:
    """Options with which this process checks a run that workers execute, whose devices are not known here."""
    return replace(
        options, execution=Execution(chunk=options.execution.chunk, devices=1, kernel=options.execution.kernel)
    )


def _remotely(*arguments: Any) -> tuple[Any, list[str]]:
    from sdelens.run.remote import run_remotely

    return run_remotely(*arguments)


def _warn(texts: Sequence[str]) -> None:
    """Warn the caller of the function that calls this one."""
    for text in texts:
        warnings.warn(text, RuntimeWarning, stacklevel=3)


def simulate(
    problem: AbstractProblem,
    noise: AbstractNoise,
    optimizer: Any,
    model: str | Model | Builder | None = None,
    **options: Any,
) -> Result:
    """Run one model of an optimizer on a problem under noise, over many paths: `compare` with a single model.

    Args:
        problem: what is minimised.
        noise: law of the gradient noise.
        optimizer: specification of the optimizer; or a `sdelens.scaling.Ramp`, whose batch size, and with it the law of
            the noise, changes with the step. `noise` is then that at the batch size B₀ of the ramp.
        model: as in `compare`; by default ``"sde"`` if it exists, otherwise ``"empirical"``; for a ramp
            ``"optimizer"``, which is the default, or ``"empirical"``.
        options: the keyword options of `compare`; for a ramp `steps` may be left out.

    Returns:
        A `Result` with one model.

    Raises:
        ValueError, TypeError, OSError, RuntimeError: as `compare`.
    """
    if hasattr(optimizer, "along"):  # this package knows no batch sizes
        if isinstance(model, str) and model not in ("optimizer", "empirical"):
            raise ValueError(
                f"model: got {model!r}, but along a ramp the hyperparameters change with the step, for which there are "
                "only the models 'optimizer' and 'empirical'."
            )
        model, options = model or "optimizer", {"steps": optimizer.steps, **options}
        noise, optimizer = optimizer.along(noise)
    if model is None:
        check_subject(problem, noise, optimizer)
        model = "sde" if "sde" in models_of(optimizer) else "empirical"
    return compare(problem, noise, optimizer, [model], **options)


def sweep(
    problem: AbstractProblem,
    noise: AbstractNoise,
    optimizer: Optimizer,
    models: Models = None,
    *,
    over: Mapping[str, Any],
    steps: int,
    paths: int = 1024,
    seed: int = 0,
    start: Any = None,
    record: Record | None = None,
    execution: Execution | None = None,
) -> Sweep:
    """Run `compare` at every point of a grid of values, with one compilation for each model.

    Every point equals, up to rounding, the result of `compare` with its values. All points use the same seed and
    therefore the same random numbers, so differences between points need fewer paths (`Sweep.best` compares path by
    path).

    Args:
        problem: what is minimised.
        noise: law of the gradient noise.
        optimizer: specification of the optimizer; fields that are not swept keep their values.
        models: as in `compare`.
        over: values by name, every combination of which is run: fields of the optimizer (``"lr"``, ``"b2"``,
            ``"weight_decay"``, …), of the noise (``"noise.scale"``, ``"noise.df"``) and of the problem
            (``"problem.curvature"``); fields of a nested specification are written with a further dot
            (``"schedule.end"``). A value replaces only that field: with ``"lr"``, b1 and b2 keep their values. Numbers,
            and arrays of the same shape, need no new compilation; options do (``"noise.batch_size"``, ``"decay"``,
            ``"schedule"``), as do integer values of ``"noise.df"`` and the learning rates of `FromOptax`.
        steps: optimizer steps.
        paths: independent paths per model and point.
        seed: seed of all randomness, the same at every point.
        start: as in `compare`.
        record: as in `compare`.
        execution: as in `compare`; a checkpoint covers the whole sweep: finished points are kept, and the unfinished
            one continues where it stopped.

    Returns:
        A `Sweep`; print it, or see its `at`, `late_loss`, `errors`, `best`, `plot`, `save`. With ``share`` in
        `execution`, a `Share`, to `save`.

    Raises:
        ValueError, TypeError: naming the key, value or argument, before anything runs; with ``resume`` also if the
            checkpoint belongs to another sweep, naming what differs.
        OSError: as `compare`.

    Warns:
        RuntimeWarning: if paths diverged; one warning for all points.

    Examples:
        >>> import sdelens as sl
        >>> problem, noise = sl.Quadratic([1.0, 2.0]), sl.GaussianNoise(1.0)
        >>> found = sl.sweep(problem, noise, sl.SGD(lr=0.1), over={"lr": [0.1, 0.2]}, steps=20, paths=64)
        >>> found.at(lr=0.2).models
        ['optimizer', 'sde']
    """
    options = Options(steps=steps, paths=paths, seed=seed, start=start, record=record, execution=execution)
    if options.execution.executor is not None:
        grid = grid_of(problem, noise, optimizer, models, over, _local(options))
        subject, identified = (problem, noise, optimizer, models), _identified(grid, options)
        found, texts = _remotely(subject, over, options, len(grid.experiments), identified)
        _warn(texts)
        return found
    grid = grid_of(problem, noise, optimizer, models, over, options)
    with _checkpoints(options) as checkpoints:
        share = run_grid(grid, options.execution.progress, checkpoints)
        if options.execution.share is not None:
            return cast("Sweep", share)  # as `compare`
        dataset, texts = sweep_dataset(cast("SweepDescription", share.description), share.parts)
        _warn(texts)
        return Sweep(dataset)


def _checkpoints(options: Options) -> Any:
    """Context manager that opens the checkpoints of a run."""
    execution = options.execution
    return open_checkpoints(execution.checkpoint, execution.checkpoint_every, execution.resume)


def estimate(
    problem: AbstractProblem,
    noise: AbstractNoise,
    optimizer: Optimizer,
    models: Models = None,
    *,
    over: Mapping[str, Any] | None = None,
    steps: int,
    paths: int = 1024,
    seed: int = 0,
    start: Any = None,
    record: Record | None = None,
    execution: Execution | None = None,
) -> Estimate:
    """Estimate the time and memory that `compare` or `sweep` would take with the same arguments.

    The estimate is measured on a few steps of each model, for a sweep at its first point. With ``share`` in `execution`
    it is that of the share, with an executor that of one of its shares, on the devices of this process.

    Args:
        problem: what is minimised.
        noise: law of the gradient noise.
        optimizer: specification of the optimizer.
        models: as in `compare`.
        over: as in `sweep`; None estimates `compare`.
        steps: as in `compare`.
        paths: as in `compare`.
        seed: as in `compare`.
        start: as in `compare`.
        record: as in `compare`.
        execution: as in `compare`; nothing is saved or resumed.

    Raises:
        ValueError, TypeError: as `compare`.
    """
    options = Options(steps=steps, paths=paths, seed=seed, start=start, record=record, execution=execution)
    points = compilations = 1.0
    shares = None
    if options.execution.executor is not None:
        shares = options.execution.shares or 1
        whole = replace(options.execution, executor=None, shares=None)
        options = replace(options, execution=whole if over is not None else replace(whole, share=(0, shares)))
    if over is None:
        experiment = prepare(problem, noise, optimizer, models, options)
    else:
        grid = grid_of(problem, noise, optimizer, models, over, options)
        if shares is not None and len(grid.experiments) < shares:  # divided by paths, otherwise by points
            options = replace(options, execution=replace(options.execution, share=(0, shares)))
            grid, shares = grid_of(problem, noise, optimizer, models, over, options), None
        experiment, points = grid.experiments[0], -(-len(grid.experiments) // (shares or 1))
        compilations = len(grid.programs()) / len(experiment.models)
    plan = experiment.plan
    records = min(3, len(record_steps(plan.steps, plan.record_every)) - 1)
    own = plan.own
    few = plan._replace(
        steps=min(plan.steps, records * plan.record_every),
        moments=(records,) if plan.moments else (),
        share=(own.start, own.start + min(len(own), plan.chunk)),
    )
    seconds = compiling = 0.0
    flight = 0
    for label, model in experiment.models.items():
        stepper, times = experiment.steppers[label], []
        for _ in range(2):
            begin = time.perf_counter()
            watched = experiment.observables
            run_ensemble(stepper, few, experiment.seed, model.stream, 0.0, np.array(LEVELS), observables=watched)
            times.append(time.perf_counter() - begin)
        scale = (plan.steps + 1) / (few.steps + 1) * len(own) / len(few.own)
        of_compilation = max(times[0] - times[1], 0.0) * compilations
        seconds += of_compilation + times[1] * scale * points
        compiling += of_compilation
        flight = max(flight, path_bytes(stepper) * plan.chunk)
    named = len(experiment.observables.names)
    numbers = (
        12 + plan.groups * (3 + 2 * named) + 3 * named + (2 * problem.dim if problem.dim <= MAX_COORDINATES else 0)
    )
    recorded = len(record_steps(plan.steps, plan.record_every))
    rows = max(kept_rows(stepper, plan) for stepper in experiment.steppers.values())
    of_every_path = len(plan.moments) * (1 + named + len(plan.marginals))
    of_every_path += 1 + len(experiment.hits) if experiment.hits else 0
    stored = (numbers + plan.keep_paths * rows) * recorded + plan.paths * of_every_path
    results = 8 * stored * len(experiment.models) * int(points)
    sketches = 4 * BUCKETS * (recorded if len(own) > plan.chunk or plan.share is not None else min(recorded, 256))
    return Estimate(seconds, compiling, flight + 2 * results + sketches, results)
