"""The documentation knows every public name, page and figure. What the site's own build checks is not repeated here."""

import importlib.util
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]
OF_THE_SITE = {"README.md", "index.md", "architecture.md", "changelog.md"}


def test_every_public_name_is_documented():
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("public_names", DOCS / "site" / "public_names.py")
    public_names = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(public_names)
    assert public_names.undocumented() == []


def test_a_code_host_lists_every_page():
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    assert [
        page.name for page in DOCS.glob("*.md") if page.name not in OF_THE_SITE and f"({page.name})" not in index
    ] == []


def test_the_gallery_has_every_figure():
    gallery = (DOCS / "gallery.md").read_text(encoding="utf-8")
    assert [figure.name for figure in DOCS.glob("*.png") if f"({figure.name})" not in gallery] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_within_the_project_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert "://" in link or (page.parent / link).exists(), link


def test_pages_that_teach_have_code_that_is_executed():
    pages = [DOCS.parent / "README.md", *(DOCS / name for name in ("long-runs.md", "method.md", "weak-order.md"))]
    assert [page.name for page in pages if "```python" not in page.read_text("utf-8")] == []
