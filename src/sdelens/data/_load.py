"""Data sets by name."""

import os
from pathlib import Path

import numpy as np

from sdelens.core import check
from sdelens.core.names import DATASETS
from sdelens.data._cifar import read_cifar_folder
from sdelens.data._dataset import Dataset
from sdelens.data._folder import existing_folder
from sdelens.data._idx import read_idx_folder
from sdelens.data._openml import SOURCES, load_openml
from sdelens.data._text import DEFAULT_TEXT, load_text

__all__ = ["is_text", "load_dataset"]


def is_text(name: str | os.PathLike[str]) -> bool:
    """Whether a data set's name refers to a text: ``python-docs``, a name that ends in .txt, or an existing file."""
    name = os.fspath(name)
    return name == DEFAULT_TEXT or (name not in DATASETS and (name.endswith(".txt") or Path(name).is_file()))


def load_dataset(
    name: str | os.PathLike[str],
    *,
    subset: int | None = None,
    seed: int = 0,
    data_dir: str | os.PathLike[str] | None = None,
    split: str = "train",
    context: int | None = None,
) -> Dataset:
    """Features and labels of a data set by name, all of it or a class-balanced subset.

    ====================  ====================================================  =======================================
    name                  features                                              from
    ====================  ====================================================  =======================================
    ``breast-cancer``     (569, 30), float64; labels 0 malignant, 1 benign      scikit-learn, bundled
    ``digits``            (1797, 8, 8, 1), bytes 0 to 16                        scikit-learn, bundled
    ``mnist``             (60000, 28, 28, 1), bytes; 10000 to test              `data_dir` (IDX files), else OpenML
    ``fashion-mnist``     (60000, 28, 28, 1), bytes; 10000 to test              `data_dir` (IDX files), else OpenML
    ``cifar-10``          (50000, 32, 32, 3), bytes; 10000 to test              `data_dir` (binary version), else OpenML
    ``python-docs``       (n, context) characters, labels the next ones         Python's own reference texts
    a file, or ``*.txt``  (n, context) characters, labels the next ones         that file, in UTF-8
    ====================  ====================================================  =======================================

    Downloads from OpenML are cached in the folder of the environment variable SDELENS_DATA, or in scikit-learn's data
    folder.

    Args:
        name: name of the data set, or the path of a text.
        subset: number of examples, None for all: the classes are represented as equally as possible, and the windows of
            a text are drawn at random.
        seed: seed of the subset, which determines the choice.
        data_dir: folder with the files of mnist, fashion-mnist (IDX, plain or compressed) or cifar-10 (the binary
            version, or the one for Python, read without executing its pickles); or the ``root`` that torchvision was
            given.
        split: ``"train"`` or ``"test"``; only mnist, fashion-mnist and cifar-10 have a test set.
        context: number of characters in a window of a text (default 32).

    Raises:
        ValueError: if a name is unknown, an option does not belong to the data set, `subset` does not fit, a file is
            damaged (the message names it), or `data_dir` is torchvision's folder of another data set.
        FileNotFoundError, NotADirectoryError: if a file or `data_dir` does not exist.
        ConnectionError: if OpenML cannot be reached; the message says how to work without it.
    """
    name = os.fspath(name)
    check.choice("split", split, ("train", "test"))
    text = is_text(name)
    if not text:
        check.choice("dataset", name, DATASETS)
    if name not in SOURCES:
        if split == "test":
            raise ValueError(
                f"split: got 'test', but {name} has no test set; use split='train', or one of {', '.join(SOURCES)}."
            )
        if data_dir is not None:
            raise ValueError(
                f"data_dir: {name} is not read from a folder; leave data_dir out (it applies to {', '.join(SOURCES)})."
            )
    if text:
        return load_text(name).windows(32 if context is None else context, subset=subset, seed=seed)
    if context is not None:
        raise ValueError(f"context: {name} is not a text, so it has no windows; leave context out.")
    if name not in SOURCES:
        whole = _bundled(name)
    elif data_dir is None:
        whole = load_openml(name, split)
    else:
        whole = _from_folder(name, Path(data_dir).expanduser(), split)
    return whole if subset is None else whole.balanced(subset, seed)


def _bundled(name: str) -> Dataset:
    from sklearn.datasets import load_breast_cancer, load_digits

    if name == "breast-cancer":
        bundle = load_breast_cancer()
        return Dataset(np.asarray(bundle.data, np.float64), np.asarray(bundle.target, np.int64))
    bundle = load_digits()
    return Dataset(np.asarray(bundle.images, np.uint8)[..., None], np.asarray(bundle.target, np.int64))


def _from_folder(name: str, folder: Path, split: str) -> Dataset:
    existing_folder(name, folder)
    if name == "cifar-10":
        return read_cifar_folder(folder, split)
    return read_idx_folder(name, folder, split, SOURCES[name].shape)
