"""The pickled batches of CIFAR's version for Python, read without executing what they name.

A pickle can name any function and have it called. Here the three that a batch needs to describe an array are replaced
by classes that only keep their arguments, and every other name is refused.
"""

import math
import pickle
from pathlib import Path
from typing import Any, Final

import numpy as np

__all__ = ["read_batch"]

_ARRAYS: Final = ("numpy.core.multiarray", "numpy._core.multiarray")


class _Kept:
    """Stands for an array or a data type, and keeps what the pickle says of it."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Batch(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module in _ARRAYS and name == "_reconstruct") or (module == "numpy" and name in ("ndarray", "dtype")):
            return _Kept
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no batch of CIFAR does")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to something outside the file")


def read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The array of unsigned bytes under "data" and the numbers under "labels" of a batch.

    Raises:
        ValueError: if the file is not such a pickle, or damaged; the message names it.
    """
    try:
        with path.open("rb") as file:
            batch = _Batch(file, encoding="bytes").load()
        return _bytes(batch[b"data"]), np.array(batch[b"labels"], np.int64).reshape(-1)
    except Exception as error:  # damaged bytes can be any instruction of a pickle
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise ValueError(
            f"data_dir: {str(path)!r} is not a batch of CIFAR-10's version for Python, or damaged ({reason}); download "
            "it again."
        ) from error


def _bytes(array: Any) -> np.ndarray:
    """The array of unsigned bytes that was kept: its state is version, shape, data type, order and content."""
    _, shape, dtype, columns_first, content = array.state
    if dtype.arguments[0] not in (b"u1", "u1") or not isinstance(content, bytes) or len(content) != math.prod(shape):
        raise ValueError("its array does not consist of unsigned bytes, or is incomplete")
    return np.frombuffer(content, np.uint8).reshape(shape, order="F" if columns_first else "C")
