"""The page of the studies' last results: what each measured, what it may be at most, with date and commit.

`--studies-page FILE` writes it. A study says what it measured by the fixture `measured`.
"""

import datetime
import subprocess
from pathlib import Path

import jax
import pytest

_PROPERTY = "measured"
_HEAD = """# Test studies: last results

Checks that take minutes each: whether limits cover as often as they say, weak orders at full precision, runs that are
killed many times. `make studies` runs them, before each release, and writes this page; `make test-all` holds small,
sharp versions of the same.

"""


@pytest.fixture
def measured(request):
    """Note what a study found, with what is asked of it in words: `measured("misses of the limit", 3, "≤ 12")`."""

    def note(what, value, asked):
        shown = f"{value:.3g}" if isinstance(value, float) else str(value)
        request.node.user_properties.append((_PROPERTY, (what, shown, asked)))

    return note


class Page:
    """Collects the reports of studies in the process that was started."""

    def __init__(self, path):
        self.path, self.reports = Path(path), []

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.failed:
            self.reports.append(report)

    def pytest_sessionfinish(self, session):
        if not hasattr(session.config, "workerinput") and self.reports:
            self.path.write_text(page(self.reports), encoding="utf-8")


def page(reports):
    """The page as Markdown."""
    passed = sum(report.passed for report in reports)
    when = datetime.datetime.now(datetime.UTC).date().isoformat()
    lines = [f"On {when}, at commit {_commit()}, JAX {jax.__version__}: {passed} of {len(reports)} passed.", ""]
    lines += ["| study | found | asked | seconds |", "|---|---|---|---|"]
    for report in sorted(reports, key=lambda r: r.nodeid):
        name = report.nodeid.split("::", 1)[1].removeprefix("test_").replace("_", " ").replace("|", "\\|")
        notes = [value for key, value in report.user_properties if key == _PROPERTY]
        found = "<br>".join(f"{what}: {value}" for what, value, _ in notes) or ("" if report.passed else "**failed**")
        asked = "<br>".join(asked for *_, asked in notes)
        verdict = "" if report.passed or not notes else " **failed**"
        lines.append(f"| {name} | {found}{verdict} | {asked} | {report.duration:.0f} |")
    return _HEAD + "\n".join(lines) + "\n"


def _commit():
    def git(*words):
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+changes" if git("status", "--porcelain") else "")


def pytest_addoption(parser):
    """Where the page goes."""
    parser.getgroup("studies").addoption("--studies-page", default=None, metavar="FILE", help="write the results there")


def pytest_configure(config):
    """Collect only where a page is asked for."""
    if config.getoption("studies_page"):
        config.pluginmanager.register(Page(config.getoption("studies_page")), "sdelens-studies-page")
