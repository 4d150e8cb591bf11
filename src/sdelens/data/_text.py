"""Texts encoded as integers, cut into windows for a language model."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdelens.core import check
from sdelens.data._dataset import Dataset

__all__ = ["DEFAULT_TEXT", "Text", "load_text"]

DEFAULT_TEXT = "python-docs"
_UNKNOWN = "\ufffd"
_MOST = 256


@dataclass(frozen=True)
class Text:
    """A text, encoded as the indices of its characters in a vocabulary.

    Attributes:
        codes: integers below ``len(vocabulary)``, one per character, shape (length,).
        vocabulary: the characters in the order of their code points. If more than 256 occur: the 255 most frequent
            (among equally frequent ones the lower code points), then U+FFFD, which replaces all others.
    """

    codes: np.ndarray
    vocabulary: tuple[str, ...]

    def windows(self, context: int, *, subset: int | None = None, seed: int = 0) -> Dataset:
        """Windows of `context` characters, shape (n, context), each with the next characters as its labels.

        They begin at 0, context, 2 context, …, so that no character is predicted twice.

        Args:
            context: number of characters in a window.
            subset: number of windows, drawn at random without replacement and kept in order; None takes all.
            seed: seed of that draw.

        Raises:
            ValueError: if the text is too short, or `subset` is larger than the number of windows.
        """
        context = check.at_least("context", context, 1)
        count = (len(self.codes) - 1) // context
        if count < 1:
            raise ValueError(
                f"context: got {context}, but the text has only {len(self.codes)} characters; give "
                f"{len(self.codes) - 1} or less."
            )
        starts = np.arange(count) * context
        if subset is not None:
            subset, seed = check.at_least("subset", subset, 1), check.at_least("seed", seed, 0)
            if subset > count:
                raise ValueError(
                    f"subset: got {subset}, but there are only {count} windows of {context} characters; give {count} "
                    "or fewer."
                )
            starts = np.sort(np.random.default_rng(seed).choice(starts, subset, replace=False))
        places = starts[:, None] + np.arange(context)
        return Dataset(self.codes[places], self.codes[places + 1])

    def decode(self, codes: np.ndarray) -> str:
        """The characters of `codes`, of any shape, as one string."""
        return "".join(self.vocabulary[code] for code in np.asarray(codes).ravel())


def load_text(path: str | os.PathLike[str] = DEFAULT_TEXT) -> Text:
    """The text of a UTF-8 file, or by default ``"python-docs"``, the reference texts that come with Python.

    They are those of ``pydoc_data.topics``, joined by newlines in the order of their names: 465,048 characters of 103
    kinds in Python 3.11.7, and different in other versions.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not UTF-8 (the message gives the position), or has fewer than two characters.
    """
    if path == DEFAULT_TEXT:
        from pydoc_data.topics import topics

        return _encode("\n".join(topics[name] for name in sorted(topics)))
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"dataset: the file {str(file)!r} does not exist; give a UTF-8 text file.")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"dataset: {str(file)!r} is not encoded in UTF-8 (byte {error.start}: {error.reason}); convert it to "
            "UTF-8 first."
        ) from error
    if len(text) < 2:
        raise ValueError(f"dataset: {str(file)!r} has {len(text)} characters; give a text of two or more characters.")
    return _encode(text)


def _encode(text: str) -> Text:
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    found, codes, counts = np.unique(points, return_inverse=True, return_counts=True)
    vocabulary = [chr(point) for point in found]
    if len(found) > _MOST:
        kept = np.sort(np.argsort(-counts, kind="stable")[: _MOST - 1])
        table = np.full(len(found), _MOST - 1)
        table[kept] = np.arange(_MOST - 1)
        codes, vocabulary = table[codes], [vocabulary[i] for i in kept] + [_UNKNOWN]
    return Text(codes.astype(np.int32), tuple(vocabulary))
