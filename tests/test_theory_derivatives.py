"""Theory that composes: derivatives of predictions, limits of stability, times, optimal numbers, sharpness."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import sdelens as sl
from sdelens.cases.sharpness import Divisor, largest_eigenvalue
from sdelens.core.compilation import quick
from sdelens.results.edge import sharpness_notes
from tests.checks import tiered

CURVATURE, SIGMA = np.array([0.5, 2.0, 5.0]), np.array([1.0, 0.5, 2.0])
STEPS = 40
KNOTS = {"steps": [0.3, 20.5], "values": [0.9, 0.3]}
"""Knots between steps, where the loss is differentiable in them."""


def problem():
    return sl.Quadratic(CURVATURE, start=1.0)


def schedule(numbers):
    return sl.Interpolated(numbers["steps"], numbers["values"])


OPTIMIZERS = {
    "sgd": (sl.SGD, {"lr": 0.05, "weight_decay": 0.1}),
    "momentum": (sl.Momentum, {"lr": 0.05, "b1": 0.8, "weight_decay": 0.1}),
    "signsgd": (sl.SignSGD, {"lr": 0.02, "weight_decay": 0.1}),
    "signum": (sl.Signum, {"lr": 0.02, "b1": 0.8, "weight_decay": 0.1}),
    "lion": (sl.Lion, {"lr": 0.02, "b1": 0.9, "b2": 0.95, "weight_decay": 0.1}),
    "rmspropw": (sl.RMSpropW, {"lr": 0.02, "eps": 0.01, "weight_decay": 0.1}),
    "adamw": (sl.AdamW, {"lr": 0.02, "b1": 0.8, "eps": 0.01, "weight_decay": 0.1}),
}


def assert_gradient_is_that_of_differences(function, numbers):
    """Reverse mode against central differences in float64, to 1e-4 relative; two programs."""
    leaves, tree = jax.tree.flatten(jax.tree.map(np.asarray, numbers))
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    flat = np.concatenate([leaf.ravel() for leaf in leaves]).astype(np.float64)

    def at(flat):
        parts = zip(jnp.split(flat, ends), leaves, strict=True)
        return function(jax.tree.unflatten(tree, [part.reshape(leaf.shape) for part, leaf in parts]))

    steps = np.diag(1e-5 * np.maximum(np.abs(flat), 1e-3))
    with jax.enable_x64(True):
        gradient = np.asarray(quick(jax.grad(at))(flat))
        values = np.asarray(quick(jax.vmap(at))(np.concatenate([flat + steps, flat - steps])))
    expected = (values[: len(flat)] - values[len(flat) :]) / (2 * steps.diagonal())
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-9)
    assert np.abs(expected).min() > 1e-8  # every number matters


EVERY_COMMIT = ["signsgd", "adamw"]
ALL = [*EVERY_COMMIT, *tiered([n for n in OPTIMIZERS if n not in EVERY_COMMIT], ["momentum", "lion"])]


@pytest.mark.parametrize("name", ALL)
def test_the_gradient_of_the_final_loss_is_that_of_differences(name):
    """With respect to the optimizer's numbers, the schedule's knots, and for normal noise its scale."""
    kind, numbers = OPTIMIZERS[name]

    def final(given):
        optimizer = kind(**given["optimizer"], schedule=schedule(given["knots"]))
        noise = sl.GaussianNoise(given["scale"])
        return sl.theory.predicted_loss(problem(), noise, optimizer, steps=STEPS)[-1]

    assert_gradient_is_that_of_differences(final, {"optimizer": numbers, "knots": KNOTS, "scale": SIGMA})


def test_schedules_differentiate_in_their_numbers():
    def value(given):
        warm = sl.Warmup(given["warm"], sl.Cosine(given["cosine"], given["end"]))
        return warm(3.0, 0.1) + warm(20.0, 0.1) + sl.Polynomial(given["power"])(7.0, 0.1)

    numbers = {"warm": 5.3, "cosine": 40.2, "end": 0.1, "power": 0.7}
    assert_gradient_is_that_of_differences(value, numbers)


@pytest.mark.parametrize("name", tiered(["rmspropw", "adamw"], ["adamw"]))
def test_the_gradient_in_b2_is_that_of_differences(name):
    """On both sides of the bound above which the fluctuation of v is described by the law of the noise."""
    kind, numbers = OPTIMIZERS[name]
    for b2 in (0.9, 0.99):

        def final(given):
            optimizer = kind(**numbers, b2=given["b2"])
            return sl.theory.predicted_loss(problem(), sl.GaussianNoise(SIGMA), optimizer, steps=STEPS)[-1]

        assert_gradient_is_that_of_differences(final, {"b2": b2})


@pytest.mark.slow
def test_the_gradient_in_the_law_of_student_t_noise_is_that_of_differences():
    def final(given):
        noise = sl.StudentTNoise(given["scale"], given["df"])
        return sl.theory.predicted_loss(problem(), noise, sl.SignSGD(0.02), steps=STEPS)[-1]

    assert_gradient_is_that_of_differences(final, {"scale": 1.2, "df": 2.5})


def test_vmap_over_learning_rates_is_a_loop_and_jit_compiles_once():
    noise, lrs = sl.GaussianNoise(SIGMA), [0.01, 0.03, 0.1]

    def losses(lr):
        return sl.theory.predicted_loss(problem(), noise, sl.SGD(lr), steps=STEPS, record_every=16)

    together = np.asarray(jax.jit(jax.vmap(losses))(jnp.asarray(lrs)))
    assert together.shape == (3, 4)
    for lr, row in zip(lrs, together, strict=True):
        alone = sl.theory.predict(problem(), noise, sl.SGD(lr), steps=STEPS, record_every=16).dataset
        np.testing.assert_allclose(row, alone.loss_mean.values[0], rtol=1e-5)
    compiled = jax.jit(losses)
    np.testing.assert_allclose(compiled(0.01), together[0], rtol=1e-5)
    np.testing.assert_allclose(compiled(0.1), together[2], rtol=1e-5)
    assert compiled._cache_size() == 1


@pytest.mark.parametrize("name", ["adamw", *tiered(["signsgd", "lion"], ["lion"])])
def test_the_stationary_loss_differentiates(name):
    kind, numbers = OPTIMIZERS[name]

    def loss(given):
        return sl.theory.stationary(problem(), sl.GaussianNoise(SIGMA), kind(**given)).loss

    with jax.enable_x64(True):
        gradient = quick(jax.grad(loss))({k: float(v) for k, v in numbers.items()})
    for number, value in numbers.items():
        up, down = (loss(numbers | {number: value + s * 1e-3 * value}) for s in (1, -1))
        # Values are found to a relative change of 1e-6, so that their differences are accurate to about 1e-3.
        expected = (up - down) / (2e-3 * value)
        assert float(gradient[number]) == pytest.approx(expected, rel=5e-3, abs=1e-6 * loss(numbers) / value)


def test_the_stationary_law_of_sgd_in_transformations_is_its_closed_form():
    """Loss Σ λησ²/(2κ(2 − ηκ)), κ = λ + θ, and infinite where SGD is not stable."""
    kappa = CURVATURE + 0.1

    def loss(lr):
        return sl.theory.stationary(problem(), sl.GaussianNoise(SIGMA), sl.SGD(lr, 0.1)).loss

    values, slopes = (np.asarray(a) for a in jax.jit(jax.vmap(jax.value_and_grad(loss)))(jnp.asarray([0.01, 0.1, 0.5])))
    for lr, value, slope in zip((0.01, 0.1), values, slopes, strict=False):
        top = CURVATURE * SIGMA**2 / (2 * kappa)
        assert value == pytest.approx(np.sum(top * lr / (2 - lr * kappa)), rel=1e-4)
        assert slope == pytest.approx(np.sum(top * 2 / (2 - lr * kappa) ** 2), rel=1e-4)
    assert np.isinf(values[2])


def test_bounds_differentiate_and_are_infinite_where_an_assumption_fails():
    times = [0.0, 20.0]

    def wide():
        return sl.Quadratic([0.5, 2.0], 0.1)

    bounds = {
        "sgd": lambda given: sl.theory.loss_bound(problem(), sl.GaussianNoise(given["s"]), sl.SGD(given["lr"]), times),
        "signs": lambda given: sl.theory.loss_bound(
            wide(), sl.GaussianNoise(given["s"]), sl.SignSGD(given["lr"]), times
        ),
        "rms": lambda given: sl.theory.loss_bound(
            wide(), sl.GaussianNoise(9 * given["s"]), sl.RMSpropW(given["lr"]), times
        ),
    }

    def total(given):
        found = [bound(given) for bound in bounds.values()]
        return sum(bound.loss[-1] + bound.asymptote for bound in found)

    numbers = {"lr": 0.02, "s": 0.7}
    assert_gradient_is_that_of_differences(total, numbers)
    values = quick(jax.vmap(lambda lr: jnp.stack([b({"lr": lr, "s": 0.7}).loss[-1] for b in bounds.values()])))
    stable, unstable = np.asarray(values(jnp.asarray([0.02, 0.5])))
    np.testing.assert_allclose(stable, [bound(numbers).loss[-1] for bound in bounds.values()], rtol=1e-5)
    assert np.isinf(unstable[0])  # lr L = 2.5
    with pytest.raises(TypeError, match=r"with a schedule, and in phase 1, the bound is computed step by step"):
        jax.grad(
            lambda lr: sl.theory.loss_bound(wide(), sl.GaussianNoise(1.0), sl.SignSGD(lr), times, phase=1).loss[0]
        )(0.1)


def test_a_result_inside_a_transformation_is_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"predict: JAX is tracing an argument .*use sl\.theory\.predicted_loss"):
        jax.grad(lambda lr: sl.theory.predict(problem(), sl.GaussianNoise(1.0), sl.SGD(lr), steps=3).dataset)(0.1)
    with pytest.raises(TypeError, match=r"stability_limit: JAX is tracing"):
        jax.grad(lambda s: sl.theory.stability_limit(problem(), sl.GaussianNoise(s), sl.SGD(0.1)).lr)(1.0)
    with pytest.raises(TypeError, match=r"samples: examples cannot be drawn inside"):
        jax.grad(lambda s: sl.LinearRegression([1.0], s, samples=5).infimum)(1.0)


STABLE = [
    sl.SGD(1.0),
    sl.SGD(1.0, 0.3),
    sl.SGD(1.0, 0.3, decay="independent"),
    sl.Momentum(1.0, 0.9, weight_decay=0.3),
    sl.Momentum(1.0, 0.9, nesterov=True, weight_decay=0.3),
    sl.Momentum(1.0, 0.6, nesterov=True, weight_decay=0.3, decay="independent"),
    sl.RMSpropW(1.0, weight_decay=0.3),
    sl.AdamW(1.0, 0.9, weight_decay=0.3),
]


@pytest.mark.parametrize("optimizer", STABLE, ids=lambda o: f"{o.name}-{o.decay}")
def test_just_below_the_limit_of_stability_x_decays_and_just_above_it_grows(optimizer):
    """The recursion of the mean with the divisor at rest, in NumPy, along the coordinate that limits it."""
    found = sl.theory.stability_limit(problem(), sl.GaussianNoise(SIGMA), optimizer)
    adaptive = optimizer.name in ("rmspropw", "adamw")
    curvature = (CURVATURE / (SIGMA + 1e-8) if adaptive else CURVATURE).max()
    assert found.sharpness == pytest.approx(curvature, rel=1e-6)
    assert found.lr == found.mean == found.mean_square
    b1, theta = getattr(optimizer, "b1", 0.0), optimizer.weight_decay
    for share, grows in ((0.995, False), (1.005, True)):
        lr = share * found.lr
        keep = 1 - (lr * theta if optimizer.decay == "coupled" else theta)
        x, m = 1.0, 0.0
        for _ in range(6000):
            g = curvature * x
            m = b1 * m + (1 - b1) * g
            x = keep * x - lr * (b1 * m + (1 - b1) * g if getattr(optimizer, "nesterov", False) else m)
        assert (abs(x) > 1e3) if grows else (abs(x) < 1e-3)


def test_the_mean_square_of_a_regression_has_its_own_limit():
    """Isotropic, fresh examples: (1 − η)² + η²(d + 1)/B = 1; the closure grows just above and decays just below."""
    regression, noise = sl.LinearRegression(np.ones(4), 0.3), sl.MinibatchNoise(2)
    found = sl.theory.stability_limit(regression, noise, sl.SGD(0.1))
    assert (found.mean, found.lr) == (pytest.approx(2.0), pytest.approx(2 / (1 + 5 / 2), rel=1e-3))
    for share, grows in ((0.97, False), (1.03, True)):
        curve = sl.theory.predicted_loss(regression, noise, sl.SGD(share * found.lr), steps=600)
        assert bool(curve[-1] > 100 * curve[0]) is grows
    assert "for the mean square" in str(found)


def test_signs_are_stable_at_every_learning_rate_that_decay_allows():
    noise = sl.GaussianNoise(SIGMA)
    assert sl.theory.stability_limit(problem(), noise, sl.SignSGD(0.1)).lr == math.inf
    assert sl.theory.stability_limit(problem(), noise, sl.Lion(0.1, weight_decay=0.5)).lr == pytest.approx(4.0)


def test_the_time_to_a_loss_is_where_the_curve_crosses_it():
    noise, optimizer, target = sl.GaussianNoise(SIGMA), sl.SGD(0.02), 0.6
    curve = np.asarray(sl.theory.predicted_loss(problem(), noise, optimizer, steps=STEPS), float)
    k = int(np.argmax(curve <= target))
    expected = k - 1 + (curve[k - 1] - target) / (curve[k - 1] - curve[k])
    found = sl.theory.time_to(problem(), noise, optimizer, target)
    assert (found.steps, found.time) == (pytest.approx(expected, rel=1e-4), pytest.approx(0.02 * expected, rel=1e-4))
    assert "reaches 0.6 after" in str(found)

    def steps(given):
        return sl.theory.time_to(problem(), noise, sl.SGD(given["lr"]), given["loss"], steps=STEPS).steps

    assert_gradient_is_that_of_differences(steps, {"lr": 0.02, "loss": target})
    never = sl.theory.time_to(problem(), noise, sl.SGD(0.1), 0.01, steps=600)
    assert never.steps == math.inf
    assert "the stationary loss is" in never.reason


def test_the_optimal_learning_rate_is_that_of_a_fine_grid():
    noise = sl.GaussianNoise(SIGMA)
    found = sl.theory.optimise(problem(), noise, sl.SGD(0.01), steps=STEPS, over="lr")
    grid = found.values["lr"] * np.exp(np.linspace(-1, 1, 401))
    losses = jax.vmap(lambda lr: sl.theory.predicted_loss(problem(), noise, sl.SGD(lr), steps=STEPS)[-1])
    values = np.asarray(quick(losses)(jnp.asarray(grid)), float)
    assert found.values["lr"] == pytest.approx(grid[np.argmin(values)], rel=0.01)
    assert found.loss == pytest.approx(values.min(), rel=1e-4)
    assert found.loss < found.loss_before
    assert found.optimizer.lr == found.values["lr"]
    assert min(found.changes["lr"]) > 1
    assert "if doubled" in str(found)
    bounded = sl.theory.optimise(problem(), noise, sl.SGD(0.01), steps=STEPS, bounds={"lr": (1e-3, 1e-2)})
    assert bounded.values["lr"] == pytest.approx(1e-2)
    assert "lr: 0.01 is a bound" in str(bounded)


@pytest.mark.slow
def test_larger_batches_take_larger_learning_rates_and_a_schedule_takes_more():
    """On one coordinate far from its noise, the best lr grows with the batch, at most linearly, then no more."""
    noise, simple = sl.GaussianNoise(1.0), sl.Quadratic([1.0], start=1.0)
    found = sl.theory.optimise(simple, noise, sl.SGD(0.1), steps=600, loss=0.05, batch_ratios=[0.25, 1, 4, 64])
    assert 0.8 < found.exponents[0] <= 1.02
    assert found.exponents[0] > found.exponents[1] > found.exponents[2] > 0
    assert found.critical_ratio > 0
    assert all(a.steps_to > b.steps_to for a, b in zip(found.optima, found.optima[1:], strict=False))
    constant = sl.theory.optimise(simple, noise, sl.SGD(0.1), steps=200)
    scheduled = sl.theory.optimise(simple, noise, sl.SGD(0.1), steps=200, over=("lr", "schedule"), knots=5)
    # Of all schedules h η ∝ 1/(λk) is best: the loss is then about σ²/(2λk).
    assert scheduled.loss < 0.6 * constant.loss
    assert scheduled.values["schedule"][-1] < 0.1


def test_what_cannot_be_optimised_is_refused():
    noise = sl.GaussianNoise(1.0)
    with pytest.raises(ValueError, match=r"over: got 'b2'; choose one of 'lr', 'weight_decay', 'schedule'"):
        sl.theory.optimise(problem(), noise, sl.SGD(0.1), steps=3, over=("lr", "b2"))
    with pytest.raises(ValueError, match=r"loss: got 0, which is not above the infimum 0"):
        sl.theory.optimise(problem(), noise, sl.SGD(0.1), steps=3, loss=0.0)
    with pytest.raises(ValueError, match=r"bounds\['lr'\]: got 2 and 1"):
        sl.theory.optimise(problem(), noise, sl.SGD(0.1), steps=3, bounds={"lr": (2.0, 1.0)})


def test_the_largest_eigenvalue_is_that_of_numpy():
    """Full spectra, gaps, ties and negative matrices, up to more dimensions than Lanczos steps: two programs."""
    rng = np.random.default_rng(0)
    for dim, tolerance in ((7, 1e-5), (150, 5e-3)):
        basis = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
        spectra = [
            np.linspace(-1, 3, dim),
            5 / np.arange(1.0, dim + 1),
            -1.0 - np.arange(dim),
            np.arange(dim) % 2 + 1.0,
        ]
        matrices = jnp.asarray([(basis * values) @ basis.T for values in spectra], jnp.float32)
        found = jax.jit(lambda m, x: largest_eigenvalue(lambda v: jnp.einsum("pij,jp->ip", m, v), x))(
            matrices, jnp.zeros((dim, 4))
        )
        for value, spectrum in zip(np.asarray(found), spectra, strict=True):
            assert value == pytest.approx(spectrum.max(), abs=tolerance * np.abs(spectrum).max())


def test_the_divisor_of_adam_corrects_its_bias():
    def divisors(v):
        fresh, inside = Divisor(0.5, 0.9, jnp.int32(0), inside=False), Divisor(0.5, None, jnp.int32(0), inside=True)
        return jnp.stack([fresh(v, 2), fresh(v, 0), inside(v, 2)])

    # v/(1 − b2²) = 1; no gradient yet; ε inside the root.
    np.testing.assert_allclose(jax.jit(divisors)(np.float32(0.19)), [1.5, np.inf, math.sqrt(0.69)], rtol=1e-6)


def test_sharpness_is_recorded_along_a_run():
    """v̂ ≈ (0.1)² + … at rest; there the sharpness divided by √v + ε is that of H/(σ + ε) for equal σ."""
    matrix = np.array([[3.0, 1.0], [1.0, 2.0]])
    names = ["sharpness", "preconditioned_sharpness", "batch_sharpness"]
    optimizer = sl.AdamW(1e-3, b2=0.99, eps=0.5)
    result = sl.simulate(
        sl.Quadratic(matrix, start=0.0), sl.GaussianNoise(2.0), optimizer, "optimizer",
        steps=400, paths=64, record=sl.Record(every=400, observables=names),
    )  # fmt: skip
    whole, preconditioned, batch = result.dataset.observable_mean.isel(model=0).values
    largest = np.linalg.eigvalsh(matrix)[-1]
    np.testing.assert_allclose(whole, largest, rtol=1e-5)
    assert preconditioned[0] == 0  # no gradient yet: the divisor is infinite
    # v̂ has the relative standard deviation √(2(1 − β₂)/(1 + β₂)) = .1 per path, so its root .05.
    assert preconditioned[1] == pytest.approx(largest / 2.5, rel=0.03)
    # Directions of g are uniform: the mean is tr H/2; over 64 · 8 draws its standard error is at most .05.
    assert batch[1] == pytest.approx(2.5, abs=0.25)


def test_sharpness_near_the_limit_of_stability_is_remarked_on():
    def notes(value, **optimizer):
        data = {"observable_mean": (("model", "observable", "step"), np.array([[[1.0, value]]]))}
        coordinates = {"model": ["sde"], "observable": ["sharpness"], "step": [0, 7]}
        return sharpness_notes(xr.Dataset(data, coordinates), {"lr": 0.4, "decay": "coupled", **optimizer})

    assert notes(2.4, name="sgd") == notes(9.9, name="adamw") == []
    (said,) = notes(3.6, name="sgd")
    assert "sharpness reaches 3.6 (model 'sde', step 7), 0.72 times the limit of stability 5 at lr = 0.4" in said
    assert "no SDE describes this oscillation" in said
    assert notes(40.0, name="momentum", b1=0.9) == []  # 2(1 + b1)/(1 − b1)/lr = 95


def test_preconditioned_sharpness_needs_a_second_moment():
    record = sl.Record(observables=["preconditioned_sharpness"])
    with pytest.raises(ValueError, match=r"'preconditioned_sharpness', but sgd is not known to divide"):
        sl.simulate(problem(), sl.GaussianNoise(0.1), sl.SGD(0.4), steps=2, paths=2, record=record)
