"""Scaling rules for all hyperparameters when the batch size changes, with an account of changes and assumptions.

JAX is needed only if a specification or an optax state is given, a ramp is turned into an optimizer, or a rule is
verified by simulation.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
