"""The whole state of a run: its parts, averages, hitting times and values of every path, against the kept paths."""

import functools

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib
from scipy import stats

import sdelens as sl
from sdelens.core.captured import captured
from sdelens.run.experiment import prepare
from sdelens.run.options import Options
from tests.checks import assert_same_numbers, compilations

NOISE = sl.GaussianNoise(1.0)
START = {"w": np.array([1.5, -1.0], np.float32), "b": np.float32(0.5) * np.ones((), np.float32)}
PROBLEM = sl.Problem(lambda p: jnp.sum(p["w"] ** 2) + 2 * p["b"] ** 2, START, infimum=0.0)
CURVATURE = np.array([4.0, 2.0, 2.0])  # of b and w, in the order of jax.tree.leaves
OPTIMIZER = sl.AdamW(0.1, b1=0.8, b2=0.9)
MODELS = ["optimizer", "sde", "empirical"]
SIZES = dict(steps=17, paths=24)
RECORD = sl.Record(
    keep_paths=24,
    keep=["x", "m", "v", "ema", "start", "late", "loss", "momentum"],
    observables={"norm": None, "norm[v]": None, "momentum": lambda p, state: state["m"]["w"][1] + 0 * p["b"]},
    averages={"ema": 0.7, "start": sl.ExponentialAverage(0.7, bias_correction=False), "late": 5},
    hits={"low": lambda p: p["w"][0] < 0.5, "never": lambda p, state: state["ema"]["w"][0] > 1e3},
    marginals=[2, 0],
    times=[0, 8, 17],
)


@functools.cache
def recorded():
    return sl.compare(PROBLEM, NOISE, OPTIMIZER, MODELS, record=RECORD, **SIZES)


@pytest.fixture
def run():
    return recorded()


def path(run, name):
    return run.dataset[f"path_{name}"].values.astype(float)  # (model, path, step, …)


def test_averages_are_those_of_the_paths(run):
    x, decay, first = path(run, "x"), 0.7, 5
    ema, start, late = [x[:, :, 0]], [x[:, :, 0]], [x[:, :, 0]]
    for k in range(1, SIZES["steps"] + 1):
        weights = decay ** np.arange(k - 1, -1, -1)
        ema.append(np.einsum("k,mpkd->mpd", weights / weights.sum(), x[:, :, 1 : k + 1]))
        start.append(decay * start[-1] + (1 - decay) * x[:, :, k])
        late.append(x[:, :, first : k + 1].mean(axis=2) if k >= first else x[:, :, k])
    for name, moving in (("ema", ema), ("start", start), ("late", late)):
        expected = np.stack(moving, axis=2)
        np.testing.assert_allclose(path(run, name), expected, rtol=1e-5, atol=1e-6)
        losses = (expected**2 @ CURVATURE / 2).mean(axis=1)
        found = run.dataset.observable_mean.sel(observable=f"loss[{name}]")
        np.testing.assert_allclose(found, losses, rtol=1e-4, atol=1e-6)


def test_the_parts_of_a_state_are_those_of_the_equations(run):
    """One step of Adam from m = v = 0: m = 0.2 g, v = 0.1 g², and with bias correction x moves by 0.1 sign(g)."""
    m, v, x = (path(run, name)[0] for name in ("m", "v", "x"))
    assert not m[:, 0].any()
    gradient = m[:, 1] / 0.2
    np.testing.assert_allclose(v[:, 1], 0.1 * gradient**2, rtol=1e-4)
    np.testing.assert_allclose(x[:, 1] - x[:, 0], -0.1 * np.sign(gradient), rtol=1e-3)
    norms = np.linalg.norm(path(run, "v"), axis=-1).mean(axis=1)
    np.testing.assert_allclose(run.dataset.observable_mean.sel(observable="norm[v]"), norms, rtol=1e-4, atol=1e-6)
    momentum = path(run, "m")[..., 2]  # leaves are b, w[0] and w[1]
    np.testing.assert_allclose(path(run, "momentum"), momentum, rtol=1e-6)
    found = run.dataset.observable_mean.sel(observable="momentum")
    np.testing.assert_allclose(found, momentum.mean(axis=1), rtol=1e-4, atol=1e-6)


def test_hitting_times_are_those_of_the_paths(run):
    below = path(run, "x")[..., 1] < 0.5
    first = np.where(below.any(axis=-1), below.argmax(axis=-1), np.nan)
    np.testing.assert_array_equal(run.dataset.hit_step.sel(hit="low"), first)
    assert np.isnan(run.dataset.hit_step.sel(hit="never")).all()
    assert (run.dataset.watched_until == 17).all()
    table = run.hitting_times().table
    capped = np.where(np.isnan(first), 17, first)
    np.testing.assert_allclose(table.loc["low", "mean"], capped.mean(axis=1))
    assert table.loc[("never", "sde")].tolist()[:3] == [0, 24, 17]
    off = table.loc[("low", "sde")].difference
    assert off == pytest.approx(capped[1].mean() - capped[0].mean())


def test_values_of_every_path_are_those_of_the_paths(run, tmp_path):
    data, at = run.dataset, [0, 8, 17]
    np.testing.assert_array_equal(data.moment, at)
    np.testing.assert_array_equal(data.law_x, data.path_x.values[:, :, at][..., [2, 0]].transpose(0, 2, 1, 3))
    np.testing.assert_allclose(data.law_loss, path(run, "loss")[:, :, at].transpose(0, 2, 1), rtol=1e-5, atol=1e-7)
    momentum = data.law_observable.sel(observable="momentum")
    np.testing.assert_allclose(momentum, path(run, "momentum")[:, :, at].transpose(0, 2, 1), rtol=1e-5, atol=1e-7)
    table = run.laws(at="all", resamples=99).table
    assert list(table.index.unique("step")) == at
    assert (table.xs((0, "w1"), level=("step", "quantity")).value == 0).all()
    assert run.of("momentum").laws(8, resamples=99).table.loc[("sde", 8, "w1", "loss")].value == pytest.approx(
        table.loc[("sde", 8, "w1", "momentum")].value
    )
    for shown in (run.laws(at="all", resamples=99), run.hitting_times(), run.autocorrelation(0, since=0)):
        shown.plot(tmp_path / "figure.png")
        assert "optimizer" in str(shown)
        assert "table" in shown._repr_html_()


def test_all_of_it_is_saved_printed_and_estimated(run, tmp_path):
    run.save(tmp_path / "run.nc")
    again = sl.load(tmp_path / "run.nc")
    assert_same_numbers(again.dataset, run.dataset)
    text = str(again)
    assert "loss[ema]" in text
    assert "Steps until a condition holds" in text
    assert "Laws of 2 coordinates of every path at step 17" in text
    sizes = SIZES | {"paths": 10**6}
    more, less = (
        sl.estimate(PROBLEM, NOISE, OPTIMIZER, ["optimizer"], record=record, execution=sl.Execution(chunk=24), **sizes)
        for record in (sl.Record(times=[0, 8, 17], hits={"low": RECORD.hits["low"]}), sl.Record())
    )
    every_path = 8 * (3 + 2)  # three losses, the first step, and until when the path was watched
    assert more.result_bytes - less.result_bytes == every_path * 10**6


def test_a_sweep_and_other_conditions_of_the_same_kind(run):
    """A sweep whose only point is the run has its numbers, without compiling anything."""
    run.title()
    with compilations() as compiled:
        found = sl.sweep(PROBLEM, NOISE, OPTIMIZER, MODELS, over={"lr": [0.1]}, record=RECORD, **SIZES)
    assert not compiled
    assert_same_numbers(found.at(lr=0.1).dataset, run.dataset)


def test_chunks_give_the_same_numbers(run):
    found = sl.compare(
        PROBLEM, NOISE, OPTIMIZER, ["optimizer"], record=RECORD, execution=sl.Execution(chunk=10), **SIZES
    )
    names = [name for name in found.dataset.data_vars if name.startswith(("path_", "law_", "hit_", "watched"))]
    one = run.dataset.sel(model=["optimizer"])
    assert_same_numbers(found.dataset[names], one[names], 1e-5)


def test_the_evaluation_point_of_a_schedule_free_optimizer():
    transformation = contrib.schedule_free_sgd(0.1, b1=0.9)
    optimizer = sl.FromOptax(transformation, lr=0.1, name="schedule-free")
    record = sl.Record(keep_paths=4, keep=["x", "z", "evaluation", "b1"], observables=["loss[evaluation]"])
    found = sl.simulate(PROBLEM, NOISE, optimizer, "optimizer", steps=5, paths=4, record=record).dataset
    x, z = found.path_x.values[0], found.path_z.values[0]
    state = transformation.init(jnp.zeros(3))._replace(z=z)
    expected = np.asarray(contrib.schedule_free_eval_params(state, x), float)
    np.testing.assert_allclose(found.path_evaluation.values[0], expected, rtol=1e-5, atol=1e-6)
    losses = (expected**2 @ CURVATURE / 2).mean(axis=0)
    np.testing.assert_allclose(found.observable_mean.values[0, 0], losses, rtol=1e-4)
    np.testing.assert_allclose(found.path_b1, 0.9, rtol=1e-6)
    assert found.path_b1.dims == ("model", "path", "step")


def test_autocorrelation_of_sgd_at_rest():
    """On a quadratic x ← (1 − ηλ)x + noise, whose autocorrelation is (1 − ηλ)ᵏ: within 4.5 standard errors."""
    lr, curvature = 0.2, np.array([0.5, 1.0])
    start = lambda key: 0.4 * optax.tree.random_like(key, jnp.zeros(2))  # noqa: E731
    found = sl.simulate(
        sl.Quadratic(curvature),
        NOISE,
        sl.SGD(lr),
        "optimizer",
        steps=600,
        paths=64,
        start=start,
        record=sl.Record(keep_paths=64),
    )
    for i, rate in enumerate(lr * curvature):
        rows = found.autocorrelation(i, since=200, lags=150)
        errors = (rows.table.upper - rows.table.lower) / (2 * stats.t.isf(0.01, 63))
        off = (rows.table.value - (1 - rate) ** rows.table.index.get_level_values("lag")) / errors
        assert np.abs(off.values[1:30:4]).max() < 4.5
        time = rows.times.loc["optimizer"]
        error = (time.upper - time.lower) / (2 * stats.t.isf(0.01, 63))
        assert abs(time.value - (2 - rate) / rate) < 4.5 * error


WELL = sl.Problem(lambda p: jnp.sum((p**2 - 1) ** 2) / 4, np.array([1.0], np.float32), infimum=0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "noise", "steps"),
    [(sl.SGD(0.05), 2.2, 1500), (sl.AdamW(0.1, b1=0.9, b2=0.99), 1.5, 3000)],
    ids=["sgd", "adamw"],
)
def test_escape_times_of_the_double_well(optimizer, noise, steps):
    """From one minimum of (x² − 1)²/4 to the other: means and shares of optimizer and SDE, within their limits.

    A difference beyond 99.99 % limits, two-sided, would come by chance once in 5000 seeds.
    """
    record = sl.Record(every=steps, hits={"escape": lambda p: p[0] < 0})
    found = sl.compare(
        WELL, sl.GaussianNoise(noise), optimizer, ["optimizer", "sde"], steps=steps, paths=1024, record=record
    )
    times = found.hitting_times(confidence=0.9999)
    row = times.table.loc[("escape", "sde")]
    assert 0.4 * row.paths < row.hits
    assert row.difference_lower < 0 < row.difference_upper
    assert row.difference_upper - row.difference_lower < 0.35 * row["mean"]
    shares = times.survival.share.unstack("model").loc["escape"]
    assert np.abs(shares.optimizer - shares.sde).max() < 0.09  # Kolmogorov and Smirnov: beyond once in 2000 seeds


def test_a_condition_that_reads_a_changed_variable_is_another_condition():
    def key(level):
        record = sl.Record(hits={"low": lambda p: p["b"] < level}, observables={"o": lambda p: level * p["b"]})
        experiment = prepare(PROBLEM, NOISE, sl.SGD(0.1), ["optimizer"], Options(steps=2, paths=2, record=record))
        return captured(experiment.steppers["optimizer"]), captured(experiment.observables)

    assert key(0.5) == key(0.5)
    assert all(one != other for one, other in zip(key(0.5), key(0.25), strict=True))


class Bare(sl.OptimizerSDE):
    """Gradient flow with the noise of SGD, without accumulators."""

    def init(self, x):
        return sl.State(x)

    def drift(self, t, y, grad):
        return sl.State(-grad)

    def apply_diffusion(self, t, y, grad, dW):
        return sl.State(self.noise.apply_root(y.x, dW))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (dict(averages=0.9), "averages: got 0.9; give a mapping"),
        (dict(averages={"ema": 1.5}), r"averages\['ema'\]: decay: got 1.5; it must lie in"),
        (dict(averages={"ema": "0.9"}), r"averages\['ema'\]: got '0.9'"),
        (dict(averages={"an ema": 0.9}), "averages: got the name 'an ema'"),
        (dict(averages={"v": 0.9}), "averages: got the name 'v', which is that of a part"),
        (dict(averages={"late": 10**6}), r"averages\['late'\]: starts at step 1000000, but the run has"),
        (dict(hits=lambda p: True), "hits: got .*; give a mapping"),
        (dict(hits={"low": lambda p: p["b"]}), r"hits\['low'\]: returned float32; return a Boolean"),
        (dict(hits={"low": lambda p: p["b"] < jnp.zeros(2)}), r"hits\['low'\]: returned bool of shape \(2,\)"),
        (dict(hits={"low": lambda p, state: state["m"]["b"] < 0}), "the model 'Bare' does not have"),
        (dict(observables={"a": lambda p, state, more: 0.0}), r"observables\['a'\]: has 3 positional arguments"),
        (dict(observables={"a": lambda p, state: state["m"]["b"]}), "the model 'Bare' does not have .it has x."),
        (dict(observables={"a": lambda p, state: state["v"]}), r"observables\['a'\]: fails at the start"),
        (dict(observables=["norm[m]"]), "the state of the model 'Bare' has no part 'm'; it has x"),
        (dict(observables=["speed[v]"]), r"observables: speed\[v\]: got 'speed'"),
        (dict(keep_paths=1, keep=["m"]), "keep: got 'm', which the model 'Bare' does not have; choose from x, loss"),
        (dict(keep="x"), "keep: got 'x'; give a list"),
        (dict(times=[0, 3]), "times: got 3, which is not a recorded step; give multiples of 2 or the last step, 4"),
        (dict(times="4"), "times: got '4'"),
        (dict(times=0), "times: got 0"),
    ],
)
def test_what_cannot_be_recorded_is_refused(record, message):
    def recorded():
        models = {"optimizer": "optimizer", "Bare": Bare}
        return sl.compare(PROBLEM, NOISE, OPTIMIZER, models, record=sl.Record(every=2, **record), steps=4, paths=4)

    with pytest.raises((ValueError, TypeError), match=message):
        recorded()
