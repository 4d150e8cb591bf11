"""The matrix sign of noisy matrices, Muon, its SDE, and spectra as observables."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import gamma

import sdelens as sl
from sdelens.core.singular import polar_factor, thin_svd
from sdelens.core.tree import flatten_parameters
from sdelens.noise.matrix_sign import matrix_sign
from sdelens.optimizers import State
from sdelens.sdes import Instant, MuonSDE
from sdelens.theory._matrix_sign import _nuclear_norm

SHAPE = (8, 4)
SPECTRUM = np.sqrt(8) * np.linspace(1.8, 0.2, 4)
SCALES = (0.1, 1.0, 10.0)  # of the signal: noise-dominated, between, signal-dominated
SAMPLES = 20_000


def polar(matrix):
    u, _, vt = np.linalg.svd(matrix, full_matrices=False)
    return u @ vt


@cache
def draws(scale):
    """Signs of diag(scale s) + N, shape (SAMPLES, n, m), and N."""
    noise = np.random.default_rng(3).normal(size=(SAMPLES, *SHAPE))
    mean = np.zeros(SHAPE)
    mean[range(4), range(4)] = scale * SPECTRUM
    return polar(mean + noise), noise


@pytest.fixture(scope="module")
def law():
    """The law at all three scales, one matrix each on the last axis."""
    a = np.zeros((*SHAPE, len(SCALES)))
    for i, scale in enumerate(SCALES):
        a[range(4), range(4), i] = scale * SPECTRUM
    found = jax.jit(matrix_sign)(jnp.asarray(a, jnp.float32), jnp.ones(len(SCALES)))
    return jax.tree.map(np.asarray, found)


def test_decompositions_agree_with_lapack():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(7, 5, 3)).astype(np.float32)
    matrix[:, 2] = 0  # a column of zeros: rank 4
    u, s, v, sign, values = jax.jit(lambda a: (*thin_svd(a), polar_factor(a), sl.singular_values(a)))(matrix)
    np.testing.assert_allclose(np.einsum("nkp,kp,mkp->nmp", u, s, v), matrix, atol=1e-5)
    np.testing.assert_allclose(np.einsum("mkp,mlp->klp", v, v), np.eye(5)[..., None] * np.ones(3), atol=1e-5)
    reference = np.linalg.svd(matrix.transpose(2, 0, 1), compute_uv=False).T
    np.testing.assert_allclose(values, reference, atol=1e-5)
    full = np.delete(matrix, 2, axis=1).astype(np.float64).transpose(2, 0, 1)
    np.testing.assert_allclose(np.delete(sign, 2, axis=1), polar(full).transpose(1, 2, 0), atol=1e-5)
    np.testing.assert_array_equal(sign[:, 2], 0)


@pytest.mark.parametrize("index", range(len(SCALES)))
def test_mean_and_covariance_agree_with_draws(law, index):
    signs, _ = draws(SCALES[index])
    d = law.mean[:, index]
    # The error of the deterministic equivalent for 8 × 4 was measured to be 0.008; standard errors are 0.0025.
    np.testing.assert_allclose(d, np.diagonal(signs.mean(axis=0)), atol=0.01 + 0.01)
    first, second = law.slope[..., index], law.turn[..., index]
    variance = law.rest[..., index] + first**2 + second**2
    variance[np.diag_indices(4)] = (law.rest[..., index] + (first - second) ** 2)[np.diag_indices(4)]
    null = law.null_rest[:, index] + law.null_slope[:, index] ** 2
    sampled = signs.var(axis=0)
    assert variance.sum() + 4 * null.sum() == pytest.approx(sampled.sum(), rel=0.03)  # measured: 1 % at most
    size = sampled.max()
    # 10 % of the largest variance: the standard error is 1 %, and the equivalent's error was measured to be 6 %.
    np.testing.assert_allclose(variance, sampled[:4], atol=0.1 * size)
    np.testing.assert_allclose(null, sampled[4:].mean(axis=0), atol=0.1 * size)
    square = signs[:, :4] - signs[:, :4].mean(axis=0)
    crossed = (square * square.transpose(0, 2, 1)).mean(axis=0)
    off = ~np.eye(4, dtype=bool)
    cross = law.cross[..., index] - 2 * first * second
    np.testing.assert_allclose(cross[off], crossed[off], atol=0.1 * size)


@pytest.mark.parametrize("index", range(len(SCALES)))
def test_regression_on_the_noise_agrees_with_draws(law, index):
    signs, noise = draws(SCALES[index])
    same = (signs * noise).mean(axis=0)
    other = (signs[:, :4] * noise[:, :4].transpose(0, 2, 1)).mean(axis=0)
    off = ~np.eye(4, dtype=bool)
    bound = 0.03 * same.max() + 5 / math.sqrt(8 * SAMPLES)  # of order 1/n, and five standard errors
    np.testing.assert_allclose(law.slope[..., index][off], same[:4][off], atol=bound)
    np.testing.assert_allclose(-law.turn[..., index][off], other[off], atol=bound)
    np.testing.assert_allclose(law.null_slope[:, index], same[4:].mean(axis=0), atol=bound)


@pytest.mark.parametrize("index", range(len(SCALES)))
def test_theory_is_the_same_law(law, index):
    matrix = np.zeros(SHAPE)
    matrix[range(4), range(4)] = 5 * SCALES[index] * SPECTRUM
    found = sl.theory.matrix_sign(matrix.T, 5.0)
    np.testing.assert_allclose(found.alignment, law.mean[:, index], atol=2e-3)  # the quadrature of 16 nodes
    np.testing.assert_allclose(found.mean[range(4), range(4)], found.alignment)
    assert found.total_variance == pytest.approx(4 - np.sum(found.alignment**2))
    assert not found.exact


def test_small_sizes_are_exact():
    rng = np.random.default_rng(1)
    for shape, s in (((5, 1), [1.5]), ((2, 2), [1.5, 0.5])):
        matrix = np.zeros(shape)
        matrix[range(len(s)), range(len(s))] = s
        found, signs = sl.theory.matrix_sign(matrix, 1.0), polar(matrix + rng.normal(size=(100_000, *shape)))
        assert found.exact
        sampled = np.diagonal(signs.mean(axis=0))
        np.testing.assert_allclose(found.alignment, sampled, atol=4.5 / math.sqrt(100_000))
    almost = sl.theory.matrix_sign(np.diag([1e-4, 0.0]), 1.0)
    assert almost.alignment[0] / 1e-4 == pytest.approx(almost.slope, rel=1e-5)  # two derivations of one number
    long = sl.theory.matrix_sign([[1e4], [0.0]], 1.0)
    assert 1 - long.alignment[0] == pytest.approx(0.5e-8, rel=1e-2)
    np.testing.assert_array_equal(sl.theory.matrix_sign(np.diag([2.0, 0.0]), 0.0).alignment, [1, 0])


def test_slope_of_pure_noise():
    assert _nuclear_norm(5, 1) == pytest.approx(math.sqrt(2) * gamma(3) / gamma(2.5))  # mean of a χ
    assert _nuclear_norm(2, 2) == pytest.approx(math.sqrt(math.pi) * (1 - 2**-1.5) * 2)  # of the longer of two
    for n, m in ((3, 3), (7, 4)):
        values = np.linalg.svd(np.random.default_rng(2).normal(size=(20_000, n, m)), compute_uv=False).sum(axis=1)
        assert abs(values.mean() - _nuclear_norm(n, m)) < 4.5 * values.std() / math.sqrt(20_000)
    large = sl.theory.matrix_sign(1e-6 * np.eye(60), 1.0)
    assert large.slope == pytest.approx(8 / (3 * math.pi * math.sqrt(60)), rel=4e-3)  # the limit; the rest is O(1/n)


def test_printed_law():
    text = str(sl.theory.matrix_sign(np.diag([20.0, 1.0, 0.1]), 1.0))
    assert "Matrix sign of a 3 × 3 matrix" in text
    assert "phase" in text


PARAMETERS = {"w": np.random.default_rng(4).normal(size=(6, 4)).astype(np.float32), "b": np.ones(3, np.float32)}


@pytest.mark.parametrize("nesterov", [True, False])
def test_matrices_move_as_in_optax(nesterov):
    flat, layout = flatten_parameters(PARAMETERS)
    muon = sl.Muon(0.1, b1=0.9, nesterov=nesterov, weight_decay=0.2)
    wide = {"w": PARAMETERS["w"].T, "b": PARAMETERS["b"]}
    steps = ((1.875, -1.25, 0.375),) * 40  # as a table, they are a loop and not forty pieces of a program
    options = dict(beta=0.9, nesterov=nesterov, weight_decay=0.2)
    theirs = optax.contrib.muon(0.1, ns_coeffs=steps, ns_steps=40, **options)
    gradients = np.random.default_rng(5).normal(size=(4, flat.size, 1)).astype(np.float32)

    def ours(gradients):
        def step(state, g):
            return muon.advance(*state, g, layout), None

        start = flat[:, None], muon.begin(State(flat[:, None], jnp.zeros((flat.size, 1))), layout, None)
        return layout.unravel(jax.lax.scan(step, start, gradients)[0][0][:, 0])["w"]

    def reference(gradients, params, turned):
        def step(both, g):
            params, state = both
            tree = layout.unravel(g[:, 0])
            tree = {**tree, "w": tree["w"].T} if turned else tree
            updates, state = theirs.update(tree, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, theirs.init(params)), gradients)[0][0]["w"]

    def both(gradients):
        return ours(gradients), reference(gradients, PARAMETERS, False), reference(gradients, wide, True)

    tall, same, turned = jax.jit(both)(gradients)
    np.testing.assert_allclose(tall, same, atol=3e-6)
    # optax multiplies the steps of matrices that are wider than high by (columns/rows)^½.
    start, factor = PARAMETERS["w"], math.sqrt(6 / 4)
    decayed = start * (1 - 0.02) ** 4
    np.testing.assert_allclose((turned.T - decayed) / factor, same - decayed, atol=3e-6)


def test_other_parameters_move_by_signs_and_the_transformation_is_the_same_step():
    flat, layout = flatten_parameters({**PARAMETERS, "w": PARAMETERS["w"].T})
    muon = sl.Muon(0.1, b1=0.9, schedule=sl.Cosine(10))
    gradients = np.random.default_rng(6).normal(size=(2, flat.size, 1)).astype(np.float32)

    def both(gradients):
        x, inner = flat[:, None], muon.begin(State(flat[:, None], jnp.zeros((flat.size, 1))), layout, None)
        params, transformation = layout.unravel(flat), muon.to_optax()
        state = transformation.init(params)
        for g in gradients:
            x, inner = muon.advance(x, inner, g, layout)
            updates, state = transformation.update(layout.unravel(g[:, 0]), state, params)
            params = optax.apply_updates(params, updates)
        return layout.unravel(x[:, 0]), params

    ours, theirs = jax.jit(both)(gradients)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), ours, theirs)
    m1 = 0.1 * gradients[0, :3, 0]  # leaves are in the order of their names: b, then w
    old, new = muon.weights(1)
    signs = np.sign(gradients[0, :3, 0]) + float(muon.multiplier(1)) * np.sign(old * m1 + new * gradients[1, :3, 0])
    np.testing.assert_allclose(ours["b"], 1 - 0.1 * signs, atol=2e-6)


def test_moments_of_a_step_of_the_sde():
    """Mean and variance of one Euler-Maruyama step against draws of the optimizer's own step, both with momentum."""
    problem = sl.Problem(lambda p: 0.5 * jnp.sum(p["w"] ** 2) + 0.5 * jnp.sum(p["b"] ** 2), PARAMETERS)
    muon, paths = sl.Muon(0.05, b1=0.5), 4000
    sde = MuonSDE(problem, sl.GaussianNoise(0.7).bind(problem), muon)
    rng = np.random.default_rng(7)
    x, m = np.asarray(problem.start)[:, None], rng.normal(size=(problem.dim, 1)).astype(np.float32)
    draws = [rng.normal(size=(d, paths)).astype(np.float32) for d in (*sde.noise_shape, problem.dim)]

    def both(dW, z):
        wide = jnp.broadcast_to(jnp.asarray(x), z.shape)
        y, t = State(wide, jnp.broadcast_to(jnp.asarray(m), z.shape)), Instant(jnp.asarray(3), jnp.asarray(0.15))
        drift, noise = sde.drift(t, y, wide), sde.apply_diffusion(t, y, wide, math.sqrt(0.05) * dW)
        inner = muon.optax_state(y)
        inner = (inner[0]._replace(count=jnp.asarray(3)), *inner[1:])
        moved, inner = muon.advance(wide, inner, wide + 0.7 * z, problem.layout)
        return drift.x * 0.05 + noise.x, drift.m * 0.05 + noise.m, moved - wide, inner[0].mu - y.m

    steps = [np.asarray(a, np.float64) / 0.05 for a in jax.jit(both)(*draws)]
    for ours, theirs, name in ((steps[0], steps[2], "x"), (steps[1], steps[3], "m")):
        error = np.sqrt((ours.var(axis=1) + theirs.var(axis=1)) / paths)
        slack = 0.02 if name == "x" else 0.0  # the error of the deterministic equivalent
        assert (np.abs(ours.mean(axis=1) - theirs.mean(axis=1)) < 4.5 * error + slack).all(), name
        assert ours.var(axis=1).sum() == pytest.approx(theirs.var(axis=1).sum(), rel=0.04), name
    both_parts = [
        (np.mean((a - a.mean(1, keepdims=True)) * (b - b.mean(1, keepdims=True))))
        for a, b in ((steps[0], steps[1]), (steps[2], steps[3]))
    ]
    assert both_parts[0] == pytest.approx(both_parts[1], rel=0.05)  # X and M move by the same noise


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "b1"), [(0.05, 0.0), (1.0, 0.9), (10.0, 0.9)])
def test_sde_tracks_muon_in_the_three_phases(scale, b1):
    start = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    curvature = np.linspace(0.5, 2, 6)[:, None] * np.linspace(0.5, 1.5, 3)
    problem = sl.Problem(lambda w: 0.5 * jnp.sum(jnp.asarray(curvature) * w**2), start, infimum=0.0)
    options = dict(steps=60, paths=512, record=sl.Record(every=5, observables=["spectral_norm", "nuclear_norm"]))
    result = sl.compare(problem, sl.GaussianNoise(scale), sl.Muon(0.02, b1=b1), **options)
    row = result.errors(confidence=0.9999).loc["sde"]
    assert row.error_lower < 0.01
    assert row.spread_lower < 1.1
    assert row.spread_upper > 0.9
    values = np.linalg.svd(start, compute_uv=False)
    first = result.dataset.observable_mean.isel(step=0, model=0).sel(observable=["spectral_norm", "nuclear_norm"])
    np.testing.assert_allclose(first, [values[0], values.sum()], rtol=1e-4)


def test_what_is_refused():
    with pytest.raises(TypeError, match="nesterov"):
        sl.Muon(0.1, nesterov=1)
    with pytest.raises(ValueError, match="matrix"):
        sl.theory.matrix_sign([1.0, 2.0], 1.0)
    with pytest.raises(ValueError, match="scale"):
        sl.theory.matrix_sign(np.eye(2), -1.0)
    record = sl.Record(observables=["spectral_norm"])
    with pytest.raises(ValueError, match="no parameter is a matrix"):
        sl.compare(sl.Quadratic([1.0]), sl.GaussianNoise(1.0), sl.SGD(0.1), steps=2, paths=2, record=record)
    problem = sl.Problem(lambda w: jnp.sum(w**2), np.ones((2, 2), np.float32))
    with pytest.raises(ValueError, match="variance"):
        MuonSDE(problem, sl.StudentTNoise(1.0, df=2).bind(problem), sl.Muon(0.1))


def test_muon_is_not_elementwise_unless_there_is_no_matrix():
    _, layout = flatten_parameters(PARAMETERS)
    assert sl.Muon(0.1).update_on(layout, jnp.float32).coupling is not None
    _, vector = flatten_parameters({"b": PARAMETERS["b"]})
    assert sl.Muon(0.1).update_on(vector, jnp.float32).coupling is None
    assert sl.Muon(0.1, b1=0.9).at_lr(0.05).b1 == pytest.approx(0.95)
