"""Schedules: their values, the optimizer and its SDE under them, and the same function of time at another η."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdelens as sl

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


def test_values():
    k = np.arange(60)
    cosine = 0.1 + 0.45 * (1 + np.cos(np.pi * np.minimum(k / 40, 1)))
    np.testing.assert_allclose(sl.Cosine(40, end=0.1)(k, 0.05), cosine, rtol=1e-6)
    np.testing.assert_allclose(sl.Polynomial(0.7)(k, 0.05), (1 + 0.05 * k) ** -0.7, rtol=1e-6)
    rise = np.minimum((k + 1) / 10, 1)
    np.testing.assert_allclose(sl.Warmup(10)(k, 0.05), rise, rtol=1e-6)
    after = np.where(k < 10, rise, 0.5 * (1 + np.cos(np.pi * np.clip((k - 10) / 30, 0, 1))))
    np.testing.assert_allclose(sl.Warmup(10, sl.Cosine(30))(k, 0.05), after, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_noise_the_scheme_at_one_step_is_the_scheduled_algorithm(name, schedule):
    spec = dataclasses.replace(OPTIMIZERS[name], schedule=schedule)
    ends = [
        sl.simulate(PROBLEM, sl.GaussianNoise(1e-12), spec, model, steps=50, paths=1, keep_paths=1).dataset.path_x
        for model in ("optimizer", "sde")
    ]
    np.testing.assert_allclose(*ends, rtol=1e-4, atol=1e-5)
    plain = sl.simulate(PROBLEM, sl.GaussianNoise(1e-12), OPTIMIZERS[name], "sde", steps=50, paths=1, keep_paths=1)
    assert float(abs(plain.dataset.path_x - ends[1]).max()) > 1e-2


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_sde_tracks_the_scheduled_optimizer(name):
    """At 8 times within 2 % and 5 standard errors (false alarms below 5e-6); the schedule alone is worth over 20 %."""
    own = {"b2": 0.99} if hasattr(OPTIMIZERS[name], "b2") else {}
    plain = dataclasses.replace(OPTIMIZERS[name], **own)
    spec = dataclasses.replace(plain, schedule=sl.Warmup(10, sl.Cosine(60)))
    options = {"steps": 80, "paths": 20_000, "record_every": 10}
    data = sl.compare(PROBLEM, NOISE, spec, ["optimizer", "sde"], **options).dataset
    truth, model = (data.loss_mean.sel(model=m).values[1:] for m in ("optimizer", "sde"))
    sem = np.hypot(*(data.loss_sem.sel(model=m).values[1:] for m in ("optimizer", "sde")))
    assert (np.abs(model - truth) < 5 * sem + 0.02 * truth).all()
    constant = sl.simulate(PROBLEM, NOISE, plain, "sde", **options).dataset.loss_mean.values[0, 1:]
    assert np.abs(constant / truth - 1).max() > 0.2


def test_a_decaying_schedule_takes_sgd_to_the_minimum_and_a_constant_rate_does_not():
    """(1 + t)^-0.8: the noise's part of the loss falls like h; at a constant rate it stays ½Σησ²/(2 − ηλ)."""
    lr, curvature = 0.1, np.array([0.5, 1.0, 2.0])
    losses = {}
    for label, schedule in (("constant", None), ("decaying", sl.Polynomial(0.8))):
        result = sl.simulate(
            PROBLEM, NOISE, sl.SGD(lr, schedule=schedule), "optimizer", steps=4000, paths=2000, record_every=1000
        )
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
        [half.multiplier(2 * k) for k in steps], [spec.multiplier(k) for k in steps], rtol=1e-5, atol=1e-6
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
    "class": (lambda: sl.SGD(0.1, schedule=sl.Cosine), "one of sl.Cosine, sl.Polynomial, sl.Warmup with its arguments"),
}


@pytest.mark.parametrize(("action", "message"), BAD.values(), ids=BAD.keys())
def test_bad_schedules_are_refused(action, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        action()
    assert message in str(caught.value)
