"""Problems: what is minimised."""

from sdelens.problems._analytic import EmbeddedSaddle, Quadratic, Rosenbrock
from sdelens.problems._base import AbstractProblem, Problem
from sdelens.problems._network import MLP, network
from sdelens.problems._regression import LinearRegression

__all__ = [
    "MLP",
    "AbstractProblem",
    "EmbeddedSaddle",
    "LinearRegression",
    "Problem",
    "Quadratic",
    "Rosenbrock",
    "network",
]
