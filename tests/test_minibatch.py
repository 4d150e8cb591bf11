"""Mini-batch noise of problems with examples: draws, covariances and laws of signs against loops over the examples."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import sdelens as sl
from sdelens.cases.starts import start_of
from sdelens.core.random import Stream, stream_key
from sdelens.integrate import Discrete, EulerMaruyama
from sdelens.noise import _batch_sign
from sdelens.problems import _problem
from sdelens.sdes import build_sde
from tests.checks import stepped

N, B, DRAWS = 24, 4, 20_000
LARGEST_Z = 5.2
"""Of up to 400 entries: the chance that a right one exceeds it is 400 * 2e-7 = 8e-5."""


def stream(paths, name="test", seed=0):
    return Stream(jnp.asarray(stream_key(seed, name)), jnp.arange(paths, dtype=jnp.uint32))


@functools.cache
def small_net(n=N):
    """A ReLU network 3-4-1 with squared loss on random data: 21 parameters, some units off for many examples."""
    rng = np.random.default_rng(0)
    start = {
        "w": rng.normal(size=(4, 3)).astype(np.float32),
        "b": (rng.normal(size=4) - 0.5).astype(np.float32),
        "v": rng.normal(size=4).astype(np.float32),
        "c": np.float32(0.1) * np.ones(1, np.float32),
    }
    data = (rng.normal(size=(n, 3)).astype(np.float32), rng.normal(size=n).astype(np.float32))

    def loss(p, data):
        x, y = data
        return (jax.nn.relu(x @ p["w"].T + p["b"]) @ p["v"] + p["c"][0] - y) ** 2

    return sl.Problem(loss, start, data)


@functools.cache
def linear(n=N, d=3, seed=1):
    """Losses aᵢ·x: gradients aᵢ at every x, some of them exactly 0."""
    rng = np.random.default_rng(seed)
    rows = rng.exponential(size=(n, d)) * rng.choice([-1.0, 1.0], size=(n, d)) + 0.2
    rows[rng.random((n, d)) < 0.4] = 0
    rows = rows.astype(np.float32)
    return sl.Problem(lambda p, rows: rows @ p, np.zeros(d, np.float32), rows), rows.astype(np.float64)


@functools.cache
def example_gradients(n=N):
    """Gradient of every example's loss of the small network at its start, by a loop."""
    problem = small_net(n)
    one = jax.jit(jax.grad(lambda x, example: problem._loss(problem.layout.unravel(x), example)[0]))
    examples = (jax.tree.map(lambda a, i=i: a[i : i + 1], problem.data) for i in range(problem.examples))
    return np.array([one(problem.start, jax.tree.map(np.asarray, example)) for example in examples], np.float64)


@functools.partial(jax.jit, static_argnums=1)
def root_of_noise(noise, size, x, stream):
    """apply_root of the stream's normal numbers."""
    return noise.apply_root(x, stream.normal(size, x.dtype))


def wide(vector, paths=DRAWS):
    """One vector for every path."""
    return np.repeat(np.asarray(vector)[:, None], paths, axis=1)


def covariance(gradients, batch, replacement):
    n = len(gradients)
    centred = gradients - gradients.mean(axis=0)
    return centred.T @ centred / n / batch * (1 if replacement else (n - batch) / (n - 1))


def z_scores(draws, expected):
    """Deviations of the empirical covariance of draws (d, P) about 0 in units of their standard errors."""
    products = draws[:, None, :] * draws[None, :, :]
    error = products.std(axis=-1) / np.sqrt(draws.shape[1])
    return (products.mean(axis=-1) - expected) / np.where(error > 1e-9, error, np.inf)


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("kind", ["root", "batches", "diagonal"])
def test_noise_has_the_covariance_of_mini_batches(kind, replacement):
    problem = small_net()
    options = {"covariance": "diagonal"} if kind == "diagonal" else {}
    noise = sl.MinibatchNoise(B, replacement=replacement, **options).bind(problem)
    gradients = example_gradients()
    expected = covariance(gradients, B, replacement)
    if kind == "diagonal":
        expected = np.diag(np.diag(expected))
    x = wide(problem.start)
    if kind == "batches":
        drawn = np.asarray(jax.jit(type(noise).sample)(noise, x, stream(DRAWS)), np.float64)
    else:
        if kind == "diagonal":  # found once, not for each of 20 000 paths
            noise = noise.with_cache(wide(jax.jit(type(noise).variance)(noise, problem.start)))
        drawn = np.asarray(root_of_noise(noise, noise.noise_shape(problem.dim)[0], x, stream(DRAWS)), np.float64)
    assert np.abs(z_scores(drawn, expected)).max() < LARGEST_Z
    sd = np.sqrt(np.diag(expected))
    still = sd < 1e-9
    assert (drawn[still] == 0).all()
    assert np.abs(drawn.mean(axis=1)[~still] / sd[~still]).max() < LARGEST_Z / np.sqrt(DRAWS)


@pytest.mark.parametrize("chunk", [1, 5, N])
def test_squares_of_examples_gradients_against_a_loop(chunk, monkeypatch):
    problem = small_net()
    monkeypatch.setattr(_problem, "EXAMPLE_BYTES", chunk * 4 * problem.dim)
    gradients = example_gradients()
    x, chosen = wide(problem.start, 2), np.array([[3, 0], [7, 0], [3, 1]])
    found, some = jax.jit(
        lambda: (
            problem.gradient_means(x, (lambda g: g, jnp.square)),
            problem.gradient_means(x, (jnp.square,), chosen)[0],
        )
    )()
    for value, expected in zip(found, (gradients.mean(axis=0), (gradients**2).mean(axis=0)), strict=True):
        np.testing.assert_allclose(value, np.stack([expected] * 2, axis=-1), rtol=2e-5, atol=1e-6)
    expected = np.stack([(gradients[list(own)] ** 2).mean(axis=0) for own in chosen.T], axis=-1)
    np.testing.assert_allclose(some, expected, rtol=2e-5, atol=1e-6)


def test_variance_from_some_examples_is_right_on_average():
    problem = small_net()
    noise = sl.MinibatchNoise(B, subsample=5).bind(problem)
    survey = jax.jit(lambda x, draws: noise.compute_cache("variance", x, x, draws))
    found = np.asarray(survey(wide(problem.start, 4000), stream(4000)), np.float64)
    expected = np.diag(covariance(example_gradients(), B, True))
    error = found.std(axis=1) / np.sqrt(4000)
    some = expected > 1e-9
    assert np.abs((found.mean(axis=1) - expected)[some] / error[some]).max() < LARGEST_Z


@pytest.mark.parametrize(("n", "batch"), [(24, 4), (26, 4), (100, 16)])
def test_an_epoch_takes_every_example_once(n, batch):
    # The gradient of example i is the unit vector i, so a batch's mean shows which it holds.
    problem = sl.Problem(lambda p, rows: rows @ p, np.zeros(n, np.float32), np.eye(n, dtype=np.float32))
    noise = sl.MinibatchNoise(batch, replacement=False).bind(problem)
    x, per_epoch = np.zeros((n, 3), np.float32), n // batch
    gradient = jax.jit(lambda k: noise.gradient(k, x, x, stream(3)))
    held = np.array([batch * np.asarray(gradient(np.int32(k))) for k in range(3 * per_epoch)])
    epochs = held.reshape(3, per_epoch, n, 3)
    counts = epochs.sum(axis=1)
    assert np.isin(np.round(counts), [0, 1]).all()
    np.testing.assert_allclose(counts.sum(axis=1), batch * per_epoch, atol=1e-4)
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[..., 0], epochs[..., 1])


def test_batches_with_replacement_differ_from_step_to_step_and_path_to_path():
    problem, _ = linear()
    noise = sl.MinibatchNoise(B).bind(problem)
    x = np.zeros((3, 4), np.float32)
    gradient = jax.jit(lambda k: noise.gradient(k, x, x, stream(4)))
    first, second = (np.asarray(gradient(np.int32(k))) for k in (0, 1))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first[:, 0], first[:, 1])
    assert np.array_equal(first, np.asarray(gradient(np.int32(0))))


def all_batches(rows, batch):
    """Signs and means of every mini-batch drawn with replacement, each equally likely."""
    index = np.array(list(itertools.product(range(len(rows)), repeat=batch)))
    means = rows[index].mean(axis=1)
    return np.where(np.abs(means) < 1e-9, 0, np.sign(means)), means


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_laws_of_signs_against_every_mini_batch(batch):
    problem, rows = linear(n=9, d=12)
    signs, means = all_batches(rows, batch)
    x, laws = problem.start, ("edgeworth", "normal")
    noises = [sl.MinibatchNoise(batch, signs=law).bind(problem) for law in laws]
    grad = rows.mean(axis=0).astype(np.float32)
    errors = {}
    for law, found in zip(laws, eqx.filter_jit(lambda: [n._found_signs(grad, x) for n in noises])(), strict=True):
        np.testing.assert_allclose(found.variance, means.var(axis=0), rtol=1e-4)
        errors[law] = np.asarray(found.mean) - signs.mean(axis=0)
        if law == "edgeworth":
            still = (signs == 0).all(axis=0)
            spread = np.where(still, 0, signs.var(axis=0))
            # Differs from the truth by what e differs, since both count the batches whose gradient vanishes.
            np.testing.assert_allclose(found.spread, spread, atol=2 * np.abs(errors[law]).max() + 1e-5)
            slope = ((signs - signs.mean(axis=0)) * (means - means.mean(axis=0))).mean(axis=0) / means.var(axis=0)
            assert np.corrcoef(found.slope, slope)[0, 1] > 0.9
    rms = {law: float(np.sqrt(np.mean(error**2))) for law, error in errors.items()}
    if batch == 1:
        assert rms["edgeworth"] < 1e-6
    assert rms["edgeworth"] < 0.6 * rms["normal"]


def test_edgeworth_where_many_examples_count():
    rng = np.random.default_rng(3)
    rows = (rng.exponential(size=(200, 6)) - 0.9).astype(np.float32)
    problem = sl.Problem(lambda p, rows: rows @ p, np.zeros(6, np.float32), rows)
    batch = 64
    counts = rng.multinomial(batch, np.full(200, 1 / 200), 100_000)
    signs = np.sign(counts @ rows.astype(np.float64))
    noise = sl.MinibatchNoise(batch, signs="edgeworth").bind(problem)
    found = np.asarray(jax.jit(lambda x: noise.mean_sign(problem.evaluate(x)[1], x))(problem.start))
    error = signs.std(axis=0) / np.sqrt(len(signs))
    # The expansion's own error is of order 1/B^1.5 = 0.002.
    assert np.abs(found - signs.mean(axis=0)).max() < 0.002 + LARGEST_Z * error.max()


@pytest.mark.parametrize("factor", [1e-12, 1e9])
def test_signs_do_not_depend_on_the_loss_s_scale(factor):
    problem, rows = linear(n=9, d=12)
    scaled = sl.Problem(lambda p, rows: rows @ p, problem.start, (rows * factor).astype(np.float32))
    laws = [sl.MinibatchNoise(3, signs="edgeworth").bind(p) for p in (problem, scaled)]
    means = jax.jit(lambda x: [law.mean_sign(law.problem.evaluate(x)[1], x) for law in laws])(problem.start)
    np.testing.assert_allclose(means[1], means[0], atol=1e-4)


def test_an_l2_term_shifts_the_signs_of_single_examples():
    _, rows = linear(n=40, d=3)
    start = np.array([0.3, -0.2, 0.1], np.float32)
    decayed = sl.Problem(lambda p, rows: rows @ p, start, rows.astype(np.float32)).with_l2(2.0)
    noise = sl.MinibatchNoise(1, signs="edgeworth").bind(decayed)
    found = jax.jit(lambda x: noise.mean_sign(decayed.evaluate(x)[1], x))(decayed.start)
    np.testing.assert_allclose(found, np.sign(rows + 2 * start).mean(axis=0), atol=1e-5)


@pytest.mark.parametrize(("n", "q"), [(1000, 0.02), (60_000, 3e-4), (1_000_000, 1e-5)])
def test_the_number_of_examples_that_count_is_binomial(n, q):
    choose = _batch_sign._log_choose(n, 64)
    binomial = jax.vmap(lambda k, ways: _batch_sign._binomial(k, n, ways, jnp.float32(q)))
    found = jax.jit(binomial)(np.arange(65), np.asarray(choose[:65], np.float32))
    np.testing.assert_allclose(
        found, stats.binom.pmf(np.arange(65), n, np.float64(np.float32(q))), rtol=3e-3, atol=1e-9
    )


@pytest.mark.parametrize("refresh", [1, 3])
def test_independent_sampled_signs_have_the_variances_alone(refresh):
    problem, rows = linear()
    noise = sl.MinibatchNoise(B, covariance="diagonal", samples=4, refresh=refresh).bind(problem)

    @jax.jit
    def draw(x, survey, draws):
        found = noise.with_cache(noise.compute_cache("signs", x, x, survey))
        return found.apply_sign_root(x, x, draws.normal(3, x.dtype))

    drawn = np.asarray(draw(np.zeros((3, DRAWS), np.float32), stream(DRAWS), stream(DRAWS, "root")), np.float64)
    batches = np.random.default_rng(0).integers(0, len(rows), (200_000, B))
    variance = np.sign(np.round(rows[batches].mean(axis=1), 9)).var(axis=0)
    # The mean of K signs, kept for r steps, has r/K of a step's variance; the rest is drawn.
    expected = np.diag(variance * (1 - refresh / 4))
    assert np.abs(z_scores(drawn, expected)).max() < LARGEST_Z


@pytest.mark.parametrize("refresh", [1, 3])
@pytest.mark.parametrize("law", ["sampled", "edgeworth"])
def test_steps_of_signsgd_have_the_moments_of_its_signs(law, refresh):
    # Gradients do not depend on x here, so that steps are independent and their moments those of one step, times three.
    problem, rows = linear()
    steps, paths, lr = 3, DRAWS, 0.5
    noise = sl.MinibatchNoise(B, signs=law, samples=4, refresh=refresh).bind(problem)
    optimizer = sl.SignSGD(lr)
    stepper = EulerMaruyama(build_sde("sde", problem, noise, optimizer), lr, start_of(None, problem, optimizer))
    (state,) = stepped([stepper], steps, range(paths))
    moved = -np.asarray(state.x[-1], np.float64) / lr
    batches = np.random.default_rng(0).integers(0, len(rows), (400_000, B))
    signs = np.sign(np.round(rows[batches].mean(axis=1), 9))
    expected = steps * np.cov(signs.T)
    mean_error = np.sqrt(np.diag(expected) / paths) + steps * signs.std(axis=0) / np.sqrt(len(signs))
    if law == "sampled":
        assert np.abs((moved.mean(axis=1) - steps * signs.mean(axis=0)) / mean_error).max() < LARGEST_Z
        z = z_scores(moved - moved.mean(axis=1, keepdims=True), expected)
        assert np.abs(z).max() < LARGEST_Z
        return
    found = eqx.filter_jit(lambda x: noise._found_signs(problem.evaluate(x)[1], x))(problem.start)
    np.testing.assert_allclose(moved.mean(axis=1), steps * found.mean, atol=LARGEST_Z * mean_error.max())
    np.testing.assert_allclose(np.cov(moved), expected, atol=0.1 * np.diag(expected).max())
    assert np.sign(np.cov(moved)[0, 1]) == np.sign(expected[0, 1])


def test_what_is_surveyed_is_kept_until_the_next_refresh():
    problem = small_net()
    optimizer = sl.RMSpropW(0.05, b2=0.5)
    noise = sl.MinibatchNoise(B, refresh=3).bind(problem)
    stepper = EulerMaruyama(build_sde("sde", problem, noise, optimizer), 0.05, start_of(None, problem, optimizer))
    (state,) = stepped([stepper], 5, range(2))
    kept = state.found[1:]
    for k in (0, 3):
        variance = jax.jit(type(noise).variance)(noise, state.x[k])
        np.testing.assert_allclose(kept[k], variance, rtol=1e-5, atol=1e-9)
    assert np.array_equal(kept[0], kept[1])
    assert np.array_equal(kept[0], kept[2])
    assert not np.array_equal(kept[2], kept[3])
    assert np.array_equal(kept[3], kept[4])


def test_regression_by_its_own_law_and_by_its_examples():
    regression = sl.LinearRegression([1.0, 0.5], 0.5, samples=30)
    features, labels = (np.asarray(a) for a in (regression.features, regression.labels))
    examples = sl.Problem(lambda p, data: 0.5 * (data[0] @ p - data[1]) ** 2, regression.start, (features, labels))
    noise = sl.MinibatchNoise(1)
    own, general = noise.bind(regression), sl.MinibatchNoise(1, signs="edgeworth").bind(examples)
    x = np.asarray(regression.start) + np.float32(0.3)

    @jax.jit
    def looked(x, draws):
        grad, dW = regression.evaluate(x)[1], draws.normal(30, x.dtype)
        many = jnp.broadcast_to(x[:, None], (2, 6))
        return [(n.variance(x), n.mean_sign(grad, x), n.apply_root(many, dW)) for n in (general, own)]

    theirs, ours = looked(x, stream(6))
    np.testing.assert_allclose(theirs[0], ours[0], rtol=1e-5)
    np.testing.assert_allclose(theirs[1], ours[1], atol=1e-6)
    np.testing.assert_allclose(theirs[2], ours[2], rtol=2e-4, atol=1e-6)


def test_weight_decay_in_the_loss_adds_no_noise():
    plain = small_net()
    decayed = plain.with_l2(0.1).with_l2(0.2)
    x, noises = wide(plain.start, 3), [sl.MinibatchNoise(B).bind(p) for p in (plain, decayed)]

    @jax.jit
    def looked(x, draws):
        return [(n.variance(x), n.gradient(jnp.asarray(0), x, x, draws), n.sample(x, draws)) for n in noises]

    first, second = looked(x, stream(3))
    np.testing.assert_allclose(first[0], second[0])
    np.testing.assert_allclose(second[1], first[1] + 0.3 * x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(first[2], second[2], atol=1e-5)


def test_a_whole_batch_without_replacement_has_no_noise():
    """One step of the optimizer and of its SDE from there is −η∇f."""
    problem, optimizer = small_net(8), sl.SGD(0.01)
    noise = sl.MinibatchNoise(8, replacement=False).bind(problem)
    start = start_of(None, problem, optimizer)
    steppers = [
        Discrete(problem, noise, optimizer, start, problem.layout),
        EulerMaruyama(build_sde("sde", problem, noise, optimizer), 0.01, start),
    ]
    gradient = example_gradients(8).mean(axis=0)
    for state in stepped(steppers, 1, range(4)):
        np.testing.assert_allclose(state.x[1], state.x[0] - 0.01 * gradient[:, None], atol=1e-6)


def test_the_optimizer_s_path_is_that_of_its_mini_batches():
    """One path of SGD by hand, from the batches that the noise draws."""
    problem = small_net()
    noise, record = sl.MinibatchNoise(B), sl.Record(keep_paths=2)
    run = sl.simulate(problem, noise, sl.SGD(0.05), "optimizer", steps=4, paths=2, seed=5, record=record)
    bound, x = noise.bind(problem), problem.start
    draws = Stream(jnp.asarray(stream_key(5, "optimizer")), jnp.arange(2, dtype=jnp.uint32))

    @jax.jit
    def gradient(x, batch):
        return jax.grad(lambda x: problem._loss(problem.layout.unravel(x), batch).mean())(x)

    batches = np.asarray(jax.jit(lambda: [bound._batch(draws.at(k)) for k in range(4)])())[:, :, 1]
    for index in batches:
        batch = jax.tree.map(lambda a, index=index: np.asarray(a)[index], problem.data)
        x = x - 0.05 * np.asarray(gradient(x, batch))
    np.testing.assert_allclose(run.dataset.path_x.sel(path=1).isel(step=-1, model=0), x, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("law", ["examples", "sample", "stream"])
def test_the_noise_of_squares_has_the_moments_of_mini_batches(law):
    """Var g² and Cov(g, g²) of batches of three, with skewness and kurtosis, over 4000 increments: within 5 sd.

    With the cumulants k of g they are k₄ + 2k₂² + 4u²k₂ + 4uk₃ and k₃ + 2uk₂, and k_r of a mean of B is κ_r/B^{r − 1}.
    """
    batch, paths, dt = 3, 4000, 0.3
    known = sl.LinearRegression([1.0, 0.5], 0.3, samples=None if law == "stream" else 12)
    x = np.array([0.5, -0.4], np.float32)
    if law == "stream":
        rng = np.random.default_rng(0)
        features = rng.normal(size=(2_000_000, 2)) * np.sqrt([1.0, 0.5])
        labels = features @ np.asarray(known.solution, float) + 0.3 * rng.normal(size=len(features))
    else:
        features, labels = (np.asarray(a, float) for a in (known.features, known.labels))
    single = features * (features @ x - labels)[:, None]
    u, z = single.mean(axis=0), single - single.mean(axis=0)
    k2, k3 = (z**2).mean(axis=0) / batch, (z**3).mean(axis=0) / batch**2
    k4 = ((z**4).mean(axis=0) - 3 * (z**2).mean(axis=0) ** 2) / batch**3
    problem = known
    if law == "examples":
        rows = (features.astype(np.float32), labels.astype(np.float32))
        problem = sl.Problem(lambda p, d: 0.5 * (d[0] @ p - d[1]) ** 2, np.zeros(2, np.float32), rows)
    noise = sl.MinibatchNoise(batch).bind(problem)
    dW = np.sqrt(dt) * np.random.default_rng(1).normal(size=(*noise.noise_shape(2), paths))
    many = [np.repeat(np.asarray(a, np.float32)[:, None], paths, axis=1) for a in (u, x)]
    draw = eqx.filter_jit(noise.apply_root_and_square)
    root, square = (np.asarray(a, float) for a in draw(*many, jnp.asarray(dW, jnp.float32), dt))
    for first, second, exact in (
        (root, root, k2),
        (root, square, k3 + 2 * u * k2),
        (square, square, k4 + 2 * k2**2 + 4 * u**2 * k2 + 4 * u * k3),
    ):
        products = first * second / dt
        sem = products.std(axis=1) / np.sqrt(paths)
        assert (np.abs(products.mean(axis=1) - exact) < 5 * sem + 0.01 * np.abs(exact)).all()


def coupled(mixed, start=1.0):
    """A loss whose values are not those of its examples alone."""
    rows = np.arange(12, dtype=np.float32).reshape(6, 2)
    return sl.Problem(lambda p, rows: mixed(rows @ p) ** 2, np.full(2, start, np.float32), rows)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sl.MinibatchNoise(4, replacement="yes"), "replacement: got 'yes'"),
        (lambda: sl.MinibatchNoise(4, covariance="diag"), "covariance: got 'diag'"),
        (lambda: sl.MinibatchNoise(4, signs="gauss"), "signs: got 'gauss'"),
        (lambda: sl.MinibatchNoise(4, refresh=0), "refresh: got 0"),
        (lambda: sl.MinibatchNoise(4, subsample=1), "subsample: got 1"),
        (
            lambda: sl.MinibatchNoise(N + 1, replacement=False).bind(small_net()),
            "batch_size: got 25; the problem has 24",
        ),
        (lambda: sl.MinibatchNoise(4, subsample=N + 1).bind(small_net()), "subsample: got 25; the problem has 24"),
        (lambda: sl.MinibatchNoise(4).bind(sl.Problem(lambda p: p**2, np.float32(1) * np.ones(()))), "without data"),
        (lambda: sl.MinibatchNoise(4).bind(sl.Quadratic([1.0])), "got Quadratic"),
        (
            lambda: sl.MinibatchNoise(4, covariance="diagonal").bind(sl.LinearRegression([1.0], 0.1)),
            "covariance: got 'diagonal'; on sl.LinearRegression",
        ),
        (
            lambda: sl.MinibatchNoise(4, replacement=False, signs="edgeworth"),
            "known for examples drawn with replacement",
        ),
        (lambda: sl.MinibatchNoise(4).bind(sl.LinearRegression([1.0], 0.1, samples=9).with_l2(0.1)), "with an L2 term"),
        (lambda: sl.MinibatchNoise(4).bind(coupled(lambda r: r - r.mean())), "depend on that example alone"),
        (lambda: sl.MinibatchNoise(4).bind(coupled(lambda r: r - r.mean(), 0.0)), "depend on that example alone"),
        (lambda: sl.MinibatchNoise(4).bind(coupled(lambda r: r * jnp.arange(1.0, 7.0))), "as part of `data`"),
        (lambda: sl.to_diffrax(small_net(), sl.MinibatchNoise(4), sl.SignSGD(0.1)), "signs: 'sampled' signs are drawn"),
        (
            lambda: sl.simulate(small_net(), sl.MinibatchNoise(4, refresh=20), sl.SignSGD(0.1), steps=2),
            "refresh: got 20 with 8 samples",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
