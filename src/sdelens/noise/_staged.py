"""The law of noise whose batch size changes with the step, in stages."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import Array, lax

from sdelens.core.random import Stream
from sdelens.noise._base import NoiseLaw

__all__ = ["StagedLaw", "described_schedule"]


class StagedLaw(NoiseLaw):
    """The law of a batch size that changes with the step.

    Attributes:
        laws: the law at every batch size.
        which: index of the law of every step; the last is kept afterwards.
        now: index of the law of the current step.
    """

    scheduled = True
    laws: tuple[NoiseLaw, ...]
    which: Array
    now: Array

    @property
    def normal(self) -> bool:  # type: ignore[override]
        return all(law.normal for law in self.laws)

    @property
    def independent(self) -> bool:  # type: ignore[override]
        return all(law.independent for law in self.laws)

    @property
    def constant(self) -> bool:  # type: ignore[override]
        return False

    @property
    def has_quadrature(self) -> bool:  # type: ignore[override]
        return False

    @property
    def has_covariance(self) -> bool:  # type: ignore[override]
        return self._first.has_covariance

    @property
    def biased(self) -> bool:  # type: ignore[override]
        return self._first.biased

    @property
    def sign_samples(self) -> int:  # type: ignore[override]
        return self._first.sign_samples

    @property
    def needs_gradient(self) -> bool:  # type: ignore[override]
        return any(law.needs_gradient for law in self.laws)

    def at_step(self, k: Array | int) -> "StagedLaw":
        now = self.which[jnp.minimum(k, len(self.which) - 1)]
        return eqx.tree_at(lambda law: (law.laws, law.now), self, (tuple(law.at_step(k) for law in self.laws), now))

    def mean_gradient(self, x: Array, grad: Array) -> Array:
        """That of any stage: the batch size does not change E g."""
        return self._first.mean_gradient(x, grad)

    def gradient(self, k: Array, x: Array, grad: Array, stream: Stream) -> Array:
        wide = jnp.broadcast_to(grad, (grad.shape[0], stream.paths.shape[0])) if grad.ndim == 2 else grad
        return self.at_step(k)._switch(lambda law: law.gradient(k, x, wide, stream))

    def sample(self, x: Array, stream: Stream) -> Array:
        return self._switch(lambda law: law.sample(x, stream))

    def has_variance(self, x: Array) -> bool:
        return all(law.has_variance(x) for law in self.laws)

    def variance(self, x: Array) -> Array:
        return self._switch(lambda law: jnp.broadcast_to(law.variance(x), x.shape))

    def covariance(self, x: Array) -> Array:
        return self._switch(lambda law: law.covariance(x))

    def mean_sign(self, grad: Array, x: Array) -> Array:
        return self._switch(lambda law: jnp.broadcast_to(law.mean_sign(grad, x), grad.shape))

    def density(self, z: Array, x: Array) -> Array:
        return self._switch(lambda law: jnp.broadcast_to(law.density(z, x), z.shape))

    def quadrature(self, x: Array) -> tuple[Array, Array]:
        raise ValueError("noise: a law that changes with the step has no quadrature rule.")

    def noise_shape(self, dim: int) -> tuple[int, ...]:
        return self._same("noise_shape", dim)

    def apply_root(self, x: Array, dW: Array) -> Array:
        return self._switch(lambda law: law.apply_root(x, dW))

    def sign_shape(self, dim: int) -> tuple[int, ...]:
        return self._same("sign_shape", dim)

    def apply_sign_root(self, grad: Array, x: Array, dW: Array) -> Array:
        return self._switch(lambda law: law.apply_sign_root(grad, x, dW))

    def signed_mean(self, grad: Array, x: Array) -> Array:
        return self._switch(lambda law: jnp.broadcast_to(law.signed_mean(grad, x), grad.shape))

    def joint_shape(self, dim: int) -> tuple[int, ...]:
        return self._same("joint_shape", dim)

    def apply_joint_root(self, grad: Array, x: Array, dW: Array) -> tuple[Array, Array]:
        return self._switch(lambda law: law.apply_joint_root(grad, x, dW))

    def fourth_cumulant(self, x: Array) -> Array:
        return self._switch(lambda law: jnp.broadcast_to(law.fourth_cumulant(x), x.shape))

    def excess_kurtosis(self, x: Array) -> Array:
        return self._switch(lambda law: jnp.broadcast_to(law.excess_kurtosis(x), x.shape))

    def lacks_fourth_moment(self, x: Array) -> bool:
        return any(law.lacks_fourth_moment(x) for law in self.laws)

    def apply_root_and_square(self, grad: Array, x: Array, dW: Array, dt: Any) -> tuple[Array, Array]:
        return self._switch(lambda law: law.apply_root_and_square(grad, x, dW, dt))

    @property
    def cache_steps(self) -> int:
        return min(law.cache_steps for law in self.laws)

    def compute_cache(self, use: str, x: Array, grad: Array, stream: Stream) -> Any:
        return self._switch(lambda law: law.compute_cache(use, x, grad, stream))

    def with_cache(self, found: Any) -> "StagedLaw":
        laws = tuple(law.with_cache(found) for law in self.laws)
        return self if found is None else eqx.tree_at(lambda law: law.laws, self, laws)

    def describe(self) -> dict[str, Any]:
        return described_schedule(self._first.describe(), len(self.laws))

    @property
    def _first(self) -> NoiseLaw:
        return self.laws[0]

    def _switch(self, function: Callable[[NoiseLaw], Any]) -> Any:
        """A function of the law of the current step."""
        return lax.switch(self.now, [lambda law=law: function(law) for law in self.laws])

    def _same(self, name: str, dim: int) -> tuple[int, ...]:
        """A shape that must be that of every stage."""
        shapes = {getattr(law, name)(dim) for law in self.laws}
        if len(shapes) > 1:
            raise ValueError(
                f"noise: its stages are driven by different numbers of Brownian motions ({sorted(shapes)}); use the "
                "models 'optimizer' and 'empirical'."
            )
        return shapes.pop()


def described_schedule(own: dict[str, Any], stages: int) -> dict[str, Any]:
    """`describe` of noise that changes with the step, with a number of stages or none."""
    return {"name": "scheduled", "noise": own, **({"stages": stages} if stages else {}), "rerunnable": False}
