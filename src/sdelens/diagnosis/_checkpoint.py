"""Checkpoints of an optimizer on disk, read without executing their contents and only partly in memory at a time."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdelens.core import check
from sdelens.diagnosis._layouts import Place, is_megatron, locate, megatron_state, plain_state
from sdelens.diagnosis._load import RefusedError, load, orbax
from sdelens.diagnosis._names import Names, models_in, names_beside
from sdelens.diagnosis._sources import in_memory
from sdelens.diagnosis._state_dict import find_state_dicts, from_state_dict
from sdelens.diagnosis._tensor import Tensor, as_real

__all__ = ["from_files", "is_path"]

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
    counted together under its name. In a folder, files of earlier steps and copies of one checkpoint are left out.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if PyTorch, or for its checkpoints Orbax, is not installed.
        ValueError: if a file is empty, broken, not a checkpoint, contains more than tensors and plain data, or contains
            no optimizer state; the message names it.
    """
    given = [Path(p) for p in (paths if isinstance(paths, Sequence) and not isinstance(paths, str) else [paths])]
    if len(given) == 1 and given[0].is_dir():
        place = locate(given[0])
        if place.kind == "orbax":
            yield from in_memory(orbax(place.paths[0]))
        elif place.kind == "distributed":
            yield from _distributed(place.paths[0], key)
        else:
            yield from _from_folder(place, key, given[0])
        return
    for path in given:
        if path.is_dir():
            raise ValueError(f"state: {str(path)!r} is a folder; give either a single folder or a list of files.")
        if not path.exists():
            raise FileNotFoundError(f"state: the file {str(path)!r} does not exist; give the path of a checkpoint.")
    if len({path.resolve() for path in given}) < len(given):
        raise ValueError("state: got a file twice; give each file once.")
    yield from _from_files(given, key)


def _from_folder(place: Place, key: str | None, folder: Path) -> Iterator[Tensor]:
    """The tensors of the files of a folder that hold an optimizer state; other files are skipped."""
    files: list[Path] = []
    skipped: list[str] = []
    for path in place.paths:
        try:
            if len(place.paths) == 1 or find_state_dicts(_content(path)):
                files.append(path)
        except RefusedError:
            # Folders also contain states of random numbers and arguments, which are skipped.
            skipped.append(path.name)
    if not files:
        also = f" ({', '.join(skipped)} could not be read safely)" if skipped else ""
        raise ValueError(
            f"state: no file in {str(folder)!r} contains an optimizer state{also}; save optimizer.state_dict() with "
            "torch.save."
        )
    files, remark = _last_of(files, key)
    for number, tensor in enumerate(_from_files(files, key)):
        yield (
            tensor
            if number or not remark
            else replace(tensor, remark=" ".join([*filter(None, [tensor.remark]), remark]))
        )


def _from_files(files: Sequence[Path], key: str | None) -> Iterator[Tensor]:
    """The tensors of files that each hold a part."""
    common = _common_groups(files) if len(files) > 1 else []
    seen: dict[str, float] = {}
    for path in files:
        for tensor in _remapped(path, key, common, len(files) > 1):
            if tensor.v is not None and seen.setdefault(tensor.name, tensor.steps) != tensor.steps:
                raise ValueError(
                    f"state: {tensor.name} is at step {seen[tensor.name]:g} in one file and at {tensor.steps:g} in "
                    f"{str(path)!r}; give files of the same step, and pass an earlier checkpoint as earlier=."
                )
            yield tensor
            del tensor  # any remaining tensor keeps the whole file mapped


def _last_of(files: list[Path], key: str | None) -> tuple[list[Path], str]:
    """The files of the last step, each once, among checkpoints of the same parameters, and what was left out."""
    marks = {path: _mark(path, key) for path in files}
    last: dict[Any, float] = {}
    for parameters, step, _ in marks.values():
        last[parameters] = max(last.get(parameters, step), step)
    kept: list[Path] = []
    early: list[str] = []
    seen: set[Any] = set()
    for path, (parameters, step, sample) in marks.items():
        if parameters is not None and step < last[parameters]:
            early.append(path.name)
        elif sample is None or (parameters, sample) not in seen:  # a second file with the same numbers is a copy
            kept.append(path)
            seen.add((parameters, sample))
    used = ", ".join(path.name for path in kept[:4])
    listed = ", ".join(early[:4]) + (", …" if len(early) > 4 else "")
    return kept, f"Of the checkpoints in this folder, the last one is used ({used}), and not {listed}." if early else ""


def _mark(path: Path, key: str | None) -> tuple[Any, float, Any]:
    """The parameters of a file with their shapes, its last step, and some of its numbers."""
    try:
        tensors = [t for t in from_state_dict(_content(path), key, path.name, partial=True) if t.v is not None]
    except ValueError:  # it is raised again when the file is read
        return None, 0.0, None
    if not tensors:
        return None, 0.0, None
    first = tensors[0]
    numbers = [bytes(a.detach().reshape(-1)[:512].double().numpy().tobytes()) for a in (first.m, first.v)]
    sample = tuple(numbers) if any(any(part) for part in numbers) else None
    return frozenset((t.name, t.shape) for t in tensors), max(t.steps for t in tensors), sample


def _common_groups(files: Sequence[Path]) -> list[Any]:
    """Parameter groups of the first file that has groups with parameters; other files may contain only states."""
    for path in files:
        try:
            known = find_state_dicts(_content(path))
        except ValueError:  # the error is raised when this file is read
            continue
        for found in known.values():
            if any(group.get("params") for group in found.get("param_groups") or []):
                return list(found["param_groups"])
    return []


def _remapped(path: Path, key: str | None, common: list[Any], partial: bool) -> Iterator[Tensor]:
    """Tensors of a file that is mapped again from time to time, because read pages count as memory until then."""
    names = _names(path)
    done, again = 0, True
    while again:
        again, read, held = False, 0, _content(path)
        for at, tensor in enumerate(from_state_dict(held, key, repr(str(path)), common, partial, names)):
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


def _content(path: Path) -> Any:
    """What a file holds, with the moments of frameworks' own layouts as a state dict."""
    found = plain_state(load(path))
    if not is_megatron(found):
        return found
    beside = path.with_name("model_optim_rng.pt")
    return megatron_state(found, load(beside) if beside.is_file() else None)


def _names(path: Path) -> Names | None:
    """Names of parameters from a model beside a file."""
    names = names_beside(path.parent)
    model = path.with_name("pytorch_model.bin")
    if names is not None or not model.is_file() or model == path:
        return names
    try:
        return next(models_in({"model": load(model)}, "optimizer"), None)
    except ValueError:
        return None


def _distributed(folder: Path, key: str | None) -> Iterator[Tensor]:
    """The tensors of a distributed checkpoint, each of which is read when it is yielded."""
    check.reading_by_pytorch("state")
    from sdelens.diagnosis._dcp import Stored, read_folder

    def loaded(value: Any) -> Any:
        return value.load() if isinstance(value, Stored) else value

    for tensor in from_state_dict(read_folder(folder), key, repr(str(folder))):
        m, v = as_real(loaded(tensor.m), loaded(tensor.v)) if tensor.v is not None else (None, None)
        wanted = tensor.weight_decay != 0 and tensor.v is not None
        x = loaded(tensor.x) if wanted else None
        yield replace(tensor, m=m, v=v, x=None if x is None else as_real(x, x)[0])
