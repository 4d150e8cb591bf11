"""Results: what they hold, the table of errors, files, figures."""

import errno
import io
from functools import partial
from pathlib import Path

import h5netcdf
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import sdelens as sl
from sdelens.core.files import atomic_path, held_folder
from sdelens.run.models import coarse_of
from tests.checks import assert_same_numbers

PROBLEM, NOISE, OPTIMIZER = sl.Quadratic([1.0, 2.0]), sl.GaussianNoise(1.0), sl.RMSpropW(0.05, 0.9)
SIZES = dict(steps=30, paths=200, record=sl.Record(every=3))


@pytest.fixture(scope="module")
def result():
    return sl.compare(PROBLEM, NOISE, OPTIMIZER, **SIZES)


def test_dataset_has_the_documented_variables(result):
    data = result.dataset
    assert set(data.data_vars) == {
        *("loss_mean", "loss_std", "loss_sem", "loss_group_mean", "loss_group_m2", "group_paths", "loss_quantile"),
        *("grad_norm_mean", "x_mean", "x_var", "n_paths"),
    }
    assert list(data.model.values) == ["optimizer", "sde", "malladi2022"]
    assert (data.loss_quantile.diff("quantile") >= 0).all()
    np.testing.assert_allclose(data.loss_sem, data.loss_std / np.sqrt(200))
    weighted = (data.loss_group_mean * data.group_paths).sum("group") / data.group_paths.sum("group")
    np.testing.assert_allclose(weighted, data.loss_mean, rtol=1e-6)


def test_attributes_are_enough_to_run_it_again(result):
    info = result.info
    assert info["rerunnable"] == 1
    problem = sl.Quadratic(info["problem"]["curvature"], info["problem"]["start"])
    noise = sl.GaussianNoise(info["noise"]["scale"])
    options = {k: v for k, v in info["optimizer"].items() if k != "name"}
    run = {k: info["run"][k] for k in ("steps", "paths", "seed")}
    record = sl.Record(every=info["run"]["record_every"])
    again = sl.compare(problem, noise, sl.RMSpropW(**options), **run, record=record)
    assert_same_numbers(again.dataset, result.dataset)


@pytest.fixture(scope="module")
def of_an_own_loss():
    problem = sl.Problem(lambda p: (p**2).sum(), np.ones(2), infimum=1.0)
    with pytest.warns(RuntimeWarning) as told:
        return sl.simulate(problem, sl.GaussianNoise(0.01), sl.SGD(0.1), steps=30, paths=20), told


@pytest.fixture(scope="module")
def scheduled():
    optimizer = sl.SGD(0.1, 0.1, decay="independent", schedule=lambda k: 1 / (1 + k))
    return sl.simulate(PROBLEM, NOISE, optimizer, steps=3, paths=8)


def test_a_function_of_the_users_is_not_rerunnable(of_an_own_loss, scheduled):
    assert of_an_own_loss[0].info["rerunnable"] == 0
    assert scheduled.info["rerunnable"] == 0


def test_round_trip_through_a_file(result, tmp_path):
    result.save(tmp_path / "a.nc")
    assert [p.name for p in tmp_path.iterdir()] == ["a.nc"]
    back = sl.load(tmp_path / "a.nc")
    assert back.dataset.identical(result.dataset)
    pd.testing.assert_frame_equal(back.errors(), result.errors())
    assert str(back) == str(result)


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_a_truncated_file_is_refused(result, tmp_path, keep):
    path = tmp_path / "a.nc"
    result.save(path)
    size = path.stat().st_size
    with path.open("rb+") as file:
        file.truncate(int(keep * size) if keep < 1 else keep)
    with pytest.raises(ValueError, match=r"path: .*a\.nc' is truncated or not a NetCDF file"):
        sl.load(path)


def test_files_that_are_not_ours_are_refused(tmp_path):
    (tmp_path / "a.nc").write_text("not NetCDF at all")
    with pytest.raises(ValueError, match="truncated or not a NetCDF file"):
        sl.load(tmp_path / "a.nc")
    with h5netcdf.File(tmp_path / "b.nc", "w") as file:
        file.dimensions = {"x": 2}
        file.create_variable("v", ("x",), float)[:] = [1.0, 2.0]
    with pytest.raises(ValueError, match=r"not one that Result\.save wrote"):
        sl.load(tmp_path / "b.nc")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        sl.load(tmp_path / "c.nc")


def test_nothing_is_written_half(result, tmp_path, monkeypatch):
    target = tmp_path / "a.nc"
    target.write_text("what was there")

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("xarray.Dataset.to_netcdf", fail)
    with pytest.raises(OSError, match="disk full"):
        result.save(target)
    assert [p.name for p in tmp_path.iterdir()] == ["a.nc"]
    assert target.read_text() == "what was there"


def test_atomic_path_needs_its_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"), atomic_path(tmp_path / "no" / "a.nc"):
        pass


def test_errors_of_the_system_name_the_file_that_was_asked_for(result, tmp_path):
    """Also where a temporary file was at fault; errors about other files stay as they are."""
    long, name = tmp_path / f"{'a' * 300}.png", tmp_path / "a.png"
    said = r"^path: '.*/a+\.\w+' cannot be written \(.*\); give another file\.$"
    for write in (result.plot, result.save, partial(result.explore, show=False)):
        with pytest.raises(OSError, match=said):
            write(long)
    full, other = (OSError(errno.ENOSPC, "No space left", *of) for of in ((), ("other.txt",)))
    with pytest.raises(OSError, match=said), atomic_path(name):
        raise full
    with pytest.raises(OSError, match=r"other\.txt"), atomic_path(name):
        raise other
    with pytest.raises(FileNotFoundError, match=said), atomic_path(name) as temporary:
        Path(temporary).unlink()
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_path_is_refused(result):
    for use in (result.plot, result.save, result.export, partial(result.explore, show=False), sl.load):
        with pytest.raises(TypeError, match=r"^path: got 3; give a path, as text or as a pathlib\.Path\."):
            use(3)


def test_a_folder_made_for_what_fails_is_removed_unless_something_is_in_it(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "file").touch()
    for folder in ("old", "old/a", "new/a", "file"):
        with pytest.raises(OSError, match=r"give a folder|disk full"), held_folder("out", tmp_path / folder):
            raise OSError("disk full")
    with pytest.raises(OSError, match="disk full"), held_folder("out", tmp_path / "kept" / "a") as folder:  # noqa: PT012
        (folder / "b").touch()
        raise OSError("disk full")
    with held_folder("out", tmp_path / "ended"):
        pass
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {
        "ended", "file", "kept", "kept/a", "kept/a/b", "old"
    }  # fmt: skip


def test_table_and_html_show_every_model(result):
    text, html = str(result), result._repr_html_()
    for word in ("optimizer", "sde", "malladi2022", "RMSpropW", "quadratic", "200 paths", "floor"):
        assert word in text
        assert word in html
    assert html.count("<tr>") == 4


def test_export(result, tmp_path):
    result.export(tmp_path / "t.csv")
    frame = pd.read_csv(tmp_path / "t.csv", index_col="model")
    pd.testing.assert_frame_equal(frame, result.errors(), check_dtype=False)
    result.export(tmp_path / "t.tex")
    tex = (tmp_path / "t.tex").read_text()
    assert r"\toprule" in tex
    assert "malladi2022" in tex
    with pytest.raises(ValueError, match=r"end it in \.csv or \.tex"):
        result.export(tmp_path / "t.xlsx")


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_figures_in_every_usual_format(result, tmp_path, suffix):
    figure = result.plot(tmp_path / f"f.{suffix}")
    assert (tmp_path / f"f.{suffix}").stat().st_size > 5000
    top, bottom = figure.axes
    assert len(top.get_legend().get_texts()) == 1  # the band
    assert {text.get_text().strip() for text in top.texts} - {""} == {"optimizer", "SDE", "earlier SDE"}
    assert top.get_ylabel()
    assert "%" in bottom.get_ylabel()
    if suffix == "png":
        pixels = np.asarray(Image.open(io.BytesIO((tmp_path / "f.png").read_bytes())).convert("L"))
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert border.min() > 200  # nothing is cut off at the edge


def test_figure_of_one_model_and_of_an_unknown_format(tmp_path):
    alone = sl.simulate(PROBLEM, NOISE, OPTIMIZER, **SIZES)
    assert len(alone.plot().axes) == 1
    assert "sde" in str(alone)
    with pytest.raises(ValueError, match=r"path: got .*; its suffix must be one of"):
        alone.plot(tmp_path / "f.xyz")
    assert list(Path(tmp_path).iterdir()) == []


def test_the_numbers_in_long_form_are_those_of_the_table(result):
    """Every quantity of every model once, with limits exactly where the table has columns of them."""
    from sdelens.results.quantities import QUANTITIES, columns

    long, wide = result.statistics(), result.errors()
    assert list(long.index) == [(model, name) for model in wide.index for name in QUANTITIES]
    for (model, name), row in long.iterrows():
        found = [wide.loc[model].get(column, np.nan) for column in columns(name)]
        np.testing.assert_array_equal(row.to_numpy(), np.asarray(found, float))
    assert wide.diverged.dtype == int
    long.iloc[:] = 0.0  # a copy
    assert result.errors().error["sde"] == wide.error["sde"]


def test_labels_of_ones_own_and_their_errors():
    models = {
        "optimizer": "optimizer",
        "euler": sl.ClosedForm("sde", integrator="euler"),
        "fine": sl.ClosedForm("sde", substeps=4),
        "coarse": "sde",
    }
    compared = sl.compare(PROBLEM, NOISE, OPTIMIZER, models, **SIZES)
    assert compared.models == ["optimizer", "euler", "fine", "coarse"]
    frame = compared.errors()
    assert list(frame.index) == ["euler", "fine", "coarse"]
    assert np.isfinite(frame.discretisation["fine"])
    assert frame.discretisation.drop("fine").isna().all()
    assert "discretisation" in str(compared)


def test_a_model_with_substeps_is_held_to_the_same_with_one_where_that_is_there():
    fine, euler = sl.ClosedForm("sde", substeps=4), sl.ClosedForm("sde", integrator="euler")
    models = {"fine": fine, "euler": euler, "empirical": sl.Empirical(samples=16, substeps=2)}
    assert coarse_of(models) == {}
    models |= {"coarse": sl.ClosedForm("sde"), "sampled": sl.Empirical(samples=16)}
    assert coarse_of(models) == {"fine": "coarse", "empirical": "sampled"}


def test_the_optimizer_is_known_under_any_label(tmp_path):
    models = {"AdamW, $\\beta$_1": "optimizer", "mine": "sde"}
    compared = sl.compare(PROBLEM, NOISE, OPTIMIZER, models, **SIZES)
    assert list(compared.errors().index) == ["mine"]
    assert len(compared.plot(tmp_path / "f.png").axes) == 2
    alone = sl.compare(PROBLEM, NOISE, OPTIMIZER, ["sde", "malladi2022"], **SIZES)
    assert "no optimizer among the models" in str(alone)
    with pytest.raises(ValueError, match="reference: there is no optimizer"):
        alone.errors()
    assert list(alone.errors("sde").index) == ["malladi2022"]


def test_an_infimum_above_the_losses_is_noticed(of_an_own_loss):
    told = [str(warning.message) for warning in of_an_own_loss[1]]
    assert any("infimum: got 1, but the mean loss" in text for text in told)


def test_a_schedule_that_holds_the_learning_rate_itself_is_noticed():
    with pytest.warns(UserWarning, match=r"schedule: never exceeds 0\.01"):
        sl.simulate(PROBLEM, NOISE, sl.SGD(0.01, schedule=lambda k: 0.01), steps=3, paths=8)


def test_the_title_names_schedule_and_decay(scheduled):
    assert "schedule" in str(scheduled)
    assert "independent decay" in str(scheduled)


def test_merge_joins_models_of_one_experiment(result):
    a = sl.simulate(PROBLEM, NOISE, OPTIMIZER, "optimizer", **SIZES)
    b = sl.simulate(PROBLEM, NOISE, OPTIMIZER, "sde", **SIZES)
    merged = a.merge(b)
    both = result.dataset.sel(model=["optimizer", "sde"])
    np.testing.assert_array_equal(merged.dataset.loss_mean, both.loss_mean)
    pd.testing.assert_frame_equal(merged.errors(), result.errors().loc[["sde"]])
    with pytest.raises(ValueError, match="both results have models"):
        a.merge(a)
    chunked = sl.simulate(PROBLEM, NOISE, OPTIMIZER, "sde", execution=sl.Execution(chunk=90), **SIZES)
    np.testing.assert_allclose(a.merge(chunked).dataset.loss_mean, both.loss_mean, rtol=1e-5)
    with pytest.raises(TypeError, match="other: got str"):
        a.merge("b")
    with pytest.raises(ValueError, match="differs in steps"):
        a.merge(sl.simulate(PROBLEM, NOISE, OPTIMIZER, "sde", **{**SIZES, "steps": 31}))


def test_merge_tells_functions_apart():
    def run(loss, start, model):
        problem = sl.Problem(loss, start * np.ones(2), infimum=0.0)
        return sl.simulate(problem, NOISE, sl.SGD(0.1), model, steps=2, paths=8)

    first = run(lambda p: (p**2).sum(), 1.0, "optimizer")
    same = lambda p: (p**2).sum()  # noqa: E731
    assert first.merge(run(same, 1.0, "sde")).models == ["optimizer", "sde"]
    for loss, start in ((lambda p: (p**4).sum(), 1.0), (same, 2.0)):
        with pytest.raises(ValueError, match="differs in problem"):
            first.merge(run(loss, start, "sde"))


def test_late_errors_without_an_infimum_are_relative_to_the_whole_curve():
    """Two models equal in law, on a plateau: without the infimum the late loss is no yardstick of its own."""
    problem = sl.Problem(lambda p: (p**2).sum() / 2 + 3, np.ones(2))
    errors = sl.compare(problem, NOISE, sl.SGD(0.05), steps=600, paths=256, record=sl.Record(every=10)).errors()
    assert errors.late_error_upper["sde"] < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reference": "adam"}, "reference: got 'adam'"),
        ({"confidence": 1.0}, "confidence: got 1.0"),
        ({"confidence": 0.3}, "confidence: got 0.3"),
    ],
)
def test_bad_arguments_of_errors(result, arguments, message):
    with pytest.raises(ValueError, match=message):
        result.errors(**arguments)
