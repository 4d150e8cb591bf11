"""Scaling rules: algebra, what they preserve of the SDEs themselves, and every way in and out."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import sdelens as sl
from sdelens.core import names
from sdelens.optimizers import State
from sdelens.scaling import RULES, rescale
from sdelens.scaling.code import as_code
from sdelens.sdes import Instant, build_sde
from sdelens.shell.app import app
from tests.checks import assert_shown_well

SPECIFICATIONS = {
    "sgd": sl.SGD(0.1, weight_decay=0.01),
    "momentum": sl.Momentum(0.1, b1=0.99, weight_decay=0.01),
    "nesterov": sl.Momentum(0.1, b1=0.99, nesterov=True, weight_decay=0.01),
    "signsgd": sl.SignSGD(0.1, weight_decay=0.01),
    "signum": sl.Signum(0.1, b1=0.99, weight_decay=0.01),
    "lion": sl.Lion(0.1, b1=0.9, b2=0.99, weight_decay=0.01),
    "rmspropw": sl.RMSpropW(0.1, b2=0.99, weight_decay=0.01),
    "adamw": sl.AdamW(0.1, b1=0.98, b2=0.99, weight_decay=0.01),
    "adagrad": sl.Adagrad(0.1, weight_decay=0.01),
}
KINDS = pytest.mark.parametrize("spec", SPECIFICATIONS.values(), ids=SPECIFICATIONS.keys())
DICT = {"optimizer": "adamw", "lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


def numbers(spec):
    return {f.name: v for f in dataclasses.fields(spec) if isinstance(v := getattr(spec, f.name), float)}


def test_every_rule_has_its_line_of_help():
    assert list(RULES) == list(names.SCALING_RULES)


SNR = 0.5


def options(spec):
    """Every rule and treatment of β that the optimizer has, and the SNR at δ times the batch for those that use it."""
    squares = spec.name in ("rmspropw", "adamw")
    for rule in RULES.values():
        if not rule.families or spec.name in rule.families:
            measured = rule.regime == "measured"
            for momentum in names.MOMENTA:
                if (momentum == "second-moment" and not squares and spec.memories) or (
                    momentum == "time" and rule.lr is None and not (measured and squares)
                ):
                    continue

                def how(ratio, rule=rule.name, momentum=momentum, measured=measured):
                    snr = {"snr": SNR * ratio**0.5} if measured else {}
                    return {"rule": rule, "momentum": momentum, **snr}

                yield how


@KINDS
@settings(max_examples=5, deadline=None)
@given(
    first=st.floats(0.1, 4.0),
    second=st.floats(0.1, 4.0),
    decay=st.sampled_from(["coupled", "independent"]),
)
def test_ratios_compose_one_is_the_identity_and_the_inverse_undoes(spec, first, second, decay):
    spec = dataclasses.replace(spec, decay=decay)
    for how in options(spec):
        assert numbers(rescale(spec, 1, **how(1)).optimizer) == pytest.approx(numbers(spec), rel=1e-15)
        once = rescale(rescale(spec, first, **how(1)).optimizer, second, **how(first)).optimizer
        both = rescale(spec, first * second, **how(1)).optimizer
        np.testing.assert_allclose(list(numbers(once).values()), list(numbers(both).values()), rtol=1e-9)
        back = rescale(rescale(spec, first, **how(1)).optimizer, 1 / first, **how(first)).optimizer
        np.testing.assert_allclose(list(numbers(back).values()), list(numbers(spec).values()), rtol=1e-9)


@KINDS
@given(ratio=st.floats(0.05, 10.0), coupled=st.booleans())
@settings(max_examples=5, deadline=None)
def test_what_is_kept_per_sample_is_kept(spec, ratio, coupled):
    """nηθ (or nθ) and n(1 − β), with n ∝ 1/δ; and the half-life in samples, B/log₂(1/β)."""
    spec = dataclasses.replace(spec, decay="coupled" if coupled else "independent")
    new = rescale(spec, ratio).optimizer
    before, after = (o.weight_decay * (o.lr if coupled else 1) for o in (spec, new))
    assert after / ratio == pytest.approx(before, rel=1e-9)
    for name in spec.memories:
        if hasattr(spec, name):
            assert (1 - getattr(new, name)) / ratio == pytest.approx(1 - getattr(spec, name), rel=1e-6)
            halved = rescale(spec, ratio, momentum="half-life").optimizer
            assert np.log(getattr(halved, name)) / ratio == pytest.approx(np.log(getattr(spec, name)), rel=1e-6)


DIM, RATIO, SIGMA = 3, 4, np.array([0.5, 1.0, 2.0])
LONG = {  # memories long enough for first order in 1 − β, and for Signum's momentum to outweigh a gradient
    "sgd": sl.SGD(0.01, weight_decay=0.3),
    "momentum": sl.Momentum(0.01, b1=1 - 1e-5, weight_decay=0.3),
    "signsgd": sl.SignSGD(0.01, weight_decay=0.3),
    "signum": sl.Signum(0.01, b1=1 - 1e-5, weight_decay=0.3),
    "lion": sl.Lion(0.01, b1=0.9, b2=1 - 1e-5, weight_decay=0.3),
    "rmspropw": sl.RMSpropW(0.01, b2=1 - 1e-5, eps=0.1, weight_decay=0.3),
    "adamw": sl.AdamW(0.01, b1=1 - 1e-5, b2=1 - 1e-5, eps=0.1, weight_decay=0.3),
    "adagrad": sl.Adagrad(0.01, eps=0.5, weight_decay=0.3),
}


def generator(spec, ratio, snr, mixed=False):
    """Drift and covariance of (x, m, v) per sample of the old batch, from the library's own SDE.

    m, a mean over n steps, is a draw of size σ√((1 − β)/2) beside ∇f: the same at both batches. v is measured in
    units of its value at rest, and so falls with the batch, Adagrad's sum with its square. `mixed`: all coordinates
    have the same SNR, and v at rest is that of signal and noise.
    """
    problem = sl.Quadratic(np.ones(DIM), np.ones(DIM))
    noise = sl.GaussianNoise(SIGMA).at_batch_ratio(ratio).bind(problem)
    grad = snr * SIGMA * (np.array([1.0, -1.0, 1.0]) if mixed else np.array([1.0, -0.7, 0.4]))
    memory = max((1 - getattr(LONG[spec.name], n) for n in spec.memories if hasattr(spec, n)), default=0.0)
    size = np.sqrt(memory / 2) if spec.name in ("signum", "lion") else snr
    m = size * SIGMA * np.array([-0.5, 1.2, 0.8])
    x = (1.0 if spec.name == "signum" else snr) / 0.3 * np.array([1.0, -0.7, 0.4])  # decay beside the gradient's drift
    unit = (1.0 if spec.name in ("rmspropw", "adamw") else 2.0) if spec.name != "sgd" else 0.0
    scale_v = float(ratio) ** -unit
    if mixed:
        scale_v = snr**2 + 1 / ratio
    v = 1.3 * SIGMA**2 * scale_v
    sde = build_sde("sde", problem, noise, spec)
    width = sde.noise_shape[0]

    def column(a, columns):
        return jnp.asarray(np.repeat(np.asarray(a, np.float32)[:, None], columns, 1))

    state = lambda k: State(*(column(a, k) for a in (x, m, v)), count=jnp.asarray(2**30, jnp.int32))  # noqa: E731
    t = Instant(jnp.asarray(5), jnp.asarray(0.05), 1.0)
    per = spec.lr / ratio  # time per sample of the old batch
    drift = sde.drift(t, state(1), column(grad, 1))
    root = sde.apply_diffusion(t, state(width), column(grad, width), jnp.eye(width))
    shape = (DIM, width)
    parts = ["x", *(n for n in ("m", "v") if getattr(drift, n) is not None)]
    scales = {"x": 1.0, "m": 1.0, "v": scale_v}
    drifts = np.concatenate([np.ravel(np.asarray(getattr(drift, n))) * per / scales[n] for n in parts])
    rows = np.concatenate([np.broadcast_to(np.asarray(getattr(root, n)), shape) / scales[n] for n in parts])
    return drifts, rows.astype(float) @ rows.astype(float).T * per, parts


def mismatch(spec, new, snr, mixed=False):
    """Largest relative difference of drift and covariance per sample."""
    (drift, cov, parts), (other, others, _) = generator(spec, 1, snr, mixed), generator(new, RATIO, snr, mixed)
    worst = []
    for i in range(len(parts)):
        part = slice(DIM * i, DIM * (i + 1))
        worst.append(np.abs(other[part] - drift[part]).max() / np.abs(drift[part]).max())
    sizes = np.sqrt(np.outer(*[np.maximum(np.diag(cov), 1e-30)] * 2))
    sizes[cov == 0] = np.inf
    return max(worst), (np.abs(others - cov) / sizes).max()


@pytest.mark.parametrize("decay", ["coupled", "independent"])
@pytest.mark.parametrize("name", LONG)
def test_the_sde_per_sample_is_the_same_at_the_new_batch_where_noise_dominates(name, decay):
    """Drift and covariance of the library's own SDE agree up to O(SNR²); every wrong power of δ = 4 is off by 2 or 4.

    The tolerance is 6 times the squared SNR at the larger batch, plus 1 − β over the size of what is left of m under
    Signum's sign and float32's rounding; a signal of 0.01 leaves 2.4e-3, and of 0.1 24 %.
    """
    spec = dataclasses.replace(LONG[name], decay=decay)
    if decay == "independent":
        spec = dataclasses.replace(spec, weight_decay=spec.weight_decay * spec.lr)
    new = rescale(spec, RATIO).optimizer
    for snr in (0.01, 0.05):
        drift, covariance = mismatch(spec, new, snr)
        assert drift < 6 * RATIO * snr**2 + 1e-3
        if name != "signum":  # whose X has next to no noise of its own
            assert covariance < 6 * RATIO * snr**2 + 1e-3
    for field in (f for f in numbers(spec) if f not in ("b1",) or name != "lion"):
        wrong = dataclasses.replace(new, **{field: getattr(spec, field)})
        kept = getattr(new, field) == pytest.approx(getattr(spec, field), rel=1e-3) and field in ("lr", "weight_decay")
        assert kept or max(mismatch(spec, wrong, 0.01)) > 0.02 or (name, field) in INVISIBLE


INVISIBLE = {("adagrad", "initial_accumulator")}
"""Where the state starts, which the SDE's coefficients do not show."""


@pytest.mark.parametrize("name", ["rmspropw", "adamw"])
def test_the_measured_rule_keeps_the_sde_per_sample_at_every_snr(name):
    """Exactly, if all coordinates have that SNR, up to float32's rounding; the square-root rule is then off by 14 %."""
    for snr in (0.0, 0.3, 1.0, 3.0):
        spec = dataclasses.replace(LONG[name], weight_decay=0.3)
        new = rescale(spec, RATIO, "signal-to-noise", momentum="samples", snr=snr).optimizer
        drift, covariance = mismatch(spec, new, snr or 1e-4, mixed=True)
        assert drift < 1e-3
        assert covariance < 1e-3
    assert mismatch(spec, rescale(spec, RATIO).optimizer, 1.0, mixed=True)[0] > 0.1


def test_the_measured_rule_keeps_the_mean_sign_of_one_gradient():
    """E sign(∇f + Z) is erf(u/√2): drawn from the library's own SDE of SignSGD, at coordinates of one SNR."""
    for snr in (0.3, 1.0, 3.0):
        new = rescale(LONG["signsgd"], RATIO, "signal-to-noise", snr=snr).optimizer
        spec, new = (dataclasses.replace(o, weight_decay=0.0) for o in (LONG["signsgd"], new))
        assert mismatch(spec, new, snr, mixed=True)[0] < 1e-3


def test_the_measured_rule_lies_between_the_square_root_and_the_linear_one():
    for kind in (sl.AdamW, sl.RMSpropW, sl.SignSGD, sl.Signum, sl.Lion):
        how = {"rule": "signal-to-noise", "momentum": "fixed"}
        rates = [rescale(kind(0.1), 4, **how, snr=snr).optimizer.lr for snr in (0, 0.05, 0.1, 0.5, 2, np.inf)]
        assert rates == sorted(rates)
        assert (rates[0], rates[-1]) == pytest.approx((0.2, 0.4))
    # By hand: u² = 1/4, δ = 4: E g² falls to (1/4 + 1/4)/(1/4 + 1) = .4 of itself.
    new = rescale({**DICT, "eps": 1e-8}, 4, "signal-to-noise", snr=0.5, clip_norm=1.0)
    assert new.optimizer["lr"] == pytest.approx(3e-4 * 4 * 0.4**0.5)
    assert new.optimizer["betas"] == pytest.approx((0.9, 0.95**4))
    assert new.optimizer["eps"] == pytest.approx(1e-8 * 0.4**0.5)
    assert new.optimizer["weight_decay"] == pytest.approx(0.1 / 0.4**0.5)
    assert new.clip_norm == pytest.approx(0.4**0.5)


def test_the_limits_of_the_snr_are_a_range_of_the_learning_rate():
    new = rescale(DICT, 4, "signal-to-noise", snr=(0.5, 0.4, 0.7))
    row = next(r for r in new.account if r.name == "lr")
    ends = [rescale(DICT, 4, "signal-to-noise", snr=snr).optimizer["lr"] for snr in (0.4, 0.7)]
    assert row.limits == pytest.approx(tuple(ends))
    assert f"between {ends[0]:.4g} and {ends[1]:.4g}" in str(new).replace("\n  ", " ")
    assert next(r for r in new.account if r.name == "b2").limits is None
    assert rescale(DICT, 4, "signal-to-noise", snr=0.5).account[0].limits is None


def test_second_moments_alone_keep_their_half_life():
    assert rescale(DICT, 16, momentum="second-moment").optimizer["betas"] == pytest.approx((0.9, 0.95**16))
    recipe = rescale(DICT, 0.25, "marek2025").optimizer
    assert recipe == {**DICT, "betas": pytest.approx((0.9, 0.95**0.25))}
    plain = {"optimizer": "rmsprop", "lr": 1e-3, "alpha": 0.9, "momentum": 0.5}
    new = rescale(plain, 4, momentum="second-moment").optimizer
    assert (new["alpha"], new["momentum"]) == pytest.approx((0.9**4, 0.5))


def test_what_loses_the_damping_is_offered_last_and_with_a_warning():
    """(2 + 2β)/((1 − β)η): at b1 = .9 to the power 16, .185, the limit is 52 times lower, of which lr explains 4."""
    with pytest.raises(ValueError, match="got 16") as refused:
        rescale(DICT, 16)
    said = str(refused.value)
    assert said.index("'second-moment'") < said.index("'time'") < said.index("'half-life'")
    assert "loses its damping" in said
    halved = rescale(DICT, 16, momentum="half-life")
    assert any("in doubt whether steps stay stable" in text for text in halved.assumed)
    kept = rescale(DICT, 16, momentum="second-moment")
    assert any("Steps stay stable" in text for text in kept.assumed)
    assert not any("in doubt" in text for text in kept.assumed)
    damped = rescale({"optimizer": "sgd", "lr": 0.1, "momentum": 0.9}, 8, momentum="half-life")
    assert any("'fixed' keeps it" in text for text in damped.assumed)


def test_a_longer_run_keeps_its_decay_time_scale_as_a_share():
    """τ = 1/(ηθ) steps: 33 333 of 10 000 before; of 20 000 old steps after, at an unchanged η twice as long."""
    new = rescale(DICT, 1, tokens=2, steps=10_000, warmup=500, batch_size=256)
    assert new.optimizer == {**DICT, "weight_decay": 0.05}
    assert (new.steps, new.warmup) == (20_000, 500)
    (time,) = new.decay_times
    assert (time.before, time.after) == pytest.approx((1 / 3e-5, 2 / 3e-5))
    assert (time.share_before, time.share_after) == pytest.approx((10 / 3, 10 / 3))
    assert "8.533e+06 (3.33 of the run) before, 1.707e+07 (3.33 of the run) after" in str(new).replace("\n  ", " ")
    both = rescale(DICT, 4, tokens=0.5)
    assert both.optimizer["weight_decay"] == pytest.approx(0.1 * 2 / 0.5)  # √δ of the rule, and the horizon
    assert both.decay_times[0].after == pytest.approx(0.5 * both.decay_times[0].before)
    assert rescale({**DICT, "optimizer": "adam"}, 4, tokens=2).decay_times == ()
    held = rescale(sl.SGD(0.1, weight_decay=0.01, decay="independent"), 1, tokens=4)
    assert (held.optimizer.weight_decay, held.decay_times[0].before) == pytest.approx((0.0025, 100))
    groups = rescale([DICT, {**DICT, "weight_decay": 0.0}], 4)
    assert [t.group for t in groups.decay_times] == [0]


def test_a_schedule_spans_the_longer_run_and_its_warm_up_does_not():
    new = rescale(sl.AdamW(1e-3, schedule=sl.Warmup(40, sl.Cosine(400))), 4, tokens=3)
    assert new.optimizer.schedule.describe() == sl.Warmup(10, sl.Cosine(320)).describe()  # (3 · 440 − 40)/4
    spec = sl.AdamW(1e-3, schedule=lambda k: jnp.exp(-k / 50))
    longer = rescale(spec, 1, tokens=2).optimizer
    assert float(longer.multiplier(100)) == pytest.approx(np.exp(-1), rel=1e-5)
    power = rescale(sl.AdamW(1e-3, schedule=sl.Polynomial(0.5)), 1, tokens=2).optimizer
    assert float(power.multiplier(100)) == pytest.approx(1.1**-0.5, rel=1e-5)
    with pytest.raises(ValueError, match="shorter than the warm-up"):
        rescale(sl.AdamW(1e-3, schedule=sl.Warmup(40, sl.Cosine(40))), 1, tokens=0.25)


def test_the_square_root_rule_fails_by_the_squared_signal_where_the_gradient_dominates():
    spec = LONG["adamw"]
    new = rescale(spec, RATIO).optimizer
    errors = [mismatch(spec, new, snr)[0] for snr in (0.05, 0.1, 0.2)]
    assert errors[1] / errors[0] == pytest.approx(4, rel=0.1)
    assert errors[2] / errors[1] == pytest.approx(4, rel=0.1)


def test_signum_goes_from_the_square_root_rule_to_the_linear_one_as_its_memory_grows():
    """Exact ends: b = 0 is SignSGD; the mean sign of a settled mean under noise, drawn, is what is kept between."""
    assert rescale(sl.Signum(0.1, b1=0.0), 4).optimizer.lr == pytest.approx(0.2)
    assert rescale(sl.Signum(0.1, b1=1 - 1e-6), 4).optimizer.lr == pytest.approx(0.4, rel=1e-5)
    assert rescale(sl.Lion(0.1, b1=0.9, b2=1 - 1e-7), 4).optimizer.lr == pytest.approx(0.2, rel=1e-4)
    rng = np.random.default_rng(0)
    snr, rates = 0.05, {}
    for ratio, spec in ((1, sl.Signum(0.1, b1=0.9)), (4, rescale(sl.Signum(0.1, b1=0.9), 4).optimizer)):
        m, total, steps, width = np.zeros(4000), [], 600, 4000
        for k in range(steps):
            m = spec.b1 * m + (1 - spec.b1) * (snr + rng.normal(size=width) / np.sqrt(ratio))
            if k >= 100:
                total.append(np.sign(m).mean())
        # Along a path the signs are correlated over some ten steps; paths are independent.
        rates[ratio] = (spec.lr / ratio * np.mean(total), spec.lr / ratio * np.sqrt(20 / (len(total) * width)))
    (one, sem), (four, sem4) = rates[1], rates[4]
    # 5 standard errors (one false alarm in 1.7 million), and the next term of the mean sign, (snr/sd)²/6 = 0.8 %.
    assert abs(four - one) < 5 * np.hypot(sem, sem4) + 0.008 * one
    assert abs(2 * one - four) > 0.5 * one  # the plain square-root rule would give half


def test_a_schedule_is_the_same_function_of_the_number_of_samples():
    schedule = sl.Warmup(40, sl.Cosine(400))
    spec = sl.AdamW(1e-3, schedule=schedule)
    new = rescale(spec, 4)
    assert new.optimizer.schedule.describe() == sl.Warmup(10, sl.Cosine(100)).describe()
    assert {"warm-up steps", "cosine steps"} <= {r.name for r in new.account}
    for kind in (sl.Polynomial(0.7), lambda k: jnp.exp(-k / 50)):
        spec = sl.AdamW(1e-3, schedule=kind)
        new = rescale(spec, 4).optimizer
        steps = range(0, 400, 40)
        np.testing.assert_allclose(
            [new.multiplier(k / 4) for k in steps], [spec.multiplier(k) for k in steps], rtol=1e-5
        )
        again = rescale(new, 0.25).optimizer
        np.testing.assert_allclose([again.multiplier(k) for k in steps], [spec.multiplier(k) for k in steps], rtol=1e-5)


def test_the_account_names_every_number_and_rounding():
    new = rescale(DICT, 4, steps=10_001, warmup=500, clip_norm=1.0)
    assert new.optimizer == {**DICT, "lr": 6e-4, "betas": (0.6, 0.8), "eps": 5e-9, "weight_decay": 0.2}
    assert (new.steps, new.warmup, new.clip_norm) == (2500, 125, 0.5)
    table = {r.name: r for r in new.account}
    assert set(table) == {"lr", "b1", "b2", "eps", "weight_decay", "steps", "warmup", "clip_norm"}
    assert "rounded" in table["steps"].why
    assert "rounded" not in table["warmup"].why
    for row in new.account:
        one = [1 - row.before, 1 - row.after] if row.of.startswith("1 − ") else [row.before, row.after]
        assert one[1] / one[0] == pytest.approx(row.factor)
    text = str(new)
    for word in ("lr", "0.0006", "Assumptions", "normalisation", "sl.diagnose", "‖g‖"):
        assert word in text
    assert_shown_well(new)


def test_l2_in_the_gradient_stays_and_decoupled_decay_moves():
    for name, after in (("adam", 0.1), ("adamw", 0.2)):
        assert rescale({**DICT, "optimizer": name}, 4).optimizer["weight_decay"] == pytest.approx(after)
    independent = rescale(DICT, 4, decay="independent")
    assert independent.optimizer == {**rescale({**DICT, "decay": "independent"}, 4).optimizer}
    assert independent.optimizer["weight_decay"] == pytest.approx(0.4)
    assert "weight_decay=666.666666667" in as_code(independent, "torch")  # 0.4/6e-4, which lr multiplies there
    assert rescale({**DICT, "decay": "l2"}, 4).optimizer["weight_decay"] == 0.1
    assert rescale(DICT, 4, "malladi2022").optimizer["weight_decay"] == 0.1
    assert rescale(DICT, 4, "linear").optimizer["weight_decay"] == pytest.approx(0.1)
    assert rescale(DICT, 4, "bergsma2025").optimizer == {**DICT, "weight_decay": 0.4}


def test_undamped_momentum_takes_the_change_of_its_gain():
    """PyTorch's lr is η(1 − μ)/(1 − τ): δ for η and δ for 1 − μ; with τ = μ the buffer is a mean."""
    plain = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
    new = rescale(plain, 2).optimizer
    assert (new["lr"], new["momentum"], new["weight_decay"]) == pytest.approx((0.4, 0.8, 1e-4))
    spec = rescale(sl.Momentum.undamped(0.1, 0.9), 2).optimizer
    assert spec.lr * (1 - spec.b1) == pytest.approx(new["lr"])
    assert rescale(plain, 2, momentum="fixed").optimizer["lr"] == pytest.approx(0.2)
    damped = rescale({**plain, "dampening": 0.9}, 2).optimizer
    assert (damped["lr"], damped["dampening"], damped["momentum"]) == pytest.approx((0.2, 0.8, 0.8))
    partly = rescale({**plain, "dampening": 0.5}, 2).optimizer
    assert (partly["lr"], partly["dampening"]) == pytest.approx((0.4, 0.5))


def test_dicts_keep_what_is_no_number_and_groups_are_kept_apart():
    groups = [
        {"params": ["w"], "name": "w", "lr": 1e-3, "betas": [0.9, 0.99], "eps": 1e-8, "weight_decay": 0.1,
         "amsgrad": False, "foreach": None, "decoupled_weight_decay": True, "initial_lr": 2e-3},
        {"params": ["b"], "lr": 1e-2, "betas": [0.95, 0.99], "eps": 1e-8, "weight_decay": 0,
         "decoupled_weight_decay": True},
    ]  # fmt: skip
    new = rescale(groups, 4)
    assert [g["params"] for g in new.optimizer] == [["w"], ["b"]]
    first, second = new.optimizer
    assert (first["lr"], first["initial_lr"], first["weight_decay"]) == (2e-3, 4e-3, 0.2)
    assert first["betas"] == pytest.approx([0.6, 0.96])
    assert second["betas"] == pytest.approx([0.8, 0.96])
    assert (second["lr"], second["weight_decay"], first["foreach"], first["amsgrad"]) == (2e-2, 0, None, False)
    assert {r.group for r in new.account} == {0, 1}
    assert groups[0]["lr"] == 1e-3
    assert rescale({"optimizer": "rmsprop", "learning_rate": 1e-3, "decay": 0.9}, 4).optimizer["decay"] == 0.6


def test_keys_of_pytorch_and_optax_without_a_number_to_rescale_are_kept():
    flags = dict.fromkeys(("fused", "foreach", "maximize", "capturable", "differentiable", "amsgrad"), False)
    names = {"params": [0, 1, 2], "param_names": ["a"], "name": "head", "mask": None, "mu_dtype": "float32"}
    own = {**flags, **names, "no_weight_decay": True, "group_name": "embedding", "eps_root": 0.0}
    new = rescale({**DICT, **own}, 4).optimizer
    assert {key: new[key] for key in own} == own


def test_a_memory_of_no_steps_stays_none_and_one_step_is_the_limit():
    assert rescale(sl.AdamW(1e-3, b1=0.0, b2=0.99), 4).optimizer.b1 == 0
    assert rescale(sl.AdamW(1e-3, b1=0.9, b2=0.95), 10).optimizer.b1 == 0
    assert rescale(sl.AdamW(1e-3, b1=0.9, b2=0.95), 1e4, momentum="half-life").optimizer.b1 == 0


BAD = {
    "too large": (lambda: rescale(DICT, 16), ["got 16", "possible ratio is 10", "20 for b2", "half-life", "ramp"]),
    "by time": (lambda: rescale(DICT, 200, momentum="time"), ["The largest possible ratio is 100", "400 for b2"]),
    "ratio": (lambda: rescale(DICT, 0), ["batch_ratio: got 0"]),
    "ratio text": (lambda: rescale(DICT, "4"), ["batch_ratio: got '4'"]),
    "rule": (lambda: rescale(DICT, 4, "squrt"), ["rule: got 'squrt'", "Did you mean 'sqrt'"]),
    "foreign rule": (lambda: rescale(sl.SGD(0.1), 4, "malladi2022"), ["rmspropw and adamw", "'linear'"]),
    "momentum": (lambda: rescale(DICT, 4, momentum="token"), ["momentum: got 'token'"]),
    "time of signs": (lambda: rescale(sl.Lion(0.1), 2, momentum="time"), ["momentum: got 'time'"]),
    "decay": (lambda: rescale(DICT, 4, decay="both"), ["decay: got 'both'"]),
    "no rule": (lambda: rescale(sl.Muon(0.1), 2), ["optimizer: got Muon, for which no scaling rule is known"]),
    "decay twice": (lambda: rescale({**DICT, "decay": "coupled"}, 4, decay="l2"), ["'l2', but the dict has 'coupled'"]),
    "decay of a specification": (lambda: rescale(sl.SGD(0.1), 4, decay="l2"), ["leave it out"]),
    "steps": (lambda: rescale(DICT, 4, steps=0), ["steps: got 0"]),
    "warm-up": (lambda: rescale(DICT, 4, warmup=1.5), ["warmup: got 1.5"]),
    "clip": (lambda: rescale(DICT, 4, clip_norm=-1), ["clip_norm: got -1"]),
    "unknown number": (lambda: rescale({**DICT, "trust": 0.1, "x": 2}, 4), ["trust = 0.1, x = 2"]),
    "misspelt pair": (
        lambda: rescale({"optimizer": "adamw", "lr": 3e-4, "beta": (0.9, 0.95)}, 4),
        ["beta = (0.9, 0.95)", "Did you mean 'betas'?"],
    ),
    "misspelt in advise": (
        lambda: sl.advise(1000, batch_size=256, optimizer={"optimizer": "adamw", "lr": 3e-4, "beta": (0.9, 0.95)}),
        ["Did you mean 'betas'?"],
    ),
    "misspelt without a number": (lambda: rescale({**DICT, "weight_decays": None}, 4), ["mean 'weight_decay'?"]),
    "misspelt flag": (lambda: rescale({**DICT, "amsgrat": False}, 4), ["amsgrat = False", "mean 'amsgrad'?"]),
    "pair without a rule": (lambda: rescale({**DICT, "range": [0.1, 0.2]}, 4), ["range = [0.1, 0.2]"]),
    "number as the kind of decay": (lambda: rescale({**DICT, "decay": 0.9}, 4), ["decay = 0.9 of adamw"]),
    "pair of another optimizer": (
        lambda: rescale({"optimizer": "sgd", "lr": 0.1, "betas": (0.9, 0.95)}, 4),
        ["betas = (0.9, 0.95) of sgd"],
    ),
    "no name": (lambda: rescale({"lr": 0.1}, 4), ["optimizer: the dict does not name an optimizer"]),
    "name": (lambda: rescale({"optimizer": "adan", "lr": 0.1}, 4), ["optimizer: got 'adan'"]),
    "no lr": (lambda: rescale({"optimizer": "sgd"}, 4), ["lr: the dict has no learning rate"]),
    "no b2": (lambda: rescale({"optimizer": "rmsprop", "lr": 0.1}, 4), ["b2: the dict has no b2"]),
    "betas": (lambda: rescale({**DICT, "betas": (0.9,)}, 4), ["betas: got (0.9,)"]),
    "twice": (lambda: rescale({"optimizer": "signum", "lr": 0.1, "b1": 0.9, "beta1": 0.9}, 4), ["b1: got two values"]),
    "beta": (lambda: rescale({**DICT, "betas": (0.9, 1.0)}, 4), ["betas: got 1.0"]),
    "dampening": (lambda: rescale({"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "dampening": 1}, 4), ["dampening"]),
    "empty": (lambda: rescale([], 4), ["optimizer: got a list that is empty"]),
    "group": (lambda: rescale([DICT, {"optimizer": "sgd"}], 4), ["group 1: lr: the dict has no learning rate"]),
    "transformation": (lambda: rescale(sl.FromOptax(optax.sgd, 0.1), 4), ["hyperparameters cannot be read"]),
    "object": (lambda: rescale(3.0, 4), ["optimizer: got float"]),
    "no snr": (lambda: rescale(DICT, 4, "signal-to-noise"), ["snr: not given", "sdelens.torch.watch"]),
    "idle snr": (lambda: rescale(DICT, 4, snr=0.5), ["snr: got 0.5", "rule 'sqrt' does not use"]),
    "unknown snr": (lambda: rescale(DICT, 4, "signal-to-noise", snr=float("nan")), ["snr: got nan", "lower bound"]),
    "negative snr": (lambda: rescale(DICT, 4, "signal-to-noise", snr=-1), ["snr: got -1"]),
    "two snr": (lambda: rescale(DICT, 4, "signal-to-noise", snr=(1, 2)), ["snr: got 2 numbers"]),
    "snr outside": (lambda: rescale(DICT, 4, "signal-to-noise", snr=(3, 1, 2)), ["between its limits"]),
    "snr of SGD": (lambda: rescale(sl.SGD(0.1), 4, "signal-to-noise", snr=1), ["not to sgd", "'linear'"]),
    "squares of SGD": (lambda: rescale(sl.Momentum(0.1), 4, momentum="second-moment"), ["no mean of squared"]),
    "tokens": (lambda: rescale(DICT, 4, tokens=0), ["tokens: got 0"]),
    "batch": (lambda: rescale(DICT, 4, batch_size=-1), ["batch_size: got -1"]),
    "too large by time": (
        lambda: rescale(DICT, 20, "signal-to-noise", momentum="time", snr=1.0),
        ["possible ratio is 13.6", "second-moment"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("action", "messages"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_with_its_name_and_a_remedy(action, messages):
    with pytest.raises((ValueError, TypeError)) as caught:
        action()
    for message in messages:
        assert message in str(caught.value)


def optax_state(make, steps=30, **options):
    tx = optax.chain(optax.clip_by_global_norm(1e9), optax.inject_hyperparams(make)(**options))
    params, rng, update = {"w": np.zeros(2000, np.float32)}, np.random.default_rng(0), jax.jit(tx.update)
    state = tx.init(params)
    for _ in range(steps):
        _, state = update({"w": rng.standard_normal(2000, np.float32)}, state, params)
    return state


def test_an_optax_state_is_rescaled_as_the_live_optimizer_is():
    options = {"learning_rate": 1e-3, "b1": 0.9, "b2": 0.99, "eps": 1e-8, "weight_decay": 0.1}
    state = optax_state(optax.adamw, **options)
    new = rescale(state, 4).optimizer
    assert jax.tree.structure(new) == jax.tree.structure(state)
    found = {k: float(v) for k, v in new[1].hyperparams.items()}
    expected = {"learning_rate": 2e-3, "b1": 0.6, "b2": 0.96, "eps": 5e-9, "weight_decay": 0.2}
    assert {k: found[k] for k in expected} == pytest.approx(expected, rel=1e-6)
    old, inner = (s[1].inner_state[0] for s in (state, new))
    np.testing.assert_allclose(inner.nu["w"] / old.nu["w"], 0.25, rtol=0.1)
    assert (int(old.count), int(inner.count)) == (30, 7)
    assert (rescale(state, 4, accumulators="keep").optimizer[1].inner_state[0].nu["w"] == old.nu["w"]).all()
    assert rescale(state, 10).optimizer[1].hyperparams["b1"] == 0  # float32's 0.9 is 0.9
    momentum = optax_state(optax.sgd, learning_rate=0.1, momentum=0.9)
    new = rescale(momentum, 2).optimizer[1]
    assert float(new.hyperparams["learning_rate"]) == pytest.approx(0.4)
    old, inner = (jax.tree.leaves(s.inner_state)[0] for s in (momentum[1], new))
    np.testing.assert_allclose(inner, old / 2, rtol=1e-6)


def test_an_optax_state_of_centred_rmsprop_keeps_its_variance_positive():
    tx = optax.inject_hyperparams(optax.rmsprop)(learning_rate=1e-3, decay=0.9, centered=True)
    params = {"w": jnp.zeros(50)}
    state = tx.init(params)
    for k in range(30):
        _, state = tx.update({"w": 1 + jax.random.normal(jax.random.key(k), (50,))}, state, params)
    account = rescale(state, 4)
    assert float(account.optimizer.hyperparams["eps"]) == pytest.approx(1e-8 / 4)  # optax's is inside the root
    assert any("inside the root" in text for text in account.assumed)
    old, new = (s.inner_state[0] for s in (state, account.optimizer))
    mean = old.mu["w"] ** 2
    np.testing.assert_allclose(new.nu["w"], mean + (old.nu["w"] - mean) / 4, rtol=1e-5)
    assert bool((new.nu["w"] >= new.mu["w"] ** 2).all())


@pytest.mark.parametrize("name", ["adamax", "adamaxw", "yogi", "radam", "lamb"])
def test_optimizers_with_adams_accumulators_are_not_taken_for_adam(name):
    state = optax.inject_hyperparams(getattr(optax, name))(learning_rate=1e-3).init({"w": jnp.zeros(2)})
    with pytest.raises(ValueError, match=r"are not those of optax\.adam or optax\.adamw"):
        rescale(state, 4)


def test_optax_states_without_numbers_or_with_schedules_are_refused():
    with pytest.raises(ValueError, match="contains no hyperparameters"):
        rescale(optax.adam(1e-3).init({"w": jnp.zeros(2)}), 2)
    with pytest.raises(ValueError, match="a schedule sets"):
        rescale(optax_state(optax.adamw, learning_rate=optax.cosine_decay_schedule(0.1, 10), steps=1), 2)
    with pytest.raises(ValueError, match="cannot be identified"):
        rescale(optax_state(optax.sgd, learning_rate=0.1, steps=1), 2)
    with pytest.raises(ValueError, match="no injected b1, b2, which lion"):
        rescale(optax_state(lambda learning_rate: optax.lion(learning_rate, 0.8), learning_rate=0.1, steps=1), 2)


STAGES = [(0, 100), (1000, 200), (3000, 400)]


@KINDS
def test_a_ramp_has_the_numbers_of_every_batch_size_and_runs_in_optax(spec):
    if spec.name == "adagrad":
        with pytest.raises(ValueError, match="includes all earlier batches"):
            sl.scaling.ramp(spec, STAGES, samples=5000)
        return
    run = sl.scaling.ramp(spec, STAGES, samples=5001)
    assert run.batch_size.tolist() == [100] * 10 + [200] * 10 + [400] * 6
    assert run.samples.tolist() == np.concatenate([[0], np.cumsum(run.batch_size)[:-1]]).tolist()
    for step, ratio in ((0, 1), (12, 2), (25, 4)):
        expected = numbers(rescale(spec, ratio).optimizer)
        found = run.at(step)
        assert {k: found[k] for k in expected if k in found} == pytest.approx(
            {k: v for k, v in expected.items() if k in found}
        )
        assert float(run.schedules["lr"](step)) == pytest.approx(expected["lr"])
    x = {"w": jnp.asarray([1.0, -2.0])}
    tx = run.to_optax(accumulators="keep")
    state = tx.init(x)
    small, large = spec.to_optax(), rescale(spec, 2).optimizer.to_optax()
    plain, inner = x, small.init(x)
    for k in range(12):  # ten steps of the first batch size, two of the second
        gradient = {"w": jnp.asarray([0.3, -0.1]) * (k + 1)}
        updates, state = tx.update(gradient, state, x)
        x = {"w": x["w"] + updates["w"]}
        updates, inner = (small if k < 10 else large).update(gradient, inner, plain)
        plain = {"w": plain["w"] + updates["w"]}
    np.testing.assert_allclose(x["w"], plain["w"], rtol=1e-4)
    assert "400" in str(run)


def test_ramps_by_functions_steps_dicts_and_schedules():
    growing = sl.scaling.ramp(sl.SGD(0.1), lambda seen: 100 + seen / 50, steps=60)
    assert growing.steps == 60
    assert growing.at(59)["lr"] == pytest.approx(0.1 * growing.at(59)["batch_size"] / 100)
    assert growing.batch_size[-1] == round(100 + growing.samples[-1] / 50)
    assert "are shown" in str(growing)
    by_step = sl.scaling.ramp(sl.SGD(0.1), [(0, 100), (7, 200)], unit="steps", steps=9)
    assert by_step.batch_size.tolist() == [100] * 7 + [200] * 2
    base = sl.scaling.ramp(sl.SGD(0.1), [(0, 100)], steps=1, batch_size=50)
    assert base.at(0)["lr"] == pytest.approx(0.2)
    spec = sl.SignSGD(0.1, weight_decay=0.02, decay="independent", schedule=sl.Cosine(20))
    run = sl.scaling.ramp(spec, [(0, 100), (1000, 200)], samples=2000)
    assert run.numbers["lr"][12] == pytest.approx(0.1 * 2**0.5 * float(sl.Cosine(20)(14, 0.1)))
    x = {"w": jnp.ones(1)}
    tx = run.to_optax()
    moved, _ = tx.update({"w": jnp.ones(1)}, tx.init(x), x)
    assert float(moved["w"][0]) == pytest.approx(-0.12)
    torch_like = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.5}
    tx = sl.scaling.ramp(torch_like, [(0, 100)], steps=3).to_optax()
    moved, _ = tx.update({"w": jnp.ones(1)}, tx.init(x), x)
    assert float(moved["w"][0]) == pytest.approx(-0.15)  # lr (g + θx), PyTorch's first step


BAD_RAMPS = {
    "illegal": (lambda: sl.scaling.ramp(DICT, [(0, 256), (1e6, 4096)], samples=2e6), ["from 256 to 4096", "10"]),
    "order": (lambda: sl.scaling.ramp(DICT, [(0, 256), (0, 512)], steps=5), ["must start at 0 and increase"]),
    "start": (lambda: sl.scaling.ramp(DICT, [(5, 256)], steps=5), ["must start at 0"]),
    "kind": (lambda: sl.scaling.ramp(DICT, 256, steps=5), ["batches: got 256"]),
    "size": (lambda: sl.scaling.ramp(DICT, [(0, 0)], steps=5), ["batches: got 0"]),
    "budget": (lambda: sl.scaling.ramp(DICT, [(0, 1)]), ["steps: got both or neither"]),
    "unit": (lambda: sl.scaling.ramp(DICT, [(0, 1)], steps=3, unit="epochs"), ["unit: got 'epochs'"]),
    "function": (lambda: sl.scaling.ramp(DICT, lambda s: 0, steps=3), ["batches: got 0"]),
    "function of steps": (lambda: sl.scaling.ramp(DICT, lambda s: 9, steps=3, unit="steps"), ["unit: got"]),
    "groups": (lambda: sl.scaling.ramp([DICT], [(0, 1)], steps=3), ["one ramp for each parameter group"]),
    "endless": (lambda: sl.scaling.ramp(DICT, [(0, 1)], samples=1e12), ["more than 20,000,000 steps"]),
    "step": (lambda: sl.scaling.ramp(DICT, [(0, 1)], steps=3).at(-1), ["step: got -1"]),
}  # fmt: skip


@pytest.mark.parametrize(("action", "messages"), BAD_RAMPS.values(), ids=BAD_RAMPS.keys())
def test_bad_ramps_are_refused(action, messages):
    with pytest.raises((ValueError, TypeError)) as caught:
        action()
    for message in messages:
        assert message in str(caught.value)


COMMANDS = {
    "adamw": ("adamw", "--b1", "0.9", "--b2", "0.95", "--weight-decay", "0.1", "--clip-norm", "1", "--warmup", "500"),
    "adam": ("adam", "--weight-decay", "0.1", "--warmup", "4"),
    "independent": ("adamw", "--weight-decay", "1e-4", "--decay", "independent"),
    "rmsprop": ("rmsprop", "--mu", "0.9"),
    "rmspropw": ("rmspropw", "--weight-decay", "0.1"),
    "sgd": ("sgd", "--mu", "0.9", "--nesterov", "--weight-decay", "1e-4"),
    "momentum": ("momentum", "--weight-decay", "0.1"),
    "signsgd": ("signsgd", "--weight-decay", "0.1"),
    "signum": ("signum",),
    "lion": ("lion", "--weight-decay", "0.1"),
    "adagrad": ("adagrad",),
}
IN_TORCH = ("adamw", "adam", "independent", "rmsprop", "sgd")


def shell(*arguments):
    return CliRunner().invoke(app, ["scale", *arguments])


def first_updates(make, gradients):
    """Parameters after some optax steps from 1."""
    x = jnp.ones(3)
    state = make.init(x)
    for gradient in gradients:
        updates, state = make.update(gradient, state, x)
        x = x + updates
    return np.asarray(x)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_shell_prints_code_that_runs_and_is_the_rescaled_optimizer(name):
    base = (*COMMANDS[name], "--lr", "1e-3", "--batch", "256", "--to", "512", "--steps", "1000")
    table = shell(*base)
    assert table.exit_code == 0, table.output
    assert "Assumptions" in table.output
    numbers = json.loads(shell(*base, "--format", "json").output)
    assert numbers["steps"] == 500
    made = {}
    exec(shell(*base, "--format", "optax").output, made)
    gradients = [jnp.asarray([0.3, -0.2, 0.1]) * (k + 1) / 10 for k in range(5)]
    found = first_updates(made["optimizer"], gradients)
    if name in IN_TORCH:
        torch = pytest.importorskip("torch")
        parameter = torch.nn.Parameter(torch.ones(3))
        scope = {"model": torch.nn.ParameterList([parameter])}
        exec(shell(*base, "--format", "torch").output, scope)
        for gradient in gradients:
            parameter.grad = torch.tensor(np.asarray(gradient))
            scope["optimizer"].step()
            if "scheduler" in scope:
                scope["scheduler"].step()
        np.testing.assert_allclose(parameter.detach().numpy(), found, rtol=1e-5)
    else:
        refused = shell(*base, "--format", "torch")
        assert refused.exit_code == 2
        said = "torch.optim.Adagrad adds ε outside the root" if name == "adagrad" else f"torch.optim has no {name}"
        assert said in refused.output
    if name in SPECIFICATIONS and name not in ("sgd", "rmspropw"):
        keys = {f.name for f in dataclasses.fields(SPECIFICATIONS[name])}
        given = {k: v for k, v in numbers.items() if k in keys and k != "decay"}
        warm = {"schedule": sl.Warmup(numbers["warmup"])} if "warmup" in numbers else {}
        spec = type(SPECIFICATIONS[name])(**given, **warm)
        np.testing.assert_allclose(first_updates(spec.to_optax(), gradients), found, rtol=1e-5)


def test_the_shell_refuses_with_the_remedies_and_needs_no_jax():
    base = ("adamw", "--lr", "3e-4", "--b1", "0.9", "--b2", "0.95", "--batch", "256", "--to", "4096")
    refused = shell(*base)
    assert refused.exit_code == 2
    assert all(word in refused.output for word in ("got 16", "The largest possible ratio is 10", "half-life", "'time'"))
    assert shell(*base, "--momentum", "half-life").exit_code == 0
    assert "--format" not in shell("adamw", "--lr", "1", "--batch", "1", "--to", "2", "--format", "xml").stdout
    measured = shell(
        *base, "--rule", "signal-to-noise", "--snr", "0.47,0.4,0.6", "--tokens", "2", "--weight-decay", "1"
    )
    new = rescale({**DICT, "weight_decay": 1.0}, 16, "signal-to-noise", snr=(0.47, 0.4, 0.6), tokens=2)
    assert f"{new.optimizer['lr']:.6g}" in measured.output
    assert f"{new.optimizer['weight_decay']:.6g}" in measured.output
    assert "in samples" in measured.output
    code = (
        "import sys; from sdelens.shell.app import app\n"
        "try: app(['scale', 'adamw', '--lr', '1e-3', '--batch', '1', '--to', '2'])\n"
        "except SystemExit: pass\n"
        "assert not {'jax', 'optax', 'torch', 'scipy'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rate": 0.5}, "lr: got two values, as lr and learning_rate"),
        ({"b1": 0.9}, "betas: got two values, as betas and b1"),
        ({"max_momentum": 0.95}, "max_momentum: belongs to a scheduler"),
    ],
    ids=str,
)
def test_numbers_given_twice_or_by_a_scheduler_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        rescale({"optimizer": "adamw", "lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-8, **given}, 4)


def test_what_matters_only_at_the_start_is_kept():
    state = optax.inject_hyperparams(optax.rmsprop)(learning_rate=0.1).init(jnp.ones(3))
    assert float(rescale(state, 4).optimizer.hyperparams["learning_rate"]) == pytest.approx(0.2)


def test_stability_counts_the_momentum_as_it_is_written():
    """RMSprop with PyTorch's momentum is stable up to (2 + 2μ)/lr: 3800 at μ = .9, lr = .001, 400 at .6, .008."""
    said = rescale({"optimizer": "rmsprop", "lr": 1e-3, "alpha": 0.99, "momentum": 0.9, "eps": 1e-8}, 4)
    assert said.optimizer["lr"] == pytest.approx(0.008)
    assert any("3.8e+03 before and 400 after" in line for line in said.assumed)


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="warmup: got 5, which is more than the run's 1 steps"):
        rescale(sl.SGD(0.1), 4, steps=1, warmup=5)


def test_momentum_by_time_moves_memories_as_the_learning_rate():
    """1 − β goes as lr does, √δ here, so that memories keep their length in units of lr × steps."""
    new = rescale(sl.AdamW(1e-3, 0.9, 0.99), 4, momentum="time").optimizer
    assert float(new.lr) == pytest.approx(2e-3)
    assert float(1 - new.b1) == pytest.approx(2 * 0.1)
    assert float(1 - new.b2) == pytest.approx(2 * 0.01)
