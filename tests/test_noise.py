"""Every law against SciPy, its own samples and its own derivatives.

Statistical tests use fixed seeds; their false-alarm rates are stated: KS at 1e-5 per law, means within 4 standard
errors (6e-5 each). What is asked of every law is compiled as one program of all laws.
"""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import logistic
from scipy import integrate, stats

import sdelens as sl
from sdelens.core.random import Stream, stream_key
from sdelens.noise.sign import SignCovariance, _by_quadrature, sign_covariance
from sdelens.noise.student_t import _t_mean_sign, _t_mean_sign_whole
from tests.checks import tiered

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


ALL = {**{name: noise for name, (noise, _) in LAWS.items()}, **SUMS}
NEAR_ZERO = 1e-4
PLACES = np.array([*GRADIENTS, 1e-5, 0.2, -0.9, 4.0])
SAMPLES = 1_000_000


def draws(noise, paths, seed=0, dim=1):
    stream = Stream(jnp.asarray(stream_key(seed, "noise test")), jnp.arange(paths, dtype=jnp.uint32))
    return np.asarray(_drawn(noise, stream, dim), np.float64)


@eqx.filter_jit
def _drawn(noise, stream, dim):
    return noise.sample(jnp.ones((dim, stream.paths.shape[0])), stream.at(0))


@functools.cache
def samples(name):
    """A million numbers of a law, in float32."""
    stream = Stream(jnp.asarray(stream_key(1, "noise test")), jnp.arange(SAMPLES, dtype=jnp.uint32))
    return np.asarray(_drawn(ALL[name].bind(ONE), stream, 1))[0]


@functools.cache
def functions():
    """Of every law at PLACES: the mean sign, its derivative, the density, the variance; the first in float64 too."""

    def of(bound):
        g = jnp.asarray(PLACES[None, :])
        sign, slope = jax.jvp(lambda g: bound.mean_sign(g, g), (g,), (jnp.ones_like(g),))
        return sign[0], slope[0], bound.density(g, g)[0], jnp.ravel(bound.variance(g[:, 0]))[0]

    bound = {name: noise.bind(ONE) for name, noise in ALL.items()}
    found = jax.jit(lambda: {name: of(noise) for name, noise in bound.items()})()
    with jax.enable_x64(True):
        one = sl.Quadratic(np.ones(1), start=np.ones(1))
        bound = {name: noise.bind(one) for name, (noise, _) in LAWS.items()}
        g = jnp.asarray(PLACES[None, :])
        precise = jax.jit(lambda: {name: noise.mean_sign(g, g)[0] for name, noise in bound.items()})()
    return found, precise


def column(values):
    return jnp.asarray(np.asarray(values)[None, :], jnp.float32)


@pytest.mark.parametrize("name", LAWS)
def test_samples_follow_the_law(name):
    sample = samples(name)
    assert np.isfinite(sample).all()
    assert stats.kstest(sample[:200_000].astype(float), LAWS[name][1].cdf).pvalue > 1e-5


@pytest.mark.parametrize("name", LAWS)
def test_mean_sign_density_and_variance_are_those_of_the_law(name):
    law, (sign, _, density, variance) = LAWS[name][1], functions()[0][name]
    np.testing.assert_allclose(sign, 2 * law.cdf(PLACES) - 1, atol=2e-6)
    inside = np.abs(np.abs(PLACES) - SCALE) > 1e-6  # at the ends of the uniform law's density either value will do
    np.testing.assert_allclose(density[inside], law.pdf(PLACES)[inside], rtol=2e-4, atol=1e-7)
    expected = law.var()
    if math.isnan(expected):  # SciPy's answer where not even the mean exists
        expected = math.inf
    assert float(variance) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", LAWS)
def test_one_law_for_float64(name):
    sign = functions()[1][name]
    assert sign.dtype == jnp.float64
    np.testing.assert_allclose(sign, 2 * LAWS[name][1].cdf(PLACES) - 1, atol=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_mean_sign_has_the_derivative_that_the_density_says(name):
    sign, slope, density, _ = (np.asarray(a, float) for a in functions()[0][name])
    assert np.isfinite(sign).all()
    inside = np.abs(np.abs(PLACES) - SCALE) > 1e-6  # where the uniform law's density jumps either value will do
    np.testing.assert_allclose(slope[inside], 2 * density[inside], rtol=1e-4, atol=2e-6)
    small, zero = list(PLACES).index(NEAR_ZERO), list(PLACES).index(0.0)
    assert sign[small] / NEAR_ZERO == pytest.approx(2 * density[zero], rel=2e-2)  # ν = 0.2 is this curved


@pytest.mark.parametrize("name", ALL)
def test_mean_sign_against_a_million_samples(name):
    sample = np.sort(samples(name))
    assert np.isfinite(sample).all()
    for g, e in zip(GRADIENTS, functions()[0][name][0], strict=False):
        error = np.sqrt(max((1 - e) * (1 + e), 1e-5) / SAMPLES)
        below, not_above = np.searchsorted(sample, [-g], "left"), np.searchsorted(sample, [-g], "right")
        found = 1 - (below[0] + not_above[0]) / SAMPLES  # the mean of sign(Z + g)
        assert abs(found - float(e)) < 4 * error


def test_published_slopes_at_zero():
    """2p(0) for scale 1: √(2/π) for the normal law, 2/π for Cauchy's, 1/√2 for ν = 2."""
    known = {1: 0.63662, 2: 0.70711, 3: 0.73511, 5: 0.75921, 10: 0.77822}
    laws = [*(sl.StudentTNoise(1.0, df).bind(ONE) for df in known), sl.GaussianNoise(1.0).bind(ONE)]
    zero = np.zeros((1, 1), np.float32)
    slopes = [2 * float(density[0, 0]) for density in jax.jit(lambda: [law.density(zero, zero) for law in laws])()]
    assert slopes[:-1] == pytest.approx(list(known.values()), abs=1e-5)
    assert slopes[-1] == pytest.approx(math.sqrt(2 / math.pi))


def test_closed_form_of_whole_degrees_of_freedom_equals_the_beta_function():
    s, df = np.linspace(-30, 30, 401), np.arange(1, 33)
    with jax.enable_x64(True):
        whole = jax.jit(lambda: jnp.stack([_t_mean_sign_whole(s, jnp.asarray(n, float), int(n)) for n in df]))()
        general = jax.jit(lambda: _t_mean_sign(s, jnp.asarray(df[:, None], float)))()
    np.testing.assert_allclose(whole, general, atol=1e-12)


def test_scales_per_coordinate_and_as_a_pytree():
    problem = sl.Problem(lambda p: (p["a"] ** 2).sum() + p["b"] ** 2, {"a": jnp.ones(2), "b": jnp.array(1.0)})
    bound = sl.LaplaceNoise({"a": jnp.array([1.0, 2.0]), "b": 3.0}).bind(problem)
    np.testing.assert_allclose(bound.variance(problem.start), [2.0, 8.0, 18.0])
    summed = (sl.LaplaceNoise(1.0) + sl.GaussianNoise({"a": 0.1, "b": 10.0})).bind(problem)
    assert summed.broadest == (0, 1)  # Laplace's on a, the normal on b
    np.testing.assert_allclose(summed.variance(problem.start), [2.01, 2.01, 102.0], rtol=1e-6)
    grad = column([0.5, 0.5, 5.0]).T
    alone = [(sl.LaplaceNoise(1.0) + sl.GaussianNoise(s)).bind(ONE) for s in (0.1, 0.1, 10.0)]
    apart = jax.jit(lambda: [law.mean_sign(g[None], g[None])[0, 0] for law, g in zip(alone, grad, strict=True)])()
    np.testing.assert_allclose(eqx.filter_jit(summed.mean_sign)(grad, grad)[:, 0], apart, atol=1e-6)


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
    x = np.ones((4, 100_000), np.float32)
    normal = np.random.default_rng(1).standard_normal((4, 100_000)).astype(np.float32)
    moved, variance = jax.jit(lambda: (noise.apply_root(x, normal), noise.variance(x)))()
    assert covariance_error(np.asarray(moved, np.float64), matrix) < 5
    assert variance.shape in ((4, 1), (4, 100_000))


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


STRENGTHS = (0.0, 0.5, 0.95, 0.999)
MEANS = np.array([[0.0] * 4, [0.3, -0.2, 1.5, 0.31], [4.0, 0.0, -6.0, 2.0]])


def correlations(strength):
    correlation = strength + (1 - strength) * np.eye(4)
    correlation[0] *= -1
    correlation[:, 0] *= -1
    return correlation


@functools.cache
def signs_of_few():
    """Covariances and roots for every strength and mean: arrays of shape (strengths, means, 4, 4)."""

    @jax.jit
    def found():
        matrices, roots = [], []
        for strength in STRENGTHS:
            signs = SignCovariance(correlations(strength), jnp.float32)
            for mean in np.asarray(MEANS, np.float32):
                matrices.append(sign_covariance(signs.correlation, jnp.asarray(mean)))
                roots.append(jax.vmap(lambda e, m=mean, own=signs: own.apply_root(m, e), out_axes=1)(jnp.eye(4)))
        return jnp.stack(matrices), jnp.stack(roots)

    return [np.asarray(a).reshape(len(STRENGTHS), len(MEANS), 4, 4) for a in found()]


@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_signs_covariance_is_exact_in_few_dimensions(strength):
    correlation, (matrices, roots) = correlations(strength), signs_of_few()
    index = STRENGTHS.index(strength)
    for mean, found, root in zip(MEANS, matrices[index], roots[index], strict=True):
        np.testing.assert_allclose(found, exact_sign_covariance(mean, correlation), atol=5e-4)
        np.testing.assert_allclose(root @ root.T, found, atol=1e-3)
    np.testing.assert_allclose(matrices[index, 0], 2 / np.pi * np.arcsin(correlation), atol=5e-4)


def test_the_signs_covariance_in_many_dimensions_is_as_near_as_stated():
    dim = 70
    correlation = 0.6 ** np.abs(np.subtract.outer(np.arange(dim), np.arange(dim)))
    signs = SignCovariance(correlation, jnp.float32)
    assert signs.shape == (7, dim)
    normal, r = np.eye(7 * dim, dtype=np.float32).reshape(7, dim, 7 * dim), np.asarray(correlation, np.float32)

    @jax.jit
    def looked(m):
        wide = jnp.tile(m[:, None], (1, 7 * dim))
        return signs.apply_root(wide, normal), _by_quadrature(r, m), sign_covariance(r, m)

    for at, bound in ((np.zeros(dim), 2e-5), (np.linspace(-2, 2, dim), 2e-3)):
        root, exact, stated = (np.array(a, np.float64) for a in looked(np.asarray(at, np.float32)))
        found = root @ root.T
        own = 1 - np.vectorize(math.erf)(at / math.sqrt(2)) ** 2
        np.fill_diagonal(exact, own)
        assert np.abs(found - exact).max() < bound
        np.testing.assert_allclose(np.diag(found), own, atol=1e-5)
        np.testing.assert_allclose(stated, found, atol=2e-5)


def test_signsgd_under_correlated_noise_has_the_optimizers_covariance():
    """One step from the start: the covariance of x over paths, within 5 standard errors of 10 entries (6e-6)."""
    matrix = correlated(4)
    problem = sl.Quadratic(np.ones(4), start=[0.0, 0.5, -0.5, 1.0])
    noise = sl.GaussianNoise(covariance=matrix)
    options = {"steps": 1, "paths": 40_000, "record": sl.Record(keep_paths=40_000)}
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


def test_sums_with_student_t_against_reference_quadrature():
    degrees, at = (0.5, 5, 8, 9, 40, 1e4, 1e6), (0.1, 1.0, 3.0)
    laws = [(sl.GaussianNoise(1.0) + sl.StudentTNoise(0.8, df)).bind(ONE) for df in degrees]
    g = column(at)
    for df, found in zip(degrees, jax.jit(lambda: [law.mean_sign(g, g)[0] for law in laws])(), strict=True):

        def integrand(z, a, df=df):
            return stats.norm.pdf(z) * (2 * stats.t.cdf((a + z) / 0.8, df) - 1)

        exact = [integrate.quad(integrand, -10, 10, args=(a,))[0] for a in at]
        assert np.asarray(found, float) == pytest.approx(exact, abs=1e-5), df


def test_a_covariance_that_depends_on_the_parameters():
    problem = sl.Quadratic([1.0, 2.0], start=[1.0, 3.0])
    noise = sl.GaussianNoise(covariance=lambda x: 0.1 + x**2).bind(problem)
    np.testing.assert_allclose(noise.variance(problem.start), [1.1, 9.1], rtol=1e-6)
    x = jnp.array([[1.0, 2.0], [3.0, 0.0]])
    np.testing.assert_allclose(noise.variance(x), [[1.1, 4.1], [9.1, 0.1]], rtol=1e-6)
    tree = sl.Problem(lambda p: (p["a"] ** 2).sum() + p["b"] ** 2, {"a": jnp.ones(2), "b": jnp.array(2.0)})
    bound = sl.GaussianNoise(covariance=lambda p: {"a": p["a"] + 1, "b": p["b"] ** 2}).bind(tree)
    np.testing.assert_allclose(bound.variance(tree.start), [2.0, 2.0, 4.0])


HEAVY = sl.StudentTNoise(1.0, 2)


@pytest.mark.parametrize(
    "optimizer", [sl.SGD(0.01), sl.RMSpropW(0.01, v0="zero"), sl.AdamW(0.01)], ids=lambda o: o.name
)
def test_sdes_driven_by_a_covariance_refuse_noise_without_one(optimizer):
    with pytest.raises(ValueError, match=rf"student-t noise has no finite variance.* the SDE of {optimizer.name} "):
        sl.compare(ONE, HEAVY, optimizer, steps=2, paths=8)
    with pytest.raises(ValueError, match="no finite variance"):
        sl.compare(ONE, HEAVY + sl.GaussianNoise(1.0), optimizer, steps=2, paths=8)


def test_the_optimizer_itself_runs_under_noise_without_a_covariance():
    run = sl.compare(ONE, HEAVY, sl.RMSpropW(0.01, v0="zero"), ["optimizer"], steps=2, paths=8)
    assert np.isfinite(run.dataset.loss_mean).all()


def test_a_second_moment_that_is_infinite_is_no_start():
    with pytest.raises(ValueError, match="v0: got 'second-moment', but student-t noise has no finite variance"):
        sl.simulate(ONE, HEAVY, sl.RMSpropW(0.01), "optimizer", steps=2, paths=8)


@pytest.mark.parametrize("df", tiered([1, 2, 5], [1]))
def test_signsgd_tracks_under_heavy_tails(df):
    """λ = ½, 1, 2, 5; σ = 1, ½, 1, 2; the upper limit is one-sided at 99 %."""
    problem = sl.Quadratic([0.5, 1.0, 2.0, 5.0], start=1.0)
    noise = sl.StudentTNoise([1.0, 0.5, 1.0, 2.0], df)
    errors = sl.compare(problem, noise, sl.SignSGD(0.01), steps=600, paths=20_000, record=sl.Record(every=5)).errors()
    assert errors.error_upper["sde"] <= 1e-2
