"""Compiler options are chosen by the work that lies ahead, and what was compiled ahead is found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import sdelens as sl
from sdelens.core.compilation import _OPTIONS, SMALL, Program, _way, compiled_ahead, operations
from tests.checks import compilations

X = np.ones((3, 4), np.float32)


def traced(function, *arguments):
    return jax.make_jaxpr(function)(*arguments)


@pytest.mark.parametrize(
    ("function", "count"),
    [
        (lambda x: x + 1, 12),
        (lambda x: jnp.exp(x) * x, 24),
        (lambda x: x @ jnp.ones((4, 5), x.dtype), 5 * 4 + 3 * 5 * 4),  # the ones, and a product for each of 3 × 5 sums
        (lambda x: lax.fori_loop(0, 7, lambda _, y: y * x, x), 7 * (12 + 1)),  # and the counter
        (lambda x: lax.cond(x[0, 0] > 0, lambda y: y * y * y, lambda y: y, x), 24 + 4),  # slice, squeeze, >, convert
        (lambda x: lax.dynamic_update_slice(x, 2 * x[:1], (0, 0)), 4 + 4 + 4),  # what is sliced, doubled, written
        (lambda x: lax.platform_dependent(x, cpu=lambda y: y + 1, default=lambda y: y * y * y), 12 + 1),
    ],
)
def test_operations_are_counted_by_element(function, count):
    assert operations(traced(function, X)) == count


def test_loops_of_unknown_length_count_as_often_as_is_said_and_dead_code_does_not():
    def walk(x, n):
        return lax.fori_loop(0, n, lambda _, y: y * x, x), jnp.exp(x)

    once, often = (operations(traced(lambda x, n: walk(x, n)[0], X, 5), repeats) for repeats in (1, 100))
    assert often - once == 99 * (12 + 1 + 1)  # the product, the counter, its comparison
    assert operations(traced(walk, X, 5)) - once == 12
    assert operations(traced(lambda x: (jnp.exp(x), x + 1)[1], X)) == 12


def test_small_work_goes_the_quick_way_and_what_needs_care_does_not():
    small, large = (traced(jnp.exp, jax.ShapeDtypeStruct((n,), np.float32)) for n in (10, int(2 * SMALL)))
    assert [_way(small, 1, "cpu"), _way(small, 1, "gpu"), _way(large, 1, "cpu")] == ["quick", "wide", "wide"]
    looped = traced(lambda x, n: lax.fori_loop(0, n, lambda _, y: y * x, x), X, 5)
    assert [_way(looped, repeats, "cpu") for repeats in (1, SMALL)] == ["quick", "wide"]
    assert _way(traced(jnp.arctan, jax.ShapeDtypeStruct((int(2 * SMALL),), np.float32)), 1, "cpu") == "narrow"
    # The derivative of a maximum compares floats; that of a softmax's does not need the comparison it leaves behind.
    assert _way(traced(jax.grad(lambda x: x.max(axis=0).sum()), X), 1, "cpu") == "wide"
    assert _way(traced(jax.grad(lambda x: jax.nn.logsumexp(x, axis=0).sum()), X), 1, "cpu") == "quick"


def test_the_ways_differ_by_rounding():
    def numbers(key, x):
        from sdelens.core.random import Stream

        normal = Stream(key, jnp.arange(500, dtype=jnp.uint32)).normal(8, jnp.float32)
        return normal, lax.fori_loop(0, 5, lambda i, y: jnp.tanh(y + 0.1 * normal) / (1 + i), x * normal)

    key, x = np.array([1, 2], np.uint32), np.linspace(0.1, 1, 8, dtype=np.float32)[:, None]
    lowered = jax.jit(numbers).lower(key, x)
    quick, *others = (lowered.compile(options)(key, x) for options in _OPTIONS.values())
    for other in others:
        for a, b in zip(quick, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-7)


def test_what_another_thread_compiled_is_found():
    program = Program(lambda x, n: lax.fori_loop(0, n, lambda _, y: y * jnp.sin(x), x))
    x = jnp.asarray(X)
    with compilations() as compiled:
        with compiled_ahead([("a", program.compilation(9, x, 3)), ("b", program.compilation(9, x, 3))]) as wait:
            wait("a")
        assert program.compilation(9, x, 3) is None
        assert program.compilation(SMALL, x, 3) is not None  # by the other way
        program.chosen(9, x, 3)(x, 3)
    assert len(compiled) == 1


def test_an_error_of_compilation_comes_where_it_is_waited_for():
    def fail():
        raise RuntimeError("no room")

    with compiled_ahead([("a", None), ("b", fail)]) as wait:
        wait("a")
        with pytest.raises(RuntimeError, match="no room"):
            wait("b")


def test_a_comparison_compiles_start_and_segments_of_each_model_once_and_no_more():
    problem, noise = sl.Quadratic(np.linspace(1.0, 3.0, 11)), sl.GaussianNoise(np.full(11, 0.7))
    with compilations() as compiled:
        sl.compare(problem, noise, sl.SGD(0.1), ["optimizer", "sde"], steps=5, paths=6)
    assert len(compiled) <= 1 + 2 * 2  # the loss at the start, and both programs of both models
    with compilations() as compiled:
        sl.compare(problem, noise, sl.SGD(0.2), ["optimizer", "sde"], steps=5, paths=6)
    assert not compiled


def test_gradients_through_a_maximum_are_finite_in_a_small_run():
    """JAX divides by how many entries equal the maximum, which is 0/0 if a compiler rounds the two differently."""

    def loss(p):
        hidden = jnp.tanh(p["a"] @ p["b"]) * jnp.exp(p["a"]).sum()
        return (hidden.reshape(4, 2, 2).max(axis=(1, 2)) ** 2).sum()

    rng = np.random.default_rng(0)
    start = {"a": rng.normal(size=(4, 5)).astype(np.float32), "b": rng.normal(size=(5, 4)).astype(np.float32)}
    found = sl.simulate(sl.Problem(loss, start), sl.GaussianNoise(0.1), sl.SGD(1e-3), "sde", steps=4, paths=3)
    assert np.isfinite(found.dataset.loss_mean).all()
