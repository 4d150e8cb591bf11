"""The residual network, without normalisation."""

import equinox as eqx
import jax
import numpy as np
from jax import Array

from sdelens.problems.networks._layers import Convolution, Dense, max_pool

__all__ = ["ResNet"]


class ResNet(eqx.Module):
    """Convolution, B residual convolutions, ReLU, 2 × 2 max-pooling, a dense layer with ReLU, a dense layer.

    h₀ = conv x, then hᵦ = hᵦ₋₁ + conv(ReLU hᵦ₋₁) / √B for b = 1 … B, all 3 × 3. Batch-norm would make an example's loss
    depend on the others; instead the branches are scaled by 1/√B, so that at the start the variance of h grows by
    (1 + 1/B)ᴮ < e at most, for any depth ("Stable ResNet", Hayou et al. 2021, arXiv 2010.12859).
    """

    stem: Convolution
    branches: tuple[Convolution, ...]
    dense: Dense
    head: Dense

    @classmethod
    def initialise(
        cls, shape: tuple[int, ...], classes: int, seed: int, *, channels: int, blocks: int, dense: int
    ) -> "ResNet":
        """Normal weights with variance 2 / fan-in after a ReLU, 1 / fan-in in stem and head; biases 0.

        Args:
            shape: height, width and channels of an image.
            classes: number of classes.
            seed: seed of the initialisation, which depends on it alone.
            channels: number of channels of each convolution.
            blocks: B, the number of residual convolutions.
            dense: number of units of the dense layer.
        """
        rng = np.random.default_rng(seed)
        height, width, inputs = shape
        stem = Convolution.initialise(rng, inputs, channels, 1.0)
        branches = tuple(Convolution.initialise(rng, channels, channels, 2.0) for _ in range(blocks))
        hidden = Dense.initialise(rng, (height // 2) * (width // 2) * channels, dense, 2.0)
        return cls(stem, branches, hidden, Dense.initialise(rng, dense, classes, 1.0))

    def logits(self, features: Array) -> Array:
        """Logits of shape (n, classes) from images of shape (n, height, width, channels)."""
        hidden = self.stem(features.astype(self.head.weight.dtype))
        for branch in self.branches:
            hidden = hidden + branch(jax.nn.relu(hidden)) * float(len(self.branches) ** -0.5)
        hidden = jax.nn.relu(max_pool(hidden))
        hidden = jax.nn.relu(self.dense(hidden.reshape(hidden.shape[0], -1)))
        return self.head(hidden)
