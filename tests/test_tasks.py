"""Tasks on an executor: which are repeated, after which pauses, and what is said of the others."""

import pickle
import traceback
from concurrent.futures import BrokenExecutor, CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from types import SimpleNamespace

import pytest

import sdelens as sl
from sdelens.core import tasks
from sdelens.core.tasks import TaskError, completed
from tests.executors import Pool


def once(keys, error):
    """Fails at the first attempt of each of these arguments."""
    left = set(keys)

    def fails(argument):
        if argument in left:
            left.remove(argument)
            return error
        return None

    return fails


class Travelled(Pool):
    """An executor that sends what its tasks return as bytes, as processes do."""

    def submit(self, function, *arguments):
        future = super().submit(function, *arguments)
        sent = Future()
        sent.set_result(pickle.loads(pickle.dumps(future.result())))
        return sent


def square(number):
    if isinstance(number, tuple):
        number, kind = number
        raise kind(f"{number} is not possible")
    return number**2


@pytest.fixture
def pauses(monkeypatch):
    """The pauses before lost tasks are repeated, which are not made."""
    made = []
    monkeypatch.setattr(tasks, "_pause", lambda times: made.append(times) or 0.0)
    return made


def test_lost_tasks_are_repeated_and_broken_pools_made_anew(pauses):
    numbers = {key: key for key in range(6)}
    squares = {key: key**2 for key in numbers}
    for error in (ConnectionError("reset by peer"), CancelledError()):
        assert dict(completed(Pool(once([2, 5], error)), square, numbers)) == squares
    assert pauses == [1] * 4
    made = []

    def make():
        made.append(Pool(fails))
        return made[-1]

    fails = once([1, 4], BrokenExecutor("a process was terminated abruptly"))
    assert dict(completed(make, square, numbers)) == squares
    assert len(made) == 3
    assert all(pool.closed for pool in made)


def test_a_folder_that_a_lost_worker_holds_is_waited_for(pauses):
    held = once([2], BlockingIOError("checkpoint: another run is writing to 'running-2'"))

    def function(number):
        if (error := held(number)) is not None:
            raise error
        return number

    assert dict(completed(Pool(lambda n: None), function, {2: 2, 3: 3})) == {2: 2, 3: 3}
    assert pauses == [1]


def test_what_cannot_be_repeated_is_said(pauses):
    numbers = {key: key for key in range(3)}
    named = "share {} of 3".format, "Run again with resume=True."
    lost = Pool(lambda n: ConnectionError("reset") if n == 2 else None)
    with pytest.raises(TaskError, match=r"share 2 of 3 was lost 3 times, .* ConnectionError: reset\. Run again with"):
        list(completed(lost, square, numbers, *named))
    assert pauses == [1, 2]
    broken = BrokenExecutor("terminated abruptly")
    with pytest.raises(
        TaskError, match=r"it has lost a worker .*2 of 3 tasks are left\. Give a function that makes"
    ) as left:
        list(completed(Pool(once([1], broken)), square, numbers))
    assert "__main__" not in str(left.value)  # a task has ended, so that the script is not the cause
    always = lambda n: broken  # noqa: E731
    for given, said in ((Pool(always), "lost a worker"), (lambda: Pool(always), "killed 3 times before any of them")):
        with pytest.raises(TaskError, match=rf"{said}.* The usual cause is a script without the line if __name__ == "):
            list(completed(given, square, numbers))


def test_executors_that_cannot_run_are_refused():
    """JAX waits without end in a forked process; a pool starts its processes with its first task only."""
    forked, spawned = (ProcessPoolExecutor(2, mp_context=get_context(method)) for method in ("fork", "spawn"))
    remedy = r"'fork', .*; give ProcessPoolExecutor\(2, mp_context=multiprocessing\.get_context\(\"spawn\"\)\)\."
    with pytest.raises(ValueError, match=rf"^executor: got a ProcessPoolExecutor .*{remedy}"):
        sl.Execution(executor=forked, shares=2)
    with pytest.raises(ValueError, match=remedy):
        list(completed(lambda: forked, square, {0: 1}))
    assert sl.Execution(executor=spawned, shares=2).executor is spawned
    with pytest.raises(TypeError, match=r"^executor: got a function that returns 3; it must return .*spawn"):
        list(completed(lambda: 3, square, {0: 1}))
    threads = ThreadPoolExecutor(1)
    for executor in (threads, spawned):
        executor.shutdown()
        with pytest.raises(
            TaskError, match=r"^executor: it has been shut down .*; use it before .*, or give a function"
        ):
            list(completed(executor, square, {0: 1}))


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError])
def test_an_error_of_the_task_ends_all_at_once(kind, pauses):
    """What has ended together with it is passed on; the traceback of the worker and the name of the task are shown."""
    named = "share {} of 3".format, "Run again with resume=True."
    ended = {}
    with pytest.raises(kind, match="13 is not possible") as raised:  # noqa: PT012 (a generator)
        for key, value in completed(Travelled(lambda n: None), square, {0: (13, kind), 1: 2, 2: 3}, *named):
            ended[key] = value
    assert (ended, pauses) == ({1: 4, 2: 9}, [])
    assert raised.value.__notes__ == ["This was raised by share 0 of 3. Run again with resume=True."]
    assert 'raise kind(f"{number} is not possible")' in "".join(traceback.format_exception(raised.value))
    unknown = Pool(lambda n: ModuleNotFoundError("No module named 'sdelens'"))
    with pytest.raises(TaskError, match=r"0 cannot be run by the executor \(ModuleNotFoundError: .* same versions"):
        list(completed(unknown, square, {0: 0}))


def test_an_error_ends_the_processes_of_a_pool_that_was_made_here():
    """Python would otherwise wait at its end for the tasks that they run."""
    ended = []
    pool = Pool(lambda n: None)
    pool._processes = {7: SimpleNamespace(terminate=lambda: ended.append(7))}
    assert dict(completed(lambda: pool, square, {0: 2})) == {0: 4}
    assert (ended, pool.closed) == ([], True)
    for executor, expected in ((pool, []), (lambda: pool, [7])):
        with pytest.raises(ValueError, match="13 is not possible"):
            list(completed(executor, square, {0: (13, ValueError)}))
        assert ended == expected
