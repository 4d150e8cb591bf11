"""What a long computation shows on standard error: work, and the stages that are not counted as work."""

import io
import sys
import threading

import pytest

from sdelens.core import progress


def test_progress_in_a_log_is_lines_now_and_then(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.progress_bar(True, 1000, done=500) as report:
        for _ in range(50):
            now[0] += 3.0
            report(5, "sde")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 12
    assert lines[0] == "sdelens: sde: 52%, about 0:04:48 left"  # 20 of the 500 left took 12 s
    assert lines[-1] == "sdelens: sde: 74%, about 0:02:36 left"
    with progress.progress_bar(None, 10) as report:  # by default nothing where no terminal is
        now[0] += 60
        report(5, "sde")
    assert capsys.readouterr().err == ""


def test_the_bar_of_a_resumed_run_starts_where_it_stands(monkeypatch):
    import rich.progress

    bars = []

    class Bar(rich.progress.Progress):
        def __init__(self, *columns, console, transient):
            super().__init__(*columns, console=console, transient=transient, get_time=lambda: now[0])
            bars.append(self)

    now = [100.0]
    monkeypatch.setattr(rich.progress, "Progress", Bar)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.progress_bar(None, 1000, done=900) as report:
        assert bars[0].tasks[0].percentage == 90
        for _ in range(3):
            now[0] += 1.0
            report(10, "sde")
        assert bars[0].tasks[0].time_remaining == 7  # 70 left at 10 a second


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def bar(monkeypatch):
    """The bar that is shown on a terminal: its labels, in their order."""
    import rich.progress

    labels = []

    class Bar(rich.progress.Progress):
        def update(self, task, **changes):
            super().update(task, **changes)
            labels.append(self.tasks[0].description)

    monkeypatch.setattr(rich.progress, "Progress", Bar)
    return labels


def test_a_stage_is_named_on_the_bar_and_leaves_its_label_as_it_was(bar, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.progress_bar(None, 10) as report:
        with progress.stage("compiling"):
            pass
        report(5, "sde")
        with progress.stage("compiling sde"), progress.stage("computing limits"):
            pass
        report(5, "sde")
    assert bar == ["compiling", "", "sde", "compiling sde", "computing limits", "compiling sde", "sde", "sde"]


def test_a_stage_without_a_bar_is_shown_on_a_terminal_only_if_it_lasts(monkeypatch):
    shown = []
    for seconds in (0.0, 0.3):
        monkeypatch.setattr(sys, "stderr", Terminal())
        monkeypatch.setattr(progress, "_SHORT_SECONDS", 0.1)
        with progress.stage("computing limits"):
            threading.Event().wait(seconds)
        shown.append("computing limits" in sys.stderr.getvalue())
    assert shown == [False, True]


@pytest.mark.parametrize("wanted", [False, None])
def test_nothing_is_shown_where_nothing_is_wanted(wanted, monkeypatch, capsys):
    if wanted is False:
        monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.progress_bar(wanted, 10) as report, progress.stage("compiling"):
        report(10, "sde")
    with progress.stage("computing limits"):
        pass
    text = sys.stderr.getvalue() if wanted is False else capsys.readouterr().err
    assert "compiling" not in text
    assert "limits" not in text


def test_a_long_stage_has_lines_in_a_log_and_is_not_counted_in_the_time_left(capsys, monkeypatch):
    now, said = [0.0], threading.Event()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.05)
    told = progress._Lines._print
    monkeypatch.setattr(progress._Lines, "_print", lambda self, line: (told(self, line), said.set()))
    with progress.progress_bar(True, 100) as report:
        with progress.stage("compiling sde"):
            now[0] = 60.0
            assert said.wait(20)
        now[0] = 62.0
        report(10, "sde")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "sdelens: compiling sde, for 0:01:00 now"
    assert lines[-1] == "sdelens: sde: 10%, about 0:00:18 left"  # 10 of 100 took 2 s, not 62 s
