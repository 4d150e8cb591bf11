r"""Mini-batch noise of clipped per-example gradients.

With cᵢ = min(1, C/‖gᵢ‖), the mean gradient of a batch is a mean of B draws of cᵢgᵢ. Its mean is ∇_C = (1/n) Σᵢ cᵢgᵢ,
and its covariance that of mini-batches of the clipped gradients. Weights of the examples give both by backward passes:

    ∇_C = ∇ Σᵢ (cᵢ/n) ℓᵢ,   Σ^{1/2} dW = (1/√(nB)) ∇ Σᵢ cᵢ(dWᵢ − mean dW) ℓᵢ  with cᵢ kept constant.

Under Poisson sampling every example is in the batch with probability q = B/n, independently, and the sum is divided by
B: the mean is the same, Σ = ((1 − q)/B)(1/n) Σᵢ cᵢ²gᵢgᵢᵀ, and the mean of dW is not subtracted.
"""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array

from sdelens.core.random import Stream
from sdelens.noise._base import RareGradients, centred_square
from sdelens.noise._batch_sign import SignLaw, normal_signs
from sdelens.noise._examples import ExampleLaw

__all__ = ["ClippedLaw"]

_INCLUDED = np.uint32(2**31 + 4)
"""Substep index of the random numbers that choose the examples of a Poisson batch."""


class ClippedLaw(ExampleLaw):
    """Mini-batch noise of gradients that are clipped to norm C for each example, bound to a problem.

    Attributes:
        clip: C.
        poisson: whether batches are drawn by Poisson sampling.
        factors: cᵢ at x, of shape (n,) or (n, P), a part of the cache; `found` is the rest of it.
    """

    biased = True
    clip: Any = math.inf
    poisson: bool = eqx.field(default=False, static=True)
    factors: Any = None

    @property
    def silent(self) -> bool:  # type: ignore[override]
        return self._share == 0

    @property
    def normal(self) -> bool:  # type: ignore[override]
        return self.silent

    @property
    def signs_as_normal(self) -> bool:
        return self.silent or super().signs_as_normal

    def mean_gradient(self, x: Array, grad: Array) -> Array:
        return self.problem.weighted_gradient(x, self._factors(x) / self.examples)

    def gradient(self, k: Array, x: Array, grad: Array, stream: Stream) -> Array:
        return self._poisson_mean(x, stream.at(k)) if self.poisson else super().gradient(k, x, grad, stream)

    def draw(self, x: Array, grad: Array, stream: Stream) -> Array:
        return self._poisson_mean(x, stream) if self.poisson else super().draw(x, grad, stream)

    def sample(self, x: Array, stream: Stream) -> Array:
        return self.draw(x, x, stream) - self.mean_gradient(x, x)

    def rare_gradients(self, x: Array) -> RareGradients | None:
        return None

    def describe(self) -> dict[str, Any]:
        more = {"clip": float(self.clip), **({"poisson": True} if self.poisson else {})}
        return {**super().describe(), "name": "clipped", **more}

    def compute_cache(self, use: str, x: Array, grad: Array, stream: Stream) -> Any:
        """The factors cᵢ at x, and what mini-batches have in their cache."""
        factors = self._factors(x)
        law = self._with(factors)
        if self.silent or (use == "root" and self.options.covariance == "exact"):
            return factors, None
        return factors, super(ClippedLaw, law).compute_cache(use, x, grad, stream)

    def with_cache(self, found: Any) -> "ClippedLaw":
        factors, rest = found
        law = self._with(factors)
        return law if rest is None else eqx.tree_at(lambda n: n.found, law, rest, is_leaf=lambda leaf: leaf is None)

    def noise_shape(self, dim: int) -> tuple[int, ...]:
        return (0,) if self.silent else super().noise_shape(dim)

    def apply_root_and_square(self, grad: Array, x: Array, dW: Array, dt: Any) -> tuple[Array, Array]:
        """As for mini-batches, of the clipped gradients."""
        if self.silent or self.options.covariance == "diagonal":
            root = self.apply_root(x, dW)
            return root, 2 * grad * root + centred_square(root, self.variance(x), dt)
        batch, factors = self.options.batch_size, self._factors(x)
        weights = self._weights(dW)
        root = self.problem.weighted_gradient(x, factors * weights)
        square = self.problem.gradient_means(x, (jnp.square,), weights=factors**2 * weights)[0]
        # Of an example that is in a Poisson batch or not, (b − q)² = q(1 − q) + (1 − 2q)(b − q).
        single = (1 - 2 * batch / self.examples) * square if self.poisson else square - 2 * grad * root
        # Pairs of different examples: 1 − Σhᵢ⁴/(Σhᵢ²)² of the variance, h = cᵢgᵢ, and at most 1 − 1/n, taken here.
        lone = self.examples if self.poisson else batch
        pairs = math.sqrt(1 - 1 / lone) * centred_square(root, self.variance(x), dt)
        return root, 2 * grad * root + single / batch + pairs

    def _with(self, factors: Array) -> "ClippedLaw":
        return eqx.tree_at(lambda n: n.factors, self, factors, is_leaf=lambda leaf: leaf is None)

    def _factors(self, x: Array, index: Array | None = None) -> Array:
        """cᵢ of all examples, from the cache if they are there, or of the examples `index`."""
        if index is None and self.factors is not None:
            return self.factors
        norms = self.problem.gradient_norms(x, index)
        long = norms > self.clip
        return jnp.where(long, self.clip / jnp.where(long, norms, 1), 1)  # also in derivatives where a gradient is 0

    def _mean_gradient(self, x: Array, index: Array) -> Array:
        """The mean of the clipped gradients of a batch."""
        weights = self._factors(x, index) / index.shape[0]
        return self.problem.weighted_gradient(x, weights, index)

    def _poisson_mean(self, x: Array, stream: Stream) -> Array:
        """The sum of the clipped gradients of a Poisson batch over B."""
        share = self.options.batch_size / self.examples
        own = x if x.ndim == 1 else jnp.broadcast_to(x, (x.shape[0], stream.paths.shape[0]))
        chosen = stream.at(0, _INCLUDED).uniform(self.examples, x.dtype) < share
        factors = self._factors(own)
        factors = factors[:, None] if factors.ndim == 1 and own.ndim == 2 else factors
        return self.problem.weighted_gradient(own, factors * chosen / self.options.batch_size)

    @property
    def _share(self) -> float:
        if self.poisson:
            return (1 - self.options.batch_size / self.examples) / self.options.batch_size
        return super()._share

    def _weights(self, dW: Array) -> Array:
        centre = 0 if self.poisson else dW.mean(axis=0)
        return (dW - centre) * math.sqrt(self._share / self.examples)

    def _exact_root(self, x: Array, dW: Array) -> Array:
        return self.problem.weighted_gradient(x, self._factors(x) * self._weights(dW))

    def apply_root(self, x: Array, dW: Array) -> Array:
        return jnp.zeros_like(x) if self.silent else super().apply_root(x, dW)

    def _variance(self, x: Array, index: Array | None) -> Array:
        if self.silent:
            return jnp.zeros_like(x)
        factors = self._factors(x)
        if index is not None:
            factors = jnp.take_along_axis(factors, index, axis=0)
        m, n = factors.shape[0], self.examples
        square = self.problem.gradient_means(x, (jnp.square,), index, weights=factors**2 / m)[0]
        if self.poisson:
            return square * self._share
        mean = self.problem.weighted_gradient(x, factors / m, index)
        bias = (1 - 1 / m) / (1 - 1 / n) if m < n else 1.0
        return jnp.maximum(square - mean**2, 0) * (self._share / bias)

    def _found_signs(self, grad: Array, x: Array) -> SignLaw:
        return normal_signs(self.mean_gradient(x, grad), self._variance(x, None))
