"""The SDEs track their optimizers on networks: under injected noise and under real mini-batches.

Upper limits are one-sided, 99 %: a model that is right exceeds a bound of several floors far less often than that.
The studies have every network, every optimizer and all digits; here each of them comes once, on fewer examples.
"""

import subprocess
import sys
from pathlib import Path

import pytest

import sdelens as sl
from tests.checks import tiered

slow, study = pytest.mark.slow, pytest.mark.study

NETWORKS = {
    "mlp": dict(dataset="digits", subset=128, width=16, depth=2),
    "cnn": dict(subset=128, channels=4, dense=16),
    "resnet": dict(subset=128, channels=4, dense=16),
    "vit": dict(subset=128, width=12, depth=1, heads=2, mlp=24),
}
INJECTED = {
    "signsgd": (sl.SignSGD(1e-3), 0.02),
    "rmspropw": (sl.RMSpropW(1e-3, b2=0.99, weight_decay=0.01), 0.01),
    "adamw": (sl.AdamW(1e-3, b1=0.9, b2=0.99, weight_decay=0.01), 0.01),
}
MINIBATCH = {
    "sgd": sl.SGD(0.05),
    "signsgd": sl.SignSGD(1e-3),
    "rmspropw": sl.RMSpropW(1e-3, b2=0.99),
    "adamw": sl.AdamW(1e-3, b1=0.9, b2=0.99),
}


def injected(name, optimizer, steps, **fewer):
    """Errors of the SDE, and of the earlier one of adaptive methods, under injected noise on 32 paths."""
    specification, scale = INJECTED[optimizer]
    problem = sl.network(name, **(NETWORKS[name] | fewer))
    models = ["optimizer", "sde"] + ["malladi2022"] * (optimizer != "signsgd")
    noise = sl.GaussianNoise(scale)
    run = sl.compare(problem, noise, specification, models, steps=steps, paths=32, record=sl.Record(every=steps // 10))
    return run.errors()


@slow
@pytest.mark.parametrize(("name", "optimizer"), [("mlp", "adamw"), ("resnet", "rmspropw")])
def test_injected_noise_at_first(name, optimizer):
    """Fifty steps on 64 examples: upper limits of 0 to 0.2 % (measured), of the earlier SDE errors of 9 and 42 %."""
    errors = injected(name, optimizer, 50, subset=64)
    assert errors.loc["sde", "error_upper"] < 0.02
    if optimizer != "signsgd":
        assert errors.loc["malladi2022", "error_lower"] > 2 * errors.loc["sde", "error_upper"]


@study
@pytest.mark.parametrize("optimizer", INJECTED)
@pytest.mark.parametrize("name", NETWORKS)
def test_injected_noise(name, optimizer, measured):
    errors = injected(name, optimizer, 100)
    measured("upper limit of the error", float(errors.loc["sde", "error_upper"]), "< 0.02")
    assert errors.loc["sde", "error_upper"] < 0.02
    if optimizer != "signsgd":
        measured("malladi2022: lower limit", float(errors.loc["malladi2022", "error_lower"]), "> 2 times that")
        assert errors.loc["malladi2022", "error_lower"] > 2 * errors.loc["sde", "error_upper"]


MODELS = ["optimizer", "sde"]


@pytest.mark.parametrize("optimizer", tiered(["sgd", "rmspropw"], ["rmspropw"]))
def test_mini_batches_on_few_digits(optimizer):
    """200 steps on 256 digits, 192 paths: 2 % can be told there; spreads as in the study of all digits."""
    problem, noise = sl.network("mlp", "digits", subset=256, width=8, depth=1), sl.MinibatchNoise(32, refresh=10)
    run = sl.compare(problem, noise, MINIBATCH[optimizer], MODELS, steps=200, paths=192, record=sl.Record(every=10))
    row = run.errors(confidence=0.975).loc["sde"]
    assert run.errors().loc["sde", "error_upper"] < 0.02
    low, high = (1.0, 1.45) if optimizer == "rmspropw" else (0.8, 1.25)
    assert low < row.spread_lower
    assert row.spread_upper < high


@study
@pytest.mark.parametrize("optimizer", MINIBATCH)
def test_mini_batches_on_all_digits(optimizer, measured):
    """Of 32 examples; spreads over 192 paths. With Σ kept for ten steps RMSprop's is 1.1 to 1.3 (measured: 1.19).

    Found anew at every step it is 1.11, limits 1.03 and 1.19, for three times the cost (measured with 256 paths). The
    optimizer's V follows the noise of the gradient, which damps it; that of the SDE does not.
    """
    problem = sl.network("mlp", "digits", width=32, depth=1)
    noise = sl.MinibatchNoise(32, refresh=1 if optimizer == "signsgd" else 10)
    run = sl.compare(problem, noise, MINIBATCH[optimizer], MODELS, steps=300, paths=192, record=sl.Record(every=10))
    row, upper = run.errors(confidence=0.975).loc["sde"], float(run.errors().loc["sde", "error_upper"])
    low, high = (1.0, 1.45) if optimizer == "rmspropw" else (0.8, 1.25)
    measured("upper limit of the error", upper, "< 0.01")
    measured("limits of the spread", f"{row.spread_lower:.3g} to {row.spread_upper:.3g}", f"{low} to {high}")
    assert upper < 0.01
    assert low < row.spread_lower
    assert row.spread_upper < high


@study
@pytest.mark.parametrize(
    ("name", "optimizer", "refresh", "paths"),
    [("cnn", "sgd", 1, 160), ("cnn", "rmspropw", 1, 40), ("vit", "adamw", 10, 40), ("vit", "signsgd", 1, 40)],
)
def test_mini_batches_on_some_digits(name, optimizer, refresh, paths, measured):
    """Errors of 0 to 0.5 % with standard errors near 0.2 %; `examples/networks.py` has more paths and all pairs."""
    problem = sl.network(name, **NETWORKS[name])
    noise = sl.MinibatchNoise(32, refresh=refresh)
    run = sl.compare(problem, noise, MINIBATCH[optimizer], MODELS, steps=300, paths=paths, record=sl.Record(every=10))
    row = run.errors().loc["sde"]
    measured("error, lower limit", f"{row.error:.3g}, {row.error_lower:.3g}", "< 0.01, < 0.005")
    measured("limits of the spread", f"{row.spread_lower:.3g} to {row.spread_upper:.3g}", "meet 0.8 to 1.25")
    assert row.error < 0.01
    assert row.error_lower < 0.005
    assert row.spread_lower < 1.25
    assert row.spread_upper > 0.8


def diagonal_covariance(problem, steps, refresh):
    """Errors of the SDE whose noise has the diagonal of Σ alone."""
    noise = sl.MinibatchNoise(32, covariance="diagonal", refresh=refresh)
    run = sl.compare(problem, noise, sl.SGD(0.05), MODELS, steps=steps, paths=64, record=sl.Record(every=10))
    return run.errors().loc["sde"]


@slow
def test_independent_noise_misses_the_spread_on_few_digits():
    """The mean loss is 1.5 to 4.3 % off where the exact covariance is right, the spread half of it."""
    found = diagonal_covariance(sl.network("mlp", "digits", subset=256, width=8, depth=1), 200, 20)
    assert found.error_lower > 0.01
    assert found.spread_upper < 0.8


@study
def test_independent_noise_misses_the_spread(measured):
    """Σ's diagonal alone: the mean loss is 1.7 % off where the exact covariance is right, the spread half of it."""
    found = diagonal_covariance(sl.network("mlp", "digits", width=32, depth=1), 300, 30)
    measured("lower limit of the error", float(found.error_lower), "> 0.01")
    measured("upper limit of the spread", float(found.spread_upper), "< 0.8")
    assert found.error_lower > 0.01
    assert found.spread_upper < 0.8


@slow
def test_an_epoch_s_noise_nearly_cancels():
    """Without replacement the optimizer's spread is a fraction of that of its SDE, which takes steps as independent."""
    problem = sl.network("mlp", "digits", subset=128, width=8, depth=1)
    noise = sl.MinibatchNoise(16, replacement=False)
    errors = sl.compare(problem, noise, sl.SGD(0.02), steps=160, paths=128, record=sl.Record(every=16)).errors()
    assert errors.loc["sde", "spread_lower"] > 2
    assert errors.loc["sde", "error_upper"] < 0.02


@study
def test_a_million_parameters_fit(measured):
    """AdamW's SDE under mini-batches of digits, 4 paths, in a process of its own: 1.3 GiB at its peak (measured)."""
    code = "from benchmarks.minibatch import peak; print(peak('adamw', 'minibatch', 4)['peak'])"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    measured("peak in GiB", float(done.stdout) / 2**30, "< 6")
    assert float(done.stdout) < 6 * 2**30
