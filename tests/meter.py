"""What the tests cost: CPU seconds, compiled programs and seconds of compilation by file, and a budget of programs.

Loaded by the root `conftest.py`. `--meter` prints the table; `--max-programs N` fails a run that compiles more than N
programs. Seconds depend on the machine, programs hardly: on how tests are spread over the workers, which compile for
themselves.
"""

import os
from collections import defaultdict
from dataclasses import astuple, dataclass, field

import jax
import pytest

_BACKEND = "/jax/core/compile/backend_compile_duration"
_COMPILATION = (_BACKEND, "/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration")
_START = "start and collection"
_WORKER_OUTPUT = "meter"


@dataclass
class Cost:
    """CPU seconds (those of ended subprocesses too), programs compiled, seconds of XLA, of tracing and of lowering."""

    cpu: float = 0.0
    programs: int = 0
    xla: float = 0.0
    tracing: float = 0.0
    lowering: float = 0.0
    tests: int = 0

    def add(self, other, sign=1):
        """Add `sign` times the other, in place."""
        for name, value in other.__dict__.items():
            setattr(self, name, getattr(self, name) + sign * value)


@dataclass
class Meter:
    """The costs of one process, by file and by test."""

    total: Cost = field(default_factory=Cost)
    files: dict = field(default_factory=lambda: defaultdict(Cost))
    tests: dict = field(default_factory=dict)

    def listen(self, event, seconds, **_):
        """Count one event of JAX."""
        if event == _BACKEND:
            self.total.programs += 1
        if event in _COMPILATION:
            part = ("xla", "tracing", "lowering")[_COMPILATION.index(event)]
            setattr(self.total, part, getattr(self.total, part) + seconds)

    def now(self):
        """The costs since the process began."""
        return Cost(sum(os.times()[:4]), *astuple(self.total)[1:])

    def charge(self, file, test, since):
        """Book what was spent since then on a test of a file."""
        spent = self.now()
        spent.add(since, -1)
        spent.tests = int(test is not None)
        self.files[file].add(spent)
        if test is not None:
            self.tests[test] = (spent.cpu, spent.programs)

    def merge(self, files, tests):
        """Add what a worker sent."""
        for file, values in files.items():
            self.files[file].add(Cost(*values))
        self.tests.update(tests)


class Plugin:
    """Measures in the process that runs tests, and reports in the one that was started."""

    def __init__(self, config):
        self.config, self.meter = config, Meter()
        jax.monitoring.register_event_duration_secs_listener(self.meter.listen)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session):
        if hasattr(session.config, "workerinput") or not session.config.getoption("numprocesses", None):
            self.meter.charge(_START, None, Cost())
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item, nextitem):
        before = self.meter.now()
        try:
            return (yield)
        finally:
            self.meter.charge(item.nodeid.split("::")[0], item.nodeid, before)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node, error):
        sent = getattr(node, "workeroutput", {}).get(_WORKER_OUTPUT)
        if sent:
            self.meter.merge(*sent)

    def pytest_sessionfinish(self, session):
        meter, budget = self.meter, session.config.getoption("max_programs")
        if hasattr(session.config, "workerinput"):
            sent = {file: astuple(cost) for file, cost in meter.files.items()}
            session.config.workeroutput[_WORKER_OUTPUT] = (sent, meter.tests)
        elif budget is not None and self._programs() > budget:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _programs(self):
        return sum(cost.programs for cost in self.meter.files.values())

    def pytest_terminal_summary(self, terminalreporter):
        budget, files = self.config.getoption("max_programs"), self.meter.files
        if self.config.getoption("meter"):
            terminalreporter.section("cost by file: CPU s, programs, s of XLA, of tracing, of lowering, tests")
            whole = Cost()
            for cost in files.values():
                whole.add(cost)
            rows = sorted(files.items(), key=lambda row: -row[1].cpu)
            for name, c in [*rows, ("all", whole)]:
                times = f"{c.cpu:8.1f} {c.programs:6d} {c.xla:8.1f} {c.tracing:8.1f} {c.lowering:8.1f}"
                terminalreporter.write_line(f"{times} {c.tests:5d}  {name}")
            terminalreporter.section("the most expensive tests: CPU s, programs")
            for name, (seconds, programs) in sorted(self.meter.tests.items(), key=lambda t: t[1], reverse=True)[:40]:
                terminalreporter.write_line(f"{seconds:8.1f} {programs:6d}  {name}")
        if budget is not None:
            found = self._programs()
            verdict = "within" if found <= budget else "OVER"
            terminalreporter.write_line(f"compiled programs: {found}, {verdict} the budget of {budget}")
            if found > budget:
                terminalreporter.write_line("CONTRIBUTING.md says what a test may cost; --meter shows what costs it.")


def pytest_addoption(parser):
    """The two options."""
    group = parser.getgroup("meter")
    group.addoption("--meter", action="store_true", help="show what the tests cost, by file")
    group.addoption("--max-programs", type=int, default=None, metavar="N", help="fail if more programs are compiled")


def pytest_configure(config):
    """Measure in every process."""
    config.pluginmanager.register(Plugin(config), "sdelens-meter")
