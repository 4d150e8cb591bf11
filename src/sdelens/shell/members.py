"""The shell's options for runs of several processes, shared by its commands."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from sdelens.shell.panels import PLACE

__all__ = ["Members", "takes_members"]

_GRACE_SECONDS = 25.0


@dataclass(frozen=True)
class Members:
    """The options of a command about the processes that share its run."""

    coordinator: str | None
    num_processes: int | None
    process_id: int | None
    join_timeout: float

    @contextmanager
    def joined(self) -> Iterator[bool]:
        """Join the run of all processes, which end it together; yields whether this process prints and writes.

        Raises:
            ValueError: if the options do not fit together.
            OSError: if the processes do not find each other.
            typer.Exit: if another process is lost or fails.
        """
        from sdelens.run import processes

        for name in ("num_processes", "process_id") if self.coordinator is None else ():
            if (value := getattr(self, name)) is not None:
                raise ValueError(
                    f"coordinator: is missing, but {name} is {value}; coordinator, num_processes and process_id belong "
                    "together."
                )
        if self.coordinator is not None:
            processes.join(
                self.coordinator, self.num_processes, self.process_id, self.join_timeout, exit_after=_GRACE_SECONDS
            )
        group = processes.current()
        try:
            with group.run():
                yield group.index == 0
                group.wait("the end of the command")
        except processes.ProcessError as error:
            typer.echo(f"sdelens: {error}", err=True)
            raise typer.Exit(processes.EXIT_STATUS) from error


def _options(
    coordinator: Annotated[
        str | None,
        PLACE(
            help="Host and port of process 0, where several processes divide the paths among them; 'auto': as Slurm, "
            "Open MPI or Kubernetes say. Give the same command to all of them."
        ),
    ] = None,
    num_processes: Annotated[int | None, PLACE(help="How many processes there are.")] = None,
    process_id: Annotated[
        int | None,
        PLACE(help="Which of them this is, from 0; 0 prints and writes."),
    ] = None,
    join_timeout: Annotated[float, PLACE(help="Seconds to wait for all processes to arrive.")] = 300.0,
) -> None: ...


_PARAMETERS = inspect.signature(_options).parameters


def takes_members(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options above after its other options; it gets them as its second argument."""
    first, _, *own = inspect.signature(command).parameters.values()

    @functools.wraps(command)
    def wrapped(subject: Any, **given: Any) -> None:
        command(subject, Members(**{name: given.pop(name) for name in _PARAMETERS}), **given)

    wrapped.__signature__ = inspect.Signature([first, *own, *_PARAMETERS.values()])  # type: ignore[attr-defined]
    return wrapped
