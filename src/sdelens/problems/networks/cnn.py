"""The convolutional network."""

import equinox as eqx
import jax
import numpy as np
from jax import Array

from sdelens.problems.networks._layers import Convolution, Dense, max_pool

__all__ = ["CNN"]


class CNN(eqx.Module):
    """Twice 3 × 3 convolution, ReLU, 2 × 2 max-pooling; a dense layer with ReLU; a dense layer to the classes."""

    convolutions: tuple[Convolution, Convolution]
    dense: Dense
    head: Dense

    @classmethod
    def initialise(cls, shape: tuple[int, ...], classes: int, seed: int, *, channels: int, dense: int) -> "CNN":
        """Normal weights with variance 2 / fan-in (He et al. 2015), in the head 1 / fan-in; biases 0.

        Args:
            shape: height, width and channels of an image.
            classes: number of classes.
            seed: seed of the initialisation, which depends on it alone.
            channels: number of channels of each convolution.
            dense: number of units of the dense layer.
        """
        rng = np.random.default_rng(seed)
        height, width, inputs = shape
        first = Convolution.initialise(rng, inputs, channels, 2.0)
        second = Convolution.initialise(rng, channels, channels, 2.0)
        hidden = Dense.initialise(rng, (height // 4) * (width // 4) * channels, dense, 2.0)
        return cls((first, second), hidden, Dense.initialise(rng, dense, classes, 1.0))

    def logits(self, features: Array) -> Array:
        """Logits of shape (n, classes) from images of shape (n, height, width, channels)."""
        hidden = features.astype(self.head.weight.dtype)
        for convolution in self.convolutions:
            hidden = jax.nn.relu(max_pool(convolution(hidden)))  # the same as ReLU before pooling, with less work
        hidden = jax.nn.relu(self.dense(hidden.reshape(hidden.shape[0], -1)))
        return self.head(hidden)
