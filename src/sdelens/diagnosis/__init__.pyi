from ._measure import diagnose as diagnose
from ._noise import GradientNoise as GradientNoise
from ._shares import PhaseShares as PhaseShares
from ._tails import Tail as Tail
from ._verdict import Diagnosis as Diagnosis
from .gradients import gradient_noise as gradient_noise
