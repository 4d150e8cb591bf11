"""A forecaster from logged runs."""

from collections.abc import Sequence
from typing import Any

from sdelens.core import check
from sdelens.forecast._fit import curves_of, frame_of, solve, thinned_runs
from sdelens.forecast._forecaster import Forecaster
from sdelens.forecast._identification import remarks_on
from sdelens.forecast._logs import Thinned
from sdelens.forecast._misfit import misfits
from sdelens.forecast._numbers import parameters_of, power_law_of
from sdelens.forecast._range import fitted_run
from sdelens.forecast._run import Run

__all__ = ["fit"]


def fit(runs: Sequence[Run], *, skip: int | None = None, progress: bool | None = None) -> Forecaster:
    r"""Fit a noisy power-law quadratic to logged runs.

    The loss of each run is that of its optimizer's SDE on the quadratic (see the page on forecasts for the equations).
    Logs are thinned to at most 150 means per run. The numbers minimise the pseudo-Huber loss of log ratios of logged
    and predicted losses, with exact Jacobians, bounds, weak priors and six starts; the result does not depend on
    chance. Every run counts equally, and a run of which only the last loss is known as a sixth of one.

    Args:
        runs: logged runs of one problem: the same model, or models of one family with their sizes, and the same data.
            Optimizers, learning rates, schedules, batch sizes and lengths may differ.
        skip: steps left out at the beginning of each run; default: its warm-up, or 1 % of the run if it has none, and
            at most 10 %.
        progress: show a progress bar on standard error; default: only on a terminal.

    Returns:
        The fitted quadratic, which predicts other runs.

    Raises:
        TypeError: if `runs` are not runs.
        ValueError: if there are fewer losses than numbers, batch sizes or model sizes are given for some runs only, or
            two runs have the same name or the same curve.

    Source: derived here.
    """
    runs = _checked(runs)
    skip = None if skip is None else check.at_least("skip", skip, 0)
    logs = thinned_runs(runs, skip)
    frame = frame_of(runs, logs)
    curves = curves_of(runs, logs, frame)
    wanted, given = len(parameters_of(frame)), sum(len(curve.places) for curve in curves)
    if given < wanted:
        raise ValueError(
            f"runs: they have {given} loss{'' if given == 1 else 'es'} in all after the warm-up, and {wanted} "
            "numbers are to be fitted; add runs, or losses at more steps."
        )
    solution = solve(curves, frame, progress)
    fitted = tuple(fitted_run(*parts) for parts in zip(runs, curves, solution.residuals, strict=True))
    remarks = (*_lost(runs, logs), *misfits(runs, curves, solution), *remarks_on(runs, frame, solution))
    return Forecaster(
        power_law_of(solution.theta, frame),
        fitted,
        solution.scatter,
        remarks,
        frame,
        solution.theta,
        solution.covariance,
    )


def _lost(runs: Sequence[Run], logs: Sequence[Thinned]) -> list[str]:
    """One sentence for every run of which almost nothing is left without its warm-up."""
    return [
        f"{run.name or f'run {i + 1}'}: its {len(run.steps)} losses lie within its warm-up, and only the last of them "
        "is fitted; give a longer log, or skip=0 to fit all."
        for i, (run, log) in enumerate(zip(runs, logs, strict=True))
        if len(run.steps) > 1 and len(log.steps) == 1
    ]


def _checked(runs: Any) -> list[Run]:
    if isinstance(runs, Run):
        runs = [runs]
    try:
        runs = list(runs)
    except TypeError as error:
        raise TypeError(f"runs: got {type(runs).__name__}; give a list of sl.forecast.Run.") from error
    for i, run in enumerate(runs):
        if not isinstance(run, Run):
            raise TypeError(f"runs: entry {i} is a {type(run).__name__}; give sl.forecast.Run(curve, optimizer).")
    if not runs:
        raise ValueError("runs: got none; give at least one sl.forecast.Run(curve, optimizer).")
    for name in ("batch_size", "size"):
        lacking = [run.name or f"run {i + 1}" for i, run in enumerate(runs) if getattr(run, name) is None]
        if 0 < len(lacking) < len(runs):
            raise ValueError(f"{name}: missing for {', '.join(lacking[:5])}; give it for all runs, or for none.")
    curves: dict[tuple[bytes, bytes], str] = {}
    for i, run in enumerate(runs):
        name = run.name or f"run {i + 1}"
        first = curves.setdefault((run.steps.tobytes(), run.losses.tobytes()), name)
        if len(run.steps) > 1 and first != name:
            raise ValueError(
                f"runs: {first} and {name} have the same losses at the same steps; leave one of them out, or read the "
                "log of the other run."
            )
    names = [run.name for run in runs if run.name is not None]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"runs: {names.count(twice)} of them are named {twice!r}; give each its own name=.")
    return runs
