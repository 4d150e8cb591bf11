"""The bridge to diffrax: equal laws, exact solutions, the Stratonovich correction, adaptive steps.

Two-sample Kolmogorov-Smirnov tests have a false-alarm rate of 1e-5 per coordinate; means are held to 5 standard errors.
"""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import sdelens as sl
from sdelens.cases.starts import Start
from sdelens.integrate.diffrax import DiffraxSDE
from tests.checks import tiered

ALPHA = 1e-5
PROBLEM, NOISE = sl.Quadratic([0.5, 1.0, 2.0], start=[1.0, -1.0, 2.0]), sl.GaussianNoise([1.0, 0.5, 2.0])
MATRIX = np.array([[1.0, 0.6, 0.0], [0.6, 1.0, 0.3], [0.0, 0.3, 2.0]])
STEPS, PATHS = 10, 4000


def solve(bridge, solver, steps, substeps, paths, seed=0):
    """X at the end of many paths, shape (d, paths), with steps of η/substeps."""
    controller = diffrax.StepTo(ts=bridge.times(steps, substeps))

    @jax.jit
    @jax.vmap
    def path(key):
        end = steps * bridge.lr
        return diffrax.diffeqsolve(
            bridge.terms(key),
            solver,
            0.0,
            end,
            None,
            bridge.y0(key),
            stepsize_controller=controller,
            adjoint=diffrax.ForwardMode(),
        ).ys.x[-1]

    return np.asarray(path(jax.random.split(jax.random.key(seed), paths))).T


@functools.cache
def ours(name):
    problem, noise, optimizer, options = CASES[name]
    model, record = sl.ClosedForm("sde", integrator="euler", substeps=8), sl.Record(keep_paths=PATHS)
    result = sl.simulate(problem, noise, optimizer, model, steps=STEPS, paths=PATHS, record=record, **options)
    return result.dataset.path_x.values[0, :, -1].T


ADAM = sl.AdamW(0.05, 0.8, 0.9, 1e-6, 0.1, v0="second-moment", schedule=sl.Cosine(20))
CASES = {
    "sgd": (PROBLEM, NOISE, sl.SGD(0.2, 0.1), {}),
    "sgd, covariance": (PROBLEM, sl.GaussianNoise(covariance=MATRIX), sl.SGD(0.2, 0.1), {}),
    "sgd, covariance of x": (PROBLEM, sl.GaussianNoise(covariance=lambda x: 0.1 + x**2), sl.SGD(0.2), {}),
    "signsgd": (PROBLEM, NOISE, sl.SignSGD(0.2, 0.1), {}),
    "signsgd, covariance": (PROBLEM, sl.GaussianNoise(covariance=MATRIX), sl.SignSGD(0.2), {}),
    "signsgd, Cauchy": (PROBLEM, sl.StudentTNoise(1.0, 1), sl.SignSGD(0.2), {}),
    "rmspropw": (PROBLEM, NOISE, sl.RMSpropW(0.05, 0.9, 1e-6, 0.1), {}),
    "adamw": (PROBLEM, NOISE, ADAM, {}),
    "adamw, saved": (
        PROBLEM,
        NOISE,
        ADAM,
        {"start": sl.State(None, np.array([1.0, -1.0, 0.0]), np.array([1.0, 2.0, 3.0]), 7)},
    ),
    "adamw, random": (PROBLEM, NOISE, ADAM, {"start": lambda key: jax.random.normal(key, (3,))}),
}


def same_law(a, b):
    return all(stats.ks_2samp(x, y).pvalue > ALPHA for x, y in zip(a, b, strict=True))


SOLVERS = {"Ito": diffrax.Euler(), "Stratonovich": diffrax.EulerHeun()}
EVERY_COMMIT = [  # each kind of diffusion and of start once, in the sense in which it can go wrong
    ("Ito", "sgd, covariance"),  # a matrix
    ("Stratonovich", "sgd, covariance of x"),  # a correction
    ("Stratonovich", "signsgd"),
    ("Ito", "adamw, random"),
    ("Stratonovich", "adamw, saved"),
]
EVERY_PUSH = [
    ("Ito", "signsgd, Cauchy"),
    ("Stratonovich", "rmspropw"),
    ("Stratonovich", "signsgd, covariance"),
    ("Ito", "adamw"),
]
EVERY_RELEASE = [(s, name) for s in SOLVERS for name in CASES if (s, name) not in EVERY_COMMIT + EVERY_PUSH]


@pytest.mark.parametrize(
    ("sense", "name"),
    [*EVERY_COMMIT, *tiered(EVERY_PUSH + EVERY_RELEASE, EVERY_PUSH)],
    ids=lambda text: text,
)
def test_laws_agree_with_ours(sense, name):
    problem, noise, optimizer, options = CASES[name]
    bridge = sl.to_diffrax(problem, noise, optimizer, solver=SOLVERS[sense], **options)
    assert same_law(solve(bridge, SOLVERS[sense], STEPS, 8, PATHS), ours(name))


def test_without_the_correction_a_stratonovich_solver_has_another_law():
    """What the test above would miss otherwise: the same equation, its Itô drift, and diffrax's EulerHeun."""
    problem, noise, optimizer, _ = CASES["sgd, covariance of x"]
    ito = sl.to_diffrax(problem, noise, optimizer, solver=diffrax.Euler())
    assert not same_law(solve(ito, diffrax.EulerHeun(), STEPS, 8, PATHS), ours("sgd, covariance of x"))


LAMBDA, C, ETA, HORIZON = 1.0, 1.0, 0.5, 1.0
GEOMETRIC = (
    sl.Quadratic([LAMBDA], start=[2.0]),
    sl.GaussianNoise(covariance=lambda x: C * x**2),
    sl.SGD(ETA),
)


def geometric(brownian):
    """dX = −λX dt − √(ηc) X dW has X = x₀ exp(−(λ + ηc/2)t − √(ηc) W)."""
    return 2.0 * np.exp(-(LAMBDA + ETA * C / 2) * HORIZON - np.sqrt(ETA * C) * brownian)


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver",
    [diffrax.ItoMilstein(), diffrax.StratonovichMilstein(), diffrax.Heun(), diffrax.SPaRK()],
    ids=lambda s: type(s).__name__,
)
def test_paths_of_geometric_brownian_motion_are_exact_in_the_limit(solver):
    """Strong order 1: with n times the steps the largest error of 64 paths falls about n times."""
    bridge = sl.to_diffrax(*GEOMETRIC, solver=solver)

    @functools.partial(jax.jit, static_argnums=1)
    def run(keys, count):
        def path(key):
            terms = bridge.terms(key, horizon=HORIZON, tol=1e-4)
            end = diffrax.diffeqsolve(
                terms, solver, 0.0, HORIZON, HORIZON / count, bridge.y0(key), max_steps=count + 2
            ).ys.x[-1, 0]
            return end, terms.terms[1].path.evaluate(0.0, HORIZON, use_levy=False)[0]

        return jax.vmap(path)(keys)

    keys = jax.random.split(jax.random.key(0), 64)
    errors = []
    for count in (20, 160):
        end, brownian = (np.asarray(a, np.float64) for a in run(keys, count))
        errors.append(np.sqrt(np.mean((end - geometric(brownian)) ** 2)))
    assert errors[1] < errors[0] / 4
    assert errors[1] < 0.01


def test_adaptive_steps_keep_to_their_tolerance():
    solver = diffrax.Heun()
    bridge = sl.to_diffrax(*GEOMETRIC, solver=solver)

    @jax.jit
    @jax.vmap
    def path(key):
        terms = bridge.terms(key, horizon=HORIZON, tol=1e-5)
        controller = diffrax.PIDController(rtol=1e-3, atol=1e-3, pcoeff=0.1, icoeff=0.3, dtmin=2e-4)
        solution = diffrax.diffeqsolve(
            terms, solver, 0.0, HORIZON, 0.05, bridge.y0(key), stepsize_controller=controller, max_steps=20_000
        )
        end = terms.terms[1].path.evaluate(0.0, HORIZON)[0]
        return solution.ys.x[-1, 0], end, solution.stats["num_steps"]

    end, brownian, steps = (np.asarray(a, np.float64) for a in path(jax.random.split(jax.random.key(1), 32)))
    assert np.abs(end - geometric(brownian)).max() < 0.02
    assert len(np.unique(steps)) > 1  # it does adapt


def test_a_scheme_for_additive_noise_has_the_exact_law():
    """ShARK with 20 steps against the Ornstein-Uhlenbeck law: mean and variance within 5 standard errors."""
    solver, lr, paths = diffrax.ShARK(), 0.5, 20_000
    bridge = sl.to_diffrax(PROBLEM, NOISE, sl.SGD(lr), solver=solver)
    x = solve(bridge, solver, 4, 5, paths)
    rate, sigma, start, t = (np.array(a) for a in ([0.5, 1.0, 2.0], [1.0, 0.5, 2.0], [1.0, -1.0, 2.0], 4 * lr))
    mean, variance = start * np.exp(-rate * t), lr * sigma**2 * (1 - np.exp(-2 * rate * t)) / (2 * rate)
    assert (np.abs(x.mean(axis=1) - mean) < 5 * np.sqrt(variance / paths)).all()
    assert (np.abs(x.var(axis=1) - variance) < 5 * variance * np.sqrt(2 / paths)).all()


ROOT = np.array([[1.0, 2.0, -0.5], [0.3, -1.0, 4.0]])


class Rectangular:
    """dX = diag(X) R dW with two coordinates and three Brownian motions: no symmetry hides a transposed matrix."""

    noise_shape = (3,)

    def init(self, x):
        return sl.State(x)

    def at_step(self, k):
        return self

    def mean_gradient(self, x, grad):
        return grad

    def evaluate(self, x):
        return 0.5 * jnp.sum(x * x), x

    def apply_diffusion(self, moment, y, grad, dW):
        return sl.State(y.x * (ROOT @ dW))


def test_rows_of_the_diffusion_are_coordinates_and_columns_brownian_motions():
    """The Stratonovich correction of row i is Σⱼ Rᵢⱼ · Rᵢⱼ xᵢ."""
    x = jnp.array([2.0, -3.0])
    bridge = DiffraxSDE(diffrax.EulerHeun(), Rectangular(), Start(x), 0.1, stratonovich=True, diagonal=False)
    y = bridge.y0()
    np.testing.assert_allclose(bridge._diffusion(0.0, y).x, np.asarray(x)[:, None] * ROOT, rtol=1e-6)
    np.testing.assert_allclose(bridge._correction(0.0, y).x, (ROOT**2).sum(axis=1) * np.asarray(x), rtol=1e-6)


def test_the_saddle_where_the_noise_never_changes_a_sign_has_a_finite_correction():
    """Far out e rounds to ±1 and the diffusion to 0, whose root has no derivative."""
    solver = diffrax.EulerHeun()
    bridge = sl.to_diffrax(sl.Quadratic([1.0], start=[100.0]), sl.GaussianNoise(1.0), sl.SignSGD(0.5), solver=solver)
    x = solve(bridge, solver, 4, 2, 3)
    np.testing.assert_allclose(x, 98.0, rtol=1e-5)


BAD = {
    "model": ({"model": "malladi2022"}, sl.SGD(0.1), "model: got 'malladi2022'; choose one of 'sde', 'second-order'"),
    "misspelt": ({"model": "sed"}, sl.SGD(0.1), "Did you mean 'sde'?"),
    "optimizer": ({"model": "optimizer"}, sl.SGD(0.1), "model: got 'optimizer'"),
    "ode solver": ({"solver": diffrax.Tsit5()}, sl.SGD(0.1), "solver: got Tsit5; give a diffrax solver for SDEs"),
    "solver class": ({"solver": diffrax.Euler}, sl.SGD(0.1), "solver: got Euler"),
    "additive": ({"solver": diffrax.ShARK()}, sl.RMSpropW(0.1), "solver: ShARK is for additive noise"),
    "additive, saturated": (
        {"solver": diffrax.ShARK(), "start": [30.0, 30.0, 30.0]},
        sl.SignSGD(0.1),
        "solver: ShARK is for additive noise",
    ),
    "additive sign": ({"solver": diffrax.SRA1()}, sl.SignSGD(0.1), "solver: SRA1 is for additive noise"),
    "start": ({"start": [1.0]}, sl.SGD(0.1), "start: got shape (1,); give an array of the parameter's shape (3,)"),
    "zero": ({}, sl.AdamW(0.1), "start: V starts at 0, where the SDE of adamw divides by √V"),
    "bias": ({"bias_correction": "none"}, sl.AdamW(0.1), "bias_correction: got 'none'"),
}


@pytest.mark.parametrize(("options", "optimizer", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused(options, optimizer, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        sl.to_diffrax(PROBLEM, NOISE, optimizer, **options)
    assert message in str(caught.value)


def test_terms_and_starts_refuse_what_is_missing():
    bridge = sl.to_diffrax(PROBLEM, NOISE, sl.SGD(0.1), start=lambda key: jax.random.normal(key, (3,)))
    with pytest.raises(ValueError, match="key: got None"):
        bridge.y0()
    with pytest.raises(ValueError, match="a VirtualBrownianTree needs both"):
        bridge.terms(jax.random.key(0), horizon=1.0)
    with pytest.raises(ValueError, match="tol: got -1"):
        bridge.terms(jax.random.key(0), horizon=1.0, tol=-1.0)
    with pytest.raises(ValueError, match="no finite variance"):
        sl.to_diffrax(PROBLEM, sl.StudentTNoise(1.0, 2), sl.SGD(0.1))
    with pytest.raises(TypeError, match=r"key: got 0; give a random key"):
        sl.to_diffrax(PROBLEM, NOISE, sl.SGD(0.1)).terms(0)
    assert jnp.shape(sl.to_diffrax(PROBLEM, NOISE, ADAM).y0().v) == (3,)


class Mixing(sl.OptimizerSDE):
    """An SDE of one's own whose diffusion mixes coordinates."""

    factor: float = 2.0

    def drift(self, t, y, grad):
        return sl.State(-self.factor * grad)

    def apply_diffusion(self, t, y, grad, dW):
        return sl.State(dW + self.factor * dW[::-1])


def mixing(problem, noise, optimizer):
    return Mixing(problem, noise, optimizer)


@pytest.mark.parametrize("model", [Mixing, mixing])
def test_an_sde_of_your_own_keeps_its_coefficients(model):
    bridge = sl.to_diffrax(sl.Quadratic([1.0, 3.0]), sl.GaussianNoise(1.0), sl.FromOptax(optax.sgd, 0.1), model)
    y = sl.State(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(bridge._drift(0.0, y, None).x, [-2.0, -12.0])
    np.testing.assert_allclose(bridge._diffusion(0.0, y).x, [[1.0, 2.0], [2.0, 1.0]])


def test_a_model_that_is_no_sde_is_refused():
    with pytest.raises(TypeError, match=r"model: got 3; give a name, or a class or function that makes an sl\.SDE"):
        sl.to_diffrax(sl.Quadratic([1.0]), sl.GaussianNoise(1.0), sl.SGD(0.1), 3)
