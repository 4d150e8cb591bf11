"""Ensembles: records at any interval, parameters split over devices, programs compiled once, chunks that fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdelens as sl
from sdelens import _run, ensemble
from sdelens._segments import segment, start
from sdelens.settings import Options

NOISE, OPTIMIZER = sl.GaussianNoise(0.1), sl.AdamW(lr=0.05, b2=0.9, weight_decay=0.1)
CURVATURE = np.linspace(1.0, 5.0, 7)
ANALYTIC = sl.Quadratic(CURVATURE)
FUNCTION = sl.Problem(lambda x: jnp.sum(jnp.asarray(CURVATURE, jnp.float32) * x**2) / 2, jnp.ones(7), infimum=0.0)


def dataset(problem, models=("optimizer", "sde"), **options):
    sizes = dict(steps=10, paths=70, record_every=1, keep_paths=3, observables=["norm"])
    return sl.compare(problem, NOISE, OPTIMIZER, list(models), **{**sizes, **options}).dataset


def assert_same(a, b, tolerance):
    for name in set(a.data_vars):
        if a[name].dtype.kind == "f":
            scale = np.nanmax(np.abs(b[name].values))
            np.testing.assert_allclose(a[name], b[name], rtol=0, atol=tolerance * scale, err_msg=name)


@pytest.mark.parametrize("problem", [ANALYTIC, FUNCTION], ids=["its loss is cheap", "its loss is a function"])
def test_what_is_recorded_does_not_depend_on_how_often(problem):
    """Every 4th of 10 steps and the last, by the one loop or the other, in segments of one record or more."""
    every = dataset(problem)
    for interval in (4, 10):
        thinned = dataset(problem, record_every=interval)
        np.testing.assert_array_equal(thinned.step, np.unique([*range(0, 11, interval), 10]))
        assert_same(thinned, every.sel(step=thinned.step), 5e-5)


@pytest.mark.parametrize("interval", [1, 4])
@pytest.mark.parametrize("problem", [ANALYTIC, FUNCTION], ids=["its loss is cheap", "its loss is a function"])
def test_parameters_split_over_devices_give_the_same(problem, interval):
    """Of 7 parameters 4 lie on one device and 3 on the other; what a device holds at rest is 4 of them."""
    models = ["optimizer", "sde"]
    split = dataset(problem, models, record_every=interval, parameter_shards=2)
    assert_same(split, dataset(problem, models, record_every=interval, devices=1), 5e-5)
    options = Options(steps=10, paths=6, record_every=interval, parameter_shards=2)
    experiment = _run.prepare(problem, NOISE, OPTIMIZER, models, options)
    static, sharded = ensemble._laid_out(experiment.plan)
    for model in experiment.models.values():
        stepper = experiment.stepper(model)
        paths = jax.device_put(np.arange(6, dtype=np.uint32), sharded)
        key, span = np.zeros(2, np.uint32), ensemble.Span(0, 2, 10, interval, 0.0)
        carry = start(stepper, paths, key, 6, static)
        after, _ = segment(stepper, None, carry, paths, key, span, static, 4)
        sizes = {s.data.shape for leaf in jax.tree.leaves(after.state) if leaf.ndim for s in leaf.addressable_shards}
        assert sizes == {(4, 6)}


def test_shards_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="parameter_shards: got 3; it must divide the number of devices, 2"):
        dataset(ANALYTIC, parameter_shards=3)


def test_a_second_run_of_a_function_compiles_nothing_and_a_changed_one_is_noticed():
    compiled = []

    def listener(event, *_, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(about)

    scale = [1.0]
    problem = sl.Problem(lambda x: scale[0] * jnp.sum(x**2), jnp.ones(3), infimum=0.0)
    options = dict(steps=3, paths=4, record_every=2)
    sl.simulate(problem, NOISE, OPTIMIZER, **options)
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        sl.simulate(problem, NOISE, sl.AdamW(lr=0.01), **options)
        assert not compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    scale[0] = 2.0
    with pytest.raises(ValueError, match="loss: is 6 at the start now, but 3 in the compiled run"):
        sl.simulate(problem, NOISE, OPTIMIZER, **options)


def test_chunks_fit_caches_unless_sketches_would_pile_up():
    """On a CPU; never fewer than 64 paths a device, if there are so many."""

    def chunk(problem, steps, paths):
        return _run.prepare(problem, NOISE, OPTIMIZER, ["sde"], Options(steps=steps, paths=paths)).plan.chunk

    per_path = 4 * 4 * (3 * 7 + 0) + 2 * 4 * 7  # x, m, v and three copies of each; draws
    assert chunk(ANALYTIC, 100, 10**6) == pytest.approx(2**26 / per_path, rel=0.05)
    assert chunk(ANALYTIC, 10**5, 10**6) == 10**6
    assert chunk(sl.Quadratic(np.ones(10**5)), 100, 1000) == 128
    assert chunk(ANALYTIC, 100, 100) == 100


def test_a_stepper_says_whether_its_gradient_is_dear():
    l2 = FUNCTION.with_l2(0.1)
    for problem, dear in [(ANALYTIC, False), (ANALYTIC.with_l2(0.1), False), (FUNCTION, True), (l2, True)]:
        models = ["optimizer", "sde", "malladi2022", "empirical"]
        experiment = _run.prepare(problem, NOISE, OPTIMIZER, models, Options(steps=2, paths=2))
        assert [experiment.stepper(m).dear for m in experiment.models.values()] == [dear] * 4


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
    found = sl.simulate(problem, noise, sl.SignSGD(lr=0.1), "sde", steps=1, paths=4000, devices=1).dataset.sel(
        model="sde"
    )
    drift = 2 / np.pi * np.arctan(np.linspace(0.5, 3.0, 10))
    error = 0.1 * np.sqrt((1 - drift**2) / 4000)
    assert (np.abs(1 - 0.1 * drift - found.x_mean[1].values) < 5 * error).all()
