"""Bridges to PyTorch, which is not needed elsewhere: ``pip install sdelens[torch]``."""

from sdelens.torch._checkpoints import rescale_checkpoint
from sdelens.torch._gradients import GradientWatch, watch
from sdelens.torch._plan import RescaledRun
from sdelens.torch._rescale import rescale
from sdelens.torch._svag import SVAG, svag

__all__ = ["SVAG", "GradientWatch", "RescaledRun", "rescale", "rescale_checkpoint", "svag", "watch"]
