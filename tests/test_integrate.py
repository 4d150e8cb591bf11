"""SDEs and integrators against NumPy references, step by step with the same random numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import references
import sdelens as sl
from sdelens._random import Stream, stream_key
from sdelens._tree import sum_coordinates
from sdelens.ensemble import run_ensemble
from sdelens.integrate import Coupled, Discrete, EulerMaruyama
from sdelens.sdes import Instant, Malladi2022SDE, RMSpropWSDE, build_sde, sdes_of
from sdelens.settings import Options
from sdelens.starts import Start

LR, THETA, B1, B2, EPS, STEPS = 0.05, 0.3, 0.8, 0.9, 1e-3, 12
CURVATURE, SIGMA, START = np.array([0.5, 1.0, 3.0]), np.array([0.7, 1.5, 0.2]), np.array([1.0, -2.0, 0.5])


def gradient(x):
    return CURVATURE * x


OPTIMIZERS = {
    "sgd": sl.SGD(LR, THETA),
    "signsgd": sl.SignSGD(LR, THETA),
    "rmspropw": sl.RMSpropW(LR, B2, EPS, THETA),
    "adamw": sl.AdamW(LR, B1, B2, EPS, THETA),
    "momentum": sl.Momentum(LR, B1, False, THETA),
    "nesterov": sl.Momentum(LR, B1, True, THETA),
    "signum": sl.Signum(LR, B1, THETA),
    "lion": sl.Lion(LR, B1, B2, THETA),
    "adagrad": sl.Adagrad(LR, 0.3, EPS, THETA),
}
CASES = [
    (name, sde, integrator, substeps)
    for name, optimizer in OPTIMIZERS.items()
    for sde in sdes_of(optimizer)
    for integrator in ("sequential", "euler")
    for substeps in (1, 3)
]


@pytest.mark.parametrize(("name", "model", "integrator", "substeps"), CASES)
def test_integrators_equal_the_references(name, model, integrator, substeps):
    with jax.enable_x64(True):
        problem = sl.Quadratic(CURVATURE, START)
        noise = sl.GaussianNoise(SIGMA).bind(problem)
        sde = build_sde(model, problem, noise, OPTIMIZERS[name])
        stepper = EulerMaruyama(sde, LR, Start(problem.start), integrator, substeps)
        stream = Stream(stream_key(0, "test"), jnp.array([4], jnp.uint32))
        y = jax.tree.map(lambda a: a[:, None] if jnp.ndim(a) else a, stepper.init(stream))
        size = math.prod(sde.noise_shape)
        draw = jax.jit(lambda k, j: stream.at(k, j).normal(size, jnp.dtype(jnp.float64))[:, 0])
        normals = np.array([[draw(k, j) for j in range(substeps)] for k in range(STEPS)])
        step = jax.jit(lambda k, y: stepper.step(k, y, sde.evaluate(y.x)[1], stream))
        for k in range(STEPS):
            y = step(k, y)
    earlier = model == "malladi2022"
    common = (gradient, SIGMA, normals, LR, THETA)
    v0 = gradient(START) ** 2 + SIGMA**2
    schemes = {"integrator": integrator, "substeps": substeps}
    expected = {
        "rmspropw second-order": lambda: references.second_order_rmspropw_sde(
            START, v0, *common, B2, EPS, substeps=substeps
        ),
        "adamw second-order": lambda: references.second_order_adamw_sde(START, *common, B1, B2, EPS, **schemes),
        "momentum": lambda: references.momentum_sde(START, *common, B1, nesterov=False, **schemes),
        "nesterov": lambda: references.momentum_sde(START, *common, B1, nesterov=True, **schemes),
        "signum": lambda: references.signum_sde(START, *common, B1, B1, substeps=substeps),
        "lion": lambda: references.signum_sde(START, *common, B1, B2, substeps=substeps),
        "adagrad": lambda: references.adagrad_sde(START, np.full(3, 0.3), *common, EPS, substeps=substeps),
        "sgd": lambda: references.sgd_sde(
            START, *common, substeps=substeps, curvature=CURVATURE if model == "second-order" else None
        ),
        "signsgd": lambda: references.signsgd_sde(START, *common, substeps=substeps),
        "rmspropw": lambda: references.rmspropw_sde(START, v0, *common, B2, EPS, substeps=substeps, earlier=earlier),
        "adamw": lambda: references.adamw_sde(
            START, *common, B1, B2, EPS, integrator=integrator, substeps=substeps, earlier=earlier
        ),
    }[f"{name} {model}" if model == "second-order" and name != "sgd" else name]()
    for ours, theirs in zip(y[:3], expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            np.testing.assert_allclose(ours[:, 0], theirs, rtol=1e-6, atol=1e-9)  # √2 of erf is float32


@pytest.mark.parametrize("exponential", [False, True])
def test_both_bias_corrections(exponential):
    with jax.enable_x64(True):
        problem = sl.Quadratic(CURVATURE, START)
        noise = sl.GaussianNoise(SIGMA).bind(problem)
        sde = build_sde("sde", problem, noise, OPTIMIZERS["adamw"], "exponential" if exponential else "discrete")
        beta = [1 - np.exp(-(1 - B1) * 4), 1 - B1**4]
        assert float(sde.gamma(B1, jnp.array(3))) == pytest.approx(beta[0] if exponential else beta[1], rel=1e-12)
        assert float(sde.gamma(0.0, jnp.array(0))) == pytest.approx(1 - np.exp(-1) if exponential else 1.0)


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov"])
def test_at_equal_steps_the_scheme_is_the_algorithm_noise_included(name):
    problem = sl.Quadratic(CURVATURE, START)
    noise = sl.GaussianNoise(SIGMA).bind(problem)
    stream = Stream(stream_key(0, "same"), jnp.arange(5, dtype=jnp.uint32))
    discrete = Discrete(problem, noise, OPTIMIZERS[name], Start(problem.start), problem.layout)
    euler = EulerMaruyama(build_sde("sde", problem, noise, OPTIMIZERS[name]), LR, Start(problem.start))
    a = jax.tree.map(lambda x: jnp.tile(x[:, None], (1, 5)), discrete.init(stream))
    b = jax.tree.map(lambda x: jnp.tile(x[:, None], (1, 5)), euler.init(stream))
    first, second = (
        jax.jit(lambda k, y, s=s: s.step(k, y, problem.evaluate(y.x)[1], stream)) for s in (discrete, euler)
    )
    for k in range(10):
        a, b = first(k, a), second(k, b)
    np.testing.assert_allclose(a.x, b.x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_noise_the_sequential_scheme_is_the_algorithm(name):
    """At Δt = η and vanishing noise, what is left of each SDE is the optimizer's own recursion."""
    with jax.enable_x64(True):
        problem = sl.Quadratic(CURVATURE, START)
        noise = sl.GaussianNoise(1e-9).bind(problem)
        runs = []
        for stepper in (
            Discrete(problem, noise, OPTIMIZERS[name], Start(problem.start), problem.layout),
            EulerMaruyama(build_sde("sde", problem, noise, OPTIMIZERS[name]), LR, Start(problem.start)),
        ):
            stream = Stream(stream_key(0, "x"), jnp.zeros(1, jnp.uint32))
            y = jax.tree.map(lambda a: a[:, None] if jnp.ndim(a) else a, stepper.init(stream))
            step = jax.jit(lambda k, y, s=stepper, r=stream: s.step(k, y, problem.evaluate(s.position(y))[1], r))
            for k in range(10):
                y = step(k, y)
            runs.append(np.asarray(stepper.position(y)))
    np.testing.assert_allclose(runs[0], runs[1], rtol=1e-6, atol=1e-7)


def test_the_earlier_sde_differs_in_v_and_the_look_ahead_alone():
    with jax.enable_x64(True):
        problem = sl.Quadratic(CURVATURE, START)
        noise = sl.GaussianNoise(SIGMA).bind(problem)
        later, earlier = (build_sde(m, problem, noise, OPTIMIZERS["adamw"]) for m in ("sde", "malladi2022"))
        y = sl.State(jnp.asarray(START), jnp.array([0.1, 0.2, 0.3]), jnp.array([1.0, 2.0, 3.0]), jnp.array(0))
        grad = problem.evaluate(y.x)[1]
        t = Instant(jnp.array(5), jnp.array(5 * LR))
        a, b = later.drift(t, y, grad, {}), earlier.drift(t, y, grad, {})
        np.testing.assert_allclose(a.m, b.m)
        np.testing.assert_allclose(a.v - b.v, (1 - B2) / LR * np.asarray(grad) ** 2)
        gamma1, gamma2 = 1 - B1**6, 1 - B2**6
        p = np.sqrt(np.asarray(y.v)) + EPS * np.sqrt(gamma2)
        ratio = np.sqrt(gamma2) / gamma1 / p
        np.testing.assert_allclose(b.x, -ratio * np.asarray(y.m) - THETA * START, rtol=1e-6)
        np.testing.assert_allclose(a.x - b.x, -ratio * (1 - B1) * np.asarray(grad - y.m), rtol=1e-6)


@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize("earlier", [False, True])
def test_first_step_from_a_zero_accumulator_divides_by_no_zero(earlier, eps):
    """The new V is (1 - β₂)(E g² or σ²), so the step is at most η|g|/√V; |g| ≤ |∇f| + 5.3 σ."""
    problem = sl.Quadratic(CURVATURE, START)
    noise = sl.GaussianNoise(SIGMA).bind(problem)
    later = RMSpropWSDE(problem, noise, sl.RMSpropW(LR, B2, eps, v0="zero"))
    stepper = EulerMaruyama(Malladi2022SDE(later) if earlier else later, LR, Start(problem.start))
    stream = Stream(stream_key(0, "x"), jnp.zeros(1, jnp.uint32))
    y = jax.tree.map(lambda a: a[:, None] if jnp.ndim(a) else a, stepper.init(stream))
    y = stepper.step(jnp.array(0), y, problem.evaluate(y.x)[1], stream)
    square = SIGMA**2 + (0 if earlier else gradient(START) ** 2)
    largest = LR * (np.abs(gradient(START)) + 5.3 * SIGMA) / np.sqrt((1 - B2) * square)
    assert (np.abs(np.asarray(y.x[:, 0]) - START) <= largest).all()


STRONG = {
    "additive noise": (sl.GaussianNoise([0.7, 1.5, 0.2]), sl.SGD(0.4, THETA), 1.0),
    "noise of x": (sl.GaussianNoise(covariance=lambda x: 0.1 + x**2), sl.SGD(0.4, THETA), 0.5),
    "noise of the sign": (sl.GaussianNoise([0.7, 1.5, 0.2]), sl.SignSGD(0.4, THETA), 0.5),
}


@pytest.mark.parametrize(("noise", "optimizer", "expected"), STRONG.values(), ids=STRONG.keys())
def test_strong_convergence_of_euler_on_one_brownian_path(noise, optimizer, expected):
    """√E‖X(n) − X(1024)‖² for n = 16 … 128 substeps on the same path falls like n^-1 (additive noise) or n^-½.

    Over 2000 paths the slope has a standard error of 0.02; what the finest path itself leaves out, and the next
    order, are worth up to 0.1.
    """
    problem = sl.Quadratic(CURVATURE, START)
    noise = noise.bind(problem)
    sde, start = build_sde("sde", problem, noise, optimizer), Start(problem.start)
    levels = [1024, 128, 64, 32, 16]

    def distances(positions):
        _, finest, *others = positions
        return jnp.stack([sum_coordinates((x - finest) ** 2) for x in others])

    integrations = tuple(EulerMaruyama(sde, optimizer.lr, start, "euler", n) for n in levels)
    stepper = Coupled(Discrete(problem, noise, optimizer, start, problem.layout), integrations, distances)
    plan = Options(steps=3, paths=2000, record_every=3).plan(2)
    mean = run_ensemble(stepper, plan, 0, "strong", 0.0, np.array([0.5])).seen_mean[-1]
    slope = np.polyfit(np.log(levels[1:]), 0.5 * np.log(mean), 1)[0]
    assert slope == pytest.approx(-expected, abs=0.2)
