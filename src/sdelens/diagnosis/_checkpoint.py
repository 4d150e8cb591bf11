"""PyTorch checkpoints of an optimizer, read without executing their contents and only partly in memory at a time."""

import os
import pickle
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sdelens.diagnosis._sources import Tensor, find_state_dicts, from_state_dict

__all__ = ["ENDINGS", "from_files", "is_path"]

ENDINGS = (".pt", ".pth", ".bin")
"""Suffixes of the files that are read from a folder."""
_MAPPED = 2**28
"""Bytes of moments read before a file is mapped again, which releases the memory of what was read."""


def is_path(state: Any) -> bool:
    """Whether `state` is a path or a list of paths."""
    if isinstance(state, list | tuple) and state and not hasattr(state, "_fields"):
        return all(isinstance(part, str | os.PathLike) for part in state)
    return isinstance(state, str | os.PathLike)


def from_files(paths: Any, key: str | None = None) -> Iterator[Tensor]:
    """The tensors of an optimizer's state in a file, a folder of files, or a list of files that each hold a part.

    A parameter that occurs in several files is split into parts (by an optimizer sharded over processes); the parts are
    counted together under its name.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if PyTorch is not installed.
        ValueError: if a file is empty, broken, not a PyTorch checkpoint, contains more than tensors and plain data, or
            contains no optimizer state; the message names it.
    """
    files, listed = _files(paths)
    common = _common_groups(files) if len(files) > 1 else []
    seen: dict[str, float] = {}
    found_any = False
    skipped: list[str] = []
    for path in files:
        try:
            holds = bool(find_state_dicts(_load(path)))
        except _RefusedError:
            # Folders also contain states of random numbers and arguments, which are skipped.
            if listed or len(files) == 1:
                raise
            skipped.append(path.name)
            continue
        if not listed and len(files) > 1 and not holds:
            continue
        found_any = True
        for tensor in _remapped(path, key, common, len(files) > 1):
            if tensor.v is not None and seen.setdefault(tensor.name, tensor.steps) != tensor.steps:
                raise ValueError(
                    f"state: {tensor.name} is at step {seen[tensor.name]:g} in one file and at {tensor.steps:g} in "
                    f"{str(path)!r}; give files of the same step, and pass an earlier checkpoint as earlier=."
                )
            yield tensor
            del tensor  # any remaining tensor keeps the whole file mapped
    if not found_any:
        also = f" ({', '.join(skipped)} could not be read safely)" if skipped else ""
        raise ValueError(
            f"state: no file in {str(paths)!r} contains an optimizer state{also}; save optimizer.state_dict() with "
            "torch.save."
        )


def _files(paths: Any) -> tuple[list[Path], bool]:
    """The files to read, and whether they were named one by one."""
    given = [Path(p) for p in (paths if isinstance(paths, Sequence) and not isinstance(paths, str) else [paths])]
    if len(given) != 1 or not given[0].is_dir():
        for path in given:
            if path.is_dir():
                raise ValueError(f"state: {str(path)!r} is a folder; give either a single folder or a list of files.")
            if not path.exists():
                raise FileNotFoundError(f"state: the file {str(path)!r} does not exist; give the path of a checkpoint.")
        if len({path.resolve() for path in given}) < len(given):
            raise ValueError("state: got a file twice; give each file once.")
        return given, True
    folder = given[0]
    files = sorted(path for path in folder.iterdir() if path.suffix in ENDINGS and path.is_file())
    if not files and any(path.suffix == ".distcp" for path in folder.iterdir()):
        raise ValueError(
            f"state: {str(folder)!r} is a distributed checkpoint; convert it to one file with "
            "torch.distributed.checkpoint.format_utils.dcp_to_torch_save."
        )
    if not files:
        raise ValueError(
            f"state: {str(folder)!r} contains no file that ends in {', '.join(ENDINGS)}; give a list of the files."
        )
    return files, False


def _common_groups(files: list[Path]) -> list[Any]:
    """Parameter groups of the first file that has groups with parameters; other files may contain only states."""
    for path in files:
        try:
            known = find_state_dicts(_load(path))
        except ValueError:  # the error is raised when this file is read
            continue
        for found in known.values():
            if any(group.get("params") for group in found.get("param_groups") or []):
                return list(found["param_groups"])
    return []


def _remapped(path: Path, key: str | None, common: list[Any], partial: bool) -> Iterator[Tensor]:
    """Tensors of a file that is mapped again from time to time, because read pages count as memory until then."""
    done, again = 0, True
    while again:
        again, read, held = False, 0, _load(path)
        for at, tensor in enumerate(from_state_dict(held, key, repr(str(path)), common, partial)):
            if at < done:
                continue
            done = at + 1
            yield tensor
            read += 0 if tensor.v is None else tensor.m.nbytes + tensor.v.nbytes
            del tensor
            if read > _MAPPED:
                again = True
                break
        del held


class _RefusedError(ValueError):
    """A file contains more than tensors and plain data."""


def _load(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "state: reading a checkpoint needs PyTorch; install it with pip install 'sdelens[torch]'."
        ) from error
    name = repr(str(path))
    with path.open("rb") as file:
        start = file.read(4)
    if not start:
        raise ValueError(f"state: {name} is empty; save the checkpoint again.")
    zipped = start == b"PK\x03\x04"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's warning about what is refused below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True if zipped else None)
    except pickle.UnpicklingError as error:
        if not zipped and start[:1] != b"\x80":
            raise ValueError(
                f"state: {name} is not a PyTorch checkpoint; give a file written by torch.save."
            ) from error
        raise _RefusedError(
            f"state: {name} contains more than tensors and plain data, and was not read, because reading it could "
            "execute code. Save only optimizer.state_dict() with torch.save."
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # torch.load raises errors of any kind on broken files
        raise ValueError(
            f"state: {name} cannot be read as a checkpoint: it is damaged, incomplete or not a checkpoint "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}). Copy it again, "
            "or save optimizer.state_dict() with torch.save."
        ) from error
