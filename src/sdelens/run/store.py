"""Checkpoint files: arrays with a description, written atomically, safe against crashes, with detection of damage.

A file is written under a temporary name, flushed to the disk and renamed; its name ends in the SHA-256 of its bytes.
The newest two files in a folder are kept, so if one is damaged, only the time since the previous one is lost.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Store", "decoded", "encoded", "head_of"]

_NAME = re.compile(r"checkpoint-(\d{8})-([0-9a-f]{64})\.safetensors")
_TEMPORARY = ".checkpoint.tmp"
_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


class Store:
    """The checkpoint files of one folder, which no other process writes to.

    Args:
        folder: an existing folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sound: Path | None = None

    def files(self) -> list[Path]:
        """The files of complete checkpoints, newest first."""
        return sorted((p for p in self.folder.iterdir() if _NAME.fullmatch(p.name)), reverse=True)

    def load(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Arrays and description of the newest undamaged checkpoint; None if there is no file.

        Raises:
            OSError: if there are files and all are damaged.

        Warns:
            RuntimeWarning: naming a damaged file, if an older file is undamaged.
        """
        self._temporary.unlink(missing_ok=True)
        damaged: list[Path] = []
        for path in self.files():
            data = _sound_bytes(path)
            if data is None:
                damaged.append(path)
                continue
            self._sound = path
            for bad in damaged:
                warnings.warn(
                    f"checkpoint: {str(bad)!r} is damaged: its bytes do not match the SHA-256 in its name. The run "
                    f"continues from the previous checkpoint, {path.name!r}.",
                    RuntimeWarning,
                    stacklevel=5,
                )
            return decoded(data)
        if damaged:
            names = " and ".join(repr(p.name) for p in damaged)
            raise OSError(
                f"checkpoint: no checkpoint in {str(self.folder)!r} can be read, because {names} are damaged; delete "
                "the folder and start from the beginning."
            )
        return None

    def save(self, arrays: Mapping[str, np.ndarray], description: Mapping[str, Any]) -> None:
        """Write a checkpoint; the previous one is kept, during the writing and afterwards.

        Raises:
            OSError: if the checkpoint cannot be written; the previous checkpoint is then intact.
        """
        data = encoded(arrays, description)
        present = self.files()
        number = 1 + max((int(p.name.split("-")[1]) for p in present), default=0)
        target = self.folder / f"checkpoint-{number:08}-{hashlib.sha256(data).hexdigest()}.safetensors"
        try:
            with self._temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            for path in present:
                if path != self._sound:
                    path.unlink()
            self._temporary.replace(target)
            self._sync()
        except OSError as error:
            with contextlib.suppress(OSError):
                self._temporary.unlink()
            raise self._unwritten(error) from error
        self._sound = target

    def remove(self) -> None:
        """Remove all checkpoint files, the newest one last."""
        self._temporary.unlink(missing_ok=True)
        for path in reversed(self.files()):
            path.unlink()

    @property
    def _temporary(self) -> Path:
        return self.folder / _TEMPORARY

    def _sync(self) -> None:
        """Flush the folder's entries to the disk, if the operating system supports it."""
        if hasattr(os, "O_DIRECTORY"):
            handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def _unwritten(self, error: OSError) -> OSError:
        full = error.errno in _FULL
        what = "there is not enough disk space for a checkpoint in" if full else "a checkpoint cannot be written to"
        left = "there is no previous checkpoint" if self._sound is None else "the previous checkpoint is intact"
        remedy = "Free some disk space" if full else "Fix the error"
        told = OSError(
            f"checkpoint: {what} {str(self.folder)!r} ({error.strerror}); {left}. {remedy}, then rerun with "
            "resume=True (--resume)."
        )
        told.errno = error.errno
        return told


def _sound_bytes(path: Path) -> bytes | None:
    """The bytes of a file, or None if they are damaged or cannot be read."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    match = _NAME.fullmatch(path.name)
    return data if match and hashlib.sha256(data).hexdigest() == match[2] else None


def encoded(arrays: Mapping[str, np.ndarray], description: Mapping[str, Any]) -> bytes:
    """Bytes of a safetensors file; data types that are not built into NumPy are stored as integers of equal width."""
    from safetensors.numpy import save

    plain, foreign = {}, {}
    for name, given in arrays.items():
        array = np.asarray(given, order="C")
        if array.dtype.kind not in "biuf":
            foreign[name] = array.dtype.name
            array = array.view(f"u{array.dtype.itemsize}")
        plain[name] = array
    return save(plain, {"description": json.dumps(description), "dtypes": json.dumps(foreign)})


def head_of(path: Path) -> dict[str, Any]:
    """The description in a file of `encoded` bytes, without reading its arrays.

    Raises:
        ValueError, KeyError: if the file is of another kind.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError("the file is cut off, or of another kind")
        return json.loads(json.loads(file.read(size))["__metadata__"]["description"])


def decoded(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the description that were passed to `encoded`."""
    from safetensors.numpy import load

    head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    arrays = load(data)
    for name, dtype in json.loads(head["dtypes"]).items():
        arrays[name] = arrays[name].view(dtype)
    return arrays, json.loads(head["description"])
