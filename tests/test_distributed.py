"""Several workers: the closed laws of what they send against draws, and optimizers against their SDEs.

Means, covariances and mean signs are compared in units of their standard errors; a limit of 4.5 of them is exceeded by
chance with probability 7e-6 per number, so that any seed would do.
"""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import sdelens as sl
from sdelens.cases.starts import start_of
from sdelens.core.names import noise_label
from sdelens.core.random import Stream, stream_key
from sdelens.integrate import Discrete, EulerMaruyama
from sdelens.noise.distributed._quantisation import normal_rounding
from sdelens.noise.distributed._vote import vote
from sdelens.sdes import build_sde
from sdelens.shell.case_options import SubjectOptions
from tests.checks import stepped, tiered

LIMIT = 4.5
START = [1.0, -0.5, 0.2, 3.0]
PROBLEM = sl.Quadratic([0.5, 1.0, 2.0, 0.3], start=START)
MATRIX = 0.3 * np.eye(4) + 0.4 * np.outer([1, -1, 0.5, 2], [1, -1, 0.5, 2])


def cases(table, fast):
    """Names of a table's cases; those that are not among `fast` are slow, for compiling takes most of the time."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in table]


def stream(paths, seed=0, name="distributed test"):
    return Stream(stream_key(seed, name), np.asarray(paths, np.uint32))


@jax.jit
def _gradients(noise, problem, draws):
    x = jnp.broadcast_to(problem.start[:, None], (problem.start.shape[0], draws.paths.shape[0]))
    grad = problem.evaluate(x)[1]
    return noise.gradient(3, x, grad, draws), grad[:, :1]


def drawn(noise, paths, problem=PROBLEM, seed=0):
    """Stochastic gradients of one step from the start, shape (d, P), and ∇f, shape (d, 1), in float64."""
    return [np.asarray(a, np.float64) for a in _gradients(noise, problem, stream(np.arange(paths), seed))]


def worst(sample, exact):
    """Largest difference of the means over the last axis from `exact`, in standard errors."""
    error = sample.std(axis=-1) / math.sqrt(sample.shape[-1])
    return np.abs((sample.mean(axis=-1) - exact) / np.maximum(error, 1e-6)).max()


@functools.partial(jax.jit, static_argnums=2)
def _root_and_variance(noise, problem, size):
    x = jnp.broadcast_to(problem.start[:, None], (problem.start.shape[0], size))
    return noise.apply_root(x, jnp.eye(size)), noise.variance(problem.start)


def covariance(noise, problem=PROBLEM):
    """Of apply_root, one Brownian motion after another; and what `variance` says."""
    (m,) = noise.noise_shape(problem.dim)
    root, variance = _root_and_variance(noise, problem, m)
    root = np.asarray(root, np.float64)
    return root @ root.T, np.broadcast_to(np.asarray(variance), problem.dim)


@jax.jit
def _sign_law(noise, problem):
    """E sign(g) at the start, and a root of the signs' covariance."""
    x, grad = problem.start, problem.evaluate(problem.start)[1]
    dim = x.shape[0]
    root = noise.apply_sign_root(jnp.tile(grad[:, None], dim), jnp.tile(x[:, None], dim), jnp.eye(dim))
    return noise.mean_sign(grad, x), root


def sign_law(noise, problem=PROBLEM):
    """E sign(g) at the start, and the covariance of the signs."""
    mean, root = (np.asarray(a, np.float64) for a in _sign_law(noise, problem))
    return mean, root @ root.T


ROOTS = {
    "random-k of normal noise": (sl.GaussianNoise([1.0, 0.5, 2.0, 0.1]), 3, sl.RandomK(2)),
    "random-1 of Laplace noise": (sl.LaplaceNoise(0.5), 2, sl.RandomK(0.25)),
    "random-k of correlated noise": (sl.GaussianNoise(covariance=MATRIX), 3, sl.RandomK(3)),
    "random-k of noise that depends on x": (sl.GaussianNoise(covariance=lambda x: 0.1 + x**2), 2, sl.RandomK(2)),
    "all of the coordinates": (sl.GaussianNoise(0.7), 2, sl.RandomK(1.0)),
    "narrow noise, quantised": (sl.GaussianNoise([0.1, 0.02, 0.2, 0.05]), 2, sl.Quantisation(0.7)),
    "wide noise, quantised": (sl.GaussianNoise(2.0), 2, sl.Quantisation(0.7)),
    "Laplace noise, quantised": (sl.LaplaceNoise(0.3), 2, sl.Quantisation(0.7)),
    "correlated noise, quantised": (sl.GaussianNoise(covariance=MATRIX), 2, sl.Quantisation(0.7)),
    "the plain mean": (sl.LaplaceNoise(0.5), 4, None),
    "the plain mean of correlated noise": (sl.GaussianNoise(covariance=MATRIX), 4, None),
}


FAST = ("random-k of normal noise", "random-k of correlated noise", "narrow noise, quantised", "the plain mean")


@pytest.mark.parametrize("name", cases(ROOTS, FAST))
def test_mean_and_covariance_are_those_of_draws(name):
    noise = sl.DistributedNoise(*ROOTS[name]).bind(PROBLEM)
    noisy, grad = drawn(noise, 50_000)
    rest = noisy - grad
    assert worst(rest, 0) < LIMIT
    exact, variance = covariance(noise)
    assert worst(rest[:, None] * rest[None], exact) < LIMIT
    np.testing.assert_allclose(variance, np.diag(exact), rtol=1e-4)


def test_the_stated_covariance_of_random_k():
    """((1 + ω)Σᵢᵢ + ω(∂ᵢf)²)/N, and ((d/k)(k − 1)/(d − 1)(∂ᵢf ∂ⱼf + Σᵢⱼ) − ∂ᵢf ∂ⱼf)/N off the diagonal."""
    grad, d = np.asarray(PROBLEM.evaluate(PROBLEM.start)[1], np.float64), 4
    for k in (1, 2, 3, 4):
        second = MATRIX + np.outer(grad, grad)
        exact = d / k * ((k - 1) / (d - 1) * second + (1 - (k - 1) / (d - 1)) * np.diag(np.diag(second)))
        noise = sl.DistributedNoise(sl.GaussianNoise(covariance=MATRIX), 5, sl.RandomK(k)).bind(PROBLEM)
        np.testing.assert_allclose(covariance(noise)[0], (exact - np.outer(grad, grad)) / 5, atol=2e-6)


message = eqx.filter_jit(lambda compression, gradient, draws: compression.message(gradient, draws))


def test_random_k_sends_k_coordinates_of_each_equally_often():
    draws = stream(np.arange(5_000), name="kept")
    for dim, keep, k in ((10, 0.25, 3), (10, 3, 3), (100, 0.07, 7), (4, 0.01, 1)):
        sent = np.asarray(message(sl.RandomK(keep), np.ones((dim, 5_000), np.float32), draws))
        assert ((sent != 0).sum(axis=0) == k).all()
        np.testing.assert_allclose(sent[sent != 0], dim / k, rtol=1e-6)
        assert worst(sent, 1.0) < LIMIT + 0.5  # the largest of up to 100 numbers: 6e-5
        assert sl.RandomK(keep).omega(dim) == pytest.approx(dim / k - 1)


def test_quantised_gradients_are_neighbours_on_the_grid():
    gradient = np.linspace(-3, 3, 1000, dtype=np.float32)[None]
    sent = np.asarray(message(sl.Quantisation(0.5), gradient, stream(np.arange(1000), name="grid")))
    np.testing.assert_allclose(sent / 0.5, np.round(sent / 0.5), atol=1e-5)
    assert np.abs(sent - gradient).max() <= 0.5 + 1e-6


def test_the_rounding_of_normal_numbers_against_quadrature():
    means, spreads = (-3.7, -0.5, 0.0, 0.02, 0.5, 1.3), (1e-3, 0.05, 0.2499, 0.2501, 0.6, 20.0)
    at = np.array([(mean, sd) for sd in spreads for mean in means], np.float32)
    found = jax.jit(jax.vmap(normal_rounding))(at[:, 0], at[:, 1]).reshape(len(spreads), len(means))
    for sd, row in zip(spreads, np.asarray(found, float), strict=True):
        for mean, value in zip(means, row, strict=True):

            def integrand(z, mean=mean, sd=sd):
                part = (mean + sd * z) % 1
                return part * (1 - part) * stats.norm.pdf(z)

            exact = 1 / 6
            if sd < 2:
                low, high = mean - 8 * sd, mean + 8 * sd
                turns = [(j - mean) / sd for j in range(math.ceil(low), math.floor(high) + 1)]
                exact = integrate.quad(integrand, -8, 8, points=turns or None, limit=200)[0]
            assert value == pytest.approx(exact, abs=1e-6), (mean, sd)


SIGNS = {
    "random-k": (sl.GaussianNoise([1.0, 0.5, 2.0, 1.0]), 3, sl.RandomK(2)),
    "random-k of many workers": (sl.GaussianNoise(3.0), 40, sl.RandomK(1)),
    "random-k of Cauchy noise": (sl.StudentTNoise(1.0, 1), 4, sl.RandomK(0.25)),
    "random-k of one worker": (sl.LaplaceNoise(1.0), 1, sl.RandomK(0.5)),
    "vote of 9": (sl.StudentTNoise(1.0, 1), 9, sl.MajorityVote()),
    "vote of 2": (sl.GaussianNoise(1.0), 2, sl.MajorityVote()),
    "vote of 6": (sl.StudentTNoise(2.0, 1), 6, sl.MajorityVote()),
    "vote of 41": (sl.LaplaceNoise(5.0), 41, sl.MajorityVote()),
    "plain mean": (sl.GaussianNoise(2.0), 4, None),
    "plain mean of Cauchy noise": (sl.StudentTNoise(2.0, 1), 4, None),
}


@pytest.mark.parametrize("name", cases(SIGNS, ("random-k", "random-k of Cauchy noise", "vote of 9", "vote of 2")))
def test_the_law_of_the_sign_is_that_of_draws(name):
    noise = sl.DistributedNoise(*SIGNS[name]).bind(PROBLEM)
    noisy, _ = drawn(noise, 50_000, seed=1)
    mean, exact = sign_law(noise)
    sign = np.sign(noisy)
    assert worst(sign, mean) < LIMIT
    assert worst((sign - mean[:, None]) ** 2, np.diag(exact)) < LIMIT


def test_signs_under_random_k_are_correlated_as_their_senders_are():
    """Entries off the diagonal, in d = 24, within 5 standard errors and 1/(d − 1)², the order left out."""
    dim = 24
    problem = sl.Quadratic(np.ones(dim), start=np.linspace(1.0, 3.0, dim))
    noise = sl.DistributedNoise(sl.GaussianNoise(0.5), 2, sl.RandomK(0.25)).bind(problem)
    found = np.cov(np.sign(drawn(noise, 50_000, problem)[0]))
    exact = sign_law(noise, problem)[1]
    off = ~np.eye(dim, dtype=bool)
    assert exact[off].max() < -0.005
    assert np.abs(found - exact)[off].max() < 5 * 0.5 / math.sqrt(50_000) + 1 / (dim - 1) ** 2


def test_the_vote_against_the_binomial_law():
    """Of noise uniform on ±1 one worker's mean sign is ∇f itself, and the law of the vote a function of that."""
    counts = (1, 2, 3, 4, 9, 31, 32, 33, 40, 101, 1000)
    one = np.concatenate([np.linspace(-1, 1, 81), [1e-4, 1e-2, 0.999, 1 - 1e-6]]).astype(np.float32)
    line, p = sl.Quadratic([1.0]), (1 + one.astype(np.float64)) / 2
    noises = [sl.DistributedNoise(sl.UniformNoise(1.0), n, sl.MajorityVote()).bind(line) for n in counts[1:]]

    @jax.jit
    def look(g):
        spreads = [noise.apply_sign_root(g, g, jnp.ones_like(g))[0] ** 2 for noise in noises]
        return [vote(g[0], n) for n in counts], [None, *spreads]

    for workers, mean, spread in zip(counts, *look(one[None]), strict=True):
        half = workers // 2
        above, below = stats.binom.sf(half, workers, p), stats.binom.cdf(half - (workers + 1) % 2, workers, p)
        np.testing.assert_allclose(mean, above - below, atol=1e-6, err_msg=f"{workers} workers")
        if workers > 1:
            tie = stats.binom.pmf(half, workers, p) if workers % 2 == 0 else 0
            exact = 1 - tie - (above - below) ** 2
            np.testing.assert_allclose(spread, exact, atol=3e-6, err_msg=f"{workers} workers")


def test_the_gain_of_a_vote_is_its_slope():
    counts = (1, 2, 5, 8, 32, 33, 200)
    slopes = jax.jit(lambda e: [jax.jvp(lambda e, n=n: vote(e, n), (e,), (jnp.ones_like(e),))[1] for n in counts])
    for workers, slope in zip(counts, slopes(np.float32(0)), strict=True):
        assert sl.MajorityVote().gain(workers) == pytest.approx(float(slope), rel=2e-5)
    assert sl.MajorityVote().gain(10_001) == pytest.approx(math.sqrt(2 * 10_001 / math.pi), rel=1e-4)
    assert sl.MajorityVote().tie(4) == pytest.approx(6 / 16)


def test_slopes_of_mean_signs_are_smooth_at_zero():
    noises = [sl.DistributedNoise(*parts).bind(PROBLEM) for parts in SIGNS.values()]

    @jax.jit
    def slopes(zero, x):
        return [jax.jvp(lambda g, n=noise: n.mean_sign(g, x), (zero,), (zero + 1,))[1] for noise in noises]

    for slope in slopes(np.zeros(4, np.float32), PROBLEM.start):
        assert np.isfinite(slope).all()
        assert (np.asarray(slope) > 0).all()


def test_one_worker_that_sends_all_is_the_plain_noise():
    noise = sl.LaplaceNoise(0.5)
    single, plain = sl.DistributedNoise(noise, 1).bind(PROBLEM), noise.bind(PROBLEM)
    assert type(single) is sl.LaplaceNoise
    assert jax.tree.structure(single) == jax.tree.structure(plain)
    for one, other in zip(jax.tree.leaves(single), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(one, other)


def test_workers_draw_independently_and_groups_of_paths_do_not_matter():
    noise = sl.DistributedNoise(sl.GaussianNoise(1.0), 3, sl.RandomK(2)).bind(PROBLEM)
    whole, part = (_gradients(noise, PROBLEM, stream(paths))[0] for paths in (range(48), range(8, 16)))
    np.testing.assert_allclose(whole[:, 8:16], part, rtol=1e-6)
    pair = sl.DistributedNoise(sl.GaussianNoise(1.0), 2).bind(PROBLEM)
    noisy, grad = drawn(pair, 50_000)
    assert worst((noisy - grad) ** 2, 0.5) < LIMIT  # 1, were the two draws the same


def test_every_worker_draws_a_mini_batch_of_its_own():
    features = np.random.default_rng(0).standard_normal((32, 4)).astype(np.float32)
    data = (jnp.asarray(features), jnp.asarray(features @ np.ones(4, np.float32) + 0.5))
    problem = sl.Problem(lambda w, d: (d[0] @ w - d[1]) ** 2, jnp.zeros(4), data)
    four, one = sl.DistributedNoise(sl.MinibatchNoise(2), 4).bind(problem), sl.MinibatchNoise(8).bind(problem)
    variances = jax.jit(lambda x: (four.variance(x), one.variance(x)))(problem.start)
    np.testing.assert_allclose(*variances, rtol=1e-5)
    sparse = sl.DistributedNoise(sl.MinibatchNoise(2), 4, sl.RandomK(2)).bind(problem)
    noisy, grad = drawn(sparse, 5_000, problem)
    rest = noisy - grad
    assert worst(rest, 0) < LIMIT
    assert worst(rest[:, None] * rest[None], covariance(sparse, problem)[0]) < LIMIT


@pytest.mark.slow
def test_every_worker_has_epochs_of_its_own():
    data = jnp.asarray(np.random.default_rng(0).standard_normal((32, 4)), jnp.float32)
    problem = sl.Problem(lambda w, d: ((w - d) ** 2).sum(axis=1), jnp.zeros(4), data)
    noise = sl.DistributedNoise(sl.MinibatchNoise(4, replacement=False), 2).bind(problem)
    noisy, grad = drawn(noise, 5_000, problem)
    rest = noisy - grad
    assert worst(rest, 0) < LIMIT
    assert worst(rest[:, None] * rest[None], covariance(noise, problem)[0]) < LIMIT


@pytest.mark.slow
def test_the_sde_tracks_workers_with_mini_batches():
    problem = sl.network("mlp", dataset="digits", subset=32, width=4, depth=1)
    for noise, optimizer in (
        (sl.DistributedNoise(sl.MinibatchNoise(8), 4), sl.SignSGD(1e-3)),
        (sl.DistributedNoise(sl.MinibatchNoise(8), 4, sl.RandomK(0.25)), sl.SGD(0.05)),
    ):
        errors = sl.compare(problem, noise, optimizer, ["optimizer", "sde"], steps=20, paths=128).errors()
        assert errors.error_upper["sde"] <= 1e-2


def test_descriptions_labels_and_batches():
    noise = sl.DistributedNoise(sl.GaussianNoise(2.0), 8, sl.RandomK(0.25))
    described = noise.bind(PROBLEM).describe()
    assert described == {
        "name": "distributed",
        "workers": 8,
        "noise": {"name": "gaussian", "scale": 2.0},
        "compression": {"name": "random-k", "keep": 0.25},
    }
    assert noise_label(described) == "8 workers (random-k 0.25), Gaussian (scale 2)"
    unknown = sl.DistributedNoise(sl.GaussianNoise(covariance=lambda x: 1 + x**2), 2).bind(PROBLEM)
    assert unknown.describe()["rerunnable"] is False
    larger = noise.at_batch_ratio(4).bind(PROBLEM)
    assert larger.noise.describe()["scale"] == 1.0


def test_the_mean_of_normal_gradients_has_its_theory():
    noise = sl.DistributedNoise(sl.GaussianNoise(2.0), 4)
    for optimizer in (sl.SGD(0.01), sl.SignSGD(0.01)):
        own = sl.theory.stationary(PROBLEM, noise, optimizer).loss
        assert own == pytest.approx(sl.theory.stationary(PROBLEM, sl.GaussianNoise(1.0), optimizer).loss, rel=1e-5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: sl.DistributedNoise(1.0, 2), r"noise: got float; give one worker's noise"),
        (lambda: sl.DistributedNoise(sl.GaussianNoise, 2), r"noise: got GaussianNoise; give one worker's noise"),
        (lambda: sl.DistributedNoise(sl.GaussianNoise(1.0), 0), r"workers: got 0; it must be 1 or more"),
        (lambda: sl.DistributedNoise(sl.GaussianNoise(1.0), 2.5), r"workers: got 2.5; give a whole number"),
        (
            lambda: sl.DistributedNoise(sl.GaussianNoise(1.0), 2, "random-k"),
            r"compression: got 'random-k'; give sl.Ran",
        ),
        (lambda: sl.DistributedNoise(sl.GaussianNoise(1.0), 2, sl.RandomK), r"compression: got the class RandomK"),
        (
            lambda: sl.DistributedNoise(sl.DistributedNoise(sl.GaussianNoise(1.0), 2), 2),
            r"noise: got a DistributedNoise",
        ),
        (
            lambda: sl.DistributedNoise(sl.GaussianNoise(1.0), 2) + sl.GaussianNoise(1.0),
            r"noise: sum the noises of one",
        ),
        (lambda: sl.RandomK(0), r"keep: got 0; it must be 1 or more"),
        (lambda: sl.RandomK(1.5), r"keep: got 1.5; a float is the share .* as an int"),
        (lambda: sl.RandomK("half"), r"keep: got 'half' \(str\); give a real number"),
        (lambda: sl.Quantisation(0.0), r"step: got 0.0; it must be greater than 0"),
        (
            lambda: sl.DistributedNoise(sl.GaussianNoise(1.0), 2, sl.RandomK(9)).bind(PROBLEM),
            r"keep: got 9; the problem has 4 coordinates",
        ),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build()


@pytest.mark.parametrize(
    ("noise", "compression", "optimizer", "message"),
    [
        (
            sl.GaussianNoise(1.0),
            sl.MajorityVote(),
            sl.SGD(0.1),
            r"compression: sl.MajorityVote.* Use it with sl.SignSGD",
        ),
        (
            sl.GaussianNoise(1.0),
            sl.MajorityVote(),
            sl.AdamW(0.1),
            r"compression: sl.MajorityVote\(\) sends the mean",
        ),
        (
            sl.GaussianNoise(covariance=MATRIX),
            sl.MajorityVote(),
            sl.SignSGD(0.1),
            r"compression: the covariance of vot",
        ),
        (sl.GaussianNoise(covariance=MATRIX), sl.RandomK(2), sl.SignSGD(0.1), r"compression: .* for correlated noise"),
        (
            sl.LaplaceNoise(1.0),
            sl.RandomK(2),
            sl.SignSGD(0.1),
            r"compression: .* not known for laplace noise.* Use one",
        ),
        (sl.LaplaceNoise(1.0), None, sl.SignSGD(0.1), r"noise: the mean of 3 draws of laplace.*=sl.MajorityVote\(\)"),
        (
            sl.GaussianNoise(1.0),
            sl.Quantisation(1.0),
            sl.SignSGD(0.1),
            r"compression: the law of the sign.* Use sl.Maj",
        ),
        (
            sl.GaussianNoise(1.0) + sl.LaplaceNoise(1.0),
            sl.Quantisation(1.0),
            sl.SGD(0.1),
            r"compression: the variance that rounding adds is not known for sum noise",
        ),
        (sl.StudentTNoise(1.0, 2), sl.RandomK(2), sl.SGD(0.1), r"noise: distributed noise has no finite variance"),
    ],
)
def test_what_has_no_sde_is_refused_with_a_remedy(noise, compression, optimizer, message):
    distributed = sl.DistributedNoise(noise, 3, compression)
    with pytest.raises(ValueError, match=message):
        sl.compare(PROBLEM, distributed, optimizer, steps=2, paths=8)


def test_the_optimizer_alone_runs_with_what_has_no_sde():
    noise = sl.DistributedNoise(sl.LaplaceNoise(1.0), 3, sl.MajorityVote())
    sl.compare(PROBLEM, noise, sl.SGD(0.1), ["optimizer"], steps=2, paths=8)


TRACKED = {
    "SGD, random-k": (sl.SGD(0.01), sl.GaussianNoise(1.0), 8, sl.RandomK(0.25)),
    "SGD, random-k, correlated": (sl.SGD(0.01), sl.GaussianNoise(covariance=MATRIX), 4, sl.RandomK(2)),
    "SGD, quantised": (sl.SGD(0.01), sl.GaussianNoise(0.3), 4, sl.Quantisation(1.0)),
    "SGD, plain mean": (sl.SGD(0.01), sl.LaplaceNoise(1.0), 4, None),
    "SignSGD, vote of 9, Cauchy": (sl.SignSGD(0.01), sl.StudentTNoise(1.0, 1), 9, sl.MajorityVote()),
    "SignSGD, vote of 4, Cauchy": (sl.SignSGD(0.01), sl.StudentTNoise(1.0, 1), 4, sl.MajorityVote()),
    "SignSGD, random-k": (sl.SignSGD(0.01), sl.GaussianNoise(1.0), 3, sl.RandomK(2)),
    "RMSprop, random-k": (sl.RMSpropW(0.01), sl.GaussianNoise(1.0), 8, sl.RandomK(0.5)),
    "Adam, random-k": (sl.AdamW(0.01, b2=0.99), sl.GaussianNoise(1.0), 8, sl.RandomK(0.5)),
    "Adam, quantised": (sl.AdamW(0.01, b2=0.99), sl.GaussianNoise(0.3), 4, sl.Quantisation(1.0)),
}


@pytest.mark.parametrize(
    "name",
    tiered(TRACKED, ["SGD, random-k, correlated", "SignSGD, vote of 9, Cauchy", "Adam, quantised"]),
)
def test_the_sde_tracks_the_optimizer(name):
    """Upper limits are one-sided, at 99 %."""
    optimizer, noise, workers, compression = TRACKED[name]
    problem = sl.Quadratic([0.5, 1.0, 2.0, 5.0], start=1.0)
    distributed = sl.DistributedNoise(noise, workers, compression)
    errors = sl.compare(problem, distributed, optimizer, ["optimizer", "sde"], steps=200, paths=10_000).errors()
    assert errors.error_upper["sde"] <= 1e-2


def both(noise, optimizer, problem=PROBLEM):
    """The optimizer and its SDE at one substep, as steppers."""
    noise, start = noise.bind(problem), start_of(None, problem, optimizer)
    sde = build_sde("sde", problem, noise, optimizer)
    return Discrete(problem, noise, optimizer, start, problem.layout), EulerMaruyama(sde, optimizer.lr, start)


@pytest.mark.parametrize("name", ["SGD, random-k", "SignSGD, vote of 4, Cauchy"])
def test_the_sde_has_the_optimizers_first_moments(name):
    """At one substep of size η both have the same first two moments after one step: x within 4.5 standard errors."""
    optimizer, noise, workers, compression = TRACKED[name]
    states = stepped(both(sl.DistributedNoise(noise, workers, compression), optimizer), 1, range(20_000))
    moments = [(state.x[-1].astype(np.float64) - np.array(START)[:, None]) / 0.01 for state in states]
    for power in (1, 2):
        a, b = (m**power for m in moments)
        error = np.sqrt((a.var(axis=1) + b.var(axis=1)) / a.shape[1])
        assert (np.abs(a.mean(axis=1) - b.mean(axis=1)) / error).max() < LIMIT


@pytest.mark.parametrize(
    ("text", "workers", "compression"),
    [
        ("distributed(gaussian, 8, random-k(0.25))", 8, sl.RandomK(0.25)),
        ("distributed(gaussian, 8, random-k(2))", 8, sl.RandomK(2)),
        ("distributed(gaussian, 2, quantisation(0.5))", 2, sl.Quantisation(0.5)),
        ("distributed(gaussian, workers=3, compression=majority-vote)", 3, sl.MajorityVote()),
        ("distributed(gaussian, 3)", 3, None),
    ],
)
def test_the_shell_builds_it(text, workers, compression):
    noise = from_the_shell(text)
    assert isinstance(noise, sl.DistributedNoise)
    assert noise.workers == workers
    assert noise.compression == compression


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("distributed(gaussian, compression=random-k(0.25))", "noise: distributed needs workers; write distributed"),
        ("distributed(gaussian, 2, random-k)", "compression: random-k needs keep; write random-k"),
        ("distributed(gaussian, 2, top-k)", "compression: got 'top-k'; choose one of 'random-k', .*-vote'.$"),
        ("distributed(gaussian, 2, keep=0.5)", "noise: distributed: got 'keep'; choose one of"),
    ],
)
def test_the_shell_says_what_is_missing(text, message):
    with pytest.raises(ValueError, match=message):
        from_the_shell(text)


def from_the_shell(noise):
    return SubjectOptions(optimizer="signsgd", noise=noise).build().noise


@pytest.mark.slow
@pytest.mark.parametrize("noise", [sl.GaussianNoise(1.0), sl.GaussianNoise(covariance=MATRIX)], ids=["own", "matrix"])
def test_the_theory_of_sgd_under_random_k(noise):
    """Mean loss within 5 standard errors, step by step: the recursion of mean and covariance is exact."""
    problem, optimizer = sl.Quadratic([0.5, 1.0, 2.0, 5.0], start=1.0), sl.SGD(0.1)
    distributed = sl.DistributedNoise(noise, 2, sl.RandomK(2))
    curve = sl.theory.predict(problem, distributed, optimizer, steps=60, record_every=10).dataset.loss_mean.values[0]
    options = {"steps": 60, "paths": 4000, "record": sl.Record(every=10)}
    run = sl.simulate(problem, distributed, optimizer, "optimizer", **options).dataset
    gap = np.abs(run.loss_mean.values[0] - curve)[1:] / run.loss_sem.values[0][1:]
    assert gap.max() < 5
    at_rest = sl.theory.stationary(problem, distributed, optimizer).loss
    assert sl.theory.predict(problem, distributed, optimizer, steps=400).dataset.loss_mean.values[
        0, -1
    ] == pytest.approx(at_rest, rel=1e-3)
    for other, compression in ((sl.AdamW(0.1), sl.RandomK(2)), (sl.SignSGD(0.1), sl.MajorityVote())):
        with pytest.raises(
            ValueError, match=r"noise: the theory covers compressed gradients only for sl.RandomK with sl.SGD"
        ):
            sl.theory.stationary(problem, sl.DistributedNoise(sl.GaussianNoise(1.0), 2, compression), other)


def test_signs_of_a_momentum_under_several_workers():
    """The mean of normal noises is normal; of what is compressed the joint law is unknown, and refused before a run."""
    one, three = sl.GaussianNoise(1.0), sl.DistributedNoise(sl.GaussianNoise(math.sqrt(3.0)), 3)
    problem = sl.Quadratic([1.0, 4.0])
    sdes = [both(noise, sl.Lion(0.1), problem)[1] for noise in (one, three)]
    paths = stepped(sdes, 3, range(64))
    np.testing.assert_allclose(paths[0].x, paths[1].x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(paths[0].m, paths[1].m, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"compression: the joint law of the sign of a momentum .*'empirical'"):
        sl.compare(problem, sl.DistributedNoise(one, 3, sl.RandomK(1)), sl.Lion(0.1), steps=2, paths=4)
    with pytest.raises(ValueError, match=r"workers: got 0"):
        sl.MajorityVote().tie(0)
