"""Noise of several workers as users specify it, and their plain mean."""

import math
from typing import Any

import equinox as eqx
from jax import Array

from sdelens.core import check
from sdelens.core.random import Stream
from sdelens.noise._base import AbstractNoise, NoiseLaw
from sdelens.noise._forwarded import ForwardedLaw
from sdelens.noise._minibatch import MinibatchNoise
from sdelens.noise.distributed._workers import Compression, WorkersLaw
from sdelens.problems import AbstractProblem

__all__ = ["DistributedNoise"]


class DistributedNoise(AbstractNoise):
    r"""The noise of N workers that each draw a stochastic gradient and send it, compressed or not.

    g = (1/N) Σᵢ C(∇f + Zᵢ) with Z₁, …, Z_N independent draws of `noise`: the stochastic gradient that the optimizer
    gets, or, for `MajorityVote`, the mean of the workers' signs, whose sign is SignSGD's step.

    Without compression Cov g = Σ/N, and E sign(g) is known where `noise.at_batch_ratio(N)` is. What is known for a
    compression is stated in its class. One worker without compression is `noise` itself.

    Args:
        noise: law of one worker's noise; with `MinibatchNoise` every worker draws a separate mini-batch.
        workers: N ≥ 1.
        compression: C: `RandomK`, `Quantisation`, `MajorityVote`, or None, which sends the gradient as it is.

    Raises:
        ValueError, TypeError: if an argument does not fit; when an SDE is built, if it needs something that is not
            known for the law (the message says what to use instead). The optimizer itself runs with any law.

    Source: the setting of arXiv 2502.17009; the laws are derived here, from the compressions themselves.

    Examples:
        >>> import sdelens as sl
        >>> noise = sl.DistributedNoise(sl.GaussianNoise(1.0), workers=8, compression=sl.RandomK(0.25))
    """

    noise: AbstractNoise
    workers: int = eqx.field(static=True)
    compression: Compression | None

    def __init__(self, noise: AbstractNoise, workers: int, compression: Compression | None = None) -> None:
        if not isinstance(noise, AbstractNoise):
            kind = noise.__name__ if isinstance(noise, type) else type(noise).__name__
            raise TypeError(f"noise: got {kind}; give one worker's noise, for example sl.GaussianNoise(1.0).")
        if isinstance(noise, DistributedNoise):
            raise TypeError("noise: got a DistributedNoise; multiply the numbers of workers instead.")
        if compression is not None and not isinstance(compression, Compression):
            kind = f"the class {compression.__name__}" if isinstance(compression, type) else repr(compression)
            raise TypeError(
                f"compression: got {kind}; give sl.RandomK(0.25), sl.Quantisation(0.1), sl.MajorityVote(), or None."
            )
        self.noise = noise
        self.workers = check.at_least("workers", workers, 1)
        self.compression = compression

    def bind(self, problem: AbstractProblem) -> NoiseLaw:
        own = self.noise.bind(problem)
        if own.scheduled:
            raise TypeError(
                "noise: changes with the step; schedule what the workers send together: "
                "ScheduledNoise(DistributedNoise(noise, workers), ...)."
            )
        if own.biased:
            raise TypeError(
                "noise: clips gradients, so that its mean is not ∇f, which the laws of several workers assume; give "
                "one sl.DPNoise with the batch of all workers."
            )
        if self.compression is not None:
            return self.compression.bind(problem, own, self.workers)
        if self.workers == 1:
            return own
        return MeanLaw(problem, own, self.workers, None, _averaged(self.noise, own, self.workers, problem))

    def at_batch_ratio(self, ratio: float) -> "DistributedNoise":
        """The noise with every worker's batch `ratio` times as large; an error where the worker's law raises one."""
        return DistributedNoise(self.noise.at_batch_ratio(ratio), self.workers, self.compression)

    def describe(self) -> dict[str, Any]:
        described: dict[str, Any] = {"name": "distributed", "workers": self.workers, "noise": self.noise.describe()}
        return described | ({} if self.compression is None else {"compression": self.compression.describe()})

    def __add__(self, other: AbstractNoise) -> AbstractNoise:
        """Always an error: sum the noises of one worker instead."""
        raise TypeError("noise: sum the noises of one worker, then distribute: DistributedNoise(a + b, workers).")


class MeanLaw(ForwardedLaw, WorkersLaw):
    """The mean of N draws: it is sampled as that mean, and everything else uses the law of the mean."""

    law: NoiseLaw


class _Reduced(WorkersLaw):
    """The mean of N draws of a law whose averages follow another law, of which only the covariance is known."""

    @property
    def independent(self) -> bool:  # type: ignore[override]
        return self.noise.independent

    @property
    def constant(self) -> bool:  # type: ignore[override]
        return self.noise.constant

    def variance(self, x: Array) -> Array:
        return self.noise.variance(x) / self.workers

    def has_variance(self, x: Array) -> bool:
        return self.noise.has_variance(x)

    def noise_shape(self, dim: int) -> tuple[int, ...]:
        return self.noise.noise_shape(dim)

    def apply_root(self, x: Array, dW: Array) -> Array:
        return self.noise.apply_root(x, dW) / math.sqrt(self.workers)

    def sign_shape(self, dim: int) -> tuple[int, ...]:
        raise ValueError(self._refusal)

    def mean_sign(self, grad: Array, x: Array) -> Array:
        raise ValueError(self._refusal)

    @property
    def _refusal(self) -> str:
        return (
            f"noise: the mean of {self.workers} draws of {self.noise.describe()['name']} noise follows another law, "
            "whose signs are not known here. Use compression=sl.MajorityVote(), normal or Cauchy noise, or "
            "the models 'optimizer' and 'empirical'."
        )

    def compute_cache(self, use: str, x: Array, grad: Array, stream: Stream) -> Any:
        return self.noise.compute_cache(use, x, grad, stream)


def _averaged(noise: AbstractNoise, own: NoiseLaw, workers: int, problem: AbstractProblem) -> NoiseLaw:
    """The law of the mean of `workers` draws, bound; `own` is that of one."""
    # Epochs of N workers differ from those of one worker with batches N times as large.
    epochs = isinstance(noise, MinibatchNoise) and not noise.options.replacement
    try:
        return noise.at_batch_ratio(workers).bind(problem) if not epochs else _Reduced(problem, own, workers, None)
    except ValueError:
        return _Reduced(problem, own, workers, None)
