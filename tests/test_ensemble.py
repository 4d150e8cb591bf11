"""Ensembles: what is recorded of a random walk, and that it does not depend on how its paths are laid out.

A stub takes the place of a model: a walk of one line, whose statistics NumPy makes from the same draws.
`tests/test_properties.py` holds every model to what is a model's own.
"""

import functools
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdelens as sl
from sdelens.cases.path_functions import PathFunction
from sdelens.core.random import Stream, stream_key
from sdelens.core.tree import flatten_parameters
from sdelens.integrate import Exponential, Polyak, Stepper, Watched
from sdelens.run import ensemble
from sdelens.run.experiment import prepare
from sdelens.run.options import Options
from sdelens.run.plan import plan_of
from sdelens.run.programs import Programs
from sdelens.run.segment import RecordRange
from sdelens.run.summary import QUANTILE_ERROR, total
from tests.checks import assert_same_numbers, compilations

BEGIN, SLOPES, SPREAD, LEVELS = np.array([1.0, -1.0, 2.0]), np.array([0.5, 1.0, 2.0]), 0.3, np.array([0.05, 0.5, 0.95])


class Walk(Stepper):
    """x ← x − pull ∇f(x) + spread ξ with f = Σ slopes x²/2, in each of the ways that the ensemble treats apart."""

    pull: Any
    slopes: Any
    begin: Any
    kind: str = eqx.field(static=True)

    def init(self, stream):
        return self.begin

    def position(self, state):
        return state

    def evaluate(self, x):
        return jnp.sum(self.slopes[:, None] * x**2, axis=0) / 2, self.slopes[:, None] * x

    @property
    def expensive_gradient(self):
        return self.kind == "its gradient is expensive"

    @property
    def needs_gradient(self):
        return self.kind != "it needs no gradient"

    def step(self, k, state, grad, stream):
        grad = grad if self.needs_gradient else self.slopes[:, None] * state
        return state - self.pull * grad + SPREAD * stream.at(k).normal(state.shape[0], state.dtype)


class Seen(eqx.Module):
    """Observables: a coordinate's square, the gradient's first entry, and the first entry of an average."""

    names: tuple = eqx.field(static=True, default=("square", "slope", "smooth"))

    def __call__(self, x, grad, parts, step):
        return jnp.stack([x[1] ** 2, grad[0], parts["ema"][0]])


DECAY, FIRST = 0.8, 3
AVERAGES = (Exponential(np.log(DECAY), True), Exponential(np.log(DECAY), False), Polyak(FIRST))
HITS = (
    PathFunction("low", "hits['low']", lambda x: x[1] < -2, False),
    PathFunction("far", "hits['far']", lambda x, state: jnp.abs(state["ema"]).max() > 3.5, True),
)
LAYOUT = flatten_parameters(BEGIN)[1]


KINDS = ["its gradient is expensive", "its gradient is cheap", "it needs no gradient"]
SIZES, RECORD = {"steps": 25, "paths": 101}, sl.Record(every=4, keep_paths=16, marginals=[2, 0])
KEPT = ("x", "ema", "square", "loss", "start", "polyak")


def walking(kind=KINDS[0], pull=0.1, slopes=SLOPES, begin=BEGIN, dtype=np.float32, **options):
    """The programs of a run of the stub."""
    walk = Walk(pull, jnp.asarray(slopes, dtype), jnp.asarray(begin, dtype), kind)
    options = {**SIZES, "record": RECORD, **options}
    moments = sorted({0, options["steps"] // options["record"].every // 2 * options["record"].every, options["steps"]})
    options["record"] = replace(options["record"], keep=KEPT, times=moments)
    plan = plan_of(Options(**options), len(BEGIN))
    watched = Watched(walk, AVERAGES, ("ema", "start", "polyak"), HITS, LAYOUT)
    return Programs(watched, plan, 0.0, Seen())


def walked(*given, seed=0, **options):
    return total(ensemble.run_paths(walking(*given, **options), seed, "walk", LEVELS))


@functools.cache
def usual(kind=KINDS[0]):
    return walked(kind)


def courses(pull=0.1, slopes=SLOPES, begin=BEGIN, seed=0, dtype=np.float32):
    """x of every path after every step, (26, 3, 101), by NumPy from the walk's draws."""
    x = [np.repeat(np.asarray(begin)[:, None], SIZES["paths"], axis=1)]
    for noise in draws(seed, dtype):
        x.append(x[-1] - pull * np.asarray(slopes)[:, None] * x[-1] + SPREAD * noise)
    return np.array(x)


@functools.cache
def draws(seed, dtype):
    stream = Stream(jnp.asarray(stream_key(seed, "walk")), jnp.arange(SIZES["paths"], dtype=jnp.uint32))
    draw = jax.vmap(lambda k: stream.at(k).normal(len(BEGIN), jnp.dtype(dtype)))
    return np.asarray(jax.jit(draw)(jnp.arange(SIZES["steps"])), np.float64)


def averaged(x):
    """The three averages of paths of shape (steps, 3, P), each from its definition."""
    found = [[x[0]], [x[0]], [x[0]]]
    for k in range(1, len(x)):
        weights = DECAY ** np.arange(k - 1, -1, -1)[:, None, None]
        found[0].append((weights * x[1 : k + 1]).sum(axis=0) / weights.sum())
        found[1].append(DECAY * found[1][-1] + (1 - DECAY) * x[k])
        found[2].append(x[FIRST : k + 1].mean(axis=0) if k >= FIRST else x[k])
    return np.array(found)


def first_steps(held):
    """The first step at which a condition held, from Booleans (steps, P); −1 if there is none."""
    return np.where(held.any(axis=0), held.argmax(axis=0), -1)


def assert_records(found, x, records, groups):
    """Every statistic of a summary is NumPy's of these paths at these steps."""
    ema, start, polyak = averaged(x)
    conditions = [x[:, 1] < -2, np.abs(ema).max(axis=1) > 3.5, np.zeros_like(x[:, 0], bool)]
    firsts = np.stack([first_steps(held[: records[-1] + 1]) for held in conditions], axis=1)
    np.testing.assert_array_equal(found.hits, firsts)
    x, ema, start, polyak = (a[records] for a in (x, ema, start, polyak))
    loss, grad = (SLOPES[:, None] * x**2).sum(axis=1) / 2, SLOPES[:, None] * x
    values = np.stack([loss, x[:, 1] ** 2, grad[:, 0], ema[:, 0]], axis=1)
    paths = x.shape[-1]
    close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5)
    for g in range(groups):
        own = values[..., g::groups]
        assert (found.living[:, g] == own.shape[-1]).all()
        close(found.mean[..., g], own.mean(axis=-1))
        close(found.m2[..., g], own.shape[-1] * own.var(axis=-1), atol=1e-4)
    close(found.grad_norm, np.linalg.norm(grad, axis=1).mean(axis=-1))
    close(found.seen_mean, x.mean(axis=-1))
    close(found.seen_m2, paths * x.var(axis=-1), atol=2e-3)
    kept = np.concatenate([x, ema, x[:, 1:2] ** 2, loss[:, None], start, polyak], axis=1)
    close(found.kept, kept[..., : found.kept.shape[1]].transpose(0, 2, 1))
    moments = sorted({0, (len(records) - 2) // 2, len(records) - 1})
    of_every_path = np.concatenate([values, x[:, [2, 0]]], axis=1)[moments]
    close(found.laws, of_every_path.transpose(0, 2, 1))
    between = [np.quantile(loss, LEVELS, axis=-1, method=m).T for m in ("lower", "higher")]
    assert (found.histogram >= between[0] * (1 - QUANTILE_ERROR)).all()
    assert (found.histogram <= between[1] * (1 + QUANTILE_ERROR)).all()


def assert_same(a, b, tolerance=2e-5, quantiles=2e-5):
    """Two summaries are equal up to rounding: the draws are the same, the order of sums and fusions differs."""
    for name in a._fields:
        one, other = getattr(a, name), getattr(b, name)
        scale = np.abs(other).max(initial=0.0)
        tolerated = quantiles if name == "histogram" else tolerance
        np.testing.assert_allclose(one, other, rtol=tolerated, atol=tolerated * scale, err_msg=name)
    np.testing.assert_array_equal(a.living, b.living)


@pytest.mark.parametrize("kind", KINDS)
def test_records_are_the_statistics_of_the_paths(kind):
    """Every 4th of 25 steps and the last, by the one loop or the other; 101 paths over two devices and 64 groups."""
    found = usual(kind)
    assert found.kept.shape == (8, 16, 14)
    assert found.laws.shape == (3, 101, 6)
    assert 5 < (found.hits[:, 0] >= 0).sum() < 95
    assert_records(found, courses(), [0, 4, 8, 12, 16, 20, 24, 25], 64)


@pytest.mark.parametrize("paths", [1, 2, 63, 64, 65])
def test_any_number_of_paths(paths):
    """One path leaves a device without any; beyond 64 of them groups have several."""
    found = walked(paths=paths, steps=5, record=replace(RECORD, every=1, keep_paths=1))
    assert found.living.shape[1] == min(paths, 64)
    assert_records(found, courses()[..., :paths], range(6), min(paths, 64))


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("interval", [1, 25, 7])
def test_what_is_recorded_does_not_depend_on_how_often(kind, interval):
    records = np.unique([*range(0, 26, interval), 25])
    assert_records(walked(kind, record=replace(RECORD, every=interval)), courses(), records, 64)


def test_sharded_equals_unsharded():
    for kind in KINDS[:2]:
        assert_same(walked(kind, execution=sl.Execution(devices=1)), usual(kind))


def test_chunked_equals_plain():
    """Seven chunks of 16 paths, of which the last has 5."""
    assert_same(walked(execution=sl.Execution(chunk=16)), usual(), quantiles=0.04)


def test_more_paths_extend_fewer():
    few = walked(paths=16)
    np.testing.assert_allclose(few.kept, usual().kept, rtol=1e-5, atol=1e-6)


def test_a_second_run_compiles_nothing_even_with_other_numbers():
    usual()
    with compilations() as compiled:
        found = walked(pull=0.05, slopes=SLOPES[::-1], begin=2 * BEGIN, seed=5, steps=21)
    assert not compiled
    x = courses(0.05, SLOPES[::-1], 2 * BEGIN, seed=5)
    np.testing.assert_allclose(
        found.kept[..., :3], x[[0, 4, 8, 12, 16, 20, 21], :, :16].transpose(0, 2, 1), rtol=1e-4, atol=1e-5
    )


def test_same_seed_same_bits_and_another_seed_others():
    for a, b in zip(walked(), usual(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(walked(seed=1).kept[1] - usual().kept[1]).min() > 0


def test_segments_begin_with_the_known_pace_and_leave_no_trace():
    """Of 25 steps with records every 4: all up to the moment at step 12, or the first record alone."""
    for seconds, first in [(1e-3, 12), (1e3, 4)]:
        programs, reported = walking(), []
        programs.timed(25, seconds)
        found = total(ensemble.run_paths(programs, 0, "walk", LEVELS, reported.append))
        assert (reported[0], sum(reported)) == (first * 101, 25 * 101)
        for a, b in zip(found, usual(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_float64_is_float64():
    """To digits that float32 has not."""
    with jax.enable_x64(True):
        found, x = walked(dtype=np.float64), courses(dtype=np.float64)
    assert found.kept.dtype == np.float64
    np.testing.assert_allclose(found.kept[-1, :, :3], x[-1, :, :16].T, rtol=1e-11)
    np.testing.assert_allclose(found.seen_mean[-1], x[-1].mean(axis=1), rtol=1e-11)


NOISE, OPTIMIZER = sl.GaussianNoise(0.1), sl.AdamW(lr=0.05, b2=0.9, weight_decay=0.1)
CURVATURE = np.linspace(1.0, 5.0, 7)
ANALYTIC = sl.Quadratic(CURVATURE)
FUNCTION = sl.Problem(lambda x: jnp.sum(jnp.asarray(CURVATURE, jnp.float32) * x**2) / 2, jnp.ones(7), infimum=0.0)
MODELS = ["optimizer", "sde"]


@pytest.mark.parametrize(
    ("problem", "interval"), [(ANALYTIC, 4), (FUNCTION, 1)], ids=["its loss is cheap", "its loss is a function"]
)
def test_parameters_split_over_devices_give_the_same(problem, interval):
    """Of 7 parameters 4 lie on one device and 3 on the other; what a device holds at rest is 4 of them."""
    kept = dict(keep_paths=3, keep=("x", "v", "ema"), averages={"ema": 0.9}, marginals=[6], times=[0, 10])
    hits = {f"below {level}": lambda p, level=level: jnp.sum(p**2) < level for level in (6.5, 6, 5.5, 5, 4, 3)}
    sizes = dict(steps=10, paths=70, record=sl.Record(every=interval, observables=["norm[m]"], hits=hits, **kept))
    over_two, on_one = sl.Execution(parameter_shards=2), sl.Execution(devices=1)
    split = sl.compare(problem, NOISE, OPTIMIZER, MODELS, execution=over_two, **sizes).dataset
    whole = sl.compare(problem, NOISE, OPTIMIZER, MODELS, execution=on_one, **sizes).dataset
    assert_same_numbers(split, whole, 2.5e-5)  # of the value and of the scale: together at most 5e-5 of the scale
    experiment = prepare(problem, NOISE, OPTIMIZER, MODELS, Options(execution=over_two, **sizes))
    for stepper in experiment.steppers.values():
        programs = Programs(stepper, experiment.plan, 0.0, experiment.observables)
        held, observables = programs.placed()
        count = experiment.plan.chunk  # the 70 paths with those that fill up the devices: the programs of the run
        paths = jax.device_put(np.arange(count, dtype=np.uint32), programs.sharded)
        key, span = np.zeros(2, np.uint32), RecordRange(0, 2, 10, interval, 0.0)
        carry = programs.started(held, paths, 0, "walk")
        advance = programs.segment.function
        after, _ = advance(held, observables, carry, paths, key, span, programs.static, programs.buffer)
        sizes_held = {
            s.data.shape for leaf in jax.tree.leaves(after.state) if leaf.ndim for s in leaf.addressable_shards
        }
        assert sizes_held == {(4, count)}


def test_shards_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="parameter_shards: got 3; it must divide the number of devices, 2"):
        sl.compare(ANALYTIC, NOISE, OPTIMIZER, steps=2, paths=2, execution=sl.Execution(parameter_shards=3))


def test_a_second_run_of_a_function_compiles_nothing_and_a_changed_one_is_noticed():
    scale = [1.0]
    problem = sl.Problem(lambda x: scale[0] * jnp.sum(x**2), jnp.ones(3), infimum=0.0)
    options = dict(model="sde", steps=3, paths=4, record=sl.Record(every=2))
    sl.simulate(problem, NOISE, OPTIMIZER, **options)
    with compilations() as compiled:
        sl.simulate(problem, NOISE, sl.AdamW(lr=0.01), **options)
    assert not compiled
    scale[0] = 2.0
    assert float(sl.simulate(problem, NOISE, OPTIMIZER, **options).dataset.loss_mean[0, 0]) == pytest.approx(6.0)


def test_chunks_fit_caches_unless_sketches_would_pile_up():
    """On a CPU; never fewer than 64 paths a device, if there are so many."""

    def chunk(problem, steps, paths):
        return prepare(problem, NOISE, OPTIMIZER, ["sde"], Options(steps=steps, paths=paths)).plan.chunk

    per_path = 4 * 4 * (3 * 7 + 0) + 2 * 4 * 7  # x, m, v and three copies of each; draws
    assert chunk(ANALYTIC, 100, 10**6) == pytest.approx(2**26 / per_path, rel=0.05)
    assert chunk(ANALYTIC, 10**5, 10**6) == 2 * 2**19  # 500 000 of each device, padded
    assert chunk(sl.Quadratic(np.ones(10**5)), 100, 1000) == 128
    assert chunk(ANALYTIC, 100, 100) == 2 * 64


def test_a_stepper_says_whether_its_gradient_is_dear():
    l2 = FUNCTION.with_l2(0.1)
    for problem, expensive in [(ANALYTIC, False), (ANALYTIC.with_l2(0.1), False), (FUNCTION, True), (l2, True)]:
        models = ["optimizer", "sde", "malladi2022", "empirical"]
        experiment = prepare(problem, NOISE, OPTIMIZER, models, Options(steps=2, paths=2))
        assert [stepper.expensive_gradient for stepper in experiment.steppers.values()] == [expensive] * 4


_NAMES = "exp expm1 log log1p sqrt cbrt sin cos tan sinh cosh tanh arcsin arccos arcsinh arctanh exp2 sign floor ceil"
_SPECIAL = "erf erfc erfinv gammaln digamma expit ndtr i0 i1"
_UNARY = [getattr(jnp, name) for name in (*_NAMES.split(), "round", "square", "reciprocal")]
_UNARY += [getattr(jax.scipy.special, name) for name in _SPECIAL.split()]
_UNARY += [jax.lax.rsqrt, lambda x: jnp.arctan2(x, 1 + x), lambda x: x**1.7, lambda x: jnp.mod(x, 0.3)]
_UNARY += [lambda x: jax.scipy.special.betainc(0.5, 1.5, x), lambda x: x.astype(jnp.bfloat16).astype(x.dtype)]
_UNARY += [lambda x: jnp.floor_divide(x, 0.3), lambda x: jax.lax.clz((1e6 * x).astype(jnp.uint32)).astype(x.dtype)]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_wide_vectors_give_the_numbers_of_narrow_ones(dtype):
    """All but arctan, which XLA gets wrong there, within a loop as steps are."""
    with jax.enable_x64(dtype == jnp.float64):
        x = jnp.asarray(np.random.default_rng(0).uniform(0.05, 0.95, (10, 2000)), dtype)

        def sums(x):
            totals = tuple(jnp.zeros_like(x) for _ in _UNARY)

            def body(i, totals):
                return tuple(t + f(x * (1 + 0.01 * i)) for t, f in zip(totals, _UNARY, strict=True))

            return jax.lax.fori_loop(0, 3, body, totals)

        narrow = jax.jit(sums)(x)
        wide = jax.jit(sums, compiler_options={"xla_cpu_prefer_vector_width": 512})(x)
        for f, a, b in zip(_UNARY, narrow, wide, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=str(f))


def test_arctan_in_a_step_is_right():
    """Drift (2/π) arctan(λx/σ) under Cauchy noise: mean steps of 4000 paths within 5 standard errors, in 6e-6 not."""
    problem, noise = sl.Quadratic(np.linspace(0.5, 3.0, 10)), sl.StudentTNoise(1.0, 1)
    options = dict(steps=1, paths=4000, execution=sl.Execution(devices=1))
    found = sl.simulate(problem, noise, sl.SignSGD(lr=0.1), "sde", **options).dataset.sel(model="sde")
    drift = 2 / np.pi * np.arctan(np.linspace(0.5, 3.0, 10))
    error = 0.1 * np.sqrt((1 - drift**2) / 4000)
    assert (np.abs(1 - 0.1 * drift - found.x_mean[1].values) < 5 * error).all()
