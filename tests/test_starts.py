"""Where runs start: given parameters, random ones, and saved accumulators; none of them divides by zero."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sdelens as sl
from sdelens.run.experiment import prepare
from sdelens.run.options import Options
from tests.checks import compilations, stepped

PROBLEM = sl.Quadratic([0.5, 1.0, 2.0], start=[1.0, -1.0, 2.0])
NOISE = sl.GaussianNoise([1.0, 0.5, 2.0])
OPTIMIZERS = {
    "sgd": sl.SGD(0.05, 0.1),
    "signsgd": sl.SignSGD(0.05, 0.1),
    "rmspropw": sl.RMSpropW(0.05, 0.9, 1e-6, 0.1),
    "rmspropw from 0": sl.RMSpropW(0.05, 0.9, 0.0, 0.1, v0="zero"),
    "adamw": sl.AdamW(0.05, 0.8, 0.9, 0.0, 0.1),
    "adamw settled": sl.AdamW(0.05, 0.8, 0.9, 1e-6, 0.1, v0="second-moment"),
}


def run(optimizer, model="optimizer", problem=PROBLEM, noise=NOISE, **options):
    sizes = {"steps": 5, "paths": 64, "record": sl.Record(keep_paths=64)}
    return sl.simulate(problem, noise, optimizer, model, **(sizes | options)).dataset


@pytest.mark.parametrize(
    ("name", "model"), [("sgd", "optimizer"), ("rmspropw", "malladi2022"), ("adamw settled", "sde")]
)
def test_random_starts_are_drawn_for_every_path(name, model):
    """Means of 4096 draws within 5 standard errors: 18 statistics, false alarms 1e-5."""
    start = lambda key: 1.0 + 0.5 * jax.random.normal(key, (3,))  # noqa: E731
    data = run(OPTIMIZERS[name], model, paths=4096, record=sl.Record(keep_paths=3), start=start)
    first = data.isel(model=0, step=0)
    assert (abs(first.x_mean - 1) < 5 * 0.5 / np.sqrt(4096)).all()
    assert (abs(first.x_var - 0.25) < 5 * 0.25 * np.sqrt(2 / 4096)).all()
    assert np.isfinite(data.path_x).all()
    assert not data.attrs["rerunnable"]


def test_random_starts_do_not_depend_on_chunks_or_devices():
    start = lambda key: jax.random.uniform(key, (3,))  # noqa: E731
    plain = run(OPTIMIZERS["adamw"], "sde", start=start)
    cut = run(OPTIMIZERS["adamw"], "sde", start=start, execution=sl.Execution(chunk=16, devices=1))
    np.testing.assert_allclose(cut.path_x, plain.path_x, rtol=1e-5, atol=1e-6)


def test_random_starts_share_programs_until_what_the_function_reads_changes():
    width = [1.0]
    start = lambda key: width[0] * jax.random.uniform(key, (3,))  # noqa: E731
    narrow = run(OPTIMIZERS["sgd"], start=start)
    with compilations() as again:
        run(OPTIMIZERS["sgd"], start=start)
    assert not again
    width[0] = 2.0
    wide = run(OPTIMIZERS["sgd"], start=start)
    np.testing.assert_allclose(wide.path_x.isel(step=0), 2 * narrow.path_x.isel(step=0), rtol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_model_divides_by_zero_at_the_start(name):
    """Coordinates without a gradient and hardly any noise, whose square float32 holds or not; also with ε = 0."""
    problem = sl.Quadratic([0.0, 0.0, 1.0], start=[1.0, 0.0, 3.0])
    noise, models = sl.GaussianNoise([1e-30, 1e-10, 1.0]), sl.models_of(OPTIMIZERS[name])
    experiment = prepare(problem, noise, OPTIMIZERS[name], models, Options(steps=50))
    steppers = list(experiment.steppers.values())
    for model, states in zip(models, stepped(steppers, 50, range(64)), strict=True):
        assert states.x.shape == (51, 3, 64), model
        assert np.isfinite(states.x).all(), model
        assert np.abs(states.x).max() < 20, model


@pytest.mark.parametrize(
    ("name", "model"), [("adamw", "optimizer"), ("adamw", "malladi2022"), ("rmspropw from 0", "sde")]
)
def test_no_run_divides_by_zero_at_the_start(name, model):
    """The same of three in an ensemble, which compiles them otherwise."""
    problem = sl.Quadratic([0.0, 0.0, 1.0], start=[1.0, 0.0, 3.0])
    data = run(OPTIMIZERS[name], model, problem, sl.GaussianNoise([1e-30, 1e-10, 1.0]), steps=50)
    assert np.isfinite(data.path_x).all()
    assert float(abs(data.path_x).max()) < 20


def test_a_saved_state_continues_the_optimizer_where_it_stopped():
    """Ten optax steps, saved, and ten more: the run from the saved state equals optax's own, noise as good as none."""
    spec, noise = sl.AdamW(0.05, 0.8, 0.95, 1e-6, 0.1), sl.GaussianNoise(1e-12)
    tx, x = spec.to_optax(), PROBLEM.start
    state = tx.init(x)

    @jax.jit
    def update(x, state):
        updates, state = tx.update(PROBLEM.evaluate(x)[1], state, x)
        return optax.apply_updates(x, updates), state

    for k in range(20):
        if k == 10:
            saved = sl.State(x, optax.tree.get(state, "mu"), optax.tree.get(state, "nu"), 10)
        x, state = update(x, state)
    for model in ("optimizer", "sde"):  # at Δt = η and without noise the sequential scheme is the algorithm
        end = run(spec, model, noise=noise, start=saved, steps=10, paths=1).path_x.values[0, 0, -1]
        np.testing.assert_allclose(end, x, rtol=1e-5, atol=1e-6)
    fresh = run(spec, noise=noise, start=np.asarray(saved.x), steps=10, paths=1).path_x.values[0, 0, -1]
    assert np.abs(fresh - np.asarray(x)).max() > 0.05


def test_a_saved_rmsprop_accumulator_and_pytree_parts():
    tree = sl.Problem(
        lambda p: 0.5 * (p["a"] ** 2).sum() + p["b"] ** 2, {"a": jnp.ones((1, 2)), "b": jnp.array(2.0)}, infimum=0.0
    )
    parts = {"a": jnp.array([[0.5, 1.0]]), "b": jnp.array(4.0)}
    spec, noise = sl.RMSpropW(0.1, 0.9, 0.0), sl.GaussianNoise(1e-12)
    end = run(spec, problem=tree, noise=noise, start=sl.State(None, v=parts), steps=1, paths=1).path_x.values[0, 0, -1]
    grad, v = np.array([1.0, 1.0, 4.0]), np.array([0.5, 1.0, 4.0])
    np.testing.assert_allclose(end, [1, 1, 2] - 0.1 * grad / np.sqrt(0.9 * v + 0.1 * grad**2), rtol=1e-5)
    flat = run(spec, problem=tree, noise=noise, start=sl.State(None, v=v), steps=1, paths=1).path_x.values[0, 0, -1]
    np.testing.assert_array_equal(end, flat)


def test_adam_that_starts_settled_corrects_no_bias():
    """M = ∇f and V = E g², so the first step is η∇f/√V, noise apart, for optimizer and SDE."""
    noise = sl.GaussianNoise(1e-12)
    for model in ("optimizer", "sde"):
        end = run(sl.AdamW(0.05, 0.8, 0.9, v0="second-moment"), model, noise=noise, steps=1).path_x.values[0, 0, -1]
        np.testing.assert_allclose(end, np.asarray(PROBLEM.start) - 0.05 * np.sign(PROBLEM.start), rtol=1e-5)


BAD = {
    "shape": (sl.SGD(0.1), [1.0, 2.0], "start: got shape (2,); give an array of the parameter's shape (3,)"),
    "structure": (sl.SGD(0.1), {"w": np.ones(3)}, "start: got dict; give an array of the parameter's shape (3,)"),
    "not finite": (sl.SGD(0.1), np.array([1.0, np.nan, 0.0]), "start: has entries that are not finite"),
    "constant function": (
        sl.SGD(0.1),
        lambda key: jnp.ones(3),
        "start: the function returned the same parameters for two keys",
    ),
    "random by itself": (
        sl.SGD(0.1),
        lambda key: np.random.rand(3),
        "start: the function returned different parameters for the same key",
    ),
    "optax's state": (sl.AdamW(0.1), sl.AdamW(0.1).to_optax().init(jnp.ones(3)), "start: got tuple; give parameters"),
    "text": (sl.SGD(0.1), "1,2,3", "start: got str"),
    "function of NumPy": (
        sl.SGD(0.1),
        lambda key: np.asarray(key) + 1.0,
        "start: cannot be compiled as a function of a random key",
    ),
    "wrong function": (sl.SGD(0.1), lambda key: jax.random.normal(key, (4,)), "start: got shape (4,)"),
    "no accumulator": (sl.SGD(0.1), sl.State(None, v=np.ones(3)), "start.v: sgd has no such accumulator"),
    "negative v": (
        sl.RMSpropW(0.1),
        sl.State(None, v=-np.ones(3)),
        "start.v: got -1.0; second moments are 0 or greater",
    ),
    "v of another size": (sl.RMSpropW(0.1), sl.State(None, v=np.ones(2)), "start.v: got shape (2,)"),
    "adam without count": (
        sl.AdamW(0.1),
        sl.State(None, np.zeros(3), np.ones(3)),
        "start: for adamw give m, v and count together",
    ),
    "adam without m": (sl.AdamW(0.1), sl.State(None, v=np.ones(3), count=3), "give m, v and count together"),
    "count": (sl.AdamW(0.1), sl.State(None, np.zeros(3), np.ones(3), -1), "start.count: got -1"),
    "count of another": (
        sl.RMSpropW(0.1),
        sl.State(None, v=np.ones(3), count=1),
        "start.count: rmspropw has no bias correction",
    ),
}


@pytest.mark.parametrize(("optimizer", "start", "message"), BAD.values(), ids=BAD.keys())
def test_bad_starts_are_refused(optimizer, start, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        run(optimizer, start=start)
    assert message in str(caught.value)
