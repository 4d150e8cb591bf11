"""Resources of the machine."""

import os

__all__ = ["cores"]


def cores() -> list[int]:
    """The cores that this process may use, or all cores if the system does not report them."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
