"""Optimizers as frozen specifications: one object from which everything else is derived.

The discrete run (`to_optax`), the initial state, the SDEs and all other code read the same object, so they cannot
disagree. Time is t = kη at step k, with η = `lr`.
"""

from sdelens.optimizers._accumulators import HELD
from sdelens.optimizers._adagrad import Adagrad
from sdelens.optimizers._adaptive import AdamW, RMSpropW
from sdelens.optimizers._base import (
    CONVERGED,
    DecayedOptimizer,
    Optimizer,
    Query,
    State,
    precondition,
    second_moment,
)
from sdelens.optimizers._elementwise import Update
from sdelens.optimizers._extragradient import Extragradient
from sdelens.optimizers._from_optax import FromOptax
from sdelens.optimizers._momentum import Lion, Momentum, Signum
from sdelens.optimizers._muon import Muon, width_factor
from sdelens.optimizers._sam import SAM
from sdelens.optimizers._sgd import SGD
from sdelens.optimizers._sign import SignSGD
from sdelens.optimizers._svrg import SVRG
from sdelens.optimizers._wrapped import Wrapped

__all__ = [
    "CONVERGED",
    "HELD",
    "SAM",
    "SGD",
    "SVRG",
    "Adagrad",
    "AdamW",
    "DecayedOptimizer",
    "Extragradient",
    "FromOptax",
    "Lion",
    "Momentum",
    "Muon",
    "Optimizer",
    "Query",
    "RMSpropW",
    "SignSGD",
    "Signum",
    "State",
    "Update",
    "Wrapped",
    "precondition",
    "second_moment",
    "width_factor",
]
