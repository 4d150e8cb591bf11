"""Problems: what is minimised."""

from sdelens.problems._analytic import EmbeddedSaddle, Quadratic, Rosenbrock
from sdelens.problems._base import AbstractProblem, L2Problem, Problem
from sdelens.problems._network import MLP, network
from sdelens.problems._regression import LinearRegression

__all__ = [
    "MLP",
    "AbstractProblem",
    "EmbeddedSaddle",
    "L2Problem",
    "LinearRegression",
    "Problem",
    "Quadratic",
    "Rosenbrock",
    "network",
]
