"""Checkpoints of a run: which models are finished, and the position of the model that is running.

Carries are pytrees of arrays, stored by their leaves; summaries are named arrays, one set for every node of the tree
in which they are joined. Their contents are not inspected.
"""

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sdelens.core import check
from sdelens.core.differences import differences
from sdelens.core.files import held_folder
from sdelens.run.store import Store
from sdelens.run.summary import Nodes, Part, Parts, packed, unpacked

__all__ = [
    "Checkpoints",
    "Position",
    "digest",
    "has_checkpoint",
    "keep_checkpoints",
    "open_checkpoints",
]

_SECONDS = 30.0
_SHARE = 0.02
_SHOWN = 5


class Position(NamedTuple):
    """The position of a running ensemble.

    Attributes:
        first: index of the first path of the current chunk.
        done: number of records of that chunk so far.
        merged: summaries of the previous chunks.
        records: summaries of the records of the current chunk so far.
        carry: leaves of the states after these records, empty at the start of the chunk.
    """

    first: int
    done: int
    merged: Nodes
    records: Nodes
    carry: list[Any]


class Checkpoints:
    """The checkpoints of one run; made by `keep_checkpoints`.

    Attributes:
        finished: what has been computed of every finished model, by label.
        position: saved position of the model that is running, None at its start.
    """

    def __init__(self, store: Store, every: int | None) -> None:
        self._store, self._every = store, every
        self._identity: dict[str, Any] = {}
        self._label: str | None = None
        self._before, self._begin = 0.0, 0.0
        self._saved, self._interval = time.monotonic(), _SECONDS
        self.finished: Parts = {}
        self.position: Position | None = None

    def start(self, identity: dict[str, Any]) -> None:
        """Load the saved checkpoint, if there is one.

        Args:
            identity: properties that identify the run, by name; JSON types only.

        Raises:
            ValueError: naming what differs, if another run was saved.
            OSError: if all files are damaged.
        """
        self._identity, self.finished, self._label, self.position = identity, {}, None, None
        found = self._store.load()
        if found is None:
            return
        arrays, state = found
        if differing := differences(state["identity"], identity):
            more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
            raise ValueError(
                f"checkpoint: {str(self._store.folder)!r} contains the checkpoint of a different run: "
                f"{'; '.join(differing[:_SHOWN])}{more}. Use the settings of that run, or give another folder."
            )
        for i, (label, seconds) in enumerate(state["finished"]):
            self.finished[label] = Part(unpacked(arrays, f"finished/{i}/"), seconds)
        if (running := state["running"]) is not None:
            self._label, self._before = running["label"], running["seconds"]
            merged, records = (unpacked(arrays, f"{part}/") for part in ("merged", "records"))
            carry = [arrays[f"carry/{i}"] for i in range(running["carry"])]
            self.position = Position(running["first"], running["done"], merged, records, carry)

    def begin(self, label: str) -> None:
        """Set the model that runs now."""
        if label != self._label:
            self._label, self._before, self.position = label, 0.0, None
        self._begin = time.perf_counter()

    def finish(self, label: str, nodes: Nodes) -> float:
        """Store what a finished model gave; returns its wall time in s, summed over interruptions of the run."""
        self.finished[label] = Part(nodes, self._seconds())
        self._label = self.position = None
        if self.due():
            self.save(None)
        return self.finished[label].seconds

    def cadence(self, record_every: int, records: int) -> int:
        """Number of records between two checkpoints if `every` is in steps; all records if time decides."""
        return records if self._every is None else -(-self._every // record_every)

    def due(self, reached: bool = True) -> bool:
        """Whether to save now: with `every` if that step is `reached`, else every 30 s, within 2 % of the time."""
        return reached if self._every is not None else time.monotonic() - self._saved >= self._interval

    def save(self, position: Position | None) -> None:
        """Write the state of the run: at a position within the running model, or with None between two models.

        Raises:
            OSError: if the checkpoint cannot be written.
        """
        begin = time.monotonic()
        arrays: dict[str, np.ndarray] = {}
        for i, part in enumerate(self.finished.values()):
            arrays |= packed(part.nodes, f"finished/{i}/")
        running = None
        if position is not None:
            running = {"label": self._label, "seconds": self._seconds(), "first": position.first}
            running |= {"done": position.done, "carry": len(position.carry)}
            arrays |= packed(position.merged, "merged/") | packed(position.records, "records/")
            arrays |= {f"carry/{i}": np.asarray(leaf) for i, leaf in enumerate(position.carry)}
        finished = [(label, part.seconds) for label, part in self.finished.items()]
        self._store.save(arrays, {"identity": self._identity, "finished": finished, "running": running})
        self._saved = time.monotonic()
        self._interval = max(_SECONDS, (self._saved - begin) / _SHARE)

    def _seconds(self) -> float:
        return self._before + time.perf_counter() - self._begin


def has_checkpoint(folder: str | os.PathLike[str]) -> bool:
    """Whether the folder contains checkpoints of an unfinished run."""
    return Path(folder).is_dir() and bool(Store(Path(folder)).files())


@contextmanager
def keep_checkpoints(
    folder: str | os.PathLike[str], every: int | None = None, resume: bool = False
) -> Iterator[Checkpoints]:
    """Checkpoints of one run for ``checkpoint=``, removed if the block ends without error: save the result inside it.

    Args:
        folder: folder for the checkpoints; created if necessary, and removed at the end if it contains nothing else, as
            are the folders above it that were created for it if the block fails.
        every: optimizer steps of each chunk of paths between two checkpoints; by default one every 30 s, or less often
            if writing would take more than 2 % of the time.
        resume: continue the run whose checkpoint is in the folder; if there is none, start from the beginning.

    Raises:
        ValueError, TypeError: if `every` is not a whole number of at least 1.
        FileExistsError: if there is a checkpoint of an unfinished run, and `resume` is False.
        BlockingIOError: if another run uses the folder.
        OSError: if the folder cannot be written, or is a file.
    """
    every = None if every is None else check.at_least("checkpoint_every", every, 1)
    try:
        with held_folder("checkpoint", folder) as held:
            store = Store(held)
            if not resume and store.files():
                raise FileExistsError(
                    f"checkpoint: {str(held)!r} contains the checkpoint of an unfinished run; continue that run "
                    "with resume=True (--resume), or delete the folder to start from the beginning."
                )
            yield Checkpoints(store, every)
            store.remove()
    finally:
        with suppress(OSError):  # raised if the folder is not empty, or was not created
            Path(folder).rmdir()


@contextmanager
def open_checkpoints(checkpoint: Any, every: int | None, resume: bool) -> Iterator[Checkpoints | None]:
    """Open the checkpoints that ``checkpoint=``, ``checkpoint_every=`` and ``resume=`` specify together.

    Raises:
        ValueError, TypeError: if the options do not fit together.
        OSError: as `keep_checkpoints`.
    """
    if not isinstance(resume, bool):
        raise TypeError(f"resume: got {resume!r}; give True or False.")
    if isinstance(checkpoint, str | os.PathLike):
        with keep_checkpoints(checkpoint, every, resume) as kept:
            yield kept
        return
    if checkpoint is not None and not isinstance(checkpoint, Checkpoints):
        raise TypeError(f"checkpoint: got {type(checkpoint).__name__}; give the path of a folder.")
    if every is not None or resume:
        name, value = ("resume", resume) if resume else ("checkpoint_every", every)
        remedy = (
            "give a folder as checkpoint=." if checkpoint is None else "pass this argument to keep_checkpoints instead."
        )
        raise ValueError(f"{name}: got {value}, but this call opens no folder for checkpoints; {remedy}")
    yield checkpoint


def digest(tree: Any, text: str = "") -> str:
    """SHA-256 of a text and of the leaves of a pytree, with their shapes and types."""
    total = hashlib.sha256(text.encode())
    for leaf in jax.tree.leaves(tree):
        array = np.asarray(leaf)
        total.update(f"{array.dtype}{array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()
