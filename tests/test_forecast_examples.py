"""The example that writes logs for forecasts: its files, its schedules, and what its runs train on."""

import csv
import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest

import sdelens as sl
from tests.checks import compilations

TINY = dict(warmup=5, held_out=64)


@pytest.fixture(scope="module")
def logs():
    path = Path(__file__).parents[1] / "examples" / "forecast_logs.py"
    spec = importlib.util.spec_from_file_location("forecast_logs", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
