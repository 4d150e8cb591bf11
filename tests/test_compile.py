"""Compiler options are chosen by the work that lies ahead, and what was compiled ahead is found."""

import types
from collections import deque
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import sdelens as sl
from sdelens.core.captured import Untraced, alike, captured
from sdelens.core.compilation import _OPTIONS, SMALL, Program, _way, compiled_ahead, operations
from sdelens.run.sizes import padded_paths
from tests.checks import compilations

X = np.ones((3, 4), np.float32)


def traced(function, *arguments):
    return jax.make_jaxpr(function)(*arguments)


@pytest.mark.parametrize(
    ("function", "count"),
    [
        (lambda x: x + 1, 12),
        (lambda x: jnp.exp(x) * x, 24),
        (
            lambda x: x @ jnp.ones((4, 5), x.dtype),
            5 * 4 + 3 * 5 * 4 / 10,
        ),  # the ones; a tenth of 3 × 5 sums of products
        (lambda x: x @ jnp.ones(4, x.dtype), 4 + 3 * 4),
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
    # The derivative of a maximum compares floats; that of a softmax's does not need the comparison that it leaves.
    assert _way(traced(jax.grad(lambda x: x.max(axis=0).sum()), X), 1, "cpu") == "wide"
    for harmless in (jax.nn.logsumexp, jax.nn.softplus):  # softplus compares with infinity
        assert _way(traced(jax.grad(lambda x, f=harmless: f(x).sum()), X), 1, "cpu") == "quick"


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
        one, other = (program.traced(9, x, 3).compilation() for _ in "ab")
        with compiled_ahead([("a", one), ("b", other)]) as wait:
            wait("a")
        assert program.traced(9, x, 3).compilation() is None
        assert program.traced(SMALL, x, 3).compilation() is not None  # by the other way
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


def simulated(problem, noise, optimizer, **options):
    return sl.simulate(problem, noise, optimizer, "optimizer", **options)


def test_other_sizes_and_numbers_compile_nothing():
    def run(problem, lr=0.1, every=2, **options):
        return simulated(problem, sl.GaussianNoise(1.0), sl.SGD(lr), record=sl.Record(every=every), **options)

    line = sl.Quadratic([1.0, 2.0], start=1.0)
    first = run(line, steps=4, paths=20)
    with compilations() as compiled:
        run(line, steps=300, paths=20)
        run(line, lr=0.2, steps=4, paths=20)
        run(line, every=3, steps=40, paths=31, seed=1)
        fewer = run(sl.Quadratic([1.5, 3.0], start=2.0), steps=4, paths=17)
    assert compiled == []
    assert first.dataset.sizes["group"], fewer.dataset.sizes["group"] == (20, 17)


def test_surplus_paths_change_nothing():
    problem, noise, options = sl.Quadratic([1.0, 2.0], start=1.0), sl.GaussianNoise(1.0), dict(steps=4, paths=17)
    padded = simulated(problem, noise, sl.SGD(0.1), **options).dataset
    exact = simulated(problem, noise, sl.SGD(0.1), **options, execution=sl.Execution(chunk=17)).dataset
    for name in ("loss_mean", "loss_group_mean", "n_paths", "loss_quantile", "x_var"):
        np.testing.assert_allclose(padded[name], exact[name], rtol=2e-6)


def test_numbers_of_paths_share_few_sizes_at_little_cost():
    paths = np.arange(1, 5000)
    sizes = np.array([padded_paths(int(n)) for n in paths])
    assert (sizes >= paths).all()
    assert (sizes < 1.125 * paths + 1e-9).all()
    assert set(sizes[1023:2047]) == set(range(1024, 2049, 128))
    assert padded_paths(1000) == 1024


def rebuilt(seed, factor=2.0, rate=1e-2):
    """A problem with data, an optimizer and an observable, all defined anew."""
    rng = np.random.default_rng(seed)
    data = rng.normal(size=(12, 2)).astype(np.float32), rng.normal(size=12).astype(np.float32)

    def loss(p, data):
        return factor * (data[0] @ p["w"] - data[1]) ** 2

    def transformation(lr):
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(lr))

    problem = sl.Problem(loss, {"w": jnp.ones(2)}, data, infimum=0.0 if seed else None)
    optimizer, record = (
        sl.FromOptax(transformation, rate),
        sl.Record(observables={"first": lambda p: factor * p["w"][0]}),
    )
    return simulated(problem, sl.MinibatchNoise(3), optimizer, steps=3, paths=4, record=record).dataset


def test_functions_defined_anew_and_other_data_compile_nothing_and_changed_values_are_noticed():
    first = rebuilt(0)
    with compilations() as compiled:
        other, again = rebuilt(1), rebuilt(0)
    assert compiled == []
    assert (first.loss_mean.values == again.loss_mean.values).all()
    assert (first.loss_mean.values != other.loss_mean.values).any()
    changed = rebuilt(0, factor=4.0)
    np.testing.assert_allclose(changed.loss_mean[0, 0], 2 * first.loss_mean[0, 0], rtol=1e-6)
    np.testing.assert_allclose(changed.observable_mean[0, 0, 0], 4.0)


class Holder(eqx.Module):
    """A pytree with a function among its options."""

    number: Any
    function: Any = eqx.field(static=True)
    said: Untraced = eqx.field(static=True, default=Untraced(None))


class Settings:
    """An object that a function reads."""

    def __init__(self, rate):
        self.rate, self.other = rate, 0


class Shared:
    """An object whose attributes functions read."""


class Slots:
    """The same, without a dictionary of attributes."""

    __slots__ = ("rate",)


class Table:
    """An object that functions index."""

    def __init__(self):
        self.values = {"a": 1.0}

    def __getitem__(self, name):
        return self.values[name]


def adder(value):
    return lambda x: x + value


@pytest.mark.parametrize(
    ("one", "two", "equal"),
    [
        (adder(1.0), adder(1.0), True),
        (adder(1.0), adder(2.0), False),
        (adder(1), adder(1.0), False),
        (adder(0.0), adder(-0.0), False),
        (adder(np.ones(2)), adder(np.ones(2)), True),
        (adder(np.ones(2)), adder(np.array([1.0, 2.0])), False),
        (adder(adder(1.0)), adder(adder(1.0)), True),
        (adder(adder(1.0)), adder(adder(2.0)), False),
        (adder({"a": [1, 2]}), adder({"a": [1, 2]}), True),
        (adder({"a": [1, 2]}), adder({"a": [1, 3]}), False),
        (adder(types.SimpleNamespace(a=1)), adder(types.SimpleNamespace(a=2)), False),
        (adder(Settings(1)), adder(Settings(1)), False),
        (lambda x: x + 1, lambda x: x + 1, True),
        (lambda x: x + 1, lambda x: x - 1, False),
        (lambda x, n=1: x + n, lambda x, n=2: x + n, False),
        (optax.adam(1e-3).update, optax.adam(1e-3).update, True),
        (optax.adam(1e-3).update, optax.adam(1e-2).update, False),
        (optax.lion, optax.lion, True),
        (jnp.sin, jnp.cos, False),
    ],
)
def test_functions_are_equal_if_their_code_and_what_they_read_are(one, two, equal):
    first, second = Holder(1.0, one, Untraced("a")), Holder(2.0, two, Untraced("b"))
    assert (captured(first) == captured(second)) is equal
    one, other = alike(first), alike(second)
    assert (jax.tree.structure(one[0]) == jax.tree.structure(other[0])) is equal
    assert (one[1] == other[1]) is equal
    assert other[0].number == 2.0


def test_what_functions_read_through_modules_and_objects_is_noticed():
    module, shared, table, slots = types.ModuleType("mine"), Shared(), Table(), Slots()
    module.rates, module.rate, shared.first, shared.second, slots.rate = {"a": 1.0}, 1.0, 1.0, 1.0, 1.0
    exec("def own(x):\n    return rate * x", module.__dict__)
    queue = deque([1.0])

    @jax.custom_jvp
    def known(x):
        return shared.first * x

    def inner(x):
        return shared.second * x

    def outer(x):
        return shared.first * inner(x)

    changes = [
        (lambda x: module.rates["a"] * x, lambda: module.rates.update(a=2.0)),
        (lambda x: 2 * module.own(x), lambda: setattr(module, "rate", 2.0)),
        (outer, lambda: setattr(shared, "second", 2.0)),
        (lambda x: 2 * known(x), lambda: setattr(shared, "first", 2.0)),
        (lambda x: table["a"] * x, lambda: table.values.update(a=2.0)),
        (lambda x: slots.rate * x, lambda: setattr(slots, "rate", 2.0)),
        (lambda x: queue[0] * x, lambda: queue.append(queue.pop() + 1)),
    ]
    for number, (function, change) in enumerate(changes):
        before = captured(Holder(1.0, function))
        assert captured(Holder(1.0, function)) == before, number
        change()
        assert captured(Holder(1.0, function)) != before, number


def test_a_changed_function_is_not_taken_for_the_one_that_it_was():
    """The first function of a key is not used for an equal one after its own variable has changed."""
    settings, value = Settings(1.0), 1.0

    def reads(x):
        return x * settings.rate

    def closes(x):
        return x * value

    before = captured(Holder(1.0, reads)), captured(alike(Holder(1.0, closes))[0])
    settings.other = 5  # the function does not name it
    assert captured(Holder(1.0, reads)) == before[0]
    settings.rate, value = 2.0, 2.0
    assert captured(Holder(1.0, reads)) != before[0]
    assert captured(Holder(1.0, closes)) != before[1]

    def closing(value):
        def closes(x):
            return x * value

        return closes

    old = closing(1.0)
    assert alike(Holder(1.0, old))[0].function is old
    old.__closure__[0].cell_contents = 2.0
    new = closing(1.0)
    assert alike(Holder(1.0, new))[0].function is new


def test_a_dictionary_that_grows_while_it_is_read_is_read():
    kept = {}

    class Name:
        def __repr__(self):
            kept[len(kept)] = self
            return "name"

    kept["names"] = {Name()}
    first = captured(Holder(1.0, lambda x: x * len(kept)))
    assert first != captured(Holder(1.0, lambda x: x * len(kept)))  # it has grown meanwhile
