"""Confidence of limits: the levels of the library, and the normal law's points that belong to them."""

import math
from statistics import NormalDist
from typing import Final

__all__ = ["CONFIDENCE", "OF_FEW", "OF_FORECAST", "normal_point"]

CONFIDENCE: Final = 0.99
"""Confidence of the limits and intervals that tables, figures and sentences show, unless another one is asked for."""
OF_FEW: Final = 0.95
"""That of limits from a few numbers, such as the slope of four errors or the mean of three training runs.

They are Student's limits with two degrees of freedom, which at 99 % would be 2.3 times as wide, so that nothing could
be told without several times as many training runs.
"""
OF_FORECAST: Final = 0.9
"""That of the limits of a forecast. They are to contain the loss of a single run, and docs/forecast.md reports how
often they do; at 99 %, some dozens of runs would not show that."""


def normal_point(confidence: float = CONFIDENCE) -> float:
    """Standard errors to either side of a normal estimate within which the true value is with that probability."""
    return -NormalDist().inv_cdf((1 - confidence) / 2) if confidence < 1 else math.inf
