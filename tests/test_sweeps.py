"""Sweeps: every point is the comparison at its numbers, compiled once; what is said of them all."""

import contextlib
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sdelens as sl
from sdelens.results.ranking import best_of
from sdelens.run import grid
from sdelens.run.replace import field_names, replaced
from tests.checks import assert_same_numbers, assert_shown_well, compilations

PROBLEM, NOISE, OPTIMIZER = sl.Quadratic([1.0, 2.0]), sl.GaussianNoise([1.0, 2.0]), sl.AdamW(0.05, b2=0.9)
MODELS = ["optimizer", "sde"]
SIZES = dict(steps=9, paths=48, record=sl.Record(every=3))
OVER = {"lr": [0.3, 0.05], "weight_decay": [0, 0.5], "noise.scale": [[1.0, 2.0], [0.5, 0.5]]}


def sweep(over, optimizer=OPTIMIZER, models=MODELS, **options):
    return sl.sweep(PROBLEM, NOISE, optimizer, models, over=over, **{**SIZES, **options})


@pytest.fixture(scope="module")
def found():
    return sweep(OVER)


def test_points_after_the_first_compile_nothing():
    assert len(jax.devices()) == 2  # sharded, too
    sweep({"lr": [0.1], "noise.scale": [[3.0, 1.0]]})
    with compilations() as compiled:
        sweep({**OVER, "b1": np.array([0.9, 0.5], np.float32), "problem.curvature": [[1.0, 2.0], np.array([3, 1])]})
    assert compiled == []


def test_every_point_is_the_comparison_at_its_numbers(found):
    assert dict(found.dataset.sizes) | {"lr": 2, "weight_decay": 2, "noise.scale": 2} == dict(found.dataset.sizes)
    assert found.dataset.loss_mean.dims == (*OVER, "model", "step")
    assert found.dataset.time.dims == ("lr", "step")
    for lr, decay, which in [(0.3, 0.5, 0), (0.05, 0, 1)]:
        optimizer = sl.AdamW(lr, b2=0.9, weight_decay=decay)
        alone = sl.compare(PROBLEM, sl.GaussianNoise(OVER["noise.scale"][which]), optimizer, MODELS, **SIZES)
        point = found.at({"noise.scale": which}, lr=lr, weight_decay=decay)
        assert point.dataset.drop_attrs().identical(alone.dataset.drop_attrs())
        for own in (point, alone):
            own.dataset.attrs["models"] = None  # wall times differ
        assert json.dumps(point.dataset.attrs) == json.dumps(alone.dataset.attrs)
    one = sl.simulate(PROBLEM, sl.GaussianNoise([1.0, 2.0]), sl.AdamW(0.3, b2=0.9), "sde", **SIZES)
    same = found.dataset.loss_mean.sel({"lr": 0.3, "weight_decay": 0, "noise.scale": 0, "model": "sde"})
    np.testing.assert_array_equal(same, one.dataset.loss_mean[0])


def test_options_and_fields_within_are_swept_too():
    optimizer = sl.AdamW(0.05, schedule=sl.Warmup(4, sl.Cosine(12)))
    over = {"decay": ["coupled", "independent"], "schedule.then.end": [0.0, 0.5]}
    found = sweep({**over, "weight_decay": [0.5]}, optimizer, ["optimizer"])
    taken = sl.AdamW(0.05, weight_decay=0.5, decay="independent", schedule=sl.Warmup(4, sl.Cosine(12, 0.5)))
    alone = sl.compare(PROBLEM, NOISE, taken, ["optimizer"], **SIZES)
    point = found.at({"decay": "independent", "schedule.then.end": 0.5})  # a single value need not be named
    np.testing.assert_array_equal(point.dataset.loss_mean, alone.dataset.loss_mean)
    assert point.info["optimizer"] == alone.info["optimizer"]


def test_optax_transformations_are_swept_over_lr_where_they_are_functions_of_it():
    found = sweep({"lr": [0.1, 0.2]}, sl.FromOptax(optax.sgd, 0.3), ["optimizer"])
    alone = sl.compare(PROBLEM, NOISE, sl.FromOptax(optax.sgd, 0.2), ["optimizer"], **SIZES)
    np.testing.assert_array_equal(found.at(lr=0.2).dataset.loss_mean, alone.dataset.loss_mean)
    with pytest.raises(ValueError, match="build FromOptax from a function of lr"):
        sweep({"lr": [0.1]}, sl.FromOptax(optax.sgd(0.1), 0.1), ["optimizer"])


@pytest.mark.parametrize(
    "specification",
    [
        sl.Lion(0.1),
        sl.StudentTNoise(1.0, 3),
        sl.GaussianNoise(covariance=[[1.0, 0.5], [0.5, 1.0]]),
        sl.MinibatchNoise(8, replacement=False),
        sl.DistributedNoise(sl.GaussianNoise(1.0), 4, sl.RandomK(0.5)),
        sl.GaussianNoise(1.0) + sl.StudentTNoise(1.0, 3),
        sl.EmbeddedSaddle(),
        sl.Rosenbrock(),
        sl.LinearRegression([1.0, 2.0], 1.0, samples=20, seed=3),
    ],
    ids=lambda s: type(s).__name__,
)
def test_a_specification_is_rebuilt_as_it_was(specification):
    names = field_names(specification)
    assert names
    again = replaced(specification, {})
    assert jax.tree.structure(again) == jax.tree.structure(specification)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(specification), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"lrr": [0.1]}, "over: got 'lrr'; choose one of 'lr', 'b1', .*'noise.scale'.*Did you mean 'lr'"),
        ({"lr": [0.1, -1.0]}, "the point lr=-1 cannot be run: lr: got -1.0; it must be greater than 0"),
        ({"noise.scale": [1.0, 0.0]}, "the point noise.scale=0 cannot be run: scale: got 0 only"),
        ({"problem.curvature": [[1.0]], "lr": [0.1]}, "the point problem.curvature=#0, lr=0.1 cannot be run"),
        ({"lr": []}, r"over\['lr'\]: got an empty list"),
        ({"lr": [0.1, 0.1]}, r"over\['lr'\]: got 0.1 twice"),
        ({"lr": 0.1}, r"over\['lr'\]: got 0.1; give a list"),
        ({}, "over: got {}; give a mapping from names"),
    ],
)
def test_a_bad_grid_is_refused_before_anything_runs(over, says, monkeypatch):
    monkeypatch.setattr("sdelens.run.api.run_grid", None)
    with pytest.raises((ValueError, TypeError), match=says):
        sweep(over)


def test_a_misspelt_option_or_point_is_refused(found):
    with pytest.raises(TypeError, match="unexpected keyword argument 'substep'"):
        sweep({"lr": [0.1]}, models=[sl.ClosedForm("sde", substep=2)])
    with pytest.raises(TypeError, match="unexpected keyword argument 'stepz'"):
        sweep({"lr": [0.1]}, stepz=2)
    with pytest.raises(ValueError, match=r"lr: got 0.31; choose one of 0.3, 0.05"):
        found.at({"noise.scale": 0}, lr=0.31, weight_decay=0)
    with pytest.raises(ValueError, match="weight_decay: is missing"):
        found.at(lr=0.3)


def test_late_loss_is_the_mean_over_the_last_third_with_its_error(found):
    frame = found.late_loss()
    assert frame.index.names == [*OVER, "model"]
    point = found.at({"noise.scale": 1}, lr=0.3, weight_decay=0.5).dataset.sel(model="sde")
    row = frame.loc[0.3, 0.5, 1, "sde"]
    late = point.sel(step=slice(6, None))  # steps 6 and 9
    np.testing.assert_allclose(row.late_loss, late.loss_mean.mean(), rtol=1e-6)
    # 48 groups of one path each: the error of a mean of independent paths
    np.testing.assert_allclose(row["sem"], late.loss_group_mean.mean("step").std(ddof=1) / 48**0.5, rtol=1e-6)
    errors = found.errors()
    assert errors.index.names == [*OVER, "model"]
    own = found.at({"noise.scale": 1}, lr=0.3, weight_decay=0.5).errors()
    np.testing.assert_array_equal(errors.loc[0.3, 0.5, 1].to_numpy(), own.to_numpy())


def test_best_is_told_from_others_by_common_random_numbers():
    found = sweep({"lr": [0.5, 0.1, 0.100001]}, sl.SGD(0.1), ["optimizer"], steps=60, paths=640)
    best = found.best()
    assert best.point["lr"] in (0.1, 0.100001)
    assert best.late_loss == found.late_loss().late_loss.min()
    other = next(lr for lr in (0.1, 0.100001) if lr != best.point["lr"])
    assert best.runner_up == {"lr": other}
    # Paths are the same but for 1e-5 of the noise; alone, the two are not told apart by far.
    assert best.difference < 1e-3 * best.sem
    rows = found.late_loss().xs("optimizer", level="model")
    assert abs(rows.late_loss[0.5] - best.late_loss) > 6 * best.sem
    assert {"lr": 0.5} not in best.ties


def test_best_is_wrong_no_more_often_than_it_says():
    # Five points, the first truly best by so little that chance decides: claims for another are at most 1 - 0.9 of all.
    rng, trials, wrong = np.random.default_rng(0), 2000, 0
    points, counts = [{"lr": float(i)} for i in range(5)], np.full(16, 4.0)
    for _ in range(trials):
        groups = rng.standard_normal((5, 16)) + rng.standard_normal(16) + 1e-9 * np.arange(5)[:, None]
        best = best_of(points, groups.mean(axis=1), np.ones(5), groups, counts, 0.9)
        wrong += points[0] not in (best.point, *best.ties)
    assert wrong / trials <= 0.1 + 3 * (0.1 * 0.9 / trials) ** 0.5
    assert wrong / trials > 0.02  # and is not shy: four points at 1/40 each, of which mostly one is the smallest
    far = groups + 3.0 * np.arange(5)[:, None]
    assert best_of(points, far.mean(axis=1), np.ones(5), far, counts, 0.9).resolved


def test_points_that_diverge_are_missing_and_said_once(tmp_path):
    over = {"lr": [0.1, 1.0], "weight_decay": [0.1, 1e4, 2e4]}
    with pytest.warns(RuntimeWarning) as told:
        found = sweep(over)
    assert [str(w.message) for w in told if "diverged" in str(w.message)] == [str(told[0].message)]
    assert "4 of 6 points (lr=0.1, weight_decay=1e+04" in str(told[0].message)
    frame = found.late_loss().xs("optimizer", level="model")
    assert frame.late_loss.isna().tolist() == [False, True, True] * 2
    assert (frame.diverged > 0).tolist() == [False, True, True] * 2
    assert found.best().point["weight_decay"] == 0.1
    assert str(found).count("diverged") >= 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found.errors().error.isna().sum() == 4
        for quantity in ("late_loss", "error"):
            found.plot(tmp_path / f"{quantity}.png", quantity)


def test_a_file_is_read_back(found, tmp_path):
    found.save(tmp_path / "sweep.nc")
    again = sl.load(tmp_path / "sweep.nc")
    assert isinstance(again, sl.Sweep)
    assert again.dataset.identical(found.dataset)
    assert str(again) == str(found)
    assert_shown_well(found)
    assert json.loads(again.dataset.attrs["over"])["noise.scale"] == OVER["noise.scale"]
    found.export(tmp_path / "sweep.csv")
    assert (tmp_path / "sweep.csv").read_text().startswith("lr,weight_decay,noise.scale,model,late_loss,sem,diverged")


def test_figures_of_one_to_three_keys(found):
    (axes, *rest) = found.plot().axes  # a map for each value of the third key, and the colour bar
    assert len(rest) == 2
    assert axes.get_xscale() == "log"
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0.3", "0.05"]
    assert len(axes.texts) == 4
    (line,) = sl.Sweep(found.dataset).plot(quantity="error", at={"noise.scale": 0, "weight_decay": 0}).axes
    assert line.get_ylabel() == "error of the mean-loss curve (%)"
    with pytest.raises(ValueError, match=r"4 keys are swept.*at=\{'b1': 0.9\}"):
        sl.Sweep(found.dataset.expand_dims(b1=[0.9, 0.8]).assign_attrs(over=json.dumps({**OVER, "b1": []}))).plot()


def test_unresolved_errors_are_written_alike_in_the_table_and_the_figure():
    """So few paths leave errors of 0 at some points: below what a perfect model would show."""
    found = sweep({"lr": [0.01, 0.1, 0.2], "noise.scale": [[1.0, 2.0], [8.0, 8.0]]})
    column = found.table()[0].index("sde: error")
    printed = [row[column] for row in found.table()[1]]
    figure = found.plot(quantity="error")
    drawn = [text.get_text() for text in figure.axes[0].texts]
    assert [cell.startswith("<") for cell in printed] == [cell.startswith("<") for cell in drawn]
    assert any(cell.startswith("<") for cell in printed)
    assert not all(cell.startswith("<") for cell in printed)
    assert [float(a.strip("<% ")) for a in printed] == pytest.approx([float(a.strip("< ")) for a in drawn], rel=0.02)
    late = [text.get_text() for text in found.plot(quantity="late_error").axes[0].texts]
    floors = [found.at(point).point_errors(late=True)["sde"] for point in found.points]
    assert [cell.startswith("<") for cell in late] == [error <= floor for error, floor in floors]


class Interrupted(BaseException):
    pass


THREE = {"lr": [0.1, 0.2, 0.3]}


@pytest.fixture(scope="module")
def whole():
    return sweep(THREE)


@pytest.mark.parametrize("after", [5, 8, 13])
def test_a_stopped_sweep_goes_on_to_the_same_bits(whole, after, tmp_path, monkeypatch):
    over, reported = THREE, []

    @contextlib.contextmanager
    def bar(wanted, total, done=0):
        reported.append((total, done))

        def report(more, label):
            reported.append(more)
            if len(reported) == after:
                raise Interrupted

        yield report

    with monkeypatch.context() as patch:
        patch.setattr(grid, "progress_bar", bar)
        with pytest.raises(Interrupted):
            sweep(over, execution=sl.Execution(checkpoint=tmp_path / "run", checkpoint_every=3))
        with pytest.raises(ValueError, match=r"a different run: .*over.lr is \[0.1, 0.2, 0.3\], here \[0.1, 0.2\]"):
            sweep({"lr": [0.1, 0.2]}, execution=sl.Execution(checkpoint=tmp_path / "run", resume=True))
        reported.clear()
        after = 0
        resumed = sweep(over, execution=sl.Execution(checkpoint=tmp_path / "run", checkpoint_every=3, resume=True))
    (total, done), *steps = reported
    assert total == 3 * 2 * 9 * 48
    assert 0 < done == total - sum(steps)
    assert_same_numbers(*(sweep.dataset.drop_vars("wall_time", errors="ignore") for sweep in (resumed, whole)))
    assert not (tmp_path / "run").exists()


def test_an_estimate_of_a_sweep_counts_its_points():
    case = (PROBLEM, NOISE, OPTIMIZER, MODELS)
    one, many = (sl.estimate(*case, over={"lr": values}, **SIZES) for values in ([0.1], [0.1, 0.2, 0.3]))
    assert many.result_bytes == 3 * one.result_bytes


class Own(sl.OptimizerSDE):
    """SGD's SDE with a drift that is too strong or too weak."""

    rho: float = 1.0

    def drift(self, t, y, grad):
        return sl.State(-self.rho * grad)

    def apply_diffusion(self, t, y, grad, dW):
        return sl.State(-jnp.sqrt(self.optimizer.lr) * self.noise.apply_root(y.x, dW))


def test_fields_of_an_sde_of_your_own_are_swept_without_further_compilation():
    """Without noise and over one step, its x is (1 − ρ η λ) x₀, the loss λx²/2."""
    problem, noise, options = sl.Quadratic([1.0], start=1.0), sl.GaussianNoise(1e-6), dict(steps=1, paths=4)

    def swept(models, **over):
        return sl.sweep(problem, noise, sl.SGD(0.1), models, over=over["over"], **options)

    swept([Own], over={"Own.rho": [1.0]})
    with compilations() as compiled:
        found = swept({"mine": Own}, over={"mine.rho": [0, 0.5, 2.0]})
    assert compiled == []
    np.testing.assert_allclose(
        found.dataset.loss_mean[:, 0, -1], 0.5 * (1 - 0.1 * np.array([0, 0.5, 2.0])) ** 2, rtol=1e-4
    )
    assert json.loads(found.at(**{"mine.rho": 0.5}).dataset.attrs["models"])["mine"]["rho"] == 0.5
    by_function = swept(
        [lambda problem, noise, optimizer, b=3.0: Own(problem, noise, optimizer, b)], over={"lr": [0.1]}
    )
    np.testing.assert_allclose(by_function.dataset.loss_mean[0, 0, -1], 0.5 * 0.7**2, rtol=1e-4)
    with pytest.raises(ValueError, match=r"over: got 'rho'; choose one of .*'Own.rho'"):
        swept([Own], over={"rho": [1.0]})
