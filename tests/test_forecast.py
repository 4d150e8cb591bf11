"""The law of a run on a power-law quadratic, its fit to logs, and what the fit says of itself."""

import json

import jax
import numpy as np
import pytest

import sdelens as sl
from sdelens.forecast._dynamics import setting_of
from sdelens.forecast._fit import Curve, Solution, curves_of, frame_of, thinned_runs
from sdelens.forecast._misfit import misfits
from sdelens.forecast._numbers import parameters_of
from tests.forecasts import STEPS, TRUTH, adamw, curve, naive, run, three_runs, warm_up, with_numbers

SCATTER = 0.002


@pytest.fixture(scope="module")
def fitted():
    return sl.forecast.fit(three_runs(scatter=SCATTER))


# The law


@pytest.mark.parametrize(
    "optimizer",
    [
        adamw(sl.Cosine(900)),
        sl.SGD(lr=5e-6, schedule=warm_up(sl.Cosine(900))),
        sl.SignSGD(lr=1e-3, schedule=warm_up(sl.Cosine(900))),
        sl.Lion(lr=3e-4, weight_decay=0.1, schedule=warm_up()),
        sl.SGD(lr=4.5e-5, schedule=warm_up()),  # ηλ = 1.8
    ],
    ids=lambda o: o.name,
)
def test_blocks_follow_the_law_step_by_step(optimizer):
    # Blocks freeze the coefficients: measured, up to .09 of the loss is lost while it changes by a factor within a few
    # steps of the warm-up. The reference integrates over the same grid of modes.
    rates = sl.forecast.Run(([1000], [1.0]), optimizer).rates()
    u = np.linspace(0, np.log(1e12), 48)
    weights = np.gradient(u) * np.exp(u)
    weights[[0, -1]] = 0.5 * (u[1] - u[0]) * np.exp(u[[0, -1]])
    reference = naive(optimizer, TRUTH, rates, np.exp(u), weights)
    at = np.array([300, 600, 1000])
    found = curve(TRUTH, optimizer, at, 1000) - TRUTH.infimum - TRUTH.reducible * np.exp((1 - 1.5) * np.log(1e12))
    np.testing.assert_allclose(found, reference[at - 1], rtol=0.01)


@pytest.mark.parametrize(
    ("optimizer", "tolerance"),
    [(sl.SGD(lr=0.02), 1e-3), (sl.RMSpropW(lr=0.01, b2=0.99), 0.03), (sl.SignSGD(lr=0.01), 0.03)],
    ids=["sgd", "rmspropw", "signsgd"],
)
def test_the_law_is_that_of_the_theory(optimizer, tolerance):
    # On a quadratic of a few modes the Gaussian closure of sl.theory, itself tested against simulation, is more exact.
    # v remembers gradients that the law takes as present ones, which matters while they are larger than their noise.
    modes = np.arange(1.0, 9.0)
    numbers = sl.forecast.PowerLaw(0.0, 0.2, 1.5, 5.0, 1.0, 2.0)
    curvature, risk = 5.0 / modes, 0.2 * 0.5 * modes**-1.5
    problem = sl.Quadratic(curvature, start=np.sqrt(2 * risk / curvature))
    theory = sl.theory.predict(problem, sl.GaussianNoise(2.0 * modes**-0.5), optimizer, steps=800, record_every=100)
    found = naive(optimizer, numbers, np.full(800, optimizer.lr), modes, np.ones(8))
    exact = theory.dataset.loss_mean.values[0]
    np.testing.assert_allclose(found[99::100], exact[1:], rtol=tolerance)


def test_the_norm_of_the_weights_is_exact_in_long_blocks():
    # 20 000 steps of decay .3 are nine memories of the norm, and the longest blocks have 417 steps.
    optimizer, total = sl.AdamW(lr=3e-3, b2=0.95, weight_decay=0.3, schedule=warm_up()), 20_000
    rates = sl.forecast.Run(([total], [1.0]), optimizer).rates()
    u = np.linspace(0, np.log(1e12), 48)
    weights = np.gradient(u) * np.exp(u)
    weights[[0, -1]] = 0.5 * (u[1] - u[0]) * np.exp(u[[0, -1]])
    reference = naive(optimizer, TRUTH, rates, np.exp(u), weights)[-1]
    found = curve(TRUTH, optimizer, np.array([total]), total)[0] - TRUTH.infimum - 3.0e-6
    assert found == pytest.approx(reference, rel=1e-3)


@pytest.mark.parametrize(
    "optimizer", [sl.Signum(lr=1e-3, b1=0.9), sl.Lion(lr=1e-3, b1=0.9, b2=0.99)], ids=lambda o: o.name
)
def test_the_averages_behind_a_sign_have_the_noise_of_a_simulation(optimizer):
    # κ² is the variance of the average, and τ that of a sum of its signs per step. 400 sums of 5000 steps: the standard
    # error of a variance is 7 %, and of κ² below 1 %.
    _, _, _, kappa, tau = setting_of(optimizer, 1.0, 0.0)
    noise = np.random.default_rng(0).normal(size=(400, 6000))
    memory = getattr(optimizer, "b2", optimizer.b1)
    mean, average = np.zeros(400), np.empty_like(noise)
    for k in range(noise.shape[1]):
        old, mean = mean, memory * mean + (1 - memory) * noise[:, k]
        average[:, k] = optimizer.b1 * old + (1 - optimizer.b1) * noise[:, k] if hasattr(optimizer, "b2") else mean
    late = average[:, 1000:]
    assert late.var() == pytest.approx(kappa**2, rel=0.05)
    assert np.sign(late).sum(1).var() / late.shape[1] == pytest.approx(tau, rel=4 * 0.07)


def test_a_batch_twice_as_large_halves_the_variance_of_sgd():
    optimizer, at = sl.SGD(lr=2e-5), np.array([4000])
    quiet = curve(with_numbers(noise=1e-6), optimizer, at, 4000)[0]
    one, two = (curve(TRUTH, optimizer, at, 4000, batch_size=b)[0] - quiet for b in (1.0, 2.0))
    assert one == pytest.approx(2 * two, rel=1e-6)


def test_missing_modes_raise_the_loss_of_a_small_model():
    numbers = with_numbers(modes=20.0, modes_exponent=0.5, reference_size=1e6, noise=1.0)
    at = np.array([STEPS])
    losses = [curve(numbers, adamw(), at, STEPS, log_size=np.log(factor))[0] for factor in (0.25, 1.0, 4.0)]
    missing = [3.0 * (20.0 * np.sqrt(factor)) ** -0.5 for factor in (0.25, 1.0, 4.0)]
    assert losses[0] > losses[1] > losses[2]
    assert losses[0] - losses[1] == pytest.approx(missing[0] - missing[1], rel=0.15)


# The fit


def test_the_numbers_of_a_known_quadratic_are_recovered(fitted):
    # The limits take six residuals of a curve as independent, where here all of some hundred are: they are four times
    # as wide as the errors of the fit, so that a true number outside them is six standard errors away.
    limits = fitted.limits
    assert list(limits.index) == [p.name for p in parameters_of(fitted._frame)]
    for name, row in limits.iterrows():
        assert row.lower < row.value < row.upper
        assert row.lower < getattr(TRUTH, name) < row.upper
    assert fitted.scatter == pytest.approx(SCATTER, rel=0.25)  # 3 × 100 residuals: standard error 5 %


def test_held_out_runs_lie_in_the_band(fitted):
    longer, at = adamw(sl.Cosine(3 * STEPS - 100, end=0.0)), np.arange(1000, 3 * STEPS + 1, 1000)
    truth = curve(TRUTH, longer, at, 3 * STEPS)
    band = fitted.band(fitted.plan(longer, steps=3 * STEPS), at, 0.99)
    assert (band.lower < truth).all()
    assert (truth < band.upper).all()
    assert (band.upper / band.lower < 1.05).all()


def test_the_fit_does_not_depend_on_chance_or_order(fitted):
    again = sl.forecast.fit(three_runs(scatter=SCATTER)[::-1])
    np.testing.assert_allclose(again._theta, fitted._theta, rtol=1e-3, atol=1e-3)


def test_a_record_survives_saving(fitted, tmp_path):
    fitted.save(tmp_path / "f.json")
    loaded = sl.forecast.load(tmp_path / "f.json")
    assert loaded.describe() == fitted.describe() == json.loads((tmp_path / "f.json").read_text())
    assert loaded.final(adamw(), steps=500) == fitted.final(adamw(), steps=500)
    assert str(loaded) == str(fitted)


def test_a_prediction_is_a_result_to_compare_with_a_log(fitted):
    logged = three_runs(scatter=SCATTER)[1]
    result = fitted.predict(logged.optimizer, steps=STEPS).with_curve("logged", logged.losses, logged.steps)
    assert result.compares
    assert result.errors().error["forecast"] < 0.02
    assert "Within the fitted range" in str(result)
    shown = result.plot()
    assert [axes.get_ylabel() for axes in shown.axes] == ["loss", "difference\n(% of height)"]


def test_what_lies_outside_the_range_is_said(fitted):
    result = fitted.predict(sl.AdamW(lr=4e-3, b1=0.9, b2=0.99, weight_decay=0.1), steps=8000)
    (outside,) = (model["outside"] for model in result.settings.values())
    assert any("peak learning rate is 4 times" in said for said in outside)
    assert any("number of steps is 2 times" in said for said in outside)
    assert any("b2 = 0.99 was not fitted" in said for said in outside)
    (other,) = fitted.predict(sl.SignSGD(lr=1e-3), steps=1000).settings.values()
    assert any(said.startswith("signsgd was not fitted (only adamw)") for said in other["outside"])
    assert "steps before 99, the first fitted one, are not described" in other["outside"]


def test_what_the_runs_do_not_tell_is_said(fitted):
    said = " ".join(fitted.remarks)
    assert "same peak learning rate" in said
    assert "SGD and Momentum cannot be predicted" in said
    one = sl.forecast.fit(three_runs(scatter=SCATTER)[:1])
    said = " ".join(one.remarks)
    assert "There is one run" in said
    assert "hardly tell" in said
    assert (one.limits.uncertainty > fitted.limits.uncertainty - 0.05).all()


# Runs that are no quadratic


def solution_of(runs, change):
    """The residuals of runs that are fitted exactly but for `change(steps)`, without a fit."""
    logs = thinned_runs(runs, None)
    frame = frame_of(runs, logs)
    curves, residuals = [], []
    for i, (one, c) in enumerate(zip(runs, curves_of(runs, logs, frame), strict=True)):
        clean = curve(TRUTH, one.optimizer, c.steps, one.total)
        residuals.append(np.log(c.losses / clean) + (change(c.steps) if i == 0 else 0))
        curves.append(Curve(*c[:5], c.losses * np.exp(change(c.steps) if i == 0 else 0), c.scatter))
    k = len(parameters_of(frame))
    return curves, Solution(np.zeros(k), np.eye(k), SCATTER, residuals)


CHANGES = {
    "jumps": lambda at: np.where(at > 1500, 0.04, 0.0),
    "rises": lambda at: 0.4 * np.maximum(at / 4000 - 0.5, 0) ** 2 / 0.25,
    "differ": lambda at: 0.3 * np.sin(at / 900.0),  # falls at the end
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_run_that_is_no_quadratic_is_noticed(kind):
    runs = three_runs(scatter=SCATTER)
    found = misfits(runs, *solution_of(runs, CHANGES[kind]))
    assert len(found) == 1
    assert found[0].startswith("constant: ")
    assert kind in found[0]
    if kind == "jumps":
        assert abs(int(found[0].split("near step ")[1].split(",")[0]) - 1500) < 150


def test_no_quadratic_is_falsely_accused():
    # 40 draws of three runs with clean errors; one false alarm in 120 would be a rate that users notice.
    runs = [three_runs(seed, scatter=SCATTER) for seed in range(40)]
    assert [said for three in runs for said in misfits(three, *solution_of(three, lambda at: 0.0 * at))] == []


# Bad input


def refused(message, function, *arguments, error=ValueError, **options):
    with pytest.raises(error, match=message):
        function(*arguments, **options)


def test_bad_runs_are_refused():
    one, sized = run(TRUTH, adamw(), "a"), run(TRUTH, adamw(), "b", batch_size=2.0)
    fit = sl.forecast.fit
    refused("runs: got none", fit, [])
    refused("runs: entry 1 is a int", fit, [one, 3], error=TypeError)
    refused("batch_size: missing for a; give it for all runs", fit, [one, sized])
    refused("2 of them are named 'a'; give each its own", fit, [one, run(TRUTH, adamw(), "a", seed=1)])
    refused("a and b have the same losses at the same steps", fit, [one, run(TRUTH, adamw(), "b")])
    refused("size: missing for a", fit, [one, run(TRUTH, adamw(), "c", size=1e6)])
    refused("they have 1 loss in all", fit, [sl.forecast.Run(([100], [2.0]), adamw())])
    refused("skip: got -1", fit, [one], skip=-1)


def test_bad_predictions_are_refused(fitted, tmp_path):
    refused("batch_size: got 3, but it was not fitted", fitted.predict, adamw(), steps=100, batch_size=3)
    refused("size: got 3, but it was not fitted", fitted.predict, adamw(), steps=100, size=3)
    refused("steps: got 0", fitted.predict, adamw(), steps=0)
    refused("steps: got 1000000000", fitted.predict, adamw(), steps=10**9)
    refused("schedule: got 3 multipliers for 4 steps", fitted.predict, adamw(), steps=4, schedule=[1, 1, 1])
    refused("confidence: got 1", fitted.predict, adamw(), steps=4, confidence=1.0)
    refused("at: must be strictly increasing", fitted.predict, adamw(), steps=9, at=[3, 2])
    refused("at: got 10, but the run has 9 steps; give whole", fitted.predict, adamw(), steps=9, at=[10])
    refused("confidence: got 90", fitted.final, adamw(), steps=9, confidence=90)
    refused("schedule: got the multiplier 1.5", fitted.predict, adamw(), steps=2, schedule=[1, 1.5])
    refused("sgd moves in proportion to the gradient", fitted.predict, sl.SGD(lr=0.1), steps=9)
    refused("optimizer: got Adagrad", fitted.predict, sl.Adagrad(lr=0.1), steps=9, error=TypeError)
    (tmp_path / "f.json").write_text("{}")
    refused("is not a forecast", sl.forecast.load, tmp_path / "f.json")
    refused("there is no file", sl.forecast.load, tmp_path / "g.json", error=FileNotFoundError)
    (tmp_path / "f.json").write_text(json.dumps(fitted.describe() | {"theta": None, "numbers": {}}))
    refused("lacks parts of a forecast", sl.forecast.load, tmp_path / "f.json")
    refused("reads 1; upgrade", _load_format, fitted, tmp_path / "f.json")
    for name, value in {"risk_exponent": 1.0, "modes": 0.5, "infimum": -1.0, "curvature": 0.0}.items():
        refused(name, with_numbers, **{name: value})


def _load_format(fitted, path):
    path.write_text(json.dumps(fitted.describe() | {"sdelens_forecast": 2}))
    sl.forecast.load(path)


@pytest.mark.slow
def test_runs_of_sgd_are_fitted():
    """The loss at a learning rate between those fitted, which tell all but the noise's share of it."""
    runs = [run(TRUTH, sl.SGD(lr=lr, schedule=warm_up()), f"{lr}") for lr in (1e-5, 2e-5)]
    between = sl.SGD(lr=1.5e-5, schedule=warm_up())
    truth = curve(TRUTH, between, np.array([STEPS]), STEPS)[0]
    assert sl.forecast.fit(runs).final(between, steps=STEPS).value == pytest.approx(truth, rel=0.02)


def test_float64_does_not_leak(fitted):
    fitted.final(adamw(), steps=100)
    assert jax.numpy.ones(1).dtype == "float32"
