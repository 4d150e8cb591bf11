"""The base of laws that are another law in all but a few respects."""

from typing import Any, Self

import equinox as eqx
from jax import Array

from sdelens.core.random import Stream
from sdelens.noise._base import NoiseLaw

__all__ = ["ForwardedLaw"]


class ForwardedLaw(NoiseLaw):
    """A law with everything of another one but its draws and its description, which a subclass defines."""

    law: eqx.AbstractVar[NoiseLaw]

    @property
    def normal(self) -> bool:  # type: ignore[override]
        return self.law.normal

    @property
    def independent(self) -> bool:  # type: ignore[override]
        return self.law.independent

    @property
    def constant(self) -> bool:  # type: ignore[override]
        return self.law.constant

    @property
    def has_quadrature(self) -> bool:  # type: ignore[override]
        return self.law.has_quadrature

    @property
    def has_covariance(self) -> bool:  # type: ignore[override]
        return self.law.has_covariance

    @property
    def biased(self) -> bool:  # type: ignore[override]
        return self.law.biased

    @property
    def sign_samples(self) -> int:  # type: ignore[override]
        return self.law.sign_samples

    def mean_gradient(self, x: Array, grad: Array) -> Array:
        return self.law.mean_gradient(x, grad)

    def has_variance(self, x: Array) -> bool:
        return self.law.has_variance(x)

    def variance(self, x: Array) -> Array:
        return self.law.variance(x)

    def covariance(self, x: Array) -> Array:
        return self.law.covariance(x)

    def scales(self, x: Array) -> Array:
        return self.law.scales(x)

    def mean_sign(self, grad: Array, x: Array) -> Array:
        return self.law.mean_sign(grad, x)

    def density(self, z: Array, x: Array) -> Array:
        return self.law.density(z, x)

    def quadrature(self, x: Array) -> tuple[Array, Array]:
        return self.law.quadrature(x)

    def noise_shape(self, dim: int) -> tuple[int, ...]:
        return self.law.noise_shape(dim)

    def apply_root(self, x: Array, dW: Array) -> Array:
        return self.law.apply_root(x, dW)

    def sign_shape(self, dim: int) -> tuple[int, ...]:
        return self.law.sign_shape(dim)

    def apply_sign_root(self, grad: Array, x: Array, dW: Array) -> Array:
        return self.law.apply_sign_root(grad, x, dW)

    def signed_mean(self, grad: Array, x: Array) -> Array:
        return self.law.signed_mean(grad, x)

    def joint_shape(self, dim: int) -> tuple[int, ...]:
        return self.law.joint_shape(dim)

    def apply_joint_root(self, grad: Array, x: Array, dW: Array) -> tuple[Array, Array]:
        return self.law.apply_joint_root(grad, x, dW)

    def fourth_cumulant(self, x: Array) -> Array:
        return self.law.fourth_cumulant(x)

    def excess_kurtosis(self, x: Array) -> Array:
        return self.law.excess_kurtosis(x)

    def lacks_fourth_moment(self, x: Array) -> bool:
        return self.law.lacks_fourth_moment(x)

    def apply_root_and_square(self, grad: Array, x: Array, dW: Array, dt: Any) -> tuple[Array, Array]:
        return self.law.apply_root_and_square(grad, x, dW, dt)

    @property
    def cache_steps(self) -> int:
        return self.law.cache_steps

    def compute_cache(self, use: str, x: Array, grad: Array, stream: Stream) -> Any:
        return self.law.compute_cache(use, x, grad, stream)

    def with_cache(self, found: Any) -> Self:
        return eqx.tree_at(lambda own: own.law, self, self.law.with_cache(found))
