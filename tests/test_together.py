"""Results together: seeds joined to one ensemble, labels changed and chosen, several results in one figure."""

import itertools
import json

import numpy as np
import pytest

import sdelens as sl
from tests.ensembles import GROUPS, OPTIMIZER, ensemble, of_seed, paths


def interleaved(parts):
    """Paths of several runs in an order in which path i is in group i mod G, as it was in its own run."""
    assert all(len(part) % GROUPS == 0 for part in parts)
    return np.concatenate(parts)


@pytest.mark.parametrize("counts", [(64, 64, 64), (32, 96, 16)])
@pytest.mark.parametrize("lost", [None, (5, 12)])
def test_pooled_seeds_are_the_ensemble_of_all_paths(counts, lost):
    """All statistics are those of one run of all paths, up to rounding, also where paths were lost."""
    parts = [[paths(seed, count, label) for label in ("optimizer", "sde")] for seed, count in enumerate(counts)]
    runs = [ensemble(*part, seed=seed, lost=lost if seed == 0 else None) for seed, part in enumerate(parts)]
    found = runs[0].pool(*runs[1:])
    whole = ensemble(*(interleaved(each) for each in zip(*parts, strict=True)), seed=[0, 1, 2], lost=lost)
    assert found.info["run"]["paths"] == sum(counts)
    assert found.info["run"]["seed"] == [0, 1, 2]
    assert found.settings["sde"]["wall_time"] == pytest.approx(4.5)
    for name, values in whole.dataset.data_vars.items():
        if name not in ("loss_quantile", "path_x"):
            assert found.dataset[name].dtype == values.dtype
            np.testing.assert_allclose(found.dataset[name].values, values.values, rtol=1e-10, atol=1e-12, err_msg=name)
    assert found.dataset.sizes["path"] == 12
    known = found.errors().drop(columns=["quantile_5", "quantile_95"])
    np.testing.assert_allclose(known.to_numpy(), whole.errors()[known.columns].to_numpy(), rtol=1e-6)
    in_two_steps = runs[0].pool(runs[1]).pool(runs[2])
    np.testing.assert_allclose(in_two_steps.dataset.loss_group_m2, found.dataset.loss_group_m2, rtol=1e-10)


def test_quantiles_of_pooled_seeds_are_left_out_with_the_reason(tmp_path):
    found = of_seed(0).pool(of_seed(1))
    assert "loss_quantile" not in found.dataset
    assert found.errors()[["quantile_5", "quantile_95"]].isna().all(axis=None)
    assert "seeds 0, 1" in found.title()
    assert any("quantiles of the loss over paths do not follow" in note for note in found.notes())
    assert not any("quantiles of the loss over paths do not follow" in note for note in of_seed(0).notes())
    found.save(tmp_path / "a.nc")
    assert str(sl.load(tmp_path / "a.nc")) == str(found)
    labels = [text.get_text() for text in found.plot().axes[0].get_legend().get_texts()]
    assert any("standard deviation" in label for label in labels)


def test_four_times_the_paths_halve_the_limits():
    """The floor falls as 1/√(number of paths); its relative scatter over 16 groups is about 1/√(2 · 15 · 2) = 13 %."""
    one = of_seed(0).errors().loc["sde", "floor"]
    four = of_seed(0).pool(*(of_seed(seed) for seed in (1, 2, 3))).errors().loc["sde", "floor"]
    assert 0.25 < four / one < 1.0


def test_unequal_runs_are_not_pooled():
    first = of_seed(0)
    other = dict(OPTIMIZER, lr=0.1)
    curve = first.with_curve("mine", [1.0, 0.5], [0, 30])
    for result, message in (
        (of_seed(0, 32), "several have the seed 0, and therefore the same random numbers"),
        (of_seed(1, optimizer=other), "number 1 differs from the first in optimizer"),
        (of_seed(1, infimum=float("nan")), "differs from the first in infimum: nan, not 0"),
        (of_seed(1).select(["sde"]), "differs from the first in models"),
        (of_seed(1).rename({"sde": "mine"}), "differs from the first in models"),
        (sl.Result(of_seed(1).dataset.isel(step=slice(None, None, 2))), "differs from the first in its steps"),
    ):
        with pytest.raises(ValueError, match=message):
            first.pool(result)
    with pytest.raises(ValueError, match="'mine' is a curve without paths"):
        first.pool(of_seed(1)).pool(curve)
    with pytest.raises(TypeError, match="others: got list"):
        first.pool([of_seed(1)])
    assert first.pool().dataset.identical(first.dataset)


def test_models_are_renamed_and_selected():
    first = of_seed(0)
    renamed = first.rename({"sde": "SDE of seed 0"})
    assert renamed.models == ["optimizer", "SDE of seed 0"]
    assert first.models == ["optimizer", "sde"]
    assert renamed.settings["SDE of seed 0"]["model"] == "sde"
    np.testing.assert_array_equal(renamed.errors().to_numpy(), first.errors().to_numpy())
    assert first.rename({"sde": "optimizer", "optimizer": "sde"}).optimizer == "sde"
    swapped = first.select(["sde", "optimizer"])
    assert swapped.models == ["sde", "optimizer"]
    np.testing.assert_array_equal(swapped.dataset.loss_mean[0], first.dataset.loss_mean[1])
    with pytest.raises(ValueError, match=r"other\.rename\(\{'optimizer': 'optimizer 2'\}\)"):
        first.merge(first)
    again = of_seed(0).rename({m: f"{m} 2" for m in first.models})
    assert first.merge(again).models == ["optimizer", "sde", "optimizer 2", "sde 2"]
    for wanted, message in (
        ({"sdo": "a"}, "names: got 'sdo'"),
        ({"sde": "optimizer"}, "two models would be called 'optimizer'"),
    ):
        with pytest.raises(ValueError, match=message):
            first.rename(wanted)
    with pytest.raises(TypeError, match="names: got 3"):
        first.rename({"sde": 3})
    with pytest.raises(ValueError, match="models: got 'sdo'"):
        first.select(["sdo"])
    with pytest.raises(ValueError, match="name each once"):
        first.select(["sde", "sde"])
    with pytest.raises(TypeError, match="models: got 'sde'"):
        first.select("sde")


def test_coarse_names_are_renamed_too():
    result = ensemble(paths(0), paths(1), labels=("optimizer", "sde"))
    models = result.settings
    models["sde"]["coarse"] = "optimizer"
    result = sl.Result(result.dataset.assign_attrs(models=json.dumps(models)))
    assert result.rename({"optimizer": "the run"}).settings["sde"]["coarse"] == "the run"


def test_an_overlay_has_a_labelled_line_for_each_result():
    fast = of_seed(1, optimizer=dict(OPTIMIZER, lr=0.1))
    figure = sl.overlay({"slow": of_seed(0), "fast": fast})
    (axes,) = figure.axes
    assert len(axes.lines) == 2
    assert axes.get_yscale() == "log"
    assert axes.get_ylabel() == r"mean loss $-$ infimum"
    assert {text.get_text().strip() for text in axes.texts if text.get_text()} == {"slow", "fast"}
    assert axes.lines[0].get_color() != axes.lines[1].get_color()
    np.testing.assert_allclose(axes.lines[0].get_xdata(), 0.05 * np.arange(31))
    np.testing.assert_allclose(axes.lines[1].get_xdata(), 0.1 * np.arange(31))
    steps = sl.overlay({"slow": of_seed(0), "fast": fast}, over="step", scale="linear", relative=False).axes[0]
    np.testing.assert_allclose(steps.lines[1].get_xdata(), np.arange(31))
    assert (steps.get_yscale(), steps.get_ylabel()) == ("linear", "mean loss")


def test_models_of_an_overlay_have_line_styles_and_a_key():
    (axes,) = sl.overlay({"a": of_seed(0), "b": of_seed(1)}, models=["optimizer", "sde"]).axes
    drawn = [line for line in axes.lines if len(line.get_xdata())]
    assert len(drawn) == 4
    assert drawn[0].get_color() == drawn[1].get_color() != drawn[2].get_color()
    assert drawn[0].get_linestyle() == drawn[2].get_linestyle() != drawn[1].get_linestyle()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["optimizer", "SDE"]


def test_labels_at_line_ends_do_not_overlap():
    figure = sl.overlay({f"run {i}": of_seed(i) for i in range(6)}, figsize=(5, 3))
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts if text.get_text().strip()]
    boxes.sort(key=lambda box: box.y0)
    assert len(boxes) == 6
    assert all(low.y1 <= high.y0 + 1 for low, high in itertools.pairwise(boxes))
    right = figure.get_window_extent().x1
    assert all(box.x1 <= right for box in boxes)


@pytest.mark.parametrize(
    ("results", "options", "kind", "message"),
    [
        ([], {}, TypeError, "results: got list"),
        ({}, {}, ValueError, "results: got none, an empty mapping; give results by name"),
        ({"a": 3}, {}, TypeError, "results: 'a' is int"),
        (None, {"over": "epoch"}, ValueError, "over: got 'epoch'"),
        (None, {"over": "samples"}, ValueError, "the noise of 'a' has no batch size"),
        (None, {"scale": "symlog"}, ValueError, "scale: got 'symlog'"),
        (None, {"models": ["malladi2022"]}, ValueError, "'malladi2022' is in none of the results"),
        (None, {"relative": True, "unknown": True}, ValueError, "the infimum of 'b' is not known"),
        ("one without", {"models": ["sde"]}, ValueError, r"'b' has none of \['sde'\], so it would not be drawn"),
    ],
)
def test_bad_arguments_of_an_overlay(results, options, kind, message):
    options = dict(options)
    infimum = float("nan") if options.pop("unknown", False) else 0.0
    if not isinstance(results, dict | list):
        second = of_seed(1, infimum=infimum)
        results = {"a": of_seed(0), "b": second if results is None else second.select(["optimizer"])}
    with pytest.raises(kind, match=message):
        sl.overlay(results, **options)


def test_lines_are_named_in_axes_alone():
    with pytest.raises(TypeError, match=r"^axes: got None; give the axes of matplotlib that contain the lines"):
        sl.label_lines(None)
