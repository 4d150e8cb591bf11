"""The optimizers that the theory supports."""

from typing import Any

import numpy as np
from jax import Array

from sdelens.cases.case import check_subject
from sdelens.core import check
from sdelens.noise import NoiseLaw
from sdelens.optimizers import SGD, AdamW, DecayedOptimizer, Lion, Momentum, RMSpropW, SignSGD, Signum

__all__ = ["OF_THE_PAPER", "check_known", "check_law"]

OF_THE_PAPER = (SGD, SignSGD, RMSpropW, AdamW)
"""Optimizers for which the paper gives bounds and stationary distributions."""
_PREDICTED = (*OF_THE_PAPER, Momentum, Signum, Lion)


def check_known(
    problem: Any, noise: Any, optimizer: Any, known: tuple[type[DecayedOptimizer], ...] = _PREDICTED
) -> DecayedOptimizer:
    """Check the types of problem, noise and optimizer, and return the optimizer if it is one of `known`.

    Raises:
        TypeError: naming the argument and the types that are allowed.
    """
    check_subject(problem, noise, optimizer)
    if type(optimizer) not in known:
        names = ", ".join(f"sl.{kind.__name__}" for kind in known)
        raise TypeError(
            f"optimizer: got {optimizer.name}, which this part of the theory does not cover; it covers {names}. "
            "sl.compare simulates every optimizer."
        )
    return optimizer


def check_law(noise: NoiseLaw, x: Array, optimizer: Any = None) -> None:
    """Refuse noise that the formulas do not describe.

    Args:
        noise: its law on a problem.
        x: where its variance is looked at.
        optimizer: for which optimizer; None if the formulas are those of the noise alone.

    Raises:
        ValueError: if the law changes with the step, its mean gradient is not ∇f, or, except for SGD and Momentum,
            some coordinates have no noise.
    """
    if noise.scheduled:
        raise ValueError(
            f"noise: {noise.describe()['name']} noise changes with the step, and the theory covers noise with one law; "
            "use sl.compare, or the theory of one law."
        )
    if noise.biased:
        raise ValueError(
            f"noise: {noise.describe()['name']} noise clips gradients, so their mean is not ∇f, which the theory "
            "assumes; use sl.compare."
        )
    if optimizer is None or isinstance(optimizer, SGD | Momentum):
        return
    with check.evaluated(noise, x):
        variance = noise.variance(x)
    if not check.is_traced(variance) and (np.asarray(variance) == 0).any():
        raise ValueError(
            f"noise: has no noise in some coordinates, where E sign(g) jumps and the second moment of {optimizer.name} "
            "vanishes with the gradient; the theory covers that only for sl.SGD and sl.Momentum. Use sl.compare."
        )
