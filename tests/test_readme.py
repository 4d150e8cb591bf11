"""The code of the README and of the documentation runs as it stands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = {
    f"{page.name} {i}": code
    for page in PAGES
    for i, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S))
}


@pytest.mark.parametrize("code", BLOCKS.values(), ids=BLOCKS.keys())
def test_block_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "import torch" in code:
        pytest.importorskip("torch")
    exec(compile(code, "page", "exec"), {})


def test_every_page_that_should_has_code():
    pages = {name.split()[0] for name in BLOCKS}
    assert pages >= {"README.md", "long-runs.md", "method.md", "weak-order.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_within_the_project_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert "://" in link or (page.parent / link).exists(), link
