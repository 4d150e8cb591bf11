"""Coefficients by quadrature: against closed forms, samples and every SDE; and the SDE that is run with them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate as quad
from scipy import special, stats

import sdelens as sl
from sdelens.cases.starts import Start
from sdelens.core.integrals import integrate
from sdelens.core.random import Stream, stream_key
from sdelens.integrate import Discrete, Quadrature
from sdelens.integrate.discrete import DiscreteState
from sdelens.optimizers import CONVERGED
from sdelens.sdes import Instant, build_sde, sdes_of

LR = 0.05
GRADIENT = np.array([0.0, 0.3, -1.5, 4.0])
X = np.array([0.5, -1.0, 2.0, 0.3])
M, V = np.array([0.1, 0.2, -0.3, 0.5]), np.array([1.0, 0.5, 2.0, 9.0])
UNIT = sl.GaussianNoise(1.0)
QUADRATURE, SILENT = sl.Empirical(coefficients="quadrature"), sl.Execution(progress=False)
VOIGT = [2 * quad.quad(lambda z: special.voigt_profile(z, 1, 0.3), 0, g, epsabs=1e-13)[0] for g in GRADIENT]

# Noise, and E sign(∇f + Z) by SciPy.
SIGNS = {
    "gaussian": (sl.GaussianNoise(2.0), special.erf(GRADIENT / math.sqrt(8))),
    "cauchy": (sl.StudentTNoise(0.5, 1), 2 / np.pi * np.arctan(2 * GRADIENT)),
    "t, df 0.2": (sl.StudentTNoise(1.0, 0.2), 2 * stats.t(0.2).cdf(GRADIENT) - 1),
    "t, df 40": (sl.StudentTNoise(1.0, 40), 2 * stats.t(40).cdf(GRADIENT) - 1),
    "laplace": (sl.LaplaceNoise(0.7), 2 * stats.laplace(scale=0.7).cdf(GRADIENT) - 1),
    "uniform": (sl.UniformNoise(2.0), np.clip(GRADIENT / 2, -1, 1)),
    "logistic": (
        sl.SymmetricNoise(jax.scipy.stats.logistic.cdf, jax.scipy.stats.logistic.ppf, variance=math.pi**2 / 3),
        np.tanh(GRADIENT / 2),
    ),
    "gaussian + cauchy": (sl.GaussianNoise(1.0) + sl.StudentTNoise(0.3, 1), np.array(VOIGT)),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if "+" in name else name for name in SIGNS]
)
def test_of_signs_under_any_law(name):
    """Tolerances are those of the adaptive rule; of the sum, those of a density that is itself an integral."""
    noise, mean = SIGNS[name]
    few = slice(1, 3) if "+" in name else slice(None)
    mean, x = mean[few], X[few]
    found = sl.coefficients(sl.SignSGD(LR, 0.1), GRADIENT[few], noise, x=x)
    np.testing.assert_allclose(found.drift["x"], -mean - 0.1 * x, atol=1e-10)
    np.testing.assert_allclose(found.covariance[:, 0, 0], LR * (1 - mean**2), atol=1e-10)


VARIANCES = {
    "gaussian": (sl.GaussianNoise([1.0, 2.0, 0.5, 3.0]), np.array([1.0, 2.0, 0.5, 3.0]) ** 2),
    "t, df 2.05": (sl.StudentTNoise(1.0, 2.05), 2.05 / 0.05),  # half the variance beyond z = 1e6 s
    "laplace": (sl.LaplaceNoise(0.7), 2 * 0.49),
    "uniform": (sl.UniformNoise(2.0), 4 / 3),
    "laplace + uniform": (sl.LaplaceNoise(0.7) + sl.UniformNoise(2.0), 0.98 + 4 / 3),
}


@pytest.mark.parametrize(("noise", "variance"), VARIANCES.values(), ids=VARIANCES.keys())
def test_of_sgd_exactly(noise, variance):
    found = sl.coefficients(sl.SGD(LR, 0.1), GRADIENT, noise, sl.State(X))
    np.testing.assert_allclose(found.drift["x"], -GRADIENT - 0.1 * X, atol=1e-11)
    np.testing.assert_allclose(found.covariance[:, 0, 0], LR * np.broadcast_to(variance, 4), rtol=1e-11)


def test_moments_that_do_not_exist_are_infinite():
    def cauchy_of(df):
        return sl.coefficients(sl.SGD(LR), GRADIENT, sl.StudentTNoise(1.0, df))

    assert np.isnan(cauchy_of(1).drift["x"]).all()
    np.testing.assert_allclose(cauchy_of(1.5).drift["x"], -GRADIENT, atol=1e-11)
    assert np.isposinf(cauchy_of(1.5).covariance).all()
    found = sl.coefficients(sl.RMSpropW(LR), GRADIENT, sl.StudentTNoise(1.0, 1.5), sl.State(X, v=V))
    assert np.isposinf(found.drift["v"]).all()
    assert np.isfinite(found.drift["x"]).all()


def test_of_accumulators_exactly():
    found = sl.coefficients(sl.AdamW(LR, 0.8, 0.9), GRADIENT, UNIT, sl.State(X, M, V, 3))
    assert found.names == ("x", "m", "v")
    np.testing.assert_allclose(found.drift["m"], 0.2 * (GRADIENT - M) / LR, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(found.drift["v"], 0.1 * (GRADIENT**2 + 1 - V) / LR, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(found.between("m", "m"), 0.04 / LR, rtol=1e-11)
    np.testing.assert_allclose(found.between("v", "v"), 0.01 * (2 + 4 * GRADIENT**2) / LR, rtol=1e-11)
    np.testing.assert_allclose(found.between("m", "v"), 0.02 * 2 * GRADIENT / LR, rtol=1e-11, atol=1e-13)
    with pytest.raises(ValueError, match="part: got 'w'"):
        found.between("x", "w")


def lion(b1, b2):
    transformation = optax.lion(LR, b1=b1, b2=b2, weight_decay=0.0)
    state = optax.tree.set(transformation.init(jnp.zeros(4)), mu=jnp.asarray(M))
    return sl.FromOptax(transformation, LR), state


def test_of_lion_exactly():
    """E sign of c = b₁m + (1 − b₁)g, which jumps at z = −∇f − b₁m/(1 − b₁), and Cov(sign, z) = 2p there."""
    found = sl.coefficients(*(lion(0.5, 0.9)[0], GRADIENT, UNIT, lion(0.5, 0.9)[1]))
    assert found.names == ("x", "[0].mu")
    mean = M.astype(np.float32).astype(float)
    jump = mean + GRADIENT
    np.testing.assert_allclose(found.drift["x"], -special.erf(jump / math.sqrt(2)), atol=1e-10)
    np.testing.assert_allclose(found.drift["[0].mu"], 0.1 * (GRADIENT - mean) / LR, atol=1e-11)
    np.testing.assert_allclose(found.between("x", "[0].mu"), -0.1 * 2 * stats.norm.pdf(jump), atol=1e-10)


CASES = {
    "rmspropw": (sl.RMSpropW(LR, 0.9, weight_decay=0.1), sl.State(X, v=V)),
    "rmspropw, steep": (sl.RMSpropW(LR, 0.9), sl.State(X, v=0.01 * V)),
    "adamw": (sl.AdamW(LR, 0.8, 0.9), sl.State(X, M, V, 3)),
    "first adam step": (sl.AdamW(LR, 0.8, 0.9), sl.State(X)),
    "lion": lion(0.5, 0.9),
    "centred": (sl.FromOptax(lambda lr: optax.rmsprop(lr, 0.9, centered=True, momentum=0.5), LR), None),
}
NOISES = {
    "gaussian": sl.GaussianNoise([1.0, 2.0, 0.5, 1.0]),
    "t": sl.StudentTNoise(0.7, 9),
    "laplace + gaussian": sl.LaplaceNoise(1.0) + sl.GaussianNoise(0.5),
}
# Every case under one law, both laws of single noises taken in turn; under the other in the studies. Under a sum a
# smooth update and one that jumps, in the slow tests.
UNDER = {"rmspropw": "gaussian", "rmspropw, steep": "t", "adamw": "t", "first adam step": "gaussian", "lion": "t"}
UNDER |= {"centred": "gaussian", "signsgd": "gaussian"}


def tier_of(name, law):
    if UNDER[name] == law:
        return ()
    return pytest.mark.slow if "+" in law else pytest.mark.study


def under_laws(cases):
    return [
        pytest.param(name, law, marks=tier_of(name, law), id=f"{name}-{law}")
        for name in cases
        for law in NOISES
        if "+" not in law or name in ("rmspropw", "lion")
    ]


@functools.cache
def exact(name, law):
    """The coefficients of a case under a law."""
    optimizer, state = STEPPER[name][:2] if name in STEPPER else CASES[name]
    return sl.coefficients(optimizer, GRADIENT, NOISES[law], state, x=X)


def bound_case(optimizer, state, noise):
    """Problem of gradient GRADIENT at X, bound noise, and the state of 1 path, x and what is kept."""
    problem = sl.Quadratic(GRADIENT / X, X)
    noise = noise.bind(problem)
    stream = Stream(stream_key(0, "coefficients"), jnp.zeros(1, jnp.uint32))
    if isinstance(optimizer, sl.FromOptax):
        inner = optimizer.begin(sl.State(problem.start), problem.layout, stream)
        if state is not None:
            inner = tuple(jnp.asarray(a, b.dtype).ravel() for a, b in zip(jax.tree.leaves(state), inner, strict=True))
    else:
        begin = optimizer.initial_state(problem, noise, problem.start)
        given = {n: jnp.asarray(a) for n, a in state._asdict().items() if a is not None}
        inner = optimizer.begin(begin._replace(**given), problem.layout, stream)
    one = DiscreteState(problem.start[:, None], jax.tree.map(lambda a: a[:, None] if a.ndim else a, inner))
    return problem, noise, one


def parts_of(optimizer, problem, y):
    owners = optimizer.update_on(problem.layout, problem.start.dtype).owners
    return [y.x, *(leaf for leaf, owner in zip(jax.tree.leaves(y.inner), owners, strict=True) if owner is not None)]


@pytest.mark.parametrize(("name", "law"), under_laws(CASES))
def test_against_samples(name, law):
    """200 000 draws; of 4 coordinates and up to 4 parts no mean and no covariance is 5 standard errors off."""
    (optimizer, state), paths, found = CASES[name], 200_000, exact(name, law)
    with jax.enable_x64(True):
        problem, noise, one = bound_case(optimizer, state, NOISES[law])

        @jax.jit
        def draw(one, gradient, stream):
            many = jax.tree.map(lambda a: jnp.broadcast_to(a, (a.shape[0], paths)) if a.ndim else a, one)
            z = noise.sample(many.x, stream)
            new = DiscreteState(*optimizer.advance(many.x, many.inner, gradient[:, None] + z, problem.layout))
            before, after = (parts_of(optimizer, problem, y) for y in (many, new))
            return jnp.stack([a - b for a, b in zip(after, before, strict=True)])

        stream = Stream(stream_key(1, "samples"), np.arange(paths, dtype=np.uint32))
        steps = np.asarray(draw(one, GRADIENT, stream))
    expected = np.stack([found.drift[part] for part in found.names])
    error = np.sqrt(np.einsum("daa->ad", found.covariance) / LR / paths)  # where signs rarely differ, samples have none
    assert (np.abs(steps.mean(axis=-1) / LR - expected) <= 5 * error + 1e-9).all()
    centred = steps - LR * expected[..., None]
    products = centred[:, None] * centred[None]
    error = products.std(axis=-1) / LR / math.sqrt(paths)
    off = np.abs(products.mean(axis=-1) / LR - found.covariance.transpose(1, 2, 0))
    assert (off <= 5 * error + 1e-5).all()  # of Adam's first step rare draws next to the jump make the difference


def test_jumps_anywhere_are_closed_in():
    """∫ of a step from −1 to 1 and of its product with a cosine, at 200 places, some next to the edges of panels."""
    rng = np.random.default_rng(0)
    at = np.concatenate([rng.uniform(-2, 2, 150), rng.choice([-1, 0, 1], 50) + rng.normal(size=50) * 1e-4])[:, None]

    def function(t):
        return np.stack([np.sign(t - at), np.sign(t - at) * np.cos(t)], axis=-1)

    found = integrate(function, np.broadcast_to([-2.0, -1.0, 0.0, 1.0, 2.0], (200, 5)), 1e-12)
    exact = np.concatenate([-2 * at, -2 * np.sin(at)], axis=1)
    np.testing.assert_allclose(found, exact, atol=1e-10)


def test_a_function_for_every_step_of_a_schedule_and_counter():
    """The count of a state enters: Adam's first step is −η sign(g)."""
    found = sl.coefficients(sl.AdamW(LR, 0.8, 0.9), GRADIENT, UNIT)
    np.testing.assert_allclose(found.drift["x"], -special.erf(GRADIENT / math.sqrt(2)), atol=1e-6)  # ε = 1e-8


REFUSED = {
    "norms": (optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(LR)), "by reduce_sum"),
    "layers": (optax.lamb(LR), "by reduce_sum"),
    "all or nothing": (optax.apply_if_finite(optax.sgd(LR), 3), "by reduce_and"),
    "sorted": (optax.stateless(lambda g, _: jax.tree.map(jnp.sort, g)), "by sort"),
    "reversed": (optax.stateless(lambda g, _: jax.tree.map(lambda a: a[::-1], g)), "by rev"),
    "random": (optax.noisy_sgd(LR, key=0), "random numbers of its own"),
}


@pytest.mark.parametrize(("transformation", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_updates_that_couple_coordinates_are_refused(transformation, message):
    optimizer = sl.FromOptax(transformation, LR)
    with pytest.raises(ValueError, match=message):
        sl.coefficients(optimizer, GRADIENT, UNIT)
    with pytest.raises(ValueError, match="coefficients='sampled'|" + message):
        sl.simulate(sl.Quadratic([1.0, 2.0]), UNIT, optimizer, QUADRATURE, steps=2, paths=4)


def test_other_arguments_are_refused():
    with pytest.raises(ValueError, match="depend on each other"):
        sl.coefficients(sl.SGD(LR), GRADIENT, sl.GaussianNoise(covariance=np.eye(4)))
    with pytest.raises(ValueError, match="sum of 3 laws"):
        sl.coefficients(sl.SGD(LR), GRADIENT, sl.LaplaceNoise(1.0) + sl.UniformNoise(1.0) + sl.StudentTNoise(1.0, 3))
    with pytest.raises(ValueError, match="scale: got shape"):
        sl.coefficients(sl.SGD(LR), GRADIENT, sl.GaussianNoise([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"state\.m: rmspropw has no such"):
        sl.coefficients(sl.RMSpropW(LR), GRADIENT, UNIT, sl.State(X, m=M))
    with pytest.raises(ValueError, match="does not have the leaves"):
        sl.coefficients(lion(0.5, 0.9)[0], GRADIENT, UNIT, optax.adam(LR).init(jnp.zeros(4)))
    case = sl.Quadratic([1.0, 2.0]), sl.GaussianNoise(covariance=np.eye(2)), sl.SGD(LR), QUADRATURE
    with pytest.raises(ValueError, match="coefficients='sampled'"):
        sl.simulate(*case, steps=2, paths=4)


def test_coordinates_are_followed_through_parameters_of_several_leaves():
    layers = {"a": jnp.ones((2, 2)), "b": jnp.ones(()), "c": jnp.ones((2, 2))}
    problem = sl.Problem(lambda p: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p)), layers)
    both = optax.multi_transform({"s": optax.sgd(0.1), "m": optax.adam(0.1)}, {"a": "s", "b": "m", "c": "m"})
    update = sl.FromOptax(both, 0.1).update_on(problem.layout, jnp.float32)
    assert update == (None, (None, 1, 2, 1, 2), (4, 1, 4), False)
    mixed = optax.stateless(lambda g, _: {"a": g["c"], "b": g["b"], "c": g["a"]})
    assert "different parameters" in sl.FromOptax(mixed, 0.1).update_on(problem.layout, jnp.float32).coupling
    common = optax.stateless(lambda g, _: jax.tree.map(lambda a: a * g["b"], g))
    assert sl.FromOptax(common, 0.1).update_on(problem.layout, jnp.float32).coupling is not None


def test_a_value_that_nothing_uses_couples_nothing():
    @jax.jit
    def scaled(g):
        norm = jnp.linalg.norm(g)
        return 0.1 * g, norm

    unused = optax.stateless(lambda g, _: (jnp.linalg.norm(g), -scaled(g)[0])[1])
    used = optax.stateless(lambda g, _: -scaled(g)[0] * scaled(g)[1])
    layout = sl.Quadratic([1.0, 2.0]).layout
    assert sl.FromOptax(unused, 0.1).update_on(layout, jnp.float32) == (None, (), (2,), True)
    assert sl.FromOptax(used, 0.1).update_on(layout, jnp.float32).coupling is not None


@pytest.mark.slow
def test_parameters_of_several_leaves_run():
    layers = {"a": jnp.ones((2, 2)), "b": jnp.ones(())}
    problem = sl.Problem(lambda p: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p)), layers)
    both = sl.FromOptax(optax.multi_transform({"s": optax.sgd(0.1), "m": optax.adam(0.1)}, {"a": "s", "b": "m"}), 0.1)
    options = {"steps": 5, "paths": 500, "execution": SILENT}
    data = sl.compare(problem, UNIT, both, ["optimizer", QUADRATURE], **options).dataset
    mean, error = data.loss_mean.isel(step=-1), data.loss_sem.isel(step=-1)
    assert abs(float(mean[0] - mean[1])) < 5 * float(np.hypot(*error)) + 0.02 * float(mean[0])


LRS = [0.04, 0.02, 0.01, 0.005]
# Every SDE at one state with V ~ E g²: the optimizer at lr 0.1, and the parts whose noise the SDE has.
FAMILY = {
    "sgd": (sl.SGD(0.1, 0.1), sl.State(X), "x"),
    "signsgd": (sl.SignSGD(0.1, 0.1), sl.State(X), "x"),
    "rmspropw": (sl.RMSpropW(0.1, 0.8, weight_decay=0.1), sl.State(X, v=GRADIENT**2 + 1.5), "x"),
    "adamw": (
        sl.AdamW(0.1, 0.5, 0.8, weight_decay=0.1),
        sl.State(X, GRADIENT / 2 + 1, GRADIENT**2 + 1.5, CONVERGED),
        "xm",
    ),
    "momentum": (sl.Momentum(0.1, 0.5, weight_decay=0.1), sl.State(X, M), "xm"),
    "nesterov": (sl.Momentum(0.1, 0.5, nesterov=True), sl.State(X, M), "xm"),
    "signum": (sl.Signum(0.1, 0.5), sl.State(X, M), "xm"),
    "lion": (sl.Lion(0.1, 0.5, 0.5), sl.State(X, M), "xm"),
}
TABLE = [(name, model) for name, (spec, _, _) in FAMILY.items() for model in sdes_of(spec)]


@functools.cache
def sdes_at_the_state():
    """Drift and noise of every SDE of TABLE at every rate, one Brownian motion or node after another: one program."""
    with jax.enable_x64(True):
        problem = sl.Quadratic(GRADIENT / X, X)
        unit, t = UNIT.bind(problem), Instant(jnp.asarray(0), jnp.asarray(0.0))

        def of(name, model, lr, y):
            spec, _, noisy = FAMILY[name]
            sde = build_sde(model, problem, unit, spec.at_lr(lr))
            drift = sde.drift(t, y, jnp.asarray(GRADIENT))
            rows = np.eye(max(math.prod(sde.noise_shape) // len(X), 1))  # Brownian motions of one coordinate
            weights, step = np.ones(len(rows)), t
            if sde.squares_increments:  # E over normal increments of a step η, by Gauss-Hermite quadrature
                nodes, weights = np.polynomial.hermite_e.hermegauss(8)
                rows, weights, step = nodes[:, None] * np.sqrt(lr), weights / weights.sum() / lr, t._replace(share=1.0)
            motions = [np.outer(row, np.ones(len(X))).reshape(sde.noise_shape) for row in rows]
            moved = [sde.apply_diffusion(step, y, jnp.asarray(GRADIENT), jnp.asarray(motion)) for motion in motions]
            noises = [
                [np.sqrt(w) * jnp.broadcast_to(getattr(m, part), X.shape) for part in noisy]
                for w, m in zip(weights, moved, strict=True)
            ]
            return {part: getattr(drift, part) for part in ("x", "m", "v") if getattr(y, part) is not None}, noises

        states = {name: jax.tree.map(np.asarray, state) for name, (_, state, _) in FAMILY.items()}
        look = jax.jit(
            lambda states: {
                f"{name} {model}": [of(name, model, lr, states[name]) for lr in LRS] for name, model in TABLE
            }
        )
        return jax.tree.map(np.asarray, look(states))


@functools.cache
def optimizer_at_the_state(name, lr):
    spec, state, _ = FAMILY[name]
    return sl.coefficients(spec.at_lr(lr), GRADIENT, UNIT, state)


def differences(name, model, index):
    """Largest differences of an SDE from its optimizer: in the drift, and in the covariance over η, by coordinate."""
    (drift, noises), noisy = sdes_at_the_state()[f"{name} {model}"][index], FAMILY[name][2]
    found = optimizer_at_the_state(name, LRS[index])
    away = max(np.abs(drift[part] - found.drift[part]).max() for part in found.names)
    i = [found.names.index(part) for part in noisy]
    covariance = np.einsum("rad,rbd->dab", noises, noises) - found.covariance[:, i][:, :, i]
    return away, np.abs(covariance).max() / LRS[index]


@pytest.mark.parametrize(("name", "model"), TABLE)
def test_every_sde_has_the_coefficients_of_its_optimizer_to_first_order(name, model):
    """Drift, and Cov(D)/η² of the parts that the SDE gives noise, differ by O(η); those of the earlier SDEs do not."""
    drift, covariance = np.array([differences(name, model, index) for index in range(len(LRS))]).T

    def slope(errors):
        return np.polyfit(np.log(LRS), np.log(errors), 1)[0]

    if model == "malladi2022":
        assert abs(slope(drift)) < 0.1
        return
    if model == "sde" and name not in ("rmspropw", "adamw"):  # these are derived as the moments of one update
        assert drift.max() < 1e-9
    else:
        assert 0.9 < slope(drift) < 1.15
    assert covariance.max() < 1e-9 or slope(covariance) > 0.85


STEPPER = {
    "rmspropw": (*CASES["rmspropw"], 1e-4),
    "signsgd": (sl.SignSGD(LR, 0.1), sl.State(X), 1e-4),
    "adamw": (*CASES["adamw"], 1e-4),
    "first adam step": (*CASES["first adam step"], 1e-4),
    "lion": (*CASES["lion"], 2e-4),
    "rmspropw, steep": (*CASES["rmspropw, steep"], 5e-3),
}


@pytest.mark.parametrize(("name", "law"), under_laws(STEPPER))
def test_the_stepper_has_these_coefficients(name, law):
    """In float32, relative to √E D². Without its bisection a jump is off by up to 5e-2 (half a node's weight)."""
    optimizer, state, tolerance = STEPPER[name]
    found = exact(name, law)
    problem, noise, one = bound_case(optimizer, state, NOISES[law])
    stepper = Quadrature(Discrete(problem, noise, optimizer, Start(problem.start), problem.layout))

    @jax.jit
    def look(y, gradient):
        moments = stepper.moments(y, gradient[:, None])
        motions = [jnp.zeros((*stepper.noise_shape, 1)).at[row].set(1.0) for row in range(stepper.noise_shape[0])]
        return moments.mean[..., 0], jnp.stack([moments.noise(dW)[..., 0] for dW in motions])

    mean, columns = (np.asarray(a, float) for a in look(one, GRADIENT.astype(np.float32)))
    mean = mean / LR
    covariance = np.einsum("rad,rbd->dab", columns, columns) / LR
    expected = np.stack([found.drift[part] for part in found.names])
    size = np.sqrt(np.einsum("daa->ad", found.covariance) / LR + expected**2)
    assert (np.abs(mean - expected) / size).max() < tolerance
    off = np.abs(covariance - found.covariance) / (LR * np.einsum("ad,bd->dab", size, size))
    assert off.max() < tolerance


def test_the_noise_that_is_shared_is_that_of_the_gradient():
    """Of SGD all of it: at Δt = η the SDE moves as the optimizer does, path by path."""
    problem = sl.Quadratic([1.0, 3.0], start=[1.0, -1.0])
    options = {"steps": 20, "paths": 50, "record": sl.Record(keep_paths=5), "execution": SILENT}
    data = sl.compare(problem, UNIT, sl.SGD(0.1, 0.1), ["sde", QUADRATURE], **options).dataset
    paths = data.path_x.transpose("model", ...)
    np.testing.assert_allclose(paths[0], paths[1], atol=2e-5)


@pytest.mark.parametrize(
    ("name", "substeps"),
    [
        pytest.param("rmspropw", 3, marks=pytest.mark.slow),
        pytest.param("adamw", 1, marks=pytest.mark.study),
        pytest.param("lion", 1, marks=pytest.mark.slow),
    ],
)
def test_quadrature_sampling_and_the_optimizer_agree(name, substeps):
    """Final mean loss within 5 standard errors and 3 % (what η = 0.02 leaves; sampling adds 1/K in v)."""
    optimizer = {
        "rmspropw": sl.RMSpropW(0.02, 0.95),
        "adamw": sl.AdamW(0.02, 0.9, 0.95, v0="second-moment"),
        "lion": sl.FromOptax(optax.lion, 0.02),
    }[name]
    ways = ({"coefficients": "quadrature"}, {"samples": 16})
    models = ["optimizer", *(sl.Empirical(substeps=substeps, **way) for way in ways)]
    data = sl.compare(
        sl.Quadratic([1.0, 2.0, 4.0], start=[1.0, -1.0, 0.5]),
        UNIT,
        optimizer,
        models,
        steps=60,
        paths=2000,
        record=sl.Record(every=60),
        execution=SILENT,
    ).dataset
    final = data.isel(step=-1)
    mean, sem = (final[v].sel(model="optimizer").item() for v in ("loss_mean", "loss_sem"))
    for label in data.model.values:
        other, error = (final[v].sel(model=label).item() for v in ("loss_mean", "loss_sem"))
        assert abs(other - mean) < 5 * math.hypot(sem, error) + 0.03 * mean


STUDIED = {
    "sgd": (sl.SGD(0.1, 0.1), 1000),
    "rmspropw": (sl.RMSpropW(0.1, 0.8, weight_decay=0.1), 4000),
    "adamw": (sl.AdamW(0.1, 0.5, 0.8, weight_decay=0.1, v0="second-moment"), 4000),
}


@pytest.mark.study
@pytest.mark.parametrize("name", STUDIED)
def test_the_empirical_sde_is_of_weak_order_one(name, measured):
    """As `test_order` has it for the closed forms, on the same quadratic; of the slope the standard error is 0.05."""
    optimizer, paths = STUDIED[name]
    problem = sl.Quadratic([1.0, 2.0, 5.0], start=[2.0, 1.0, -1.0])
    study = sl.weak_order(problem, UNIT, optimizer, LRS, 1.6, ["empirical"], paths=paths, substeps=8)
    row = study.slopes().loc[("empirical", "resolved", "all")]
    measured("slope", float(row.slope), "1 ± 0.2")
    assert row.slope == pytest.approx(1, abs=0.2)


@pytest.mark.slow
def test_a_study_takes_any_coordinate_wise_optimizer():
    """Momentum of optax at fixed ρ: the empirical SDE is all there is, and the default."""
    optimizer = sl.FromOptax(lambda lr: optax.chain(optax.ema(1 - 5 * lr, debias=False), optax.sgd(lr)), 0.1)
    study = sl.weak_order(sl.Quadratic([2.0], start=[1.5]), UNIT, optimizer, [0.1, 0.05, 0.025], 0.8, paths=500)
    assert study.slopes().loc[("empirical", "resolved", "all")].slope == pytest.approx(1, abs=0.3)
    line = sl.Quadratic([2.0], start=[1.5])
    with pytest.raises(ValueError, match="it supports only the model 'sde'"):
        sl.weak_order(line, UNIT, sl.SignSGD(0.1), [0.1, 0.05, 0.025], 0.8, ["empirical"], method="kernel")


def test_states_that_cannot_be_are_said():
    noise = sl.GaussianNoise(1.0)
    with pytest.raises(ValueError, match=r"state.v: got -1.0; second moments are 0 or greater"):
        sl.coefficients(sl.AdamW(0.1), [1.0], noise, sl.State(None, [1.0], [-1.0], 3))
    with pytest.raises(ValueError, match=r"state.m: adam has no such accumulator; give the state that its"):
        sl.coefficients(sl.FromOptax(optax.adam, 0.1), [1.0], noise, sl.State([0.0], [5.0], [1.0], 3))
    logarithm = optax.stateless(lambda updates, _: jax.tree.map(jnp.log, updates))
    with pytest.raises(ValueError, match=r"the update of coordinate 0 is not finite for some gradients"):
        sl.coefficients(sl.FromOptax(logarithm, 0.1), [1.0], noise)
