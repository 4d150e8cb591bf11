"""Noise Z = σX with independent coordinates, one standard law X per class, and quadrature rules for it."""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array

from sdelens.core import check
from sdelens.core.random import Stream
from sdelens.core.tree import column
from sdelens.noise._base import AbstractNoise, NoiseLaw
from sdelens.noise._values import density_over, described, laid_out, nonzero
from sdelens.problems import AbstractProblem

__all__ = ["LEGENDRE", "NODES", "ScaledNoise", "half_rule"]

NODES = 64
"""Quadrature nodes of one law."""
LEGENDRE = np.polynomial.legendre.leggauss(NODES)
"""Nodes on (−1, 1) and weights."""


def half_rule() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on (0, 1), twice as dense towards 0, where the tail of a law is."""
    half, weight = (LEGENDRE[0] + 1) / 2, LEGENDRE[1] / 2
    return half**2, 2 * half * weight


class ScaledNoise(AbstractNoise, NoiseLaw):
    """Z = σX with independent coordinates; subclasses define the law of X by functions of s = z/σ.

    Specification and law in one class: `bind` lays out σ along the coordinates.
    """

    name: eqx.AbstractClassVar[str]
    scale: eqx.AbstractVar[Any]

    @abc.abstractmethod
    def standard_sample(self, x: Array, stream: Stream) -> Array:
        """One draw of X for every path: shape (d, P)."""

    @abc.abstractmethod
    def standard_variance(self, x: Array) -> Any:
        """Var X."""

    @abc.abstractmethod
    def standard_mean_sign(self, s: Array) -> Array:
        """2F(s) − 1, with the derivative 2p(s)."""

    @abc.abstractmethod
    def standard_density(self, s: Array) -> Array:
        """p(s)."""

    @abc.abstractmethod
    def standard_signed_mean(self, s: Array) -> Array:
        """2 ∫_{|s|}^∞ t p(t) dt."""

    @abc.abstractmethod
    def standard_fourth_cumulant(self, x: Array) -> Any:
        """E X⁴ − 3 (Var X)², infinite where there is no fourth moment."""

    def bind(self, problem: AbstractProblem) -> "ScaledNoise":
        return eqx.tree_at(lambda noise: noise.scale, self, laid_out("scale", self.scale, problem))

    def sample(self, x: Array, stream: Stream) -> Array:
        return column(self.scale, x) * self.standard_sample(x, stream)

    def variance(self, x: Array) -> Array:
        square = column(self.scale, x) ** 2
        return jnp.where(square > 0, square * self.standard_variance(x), 0)

    def mean_sign(self, grad: Array, x: Array) -> Array:
        scale = column(self.scale, x)
        return jnp.where(scale > 0, self.standard_mean_sign(grad / nonzero(scale)), jnp.sign(grad))

    def density(self, z: Array, x: Array) -> Array:
        scale = column(self.scale, x)
        safe = nonzero(scale)
        return density_over(scale, z, self.standard_density(z / safe) / safe)

    def _noisy(self, x: Array) -> Array:
        return (column(self.scale, x) > 0).astype(x.dtype)

    def scales(self, x: Array) -> Array:
        return column(self.scale, x)

    def signed_mean(self, grad: Array, x: Array) -> Array:
        scale = column(self.scale, x)
        return jnp.where(scale > 0, scale * self.standard_signed_mean(grad / nonzero(scale)), 0)

    def fourth_cumulant(self, x: Array) -> Array:
        fourth = column(self.scale, x) ** 4
        return jnp.where(fourth > 0, fourth * self.standard_fourth_cumulant(x), 0)

    def excess_kurtosis(self, x: Array) -> Array:
        kurtosis = self.standard_fourth_cumulant(x) / jnp.asarray(self.standard_variance(x), x.dtype) ** 2
        return jnp.where(jnp.isfinite(kurtosis), kurtosis, jnp.inf)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "scale": described(self.scale)}

    def at_batch_ratio(self, ratio: float) -> AbstractNoise:
        check.positive("ratio", ratio)
        if ratio == 1:
            return self
        raise ValueError(
            f"ratio: got {ratio:g}, but the average of several draws of {self.name} noise follows another law, which "
            "has no closed form here. Give that law as SymmetricNoise(cdf, ppf, variance=...), or approximate it by "
            "GaussianNoise with the variance divided by the ratio where there is one and the ratio is large."
        )

    def _nodes(self, standard: Any, weights: Any, x: Array) -> tuple[Array, Array]:
        scale = jnp.atleast_1d(self.scale)
        return jnp.asarray(standard, x.dtype)[:, None] * scale, jnp.asarray(weights, x.dtype)
