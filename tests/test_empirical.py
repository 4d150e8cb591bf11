"""Any optax transformation as an optimizer, and the SDE with the coefficients of its own update."""

import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import sdelens as sl
from sdelens.cases.case import Case
from sdelens.core.random import Stream, stream_key
from sdelens.integrate import Discrete, Empirical
from sdelens.integrate._positive import lognormal
from sdelens.integrate.empirical import _Sums
from sdelens.optimizers._accumulators import BOUND, POSITIVE, leaves_of
from sdelens.shell.case_options import SubjectOptions
from tests.checks import stepped

RNG = np.random.default_rng(5)
TREE = {"w": jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32), "b": jnp.asarray(RNG.normal(size=4), jnp.float32)}
SCALE = np.linspace(0.5, 3, 16)


def tree_problem():
    """A quadratic in a pytree of a matrix and a vector, with a leaf that is no parameter."""
    model = {**TREE, "name": "static"}
    return sl.Problem(lambda p: 0.5 * (p["w"] ** 2).sum() + (p["b"] ** 2).sum(), model, infimum=0.0)


def quadratic():
    return sl.Quadratic([0.5, 1.0, 2.0, 5.0], start=1.0), sl.GaussianNoise([1.0, 0.5, 1.0, 2.0])


def stepper(kind, problem, noise, optimizer, **options):
    case = Case.checked(problem, noise, optimizer, None, 10)
    return kind(case.problem, case.noise, case.optimizer, case.start, problem.layout, **options)


def began(stepper, paths):
    stream = Stream(jnp.asarray(stream_key(3, "test")), jnp.arange(paths, dtype=jnp.uint32))
    wide = lambda a: a if jnp.ndim(a) != 1 else jnp.broadcast_to(a[:, None], (a.shape[0], paths))  # noqa: E731
    return jax.tree.map(wide, stepper.init(stream)), stream


TRANSFORMATIONS = {
    "clipped adam": lambda: optax.chain(optax.clip_by_global_norm(0.7), optax.adam(0.1)),
    "cosine": lambda: optax.sgd(optax.cosine_decay_schedule(0.1, 5), momentum=0.9, nesterov=True),
    "injected": lambda: optax.inject_hyperparams(optax.rmsprop)(learning_rate=optax.linear_schedule(0.1, 0.0, 4)),
    "masked": lambda: optax.chain(
        optax.masked(optax.trace(0.5), {"w": True, "b": False, "name": None}), optax.scale(-0.1)
    ),
    "partition": lambda: optax.multi_transform(
        {"a": optax.adam(0.1), "s": optax.sgd(0.2)}, {"w": "a", "b": "s", "name": None}
    ),
    "muon": partial(optax.contrib.muon, 0.05),
    "accumulated": lambda: optax.MultiSteps(optax.adam(0.1), 3),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_paths_are_optax_runs_of_their_own(name):
    """Path by path on the problem's pytree, whatever couples the leaves."""
    problem, tx = tree_problem(), TRANSFORMATIONS[name]()
    discrete = stepper(Discrete, problem, sl.GaussianNoise(1.0), sl.FromOptax(tx, lr=0.1))
    gradients = (RNG.normal(size=(7, problem.dim, 2)) * SCALE[:, None]).astype(np.float32)
    state, _ = began(discrete, 2)

    @eqx.filter_jit
    def ours(state, gradients):
        return jax.lax.scan(lambda y, g: (discrete.advance(y, g), None), state, gradients)[0]

    @jax.jit
    def theirs(gradients):
        def update(loop, gradient):
            updates, own = tx.update(split(gradient), loop[1], loop[0])
            return (optax.apply_updates(loop[0], updates), own), None

        params = split(problem.start)
        params, _ = jax.lax.scan(update, (params, tx.init(params)), gradients)[0]
        return problem.layout.ravel({**params, "name": None})

    def split(flat):
        return eqx.filter(problem.layout.unravel(jnp.asarray(flat)), eqx.is_array)

    x = ours(state, gradients).x
    for path in range(2):
        np.testing.assert_allclose(x[:, path], theirs(gradients[:, :, path]), atol=2e-6)


def leaves(state):
    return np.concatenate(
        [np.asarray(state.x), *(np.asarray(a, float).reshape(-1, state.x.shape[1]) for a in state.inner)]
    )


@pytest.mark.parametrize(("samples", "substeps"), [(8, 1), (2, 1), (3, 4)])
def test_a_step_has_the_mean_and_covariance_of_the_optimizers(samples, substeps):
    """Of x and m together, coordinates coupled by clipping; over substeps the covariance adds up to that of a step."""
    problem, noise = quadratic()
    tx = optax.chain(optax.clip_by_global_norm(4.0), optax.trace(0.5), optax.scale(-1e-3))
    paths = 100_000
    optimizer = sl.FromOptax(tx, lr=0.01)
    moments = []
    for kind, options in ((Discrete, {}), (Empirical, dict(samples=samples, substeps=substeps))):
        own = stepper(kind, problem, noise, optimizer, **options)
        state, stream = began(own, paths)
        stepped = leaves(eqx.filter_jit(own.step)(jnp.asarray(0), state, own.evaluate(state.x)[1], stream))
        steps = (stepped - leaves(state)) / np.array([1e-3] * 4 + [1.0] * 4)[:, None]
        moments.append((steps.mean(axis=1), np.cov(steps), np.cov(steps**2)))
    (mean, cov, _), (mean2, cov2, _) = moments
    # Substeps see a state that has moved: of x by 1e-3, of m by its decay, half of it gone within a step.
    if substeps == 1:
        spread = np.sqrt(np.diag(cov) / paths)
        assert (np.abs(mean2 - mean) < 4.5 * np.sqrt(2) * spread).all()
        # Of the standard error of a covariance; that of the scatter of K samples has heavier tails than the normal one.
        size = np.sqrt(np.outer(np.diag(cov), np.diag(cov)) * (2 + 6 / samples) * 2 / paths)
        assert (np.abs(cov2 - cov) < 5 * size).all()
    else:
        still = optax.chain(optax.clip_by_global_norm(4.0), optax.scale(-1e-3))
        own = stepper(Empirical, problem, noise, sl.FromOptax(still, lr=0.01), samples=samples, substeps=substeps)
        state, stream = began(own, paths)
        stepped = eqx.filter_jit(own.step)(jnp.asarray(0), state, own.evaluate(state.x)[1], stream).x
        cov2 = np.cov((np.asarray(stepped) - np.asarray(state.x)) / 1e-3)
        size = np.sqrt(np.outer(np.diag(cov)[:4], np.diag(cov)[:4]) * 4 * 2 / paths)
        assert (np.abs(cov2 - cov[:4, :4]) < 5 * size + 0.01 * np.abs(cov2)).all()


def test_lognormal_noise_keeps_mean_and_variance_and_the_sign():
    mean, sd = jnp.float32(0.3), 0.45
    noise = sd * jax.random.normal(jax.random.key(0), (400_000,))
    drawn = np.asarray(lognormal(jnp.full_like(noise, mean), noise, jnp.full_like(noise, sd**2)), np.float64)
    assert drawn.min() > 0
    assert abs(drawn.mean() - 0.3) < 4.5 * sd / math.sqrt(drawn.size)
    # Kurtosis of this log-normal law: w⁴ + 2w³ + 3w² − 3 with w = 1 + sd²/mean².
    w = 1 + (sd / 0.3) ** 2
    kurtosis = w**4 + 2 * w**3 + 3 * w**2 - 3
    assert abs(drawn.var() - sd**2) < 4.5 * sd**2 * math.sqrt((kurtosis - 1) / drawn.size)
    zero = jnp.zeros(3)
    np.testing.assert_array_equal(lognormal(zero, zero, zero), 0)


def test_means_of_squares_stay_positive_from_zero():
    """Normal noise would make a first v of one or two squares negative, and the next step explode."""
    problem, noise = quadratic()
    optimizer = sl.FromOptax(optax.rmsprop(1e-2, decay=0.9), lr=1e-2)
    ways = [stepper(Empirical, problem, noise, optimizer, accumulators=a) for a in ("update", "lognormal")]
    for states in stepped(ways, 5, range(4096)):
        assert states.inner[0][1:].min() > 0
        assert np.abs(states.x).max() < 2


def test_squares_move_as_the_update_at_a_normal_gradient():
    """Under normal noise v's step has the mean of the optimizer's, and the covariance with m's."""
    problem, noise, paths = sl.Quadratic([1.0], start=1.0), sl.GaussianNoise(0.7), 200_000
    optimizer = sl.FromOptax(optax.chain(optax.trace(0.5), optax.scale_by_rss(0.3), optax.scale(-1e-3)), lr=0.01)
    found = []
    for kind, options in ((Discrete, {}), (Empirical, {"accumulators": "update"})):
        own = stepper(kind, problem, noise, optimizer, **options)
        state, stream = began(own, paths)
        m, v = (
            np.asarray(a[0], np.float64)
            for a in eqx.filter_jit(own.step)(0, state, own.evaluate(state.x)[1], stream).inner
        )
        found.append((v.mean(), v.std(), np.cov(m, v)[0, 1]))
    (mean, sd, cov), (mean2, _, cov2) = found
    assert mean == pytest.approx(0.3 + 1.49, abs=4.5 * sd / math.sqrt(paths))
    assert mean2 == pytest.approx(0.3 + 1.49, abs=5 * sd / math.sqrt(paths))
    # Cov(g, g²) = 2∇f σ²; of K samples the fourth moments are up to 1 + 2/K as large.
    assert cov2 == pytest.approx(2 * 0.49, abs=5 * math.sqrt(1.25) * 0.7 * sd / math.sqrt(paths))
    assert cov == pytest.approx(2 * 0.49, abs=5 * 0.7 * sd / math.sqrt(paths))


def test_counters_advance_once_an_optimizer_step():
    problem, noise = quadratic()
    own = stepper(Empirical, problem, noise, sl.FromOptax(optax.adam(1e-2), lr=1e-2), substeps=3, samples=2)
    (states,) = stepped([own], 4, range(5))
    counts = [a for a in states.inner if jnp.issubdtype(a.dtype, jnp.integer)]
    assert len(counts) == 1
    np.testing.assert_array_equal(counts[0], np.broadcast_to(np.arange(5)[:, None, None], (5, 1, 5)))


def test_random_keys_of_a_transformation_differ_from_path_to_path_and_sample_to_sample():
    problem = sl.Quadratic([1.0], start=1.0)
    noise = sl.GaussianNoise(1e-6)
    optimizer = sl.FromOptax(optax.noisy_sgd(0.1, eta=1.0, gamma=0.0, key=jax.random.key(1)), lr=0.1)
    spreads = []
    for kind in (Discrete, Empirical):
        own = stepper(kind, problem, noise, optimizer)
        state, stream = began(own, 20_000)
        x = np.asarray(eqx.filter_jit(own.step)(jnp.asarray(0), state, own.evaluate(state.x)[1], stream).x)
        spreads.append(x.std())
    assert spreads[0] == pytest.approx(0.1, rel=4.5 / math.sqrt(2 * 20_000))
    assert spreads[1] == pytest.approx(0.1, rel=4.5 * math.sqrt(2 + 6 / 8) / 2 / math.sqrt(20_000))


def test_the_table_of_squares_names_fields_that_optax_has():
    known = {}
    for module in (optax, optax.contrib, optax._src.transform, optax._src.factorized):
        known |= {name: kind for name, kind in vars(module).items() if hasattr(kind, "_fields")}
    for module in ("_dog", "_dadapt_adamw", "_prodigy", "_momo", "_madgrad", "_cocob", "_ademamix", "_schedule_free"):
        known |= {n: k for n, k in vars(getattr(optax.contrib, module)).items() if hasattr(k, "_fields")}
    for name, fields in {**POSITIVE, **BOUND}.items():
        assert set(fields) <= set(known[name]._fields), name


def test_laws_of_the_leaves():
    params = {"w": jnp.ones(3)}
    by_path = {leaf.path: leaf.law for leaf in leaves_of(optax.adam(1.0).init(params))}
    assert by_path == {"[0].count": "counter", "[0].mu['w']": "free", "[0].nu['w']": "positive"}
    centred = [leaf.law for leaf in leaves_of(optax.rmsprop(1.0, centered=True).init(params))]
    assert centred == ["bound", "bound"]
    noisy = [leaf.law for leaf in leaves_of(optax.noisy_sgd(1.0, key=jax.random.key(0)).init(params))]
    assert noisy == ["counter", "key"]


SQUARES = [  # a mean of squares by itself, and one with a bound in common
    sl.AdamW(0.01, b2=0.99, weight_decay=0.1),
    sl.FromOptax(lambda lr: optax.rmsprop(lr, decay=0.9, centered=True, initial_scale=1.0), 0.01, name="centred"),
]
OTHERS = [sl.SGD(0.01), sl.SignSGD(0.01), sl.RMSpropW(0.01, weight_decay=0.1), sl.FromOptax(optax.lion, 0.01)]


def assert_tracks(optimizer, confidence, **sizes):
    result = sl.compare(*quadratic(), optimizer, ["optimizer", "empirical"], **sizes)
    row = result.errors(confidence=confidence).loc["empirical"]
    assert row.error_upper < 0.02
    assert row.error_lower < 0.003
    assert row.diverged == 0
    assert row.spread_lower < 1.03
    assert row.spread_upper > 0.97


@pytest.mark.parametrize("optimizer", SQUARES, ids=lambda o: o.name)
def test_the_empirical_sde_tracks_in_mean_and_spread(optimizer):
    """All limits at 0.9999: at most 2 × 4 false alarms in 10 000 seeds. The sizes are compiled the quick way."""
    assert_tracks(optimizer, 0.9999, steps=60, paths=640, record=sl.Record(every=10))


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(
            o, id=o.name, marks=pytest.mark.slow if o.name in ("adamw", "signsgd", "lion") else pytest.mark.study
        )
        for o in [*SQUARES, *OTHERS]
    ],
)
def test_the_empirical_sde_tracks_for_long_in_mean_and_spread(optimizer):
    assert_tracks(optimizer, 0.99999, steps=200, paths=4096, record=sl.Record(every=10))


@pytest.mark.parametrize(
    ("confidence", "sizes"),
    [
        pytest.param(0.9999, dict(steps=60, paths=640, record=sl.Record(every=10)), id="few paths"),
        pytest.param(
            0.99999, dict(steps=100, paths=4096, record=sl.Record(every=10)), marks=pytest.mark.slow, id="many paths"
        ),
    ],
)
def test_the_noise_of_squares_is_what_the_spread_needs(confidence, sizes):
    """Without it v forgets how large the gradient was, and the spread comes out too large, as in the papers' SDEs."""
    models = {"optimizer": "optimizer", "with": "empirical", "drift": sl.Empirical(accumulators="drift")}
    optimizer = sl.AdamW(0.01, b2=0.9)
    rows = sl.compare(*quadratic(), optimizer, models, **sizes).errors(confidence=confidence)
    assert rows.spread["drift"] > 1.15
    assert rows.spread_lower["drift"] > rows.spread_upper["with"]


def test_mini_batches_and_random_starts():
    data = (jnp.asarray(RNG.normal(size=(16, 3)), jnp.float32), jnp.arange(16.0) / 16)
    problem = sl.Problem(lambda w, batch: (batch[0] @ w - batch[1]) ** 2, jnp.zeros(3), data)
    optimizer = sl.FromOptax(optax.lion, 1e-2)
    start = lambda key: 0.1 * jax.random.normal(key, (3,))  # noqa: E731
    options = {"steps": 50, "paths": 512, "start": start, "record": sl.Record(every=10)}
    result = sl.compare(problem, sl.MinibatchNoise(4), optimizer, **options)
    assert result.models == ["optimizer", "empirical"]
    row = result.errors(confidence=0.9999).loc["empirical"]
    assert row.error_lower < 0.01
    assert row.spread_lower < 1.05
    assert row.spread_upper > 0.95


def test_an_sde_of_ones_own():
    """A subclass with the equation of ours gives the same numbers as ours; what it is called is not in the seed."""

    class Own(sl.OptimizerSDE):
        def drift(self, t, y, grad):
            return sl.State(-grad)

        def apply_diffusion(self, t, y, grad, dW):
            return sl.State(-jnp.sqrt(self.optimizer.lr) * self.noise.apply_root(y.x, dW))

    models = {"optimizer": "optimizer", "sde": "sde", "own": Own, "built": partial(Own)}
    result = sl.compare(*quadratic(), sl.SGD(0.1), models, steps=20, paths=64)
    for name in ("own", "built"):
        np.testing.assert_allclose(
            result.dataset.loss_mean.sel(model=name), result.dataset.loss_mean.sel(model="sde"), rtol=1e-5
        )
    assert not result.dataset.attrs["rerunnable"]
    listed = sl.compare(*quadratic(), sl.SGD(0.1), ["optimizer", Own], steps=20, paths=64)
    assert listed.models == ["optimizer", sl.ClosedForm(Own).label]
    np.testing.assert_array_equal(listed.dataset.loss_mean.isel(model=1), result.dataset.loss_mean.sel(model="own"))
    with pytest.raises(TypeError, match=r"models: .*returned int; it must return an sl.SDE"):
        sl.compare(*quadratic(), sl.SGD(0.1), ["optimizer", lambda p, n, o: 3], steps=2, paths=2)


def complex_transformation():
    return optax.GradientTransformation(
        lambda params: {"phase": jnp.zeros(2, jnp.complex64)}, lambda updates, state, params=None: (updates, state)
    )


@pytest.mark.parametrize(
    ("transformation", "options", "message"),
    [
        (3.0, {}, r"transformation: got float; give an optax transformation"),
        (lambda lr: lr, {}, r"transformation: the function returned float"),
        (
            lambda lr: optax.adam(lr, foo=3),
            {},
            r"transformation: the function fails when it is called with lr = 0.1 .*foo",
        ),
        (optax.polyak_sgd(1.0), {}, r"fails .*'value'.*further inputs only grad_fn and obj_fn are supported"),
        (complex_transformation(), {}, r"a leaf \['phase'\] of type complex64"),
        (optax.adam(0.1), {"positive": ["mew"]}, r"positive: got 'mew'; choose one of .*'count', 'mu', 'nu'"),
        (optax.adam(0.1), {"positive": "mu"}, r"positive: got the text 'mu'"),
    ],
    ids=["number", "factory", "arguments", "value", "complex", "positive", "text"],
)
def test_what_cannot_be_an_optimizer_is_said(transformation, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        sl.compare(*quadratic(), sl.FromOptax(transformation, 0.1, **options), steps=3, paths=4)


def test_what_such_an_optimizer_cannot_do_is_said():
    problem, noise = quadratic()
    optimizer = sl.FromOptax(optax.adam(0.1), 0.1)
    with pytest.raises(
        ValueError,
        match=r"models: got 'sde', which does not exist for transformation; choose from optimizer, empirical",
    ):
        sl.compare(problem, noise, optimizer, ["optimizer", "sde"], steps=3, paths=4)
    with pytest.raises(TypeError, match=r"optimizer: got transformation, which this part of the theory does not cover"):
        sl.theory.predict(problem, noise, optimizer, steps=3)
    with pytest.raises(ValueError, match=r"build FromOptax from a function of lr"):
        optimizer.at_lr(0.05)
    with pytest.raises(ValueError, match=r"samples: got 1; it must be at least 2|samples"):
        sl.compare(problem, noise, optimizer, [sl.Empirical(samples=1)], steps=3, paths=4)
    with pytest.raises(ValueError, match=r"start.m: transformation has no such accumulator"):
        sl.compare(problem, noise, optimizer, steps=3, paths=4, start=sl.State(None, m=jnp.zeros(4)))
    with pytest.raises(ValueError, match=r"optimizer: transformation has no SDE in closed form"):
        sl.to_diffrax(problem, noise, optimizer)
    galore = sl.FromOptax(optax.contrib.galore(0.1, rank=2), 0.1)
    matrix = sl.Problem(lambda p: (p["w"] ** 2).sum(), TREE)
    with pytest.raises(ValueError, match=r"factorises matrices \(svd\).*give execution=sl.Execution\(devices=1\)"):
        sl.compare(matrix, sl.GaussianNoise(1.0), galore, steps=3, paths=4)


def test_optax_optimizers_from_the_shell_s_options():
    """Objects alone; `tests/test_cli.py` runs the shell itself."""

    def made(optimizer, lr=None):
        return SubjectOptions(optimizer=optimizer, lr=lr).build().optimizer

    sgd = made("optax:sgd(lr=0.2, momentum=0.5, nesterov=True)")
    assert (sgd.name, sgd.lr) == ("sgd", 0.2)
    x = jnp.ones(3)
    updates, _ = sgd.to_optax().update(x, sgd.to_optax().init(x), x)
    np.testing.assert_allclose(updates, -0.2 * 1.5)
    assert sgd.at_lr(0.1).lr == 0.1
    assert made("optax:contrib.muon").name == "contrib.muon"
    for optimizer, lr, message in (
        ("optax:lyon", None, r"optimizer: got 'lyon'; choose one of .*Did you mean 'lion'"),
        ("optax:sgd(momentm=1)", None, r"optimizer: sgd: got 'momentm'.*Did you mean 'momentum'"),
        ("optax:sgd(0.1, 0.9)", None, r"optimizer: sgd has 0.9 without a name; write key=value"),
        ("optax:sgd(weight_decay=0.1)", None, r"optimizer: sgd: got 'weight_decay'"),
        ("optax:sgd(lr=0.2)", 0.3, r"lr: got 0.2 and 0.3; give one learning rate"),
        ("optax:sgd(schedule=warmup(10))", None, r"optimizer: sgd: got 'schedule'"),
        ("optax:sgd(b1=0.9)", None, r"optimizer: sgd: got 'b1'"),
        ("adamw(momentum=0.5)", None, r"optimizer: adamw: got 'momentum'"),
        ("optax:contrib.schedule_free", None, r"optax:contrib.schedule_free needs base_optimizer; .*sl.FromOptax"),
    ):
        with pytest.raises(ValueError, match=message):
            made(optimizer, lr)


def own_transformation(named):
    """RMSprop whose state is a dictionary, or whose randomness is a bare key."""

    def init(params):
        return {"v": jax.tree.map(jnp.zeros_like, params)} if named else jax.random.PRNGKey(0)

    def update(updates, state, params=None):
        if not named:
            own, state = jax.random.split(state)
            return jax.tree.map(lambda g: 0 * g + jax.random.normal(own, g.shape), updates), state
        v = jax.tree.map(lambda v, g: 0.9 * v + 0.1 * g**2, state["v"], updates)
        return jax.tree.map(lambda v, g: -0.1 * g / (jnp.sqrt(v) + 1e-8), v, updates), {"v": v}

    return optax.GradientTransformation(init, update)


def test_positive_names_keys_of_dictionaries_and_paths():
    problem, noise = quadratic()
    ways = [sl.FromOptax(own_transformation(True), 0.1, positive=[name]) for name in ("v", "['v']")]
    for states in stepped([stepper(Empirical, problem, noise, optimizer) for optimizer in ways], 4, range(1000)):
        assert states.inner[0][1:].min() > 0


@pytest.mark.parametrize("substeps", [1, 8])
def test_bare_keys_are_of_paths_and_substeps(substeps):
    """Over substeps the covariance of a transformation's own randomness is that of one step."""
    paths = 20_000
    problem, noise = sl.Quadratic([1.0]), sl.GaussianNoise(1e-6)
    optimizer = sl.FromOptax(own_transformation(False), 0.1)
    own = stepper(Empirical, problem, noise, optimizer, samples=2, substeps=substeps)
    state, stream = began(own, paths)
    moved = np.asarray(eqx.filter_jit(own.step)(jnp.asarray(0), state, own.evaluate(state.x)[1], stream).x)
    assert moved.var() - float(state.x.var()) == pytest.approx(1.0, abs=4.5 * math.sqrt(5 / paths))
    drawn = stepper(Discrete, problem, noise, optimizer)
    state, stream = began(drawn, paths)
    moved = np.asarray(eqx.filter_jit(drawn.step)(jnp.asarray(0), state, drawn.evaluate(state.x)[1], stream).x)
    assert moved.var() == pytest.approx(1.0, abs=4.5 * math.sqrt(2 / paths))


@pytest.mark.parametrize(
    "keys", [partial(jax.random.key, 0, impl="rbg"), lambda: jax.random.split(jax.random.key(0), 3)]
)
def test_other_keys_run(keys):
    transformation = optax.GradientTransformation(
        lambda params: {"key": keys()}, lambda updates, state, params=None: (jax.tree.map(jnp.negative, updates), state)
    )
    problem, noise = quadratic()
    both = [stepper(kind, problem, noise, sl.FromOptax(transformation, 0.1)) for kind in (Discrete, Empirical)]
    for states in stepped(both, 2, range(4)):
        assert np.isfinite(states.x).all()
        assert (np.diff(states.x, axis=0) != 0).all()


def test_leaves_of_few_digits_are_summed_with_more():
    """An accumulator in bfloat16 tracks as well as it can; sums over the samples are in float32."""
    few = jnp.full((2, 3), 1.0, jnp.bfloat16)
    sums = _Sums.zeros(few, True).add(few, few[:1]).add(few / 512, few[:1])
    np.testing.assert_array_equal(sums.steps, np.full((2, 3), 1 + 1 / 512, np.float32))  # bfloat16: 1
    np.testing.assert_array_equal(sums.weighted, sums.steps)
    np.testing.assert_array_equal(sums.squares, np.full((2, 3), 1 + 1 / 512**2, np.float32))
    optimizer = sl.FromOptax(lambda lr: optax.adam(lr, mu_dtype=jnp.bfloat16), 0.01)
    result = sl.compare(*quadratic(), optimizer, steps=50, paths=800, record=sl.Record(every=10))
    assert result.errors(confidence=0.9999).error_lower["empirical"] < 0.005


def test_an_sde_that_does_not_fit_its_state_is_said():
    class Narrow(sl.OptimizerSDE):
        def drift(self, t, y, grad):
            return sl.State(-grad[:1])

        def apply_diffusion(self, t, y, grad, dW):
            return sl.State(dW)

    class Bare(Narrow):
        def drift(self, t, y, grad):
            return -grad

    class Short(Narrow):
        def drift(self, t, y, grad):
            return sl.State(-grad)

    for kind, optimizer, message in (
        (Narrow, sl.SGD(0.1), r"Narrow.drift returns x of shape \(1, 3\) for a state of shape \(4, 3\)"),
        (Bare, sl.SGD(0.1), r"Bare.drift returns .*; it must return sl.State"),
        (Short, sl.Momentum(0.1), r"Short.drift returns no m, but the state has one"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            sl.compare(*quadratic(), optimizer, ["optimizer", kind], steps=2, paths=2)
    with pytest.raises(TypeError, match=r"models: got .*Short, which is not a list; give a list"):
        sl.compare(*quadratic(), sl.SGD(0.1), Short, steps=2, paths=2)
    with pytest.raises(ValueError, match=r"models: got .*Short'\]; give each model once, or give labels"):
        sl.compare(*quadratic(), sl.SGD(0.1), [Short, Short], steps=2, paths=2)


def test_options_that_would_do_nothing_are_said():
    """Each belongs to one kind of model, which alone takes it."""
    with pytest.raises(TypeError, match="'coefficients'"):
        sl.compare(*quadratic(), sl.SGD(0.1), steps=2, paths=2, coefficients="quadrature")
    with pytest.raises(TypeError, match="'accumulators'"):
        sl.ClosedForm("sde", accumulators="update")
    with pytest.raises(TypeError, match="'integrator'"):
        sl.Empirical(integrator="euler")
    with pytest.raises(ValueError, match=r"bias_correction: got 'exponential', but sgd has no bias correction"):
        sl.compare(*quadratic(), sl.SGD(0.1), [sl.ClosedForm(bias_correction="exponential")], steps=2, paths=2)
    with pytest.raises(TypeError, match=r"models: got the class Empirical itself; call it with its options"):
        sl.compare(*quadratic(), sl.SGD(0.1), ["optimizer", sl.Empirical], steps=2, paths=2)


def test_the_default_model_of_a_transformation_is_the_empirical_sde():
    assert sl.simulate(*quadratic(), sl.FromOptax(optax.sgd, 0.1), steps=2, paths=2).models == ["empirical"]
