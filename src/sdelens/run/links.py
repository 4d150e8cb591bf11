"""Connections between processes: every other process connects to process 0, and they exchange messages."""

import contextlib
import json
import os
import socket
import struct
import threading
import time
from typing import Any

__all__ = ["BYE", "FAILED", "JOINED", "VALUE", "Link", "address_of", "gathered", "in_a_line", "listening", "reached"]

BYE, FAILED, JOINED, VALUE = b"B", b"F", b"J", b"V"
_BEAT, _HELLO, _WELCOME = b"H", b"I", b"W"
_MAGIC = b"sdelens-1\n"
_HEAD = struct.Struct("!IQ")
_RETRY_SECONDS, _GREETING_SECONDS = 0.1, 5.0
_LONGEST_GREETING = 2**16
_SHOWN = 5


class Link:
    """One connection, for messages that consist of a kind, a head in JSON and a payload."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket, self._sending = connection, threading.Lock()
        self.heard = time.monotonic()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, kind: bytes, head: dict[str, Any], payload: bytes = b"", patience: float = -1.0) -> None:
        """Send a message: its kind (a byte), a head as JSON, and bytes.

        If another message is being sent, wait up to `patience` seconds for it; a negative `patience` waits forever.
        """
        text = json.dumps(head).encode()
        if not self._sending.acquire(timeout=patience):
            raise TimeoutError("another message is still being sent")
        try:
            self._socket.sendall(kind + _HEAD.pack(len(text), len(payload)) + text)
            if payload:
                self._socket.sendall(payload)
        finally:
            self._sending.release()

    def beat(self) -> None:
        """Send a heartbeat, unless a message is being sent, which serves the same purpose."""
        if self._sending.acquire(blocking=False):
            try:
                with contextlib.suppress(OSError):  # buffer full, or connection closed, which the listener notices
                    self._socket.send(_BEAT, getattr(socket, "MSG_DONTWAIT", 0))
            finally:
                self._sending.release()

    def receive(self, longest: int | None = None) -> tuple[bytes, dict[str, Any], bytes]:
        """The next message, skipping heartbeats; a message longer than `longest` raises an error."""
        while (kind := self._read(1)) == _BEAT:
            pass
        length, size = _HEAD.unpack(self._read(_HEAD.size))
        if longest is not None and max(length, size) > longest:
            raise ValueError("the other end is not a process of sdelens")
        return kind, json.loads(self._read(length)), self._read(size)

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = self._socket.recv(min(size - len(data), 2**20))
            if not part:
                raise ConnectionError("closed")
            self.heard = time.monotonic()
            data += part
        return bytes(data)

    def greet(self) -> None:
        """Exchange the greeting by which each end recognises a process of this library.

        Raises:
            ValueError: if the other end is not one.
        """
        self._socket.settimeout(_GREETING_SECONDS)
        self._socket.sendall(_MAGIC)
        if self._read(len(_MAGIC)) != _MAGIC:
            raise ValueError("the other end is not a process of sdelens")

    def patient(self, seconds: float | None) -> None:
        """Set the timeout of reads in seconds; None waits forever."""
        self._socket.settimeout(seconds)

    def gone(self) -> bool:
        """Whether the other end has closed, with nothing left to read."""
        try:
            return not self._socket.recv(1, getattr(socket, "MSG_DONTWAIT", 0) | socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """Close the connection in both directions."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def address_of(coordinator: Any) -> tuple[str, int]:
    """Host and port of ``"host:port"``."""
    host, _, port = coordinator.rpartition(":") if isinstance(coordinator, str) else ("", "", "")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"coordinator: got {coordinator!r}; give host:port, for example 'node1:5555', or 'auto'.")
    return host.strip("[]"), int(port)


def listening(host: str, port: int) -> socket.socket:
    """A socket that accepts connections at the port; from this machine only, if the host is a loopback address."""
    own = host == "localhost" or host.startswith("127.") or host == "::1"
    try:
        if own:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return socket.create_server((host, port), family=family, backlog=128)
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        return socket.create_server(("", port), family=family, dualstack_ipv6=dual, backlog=128)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(
            f"coordinator: port {port} cannot be opened on this machine ({reason}); give another port to all processes."
        ) from error


def gathered(server: socket.socket, count: int, timeout: float) -> dict[int, Link]:
    """Wait, as process 0, until all other processes have connected, and return their connections.

    Raises:
        ValueError: if a process was started with a different number of processes.
        OSError: naming the processes that did not connect in time.
    """
    deadline, links = time.monotonic() + timeout, dict[int, Link]()
    with server:
        try:
            while len(links) < count - 1:
                server.settimeout(max(deadline - time.monotonic(), 0.01))
                try:
                    connection = server.accept()[0]
                except TimeoutError:
                    missing = [str(i) for i in range(1, count) if i not in links]
                    some = ", ".join(missing[:_SHOWN]) + (" and others" if len(missing) > _SHOWN else "")
                    raise TimeoutError(
                        f"processes: {some} of {count} did not connect within {timeout:g} s; start all of them "
                        "within that time, or increase the timeout (--join-timeout)."
                    ) from None
                _admit(connection, count, links)
        except BaseException as error:
            for link in links.values():
                with contextlib.suppress(OSError):
                    link.send(FAILED, {"why": in_a_line(error)})
            raise
    for link in links.values():
        link.patient(None)
        with contextlib.suppress(OSError):  # already closed: the thread that listens to it will notice
            link.send(_WELCOME, {})
    return links


def _admit(connection: socket.socket, count: int, links: dict[int, Link]) -> None:
    """Accept a connecting process; refuse anything else, and a second process with the same number."""
    link = Link(connection)
    try:
        link.greet()
        kind, head, _ = link.receive(_LONGEST_GREETING)
        index, theirs = int(head["index"]), int(head["count"])
        if kind != _HELLO:
            raise ValueError("the other end is not a process of sdelens")
    except (OSError, ValueError, KeyError, TypeError):
        link.close()
        return
    why = None
    if theirs != count:
        why = (
            f"num_processes: process {index} got {theirs}, but process 0 got {count}; give all processes the same "
            "number."
        )
    elif (index in links and not links[index].gone()) or not 0 < index < count:
        why = f"process_id: got {index}, but another process has that number; give each process a different one."
    if why is None:
        links[index] = link
        return
    with contextlib.suppress(OSError):
        link.send(FAILED, {"why": why})
    link.close()
    if theirs != count:
        raise ValueError(why)


def reached(host: str, port: int, count: int, index: int, deadline: float, timeout: float) -> Link:
    """Connect to process 0 and wait until all processes have connected to it.

    Raises:
        OSError: if process 0 cannot be reached in time, or refuses this process.
    """
    reason = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        link: Link | None = None
        try:
            link = Link(socket.create_connection((host, port), timeout=min(left, _GREETING_SECONDS)))
            link.greet()
            link.send(_HELLO, {"index": index, "count": count})
            link.patient(timeout + _GREETING_SECONDS)
            kind, head, _ = link.receive(_LONGEST_GREETING)
        except (OSError, ValueError) as error:
            reason = str(getattr(error, "strerror", None) or error)
            if link is not None:
                link.close()
            time.sleep(_RETRY_SECONDS)
            continue
        if kind == FAILED:
            raise ConnectionRefusedError(f"process 0 reports: {head['why']}")
        link.patient(None)
        return link
    raise TimeoutError(
        f"coordinator: process 0 did not answer at {host}:{port} within {timeout:g} s ({reason}); start it, and "
        "check the address, the port and the firewall."
    )


def in_a_line(error: BaseException) -> str:
    """The message of an error as one sentence without line breaks."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.endswith(".") else text + "."
