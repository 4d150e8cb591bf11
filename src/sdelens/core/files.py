"""Output: atomic file writes, and figures."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

__all__ = [
    "as_path",
    "atomic_path",
    "check_figure_path",
    "check_writable",
    "few_colours",
    "held_folder",
    "save_figure",
    "texts_of",
]

_METADATA: Final = {
    "png": {"Title": "title", "Description": "texts", "Software": "by"},
    "svg": {"Title": "title", "Description": "texts", "Creator": "by"},
    "pdf": {"Title": "title", "Subject": "texts", "Creator": "by"},
}
"""What a file says of its figure, by its format and the format's own name for it."""


def as_path(path: str | os.PathLike[str], name: str = "path") -> Path:
    """The path that an argument of this name gives.

    Raises:
        TypeError: if it is not one.
    """
    try:
        return Path(path)
    except TypeError as error:
        raise TypeError(f"{name}: got {path!r}; give a path, as text or as a pathlib.Path.") from error


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], name: str = "path") -> Iterator[str]:
    """A temporary file next to `path` that replaces it if the block succeeds, and is deleted otherwise.

    Args:
        path: the file.
        name: name of the argument, for error messages.

    Raises:
        TypeError: if it is not a path.
        OSError: if it cannot be written; the message names the argument and the file.
    """
    target = as_path(path, name)
    temporary = _temporary(name, target)
    try:
        with _unwritable(name, target, temporary):
            yield temporary
            umask = os.umask(0)
            os.umask(umask)
            Path(temporary).chmod(0o666 & ~umask)
            Path(temporary).replace(target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()


def check_writable(path: str | os.PathLike[str], name: str = "path") -> None:
    """Refuse a file that cannot be written, before what is written there is computed.

    Raises:
        TypeError, OSError: as `atomic_path`.
    """
    Path(_temporary(name, as_path(path, name))).unlink()


def _temporary(name: str, target: Path) -> str:
    """A new, empty file next to the target."""
    with _unwritable(name, target):
        if target.is_dir():
            raise IsADirectoryError(f"{name}: {str(target)!r} is a folder; give the name of a file.")
        if not target.parent.is_dir():
            raise FileNotFoundError(f"{name}: the folder {str(target.parent)!r} does not exist; create it first.")
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=target.suffix)
    os.close(handle)
    return temporary


@contextlib.contextmanager
def _unwritable(name: str, target: Path, temporary: str | None = None) -> Iterator[None]:
    """Let errors of the system name the file that was asked for: all, or only those about a temporary file."""
    try:
        yield
    except OSError as error:
        if error.errno is None or (temporary is not None and error.filename not in (temporary, None)):
            raise
        raise type(error)(
            f"{name}: {str(target)!r} cannot be written ({error.strerror}); give another file."
        ) from error


@contextlib.contextmanager
def held_folder(name: str, path: str | os.PathLike[str]) -> Iterator[Path]:
    """The folder, created if needed and locked against other runs until the block or the process ends.

    Folders that are created here are removed if the block fails, unless they contain something.

    Args:
        name: name of the argument, for error messages.
        path: the folder.

    Raises:
        TypeError: if it is not a path.
        NotADirectoryError: if it is a file.
        BlockingIOError: if another run has locked it.
        OSError: if it cannot be created or written to.
    """
    folder = as_path(path, name)
    created = [part for part in (folder, *folder.parents) if not _exists(part)]
    try:
        with _locked(name, folder):
            yield folder
    except BaseException:
        for part in created:
            with contextlib.suppress(OSError):  # it is not empty, or was not created
                part.rmdir()
        raise


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # nobody may look
        return False


@contextlib.contextmanager
def _locked(name: str, folder: Path) -> Iterator[None]:
    """Create the folder, and lock it until the block ends."""
    import filelock

    if _exists(folder) and not folder.is_dir():
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
        yield
    finally:
        with contextlib.suppress(OSError):  # the folder itself may be gone
            Path(lock.lock_file).unlink()
        lock.release()


def check_figure_path(path: str | os.PathLike[str]) -> str:
    """The format of a figure, which is the suffix of `path`.

    Raises:
        TypeError: if it is not a path.
        ValueError: if matplotlib does not support it.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    suffix = as_path(path).suffix.lstrip(".").lower()
    if suffix not in known:
        raise ValueError(
            f"path: got {str(path)!r}; its suffix must be one of {', '.join('.' + k for k in sorted(known))}."
        )
    return suffix


def save_figure(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Write a figure atomically, in the format given by the suffix of `path`.

    Fonts are embedded in PDF and PostScript as TrueType (Type 42), as journals require. PNG, SVG and PDF name their
    title, all their texts and the library's version, so that a file says what it shows.

    Raises:
        ValueError: if matplotlib does not support the suffix.
    """
    import matplotlib as mpl

    suffix = check_figure_path(path)
    dots, texts = mpl.rcParams["savefig.dpi"], texts_of(figure)
    said = {"title": texts[0] if texts else "", "texts": "\n".join(texts), "by": f"sdelens {version('sdelens')}"}
    metadata = {key: said[part] for key, part in _METADATA.get(suffix, {}).items()} or None
    with mpl.rc_context({"pdf.fonttype": 42, "ps.fonttype": 42}), atomic_path(path) as temporary:
        figure.savefig(temporary, format=suffix, dpi=200 if dots == "figure" else dots, metadata=metadata)


def few_colours(picture: "Image") -> "Image":
    """The picture of a figure with 128 colours, which weighs a third."""
    from PIL.Image import Dither, Quantize

    # The median cut keeps the colours of large areas: with the other methods pale grey bands become coloured.
    return picture.convert("RGB").quantize(128, Quantize.MEDIANCUT, kmeans=2, dither=Dither.NONE)


def texts_of(figure: "Figure") -> list[str]:
    """The texts of a figure, each once: titles, labels of axes, what is written in it, and legends; not ticks."""
    found = [figure.get_suptitle(), figure.get_supxlabel(), figure.get_supylabel()]
    for axes in figure.axes:
        found += [axes.get_title(loc) for loc in ("left", "center", "right")]
        found += [axes.get_xlabel(), axes.get_ylabel(), *(text.get_text() for text in axes.texts)]
    legends = [*figure.legends, *(legend for axes in figure.axes if (legend := axes.get_legend()))]
    found += [text.get_text() for legend in legends for text in (legend.get_title(), *legend.get_texts())]
    return list(dict.fromkeys(text for each in found if (text := " ".join(each.split()))))
