"""Optimizers as frozen specifications: one object from which everything else is derived.

The discrete run (`to_optax`), the initial state, the SDEs and all other code read the same object, so they cannot
disagree. Time is t = kη at step k, with η = `lr`.
"""

from sdelens.optimizers._accumulators import HELD
from sdelens.optimizers._adagrad import Adagrad
from sdelens.optimizers._adaptive import AdamW, RMSpropW
from sdelens.optimizers._base import CONVERGED, DecayedOptimizer, Optimizer, State, precondition, second_moment
from sdelens.optimizers._elementwise import Update
from sdelens.optimizers._from_optax import FromOptax
from sdelens.optimizers._momentum import Lion, Momentum, Signum
from sdelens.optimizers._sgd import SGD
from sdelens.optimizers._sign import SignSGD

__all__ = [
    "CONVERGED",
    "HELD",
    "SGD",
    "Adagrad",
    "AdamW",
    "DecayedOptimizer",
    "FromOptax",
    "Lion",
    "Momentum",
    "Optimizer",
    "RMSpropW",
    "SignSGD",
    "Signum",
    "State",
    "Update",
    "precondition",
    "second_moment",
]
