"""The optimizers that the theory supports."""

from typing import Any

from sdelens.cases.case import check_subject
from sdelens.optimizers import SGD, AdamW, DecayedOptimizer, RMSpropW, SignSGD

__all__ = ["check_known"]

_KNOWN = (SGD, SignSGD, RMSpropW, AdamW)


def check_known(problem: Any, noise: Any, optimizer: Any) -> DecayedOptimizer:
    """Check the types of problem, noise and optimizer, and return the optimizer if the theory supports it.

    Raises:
        TypeError: naming the argument and the types that are allowed.
    """
    check_subject(problem, noise, optimizer)
    if type(optimizer) not in _KNOWN:
        names = ", ".join(f"sl.{kind.__name__}" for kind in _KNOWN)
        raise TypeError(
            f"optimizer: got {optimizer.name}, which the theory does not cover; it covers {names}. sl.compare "
            "simulates every optimizer."
        )
    return optimizer
