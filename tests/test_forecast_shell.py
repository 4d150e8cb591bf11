"""The shell's `forecast`: what it reads, prints, writes and refuses."""

import csv
import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

import sdelens as sl
from sdelens.forecast._schedule_choice import BestSchedule, Curve
from sdelens.shell.forecast_runs import Columns, at_every_length, optimizer_from, runs_from, runs_in
from tests.checks import shell
from tests.forecasts import STEPS, three_runs

ADAMW = "adamw(lr=1e-3, b2=0.95, weight_decay=0.1"
CONSTANT = f"{ADAMW}, schedule=warmup(100))"
COSINE = f"{ADAMW}, schedule=warmup(100, cosine({STEPS - 100}, end=0.1)))"
LONGER = ("--optimizer", f"{ADAMW}, schedule=warmup(100, cosine({2 * STEPS - 100})))", "--steps", str(2 * STEPS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the logs constant.csv, cosine.csv and drop.csv, of which only the last has learning rates."""
    folder = tmp_path_factory.mktemp("logs")
    for run in three_runs():
        columns = {"step": run.steps, "loss": run.losses}
        if run.name == "drop":
            columns["lr"] = run.lr_at(run.steps)
        pd.DataFrame(columns).to_csv(folder / f"{run.name}.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def fitted(folder):
    """What a fit to two of the logs printed, and its file."""
    logs = (str(folder / "constant.csv"), str(folder / "cosine.csv"))
    out = folder / "forecast.json"
    options = ("--out", str(out), "--plot", str(folder / "fit.png"), "--skip", "150")
    return shell("forecast", "fit", *logs, "--optimizer", CONSTANT, "--optimizer", COSINE, *options).stdout, out


def test_fit_prints_and_writes_the_fit_of_the_library(fitted):
    printed, path = fitted
    found = sl.forecast.load(path)
    assert printed.strip() == str(found)
    assert [run.name for run in found.runs] == ["constant", "cosine"]
    assert found.runs[0].steps[0] >= 150
    assert found.runs[1].end == pytest.approx(1e-4, rel=1e-3)
    assert path.with_name("fit.png").read_bytes().startswith(b"\x89PNG")


def test_predict_prints_and_writes_the_curve_of_the_library(fitted, tmp_path):
    _, path = fitted
    optimizer = sl.AdamW(1e-3, b2=0.95, weight_decay=0.1, schedule=sl.Warmup(100, sl.Cosine(2 * STEPS - 100)))
    found = sl.forecast.load(path).predict(optimizer, steps=2 * STEPS)
    written = ("--out", str(tmp_path / "curve.csv"), "--plot", str(tmp_path / "curve.pdf"))
    printed = shell("forecast", "predict", str(path), *LONGER, *written).stdout
    assert str(found) in printed
    last = found.dataset.isel(model=0, step=-1)
    low, high = last.loss_quantile.values
    assert printed.splitlines()[2].split() == f"{2 * STEPS} {last.loss_mean:.4g} {low:.4g} – {high:.4g}".split()
    curve = pd.read_csv(tmp_path / "curve.csv")
    assert list(curve) == ["step", "loss", "lower", "upper"]
    np.testing.assert_allclose(curve["loss"], found.dataset.loss_mean.values[0], rtol=1e-12)
    np.testing.assert_allclose(curve[["lower", "upper"]].T, found.dataset.loss_quantile.values[0], rtol=1e-12)
    assert (tmp_path / "curve.pdf").read_bytes().startswith(b"%PDF")
    shell("forecast", "predict", str(path), *LONGER, "--out", str(tmp_path / "curve.nc"))
    assert sl.load(tmp_path / "curve.nc").dataset.loss_mean.equals(found.dataset.loss_mean)


def test_a_logged_curve_gives_the_learning_rates_and_is_compared(fitted, folder):
    _, path = fitted
    words = ("forecast", "predict", str(path), "--optimizer", f"{ADAMW})", "--logged", str(folder / "drop.csv"))
    said = json.loads(shell(*words, "--at", "1500,3000,4000", "--format", "json").stdout)
    assert said["run"]["steps"] == STEPS
    assert said["curve"]["step"] == [1500, 3000, 4000]
    np.testing.assert_allclose(said["curve"]["logged"], said["curve"]["loss"], rtol=0.02)
    assert 0 < said["error"] < 0.1
    constant = ("--optimizer", CONSTANT, "--steps", str(STEPS), "--at", str(STEPS), "--format", "json")
    of_constant = json.loads(shell("forecast", "predict", str(path), *constant).stdout)["curve"]["loss"][0]
    logged, predicted = said["curve"]["logged"][-1], said["curve"]["loss"][-1]
    assert abs(predicted - logged) < 0.2 * abs(of_constant - logged)  # it follows the drop of the learning rate
    assert "logged" in shell(*words).stdout.splitlines()[0]


def test_a_table_of_runs_says_what_options_say(folder):
    fields = ["path", "Optimizer", "batch-size", "size", "steps", "name", "step", "loss"]
    rows = [
        ["constant.csv", CONSTANT, "64", "1e6", "", "first", "", ""],
        [],
        ["cosine.csv", "", "32", "1e6", "5000", "", "", ""],
        ["", "sgd(0.1)", "32", "2e6", "700", "third", "600", "2.5"],
    ]
    with (folder / "runs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([fields, *rows])
    first, second, third = runs_in(folder / "runs.csv", COSINE, Columns())
    numbers = {"batch_size": ["64", "32"], "size": ["1e6"], "steps": ["4000", "5000"]}
    paths = [folder / "constant.csv", folder / "cosine.csv"]
    same = runs_from(paths, [CONSTANT, COSINE], numbers, Columns(loss="loss"))
    assert first.describe() | {"name": "constant"} == same[0].describe()
    assert second.describe() == same[1].describe()
    assert (first.name, second.name, first.batch_size, second.total) == ("first", "cosine", 64.0, 5000)
    assert (third.name, third.total, third.size) == ("third", 700, 2e6)
    assert (third.steps.tolist(), third.losses.tolist()) == ([600], [2.5])


def a_schedule(optimizer):
    """A best schedule that nothing was computed for: a linear decay."""
    chosen = dataclasses.replace(optimizer, schedule=sl.Interpolated([0, STEPS], [1.0, 0.0]))
    course = np.array([1, STEPS]), np.array([1e-3, 1e-6]), np.array([3.0, 2.0])
    curves = tuple(Curve(name, *course) for name in ("best", "a cosine", "a decay"))
    loss, gain = sl.forecast.Interval(2.0, 1.9, 2.1), sl.forecast.Interval(0.1, 0.0, 0.2)
    knots = np.array([0, STEPS]), np.array([1.0, 0.0])
    return BestSchedule(chosen, STEPS, 100, loss, *knots, "a cosine", gain, "a decay", gain, (), lambda: curves)


def test_advice_is_that_of_the_library(fitted, tmp_path, monkeypatch):
    _, path = fitted
    optimizer = sl.AdamW(1e-3, b2=0.95, weight_decay=0.1)
    best, found, asked = a_schedule(optimizer), sl.forecast.load(path), []

    def best_schedule(self, *given, **options):
        asked.append((*given, options))
        return best

    monkeypatch.setattr(sl.forecast.Forecaster, "best_schedule", best_schedule)
    parts = {
        "schedule": best,
        "learning_rate": found.best_lr(STEPS, best.optimizer),
        "decay": found.when_to_decay(STEPS, optimizer, warmup=100, done=500),
    }
    words = ("forecast", "advise", str(path), "--optimizer", f"{ADAMW})", "--steps", str(STEPS), "--warmup", "100")
    words = (*words, "--done", "500", "--tune-lr")
    printed = shell(*words, "--plot", str(tmp_path / "new" / "advice")).stdout
    assert printed.strip() == "\n\n".join(map(str, parts.values()))
    steps, of, options = asked[0]
    assert (steps, of.describe()) == (STEPS, optimizer.describe())
    assert options == {"batch_size": None, "size": None, "warmup": 100, "peak": True}
    names = {figure.name for figure in (tmp_path / "new" / "advice").iterdir()}
    assert names == {"schedule.png", "learning-rate.png", "decay.png"}
    said = json.loads(shell(*words, "--format", "json").stdout)
    assert said == json.loads(json.dumps({name: part.describe() for name, part in parts.items()}))


def test_batch_sizes_are_compared_with_the_schedule_stretched_to_their_steps():
    optimizer = optimizer_from(COSINE)
    every = at_every_length(optimizer, STEPS)
    halved = dataclasses.replace(optimizer, schedule=optimizer.schedule.stretched(0.5))
    assert every(STEPS // 2).describe() == halved.describe() != optimizer.describe()
    constant = optimizer_from("sgd(0.1)")
    assert at_every_length(constant, None) is constant


A = "a.csv"
FIT = ("fit", A)
SGD = ("--optimizer", "sgd(0.1)")
NEW = ("--optimizer", f"{ADAMW})")
TABLES = {
    "runs.csv": "path,optimiser\na.csv,sgd(0.1)\n",
    "unquoted.csv": "path,optimizer\na.csv,adamw(0.1, b2=0.9)\n",
    "unnamed.csv": "optimizer,name\nsgd(0.1),a\n",
    "lacking.csv": "path,optimizer\na.csv,sgd(0.1)\na.csv,\n",
    "both.csv": "path,optimizer,step,loss\na.csv,sgd(0.1),5,\n",
    "one.csv": "step,loss,optimizer\n5,,sgd(0.1)\n",
    "word.csv": "path,optimizer,batch_size\na.csv,sgd(0.1),large\n",
    "empty.csv": "path,optimizer\n",
    "nothing.csv": "",
    "other.json": "{}",
    A: "step,loss,lr\n1,3,0.1\n2,2.5,0.1\n",
}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("fit",), "logs: missing; give one per run"),
        (FIT, "optimizer: missing"),
        ((*FIT, "--optimizer", "sgd"), "optimizer: 'sgd' has no learning rate; write it as in sgd(lr=3e-4)"),
        ((*FIT, "--optimizer", "adamww(lr=0.1)"), "Did you mean 'adamw'?"),
        ((*FIT, "--optimizer", "adagrad(0.1)"), "runs: a.csv: optimizer: got Adagrad; give one of sl.SGD"),
        ((*FIT, "--optimizer", "sgd(0.2)"), "runs: a.csv: optimizer: its lr is 0.2, but the largest logged"),
        ((*FIT, *SGD, *SGD), "optimizer: was given 2 times for 1 runs; give it once for all, or once for each"),
        ((*FIT, *SGD, "--batch-size", "x"), "runs: a.csv: batch_size: got 'x'; give a number"),
        ((*FIT, *SGD, "--steps", "2.5"), "runs: a.csv: steps: got 2.5; give a whole number"),
        ((*FIT, *SGD, "--loss", "los"), "has no column 'los'; its columns are 'step', 'loss', 'lr'"),
        ((*FIT, *SGD), "runs: they have 2 losses in all"),
        (("fit", "b.csv", *SGD), "logs: there is no file 'b.csv'; check its name and its folder"),
        (("fit", ".", *SGD), "runs: .: logs: the folder '.' holds no event file of TensorBoard"),
        ((*FIT, *SGD, "--format", "text"), "format: got 'text'; choose one of 'table', 'json'"),
        ((*FIT, *SGD, "--plot", "fit.xyz"), "plot: got 'fit.xyz'; its suffix must be one of"),
        ((*FIT, *SGD, "--out", "nowhere/f.json"), "out: the folder 'nowhere' does not exist"),
        ((*FIT, *SGD, "--out", "."), "out: '.' is a folder"),
        ((*FIT, *SGD, "--out", "f" * 300), f"out: '{'f' * 300}' cannot be written (File name too long); give another"),
        (("predict", "{}", *LONGER, "--plot", f"{'f' * 300}.png"), "fff.png' cannot be written (File name too long)"),
        ((*FIT, "--runs", "runs.csv"), "runs: got 'runs.csv' and 1 logs; give the logs or a table of runs"),
        (("fit", "--runs", "runs.csv"), "got 'optimiser'; choose one of 'path', 'optimizer'"),
        (("fit", "--runs", "unquoted.csv"), "line 2 of 'unquoted.csv' has 3 cells for 2 columns; put an optimizer"),
        (("fit", "--runs", "unnamed.csv"), "has no column path, nor columns step and loss"),
        (("fit", "--runs", "lacking.csv"), "runs: line 3 of 'lacking.csv': optimizer: missing"),
        (("fit", "--runs", "both.csv"), "line 2 of 'both.csv': step: given together with a path"),
        (("fit", "--runs", "one.csv"), "line 2 of 'one.csv': loss: missing"),
        (("fit", "--runs", "word.csv"), "line 2 of 'word.csv': batch_size: got 'large'; give a number"),
        (("fit", "--runs", "empty.csv"), "'empty.csv' has no rows"),
        (("fit", "--runs", "nothing.csv"), "'nothing.csv' has no column path"),
        (("fit", "--runs", "none.csv"), "runs: there is no file 'none.csv'"),
        (("fit", "--runs", "lacking.csv", "--size", "5"), "with a table of runs, give it in the table's column size"),
        (("predict", "none.json", *SGD, "--steps", "5"), "there is no file 'none.json'"),
        (("predict", "other.json", *SGD, "--steps", "5"), "'other.json' is not a forecast"),
        (("predict", "other.json", *SGD, "--steps", "5", "--out", "p.txt"), "suffix must be one of .csv, .nc"),
        (("predict", "{}", *SGD), "steps: missing; give the number of optimizer steps, or the log of the run"),
        (("predict", "{}", *SGD, "--steps", "5"), "optimizer: sgd moves in proportion to the gradient"),
        (("predict", "{}", *SGD, "--steps", "5", "--lr", "lr"), "lr: got lr without --logged"),
        (("predict", "{}", *LONGER, "--batch-size", "8"), "batch_size: got 8.0, but it was not fitted"),
        (("predict", "{}", *LONGER, "--at", "1,x"), "at: got '1,x'; give numbers separated by commas"),
        (
            ("predict", "{}", *LONGER, "--at", "1,1e9"),
            f"at: got 1e+09, but the run has {2 * STEPS} steps; give whole steps from 0 to {2 * STEPS}",
        ),
        (("predict", "{}", *LONGER, "--confidence", "90"), "confidence: got 90.0; it must lie in (0, 1)"),
        (("predict", "{}", *SGD, "--logged", "b.csv"), "there is no file 'b.csv'"),
        (("advise", "{}", *SGD), "steps: missing; give --steps, or --samples for advice on the batch size alone"),
        (("advise", "{}", *SGD, "--steps", "90"), "optimizer: sgd moves in proportion to the gradient"),
        (("advise", "{}", *LONGER, "--plot", A), "plot: 'a.csv' is a file; give a folder"),
        (("advise", "{}", "--optimizer", COSINE, "--samples", "9"), "steps: missing; the optimizer's schedule is"),
        (
            ("advise", "{}", *NEW, "--samples", "900", "--plot", "new"),
            "the fitted runs have no batch sizes",
        ),
    ],
    ids=lambda a: " ".join(a) if isinstance(a, tuple) else "",
)
def test_errors_are_one_line_and_nothing_is_written(words, message, fitted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in TABLES.items():
        (tmp_path / name).write_text(text)
    done = shell("forecast", *(word.format(fitted[1]) if word == "{}" else word for word in words), expect=2)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert {path.name for path in tmp_path.iterdir()} == set(TABLES)


@pytest.mark.parametrize("command", ["fit", "predict", "advise"])
def test_help_fits_the_width_and_has_two_examples(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    lines = shell("forecast", command, "--help").stdout.splitlines()
    assert max(map(len, lines)) == 140
    assert "…" not in "".join(lines)
    assert sum(line.startswith(f" sdelens forecast {command}") for line in lines) == 2
