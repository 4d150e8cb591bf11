"""Runs that do not look like a quadratic: losses that rise, steps in the data, divergence, another problem."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sdelens.core.numerals import percent
from sdelens.forecast._fit import Curve, Solution
from sdelens.forecast._run import Run

__all__ = ["misfits"]

_FAR: Final = 4.0
"""Root mean square of a run's residuals, relative to the median run's, from which on it does not fit."""
_LARGE: Final = 0.1
"""Root mean square of log residuals from which on a run does not fit, whatever the others do."""
_JUMP: Final = 8.0
"""Change of the residual within a few points, in units of its usual change, that is a jump."""
_RISE: Final = 0.03
"""Relative rise of the smoothed loss above its lowest value that the model does not have."""
_WINDOW: Final = 5


def misfits(runs: Sequence[Run], curves: Sequence[Curve], solution: Solution) -> list[str]:
    """One sentence for every run that a quadratic does not describe, naming the run and the step."""
    found = []
    errors = [float(np.sqrt(np.mean(row**2))) for row in solution.residuals]
    usual = float(np.median(errors))
    for i, (run, curve, row) in enumerate(zip(runs, curves, solution.residuals, strict=True)):
        name = run.name or f"run {i + 1}"
        scatter = max(float(np.median(curve.scatter)), 1e-4)
        jump = _jump(row, scatter)
        rise = _rise(curve, row, scatter)
        if jump is not None:
            at, size = jump
            found.append(
                f"{name}: the loss jumps by {percent(size, plus=True)} near step {curve.steps[at]}, where the learning "
                "rate explains no jump: a change of the data, a restart, or an instability? Fit the parts separately, "
                "or leave the run out."
            )
        elif rise is not None:
            found.append(
                f"{name}: the loss rises by {percent(rise[1])} after step {curve.steps[rise[0]]}, which a quadratic "
                "does not do at this learning rate: overfitting, or the beginning of a divergence? Leave out the "
                "losses after this step, or the run."
            )
        elif errors[i] > _LARGE or (len(runs) > 2 and errors[i] > max(_FAR * usual, 0.01)):
            found.append(
                f"{name}: its losses differ from the fitted curve by {percent(errors[i])} (other runs: "
                f"{percent(usual)}): another problem, or no quadratic? Check its optimizer, schedule, batch size "
                "and size, or leave it out."
            )
    return found


def _jump(row: NDArray[np.float64], scatter: float) -> tuple[int, float] | None:
    """Place and size of the largest jump of the residual, if it is one."""
    if len(row) < 4 * _WINDOW:
        return None
    n = len(row)
    after = np.array([np.median(row[i : i + _WINDOW]) for i in range(_WINDOW, n - _WINDOW + 1)])
    before = np.array([np.median(row[i - _WINDOW : i]) for i in range(_WINDOW, n - _WINDOW + 1)])
    change = after - before
    usual = max(1.4826 * float(np.median(np.abs(change))), scatter)
    at = int(np.argmax(np.abs(change)))
    # Medians do not tell the place of a jump to less than half a window.
    near = at + _WINDOW + np.arange(-(_WINDOW // 2), _WINDOW // 2 + 1)
    near = near[(near >= _WINDOW) & (near <= n - _WINDOW)]
    here = int(near[np.argmax(np.abs(row[near] - row[near - 1]))])
    # A bend of the residual changes its slope over many points, a jump changes its level between two.
    within = max(float(np.ptp(row[here - _WINDOW : here])), float(np.ptp(row[here : here + _WINDOW])))
    if abs(change[at]) > max(_JUMP * usual, 2 * within, 0.01):
        return here, float(np.expm1(change[at]))
    return None


def _rise(curve: Curve, row: NDArray[np.float64], scatter: float) -> tuple[int, float] | None:
    """Where the loss begins to rise although the model's does not, and by how much."""
    if len(row) < 2 * _WINDOW:
        return None
    logs = np.log(curve.losses)
    smooth = np.convolve(logs, np.ones(_WINDOW) / _WINDOW, "valid")
    model = np.convolve(logs - row, np.ones(_WINDOW) / _WINDOW, "valid")
    lowest = int(np.argmin(smooth))
    observed, predicted = float(smooth[-1] - smooth[lowest]), float(model[-1] - model[lowest])
    if observed - max(predicted, 0.0) > max(_RISE, 5 * scatter):
        return lowest + _WINDOW // 2, float(np.expm1(observed))
    return None
