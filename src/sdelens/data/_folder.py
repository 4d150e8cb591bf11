"""Where the files of a data set lie in the folder that a user names, which may be that of torchvision."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

__all__ = ["existing_folder", "file_folder", "listing"]

_WITHIN: Final = {
    "mnist": ("raw", "MNIST/raw", "MNIST"),
    "fashion-mnist": ("raw", "FashionMNIST/raw", "FashionMNIST"),
    "cifar-10": ("cifar-10-batches-bin", "cifar-10-batches-py"),
}
"""Folders that may hold the files of a data set, relative to the given one, in the order in which they are tried."""
_OWNERS: Final = {"MNIST": "mnist", "FashionMNIST": "fashion-mnist", "KMNIST": "", "EMNIST": "", "QMNIST": ""}
"""Data sets by torchvision's names of their folders; their files have equal names. Some are not of this library."""
_MOST_LISTED = 6


def existing_folder(name: str, folder: Path) -> Path:
    """The folder, if it is one.

    Raises:
        NotADirectoryError: if it does not exist, or is a file.
    """
    if folder.is_dir():
        return folder
    what = "is a file" if folder.exists() else "does not exist"
    raise NotADirectoryError(f"data_dir: {str(folder)!r} {what}; give the folder that contains the files of {name}.")


def file_folder(name: str, folder: Path, files: Sequence[str]) -> Path | None:
    """The first of the folder itself and those in it that has one of the files; None if none has.

    Raises:
        ValueError: if the folder is, by its name, that of another data set whose files have the same names.
    """
    for place in (folder, *(folder / within for within in _WITHIN[name])):
        if any((place / file).is_file() for file in files):
            named = place.resolve()
            if _OWNERS.get((named.parent if named.name == "raw" else named).name, name) != name:
                raise ValueError(
                    f"data_dir: {str(place)!r} is torchvision's folder of another data set than {name}; give that of "
                    f"{name}, or rename the folder if its files are those of {name}."
                )
            return place
    return None


def listing(name: str, folder: Path) -> str:
    """What the folder contains and where else was looked, for a message that says what is missing."""
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    held = f"it contains {', '.join(names[:_MOST_LISTED])}{more}" if names else "it is empty"
    return f"{held}. Folders in it that were tried: {', '.join(_WITHIN[name])}"
