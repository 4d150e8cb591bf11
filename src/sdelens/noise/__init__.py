"""Gradient noise: g(x) = ∇f(x) + Z, one family of laws per file."""

from sdelens.noise._base import AbstractNoise, NoiseLaw
from sdelens.noise._minibatch import MinibatchNoise
from sdelens.noise._private import DPNoise
from sdelens.noise._sampled import SampledNoise
from sdelens.noise._scheduled import ScheduledNoise, at_ratio, check_multipliers
from sdelens.noise._sum import SumNoise
from sdelens.noise.distributed import DistributedNoise, MajorityVote, Quantisation, RandomK
from sdelens.noise.gaussian import GaussianNoise
from sdelens.noise.laplace import LaplaceNoise
from sdelens.noise.scaled import ScaledNoise
from sdelens.noise.student_t import StudentTNoise
from sdelens.noise.symmetric import SymmetricNoise
from sdelens.noise.uniform import UniformNoise

__all__ = [
    "AbstractNoise",
    "DPNoise",
    "DistributedNoise",
    "GaussianNoise",
    "LaplaceNoise",
    "MajorityVote",
    "MinibatchNoise",
    "NoiseLaw",
    "Quantisation",
    "RandomK",
    "SampledNoise",
    "ScaledNoise",
    "ScheduledNoise",
    "StudentTNoise",
    "SumNoise",
    "SymmetricNoise",
    "UniformNoise",
    "at_ratio",
    "check_multipliers",
]
