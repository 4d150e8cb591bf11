"""What all commands of the shell share: starting JAX and one-line errors."""

import os
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import NoReturn

import typer

from sdelens.core.machine import cores
from sdelens.shell.members import Members

__all__ = ["command_line", "refusals", "shell"]


@contextmanager
def shell(devices: int | None, members: Members | None = None) -> Iterator[bool]:
    """Start JAX, and turn errors of input or files into one line and an exit status.

    Yields whether this process prints and writes; of several processes, only one does.
    """
    with refusals():
        _ask_for(devices)
        with nullcontext(True) if members is None else members.joined() as first:
            _start_jax()
            yield first


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
    warnings.showwarning = lambda message, *_: typer.echo(f"sdelens: warning: {message}", err=True)


def command_line() -> str:
    """The command as it was typed, without the program's name."""
    return shlex.join(sys.argv[1:])


def _fail(error: Exception) -> NoReturn:
    typer.echo(f"sdelens: {error}", err=True)
    raise typer.Exit(2)


@contextmanager
def refusals() -> Iterator[None]:
    """Turn errors of input, files or missing packages into one line and an exit status."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (ValueError, TypeError, OSError, ImportError) as error:
        _fail(error)
