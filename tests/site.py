"""Modules of the documentation's build, which lie beside its pages."""

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def site_module(name):
    """The module `docs/site/NAME.py`."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "site" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
