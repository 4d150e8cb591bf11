"""In words, what the fitted runs do not tell, and which run would tell it."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sdelens.forecast._dynamics import ADAPTIVE, kind_of
from sdelens.forecast._fit import Solution
from sdelens.forecast._numbers import Frame, parameters_of
from sdelens.forecast._range import steps_without_rate
from sdelens.forecast._run import Run

__all__ = ["at_bounds", "remarks_on"]

_UNKNOWN: Final = 0.7
"""Share of a prior's spread from which on a number is not identified."""
_CORRELATED: Final = 0.97
_BOUND: Final = 0.01
"""Distance from a bound, in units of the prior's spread, below which a number lies at it."""
_SAME: Final = 1.2
"""Ratio up to which two settings are one."""
_REMEDIES: Final = {
    "infimum": "a longer run",
    "reducible": "losses from earlier steps",
    "risk_exponent": "a longer run",
    "curvature": "losses from earlier steps, or a run at another learning rate",
    "curvature_exponent": "a run at another learning rate",
    "noise": "a run with another final learning rate or batch size",
    "norm_growth": "a run at another learning rate or with another weight decay",
    "batch_exponent": "a run at another batch size",
    "coordinates": "a run of the other kind of optimizer",
    "coordinates_exponent": "a run of the other kind of optimizer",
    "modes": "runs of models of other sizes",
    "modes_exponent": "runs of models of more different sizes",
}
"""What would identify a number better."""
_WORDS: Final = {
    "infimum": "the infimum L∞",
    "reducible": "the reducible loss R",
    "risk_exponent": "the exponent p of the loss",
    "curvature": "the curvature λ",
    "curvature_exponent": "the exponent q of curvature and noise",
    "noise": "the noise σ",
    "norm_growth": "the growth G of the weight norm",
    "batch_exponent": "the exponent ω of the batch size",
    "coordinates": "the coordinates n₀ per mode",
    "coordinates_exponent": "the exponent ν of coordinates per mode",
    "modes": "the number M of modes",
    "modes_exponent": "the exponent μ of the number of modes",
}


def remarks_on(runs: Sequence[Run], frame: Frame, solution: Solution) -> list[str]:
    """One sentence for each thing that the runs do not tell."""
    found = _design(runs)
    parameters = parameters_of(frame)
    deviation = np.sqrt(np.diag(solution.covariance))
    unknown = []
    for i, parameter in enumerate(parameters):
        if deviation[i] > _UNKNOWN * parameter.spread:
            unknown.append(parameter.name)
            found.append(
                f"These runs hardly tell {_WORDS[parameter.name]}, whose value is mostly assumed; add "
                f"{_REMEDIES[parameter.name]}."
            )
    for name, side in at_bounds(frame, solution.theta).items():
        found.append(
            f"The fit ends at the {side} bound of {_WORDS[name]}, whose limits mean little then: forecasts and choices "
            "beyond the fitted runs can be wrong by more than their limits."
        )
    correlation = solution.covariance / np.outer(deviation, deviation)
    for i, first in enumerate(parameters):
        for j in range(i):
            if abs(correlation[i, j]) > _CORRELATED and not {first.name, parameters[j].name} & set(unknown):
                pair = f"{_WORDS[parameters[j].name]} and {_WORDS[first.name]}"
                found.append(
                    f"These runs cannot tell {pair} apart (correlation {correlation[i, j]:.2f}); add "
                    f"{_REMEDIES[first.name]}."
                )
    return found


def at_bounds(frame: Frame, theta: NDArray[np.float64]) -> dict[str, str]:
    """The numbers that lie at a bound, with its side."""
    found = {}
    for parameter, value in zip(parameters_of(frame), theta, strict=True):
        margin = _BOUND * parameter.spread
        if value < parameter.lower + margin or value > parameter.upper - margin:
            found[parameter.name] = "lower" if value < parameter.lower + margin else "upper"
    return found


def _design(runs: Sequence[Run]) -> list[str]:
    """What no fit could tell from these settings."""
    found = []
    for i, run in enumerate(runs):
        still = steps_without_rate(run.rates())
        if still:
            found.append(
                f"{run.name or f'run {i + 1}'}: the learning rate is 0 in its last {still} of {run.total} steps; is "
                "its schedule that of the run?"
            )
    if len(runs) == 1:
        found.append(
            "There is one run, so that the limits say nothing of how much runs differ, and noise and L∞ are hardly "
            "told apart; add a run with another final learning rate."
        )
    else:
        peaks = [float(run.rates().max()) for run in runs]
        ends = [float(run.lr_at(run.steps[-1:])[0]) / peak for run, peak in zip(runs, peaks, strict=True)]
        if not any(_interior(run) for run in runs) and max(ends) < _SAME * max(min(ends), 0.02):
            found.append(
                "All learning rates end at the same share of their peak, so that noise and L∞ are hardly told apart; "
                "add a run with another final learning rate."
            )
        for kind in sorted({kind_of(run.optimizer) for run in runs}):
            here = [peak for run, peak in zip(runs, peaks, strict=True) if kind_of(run.optimizer) == kind]
            if len(here) > 1 and max(here) < _SAME * min(here):
                name = next(run.optimizer.name for run in runs if kind_of(run.optimizer) == kind)
                found.append(
                    f"All runs of {name} have the same peak learning rate: the effect of another one follows from the "
                    "theory alone."
                )
    batches = {run.batch_size for run in runs}
    if batches != {None} and len(batches) == 1:
        found.append("All runs have one batch size: the effect of another one follows from the theory alone.")
    kinds = {kind_of(run.optimizer) for run in runs}
    if kinds == {"linear"}:
        found.append(
            "Only SGD or Momentum was fitted: how an adaptive optimizer divides the gradient is not known, so that "
            "none can be predicted; add a run of one."
        )
    elif not kinds - set(ADAPTIVE):
        found.append(
            "Only adaptive optimizers were fitted: the size of the gradient is not known, so that SGD and Momentum "
            "cannot be predicted; add a run of one."
        )
    return found


def _interior(run: Run) -> bool:
    """Whether losses are logged at clearly different learning rates of one run."""
    rates = run.lr_at(run.steps)
    return bool(rates.max() > 2 * max(float(rates.min()), 1e-300)) and len(run.steps) > 4
