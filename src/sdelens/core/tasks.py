"""Independent tasks on an executor: started all at once, yielded as they end, and repeated if a worker dies."""

import pickle
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from contextlib import suppress
from typing import Any, Generic, TypeVar

__all__ = ["TaskError", "completed"]

_ATTEMPTS = 3
"""How often a task is lost before it is given up, and how often in a row a pool breaks before any task ends."""
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class TaskError(RuntimeError):
    """A task was lost again and again, or the executor cannot run any more."""


def completed(
    executor: Executor | Callable[[], Executor],
    function: Callable[[Any], _Value],
    arguments: Mapping[_Key, Any],
    name: Callable[[_Key], str] = str,
) -> Generator[tuple[_Key, _Value], None, None]:
    """Call a function with every argument on an executor; yields key and value of each task as it ends.

    A task whose worker dies is started again, up to three times. `BrokenExecutor`, which is what a process pool raises
    when one of its processes is killed, ends all tasks of the pool: if `executor` is a function, it makes a new one. An
    exception of the task itself is raised here, except `OSError`, after which the task is also started again.

    Args:
        executor: the executor, or a function that makes one; one that is made here is shut down at the end.
        function: called by the workers, so it must be importable there.
        arguments: argument of every task by key; it travels by pickle.
        name: name of a task in messages.

    Raises:
        TaskError: if a task is lost three times, or the executor breaks and cannot be made again.
    """
    pool: _Pool[_Key] = _Pool(executor)
    try:
        yield from _ended(pool, function, arguments, name)
    except BaseException:
        pool.close(wait=False)
        raise
    pool.close(wait=True)


class _Pool(Generic[_Key]):
    """The executor, made anew when it breaks, and the tasks that it runs."""

    def __init__(self, executor: Any) -> None:
        self._make: Callable[[], Executor] | None = None if hasattr(executor, "submit") else executor
        self._executor: Executor = executor if self._make is None else self._make()
        self.running: dict[Future, _Key] = {}

    def renew(self) -> bool:
        """Replace a broken executor; False if that is not possible."""
        self.running.clear()
        if self._make is None:
            return False
        self.close(wait=False)
        self._executor = self._make()
        return True

    def submit(self, key: _Key, function: Callable[[Any], Any], argument: Any) -> None:
        self.running[self._executor.submit(_attempted, function, argument)] = key

    def close(self, wait: bool) -> None:
        """Cancel what has not ended, and shut the executor down if it was made here."""
        for future in self.running:
            future.cancel()
        if self._make is not None:
            with suppress(Exception):  # it may be broken
                self._executor.shutdown(wait=wait, cancel_futures=True)


def _ended(
    pool: _Pool, function: Callable[[Any], _Value], arguments: Mapping[_Key, Any], name: Callable[[_Key], str]
) -> Generator[tuple[_Key, _Value], None, None]:
    left, lost, breaks = dict(arguments), dict.fromkeys(arguments, 0), 0
    waiting = list(left)
    while left:
        broken: BrokenExecutor | None = None
        try:
            for key in waiting:
                pool.submit(key, function, left[key])
        except BrokenExecutor as raised:
            broken = raised
        waiting = []
        for future in wait(pool.running, return_when=FIRST_COMPLETED).done if pool.running else ():
            key = pool.running.pop(future)
            error, value = _outcome(future)
            if error is None:
                del left[key]
                breaks = 0
                yield key, value
            elif isinstance(error, BrokenExecutor):
                broken = error
            elif lost[key] + 1 < _ATTEMPTS:
                lost[key] += 1
                waiting.append(key)
            else:
                raise TaskError(
                    f"{name(key)} was lost {_ATTEMPTS} times, the last time by {type(error).__name__}: {error}"
                ) from error
        if broken is not None:
            breaks += 1
            _renew(pool, broken, breaks, len(left), len(arguments))
            waiting = list(left)


def _renew(pool: _Pool, broken: BrokenExecutor, breaks: int, left: int, count: int) -> None:
    """Make a broken executor anew.

    Raises:
        TaskError: if that is not possible, or has not helped.
    """
    if breaks == _ATTEMPTS:
        raise TaskError(
            f"executor: its workers were killed {_ATTEMPTS} times before any of them ended a task ({broken}); do they "
            "have enough memory?"
        ) from broken
    if not pool.renew():
        raise TaskError(
            f"executor: it has lost a worker and cannot run anything more ({broken}); {left} of {count} tasks are "
            "left. Give a function that makes the executor, which is called again then, for example executor=lambda: "
            "ProcessPoolExecutor(4)."
        ) from broken


def _outcome(future: "Future[Any]") -> tuple[BaseException | None, Any]:
    """The value of a task that has ended, or the reason for which it is to be repeated.

    Raises:
        Exception: what the task itself raised.
    """
    try:
        succeeded, value = future.result()
    except (Exception, CancelledError) as error:
        return error, None
    if succeeded:
        return None, value
    if isinstance(value, OSError):
        return value, None
    raise value


def _attempted(function: Callable[[Any], Any], argument: Any) -> tuple[bool, Any]:
    """Call the function in the worker; returns whether it succeeded, and its value or its exception.

    Exceptions of the task are thus told from those of the executor.
    """
    try:
        return True, function(argument)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return False, RuntimeError(f"{type(error).__name__}: {error}")
        return False, error
