"""The harness of the benchmarks: interleaved rounds, ratios within one, and a page that says what the JSON says."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from benchmarks import networks
from benchmarks.__main__ import pages
from benchmarks.contenders.task import Curve
from benchmarks.report import Target
from benchmarks.timing import ALL, ONE, Contender, Size, Workers, contest, deviation, interleave, ratio

ROOT = Path(__file__).parents[1]


def test_a_disturbance_of_one_round_hits_all_and_leaves_the_ratio():
    order = []

    def run(name, cost):
        def timed(turn):
            order.append(name)
            return cost * (10 if turn == 1 else 1)  # the machine is ten times slower in the second round

        return timed

    times = interleave({"slow": run("slow", 3.0), "fast": run("fast", 1.5)}, 4)
    assert order == ["slow", "fast"] * 4
    assert times["slow"] == [3.0, 30.0, 3.0, 3.0]
    assert ratio(times["slow"], times["fast"]) == (2.0, 2.0, 2.0)


def test_quartiles_are_of_the_ratios():
    found = ratio([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5)
    assert found == (3.0, 2.0, 4.0)
    assert Target("", "≥", 3.0, found).met
    assert not Target("", "≤", 2.9, found).met


def test_deviations_are_in_standard_errors_and_few_paths_cannot_look_certain():
    wide = Curve(np.array([1.0, 1.0]), np.array([0.03, 0.03]), 100)
    same = Curve(np.array([1.0, 1.0 + 0.03 * 2**0.5]), np.array([0.03, 0.03]), 100)
    assert deviation(same, wide) == pytest.approx(1.0, rel=1e-4)
    lucky = Curve(np.array([1.5]), np.array([1e-9]), 4)  # 0.03 · √(100/4) = 0.15 is what 4 paths can know
    assert deviation(lucky, wide) == pytest.approx(0.5 / np.hypot(0.15, 0.03), rel=1e-3)


class _Fake(NamedTuple):
    curves: dict

    def run(self, contender, seed, size):
        return 1.0 * size.steps, self.curves[contender.name]


def test_contenders_that_compute_something_else_are_refused():
    curve = Curve(np.array([1.0]), np.array([0.01]), 100)
    other = Curve(np.array([1.2]), np.array([0.01]), 100)
    ways = [Contender(name, "sdelens", ONE, "none:none", size=Size(100, 1)) for name in ("ours", "theirs")]
    rows = contest(_Fake({"ours": curve, "theirs": curve}), ways, 2, seconds=3.0)
    assert [row["steps"] for row in rows] == [4, 4]  # enough for 3 s with a tenth to spare
    assert rows[0]["seconds"] == [4.0, 4.0]
    with pytest.raises(AssertionError, match=r"theirs.*14\.\d standard errors"):
        contest(_Fake({"ours": curve, "theirs": other}), ways, 2, seconds=None)


class _Lacking(_Fake):
    def run(self, contender, seed, size):
        if "compiled" in contender.name:
            raise RuntimeError("('…',) failed:\ntorch._inductor.exc.InvalidCxxCompiler: No working C++ compiler found")
        return super().run(contender, seed, size)

    def forget(self):
        pass


def test_what_the_machine_lacks_is_said_in_the_row_and_another_error_is_raised():
    curve = Curve(np.array([1.0]), np.array([0.01]), 100)
    names = ("sdelens", "PyTorch, torch.func", "PyTorch, torch.func, compiled")
    ways = [Contender(name, "torch", ALL, "none:none", size=Size(100, 4)) for name in names]
    rows = networks._contested(_Lacking(dict.fromkeys(names, curve)), ways, 2, 3.0, "vit")
    found = {"steps": [], "compare": rows, "flops": {"vit": 5e4}, "peak": {ONE: {"matrix_flops_per_s": 3e7}}}
    (table,) = (t for t in networks.tables(found | {"unit": "core"}) if t.title.startswith("ViT"))
    # 3 models × 5e4 flop in 1e4 µs are 0.015 Gflop/s, half of the peak
    assert table.rows[0] == ["sdelens", "all", "10000", "1.00 (1.00 – 1.00)", "0.0150", "50 %", "4.00", "0.0"]
    assert table.rows[2] == [names[2], "all", "no C++ compiler", *["-"] * 5]
    assert networks.failure(RuntimeError("XlaRuntimeError: RESOURCE_EXHAUSTED: …")) == "out of memory"
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        networks.failure(RuntimeError("ZeroDivisionError"))


def test_a_worker_sees_one_core_and_says_what_failed():
    with Workers(accelerators=0) as workers:
        found = workers.fresh(ONE, "benchmarks.environment:devices")
        assert len(found["devices"]) == 1
        with pytest.raises(RuntimeError, match="no_such_function"):
            workers.fresh(ONE, "benchmarks.environment:no_such_function")


def test_the_page_says_what_the_json_says():
    for path, text in pages().items():
        assert path.read_text(encoding="utf-8") == text
