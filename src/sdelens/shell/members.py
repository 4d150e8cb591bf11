"""The shell's options for runs of several processes, shared by its commands."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import typer

from sdelens.shell.panels import PLACE

__all__ = ["Members"]

_GRACE_SECONDS = 25.0


@dataclass(frozen=True)
class Members:
    """The options of a command about the processes that share its run."""

    coordinator: Annotated[
        str | None,
        PLACE(
            help="Host and port of process 0, if several processes share the paths of one run; 'auto': taken from "
            "Slurm, Open MPI or Kubernetes. Start all processes with the same command."
        ),
    ] = None
    num_processes: Annotated[int | None, PLACE(help="Number of processes.")] = None
    process_id: Annotated[
        int | None, PLACE(help="Number of this process, from 0; process 0 prints and writes the results.")
    ] = None
    join_timeout: Annotated[float, PLACE(help="Seconds to wait until all processes have joined.")] = 300.0

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
                    f"coordinator: is missing, but {name} is {value}; give coordinator, num_processes and process_id "
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
