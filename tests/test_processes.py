"""Several processes that share a run: the same numbers as one, and every loss or failure told to all."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import jax
import numpy as np
import pytest

import sdelens as sl
from sdelens.run import links, processes
from sdelens.run.experiment import prepare, run, simulated
from sdelens.run.links import gathered, listening, reached
from sdelens.run.options import Options
from sdelens.run.processes import Group, ProcessError

PROBLEM, NOISE, OPTIMIZER = sl.Quadratic([1.0, 2.0]), sl.GaussianNoise(1.0), sl.RMSpropW(0.05, 0.9)


def free_port(lowest=0):
    for port in range(lowest, lowest + 2000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise AssertionError("no free port")


def members(count, timeout=20.0):
    """The groups of as many processes, which are threads here."""
    server = listening("127.0.0.1", 0)
    port = server.getsockname()[1]
    with ThreadPoolExecutor(count) as pool:
        first = pool.submit(gathered, server, count, timeout)
        rest = [
            pool.submit(reached, "127.0.0.1", port, count, i, time.monotonic() + timeout, timeout)
            for i in range(1, count)
        ]
        return [Group(0, count, first.result()), *(Group(i, count, {0: f.result()}) for i, f in enumerate(rest, 1))]


def together(groups, work):
    """What every process makes of `work(group)`: a value, or its exception."""

    def one(group):
        try:
            with group.run():
                return work(group)
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(groups)) as pool:
        return list(pool.map(one, groups))


def test_values_are_joined_in_order_and_failures_told_to_all():
    groups = members(3)
    ranges = [group.share(10) for group in groups]
    assert [i for first, end in ranges for i in range(first, end)] == list(range(10))
    large = bytes(2**22)
    whole = together(groups, lambda g: g.combine("a", bytes([65 + g.index]) + large, b"".join))
    assert whole == [b"".join(bytes([65 + i]) + large for i in range(3))] * 3

    def failing(group):
        if group.index == 2:
            raise OSError("the disk is full")
        group.wait("the end")

    *others, own = together(groups, failing)
    assert isinstance(own, OSError)
    for error in others:
        assert isinstance(error, ProcessError)
        assert str(error) == "process 2 of 3 failed: the disk is full. All other processes stop."
    assert together(groups, lambda g: g.combine("b", b"x", b"".join)) == [b"xxx"] * 3  # the next run is another one
    first, *rest = together(groups, lambda g: g.wait(f"part {g.index // 2}"))
    assert "process 2 is at 'part 1', but process 0 is at 'part 0'" in str(first)
    assert all(isinstance(error, ProcessError) for error in rest)
    groups[1]._links[0].close()
    for group, error in zip(groups, together(groups, lambda g: g.wait("the end")), strict=True):
        assert ("process 0" if group.index == 1 else "process 1") + " of 3 is lost" in str(error)


def test_a_process_that_falls_silent_is_lost(monkeypatch):
    monkeypatch.setattr(processes, "_BEAT_SECONDS", 0.05)
    groups = members(2)
    time.sleep(0.3)
    groups[0].check()
    monkeypatch.setattr(processes, "_SILENT_SECONDS", 0.5)
    monkeypatch.setattr(links.Link, "beat", lambda self: None)
    time.sleep(1.0)
    lost = together(groups, Group.check)  # both fall silent here; the first to notice closes the connection
    assert all(isinstance(error, ProcessError) for error in lost)
    assert any("of 2 is lost (it has not sent anything for" in str(error) for error in lost), lost


def test_those_who_do_not_arrive_are_named():
    server = listening("127.0.0.1", 0)
    port = server.getsockname()[1]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(gathered, server, 3, 0.5)
        second = pool.submit(reached, "127.0.0.1", port, 3, 1, time.monotonic() + 5, 5.0)
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
        for future in (first, second):
            with pytest.raises(OSError, match=r"processes: 2 of 3 did not connect within 0.5 s"):
                future.result()
    with pytest.raises(OSError, match=f"process 0 did not answer at 127.0.0.1:{port} within 0.2 s"):
        reached("127.0.0.1", port, 2, 1, time.monotonic() + 0.2, 0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("node", 2, 0), "give host:port"),
        (("node:70000", 2, 0), "give host:port"),
        (("node:7000", None, 0), "num_processes: got None"),
        (("node:7000", 2, 2), "process_id: got 2; with 2 processes it must be from 0 to 1"),
        (("auto", 2, None), "leave them out"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        sl.join_processes(*arguments)
    assert sl.join_processes("node:7000", 1, 0) == 0  # alone, and nothing listens
    assert processes.current() is processes.ALONE


def experiment_of(group, **options):
    watched = {"averages": {"ema": 0.9}, "hits": {"low": lambda x: x[0] < 0}, "marginals": 2, "times": 2}
    record, execution = sl.Record(every=2, keep_paths=70, **watched), sl.Execution(chunk=20, devices=1)
    asked = Options(steps=7, paths=101, record=record, execution=execution, **options)
    experiment = prepare(PROBLEM, NOISE, OPTIMIZER, ["sde"], asked)
    return replace(experiment, plan=experiment.plan._replace(share=group.share(experiment.plan.paths)), group=group)


def shared_run(group, **options):
    return run(experiment_of(group, **options), False, None)


def assert_close(result, other):
    assert set(result.data_vars) == set(other.data_vars)
    for name in result.data_vars:
        a, b = result[name], other[name]
        scale = float(np.abs(b).max())  # sums of float32 over paths: 1e-6 of the largest, 4e-6 where they are squared
        np.testing.assert_allclose(a, b, rtol=0, atol=(4e-6 if "m2" in name else 1e-6) * scale, err_msg=name)


def test_processes_have_the_numbers_of_one():
    expected = shared_run(processes.ALONE).dataset
    results = together(members(3), shared_run)  # shares of 33, 34 and 34 in chunks of 20; kept: 33, 34 and 3
    for result in results:
        assert_close(result.dataset, expected)
        assert result.info["device"]["processes"] == result.info["device"]["count"] == 3
    wrong = together(members(2), lambda g: shared_run(g, seed=5 * g.index))
    for error in wrong:
        assert "in process 1, run.seed is 5, in process 0 0" in str(error)


def test_models_finished_anywhere_are_finished(tmp_path):
    """Processes stop at different places: what one has finished, the others need not run again."""
    groups = members(2)
    _, (summary, _) = next(simulated(experiment_of(processes.ALONE), lambda *_: None, None))

    def agreed(group):
        with sl.keep_checkpoints(tmp_path / str(group.index)) as kept:
            if group.index == 1:
                kept.finished["sde"] = (summary, 2.5)
            kept.agree(group)
            return kept.finished

    first, second = together(groups, agreed)
    assert first["sde"][1] == second["sde"][1] == 2.5
    jax.tree.map(np.testing.assert_array_equal, first["sde"][0], second["sde"][0])


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_it_goes_on(tmp_path):
    """Two processes by the shell: one is killed, the other says so; both go on, found by JAX as under Slurm."""
    out, port = tmp_path / "out", free_port()
    command = [sys.executable, "-m", "sdelens", "compare", "--problem", "quadratic([1, 2])", "--optimizer", "signsgd"]
    command += ["--devices=1", "--models=optimizer", "--out", str(out), "--resume", "--checkpoint-every=500"]
    command += ["--steps=40000", "--paths=64", "--record-every=500"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

    def start(index, *options, **more):
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return subprocess.Popen([*command, *options], env={**environment, **more}, **pipes)

    def saved(index):
        return any((out / "checkpoint" / f"process-{index}").glob("checkpoint-*"))

    both = [start(i, f"--coordinator=localhost:{port}", "--num-processes=2", f"--process-id={i}") for i in range(2)]
    while not (saved(0) and saved(1)):
        time.sleep(0.01)
        assert all(process.poll() is None for process in both), both[0].communicate() + both[1].communicate()
    both[1].send_signal(signal.SIGKILL)
    printed, message = both[0].communicate(timeout=60)
    both[1].communicate()
    assert both[0].returncode == 3
    assert not printed
    assert message.startswith("sdelens: process 1 of 2 is lost")
    assert message.count("\n") == 1

    execution = sl.Execution(checkpoint=out / "checkpoint", resume=True)
    with pytest.raises(
        ValueError, match="contains the checkpoint of a run with several processes, but this run has one"
    ):
        sl.compare(PROBLEM, NOISE, OPTIMIZER, steps=2, execution=execution)
    slurm = dict(SLURM_JOB_ID=str(free_port(61440) - 61440), SLURM_STEP_NODELIST="localhost", SLURM_NTASKS="2")
    both = [start(i, "--coordinator=auto", **slurm, SLURM_PROCID=str(i), SLURM_LOCALID="0") for i in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert "SignSGD" in outputs[0][0]
    assert not outputs[1][0]
    assert not (out / "checkpoint").exists()
    case = sl.Quadratic([1.0, 2.0]), sl.GaussianNoise(1.0), sl.SignSGD(0.01), ["optimizer"]
    expected = sl.compare(*case, steps=40_000, paths=64, record=sl.Record(every=500))
    assert_close(sl.load(out / "signsgd-quadratic.nc").dataset, expected.dataset)


def test_a_process_that_cannot_stop_is_ended(monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(processes.os, "_exit", lambda status: ended.set())
    groups = members(2)
    groups[0]._exit_after = 0.05
    groups[1]._links[0].close()
    assert ended.wait(5.0)
