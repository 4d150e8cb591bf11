"""Predictions: against plain references, against one step of the optimizer itself, and within the library."""

import math
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, erfinv

import references
import sdelens as sl
from tests.checks import assert_shown_well

CURVATURE, SIGMA = np.array([0.5, 1.0, 2.0, 5.0]), np.array([1.0, 0.5, 1.0, 2.0])
PROBLEM, NOISE = sl.Quadratic(CURVATURE, start=1.0), sl.GaussianNoise(SIGMA)
FOUR = [
    sl.SGD(0.02, 0.1),
    sl.SignSGD(0.02, 0.1),
    sl.RMSpropW(0.02, 0.99, weight_decay=0.1),
    sl.AdamW(0.02, 0.9, 0.99, weight_decay=0.1),
]


ALL = [
    *FOUR,
    sl.Momentum(0.02, 0.9, weight_decay=0.1),
    sl.Momentum(0.02, 0.9, nesterov=True, weight_decay=0.1),
    sl.Signum(0.02, 0.9, weight_decay=0.1),
    sl.Lion(0.02, 0.9, 0.98, weight_decay=0.1),
]


def named(value):
    return getattr(value, "name", type(value).__name__)


@cache
def predicted(index):
    """The prediction of one optimizer; several tests look at it."""
    return sl.theory.predict(PROBLEM, NOISE, ALL[index], steps=150, record_every=40)


@pytest.fixture(scope="module")
def run():
    """A simulation of SGD and its SDE that predictions, curves and bounds are joined to."""
    return sl.compare(PROBLEM, NOISE, sl.SGD(0.05), steps=40, paths=300)


def last(result):
    """Final mean and variance of the coordinates."""
    final = result.dataset.isel(model=0, step=-1)
    return final.x_mean.values, final.x_var.values


def rotated(seed=0):
    """A rotation of four dimensions."""
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((4, 4)))[0]


CLOSURE = [pytest.param(i, id=f"{i}-{named(ALL[i])}") for i in range(len(ALL))]


@pytest.mark.parametrize("index", CLOSURE)
def test_the_closure_is_that_of_the_plain_reference(index):
    optimizer, x0 = ALL[index], np.ones(4)
    lr, theta, steps = 0.02, 0.1, 150
    if optimizer.name == "sgd":
        factor = 1 - lr * (CURVATURE + theta)
        expected = factor**steps * x0, (lr * SIGMA) ** 2 * (1 - factor ** (2 * steps)) / (1 - factor**2)
    elif optimizer.name == "signsgd":
        expected = references.closure_signsgd(CURVATURE, SIGMA, x0, lr, theta, steps)
    elif optimizer.name == "rmspropw":
        options = dict(corrected=False, v0=CURVATURE**2 + SIGMA**2)
        expected = references.closure_adamw(CURVATURE, SIGMA, x0, lr, theta, 0.0, 0.99, 1e-8, steps, **options)
    elif optimizer.name == "adamw":
        expected = references.closure_adamw(CURVATURE, SIGMA, x0, lr, theta, 0.9, 0.99, 1e-8, steps)
    elif optimizer.name == "momentum":
        expected = references.closure_momentum(CURVATURE, SIGMA, x0, lr, theta, 0.9, optimizer.nesterov, steps)
    else:
        weights = (0.9, 0.1, optimizer.memory)
        expected = references.closure_signed_momentum(CURVATURE, SIGMA, x0, lr, theta, *weights, steps)
    result = predicted(index)
    assert list(result.dataset.step.values) == [0, 40, 80, 120, 150]
    mean, variance = last(result)
    np.testing.assert_allclose(mean, expected[0], rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(variance, expected[1], rtol=1e-4)
    loss = 0.5 * CURVATURE @ (expected[0] ** 2 + expected[1])
    spread = 0.5 * np.sum((CURVATURE * expected[1]) ** 2) + np.sum((CURVATURE * expected[0]) ** 2 * expected[1])
    final = result.dataset.isel(model=0, step=-1)
    assert float(final.loss_mean) == pytest.approx(loss, rel=1e-4)
    assert float(final.loss_std) == pytest.approx(math.sqrt(spread), rel=1e-4)


@pytest.mark.parametrize("index", CLOSURE)
def test_matrices_give_what_vectors_give(index):
    """The loss's matrix for some of the optimizers, the noise's for the others; below both, turned, for all."""
    problem, noise = PROBLEM, sl.GaussianNoise(covariance=np.diag(SIGMA**2))
    if ALL[index].name in ("signsgd", "adamw", "lion"):
        problem, noise = sl.Quadratic(np.diag(CURVATURE), 1.0), NOISE
    found = sl.theory.predict(problem, noise, ALL[index], steps=150, record_every=40)
    for a, b in zip(last(predicted(index)), last(found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


def test_a_rotation_changes_no_loss_of_sgd():
    basis = rotated()
    turned = sl.Quadratic((basis * CURVATURE) @ basis.T, basis @ np.ones(4))
    noise = sl.GaussianNoise(covariance=(basis * SIGMA**2) @ basis.T)
    there = sl.theory.predict(turned, noise, FOUR[0], steps=150, record_every=40)
    np.testing.assert_allclose(there.dataset.loss_mean, predicted(0).dataset.loss_mean, rtol=1e-5)


REGRESSION = np.array([[1.0, 0.4, 0.0], [0.4, 0.6, 0.2], [0.0, 0.2, 0.5]])
ONES, SPREAD = np.ones(3), np.array([0.3, 0.5, 0.2])
EXACT = {
    "normal": (sl.Quadratic([0.5, 2.0, 5.0]), sl.GaussianNoise([1.0, 0.5, 2.0]), [1.0, 0.5, 2.0]),
    "t, no mean": (sl.Quadratic([0.5, 2.0, 5.0]), sl.StudentTNoise(ONES, 1), 1.0),
    "laplace": (sl.Quadratic([0.5, 2.0, 5.0]), sl.LaplaceNoise(ONES), 1.0),
    "uniform": (sl.Quadratic([0.5, 2.0, 5.0]), sl.UniformNoise(4.0 * ONES), 4.0),
    "sum": (sl.Quadratic([0.5, 2.0, 5.0]), sl.GaussianNoise(0.5) + sl.LaplaceNoise(1.0), 1.0),
    "matrix, t": (sl.Quadratic(REGRESSION), sl.StudentTNoise(1.0, 2), 1.0),
    "matrix, correlated": (sl.Quadratic(REGRESSION), sl.GaussianNoise(covariance=2 * REGRESSION + 0.1), 1.0),
}


def drawn(case, rng, count):
    """Noise of that law from NumPy, shape (count, 3)."""
    scale, shape = EXACT[case][2], (count, 3)
    if case == "matrix, correlated":
        return rng.multivariate_normal(np.zeros(3), 2 * REGRESSION + 0.1, count)
    draws = {
        "normal": rng.standard_normal,
        "t, no mean": lambda shape: rng.standard_t(1, shape),
        "laplace": lambda shape: rng.laplace(size=shape),
        "uniform": lambda shape: rng.uniform(-1, 1, shape),
        "sum": lambda shape: 0.5 * rng.standard_normal(shape) + rng.laplace(size=shape),
        "matrix, t": lambda shape: rng.standard_t(2, shape),
    }
    return scale * draws[case](shape)


@pytest.mark.parametrize("case", EXACT)
def test_one_step_of_signsgd_on_a_normal_cloud_is_exact(case):
    """E x and Var x after one large step from a normal x, on 200 000 draws: 42 comparisons at 5 standard errors."""
    problem, noise, _ = EXACT[case]
    rng, paths = np.random.default_rng(1), 200_000
    x = 0.7 + SPREAD * rng.standard_normal((paths, 3))
    curvature = np.asarray(problem.curvature, float)
    gradient = x * curvature if curvature.ndim == 1 else x @ curvature
    after = x - 0.5 * np.sign(gradient + drawn(case, rng, paths))
    found = exact_cloud(problem, noise, 0.5, 0.7 * np.ones(3), SPREAD**2)
    mean, variance = after.mean(axis=0), after.var(axis=0)
    # Four moments of two-valued steps and normal x: Var of the sample variance is below 3 s⁴/n here.
    assert np.abs(mean - found[0]).max() < 5 * np.sqrt(variance / paths).max()
    assert np.abs(variance - found[1]).max() < 5 * np.sqrt(3.0 / paths) * variance.max()


def exact_cloud(problem, noise, lr, mean, variance):
    """Mean and variance after one step of SignSGD's closure from a normal law with these."""
    from sdelens.theory._linear import linear_gradient

    x, xx = after_one_step(linear_gradient(problem, noise.bind(problem)), lr, np.float32(mean), np.float32(variance))
    return np.asarray(x), np.asarray(xx)


@jax.jit
def after_one_step(model, lr, mean, variance):
    from sdelens.theory._closure import Moments, advance
    from sdelens.theory._moments import diagonal

    y = Moments(mean, variance if model.curvature.ndim == 1 else jnp.diag(variance))
    y = advance(model, sl.SignSGD(lr), y, 0)
    return y.x, diagonal(y.xx)


def test_a_law_given_by_its_functions_has_the_fourth_moment_of_the_named_one():
    """Laplace noise as functions: E X⁴ = 24; a law with a tail of index 3.5 has none."""
    from sdelens.theory._linear import linear_gradient

    def of(cdf, ppf, **numbers):
        return linear_gradient(PROBLEM, sl.SymmetricNoise(cdf, ppf, scale=0.5, **numbers).bind(PROBLEM))

    def cdf(s):
        return jnp.where(s < 0, 0.5 * jnp.exp(-jnp.abs(s)), 1 - 0.5 * jnp.exp(-jnp.abs(s)))

    def ppf(u):
        return jnp.sign(u - 0.5) * -jnp.log(2 * jnp.minimum(u, 1 - u))

    def pdf(s):
        return 0.5 * jnp.exp(-jnp.abs(s))

    x = PROBLEM.start
    laplace = linear_gradient(PROBLEM, sl.LaplaceNoise(0.5).bind(PROBLEM))
    own = of(cdf, ppf, variance=2.0, pdf=pdf)
    given = of(cdf, ppf, variance=2.0, pdf=pdf, fourth_moment=24.0)
    for model in (own, given):
        moments = (m.square_moments(x, 2 * x, x**2, jnp.full_like(x, 0.5)) for m in (laplace, model))
        for expected, found in zip(*moments, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-6)

    def heavy(s):  # P(|X| > s) = (1 + |s|)^{-3.5}
        tail = 0.5 * (1 + jnp.abs(s)) ** -3.5
        return jnp.where(s < 0, tail, 1 - tail)

    def inverse(u):
        return jnp.sign(u - 0.5) * ((2 * jnp.minimum(u, 1 - u)) ** (-1 / 3.5) - 1)

    none = of(heavy, inverse, variance=8 / 15, pdf=lambda s: 1.75 * (1 + jnp.abs(s)) ** -4.5)
    assert np.isinf(none.noise.excess_kurtosis(x)).all()


@pytest.mark.parametrize(("dim", "batch"), [(1, 2), (5, 2), (2, 4)])
def test_signs_of_mini_batches_of_a_sample(dim, batch):
    """E sign and its covariance with x, against 100 000 mini-batches at normal x.

    Bounds hold the approximation, 0.03 of the mean and 0.2 of the covariance, and five standard errors.
    """
    from sdelens.theory._linear import linear_gradient

    problem = sl.LinearRegression(np.ones(dim), 0.5, samples=20)
    features, labels = (np.asarray(a, float) for a in (problem.features, problem.labels))
    rng, draws = np.random.default_rng(dim + batch), 100_000
    mean, root = np.asarray(problem.minimiser, float) + 0.2, 0.3 * rng.standard_normal((dim, dim))
    x = mean + rng.standard_normal((draws, dim)) @ root.T
    chosen = rng.integers(0, 20, (draws, batch))
    residuals = np.einsum("nbd,nd->nb", features[chosen], x) - labels[chosen]
    sign = np.sign(np.einsum("nb,nbd->nd", residuals, features[chosen]))
    model = linear_gradient(problem, sl.MinibatchNoise(batch).bind(problem))
    found = eqx.filter_jit(model.signs)(np.float32(mean), np.float32(root @ root.T))
    assert np.abs(sign.mean(axis=0) - found.mean).max() < 0.03 + 5 / np.sqrt(draws)
    together = sign.T @ (x - mean) / draws
    sd = np.sqrt((root**2).sum(axis=1).max())
    assert np.abs(found.jacobian @ (root @ root.T) - together).max() < 0.2 * sd + 5 * sd / np.sqrt(draws)


def test_a_schedule_multiplies_the_learning_rate():
    optimizer = sl.SGD(0.1, schedule=sl.Cosine(20))
    h = 0.5 * (1 + np.cos(np.pi * np.arange(20) / 20))
    mean, variance = last(sl.theory.predict(PROBLEM, NOISE, optimizer, steps=20))
    factors = 1 - 0.1 * h[:, None] * CURVATURE
    np.testing.assert_allclose(mean, np.prod(factors, axis=0), rtol=1e-4, atol=1e-7)
    later = np.cumprod(factors[::-1], axis=0)[::-1]
    weight = np.concatenate([later[1:], np.ones((1, 4))]) ** 2
    np.testing.assert_allclose(variance, ((0.1 * h[:, None] * SIGMA) ** 2 * weight).sum(axis=0), rtol=1e-4)


def test_a_saved_state_is_gone_on_from():
    """AdamW after one gradient, against 50 000 paths by NumPy."""
    start = np.ones(4), 0.1 * CURVATURE, 0.01 * (CURVATURE**2 + SIGMA**2)
    found = sl.theory.predict(PROBLEM, NOISE, FOUR[3], steps=3, start=sl.State(*start, 1))
    rng, (x, m, v) = np.random.default_rng(0), start
    for k in (2, 3, 4):
        g = CURVATURE * x + SIGMA * rng.standard_normal((50_000, 4))
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        x = x - 0.02 * (m / (1 - 0.9**k) / (np.sqrt(v / (1 - 0.99**k)) + 1e-8) + 0.1 * x)
    mean, variance = x.mean(axis=0), x.var(axis=0)
    # The closure's own error there, with few gradients in v, is below 2 % of the way.
    assert (np.abs(last(found)[0] - mean) < 5 * np.sqrt(variance / 50_000) + 0.02 * np.abs(mean - 1)).all()


def test_a_random_start_is_taken_with_its_moments():
    cloud = sl.theory.predict(PROBLEM, NOISE, sl.SGD(0.1), steps=1, start=lambda k: 2 + jax.random.normal(k, (4,)))
    first = cloud.dataset.isel(model=0, step=0)
    np.testing.assert_allclose(first.x_mean, 2, atol=5 / 64)  # 4096 draws
    np.testing.assert_allclose(first.x_var, 1, atol=5 * math.sqrt(2 / 4096))


def test_a_prediction_joins_a_simulation(tmp_path, run):
    optimizer = sl.SGD(0.05)
    found = sl.theory.predict(PROBLEM, NOISE, optimizer, steps=40)
    both, turned = run.merge(found), found.merge(run)
    assert both.models == ["optimizer", "sde", "prediction"]
    assert turned.models[0] == "prediction"
    for merged in (both, turned):
        errors = merged.errors()
        assert errors.error["prediction"] < 0.1
        assert 0 <= errors.error_lower["prediction"] <= errors.error_upper["prediction"]
        assert errors.diverged["prediction"] == 0
        assert merged.info["run"]["paths"] == 300
    np.testing.assert_allclose(both.errors().loc["sde"], run.errors().loc["sde"])
    both.save(tmp_path / "both.nc")
    np.testing.assert_allclose(sl.load(tmp_path / "both.nc").errors(), both.errors())
    text = str(both)
    assert "prediction: mean and covariance" in text
    for name, result in (("both", both), ("found", found)):
        result.plot(tmp_path / f"{name}.png")
    other = sl.theory.predict(PROBLEM, NOISE, optimizer, steps=40, record_every=5)
    with pytest.raises(ValueError, match="record_every"):
        run.merge(other)
    elsewhere = sl.theory.predict(PROBLEM, NOISE, optimizer, steps=40, start=np.zeros(4))
    with pytest.raises(ValueError, match="differs in start"):
        run.merge(elsewhere)


def test_a_logged_curve_and_a_bound_join_a_simulation(tmp_path, run):
    mean = run.dataset.loss_mean.sel(model="optimizer").values
    half = run.with_curve("mine", 1.1 * mean[5:31:5], np.arange(5, 31, 5))
    errors = half.errors()
    covered = slice(5, 31)
    curve = half.dataset.loss_mean.sel(model="mine").values
    assert np.isnan(curve[:5]).all()
    assert np.isnan(curve[31:]).all()
    naive = np.linalg.norm((curve - mean)[covered]) / np.linalg.norm(mean[covered])
    assert errors.error["mine"] == pytest.approx(naive, rel=0.1)
    assert math.isfinite(errors.late_error["mine"])
    bounded = half.with_bound("bound", np.linspace(9, 1, 41)).with_bound("other", np.full(41, np.inf))
    assert list(bounded.dataset.bound.values) == ["bound", "other"]
    bounded.plot(tmp_path / "figure.png")
    bounded.save(tmp_path / "run.nc")
    again = sl.load(tmp_path / "run.nc")
    assert "Bounds in the figure: bound, other." in str(again)
    assert again.dataset.loss_bound.shape == (2, 41)
    assert "mine" in again.merge(sl.theory.predict(PROBLEM, NOISE, sl.SGD(0.05), steps=40)).models


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.with_curve("a", [1.0, 2.0], [0]), "losses: got 2 for 1 steps"),
        (lambda r: r.with_curve("a", [1.0, 2.0], [3, 3]), "steps: must be 0 or greater"),
        (lambda r: r.with_curve("a", [1.0, 2.0], [50, 60]), "fewer than two recorded steps"),
        (lambda r: r.with_curve("prediction", [1.0, 2.0], [0, 5]), "both results have models named"),
        (lambda r: r.with_curve("a", [1.0, np.nan], [0, 5]), "losses: entry"),
        (lambda r: r.with_bound("a", [1.0, 2.0]), "one number per recorded step"),
        (lambda r: r.with_bound("a", np.ones(6)).with_bound("a", np.ones(6)), "there is a bound 'a' already"),
        (lambda r: r.with_bound("a", np.full(6, np.nan)), "infinity where there is no bound"),
    ],
)
def test_curves_and_bounds_that_do_not_fit_are_refused(call, message):
    result = sl.theory.predict(PROBLEM, NOISE, sl.SGD(0.05), steps=5)
    with pytest.raises(ValueError, match=message):
        call(result)


def test_what_cannot_be_predicted_says_why():
    def predict(problem=PROBLEM, noise=NOISE, optimizer=FOUR[0], **options):
        return sl.theory.predict(problem, noise, optimizer, **{"steps": 3, **options})

    with pytest.raises(TypeError, match="got Rosenbrock; the theory needs a quadratic loss"):
        predict(sl.Rosenbrock(), sl.GaussianNoise(1.0))
    for optimizer in (sl.SGD(0.1), sl.RMSpropW(0.1, v0="zero"), sl.AdamW(0.1)):
        with pytest.raises(ValueError, match="student-t noise has no finite variance here"):
            predict(noise=sl.StudentTNoise(1.0, 2), optimizer=optimizer)
    big = sl.Quadratic(np.ones(2001, np.float32))
    with pytest.raises(ValueError, match="v0: got 'second-moment'"):
        predict(noise=sl.StudentTNoise(1.0, 2), optimizer=sl.RMSpropW(0.1))
    with pytest.raises(ValueError, match="2001 coupled coordinates"):
        _coupled(big)
    with pytest.raises(ValueError, match="steps: got 0"):
        predict(steps=0)
    with pytest.raises(TypeError, match="noise: got float"):
        predict(noise=1.0)


def _coupled(problem):
    from sdelens.noise.gaussian import VaryingMatrix
    from sdelens.theory._linear import linear_gradient

    return linear_gradient(problem, VaryingMatrix(lambda x: jnp.eye(2001), "identity"))


# Stationary laws


@pytest.mark.parametrize("optimizer", ALL, ids=named)
@pytest.mark.parametrize("dense", [False, True])
def test_the_stationary_law_is_where_the_closure_comes_to_rest(optimizer, dense):
    basis = rotated()
    problem = sl.Quadratic((basis * CURVATURE) @ basis.T if dense else CURVATURE, start=0.1)
    noise = sl.GaussianNoise(covariance=np.diag(SIGMA**2) + 0.2) if dense else NOISE
    law = sl.theory.stationary(problem, noise, optimizer)
    far = sl.theory.predict(problem, noise, optimizer, steps=4000, record_every=4000)
    np.testing.assert_allclose(law.variance, last(far)[1], rtol=1e-3)
    np.testing.assert_allclose(law.mean, 0, atol=1e-6)
    assert law.excess == pytest.approx(float(far.dataset.loss_mean[0, -1]), rel=1e-3)


@pytest.mark.parametrize("optimizer", [FOUR[2], sl.AdamW(0.02, 0.9, 0.98, weight_decay=0.5)], ids=named)
def test_the_stationary_law_where_decay_keeps_x_from_the_minimiser(optimizer):
    """E ∇f is not 0 then, and x follows the fluctuation of v."""
    problem = sl.LinearRegression([1.0, 0.5], 0.3, solution=[2.0, -1.0])
    noise = sl.MinibatchNoise(4)
    law = sl.theory.stationary(problem, noise, optimizer)
    far = sl.theory.predict(problem, noise, optimizer, steps=3000, record_every=3000)
    mean, variance = last(far)
    assert np.abs(mean - [2.0, -1.0]).min() > 2e-3
    np.testing.assert_allclose(law.mean, mean, rtol=1e-3)
    np.testing.assert_allclose(law.variance, variance, rtol=2e-3)


def test_the_stationary_variances_have_their_closed_forms():
    lr, theta, lam, sigma = 0.05, 0.3, CURVATURE, SIGMA
    k, b = lam / sigma + theta, math.sqrt(2 / math.pi) * lam / sigma

    def variance(optimizer, form):
        return sl.theory.stationary(PROBLEM, NOISE, optimizer, form=form).variance

    close = dict(rtol=1e-5)
    np.testing.assert_allclose(variance(sl.SGD(lr), "paper"), lr / 2 * sigma**2 / lam, **close)
    np.testing.assert_allclose(variance(sl.SGD(lr), "algorithm"), lr * sigma**2 / (lam * (2 - lr * lam)), **close)
    np.testing.assert_allclose(variance(sl.SignSGD(lr), "paper"), lr / 2 / (b * (1 + lr * b / 2)), **close)
    kappa = (lam / sigma) ** 2
    at_rest = (lr**2 * kappa / 4 + np.sqrt(lr**4 * kappa**2 / 16 + b**2 * lr**2)) / (2 * b**2)
    np.testing.assert_allclose(variance(sl.SignSGD(lr), "algorithm"), at_rest, **close)
    slow = 1 - 1e-6  # with v at rest there is nothing but its mean
    for optimizer in (sl.RMSpropW(lr, slow, weight_decay=theta), sl.AdamW(lr, 0.9, slow, weight_decay=theta)):
        np.testing.assert_allclose(variance(optimizer, "paper"), lr / 2 / k, **close)
        # The algorithm's with P² = E g², noise and gradient, of which the frozen P = σ is the limit of small steps.
        found = variance(optimizer, "algorithm")
        scale = np.sqrt(lam**2 * found + sigma**2)
        own, c, b1 = lam / scale + theta, 1 - getattr(optimizer, "b1", 0.0), getattr(optimizer, "b1", 0.0)
        top = lr * (sigma / scale) ** 2 * c * (1 + b1 - b1 * lr * theta)
        bottom = own * (c + b1 * lr * theta) * (2 * (1 + b1) - lr * lam / scale * c - lr * theta * (1 + b1))
        np.testing.assert_allclose(found, top / bottom, rtol=1e-4)
    heavy = sl.theory.stationary(PROBLEM, sl.StudentTNoise(SIGMA, 1), sl.SignSGD(0.001), form="paper").variance
    slope = 2 / math.pi * lam / sigma
    np.testing.assert_allclose(heavy, 0.0005 / (slope * (1 + 0.0005 * slope)), **close)


@pytest.mark.parametrize(
    ("optimizer", "l2", "growth"),
    [
        (sl.SGD(0.01), 0.0, (3.8, 4.2)),
        (sl.SignSGD(0.01), 0.0, (1.9, 2.1)),
        (sl.AdamW(0.01, v0="second-moment"), 0.0, (1.9, 2.1)),
        (sl.AdamW(0.01, weight_decay=1.0, v0="second-moment"), 0.0, (0.9, 1.2)),
        (sl.AdamW(0.01, v0="second-moment"), 1.0, (1.9, 2.1)),
    ],
    ids=["sgd", "signsgd", "adam", "adamw", "adam with l2"],
)
def test_what_twice_the_noise_does_to_the_loss_at_rest(optimizer, l2, growth):
    """From σ = 8 to 16: ×4 for SGD, ×2 for SignSGD, Adam and Adam with L2; AdamW's grows by less, to its bound.

    `test_theory_accuracy.py` simulates the same.
    """
    problem = sl.Quadratic(CURVATURE, start=0.0).with_l2(l2)
    low, high = (
        CURVATURE @ sl.theory.stationary(problem, sl.GaussianNoise(scale), optimizer).variance for scale in (8.0, 16.0)
    )
    assert growth[0] < high / low < growth[1]


def test_what_the_fluctuation_of_v_does_is_exact_for_equal_weights():
    """n normal gradients of equal weight: E of the mean over the root mean square, and no loss of noise."""
    from scipy.special import gammaln

    from sdelens.theory._fluctuation import by_expansion

    n = np.array([1.0, 2, 3, 5, 10, 30, 100])
    ones = jnp.ones(len(n))
    of = jax.jit(by_expansion)
    pull, spread = of(ones, jnp.asarray(2 / n), jnp.asarray(1 / n), jnp.asarray(2 / n), ones)
    np.testing.assert_allclose(pull, np.sqrt(2 / n) * np.exp(gammaln((n + 1) / 2) - gammaln(n / 2)), rtol=0.012)
    np.testing.assert_allclose(spread, 1, atol=1e-6)
    for infinite in (jnp.inf * ones, jnp.nan * ones):
        pull, spread = of(ones, infinite, ones, infinite, ones)
        np.testing.assert_array_equal(np.stack([pull, spread]), 1)


def factors_by_law(noise, grad, b1, b2, count=math.inf):
    """F and N at a constant mean gradient after that many gradients, with v = 0 before the first."""
    from sdelens.theory._fluctuation import LawOfSquares, by_law

    noise, x = noise.bind(sl.Quadratic([1.0])), jnp.zeros(1)
    u, variance = jnp.full(1, grad, jnp.float32), noise.variance(x) * jnp.ones(1)
    mean = (1 - b2**count) * (u**2 + variance)
    law = LawOfSquares(u, 0 * u, variance, *noise.quadrature(x), b1, b2, float(count), 1 - b1**count)
    return [float(a[0]) for a in jax.jit(by_law)(mean, law)]


@pytest.mark.parametrize(
    ("noise", "draw", "grad"),
    [
        (sl.StudentTNoise(1.0, 2.5), lambda rng, n: rng.standard_t(2.5, n), 0.5),
        (sl.StudentTNoise(1.0, 4.01), lambda rng, n: rng.standard_t(4.01, n), 3.0),
        (sl.LaplaceNoise(1.0), lambda rng, n: rng.laplace(size=n), 1.0),
    ],
    ids=["t 2.5", "t 4.01", "laplace"],
)
def test_the_mean_of_a_normalised_gradient_from_the_law_of_the_noise(noise, draw, grad):
    """F after 6 and 24 gradients is within 5 standard errors and 0.5 % of the mean over 40 000 draws of Adam."""
    rng, b1, b2 = np.random.default_rng(0), 0.9, 0.99
    m = v = np.zeros(40_000)
    for k in range(1, 25):
        g = grad + draw(rng, len(m))
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        if k in (6, 24):
            update = m / (1 - b1**k) / np.sqrt(v / (1 - b2**k))
            size = math.sqrt(grad**2 + float(noise.bind(sl.Quadratic([1.0])).variance(jnp.zeros(1)).sum())) / grad
            error = 5 * size * update.std() / math.sqrt(len(m))
            assert factors_by_law(noise, grad, b1, b2, k)[0] == pytest.approx(size * update.mean(), rel=5e-3, abs=error)


def test_the_two_forms_of_the_fluctuation_agree_and_none_is_zero_where_a_moment_ends():
    from sdelens.theory._fluctuation import by_expansion

    b1, b2, one = 0.9, 0.99, jnp.ones(1)
    weight = (1 - b1) * (1 - b2) / (1 - b1 * b2)
    expected = by_expansion(one, (1 - b2) / (1 + b2) * 2 * one, weight * one, weight * 2 * one, one)
    np.testing.assert_allclose(factors_by_law(sl.GaussianNoise(1.0), 0.0, b1, b2), np.ravel(expected), rtol=1e-3)
    below, above = (factors_by_law(sl.StudentTNoise(1.0, 4 + e), 0.0, b1, b2) for e in (-0.01, 0.01))
    np.testing.assert_allclose(below, above, rtol=1e-3)
    pull, spread = factors_by_law(sl.StudentTNoise(1.0, 2.05), 0.0, b1, b2)
    assert pull > 2
    assert 0.5 < spread < 1


def test_the_variance_of_adam_at_rest_under_noise_almost_without_a_fourth_moment():
    """ν = 4.01: within 5 standard errors and 2 % of 4000 paths; to first order the variance would be 0."""
    optimizer, rng = sl.AdamW(0.02, 0.9, 0.99), np.random.default_rng(1)
    expected = sl.theory.stationary(sl.Quadratic([1.0]), sl.StudentTNoise(1.0, 4.01), optimizer).variance[0]
    x, m, v, found = np.zeros(4000), 0.0, 0.0, []
    for k in range(1, 901):
        g = x + rng.standard_t(4.01, len(x))
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        x = x - 0.02 * m / (1 - 0.9**k) / np.sqrt(v / (1 - 0.99**k))
        if k > 400:
            found.append(x**2)
    paths = np.mean(found, axis=0)
    assert expected == pytest.approx(paths.mean(), rel=0.02, abs=5 * paths.std() / math.sqrt(len(x)))


@pytest.mark.parametrize("matrix", [False, True])
def test_noise_that_is_quadratic_in_x_is_averaged_exactly(matrix):
    """SGD's closure is exact then: E Σ = Σ(μ) + diag S, or with a matrix Σ(μ) + S."""
    lr, lam = 0.1, np.array([0.5, 1.0, 2.0])
    function = (lambda x: 0.3 * jnp.eye(3) + jnp.outer(x, x)) if matrix else (lambda x: 0.3 + x**2)
    found = sl.theory.predict(sl.Quadratic(lam, 1.0), sl.GaussianNoise(covariance=function), sl.SGD(lr), steps=30)
    mean, cov = np.ones(3), np.zeros((3, 3))
    for _ in range(30):
        noise = 0.3 * np.eye(3) + np.outer(mean, mean) + cov
        noise = noise if matrix else np.diag(np.diag(noise))
        factor = np.diag(1 - lr * lam)
        mean, cov = factor @ mean, factor @ cov @ factor + lr**2 * noise
    np.testing.assert_allclose(last(found)[0], mean, rtol=1e-4)
    np.testing.assert_allclose(last(found)[1], np.diag(cov), rtol=1e-4)


def test_dense_paper_forms_agree_with_diagonal_ones():
    for optimizer in FOUR:
        matrix = sl.theory.stationary(sl.Quadratic(np.diag(CURVATURE)), NOISE, optimizer, form="paper")
        vector = sl.theory.stationary(PROBLEM, NOISE, optimizer, form="paper")
        np.testing.assert_allclose(matrix.covariance, vector.covariance, rtol=1e-4, atol=1e-9)


def test_sample_and_density():
    basis = rotated()
    law = sl.theory.stationary(sl.Quadratic((basis * CURVATURE) @ basis.T), NOISE, sl.SGD(0.05))
    draws = law.sample(100_000, seed=3)
    size = np.sqrt(np.outer(law.variance, law.variance))
    assert (np.abs(np.cov(draws.T) - law.covariance) < 5 * np.sqrt(2 / 100_000) * size).all()
    assert (np.abs(draws.mean(axis=0)) < 5 * np.sqrt(law.variance / 100_000)).all()
    sd = np.sqrt(law.variance)
    line = np.linspace(-8, 8, 2001) * sd[1]
    assert np.trapezoid(law.density(line, 1), line) == pytest.approx(1, abs=1e-6)
    a, b = (np.linspace(-8, 8, 401) * sd[i] for i in (0, 2))
    plane = law.density(np.stack(np.meshgrid(a, b, indexing="ij"), axis=-1), (0, 2))
    assert plane.shape == (401, 401)
    assert np.trapezoid(np.trapezoid(plane, b), a) == pytest.approx(1, abs=1e-6)
    marginal = np.trapezoid(plane, b)
    np.testing.assert_allclose(marginal, law.density(a, 0), rtol=1e-6, atol=1e-9)
    for coordinates, points in ((4, 0.0), ((0, 0), np.zeros((3, 2))), ((0, 1, 2), np.zeros((3, 3))), ((0, 1), 0.0)):
        with pytest.raises(ValueError, match=r"coordinates|points"):
            law.density(points, coordinates)
    assert "SGD in the stationary state (algorithm), d = 4" in str(law)
    assert_shown_well(law)
    one = sl.theory.stationary(PROBLEM, NOISE, sl.SGD(0.05))
    assert one.sample(10).shape == (10, 4)
    assert one.spread.ndim == 1


def test_where_nothing_is_stationary_it_says_so():
    def law(problem=PROBLEM, noise=NOISE, optimizer=FOUR[0], **options):
        return sl.theory.stationary(problem, noise, optimizer, **options)

    with pytest.raises(ValueError, match="curvature 0 along some direction"):
        law(sl.Quadratic([0.0, 1.0]), sl.GaussianNoise(1.0), sl.SGD(0.1))
    assert law(sl.Quadratic([0.0, 1.0]), sl.GaussianNoise(1.0), sl.SGD(0.1, 0.5)).variance[0] > 0
    with pytest.raises(ValueError, match="curvature -1 along"):
        law(sl.Quadratic([-1.0, 1.0]), sl.GaussianNoise(1.0), sl.SGD(0.1, 2.0))
    for problem in (PROBLEM, sl.Quadratic(np.diag(CURVATURE))):
        with pytest.raises(ValueError, match=r"lr = 0\.5 sgd has no stationary distribution"):
            law(problem, optimizer=sl.SGD(0.5))
    with pytest.raises(ValueError, match="has a schedule"):
        law(optimizer=sl.SGD(0.1, schedule=sl.Cosine(10)))
    with pytest.raises(ValueError, match="no finite variance"):
        law(noise=sl.StudentTNoise(1.0, 1.5))
    with pytest.raises(ValueError, match="Did you mean 'paper'"):
        law(form="papr")
    with pytest.raises(TypeError, match="needs a quadratic loss"):
        law(sl.EmbeddedSaddle(), sl.GaussianNoise(1.0))


# Phases


def test_phases_of_a_problem_a_gradient_a_pytree_and_a_trajectory():
    y = np.array([0.2, 0.99, 1.01, 1.49, 1.51, -3.0])
    found = sl.theory.phases(math.sqrt(2) * 2.0 * y, sl.GaussianNoise(2.0))
    np.testing.assert_allclose(found.signal, np.abs(y), rtol=1e-6)
    assert found.phase.tolist() == [3, 3, 2, 2, 1, 1]
    np.testing.assert_allclose(found.shares, [1 / 3, 1 / 3, 1 / 3])
    np.testing.assert_allclose(found.gradient_shares, [sum(y[4:] ** 2), sum(y[2:4] ** 2), sum(y[:2] ** 2)] / sum(y**2))
    assert found.time is None
    tree = sl.theory.phases({"a": np.array([0.1, 9.0]), "b": np.array(3.0)}, sl.GaussianNoise({"a": 1.0, "b": 10.0}))
    assert tree.phase.tolist() == [3, 1, 3]
    at_start = sl.theory.phases(PROBLEM, NOISE)
    np.testing.assert_allclose(at_start.signal, CURVATURE / (math.sqrt(2) * SIGMA), rtol=1e-6)
    course = sl.theory.phases(
        PROBLEM, NOISE, along=np.linspace(3, 0, 31)[:, None] * np.ones(4), time=np.arange(31) / 10
    )
    x = np.linspace(3, 0, 31)
    expected = [
        [
            course.time[np.argmax(lam * x / math.sqrt(2) / sd <= limit + 1e-6)]
            for lam, sd in zip(CURVATURE, SIGMA, strict=True)
        ]
        for limit in (1.5, 1.0)
    ]
    np.testing.assert_allclose(course.left, expected)
    assert course.shares.shape == (31, 3)
    assert "Phase 1 is left from t = 0 (first coordinate)" in str(course)
    assert_shown_well(course)
    along = sl.theory.phases(PROBLEM, NOISE, along=sl.theory.predict(PROBLEM, NOISE, sl.SignSGD(0.05), steps=100))
    assert along.phase[-1].tolist() == [3, 3, 3, 3]
    never = sl.theory.phases(np.full((5, 1), 10.0), sl.GaussianNoise(1.0))
    assert np.isinf(never.left).all()


def test_phases_under_other_noise_go_by_how_certain_the_sign_is():
    grad = np.array([0.5, 2.0, 50.0])
    heavy = sl.theory.phases(grad, sl.StudentTNoise(2.0, 1))
    np.testing.assert_allclose(heavy.signal, erfinv(2 / math.pi * np.arctan(grad / 2)), rtol=1e-4)
    boxed = sl.theory.phases(grad, sl.UniformNoise(10.0))
    assert boxed.signal[2] == np.inf
    assert boxed.phase[2] == 1
    np.testing.assert_allclose(erf(boxed.signal[:2]), grad[:2] / 10, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((PROBLEM, 1.0), {}, "noise: got float"),
        ((PROBLEM, NOISE), {"along": np.ones((3, 2))}, r"give \(T, 4\)"),
        ((PROBLEM, NOISE), {"time": [0.0]}, "belongs to a trajectory"),
        ((np.ones(4), NOISE), {"along": np.ones((3, 4))}, "along: belongs to a problem"),
        ((np.ones(4), NOISE), {"time": [0.0]}, "one point only"),
        ((np.ones((2, 4)), NOISE), {"time": [0.0]}, "1 times for 2 points"),
        ((np.ones(3), NOISE), {}, "scale: got shape"),
    ],
)
def test_phases_refuse_what_does_not_fit(arguments, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        sl.theory.phases(*arguments, **options)


def test_phases_are_left_along_a_trajectory_alone():
    with pytest.raises(ValueError, match="one point only"):
        _ = sl.theory.phases(CURVATURE, NOISE).left


# Bounds


def bound(problem=PROBLEM, noise=NOISE, optimizer=FOUR[0], times=(0.0, 1.0, 200.0), **options):
    return sl.theory.loss_bound(problem, noise, optimizer, times, **options)


def test_bounds_have_their_formulas():
    eta, mu, smooth, trace, scale = 0.02, 0.5, 5.0, 8.5, 2.0
    start, t = 0.5 * 8.5, np.array([0.0, 1.0, 200.0])
    rest = eta / 2 * trace * scale**2 / (2 * mu)

    def curve(rate, rest):
        return start * np.exp(-rate * t) + rest * (1 - np.exp(-rate * t))

    paper = bound(optimizer=sl.SGD(eta), form="paper")
    np.testing.assert_allclose(paper.loss, curve(2 * mu, rest), rtol=1e-6)
    ours = bound(optimizer=sl.SGD(eta))
    slower = 1 - eta * smooth / 2
    kept = (1 - 2 * mu * eta * slower) ** (t / eta)
    np.testing.assert_allclose(ours.loss, start * kept + rest / slower * (1 - kept), rtol=1e-6)
    assert ours.asymptote == pytest.approx(rest / slower)

    near = sl.Quadratic(CURVATURE, start=0.1)
    start = 0.5 * 8.5 * 0.01
    delta = math.sqrt(2 / math.pi) / scale + eta / math.pi * mu / scale**2
    phase3 = bound(near, optimizer=sl.SignSGD(eta), form="paper")
    assert phase3.phase == 3
    np.testing.assert_allclose(phase3.loss, curve(2 * mu * delta, eta / 2 * trace / (2 * mu * delta)), rtol=1e-6)
    sign = bound(near, optimizer=sl.SignSGD(eta), phase=3)
    assert sign.rate == pytest.approx(2 * mu * math.erf(1) / (math.sqrt(2) * scale), rel=1e-5)
    assert bound(near, optimizer=sl.SignSGD(eta)).asymptote == pytest.approx(sign.asymptote, rel=1e-5)
    heavy = bound(near, sl.StudentTNoise(SIGMA, 1), sl.SignSGD(eta))
    assert heavy.rate == pytest.approx(
        2 * mu * (2 / math.pi) * math.atan(math.sqrt(2)) / (math.sqrt(2) * scale), rel=1e-4
    )

    m = 2 * (math.erf(1.5) - math.erf(1))
    q = math.erf(1) - m
    at = math.sqrt(2) * SIGMA * 1.3 / CURVATURE
    second = bound(sl.Quadratic(CURVATURE, start=at), optimizer=sl.SignSGD(eta), phase=2, times=[0.0, 0.01])
    assert second.rate == pytest.approx(2 * mu * (m / (math.sqrt(2) * scale) + eta * mu * m**2 / (4 * scale**2)))
    assert second.asymptote == np.inf  # the phase ends
    kept, rest = 1 - eta * second.rate, eta / 2 * (trace - mu * 4 * q**2) / second.rate
    at_start = 0.5 * CURVATURE @ at**2
    assert second.loss[1] == pytest.approx(at_start * kept**0.5 + rest * (1 - kept**0.5), rel=1e-6)

    far = sl.Quadratic(CURVATURE, start=20.0)
    start = 0.5 * 8.5 * 400
    first = bound(far, optimizer=sl.SignSGD(eta), form="paper", times=[0.0, 1.0])
    np.testing.assert_allclose(first.loss, [start, 0.25 * (math.sqrt(mu) - 2 * math.sqrt(start)) ** 2], rtol=1e-6)
    limits = np.min((CURVATURE * 20 - 1.5 * math.sqrt(2) * SIGMA) / CURVATURE)
    assert first.valid_until == pytest.approx(limits, rel=1e-5)
    ours = bound(far, optimizer=sl.SignSGD(eta), phase=1, times=[0.0, eta])
    fallen = (math.sqrt(start) - eta * math.erf(1.5) * math.sqrt(mu / 2)) ** 2
    added = eta**2 * (trace + (1 - math.erf(1.5) ** 2) * smooth) / 2
    assert ours.loss[1] == pytest.approx(fallen + added + (eta**2 * trace / 4) ** 2 / start, rel=1e-9)

    theta = 0.4
    adam = bound(near, sl.GaussianNoise(2.0), sl.AdamW(eta, weight_decay=theta), form="paper")
    assert adam.asymptote == pytest.approx(eta * trace / 2 * 2 * smooth / (2 * mu * smooth + 2 * theta * (smooth + mu)))
    assert np.isinf(adam.loss).all()
    assert "only in the limit t → ∞" in adam.reason


def test_a_bound_whose_assumption_fails_is_infinite_and_says_why():
    for found, why in (
        (bound(noise=sl.StudentTNoise(1.0, 2), optimizer=sl.SGD(0.1)), "finite variance"),
        (bound(noise=sl.StudentTNoise(1.0, 2), optimizer=sl.AdamW(0.1)), "finite variance"),
        (bound(optimizer=sl.SGD(0.1, 0.5)), "no weight decay"),
        (bound(optimizer=sl.SGD(0.5)), "stable"),
        (bound(sl.Quadratic([0.0, 1.0, 1.0, 1.0]), sl.GaussianNoise(1.0), sl.SGD(0.1)), "strongly convex"),
        (bound(sl.EmbeddedSaddle(), sl.GaussianNoise(1.0), sl.SGD(0.1)), "strongly convex"),
        (bound(noise=sl.GaussianNoise(covariance=lambda x: 1 + x**2), optimizer=sl.SignSGD(0.1)), "noise of one law"),
        (bound(optimizer=sl.SignSGD(0.1), phase=1), "starts in phase 1"),
        (bound(optimizer=sl.SignSGD(0.1), form="paper"), "all coordinates start in one phase"),
        (bound(noise=sl.LaplaceNoise(9.0), optimizer=sl.SignSGD(0.1), form="paper"), "normal noise"),
        (bound(optimizer=sl.RMSpropW(0.1), form="paper"), "Sigma = sigma"),
        (bound(optimizer=sl.AdamW(0.1, schedule=sl.Cosine(10))), "constant learning rate"),
        (bound(sl.Quadratic(CURVATURE).with_l2(0.1), NOISE, sl.SGD(0.1)), ""),
    ):
        failing = [a for a in found.assumptions if a.holds is False]
        if not why:
            assert not failing
            assert np.isfinite(found.loss).all()
            continue
        assert np.isinf(found.loss).all()
        assert np.isinf(found.asymptote)
        assert why in found.reason
        assert f"FAILS: {why}" in str(found)
        assert any(a.name.startswith(why) for a in failing)
    two = sl.SymmetricNoise(*_two_humps(), variance=2.0)
    assert "unimodal" in bound(noise=two, optimizer=sl.SignSGD(0.01)).reason


def _two_humps():
    """A law with humps at ±1: half normal(−1, ½), half normal(1, ½), its inverse by bisection."""
    from jax.scipy.stats import norm

    @jax.jit
    def cdf(s):
        return 0.5 * (norm.cdf((s - 1) / 0.5) + norm.cdf((s + 1) / 0.5))

    @jax.jit
    def ppf(u):
        def halve(_, ends):
            low, high = ends
            middle = 0.5 * (low + high)
            return jnp.where(cdf(middle) < u, middle, low), jnp.where(cdf(middle) < u, high, middle)

        return jax.lax.fori_loop(0, 40, halve, (jnp.full_like(u, -8.0), jnp.full_like(u, 8.0)))[1]

    return cdf, ppf


def test_bounds_end_where_a_phase_may_be_left():
    far = sl.Quadratic(CURVATURE, start=20.0)
    found = bound(far, optimizer=sl.SignSGD(0.02), phase=1, times=[0.0, 5.0, 15.0, 30.0])
    assert np.isfinite(found.loss).tolist() == [t <= found.valid_until for t in found.times]
    assert "may have left phase 1" in found.reason


def test_with_a_schedule_the_bound_says_whether_it_vanishes():
    for make in (sl.SGD, sl.SignSGD):
        for schedule, expected in (
            (None, False),
            (sl.Polynomial(0.7), True),
            (sl.Polynomial(1.5), False),
            (sl.Cosine(100), False),
            (sl.Warmup(10, sl.Polynomial(1.0)), True),
            (sl.Warmup(10), False),
            (lambda k: 0.5, None),
        ):
            found = bound(optimizer=make(0.02, schedule=schedule), times=[0.0, 4.0, 400.0])
            assert found.vanishes is expected, schedule
            assert ("integral of h" in found.condition) == (schedule is not None)
            if expected:
                assert found.loss[2] < found.loss[1] < found.loss[0]
                assert found.asymptote == 0
    step = bound(optimizer=sl.SGD(0.1, schedule=sl.Polynomial(1.0)), times=[0.0, 0.1, 0.2])
    s, mu, smooth = 4.25, 0.5, 5.0
    for k, value in enumerate(step.loss[1:]):
        h = 0.1 / (1 + 0.1 * k)
        s = (1 - 2 * mu * h * (1 - h * smooth / 2)) * s + h**2 * 8.5 * 4 / 2
        assert value == pytest.approx(s, rel=1e-5)


def test_constants_of_other_problems_come_from_products_with_the_hessian():
    from sdelens.theory.constants import constants

    values = np.linspace(0.5, 3.0, 100)
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((100, 100)))[0].astype(np.float32)
    matrix = np.asarray((basis * values) @ basis.T, np.float32)
    for size in (100, 20):
        part = matrix[:size, :size]
        known = constants(sl.Quadratic(part))
        other = sl.Problem(lambda p, m=part: 0.5 * p @ m @ p, np.ones(size, np.float32), infimum=0.0)
        measured = constants(other)
        # Lanczos finds the ends of a spectrum first; 64 probes give the trace within ±√(2‖H‖²/64), here 3 %.
        assert measured.convexity == pytest.approx(known.convexity, rel=0.02)
        assert measured.smoothness == pytest.approx(known.smoothness, rel=0.01)
        assert measured.trace == pytest.approx(known.trace, rel=0.1)
        assert not measured.exact
    found = bound(other, sl.GaussianNoise(1.0), sl.SGD(0.1))
    assert found.assumptions[0].holds is None
    assert np.isfinite(found.loss).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"times": [-1.0]}, "times: got -1"),
        ({"times": 1.0}, "times: got an array of shape"),
        ({"phase": 2}, "belongs to signsgd"),
        ({"optimizer": sl.SignSGD(0.1), "phase": 4}, "phase: got '4'"),
        ({"form": "ours"}, "form: got 'ours'"),
        ({"problem": 3}, "problem: got int"),
    ],
)
def test_bounds_refuse_what_does_not_fit(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        bound(**options)


# Everything at once


def test_the_overview_says_what_its_parts_say():
    found = sl.theory.overview(PROBLEM, NOISE, sl.SignSGD(0.05), steps=100, record_every=10)
    assert found.prediction.dataset.loss_bound.shape == (1, 11)
    np.testing.assert_allclose(found.bound.loss, found.prediction.dataset.loss_bound[0])
    text = str(found)
    assert "Stationary state: expected loss" in text
    assert "Phase 1 is left" in text
    wild = sl.theory.overview(PROBLEM, NOISE, sl.SGD(0.5), steps=10)
    assert wild.stationary is None
    assert "No stationary law: optimizer: at lr = 0.5" in str(wild)
    assert sl.theory.overview(PROBLEM, NOISE, sl.SGD(0.1), steps=10).phases is None
    unbounded = sl.theory.overview(PROBLEM, NOISE, ALL[-1], steps=150, record_every=40)
    assert unbounded.bound is None
    assert "No bound: bounds are known for SGD, SignSGD, RMSpropW, AdamW." in str(unbounded)


def test_theory_is_added_to_a_simulation_where_it_exists(run):
    both, remarks = sl.theory.add_theory(run, PROBLEM, NOISE, sl.SGD(0.05))
    assert both.models[-1] == "prediction"
    assert list(both.dataset.bound.values) == ["bound"]
    assert not remarks
    same, remarks = sl.theory.add_theory(run, sl.EmbeddedSaddle(), sl.GaussianNoise(1.0), sl.SGD(0.05))
    assert same.models == run.models
    assert len(remarks) == 2


def test_an_estimate_of_time_and_memory():
    estimate = sl.theory.estimate(PROBLEM, NOISE, sl.SGD(0.05), steps=1000)
    assert estimate.seconds < 60
    assert estimate.result_bytes > 1000 * 8


def test_theory_and_sdes_do_not_know_each_other():
    import sys
    from pathlib import Path

    root = Path(sys.modules["sdelens"].__file__).parent
    for part, other in (("theory", "sdes"), ("sdes", "theory")):
        assert not any(f"sdelens.{other}" in p.read_text() for p in (root / part).glob("*.py"))


@pytest.mark.parametrize(
    "noise",
    [
        pytest.param(make([0.3, 0.1, 0.01]), id=name)
        for name, make in (
            ("laplace", sl.LaplaceNoise),
            ("uniform", sl.UniformNoise),
            ("t", lambda scale: sl.StudentTNoise(scale, 3)),
            ("normal", sl.GaussianNoise),
        )
    ],
)
def test_a_spread_wider_than_the_noise_is_integrated_over_the_noise(noise):
    """The limit of no noise: x ~ N(0, 1) moves by η against its sign, Var = 1 − 2η√(2/π) + η² but for O(scale²)."""
    expected = 1 - 2 * 0.1 * math.sqrt(2 / math.pi) + 0.01
    variance = exact_cloud(sl.Quadratic(ONES), noise, 0.1, np.zeros(3), np.ones(3))[1]
    assert (np.abs(variance - expected) <= 0.16 * np.array([0.3, 0.1, 0.01])).all()


SIZES = [3, 5, 20]
BATCHES = [1, 2, 8]


@pytest.mark.parametrize(
    ("samples", "batch_size"),
    [
        pytest.param(n, b, marks=() if (i + j) % 3 == 1 else pytest.mark.study)
        for i, n in enumerate(SIZES)
        for j, b in enumerate(BATCHES)
    ],
)
def test_small_samples_stay_bounded(samples, batch_size):
    """Every number of samples and every batch size once, each pair in the studies."""
    for seed in range(3):
        problem = sl.LinearRegression([[1.0, 0.4], [0.4, 0.5]], 0.5, samples=samples, seed=seed)
        for optimizer in (sl.SignSGD(0.03), sl.AdamW(0.03)):
            found = sl.theory.predict(problem, sl.MinibatchNoise(batch_size), optimizer, steps=150, record_every=50)
            loss = found.dataset.loss_mean.values[0]
            assert np.isfinite(loss).all()
            assert loss[-1] < loss[0]
            assert (found.dataset.x_var >= 0).all()


def test_a_prediction_that_diverges_warns():
    with pytest.warns(RuntimeWarning, match="not finite from step"):
        sl.theory.predict(PROBLEM, NOISE, sl.SGD(1.0), steps=300)


def test_a_constant_divisor_does_not_fluctuate():
    """RMSpropW with ε ≫ √v is SGD with the step η/ε, in the closure and at rest."""
    noise, eps = sl.GaussianNoise(0.01), 10.0
    slow, plain = sl.RMSpropW(0.5, 0.9, eps=eps), sl.SGD(0.5 / eps)
    problem = sl.Quadratic(CURVATURE, start=0.01)
    a, b = (last(sl.theory.predict(problem, noise, o, steps=50)) for o in (slow, plain))
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one, other, rtol=0.02, atol=0.02 * other.max())
    a, b = (sl.theory.stationary(problem, noise, o).variance for o in (slow, plain))
    np.testing.assert_allclose(a, b, rtol=0.01)


def test_bounds_in_many_dimensions_with_a_scale_of_each():
    curvature, scale = np.linspace(1, 2, 5000, dtype=np.float32), np.linspace(0.5, 1, 5000)
    for noise in (sl.GaussianNoise(scale), sl.LaplaceNoise(scale)):
        found = bound(sl.Quadratic(curvature), noise, sl.SignSGD(0.01))
        assert np.isfinite(found.loss).all()
