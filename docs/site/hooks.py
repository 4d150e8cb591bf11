"""What the site does beyond plain mkdocs: tutorials become executed pages, links fit both homes, nothing is fetched.

A tutorial is a script of `examples/tutorials/` in jupytext's percent format. It is executed as a notebook, any error of
which fails the build, and becomes a page with its outputs; the notebook itself lies beside the page. What was executed
is kept in `build/tutorials`, by the hash of the script and of the library's sources. The explorer is
`explorer/index.html`.
"""

import base64
import hashlib
import io
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import html_rules
import jupytext
import latex2mathml.converter
import nbformat
import public_names
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbclient import NotebookClient
from PIL import Image

from sdelens import explorer

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "examples" / "tutorials"
KEPT = ROOT / "build" / "tutorials"
KERNEL = ["--InlineBackend.figure_formats={'retina'}", "--log-level=ERROR"]

# Links as a code host needs them, and where the site has the same.
ELSEWHERE = [
    (r"\]\((?:\.\./)?examples/tutorials/(\w+)\.py\)", r"](tutorials/\1.md)"),
    (r"\]\(\.\./src/sdelens/explorer/assets/page\.html\)", "](explorer/index.html)"),
    (r"\]\(\.\./README\.md\)", "](index.md)"),
    (r"\]\((?:\.\./)?CONTRIBUTING\.md\)", "](architecture.md)"),
    (r"\]\((?:\.\./)?CHANGELOG\.md\)", "](changelog.md)"),
]
_WIDE = 1.7
"""Width over height from which on a figure may be as wide as the text."""
EQUATION = re.compile(r"^\$\$\n(.*?)\n\$\$$", re.M | re.S)
FETCHED = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>", re.I)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Refuse undocumented names; execute the tutorials and add their pages, figures and notebooks."""
    lacking = public_names.undocumented()
    if lacking:
        raise PluginError("Undocumented: " + "; ".join(lacking))
    files.append(File.generated(config, "explorer/index.html", content=explorer.page()))
    library = hashlib.sha256()
    for source in sorted((ROOT / "src").rglob("*.py")):
        library.update(source.read_bytes())
    scripts = sorted(SCRIPTS.glob("*.py"))
    keys = [hashlib.sha256(script.read_bytes() + library.digest()).hexdigest()[:16] for script in scripts]
    kept = [KEPT / f"{script.stem}-{key}.ipynb" for script, key in zip(scripts, keys, strict=True)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each has a process of its own, which rarely fills all cores
        notebooks = list(pool.map(executed, scripts, kept))
    for script, notebook in zip(scripts, notebooks, strict=True):
        body, figures = page_of(notebook, script.stem)
        parts: dict[str, str | bytes] = {f"{script.stem}.md": body, f"{script.stem}.ipynb": nbformat.writes(notebook)}
        for name, content in (parts | figures).items():
            files.append(File.generated(config, f"tutorials/{name}", content=content))
    return files


def executed(script: Path, kept: Path) -> nbformat.NotebookNode:
    """The script as a notebook with its outputs, executed unless it was before."""
    if kept.exists():
        return nbformat.read(kept, as_version=4)
    notebook = jupytext.read(script)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    work = KEPT / "work" / script.stem
    work.mkdir(parents=True, exist_ok=True)
    try:
        NotebookClient(
            notebook,
            timeout=900,
            coalesce_streams=True,
            resources={"metadata": {"path": str(work)}},
            extra_arguments=KERNEL,
        ).execute()
    except Exception as error:
        raise PluginError(f"examples/tutorials/{script.name} failed: {error}") from error
    for cell in notebook.cells:  # warnings of other packages, which name paths of this machine
        cell["outputs"] = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
    for old in KEPT.glob(f"{script.stem}-*.ipynb"):
        old.unlink()
    nbformat.write(notebook, kept)
    return notebook


def page_of(notebook: nbformat.NotebookNode, name: str) -> tuple[str, dict[str, bytes]]:
    """The page's Markdown and its figures, whose text is the ``alt`` of their cell."""
    blocks: list[str] = []
    figures: dict[str, bytes] = {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            blocks.append(cell.source)
            continue
        blocks.append(f"```python\n{cell.source}\n```")
        alt, before = cell.metadata.get("alt"), len(figures)
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                figure = f"{name}-{len(figures) + 1}.png"
                figures[figure] = base64.b64decode(data["image/png"])
                blocks.append(f"![{alt}]({figure})")
            elif "text/html" in data:
                blocks.append(_shown(data["text/html"]))
            else:
                text = (output.get("text") or data.get("text/plain", "")).strip()
                prose = "" if "  " in text else " .prose"  # columns keep their places, sentences are wrapped
                blocks.append(f"``` {{ .text .output{prose} }}\n{text}\n```")
        if (alt is None) != (len(figures) == before):
            raise PluginError(f'{name}: a figure and its cell\'s alt="..." go together, in the cell:\n{cell.source}')
    note = f"[This page as a notebook]({name}.ipynb), made by executing `examples/tutorials/{name}.py`."
    head, _, rest = blocks[0].partition("\n")
    return "\n\n".join([head, note, rest, *blocks[1:]]) + "\n", figures


def _shown(html: str) -> str:
    """What a notebook shows of an object, in the site's own style, as one block of Markdown: its tables and sentences.

    Its figure is left out: a page has the figures of its cells, with their texts.
    """
    html = re.sub(r"<style.*?</style>|<img[^>]*>", "", html, flags=re.S)
    html = re.sub(r"<(table|tr) [^>]*>", r"<\1>", html)
    columns = re.compile(r"<thead>.*?</thead>", re.S)
    html = columns.sub(lambda head: head.group().replace("<th>", '<th scope="col">'), html)
    html = re.sub(r"<th[^>]*></th>", "<td></td>", html).replace("<th>", '<th scope="row">')
    html = re.sub(r"(?<=<th scope=\"col\">)[^<]*", lambda name: re.sub(r"(?<=[_/])", "<wbr>", name.group()), html)
    return f'<div class="output">{"".join(line.strip() for line in html.splitlines())}</div>'


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that suit a code host into the site's, and displayed LaTeX into MathML, which browsers draw."""
    for pattern, target in ELSEWHERE:
        markdown = re.sub(pattern, target, markdown)
    return EQUATION.sub(lambda found: f'<div class="equation">{_mathml(found.group(1))}</div>', markdown)


def _mathml(latex: str) -> str:
    latex = " ".join(latex.split()).replace("{aligned}", "{align*}")  # the converter knows only the latter
    made = latex2mathml.converter.convert(latex, display="block")
    # It writes the upright letters of \mathrm as character references, which alone are drawn in italics.
    made = re.sub(r"<mi>(&#x000[4-7][0-9A-F];)</mi>", r'<mi mathvariant="normal">\1</mi>', made)
    # Names such as E and Cov come as operators with wide spaces: a thin space suffices, and none before a bracket.
    made = re.sub(r"<mo>([A-Za-z]+)</mo>(?=<mo[^>]*>(?:&#x00028;|\[))", r'<mo lspace="0.17em" rspace="0">\1</mo>', made)
    return re.sub(r"<mo>([A-Za-z]+)</mo>", r'<mo lspace="0.17em" rspace="0.17em">\1</mo>', made)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make figures links to themselves, so that a tap enlarges them; keep the parts of a number in tables together."""
    html = html.replace("<th></th>", "<td></td>")
    html = re.sub(r"(?<=<td>)[^<]*", lambda cell: _together(cell.group()), html)
    return re.sub(r"(<a [^>]*>)?<img [^>]*src=\"([^\"]+\.png)\"[^>]*>", lambda found: _linked(found, page, files), html)


def _together(cell: str) -> str:
    """Text of a cell in which no line ends before a unit, around ± and before –, after "<" and within 1e-05."""
    cell = re.sub(r"(?<=\d) (?=[%±–])|(?<=%) (?=–)|(?<=±) |(?<=&lt;) (?=\d)", "\u00a0", cell)
    return re.sub(r"[\d.]+e-\d+", r'<span class="number">\g<0></span>', cell)


def _linked(image: re.Match[str], page: Page, files: Files) -> str:
    """An image as a link to its file, unless it is a link already; a wide one, whose letters would be small, marked."""
    file = files.get_file_from_path((PurePosixPath(page.file.src_uri).parent / image.group(2)).as_posix())
    width, height = Image.open(io.BytesIO(file.content_bytes)).size if file else (1, 1)
    shown = image.group().replace("<img ", '<img class="wide" ', 1) if width > _WIDE * height else image.group()
    return shown if image.group(1) else f'<a href="{image.group(2)}">{shown}</a>'


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Refuse pages that would load anything from another host; add what the theme lacks for valid, readable HTML."""
    output = output.replace(' tabindex=""', "").replace('role="dialog">', 'role="dialog" aria-label="Search">')
    output = output.replace('type="checkbox" id="__toc">', 'type="checkbox" id="__toc" aria-label="Contents">')
    wrong = html_rules.findings(output)
    if wrong:
        raise PluginError(f"{page.file.src_uri}: {'; '.join(wrong)}")
    fetched = FETCHED.search(output)
    if fetched and 'rel="canonical"' not in fetched.group():
        raise PluginError(f"{page.file.src_uri} loads something from another host: {fetched.group()}")
    return output
