"""The documentation knows every public name, page and figure. What the site's own build checks is not repeated here."""

import re

import pytest

from sdelens import explorer
from tests.site import DOCS, site_module

PAGES = [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]
OF_THE_SITE = {"README.md", "index.md", "architecture.md", "changelog.md"}


def test_every_public_name_is_documented():
    pytest.importorskip("torch")
    assert site_module("public_names").undocumented() == []


def test_the_explorer_is_a_valid_page():
    assert site_module("html_rules").findings(explorer.page()) == []


PAGE = '<html lang="en"><title>t</title><h1>A page</h1>{}</html>'


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("<p>", "</html> closes <p>"),
        ('<p id="a"></p><p id="a"></p>', "the id 'a' occurs twice"),
        ('<label for="a">x</label>', "label for refers to 'a'"),
        ('<input id="a">', "a control has no label"),
        ('<img src="a.png">', "an image has no alt: a.png"),
        ("<button></button>", "a <button> says nothing"),
        ("<h3>x</h3>", "a heading of level 3 follows one of level 1"),
        ('<p tabindex="">x</p>', "<p> has tabindex=''"),
    ],
)
def test_an_invalid_page_is_found(body, said):
    assert [found for found in site_module("html_rules").findings(PAGE.format(body)) if said in found]


def test_a_valid_page_has_no_findings():
    body = '<label>x<input></label><a href="b.html"><img alt="a figure" src="a.png"></a><h2 id="a">x</h2><br>'
    assert site_module("html_rules").findings(PAGE.format(body)) == []


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
