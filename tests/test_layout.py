"""The packages: what each may import, beyond what import-linter's contracts say."""

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
