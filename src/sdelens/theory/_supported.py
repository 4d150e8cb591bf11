"""The optimizers that the theory supports."""

from typing import Any

from sdelens.cases.case import check_subject
from sdelens.optimizers import SGD, AdamW, DecayedOptimizer, Lion, Momentum, RMSpropW, SignSGD, Signum

__all__ = ["OF_THE_PAPER", "check_known"]

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
