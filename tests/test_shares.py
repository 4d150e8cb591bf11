"""Shares of a run: joined they have the numbers of one machine; executors run them, also if workers die."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import sdelens as sl
from sdelens.core import tasks
from sdelens.core.tasks import TaskError
from sdelens.run.description import SweepDescription
from sdelens.run.shares import Join, Share, share_name
from sdelens.run.store import encoded
from sdelens.run.summary import Part, Summary, add, total
from tests.checks import assert_same_numbers, shell
from tests.executors import Pool

CASE = sl.Quadratic([1.0, 2.0]), sl.GaussianNoise(1.0), sl.RMSpropW(0.05, 0.9), ["sde"]
WATCHED = {"averages": {"ema": 0.9}, "hits": {"low": lambda x: x[0] < 0}, "marginals": 2, "times": 2}
SIZES = dict(steps=7, paths=203, record=sl.Record(every=2, keep_paths=50, **WATCHED))
CHUNK = dict(chunk=20, devices=1)


def compare(**execution):
    return sl.compare(*CASE, **SIZES, execution=sl.Execution(**CHUNK, **execution))


@pytest.fixture(scope="module")
def whole():
    return compare()


@pytest.fixture(scope="module")
def shares():
    """Shares of 3, 4 and 4 chunks, the last of which has three paths."""
    return [compare(share=(i, 3)) for i in range(3)]


def test_shares_have_the_bits_of_one_machine(whole, shares, tmp_path):
    assert [share.paths for share in shares] == [(0, 60), (60, 140), (140, 203)]
    for share in shares:
        share.save(tmp_path / share_name(share.index, share.count))
    joined = sl.join(tmp_path)
    assert_same_numbers(joined.dataset, whole.dataset)
    assert joined.info["device"] == {**whole.info["device"], "shares": 3}
    assert joined.info["run"] == whole.info["run"]
    times = [share.parts["sde"].seconds for share in shares]
    assert joined.info["models"]["sde"]["wall_time"] == pytest.approx(sum(times), abs=1e-3)
    assert "Share 1 of 3: paths 60 to 139 of 203, models sde." in str(shares[1])


def test_shares_that_do_not_fit_are_refused(shares, tmp_path):
    files = [tmp_path / share_name(i, 3) for i in range(3)]
    for share, path in zip(shares, files, strict=True):
        share.save(path)
    with pytest.raises(ValueError, match=r"shares: 2 of 3 missing, share-0-of-3\S*, share-2-of-3\S*; run what is"):
        sl.join(files[1:2])
    with pytest.raises(ValueError, match=r"number 2 and number 0 are both share 0 of 3; give each share once"):
        sl.join([*shares[:2], shares[0]])
    doubled = shell("join", *map(str, [*files, files[0]]), "--out", str(tmp_path / "new"), expect=2)
    assert "are both share 0 of 3" in doubled.stderr
    assert not (tmp_path / "new").exists()
    other = replace(shares[1], identity=shares[1].identity | {"run": shares[1].identity["run"] | {"seed": 5}})
    other.save(tmp_path / "other")
    with pytest.raises(
        ValueError, match=r"other' is of another run than '.*share-0-of-3\S*': run\.seed is 5, in .* 0\."
    ):
        sl.join([files[0], tmp_path / "other", files[2]])
    with pytest.raises(ValueError, match="is one of 4 shares, but number 0 one of 3"):
        sl.join([shares[0], replace(shares[1], count=4)])
    with pytest.raises(
        ValueError, match="begins with path 50, but the share before it ends with path 59; run all shares"
    ):
        sl.join([shares[0], replace(shares[1], paths=(50, 140)), shares[2]])
    data = bytearray(files[2].read_bytes())
    data[-9] ^= 1
    files[2].write_bytes(data)
    with pytest.raises(ValueError, match=r"share-2-of-3\S*' is damaged; run that share again"):
        sl.join(files)
    files[2].write_bytes(data[:100])
    for path, reason in refused(files[2], data, shares):
        with pytest.raises((ValueError, TypeError, OSError), match=reason):
            sl.join([*files[:2], path])
    for given, message in {
        (): "shares: got none",
        tmp_path / "none": "there is no file or folder '.*none'; give the folder of the shares",
        3: "shares: got int; give shares, their files",
    }.items():
        with pytest.raises((ValueError, TypeError, OSError), match=message):
            sl.join(given)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty' contains no files of shares .* give the folder in which they were"):
        sl.join([tmp_path / "empty"])


def refused(path, data, shares):
    """Files that `join` refuses in place of the last share, and what it says of them."""
    path.write_bytes(data[:100])
    yield path, r"share-2-of-3\S*' is not a share of a run, or is damaged; leave it out, or run that share again"
    path.write_bytes(data[:-2000])
    yield path, r"share-2-of-3\S*' is not a share of a run, or is damaged"
    path.write_bytes(b"{}")
    yield path, r"share-2-of-3\S*' is not a share of a run, or is damaged"
    newer = json.loads(json.dumps(shares[2].identity["versions"])) | {"jax": "0.9.9"}
    replace(shares[2], identity=shares[2].identity | {"versions": newer}).save(path)
    yield path, r"share-2-of-3\S*' is of another run than .*versions\.jax is 0\.9\.9.* with the same versions"
    replace(shares[2], identity=shares[2].identity | {"code": {"sde": "0" * 64}}).save(path)
    yield path, r"code\.sde differs\. The code is what JAX traces from all functions; run all shares with the same"
    of_sweep = SweepDescription({}, {}, "", None, [], [shares[2].description])
    replace(shares[2], description=of_sweep).save(path)
    yield path, r"share-2-of-3\S*' is of sweep, but '.*share-0-of-3\S*' of compare; join the shares of one run"
    told = json.loads(json.dumps(shares[2].identity))
    path.write_bytes(encoded({}, {"sdelens_share": 0, "identity": told}))
    yield path, r"share-2-of-3\S*' was written by another version of sdelens; join it with that version"
    yield path.parent / "none", r"there is no file or folder '.*none'; give the folder of the shares, or their files"


def test_warnings_come_from_all_paths(shares):
    """A path that diverged in one share is told of at the join, once."""
    node, summary = next(iter(shares[1].parts["sde"].nodes.items()))
    living = summary.living.copy()
    living[2:, 5] -= 1
    part = shares[1].parts["sde"]
    lost = replace(shares[1], parts={"sde": part._replace(nodes=part.nodes | {node: summary._replace(living=living)})})
    with pytest.warns(RuntimeWarning, match="1 of 203 paths of 'sde' diverged, the first by step 4") as caught:
        sl.join([shares[0], lost, shares[2]])
    assert len(caught) == 1


def summary_of(paths):
    """A summary of paths by number, each with a loss and a bucket of its own."""
    paths = np.asarray(paths)
    living = np.zeros((1, 4))
    mean = np.zeros((1, 1, 4))
    np.add.at(living[0], paths % 4, 1)
    np.add.at(mean[0, 0], paths % 4, np.sqrt(paths + 0.1))
    buckets = np.unique(paths * 7 % 50)
    counts = np.array([[(paths * 7 % 50 == bucket).sum() for bucket in buckets]], np.int32)
    none = np.zeros((1, 0))
    laws, hits = np.sqrt(paths)[None, :, None], paths[:, None]
    mean /= np.maximum(living[:, None], 1)
    return Summary(living, mean, 0 * mean, np.ones(1), counts, buckets, none, none, np.zeros((1, 0, 0)), laws, hits)


def test_the_order_of_arrival_changes_no_bit():
    """Blocks of 3 paths, the last of which has one, in 13 orders: the tree is that of the blocks in their order."""
    blocks = [range(first, min(first + 3, 40)) for first in range(0, 40, 3)]
    found = []
    for seed in range(13):
        nodes = {}
        for index in np.random.default_rng(seed).permutation(len(blocks)) if seed else range(len(blocks)):
            add(nodes, (0, int(index)), summary_of(blocks[index]))
        assert sorted(nodes) == [(1, 6), (2, 2), (3, 0)]
        found.append(total(nodes))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    everything = summary_of(np.arange(40))
    np.testing.assert_allclose(found[0].mean, everything.mean, rtol=1e-14)
    np.testing.assert_array_equal(found[0].histogram, everything.histogram)
    np.testing.assert_array_equal(found[0].hits[:, 0], np.arange(40))


def test_shares_that_divide_blocks_are_joined_in_the_order_of_their_paths(shares):
    """Shares of 7 paths whose blocks have 4, which have no place in one tree of blocks."""
    description = replace(shares[0].description, paths=28)
    parts = []
    for i in range(4):
        nodes, first = {}, 7 * i
        add(nodes, (0, first // 4), summary_of(range(first, first + 4)))
        add(nodes, (0, first // 4 + 1), summary_of(range(first + 4, first + 7)))
        parts.append(Share(i, 4, (first, first + 7), None, 4, {}, description, {"sde": Part(nodes, 1.0)}))
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        joined = Join()
        for i in order:
            joined.announce(parts[i], f"share {i}")
            joined.add(parts[i])
        joined.check()
        found = joined._whole(joined._trees["sde"])
        np.testing.assert_array_equal(found.hits[:, 0], np.arange(28))
        np.testing.assert_allclose(found.mean, summary_of(np.arange(28)).mean, rtol=1e-14)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(share=(3, 3)), "share: got 3 of 3; the index of a share must be from 0 to 2"),
        (dict(share="1/3"), "share: got '1/3'; give the index of the share, from 0, and their number"),
        (dict(shares=4), "executor: got None, but shares is given"),
        (dict(executor=ThreadPoolExecutor), "shares: got None, but executor is given"),
        (dict(executor=ThreadPoolExecutor, shares=4), "executor: got <class .*; give a concurrent.futures.Executor"),
        (dict(executor=Pool(None), shares=4, share=(0, 2)), "share: got one share and an executor"),
        (dict(executor=Pool(None), shares=2000), "paths: got 203, which cannot be divided into 2000 shares"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        compare(**options)


def test_what_needs_all_paths_names_the_alternative():
    case, share = CASE[:3], sl.Execution(share=(0, 2))
    with pytest.raises(ValueError, match=r"share: verify compares several runs, .* give executor= and shares="):
        sl.scaling.verify(*case, 4, steps=20, execution=share)
    executor, kernel = sl.Execution(executor=Pool(None), shares=2), sl.Execution(kernel=True)
    for name, execution in {"share": share, "executor": executor, "kernel": kernel}.items():
        with pytest.raises(ValueError, match=f"{name}: weak_order runs in one process, .* an execution without {name}"):
            sl.weak_order(*case, [0.2, 0.1, 0.05], 0.8, execution=execution)


def test_an_executor_has_the_bits_of_one_machine_and_keeps_finished_shares(whole, monkeypatch, tmp_path):
    monkeypatch.setattr(tasks, "_pause", lambda times: 0.0)
    pool = Pool(None)
    counted = []
    pool.fails = counted.append
    assert_same_numbers(compare(executor=pool, shares=3, checkpoint=tmp_path / "c").dataset, whole.dataset)
    assert len(counted) == 3
    assert not (tmp_path / "c").exists()
    stops = iter([None, None, *[ConnectionError("reset")] * 3])
    pool.fails = lambda argument: next(stops)
    with pytest.raises(TaskError, match=r"share 2 of 3 was lost 3 times.* are kept in '.*'; correct the cause"):
        compare(executor=pool, shares=3, checkpoint=tmp_path / "c")
    with pytest.raises(
        FileExistsError, match="contains shares of an unfinished run; continue that run with resume=True"
    ):
        compare(executor=pool, shares=3, checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match="contains shares of a different run: shares is 3, here 4"):
        compare(executor=pool, shares=4, checkpoint=tmp_path / "c", resume=True)
    counted.clear()
    pool.fails = counted.append
    found = compare(executor=pool, shares=3, checkpoint=tmp_path / "c", resume=True)
    assert len(counted) == 1
    assert_same_numbers(found.dataset, whole.dataset)


def test_sweeps_are_divided_by_points_or_by_paths(whole):
    over, pool = {"lr": [0.05, 0.1]}, Pool(lambda argument: None)

    def run(**own):
        return sl.sweep(*CASE, **SIZES, over=over, execution=sl.Execution(**CHUNK, **own))

    expected = run().dataset.drop_vars("wall_time")
    by_paths = sl.join([run(share=(i, 3)) for i in range(3)])
    by_points = run(executor=pool, shares=2)
    for found in (by_paths, by_points):
        assert_same_numbers(found.dataset.drop_vars("wall_time"), expected)
        assert found.dataset.lr.equals(expected.lr)
    assert_same_numbers(by_points.at(lr=0.05).dataset, whole.dataset)


def said(script, folder, **variables):
    """What a shell script calls `sdelens` and `sbatch` with, a word a line; `sbatch --parsable` prints a number."""
    for name, body in {"sdelens": "", "sbatch": '[ "$1" = --parsable ] && echo 7 && exit\n'}.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}printf '%s\\n' \"$@\"\n")
        (folder / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"} | variables
    done = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_scripts_of_the_page_for_job_arrays(tmp_path, monkeypatch):
    """Two shares with few steps, the second of which is damaged: the array is submitted again, and all are joined."""
    part = (Path(__file__).parents[1] / "docs/clusters.md").read_text().partition("## Job arrays")[2]
    array, submit = re.findall(r"```sh\n(.*?)```", part, re.DOTALL)[:2]
    pod = " ".join(re.findall(r"exec (sdelens.*?)volumeMounts", part, re.DOTALL)[0].split())
    small = {"1000000": "64", "16384": "32", "/16": "/2", "/results/": ""}

    def job(script, **variables):
        words = said(script, tmp_path, **variables)
        for large, own in small.items():
            words = [word.replace(large, own) for word in words]
        return shell(*words, "--models=optimizer", "--devices=1").stdout

    monkeypatch.chdir(tmp_path)
    for index in "01":
        assert f"Written to shares/share-{index}-of-2" in job(array, SLURM_ARRAY_TASK_ID=index)
    damaged = Path("shares") / share_name(1, 2)
    damaged.write_bytes(damaged.read_bytes()[:-100])
    submitted = said(submit, tmp_path)
    assert submitted[:2] == ["--dependency=afterok:7", "--wrap"]
    join = submitted[2].removeprefix("sdelens ").partition(" --out ")[0].split()
    assert "share-1-of-2.safetensors' is not a share of a run, or is damaged" in shell(*join, expect=2).stderr
    assert "Written to shares/share-1-of-2" in job(array, SLURM_ARRAY_TASK_ID="1")
    assert "share-1-of-2.safetensors is there already" in job(pod, JOB_COMPLETION_INDEX="1")
    asked = []
    monkeypatch.setattr(sl.theory, "add_theory", lambda result, *subject: asked.append(subject) or (result, ["Told."]))
    (tmp_path / "log.csv").write_text("step,loss\n0,5\n64,4\n")
    printed = shell(*join, "--theory", "--curve=log.csv").stdout
    assert "2 shares" in printed
    assert "logged" in printed
    assert "Told." in printed
    assert isinstance(asked[0][2], sl.AdamW)
    assert "leave it out" in shell(*join, "--quantity=error", expect=2).stderr


SHELL = [sys.executable, "-m", "sdelens", "compare", "--problem=quadratic([1, 2])", "--optimizer=signsgd"]
SHELL += ["--devices=1", "--models=optimizer", "--steps=40000", "--paths=64", "--record-every=500", "--chunk=32"]


@pytest.mark.slow
def test_an_array_of_jobs_with_one_killed_has_the_bits_of_one_machine(tmp_path):
    out = tmp_path / "out"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "true"

    def job(index):
        command = [*SHELL, f"--share={index}/2", "--out", str(out), "--resume", "--checkpoint-every=500"]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    jobs = [job(0), job(1)]
    while not any((out / "checkpoint-1").glob("checkpoint-*")):
        time.sleep(0.01)
        assert jobs[1].poll() is None, jobs[1].communicate()
    jobs[1].send_signal(signal.SIGKILL)
    jobs[1].communicate()
    jobs = [jobs[0], job(1)]
    outputs = [one.communicate(timeout=120) for one in jobs]
    assert [one.returncode for one in jobs] == [0, 0], outputs
    assert {path.name for path in out.iterdir()} == {share_name(0, 2), share_name(1, 2)}
    case = sl.Quadratic([1.0, 2.0]), sl.GaussianNoise(1.0), sl.SignSGD(0.01), ["optimizer"]
    execution = sl.Execution(chunk=32, devices=1)
    expected = sl.compare(*case, steps=40_000, paths=64, record=sl.Record(every=500), execution=execution)
    assert_same_numbers(sl.join(out).dataset, expected.dataset)
    again = shell(*SHELL[3:], "--share=0/2", "--out", str(out), "--resume")
    assert f"{share_name(0, 2)} is there already." in again.stdout
    assert "SignSGD" in shell("join", str(out)).stdout
    assert (
        "1 of 2 missing, share-1-of-2.safetensors; run what is missing"
        in shell("join", str(out / share_name(0, 2)), expect=2).stderr
    )


@pytest.mark.slow
def test_dask_runs_the_shares_of_a_killed_worker_again():
    """Two worker processes, one of which is killed as soon as it has a share."""
    distributed = pytest.importorskip("distributed")
    case = sl.Problem(lambda x: (x**2).sum(), np.ones(2, np.float32)), sl.GaussianNoise(1.0), sl.SGD(0.1), ["optimizer"]
    own = sl.Execution(chunk=16, devices=1)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        before = client.run(os.getpid)

        def kill():
            while not (busy := [worker for worker, tasks in client.processing().items() if tasks]):
                time.sleep(0.01)
            os.kill(before[busy[0]], signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        remote = replace(own, executor=client.get_executor(), shares=4)
        found = sl.compare(*case, steps=20, paths=64, execution=remote)
        killer.join()
        assert set(before.values()) - set(client.run(os.getpid).values())
    assert_same_numbers(found.dataset, sl.compare(*case, steps=20, paths=64, execution=own).dataset)
