"""Gradient noise: g(x) = ∇f(x) + Z, one family of laws per file."""

from sdelens.noise._base import AbstractNoise
from sdelens.noise._gaussian import GaussianNoise
from sdelens.noise._minibatch import MinibatchNoise
from sdelens.noise._sum import SumNoise
from sdelens.noise._symmetric import LaplaceNoise, StudentTNoise, SymmetricNoise, UniformNoise

__all__ = [
    "AbstractNoise",
    "GaussianNoise",
    "LaplaceNoise",
    "MinibatchNoise",
    "StudentTNoise",
    "SumNoise",
    "SymmetricNoise",
    "UniformNoise",
]
