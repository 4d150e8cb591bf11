"""Two CPU devices for every test, chosen before JAX starts; one BLAS thread, since tests run side by side."""

import itertools
import os

import pytest

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)

_RUN = itertools.count(1)


@pytest.fixture(autouse=True)
def bounded_memory():
    """Several workers share a machine, and a thousand tests would leave gigabytes of compiled programs each."""
    yield
    if next(_RUN) % 150 == 0:
        jax.clear_caches()
