"""Problems: what is minimised."""

from sdelens.problems._analytic import EmbeddedSaddle, Quadratic, Rosenbrock
from sdelens.problems._base import AbstractProblem, Problem
from sdelens.problems._regression import LinearRegression
from sdelens.problems.networks import CNN, MLP, ResNet, Transformer, ViT, network

__all__ = [
    "CNN",
    "MLP",
    "AbstractProblem",
    "EmbeddedSaddle",
    "LinearRegression",
    "Problem",
    "Quadratic",
    "ResNet",
    "Rosenbrock",
    "Transformer",
    "ViT",
    "network",
]
