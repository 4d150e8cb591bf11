"""What runs and predictions return: datasets with tables, tracking statistics, figures and reports; without JAX."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["plotting"])
