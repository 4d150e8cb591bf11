"""The page of results: what it says of every model, and its parts."""

import html
import re
from pathlib import Path

import pytest

import sdelens as sl
from sdelens.results.agreement import CLOSE, agreement_of, summary
from sdelens.results.report import write_report
from tests.ensembles import of_seed
from tests.site import site_module

NAN = float("nan")


def row(error, lower=NAN, upper=NAN, diverged=0):
    return {"error": error, "error_lower": lower, "error_upper": upper, "diverged": diverged}


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        (row(0.00077, 0.00072, 0.000831), "good", "within 0.084 % of the optimizer"),
        (row(0.0, 0.0, 0.0109), "good", "indistinguishable at this number of paths: error < 1.1 %"),
        (row(0.02, 0.0, 0.049), "good", "indistinguishable at this number of paths: error < 4.9 %"),
        (row(0.02, 0.0, 0.0501), "open", "not resolved at this number of paths: error < 5.1 %"),
        (row(0.04, 0.03, 0.06), "open", "differs by 4 % (3 % – 6 %)"),
        (row(0.74, 0.738, 0.742), "bad", "differs by 74 % (73 % – 75 %)"),
        (row(0.74), "open", "differs by 74 %, without limits"),
        (row(NAN, diverged=3), "open", "cannot be compared: paths diverged"),
        (row(NAN), "open", "cannot be compared"),
        (row(0.0), "open", "shows no difference, without limits"),
        (row(0.0, 0.0, 0.0), "good", "equal to the optimizer"),
        (row(0.01, 0.005, 0.02, diverged=1), "open", "within 2 % of the optimizer; 1 diverged path is left out"),
    ],
)
def test_the_limits_decide_what_is_said(given, kind, said):
    found = agreement_of(given)
    assert (found.kind, found.said) == (kind, said)
    assert (found.kind == "good") == (found.upper <= CLOSE and not given["diverged"])
    assert (found.kind == "bad") == (found.lower > CLOSE)


def test_a_sentence_about_several_runs_is_no_better_than_the_worst_of_them():
    close, other, off = (
        agreement_of(row(*numbers)) for numbers in ((0.0, 0, 0.002), (0.01, 0.009, 0.0111), (0.3, 0.28, 0.4))
    )
    unknown = agreement_of(row(0.04, 0.03, 0.06))
    assert summary("SDE", [close]) == "The SDE is indistinguishable at this number of paths: error < 0.2 %."
    assert summary("SDE", [off]) == "The SDE differs by 30 % (28 % – 40 %)."
    assert summary("SDE", [close, other]) == "The SDE is within 1.2 % of the optimizer in both comparisons."
    assert summary("SDE", [off, off]) == "The SDE differs from the optimizer by at least 28 % in both comparisons."
    assert summary("SDE", [close, off, unknown, other], cases="points") == (
        "The SDE is within 1.2 % of the optimizer in 2, off by at least 28 % in 1 and not resolved in 1 of 4 points."
    )


def checked(page):
    """The text of a valid page, all of whose links lead somewhere."""
    text = page.read_text(encoding="utf-8")
    assert site_module("html_rules").findings(text) == []
    ids = re.findall(r' id="([^"]+)"', text)
    for address in re.findall(r' (?:src|href)="([^"]+)"', text):
        assert address[1:] in ids if address.startswith("#") else (page.parent / address).is_file()
    return text


@pytest.fixture(scope="module")
def results():
    return {"first": of_seed(0), "second": of_seed(1)}


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Figures take seconds; other tests draw them."""

    def plot(self, path=None, **given):
        if path is not None:
            Path(path).touch()

    monkeypatch.setattr(sl.Result, "plot", plot)


def test_several_results_begin_with_verdicts_and_small_figures_and_fold_their_tables(results, tmp_path):
    text = checked(write_report(tmp_path, results, "Two <runs>", "make two"))
    assert "Two &lt;runs&gt;" in text
    verdicts, *sections = html.unescape(text).replace("\N{NO-BREAK SPACE}", " ").split("<section")
    for name, result in results.items():
        said = agreement_of(result.errors().loc["sde"]).said
        assert re.search(rf'<a href="#{name}">[^<]*</a>.*{re.escape(said)}', verdicts)
        assert f'<a href="{name}.png"><img src="{name}-small.png"' in verdicts
    assert len(sections) == 2
    assert text.count("<details>") == 2


def test_one_result_shows_its_table_and_no_small_figure(results, tmp_path):
    text = checked(write_report(tmp_path, {"first": results["first"]}, "One", "make one", {"first": "a remark"}))
    assert "<details open>" in text
    assert "small" not in text
    assert "a remark" in text
    assert text.count('class="lead"') == 1
    alone = checked(write_report(tmp_path, {"first": results["first"].select(["optimizer"])}, "Alone", "make alone"))
    assert "verdict" not in alone.split("<body>")[1]
