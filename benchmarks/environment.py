"""On what a measurement was made."""

import datetime
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.timing import ALL, ONE, Workers
from sdelens.core.machine import cores

__all__ = ["devices", "environment", "resident_peak"]

_PACKAGES = ("sdelens", "jax", "jaxlib", "numpy", "optax", "equinox", "diffrax", "torch", "torchsde")
_VARIABLES = ("XLA_FLAGS", "JAX_PLATFORMS", "OMP_NUM_THREADS", "JAX_COMPILATION_CACHE_DIR", "CUDA_VISIBLE_DEVICES")


def environment(workers: Workers) -> dict[str, Any]:
    """Everything that a number may depend on, as JSON types."""
    own = {"platform": platform.platform(), "python": platform.python_version(), "machine": platform.machine()}
    found = {setting: workers.call(setting, "benchmarks.environment:devices") for setting in (ONE, ALL)}
    return own | {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": len(cores()),
        "memory_bytes": _memory(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "packages": {name: _version(name) for name in _PACKAGES},
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "devices": found[ALL]["devices"],
        "kind": found[ALL]["kind"],
        "settings": found,
    }


def devices() -> dict[str, Any]:
    """What a worker sees; called in it."""
    import jax

    found = jax.devices()
    return {"devices": [str(d) for d in found], "kind": found[0].device_kind, "cores": cores()}


def resident_peak() -> float:
    """Peak memory of this process in bytes; NaN where the system does not say.

    Not `ru_maxrss`: a process begins with that of the one that started it.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    return 1024.0 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of this folder, with a mark if files were changed; None outside a repository."""
    folder = Path(__file__).parents[1]

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "benchmarks")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
