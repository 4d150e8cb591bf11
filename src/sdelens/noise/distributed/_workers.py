"""Base of all bound noise of several workers, with the loop over them, and of their compressions."""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sdelens.core.random import Stream
from sdelens.noise._base import NoiseLaw
from sdelens.problems import AbstractProblem

__all__ = ["Compression", "WorkersLaw", "sign_gain_unknown"]

_WORKER, _MESSAGE = np.uint32(2**31 + 2), np.uint32(2**31 + 3)
"""Substeps that number the random streams of a worker and of its compression."""


class Compression(eqx.Module):
    """A compression of the stochastic gradient that a worker sends."""

    @abc.abstractmethod
    def message(self, gradient: Array, stream: Stream) -> Array:
        """The message of one worker for gradients of shape (d, P)."""

    @abc.abstractmethod
    def bind(self, problem: AbstractProblem, noise: NoiseLaw, workers: int) -> "WorkersLaw":
        """The law of the mean of the messages; `noise` is one worker's, bound to the problem."""

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """Name and numbers, JSON types only."""


class WorkersLaw(NoiseLaw):
    """The noise Z of g = ∇f + Z, the mean of what N workers send, bound to a problem.

    Every worker draws from a separate stream. A loop runs over the workers, so that memory is that of one worker.
    """

    problem: AbstractProblem
    noise: NoiseLaw
    workers: int = eqx.field(static=True)
    compression: Any

    @property
    def normal(self) -> bool:  # type: ignore[override]
        return False

    @property
    def independent(self) -> bool:  # type: ignore[override]
        return False

    @property
    def constant(self) -> bool:  # type: ignore[override]
        return False

    @property
    def has_quadrature(self) -> bool:  # type: ignore[override]
        return False

    @property
    def needs_gradient(self) -> bool:  # type: ignore[override]
        return self.noise.needs_gradient

    def gradient(self, k: Array, x: Array, grad: Array, stream: Stream) -> Array:
        """The mean of the workers' messages at step k."""

        def add(worker: Array, total: Array) -> Array:
            own = stream.at(worker, _WORKER)
            drawn = self.noise.gradient(k, x, grad, own)
            if self.compression is not None:
                drawn = self.compression.message(drawn, own.at(k, _MESSAGE))
            return total + drawn

        zero = jnp.zeros((x.shape[0], stream.paths.shape[0]), x.dtype)
        return lax.fori_loop(0, self.workers, add, zero) / self.workers

    def sample(self, x: Array, stream: Stream) -> Array:
        grad = self.problem.evaluate(x)[1]
        return self.gradient(jnp.asarray(0), x, grad, stream) - grad

    def density(self, z: Array, x: Array) -> Array:
        raise ValueError("noise: the mean of compressed gradients has no density here, and cannot be part of a sum.")

    def quadrature(self, x: Array) -> tuple[Array, Array]:
        raise ValueError("noise: the mean of compressed gradients has no quadrature, and cannot be part of a sum.")

    def joint_shape(self, dim: int) -> tuple[int, ...]:
        raise ValueError(
            "compression: the joint law of the sign of a momentum and the mean of these messages is not known; use "
            "the models "
            "'optimizer' and 'empirical', which draw both."
        )

    def fourth_cumulant(self, x: Array) -> Array:
        raise ValueError(
            "compression: the fourth moment of the mean of these messages is not known; use the model 'sde', or "
            "'empirical'."
        )

    def excess_kurtosis(self, x: Array) -> Array:
        """Infinite: not known."""
        return jnp.full_like(x, jnp.inf)

    def lacks_fourth_moment(self, x: Array) -> bool:
        """False: not known."""
        return False

    def describe(self) -> dict[str, Any]:
        own = self.noise.describe()
        described: dict[str, Any] = {"name": "distributed", "workers": self.workers, "noise": own}
        if self.compression is not None:
            described["compression"] = self.compression.describe()
        return described | ({} if own.get("rerunnable", True) else {"rerunnable": False})

    @property
    def cache_steps(self) -> int:
        return self.noise.cache_steps

    def compute_cache(self, use: str, x: Array, grad: Array, stream: Stream) -> Any:
        """The cache of one worker's noise; a root also needs its variance here."""
        return self.noise.compute_cache("variance" if use == "root" else use, x, grad, stream)

    def with_cache(self, found: Any) -> "WorkersLaw":
        return eqx.tree_at(lambda noise: noise.noise, self, self.noise.with_cache(found))


def sign_gain_unknown(compression: str) -> ValueError:
    """The error of a compression under which SignSGD's SDE is not known."""
    return ValueError(
        f"compression: the law of the sign of the mean under {compression} is not known here, and an SDE of "
        "signs needs it. Use sl.MajorityVote() or sl.RandomK(keep), or the models 'optimizer' and 'empirical'."
    )
