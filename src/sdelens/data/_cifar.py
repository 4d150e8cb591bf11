"""The binary version of CIFAR-10: records of one label and 3 × 32 × 32 bytes, channel by channel."""

from pathlib import Path

import numpy as np

from sdelens.data._dataset import Dataset

__all__ = ["channels_last", "read_cifar_folder"]

_FILES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
_RECORD = 1 + 3 * 32 * 32


def channels_last(rows: np.ndarray) -> np.ndarray:
    """Images of shape (n, 32, 32, 3) from rows of 3072 values, red, then green, then blue."""
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def read_cifar_folder(folder: Path, split: str) -> Dataset:
    """Images, shape (n, 32, 32, 3), and labels of a split, from the folder or its subfolder cifar-10-batches-bin.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the folder has only Python pickles, or a file is truncated or of another kind; the message names
            it.
    """
    inner = folder / "cifar-10-batches-bin"
    where = inner if inner.is_dir() else folder
    names = _FILES[split]
    missing = [name for name in names if not (where / name).is_file()]
    if missing:
        pickled = Path(names[0]).stem
        if any((place / pickled).is_file() for place in (folder, folder / "cifar-10-batches-py")):
            raise ValueError(
                f"data_dir: {str(folder)!r} contains CIFAR-10 as Python pickles, which are not read because they can "
                f"execute code; give the folder of the binary version, with the files {', '.join(names)}."
            )
        raise FileNotFoundError(
            f"data_dir: {str(where)!r} has no file {', '.join(missing)}; give the folder of CIFAR-10's binary version."
        )
    parts = [_read(where / name) for name in names]
    for name, part in zip(names, parts, strict=True):
        if len(part) != len(parts[0]):
            raise ValueError(
                f"data_dir: {str(where / name)!r} contains {len(part)} images, but {names[0]} contains "
                f"{len(parts[0])}; one of them is incomplete. Download it again."
            )
    records = np.concatenate(parts)
    return Dataset(channels_last(records[:, 1:]), records[:, 0].astype(np.int64))


def _read(path: Path) -> np.ndarray:
    content = np.fromfile(path, np.uint8)
    if not content.size or content.size % _RECORD:
        raise ValueError(
            f"data_dir: {str(path)!r} has {content.size} bytes, which is not a multiple of {_RECORD}; it is "
            "incomplete or not a file of CIFAR-10's binary version. Download it again."
        )
    records = content.reshape(-1, _RECORD)
    if records[:, 0].max() > 9:
        raise ValueError(
            f"data_dir: {str(path)!r} contains the label {records[:, 0].max()}, but CIFAR-10's labels are 0 to 9; "
            "give CIFAR-10's binary version."
        )
    return records
