"""Schedules: their values, the optimizer and its SDE under them, and the same function of time at another η."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdelens as sl
from sdelens.optimizers.schedules import Schedule
from sdelens.run.experiment import prepare
from sdelens.run.options import Options
from sdelens.sdes import Instant, build_sde, sdes_of
from tests.checks import stepped, tiered

PROBLEM, NOISE = sl.Quadratic([0.5, 1.0, 2.0], start=2.0), sl.GaussianNoise(1.0)
SCHEDULES = {
    "cosine": sl.Cosine(40, end=0.1),
    "polynomial": sl.Polynomial(0.7),
    "warm-up": sl.Warmup(10),
    "warm-up, cosine": sl.Warmup(10, sl.Cosine(30)),
    "function": lambda k: 1 / (1 + 0.1 * k),
    "table": lambda k: jnp.linspace(1.0, 0.0, 200)[k],
}
OPTIMIZERS = {
    "sgd": sl.SGD(0.05, 0.1),
    "signsgd": sl.SignSGD(0.05, 0.1),
    "rmspropw": sl.RMSpropW(0.05, 0.9, 1e-6, 0.1),
    "adamw": sl.AdamW(0.05, 0.8, 0.9, 1e-6, 0.1),
    "nesterov": sl.Momentum(0.05, 0.8, nesterov=True, weight_decay=0.1),
    "lion": sl.Lion(0.05, 0.8, 0.9, 0.1),
}
EVERY_COMMIT = ["rmspropw", "nesterov"]


def test_values():
    k = np.arange(60)
    cosine = 0.1 + 0.45 * (1 + np.cos(np.pi * np.minimum(k / 40, 1)))
    np.testing.assert_allclose(sl.Cosine(40, end=0.1)(k, 0.05), cosine, rtol=1e-6)
    np.testing.assert_allclose(sl.Polynomial(0.7)(k, 0.05), (1 + 0.05 * k) ** -0.7, rtol=1e-6)
    rise = np.minimum((k + 1) / 10, 1)
    np.testing.assert_allclose(sl.Warmup(10)(k, 0.05), rise, rtol=1e-6)
    knots = np.interp(k, [5, 20, 50], [1, 0.5, 0])
    np.testing.assert_allclose(sl.Interpolated([5, 20, 50], [1, 0.5, 0])(k, 0.05), knots, rtol=1e-6, atol=1e-7)
    after = np.where(k < 10, rise, 0.5 * (1 + np.cos(np.pi * np.clip((k - 10) / 30, 0, 1))))
    np.testing.assert_allclose(sl.Warmup(10, sl.Cosine(30))(k, 0.05), after, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_an_optimizers_multiplier_is_its_schedule(schedule):
    """Of every optimizer at whole steps; and it is the factor of the learning rate of its optax transformation."""
    k = jnp.arange(60)
    h = multipliers(schedule, k)
    for plain in OPTIMIZERS.values():
        spec = dataclasses.replace(plain, schedule=schedule)
        np.testing.assert_allclose(multipliers(spec.multiplier, k), h, rtol=1e-6, atol=1e-7)
    scheduled = dataclasses.replace(OPTIMIZERS["sgd"], schedule=schedule).to_optax()

    def update(state, _):
        updates, state = scheduled.update(jnp.ones(1), state, jnp.zeros(1))
        return state, updates[0]

    updates = jax.jit(lambda: jax.lax.scan(update, scheduled.init(jnp.zeros(1)), length=60)[1])()
    np.testing.assert_allclose(updates, -0.05 * h, rtol=1e-6, atol=1e-7)


def multipliers(function, k):
    call = (lambda k: function(k, 0.05)) if isinstance(function, Schedule) else function
    return np.asarray(jax.jit(jax.vmap(lambda k: jnp.asarray(call(k), float)))(k))


@pytest.mark.parametrize(
    ("name", "schedule"),
    list(zip(OPTIMIZERS, SCHEDULES.values(), strict=True)),
    ids=list(map("-".join, zip(OPTIMIZERS, SCHEDULES, strict=True))),
)
def test_without_noise_the_scheme_at_one_step_is_the_scheduled_algorithm(name, schedule):
    """Each optimizer under one of the schedules, whose values are tested by themselves."""
    plain = OPTIMIZERS[name]
    spec = dataclasses.replace(plain, schedule=schedule)
    steppers = [
        *of(spec, "optimizer", "sde", noise=sl.GaussianNoise(1e-12)),
        *of(plain, "sde", noise=sl.GaussianNoise(1e-12)),
    ]
    optimizer, sde, unscheduled = (states.x[..., 0] for states in stepped(steppers, 50))
    np.testing.assert_allclose(sde, optimizer, rtol=1e-4, atol=1e-5)
    assert np.abs(unscheduled - sde).max() > 1e-2


def of(spec, *models, noise=NOISE):
    experiment = prepare(PROBLEM, noise, spec, list(models), Options(steps=2))
    return list(experiment.steppers.values())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_h_multiplies_drift_and_diffusion_of_x_and_leaves_the_accumulators(name):
    """Of every SDE of first order, a schedule of 0.3 at step 7: h is a factor of dX, decay and noise included."""
    spec = dataclasses.replace(OPTIMIZERS[name], schedule=lambda k: jnp.where(k == 7, 0.3, 0.9))
    rng = np.random.default_rng(0)
    x, m, grad = (jnp.asarray(rng.normal(size=(3, 2)), jnp.float32) for _ in range(3))
    t = Instant(jnp.asarray(7), jnp.asarray(7 * 0.05))
    for model in (m for m in sdes_of(spec) if m != "second-order"):
        noise = NOISE.bind(PROBLEM)
        ours, plain = (build_sde(model, PROBLEM, noise, o) for o in (spec, OPTIMIZERS[name]))
        dw = jnp.asarray(rng.normal(size=(*ours.noise_shape, 2)), jnp.float32)

        @jax.jit
        def parts(x, m, grad, dw, sdes=(ours, plain)):
            y = sdes[0].init(x)
            y = y._replace(m=None if y.m is None else m, v=None if y.v is None else 0.5 + m**2)
            return [(sde.drift(t, y, grad), sde.apply_diffusion(t, y, grad, dw)) for sde in sdes]

        for scheduled, constant in zip(*parts(x, m, grad, dw), strict=True):
            np.testing.assert_allclose(scheduled.x, 0.3 * np.asarray(constant.x), rtol=1e-5)
            for part in ("m", "v"):
                if getattr(constant, part) is not None:
                    np.testing.assert_array_equal(getattr(scheduled, part), getattr(constant, part))


@pytest.mark.parametrize(
    "name", [*EVERY_COMMIT, *tiered([n for n in OPTIMIZERS if n not in EVERY_COMMIT], ["signsgd", "adamw"])]
)
def test_the_sde_tracks_the_scheduled_optimizer(name):
    """At 8 times within 2 % and 5 standard errors (false alarms below 5e-6); the schedule alone is worth over 20 %."""
    own = {"b2": 0.99} if hasattr(OPTIMIZERS[name], "b2") else {}
    # The program of the constant one is the same: h = 1 from the first step on.
    warm, constant = sl.Warmup(10, sl.Cosine(60)), sl.Warmup(1, sl.Cosine(1e9))
    spec, plain = (dataclasses.replace(OPTIMIZERS[name], **own, schedule=schedule) for schedule in (warm, constant))
    options = {"steps": 80, "paths": 20_000, "record": sl.Record(every=10)}
    data = sl.compare(PROBLEM, NOISE, spec, ["optimizer", "sde"], **options).dataset
    truth, model = (data.loss_mean.sel(model=m).values[1:] for m in ("optimizer", "sde"))
    sem = np.hypot(*(data.loss_sem.sel(model=m).values[1:] for m in ("optimizer", "sde")))
    assert (np.abs(model - truth) < 5 * sem + 0.02 * truth).all()
    unchanged = sl.simulate(PROBLEM, NOISE, plain, "sde", **options).dataset.loss_mean.values[0, 1:]
    assert np.abs(unchanged / truth - 1).max() > 0.2


def test_a_decaying_schedule_takes_sgd_to_the_minimum_and_a_constant_rate_does_not():
    """(1 + t)^-0.8: the noise's part of the loss falls like h; at a constant rate it stays ½Σησ²/(2 − ηλ)."""
    lr, curvature = 0.1, np.array([0.5, 1.0, 2.0])
    losses = {}
    for label, schedule in (("constant", None), ("decaying", sl.Polynomial(0.8))):
        optimizer, record = sl.SGD(lr, schedule=schedule), sl.Record(every=1000)
        result = sl.simulate(PROBLEM, NOISE, optimizer, "optimizer", steps=4000, paths=2000, record=record)
        losses[label] = (float(result.dataset.loss_mean[0, -1]), float(result.dataset.loss_sem[0, -1]))
    expected = 0.5 * np.sum(lr / (2 - lr * curvature))
    value, sem = losses["constant"]
    assert abs(value - expected) < 5 * sem
    h = (1 + 4000 * lr) ** -0.8
    value, sem = losses["decaying"]
    assert value < 1.5 * h * expected + 5 * sem


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_another_learning_rate_keeps_the_schedule_as_a_function_of_time(schedule):
    spec = sl.SGD(0.1, schedule=schedule)
    half = spec.at_lr(0.05)
    assert half.at_lr(0.025).describe()["schedule"].get("stretched") == 4
    steps = np.arange(50)
    np.testing.assert_allclose(
        multipliers(half.multiplier, 2 * steps), multipliers(spec.multiplier, steps), rtol=1e-5, atol=1e-6
    )


def test_numbers_of_a_schedule_are_leaves_and_are_described():
    spec = sl.SGD(0.1, schedule=sl.Warmup(10, sl.Cosine(30, end=0.2)))
    assert jax.tree.leaves(spec) == [0.1, 0.0, 10.0, 30.0, 0.2]
    described = spec.describe()
    then = {"name": "cosine", "steps": 30.0, "end": 0.2}
    assert described["schedule"] == {"name": "warmup", "steps": 10.0, "then": then}
    assert "rerunnable" not in described
    assert sl.SGD(0.1, schedule=lambda k: 1.0).describe()["rerunnable"] is False


BAD = {
    "cosine steps": (lambda: sl.Cosine(0), "steps: got 0"),
    "cosine end": (lambda: sl.Cosine(10, end=1.5), "end: got 1.5"),
    "power": (lambda: sl.Polynomial(0.0), "power: got 0.0"),
    "warm-up steps": (lambda: sl.Warmup(0), "steps: got 0"),
    "warm-up then": (lambda: sl.Warmup(5, 0.5), "schedule: got 0.5"),
    "one knot": (lambda: sl.Interpolated([0], [1]), "values: got 1 for 1 steps"),
    "steps fall": (lambda: sl.Interpolated([5, 5], [1, 0]), "steps: must be 0 or greater and increase"),
    "value above 1": (lambda: sl.Interpolated([0, 5], [1.5, 0]), "values: got 1.5"),
    "class": (lambda: sl.SGD(0.1, schedule=sl.Cosine), "sl.Polynomial, sl.Warmup, sl.Interpolated with its arguments"),
}


@pytest.mark.parametrize(("action", "message"), BAD.values(), ids=BAD.keys())
def test_bad_schedules_are_refused(action, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        action()
    assert message in str(caught.value)
