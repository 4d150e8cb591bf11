"""Scaling rules: every hyperparameter when the batch size changes, with an account of what was done and assumed.

Nothing here needs JAX until a specification or an optax state is given, a ramp is made an optimizer, or a rule is
verified by simulation.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
