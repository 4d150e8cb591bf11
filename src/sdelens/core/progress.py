"""Progress of long computations on standard error: a bar on a terminal, occasional lines in a log."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress

__all__ = ["progress_bar", "stage"]

_LINE_SECONDS = 10.0
_SHORT_SECONDS = 0.5
"""A stage outside a bar is shown once it has lasted this long."""


class _Display(Protocol):
    """What is shown while a computation runs."""

    def report(self, more: int, label: str) -> None:
        """Advance by `more`, in the part of the work that is named `label`."""

    def stage(self, label: str) -> AbstractContextManager[None]:
        """Show `label` in place of the part of the work until the block ends."""


_shown: ContextVar[_Display | None] = ContextVar("sdelens_progress", default=None)


@contextmanager
def progress_bar(wanted: bool | None, total: int, done: int = 0) -> Iterator[Callable[[int, str], None]]:
    """Show a bar on standard error, plain lines at most every 10 s if it is not a terminal, or nothing.

    Args:
        wanted: whether to show progress; None means only if standard error is a terminal.
        total: total amount of work.
        done: amount done in an earlier run, which is not used to estimate the time left.

    Yields:
        `report(more, label)`, which advances by `more`.
    """
    terminal = sys.stderr.isatty()
    if not (terminal if wanted is None else wanted):
        with _showing(_Nothing()) as report:
            yield report
    elif terminal:
        with _bar() as bar, _showing(_Bar(bar, total, done)) as report:
            yield report
    else:
        with _showing(_Lines(total, done)) as report:
            yield report


@contextmanager
def stage(label: str) -> Iterator[None]:
    """Show what is done until the block ends, if that is not counted as work: ``"compiling sde"``.

    It is shown on the bar or in the lines of `progress_bar` within whose block it is used. Elsewhere it is shown on a
    terminal if it lasts longer than half a second, and not in a log.
    """
    display = _shown.get()
    if display is None and sys.stderr.isatty():
        with _spinner() as spinner, _showing(spinner), spinner.stage(label):
            yield
    else:
        with (display or _Nothing()).stage(label):
            yield


@contextmanager
def _showing(display: _Display) -> Iterator[Callable[[int, str], None]]:
    token = _shown.set(display)
    try:
        yield display.report
    finally:
        _shown.reset(token)


class _Nothing:
    def report(self, more: int, label: str) -> None:
        pass

    @contextmanager
    def stage(self, label: str) -> Iterator[None]:
        yield


@contextmanager
def _bar() -> "Iterator[Progress]":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield bar


class _Bar:
    def __init__(self, bar: "Progress", total: int, done: int) -> None:
        self._bar, self._task = bar, bar.add_task("", total=total, completed=done)

    def report(self, more: int, label: str) -> None:
        self._bar.update(self._task, advance=more, description=label)

    @contextmanager
    def stage(self, label: str) -> Iterator[None]:
        before = self._bar.tasks[0].description
        self._bar.update(self._task, description=label)
        try:
            yield
        finally:
            self._bar.update(self._task, description=before)


class _Lines:
    """Lines of a log, at most one every 10 s; the time of stages is not used to estimate the time left."""

    def __init__(self, total: int, done: int) -> None:
        self._total, self._done, self._new = total, done, 0
        self._begin = self._printed = time.monotonic()

    def report(self, more: int, label: str) -> None:
        self._new += more
        now = time.monotonic()
        if self._new == 0 or now - self._printed < _LINE_SECONDS:
            return
        left = timedelta(seconds=round((now - self._begin) * (self._total - self._done - self._new) / self._new))
        self._print(f"{label}: {(self._done + self._new) / self._total:.0%}, about {left} left")

    @contextmanager
    def stage(self, label: str) -> Iterator[None]:
        begin, over = time.monotonic(), threading.Event()

        def tell() -> None:
            while not over.wait(_LINE_SECONDS):
                self._print(f"{label}, for {timedelta(seconds=round(time.monotonic() - begin))} now")

        teller = threading.Thread(target=tell, daemon=True)
        teller.start()
        try:
            yield
        finally:
            over.set()
            teller.join()
            self._begin += time.monotonic() - begin

    def _print(self, line: str) -> None:
        self._printed = time.monotonic()
        print(f"sdelens: {line}", file=sys.stderr, flush=True)


@contextmanager
def _spinner() -> "Iterator[_Spinner]":
    from rich.console import Console
    from rich.live import Live

    spinner = _Spinner()
    with Live(get_renderable=spinner.shown, console=Console(stderr=True), transient=True, refresh_per_second=8):
        yield spinner


class _Spinner(_Nothing):
    """One line that is empty for the first half second."""

    def __init__(self) -> None:
        from rich.spinner import Spinner

        self._begin, self._drawn = time.monotonic(), Spinner("line")

    @contextmanager
    def stage(self, label: str) -> Iterator[None]:
        before = self._drawn.text
        self._drawn.text = label
        try:
            yield
        finally:
            self._drawn.text = before

    def shown(self) -> "RenderableType":
        return self._drawn if time.monotonic() - self._begin > _SHORT_SECONDS else ""
