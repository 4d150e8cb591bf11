"""Which optimizers the theory knows."""

from typing import Any

from sdelens.cases.case import check_subject
from sdelens.optimizers import SGD, AdamW, DecayedOptimizer, RMSpropW, SignSGD

__all__ = ["check_known"]

_KNOWN = (SGD, SignSGD, RMSpropW, AdamW)


def check_known(problem: Any, noise: Any, optimizer: Any) -> DecayedOptimizer:
    """The optimizer, once it is one with a theory, and problem and noise are such.

    Raises:
        TypeError: naming the argument and what it may be.
    """
    check_subject(problem, noise, optimizer)
    if type(optimizer) not in _KNOWN:
        names = ", ".join(f"sl.{kind.__name__}" for kind in _KNOWN)
        raise TypeError(
            f"optimizer: got {optimizer.name}, of which the theory knows nothing; it is there for {names}. sl.compare "
            "simulates any other."
        )
    return optimizer
