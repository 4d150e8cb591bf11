"""Progress of long computations on standard error: a bar on a terminal, occasional lines in a log."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

__all__ = ["progress_bar"]

_LINE_SECONDS = 10.0


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
        yield lambda more, label: None
    elif terminal:
        with _bar(total, done) as report:
            yield report
    else:
        yield _lines(total, done)


@contextmanager
def _bar(total: int, done: int) -> Iterator[Callable[[int, str], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, completed=done)
        yield lambda more, label: bar.update(task, advance=more, description=label)


def _lines(total: int, done: int) -> Callable[[int, str], None]:
    begin = printed = time.monotonic()
    new = 0

    def report(more: int, label: str) -> None:
        nonlocal new, printed
        new += more
        now = time.monotonic()
        if new == 0 or now - printed < _LINE_SECONDS:
            return
        printed = now
        left = timedelta(seconds=round((now - begin) * (total - done - new) / new))
        print(f"sdelens: {label}: {(done + new) / total:.0%}, about {left} left", file=sys.stderr, flush=True)

    return report
