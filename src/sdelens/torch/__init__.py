"""PyTorch: the same on live models."""

from sdelens.torch._gradients import GradientWatch, watch

__all__ = ["GradientWatch", "watch"]
