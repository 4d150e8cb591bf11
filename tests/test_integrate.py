"""SDEs and integrators against NumPy references, step by step with the same random numbers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import references
import sdelens as sl
from sdelens.cases.starts import Start
from sdelens.core.random import Stream, stream_key
from sdelens.core.tree import sum_coordinates
from sdelens.integrate import Coupled, Discrete, EulerMaruyama
from sdelens.run.ensemble import run_ensemble
from sdelens.run.options import Options
from sdelens.run.plan import plan_of
from sdelens.sdes import Instant, Malladi2022SDE, RMSpropWSDE, build_sde, sdes_of
from tests.checks import stepped

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
SCHEMES = [("sequential", 1), ("sequential", 3), ("euler", 3)]
CASES = [(name, model) for name, optimizer in OPTIMIZERS.items() for model in sdes_of(optimizer)]


def on_one_worker(cases, *further):
    """Parameters with a mark that keeps those of one SDE, which share a program, together."""
    return [
        pytest.param(*case, *rest, marks=pytest.mark.xdist_group("integrate-" + "-".join(case)))
        for case in cases
        for rest in (further or [()])
    ]


@functools.cache
def courses(name, model, size):
    """States at every step in float64, by scheme, and of the optimizer: one program, whatever the noise's size."""
    with jax.enable_x64(True):
        problem = sl.Quadratic(CURVATURE, START)
        noise, begin = sl.GaussianNoise(size * SIGMA).bind(problem), Start(problem.start)
        sde = build_sde(model, problem, noise, OPTIMIZERS[name])
        steppers = [EulerMaruyama(sde, LR, begin, *scheme) for scheme in SCHEMES]
        steppers.append(Discrete(problem, noise, OPTIMIZERS[name], begin, problem.layout))
        return dict(zip([*SCHEMES, "optimizer"], stepped(steppers, STEPS, [4]), strict=True)), sde.noise_shape


@functools.cache
def normals(size):
    """What path 4 draws at each step and substep: shape (steps, 3, size)."""
    with jax.enable_x64(True):
        stream = Stream(jnp.asarray(stream_key(0, "test")), jnp.array([4], jnp.uint32))
        draw = lambda k, j: stream.at(k, j).normal(size, jnp.dtype(jnp.float64))[:, 0]  # noqa: E731
        every = jax.vmap(jax.vmap(draw, (None, 0)), (0, None))
        return np.asarray(jax.jit(every)(jnp.arange(STEPS), jnp.arange(3)))


@pytest.mark.parametrize(("name", "model", "integrator", "substeps"), on_one_worker(CASES, *SCHEMES))
def test_integrators_equal_the_references(name, model, integrator, substeps):
    states, noise_shape = courses(name, model, 1.0)
    y = jax.tree.map(lambda a: a[-1], states[integrator, substeps])
    earlier = model == "malladi2022"
    common = (gradient, SIGMA, normals(math.prod(noise_shape))[:, :substeps], LR, THETA)
    v0 = gradient(START) ** 2 + SIGMA**2
    schemes = {"integrator": integrator, "substeps": substeps}
    hessian = CURVATURE if model == "second-order" else None
    expected = {
        "rmspropw with noise": lambda: references.full_noise_rmspropw_sde(
            START, v0, *common, B2, EPS, substeps=substeps, curvature=hessian
        ),
        "adamw with noise": lambda: references.full_noise_adamw_sde(
            START, *common, B1, B2, EPS, **schemes, curvature=hessian
        ),
        "momentum": lambda: references.momentum_sde(START, *common, B1, nesterov=False, **schemes),
        "nesterov": lambda: references.momentum_sde(START, *common, B1, nesterov=True, **schemes),
        "signum": lambda: references.signum_sde(START, *common, B1, B1, substeps=substeps),
        "lion": lambda: references.signum_sde(START, *common, B1, B2, substeps=substeps),
        "adagrad": lambda: references.adagrad_sde(START, np.full(3, 0.3), *common, EPS, substeps=substeps),
        "sgd": lambda: references.sgd_sde(START, *common, substeps=substeps, curvature=hessian),
        "signsgd": lambda: references.signsgd_sde(START, *common, substeps=substeps),
        "rmspropw": lambda: references.rmspropw_sde(START, v0, *common, B2, EPS, substeps=substeps, earlier=earlier),
        "adamw": lambda: references.adamw_sde(
            START, *common, B1, B2, EPS, integrator=integrator, substeps=substeps, earlier=earlier
        ),
    }[f"{name} with noise" if model in ("full-noise", "second-order") and name != "sgd" else name]()
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


def test_at_equal_steps_the_scheme_is_the_algorithm_noise_included():
    """Of the optimizers that are linear in g, and of RMSprop's and Adam's SDEs with the noise of V, in float32."""
    problem = sl.Quadratic(CURVATURE, START)
    noise, begin = sl.GaussianNoise(SIGMA).bind(problem), Start(problem.start)
    named = dict.fromkeys(("sgd", "momentum", "nesterov"), "sde") | dict.fromkeys(("rmspropw", "adamw"), "full-noise")
    chosen = [OPTIMIZERS[name] for name in named]
    algorithms = [Discrete(problem, noise, optimizer, begin, problem.layout) for optimizer in chosen]
    sdes = [build_sde(model, problem, noise, o) for o, model in zip(chosen, named.values(), strict=True)]
    states = stepped([*algorithms, *(EulerMaruyama(sde, LR, begin) for sde in sdes)], 10, range(5))
    for algorithm, scheme in zip(states[: len(chosen)], states[len(chosen) :], strict=True):
        assert algorithm.x.dtype == np.float32
        np.testing.assert_allclose(algorithm.x[-1], scheme.x[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "model"), on_one_worker([(name, "sde") for name in OPTIMIZERS]))
def test_without_noise_the_sequential_scheme_is_the_algorithm(name, model):
    """At Δt = η and vanishing noise, what is left of each SDE is the optimizer's own recursion."""
    states, _ = courses(name, model, 1e-9)
    np.testing.assert_allclose(states["optimizer"].x, states["sequential", 1].x, rtol=1e-6, atol=1e-7)


def test_the_earlier_sde_differs_in_v_and_the_look_ahead_alone():
    with jax.enable_x64(True):
        problem = sl.Quadratic(CURVATURE, START)
        noise = sl.GaussianNoise(SIGMA).bind(problem)
        later, earlier = (build_sde(m, problem, noise, OPTIMIZERS["adamw"]) for m in ("sde", "malladi2022"))
        y = sl.State(jnp.asarray(START), jnp.array([0.1, 0.2, 0.3]), jnp.array([1.0, 2.0, 3.0]), jnp.array(0))
        grad = problem.evaluate(y.x)[1]
        t = Instant(jnp.array(5), jnp.array(5 * LR))
        a, b = jax.jit(lambda y: (later.drift(t, y, grad), earlier.drift(t, y, grad)))(y)
        np.testing.assert_allclose(a.m, b.m)
        np.testing.assert_allclose(a.v - b.v, (1 - B2) / LR * np.asarray(grad) ** 2)
        gamma1, gamma2 = 1 - B1**6, 1 - B2**6
        p = np.sqrt(np.asarray(y.v)) + EPS * np.sqrt(gamma2)
        ratio = np.sqrt(gamma2) / gamma1 / p
        np.testing.assert_allclose(b.x, -ratio * np.asarray(y.m) - THETA * START, rtol=1e-6)
        np.testing.assert_allclose(a.x - b.x, -ratio * (1 - B1) * np.asarray(grad - y.m), rtol=1e-6)


def test_first_step_from_a_zero_accumulator_divides_by_no_zero():
    """The new V is (1 - β₂)(E g² or σ²), so the step is at most η|g|/√V; |g| ≤ |∇f| + 5.3 σ."""
    problem = sl.Quadratic(CURVATURE, START)
    noise, begin = sl.GaussianNoise(SIGMA).bind(problem), Start(problem.start)
    later = [RMSpropWSDE(problem, noise, sl.RMSpropW(LR, B2, eps, v0="zero")) for eps in (0.0, 1e-8)]
    sdes = [*later, *map(Malladi2022SDE, later)]
    for states, earlier in zip(stepped([EulerMaruyama(s, LR, begin) for s in sdes], 1), [0, 0, 1, 1], strict=True):
        assert (states.v[0] == 0).all()
        square = SIGMA**2 + (0 if earlier else gradient(START) ** 2)
        largest = LR * (np.abs(gradient(START)) + 5.3 * SIGMA) / np.sqrt((1 - B2) * square)
        assert (np.abs(states.x[1, :, 0] - START) <= largest).all()


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
    plan = plan_of(Options(steps=3, paths=2000, record=sl.Record(every=3)), 2)
    mean = run_ensemble(stepper, plan, 0, "strong", 0.0, np.array([0.5])).seen_mean[-1]
    slope = np.polyfit(np.log(levels[1:]), 0.5 * np.log(mean), 1)[0]
    assert slope == pytest.approx(-expected, abs=0.2)


def test_rademacher_increments_of_a_coupled_run_have_the_size_of_their_own_substeps():
    """Without a gradient each of n substeps moves x by ±√η √(η/n): by ±η in one, by sums of four ±η/2 in four."""
    lr = 0.25
    problem, optimizer = sl.Quadratic([0.0, 0.0], start=0.0), sl.SGD(lr)
    noise = sl.GaussianNoise(1.0).bind(problem)
    start = Start(problem.start)
    discrete = Discrete(problem, noise, optimizer, start, problem.layout)
    sde = build_sde("sde", problem, noise, optimizer)
    levels = tuple(EulerMaruyama(sde, lr, start, substeps=n, increments="rademacher") for n in (4, 1))
    stepper = Coupled(discrete, levels, lambda positions: positions[0])

    @jax.jit
    def after_one_step(key):
        stream = Stream(key, jnp.arange(32, dtype=jnp.uint32))
        state = jax.tree.map(lambda a: jnp.broadcast_to(a.reshape(-1, 1), (a.size, 32)), stepper.init(stream))
        moved = stepper.step(jnp.asarray(0), state, jnp.zeros((2, 32)), stream)
        return [s.x for s in moved[1:]]

    fine, coarse = (np.asarray(x) for x in after_one_step(np.array([3, 4], np.uint32)))
    np.testing.assert_allclose(np.abs(coarse), lr, rtol=1e-6)
    assert set(np.unique(np.round(fine / lr, 5)) + 0.0) == {-2.0, -1.0, 0.0, 1.0, 2.0}
