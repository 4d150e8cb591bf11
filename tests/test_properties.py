"""Every optimizer and model against every property that all must have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdelens as sl

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

# One worker runs all tests of a model, so that the run most of them start from is compiled once.
table = pytest.mark.parametrize(
    ("name", "model"),
    [pytest.param(*case, marks=pytest.mark.xdist_group("-".join(case)), id="-".join(case)) for case in CASES],
)


def run(name, model, problem=PROBLEM, noise=NOISE, **options):
    options = {"steps": 25, "paths": 101, "record_every": 4, "keep_paths": 16} | options
    return sl.simulate(problem, noise, OPTIMIZERS[name], model, **options).dataset.sel(model=model)


def same(a, b, rtol=2e-5):
    """Equal up to rounding: the draws are the same, only the order of sums and fusions differs."""
    for variable in ("loss_mean", "loss_std", "loss_group_mean", "grad_norm_mean", "x_mean", "x_var"):
        if variable in a and variable in b:
            scale = float(np.abs(a[variable]).max())
            np.testing.assert_allclose(a[variable], b[variable], rtol=rtol, atol=rtol * scale, err_msg=variable)
    np.testing.assert_array_equal(a.n_paths, b.n_paths)


@table
def test_shapes_and_records(name, model):
    data = run(name, model)
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


@table
def test_same_seed_same_bits_and_another_seed_others(name, model):
    a, b, c = run(name, model), run(name, model), run(name, model, seed=1)
    for variable in a.data_vars:
        np.testing.assert_array_equal(a[variable], b[variable])
    assert float(abs(a.loss_mean - c.loss_mean).max()) > 0


@table
def test_sharded_equals_unsharded(name, model):
    same(run(name, model, devices=jax.devices()[:1]), run(name, model, devices=jax.devices()))


@table
def test_chunked_equals_plain(name, model):
    plain, chunked = run(name, model), run(name, model, chunk=16)
    same(plain, chunked)
    np.testing.assert_allclose(plain.path_x, chunked.path_x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(plain.loss_quantile, chunked.loss_quantile, rtol=0.04)


@table
def test_recording_interval_does_not_change_the_path(name, model):
    every, fourth = run(name, model, record_every=1), run(name, model)
    same(every.sel(step=fourth.step), fourth)


@table
def test_more_paths_extend_fewer(name, model):
    few, many = run(name, model, paths=16), run(name, model)
    np.testing.assert_allclose(few.path_x, many.path_x, rtol=1e-4, atol=1e-5)


@table
def test_second_call_compiles_nothing_even_with_other_numbers(name, model):
    compiled = []

    def listen(event, _seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    run(name, model)
    spec = OPTIMIZERS[name]
    other = jax.tree.map(lambda a: 0.9 * a, spec)
    problem, noise = sl.Quadratic([1.0, 2.0, 3.0], start=1.5), sl.GaussianNoise([2.0, 1.0, 0.1])
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        sl.simulate(problem, noise, other, model, steps=21, paths=101, record_every=4, keep_paths=16, seed=5)
    finally:
        jax.monitoring.clear_event_listeners()
    assert len(compiled) == 0


@table
def test_pytree_parameters_equal_flat_ones(name, model):
    curvature = jnp.array([0.5, 1.0, 2.0])

    def loss(p):
        x = jnp.concatenate([p["a"].ravel(), p["b"][None]])
        return 0.5 * jnp.sum(curvature * x**2)

    start = {"a": jnp.array([[1.0, -1.0]]), "b": jnp.array(2.0)}
    tree = sl.Problem(loss, start, infimum=0.0)
    noise = sl.GaussianNoise({"a": [[1.0, 0.5]], "b": 2.0})
    same(run(name, model), run(name, model, tree, noise))


@table
def test_float64(name, model):
    with jax.enable_x64(True):
        problem = sl.Quadratic([0.5, 1.0, 2.0], start=[1.0, -1.0, 2.0])
        data = run(name, model, problem)
        assert data.path_x.dtype == np.float64
        assert np.isfinite(data.loss_mean).all()


@pytest.mark.parametrize("paths", [1, 2, 63, 64, 65])
def test_any_number_of_paths(paths):
    data = run("adamw", "sde", paths=paths)
    assert data.sizes["group"] == min(paths, 64)
    assert int(data.n_paths[-1]) == paths
    assert np.isfinite(data.loss_mean).all()
    assert np.isnan(data.loss_sem).all() == (paths == 1)


def test_diverged_paths_are_counted_and_leave_the_averages():
    """f = x²/2 − x⁴/16: paths near 0 settle; those the noise throws past x = 2 run to infinity."""
    problem = sl.Problem(lambda p: jnp.sum(p**2) / 2 - jnp.sum(p**4) / 16, jnp.array([1.0]))
    with pytest.warns(RuntimeWarning, match=r"of 400 paths of 'sde' diverged, the first by step"):
        result = sl.simulate(problem, sl.GaussianNoise(2.0), sl.SGD(0.1), steps=300, paths=400, record_every=5)
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
    bar, silent = run("sgd", "sde", progress=True), run("sgd", "sde", progress=False)
    np.testing.assert_array_equal(bar.loss_mean, silent.loss_mean)


def test_exact_moments_of_sgd_on_a_quadratic():
    """x_k has mean (1-ηλ)^k x₀ and variance η²σ²(1-(1-ηλ)^2k)/(1-(1-ηλ)²), for SGD and for Euler at Δt = η."""
    lr, curvature, sigma, paths = 0.1, np.array([0.5, 1.0, 4.0]), np.array([1.0, 2.0, 0.5]), 20_000
    problem, noise = sl.Quadratic(curvature, start=1.0), sl.GaussianNoise(sigma)
    result = sl.compare(problem, noise, sl.SGD(lr), steps=40, paths=paths, record_every=8)
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
    data = run("sgd", "sde", sl.Quadratic([curvature]), sl.GaussianNoise(sigma), paths=paths, substeps=64, steps=20)
    rate, horizon = curvature + 0.1, 20 * 0.05
    mean, variance = np.exp(-rate * horizon), 0.05 * sigma**2 * (1 - np.exp(-2 * rate * horizon)) / (2 * rate)
    # Euler at Δt = η/64 is off by at most λΔt = 0.2 % in both; 5 standard errors on top
    assert abs(float(data.x_mean[-1, 0]) - mean) < 5 * np.sqrt(variance / paths) + 0.004 * mean
    assert abs(float(data.x_var[-1, 0]) - variance) < (5 * np.sqrt(2 / paths) + 0.004) * variance
