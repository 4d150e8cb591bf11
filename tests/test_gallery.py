"""Every picture of the documentation is the one that the command on its page makes, and says so."""

import importlib.util
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from sdelens.results.end_labels import legible
from sdelens.results.plotting import look_of

DOCS = Path(__file__).parents[1] / "docs"
_SPEC = importlib.util.spec_from_file_location("pictures", DOCS / "site" / "pictures.py")
pictures = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(pictures)
ENTRIES = pictures.entries((DOCS / "gallery.md").read_text(encoding="utf-8"))
OTHERS = {"explorer.png", "speed.png", "speed-scaling.png", "speed-gpu.png"}
"""A picture of the page in a browser, and measurements of speed, whose numbers another run does not repeat."""
SMALL = {
    "make demo": "--small",
    "python examples/paper_figures.py": "--paths 64",
    "python examples/batch_size.py --ratios 4": "--steps 64 --paths 64",
    "python examples/noise_scale.py": "--paths 8",
    "python examples/distributed.py": "--paths 8",
    "python examples/sweep.py": "--share 16",
}
"""What makes a command fast, added at its end."""
_PAGE = np.array([0x1E, 0x20, 0x29]) / 255
"""The background of a dark page."""
_HUE_ROTATED = np.array([[-0.574, 1.430, 0.144], [0.426, 0.430, 0.144], [0.426, 1.430, -0.856]])
"""``hue-rotate(180deg)`` of CSS (Filter Effects, level 1)."""


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_a_picture_says_the_command_of_its_page(entry):
    assert pictures.stamp_of(DOCS / entry.name)["Source"] == entry.command


def test_all_pictures_have_a_command_but_those_of_a_browser_and_of_a_measurement():
    assert {path.name for path in DOCS.iterdir() if path.suffix in (".png", ".gif")} == OTHERS | {
        entry.name for entry in ENTRIES
    }


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_numbers_of_an_alternative_text_stand_in_the_picture(page):
    named = {entry.name for entry in ENTRIES if not entry.name.endswith(".gif")}
    for alt, name in re.findall(r"!\[([^]]*)\]\(([\w-]+\.png)\)", page.read_text(encoding="utf-8")):
        said = set(_numbers(pictures.stamp_of(DOCS / name)["Description"])) if name in named else set()
        assert name not in named or set(_numbers(alt)) <= said, name


def test_pictures_are_light():
    sizes = {path.name: path.stat().st_size for path in DOCS.iterdir() if path.suffix in (".png", ".gif")}
    assert sum(sizes.values()) < 2_000_000, sizes


@pytest.mark.parametrize("kind", ["optimizer", "sde", "malladi2022", "full-noise", "empirical", "prediction", "logged"])
def test_lines_can_be_seen_on_a_dark_page(kind):
    style = (DOCS / "site" / "style.css").read_text(encoding="utf-8")
    assert "filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen;" in style
    colour = np.array(to_rgb(look_of({kind: kind})[kind]["color"]))
    turned = np.clip(_HUE_ROTATED @ (1 - colour), 0, 1)
    shown = 1 - (1 - turned) * (1 - _PAGE)
    assert (_luminance(shown) + 0.05) / (_luminance(_PAGE) + 0.05) > 3  # WCAG 2.2, 1.4.11: graphical objects


@pytest.mark.parametrize("colour", ["#000000", "#E69F00", "#56B4E9", "0.6", "#0072B2"])
def test_names_at_the_ends_of_lines_can_be_read(colour):
    shade = np.array(to_rgb(legible(colour)))
    own = np.array(to_rgb(colour))
    assert 1.05 / (_luminance(shade) + 0.05) >= 4.49  # WCAG 2.2, 1.4.3; to_hex rounds
    assert np.allclose(shade * own.max(), own * shade.max(), atol=0.01)  # the same hue
    assert colour != "#0072B2" or legible(colour) == "#0072b2"  # dark enough as it is


def test_lines_have_their_labels_at_their_ends():
    import matplotlib.pyplot as plt

    import sdelens as sl

    with sl.style():
        _, axes = plt.subplots()
        with pytest.raises(ValueError, match="no line of them has a label"):
            sl.label_lines(axes)
        for label, height in {"first": 1.0, "second": 1.01, "_hidden": 2.0}.items():
            axes.plot([0, 1, 2], [0, 1, height], label=label)
        sl.label_lines(axes)
        labels = [text for text in axes.texts if text.get_text()]
    assert [text.get_text().strip() for text in labels] == ["first", "second"]
    assert labels[1].xyann[1] - labels[0].xyann[1] > 0.02  # apart, though the ends are 0.005 of the height apart


def test_a_picture_is_written_with_its_command_and_its_texts(tmp_path, monkeypatch):
    import sdelens as sl

    monkeypatch.setattr(pictures, "DOCS", tmp_path)
    found = sl.advise((1200, 800, 1900), batch_size=256)
    found.plot(tmp_path / "one.png")
    pictures.write(pictures.Entry("both.png", "", "a command", ["one.png", "one.png"]), tmp_path)
    stamp = pictures.stamp_of(tmp_path / "both.png")
    assert stamp["Source"] == "a command"
    assert stamp["Title"] == pictures.stamp_of(tmp_path / "one.png")["Title"] == found.recommendation
    assert "optimizer steps / fewest steps" in stamp["Description"].splitlines()
    assert Image.open(tmp_path / "both.png").width == 2 * Image.open(tmp_path / "one.png").width + 40
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("white", "black")]
    frames[0].save(tmp_path / "one.gif", save_all=True, append_images=frames[1:])
    pictures.write(pictures.Entry("film.gif", "", "sdelens reproduce x", ["one.gif"]), tmp_path)
    assert pictures.stamp_of(tmp_path / "film.gif")["Source"] == "sdelens reproduce x"
    assert Image.open(tmp_path / "film.gif").n_frames == 2


def test_the_page_is_read_as_it_is_written():
    page = "![A](a.png)\n\n![B](b.png)\n\n```sh\nrun \\\n    --x    # a.png, out/l.png + out/r.png\n```\n"
    first, second = pictures.entries(page)
    assert first == ("a.png", "A", "run --x", ["a.png"])
    assert second == ("b.png", "B", "run --x", ["out/l.png", "out/r.png"])
    assert pictures.entries("![A](a.png)\n\n```sh\nrun    # opens it in the browser\n```\n") == []


@pytest.mark.study
@pytest.mark.parametrize("command", dict.fromkeys(entry.command for entry in ENTRIES))
def test_the_command_makes_this_kind_of_picture(command, tmp_path):
    """At small size: the same texts, except for their numbers."""
    run = [*pictures.arguments(command), *SMALL.get(command, "").split()]
    subprocess.run(run, cwd=tmp_path, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    for entry in (entry for entry in ENTRIES if entry.command == command):
        assert all((tmp_path / file).stat().st_size for file in entry.files)
        if not entry.name.endswith(".gif"):
            made = {text for file in entry.files for text in _kinds(pictures.stamp_of(tmp_path / file)["Description"])}
            assert made == _kinds(pictures.stamp_of(DOCS / entry.name)["Description"])


def _numbers(text: str) -> list[str]:
    """The numbers of a text, without exponents and indices of symbols."""
    return re.findall(r"(?<![\w.^{-])\d+(?:\.\d+)?(?![\w}])", text)


def _kinds(texts: str) -> set[str]:
    """Lines with ``#`` for their numbers; an unresolved number has "<" before it, and some lines are only a number.

    With few paths, several points of a sweep cannot be told from the best one: what is said of them is left out.
    """
    texts = re.sub(r"; \d+ others? cannot be told from it|; dashed: not distinguishable from it", "", texts)
    return {re.sub(r"[<−-]?\s*\d[\d.,]*(e[−+-]?\d+)?", " #", line).strip() for line in texts.splitlines()}


def _luminance(colour):
    """Relative luminance of a colour of sRGB."""
    colour = np.asarray(colour, float)
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
