"""Output: atomic file writes, figures, and text tables."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["atomic_path", "held_folder", "save_figure", "text_table"]


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[str]:
    """A temporary file next to `path` that replaces it if the block succeeds, and is deleted otherwise."""
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"path: {str(target)!r} is a folder; give the name of a file.")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path: the folder {str(target.parent)!r} does not exist; create it first.")
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=target.suffix)
    os.close(handle)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()


@contextlib.contextmanager
def held_folder(name: str, path: str | os.PathLike[str]) -> Iterator[Path]:
    """The folder, created if needed and locked against other runs until the block or the process ends.

    Args:
        name: name of the argument, for error messages.
        path: the folder.

    Raises:
        NotADirectoryError: if it is a file.
        BlockingIOError: if another run has locked it.
        OSError: if it cannot be created or written to.
    """
    import filelock

    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{name}: {str(folder)!r} is a file; give a folder.")
    lock = filelock.FileLock(folder / ".sdelens-lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        probe = folder / ".sdelens-probe"
        probe.touch()
        probe.unlink()
    except filelock.Timeout as error:
        raise BlockingIOError(
            f"{name}: another run is writing to {str(folder)!r}; wait until that run has finished, or give another "
            "folder."
        ) from error
    except OSError as error:
        lock.release()
        reason = f"{name}: {str(folder)!r} cannot be written to ({error.strerror}); give another folder."
        raise type(error)(reason) from error
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):  # the folder itself may be gone
            Path(lock.lock_file).unlink()
        lock.release()


def save_figure(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Write a figure atomically, in the format given by the suffix of `path`.

    Raises:
        ValueError: if matplotlib does not support the suffix.
    """
    known = figure.canvas.get_supported_filetypes()
    suffix = Path(path).suffix.lstrip(".").lower()
    if suffix not in known:
        raise ValueError(
            f"path: got {str(path)!r}; its suffix must be one of {', '.join('.' + k for k in sorted(known))}."
        )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=suffix, dpi=200)


def text_table(head: list[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table with the first column aligned left and the others aligned right."""
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = (
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join([first, *rest]).rstrip()

    return [line(head), "  ".join("-" * w for w in widths), *[line(r) for r in rows]]
