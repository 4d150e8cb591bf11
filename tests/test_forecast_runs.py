"""Logs of training runs: what is read from which file, what is refused, and the means over blocks of steps."""

import json

import numpy as np
import pandas as pd
import pytest

import sdelens as sl
from sdelens.forecast._logs import thinned
from sdelens.forecast._run import Run
from tests.checks import shell

SGD = sl.SGD(lr=0.1)
CURVE = ([10, 20, 40], [3.0, 2.5, 2.0])


def holds(run, steps=(10, 20, 40), losses=(3.0, 2.5, 2.0)):
    np.testing.assert_array_equal(run.steps, steps)
    np.testing.assert_allclose(run.losses, losses, rtol=1e-6)  # TensorBoard's are float32
    return True


def test_a_pair_is_a_run_of_a_constant_learning_rate():
    run = Run(CURVE, SGD, batch_size=8, size=1e6, name="a")
    assert holds(run)
    assert (run.total, run.batch_size, run.size, run.name) == (40, 8.0, 1e6, "a")
    np.testing.assert_array_equal(run.rates(), np.full(40, 0.1))
    np.testing.assert_array_equal(run.lr_at([[0, 100]]), [[0.1, 0.1]])
    described = json.loads(json.dumps(run.describe()))
    assert described["optimizer"] == SGD.describe()
    assert (described["points"], described["first_step"], described["last_step"], described["total"]) == (3, 10, 40, 40)
    assert "3 losses at steps 10 to 40" in repr(run)
    assert not run.losses.flags.writeable
    assert Run((500, 3.1), SGD, steps=600).total == 600  # only the end of a run is known


@pytest.mark.parametrize(
    "text",
    [
        "step,lr,loss\n10,0.1,3\n20,0.1,2.5\n40,0.1,2\n",
        "\ufeffIteration;Train loss\n10;3,0\n20;2,5\n40;2,0\n",
        "global_step\ttrain/loss\n10\t3\n20\t2.5\n40\t2\n",
        "10,3\n20,2.5\n40,2\n",
        "Wall time,Step,Value\n1.7e9,10,3\n1.7e9,20,2.5\n1.7e9,40,2\n",
        "epoch,step,train_loss,val_loss\n0,10,3,\n0,20,2.5,\n0,20,,9\n1,40,2.0,\n",
        '"Step","warm, long - _step","warm, long - train/loss","warm, long - train/loss__MAX"\n'
        '"10","10","3","3"\n"15","","",""\n"20","20","2.5","2.5"\n"40","40","2","2"\n',
    ],
)
def test_tables_are_read_whatever_wrote_them(tmp_path, text):
    path = tmp_path / "first.csv"
    path.write_text(text, encoding="utf-8")
    run = Run(path, SGD)
    assert holds(run)
    assert run.name == ("warm, long" if "warm" in text else "first")
    assert "first.csv" in run.source


def test_several_runs_of_one_export(tmp_path):
    frame = pd.DataFrame(
        {"Step": [10, 20, 40], "a - train/loss": [3.0, 2.5, 2.0], "b - train/loss": [5.0, np.nan, 4.0]}
    )
    with pytest.raises(ValueError, match=r"loss: .* 'a - train/loss', 'b - train/loss'; name one by the argument loss"):
        Run(frame, SGD)
    assert holds(Run(frame, SGD, loss="a"))
    run = Run(frame, SGD, loss="b - train/loss")
    assert holds(run, (10, 40), (5.0, 4.0))
    assert run.name == "b"
    assert holds(Run(frame.rename(columns={"a - train/loss": "odd"}), SGD, loss="odd"))


def test_records_of_json(tmp_path):
    rows = [{"step": s, "loss": v, "learning_rate": 0.1} for s, v in zip(*CURVE, strict=True)]
    rows.insert(1, {"step": 10, "eval_loss": 9.0})
    folder = tmp_path / "checkpoint-40"
    folder.mkdir()
    summary = {"step": 40, "train_loss": 2.6, "train_runtime": 1.0}
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": [*rows, summary], "global_step": 40}))
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "columns.json").write_text(json.dumps({"step": CURVE[0], "loss": CURVE[1]}))
    for path in (folder, folder / "trainer_state.json", tmp_path / "log.jsonl", tmp_path / "columns.json"):
        assert holds(Run(str(path), SGD))
    assert Run(folder, SGD).name == "checkpoint-40"
    assert holds(Run(folder, SGD, loss="eval_loss"), [10], [9.0])


def test_the_log_gives_the_schedule():
    at, rates = [10, 20, 40], [0.1, 0.1, 0.05]
    run = Run(CURVE, SGD, lr=rates, steps=50)
    np.testing.assert_allclose(run.rates(), np.interp(np.arange(50), at, rates))
    assert (run.rates()[0], run.rates()[-1]) == (0.1, 0.05)
    assert run.describe()["lr"] == "logged"
    warm = Run(CURVE, SGD, lr=rates, warmup=5)
    np.testing.assert_allclose(warm.rates()[:6], [0.02, 0.04, 0.06, 0.08, 0.1, 0.1])
    np.testing.assert_array_equal(warm.rates()[6:], run.rates()[6:40])


def test_schedule_and_log_must_agree():
    steps = np.array([0, 10, 20, 40, 60, 90, 100])
    optimizer = sl.SGD(lr=0.1, schedule=sl.Warmup(20, sl.Cosine(80)))
    own = np.asarray([float(0.1 * optimizer.multiplier(s)) for s in steps])
    run = Run((steps, np.ones(7)), optimizer, lr=own.round(4))
    assert run.logged_lr is None
    np.testing.assert_allclose(run.lr_at(steps), own, rtol=1e-6)
    np.testing.assert_allclose(run.rates()[steps[:-1]], own[:-1], rtol=1e-6)
    Run((steps + 1, np.ones(7)), optimizer, lr=own)  # logged after the update
    with pytest.raises(
        ValueError, match=r"does not fit the steps of the log: at step 40 it gives 0.08536 and .* 0.09\b"
    ):
        Run((steps, np.ones(7)), optimizer, lr=np.where(steps == 40, 0.09, own))
    with pytest.raises(ValueError, match="warmup: got 5, but the log has no learning rates to follow"):
        Run((steps, np.ones(7)), optimizer, lr=own, warmup=5)
    with pytest.raises(ValueError, match=r"learning rate -0\.005\d* at step 21"):
        Run((steps, np.ones(7)), sl.SGD(lr=0.1, schedule=lambda k: 1 - k / 20))
    one_at_a_time = sl.SGD(lr=0.1, schedule=lambda k: __import__("jax").lax.cond(k < 50, lambda: 1.0, lambda: 0.0))
    np.testing.assert_allclose(Run((steps, np.ones(7)), one_at_a_time).rates(), 0.1 * (np.arange(100) < 50))


@pytest.mark.parametrize(
    ("curve", "options", "message"),
    [
        (([], []), {}, "curve: losses is empty; give at least one step"),
        (([1, 2], [1.0]), {}, "curve: got 2 steps and 1 losses"),
        (([1, 2, 3], [1.0, np.nan, np.inf]), {}, "NaN or infinite at the steps 2, 3 of 3 steps; drop these rows"),
        (([1, 2], [1.0, 0.0]), {}, r"the loss is 0 at step 2 \(1 of 2 are not greater than 0\)"),
        (([2, 1], [1.0, 1.0]), {}, "after step 2 the log goes back to step 1; sort the log"),
        (([1, 5, 5, 6], [1.0] * 4), {}, "several values at the steps 5; keep one of each"),
        (([1, 5, 3, 5], [1.0] * 4), {}, "several values at the steps 5; after step 5 the log goes back to step 3"),
        (([-1, 5], [1.0, 1.0]), {}, "negative steps -1"),
        (([0.5, 1], [1.0, 1.0]), {}, "not whole numbers, 0.5"),
        (([1e11], [1.0]), {}, "not samples or tokens"),
        (([0], [1.0]), {}, "its only loss is that at step 0"),
        (CURVE, {"steps": 30}, "steps: got 30, but the log has a loss at step 40"),
        (CURVE, {"batch_size": 0}, "batch_size: got 0.0; it must be greater than 0"),
        (CURVE, {"size": -1}, "size: got -1.0; it must be greater than 0"),
        (CURVE, {"loss": "loss"}, "curve is a pair of arrays without names"),
        (CURVE, {"lr": [0.0] * 3}, "lr: the logged learning rate is 0 at all 3 logged steps"),
        (CURVE, {"lr": [0.1, -1, 0.1]}, "lr: the logged learning rate is -1 at step 20"),
        (CURVE, {"lr": [0.1]}, "lr: got 1 learning rates for 3 steps"),
        (CURVE, {"lr": [0.3] * 3}, "its lr is 0.1, but the largest logged learning rate is 0.3"),
        (CURVE, {"lr": [0.1] * 3, "warmup": 20}, "warmup: got 20, but the log has learning rates from step 10 on"),
        (
            {"step": [1], "ppl": [2.0]},
            {},
            "loss: no column .* name one of its columns by the argument loss: 'step', 'ppl'",
        ),
        ({"epoch": [1], "loss": [2.0]}, {}, "step: no column .* by the argument step: 'epoch'"),
        ({"step": [1], "loss": [2.0]}, {"loss": "los"}, "has no column 'los'; its columns are 'step', 'loss'"),
        ({"step": [1], "iter": [2], "loss": [2.0]}, {}, "step: .* several columns .* 'step', 'iter'; name one"),
        ({"step": [1], "loss": ["high"]}, {}, "row 1 of column 'loss' of the table is 'high'; give numbers"),
        ({"step": [1, None], "loss": [2.0, 1.0]}, {}, "step: row 2 of the table has a loss but no 'step'"),
        (pd.DataFrame({"step": [1, 2], "loss": [2.0, np.nan]}), {}, "NaN or infinite at the steps 2"),
    ],
)
def test_what_cannot_be_a_run_is_refused(curve, options, message):
    with pytest.raises(ValueError, match=message):
        Run(curve, SGD, **options)


def test_other_arguments_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"optimizer: got Adagrad; give one of sl\.SGD, .*sl\.AdamW"):
        Run(CURVE, sl.Adagrad(lr=0.1))
    with pytest.raises(TypeError, match=r"optimizer: got AdamW; .* with its arguments"):
        Run(CURVE, sl.AdamW)
    with pytest.raises(TypeError, match=r"curve: got ndarray of shape \(3, 2\); give a pair"):
        Run(np.ones((3, 2)), SGD)
    with pytest.raises(FileNotFoundError, match="curve: there is no file"):
        Run(tmp_path / "none.csv", SGD)
    with pytest.raises(ValueError, match="holds no event file of TensorBoard"):
        Run(tmp_path, SGD)
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match="is empty"):
        Run(tmp_path / "empty.csv", SGD)
    (tmp_path / "nan.csv").write_text("step,loss\n1,2\n2,NaN\n")
    with pytest.raises(ValueError, match="NaN or infinite at the steps 2"):
        Run(tmp_path / "nan.csv", SGD)


def test_event_files_of_tensorboard(tmp_path):
    writer = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    from tensorboard.compat.proto import event_pb2, summary_pb2

    def write(rows):
        file = writer.EventFileWriter(str(tmp_path / "runs" / "a"), filename_suffix=f".{rows[0][0]}")
        for step, loss in rows:
            tags = {"train/loss": loss, "train/learning_rate": 0.1, "eval/loss": 9.0}
            values = [summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in tags.items()]
            file.add_event(event_pb2.Event(step=step, wall_time=1.0, summary=summary_pb2.Summary(value=values)))
        file.close()

    write(list(zip(*CURVE, strict=True)))
    (path,) = (tmp_path / "runs" / "a").iterdir()
    for curve in (path, path.parent, tmp_path):
        run = Run(curve, sl.SGD(lr=0.1))
        assert holds(run)
        assert run.name == "a"
        np.testing.assert_array_equal(run.logged_lr[0], CURVE[0])
    with pytest.raises(ValueError, match="its columns are 'train/loss'"):
        Run(path, SGD, loss="other")
    write([(20, 2.4), (30, 2.2)])  # started again from step 20
    with pytest.raises(ValueError, match="several values at the steps 20; after step 40 the log goes back to step 20"):
        Run(path.parent, SGD)


def test_without_tensorboard_the_message_says_what_to_install(tmp_path, monkeypatch):
    """And the shell, by the name that the log has there."""
    monkeypatch.setitem(__import__("sys").modules, "tensorboard.backend.event_processing.event_accumulator", None)
    path = tmp_path / "events.out.tfevents.1.host"
    path.touch()
    with pytest.raises(ImportError, match=r"pip install 'sdelens\[forecast\]'"):
        Run(path, SGD)
    assert (
        "logs: reading the event files"
        in shell("forecast", "fit", str(path), "--optimizer", "sgd(0.1)", expect=2).stderr
    )


STEPS = np.arange(1, 20_001)
MEAN = 3 + 2 * STEPS**-0.5


def block_means(curve):
    return np.array([MEAN[a - 1 : b].mean() for a, b in zip(curve.first, curve.last, strict=True)])


@pytest.mark.parametrize("noise", ["white", "correlated", "spikes"])
def test_means_have_the_errors_they_say(noise):
    made = 0.05 * np.random.default_rng(0).normal(size=STEPS.size)
    if noise == "correlated":
        for k in range(1, STEPS.size):
            made[k] += 0.8 * made[k - 1]
    spikes = np.arange(500, STEPS.size, 97)
    made[spikes] += 5.0 if noise == "spikes" else 0.0
    curve = thinned(Run((STEPS, MEAN + made), SGD))
    assert curve.steps.size == 300
    assert curve.counts.sum() == STEPS.size
    np.testing.assert_array_equal(curve.first[1:], curve.last[:-1] + 1)
    z = (curve.losses - block_means(curve)) / curve.scatter
    assert abs(z.mean()) < 4 / np.sqrt(300)  # four standard errors of a mean of 300
    assert 0.8 < z.std() < 1.25  # measured 0.95 to 1.05, and 4 % is the standard error of 300


def test_curvature_within_blocks_costs_little():
    steps = np.arange(100, 100_000)
    curve = thinned(Run((steps, steps**-0.5), SGD))
    at = np.searchsorted(steps, np.append(curve.first, steps[-1] + 1))
    means = np.add.reduceat(steps**-0.5, at[:-1]) / np.diff(at)
    assert np.abs(curve.losses / means - 1).max() < 1e-5
    assert np.abs(curve.losses / curve.steps**-0.5 - 1).max() < 1e-4


def test_blocks_follow_the_learning_rate():
    rates = np.where(STEPS < 8000, 0.1, 0.01)
    curve = thinned(Run((STEPS, MEAN), SGD, lr=rates), points=100)
    assert 8000 in curve.first
    assert curve.steps.size <= 100
    width = np.diff(curve.steps)
    jump = np.searchsorted(curve.steps, 8000)
    assert width[jump + 1] < 0.5 * width[jump - 3]


def test_a_short_curve_is_kept():
    at = np.arange(1, 101) * 100
    noise = 0.01 * np.random.default_rng(1).normal(size=100)
    curve = thinned(Run((at, 3 + 2 * at**-0.5 + noise), SGD))
    np.testing.assert_array_equal(curve.steps, at)
    assert 0.006 < np.median(curve.scatter) < 0.015
    assert np.isnan(thinned(Run(([5], [1.0]), SGD)).scatter).all()
    assert (thinned(Run((at, np.full(100, 2.0)), SGD)).scatter > 0).all()
    with pytest.raises(ValueError, match="points: got 5; it must be 10 or more"):
        thinned(Run((at, noise + 1), SGD), points=5)
