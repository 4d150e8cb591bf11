"""Gradient noise: g(x) = ∇f(x) + Z, one family of laws per file."""

from sdelens.noise._base import AbstractNoise
from sdelens.noise._gaussian import GaussianNoise
from sdelens.noise._minibatch import MinibatchNoise
from sdelens.noise._sum import SumNoise
from sdelens.noise._symmetric import LaplaceNoise, StudentTNoise, SymmetricNoise, UniformNoise
from sdelens.noise.distributed import DistributedNoise, MajorityVote, Quantisation, RandomK

__all__ = [
    "AbstractNoise",
    "DistributedNoise",
    "GaussianNoise",
    "LaplaceNoise",
    "MajorityVote",
    "MinibatchNoise",
    "Quantisation",
    "RandomK",
    "StudentTNoise",
    "SumNoise",
    "SymmetricNoise",
    "UniformNoise",
]
