"""Claims, their verdicts, the folder they are kept in, and the page."""

import dataclasses
import json
import math
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.stats import norm

import sdelens as sl
from sdelens.core import compilation
from sdelens.studies import (
    FAILS,
    HOLDS,
    OPEN,
    STUDIES,
    Estimate,
    Outcome,
    Picture,
    Plan,
    Study,
    _records,
    _runs,
)
from sdelens.studies._measure import exponent, largest_ratio, quantile
from sdelens.studies._verdicts import at_least, at_most, joined, within
from tests.checks import shell
from tests.site import site_module

CONFIDENCE = 0.999
Z = 3.0902


def about(value, error):
    return Estimate(value, value - Z * error, value + Z * error)


@pytest.mark.parametrize(
    ("number", "verdict"),
    [((0.5, 0.1), HOLDS), ((0.95, 0.1), OPEN), ((1.05, 0.1), OPEN), ((1.5, 0.1), FAILS), ((math.nan, 0.1), OPEN)],
)
def test_a_number_at_most_one(number, verdict):
    assert at_most("a", about(*number), 1.0, CONFIDENCE).verdict == verdict


def test_rules_are_mirrored_and_a_failing_item_decides():
    assert at_least("a", about(2, 0.1), 1.0, CONFIDENCE, 2.0).verdict == HOLDS
    low, inside, wide = (within("a", about(*n), (0.9, 1.1), CONFIDENCE) for n in ((0.5, 0.01), (1, 0.01), (1, 0.1)))
    assert [low.verdict, inside.verdict, wide.verdict] == [FAILS, HOLDS, OPEN]
    assert joined([inside, wide]) == OPEN
    assert joined([inside, wide, low]) == FAILS
    assert joined([inside]) == HOLDS
    assert joined([]) == OPEN


def test_wrong_verdicts_are_as_rare_and_right_ones_as_frequent_as_stated():
    """20 000 draws of a normal number at the edge, and of one where it is expected; 4 standard errors."""
    rng, confidence, z, error = np.random.default_rng(0), 0.99, 2.3263, 0.1
    for truth, kind in ((1.0, "edge"), (0.7, "inside")):
        found = truth + error * rng.standard_normal(20_000)
        items = [
            at_most("a", Estimate(v, v - z * error, v + z * error), 1.0, confidence, expected=0.7)
            for v in found[:20_000]
        ]
        held = np.mean([item.verdict == HOLDS for item in items])
        wanted = 0.01 if kind == "edge" else items[0].power
        assert abs(held - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / 20_000)


def test_the_power_of_a_largest_number_is_the_least_it_can_be():
    """20 000 draws of five numbers, all where they are expected; the bound is sharp to the second order; 4 errors."""
    rng, confidence, error, count = np.random.default_rng(0), 0.99, 0.1, 5
    z = float(norm.isf((1 - confidence) / count))
    largest = (0.5 + error * rng.standard_normal((20_000, count))).max(axis=1)
    items = [
        at_most("a", Estimate(v, v - z * error, v + z * error, points=count), 1.0, confidence, expected=0.5)
        for v in largest
    ]
    held, least = np.mean([item.verdict == HOLDS for item in items]), items[0].power
    missed = (1 - least) / count
    wanted = (1 - missed) ** count
    assert 0.9 < least < wanted < 0.999
    assert abs(held - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / 20_000)


def test_what_it_would_take_does_resolve():
    item = at_most("a", about(0.9, 0.1), 1.0, CONFIDENCE)
    assert item.verdict == OPEN
    again = dataclasses.replace(item, **vars(about(0.9, 0.1 / math.sqrt(item.effort))))
    assert again.verdict == HOLDS
    assert at_most("a", about(1.0, 0.1), 1.0, CONFIDENCE).effort == math.inf


def test_numbers_with_limits_cover_the_truth():
    """Of 400 samples each limit at 95 % misses about 20; 45 are 5 standard errors more."""
    rng, plan = np.random.default_rng(1), Plan({}, 0, 0.95)
    missed = np.zeros(4, int)
    for _ in range(400):
        own = quantile(rng.exponential(size=500), 0.9, 0.95)
        power = exponent(plan, (4 + 0.1 * rng.standard_normal(), 0.1), (2 + 0.05 * rng.standard_normal(), 0.05), 2.0)
        missed += [own.lower > math.log(10), own.upper < math.log(10), power.lower > 1, power.upper < 1]
    assert (missed < 45).all()
    above = largest_ratio(plan, [(np.array([1.0, 2.0]), np.array([0.1, 0.1]), np.array([2.0, 2.0]))])
    assert above.lower < 1 == above.value < above.upper


def test_every_claim_says_all_that_it_must():
    assert 15 <= len(STUDIES) <= 30
    total = sum((1 - _runs.confidence_of(study)) * study.items for study in STUDIES.values())
    assert total == pytest.approx(0.05)
    for name, study in STUDIES.items():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
        assert study.name == name
        assert set(study.sizes) == {"quick", "full", "paper"}
        assert study.statement.endswith(".")
        assert study.source.endswith(".")
        assert study.criterion.endswith((".", ".)"))


def tiny(plan):
    problem, noise = sl.Quadratic([1.0, 2.0]), sl.GaussianNoise(1.0)
    result = plan.compare("run", problem, noise, sl.SGD(0.1), steps=20, paths=plan.size["paths"])
    item = plan.at_most("error <of> SGD", plan.error(result), 0.5, percent=True)
    return Outcome([item], ["a & b"], [Picture("losses", sketch, "Losses.", "Two curves.")], remarks=["So."])


def sketch():
    """A figure that is drawn in no time; those of results have their own tests."""
    figure = Figure((2, 1))
    figure.add_axes((0, 0, 1, 1), frame_on=False, xticks=(), yticks=()).plot([0, 1])
    return figure


def check_page(text):
    """A valid page without outside addresses; its images and ids."""
    assert text.startswith("<!doctype html>")
    assert site_module("html_rules").findings(text) == []
    ids = set(re.findall(r' id="([^"]+)"', text))
    for address in re.findall(r' (?:src|href)="([^"]+)"', text):
        assert address.startswith(("data:", "#"))
        assert not address.startswith("#") or address[1:] in ids
    return re.findall(r'<img [^>]*src="([^"]+)"', text), ids


@pytest.fixture
def claims(monkeypatch):
    sizes = {preset: {"paths": 64} for preset in ("quick", "full", "paper")}
    runs = []

    def run(plan):
        runs.append(plan.seed)
        return tiny(plan)

    run.__module__ = __name__
    study = Study("tiny-claim", "It holds & is <small>.", "Here.", "At most 50 %.", 2, sizes, run)
    known = {"tiny-claim": study, "other-claim": Study("other-claim", "So too.", "Here.", "As well.", 2, sizes, run)}
    for module in ("_runs", "_page"):
        monkeypatch.setattr(f"sdelens.studies.{module}.STUDIES", known)
    return runs


def test_a_run_is_kept_resumed_and_shown(claims, tmp_path):
    said = []
    found = sl.reproduce(["tiny-claim"], out=tmp_path / "r", tell=said.append)
    assert found.verdicts == {"tiny-claim": HOLDS}
    assert len(said) == 1
    assert "holds" in said[0]
    images, _ = check_page(found.page.read_text())
    assert images[0].startswith("data:image/svg+xml;base64,")
    own = tmp_path / "r" / "tiny-claim"
    assert {"outcome.json", "run.nc", "losses.svg", "losses.pdf", "losses.png"} <= {p.name for p in own.iterdir()}
    with pytest.raises(FileExistsError, match="overwrite"):
        sl.reproduce(["tiny-claim"], out=tmp_path / "r")
    again = sl.reproduce(["other-claim"], out=tmp_path / "r", resume=True)
    assert len(claims) == 2
    assert list(again.records) == ["other-claim"]
    assert {"tiny-claim", "other-claim"} < check_page(again.page.read_text())[1]  # the page shows both
    both = sl.reproduce(out=tmp_path / "r", resume=True)
    assert len(claims) == 2  # both were kept
    assert both.records["tiny-claim"] == found.records["tiny-claim"]


def test_another_seed_is_another_run_and_replaces_only_with_leave(claims, tmp_path):
    sl.reproduce(["tiny-claim"], out=tmp_path / "r")
    before = (tmp_path / "r" / "tiny-claim" / "run.nc").stat()
    with pytest.raises(FileExistsError, match=r"tiny-claim.* another seed; .*overwrite"):
        sl.reproduce(["tiny-claim"], seed=1, out=tmp_path / "r", resume=True)
    assert (tmp_path / "r" / "tiny-claim" / "run.nc").stat() == before
    sl.reproduce(["tiny-claim"], seed=1, out=tmp_path / "r", resume=True, overwrite=True)
    assert claims == [0, 1]
    check_page((tmp_path / "r" / "index.html").read_text())


def test_what_is_no_study_s_is_never_removed(claims, tmp_path):
    own = tmp_path / "tiny-claim" / "thesis.txt"
    own.parent.mkdir()
    own.write_text("mine")
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(FileExistsError, match=r"contains no study"):
            sl.reproduce(["tiny-claim"], out=tmp_path, **options)
    assert own.read_text() == "mine"


def test_a_claim_that_breaks_does_not_end_the_others(claims, tmp_path, monkeypatch):
    def bad(plan):
        raise RuntimeError("no <luck>")

    broken = dataclasses.replace(_runs.STUDIES["tiny-claim"], run=bad)
    monkeypatch.setitem(_runs.STUDIES, "tiny-claim", broken)
    with ThreadPoolExecutor(1) as executor:
        found = sl.reproduce(out=tmp_path / "r", executor=executor)
    assert found.verdicts == {"tiny-claim": OPEN, "other-claim": HOLDS}
    images, _ = check_page(found.page.read_text())
    assert images
    assert found.records["tiny-claim"].error == "RuntimeError: no <luck>"
    assert "no &lt;luck&gt;" in found.page.read_text()
    check_page(found.page.read_text())
    assert not (tmp_path / "r" / "tiny-claim" / "outcome.json").exists()  # the next run tries again


def test_a_damaged_run_is_made_again(tmp_path):
    plan = Plan({"paths": 64}, 0, 0.99, tmp_path, False)
    tiny(plan)
    whole = (tmp_path / "run.nc").read_bytes()
    (tmp_path / "run.nc").write_bytes(whole[: len(whole) // 2])
    assert tiny(plan).verdict == HOLDS
    assert len((tmp_path / "run.nc").read_bytes()) == len(whole)


TINY = {"paths": 64, "samples": 2, "problems": 2, "optimizers": ["AdamW"], "substeps": 4}
SMALL_NETWORK = {"subset": 64, "width": 4, "depth": 1}
OWN = {
    "networks-track": {"networks": {"mlp": {"dataset": "digits", **SMALL_NETWORK}}, "steps": 20, "paths": 32},
    "minibatch-noise": {"network": SMALL_NETWORK, "steps": 15, "paths": 64},
    "scaling-rules": {"steps": 400},
}
FEWER = {
    "sdes-track": {"_cases": ["saddle"], "_optimizers": [0, 2]},
    "adaptive-mean-only": {"spread_cases": ["AdamW, quadratic", "RMSpropW, quadratic", "RMSprop, |∂f| = 1σ"]},
    "adaptive-spread": {"spread_cases": ["AdamW, quadratic", "RMSpropW, quadratic"], "RESOLVED": [0]},
    "weak-order": {"_optimizers": ["SignSGD", "AdamW"]},
    "stationary-laws": {"_optimizers": ["SignSGD", "AdamW"], "FRAMES": 3},
    "heavy-tails": {"_laws": ["ν = 1", "Gaussian"]},
    "schedules": {"_optimizers": ["SignSGD", "AdamW"]},
    "minibatch-noise": {"_optimizers": ["SGD", "Adam"]},
    "closure": {"_cases": ["SGD", "AdamW"]},
    "any-optimizer": {"_optimizers": ["momentum", "Yogi"]},
}
"""Of claims that run one code for many cases: the cases that the slow tests run, by name or number, and frames."""


def some(table, kept):
    """The entries of a dictionary or sequence that are kept; of a function's, whatever its arguments."""
    if callable(table):
        return lambda *arguments: some(table(*arguments), kept)
    if isinstance(table, int):
        return kept
    return {key: table[key] for key in kept} if isinstance(table, dict) else [table[i] for i in kept]


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_every_claim_runs_at_any_size_and_draws_whatever_comes_of_it(name, tmp_path, monkeypatch):
    module = sys.modules[STUDIES[name].run.__module__]
    for table, kept in FEWER.get(name, {}).items():
        monkeypatch.setattr(module, table, some(getattr(module, table), kept))
    check_claim(name, tmp_path)


@pytest.mark.study
@pytest.mark.parametrize("name", FEWER)
def test_claims_of_many_cases_run_all_of_them(name, tmp_path):
    check_claim(name, tmp_path)


class Unkept(Plan):
    """A plan that keeps no run, since each would be traced once more for its identity; names of runs differ."""

    def _kept(self, name, function, *case):
        assert name not in self.size["names"]
        assert re.fullmatch(r"[\w.-]+", name)  # it is a file's
        self.size["names"].append(name)
        return super()._kept(name, function, *case)


def check_claim(name, tmp_path):
    study = STUDIES[name]
    size = {key: TINY.get(key, value) for key, value in study.sizes["quick"].items()} | OWN.get(name, {})
    plan = Unkept(size | {"names": []}, 3, 0.99, None, False)
    outcome = study.run(plan)
    labels = [item.label for item in outcome.items]
    assert 0 < len(labels) <= study.items
    assert len(set(labels)) == len(labels)
    assert set(study.reasons) <= set(labels)
    for item in outcome.items:
        assert math.isnan(item.value) or item.lower <= item.value <= item.upper
    wanted = _records.identity(study, "quick", 3, plan.confidence)
    record = _records.write(tmp_path, study, outcome, 1.0, wanted)
    assert _records.kept(tmp_path, wanted) == record or any(math.isnan(i.value) for i in record.items)
    assert all(picture["caption"] and picture["alt"] for picture in record.pictures)


def test_a_killed_run_keeps_what_it_had_and_a_damaged_record_is_made_again(claims, tmp_path):
    out = tmp_path / "r"
    first = sl.reproduce(["tiny-claim"], out=out)
    record = out / "tiny-claim" / "outcome.json"
    record.write_text(record.read_text()[:100])  # as no run of ours leaves it
    again = sl.reproduce(["tiny-claim"], out=out, resume=True)
    assert again.verdicts == first.verdicts
    assert len(claims) == 2
    assert json.loads(record.read_text())["items"] == [
        {k: str(v) if isinstance(v, float) and math.isinf(v) else v for k, v in vars(i).items()}
        for i in first.records["tiny-claim"].items
    ]


def test_the_shell_lists_claims_and_refuses_unknown_ones():
    listed = shell("reproduce", "--list")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(STUDIES)
    assert "weak-order" in shell("reproduce", "no-such-claim", expect=2).stderr


def test_the_style_holds_until_its_block_ends():
    import matplotlib as mpl

    before = mpl.rcParams["legend.frameon"], mpl.rcParams["figure.figsize"]
    with sl.style(figure_figsize=(3, 2)):
        assert mpl.rcParams["legend.frameon"] is False
        assert list(mpl.rcParams["figure.figsize"]) == [3, 2]
    assert (mpl.rcParams["legend.frameon"], mpl.rcParams["figure.figsize"]) == before


@pytest.mark.parametrize("df", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_a_run_under_t_noise_of_odd_degrees_repeats_itself(df, monkeypatch):
    """XLA's arctan in loops of 512-bit vectors gave other numbers at every run, and wrong ones."""
    monkeypatch.setattr(compilation, "SMALL", 1e7)  # for speed, as in large runs: what runs has 4e8 operations
    problem, noise = sl.Quadratic([1.0, 2.0, 4.0], start=2.0), sl.StudentTNoise(1.0, df)
    options = dict(steps=300, paths=2048, record=sl.Record(every=50))
    runs = [sl.compare(problem, noise, sl.SignSGD(0.01), **options) for _ in range(2)]
    np.testing.assert_array_equal(*(run.dataset.loss_mean.values for run in runs))
    assert runs[0].errors().loc["sde", "error_upper"] < 0.01
