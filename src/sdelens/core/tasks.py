"""Independent tasks on an executor: started all at once, yielded as they end, and repeated if a worker is lost."""

import pickle
import time
import traceback
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from contextlib import suppress
from typing import Any, Generic, NamedTuple, TypeVar

__all__ = ["TaskError", "check_executor", "completed"]

_ATTEMPTS = 3
"""How often a task is lost before it is given up, and how often in a row a pool breaks before any task ends."""
_PAUSE = 1.0
"""Seconds before a lost task is started for the second time; before the third time they are four times as many."""
_LOST = (CancelledError, OSError, EOFError)
"""What an executor raises if the connection to a worker is lost: `ConnectionError` and `TimeoutError` are `OSError`."""
_SPAWNED = 'ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))'
_GUARD = (
    "The usual cause is a script without the line if __name__ == '__main__': before what it runs; spawned workers "
    "import the script, and would run it again. Otherwise the workers may need more memory."
)
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class TaskError(RuntimeError):
    """A task was lost again and again, or the executor cannot run it, or cannot run any more."""


class _WorkerError(Exception):
    """The traceback of a worker as text, shown as the cause of the error that it raised."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def check_executor(executor: Any) -> None:
    """Refuse what is neither an executor nor a function that makes one, and a pool of forked processes.

    Raises:
        TypeError, ValueError: saying what to give.
    """
    is_executor = callable(getattr(executor, "submit", None))
    if isinstance(executor, type) or not (is_executor or callable(executor)):
        raise TypeError(
            f"executor: got {executor!r}; give a concurrent.futures.Executor, such as client.get_executor() of Dask, "
            "or a function without arguments that makes one."
        )
    context = getattr(executor, "_mp_context", None)  # nothing public tells the start method of a pool
    if context is not None and context.get_start_method() == "fork":
        raise ValueError(
            "executor: got a ProcessPoolExecutor with the start method 'fork', whose processes would wait without "
            f"end, because JAX runs several threads; give {_SPAWNED}."
        )


def completed(
    executor: Executor | Callable[[], Executor],
    function: Callable[[Any], _Value],
    arguments: Mapping[_Key, Any],
    name: Callable[[_Key], str] = str,
    remedy: str = "",
) -> Generator[tuple[_Key, _Value], None, None]:
    """Call a function with every argument on an executor; yields key and value of each task as it ends.

    A task that is lost with its worker is started again after 1 s, and once more after 4 s: if the executor reports a
    lost connection or a cancelled task, or if the folder of the task is still locked (`BlockingIOError`), which is so
    while a worker that is out of reach goes on. `BrokenExecutor`, which is what a process pool raises when one of its
    processes is killed, ends all tasks of the pool: if `executor` is a function, it makes a new one after the same
    pauses.

    Every other error ends all tasks at once. That of the function itself is raised here as it is, with the worker's
    traceback as its cause, and with the name of the task and the remedy as a note.

    Args:
        executor: the executor, or a function that makes one; one that is made here is shut down at the end.
        function: called by the workers, so it must be importable there.
        arguments: argument of every task by key; it travels by pickle.
        name: name of a task in messages.
        remedy: what to do after an error, as the last sentence of messages.

    Raises:
        TaskError: if a task is lost three times, or the executor cannot run it, breaks and cannot be made again, or
            has been shut down.
        TypeError, ValueError: if the executor, or what the function makes, is refused by `check_executor`.
    """
    pool: _Pool[_Key] = _Pool(executor)
    try:
        yield from _Tasks(pool, function, arguments, name, remedy).ended()
    except BaseException:
        pool.close(wait=False)
        raise
    pool.close(wait=True)


class _Pool(Generic[_Key]):
    """The executor, made anew when it breaks, and the tasks that it runs."""

    def __init__(self, executor: Any) -> None:
        self._make: Callable[[], Executor] | None = None if hasattr(executor, "submit") else executor
        self._executor: Executor = executor if self._make is None else self._made()
        self.running: dict[Future, _Key] = {}

    @property
    def can_be_renewed(self) -> bool:
        """Whether the executor was made here."""
        return self._make is not None

    def renew(self) -> None:
        """Replace a broken executor, which was made here."""
        assert self._make is not None
        self.running.clear()
        self.close(wait=False)
        self._executor = self._made()

    def _made(self) -> Executor:
        """A new executor, checked."""
        assert self._make is not None
        executor = self._make()
        if not callable(getattr(executor, "submit", None)):
            raise TypeError(
                f"executor: got a function that returns {executor!r}; it must return a new "
                f"concurrent.futures.Executor, for example {_SPAWNED}."
            )
        check_executor(executor)
        return executor

    def submit(self, key: _Key, function: Callable[[Any], Any], argument: Any) -> None:
        self.running[self._executor.submit(_attempted, function, argument)] = key

    def close(self, wait: bool) -> None:
        """Cancel what has not ended, and shut the executor down if it was made here.

        Without `wait`, the processes of a pool are ended: Python would wait at its end for the tasks that they run.
        """
        for future in self.running:
            future.cancel()
        if self._make is not None:
            with suppress(Exception):  # it may be broken
                processes = getattr(self._executor, "_processes", None) or {}  # terminate_workers of Python 3.14
                for process in [] if wait else list(processes.values()):
                    process.terminate()
                self._executor.shutdown(wait=wait, cancel_futures=True)


class _Tasks(Generic[_Key, _Value]):
    """The tasks of one call of `completed`."""

    def __init__(
        self,
        pool: _Pool[_Key],
        function: Callable[[Any], _Value],
        arguments: Mapping[_Key, Any],
        name: Callable[[_Key], str],
        remedy: str,
    ) -> None:
        self._pool, self._function, self._name, self._remedy = pool, function, name, remedy
        self._left, self._count = dict(arguments), len(arguments)
        self._lost = dict.fromkeys(arguments, 0)
        self._breaks = 0
        self._due: dict[_Key, float] = dict.fromkeys(arguments, 0.0)  # when tasks that do not run are to be started

    def ended(self) -> Generator[tuple[_Key, _Value], None, None]:
        """Keys and values of the tasks as they end."""
        while self._left:
            broken = self._start()
            failed: dict[_Key, Any] = {}
            for future in self._waited():
                key, outcome = self._pool.running.pop(future), _outcome(future)
                if isinstance(outcome, BaseException | _Raised):
                    failed[key] = outcome
                    continue
                del self._left[key]
                self._breaks = 0
                yield key, outcome
            for key, outcome in failed.items():  # after what succeeded has been passed on
                if isinstance(outcome, BrokenExecutor):
                    broken = outcome
                else:
                    self._repeat(key, outcome)
            if broken is not None:
                self._renew(broken)

    def _start(self) -> BrokenExecutor | None:
        """Start the tasks whose time has come; why the executor takes no more, or None.

        Raises:
            TaskError: if it has been shut down.
        """
        now = time.monotonic()
        for key in [key for key, due in self._due.items() if due <= now]:
            try:
                self._pool.submit(key, self._function, self._left[key])
            except BrokenExecutor as broken:
                return broken
            except RuntimeError as error:
                if "shutdown" not in str(error):  # the words of Python's and Dask's executors
                    raise
                raise self._given_up(
                    f"executor: it has been shut down ({error}); use it before it is shut down, that is inside its "
                    f"with block, or give a function that makes it, such as executor=lambda: {_SPAWNED}."
                ) from error
            del self._due[key]
        return None

    def _waited(self) -> set[Future]:
        """The tasks that have ended when the first ends, or when a task is to be started again."""
        pause = max(min(self._due.values()) - time.monotonic(), 0) if self._due else None
        if not self._pool.running:
            time.sleep(pause or 0)
            return set()
        return wait(self._pool.running, pause, FIRST_COMPLETED).done

    def _repeat(self, key: _Key, failed: "BaseException | _Raised") -> None:
        """Have a task started again if it was lost with its worker.

        Raises:
            TaskError: if it was lost too often, or the executor cannot run it.
            Exception: what the task itself raised.
        """
        name = self._name(key)
        if isinstance(failed, _Raised):
            error: BaseException = failed.error
            if not isinstance(error, BlockingIOError):
                if error.__traceback__ is None:  # it has travelled
                    error.__cause__ = _WorkerError(failed.trace)
                error.add_note(f"This was raised by {name}. {self._remedy}".rstrip())
                raise error
        else:
            error = failed
            if not isinstance(error, _LOST):
                raise self._given_up(
                    f"{name} cannot be run by the executor ({type(error).__name__}: {error}). Workers need the "
                    "packages that are installed here, in the same versions, and enough memory."
                ) from error
        self._lost[key] += 1
        if self._lost[key] == _ATTEMPTS:
            raise self._given_up(
                f"{name} was lost {_ATTEMPTS} times, the last time by {type(error).__name__}: {error}."
            ) from error
        self._due[key] = time.monotonic() + _pause(self._lost[key])

    def _renew(self, broken: BrokenExecutor) -> None:
        """Make a broken executor anew, after a pause.

        Raises:
            TaskError: if that is not possible, or has not helped.
        """
        self._breaks += 1
        if not self._pool.can_be_renewed:
            cause = f" {_GUARD}" if len(self._left) == self._count else ""
            raise self._given_up(
                f"executor: it has lost a worker and cannot run anything more ({broken}); {len(self._left)} of "
                f"{self._count} tasks are left. Give a function that makes the executor, which is called again then, "
                f"for example executor=lambda: {_SPAWNED}.{cause}"
            ) from broken
        if self._breaks == _ATTEMPTS:
            raise self._given_up(
                f"executor: its workers were killed {_ATTEMPTS} times before any of them ended a task ({broken}). "
                f"{_GUARD}"
            ) from broken
        time.sleep(_pause(self._breaks))
        self._pool.renew()
        self._due = dict.fromkeys(self._left, 0.0)

    def _given_up(self, text: str) -> TaskError:
        return TaskError(f"{text} {self._remedy}".rstrip())


class _Raised(NamedTuple):
    """What a task raised in the worker, which is thus told from what the executor raises.

    Attributes:
        error: the exception.
        trace: its traceback.
    """

    error: Exception
    trace: str


def _pause(times: int) -> float:
    return _PAUSE * 4 ** (times - 1)


def _outcome(future: "Future[Any]") -> Any:
    """The value of a task that has ended, what it raised, or the exception of the executor."""
    try:
        return future.result()
    except (Exception, CancelledError) as error:
        return error


def _attempted(function: Callable[[Any], Any], argument: Any) -> Any:
    """Call the function in the worker; returns its value, or what it raised."""
    try:
        return function(argument)
    except Exception as error:
        trace = traceback.format_exc()
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return _Raised(RuntimeError(f"{type(error).__name__}: {error}"), trace)
        return _Raised(error, trace)
