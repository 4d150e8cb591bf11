"""What browsers and screen readers need of a page. The build asks it of every page, and tests of those we write."""

from html.parser import HTMLParser

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
CONTROLS = {"input", "select", "textarea"}
HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
REFERENCES = ("for", "aria-controls", "aria-labelledby", "aria-describedby")


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str]]] = []
        self.ids: list[str] = []
        self.referred: list[tuple[str, str]] = []
        self.labelled: set[str] = set()
        self.controls: list[dict[str, str]] = []
        self.headings: list[int] = []
        self.findings: list[str] = []
        self.title = ""
        self.named: list[tuple[str, str]] = []  # buttons and links, with what they say

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if len(given) < len(attrs):
            self.findings.append(f"<{tag}> has an attribute twice: {[name for name, _ in attrs]}")
        if "id" in given:
            self.ids.append(given["id"])
        for name in REFERENCES:
            self.referred += [(f"{tag} {name}", target) for target in given.get(name, "").split()]
        if tag in CONTROLS and given.get("type") != "hidden":
            within = any(parent == "label" for parent, _ in self.open)
            self.controls.append(given | ({"aria-label": "its label"} if within else {}))
        if tag == "label" and "for" in given:
            self.labelled.add(given["for"])
        if tag in HEADINGS:
            self.headings.append(int(tag[1]))
        self._check(tag, given)
        if tag in ("button", "a"):
            self.named.append((tag, given.get("aria-label", "") + given.get("title", "") + given.get("name", "")))
        if tag in ("img", "svg") and self.named and any(parent in ("button", "a") for parent, _ in self.open):
            self._say(given.get("alt", "") + given.get("aria-label", ""))
        if tag not in VOID:
            self.open.append((tag, given))

    def _check(self, tag: str, given: dict[str, str]) -> None:
        if tag == "html" and not given.get("lang"):
            self.findings.append("<html> has no lang")
        if tag == "img" and "alt" not in given:
            self.findings.append(f"an image has no alt: {given.get('src', '')[:60]}")
        if tag == "th" and given.get("scope", "col") not in ("row", "col", "rowgroup", "colgroup"):
            self.findings.append(f"a heading of a table has the scope {given['scope']!r}")
        if given.get("tabindex", "0") not in ("0", "-1"):
            self.findings.append(f"<{tag}> has tabindex={given['tabindex']!r}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open[-1][0] != tag:
            inner = self.open[-1][0] if self.open else "nothing"
            self.findings.append(f"</{tag}> closes <{inner}>, line {self.getpos()[0]}")
            while self.open and any(name == tag for name, _ in self.open) and self.open[-1][0] != tag:
                self.open.pop()
        if self.open and self.open[-1][0] == tag:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1][0] == "title" and not any(name == "svg" for name, _ in self.open):
            self.title += data
        if any(name in ("button", "a") for name, _ in self.open):
            self._say(data)

    def _say(self, text: str) -> None:
        self.named[-1] = (self.named[-1][0], self.named[-1][1] + text.strip())


def findings(html: str) -> list[str]:
    """What is wrong with a page: nesting, ids, references, names of controls, alternative texts, order of headings."""
    page = _Reader()
    page.feed(html)
    page.close()
    found = [*page.findings, *(f"<{tag}> is not closed" for tag, _ in page.open)]
    found += [f"the id {name!r} occurs twice" for name in sorted({i for i in page.ids if page.ids.count(i) > 1})]
    found += [
        f"{what} refers to {target!r}, which is no id" for what, target in page.referred if target not in page.ids
    ]
    for control in page.controls:
        if not ({"aria-label", "aria-labelledby", "title"} & control.keys() or control.get("id") in page.labelled):
            found.append(f"a control has no label: {control}")
    found += [f"a <{tag}> says nothing" for tag, said in page.named if not said]
    if page.headings[:1] != [1] or page.headings.count(1) > 1:
        found.append(f"headings begin with {page.headings[:3]}, with {page.headings.count(1)} of level 1")
    steps = zip(page.headings, page.headings[1:], strict=False)
    found += [f"a heading of level {below} follows one of level {above}" for above, below in steps if below > above + 1]
    if not page.title.strip():
        found.append("the page has no title")
    return found
