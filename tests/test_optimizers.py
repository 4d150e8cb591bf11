"""Specifications: optax transformations against NumPy references, states, leaves, schedules."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import references
import sdelens as sl

STEPS, DIM, LR, THETA = 100, 7, 0.03, 0.2
RNG = np.random.default_rng(1)
GRADIENTS = RNG.normal(size=(STEPS, DIM)) * np.logspace(-3, 2, DIM)
START = RNG.normal(size=DIM)
V0, M0 = RNG.uniform(0.1, 2.0, DIM), RNG.normal(size=DIM)


def cases():
    yield sl.SGD(LR, THETA), lambda d: references.sgd(START, GRADIENTS, LR, d)
    yield sl.SignSGD(LR, THETA), lambda d: references.signsgd(START, GRADIENTS, LR, d)
    yield sl.RMSpropW(LR, 0.95, 1e-3, THETA), lambda d: references.rmspropw(START, GRADIENTS, LR, d, 0.95, 1e-3, V0)
    yield sl.AdamW(LR, 0.9, 0.99, 1e-3, THETA), lambda d: references.adamw(START, GRADIENTS, LR, d, 0.9, 0.99, 1e-3)
    for nesterov in (False, True):
        spec = sl.Momentum(LR, 0.9, nesterov, THETA)
        yield spec, lambda d, own=nesterov: references.momentum(START, GRADIENTS, LR, d, 0.9, own, M0)
    yield sl.Signum(LR, 0.9, THETA), lambda d: references.signum(START, GRADIENTS, LR, d, 0.9, M0)
    yield sl.Lion(LR, 0.9, 0.99, THETA), lambda d: references.lion(START, GRADIENTS, LR, d, 0.9, 0.99, M0)
    yield sl.Adagrad(LR, 0.3, 1e-3, THETA), lambda d: references.adagrad(START, GRADIENTS, LR, d, V0, 1e-3)


@pytest.mark.parametrize("x64", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("decay", ["coupled", "independent"])
@pytest.mark.parametrize(("spec", "reference"), list(cases()), ids=lambda c: getattr(c, "name", ""))
def test_optax_matches_the_algorithm(spec, reference, decay, x64):
    spec = dataclasses.replace(spec, decay=decay)
    expected = list(reference(THETA * LR if decay == "coupled" else THETA))
    with jax.enable_x64(x64):
        x = jnp.asarray(START)
        tx = spec.to_optax()
        v = {"rmspropw": jnp.asarray(V0), "adagrad": jnp.asarray(V0), "adamw": jnp.zeros(DIM)}.get(spec.name)
        m = {"adamw": jnp.zeros(DIM)}.get(spec.name, jnp.asarray(M0) if "m" in spec.accumulators else None)
        state = spec.optax_state(sl.State(x, m, v))
        for k in range(STEPS):
            updates, state = tx.update(jnp.asarray(GRADIENTS[k]), state, x)
            x = optax.apply_updates(x, updates)
            # float32: 1e-7 per step over 100 steps, and 1 - b2 and 1 - b2**k hold 5 digits
            np.testing.assert_allclose(x, expected[k], rtol=0, atol=1e-13 if x64 else 3e-5)


@pytest.mark.parametrize("nesterov", [False, True])
def test_undamped_momentum_is_what_pytorch_and_optax_call_sgd(nesterov):
    """torch.optim.SGD and optax.sgd: u ← μu + g, x ← x − a(u, or g + μu)."""
    ours, theirs = sl.Momentum.undamped(LR, 0.8, nesterov).to_optax(), optax.sgd(LR, 0.8, nesterov)
    with jax.enable_x64(True):
        x = y = jnp.asarray(START)
        mine, other = ours.init(x), theirs.init(y)
        for g in GRADIENTS:
            step, mine = ours.update(jnp.asarray(g), mine, x)
            x = optax.apply_updates(x, step)
            step, other = theirs.update(jnp.asarray(g), other, y)
            y = optax.apply_updates(y, step)
    np.testing.assert_allclose(x, y, rtol=1e-12)


def test_lion_s_weight_of_the_gradient_is_no_memory_and_adagrad_s_sum_has_no_rate():
    lion = sl.Lion(0.1, 0.9, 0.8).at_lr(0.05)
    assert (lion.b1, lion.b2) == pytest.approx((0.9, 0.9))
    assert sl.Signum(0.1, 0.8).at_lr(0.05).b1 == pytest.approx(0.9)
    assert sl.Momentum(0.1, 0.8, nesterov=True).at_lr(0.05).nesterov
    assert sl.Adagrad(0.1).at_lr(0.1).lr == 0.1
    with pytest.raises(
        ValueError, match=r"lr: got 0.05 for an Adagrad with lr = 0.1. Its sum of squares .* Build an sl.Adagrad"
    ):
        sl.Adagrad(0.1).at_lr(0.05)


def test_moments_are_placed_into_the_optax_state():
    spec = sl.AdamW(0.1)
    state = spec.optax_state(sl.State(jnp.zeros(3), m=jnp.full(3, 2.0), v=jnp.full(3, 5.0)))
    np.testing.assert_array_equal(optax.tree.get(state, "mu"), np.full(3, 2.0))
    np.testing.assert_array_equal(optax.tree.get(state, "nu"), np.full(3, 5.0))


@pytest.mark.parametrize(("v0", "expected"), [("second-moment", [4.0 + 9.0, 1.0 + 0.25]), ("zero", [0.0, 0.0])])
def test_rmsprop_accumulator_at_the_start(v0, expected):
    problem = sl.Quadratic([2.0, 1.0], start=1.0)
    noise = sl.GaussianNoise([3.0, 0.5]).bind(problem)
    np.testing.assert_allclose(sl.RMSpropW(0.1, v0=v0).initial_state(problem, noise, problem.start).v, expected)


def test_numbers_are_leaves_and_the_rest_is_structure():
    spec = sl.AdamW(0.1, 0.8, 0.9, 1e-6, 0.5)
    assert jax.tree.leaves(spec) == [0.1, 0.8, 0.9, 1e-6, 0.5]
    doubled = jax.tree.map(lambda a: 2 * a, sl.SGD(0.1, 0.3))
    assert (doubled.lr, doubled.weight_decay) == (0.2, 0.6)


def test_the_family_at_another_learning_rate_keeps_rho_and_decay_per_time():
    spec = sl.AdamW(0.1, 0.5, 0.8, 1e-6, 0.3, decay="independent").at_lr(0.05)
    assert (spec.b1, spec.b2, spec.weight_decay) == pytest.approx((0.75, 0.9, 0.15))
    assert (spec.rho1, spec.rho2, spec.decay_rate) == pytest.approx((5.0, 2.0, 3.0))
    assert sl.AdamW(0.3, 0.7, 0.9).at_lr(1.0).b1 == 0  # the largest legal one, rounding allowed for


def test_specifications_are_frozen():
    with pytest.raises(AttributeError):
        sl.SGD(0.1).lr = 0.2


def test_numbers_can_be_swept_by_vmap():
    def first_step(lr):
        spec = jax.tree.map(lambda _: lr, sl.SGD(0.1))
        updates, _ = spec.to_optax().update(jnp.ones(2), spec.to_optax().init(jnp.zeros(2)), jnp.zeros(2))
        return updates

    steps = jax.vmap(first_step)(jnp.array([0.1, 0.2]))
    np.testing.assert_allclose(steps, [[-0.1, -0.1], [-0.2, -0.2]], rtol=1e-6)


def test_schedule_multiplies_the_learning_rate_of_x_alone():
    spec = sl.AdamW(LR, 0.9, 0.99, 1e-3, THETA, schedule=lambda k: 1 / (1 + k))
    x, state = jnp.asarray(START, jnp.float32), None
    state = spec.to_optax().init(x)
    m = v = np.zeros(DIM)
    y = START
    for k in range(20):
        updates, state = spec.to_optax().update(jnp.asarray(GRADIENTS[k], jnp.float32), state, x)
        x = optax.apply_updates(x, updates)
        m, v = 0.9 * m + 0.1 * GRADIENTS[k], 0.99 * v + 0.01 * GRADIENTS[k] ** 2
        direction = m / (1 - 0.9 ** (k + 1)) / (np.sqrt(v / (1 - 0.99 ** (k + 1))) + 1e-3)
        y = y - LR / (1 + k) * (direction + THETA * y)
    np.testing.assert_allclose(x, y, atol=1e-5)


@pytest.mark.parametrize("spec", [sl.RMSpropW(0.1, eps=0.0, v0="zero"), sl.AdamW(0.1, eps=0.0)], ids=lambda s: s.name)
def test_a_dead_coordinate_stays_where_it_is_even_without_eps(spec):
    x = jnp.array([1.0, 1.0])
    updates, _ = spec.to_optax().update(jnp.array([0.0, 1.0]), spec.to_optax().init(x), x)
    assert updates[0] == 0
    assert updates[1] < 0
