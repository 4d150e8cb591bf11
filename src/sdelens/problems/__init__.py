"""Problems: what is minimised."""

from sdelens.problems._analytic import EmbeddedSaddle, Quadratic, Rosenbrock
from sdelens.problems._base import AbstractProblem, Problem
from sdelens.problems._network import MLP, network

__all__ = ["MLP", "AbstractProblem", "EmbeddedSaddle", "Problem", "Quadratic", "Rosenbrock", "network"]
