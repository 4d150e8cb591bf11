"""Tracking errors: unbiased, with limits that cover, and a floor that is one."""

import numpy as np
import pytest
from scipy import stats

from sdelens.tracking import Curves, tracking_error

RECORDS, GROUPS = 40, 64
TIME = np.linspace(0, 4, RECORDS)
REFERENCE = np.exp(-TIME) + 0.05


def sample(rng, mean, sd, groups=GROUPS):
    """Group means with noise that is strongly correlated in time, as losses are."""
    steps = rng.normal(size=(groups, RECORDS))
    noise = np.zeros_like(steps)
    for k in range(1, RECORDS):
        noise[:, k] = 0.9 * noise[:, k - 1] + np.sqrt(1 - 0.81) * steps[:, k]
    return Curves(mean + sd * noise, np.full(groups, 10.0), "a")


def true_error(curve):
    return np.linalg.norm(curve - REFERENCE) / np.linalg.norm(REFERENCE)


@pytest.mark.parametrize("delta", [0.0, 0.002, 0.01, 0.03, 0.05, 0.1, 0.3], ids=lambda d: f"delta={d}")
def test_limits_cover_the_truth(delta):
    """One-sided 95 % limits miss in at most 5 % of runs; the test fails by chance with probability below 1e-4."""
    runs, confidence = 400, 0.95
    rng = np.random.default_rng(7)
    curve = REFERENCE * (1 + delta)
    truth = true_error(curve)
    misses = np.zeros(2, int)
    for _ in range(runs):
        model, reference = sample(rng, curve, 0.05), sample(rng, REFERENCE, 0.05)._replace(stream="b")
        result = tracking_error(model, reference, 0.0, confidence, resamples=600)
        misses += [result.lower > truth, result.upper < truth]
    allowed = stats.binom.isf(1e-4, runs, 1 - confidence)
    assert (misses <= allowed).all()


def test_limits_are_useful():
    """A model off by ten floors is told from one that is not, with room to spare, on average over runs.

    One-sided 99 % limits of the shift miss in at most 1 % of runs; chance allows more with probability below 1e-4.
    """
    rng = np.random.default_rng(3)
    runs, truth = 60, true_error(REFERENCE * 1.2)
    results = []
    for _ in range(runs):
        reference = sample(rng, REFERENCE, 0.05)._replace(stream="b")
        results.append(tracking_error(sample(rng, REFERENCE * 1.2, 0.05), reference, 0.0, resamples=1000))
    mean = np.mean(results, axis=0)
    average = dict(zip(results[0]._fields, mean, strict=True))
    assert average["lower"] > 5 * average["floor"]
    assert average["upper"] < 1.3 * truth
    misses = sum(not r.shift_lower < 0.2 < r.shift_upper for r in results)
    assert misses <= stats.binom.isf(1e-4, runs, 0.02)


def test_the_square_of_the_error_is_unbiased():
    rng = np.random.default_rng(11)
    curve = REFERENCE * 1.01
    scale = np.linalg.norm(REFERENCE)
    squares = []
    for _ in range(600):
        a, b = sample(rng, curve, 0.05), sample(rng, REFERENCE, 0.05)._replace(stream="b")
        difference = a.groups.mean(axis=0) - b.groups.mean(axis=0)
        noise_a, noise_b = (c.groups.var(axis=0, ddof=1).sum() / GROUPS for c in (a, b))
        square = difference @ difference - noise_a - noise_b
        height = b.groups.mean(axis=0)
        result = tracking_error(a, b, 0.0, resamples=2)
        expected = np.sqrt(max(square, 0) / (height @ height - noise_b))
        assert result.error == pytest.approx(expected, rel=1e-6, abs=1e-9)
        squares.append(square / scale**2)
    score = (np.mean(squares) - true_error(curve) ** 2) / (np.std(squares) / np.sqrt(len(squares)))
    assert abs(score) < 4.5  # false alarm 7e-6


def test_floor_is_what_a_perfect_model_shows():
    rng = np.random.default_rng(5)
    naive, floors = [], []
    for _ in range(300):
        a, b = sample(rng, REFERENCE, 0.05), sample(rng, REFERENCE, 0.05)._replace(stream="b")
        difference = a.groups.mean(axis=0) - b.groups.mean(axis=0)
        naive.append(difference @ difference / (REFERENCE @ REFERENCE))
        floors.append(tracking_error(a, b, 0.0, resamples=2).floor ** 2)
    score = (np.mean(naive) - np.mean(floors)) / (np.std(naive) / np.sqrt(len(naive)))
    assert abs(score) < 4.5


def test_models_on_one_stream_are_compared_path_by_path():
    rng = np.random.default_rng(1)
    reference = sample(rng, REFERENCE, 0.05)
    shifted = reference._replace(groups=reference.groups * 1.05)
    paired = tracking_error(shifted, reference, 0.0)
    apart = tracking_error(shifted, reference._replace(stream="b"), 0.0)
    assert paired.floor < 0.1 * apart.floor
    assert paired.upper - paired.lower < apart.upper - apart.lower


def test_groups_of_unequal_size_are_weighted():
    a = Curves(np.array([[1.0], [4.0]]), np.array([3.0, 1.0]), "a")
    b = Curves(np.array([[1.0], [1.0]]), np.array([1.0, 1.0]), "b")
    assert tracking_error(a, b, 0.0, resamples=2).shift == pytest.approx(0.75)


@pytest.mark.parametrize("groups", [1, 7])
def test_few_groups_have_no_limits(groups):
    rng = np.random.default_rng(0)
    few = tracking_error(sample(rng, REFERENCE, 0.05, groups), sample(rng, REFERENCE, 0.05, groups), 0.0)
    assert np.isnan([few.lower, few.upper, few.floor, few.shift_lower, few.shift_upper]).all()
    assert np.isfinite([few.error, few.shift]).all()


def test_one_group_has_no_limits_and_a_lost_group_no_answer():
    one = Curves(REFERENCE[None], np.ones(1), "a")
    result = tracking_error(one, one._replace(stream="b", groups=one.groups * 1.1), 0.0)
    assert np.isnan(result.upper)
    assert result.error == pytest.approx(0.1 / 1.1, rel=1e-6)
    lost = one._replace(groups=np.where(TIME > 3, np.nan, REFERENCE)[None])
    assert np.isnan(tracking_error(lost, one, 0.0).error)


def test_a_height_that_is_noise_has_no_limits():
    rng = np.random.default_rng(0)
    flat = np.full(RECORDS, 1.0)
    result = tracking_error(sample(rng, flat, 0.05), sample(rng, flat, 0.05)._replace(stream="b"), 1.0)
    assert np.isnan(result.upper)
