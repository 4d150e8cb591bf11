"""Read a file of PyTorch, or a folder of Orbax, into memory without executing what it contains."""

import importlib
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdelens.core import check

__all__ = ["RefusedError", "load", "orbax"]

_INERT = (
    "deepspeed.",
    "megatron.",
    "transformers.",
    "accelerate.",
    "lightning.",
    "pytorch_lightning.",
    "omegaconf.",
    "torchao.",
)
_INERT_NAMES = ("argparse.Namespace", "types.SimpleNamespace", "pathlib.PosixPath", "pathlib.WindowsPath")
"""Libraries and classes whose objects in a file are replaced by empty ones: settings and states of training loops."""


class RefusedError(ValueError):
    """A file contains more than tensors and plain data."""


def load(path: Path) -> Any:
    """The content of a file written by `torch.save`, memory-mapped if possible.

    Objects of classes are not created: those of training frameworks are replaced by empty placeholders.

    Raises:
        ImportError: if PyTorch is not installed.
        RefusedError: if the file contains other objects.
        ValueError: if it is empty, damaged or of another kind.
    """
    check.reading_by_pytorch("state")
    import torch

    name = repr(str(path))
    _refuse_others(path, name)
    with path.open("rb") as file:
        start = file.read(4)
    if not start:
        raise ValueError(f"state: {name} is empty; save the checkpoint again.")
    zipped = start == b"PK\x03\x04"
    unsafe = _unsafe(path) if zipped else []
    try:
        with warnings.catch_warnings(), _placeholders(unsafe):
            warnings.simplefilter("ignore")  # PyTorch's warning about what is refused below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True if zipped else None)
    except pickle.UnpicklingError as error:
        if not zipped and start[:1] != b"\x80":
            raise ValueError(
                f"state: {name} is not a PyTorch checkpoint; give a file written by torch.save."
            ) from error
        others = ", ".join(found for found in unsafe if not _is_inert(found))
        raise RefusedError(
            f"state: {name} contains more than tensors and plain data{f' ({others})' if others else ''}, and was not "
            "read, because reading it could execute code. Save only optimizer.state_dict() with torch.save, or, if you "
            "trust the file, allow these classes with torch.serialization.add_safe_globals."
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # torch.load raises errors of any kind on broken files
        raise ValueError(
            f"state: {name} cannot be read as a checkpoint: it is damaged, incomplete or not a checkpoint "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}). Copy it again, "
            "or save optimizer.state_dict() with torch.save."
        ) from error


def _refuse_others(path: Path, name: str) -> None:
    """Errors about files of known formats that hold no optimizer, or are only a part of a checkpoint."""
    said = {
        ".safetensors": "holds a model without its optimizer; give the file or folder with the optimizer's state.",
        ".distcp": "is a part of a distributed checkpoint; give its folder.",
        ".metadata": "is a part of a distributed checkpoint; give its folder.",
        ".msgpack": "is a file of Flax; give what flax.serialization.msgpack_restore makes of its content.",
    }
    for ending, remedy in said.items():
        if path.name.endswith(ending):
            raise ValueError(f"state: {name} {remedy}")


def _unsafe(path: Path) -> list[str]:
    """The classes in a file that PyTorch would not create; none if this version cannot tell, or the file is damaged."""
    import torch

    try:
        return list(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # of any kind on broken files, which are reported when they are read
        return []


def _is_inert(name: str) -> bool:
    return name.startswith(_INERT) or name in _INERT_NAMES


@contextmanager
def _placeholders(unsafe: list[str]) -> Iterator[None]:
    """Within it, objects of the classes of training frameworks are read as empty ones."""
    import torch

    inert = [(_placeholder(name), name) for name in unsafe if _is_inert(name)]
    if not inert:
        yield
        return
    with torch.serialization.safe_globals(inert):
        yield


def _placeholder(full: str) -> type:
    """A class without behaviour in place of another; of tensors, one whose numbers cannot be reached."""
    import torch

    module, _, name = full.rpartition(".")

    def new(cls: type, *args: Any, **options: Any) -> Any:
        return object.__new__(cls)

    def ignore(self: Any, *args: Any, **options: Any) -> None:
        """Nothing of the object is kept."""

    members: dict[str, Any] = {"__module__": module, "__setstate__": ignore}
    if name.startswith("OptimState"):  # torchao's quantised moments
        return type(name, (torch.Tensor,), {**members, "__torch_dispatch__": classmethod(ignore)})
    return type(name, (), {**members, "__new__": new, "__init__": ignore})


def orbax(folder: Path) -> Any:
    """What a folder of Orbax holds, without the types of optax.

    Raises:
        ImportError: if Orbax is not installed.
        ValueError: if it cannot be restored.
    """
    try:
        checkpoints = importlib.import_module("orbax.checkpoint")
    except ImportError as error:
        raise ImportError(
            f"state: {str(folder)!r} is an Orbax checkpoint, and Orbax is not installed; install orbax-checkpoint, or "
            "restore the optimizer's state and give that."
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that shardings are those of the file
            with checkpoints.PyTreeCheckpointer() as reader:
                return reader.restore(folder.resolve())
    except Exception as error:  # of any kind: a damaged file, or one of another number of devices
        first = str(error).splitlines()[0] if str(error) else "no message"
        raise ValueError(
            f"state: {str(folder)!r} cannot be restored by Orbax without a target ({type(error).__name__}: {first}); "
            "restore the optimizer's state with your own target, and give that."
        ) from error
