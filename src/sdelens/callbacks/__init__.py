"""Noise scale, verdict and advice in a training loop: Hugging Face, Lightning, plain PyTorch, and optax.

Each part needs only the framework it is for: ``pip install sdelens[callbacks]`` installs those of PyTorch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
