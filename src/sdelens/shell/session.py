"""What all commands of the shell share: starting JAX and one-line errors."""

import os
import shlex
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import typer

from sdelens.core.machine import cores
from sdelens.core.text import wrapped

__all__ = ["check_exist", "command_line", "complain", "named", "one_line_warnings", "refusals", "say", "shell"]


@contextmanager
def shell(devices: int | None) -> Iterator[None]:
    """Start JAX, and turn errors of input or files into one line and an exit status."""
    with refusals():
        _ask_for(devices)
        _start_jax()
        yield


def _ask_for(devices: int | None) -> None:
    """Request CPU devices, by default one per core; this must precede the first use of JAX."""
    if devices is not None and devices < 1:
        raise ValueError(f"devices: got {devices}; it must be 1 or more.")
    import jax

    jax.config.update("jax_num_cpu_devices", devices or len(cores()))
    _keep_programs()


def _keep_programs() -> None:
    """Cache compiled programs in the user's cache folder, unless JAX's environment variables configure its cache."""
    import jax

    from sdelens.core.compilation import cache_programs

    enabled = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or not enabled:
        return
    with suppress(OSError):  # without a writable folder, every command compiles again
        cache_programs()


def _start_jax() -> None:
    """Find the devices, and show each warning in one line."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked = f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')!r}"
        raise ValueError(f"JAX finds no device with {asked}; unset it, or set it to cpu. {error}".strip()) from error
    one_line_warnings()


def one_line_warnings() -> None:
    """Show each warning in one line, or wrapped on a terminal."""
    warnings.showwarning = lambda message, *_: complain(f"warning: {message}")


def command_line() -> str:
    """The command as it was typed, without the program's name."""
    return shlex.join(sys.argv[1:])


def say(text: str) -> None:
    """Print sentences, wrapped at the width of the terminal."""
    typer.echo("\n".join(wrapped(text)))


def complain(text: str) -> None:
    """Print a message on standard error: wrapped on a terminal, and in one line where it is searched in a file."""
    message = f"sdelens: {text}"
    typer.echo("\n".join(wrapped(message)) if sys.stderr.isatty() else message, err=True)


def _fail(error: Exception) -> NoReturn:
    complain(str(error))
    raise typer.Exit(2)


def check_exist(name: str, paths: Iterable[Path]) -> None:
    """Refuse checkpoints that do not exist."""
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{name}: {str(path)!r} does not exist; give the path of a checkpoint.")


@contextmanager
def named(**arguments: str) -> Iterator[None]:
    """Give arguments of the library the names that they have in the shell, in errors: ``named(path="out")``."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        name, colon, rest = str(error).partition(":")
        if not colon or name not in arguments:
            raise
        raise type(error)(f"{arguments[name]}:{rest}") from error


@contextmanager
def refusals() -> Iterator[None]:
    """Turn errors of input, files or missing packages into one line and an exit status."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (ValueError, TypeError, OSError, ImportError) as error:
        _fail(error)
