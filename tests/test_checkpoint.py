"""Runs that are stopped and go on: the same bits, sound files, one run to a folder."""

import contextlib
import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sdelens as sl
from sdelens.results.report import claim_folder
from sdelens.run import experiment
from sdelens.run.checkpoint import Checkpoints
from sdelens.run.store import Store
from tests.checks import assert_same_numbers, shell

PROBLEM, NOISE, OPTIMIZER = sl.Quadratic([1.0, 2.0]), sl.GaussianNoise(1.0), sl.RMSpropW(0.05, 0.9)
WATCHED = {"averages": {"ema": 0.9, "mean": 5}, "hits": {"low": lambda p: p[0] < 0.5}, "marginals": 2, "times": 3}
RECORD = sl.Record(every=2, keep_paths=3, keep=["x", "v", "ema"], **WATCHED)
SIZES = dict(steps=21, paths=50, models=["optimizer", "sde"])
TOTAL = 21 * 50 * 2


class Interrupted(BaseException):
    pass


def kept(folder=None, **options):
    """A run in chunks of 20 paths, with checkpoints in a folder if one is given."""
    return sl.Execution(**{"chunk": 20, "checkpoint": folder, **options})


def compare(execution=None, problem=PROBLEM, noise=NOISE, optimizer=OPTIMIZER, **options):
    execution = kept() if execution is None else execution
    return sl.compare(problem, noise, optimizer, execution=execution, **{"record": RECORD, **SIZES, **options})


def assert_same(result, other):
    assert_same_numbers(result.dataset, other.dataset)


@pytest.fixture(scope="module")
def reference():
    return compare()


@pytest.fixture
def stop(monkeypatch):
    """A run that is stopped after so many reports of its progress; what was reported."""

    def stopped(after, folder, every=4, resume=False, **options):
        reported = []

        @contextlib.contextmanager
        def bar(wanted, total, done=0):
            reported.append(done)

            def report(more, label):
                reported.append(more)
                if len(reported) > after:
                    raise Interrupted

            yield report

        with monkeypatch.context() as patch:
            patch.setattr(experiment, "progress_bar", bar)
            with pytest.raises(Interrupted):
                compare(kept(folder, checkpoint_every=every, resume=resume), **options)
        return reported

    return stopped


@pytest.mark.parametrize("after", [4, 7, 10, 12])
@pytest.mark.parametrize("every", [1, 7, 1000])
def test_a_stopped_run_goes_on_to_the_same_bits(reference, stop, tmp_path, after, every):
    folder = tmp_path / "new" / "checkpoint"
    stop(after, folder, every)
    assert_same(compare(kept(folder, checkpoint_every=every, resume=True)), reference)
    assert list(tmp_path.iterdir()) == [tmp_path / "new"]
    assert not folder.exists()


def test_a_run_stopped_again_and_again_reports_all_of_its_work_and_its_time(reference, stop, tmp_path, monkeypatch):
    folder = tmp_path / "c"
    stop(8, folder)
    for after in (5, 6, 5):
        done, *more = stop(after, folder, resume=True)
        assert 0 < done < done + sum(more) < TOTAL
    whole = []
    monkeypatch.setattr(Checkpoints, "_seconds", lambda self: self._before + 1.0)  # each part takes a second
    monkeypatch.setattr(
        experiment,
        "progress_bar",
        lambda wanted, total, done: contextlib.nullcontext(lambda more, label: whole.append(more)),
    )
    again = compare(kept(folder, resume=True))
    assert_same(again, reference)
    assert 0 < sum(whole) < TOTAL
    assert all(1 <= m["wall_time"] < 60 for m in again.info["models"].values())


def test_a_run_without_a_checkpoint_starts_from_the_beginning(reference, tmp_path):
    assert_same(compare(kept(tmp_path / "c", resume=True)), reference)
    assert not (tmp_path / "c").exists()


def test_the_time_between_checkpoints(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Checkpoints, "save", lambda self, position: saved.append(position))
    compare(kept(tmp_path / "c"))
    assert saved == []
    monkeypatch.setattr("sdelens.run.checkpoint._SECONDS", 0.0)
    compare(kept(tmp_path / "c"))
    assert len(saved) > 6
    saved.clear()
    compare(kept(tmp_path / "c", checkpoint_every=7))  # records lie every 2 steps: 4 records apart
    assert [p and (p.first, p.done) for p in saved[:4]] == [(0, 4), (0, 8), (20, 0), (20, 4)]


def test_starts_and_functions_of_the_users(stop, tmp_path):
    def subject(shift, first):
        def loss(params):
            return jnp.sum((params - shift) ** 2).astype(jnp.float32)

        start = dict(start=lambda key: first + jax.random.normal(key, (3,)), models=["optimizer"])
        return dict(problem=sl.Problem(loss, jnp.zeros(3, jnp.bfloat16)), **start)

    one = jnp.ones(3)  # closed over: the text of the functions does not show it
    own = subject(one, one)
    before = compare(**own)
    stop(3, tmp_path, **own)
    for other in (subject(2 * one, one), subject(one, 2 * one)):
        with pytest.raises(ValueError, match=r"contains the checkpoint of a different run: code\.optimizer differs\."):
            compare(kept(tmp_path, resume=True), **other)
    anew = subject(one, one)  # as in a new process: the same
    assert_same(compare(kept(tmp_path, resume=True), **anew), before)


def test_a_loss_has_one_fingerprint_in_every_process():
    text = "def loss(p):\n    inner = lambda q: q * q if 'a' in {'a', 'b', 'c'} else q\n    return inner(p).sum()"
    found = []
    for constant in ("q * q", "q * q", "q * q * q"):
        space = {}
        exec(text.replace("q * q", constant), space)
        found.append(sl.Problem(space["loss"], jnp.ones(2)).describe()["fingerprint"])
    assert found[0] == found[1] != found[2]


def test_another_run_is_refused_by_what_differs(stop, tmp_path):
    stop(6, tmp_path)
    for other, message in (
        (
            dict(seed=1),
            r"the checkpoint of a different run: run\.seed is 0, here 1\. Use the settings of that run, or give",
        ),
        (dict(steps=22), r"run\.steps is 21, here 22"),
        (dict(paths=51), r"run\.paths is 50, here 51"),
        (dict(execution=kept(tmp_path, resume=True, chunk=30)), r"device\.chunk is 20, here 30"),
        (dict(execution=kept(tmp_path, resume=True, devices=1)), r"device\.count is 2, here 1"),
        (dict(models=["sde"]), r"models\.optimizer differs"),
        (
            dict(models={"optimizer": "optimizer", "sde": sl.ClosedForm("sde", substeps=2)}),
            r"models\.sde\.substeps is 1, here 2",
        ),
        (dict(problem=sl.Quadratic([1.0, 3.0])), r"problem\.curvature is \[1.0, 2.0\], here \[1.0, 3.0\]"),
        (dict(noise=sl.GaussianNoise(2.0)), r"values\.noise differs"),
        (dict(optimizer=sl.RMSpropW(0.06, 0.9)), r"optimizer\.lr is 0.05, here 0.06"),
        (dict(start=sl.State(None, v=jnp.ones(2))), r"values\.start differs"),
        (dict(record=sl.Record(every=3, keep_paths=3)), r"run\.record_every is 2, here 3"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(**{"execution": kept(tmp_path, resume=True), **other})
    assert Store(tmp_path).files()


def test_another_version_is_refused(stop, tmp_path, monkeypatch):
    stop(6, tmp_path)
    monkeypatch.setattr(experiment, "version", lambda name: "9.9" if name == "jax" else "1.0")
    with pytest.raises(ValueError, match=r"versions\.jax is [0-9.]+, here 9\.9"):
        compare(kept(tmp_path, resume=True))


def test_an_unfinished_run_is_not_overwritten(stop, tmp_path):
    stop(6, tmp_path)
    files = Store(tmp_path).files()
    with pytest.raises(FileExistsError, match=r"resume=True \(--resume\), or delete the folder") as caught:
        compare(kept(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert Store(tmp_path).files() == files


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize("damage", [flip, truncate, lambda p: os.truncate(p, 0)], ids=["flip", "truncate", "empty"])
def test_a_damaged_checkpoint_costs_the_time_since_the_one_before(reference, stop, tmp_path, damage):
    stop(12, tmp_path)
    newest, before = Store(tmp_path).files()
    damage(newest)
    with pytest.warns(RuntimeWarning, match=f"{newest.name}.*is damaged.*{before.name}"):
        stop(4, tmp_path, resume=True)
    assert newest not in Store(tmp_path).files()
    for path in Store(tmp_path).files():
        damage(path)
    with pytest.raises(OSError, match="are damaged; delete the folder and start"):
        compare(kept(tmp_path, resume=True))
    for path in Store(tmp_path).files():
        path.unlink()
    assert_same(compare(kept(tmp_path, resume=True)), reference)


def test_at_most_two_are_kept(stop, tmp_path):
    stop(5, tmp_path, 2)
    stop(12, tmp_path, 2, resume=True)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("call", ["fsync", "unlink", "replace", "second fsync"])
@pytest.mark.parametrize("error", [Interrupted(), OSError(errno.EIO, "Input/output error")], ids=["killed", "error"])
def test_a_write_that_stops_half_way_leaves_the_one_before(tmp_path, monkeypatch, call, error):
    store = Store(tmp_path)
    for n in range(3):
        store.save({"n": np.array(n)}, {})
    seen = []

    def fails(*arguments, **options):
        seen.append(call)
        if call != "second fsync" or len(seen) == 2:
            raise error

    target = os if "fsync" in call else Path
    expected = pytest.raises(type(error), match="previous checkpoint is intact" if isinstance(error, OSError) else None)
    with monkeypatch.context() as patch, expected:
        patch.setattr(target, call.split()[-1], fails)
        store.save({"n": np.array(3)}, {})
    again = Store(tmp_path)
    arrays, _ = again.load()
    assert arrays["n"] == (3 if call == "second fsync" else 2)
    again.save({"n": np.array(4)}, {})
    assert len(list(tmp_path.iterdir())) == 2  # what was left is gone


FULL = """
import resource, sys
import numpy as np
from pathlib import Path
from sdelens.run.store import Store
store = Store(Path(sys.argv[1]))
store.save({"a": np.zeros(10)}, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    store.save({"a": np.zeros(100_000)}, {})
except OSError as error:
    print(error.errno, error)
print(sorted(p.name[:19] for p in Path(sys.argv[1]).iterdir()))
print(store.load()[0]["a"].size)
"""


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True)
    message, files, size = done.stdout.splitlines()
    assert message.startswith(
        f"{errno.EFBIG} checkpoint: there is not enough disk space for a checkpoint in {str(tmp_path)!r}"
    )
    assert message.endswith(
        "the previous checkpoint is intact. Free some disk space, then rerun with resume=True (--resume)."
    )
    assert files == "['checkpoint-00000001']"
    assert size == "10"


def test_a_run_on_a_full_disk_goes_on_once_there_is_room(reference, stop, tmp_path):
    stop(6, tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    files = Store(tmp_path).files()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="not enough disk space for a checkpoint") as caught:
            compare(kept(tmp_path, checkpoint_every=2, resume=True))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert files[0] in Store(tmp_path).files()
    assert_same(compare(kept(tmp_path, resume=True)), reference)


def test_leftovers_are_cleaned(reference, stop, tmp_path):
    folder = tmp_path / "c"
    stop(6, folder)
    for name in (".checkpoint.tmp", ".sdelens-lock"):  # of a run that was killed
        (folder / name).write_bytes(b"half")
    (folder / "notes.txt").write_text("mine")
    assert_same(compare(kept(folder, resume=True)), reference)
    assert [p.name for p in folder.iterdir()] == ["notes.txt"]


def test_folders_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"checkpoint: .*file' is a file; give a folder"):
        compare(kept(tmp_path / "file"))
    with pytest.raises(OSError, match="checkpoint: '/proc/sdelens' cannot be written"):
        compare(kept("/proc/sdelens"))
    with pytest.raises(OSError, match=r"checkpoint: .* cannot be written to \(Not a directory\)"):
        compare(kept(tmp_path / "file" / "inside"))


def test_options_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="checkpoint_every: got 0"):
        compare(kept(tmp_path / "c", checkpoint_every=0))
    with pytest.raises(
        ValueError,
        match=r"resume: got True, but this call opens no folder for checkpoints; give a folder as checkpoint=",
    ):
        compare(kept(resume=True))
    with pytest.raises(ValueError, match="checkpoint_every: got 3, but this call opens no folder"):
        sl.simulate(PROBLEM, NOISE, OPTIMIZER, steps=3, execution=sl.Execution(checkpoint_every=3))
    with pytest.raises(TypeError, match="checkpoint: got bool; give the path of a folder"):
        compare(kept(True))
    with (
        sl.keep_checkpoints(tmp_path / "c") as checkpoints,
        pytest.raises(ValueError, match=r"resume: got True.*pass this argument to keep_checkpoints instead"),
    ):
        compare(kept(checkpoints, resume=True))
    assert list(tmp_path.iterdir()) == []


def test_what_fails_leaves_no_folder_behind(tmp_path):
    (tmp_path / "held").mkdir()
    for folder in (tmp_path / "a" / "b" / "c", tmp_path / "held" / "b" / "c"):
        with pytest.raises(ValueError, match="resume: got True"), sl.keep_checkpoints(folder) as checkpoints:
            compare(kept(checkpoints, resume=True))
    assert [path.name for path in tmp_path.rglob("*")] == ["held"]

    def stopped():
        with sl.keep_checkpoints(tmp_path / "a" / "c"):
            (tmp_path / "a" / "note").touch()
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        stopped()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "held", "note"]


def test_an_estimate_saves_nothing(tmp_path):
    sl.estimate(PROBLEM, NOISE, OPTIMIZER, **SIZES, record=RECORD, execution=kept(tmp_path / "c", checkpoint_every=1))
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_stay_until_the_result_is_saved(reference, tmp_path):
    folder = tmp_path / "c"
    with pytest.raises(FileNotFoundError), sl.keep_checkpoints(folder, every=5) as checkpoints:
        compare(kept(checkpoints)).save(tmp_path / "nowhere" / "a.nc")
    with sl.keep_checkpoints(folder, resume=True) as checkpoints:
        result = compare(kept(checkpoints))
        assert set(checkpoints.finished) == {"optimizer", "sde"}
        result.save(tmp_path / "a.nc")
        assert len(Store(folder).files()) == 2
    assert_same(result, reference)
    assert [p.name for p in tmp_path.iterdir()] == ["a.nc"]


def test_kept_checkpoints_are_of_one_run(reference, tmp_path):
    with sl.keep_checkpoints(tmp_path / "c") as checkpoints:
        assert compare(kept(checkpoints), seed=1).dataset.loss_mean[0, -1] != reference.dataset.loss_mean[0, -1]
        assert_same(compare(kept(checkpoints)), reference)  # the first has saved nothing yet
    with sl.keep_checkpoints(tmp_path / "c", every=5) as checkpoints:
        compare(kept(checkpoints))
        with pytest.raises(ValueError, match=r"contains the checkpoint of a different run: run\.seed is 0, here 1"):
            compare(kept(checkpoints), seed=1)


HOLD = """
import sys, time
from sdelens.core.files import held_folder
with held_folder("out", sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_has_one_run_at_a_time(tmp_path):
    with (
        sl.keep_checkpoints(tmp_path / "c"),
        pytest.raises(
            BlockingIOError, match=f"another run is writing to '{tmp_path / 'c'}'; wait until that run has finished"
        ),
    ):
        compare(kept(tmp_path / "c"))
    out = tmp_path / "out"
    with claim_folder(out), pytest.raises(BlockingIOError, match="out: another run"), claim_folder(out):
        pass
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match="out: another run"), claim_folder(out):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with claim_folder(out):
        pass
    assert list(out.iterdir()) == []


@pytest.mark.slow
def test_the_shell_goes_on_in_the_folder_of_its_results(stop, tmp_path):
    out = tmp_path / "out"
    own = ("--problem", "quadratic([1, 2])", "--optimizer", "rmspropw(lr=0.05, b2=0.9)", "--models", "optimizer,sde")
    sizes = (
        "--steps",
        "21",
        "--paths",
        "50",
        "--chunk",
        "20",
        "--record-every",
        "2",
        "--keep-paths",
        "3",
        "--devices",
        "2",
    )
    plain = sl.Record(every=2, keep_paths=3)
    stop(9, out / "checkpoint", record=plain)

    def command(*options, expect):
        return shell("compare", *own, *sizes, *options, expect=expect).stderr

    refused = command("--out", str(out), expect=2)
    assert (
        "contains the checkpoint of an unfinished run; continue that run with resume=True (--resume), or delete"
        in refused
    )
    assert "seed is 0, here 1" in command("--out", str(out), "--resume", "--seed", "1", expect=2)
    with claim_folder(out):
        assert "another run is writing to" in command("--out", str(out), "--resume", expect=2)
    (out / "index.html").write_text("")  # killed while it removed the checkpoints
    command("--out", str(out), "--resume", "--checkpoint-every", "5", expect=0)
    assert {p.name for p in out.iterdir()} == {
        "index.html",
        *(f"rmspropw-quadratic.{s}" for s in ("nc", "png", "pdf", "csv", "tex")),
    }
    assert "holds results already" in command("--out", str(out), "--resume", expect=2)
    assert "resume: got --resume without --out; checkpoints are kept in that folder" in command("--resume", expect=2)
    assert_same(sl.load(out / "rmspropw-quadratic.nc"), compare(record=plain))


RUN = textwrap.dedent(
    """
    import json, sys
    import jax
    jax.config.update("jax_num_cpu_devices", 2)
    import sdelens as sl
    print("begun", flush=True)
    problem, noise = sl.Quadratic([1.0, 2.0, 5.0]), sl.GaussianNoise(1.0)
    optimizer = sl.AdamW(0.01, weight_decay=0.1, schedule=lambda k: 1 / (1 + 0.001 * k))
    every, *sizes = json.loads(sys.argv[3])
    steps, paths, chunk, interval = sizes
    own = {} if sys.argv[2] == "-" else dict(checkpoint=sys.argv[2], checkpoint_every=every, resume=True)
    record, execution = sl.Record(every=interval, keep_paths=2), sl.Execution(chunk=chunk, **own)
    options = dict(steps=steps, paths=paths, record=record, execution=execution)
    sl.compare(problem, noise, optimizer, **options).save(sys.argv[1])
    """
)


def not_killed(tmp_path, monkeypatch, sizes):
    """The same run in this process, and the seconds that it takes."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["-c", str(tmp_path / "whole.nc"), "-", json.dumps(sizes)])
        at = time.monotonic()
        exec(RUN, {})
        return sl.load(tmp_path / "whole.nc"), time.monotonic() - at


def killed(tmp_path, sizes, moments):
    """A run that was killed, and the number of its last checkpoint before it went on to the end.

    The first process is killed when it has imported the library, and tells how long that takes. `moments(start)` are
    pairs for further ones: whether the delay until a kill counts from the first checkpoint of that process rather than
    its start, and the delay. No process gets beyond its eighth checkpoint, so that none ends before it is killed.
    """
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    environment |= {"JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def begun():
        command = [sys.executable, "-c", RUN, str(tmp_path / "parts.nc"), str(folder), json.dumps(sizes)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)

    def saved():
        names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
        return max((int(name.split("-")[1]) for name in names if name.startswith("checkpoint-")), default=0)

    folder, at = tmp_path / "checkpoint", time.monotonic()
    process = begun()
    assert process.stdout.readline() == b"begun\n"
    start = time.monotonic() - at
    process.kill()
    process.wait()
    for running, delay in moments(start):
        before = saved()
        process = begun()
        while running and saved() == before:
            assert process.poll() is None
            time.sleep(0.005)
        until = time.monotonic() + delay
        while time.monotonic() < until and saved() < before + 8:
            time.sleep(0.005)
        assert process.poll() is None
        process.kill()
        process.wait()
    last = saved()
    process = begun()
    assert process.wait() == 0
    assert not folder.exists()
    return sl.load(tmp_path / "parts.nc"), last


@pytest.mark.slow
def test_a_run_killed_five_times_ends_with_the_same_bits(tmp_path, monkeypatch):
    def moments(start):
        """One while it compiles, its cache being empty at first; three among segments and writes."""
        return [(True, 0.0), (False, 1.5 * start), (True, 0.01), (True, 0.03)]

    sizes = [50, 750, 120, 50, 10]  # 135 checkpoints
    parts, last = killed(tmp_path, sizes, moments)
    assert last > 2  # three of them had saved
    assert_same(parts, not_killed(tmp_path, monkeypatch, sizes)[0])


@pytest.mark.study
def test_a_run_killed_over_twenty_times_ends_with_the_same_bits(tmp_path, monkeypatch, measured):
    sizes = [200, 6000, 12_000, 5000, 20]  # 270 checkpoints
    whole, seconds = not_killed(tmp_path, monkeypatch, sizes)

    def moments(start):
        """Ten spread over start-up and compilation, twelve after the first checkpoint of their process."""
        mixed = [(False, (i + 0.5) / 10 * 4 * start) for i in range(10)]
        mixed += [(True, i / 12 * seconds / 24) for i in range(12)]
        random.Random(2411).shuffle(mixed)
        return mixed

    parts, last = killed(tmp_path, sizes, moments)
    measured("last checkpoint of a run that was killed 23 times", last, "> 12, and the bits of a run that was not")
    assert last > 12
    assert_same(parts, whole)
