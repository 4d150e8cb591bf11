"""Numbers with limits from runs that `Result` does not provide."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats

from sdelens.results.result import Result
from sdelens.results.tracking import late_window
from sdelens.studies._study import Plan
from sdelens.studies._verdicts import Estimate

__all__ = ["exponent", "largest_ratio", "late_loss", "mean_x", "quantile", "ratio", "resting"]


def resting(result: Result, quantity: Callable[[np.ndarray], np.ndarray], model: str = "optimizer") -> np.ndarray:
    """A quantity of x, averaged over the last third of the kept records: one number per kept path.

    Args:
        result: a result with ``Record(keep_paths=...)``.
        quantity: function from x of shape (path, step, d) to shape (path, step).
        model: label of the model.
    """
    steps = result.dataset.step.values
    late = result.dataset.path_x.sel(model=model).isel(step=np.flatnonzero(late_window(steps)))
    return quantity(late.transpose("path", "step", "parameter").values).mean(axis=1)


def late_loss(result: Result, model: str = "optimizer") -> tuple[float, float]:
    """Mean loss minus its infimum over the last third of a run, and its standard error from 64 groups of paths."""
    steps, here = result.dataset.step.values, result.dataset.sel(model=model)
    late = np.flatnonzero(late_window(steps))
    groups = here.loss_group_mean.transpose("group", "step").values[:, late].mean(axis=1)
    infimum = float(result.dataset.attrs["infimum"])
    return float(groups.mean() - infimum), float(groups.std(ddof=1) / np.sqrt(groups.size))


def mean_x(result: Result, model: str = "optimizer") -> tuple[np.ndarray, np.ndarray]:
    """E x of a model and its standard error, shape (step, d) each."""
    here = result.dataset.sel(model=model)
    count = here.n_paths.values[:, None]
    return here.x_mean.values, np.sqrt(here.x_var.values / count)


def ratio(plan: Plan, above: tuple[float, float], below: tuple[float, float]) -> Estimate:
    """Limits of a ratio of two independent positive numbers, each with its standard error, by the delta method."""
    value = above[0] / below[0]
    error = np.hypot(above[1] / above[0], below[1] / below[0])
    return Estimate(value, value * float(np.exp(-plan.z * error)), value * float(np.exp(plan.z * error)))


def exponent(plan: Plan, above: tuple[float, float], below: tuple[float, float], factor: float) -> Estimate:
    """The exponent p with above/below = factor^p, with limits."""
    found = ratio(plan, above, below)
    return Estimate(*(float(np.log(v) / np.log(factor)) for v in (found.value, found.lower, found.upper)))


def largest_ratio(plan: Plan, pairs: list[tuple[Any, Any, Any]]) -> Estimate:
    """The largest mean/bound of several curves, with simultaneous limits for all their points (Bonferroni).

    Args:
        plan: the plan that has the confidence.
        pairs: mean, standard error and bound, each of shape (records,), of every curve.
    """
    mean, error, bound = (np.concatenate([np.asarray(p[i], float) for p in pairs]) for i in range(3))
    z = stats.norm.isf((1 - plan.confidence) / mean.size)
    found = (float(np.max((mean + sign * z * error) / bound)) for sign in (0, -1, 1))
    return Estimate(*found, points=mean.size)


def quantile(values: Any, share: float, confidence: float) -> Estimate:
    """A quantile with distribution-free limits from order statistics."""
    ordered = np.sort(np.asarray(values, float))
    low = int(stats.binom.ppf(1 - confidence, ordered.size, share)) - 1
    high = int(stats.binom.ppf(confidence, ordered.size, share))
    lower = ordered[low] if low >= 0 else -np.inf
    upper = ordered[high] if high < ordered.size else np.inf
    return Estimate(float(np.quantile(ordered, share)), float(lower), float(upper))
