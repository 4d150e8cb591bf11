"""Distributed training: several workers, each with a stochastic gradient, and what they send."""

from sdelens.noise.distributed._distributed import DistributedNoise
from sdelens.noise.distributed._quantisation import Quantisation
from sdelens.noise.distributed._random_k import RandomK, RandomKLaw
from sdelens.noise.distributed._vote import MajorityVote
from sdelens.noise.distributed._workers import Compression, WorkersLaw

__all__ = [
    "Compression",
    "DistributedNoise",
    "MajorityVote",
    "Quantisation",
    "RandomK",
    "RandomKLaw",
    "WorkersLaw",
]
