"""Warnings where the law of the noise makes an SDE doubtful as a model of its optimizer."""

import math
from collections.abc import Iterable

import numpy as np

from sdelens.cases.case import Case
from sdelens.optimizers import AdamW, RMSpropW, SignSGD
from sdelens.run.models import DiscreteOptimizer, Empirical, Model

__all__ = ["law_warnings"]

_MANY = 0.25
"""Share of the gradient's size in coordinates with mostly zero gradients from which there is a warning."""
_LARGE = 0.5
"""Relative standard deviation of V from which its mean says little about it."""


def law_warnings(case: Case, models: Iterable[Model]) -> list[str]:
    """A warning text for every reason to doubt that the SDEs among the models describe the optimizer."""
    sdes = [model for model in models if not isinstance(model, DiscreteOptimizer)]
    if not sdes:
        return []
    found, x = [], case.problem.start
    name, law = case.noise.describe()["name"], case.noise
    base = case.optimizer.unwrapped
    if isinstance(base, AdamW | RMSpropW) and law.has_variance(x):
        found += _of_squares(case, name)
        found += _of_zeros(case)
    unbounded = not isinstance(base, SignSGD) and not law.has_variance(x)
    if unbounded and any(isinstance(model, Empirical) for model in sdes):
        found.append(
            f"noise: {name} noise has no variance here, so updates of {case.optimizer.name} that contain gradients "
            "have no diffusion limit (their sums tend to jump processes). The model 'empirical' then depends on the "
            "number of samples; rely on the model 'optimizer'."
        )
    return found


def _of_zeros(case: Case) -> list[str]:
    """Doubts about an average of squares of which most are 0, such as that of the rows of an embedding."""
    rare = case.noise.rare_gradients(case.problem.start)
    if rare is None or rare.share <= _MANY:
        return []
    return [
        f"noise: {rare.rare} of the {rare.active} coordinates with a gradient (they have {100 * rare.share:.0f} % of "
        "its size, as the sum of root mean squares) have a gradient of exactly 0 in more than half of the steps, on "
        f"average in {100 * rare.zero:.0f} % of them, as the rows of an embedding do. V of {case.optimizer.name} then "
        "averages few nonzero squares, and no SDE is accurate. Include the model 'empirical', which is the closest, "
        "rely on 'optimizer', or use larger mini-batches."
    ]


def _of_squares(case: Case, name: str) -> list[str]:
    """Doubts about V, an average of squares that the SDEs replace by its mean, or by its mean and variance."""
    x, b2, optimizer = case.problem.start, float(case.optimizer.unwrapped.b2), case.optimizer.name
    if not case.noise.normal and case.noise.lacks_fourth_moment(x):
        return [
            f"noise: {name} noise has no fourth moment, so V of {optimizer}, an average of squared gradients, has no "
            "variance, and rare large gradients dominate it. SDEs with its mean can be wrong by a tenth or more of the "
            "late loss (measured for Adam: +13 % for Student t with ν = 3, +111 % for ν = 2.2); rely on the model "
            "'optimizer'."
        ]
    kurtosis = 0.0 if case.noise.normal else float(np.max(np.asarray(case.noise.excess_kurtosis(x), np.float64)))
    fluctuation = math.sqrt((1 - b2) / (1 + b2) * (kurtosis + 2)) if math.isfinite(kurtosis) else 0.0
    if fluctuation <= _LARGE:
        return []
    return [
        f"noise: V of {optimizer} fluctuates by {100 * fluctuation:.0f} % of its mean at b2 = {b2:g} and an excess "
        f"kurtosis of the noise of {kurtosis:.2g}; SDEs with its mean, or with its mean and variance, are then rough. "
        "Compare them with the model 'optimizer'."
    ]
