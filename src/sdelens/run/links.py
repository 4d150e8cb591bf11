"""Connections between processes: process 0 takes one from every other, and frames of bytes go over them."""

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
    """One connection: frames of a kind, a head in JSON and a payload."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket, self._sending = connection, threading.Lock()
        self.heard = time.monotonic()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, kind: bytes, head: dict[str, Any], payload: bytes = b"", patience: float = -1.0) -> None:
        """Send a message: its kind (a byte), a head as JSON, and bytes; wait so long for others under way."""
        text = json.dumps(head).encode()
        if not self._sending.acquire(timeout=patience):
            raise TimeoutError("a message is still under way")
        try:
            self._socket.sendall(kind + _HEAD.pack(len(text), len(payload)) + text)
            if payload:
                self._socket.sendall(payload)
        finally:
            self._sending.release()

    def beat(self) -> None:
        """Show that this process lives, unless a message under way does."""
        if self._sending.acquire(blocking=False):
            try:
                with contextlib.suppress(OSError):  # full: the other does not read; gone: the listener will tell
                    self._socket.send(_BEAT, getattr(socket, "MSG_DONTWAIT", 0))
            finally:
                self._sending.release()

    def receive(self, longest: int | None = None) -> tuple[bytes, dict[str, Any], bytes]:
        """The next message, signs of life skipped; one longer than `longest` is refused."""
        while (kind := self._read(1)) == _BEAT:
            pass
        length, size = _HEAD.unpack(self._read(_HEAD.size))
        if longest is not None and max(length, size) > longest:
            raise ValueError("not one of ours")
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
        """Exchange the words by which each end knows the other for one of ours.

        Raises:
            ValueError: if the other is none.
        """
        self._socket.settimeout(_GREETING_SECONDS)
        self._socket.sendall(_MAGIC)
        if self._read(len(_MAGIC)) != _MAGIC:
            raise ValueError("not one of ours")

    def patient(self, seconds: float | None) -> None:
        """Wait no longer than this for what is to be read; None waits for ever."""
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
        """End the connection, both ways."""
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
    """A socket that takes connections at the port: of this machine alone if the host is a name of its own for that."""
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
        raise OSError(f"coordinator: port {port} cannot be opened here ({reason}); give another to all.") from error


def gathered(server: socket.socket, count: int, timeout: float) -> dict[int, Link]:
    """The connections of all other processes, as process 0, once every one is there.

    Raises:
        ValueError: if a process was told another number of processes.
        OSError: naming those that have not come in time.
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
                        f"processes: {some} of {count} did not arrive within {timeout:g} s; start all of them within "
                        "that time, or wait longer (--join-timeout)."
                    ) from None
                _admit(connection, count, links)
        except BaseException as error:
            for link in links.values():
                with contextlib.suppress(OSError):
                    link.send(FAILED, {"why": in_a_line(error)})
            raise
    for link in links.values():
        link.patient(None)
        with contextlib.suppress(OSError):  # gone already: who listens to it will be told
            link.send(_WELCOME, {})
    return links


def _admit(connection: socket.socket, count: int, links: dict[int, Link]) -> None:
    """Take up a process that has called, or send away what is none, or a second one of its number."""
    link = Link(connection)
    try:
        link.greet()
        kind, head, _ = link.receive(_LONGEST_GREETING)
        index, theirs = int(head["index"]), int(head["count"])
        if kind != _HELLO:
            raise ValueError("not one of ours")
    except (OSError, ValueError, KeyError, TypeError):
        link.close()
        return
    why = None
    if theirs != count:
        why = f"num_processes: process {index} was given {theirs}, process 0 {count}; give all the same."
    elif (index in links and not links[index].gone()) or not 0 < index < count:
        why = f"process_id: there is a process {index} already; give each another."
    if why is None:
        links[index] = link
        return
    with contextlib.suppress(OSError):
        link.send(FAILED, {"why": why})
    link.close()
    if theirs != count:
        raise ValueError(why)


def reached(host: str, port: int, count: int, index: int, deadline: float, timeout: float) -> Link:
    """The connection to process 0, once it has heard of all.

    Raises:
        OSError: if it cannot be reached in time, or does not let this process in.
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
            raise ConnectionRefusedError(f"process 0 says: {head['why']}")
        link.patient(None)
        return link
    raise TimeoutError(
        f"coordinator: no process 0 answers at {host}:{port} within {timeout:g} s ({reason}); start it, and see to the "
        "address, the port and the firewall."
    )


def in_a_line(error: BaseException) -> str:
    """What an error says, as one sentence without breaks."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.endswith(".") else text + "."
