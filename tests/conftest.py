"""Two CPU devices for every test, chosen before JAX starts; one BLAS thread, since tests run side by side."""

import gc
import os
from pathlib import Path

import pytest

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)

_MAPS = Path("/proc/self/maps")
_ROOM = 20_000
"""Memory maps of compiled programs, some hundred a comparison, after which they are dropped; Linux allows 65530."""


@pytest.fixture(autouse=True)
def bounded_memory():
    """A worker that runs some seven hundred tests would reach the limit, and crash in its next compilation."""
    yield
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _ROOM:
        jax.clear_caches()
        gc.collect()
