"""What the machine has."""

import os

__all__ = ["cores"]


def cores() -> list[int]:
    """The cores that this process may use, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
