"""Data sets by name."""

import numpy as np

from sdelens import _check
from sdelens._names import DATASETS

__all__ = ["load_dataset"]


def load_dataset(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Features of shape (n, p) and labels of shape (n,) of a named data set.

    ``"breast-cancer"`` is the Wisconsin Diagnostic Breast Cancer set (569 examples, 30 features, labels 0 malignant and
    1 benign) that scikit-learn carries, so no network is needed.

    Raises:
        ValueError: if the name is unknown; the known are listed.
    """
    _check.choice("dataset", name, DATASETS)
    from sklearn.datasets import load_breast_cancer

    bundle = load_breast_cancer()
    return np.asarray(bundle.data, np.float64), np.asarray(bundle.target, np.int64)
