"""Operations on symmetric matrices, which may be given by their diagonals."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from sdelens.core.tree import column

__all__ = ["symmetric_root", "times"]


def times(matrix: Array, x: Array) -> Array:
    """A matrix, or its diagonal, times x of shape (d,) or (d, P)."""
    return column(matrix, x) * x if matrix.ndim == 1 else jnp.matmul(matrix, x, precision="highest")


def symmetric_root(matrix: Any) -> np.ndarray:
    """The symmetric root of a positive semi-definite matrix or a diagonal; it exists where Cholesky's does not."""
    if matrix.ndim == 1:
        return np.sqrt(np.maximum(matrix, 0))
    values, vectors = np.linalg.eigh(matrix)
    root: np.ndarray = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return root
