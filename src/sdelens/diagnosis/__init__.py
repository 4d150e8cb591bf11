"""What a run says of its noise: its optimizer's own moments, or its gradients.

Moments in arrays or files need no JAX.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
