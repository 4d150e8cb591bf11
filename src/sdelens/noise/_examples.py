r"""Mini-batch noise of a problem with examples, without forming a matrix.

Everything is computed from three operations on the per-example losses ℓᵢ: the mean gradient of a batch, the gradient of
a weighted sum, and means over examples of functions of the per-example gradients (`sdelens.problems.Problem`).
"""

import math
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sdelens.core.compilation import quick
from sdelens.core.random import Stream
from sdelens.noise._base import BatchLaw, RareGradients, centred_square
from sdelens.noise._batch_sign import POWERS, GradientShape, SignLaw, edgeworth_signs, normal_signs, sampled_root
from sdelens.noise.gaussian import normal_signed_mean
from sdelens.problems import EXAMPLE_BYTES, Problem

__all__ = ["BatchOptions", "ExampleLaw"]


_COUNTED = 64
"""Examples whose gradients are searched for zeros."""


class BatchOptions(NamedTuple):
    """Size of the mini-batches, how they are drawn, and options of their SDE; see `MinibatchNoise`."""

    batch_size: int
    replacement: bool
    covariance: str
    signs: str
    samples: int
    refresh: int
    subsample: int | None


class ExampleLaw(BatchLaw):
    """Mini-batch noise bound to a problem with examples.

    Attributes:
        problem: the problem, without the L2 term that all examples share.
        strength: strength of that term, ½ strength ‖x‖²; its gradient has no noise.
        options: the options as the user gave them.
        found: a result of `compute_cache`: the variance, a `SignLaw`, or signs of shape (samples, d, P).
    """

    needs_gradient: ClassVar[bool] = False
    problem: Problem
    strength: float
    options: BatchOptions = eqx.field(static=True)
    found: Any = None

    @property
    def examples(self) -> int:
        """Number of examples n."""
        assert self.problem.examples is not None
        return self.problem.examples

    def gradient(self, k: Array, x: Array, grad: Array, stream: Stream) -> Array:
        """The mean gradient of the mini-batch of step k."""
        if self.options.replacement:
            return self._mean_gradient(x, self._batch(stream.at(k)))
        per_epoch = self.examples // self.options.batch_size
        first = (k % per_epoch) * self.options.batch_size
        index = stream.at(k // per_epoch).permutation(first + jnp.arange(self.options.batch_size), self.examples)
        return self._mean_gradient(x, index)

    @property
    def fixed_signs(self) -> bool:  # type: ignore[override]
        return not self.signs_as_normal

    @property
    def sign_samples(self) -> int:  # type: ignore[override]
        return self.options.samples

    @property
    def signs_as_normal(self) -> bool:
        return self.options.signs == "normal"

    def draw(self, x: Array, grad: Array, stream: Stream) -> Array:
        """The mean gradient of one mini-batch."""
        return self._mean_gradient(x, self._batch(stream))

    def sample(self, x: Array, stream: Stream) -> Array:
        return self.problem.batch_gradient(x, self._batch(stream)) - self.problem.evaluate(x)[1]

    def variance(self, x: Array) -> Array:
        if self.found is not None:
            return self.found
        return self._variance(x, None)

    def mean_sign(self, grad: Array, x: Array) -> Array:
        """E sign of the mean of B examples' gradients by the chosen law; in closed form if no signs were drawn."""
        if self.options.signs == "sampled" and self.found is not None:
            return self.found.mean(axis=0)
        return self._sign_law(grad, x).mean_at(grad)

    def rare_gradients(self, x: Array) -> RareGradients | None:
        """From the gradients of up to 64 examples at x; that of a mini-batch is 0 where all of its examples' are."""
        if self.strength:
            return None
        count = min(self.examples, _COUNTED, max(1, EXAMPLE_BYTES // (4 * self.problem.dim)))
        index = np.random.default_rng(0).choice(self.examples, count, replace=False)[:, None]
        zeros, squares = (np.asarray(a) for a in _zeros_and_squares(self.problem, x, index))
        size, active = np.sqrt(squares), zeros < count
        zero = (zeros / count) ** self.options.batch_size
        rare = active & (zero > 0.5)
        if not rare.any():
            return None
        return RareGradients(
            int(rare.sum()), int(active.sum()), float(size[rare].sum() / size.sum()), zero[rare].mean()
        )

    def describe(self) -> dict[str, Any]:
        return {"name": "minibatch", **self.options._asdict()}

    @property
    def cache_steps(self) -> int:
        return self.options.refresh

    def joint_shape(self, dim: int) -> tuple[int, ...]:
        if self.options.signs != "normal":
            raise ValueError(
                f"signs: {self.options.signs!r} is a law of the sign of g itself; for the sign of g and a momentum use "
                "signs='normal', or models=['optimizer', 'empirical'], which draws real mini-batches."
            )
        return super(BatchLaw, self).joint_shape(dim)

    def signed_mean(self, grad: Array, x: Array) -> Array:
        """2σφ(∇f/σ), as for normal gradients."""
        return normal_signed_mean(grad, jnp.sqrt(jnp.maximum(self.variance(x), jnp.finfo(x.dtype).tiny)))

    def compute_cache(self, use: str, x: Array, grad: Array, stream: Stream) -> Any:
        if use == "root" and self.options.covariance == "exact":
            return None
        if use == "signs" and self.options.signs == "sampled":
            draws = jnp.arange(self.options.samples)
            return lax.map(lambda j: jnp.sign(self._mean_gradient(x, self._batch(stream.at(j)))), draws)
        if use == "signs":
            return self._found_signs(grad, x)
        index = None
        if self.options.subsample is not None and self.options.subsample < self.examples:
            index = stream.permutation(jnp.arange(self.options.subsample), self.examples)
        return self._variance(x, index)

    def with_cache(self, found: Any) -> "ExampleLaw":
        return eqx.tree_at(lambda noise: noise.found, self, found, is_leaf=lambda leaf: leaf is None)

    def noise_shape(self, dim: int) -> tuple[int, ...]:
        return (dim,) if self.options.covariance == "diagonal" else (self.examples,)

    def apply_root(self, x: Array, dW: Array) -> Array:
        """Σ^{1/2} dW: per coordinate if diagonal, else by a backward pass with one weight per example."""
        if self.options.covariance == "diagonal":
            return jnp.sqrt(self.variance(x)) * dW
        return self._exact_root(x, dW)

    def apply_root_and_square(self, grad: Array, x: Array, dW: Array, dt: Any) -> tuple[Array, Array]:
        r"""Noise of g and of g², with the third and fourth moments of the examples' gradients.

        With z the deviation of one example's gradient from the mean, g − ∇f = Z is a mean of B draws of z, and

            g² − E g² = 2∇f∘Z + (1/B)(mean of B draws of z² − E z²) + Σ_{a≠b} z_a z_b/B².

        The first two terms are linear in the same weights dWᵢ of the examples, and the last, which is uncorrelated
        with them, has the variance 2(1 − 1/B)(diag Σ)² and becomes √(1 − 1/B) (Z∘Z/dt − diag Σ) √dt. With
        independent coordinates (``covariance="diagonal"``) the noise is treated as normal.
        """
        if self.options.covariance == "diagonal":
            root = self.apply_root(x, dW)
            return root, 2 * grad * root + centred_square(root, self.variance(x), dt)
        batch, share = self.options.batch_size, math.sqrt(self._share / self.examples)
        weights = share * (dW - dW.mean(axis=0))
        mean = grad - self.strength * x
        root, square = self.problem.gradient_means(x, (lambda g: g, jnp.square), weights=weights)
        pairs = math.sqrt(1 - 1 / batch) * centred_square(root, self.variance(x), dt)
        return root, 2 * grad * root + (square - 2 * mean * root) / batch + pairs

    def sign_shape(self, dim: int) -> tuple[int, ...]:
        if self.options.signs == "sampled":
            samples, refresh = self.options.samples, self.options.refresh
            if refresh > samples:
                raise ValueError(
                    f"refresh: got {refresh} with {samples} samples of signs: their mean would be reused for so many "
                    "steps that its error exceeds the noise of a step. Give at least as many samples as refresh."
                )
            return (dim,) if self.options.covariance == "diagonal" else (samples,)
        return (dim,) if self.options.covariance == "diagonal" else (self.examples + dim,)

    def apply_sign_root(self, grad: Array, x: Array, dW: Array) -> Array:
        r"""Cov(sign g)^{1/2} dW.

        For sampled signs the covariance is that of the sample. Otherwise, with exact covariance, each sign is regressed
        on the normal noise of the gradient, Cov(sign gᵢ, gᵢ)/Σᵢᵢ (Σ^{1/2} dW₁)ᵢ, and the rest of its variance is
        independent noise: this gives the signs' correlations to first order in those of the gradient.
        """
        if self.options.signs == "sampled":
            if self.found is None:
                raise ValueError(
                    "signs: 'sampled' signs are drawn by the library's own integrators; use 'edgeworth' or 'normal' "
                    "here."
                )
            return sampled_root(self.found, self.options.refresh, dW, self.options.covariance == "diagonal")
        law = self._sign_law(grad, x)
        if self.options.covariance == "diagonal":
            return jnp.sqrt(law.spread) * dW
        common = law.slope * self._exact_root(x, dW[: self.examples])
        rest = jnp.maximum(law.spread - law.slope**2 * law.variance, 0)
        return common + jnp.sqrt(rest) * dW[self.examples :]

    def _batch(self, stream: Stream) -> Array:
        """Indices of one mini-batch per path, shape (B, P)."""
        if self.options.replacement:
            return stream.integers(self.options.batch_size, self.examples)
        return stream.permutation(jnp.arange(self.options.batch_size), self.examples)

    def _mean_gradient(self, x: Array, index: Array) -> Array:
        return self.problem.batch_gradient(x, index) + self.strength * x

    @property
    def _share(self) -> float:
        """Variance of the mean of a batch, relative to that of one example."""
        finite = (
            1.0 if self.options.replacement else (self.examples - self.options.batch_size) / max(self.examples - 1, 1)
        )
        return finite / self.options.batch_size

    def _variance(self, x: Array, index: Array | None) -> Array:
        mean, square = self.problem.gradient_means(x, (lambda g: g, jnp.square), index)
        # For m of the n examples, (1/m) Σ (g − mean)² is smaller than for all, by (1 − 1/m)/(1 − 1/n) on average.
        m, n = self.examples if index is None else index.shape[0], self.examples
        bias = (1 - 1 / m) / (1 - 1 / n) if m < n else 1.0
        return jnp.maximum(square - mean**2, 0) * (self._share / bias)

    def _sign_law(self, grad: Array, x: Array) -> SignLaw:
        if self.found is None:
            return self._found_signs(grad, x)
        return self.found if isinstance(self.found, SignLaw) else normal_signs(grad, self.found)

    def _found_signs(self, grad: Array, x: Array) -> SignLaw:
        if self.options.signs == "normal" or not self.options.replacement:
            return normal_signs(grad, self._variance(x, None))
        shift = self.strength * x
        rms = jnp.sqrt(self.problem.gradient_means(x, (jnp.square,))[0])
        rms = jnp.where(rms > 0, rms, 1)
        shape = GradientShape.of(rms, *self.problem.gradient_means(x, POWERS, None, (rms, shift)))
        return edgeworth_signs(grad, shift, shape, self.options.batch_size)

    def _exact_root(self, x: Array, dW: Array) -> Array:
        weights = (dW - dW.mean(axis=0)) * math.sqrt(self._share / self.examples)
        return self.problem.weighted_gradient(x, weights)


@quick
def _zeros_and_squares(problem: Problem, x: Array, index: Array) -> tuple[Array, Array]:
    """Of the gradients of single examples at x: how many are exactly 0 in each coordinate, and the sum of squares."""
    gradients = jax.vmap(lambda one: problem.batch_gradient(x, one))(index)
    return (gradients == 0).sum(axis=0), jnp.square(gradients).sum(axis=0)
