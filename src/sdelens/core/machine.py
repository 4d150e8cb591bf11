"""Resources of the machine."""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["cores", "one_blas_thread"]


def cores() -> list[int]:
    """The cores that this process may use, or all cores if the system does not report them."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Linear algebra on one thread; also a decorator, ``@one_blas_thread()``.

    On matrices of a few hundred rows several threads mostly wait for one another, which takes many times as long if
    other processes use the cores.
    """
    with _libraries().limit(limits=1, user_api="blas"):
        yield


@functools.cache
def _libraries() -> Any:
    """The libraries of linear algebra that this process has loaded."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
