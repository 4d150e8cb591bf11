"""What a run's gradients and moments say of its noise."""

from sdelens.diagnosis._gradients import gradient_noise
from sdelens.diagnosis._noise import GradientNoise
from sdelens.diagnosis._shares import PhaseShares
from sdelens.diagnosis._tails import Tail

__all__ = ["GradientNoise", "PhaseShares", "Tail", "gradient_noise"]
