"""Runs of a few optimizers and models of every kind, and float64 in all; the ensemble's part is in test_ensemble.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdelens as sl
from sdelens.core.random import Stream
from sdelens.run.experiment import prepare
from sdelens.run.options import Options
from tests.checks import assert_same_numbers, compilations

OPTIMIZERS = {
    "sgd": sl.SGD(0.05, 0.1),
    "signsgd": sl.SignSGD(0.05, 0.1),
    "rmspropw": sl.RMSpropW(0.05, 0.9, weight_decay=0.1),
    "adamw": sl.AdamW(0.05, 0.8, 0.9, weight_decay=0.1),
    "nesterov": sl.Momentum(0.05, 0.8, nesterov=True, weight_decay=0.1),
    "lion": sl.Lion(0.05, 0.8, 0.9, 0.1),
}
CASES = [(name, model) for name, spec in OPTIMIZERS.items() for model in sl.models_of(spec)]
PROBLEM = sl.Quadratic([0.5, 1.0, 2.0], start=[1.0, -1.0, 2.0])
NOISE = sl.GaussianNoise([1.0, 0.5, 2.0])

FEW = [("sgd", "sde"), ("adamw", "optimizer"), ("lion", "empirical")]
# One of each kind: with and without accumulators, of the first and second order, with more noise, of momentum.
SOME = [*FEW, ("signsgd", "sde"), ("nesterov", "sde"), ("rmspropw", "second-order"), ("adamw", "full-noise")]
SOME += [("adamw", "malladi2022")]
SIZES = {"steps": 25, "paths": 101, "record": sl.Record(every=4, keep_paths=16)}
STATISTICS = ["loss_mean", "loss_std", "loss_group_mean", "grad_norm_mean", "x_mean", "x_var", "n_paths"]


def over(cases):
    return pytest.mark.parametrize(("name", "model"), cases, ids=map("-".join, cases))


def run(name, model, problem=PROBLEM, noise=NOISE, **options):
    return sl.simulate(problem, noise, OPTIMIZERS[name], model, **(SIZES | options)).dataset.isel(model=0)


@functools.cache
def usual(name, model):
    return run(name, model)


@over(SOME)
def test_shapes_and_records(name, model):
    data = usual(name, model)
    assert dict(data.sizes) == {
        "step": 8,
        "group": 64,
        "quantile": 5,
        "coordinate": 3,
        "path": 16,
        "parameter": 3,
    }
    np.testing.assert_array_equal(data.step, [0, 4, 8, 12, 16, 20, 24, 25])
    np.testing.assert_allclose(data.time, data.step * 0.05)
    assert data.path_x.dtype == np.float32
    assert float(data.loss_mean[0]) == pytest.approx(0.25 + 0.5 + 4.0)
    assert int(data.group_paths.isel(step=0).sum()) == 101
    for variable in data.data_vars.values():
        assert np.isfinite(variable).all()


@over(SOME)
def test_same_seed_same_bits_and_another_seed_others(name, model):
    assert_same_numbers(run(name, model), usual(name, model))
    assert float(abs(usual(name, model).loss_mean - run(name, model, seed=1).loss_mean).max()) > 0


@over(SOME)
def test_second_call_compiles_nothing_even_with_other_numbers(name, model):
    run(name, model)  # `usual` may have run before its programs were dropped (`bounded_memory`)
    other = jax.tree.map(lambda a: 0.9 * a, OPTIMIZERS[name])
    problem, noise = sl.Quadratic([1.0, 2.0, 3.0], start=1.5), sl.GaussianNoise([2.0, 1.0, 0.1])
    with compilations() as compiled:
        sl.simulate(problem, noise, other, model, **(SIZES | {"steps": 21}), seed=5)
    assert len(compiled) == 0


@over(CASES)
def test_float64_reaches_every_part_of_the_state(name, model):
    with jax.enable_x64(True):
        problem = sl.Quadratic([0.5, 1.0, 2.0], start=[1.0, -1.0, 2.0])
        experiment = prepare(problem, NOISE, OPTIMIZERS[name], [model], Options(steps=2, paths=2))
        stepper = experiment.steppers[model]
        stream = Stream(jnp.zeros(2, jnp.uint32), jnp.zeros(1, jnp.uint32))

        def step(state):
            state = jax.tree.map(lambda a: a[:, None] if jnp.ndim(a) == 1 else a, state)
            return stepper.step(jnp.asarray(0), state, stepper.evaluate(stepper.position(state))[1], stream)

        after = jax.eval_shape(lambda: step(stepper.init(stream)))
        real = [leaf.dtype for leaf in jax.tree.leaves(after) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        assert stepper.position(after).dtype == np.float64
        assert set(real) == {np.dtype(np.float64)}


@over(FEW)
def test_a_run_in_float64_is_in_float64(name, model):
    with jax.enable_x64(True):
        data = run(name, model, sl.Quadratic([0.5, 1.0, 2.0], start=[1.0, -1.0, 2.0]))
        assert data.path_x.dtype == np.float64
        assert np.isfinite(data.loss_mean).all()


@over(FEW)
def test_devices_chunks_and_records_leave_the_numbers_alone(name, model):
    """On one device of two, in chunks of 16, and with every step recorded."""
    execution = sl.Execution(devices=1, chunk=16)
    data, other = usual(name, model), run(name, model, record=sl.Record(keep_paths=16), execution=execution)
    other = other.sel(step=data.step)
    assert_same_numbers(other, data, 2e-5, STATISTICS)
    np.testing.assert_allclose(other.path_x, data.path_x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(other.loss_quantile, data.loss_quantile, rtol=0.04)


@over(FEW)
def test_pytree_parameters_equal_flat_ones(name, model):
    curvature = jnp.array([0.5, 1.0, 2.0])

    def loss(p):
        x = jnp.concatenate([p["a"].ravel(), p["b"][None]])
        return 0.5 * jnp.sum(curvature * x**2)

    start = {"a": jnp.array([[1.0, -1.0]]), "b": jnp.array(2.0)}
    tree = sl.Problem(loss, start, infimum=0.0)
    noise = sl.GaussianNoise({"a": [[1.0, 0.5]], "b": 2.0})
    assert_same_numbers(run(name, model, tree, noise), usual(name, model), 2e-5, STATISTICS)


def test_one_path_has_no_standard_error():
    record = sl.Record(every=4, keep_paths=1)
    data = run("adamw", "sde", paths=1, record=record)
    assert data.sizes["group"] == 1
    assert np.isfinite(data.loss_mean).all()
    assert np.isnan(data.loss_sem).all()
    assert np.isfinite(run("adamw", "sde", paths=2, record=record).loss_sem[1:]).all()


def test_diverged_paths_are_counted_and_leave_the_averages():
    """f = x²/2 − x⁴/16: paths near 0 settle; those the noise throws past x = 2 run to infinity."""
    problem = sl.Problem(lambda p: jnp.sum(p**2) / 2 - jnp.sum(p**4) / 16, jnp.array([1.0]))
    options = {"steps": 300, "paths": 400, "record": sl.Record(every=5)}
    with pytest.warns(RuntimeWarning, match=r"of 400 paths of 'sde' diverged, the first by step"):
        result = sl.simulate(problem, sl.GaussianNoise(2.0), sl.SGD(0.1), **options)
    data = result.dataset.sel(model="sde")
    alive = data.n_paths.values
    assert 0 < alive[-1] < 400
    assert (np.diff(alive) <= 0).all()
    np.testing.assert_array_equal(alive, data.group_paths.sum("group"))
    assert np.isfinite(data.loss_mean).all()
    assert str(400 - alive[-1]) in str(result)


def test_all_paths_diverged_is_nan_not_a_number():
    problem = sl.Quadratic([1.0], start=1.0)
    with pytest.warns(RuntimeWarning, match="50 of 50"):
        result = sl.compare(problem, sl.GaussianNoise(1.0), sl.SGD(100.0), steps=100, paths=50)
    assert np.isnan(result.dataset.loss_mean.values[:, -1]).all()
    assert result.errors().isna().loc["sde", "error"]
    assert "diverged" in str(result)


def test_a_progress_bar_changes_no_number():
    bar, silent = (run("sgd", "sde", execution=sl.Execution(progress=shown)) for shown in (True, False))
    assert_same_numbers(bar, silent)


def test_exact_moments_of_sgd_on_a_quadratic():
    """x_k has mean (1-ηλ)^k x₀ and variance η²σ²(1-(1-ηλ)^2k)/(1-(1-ηλ)²), for SGD and for Euler at Δt = η."""
    lr, curvature, sigma, paths = 0.1, np.array([0.5, 1.0, 4.0]), np.array([1.0, 2.0, 0.5]), 20_000
    problem, noise = sl.Quadratic(curvature, start=1.0), sl.GaussianNoise(sigma)
    result = sl.compare(problem, noise, sl.SGD(lr), steps=40, paths=paths, record=sl.Record(every=8))
    contraction = 1 - lr * curvature
    k = result.dataset.step.values[1:, None]
    mean = contraction**k
    variance = lr**2 * sigma**2 * (1 - contraction ** (2 * k)) / (1 - contraction**2)
    for model in ("optimizer", "sde"):
        data = result.dataset.sel(model=model).isel(step=slice(1, None))
        # 2 models × 5 times × 3 coordinates × 2 statistics = 60 normal scores: P(any beyond 5) < 4e-5
        assert (np.abs(data.x_mean - mean) / np.sqrt(variance / paths)).max() < 5
        assert (np.abs(data.x_var - variance) / (variance * np.sqrt(2 / paths))).max() < 5


def test_substeps_converge_to_the_exact_ornstein_uhlenbeck_law():
    curvature, sigma, paths = 2.0, 1.0, 20_000
    model = sl.ClosedForm("sde", substeps=64)
    data = run("sgd", model, sl.Quadratic([curvature]), sl.GaussianNoise(sigma), paths=paths, steps=20)
    rate, horizon = curvature + 0.1, 20 * 0.05
    mean, variance = np.exp(-rate * horizon), 0.05 * sigma**2 * (1 - np.exp(-2 * rate * horizon)) / (2 * rate)
    # Euler at Δt = η/64 is off by at most λΔt = 0.2 % in both; 5 standard errors on top
    assert abs(float(data.x_mean[-1, 0]) - mean) < 5 * np.sqrt(variance / paths) + 0.004 * mean
    assert abs(float(data.x_var[-1, 0]) - variance) < (5 * np.sqrt(2 / paths) + 0.004) * variance
