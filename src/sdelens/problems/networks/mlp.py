"""The multi-layer perceptron."""

import equinox as eqx
import jax
import numpy as np
from jax import Array

__all__ = ["MLP"]


class MLP(eqx.Module):
    """Multi-layer perceptron with ReLU between layers: features of shape (p, n) to logits of shape (k, n).

    Examples lie on the last axis: the matrix products of small layers are then long and thin in the direction that
    a CPU vectorises.
    """

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]

    @classmethod
    def initialise(cls, sizes: tuple[int, ...], seed: int) -> "MLP":
        """Normal weights with variance 2 / fan-in (He et al. 2015), biases 0; they depend on `seed` alone."""
        rng = np.random.default_rng(seed)
        shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
        weights = tuple(rng.normal(0, np.sqrt(2 / s[1]), s).astype(np.float32) for s in shapes)
        return cls(*jax.device_put((weights, tuple(np.zeros(s[0], np.float32) for s in shapes))))

    def __call__(self, features: Array) -> Array:
        """Logits of shape (k, n)."""
        hidden = features.astype(self.weights[0].dtype)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = weight @ hidden + bias[:, None]
            if i + 1 < len(self.weights):
                hidden = jax.nn.relu(hidden)
        return hidden

    def logits(self, features: Array) -> Array:
        """Logits of shape (n, k) from features of shape (n, p)."""
        return self(features.T).T
