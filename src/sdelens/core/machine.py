"""Resources of the machine."""

import functools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

__all__ = ["cores", "one_blas_thread"]

_LOCK: Final = threading.Lock()
_LIMITS: Final[list[Any]] = []
"""The limit that is in force, once for every block that needs it."""


def cores() -> list[int]:
    """The cores that this process may use, or all cores if the system does not report them."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Linear algebra on one thread; also a decorator, ``@one_blas_thread()``.

    On matrices of a few hundred rows several threads mostly wait for one another, which takes many times as long if
    other processes use the cores. The limit holds for the whole process, until no thread of Python needs it any more.
    """
    with _LOCK:
        _LIMITS.append(_LIMITS[-1] if _LIMITS else _libraries().limit(limits=1, user_api="blas"))
    try:
        yield
    finally:
        with _LOCK:
            limit = _LIMITS.pop()
            if not _LIMITS:
                limit.restore_original_limits()


@functools.cache
def _libraries() -> Any:
    """The libraries of linear algebra that this process has loaded."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
