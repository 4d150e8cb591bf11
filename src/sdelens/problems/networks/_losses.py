"""Losses and accuracies of single examples, shape (n,); the losses are computed in float32 at least."""

from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array

from sdelens.problems.networks._layers import widened

__all__ = ["Classifier", "accuracy", "binary_accuracy", "binary_cross_entropy", "cross_entropy"]


class Classifier(Protocol):
    """A network that classifies."""

    def logits(self, features: Array) -> Array:
        """Logits of shape (n, ..., classes)."""


def binary_cross_entropy(model: Classifier, data: tuple[Array, Array]) -> Array:
    """Binary cross-entropy of one logit, −log p(label); labels of shape (n,) in {0, 1}."""
    features, labels = data
    logits = widened(model.logits(features))[:, 0]
    return jax.nn.softplus(logits) - labels * logits


def binary_accuracy(model: Classifier, data: tuple[Array, Array]) -> Array:
    """1 where the sign of the logit agrees with the label, else 0."""
    features, labels = data
    return jnp.float32((model.logits(features)[:, 0] > 0) == (labels > 0))


def cross_entropy(model: Classifier, data: tuple[Array, Array]) -> Array:
    """Softmax cross-entropy −log p(label), averaged over an example's labels if they have further axes."""
    features, labels = data
    logits = widened(model.logits(features))
    labelled = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return _per_example(jax.nn.logsumexp(logits, axis=-1) - labelled)


def accuracy(model: Classifier, data: tuple[Array, Array]) -> Array:
    """The fraction of an example's labels that have the largest logit: 0 or 1 if there is one label."""
    features, labels = data
    return _per_example(jnp.float32(jnp.argmax(model.logits(features), axis=-1) == labels))


def _per_example(values: Array) -> Array:
    return values.reshape(values.shape[0], -1).mean(axis=1)
