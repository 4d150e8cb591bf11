"""The Python code of README and of the documentation's pages runs as it stands, each block for itself, with few paths.

Blocks are collected by Sybil, so that a failure names page and line.
"""

import functools
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.integration.pytest import SybilItem
from sybil.parsers.markdown import CodeBlockParser

ROOT = Path(__file__).parents[1]
PATHS = 64
"""Most paths that a block runs: what it shows is how the library is used, not its numbers."""
EXPENSIVE = {"figures.md", "matrix-sign.md", "noise.md", "queries.md", "recording.md", "theory.md", "tour.md"}
"""Pages whose blocks compile many programs, which the tests of their subjects cover."""


class _OwnNamespace(CodeBlockParser):
    """Blocks of Python that each begin with nothing imported, as a reader who copies one does."""

    language = "python"

    def evaluate(self, example):
        if "import torch" in example.parsed:
            pytest.importorskip("torch")
        example.namespace.clear()
        PythonEvaluator()(example)


@pytest.fixture
def small_page(tmp_path, monkeypatch):
    """An empty folder, and runs of few paths."""
    from sdelens.run import api
    from tests.checks import declarations_restored  # imported late: the plugin is loaded before JAX is set up

    whole = api.Options

    @functools.wraps(whole)
    def cut(*, paths, **options):
        return whole(paths=min(paths, PATHS), **options)

    monkeypatch.setattr(api, "Options", cut)
    monkeypatch.chdir(tmp_path)
    with declarations_restored():
        yield


pytest_collect_file = Sybil(
    parsers=[_OwnNamespace()], path=str(ROOT), patterns=["README.md", "docs/*.md"], fixtures=["small_page"]
).pytest()


def pytest_collection_modifyitems(items):
    """Run the blocks of the expensive pages with the slow tests."""
    for item in items:
        if isinstance(item, SybilItem) and item.path.name in EXPENSIVE:
            item.add_marker(pytest.mark.slow)
