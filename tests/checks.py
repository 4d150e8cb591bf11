"""What several test files check alike."""

import contextlib

import jax
import numpy as np

COMPILED = "/jax/core/compile/backend_compile_duration"
"""JAX's event of a compiled program."""


def assert_same_numbers(a, b, tolerance=0.0, only=None):
    """All variables of two datasets, or those of `only`, are equal, to `tolerance` of each one's largest value."""
    assert only is not None or set(a.data_vars) == set(b.data_vars)
    for name in a.data_vars if only is None else (n for n in only if n in a and n in b):
        if not tolerance or a[name].dtype.kind != "f":
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        else:
            scale = np.abs(b[name].values[np.isfinite(b[name].values)]).max(initial=0.0)
            np.testing.assert_allclose(a[name], b[name], rtol=tolerance, atol=tolerance * scale, err_msg=name)


@contextlib.contextmanager
def compilations():
    """A list that grows by an entry for every program compiled within."""
    compiled = []

    def listen(event, seconds, **_):
        if event == COMPILED:
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
