"""CIFAR-10 from files: the binary version, and the one for Python, whose pickles are read without executing code."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from sdelens.data._batch import read_batch
from sdelens.data._dataset import Dataset
from sdelens.data._folder import file_folder, listing

__all__ = ["channels_last", "read_cifar_folder"]

_FILES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
_PIXELS = 3 * 32 * 32


def channels_last(rows: np.ndarray) -> np.ndarray:
    """Images of shape (n, 32, 32, 3) from rows of 3072 values, red, then green, then blue."""
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def read_cifar_folder(folder: Path, split: str) -> Dataset:
    """Images, shape (n, 32, 32, 3), and labels of a split, from a folder or from CIFAR-10's own folder in it.

    The binary version has the files data_batch_1.bin and so on, the one for Python data_batch_1 and so on.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is truncated or of another kind; the message names it.
    """
    for ending, read in ((".bin", _read_binary), ("", _read_pickled)):
        where = file_folder("cifar-10", folder, [f"{_FILES[split][0]}{ending}"])
        if where is not None:
            return _read(where, [f"{name}{ending}" for name in _FILES[split]], read)
    raise FileNotFoundError(
        f"data_dir: {str(folder)!r} has no file {_FILES[split][0]}.bin or {_FILES[split][0]}; "
        f"{listing('cifar-10', folder)}. Give the folder that contains the files of CIFAR-10's binary version, or of "
        "the one for Python."
    )


def _read(where: Path, names: list[str], read: Callable[[Path], tuple[np.ndarray, np.ndarray]]) -> Dataset:
    missing = [name for name in names if not (where / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"data_dir: {str(where)!r} has no file {', '.join(missing)}, but {names[0]}; download CIFAR-10 again."
        )
    parts = [read(where / name) for name in names]
    for name, (pixels, labels) in zip(names, parts, strict=True):
        if len(pixels) != len(parts[0][0]):
            raise ValueError(
                f"data_dir: {str(where / name)!r} contains {len(pixels)} images, but {names[0]} contains "
                f"{len(parts[0][0])}; one of them is incomplete. Download it again."
            )
        if labels.min() < 0 or labels.max() > 9:
            wrong = labels[(labels < 0) | (labels > 9)][0]
            raise ValueError(
                f"data_dir: {str(where / name)!r} contains the label {wrong}, but CIFAR-10's labels are 0 to 9; give "
                "the files of CIFAR-10."
            )
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Dataset(channels_last(pixels), labels.astype(np.int64))


def _read_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Records of one label and 3 × 32 × 32 bytes, channel by channel."""
    content, record = np.fromfile(path, np.uint8), 1 + _PIXELS
    if not content.size or content.size % record:
        raise ValueError(
            f"data_dir: {str(path)!r} has {content.size} bytes, which is not a multiple of {record}; it is "
            "incomplete or not a file of CIFAR-10's binary version. Download it again."
        )
    records = content.reshape(-1, record)
    return records[:, 1:], records[:, 0]


def _read_pickled(path: Path) -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = read_batch(path)
    if pixels.ndim != 2 or pixels.shape[1] != _PIXELS or not len(pixels) or len(labels) != len(pixels):
        raise ValueError(
            f"data_dir: {str(path)!r} contains an array of shape {pixels.shape} and {len(labels)} labels, not rows of "
            f"{_PIXELS} bytes and a label for each; give the files of CIFAR-10's Python version."
        )
    return pixels, labels
