"""A predicted loss with limits."""

from typing import NamedTuple

__all__ = ["Interval"]


class Interval(NamedTuple):
    """A predicted loss, or a difference of losses, with two-sided limits.

    Attributes:
        value: the prediction.
        lower: lower limit.
        upper: upper limit.
    """

    value: float
    lower: float
    upper: float
