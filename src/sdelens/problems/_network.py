"""Neural networks on real data as problems, by name."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sdelens import _check
from sdelens._names import NETWORKS
from sdelens.data import load_dataset
from sdelens.problems._base import Problem

__all__ = ["MLP", "network"]


class MLP(eqx.Module):
    """Multi-layer perceptron with ReLU between layers: features of shape (p, n) to logits of shape (k, n).

    Examples lie on the last axis: the matrix products of small layers are then long and thin in the direction that
    a CPU vectorises.
    """

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]

    @classmethod
    def initialise(cls, sizes: tuple[int, ...], seed: int) -> "MLP":
        """He et al. 2015: weights normal with variance 2 / fan-in, biases 0; a function of `seed` alone."""
        rng = np.random.default_rng(seed)
        shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
        weights = tuple(jnp.asarray(rng.normal(0, np.sqrt(2 / s[1]), s), jnp.float32) for s in shapes)
        return cls(weights, tuple(jnp.zeros(s[0], jnp.float32) for s in shapes))

    def __call__(self, features: Array) -> Array:
        """Logits of shape (k, n)."""
        hidden = features
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = weight @ hidden + bias[:, None]
            if i + 1 < len(self.weights):
                hidden = jax.nn.relu(hidden)
        return hidden


def binary_cross_entropy(model: MLP, data: tuple[Array, Array]) -> Array:
    """Per-example binary cross-entropy, shape (n,); data are features (n, p) and labels (n,) in {0, 1}."""
    features, labels = data
    logits = model(features.T)[0]
    return jax.nn.softplus(logits) - labels * logits


def network(name: str, dataset: str = "breast-cancer", *, width: int = 20, depth: int = 10, seed: int = 0) -> Problem:
    """A neural network's training loss on a data set, as a `Problem`.

    ``"mlp"`` is the paper's: `depth` hidden layers of `width` ReLU units, mean binary cross-entropy, features
    standardised to mean 0 and variance 1, He initialisation.

    Args:
        name: the architecture: ``"mlp"``.
        dataset: ``"breast-cancer"`` (569 examples of 30 features, bundled with scikit-learn).
        width: units of a hidden layer.
        depth: number of hidden layers.
        seed: seed of the initialisation.

    Returns:
        A `Problem` with `data`; 10 layers of 20 on Breast Cancer have d = 4421 parameters.

    Raises:
        ValueError: if the name or data set is unknown, or a size is less than 1.
    """
    _check.choice("name", name, NETWORKS)
    width, depth = _check.at_least("width", width, 1), _check.at_least("depth", depth, 1)
    seed = _check.at_least("seed", seed, 0)
    features, labels = load_dataset(dataset)
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    model = MLP.initialise((features.shape[1], *[width] * depth, 1), seed)
    description: dict[str, Any] = dict(name=name, dataset=dataset, width=width, depth=depth, seed=seed)
    data = (features.astype(np.float32), labels.astype(np.float32))
    return Problem(binary_cross_entropy, model, data, infimum=0.0, _description=description)
