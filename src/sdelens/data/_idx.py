"""The IDX format of MNIST: big-endian header, then bytes; plain or compressed by gzip."""

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sdelens.data._dataset import Dataset
from sdelens.data._folder import file_folder, listing

__all__ = ["read_idx", "read_idx_folder"]

_UNSIGNED_BYTE = 0x08
_NAMES = {"train": ("train-images", "train-labels"), "test": ("t10k-images", "t10k-labels")}


def read_idx(path: Path, axes: int) -> np.ndarray:
    """The unsigned bytes of an IDX file with that many axes.

    The header is two zero bytes, the type (8: unsigned byte), the number of axes, and each size as 32-bit big-endian.

    Raises:
        ValueError: if it is not IDX, holds another type, or is too short or too long; the message names the file.
    """
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not compressed:
                return _parse(raw, path, axes)
            with gzip.open(raw) as handle:
                return _parse(handle, path, axes)  # type: ignore[arg-type]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"data_dir: {str(path)!r} is incomplete or damaged ({error}); download it again.") from error


def _parse(handle: BinaryIO, path: Path, axes: int) -> np.ndarray:
    magic = handle.read(4)
    if magic != bytes([0, 0, _UNSIGNED_BYTE, axes]):
        raise ValueError(
            f"data_dir: {str(path)!r} begins with {magic.hex() or 'nothing'}, not {_UNSIGNED_BYTE << 8 | axes:08x}; "
            f"give an IDX file of unsigned bytes with {axes} axes."
        )
    header = handle.read(4 * axes)
    if len(header) < 4 * axes:
        raise ValueError(f"data_dir: {str(path)!r} ends within its header; download it again.")
    shape = tuple(int(size) for size in np.frombuffer(header, ">u4"))
    count = math.prod(shape)
    content = handle.read(count + 1)
    if len(content) != count:
        held = f"{len(content)} bytes" if len(content) < count else "more bytes of data"
        raise ValueError(
            f"data_dir: {str(path)!r} contains {held}, but its header says {count} (shape {shape}). Download it again."
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def read_idx_folder(name: str, folder: Path, split: str, shape: tuple[int, ...]) -> Dataset:
    """Images, shape (n, *shape), and labels from the two IDX files of a split in a folder, or in torchvision's in it.

    Raises:
        ValueError: if images and labels differ in number, the size is not that of `shape`, or a label is above 9; the
            message names the file.
        FileNotFoundError: if a file is missing; the message lists the expected names.
    """
    wanted = [_names(stem, axes) for stem, axes in zip(_NAMES[split], (3, 1), strict=True)]
    where = file_folder(name, folder, wanted[0])
    if where is None:
        raise FileNotFoundError(
            f"data_dir: {str(folder)!r} has no file {' or '.join(wanted[0])}; {listing(name, folder)}. Give the folder "
            f"that contains the files of {name}."
        )
    images_path, labels_path = (_existing(where, files) for files in wanted)
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images) != len(labels) or not len(images):
        raise ValueError(
            f"data_dir: {str(images_path)!r} contains {len(images)} images, but {str(labels_path)!r} contains "
            f"{len(labels)} labels; give two files that belong together."
        )
    if images.shape[1:] != shape[:2]:
        raise ValueError(
            f"data_dir: {str(images_path)!r} contains images of {images.shape[1:]} pixels, not of {shape[:2]}; give "
            "the files of this data set."
        )
    if labels.max() > 9:
        raise ValueError(
            f"data_dir: {str(labels_path)!r} contains the label {labels.max()}, but labels are 0 to 9; give the "
            "files of this data set."
        )
    return Dataset(images[..., None], labels.astype(np.int64))


def _names(stem: str, axes: int) -> list[str]:
    """Names that the file may have: plain or compressed, with a hyphen or a dot before the format."""
    return [f"{stem}{mark}idx{axes}-ubyte{ending}" for mark in "-." for ending in ("", ".gz")]


def _existing(folder: Path, names: list[str]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"data_dir: {str(folder)!r} has no file {' or '.join(names)} beside the images; download it too."
    )
