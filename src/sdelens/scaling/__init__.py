"""Scaling rules: every hyperparameter when the batch size changes, with an account of what was done and assumed.

Nothing here needs JAX until a specification or an optax state is given.
"""

from sdelens.scaling._account import Rescaled
from sdelens.scaling._ramp import Ramp, ramp
from sdelens.scaling._rescale import rescale
from sdelens.scaling._rules import RULES

__all__ = ["RULES", "Ramp", "Rescaled", "ramp", "rescale"]
