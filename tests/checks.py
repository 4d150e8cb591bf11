"""What several test files check alike."""

import contextlib
import re
import sys
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

from sdelens.core.random import Stream, stream_key
from sdelens.shell import session
from sdelens.shell.app import app

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


def tiered(cases, slow):
    """Parameters of a test with their marks: `slow` for those of `cases` that are in `slow`, and `study` for others."""
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            id="-".join(case) if isinstance(case, tuple) else None,
            marks=pytest.mark.slow if case in slow else pytest.mark.study,
        )
        for case in cases
    ]


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


def stepped(steppers, steps, paths=(0,)):
    """States of paths, by their numbers, at 0, …, `steps` steps of each stepper: one program for all, no ensemble.

    Arrays of a state have a first axis of steps, and paths on the last one; the stream is that of seed 0 and "test".
    """
    stream = Stream(jnp.asarray(stream_key(0, "test")), jnp.asarray(paths, jnp.uint32))
    return jax.tree.map(np.asarray, _stepped(tuple(steppers), steps, stream))


@partial(jax.jit, static_argnames=("steps",))
def _stepped(steppers, steps, stream):
    count = stream.paths.shape[0]

    def wide(leaf):
        leaf = jnp.asarray(leaf)
        return jnp.broadcast_to(leaf[:, None], (*leaf.shape, count)) if leaf.ndim == 1 else leaf

    def courses(stepper):
        def step(y, k):
            y = stepper.step(k, y, stepper.evaluate(stepper.position(y))[1], stream)
            return y, y

        begin = jax.tree.map(wide, stepper.init(stream))
        after = jax.lax.scan(step, begin, jnp.arange(steps))[1]
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None].astype(b.dtype), b]), begin, after)

    return [courses(stepper) for stepper in steppers]


def shell(*arguments, expect=0):
    """A command of the shell in this process, as typed: what it printed, with `stdout` and `stderr`.

    JAX has started here, so the number of devices stays; all else is what the script does.
    """
    asked = session._ask_for

    def ask_for(devices):
        if devices is not None and devices < 1:
            asked(devices)  # refused before JAX is touched

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "_ask_for", ask_for)
        patch.setattr(sys, "argv", ["sdelens", *arguments])
        patch.setattr(warnings, "showwarning", warnings.showwarning)  # the shell sets its own
        done = CliRunner().invoke(app, arguments, prog_name="sdelens", terminal_width=100)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == expect, done.stderr
    return done


@contextlib.contextmanager
def declarations_restored():
    """What is declared by name within is forgotten afterwards."""
    from sdelens.core import declarations
    from sdelens.scaling import _rules
    from sdelens.sdes import _SDES

    registries = (declarations.OPTIMIZERS, declarations.NOISES, _rules.RULES, _SDES)
    before = [dict(registry) for registry in registries]
    try:
        yield
    finally:
        for registry, held in zip(registries, before, strict=True):
            registry.clear()
            registry.update(held)


def assert_fits(write, widths=(60, 80, 120)):
    """What `write` returns fits these widths without a broken word: the words are those of a very wide terminal."""

    def words(width):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("COLUMNS", str(width))
            text = write()
        assert max(map(len, text.splitlines())) <= width
        return {word for word in re.sub("[│╭╮╰╯─]|-{3,}", " ", text).split() if word != "--"}

    whole = words(400)
    for width in widths:
        assert words(width) == whole, f"a broken word at {width} columns"


def assert_shown_well(thing):
    """It fits terminals and prints at a page's length, and notebooks get a page of moderate weight."""
    assert repr(thing) == str(thing)
    assert len(str(thing)) < 6000
    assert_fits(lambda: str(thing))
    page = thing._repr_html_()
    assert len(page) < 120_000
    assert page.count("<table>") == page.count("</table>")
    assert "nan" not in page.split("base64")[0]
