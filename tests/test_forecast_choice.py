"""Choices made with a forecast on known problems: schedules, learning rates, batch sizes, the start of a decay."""

import json
import math

import jax
import numpy as np
import pytest

import sdelens as sl
from sdelens.forecast import FittedRun, Forecaster
from sdelens.forecast._dynamics import kind_of
from sdelens.forecast._final_loss import FinalLoss
from sdelens.forecast._numbers import Frame, power_law_of
from sdelens.forecast._plan import stable_lr
from sdelens.forecast._trials import final_losses, trial_of
from tests.checks import assert_shown_well

STEPS, WARMUP, BATCH, LR = 2000, 100, 64.0, 0.1
SGD = sl.SGD(LR)
COSINE = sl.Cosine(STEPS)


def known(noise, optimizer=SGD, size=1.0):
    """A forecaster that knows the problem: loss 1 + 2 at the start, λ = `size`, p = 1.5, q = 2."""
    lr, kind = float(optimizer.lr), kind_of(optimizer)
    adaptive = kind != "linear"
    frame = Frame(adaptive, False, False, math.log(lr), math.log(BATCH), 3.0, 1.2, None)
    log_s = math.log(noise) - 0.5 * math.log(BATCH)
    curvature = math.log(size) + math.log(lr) - (log_s if adaptive else 0.0)
    rest = (1 if adaptive else 2) * log_s - math.log(4) + math.log(lr)  # the loss of a mode at rest
    theta = [1.0, math.log(2), math.log(0.5), curvature, math.log(2), rest, *([3.0] if adaptive else [])]
    theta = np.array(theta)
    described = optimizer.describe()
    curve = np.array([STEPS]), np.ones(1), np.zeros(1)
    run = FittedRun("run", kind, described, STEPS, BATCH, None, lr, lr, lr * STEPS, *curve)
    return Forecaster(power_law_of(theta, frame), (run,), 1e-3, (), frame, theta, 1e-6 * np.eye(len(theta)))


NOISY = known(noise=4.0)
QUIET = known(noise=1e-6)


def loss_of(forecaster, schedules, optimizer=SGD):
    """Final losses of schedules after the warm-up."""
    optimizers = [type(optimizer)(LR, schedule=sl.Warmup(WARMUP, s)) for s in schedules]
    return final_losses(forecaster, [trial_of(forecaster, one, STEPS, BATCH, None) for one in optimizers])


@pytest.fixture(scope="module")
def best():
    return NOISY.best_schedule(STEPS, SGD, batch_size=BATCH, warmup=WARMUP)


def test_no_schedule_of_a_family_of_two_parameters_is_better(best):
    x = best.knots - WARMUP
    family = []
    for start in np.linspace(0, 0.95, 20):
        for power in (0.5, 0.7, 1.0, 1.4, 2.0):
            share = np.clip((x / x[-1] - start) / (1 - start), 0, 1)
            family.append(sl.Interpolated(x, (1 - share) ** power))
    losses = loss_of(NOISY, family)
    assert best.loss.value < losses.min()
    assert best.loss.value > losses.min() - 0.05 * np.ptp(losses)  # the family has nearly the best
    assert best.over_cosine.lower > 0
    assert best.over_wsd.value > 0


def test_no_monotone_change_of_a_schedule_is_better(best):
    x, h = best.knots - WARMUP, best.values
    assert h[0] == 1
    assert (np.diff(h) <= 0).all()
    assert h[-1] >= 0
    changed = []
    for width in (1, 3, 8):
        for j in range(1, len(h) - width + 1):
            for change in (-0.05, 0.05):
                moved = h.copy()
                moved[j : j + width] += change
                moved = np.minimum.accumulate(moved) if change < 0 else np.maximum.accumulate(moved[::-1])[::-1]
                changed.append(sl.Interpolated(x, np.clip(moved, 0, 1)))
    losses = loss_of(NOISY, [sl.Interpolated(x, h), *changed])
    assert losses[0] - losses[1:].min() < 1e-3 * (best.over_wsd.value + best.over_cosine.value)


def test_the_record_of_a_schedule(best, tmp_path):
    described = json.loads(json.dumps(best.describe()))
    then = described["optimizer"]["schedule"]["then"]
    rebuilt = sl.SGD(LR, schedule=sl.Warmup(WARMUP, sl.Interpolated(then["steps"], then["values"])))
    assert NOISY.final(rebuilt, steps=STEPS, batch_size=BATCH).value == pytest.approx(best.loss.value, rel=1e-3)
    assert best.loss.lower < best.loss.value < best.loss.upper
    assert "better than a cosine to" in str(best)
    assert_shown_well(best)
    best.plot(tmp_path / "best.png")
    assert (tmp_path / "best.png").stat().st_size > 1e4


def test_without_noise_nothing_should_decay():
    found = QUIET.best_schedule(STEPS, SGD, batch_size=BATCH, warmup=WARMUP)
    np.testing.assert_allclose(found.values, 1, atol=1e-3)
    decay = QUIET.when_to_decay(STEPS, SGD, batch_size=BATCH, warmup=WARMUP)
    assert (decay.start, decay.share) == (STEPS, 0)
    assert "no decay" in str(decay)
    assert_shown_well(decay)


@pytest.mark.parametrize("optimizer", [SGD, sl.AdamW(LR, decay="independent", weight_decay=0.1)], ids=["sgd", "adamw"])
def test_the_gradient_is_that_of_the_loss(best, optimizer):
    forecaster = NOISY if optimizer is SGD else known(noise=4.0, optimizer=optimizer)
    trial = trial_of(forecaster, optimizer, STEPS, BATCH, None)
    x = np.append(np.full(len(best.knots) - 1, 0.02), 0.1)
    with jax.enable_x64(True):
        problem = FinalLoss(forecaster, optimizer, trial, best.knots, WARMUP, STEPS)
        exact = problem(x)[1]
        steps = 1e-5 * np.eye(len(x))
        numeric = np.array([(problem(x + step)[0] - problem(x - step)[0]) / 2e-5 for step in steps])
    np.testing.assert_allclose(exact, numeric, rtol=1e-4, atol=1e-7)


def test_when_to_decay_is_the_best_step():
    found = NOISY.when_to_decay(STEPS, SGD, batch_size=BATCH, warmup=WARMUP, end=0.1)
    starts = np.arange(WARMUP, STEPS, 10) - WARMUP
    losses = loss_of(NOISY, [sl.Interpolated([s, STEPS - WARMUP], [1, 0.1]) for s in starts])
    assert found.loss.value == pytest.approx(losses.min(), abs=1e-3 * np.ptp(losses))
    good = starts[losses <= 1.001 * losses.min()] + WARMUP
    assert found.near == pytest.approx((good[0], good[-1]), abs=150)  # within the steps between those tried
    assert found.near[0] <= found.limits[0] <= found.start <= found.limits[1] <= found.near[1]
    assert found.gain.lower < 0 < found.gain.value < found.gain.upper  # smaller than the scatter of single runs
    late = NOISY.when_to_decay(STEPS, SGD, batch_size=BATCH, warmup=WARMUP, end=0.1, done=1800)
    assert late.start >= 1800
    assert late.loss.value >= found.loss.value
    assert (late.start == 1800) == any("decay at once" in remark for remark in late.remarks)


def test_the_best_learning_rate_is_stable_and_best():
    optimizer = sl.SGD(LR, schedule=COSINE)
    found = NOISY.best_lr(STEPS, optimizer, batch_size=BATCH)
    rates = np.geomspace(found.table.index[0], found.table.index[-1], 200)
    losses = final_losses(
        NOISY, [trial_of(NOISY, sl.SGD(lr, schedule=COSINE), STEPS, BATCH, None) for lr in rates.tolist()]
    )
    assert found.loss.value == pytest.approx(losses.min(), rel=1e-4)
    good = rates[losses <= 1.001 * losses.min()]
    assert found.near == pytest.approx((good[0], good[-1]), rel=0.3)  # the ratio of those tried
    assert found.limits[0] <= found.lr <= found.limits[1]
    assert any("follows from the theory alone" in remark for remark in found.remarks)
    stable = stable_lr(optimizer, NOISY.numbers)
    assert stable == pytest.approx(0.99 * 2)
    assert found.table.index[-1] <= stable
    alone = QUIET.best_lr(STEPS, optimizer, batch_size=BATCH, between=(0.1, 100.0))
    assert alone.lr <= stable
    if alone.lr > 0.99 * stable:
        assert any("largest at which sgd is stable" in remark for remark in alone.remarks)
    else:
        assert any(f"{alone.lr / LR:.2g} times the largest fitted one" in remark for remark in alone.remarks)


def test_the_frontier_of_batch_sizes(tmp_path):
    sizes = 2.0 ** np.arange(0, 14, 2)
    found = NOISY.best_batch(SGD, samples=STEPS * BATCH, batch_sizes=sizes, loss=1.3)
    reached = found.table[np.isfinite(found.table.steps_to_loss)]
    assert len(reached) > 3
    assert (np.diff(reached.steps_to_loss) < 0).all()
    assert (np.diff(reached.samples_to_loss) > 0).all()
    for size, row in reached.iterrows():
        trial = trial_of(NOISY, SGD, row.steps_to_loss, size, None)
        assert final_losses(NOISY, [trial])[0] == pytest.approx(1.3, rel=1e-3)
    i = np.searchsorted(reached.index, found.critical.batch_size)
    slope = np.diff(np.log(reached.steps_to_loss)) / np.diff(np.log(reached.index))
    assert slope[max(i - 2, 0)] < -0.5 < slope[min(i, len(slope) - 1)]
    some = dict(samples=STEPS * BATCH, batch_sizes=sizes[1:5])
    rule = NOISY.best_batch(SGD, lr=lambda b: LR * min(b / BATCH, 8.0), **some)
    either = NOISY.best_batch(SGD, lr="best", loss=1.3, **some)
    assert (either.table.lr <= stable_lr(SGD, NOISY.numbers)).all()
    for other in (found, rule):
        assert (either.table.loss <= other.table.loss.loc[either.table.index] * (1 + 1e-6)).all()
    assert (either.table.steps_to_loss <= found.table.steps_to_loss.loc[either.table.index] * 1.01).all()
    assert "critical batch size" in str(found)
    assert_shown_well(found)
    found.plot(tmp_path / "batch.png")
    json.dumps(found.describe())


def test_the_best_batch_size_of_a_time_is_between():
    sizes = 2.0 ** np.arange(0, 14)
    run = dict(time=1000.0, speed=lambda b: 10 / (1 + b / 256), batch_sizes=sizes)
    found = NOISY.best_batch(lambda n: sl.SGD(LR, schedule=sl.Cosine(n)), **run)
    assert sizes[0] < found.batch_size < sizes[-1]
    assert found.steps == math.floor(1000 * 10 / (1 + found.batch_size / 256))
    one = sl.SGD(LR, schedule=sl.Cosine(found.steps))
    final = NOISY.final(one, steps=found.steps, batch_size=found.batch_size)
    assert found.loss.value == pytest.approx(final.value, rel=1e-3)


BAD = {
    "warm-up": (
        lambda f: f.best_schedule(STEPS, SGD, batch_size=BATCH, warmup=STEPS),
        "warmup: got 2000 of 2000 steps",
    ),
    "batch": (lambda f: f.best_schedule(STEPS, SGD), "batch_size: missing"),
    "unstable": (lambda f: f.best_schedule(STEPS, sl.SGD(5.0), batch_size=BATCH), "lr: got a peak of 5"),
    "between": (lambda f: f.best_lr(STEPS, SGD, batch_size=BATCH, between=(1, 0.1)), "between: got .1, 0.1."),
    "all unstable": (
        lambda f: f.best_lr(STEPS, SGD, batch_size=BATCH, between=(3, 9)),
        "between: at 3 sgd diverges on the fitted quadratic",
    ),
    "done": (lambda f: f.when_to_decay(STEPS, SGD, batch_size=BATCH, done=STEPS), "done: got 2000 of 2000 steps"),
    "shape": (lambda f: f.when_to_decay(STEPS, SGD, batch_size=BATCH, shape="cubic"), "shape: got 'cubic'"),
    "end": (lambda f: f.when_to_decay(STEPS, SGD, batch_size=BATCH, end=1.0), "end: got 1"),
    "no budget": (lambda f: f.best_batch(SGD), "samples, time, speed: give either"),
    "no speed": (lambda f: f.best_batch(SGD, time=3.0), "samples, time, speed: give either"),
    "speeds": (lambda f: f.best_batch(SGD, time=3.0, speed=[1.0, 2.0]), "speed: got 2 numbers for 13 batch sizes"),
    "schedule": (lambda f: f.best_batch(sl.SGD(LR, schedule=COSINE), samples=1e5), "belongs to one number of steps"),
    "lr": (lambda f: f.best_batch(SGD, samples=1e5, lr=0.1), "lr: got 0.1; give a function of the batch size"),
    "rule": (
        lambda f: f.best_batch(SGD, samples=1e5, lr=lambda b: b),
        "lr: got 2 at batch size 2, at which sgd diverges",
    ),
    "few samples": (lambda f: f.best_batch(SGD, samples=0.5), "they allow not one step at any batch size"),
    "sizes": (lambda f: f.best_batch(SGD, samples=1e5, batch_sizes=[4, 2]), "batch_sizes: must be greater than 0"),
}


def test_predictions_of_sgd_are_refused_where_it_diverges_and_for_other_kinds():
    with pytest.raises(ValueError, match="diverges on the fitted quadratic"):
        NOISY.predict(sl.SGD(lr=5.0), steps=100, batch_size=BATCH)
    with pytest.raises(ValueError, match="adamw divides the gradient"):
        NOISY.predict(sl.AdamW(LR), steps=100, batch_size=BATCH)


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(NOISY)
