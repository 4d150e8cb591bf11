"""The gradient noise along a run whose batch size changes with the step."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sdelens.core.random import Stream
from sdelens.noise import AbstractNoise, DistributedNoise, MinibatchNoise, NoiseLaw
from sdelens.problems import AbstractProblem

__all__ = ["StagedNoise", "at_ratio"]

_MOST = 32
"""Most batch sizes: every one is compiled."""


class StagedNoise(AbstractNoise):
    """Noise whose law depends on the step, for the optimizer itself only.

    Attributes:
        laws: the noise at every batch size.
        which: index of the law of every step; the last is kept afterwards.
    """

    laws: tuple[AbstractNoise, ...]
    which: Array

    def __init__(self, noise: AbstractNoise, ratios: np.ndarray) -> None:
        """The noise at given batch ratios, one for every step.

        Raises:
            TypeError: if `noise` is no noise.
            ValueError: if the noise is not known at a ratio, there are too many, or mini-batches form epochs.
        """
        different, which = np.unique(ratios, return_inverse=True)
        if len(different) > _MOST:
            raise ValueError(
                f"batches: the ramp has {len(different)} batch sizes; to simulate it, give stages with at most {_MOST}."
            )
        if isinstance(noise, MinibatchNoise) and not noise.options.replacement:
            raise ValueError(
                "noise: got mini-batches without replacement, whose epochs a changing batch size would cut; use "
                "replacement=True to simulate a ramp."
            )
        self.laws = tuple(at_ratio(noise, float(ratio)) for ratio in different)
        self.which = jnp.asarray(which, jnp.int32)

    def bind(self, problem: AbstractProblem) -> "StagedLaw":
        return StagedLaw(tuple(law.bind(problem) for law in self.laws), self.which)

    def at_batch_ratio(self, ratio: float) -> AbstractNoise:
        raise ValueError("ratio: the batch size of this noise changes with the step already.")

    def describe(self) -> dict[str, Any]:
        first = self.laws[int(self.which[0])].describe()
        return {**first, "stages": len(self.laws), "rerunnable": False}


class StagedLaw(NoiseLaw):
    """The law on a problem. All but the gradient is that of the first step."""

    laws: tuple[NoiseLaw, ...]
    which: Array

    @property
    def needs_gradient(self) -> bool:  # type: ignore[override]
        return any(law.needs_gradient for law in self.laws)

    def gradient(self, k: Array, x: Array, grad: Array, stream: Stream) -> Array:
        now = self.which[jnp.minimum(k, len(self.which) - 1)]
        wide = jnp.broadcast_to(grad, (grad.shape[0], stream.paths.shape[0])) if grad.ndim == 2 else grad
        return lax.switch(now, [lambda law=law: law.gradient(k, x, wide, stream) for law in self.laws])

    def sample(self, x: Array, stream: Stream) -> Array:
        return self._first.sample(x, stream)

    def variance(self, x: Array) -> Array:
        return self._first.variance(x)

    def mean_sign(self, grad: Array, x: Array) -> Array:
        return self._first.mean_sign(grad, x)

    def density(self, z: Array, x: Array) -> Array:
        return self._first.density(z, x)

    def quadrature(self, x: Array) -> tuple[Array, Array]:
        return self._first.quadrature(x)

    def describe(self) -> dict[str, Any]:
        return {**self._first.describe(), "stages": len(self.laws), "rerunnable": False}

    @property
    def _first(self) -> NoiseLaw:
        return self.laws[0]


def at_ratio(noise: Any, ratio: float) -> AbstractNoise:
    """The noise at δ times the batch size, from its law or as the mean of δ draws.

    Raises:
        TypeError: if `noise` is no noise.
        ValueError: if the averaged law is not known and δ is no whole number above 1.
    """
    if not isinstance(noise, AbstractNoise):
        raise TypeError(f"noise: got {type(noise).__name__}; give a noise law, for example sl.GaussianNoise(1.0).")
    try:
        return noise.at_batch_ratio(ratio)
    except ValueError:
        if not ratio.is_integer() or ratio <= 1 or isinstance(noise, DistributedNoise):
            raise
        return DistributedNoise(noise, workers=int(ratio))
