"""Estimates of a run's gradient noise, from the moments of its optimizer or from its gradients.

JAX is not needed for moments in arrays or files.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
