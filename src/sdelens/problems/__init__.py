"""Problems: the losses to minimise."""

from sdelens.problems._analytic import EmbeddedSaddle, Quadratic, Rosenbrock
from sdelens.problems._base import AbstractProblem, L2Problem
from sdelens.problems._game import Game, QuadraticGame
from sdelens.problems._problem import EXAMPLE_BYTES, Problem
from sdelens.problems._regression import LinearRegression
from sdelens.problems.networks import CNN, MLP, ResNet, Transformer, ViT, network

__all__ = [
    "CNN",
    "EXAMPLE_BYTES",
    "MLP",
    "AbstractProblem",
    "EmbeddedSaddle",
    "Game",
    "L2Problem",
    "LinearRegression",
    "Problem",
    "Quadratic",
    "QuadraticGame",
    "ResNet",
    "Rosenbrock",
    "Transformer",
    "ViT",
    "network",
]
