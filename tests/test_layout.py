"""The packages: what each may import, beyond what import-linter's contracts say."""

import ast
import importlib.util
from pathlib import Path

import grimp
import pytest

import sdelens

ROOT = Path(sdelens.__file__).parent


@pytest.fixture(scope="module")
def imports():
    """Pairs of modules, imports for type checking included: who imports, what is imported."""
    graph = grimp.build_graph("sdelens", cache_dir=None)
    return [(a, b) for b in graph.modules for a in graph.find_modules_that_directly_import(b)]


def test_no_package_imports_a_private_module_of_another(imports):
    def package(module):
        return module.split(".")[1:2]

    private = [(a, b) for a, b in imports if any(part.startswith("_") for part in b.split(".")[2:])]
    assert len(private) > 100  # the graph is whole
    assert [(a, b) for a, b in private if package(a) != package(b)] == []


def test_nothing_lies_at_the_top_but_the_packages_and_the_front_door():
    files = {path.name for path in ROOT.iterdir() if path.is_file()}
    assert files == {"__init__.py", "__init__.pyi", "__main__.py", "py.typed"}


@pytest.mark.parametrize("folder", ["benchmarks", "examples", "docs"])
def test_what_other_folders_import_is_there(folder):
    """No other test runs all of the benchmarks, whose contenders are optional packages."""
    files = sorted((ROOT.parents[1] / folder).rglob("*.py"))
    assert files
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sdelens":
                module = importlib.import_module(node.module)
                for alias in node.names:
                    found = hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}")
                    assert found, f"{path.name}:{node.lineno}: {node.module} has no {alias.name}"
