"""Measurement of the weak order of an SDE."""

from sdelens.order._result import WeakOrder
from sdelens.order._study import weak_order

__all__ = ["WeakOrder", "weak_order"]
