"""Linear regression with a Gaussian design: the problem, and the law of its mini-batch noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import references
import sdelens as sl
from sdelens.core.random import Stream, stream_key

DESIGN = np.array([[1.0, 0.4, 0.0], [0.4, 0.6, 0.2], [0.0, 0.2, 0.5]])
SOLUTION, POINT = np.array([1.0, -1.0, 0.5]), np.array([0.2, 0.5, 1.0])
DRAWS = 200_000


def problem(samples=None, design=DESIGN, **options):
    return sl.LinearRegression(design, 0.3, solution=SOLUTION, start=POINT, samples=samples, **options)


def test_the_population_risk_and_the_sample_s():
    population = problem()
    off = POINT - SOLUTION
    assert float(population.loss(population.start)) == pytest.approx(0.5 * off @ DESIGN @ off + 0.045, rel=1e-6)
    assert population.infimum == pytest.approx(0.045)
    assert population.samples is None
    sample = problem(40, seed=3)
    features, labels = np.asarray(sample.features, float), np.asarray(sample.labels, float)
    for x in (POINT, np.zeros(3)):
        residuals = features @ x - labels
        loss, grad = evaluate(sample, np.asarray(x, np.float32))
        assert float(loss) == pytest.approx(0.5 * np.mean(residuals**2), rel=1e-5)
        np.testing.assert_allclose(grad, features.T @ residuals / 40, atol=1e-5)
    least = np.linalg.lstsq(features, labels, rcond=None)[0]
    np.testing.assert_allclose(sample.minimiser, least, atol=1e-5)
    assert sample.infimum == pytest.approx(0.5 * np.mean((features @ least - labels) ** 2), rel=1e-5)
    np.testing.assert_allclose(sample.population.design_covariance, DESIGN, rtol=1e-6)
    np.testing.assert_array_equal(problem(40, seed=3).features, sample.features)
    assert not np.array_equal(problem(40, seed=4).features, sample.features)
    info = sample.describe()
    rebuilt = sl.LinearRegression(
        info["design_covariance"],
        info["label_noise"],
        solution=info["solution"],
        start=info["start"],
        samples=info["samples"],
        seed=info["seed"],
    )
    np.testing.assert_array_equal(rebuilt.labels, sample.labels)
    many = problem(20_000)
    # Wishart: an entry's standard error is √((KᵢᵢKⱼⱼ + Kᵢⱼ²)/n).
    error = np.sqrt((np.outer(np.diag(DESIGN), np.diag(DESIGN)) + DESIGN**2) / 20_000)
    assert (np.abs(np.asarray(many.curvature) - DESIGN) < 5 * error).all()


evaluate = jax.jit(lambda problem, x: problem.evaluate(x))


@functools.partial(jax.jit, static_argnames=("size",))
def look(subject, noise, stream, size):
    """All that the test of draws looks at, in one program."""
    start = subject.start
    x = jnp.broadcast_to(start[:, None], (3, DRAWS))
    grad = subject.evaluate(start)[1]
    tiled = jnp.tile(grad[:, None], 4)
    found = {
        "gradient": grad,
        "draws": noise.sample(x, stream),
        "root": noise.apply_root(x[:, :size], jnp.eye(size)),
        "variance": noise.variance(start),
        "mean sign": noise.mean_sign(grad, start),
        "mean signs": noise.mean_sign(tiled, x[:, :4]),
    }
    if subject.samples is None:
        found["sign root"] = noise.apply_sign_root(tiled[:, :3], x[:, :3], jnp.eye(3))
    return found


def bound_noise(samples, batch_size):
    subject = problem(samples)
    return subject, sl.MinibatchNoise(batch_size).bind(subject)


def gradients(subject, samples, batch_size):
    """Mini-batch gradients drawn example by example."""
    rng = np.random.default_rng(7)
    if samples is None:
        return references.regression_batch(rng, DESIGN, 0.3, SOLUTION, POINT, batch_size, DRAWS)
    chosen = rng.integers(0, samples, size=(DRAWS, batch_size))
    features, labels = np.asarray(subject.features, float), np.asarray(subject.labels, float)
    return (features[chosen] * (features[chosen] @ POINT - labels[chosen])[..., None]).mean(axis=1)


@pytest.mark.parametrize("samples", [None, 60])
@pytest.mark.parametrize("batch_size", [1, 4, pytest.param(70, marks=pytest.mark.slow)])
def test_draws_and_covariance_are_those_of_mini_batches(samples, batch_size):
    """Means, covariances, signs and third moments of 200 000 draws against batches drawn example by example.

    In standard errors estimated from both sets; 3 + 6 + 3 + 3 comparisons in six cases, at 5 of them.
    """
    subject, noise = bound_noise(samples, batch_size)
    stream = Stream(stream_key(5, "noise"), np.arange(DRAWS, dtype=np.uint32))
    looked = look(subject, noise, stream, noise.noise_shape(3)[0])
    found = {what: np.asarray(a, float) for what, a in looked.items()}
    grad = found["gradient"]
    ours = found["draws"].T + grad
    theirs = gradients(subject, samples, batch_size)

    def agree(function):
        a, b = function(ours), function(theirs)
        error = np.sqrt((a.var(axis=0) + b.var(axis=0)) / DRAWS)
        assert (np.abs(a.mean(axis=0) - b.mean(axis=0)) < 5 * error + 1e-9).all()

    pairs = [(i, j) for i in range(3) for j in range(i, 3)]
    agree(lambda g: g)
    agree(lambda g: np.stack([(g[:, i] - grad[i]) * (g[:, j] - grad[j]) for i, j in pairs], axis=1))
    agree(np.sign)
    agree(lambda g: (g - grad) ** 3)

    # The root's columns give the covariance without sampling.
    root = found["root"]
    if samples is None:
        off = POINT - SOLUTION
        exact = ((off @ DESIGN @ off + 0.09) * DESIGN + np.outer(grad, grad)) / batch_size
    else:
        features, labels = np.asarray(subject.features, float), np.asarray(subject.labels, float)
        each = features * (features @ POINT - labels)[:, None]
        exact = np.cov(each.T, bias=True) / batch_size
    np.testing.assert_allclose(root @ root.T, exact, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["variance"], np.diag(exact), rtol=1e-4)

    signs = np.sign(theirs)
    allowed = 5 * signs.std(axis=0) / np.sqrt(DRAWS) + (0.0 if samples is None else 0.01)  # the quadrature's own
    assert (np.abs(found["mean sign"] - signs.mean(axis=0)) < allowed + 1e-6).all()
    np.testing.assert_allclose(found["mean signs"], np.tile(found["mean sign"][:, None], 4), atol=1e-5)
    if samples is None and batch_size == 1:
        half = found["sign root"]
        error = 5 * np.sqrt(1 / DRAWS)
        assert (np.abs(half @ half.T - np.cov(signs.T)) < error).all()


def test_to_the_sign_a_batch_is_student_t_noise():
    """One example is Cauchy noise: E sign = (2/π) arctan(c/√(1−c²)) = (2/π) arcsin c; two examples: E sign = c."""
    subject = problem()
    grad = np.asarray(evaluate(subject, subject.start)[1])
    off = POINT - SOLUTION
    c = grad / np.sqrt((off @ DESIGN @ off + 0.09) * np.diag(DESIGN))
    for batch_size, expected in ((1, 2 / np.pi * np.arcsin(c)), (2, c)):
        noise = sl.MinibatchNoise(batch_size).bind(subject)
        found = jax.jit(lambda noise, g, x: noise.mean_sign(g, x))(noise, grad, subject.start)
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("samples", "optimizer"),
    [
        pytest.param(None, sl.SGD(0.02), id="sgd", marks=pytest.mark.study),
        pytest.param(30, sl.SignSGD(0.02), id="signsgd, 30 examples", marks=pytest.mark.slow),
        pytest.param(30, sl.RMSpropW(0.02), id="rmspropw, 30 examples", marks=pytest.mark.study),
        pytest.param(None, sl.AdamW(0.02), id="adamw", marks=pytest.mark.slow),
    ],
)
def test_the_models_of_every_optimizer_run_on_it(samples, optimizer):
    subject = problem(samples)
    result = sl.compare(subject, sl.MinibatchNoise(4), optimizer, steps=30, paths=512)
    errors = result.merge(sl.theory.predict(subject, sl.MinibatchNoise(4), optimizer, steps=30)).errors()
    assert errors.error_upper["sde"] < 0.2
    assert errors.error_upper["prediction"] < 0.2
    assert "mini-batch (B = 4) noise" in result.title()
    assert ("linear regression (30 examples)" in result.title()) == (samples == 30)


def test_the_closure_of_sgd_is_the_exact_recursion_of_the_risk():
    """In K's eigenbasis: mⱼ ← (1 − ηλⱼ)²mⱼ + (η²/B)[(Σλm + s²)λⱼ + λⱼ²mⱼ], whatever the law of x."""
    values, lr, batch = np.array([1.0, 0.5, 0.25]), 0.3, 2
    subject = sl.LinearRegression(values, 0.3, solution=[1.0, -2.0, 3.0])
    m, risk = np.array([1.0, 4.0, 9.0]), []
    for _ in range(40):
        risk.append(0.5 * (values @ m + 0.09))
        m = (1 - lr * values) ** 2 * m + lr**2 / batch * ((values @ m + 0.09) * values + values**2 * m)
    found = sl.theory.predict(subject, sl.MinibatchNoise(batch), sl.SGD(lr), steps=39)
    np.testing.assert_allclose(found.dataset.loss_mean[0], risk, rtol=1e-5)
    basis = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))[0]
    turned = sl.LinearRegression((basis * values) @ basis.T, 0.3, solution=basis @ [1.0, -2.0, 3.0])
    there = sl.theory.predict(turned, sl.MinibatchNoise(batch), sl.SGD(lr), steps=39)
    np.testing.assert_allclose(there.dataset.loss_mean[0], risk, rtol=1e-4)


def test_larger_batches():
    noise = sl.MinibatchNoise(8)
    assert noise.at_batch_ratio(2).batch_size == 16
    assert noise.at_batch_ratio(0.25).batch_size == 2
    with pytest.raises(ValueError, match=r"at which a batch of 8 is 2\.4 examples"):
        noise.at_batch_ratio(0.3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: sl.LinearRegression([[1.0, 2.0], [2.0, 1.0]], 0.1),
            "design_covariance: got a matrix that is not positive semi-definite",
        ),
        (lambda: sl.LinearRegression([[1.0, 2.0]], 0.1), "design_covariance: got shape"),
        (lambda: sl.LinearRegression([-1.0, 2.0], 0.1), "smallest eigenvalue -1"),
        (lambda: sl.LinearRegression([1.0], -0.1), "label_noise: got -0.1"),
        (lambda: sl.LinearRegression([1.0, 1.0], 0.1, solution=[1.0]), "solution: got shape"),
        (lambda: sl.LinearRegression([1.0, 1.0], 0.1, start=[1.0]), "start: got shape"),
        (lambda: sl.LinearRegression([1.0], 0.1, samples=0), "samples: got 0"),
        (lambda: sl.MinibatchNoise(0), "batch_size: got 0"),
        (lambda: sl.MinibatchNoise(2.5), "batch_size: got 2.5"),
        (
            lambda: sl.simulate(sl.Quadratic([1.0]), sl.MinibatchNoise(2), sl.SGD(0.1), steps=2),
            "need a problem with examples",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_l2_in_the_loss():
    quadratic = sl.Quadratic([1.0, 2.0], start=2.0).with_l2(0.5)
    np.testing.assert_allclose(quadratic.curvature, [1.5, 2.5])
    saddle, x = sl.EmbeddedSaddle(), np.array([0.3, -0.7], np.float32)
    added = saddle.with_l2(0.5)
    with_it, without, loss = jax.jit(lambda x: (added.evaluate(x), saddle.evaluate(x), added.loss(x)))(x)
    assert float(loss) == float(with_it[0])
    assert float(loss) - float(without[0]) == pytest.approx(0.25 * float(x @ x), rel=1e-5)
    np.testing.assert_allclose(with_it[1], without[1] + 0.5 * x, rtol=1e-6)
    assert added.describe()["l2"] == 0.5
    assert added.infimum is None
    with pytest.raises(ValueError, match="strength: got -1"):
        saddle.with_l2(-1)
