"""Gradients of DP-SGD: draws, mean, covariance and law of signs against loops over the examples in NumPy.

Entries of covariances are tested in units of their standard errors with a limit of 5.2: of up to 100 entries a right
one exceeds it with a chance of 2e-5.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

import sdelens as sl
from sdelens.cases.starts import start_of
from sdelens.core.random import Stream, stream_key
from sdelens.integrate import Discrete
from sdelens.sdes import Instant, build_sde
from sdelens.theory._supported import check_law
from tests.checks import compilations, stepped

N, B, D, C, S = 6, 2, 3, 1.0, 0.7
LARGEST_Z, DRAWS = 5.2, 4000


@functools.cache
def problem(n=N):
    """Least squares with gradients of very different norms, some below C."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(n, D)) * np.array([1.0, 0.5, 1.5])
    targets = rows @ np.array([1.0, -1.0, 0.5]) + rng.normal(size=n) * np.where(np.arange(n) % 2, 0.1, 2.0)
    data = (rows.astype(np.float32), targets.astype(np.float32))
    return sl.Problem(lambda p, data: 0.5 * (data[0] @ p - data[1]) ** 2, np.full(D, 0.8, np.float32), data)


def gradients(x, clip=C, n=N):
    """Clipped gradients of all examples at x, shape (n, d)."""
    rows, targets = (np.asarray(a, np.float64) for a in problem(n).data)
    found = (rows @ x - targets)[:, None] * rows
    return found * np.minimum(1, clip / np.linalg.norm(found, axis=1))[:, None]


def dp(multiplier=S, clip=C, poisson=False, **options):
    return sl.DPNoise(sl.MinibatchNoise(B, **options), clip, multiplier, poisson)


def stream(paths, name="test"):
    return Stream(jnp.asarray(stream_key(0, name)), jnp.asarray(np.arange(paths, dtype=np.uint32)))


def wide(vector, paths=DRAWS):
    return jnp.broadcast_to(jnp.asarray(vector)[:, None], (len(vector), paths))


LAWS = {
    "replacement": dp(),
    "without": sl.DPNoise(sl.MinibatchNoise(B, replacement=False), C, S),
    "poisson": dp(poisson=True),
    "full": sl.DPNoise(sl.MinibatchNoise(N, replacement=False), C, S),
    "clipped only": dp(0.0),
}


@functools.cache
def looked():
    """Of every law at the start: draws of Z, the root of normal numbers, mean gradient and variance; one program."""
    laws = {name: noise.bind(problem()) for name, noise in LAWS.items()}

    @jax.jit
    def found():
        x, own = wide(problem().start), stream(DRAWS)
        values = {}
        for name, law in laws.items():
            grad = problem().evaluate(problem().start)[1]
            mean = law.mean_gradient(problem().start, grad)
            normal = own.at(7).normal(law.noise_shape(D)[0], x.dtype)
            draws = law.draw(x, wide(grad), own)
            values[name] = (draws, law.apply_root(x, normal), mean, law.variance(problem().start))
        return values

    return {name: [np.asarray(a, np.float64) for a in parts] for name, parts in found().items()}


def covariance(name):
    g = gradients(np.asarray(problem().start, np.float64))
    own, size = g - g.mean(axis=0), {"full": N}.get(name, B)
    if name == "poisson":
        batch = (1 - B / N) / B * g.T @ g / N
    else:
        batch = own.T @ own / N / size * (1 if name in ("replacement", "clipped only") else (N - size) / (N - 1))
    return batch + ((0 if name == "clipped only" else S) * C / size) ** 2 * np.eye(D)


@pytest.mark.parametrize("name", LAWS)
def test_mean_and_covariance_are_those_of_clipped_gradients(name):
    draws, root, mean, variance = looked()[name]
    exact = gradients(np.asarray(problem().start, np.float64)).mean(axis=0)
    np.testing.assert_allclose(mean, exact, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.broadcast_to(variance, D), np.diag(covariance(name)), rtol=1e-5)
    for sample, centre in ((draws, exact[:, None]), (root, 0)):
        assert np.abs((sample - centre).mean(axis=1) / (sample.std(axis=1) / np.sqrt(DRAWS))).max() < LARGEST_Z
        products = (sample - centre)[:, None] * (sample - centre)[None]
        error = products.std(axis=-1) / np.sqrt(DRAWS)
        assert np.abs((products.mean(axis=-1) - covariance(name)) / error).max() < LARGEST_Z


def test_a_run_is_dp_sgd_to_float_precision():
    """Batches and normal numbers are those of the library's stream; the rest is NumPy, and optax's clipping."""
    law, optimizer, steps = dp().bind(problem()), sl.SGD(0.1), 12
    start = start_of(None, problem(), optimizer)
    (states,) = stepped([Discrete(problem(), law, optimizer, start, problem().layout)], steps, paths=(3,))
    own = stream(4, "test")._replace(paths=jnp.asarray([3], jnp.uint32))

    @jax.jit
    def numbers():
        batches = [own.at(0, 1).at(k).integers(B, N)[:, 0] for k in range(steps)]
        return jnp.stack(batches), jnp.stack([own.at(1, 1).at(k).normal(D, jnp.float32)[:, 0] for k in range(steps)])

    batches, normal = (np.asarray(a) for a in numbers())
    x = np.asarray(problem().start, np.float64)
    for k in range(steps):
        np.testing.assert_allclose(states.x[k, :, 0], x, rtol=2e-5, atol=1e-6)
        x = x - 0.1 * (gradients(x)[batches[k]].mean(axis=0) + S * C / B * normal[k])
    at = np.asarray(problem().start, np.float64)
    aggregate = optax.contrib.differentially_private_aggregate(C, 0.0, 0)
    examples = gradients(at, np.inf)[batches[0]].astype(np.float32)
    theirs = jax.jit(lambda g: aggregate.update(g, aggregate.init(g[0]))[0])(examples)
    np.testing.assert_allclose(theirs, gradients(at)[batches[0]].mean(axis=0), rtol=1e-5)


def exact_signs(multiplier):
    """E sign(g) and Cov sign(g) from all batches: given one, signs are independent, with means erf(g/(√2 τ))."""
    g = gradients(np.asarray(problem().start, np.float64))
    batches = np.array([g[list(pair)].mean(axis=0) for pair in itertools.product(range(N), repeat=B)])
    e = special.erf(batches / (np.sqrt(2) * multiplier * C / B)) if multiplier else np.sign(batches)
    return e.mean(axis=0), np.cov(e.T, bias=True) + np.diag((1 - e**2).mean(axis=0)) * bool(multiplier)


def test_the_law_of_signs_of_drawn_batches_is_exact_on_average():
    """One step of DP-SignSGD's SDE: mean and covariance of e + √Σ̄ ξ over paths are those of the sign of g."""
    laws = {s: dp(s).bind(problem()) for s in (S, 0.0)}
    x, own = wide(problem().start), stream(DRAWS)

    @jax.jit
    def found():
        values = []
        grad = problem().evaluate(x)[1]
        for law in laws.values():
            known = law.with_cache(law.compute_cache("signs", x, grad, own))
            mean = known.mean_gradient(x, grad)
            normal = own.at(5).normal(law.sign_shape(D)[0], x.dtype)
            values.append(known.mean_sign(mean, x) + known.apply_sign_root(mean, x, normal))
        return values

    for multiplier, signs in zip(laws, found(), strict=True):
        mean, exact = exact_signs(multiplier)
        sample = np.asarray(signs, np.float64)
        assert np.abs((sample.mean(axis=1) - mean) / (sample.std(axis=1) / np.sqrt(DRAWS))).max() < LARGEST_Z
        centred = sample - mean[:, None]
        products = centred[:, None] * centred[None]
        error = products.std(axis=-1) / np.sqrt(DRAWS)
        # e of 8 draws and the noise of a step have the covariance of one sign together.
        assert np.abs((products.mean(axis=-1) - exact) / error).max() < LARGEST_Z


def test_drifts_use_the_clipped_mean_and_accumulators_start_at_it():
    law = sl.DPNoise(sl.MinibatchNoise(N, replacement=False), C, S).bind(problem())
    x = np.asarray(problem().start, np.float64)
    mean, scale = gradients(x).mean(axis=0), S * C / N
    optimizers = [sl.SGD(0.1), sl.SignSGD(0.1), sl.AdamW(0.1, v0="second-moment"), sl.Momentum(0.1)]

    @jax.jit
    def drifts():
        found = []
        for optimizer in optimizers:
            sde = build_sde("sde", problem(), law, optimizer)
            y = sde.init(problem().start)
            grad = sde.mean_gradient(y.x, sde.evaluate(y.x)[1])
            found.append((sde.drift(Instant(jnp.asarray(0), jnp.asarray(0.0)), y, grad), y))
        return found

    (sgd, _), (sign, _), (adam, start), (momentum, _) = drifts()
    np.testing.assert_allclose(sgd.x, -mean, rtol=1e-5)
    np.testing.assert_allclose(sign.x, -special.erf(mean / (np.sqrt(2) * scale)), rtol=1e-4)
    np.testing.assert_allclose(start.m, mean, rtol=1e-5)
    np.testing.assert_allclose(start.v, mean**2 + scale**2, rtol=1e-5)
    np.testing.assert_allclose(adam.m, 0, atol=1e-5)
    np.testing.assert_allclose(momentum.m, mean, rtol=1e-5)


def test_clip_and_multiplier_are_swept_by_one_program_and_described():
    with compilations() as compiled:
        found = sl.sweep(
            problem(),
            dp(),
            sl.SGD(0.1),
            ["optimizer"],
            over={"noise.clip": [0.1, 1.0], "noise.multiplier": [0.0, 2.0]},
            steps=3,
            paths=8,
        )
    assert len(compiled) < 10
    end = found.dataset.loss_std.values.reshape(4, -1)[:, -1]
    assert len(set(end.round(6))) == 4
    described = dp(poisson=True).bind(problem()).describe()
    assert {key: described[key] for key in ("name", "clip", "multiplier", "poisson")} == {
        "name": "dp",
        "clip": C,
        "multiplier": S,
        "poisson": True,
    }
    assert described["noise"]["batch_size"] == B
    larger = dp().at_batch_ratio(3)
    assert (larger.noise.batch_size, larger.clip, larger.multiplier) == (3 * B, C, S)


BAD = {
    "noise": (lambda: sl.DPNoise(sl.GaussianNoise(1.0), 1.0, 1.0), "noise: got GaussianNoise; give mini-batches"),
    "clip": (lambda: dp(clip=0.0), "clip: got 0.0; it must be greater than 0"),
    "multiplier": (lambda: dp(-1.0), "multiplier: got -1.0"),
    "signs": (lambda: dp(signs="edgeworth"), "signs: 'edgeworth' is not known for clipped"),
    "poisson": (lambda: dp(poisson=True, replacement=False), "poisson: got True with mini-batches that form epochs"),
    "regression": (lambda: dp().bind(sl.LinearRegression([1.0], 0.1)), "gradients of single examples are not clipped"),
    "l2": (lambda: dp().bind(problem().with_l2(0.1)), "cannot be clipped together with an L2 term"),
    "second order": (
        lambda: build_sde("second-order", problem(), dp().bind(problem()), sl.SGD(0.1)),
        "has a mean gradient other than ∇f",
    ),
    "theory": (lambda: check_law(dp().bind(problem()), problem().start), "noise: dp noise clips gradients"),
    "twice": (lambda: (dp() + dp()).bind(problem()), "several of them clip gradients"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused(name):
    call, message = BAD[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(sl.SGD(0.1), id="sgd", marks=pytest.mark.study),
        pytest.param(sl.SignSGD(0.01), id="signsgd", marks=pytest.mark.slow),
        pytest.param(sl.AdamW(0.01, b2=0.99), id="adamw", marks=pytest.mark.slow),
    ],
)
def test_sdes_track_private_optimizers(optimizer):
    """Least squares with data, B = 8 of 48; one-sided upper limit of the mean's error at 99 %: at most 2 %."""
    noise = sl.DPNoise(sl.MinibatchNoise(8), 1.0, 1.0)
    record = sl.Record(every=10)
    errors = sl.compare(problem(48), noise, optimizer, steps=200, paths=2048, record=record).errors()
    assert errors.error_upper["sde"] <= 0.02
