"""Several processes that share a run: their group, values combined over all of them, and detection of lost processes.

Process 0 listens on one port, and every other process has one connection to it. The messages are bytes with a
description in JSON; nothing received is executed. If a process dies, its connection closes; if its machine dies, its
heartbeats stop; if it fails, it sends a message. Process 0 informs the others, and their waiting calls raise an error
that names the process.

The key-value store of `jax.distributed` would suffice for the values, but not for detecting lost processes: if its
coordinator dies, or a process does not arrive, JAX aborts every process from C++ (seen in 0.10), which no Python code
can turn into an error. If a program has called `jax.distributed.initialize`, its processes find one another through
that store.
"""

import atexit
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from sdelens.core import check
from sdelens.run.links import BYE, FAILED, JOINED, VALUE, Link, address_of, gathered, in_a_line, listening, reached

__all__ = ["ALONE", "Group", "ProcessError", "current", "join_processes"]

EXIT_STATUS = 3
"""Exit status of a shell command that ends because another process is lost or has failed."""

_BEAT_SECONDS, _SILENT_SECONDS = 2.0, 25.0
_MOST_PROCESSES = 4096
_KEY = "sdelens/address"


class ProcessError(RuntimeError):
    """Another process of the run is lost or has failed; the message names it."""


class Group:
    """The processes of a run, from the point of view of one of them.

    Args:
        index: number of this process.
        count: number of all processes.
        links: connections by process: process 0 has one to every other process, the others have one to process 0.
        exit_after: seconds after the end of another process until this one is terminated if it is still running; the
            shell needs this because the process may be in the middle of a compilation. None: never.
    """

    def __init__(
        self, index: int, count: int, links: dict[int, Link] | None = None, exit_after: float | None = None
    ) -> None:
        self.index, self.count = index, count
        self._links, self._exit_after = links or {}, exit_after
        self._news = threading.Condition()
        self._depth = self._round = self._turn = 0
        self._values: dict[tuple[int, int, int], tuple[str, bytes]] = {}
        self._failures: dict[int, str] = {}
        self._lost: str | None = None
        self._left: set[int] = set()
        for peer, link in self._links.items():
            link.heard = time.monotonic()
            threading.Thread(target=self._listen, args=(peer, link), daemon=True).start()
        if self._links:
            threading.Thread(target=self._beat, daemon=True).start()
            atexit.register(self.leave)

    def share(self, total: int) -> tuple[int, int]:
        """First index and end (exclusive) of the part of 0, …, total − 1 that belongs to this process."""
        return self.index * total // self.count, (self.index + 1) * total // self.count

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """Context of a run that all processes enter in the same order; an error in one of them ends it in all.

        Raises:
            ProcessError: if another process is lost or fails.
        """
        outermost, self._depth = self._depth == 0, self._depth + 1
        if outermost:
            with self._news:
                self._round, self._turn = self._round + 1, 0
                self._values = {key: value for key, value in self._values.items() if key[0] >= self._round}
        try:
            yield
        except ProcessError:
            raise
        except BaseException as error:
            if outermost:
                self._tell(FAILED, {"process": self.index, "round": self._round, "why": in_a_line(error)})
            raise
        finally:
            self._depth -= 1

    def check(self) -> None:
        """Raise an error if another process is lost or has failed.

        Raises:
            ProcessError: naming the process.
        """
        found = self._lost or self._failures.get(self._round)
        if found is not None:
            raise ProcessError(found)

    def combine(self, label: str, value: bytes, join: Callable[[list[bytes]], bytes]) -> bytes:
        """Apply `join` in process 0 to the values of all processes, in their order, and return its result in all.

        All processes make the same calls in the same order, inside `run`.

        Raises:
            ProcessError: if another process is lost, fails, or has ended.
            ValueError: if another process is at a call with another label.
        """
        if self.count == 1:
            return join([value])
        turn, self._turn = (self._round, self._turn), self._turn + 1
        if self.index:
            self._send(0, VALUE, {"turn": turn, "label": label}, value)
            return self._awaited((*turn, 0), label)
        result = join([value, *(self._awaited((*turn, peer), label) for peer in range(1, self.count))])
        for peer in self._links:
            self._send(peer, JOINED, {"turn": turn, "label": label}, result)
        return result

    def wait(self, label: str) -> None:
        """Wait until all processes have reached this call.

        Raises:
            ProcessError, ValueError: as `combine`.
        """
        self.combine(label, b"", lambda _: b"")

    def leave(self) -> None:
        """Announce a regular end, so that the other processes do not count this one as lost."""
        self._tell(BYE, {})

    def _awaited(self, key: tuple[int, int, int], label: str) -> bytes:
        with self._news:
            while key not in self._values:
                self.check()
                if key[2] in self._left:
                    raise ProcessError(
                        f"process {key[2]} of {self.count} ended before the run was complete; check its output, and "
                        "start all processes again."
                    )
                self._news.wait(1.0)
            theirs, value = self._values.pop(key)
        if theirs != label:
            raise ValueError(
                f"processes: process {key[2]} is at {theirs!r}, but process {self.index} is at {label!r}; make the "
                "same calls in the same order in all processes."
            )
        return value

    def _send(self, peer: int, kind: bytes, head: dict[str, Any], payload: bytes = b"") -> None:
        try:
            self._links[peer].send(kind, head, payload)
        except OSError as error:
            self._lose(peer, "its connection was closed")
            self.check()
            raise ProcessError(f"process {peer} of {self.count} cannot be reached: {error}") from error

    def _tell(self, kind: bytes, head: dict[str, Any], but: int | None = None) -> None:
        """Send to all processes that are still connected, ignoring errors."""
        for peer, link in self._links.items():
            if peer not in (but, *self._left):
                with contextlib.suppress(OSError):
                    link.send(kind, head, patience=1.0)

    def _listen(self, peer: int, link: Link) -> None:
        try:
            while True:
                kind, head, payload = link.receive()
                if kind == FAILED:
                    self._hear(head, peer)
                    continue
                with self._news:
                    if kind == BYE:
                        self._left.add(peer)
                    elif tuple(head["turn"]) >= (self._round, 0):
                        self._values[(*head["turn"], peer)] = (head["label"], payload)
                    self._news.notify_all()
        except (OSError, ValueError, KeyError):
            if peer not in self._left:
                self._lose(peer, "its connection was closed")

    def _hear(self, head: dict[str, Any], peer: int) -> None:
        """Record the failure or loss of a process; process 0 also informs the other processes."""
        with self._news:
            if head["round"] is None:
                self._lost = self._lost or head["why"]
            else:
                text = f"process {head['process']} of {self.count} failed: {head['why']} All other processes stop."
                self._failures.setdefault(head["round"], text)
            self._news.notify_all()
        if self.index == 0:
            self._tell(FAILED, head, but=peer)
        if head["round"] is None or head["round"] == self._round:
            self._limit()

    def _lose(self, peer: int, why: str) -> None:
        text = (
            f"process {peer} of {self.count} is lost ({why}); all other processes stop. Start all processes again; "
            "with --resume (resume=True) they continue from their checkpoints."
        )
        with self._news:
            if self._lost is not None:
                return
        self._hear({"process": peer, "round": None, "why": text}, peer)

    def _limit(self) -> None:
        """Terminate this process after `exit_after` seconds if it does not end by itself."""
        if self._exit_after is None:
            return

        def end() -> None:
            text = self._lost or self._failures.get(self._round)
            shown = "\x1b[?25h" if sys.stderr.isatty() else ""  # the cursor, which a progress bar hides
            print(f"{shown}sdelens: {text}", file=sys.stderr, flush=True)
            os._exit(EXIT_STATUS)

        timer = threading.Timer(self._exit_after, end)
        timer.daemon = True
        timer.start()

    def _beat(self) -> None:
        woken = time.monotonic()
        while self._lost is None:
            time.sleep(_BEAT_SECONDS)
            before, woken = woken, time.monotonic()
            if woken - before > _SILENT_SECONDS / 2:  # this process itself was suspended: first receive messages
                continue
            for peer, link in self._links.items():
                if peer in self._left:
                    continue
                if woken - link.heard > _SILENT_SECONDS:
                    self._lose(peer, f"it has not sent anything for {_SILENT_SECONDS:.0f} s")
                    link.close()
                    break
                link.beat()


ALONE = Group(0, 1)
"""The group of a process without others."""

_joined = ALONE  # one group per program, as with `jax.distributed`


def current() -> Group:
    """The group joined by `join_processes` or `jax.distributed.initialize`, or this process alone."""
    global _joined  # noqa: PLW0603
    distributed = sys.modules.get("jax._src.distributed")
    if _joined is ALONE and distributed is not None:
        state = distributed.global_state
        if state.client is not None and state.num_processes > 1:
            _joined = _through_jax(state)
    return _joined


def join_processes(
    coordinator: str,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: float = 300.0,
) -> int:
    """Divide the paths of every subsequent run over several processes, on one or several machines.

    Every process calls this, and then the same `compare`, `simulate`, `sweep` or `weak_order`. Each runs its share of
    the paths on its devices; all get the same result. If one process is lost or fails, the runs of the others raise a
    `RuntimeError` that names it within a minute (after the compilation or segment that they are executing).

    Args:
        coordinator: host and port at which process 0 listens and the others reach it, ``"node1:5555"``; or ``"auto"``,
            to use what `jax.distributed.initialize` detects under Slurm, Open MPI or Kubernetes.
        num_processes: number of processes.
        process_id: number of this process, from 0.
        timeout: seconds to wait until all processes have joined.

    Returns:
        The number of this process, from 0.

    Raises:
        ValueError, TypeError: naming the argument that does not fit.
        OSError: if the port is in use, process 0 cannot be reached, or some processes do not arrive in time.
        RuntimeError: if this process has already joined others.
    """
    return join(coordinator, num_processes, process_id, timeout, None)


def join(
    coordinator: str,
    num_processes: int | None,
    process_id: int | None,
    timeout: float,
    exit_after: float | None,
) -> int:
    """`join_processes` with `exit_after`, used by the shell; see `Group`."""
    global _joined  # noqa: PLW0603
    if _joined is not ALONE:
        raise RuntimeError(
            f"coordinator: this process has already joined a group of {_joined.count} processes; join only once."
        )
    timeout = check.positive("join_timeout", timeout)
    if coordinator == "auto":
        if (num_processes, process_id) != (None, None):
            raise ValueError(
                "coordinator: got 'auto', which determines num_processes and process_id automatically; leave them out."
            )
        _joined = _by_jax(timeout, exit_after)
        return _joined.index
    host, port = address_of(coordinator)
    for name, value in (("num_processes", num_processes), ("process_id", process_id)):
        if value is None:
            raise ValueError(f"{name}: got None; give coordinator, num_processes and process_id together.")
    count, index = check.at_least("num_processes", num_processes, 1), check.at_least("process_id", process_id, 0)
    if count > _MOST_PROCESSES:
        raise ValueError(f"num_processes: got {count}; at most {_MOST_PROCESSES} processes can join.")
    if index >= count:
        raise ValueError(f"process_id: got {index}; with {count} processes it must be from 0 to {count - 1}.")
    if count > 1:
        deadline = time.monotonic() + timeout
        if index == 0:
            links = gathered(listening(host, port), count, timeout)
        else:
            links = {0: reached(host, port, count, index, deadline, timeout)}
        _joined = Group(index, count, links, exit_after)
    return index


def _by_jax(timeout: float, exit_after: float | None) -> Group:
    """The group that JAX detects; JAX's distributed service is shut down afterwards, as it could abort this process."""
    import jax
    from jax._src import distributed

    try:
        jax.distributed.initialize(initialization_timeout=max(round(timeout), 1))
    except ValueError as error:
        raise ValueError(
            f"coordinator: got 'auto', but JAX detects no Slurm, Open MPI or Kubernetes environment ({error}); give "
            "coordinator=host:port, num_processes and process_id."
        ) from error
    jax.devices()  # initialise the devices while all processes are connected
    group = _through_jax(distributed.global_state, exit_after, timeout)
    jax.distributed.shutdown()
    return group


def _through_jax(state: Any, exit_after: float | None = None, timeout: float = 300.0) -> Group:
    """The group of the processes of `jax.distributed`, whose key-value store passes on the port of process 0."""
    index, count, client = state.process_id, state.num_processes, state.client
    if count == 1:
        return ALONE
    host, port = address_of(state.coordinator_address)
    if index == 0:
        try:
            server = listening(host, port + 1)
        except (OSError, OverflowError):  # the port is in use, or there is no such port
            server = listening(host, 0)
        client.key_value_set(_KEY, str(server.getsockname()[1]))
        return Group(index, count, gathered(server, count, timeout), exit_after)
    own = int(client.blocking_key_value_get(_KEY, round(1000 * timeout)))
    link = reached(host, own, count, index, time.monotonic() + timeout, timeout)
    return Group(index, count, {0: link}, exit_after)
