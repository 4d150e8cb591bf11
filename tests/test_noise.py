"""Every law against SciPy, its own samples and its own derivatives.

Statistical tests use fixed seeds; their false-alarm rates are stated: KS at 1e-5 per law, means within 4 standard
errors (6e-5 each).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import logistic
from scipy import integrate, stats

import sdelens as sl
from sdelens._random import Stream, stream_key
from sdelens.noise._sign import SignCovariance, _by_quadrature, sign_covariance

SCALE = 0.7
ONE = sl.Quadratic([1.0], start=1.0)
LAWS = {
    "gaussian": (sl.GaussianNoise(SCALE), stats.norm(scale=SCALE)),
    **{
        f"student {df:g}": (sl.StudentTNoise(SCALE, df), stats.t(df, scale=SCALE))
        for df in (0.2, 0.7, 1, 2, 2.5, 3, 5, 10, 31, 32.5, 1000)
    },
    "laplace": (sl.LaplaceNoise(SCALE), stats.laplace(scale=SCALE)),
    "uniform": (sl.UniformNoise(SCALE), stats.uniform(-SCALE, 2 * SCALE)),
    "logistic": (
        sl.SymmetricNoise(logistic.cdf, logistic.ppf, SCALE, variance=math.pi**2 / 3),
        stats.logistic(scale=SCALE),
    ),
    "two normals": (sl.GaussianNoise(0.6 * SCALE) + sl.GaussianNoise(0.8 * SCALE), stats.norm(scale=SCALE)),
}
SUMS = {
    "normal + Cauchy": sl.GaussianNoise(0.4) + sl.StudentTNoise(0.7, 1),
    "broad normal + Cauchy": sl.GaussianNoise(1.5) + sl.StudentTNoise(0.3, 1),
    "normal + Laplace": sl.GaussianNoise(0.7) + sl.LaplaceNoise(0.7),
    "uniform + Laplace": sl.UniformNoise(1.0) + sl.LaplaceNoise(0.5),
    "uniform + normal + t": sl.SumNoise([sl.UniformNoise(1.0), sl.GaussianNoise(0.5), sl.StudentTNoise(0.5, 3)]),
    "logistic + t": sl.SymmetricNoise(logistic.cdf, logistic.ppf, variance=math.pi**2 / 3) + sl.StudentTNoise(0.5, 2),
}
GRADIENTS = np.array([-50.0, -5.0, -2.0, -1.0, -0.3, -1e-3, 0.0, 1e-4, 0.1, 0.5, 0.7, 1.5, 3.0, 20.0])


def draws(noise, paths, seed=0, dim=1):
    stream = Stream(jnp.asarray(stream_key(seed, "noise test")), jnp.arange(paths, dtype=jnp.uint32))
    x = jnp.ones((dim, paths))
    return np.asarray(jax.jit(lambda k: noise.sample(x, stream.at(k)))(0), np.float64)


def column(values):
    return jnp.asarray(np.asarray(values)[None, :], jnp.float32)


@pytest.mark.parametrize("name", LAWS)
def test_samples_follow_the_law(name):
    noise, law = LAWS[name]
    sample = draws(noise.bind(ONE), 200_000)[0]
    assert np.isfinite(sample).all()
    assert stats.kstest(sample, law.cdf).pvalue > 1e-5


@pytest.mark.parametrize("name", LAWS)
def test_mean_sign_density_and_variance_are_those_of_the_law(name):
    noise, law = LAWS[name]
    bound, g = noise.bind(ONE), column(GRADIENTS)
    np.testing.assert_allclose(bound.mean_sign(g, g)[0], 2 * law.cdf(GRADIENTS) - 1, atol=2e-6)
    inside = np.abs(np.abs(GRADIENTS) - SCALE) > 1e-6  # at the ends of the uniform law's density either value will do
    np.testing.assert_allclose(bound.density(g, g)[0][inside], law.pdf(GRADIENTS)[inside], rtol=2e-4, atol=1e-7)
    variance = float(jnp.ravel(bound.variance(g[:, 0]))[0])
    expected = law.var()
    if math.isnan(expected):  # SciPy's answer where not even the mean exists
        expected = math.inf
    assert variance == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", [*LAWS, *SUMS])
def test_mean_sign_has_the_derivative_that_the_density_says(name):
    bound = (LAWS[name][0] if name in LAWS else SUMS[name]).bind(ONE)
    for at in (0.0, 1e-5, 0.2, -0.9, 4.0):
        g = jnp.full((1, 1), at)
        value, slope = jax.jvp(lambda g, bound=bound: bound.mean_sign(g, g), (g,), (jnp.ones_like(g),))
        assert np.isfinite(value).all()
        assert float(slope[0, 0]) == pytest.approx(2 * float(bound.density(g, g)[0, 0]), rel=1e-4, abs=2e-6)
    small = jnp.full((1, 1), 1e-4)
    rise = float(bound.mean_sign(small, small)[0, 0]) / 1e-4
    assert rise == pytest.approx(2 * float(bound.density(0 * small, small)[0, 0]), rel=2e-2)  # ν = 0.2 is this curved


@pytest.mark.parametrize("name", [*LAWS, *SUMS])
def test_mean_sign_against_a_million_samples(name):
    bound = (LAWS[name][0] if name in LAWS else SUMS[name]).bind(ONE)
    sample = draws(bound, 1_000_000, seed=1)[0]
    mean = np.asarray(bound.mean_sign(column(GRADIENTS), column(GRADIENTS)))[0]
    for g, e in zip(GRADIENTS, mean, strict=True):
        error = np.sqrt(max((1 - e) * (1 + e), 1e-5) / len(sample))
        assert abs(np.sign(sample + g).mean() - e) < 4 * error


def test_published_slopes_at_zero():
    """2p(0) for scale 1: √(2/π) for the normal law, 2/π for Cauchy's, 1/√2 for ν = 2."""
    known = {1: 0.63662, 2: 0.70711, 3: 0.73511, 5: 0.75921, 10: 0.77822}
    zero = jnp.zeros((1, 1))
    for df, slope in known.items():
        assert 2 * float(sl.StudentTNoise(1.0, df).bind(ONE).density(zero, zero)[0, 0]) == pytest.approx(
            slope, abs=1e-5
        )
    assert 2 * float(sl.GaussianNoise(1.0).bind(ONE).density(zero, zero)[0, 0]) == pytest.approx(math.sqrt(2 / math.pi))


def test_closed_form_of_whole_degrees_of_freedom_equals_the_beta_function():
    from sdelens.noise._symmetric import _t_mean_sign, _t_mean_sign_whole

    with jax.enable_x64(True):
        s = jnp.linspace(-30, 30, 401)
        for df in range(1, 33):
            np.testing.assert_allclose(_t_mean_sign_whole(s, df), _t_mean_sign(s, jnp.asarray(float(df))), atol=1e-12)


def test_scales_per_coordinate_and_as_a_pytree():
    problem = sl.Problem(lambda p: (p["a"] ** 2).sum() + p["b"] ** 2, {"a": jnp.ones(2), "b": jnp.array(1.0)})
    bound = sl.LaplaceNoise({"a": jnp.array([1.0, 2.0]), "b": 3.0}).bind(problem)
    np.testing.assert_allclose(bound.variance(problem.start), [2.0, 8.0, 18.0])
    summed = (sl.LaplaceNoise(1.0) + sl.GaussianNoise({"a": 0.1, "b": 10.0})).bind(problem)
    assert summed.broadest == (0, 1)  # Laplace's on a, the normal on b
    np.testing.assert_allclose(summed.variance(problem.start), [2.01, 2.01, 102.0], rtol=1e-6)
    grad = jnp.array([[0.5], [0.5], [5.0]])
    apart = [
        (sl.LaplaceNoise(1.0) + sl.GaussianNoise(s)).bind(ONE).mean_sign(g[None], g[None])[0, 0]
        for s, g in ((0.1, grad[0]), (0.1, grad[1]), (10.0, grad[2]))
    ]
    np.testing.assert_allclose(summed.mean_sign(grad, grad)[:, 0], apart, atol=1e-6)


def test_batch_ratios():
    problem = sl.Quadratic([1.0, 2.0])
    start = problem.start
    matrix = np.array([[2.0, 0.5], [0.5, 1.0]])
    for noise in (
        sl.GaussianNoise([1.0, 2.0]),
        sl.GaussianNoise(covariance=matrix),
        sl.GaussianNoise(covariance=lambda x: 1 + x**2),
        sl.GaussianNoise(1.0) + sl.GaussianNoise(2.0),
    ):
        before, after = (n.bind(problem).variance(start) for n in (noise, noise.at_batch_ratio(4)))
        np.testing.assert_allclose(after, np.asarray(before) / 4, rtol=1e-6)
    cauchy = sl.StudentTNoise(1.0, 1)
    assert cauchy.at_batch_ratio(16) is cauchy
    average = draws(cauchy.bind(ONE), 320_000).reshape(16, -1).mean(axis=0)
    assert stats.kstest(average, stats.cauchy.cdf).pvalue > 1e-5
    for noise in (sl.StudentTNoise(1.0, 3), sl.LaplaceNoise(1.0), sl.UniformNoise(1.0)):
        with pytest.raises(ValueError, match=r"the average of several draws of .* follows another law"):
            noise.at_batch_ratio(4)


def correlated(dim, seed=0):
    root = np.random.default_rng(seed).standard_normal((dim, dim + 2))
    return root @ root.T / (dim + 2) + 0.2 * np.eye(dim)


def covariance_error(sample, matrix):
    """Largest entry of the difference in its standard errors, for normal samples of mean 0."""
    found = sample @ sample.T / sample.shape[1]
    error = np.sqrt((matrix**2 + np.outer(np.diag(matrix), np.diag(matrix))) / sample.shape[1])
    return (
        np.abs(found - matrix).max(initial=0, where=error > 0)
        if not error.all()
        else np.abs((found - matrix) / error).max()
    )


@pytest.mark.parametrize("kind", ["matrix", "function"])
def test_covariance_of_draws_and_of_the_diffusion(kind):
    """Largest of 10 entries in standard errors: above 5 in 6e-6 of cases."""
    matrix = correlated(4)
    problem = sl.Quadratic(np.ones(4))
    given = matrix if kind == "matrix" else lambda x: jnp.asarray(matrix) * (1 + 0 * x[0])
    noise = sl.GaussianNoise(covariance=given).bind(problem)
    assert covariance_error(draws(noise, 100_000, dim=4), matrix) < 5
    x = jnp.ones((4, 100_000))
    normal = np.random.default_rng(1).standard_normal((4, 100_000)).astype(np.float32)
    assert covariance_error(np.asarray(noise.apply_root(x, jnp.asarray(normal)), np.float64), matrix) < 5
    assert noise.variance(x).shape in ((4, 1), (4, 100_000))


def test_a_semi_definite_covariance_is_taken():
    noise = sl.GaussianNoise(covariance=np.ones((3, 3))).bind(sl.Quadratic(np.ones(3)))
    sample = draws(noise, 1000, dim=3)
    np.testing.assert_allclose(sample[0], sample[2], atol=1e-5)


def exact_sign_covariance(mean, correlation):
    """4(Φ₂ − ΦΦ) by SciPy's bivariate normal distribution."""
    dim = len(mean)
    found = np.empty((dim, dim))
    for i in range(dim):
        for j in range(dim):
            if i == j:
                found[i, i] = 1 - (2 * stats.norm.cdf(mean[i]) - 1) ** 2
                continue
            r = correlation[i, j]
            joint = stats.multivariate_normal([0, 0], [[1, r], [r, 1]], allow_singular=True).cdf([mean[i], mean[j]])
            found[i, j] = 4 * (joint - stats.norm.cdf(mean[i]) * stats.norm.cdf(mean[j]))
    return found


@pytest.mark.parametrize("strength", [0.0, 0.5, 0.95, 0.999])
def test_the_signs_covariance_is_exact_in_few_dimensions(strength):
    correlation = strength + (1 - strength) * np.eye(4)
    correlation[0] *= -1
    correlation[:, 0] *= -1
    for mean in (np.zeros(4), np.array([0.3, -0.2, 1.5, 0.31]), np.array([4.0, 0.0, -6.0, 2.0])):
        signs = SignCovariance(correlation, jnp.float32)
        found = np.asarray(sign_covariance(jnp.asarray(correlation, jnp.float32), jnp.asarray(mean, jnp.float32)))
        np.testing.assert_allclose(found, exact_sign_covariance(mean, correlation), atol=5e-4)
        roots = np.stack([signs.apply_root(jnp.asarray(mean, jnp.float32), e) for e in jnp.eye(4)], axis=1)
        np.testing.assert_allclose(roots @ roots.T, found, atol=1e-3)
    at_zero = np.asarray(sign_covariance(jnp.asarray(correlation, jnp.float32), jnp.zeros(4)))
    np.testing.assert_allclose(at_zero, 2 / np.pi * np.arcsin(correlation), atol=5e-4)


def test_the_signs_covariance_in_many_dimensions_is_as_near_as_stated():
    dim = 70
    correlation = 0.6 ** np.abs(np.subtract.outer(np.arange(dim), np.arange(dim)))
    signs = SignCovariance(correlation, jnp.float32)
    assert signs.shape == (7, dim)
    mean = np.linspace(-2, 2, dim)
    normal = jnp.eye(7 * dim).reshape(7, dim, 7 * dim)
    for at, bound in ((np.zeros(dim), 2e-5), (mean, 2e-3)):
        r, m = jnp.asarray(correlation, jnp.float32), jnp.asarray(at, jnp.float32)
        wide = jnp.tile(m[:, None], (1, 7 * dim))
        root = np.asarray(signs.apply_root(wide, normal), np.float64)
        found = root @ root.T
        exact = np.array(_by_quadrature(r, m))
        own = 1 - np.vectorize(math.erf)(m / math.sqrt(2)) ** 2
        np.fill_diagonal(exact, own)
        assert np.abs(found - exact).max() < bound
        np.testing.assert_allclose(np.diag(found), own, atol=1e-5)
        np.testing.assert_allclose(sign_covariance(r, m), found, atol=2e-5)


def test_signsgd_under_correlated_noise_has_the_optimizers_covariance():
    """One step from the start: the covariance of x over paths, within 5 standard errors of 10 entries (6e-6)."""
    matrix = correlated(4)
    problem = sl.Quadratic(np.ones(4), start=[0.0, 0.5, -0.5, 1.0])
    noise = sl.GaussianNoise(covariance=matrix)
    options = {"steps": 1, "paths": 40_000, "keep_paths": 40_000}
    moved = {}
    for model in ("optimizer", "sde"):
        data = sl.simulate(problem, noise, sl.SignSGD(0.1), model, **options).dataset
        x = data.path_x.values[0, :, -1].T.astype(np.float64) / 0.1  # sums of 40 000 floats would show in float32
        moved[model] = x - x.mean(axis=1, keepdims=True)
    sd = np.sqrt(np.diag(matrix))
    exact = exact_sign_covariance(np.asarray(problem.start) / sd, matrix / np.outer(sd, sd))
    assert covariance_error(moved["sde"], exact) < 5
    products = moved["optimizer"][:, None] * moved["optimizer"][None]
    error = products.std(axis=-1) / np.sqrt(products.shape[-1])
    assert np.abs((products.mean(axis=-1) - exact) / error).max() < 5


def test_a_covariance_and_normal_noise_are_added():
    problem, matrix = sl.Quadratic([1.0, 2.0]), np.array([[2.0, 0.5], [0.5, 1.0]])
    noise = sl.GaussianNoise(covariance=matrix) + sl.GaussianNoise([1.0, 2.0]) + sl.GaussianNoise(covariance=np.eye(2))
    np.testing.assert_allclose(noise.bind(problem).matrix, matrix + np.diag([2.0, 5.0]))


def test_variances_from_a_function_may_have_the_shape_of_the_parameters():
    square = sl.Problem(lambda p: (p**2).sum(), jnp.full((2, 2), 2.0))
    np.testing.assert_allclose(sl.GaussianNoise(covariance=lambda p: p**2).bind(square).variance(square.start), 4.0)
    tree = sl.Problem(lambda p: (p["a"] ** 2).sum() + (p["b"] ** 2).sum(), {"a": jnp.ones(2), "b": jnp.ones(3)})
    bound = sl.GaussianNoise(covariance=lambda p: {"a": 1.0, "b": 2.0}).bind(tree)
    np.testing.assert_allclose(bound.variance(tree.start), [1.0, 1.0, 2.0, 2.0, 2.0])


@pytest.mark.parametrize("df", [0.5, 5, 8, 9, 40, 1e4, 1e6])
def test_sums_with_student_t_against_reference_quadrature(df):
    bound = (sl.GaussianNoise(1.0) + sl.StudentTNoise(0.8, df)).bind(ONE)
    for g in (0.1, 1.0, 3.0):
        exact = integrate.quad(lambda z, g=g: stats.norm.pdf(z) * (2 * stats.t.cdf((g + z) / 0.8, df) - 1), -10, 10)[0]
        assert float(bound.mean_sign(column([g]), column([g]))[0, 0]) == pytest.approx(exact, abs=1e-5)


def test_a_covariance_that_depends_on_the_parameters():
    problem = sl.Quadratic([1.0, 2.0], start=[1.0, 3.0])
    noise = sl.GaussianNoise(covariance=lambda x: 0.1 + x**2).bind(problem)
    np.testing.assert_allclose(noise.variance(problem.start), [1.1, 9.1], rtol=1e-6)
    x = jnp.array([[1.0, 2.0], [3.0, 0.0]])
    np.testing.assert_allclose(noise.variance(x), [[1.1, 4.1], [9.1, 0.1]], rtol=1e-6)
    tree = sl.Problem(lambda p: (p["a"] ** 2).sum() + p["b"] ** 2, {"a": jnp.ones(2), "b": jnp.array(2.0)})
    bound = sl.GaussianNoise(covariance=lambda p: {"a": p["a"] + 1, "b": p["b"] ** 2}).bind(tree)
    np.testing.assert_allclose(bound.variance(tree.start), [2.0, 2.0, 4.0])


def test_one_law_for_float64():
    with jax.enable_x64(True):
        problem = sl.Quadratic(np.ones(1), start=np.ones(1))
        for noise, law in LAWS.values():
            bound = noise.bind(problem)
            g = jnp.asarray(GRADIENTS[None, :])
            assert bound.mean_sign(g, g).dtype == jnp.float64
            np.testing.assert_allclose(bound.mean_sign(g, g)[0], 2 * law.cdf(GRADIENTS) - 1, atol=1e-9)


HEAVY = sl.StudentTNoise(1.0, 2)


@pytest.mark.parametrize(
    "optimizer", [sl.SGD(0.01), sl.RMSpropW(0.01, v0="zero"), sl.AdamW(0.01)], ids=lambda o: o.name
)
def test_sdes_driven_by_a_covariance_refuse_noise_without_one(optimizer):
    with pytest.raises(ValueError, match=rf"student-t noise has no finite variance.* the SDE of {optimizer.name} "):
        sl.compare(ONE, HEAVY, optimizer, steps=2, paths=8)
    with pytest.raises(ValueError, match="no finite variance"):
        sl.compare(ONE, HEAVY + sl.GaussianNoise(1.0), optimizer, steps=2, paths=8)
    sl.compare(ONE, HEAVY, optimizer, ["optimizer"], steps=2, paths=8)  # the optimizer itself runs


def test_a_second_moment_that_is_infinite_is_no_start():
    with pytest.raises(ValueError, match="v0: is 'second-moment', but student-t noise has no finite variance"):
        sl.simulate(ONE, HEAVY, sl.RMSpropW(0.01), "optimizer", steps=2, paths=8)


@pytest.mark.slow
@pytest.mark.parametrize("df", [1, 2, 5])
def test_signsgd_tracks_under_heavy_tails(df):
    """λ = ½, 1, 2, 5; σ = 1, ½, 1, 2; the upper limit is one-sided at 99 %."""
    problem = sl.Quadratic([0.5, 1.0, 2.0, 5.0], start=1.0)
    noise = sl.StudentTNoise([1.0, 0.5, 1.0, 2.0], df)
    errors = sl.compare(problem, noise, sl.SignSGD(0.01), steps=600, paths=20_000, record_every=5).errors()
    assert errors.upper["sde"] <= 1e-2
