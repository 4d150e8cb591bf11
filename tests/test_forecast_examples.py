"""The examples for forecasts: the logs that one of them trains, and the tables that another makes of public curves."""

import csv
import importlib.util
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import sdelens as sl
from tests.checks import compilations
from tests.forecasts import STEPS, TRUTH, adamw, curve

TINY = dict(warmup=5, held_out=64)


def example(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def logs():
    return example("forecast_logs")


@pytest.fixture(scope="module")
def public():
    return example("public_curves")


def a_run(logs, **changes):
    return logs.Setting("fit", "adamw", "cosine", 8, 0.02, 20)._replace(**changes)


def test_a_run_is_written_once_and_is_always_the_same(logs, tmp_path):
    run, sizes = a_run(logs), dict(model=logs.Model(context=2, letter=2, width=4), **TINY)
    (tmp_path / "again").mkdir()
    with compilations() as compiled:
        assert logs.write(run, tmp_path, **sizes)
        assert logs.write(run, tmp_path / "again", **sizes)
        assert logs.write(a_run(logs, seed=1), tmp_path, **sizes)
        assert not logs.write(run, tmp_path, **sizes)
    assert len(compiled) == 1
    files = sorted(path.name for path in tmp_path.glob("*.csv"))
    assert files == [f"fit-adamw-cosine-b8-lr0.02-n20-seed{seed}.csv" for seed in (0, 1)]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", ".csv", ".csv"]  # nothing temporary is left
    assert (tmp_path / files[0]).read_bytes() == (tmp_path / "again" / files[0]).read_bytes()

    one, other = (list(csv.DictReader((tmp_path / name).open(newline=""))) for name in files)
    assert list(one[0]) == ["step", "lr", "loss", "eval_loss"]
    assert [int(row["step"]) for row in one] == list(range(21))
    assert [float(row["lr"]) for row in one[:-1]] == pytest.approx(logs.learning_rates(run, 5), rel=1e-7)
    assert (one[-1]["lr"], one[-1]["loss"]) == ("", "")
    evaluated = {int(row["step"]): float(row["eval_loss"]) for row in one if row["eval_loss"]}
    assert list(evaluated) == logs.evaluated_steps(20).tolist()
    assert evaluated[0] == pytest.approx(math.log(len(sl.load_text().vocabulary)), rel=0.05)
    assert evaluated[20] < evaluated[0] - 0.1
    assert one[0]["eval_loss"] == other[0]["eval_loss"]  # the same parameters,
    assert one[0]["loss"] != other[0]["loss"]  # but not the same batch


def test_no_character_is_predicted_twice(logs, monkeypatch):
    seen = []

    def curves(*arguments):
        seen.append(arguments)
        return np.zeros(2000), np.zeros(len(arguments[-1]))

    monkeypatch.setattr(logs, "curves", curves)
    logs.train(a_run(logs, batch_size=128, steps=2000))
    *_, batches, held_out, _, _ = seen[0]
    assert batches.shape == (2000, 128)
    places = np.concatenate([batches.ravel(), held_out])
    assert len(np.unique(places)) == len(places)
    left = len(sl.load_text().codes) * 9 // 10
    assert max(run.steps * run.batch_size for run in logs.settings()) < left
    with pytest.raises(ValueError, match=r"steps: got 4000 of 128 examples, .* give \d+ or fewer steps"):
        logs.train(a_run(logs, batch_size=128, steps=4000))


def test_learning_rates(logs):
    shapes = {
        "constant": [0.2, 1, 1, 1, 1, 1],
        "cosine": [0.2, 1, 1, 0.55, 0.1 + 0.45 * (1 - math.sqrt(0.5)), 0.1],
        "wsd": [0.2, 1, 1, 1, 1, 0],
        "stepdown": [0.2, 1, 1, 0.3, 0.3, 0.3],
        "linear": [0.2, 1, 1, 0.5, 0.25, 0],
    }
    steps = 2005
    for schedule, expected in shapes.items():
        lrs = logs.learning_rates(a_run(logs, schedule=schedule, lr=2.0, steps=steps), warmup=5)
        assert lrs[[0, 4, 5, 1005, 1505, steps - 1]] / 2 == pytest.approx(expected, abs=3e-3)
    decay = logs.learning_rates(a_run(logs, schedule="wsd", lr=2.0, steps=1000), warmup=5)[[799, 800, 900, 999]]
    assert decay == pytest.approx([2, 2, 1, 0.01])
    with pytest.raises(ValueError, match="schedule: got 'steps'; give constant, cosine"):
        logs.learning_rates(a_run(logs, schedule="steps"))


def test_runs_and_steps_are_chosen(logs, monkeypatch, capsys, tmp_path):
    names = [run.name for run in logs.settings()]
    assert len(set(names)) == len(names) == 39
    for optimizer, (_, lr) in logs.OPTIMIZERS.items():
        mine = [run for run in logs.settings() if run.optimizer == optimizer]
        assert [run.aim for run in mine] == 6 * ["fit"] + 5 * ["test"] + 2 * ["seed"]
        assert {run.lr / lr for run in mine} == {0.5, 1.0, 1.5}
    stops = logs.evaluated_steps(2500)
    assert 130 <= len(stops) <= 150
    assert stops[[0, 1, -1]].tolist() == [0, 1, 2500]
    assert np.diff(stops).max() < 30

    monkeypatch.setattr(sys, "argv", ["forecast_logs.py", "--out", str(tmp_path), "--only", "test-sgd-*", "--list"])
    logs.main()
    assert capsys.readouterr().out.split() == [name for name in names if name.startswith("test-sgd-")]
    monkeypatch.setattr(sys, "argv", ["forecast_logs.py", "--only", "test-lion-*"])
    with pytest.raises(SystemExit):
        logs.main()
    assert "--only: got 'test-lion-*', which matches no run; see their names with --list." in capsys.readouterr().err


# Public curves


class KnownForecaster:
    """Predicts 2 with a band from 1.5 to 2.5, whatever the run, and keeps what it was asked."""

    def __init__(self, runs):
        self.runs, self.asked = runs, []

    def plan(self, optimizer, *, steps, schedule):
        assert schedule.shape == (steps,)
        return optimizer.lr * schedule

    def band(self, rates, at):
        self.asked.append((rates, at))
        return SimpleNamespace(value=np.full(len(at), 2.0), lower=np.full(len(at), 1.5), upper=np.full(len(at), 2.5))

    def final(self, optimizer, *, steps, batch_size, size):
        self.asked.append((steps, batch_size, size))
        return sl.forecast.Interval(2.0, 1.5, 2.5)


@pytest.fixture
def known(monkeypatch):
    made = []

    def fit(runs):
        made.append(KnownForecaster(runs))
        return made[-1]

    monkeypatch.setattr(sl.forecast, "fit", fit)
    return made


def rows(path, head, *lines):
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *lines])


def test_every_size_of_public_curves_is_predicted(public, known, monkeypatch, capsys, tmp_path):
    head, level = ("step", "lr", "loss"), [(2200, 2e-4, 3.0), (3000, 2e-4, 2.0)]
    for name in public.FITTED:
        rows(tmp_path / f"7M_{name}.csv", head, *level)
        rows(tmp_path / "csv_100" / f"{name}.csv", head, *level)
        rows(tmp_path / f"9_{name}.csv", head, *level)  # a size of which nothing is left to predict
    rows(tmp_path / "7M_wsd_20.csv", head, *level)
    rows(tmp_path / "csv_100" / "wsdcon_3.csv", head, (0, 1e-4, 3.0), (3000, 2e-4, 2.1), (3010, 2e-4, 2.2))
    rows(tmp_path / "notes.csv", ("a", "b"), (1, 2))
    monkeypatch.setattr(sys, "argv", ["public_curves.py", "--data", str(tmp_path), "--plot", str(tmp_path / "figures")])
    public.main()
    said = capsys.readouterr()
    assert said.err.count("1 of 1 curves predicted") == 2
    assert [[run.name for run in forecaster.runs] for forecaster in known] == 2 * [list(public.FITTED)]
    (logged, at), (risen, _) = (forecaster.asked[0] for forecaster in known)
    assert at.tolist() == [2200, 3000]
    assert logged[[0, 2159, 2999]] == pytest.approx([2e-4 / 2160, 2e-4, 2e-4])  # a warm-up that the log leaves out
    assert risen[[0, 1500]] == pytest.approx([1e-4, 1.5e-4])  # and one that it has
    small, large = said.out.split("100M: predicted curve")
    # errors 1, 0: mean 1/2, root mean square √½, R² = 1 − 1/½, the mean of one curve, one of two in the band
    assert small.splitlines()[2].split() == ["wsd_20", "0.50000", "0.70711", "-1.0000", "1.00", "50", "%"]
    assert "published" not in small
    assert "wsdcon_3" in large
    assert large.split()[-6:] == ["Multi-Power", "Law,", "published", "0.00435", "0.00592", "0.9983"]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["schedules-100M.png", "schedules-7M.png"]


def test_scaling_runs_are_fitted_with_and_without_those_left_out(public, known, monkeypatch, capsys, tmp_path):
    head = ("N", "B", "K", "C", "loss", "split", "filtered")
    train = [(10, 2, 100, 0, 3.0, "train", False), (20, 4, 200, 0, 2.5, "train", True)]
    test = [(30, 8, 300, 0, 2.0, "test", ""), (30, 8, 300, 0, 2 * math.exp(0.4), "test", "")]
    rows(tmp_path / "one" / "train.csv", head, *train)
    rows(tmp_path / "two" / "test.csv", head, *test, *test)  # each run counts once
    monkeypatch.setattr(sys, "argv", ["public_curves.py", "--data", str(tmp_path), "--kind", "scaling"])
    public.main()
    assert [len(forecaster.runs) for forecaster in known] == [2, 1]
    first = known[0].runs[0]
    assert (first.total, first.batch_size, first.size, first.losses.tolist()) == (100, 2, 10, [3.0])
    assert first.lr_at([0, 50, 99]) == pytest.approx([1e-3, 5.08e-4, 0], abs=1e-6)  # 1 % of warm-up, then a cosine
    assert known[0].asked == 2 * [(300, 8, 30)]
    lines = capsys.readouterr().out.splitlines()
    errors = ["2", "0.2828", "0.2000", "0.2000", "0.4000", "50", "%"]
    assert lines[2].split() == ["fitted", "to", "2", "runs", *errors]
    assert lines[3].split() == ["fitted", "to", "1", "runs", *errors]
    assert lines[4].startswith("Noisy Quadratic System, published")
    monkeypatch.setattr(sys, "argv", ["public_curves.py", "--data", str(tmp_path), "--kind", "schedules"])
    with pytest.raises(SystemExit):
        public.main()
    assert "there are no such files" in capsys.readouterr().err


@pytest.mark.slow
def test_curves_of_a_known_quadratic_are_predicted(public, tmp_path):
    at = np.unique(np.geomspace(100, STEPS, 60).round().astype(int))
    shapes = [*public.FITTED, "linear"]
    schedules = [sl.Cosine(STEPS - 100, end=0.1), None, sl.Interpolated([1900, 1901], [1, 0.3])]
    errors = 0.002 * np.random.default_rng(0).standard_normal((4, len(at)))
    schedules.append(sl.Interpolated([0, STEPS - 100], [1, 0]))
    for name, schedule, error in zip(shapes, schedules, errors, strict=True):
        optimizer = adamw(schedule)
        lrs = sl.forecast.Run(([STEPS], [1.0]), optimizer).lr_at(at)
        losses = curve(TRUTH, optimizer, at, STEPS) * np.exp(error)
        rows(tmp_path / f"5M_{name}.csv", ("step", "lr", "loss"), *zip(at, lrs, losses, strict=True))
    (files,) = public.curves_in(tmp_path).values()
    (found,) = public.schedules(files)
    assert found.name == "linear"
    mae, _, r2, inside = found.scores
    assert mae < 0.01 * np.ptp(found.losses)
    assert r2 > 0.999
    assert inside > 0.75  # .9 with a standard error of .04
