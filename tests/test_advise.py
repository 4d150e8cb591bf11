"""Advice on batch size and learning rate: formulas, what is said of unknown numbers, logs, the shell and the figure."""

import json
import math
import types

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import sdelens as sl
from sdelens.scaling import recommended, rescale
from sdelens.scaling._noise_source import noise_log, noise_scale_of
from sdelens.shell import advise as shell_advise
from tests.checks import assert_shown_well

ADAMW = {"optimizer": "adamw", "lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
NAN, INF = math.nan, math.inf


def test_the_frontier_holds_at_every_batch_size_and_steps_times_batch_are_samples():
    """(S/S_min − 1)(E/E_min − 1) = 1 (arXiv 1812.06162), at the estimate and at both limits."""
    table = sl.advise((1200, 800, 1900), batch_size=256, steps=10_000).table
    for side in ("", "_lower", "_upper"):
        other = {"": "", "_lower": "_upper", "_upper": "_lower"}[side]
        product = (table[f"steps_factor{side}"] - 1) * (table[f"samples_factor{other}"] - 1)
        np.testing.assert_allclose(product, 1)
    np.testing.assert_allclose(table.efficiency, 1 / (1 + table.index / 1200))
    np.testing.assert_allclose(table.steps * table.index, table.samples)
    assert table.loc[256, "steps"] == 10_000
    np.testing.assert_allclose(table.steps / table.loc[256, "steps"], table.steps_factor / table.loc[256].steps_factor)
    assert ((table.steps_lower <= table.steps) & (table.steps <= table.steps_upper)).all()


def test_a_batch_is_sensible_if_its_efficiency_is_so_at_the_lower_limit():
    found = sl.advise((1200, 800, 1900), batch_size=256)
    assert found.largest_batch_limits == (800, 1900)
    assert dict(found.table.sensible) == {
        64: "yes", 128: "yes", 256: "yes", 512: "yes", 1024: "cannot tell", 2048: "no", 4096: "no",
    }  # fmt: skip
    wary = sl.advise((1200, 800, 1900), batch_size=256, efficiency=0.8)
    assert wary.largest_batch == pytest.approx(200)
    assert "Cannot tell whether the present batch size 256" in wary.recommendation
    assert wary.table.loc[64, "sensible"] == "yes"


def test_learning_rates_are_those_of_rescale_under_the_recommended_rule():
    found = sl.advise((1200, 800, 1900), batch_size=256, optimizer=ADAMW)
    assert found.snr == pytest.approx(math.sqrt(256 / 1200))
    assert found.snr_limits == pytest.approx((math.sqrt(256 / 1900), math.sqrt(256 / 800)))
    for size, row in found.table.iterrows():
        new = rescale(ADAMW, size / 256, row["rule"], momentum=row["momentum"], snr=found.snr).optimizer
        assert (row.lr, row.b1, row.b2) == pytest.approx((new["lr"], *new["betas"]))
        assert (row.eps, row.weight_decay) == pytest.approx((new["eps"], new["weight_decay"]))
        assert row.lr_lower <= row.lr <= row.lr_upper
        between = sorted([row.lr_sqrt, row.lr_linear])
        assert between[0] * (1 - 1e-9) <= row.lr_lower
        assert row.lr_upper <= between[1] * (1 + 1e-9)
    ends = [rescale(ADAMW, 4, "signal-to-noise", snr=snr).optimizer["lr"] for snr in found.snr_limits]
    assert (found.table.loc[1024, "lr_lower"], found.table.loc[1024, "lr_upper"]) == pytest.approx(tuple(ends))
    # The peak of η ∝ 1/(√(B/1200) + √(1200/B)) is at 1200, the nearest of the table 1024.
    assert found.table.lr_surge.idxmax() == 1024
    assert found.table.loc[256, "lr_surge"] == pytest.approx(3e-4)


def test_the_rule_of_sgd_is_linear_whatever_the_noise_scale():
    table = sl.advise((1200, 800, INF), batch_size=256, optimizer="sgd").table
    np.testing.assert_allclose(table.lr, table.index / 256)
    assert (table.lr_lower == table.lr).all()
    assert table.lr_surge.isna().all()


UNKNOWN = {
    "unresolved": ((INF, 400, INF), "at least up to 400", (400, NAN), "not resolved"),
    "from moments": ((NAN, NAN, 5000), "Cannot tell how large", (NAN, 5000), "Only an upper limit"),
    "nothing": ((NAN, NAN, NAN), "neither the noise scale nor a limit", (NAN, NAN), "Nothing is known"),
    "no upper limit": ((1200, 800, NAN), "at least up to 800", (800, NAN), "lr keeps"),
    "no limits": (1200, "which has no limits, is right", (NAN, NAN), "taken as exact"),
}


@pytest.mark.parametrize(("noise", "sentence", "limits", "note"), UNKNOWN.values(), ids=UNKNOWN.keys())
def test_what_is_unknown_is_said_and_is_nan_in_attributes_and_null_in_json(noise, sentence, limits, note):
    found = sl.advise(noise, batch_size=64, optimizer=ADAMW)
    assert sentence in found.recommendation
    assert found.largest_batch_limits == pytest.approx(limits, nan_ok=True)
    text = str(found)
    assert note in text
    assert "nan" not in text
    assert "inf" not in text
    assert_shown_well(found)
    written = json.dumps(found.to_dict(), allow_nan=False)  # no NaN, no infinity
    assert json.loads(written)["largest_batch_limits"] == [None if math.isnan(v) else v for v in limits]
    if math.isnan(found.noise_scale):
        assert found.table.efficiency.isna().all()
        assert "–" in text
        assert not (found.table.sensible == ("yes" if math.isnan(limits[0]) else "no")).any()
        found.plot()


def test_a_bound_of_the_snr_gives_the_smallest_change_that_it_allows_and_the_range_up_to_the_linear_rule():
    row = sl.advise((NAN, NAN, 256), batch_size=64).table.loc[256]
    assert row.lr == row.lr_lower == pytest.approx(math.sqrt(4 * (1 + 4 * 0.25) / 1.25))  # u ≥ ½
    assert row.lr_upper == pytest.approx(4)
    above = sl.advise((NAN, 256, NAN), batch_size=64).table.loc[256]
    assert (above.rule, above.lr, above.lr_lower) == ("sqrt", 2, 2)
    assert above.lr_upper == pytest.approx(row.lr)


def test_a_batch_that_is_too_large_is_named_even_without_a_lower_limit():
    said = sl.advise((NAN, NAN, 500), batch_size=8000).recommendation
    assert "8000 uses less than 50 % of its samples" in said
    assert "at most 500" in said
    small = sl.advise((1200, 800, 1900), batch_size=8192)
    assert "one of at most 800" in small.recommendation
    assert small.table.index.min() <= 800
    assert "Stay at the present batch size 700" in sl.advise((1200, 800, 1900), batch_size=700).recommendation


def test_the_recommendation_stands_in_one_function():
    assert recommended(4)[:2] == ("sqrt", "fixed")
    assert recommended(4, 0.5)[:2] == ("signal-to-noise", "fixed")
    assert recommended(4, snr_limits=(0.3, NAN)).snr == 0.3
    assert recommended(4, 0.5, family="sgd")[:2] == ("linear", "samples")
    assert recommended(16, 0.5, family="momentum", b1=0.9)[:2] == ("linear", "fixed")
    assert recommended(4, 0.5, family="lion", b1=0.9)[:2] == ("sign-momentum", "samples")
    assert recommended(4, 0.5, family="adagrad", b1=0.0).rule == "sum-of-squares"
    with pytest.raises(ValueError, match="family: got 'adan'"):
        recommended(4, family="adan")


def log(rows=40, limits=True, noise=0.4):
    """Noise scales that grow from 100 to 1075, measured with an error of 40 %; limits are at −40 % and +60 %."""
    at = np.arange(rows) * 100
    value = 100 * (1 + at / 400) * np.exp(noise * np.random.default_rng(0).normal(size=rows))
    frame = pd.DataFrame({"step": at, "train/noise_scale": value, "train/loss": 1.0})
    if limits:
        frame["train/noise_scale_lower"], frame["train/noise_scale_upper"] = 0.6 * value, 1.6 * value
    return frame


def test_the_end_of_a_log_is_the_present_and_unresolved_rows_give_limits(tmp_path):
    frame = log()
    frame.to_csv(tmp_path / "log.csv")
    late = frame.iloc[-8:]
    found = noise_scale_of(str(tmp_path / "log.csv"))
    assert found.estimate == pytest.approx(late["train/noise_scale"].median())
    assert (found.lower, found.upper) == pytest.approx((0.6 * found.estimate, 1.6 * found.estimate))
    frame.loc[34:, "train/noise_scale"] = np.inf
    frame.loc[34:, "train/noise_scale_upper"] = np.inf
    blind = noise_scale_of(frame)
    assert math.isnan(blind.estimate)
    assert blind.lower > 100
    bare = sl.advise(log(limits=False), batch_size=64)
    assert "which has no limits" in bare.recommendation
    other = frame[["step"]].assign(step=frame.step + 1)  # rows of other quantities, as loggers write them
    assert len(noise_log(pd.concat([log(), other]).sort_values("step")).at) == 40


def test_the_fit_to_a_log_never_decreases_and_is_not_raised_by_one_large_value():
    clean = noise_log(log(noise=0.0, limits=False)).rising()
    np.testing.assert_allclose(clean[2:-2], 100 * (1 + np.arange(2, 38) * 100 / 400))
    spoilt = log(noise=0.0, limits=False)
    spoilt.loc[10, "train/noise_scale"] = 1e6
    fitted = noise_log(spoilt).rising()
    assert (np.diff(fitted) >= 0).all()
    assert np.abs(fitted[8:13] / clean[8:13] - 1).max() < 0.15


def test_results_with_a_noise_scale_are_read_as_properties_or_methods():
    diagnosis = types.SimpleNamespace(noise_scale=NAN, noise_scale_limits=(NAN, 900.0), batch_size=32)
    assert sl.advise(diagnosis).batch_size == 32
    gradients = np.random.default_rng(0).normal(1, 1, (50, 2))
    noise = sl.gradient_noise(gradients)
    found = sl.advise(noise, batch_size=8)
    assert found.noise_scale == pytest.approx(noise.noise_scale())
    assert found.noise_scale_limits == pytest.approx(noise.noise_scale_limits())
    nothing = types.SimpleNamespace(noise_scale=NAN, noise_scale_limits=(0.0, INF), batch_size=16)
    blind = sl.advise(nothing)
    assert "Cannot tell" in blind.recommendation
    assert (blind.table.lr_lower.to_numpy() == np.minimum(blind.table.lr_sqrt, blind.table.lr_linear)).all()
    assert math.isnan(sl.advise(noise).batch_size)  # its batch size is that of the gradients, not of the run
    with pytest.raises(TypeError, match="without limits"):
        sl.advise(types.SimpleNamespace(noise_scale=3.0))


BAD = {
    "nothing": (lambda: sl.advise((NAN, NAN, NAN)), ["neither the noise scale nor a limit"]),
    "order": (lambda: sl.advise((5, 6, 7)), ["must lie between its limits"]),
    "two": (lambda: sl.advise((5, 6)), ["noise: got 2 numbers"]),
    "negative": (lambda: sl.advise(-5), ["noise: got -5"]),
    "efficiency": (lambda: sl.advise(5, efficiency=1), ["efficiency: got 1"]),
    "steps": (lambda: sl.advise(5, steps=10), ["batch_size: not given"]),
    "batch": (lambda: sl.advise(5, batch_size=0), ["batch_size: got 0"]),
    "batches": (lambda: sl.advise(5, batches=[]), ["batches: got []"]),
    "batches text": (lambda: sl.advise(5, batches="64"), ["batches: got '64'"]),
    "optimizer": (lambda: sl.advise(5, optimizer="adan"), ["optimizer: got 'adan'"]),
    "groups": (lambda: sl.advise(5, optimizer=[ADAMW, ADAMW]), ["got 2 parameter groups"]),
    "columns": (lambda: sl.advise(pd.DataFrame({"loss": [1.0]})), ["the columns loss", "samples or step"]),
    "empty log": (lambda: sl.advise({"step": [1], "noise_scale": [NAN]}), ["no row with"]),
    "backwards": (lambda: sl.advise({"step": [2, 1], "noise_scale": [1, 2]}), ["increase from row to row"]),
    "words": (lambda: sl.advise({"step": [1], "noise_scale": ["many"]}), ["not numbers"]),
    "twice": (
        lambda: sl.advise({"step": [1], "a/noise_scale": [1], "b/noise_scale": [1]}),
        ["several columns for noise_scale"],
    ),
}


@pytest.mark.parametrize(("action", "messages"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_with_its_name_and_a_remedy(action, messages):
    with pytest.raises((ValueError, TypeError)) as caught:
        action()
    for message in messages:
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("noise", "options"),
    [((1200, 800, 1900), {"batch_size": 256}), ((NAN, 400, NAN), {})],
    ids=["learning rates", "no batch size"],
)
def test_the_figure_has_two_panels_with_units(tmp_path, noise, options):
    figure = sl.advise(noise, **options).plot(tmp_path / "advice.png")
    left, right = figure.axes
    assert "steps" in left.get_xlabel()
    assert "samples" in left.get_ylabel()
    assert "batch size (samples)" in right.get_xlabel()
    assert right.get_ylabel() == ("learning rate / present one" if options else "fewest samples / samples")
    assert (tmp_path / "advice.png").stat().st_size > 10_000


def shell(*arguments):
    import typer

    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(shell_advise.advise)
    return CliRunner().invoke(app, [*arguments])


def test_the_shell_prints_the_same_advice(tmp_path):
    done = shell("1200,800,1900", "--batch-size", "256", "--lr", "3e-4", "--b2", "0.95", "--weight-decay", "0.1")
    expected = sl.advise((1200, 800, 1900), batch_size=256, optimizer=ADAMW)
    assert done.output.strip() == str(expected).strip()
    log().to_csv(tmp_path / "log.csv")
    options = ("--batch-size", "64", "--batches", "128,256", "--format", "json", "--plot", str(tmp_path / "a.png"))
    found = json.loads(shell(str(tmp_path / "log.csv"), *options).output)
    assert [row["batch_size"] for row in found["table"]] == [64, 128, 256]
    assert (tmp_path / "a.png").exists()
    (tmp_path / "empty.csv").write_text("\n")
    (tmp_path / "a.csv").write_bytes((tmp_path / "a.png").read_bytes())
    for arguments, message in (
        (("abc",), "neither a number"),
        ((str(tmp_path / "empty.csv"),), "empty.csv' is empty; give a CSV file with at least one row"),
        (
            (str(tmp_path / "a.csv"),),
            "a.csv' is not a text file; give a CSV file with the columns step or samples, and",
        ),
        (("12", "--b1", "0.9"), "lr: not given"),
        (("12", "--format", "xml"), "format: got 'xml'"),
    ):
        assert message in str(shell(*arguments).exception)
