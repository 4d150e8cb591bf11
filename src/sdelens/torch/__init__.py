"""Bridges to PyTorch, which is not needed elsewhere: ``pip install sdelens[torch]``."""

from sdelens.torch._gradients import GradientWatch, watch
from sdelens.torch._rescale import rescale

__all__ = ["GradientWatch", "rescale", "watch"]
