"""Noise given by draws, sums without a density, coordinates without noise, and noise that changes with the step.

Statistical tests use fixed seeds and compare means with exact values in units of their standard errors: a limit of 5.2
for up to 40 numbers has a false-alarm rate of 1e-5; Kolmogorov-Smirnov tests are at 1e-5.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import sdelens as sl
from sdelens.cases.starts import start_of
from sdelens.core.random import Stream, stream_key
from sdelens.integrate import Discrete, EulerMaruyama
from sdelens.noise import check_multipliers
from sdelens.sdes import build_sde
from sdelens.theory._supported import check_law
from tests.checks import stepped, tiered

DRAWS, FEW, LARGEST_Z = 20_000, 4000, 5.2
TWO = sl.Quadratic([1.0, 2.0], start=[0.3, -0.2])
MATRIX = np.array([[1.0, 0.6], [0.6, 2.0]])
ROOT = jnp.asarray(np.linalg.cholesky(MATRIX), jnp.float32)


def stream(paths=DRAWS):
    return Stream(jnp.asarray(stream_key(0, "sampled test")), jnp.asarray(np.arange(paths, dtype=np.uint32)))


def normal(key, x):
    return jax.random.normal(key, x.shape)


def correlated(key, x):
    return ROOT @ jax.random.normal(key, x.shape)


def skewed(key, x):
    return jax.random.exponential(key, x.shape) - 1


def stable(key, x):
    """Symmetric stable noise of index 1.5, by Chambers, Mallows and Stuck (1976)."""
    angle, size = jax.random.split(key)
    u = jax.random.uniform(angle, x.shape, minval=-jnp.pi / 2, maxval=jnp.pi / 2)
    w = jax.random.exponential(size, x.shape)
    a = 1.5
    return jnp.sin(a * u) / jnp.cos(u) ** (1 / a) * (jnp.cos((1 - a) * u) / w) ** ((1 - a) / a)


def assert_moments(sample, mean, covariance):
    """Mean and covariance of a sample of shape (d, P) within their standard errors."""
    sample = np.asarray(sample, np.float64)
    centred, root = sample - np.asarray(mean)[:, None], np.sqrt(sample.shape[1])
    assert np.abs(centred.mean(axis=1) / (sample.std(axis=1) / root)).max() < LARGEST_Z
    products = centred[:, None] * centred[None]
    assert np.abs((products.mean(axis=-1) - covariance) / (products.std(axis=-1) / root)).max() < LARGEST_Z


@functools.cache
def looked():
    """Draws, roots and steps of signs of several laws at TWO's start, as one program."""
    sampled = {
        "normal": sl.SampledNoise(normal, variance=1.0),
        "correlated": sl.SampledNoise(correlated, variance="sampled"),
        "skewed": sl.SampledNoise(skewed, variance=1.0),
        "stable": sl.SampledNoise(stable),
        "sum": sl.SampledNoise(skewed, variance="sampled") + sl.GaussianNoise(0.5),
        "matrix + uniform": sl.GaussianNoise(covariance=MATRIX) + sl.UniformNoise(1.0),
    }
    laws = {name: noise.bind(TWO) for name, noise in sampled.items()}
    assert not laws["stable"].has_variance(TWO.start)

    @jax.jit
    def found():
        own, values = stream(), {}
        x = jnp.broadcast_to(TWO.start[:, None], (2, DRAWS))
        grad = TWO.evaluate(x)[1]
        for name, law in laws.items():
            signs = law.with_cache(law.compute_cache("signs", x, grad, own.at(3)))
            w = own.at(4).normal(law.sign_shape(2)[0], x.dtype)
            sign = signs.mean_sign(grad, x) + signs.apply_sign_root(grad, x, w)
            root = None
            if name != "stable":
                cache = law.compute_cache("root", x, grad, own.at(5))
                known = law if cache is None else law.with_cache(cache)
                root = known.apply_root(x, own.at(6).normal(law.noise_shape(2)[0], x.dtype))
            values[name] = (law.sample(x, own.at(1)), sign, root)
        return values

    return found()


@pytest.mark.slow
def test_draws_follow_the_law_and_depend_on_the_path_alone():
    assert stats.kstest(np.asarray(looked()["normal"][0]).ravel(), stats.norm.cdf).pvalue > 1e-5
    assert stats.kstest(np.asarray(looked()["skewed"][0]).ravel() + 1, stats.expon.cdf).pvalue > 1e-5
    assert stats.kstest(np.asarray(looked()["stable"][0])[0][:300], stats.levy_stable(1.5, 0).cdf).pvalue > 1e-5
    law = sl.SampledNoise(normal, variance=1.0).bind(TWO)
    some = Stream(stream(1).key, jnp.asarray([7, 19_999], jnp.uint32))
    drawn = jax.jit(lambda: law.sample(TWO.start, some.at(1)))()
    np.testing.assert_array_equal(drawn, np.asarray(looked()["normal"][0])[:, [7, 19_999]])


def test_roots_have_the_covariance_of_the_draws():
    assert_moments(looked()["correlated"][0], np.zeros(2), MATRIX)
    assert_moments(looked()["correlated"][2], np.zeros(2), MATRIX)
    assert_moments(looked()["normal"][2], np.zeros(2), np.eye(2))
    assert_moments(looked()["sum"][2], np.zeros(2), 1.25 * np.eye(2))
    assert_moments(looked()["matrix + uniform"][2], np.zeros(2), MATRIX + np.eye(2) / 3)


@pytest.mark.slow
def test_a_step_of_signs_has_the_mean_and_covariance_of_the_sign():
    """Of eight draws, the mean and the noise together; exact laws by SciPy."""
    grad = np.asarray(TWO.evaluate(TWO.start)[1], np.float64)
    for name, cdf in (("normal", stats.norm.cdf), ("skewed", lambda z: stats.expon.cdf(z + 1))):
        e = 1 - 2 * cdf(-grad)
        assert_moments(looked()[name][1], e, np.diag(1 - e**2))
    e = 1 - 2 * stats.levy_stable(1.5, 0).cdf(-grad)
    assert_moments(looked()["stable"][1], e, np.diag(1 - e**2))
    # The sum of a shifted exponential and a normal number is exponentially modified normal.
    e = 1 - 2 * stats.exponnorm(2.0, loc=-1, scale=0.5).cdf(-grad)
    assert_moments(looked()["sum"][1], e, np.diag(1 - e**2))


def one_or_two(key, x):
    return jax.random.normal(key, x.shape) + 0.2


def rare(key, x):
    """Mean 0, but with a value of a million in one of a million draws."""
    hit = jax.random.bernoulli(key, 1e-6, x.shape)
    return jnp.where(hit, 1e6, 0.0) - 1.0 + 0.1 * jax.random.normal(key, x.shape)


def signs_of(noise):
    return build_sde("sde", least_squares(), noise.bind(least_squares()), sl.SignSGD(0.1))


def falling(k):
    """A multiplier that is negative from step 3 on."""
    return 1.0 - 0.5 * k


BAD = {
    "biased": (lambda: sl.SampledNoise(one_or_two).bind(TWO), "the stochastic gradient would be biased"),
    "rare": (lambda: sl.SampledNoise(rare).bind(TWO), "check_mean=False"),
    "scale for variance": (
        lambda: sl.SampledNoise(lambda key, x: 3 * normal(key, x), variance=3.0).bind(TWO),
        "give the variance of the draws, not their scale",
    ),
    "no function": (lambda: sl.SampledNoise(1.0), "sample: got float; give a function"),
    "word": (lambda: sl.SampledNoise(normal, "draws"), "variance: got 'draws'"),
    "negative": (lambda: sl.SampledNoise(normal, -1.0), "variance: got -1; variances must not be negative"),
    "no key": (lambda: sl.SampledNoise(lambda key, x: 0 * x).bind(TWO), "the same values for two keys"),
    "own numbers": (
        lambda: sl.SampledNoise(lambda key, x: np.random.default_rng().normal(size=2) + 0 * x).bind(TWO),
        "different values for the same key",
    ),
    "shape": (lambda: sl.SampledNoise(lambda key, x: jax.random.normal(key, (3,))).bind(TWO), "returned shape"),
    "NumPy": (
        lambda: sl.SampledNoise(lambda key, x: np.asarray(normal(key, x)) * 2).bind(TWO),
        "cannot be compiled as a function of a random key and the parameters",
    ),
    "one sample": (lambda: sl.SampledNoise(normal, samples=1), "samples: got 1"),
    "no variance": (
        lambda: build_sde("sde", TWO, sl.SampledNoise(stable).bind(TWO), sl.SGD(0.1)),
        "give SampledNoise\\(sample, variance=...\\) its values",
    ),
    "fourth moment": (
        lambda: build_sde("full-noise", TWO, sl.SampledNoise(normal, 1.0).bind(TWO), sl.AdamW(0.1)),
        "the fourth moment of sampled noise is not known",
    ),
    "edgeworth in a sum": (
        lambda: signs_of(sl.MinibatchNoise(2, signs="edgeworth") + sl.GaussianNoise(1.0)),
        "in a sum use 'sampled' or 'normal'",
    ),
    "schedule of both": (lambda: sl.ScheduledNoise(sl.GaussianNoise(1.0)), "got both or neither"),
    "negative multiplier": (
        lambda: check_multipliers(sl.UniformNoise(1.0) + sl.ScheduledNoise(sl.GaussianNoise(1.0), falling), 4),
        "multiplier: got -0.5 at step 3; multipliers must be finite and not negative throughout the run",
    ),
    "ratios": (
        lambda: sl.ScheduledNoise(sl.GaussianNoise(1.0), batch_ratio=[(5, 1), (9, 2)]),
        "they must ascend from 0",
    ),
    "theory of a schedule": (
        lambda: check_law(sl.ScheduledNoise(sl.GaussianNoise(1.0), [1.0, 0.5]).bind(TWO), TWO.start),
        "changes with the step, and the theory covers noise with one law",
    ),
    "theory of silence": (
        lambda: check_law(sl.GaussianNoise([1.0, 0.0]).bind(TWO), TWO.start, sl.SignSGD(0.1)),
        "has no noise in some coordinates",
    ),
    "signs of a multiple": (
        lambda: signs_of(sl.ScheduledNoise(sl.MinibatchNoise(2), [1.0, 0.5])),
        "multiplier: the law of sign",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused(name):
    call, message = BAD[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_what_is_unlikely_is_said_and_what_is_meant_is_taken():
    with pytest.warns(RuntimeWarning, match="would have too much noise"):
        sl.SampledNoise(normal, variance=2.0).bind(TWO)
    sl.SampledNoise(rare, check_mean=False).bind(TWO)
    check_multipliers(sl.ScheduledNoise(sl.GaussianNoise(1.0), falling), 3)  # the run ends before it is negative
    assert not sl.SampledNoise(normal, variance=1.0).bind(TWO).describe()["rerunnable"]


@functools.cache
def least_squares():
    rows = np.array([[1.0, 0.5], [-0.5, 1.0], [2.0, 0.1], [0.3, -1.0]], np.float32)
    targets = np.array([0.5, -1.0, 0.2, 0.8], np.float32)
    return sl.Problem(
        lambda p, data: 0.5 * (data[0] @ p - data[1]) ** 2, np.array([0.4, 0.2], np.float32), (rows, targets)
    )


@functools.cache
def mini_batches():
    """For mini-batches of 2 plus normal noise: roots, and steps of signs by both laws; one program."""
    problem = least_squares()
    laws = [(sl.MinibatchNoise(2, signs=s) + sl.GaussianNoise(0.3)).bind(problem) for s in ("sampled", "normal")]

    @jax.jit
    def found():
        own, x = stream(FEW), jnp.broadcast_to(problem.start[:, None], (2, FEW))
        grad, values = problem.evaluate(x)[1], []
        for law in laws:
            signs = law.with_cache(law.compute_cache("signs", x, grad, own.at(3)))
            w = own.at(4).normal(law.sign_shape(2)[0], x.dtype)
            values.append(signs.mean_sign(grad, x) + signs.apply_sign_root(grad, x, w))
        root = laws[0].apply_root(x, own.at(6).normal(laws[0].noise_shape(2)[0], x.dtype))
        return root, laws[0].variance(problem.start), values

    return found()


def test_mini_batches_plus_normal_noise():
    problem = least_squares()
    rows, targets = (np.asarray(a, np.float64) for a in problem.data)
    x = np.asarray(problem.start, np.float64)
    gradients = (rows @ x - targets)[:, None] * rows
    own = gradients - gradients.mean(axis=0)
    covariance = own.T @ own / 4 / 2 + 0.09 * np.eye(2)
    root, variance, (sampled, as_normal) = mini_batches()
    np.testing.assert_allclose(variance, np.diag(covariance), rtol=1e-5)
    assert_moments(root, np.zeros(2), covariance)
    batches = np.array([gradients[list(pair)].mean(axis=0) for pair in itertools.product(range(4), repeat=2)])
    e = special.erf(batches / (np.sqrt(2) * 0.3))
    assert_moments(sampled, e.mean(axis=0), np.cov(e.T, bias=True) + np.diag((1 - e**2).mean(axis=0)))
    e = special.erf(gradients.mean(axis=0) / np.sqrt(2 * np.diag(covariance)))
    sample = np.asarray(as_normal, np.float64)
    assert np.abs((sample.mean(axis=1) - e) / (sample.std(axis=1) / np.sqrt(FEW))).max() < LARGEST_Z
    np.testing.assert_allclose(sample.var(axis=1), 1 - e**2, rtol=LARGEST_Z * np.sqrt(2 / FEW))


SILENT = {
    "gaussian": sl.GaussianNoise([0.7, 0.0]),
    "student": sl.StudentTNoise([0.7, 0.0], 3),
    "laplace": sl.LaplaceNoise([0.7, 0.0]),
    "uniform": sl.UniformNoise([0.7, 0.0]),
    "matrix": sl.GaussianNoise(covariance=[[0.49, 0.0], [0.0, 0.0]]),
    "function": sl.GaussianNoise(covariance=lambda x: jnp.array([0.49, 0.0])),
    "sum": sl.GaussianNoise([0.7, 0.0]) + sl.LaplaceNoise([0.7, 0.0]),
}


@functools.cache
def silent():
    """Of the coordinate without noise, at gradients −1, 0 and 2, by law; one program."""
    laws = {name: noise.bind(TWO) for name, noise in SILENT.items()}

    @jax.jit
    def found():
        grad = jnp.array([[0.5, 0.5, 0.5], [-1.0, 0.0, 2.0]])
        one, values = jnp.ones_like(grad), {}
        for name, law in laws.items():
            sign, own = law.apply_joint_root(grad, one, jnp.ones((*law.joint_shape(2), 3)))
            root = law.apply_sign_root(grad, one, jnp.ones((*law.sign_shape(2), 3)))
            values[name] = [
                law.mean_sign(grad, one),
                law.density(grad, one),
                root,
                sign,
                own,
                law.sample(one, stream(3)),
            ]
        return values

    return found()


@pytest.mark.parametrize("name", SILENT)
def test_a_coordinate_without_noise_has_the_sign_of_its_gradient(name):
    mean, density, *noise = (np.broadcast_to(a, (2, 3)) for a in silent()[name])
    np.testing.assert_array_equal(mean[1], [-1, 0, 1])
    np.testing.assert_array_equal(density[1], [0, np.inf, 0])
    assert ((mean[0] > 0) & (mean[0] < 1)).all()
    for values in noise:
        assert np.abs(values[0]).max() > 0
        np.testing.assert_allclose(values[1], 0, atol=1e-15)


def test_runs_with_a_coordinate_without_noise():
    """SGD's second coordinate is gradient descent; SignSGD's moves by η until it is within η of the minimum."""
    noise = SILENT["gaussian"].bind(TWO)
    steppers = []
    for optimizer in (sl.SGD(0.1), sl.SignSGD(0.1)):
        start = start_of(None, TWO, optimizer)
        steppers.append(Discrete(TWO, noise, optimizer, start, TWO.layout))
        steppers.append(EulerMaruyama(build_sde("sde", TWO, noise, optimizer), optimizer.lr, start))
    found = [np.broadcast_to(state.x[:, 1], (4, 2)) for state in stepped(steppers, 3, paths=(0, 1))]
    descent = -0.2 * 0.8 ** np.arange(4)
    for x in found[:2]:
        np.testing.assert_allclose(x, np.repeat(descent[:, None], 2, axis=1), rtol=1e-5)
    for x in found[2:]:
        np.testing.assert_allclose(np.abs(x[:2, 0]), [0.2, 0.1], rtol=1e-5)
        assert np.abs(x[2:]).max() <= 0.1 + 1e-6


def test_noise_that_changes_with_the_step():
    """The variance of SGD's step k is (ηc_k)², or η²/r_k, in runs of the optimizer and of its SDE."""
    sizes, ratios = np.array([1.0, 0.0, 2.0]), np.array([1.0, 4.0, 4.0])
    flat = sl.Quadratic([1e-6], start=0.0)
    laws = [
        sl.ScheduledNoise(sl.GaussianNoise(1.0), sizes),
        sl.ScheduledNoise(sl.GaussianNoise(1.0), lambda k: jnp.asarray([1.0, 0.0, 2.0])[k]),
        sl.ScheduledNoise(sl.GaussianNoise(1.0), batch_ratio=[(0, 1), (1, 4)]),
        sl.ScheduledNoise(sl.LaplaceNoise(1.0), batch_ratio=ratios),
    ]
    optimizer, steppers = sl.SGD(0.1), []
    start = start_of(None, flat, optimizer)
    for law in (noise.bind(flat) for noise in laws):
        steppers.append(Discrete(flat, law, optimizer, start, flat.layout))
        steppers.append(EulerMaruyama(build_sde("sde", flat, law, optimizer), 0.1, start, substeps=2))
    states = stepped(steppers, 3, paths=range(4000))
    expected = [sizes**2] * 4 + [1 / ratios] * 2 + [2 / ratios] * 2
    for state, variance in zip(states, expected, strict=True):
        moved = np.diff(np.broadcast_to(state.x[:, 0], (4, 4000)), axis=0)
        # Kurtosis of Laplace's law is 6, so the relative error of a variance is at most √(5/4000).
        np.testing.assert_allclose(moved.var(axis=1) / 0.01, variance, rtol=LARGEST_Z * np.sqrt(5 / 4000), atol=1e-12)


def test_a_schedule_of_noise_with_a_schedule_inside():
    """The law of a step is that of the step in both: c_k² (b_k² + 2), and in stages (b_k² + 2)/r_k."""
    inside = sl.ScheduledNoise(sl.GaussianNoise(1.0), [1.0, 3.0]) + sl.LaplaceNoise(1.0)
    outside = [sl.ScheduledNoise(inside, [1.0, 2.0]), sl.ScheduledNoise(inside, batch_ratio=[(0, 1)])]
    for noise, factor in zip(outside, (4.0, 1.0), strict=True):
        law = noise.bind(TWO)
        np.testing.assert_allclose(law.at_step(0).variance(TWO.start), 3.0, rtol=1e-6)
        np.testing.assert_allclose(law.at_step(1).variance(TWO.start), 11.0 * factor, rtol=1e-6)


@pytest.mark.parametrize("name", tiered(["stable", "skewed"], ["skewed"]))
def test_the_empirical_model_tracks_draws(name):
    """SignSGD under stable noise of index 1.5 and under skewed noise: one-sided upper limit at 99 % below 2 %."""
    noise = sl.SampledNoise({"stable": stable, "skewed": skewed}[name])
    problem = sl.Quadratic([0.5, 1.0, 2.0], start=1.0)
    record = sl.Record(every=5)
    run = sl.compare(
        problem, noise, sl.SignSGD(0.02), ["optimizer", "sde", "empirical"], steps=200, paths=4096, record=record
    )
    assert (run.errors().error_upper[["sde", "empirical"]] <= 0.02).all()


def test_a_schedule_keeps_the_number_of_draws_for_signs():
    drawn = sl.SampledNoise(lambda key, x: jax.random.normal(key, x.shape), 1.0, samples=3)
    problem = sl.Quadratic([1.0, 2.0])
    for noise in (sl.ScheduledNoise(drawn, [1.0, 0.5]), sl.ScheduledNoise(drawn, batch_ratio=[(0, 1), (5, 2)])):
        assert noise.bind(problem).sign_samples == 3
