"""Data sets, and class-balanced subsets of them."""

from typing import NamedTuple

import numpy as np

from sdelens.core import check
from sdelens.core.text import brief

__all__ = ["Dataset"]


class Dataset(NamedTuple):
    """Examples and their labels; ``features, labels = dataset`` unpacks them.

    Attributes:
        features: n examples on the first axis: (n, p) a table, (n, height, width, channels) images, (n, context) text.
        labels: integer classes, shape (n,), or (n, context) for text.
    """

    features: np.ndarray
    labels: np.ndarray

    def __repr__(self) -> str:
        return brief(self)

    @property
    def classes(self) -> int:
        """Number of classes 0, 1, …, the largest label; a text's vocabulary may be larger."""
        return int(self.labels.max()) + 1

    def balanced(self, subset: int, seed: int) -> "Dataset":
        """`subset` examples with the classes as equally represented as possible, in their original order.

        The choice depends on `seed` alone; with the same seed a larger subset contains each smaller one.

        Raises:
            ValueError: if `subset` is less than the number of classes, or more than there are examples.
        """
        subset, seed = check.at_least("subset", subset, 1), check.at_least("seed", seed, 0)
        found, inverse = np.unique(self.labels, return_inverse=True)
        if not len(found) <= subset <= len(self.labels):
            raise ValueError(
                f"subset: got {subset}; there are {len(self.labels)} examples of {len(found)} classes, so give a "
                f"number from {len(found)} to {len(self.labels)}."
            )
        rng = np.random.default_rng(seed)
        order, turn = rng.permutation(len(inverse)), rng.permutation(len(found))
        shuffled = inverse[order]
        rank = np.empty(len(order), np.int64)
        for label in range(len(found)):
            here = shuffled == label
            rank[here] = np.arange(here.sum())
        chosen = np.sort(order[np.argsort(rank * len(found) + turn[shuffled], kind="stable")[:subset]])
        return Dataset(self.features[chosen], self.labels[chosen])
