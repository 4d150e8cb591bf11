"""Images from OpenML, downloaded once and cached."""

import http.client
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from sdelens.data._cifar import channels_last
from sdelens.data._dataset import Dataset

__all__ = ["SOURCES", "Source", "load_openml"]


@dataclass(frozen=True)
class Source:
    """A data set as OpenML stores it: `train` examples, then `test` examples, one flattened image per row.

    Attributes:
        name: its name on OpenML.
        version: its version on OpenML.
        shape: height, width and channels of an image.
        train: number of examples for training.
        test: number of examples for testing.
        files: files that contain it and can be used instead, for error messages.
    """

    name: str
    version: int
    shape: tuple[int, int, int]
    train: int
    test: int
    files: str


SOURCES: Final = {
    "mnist": Source("mnist_784", 1, (28, 28, 1), 60_000, 10_000, "IDX files such as train-images-idx3-ubyte.gz"),
    "fashion-mnist": Source(
        "Fashion-MNIST",
        1,
        (28, 28, 1),
        60_000,
        10_000,
        "IDX files such as train-images-idx3-ubyte.gz, which Debian's package dataset-fashion-mnist has",
    ),
    "cifar-10": Source(
        "CIFAR_10",
        1,
        (32, 32, 3),
        50_000,
        10_000,
        "its binary version, data_batch_1.bin and so on, or the one for Python",
    ),
}


def load_openml(name: str, split: str) -> Dataset:
    """A split of a data set of `SOURCES`, from the cache or, if it is not there, from OpenML.

    The cache is kept by joblib in the folder of the environment variable SDELENS_DATA, or in ``sdelens`` in
    scikit-learn's data folder. What it cannot read is fetched again.

    Raises:
        ValueError: if OpenML's data are not as expected.
        ConnectionError: if they cannot be downloaded; the message says how to work without OpenML.
    """
    from joblib import Memory

    source = SOURCES[name]
    whole = Memory(_cache_folder(), verbose=0).cache(_fetch)(name, source)
    part = slice(source.train) if split == "train" else slice(source.train, None)
    return Dataset(whole.features[part], whole.labels[part].astype(np.int64))


def _cache_folder() -> Path:
    chosen = os.environ.get("SDELENS_DATA")
    if chosen:
        folder = Path(chosen).expanduser()
    else:
        from sklearn.datasets import get_data_home

        folder = Path(get_data_home()) / "sdelens"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _fetch(name: str, source: Source) -> Dataset:
    from sklearn.datasets import fetch_openml

    try:
        bunch = fetch_openml(source.name, version=source.version, as_frame=False, cache=False)
        rows, labels = np.asarray(bunch.data), np.asarray(bunch.target).astype(np.int64)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ConnectionError(
            f"dataset: {name} cannot be fetched from OpenML ({error}). Without a network, give the folder that has it "
            f"as data_dir: {source.files}."
        ) from error
    expected = (source.train + source.test, int(np.prod(source.shape)))
    pixels = rows.astype(np.uint8)
    if rows.shape != expected or labels.shape != expected[:1] or (pixels != rows).any() or not _are_digits(labels):
        raise ValueError(
            f"dataset: OpenML sent {name} with shape {rows.shape}, labels {labels.min()} to {labels.max()}; expected "
            f"{expected} bytes and labels 0 to 9. Give the files as data_dir: {source.files}."
        )
    images = channels_last(pixels) if source.shape[2] == 3 else pixels.reshape(-1, *source.shape)
    return Dataset(images, labels.astype(np.uint8))


def _are_digits(labels: np.ndarray) -> bool:
    return bool(labels.min() >= 0 and labels.max() <= 9)
