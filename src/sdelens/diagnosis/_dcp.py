"""PyTorch's distributed checkpoints (`.metadata` and `.distcp` files), read in one process, tensor by tensor.

The metadata and everything that is no tensor are pickles. Only classes of the format itself are admitted in them, so
that no code of a checkpoint is executed.
"""

import contextlib
import io
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["Stored", "read_folder"]

_FORMAT = "torch.distributed.checkpoint"
_SCALARS = 4096
"""Tensors up to this size, such as numbers of steps, are read at once."""


class Stored:
    """A tensor in a distributed checkpoint that is read when it is needed.

    Attributes:
        shape: its shape.
    """

    def __init__(self, reader: Any, name: str, metadata: Any) -> None:
        self._reader, self._name, self._metadata = reader, name, metadata
        self.shape = tuple(metadata.size)

    def load(self) -> Any:
        """The tensor."""
        return _load(self._reader, {self._name: self._metadata})[self._name]


def read_folder(folder: Path) -> Any:
    """What was saved, as nested dictionaries and lists; large tensors as `Stored`.

    Raises:
        ValueError: if the metadata is damaged or contains anything but a description of tensors.
    """
    reader = _reader(folder)
    metadata = reader.read_metadata()
    found: dict[str, Any] = {}
    small = {}
    for name, entry in metadata.state_dict_metadata.items():
        if hasattr(entry, "size") and entry.size.numel() > _SCALARS:
            found[name] = Stored(reader, name, entry)
        else:
            small[name] = entry
    found |= _load(reader, small)
    paths = metadata.planner_data if isinstance(metadata.planner_data, Mapping) else {}
    return _nested({name: (paths.get(name) or (name,), value) for name, value in found.items()})


def _nested(found: Mapping[str, tuple[tuple[Any, ...], Any]]) -> Any:
    """Nested dictionaries from values with their paths; what was a list is a dictionary with its numbers as keys."""
    tree: dict[Any, Any] = {}
    for path, value in found.values():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value
    return tree


def _reader(folder: Path) -> Any:
    """PyTorch's reader, with metadata unpickled safely."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint import metadata as format_

    found: list[format_.Metadata] = []

    class Reader(FileSystemReader):
        def read_metadata(self, *args: Any, **options: Any) -> format_.Metadata:
            if not found:
                found.append(_metadata(folder / ".metadata"))
            if hasattr(self, "load_id"):  # of later versions
                found[0].storage_meta = found[0].storage_meta or format_.StorageMeta()
                found[0].storage_meta.load_id = self.load_id
            return found[0]

    return Reader(folder)


def _metadata(path: Path) -> Any:
    """The description of the tensors of a checkpoint, which is a pickle."""
    from torch.distributed.checkpoint.metadata import Metadata

    try:
        metadata = _Restricted(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # unpickling raises errors of any kind on broken files
        raise ValueError(
            f"state: {str(path)!r} is damaged, or contains more than the description of tensors, and was not read "
            f"({type(error).__name__}: {error}). Save the checkpoint again."
        ) from error
    if not isinstance(metadata, Metadata):
        raise ValueError(f"state: {str(path)!r} does not describe a checkpoint; save the checkpoint again.")
    return metadata


class _Restricted(pickle.Unpickler):
    """Unpickles the classes that describe tensors, and no others."""

    def find_class(self, module: str, name: str) -> Any:
        import torch

        if module == "torch" and (name == "Size" or isinstance(getattr(torch, name, None), torch.dtype)):
            return getattr(torch, name)
        if (module, name) in (
            (f"{_FORMAT}.filesystem", "_StorageInfo"),
            ("torch.serialization", "_get_layout"),
            ("pathlib", "PosixPath"),
            ("pathlib", "PurePosixPath"),
            ("collections", "OrderedDict"),
        ):
            return super().find_class(module, name)
        found = super().find_class(module, name) if module == f"{_FORMAT}.metadata" and "." not in name else None
        if isinstance(found, type) and found.__module__ == module:
            return found
        raise pickle.UnpicklingError(f"{module}.{name} is not part of the format")


def _load(reader: Any, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors and plain objects by their names; objects that are not plain are left out."""
    import torch
    from torch.distributed.checkpoint import CheckpointException, DefaultLoadPlanner, load

    held: dict[str, Any] = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype) if hasattr(entry, "size") else None
        for name, entry in wanted.items()
    }
    plain: dict[str, Any] = {}

    class Planner(DefaultLoadPlanner):
        def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
            with contextlib.suppress(pickle.UnpicklingError):
                plain[read_item.dest_index.fqn] = torch.load(value, map_location="cpu", weights_only=True)

    if held:
        planner = Planner(flatten_state_dict=False, flatten_sharded_tensors=False)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that there is one process, which is meant
                load(held, storage_reader=reader, planner=planner)
        except (Exception, CheckpointException) as error:  # of any kind on damaged files
            raise ValueError(
                f"state: {str(reader.path)!r} cannot be read as a distributed checkpoint: one of its files is "
                "missing, damaged or incomplete; copy it again, or give an earlier one."
            ) from error
    return {name: value for name, value in held.items() if value is not None} | plain
