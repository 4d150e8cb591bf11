"""Optimizers that ask for gradients of the same draw at other points, their SDEs, and games."""

import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import references
import sdelens as sl
from sdelens.cases.starts import Start
from sdelens.core.compilation import quick
from sdelens.core.names import optimizer_label
from sdelens.core.random import Stream, stream_key
from sdelens.integrate import Discrete, EulerMaruyama
from sdelens.optimizers import Query
from sdelens.sdes import Instant, build_sde
from sdelens.sdes._direction import mean_direction, turned_direction
from sdelens.shell.case_options import _optimizer
from tests import checks

LR, RHO, STEPS, PATH = 0.05, 0.2, 12, 4
RNG = np.random.default_rng(0)
DESIGN, LABELS = RNG.normal(size=(20, 3)), RNG.normal(size=20)
CURVATURE, SIGMA, START = np.array([0.5, 1.0, 3.0]), np.array([0.7, 1.5, 0.2]), np.array([1.0, -2.0, 0.5])


class Midpoint(sl.SGD):
    """SGD with the gradient at the middle of its step."""

    name: ClassVar[str] = "midpoint"

    def queried(self, x, inner, gradient, query):
        return query(x - 0.5 * self.lr * gradient)


def stepped(steppers, steps, paths):
    """As `checks.stepped`, compiled the quick way."""
    stream = Stream(jnp.asarray(stream_key(0, "test")), jnp.asarray(paths, jnp.uint32))
    run = quick(checks._stepped.__wrapped__, static_argnames="steps")
    return jax.tree.map(np.asarray, run(tuple(steppers), steps, stream))


def optax_sam(normalise, outer=optax.sgd):
    uphill = optax.chain(optax.contrib.normalize(), optax.sgd(RHO)) if normalise else optax.sgd(RHO)
    return sl.FromOptax(lambda lr: optax.contrib.sam(outer(lr), uphill, opaque_mode=True), LR, name="sam")


def adam(lr):
    return optax.adamw(lr, weight_decay=0.0)


OPTIMIZERS = {
    "sam": sl.SAM(sl.SGD(LR), RHO),
    "usam": sl.SAM(sl.SGD(LR), RHO, normalise=False),
    "extragradient": sl.Extragradient(sl.SGD(LR), RHO),
    "svrg": sl.SVRG(sl.SGD(LR), every=5),
    "midpoint": Midpoint(LR),
    "optax sam": optax_sam(True),
    "optax usam": optax_sam(False),
    "sam of adam": sl.SAM(sl.AdamW(LR), RHO),
    "optax sam of adam": optax_sam(True, adam),
    "sam of optax": sl.SAM(sl.FromOptax(adam, LR), RHO),
    "sophia": sl.FromOptax(lambda lr: optax.contrib.sophia(lr, update_interval=2), LR),
}


def problem_and_noise(batches):
    if not batches:
        return sl.Quadratic(CURVATURE, START), sl.GaussianNoise(SIGMA)

    def losses(x, data):
        return jnp.log(jnp.cosh(data[0] @ x - data[1]))

    return sl.Problem(losses, jnp.asarray(START), (DESIGN, LABELS)), sl.MinibatchNoise(4)


@functools.cache
def courses(batches):
    """The states of the optimizers in float64: one program."""
    with jax.enable_x64(True):
        problem, noise = problem_and_noise(batches)
        law, start = noise.bind(problem), Start(problem.start)
        chosen = {name: o for name, o in OPTIMIZERS.items() if not batches or name in ("sam", "svrg", "optax sam")}
        steppers = [Discrete(problem, law, o, start, problem.layout) for o in chosen.values()]
        return dict(zip(chosen, stepped(steppers, STEPS, [PATH, 7]), strict=True))


@functools.cache
def draws(batches):
    """The gradients of every step as NumPy functions of x, from the numbers that the step draws."""
    with jax.enable_x64(True):
        stream = Stream(jnp.asarray(stream_key(0, "test")), jnp.array([PATH], jnp.uint32))

        def drawn(k):
            own = stream.at(k)
            return own.integers(4, 20)[:, 0] if batches else own.normal(3, jnp.dtype(jnp.float64))[:, 0]

        numbers = np.asarray(jax.jit(jax.vmap(drawn))(jnp.arange(STEPS)))
    if batches:
        return [functools.partial(batch_gradient, i) for i in numbers]
    return [lambda x, z=z: CURVATURE * x + SIGMA * z for z in numbers]


def batch_gradient(index, x):
    return DESIGN[index].T @ np.tanh(DESIGN[index] @ x - LABELS[index]) / len(index)


@pytest.mark.parametrize("batches", [False, True], ids=["injected", "batches"])
def test_queries_are_of_the_same_draw(batches):
    gradients, full = draws(batches), batch_gradient if batches else (lambda _, x: CURVATURE * x)
    expected = {
        "sam": references.sam(START, gradients, LR, RHO, True),
        "usam": references.sam(START, gradients, LR, RHO, False),
        "extragradient": references.extragradient(START, gradients, LR, RHO),
        "svrg": references.svrg(START, gradients, functools.partial(full, np.arange(20)), LR, 5),
        "midpoint": references.queried(START, gradients, LR, lambda x, g: x - 0.5 * LR * g),
    }
    states = courses(batches)
    for name in expected.keys() & states.keys():
        np.testing.assert_allclose(states[name].x[1:, :, 0], list(expected[name]), rtol=1e-10, err_msg=name)
    for ours, theirs in (
        ("sam", "optax sam"),
        ("usam", "optax usam"),
        ("sam of adam", "optax sam of adam"),
        ("sam of adam", "sam of optax"),
    ):
        if ours in states and theirs in states:
            np.testing.assert_allclose(states[ours].x, states[theirs].x, rtol=1e-9, err_msg=theirs)


def test_the_curvature_of_sophia_is_that_of_the_draw():
    """Hutchinson's estimate is exact for a diagonal Hessian: ν is its running mean over every second step."""
    optimizer, state = OPTIMIZERS["sophia"], courses(False)["sophia"]
    problem = problem_and_noise(False)[0]
    names = [leaf.path for leaf in optimizer.leaves(problem.layout)]
    nu = state.inner[next(i for i, name in enumerate(names) if "nu" in name)]
    np.testing.assert_allclose(nu[-1, :, 0], CURVATURE * (1 - 0.99 ** (STEPS / 2)), rtol=1e-10)
    assert optimizer.queries(problem.layout)
    assert not sl.FromOptax(adam, LR).queries(problem.layout)


def test_sam_as_an_optax_transformation():
    """The gradient of a pytree's draw by `grad_fn`, as optax's own SAM asks for it."""
    gradient = lambda p, i: jax.tree.map(lambda a: a**3 + 1.0, p)  # noqa: E731
    params = {"a": np.array([1.0, -2.0]), "b": np.array(0.5)}
    found = []
    for transformation in (OPTIMIZERS["sam"].to_optax(), OPTIMIZERS["optax sam"].to_optax()):
        state = jax.jit(transformation.init)(params)
        update = jax.jit(lambda s, p, own=transformation: own.update(gradient(p, 0), s, p, grad_fn=gradient)[0])
        found.append(update(state, params))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), *found)


@pytest.mark.slow
def test_at_equal_steps_the_scheme_is_the_algorithm_where_the_field_is_linear():
    """At Δt = η, with normal noise, without a norm; on a game and on a quadratic, also with momentum."""
    game, quadratic = sl.QuadraticGame([1.0, 2.0], 0.1, start=0.5), sl.Quadratic(CURVATURE, START)
    cases = [
        (game, sl.Extragradient(sl.SGD(LR, 0.1), RHO)),
        (game, sl.Extragradient(sl.Momentum(LR, 0.8))),
        (quadratic, sl.SAM(sl.SGD(LR, 0.1), RHO, normalise=False)),
        (quadratic, sl.SAM(sl.Momentum(LR, 0.8, nesterov=True), RHO, normalise=False)),
    ]
    steppers = []
    for problem, optimizer in cases:
        law, start = sl.GaussianNoise(0.3).bind(problem), Start(problem.start)
        steppers.append(Discrete(problem, law, optimizer, start, problem.layout))
        steppers.append(EulerMaruyama(build_sde("sde", problem, law, optimizer), LR, start))
    states = stepped(steppers, 10, range(3))
    for algorithm, scheme in zip(states[::2], states[1::2], strict=True):
        np.testing.assert_allclose(algorithm.x, scheme.x, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("batches", [False, True], ids=["injected", "batches"])
def test_drift_and_diffusion_are_the_mean_and_the_covariance_of_the_update(batches):
    """At one point, ρ not small, from 131 072 draws of the update and of the SDE's step.

    Means are compared in units of the standard error of their difference (|z| < 4.5 in 9 numbers, false alarms below
    1e-4), variances to 3ρ², 12 %: the SDE lacks terms of O(ρ²), at most 10.4 % of a variance here (four seeds), and the
    standard error is 0.4 %.
    """
    if batches:
        problem, noise = problem_and_noise(True)
    else:
        problem, noise = sl.EmbeddedSaddle((-1.0, 2.0, 0.5), start=(0.4, 0.8, -0.5)), sl.GaussianNoise(0.5)
    law, paths = noise.bind(problem), 131_072
    stream = Stream(jnp.asarray(stream_key(1, "test")), jnp.arange(paths, dtype=jnp.uint32))
    chosen = [OPTIMIZERS["sam"], OPTIMIZERS["usam"], OPTIMIZERS["extragradient"]]

    @quick
    def found(x):
        x = jnp.broadcast_to(x[:, None], (x.shape[0], paths)) + 0.0 * stream.paths
        pairs = []
        for optimizer in chosen:
            start = Start(problem.start)
            discrete = Discrete(problem, law, optimizer, start, problem.layout)
            euler = EulerMaruyama(build_sde("sde", problem, law, optimizer), LR, start)
            grad = problem.evaluate(x)[1]
            state = jax.tree.map(lambda a: a[:, None] if a.ndim == 1 else a, discrete.init(stream))._replace(x=x)
            moved = discrete.step(jnp.asarray(0), state, grad, stream).x
            also = euler.step(jnp.asarray(0), euler.init(stream)._replace(x=x), grad, stream.at(99)).x
            pairs.append([(moved - x) / LR, (also - x) / LR])
        return jnp.asarray(pairs)

    values = np.asarray(found(problem.start.astype(jnp.float32)), np.float64)
    mean, variance = values.mean(-1), values.var(-1)
    z = (mean[:, 0] - mean[:, 1]) / np.sqrt(variance.sum(1) / paths)
    assert np.abs(z).max() < 4.5
    np.testing.assert_allclose(variance[:, 1], variance[:, 0], rtol=3 * RHO**2)


def test_the_mean_direction_equals_a_fine_quadrature():
    """In the integral over s, 4000 points of the midpoint rule in θ; the derivative by differences."""
    angle = (np.arange(4000) + 0.5) / 4000 * np.pi / 2

    def fine(mean, variance):
        s = np.tan(angle)[:, None] / np.sqrt((mean**2 + variance).sum())
        a = 1 / (1 + 2 * s**2 * variance)
        product = np.exp((0.5 * np.log(a) - s**2 * mean**2 * a).sum(1, keepdims=True))
        weight = 2 / np.sqrt(np.pi) * s[:1] / np.tan(angle[0]) / np.cos(angle)[:, None] ** 2 * np.pi / 8000
        return (weight * product * a * mean).sum(0)

    rng = np.random.default_rng(3)
    compute = jax.jit(lambda m, s, v: (mean_direction(m, s), turned_direction(m, s, v)))
    for size, ratio in ((1, 0.3), (1, 5.0), (3, 1.0), (3, 0.0), (60, 0.2), (60, 3.0)):
        mean, variance, v = ratio * rng.normal(size=size), rng.uniform(0.05, 4, size), rng.normal(size=size)
        mean, variance, v = (np.pad(a, (0, 60 - size)) for a in (mean, variance, v))
        found = [np.asarray(a)[:, 0] for a in compute(*(a[:, None].astype(np.float32) for a in (mean, variance, v)))]
        step = 1e-4
        turned = (fine(mean + step * v, variance) - fine(mean - step * v, variance)) / (2 * step)
        np.testing.assert_allclose(found[0], fine(mean, variance), atol=2e-3)
        np.testing.assert_allclose(found[1], turned, atol=2e-3 * max(np.abs(turned).max(), 1))


def test_sam_runs_its_sde_by_default_and_can_be_swept_over_rho():
    problem, noise = sl.Quadratic([0.5, 1.0, 2.0], start=1.0), sl.GaussianNoise(1.0)
    optimizer = sl.SAM(sl.SGD(0.02), RHO)
    sweep = sl.sweep(problem, noise, optimizer, over={"rho": [0.0, 0.2], "base.lr": [0.01, 0.02]}, steps=40, paths=256)
    assert list(sweep.dataset.model.values) == ["optimizer", "sde"]
    assert sweep.dataset.time.dims == ("base.lr", "step")
    assert (sweep.errors().error_lower < 0.01).all()
    assert sweep.dataset.attrs["rerunnable"] == 1


def test_descriptions_and_labels():
    optimizer = _optimizer("sam(adamw(lr=0.1, b2=0.9), 0.2, normalise=false)", None)
    assert optimizer == sl.SAM(sl.AdamW(0.1, b2=0.9), 0.2, normalise=False)
    assert optimizer_label(optimizer.describe()) == "USAM on AdamW"
    assert optimizer.at_lr(0.05).lr == 0.05
    assert optimizer.at_lr(0.05).rho == 0.2
    assert sl.Extragradient(sl.SGD(0.1)).at_lr(0.05).extrapolation == 0.05
    assert _optimizer("extragradient(sgd)", 0.3).lr == 0.3
    assert _optimizer("muon(0.1, b1=0.5)", None) == sl.Muon(0.1, b1=0.5)
    nested = sl.SAM(sl.Extragradient(sl.SGD(0.1)), 0.2)
    assert optimizer_label(nested.describe()) == "SAM on Extragradient on SGD"
    assert sl.models_of(nested) == ["optimizer", "empirical"]
    assert sl.models_of(Midpoint(0.1)) == ["optimizer", "empirical"]


def test_nested_wrappers_ask_the_gradients_of_the_outer_one():
    """Extragradient inside SAM extrapolates by SAM's gradient."""
    gradient = lambda x: CURVATURE[:, None] * x  # noqa: E731
    x, inner = START[:, None], sl.Extragradient(sl.SGD(LR), 0.1)
    outer = sl.SAM(inner, RHO, normalise=False)
    query = Query(gradient, gradient)
    layout = sl.Quadratic(CURVATURE, START).layout
    uphill = CURVATURE * (1 + RHO * CURVATURE)
    moved, _ = outer.step(x, sl.SGD(LR).to_optax().init(x), gradient(x), query, layout)
    expected = START * (1 - LR * uphill * (1 - 0.1 * uphill))
    np.testing.assert_allclose(moved[:, 0], expected, rtol=1e-6)
    transformation, params = outer.to_optax(), jnp.asarray(START)
    updates, _ = transformation.update(
        CURVATURE * params, transformation.init(params), params, grad_fn=lambda at, _: CURVATURE * at
    )
    np.testing.assert_allclose(params + updates, expected, rtol=1e-6)
    # Without noise, the reduction of a variance changes nothing: the full gradient at the snapshot is SAM's as well.
    reduced = sl.SAM(sl.SVRG(sl.SGD(LR), every=1), RHO, normalise=False)
    moved, _ = reduced.step(x, reduced.begin(sl.State(x), layout, None), gradient(x), query, layout)
    np.testing.assert_allclose(moved[:, 0], START * (1 - LR * uphill), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sl.SAM(sl.SGD(0.1), -0.1), "rho: got -0.1"),
        (lambda: sl.SAM(0.1), "base: got float; give an optimizer"),
        (lambda: sl.SAM(sl.SGD), "base: got the class SGD itself"),
        (lambda: sl.SAM(sl.SGD(0.1), 0.1, normalise=1), "normalise: got 1"),
        (lambda: sl.SVRG(sl.SGD(0.1), every=0), "every: got 0"),
        (lambda: _optimizer("sam(rho=0.1)", None), "sam needs an optimizer"),
        (lambda: sl.scaling.rescale(sl.SAM(sl.SGD(0.1)), 2), "gradients at other points"),
        (lambda: sl.coefficients(sl.SAM(sl.SGD(0.1)), [1.0], sl.GaussianNoise(1.0)), "gradients at other points"),
        (
            lambda: sl.theory.predict(sl.Quadratic([1.0]), sl.GaussianNoise(1.0), sl.SAM(sl.SGD(0.1)), steps=3),
            "got sam, which this part of the theory does not cover",
        ),
        (
            lambda: sl.estimate(
                sl.Quadratic([1.0]),
                sl.GaussianNoise(1.0),
                sl.SAM(sl.SGD(0.1)),
                [sl.Empirical(coefficients="quadrature")],
                steps=3,
            ),
            "gradients at other points of the same draw",
        ),
        (
            lambda: sl.compare(sl.Quadratic([1.0]), sl.StudentTNoise(1.0, 1.5), sl.SAM(sl.SGD(0.1)), steps=3),
            "has no finite variance",
        ),
        (lambda: sl.Game(1.0, (np.ones(1), np.ones(1))), "payoff: got 1.0"),
        (lambda: sl.Game(lambda x, y: x @ y, np.ones(2)), "start: got ndarray; give the pair"),
        (lambda: sl.Game(lambda x, y: x * y, (np.ones(2), np.ones(2))), "payoff: "),
        (lambda: sl.QuadraticGame(np.ones((2, 3)), start=np.ones(2)), "start: got 2 numbers"),
        (lambda: sl.QuadraticGame(np.ones((2, 3)), y_curvature=[1.0, 2.0]), "y_curvature: got 2 numbers"),
        (lambda: sl.QuadraticGame(np.eye(2), [[0.0, 1.0], [0.0, 0.0]]), "x_curvature: got a matrix that is not symmet"),
    ],
)
def test_what_cannot_be_is_refused_with_the_remedy(call, words):
    with pytest.raises((TypeError, ValueError), match=words.replace("(", r"\(")):
        call()


def test_the_field_of_a_game():
    """Both games agree, and x minimises what y maximises."""
    coupling, first, second = np.array([[1.0, -2.0, 0.5]]), 0.3, [0.1, 0.2, 0.4]
    start = np.array([1.0, 2.0, -1.0, 0.5])
    quadratic = sl.QuadraticGame(coupling, first, second, start)
    game = sl.Game(
        lambda x, y: 0.5 * first * x @ x + x @ coupling @ y - 0.5 * jnp.sum(jnp.asarray(second) * y**2),
        (start[:1], start[1:]),
    )
    field = np.concatenate([first * start[:1] + coupling @ start[1:], second * start[1:] - coupling.T @ start[:1]])
    for problem in (quadratic, game):
        loss, found = jax.jit(lambda z, own=problem: own.evaluate(z))(problem.start)
        np.testing.assert_allclose(found, field, rtol=1e-6)
        assert float(loss) == pytest.approx(0.5 * field @ field)
    distance = jax.jit(lambda z: quadratic.metric("distance", z))(quadratic.start)
    assert float(distance) == pytest.approx(start @ start)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["usam", "extragradient"])
def test_the_weak_order_is_one_at_fixed_rho(optimizer):
    """On a saddle, where ∇f is not linear, and on a bilinear game; 1 ± 0.15."""
    saddle, game = sl.EmbeddedSaddle(start=(0.3, 0.7)), sl.QuadraticGame(1.0, start=[1.0, 0.5])
    problem = saddle if optimizer == "usam" else game
    study = sl.weak_order(problem, sl.GaussianNoise(0.5), OPTIMIZERS[optimizer], [0.1, 0.05, 0.025], 0.8, times=2)
    assert study.slope == pytest.approx(1, abs=0.15)


def test_the_draw_of_an_sde_is_of_the_law_of_its_step():
    """Without noise at step 1 the rest of SAM's gradient vanishes there; at step 0 it does not."""
    problem = sl.Quadratic(CURVATURE, START)
    law = sl.ScheduledNoise(sl.GaussianNoise(SIGMA), [1.0, 0.0]).bind(problem)
    sde, x = build_sde("sde", problem, law, OPTIMIZERS["sam"]), problem.start[:, None]
    stream = Stream(stream_key(0, "draw"), jnp.arange(1, dtype=jnp.uint32))
    rests = [sde.at_step(k).compute_cache(x, CURVATURE[:, None] * x, stream)[1] for k in (0, 1)]
    assert np.abs(rests[0]).max() > 1e-3
    np.testing.assert_allclose(rests[1], 0, atol=1e-5)


def test_an_instant_without_a_draw_is_refused():
    """The drift of an SDE with a norm needs the draw that the integrators make, and diffrax does not."""
    problem = sl.Quadratic(CURVATURE, START)
    sde = build_sde("sde", problem, sl.GaussianNoise(SIGMA).bind(problem), OPTIMIZERS["sam"])
    y = sl.State(problem.start)
    with pytest.raises(ValueError, match="integrators compute"):
        sde.drift(Instant(jnp.asarray(0), jnp.asarray(0.0)), y, problem.start)


class Mixing(sl.SGD):
    name = "mixing"

    def queried(self, x, inner, gradient, query):
        return query(x - 0.1 * gradient / jnp.linalg.norm(gradient))


class Flat(sl.SGD):
    name = "flat"

    def queried(self, x, inner, gradient, query):
        return query(x)[0]


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (Mixing(0.05), "Mixing.queried mixes paths"),
        (sl.SAM(Mixing(0.05)), "Mixing.queried mixes paths"),
        (Flat(0.05), r"Flat.queried returns shape \(3,\) for a gradient of shape \(2, 3\)"),
    ],
)
def test_an_own_query_that_does_not_fit_is_refused(optimizer, message):
    with pytest.raises(ValueError, match=message):
        sl.compare(sl.Quadratic([1.0, 4.0], start=1.0), sl.GaussianNoise(1.0), optimizer, steps=2, paths=4)
