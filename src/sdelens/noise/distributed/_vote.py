r"""The majority vote of workers that send signs.

A worker's sign is positive with probability p = (1 + e)/2, e = E sign(∇f + Z). With m = ⌈N/2⌉ the vote of N has

    P(vote > 0) − P(vote < 0) = 2 I_p(m, m) − 1 = sign(e) I_{e²}(½, m) = e Σ_{j<m} C(2j, j) ((1 − e²)/4)^j,

also for even N: the last of 2m votes can only turn a majority of one into a tie, equally often from either side
(P(S = 1)q = P(S = −1)p of the 2m − 1 others). A tie has the probability C(N, N/2)((1 − e²)/4)^{N/2}. All terms of
the sum are positive; for m > 16 it is 2F − 1 with F the distribution function of Student's t with ν = 2m at
e√(ν/(1 − e²)), by Hill's expansion.
"""

import math
from typing import Any

import jax.numpy as jnp
from jax import Array

from sdelens.core import check
from sdelens.core.random import Stream
from sdelens.noise._base import NoiseLaw
from sdelens.noise.distributed._workers import Compression, WorkersLaw
from sdelens.noise.student_t import StudentTNoise
from sdelens.problems import AbstractProblem

__all__ = ["MajorityVote", "vote"]

_SUMMED = 16


class MajorityVote(Compression):
    r"""Every worker sends the sign of its gradient, and the sign of their sum, 0 for a tie, is SignSGD's step.

    For SignSGD only: the optimizer gets the mean of the signs, which is not a gradient, and other optimizers have no
    SDE under it. With e one worker's E sign(g) and m = ⌈N/2⌉, the mean of the vote is sign(e) I_{e²}(½, m), and its
    variance is 1 − P(tie) minus the square of that mean. Near ∇f = 0 N workers multiply the slope of e by `gain`, about
    √(2N/π), for any tails of their noise. Known for noise with independent coordinates.

    Source: signSGD with majority vote is Bernstein, Wang, Azizzadenesheli, Anandkumar 2018 (arXiv 1802.04434); the law
    of the vote is derived in `noise/distributed/_vote.py`.
    """

    def gain(self, workers: int) -> float:
        """Slope of the vote's E sign in that of one worker at 0: Σ_{j<m} C(2j, j)/4^j = 2m C(2m, m)/4^m, m = ⌈N/2⌉."""
        m = (check.at_least("workers", workers, 1) + 1) // 2
        return math.exp(math.log(2 * m) + _log_central(m))

    def tie(self, workers: int) -> float:
        """Probability of a tie where ∇f = 0: C(N, N/2)/2^N for even N, 0 for odd."""
        workers = check.at_least("workers", workers, 1)
        return 0.0 if workers % 2 else math.exp(_log_central(workers // 2))

    def message(self, gradient: Array, stream: Stream) -> Array:
        return jnp.sign(gradient)

    def bind(self, problem: AbstractProblem, noise: NoiseLaw, workers: int) -> "VoteLaw":
        return VoteLaw(problem, noise, workers, self)

    def describe(self) -> dict[str, Any]:
        return {"name": "majority-vote"}


class VoteLaw(WorkersLaw):
    """The mean of N workers' signs, bound to a problem."""

    compression: MajorityVote

    def variance(self, x: Array) -> Array:
        raise ValueError(
            "compression: sl.MajorityVote() sends the mean of the workers' signs, which is not an unbiased gradient "
            "and "
            "has no Σ for an SDE or for the start of an accumulator. Use it with sl.SignSGD, use sl.RandomK(keep) for "
            "other optimizers, or the models 'optimizer' and 'empirical'."
        )

    def mean_sign(self, grad: Array, x: Array) -> Array:
        self._require_signs()
        return vote(self.noise.mean_sign(grad, x), self.workers)

    def sign_shape(self, dim: int) -> tuple[int, ...]:
        self._require_signs()
        return (dim,)

    def apply_sign_root(self, grad: Array, x: Array, dW: Array) -> Array:
        one = self.noise.mean_sign(grad, x)
        mean, unsure = vote(one, self.workers), (1 - one) * (1 + one)
        tie = self.compression.tie(self.workers)
        spread = (1 - mean) * (1 + mean) - (tie * unsure ** (self.workers // 2) if tie else 0)
        return jnp.sqrt(jnp.maximum(spread, jnp.finfo(mean.dtype).tiny)) * dW

    def _require_signs(self) -> None:
        if not self.noise.independent:
            raise ValueError(
                f"compression: the covariance of votes is known for noise with independent coordinates; the "
                f"coordinates of {self.noise.describe()['name']} noise here depend on each other. Use for example "
                "sl.GaussianNoise(scale), or "
                "the models 'optimizer' and 'empirical'."
            )


def vote(sign: Array, workers: int) -> Array:
    """E of the vote's sign from E of one worker's sign, element-wise."""
    m = (workers + 1) // 2
    rest = (1 - sign) * (1 + sign)
    if m > _SUMMED:
        s = sign * jnp.sqrt(2 * m / jnp.maximum(rest, jnp.finfo(sign.dtype).tiny))
        return StudentTNoise(1.0, 2 * m).standard_mean_sign(s)
    total = jnp.ones_like(sign)
    for j in range(m - 2, -1, -1):  # C(2j + 2, j + 1)/4^{j+1} = (2j + 1)/(2j + 2) C(2j, j)/4^j
        total = 1 + (2 * j + 1) / (2 * j + 2) * rest * total
    return jnp.clip(sign * total, -1, 1)


def _log_central(m: int) -> float:
    """Logarithm of C(2m, m)/4^m."""
    return math.lgamma(2 * m + 1) - 2 * math.lgamma(m + 1) - m * math.log(4)
