"""The predicted curve of a run: the steps at which it is wanted, its log losses, and how they depend on the fit."""

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from sdelens.core import check
from sdelens.core.compilation import program
from sdelens.forecast._blocks import Blocks, blocks_of, edges_of, padded
from sdelens.forecast._dynamics import Kind, Setting, many
from sdelens.forecast._fit import first_step
from sdelens.forecast._numbers import Frame, logs_of
from sdelens.forecast._plan import Plan

__all__ = ["log_losses", "places"]

_RECORDS: Final = 400
"""Most steps of a predicted curve."""


def places(plan: Plan, at: ArrayLike | None) -> NDArray[np.int64]:
    """Steps at which a curve is wanted: given, or half of them equally spaced and half in logarithm."""
    steps = plan.steps
    if at is None:
        first = max(first_step(plan.rates), 1)
        grids = np.linspace(first, steps, _RECORDS // 2), np.geomspace(first, steps, _RECORDS // 2)
        return np.unique(np.concatenate([grid.round() for grid in grids])).astype(np.int64)
    places = np.asarray(check.finite_array("at", at, (1,)))
    wrong = places[(places < 0) | (places > steps) | (places % 1 != 0)]
    if wrong.size:
        raise ValueError(f"at: got {wrong[0]:g}, but the run has {steps} steps; give whole steps from 0 to {steps}.")
    if (np.diff(places) <= 0).any():
        raise ValueError("at: must be strictly increasing; sort the steps and remove duplicates.")
    return places.astype(np.int64)


def log_losses(
    theta: NDArray[np.float64],
    frame: Frame,
    kind: Kind,
    setting: Setting,
    rates: NDArray[np.float64],
    at: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log losses at steps `at` for the learning rates of every step, and their derivatives by θ, shape (n, k)."""
    edges = edges_of(rates, at)
    blocks, index = padded([blocks_of(rates, edges)]), np.searchsorted(edges, at)
    with jax.enable_x64(True):
        one = Setting(*(np.array([float(value)]) for value in setting))
        value, slope = (np.asarray(part)[0] for part in _log_curve(kind, frame, jnp.asarray(theta), one, blocks))
    return value[index], slope[index]


@program(static_argnames=("kind", "frame"))
def _log_curve(kind: Kind, frame: Frame, theta: Any, setting: Setting, blocks: Blocks) -> tuple[Any, Any]:
    """Log losses after every block, shape (1, b + 1), and their derivatives by θ."""

    def function(theta: Any) -> Any:
        return jnp.log(many(kind, logs_of(theta, frame), setting, blocks))

    return function(theta), jax.jacfwd(function)(theta)
