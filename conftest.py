"""Two CPU devices for every test, chosen before JAX starts; one BLAS thread, since tests run side by side.

What tests themselves compute with `jax.numpy` is compiled without optimisation, which halves its time. Ensembles choose
their compiler options themselves, as they do for users, but up to a larger size without optimisation.
"""

import gc
import itertools
import os
from pathlib import Path

import jaxlib.version
import pytest

gc.set_threshold(50_000, 10, 4)  # Python's own take a tenth of the time of tests
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # the shell's, in the user's own folder

_UNOPTIMISED = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if jaxlib.version.__version_info__ < (0, 11, 1):  # later versions end the process at a flag that they do not know
    _UNOPTIMISED += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{_UNOPTIMISED} {os.environ.get('XLA_FLAGS', '')}".strip()

import jax
import threadpoolctl

threadpoolctl.threadpool_limits(1, "blas")  # that of NumPy, where a plugin of pytest has loaded it before this file
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)

from sdelens.core import compilation

compilation.SMALL *= 5  # two workers leave no core idle, on which a user's programs are compiled for speed

collect_ignore = ["src/sdelens/callbacks"]  # no examples in docstrings there, and all of Transformers to import
pytest_plugins = ["tests.meter", "tests.pages", "tests.results"]

_MAPS = Path("/proc/self/maps")
_ROOM = 20_000
"""Memory maps of compiled programs, some hundred a comparison, after which they are dropped; Linux allows 65530."""
_EVERY = 8
"""The maps are counted, which takes 10 ms, after this many tests."""
_finished = itertools.count(1)


def pytest_collection_finish():
    """What was imported is no garbage, and need not be searched."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Keep the tests of a file, which share programs, on one worker, and all examples in docstrings.

    Tests that compile long programs of their own choose smaller groups.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            docstring = isinstance(item, pytest.DoctestItem)
            item.add_marker(pytest.mark.xdist_group("docstrings" if docstring else item.path.name))


@pytest.fixture(scope="session", autouse=True)
def wide_terminal():
    """No sentence of a printed result is wrapped, so that tests find it; also in commands that they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "1000")
        yield


@pytest.fixture(autouse=True)
def bounded_memory():
    """A worker that runs some seven hundred tests would reach the limit, and crash in its next compilation."""
    yield
    if next(_finished) % _EVERY or not _MAPS.exists():
        return
    for drop in (gc.collect, jax.clear_caches):
        if _MAPS.read_bytes().count(b"\n") > _ROOM:
            drop()
            gc.collect()
