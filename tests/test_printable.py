"""How results look: text within the terminal, HTML with a figure, LaTeX, styles, and axes of one's own."""

import base64
import io
import re
import zlib

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from scipy.stats import norm

import sdelens as sl
from sdelens.core import limits, numerals
from sdelens.core.text import text_table, wrapped
from sdelens.results import latex
from sdelens.results.printable import Printable, Remarks, Table
from tests.checks import assert_fits
from tests.ensembles import of_seed


@pytest.fixture(scope="module")
def result():
    return of_seed(0)


# Text


def test_a_table_that_fits_stays_as_it_is():
    lines = text_table(["a", "value"], [["x", "1"], ["long name", "2"]], 80)
    assert lines == ["a          value", "---------  -----", "x              1", "long name      2"]


@pytest.mark.parametrize("width", [40, 60, 80])
@pytest.mark.parametrize("keys", [1, 2])
def test_a_wide_table_is_continued_below_with_its_keys(width, keys):
    head = ["key", "other", *(f"heading of column {i}" for i in range(8))]
    rows = [[f"row {j}", f"o{j}", *(f"{i}.{j}00 ± 0.1" for i in range(8))] for j in range(3)]
    lines = text_table(head, rows, width, keys)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for row in rows:
        assert all(cell in text for cell in row)
    parts = text.split("\n\n")
    assert len(parts) > 1
    assert all("row 2" in part and (keys == 1 or "o2" in part) for part in parts)


def test_sentences_in_cells_are_wrapped_and_numbers_are_not():
    sentence = "the loss was not finite from the twelfth step on in two of three runs"
    lines = text_table(["rule", "limits", "reason"], [["sqrt", "0.36 % – 1.2 %", sentence]], 60)
    assert max(map(len, lines)) <= 60
    assert "0.36 % – 1.2 %" in "\n".join(lines)
    words = [line[len("sqrt  0.36 % – 1.2 %") :].strip() for line in lines[2:]]
    assert " ".join(words) == sentence


def test_sentences_are_wrapped_at_the_terminals_width(monkeypatch):
    text = "one two three " * 20
    for width in (50, 90):
        monkeypatch.setenv("COLUMNS", str(width))
        lines = wrapped(text, first="- ", rest="  ")
        assert width - 8 < max(map(len, lines)) <= width
        assert " ".join(line.strip("- ") for line in lines) == text.strip()
    assert wrapped("first\n  --second", 50) == ["first", "  --second"]


class Shown(Printable):
    """An object with every kind of part."""

    def _parts(self):
        return ["A title", Table(["a", "b"], [["<x>", "1e-3"]], "A caption"), "Said & done.", Remarks(["one"], "Also:")]


def test_all_parts_are_in_text_and_html():
    assert str(Shown()).splitlines() == [
        *(
            "A title",
            "",
            "A caption",
            "",
            "a       b",
            "---  ----",
            "<x>  1e-3",
            "",
            "Said & done.",
            "",
            "Also:",
            "- one",
        ),
    ]
    assert repr(Shown()) == str(Shown())
    page = Shown()._repr_html_()
    for part in (
        'class="title">A title<',
        "<td>&lt;x&gt;</td>",
        "<caption>A caption",
        "Said &amp; done.",
        "<li>one</li>",
    ):
        assert part in page
    assert "<img" not in page


def test_what_belongs_together_stays_on_a_line():
    text = "the limits are 0.1 – 0.2 at d = 5 with 1 − β < 0.4 % in all"
    for width in range(20, 60):
        lines = wrapped(text, width)
        assert max(map(len, lines)) <= width
        assert " ".join(lines) == text
        for whole in ("0.1 – 0.2", "d = 5", "1 − β < 0.4 %"):
            assert any(whole in line for line in lines)
    assert max(map(len, wrapped("a = b = c = d = e = f = g = h", 12))) <= 12  # where it does not fit, it is broken


def test_numbers_are_written_in_one_way():
    written = [numerals.number(v) for v in (1234.5, -0.01234, 1.234e-5, 123456.0, np.nan, -np.inf)]
    assert written == ["1230", "−0.0123", "1.23e-05", "1.23e+05", "-", "−∞"]
    assert [numerals.percent(v) for v in (0.00412, 1.0, 12.34, np.nan)] == ["0.41 %", "100 %", "1200 %", "-"]
    assert [numerals.percent(v, plus=True) for v in (0.004, -0.004)] == ["+0.4 %", "−0.4 %"]
    assert (numerals.signed(0.5), numerals.fixed(-0.126, 2)) == ("+0.5", "−0.13")
    assert numerals.resolved(0.0, 0.011, 0.012) == numerals.resolved(0.011, 0.011, 0.012) == "< 1.2 %"
    assert numerals.resolved(0.0, 0.011, 0.034) == "< 3.4 %"
    assert numerals.resolved(0.02, 0.011, np.nan) == "2 %"
    assert numerals.resolved(0.0, 0.0, 0.0) == "0 %"  # the same random numbers and model: no error at all
    assert numerals.with_limits(0.5, 0.25, 0.75) == "0.5 (0.25 – 0.75)"
    assert numerals.with_limits(np.nan, 0.25, np.nan) == "-"
    assert numerals.resolved(0.0, 0.011, np.nan) == "-"  # no limit, so nothing is known


def test_limits_have_the_digits_that_tell_them_apart():
    between, percent = numerals.between, numerals.percent
    assert between(0.1, 0.2) == "0.1 – 0.2"
    assert between(0.4151, 0.4249, percent) == "41.5 % – 42.5 %"  # both are 42 %
    assert between(0.42001, 0.4229, percent) == "42.0 % – 42.3 %"
    assert between(0.41998, 0.42001, percent) == "41.998 % – 42.001 %"
    assert between(0.41999999, 0.42000001, percent) == "42 %"
    assert between(0.5, 0.5, percent) == "50 %"
    assert between(np.nan, np.nan) == "-"
    assert between(1.001, 1.002, "{:.2f}".format) == "1.00"  # its digits do not vary


def test_normal_points():
    assert limits.normal_point() == pytest.approx(norm.ppf(0.995))
    assert limits.normal_point(0.9) == pytest.approx(norm.ppf(0.95))


def test_a_result_is_printed_within_the_terminal(result):
    for shown in (result, result.pool(of_seed(1)), result.select(["sde"])):
        assert_fits(lambda shown=shown: str(shown))
        for label in shown.models:
            assert label in str(shown)
    assert "floor" in str(result)
    assert "floor" not in str(result.select(["sde"])).split("\n\n")[1]  # nothing to compare with: no such column


# HTML


def test_html_has_a_light_figure_that_dark_pages_can_show(result):
    page = result._repr_html_()
    assert len(page) < 80_000
    image = re.search(r'<img width="(\d+)" alt="([^"]+)" src="data:image/png;base64,([^"]+)"', page)
    assert image[2] == result.title()
    picture = Image.open(io.BytesIO(base64.b64decode(image[3]))).convert("RGB")
    assert picture.getpixel((1, 1)) == (255, 255, 255)
    assert picture.size[0] == 2 * int(image[1])
    style = re.search(r"<style>(.*?)</style>", page)[1]
    colours = re.findall(r"[{;][\w-]*color:([^;}]+)|background:([^;}]+)", style)
    assert {first or second for first, second in colours} <= {"currentColor", "#fff"}  # the text keeps the page's own


# LaTeX


def parsed(text):
    """Rows of cells of every tabular, after checking braces, mathematics, numbers of columns and ASCII."""
    assert text.isascii()
    found = []
    for columns, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}\n(.*?)\n\\end\{tabular\}", text, re.S):
        lines = body.split("\n")
        assert [lines[0], lines[2], lines[-1]] == [r"\toprule", r"\midrule", r"\bottomrule"]
        rows = [lines[1], *lines[3:-1]]
        assert all(row.endswith(r" \\") for row in rows)
        cells = [re.split(r"(?<!\\)&", row[:-3]) for row in rows]
        assert {len(row) for row in cells} == {len(columns)}
        for cell in (cell for row in cells for cell in row):
            bare = re.sub(r"\\[&%$#_{}]", "", cell)
            assert bare.count("$") % 2 == 0
            assert bare.count("{") == bare.count("}")
            outside = re.sub(r"\$[^$]*\$", "", bare)
            assert not re.search(r"[&%#_^~<>|]", outside.replace("~", ""))
        found.append([[cell.strip() for cell in row] for row in cells])
    assert text.count(r"\begin{") == text.count(r"\end{")
    return found


def test_the_table_of_a_result_in_latex(result):
    ((head, *rows),) = parsed(result.to_latex())
    assert head == ["model", "final loss", r"error (\%) [99 \%]", r"last third: shift (\%) [99 \%]", r"spread [99 \%]"]
    row, errors = rows[1], result.errors().loc["sde"]
    final = result.dataset.loss_mean.sel(model="sde").values[-1]
    value, sem = re.fullmatch(r"\$([\d.]+)\\pm([\d.]+)\$", row[1]).groups()
    assert float(value) == pytest.approx(final, abs=float(sem))
    value, low, high = map(float, re.fullmatch(r"\$(-?[\d.]+)\\;\[(-?[\d.]+),\\,(-?[\d.]+)\]\$", row[3]).groups())
    wanted = 100 * errors[["late_shift", "late_shift_lower", "late_shift_upper"]].to_numpy()
    np.testing.assert_allclose([value, low, high], wanted, atol=0.51)
    floating = result.rename({"sde": "50 % of_this & <that>"}).to_latex("A caption", "tab:one")
    assert floating.startswith("\\begin{table}\n\\centering\n\\caption{A caption}\\label{tab:one}\n\\begin{tabular}")
    assert r"50 \% of\_this \& $<$that$>$" in floating
    parsed(floating)
    with pytest.raises(ValueError, match="label: got 'tab:one' without a caption"):
        result.to_latex(label="tab:one")


def test_numbers_in_latex_have_the_digits_of_their_limits():
    assert latex.limited([1.8342, 1.2143, 2.4521]) == r"$1.8\;[1.2,\,2.5]$"
    assert latex.limited([0.83427, 0.81214, 0.85245]) == r"$0.834\;[0.812,\,0.852]$"
    assert latex.limited([-0.0004, -1.2, 1.3]) == r"$0.0\;[-1.2,\,1.3]$"
    assert latex.limited([0.0, 0.0, 3.0], 1.13) == "$<3.0$"
    assert latex.limited([0.0, np.nan, np.nan], 1.13) == "--"
    assert latex.limited([0.0, 0.0, 3.0]) == r"$0.0\;[0.0,\,3.0]$"
    assert latex.limited([2.0, np.nan, np.nan]) == "$2.0$"
    assert latex.limited([np.nan] * 3) == "--"
    assert latex.limited([3e-8, 2e-8, 4e-8]) == r"$3\times10^{-8}\;[2\times10^{-8},\,4\times10^{-8}]$"
    assert latex.uncertain(0.011579, 0.00031) == r"$0.0116\pm0.0003$"
    assert latex.uncertain(1.45e-8, 3e-10) == r"$(1.45\pm0.03)\times10^{-8}$"
    assert latex.uncertain(1.0, 0.0) == "$1$"


def test_text_in_latex_is_escaped():
    assert latex.escaped("η = 1e-03, 5 % ± 0.1 – −2 √δ ‖∇f‖² lr_max") == (
        r"$\eta$ = $1\times10^{-3}$, 5 \% $\pm$ 0.1 -- $-$2 $\surd$$\delta$ $\|$$\nabla$f$\|$$^{2}$ lr\_max"
    )
    assert latex.escaped(r"a\b~c^d{e}") == r"a\textbackslash{}b\textasciitilde{}c\textasciicircum{}d\{e\}"
    ((head, row),) = parsed(Shown().to_latex())
    assert (head, row) == (["a", "b"], ["$<$x$>$", r"$1\times10^{-3}$"])


# Figures


def test_a_paper_figure_has_a_columns_width_and_no_title(result, tmp_path):
    one, two = (result.plot(style="paper", columns=columns) for columns in (1, 2))
    assert (one.get_size_inches()[0], two.get_size_inches()[0]) == (3.25, 6.75)
    assert one.axes[0].get_title(loc="left") == ""
    assert one.axes[0].xaxis.label.get_size() == 8
    assert {label.get_size() for label in one.axes[0].get_yticklabels()} == {7}
    assert result.plot(style="paper", title="Mine").axes[0].get_title(loc="left") == "Mine"
    assert result.plot(title="").axes[0].get_title(loc="left") == ""
    wide = result.plot().axes[0].lines[0].get_linewidth()
    assert one.axes[0].lines[0].get_linewidth() < 0.7 * wide
    result.plot(tmp_path / "a.png", style="paper")
    assert Image.open(tmp_path / "a.png").size[0] == 975  # 300 dots per inch
    with sl.style("paper", width=5.5):
        assert result.plot().get_size_inches()[0] == 5.5
        assert result.plot(style="screen").get_size_inches()[0] == 5.6
        assert mpl.rcParams["pdf.fonttype"] == 42
    assert result.plot().get_size_inches()[0] == 5.6


@pytest.mark.parametrize("suffix", ["pdf", "ps", "eps"])
def test_fonts_are_embedded_as_truetype(result, tmp_path, suffix):
    """Type 42 is a TrueType font in PostScript, /FontFile2 one in PDF; matplotlib's default is Type 3."""
    result.plot(tmp_path / f"a.{suffix}", style="paper")
    data = (tmp_path / f"a.{suffix}").read_bytes()
    if suffix == "pdf":
        assert b"/Type3" not in data
        assert b"/FontFile2" in data
        width = float(re.search(rb"/MediaBox \[ 0 0 ([\d.]+)", data)[1])
        assert width == pytest.approx(3.25 * 72, abs=0.5)
        assert zlib.decompress(re.search(rb"/FlateDecode[^>]*>>\s*stream\r?\n(.*?)endstream", data, re.S)[1])
    else:
        assert b"/FontType 42" in data
        assert b"/FontType 3" not in data


def test_figures_are_drawn_into_given_axes(result):
    figure, axes = plt.subplots(1, 3)
    assert result.plot(ax=axes[0]) is figure
    assert len(axes[0].lines) == 2
    assert axes[0].get_xlabel()
    assert plt.fignum_exists(figure.number)
    result.plot(ax=axes[1:])
    assert len(axes[2].lines) == 2  # the difference, and the line at 0
    sl.overlay({"a": result}, ax=axes[0], title="Both")
    assert axes[0].get_title(loc="left") == "Both"
    plt.close(figure)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"ax": 3}, TypeError, "ax: got int"),
        ({"ax": []}, TypeError, "ax: got list"),
        ({"ax": "three"}, ValueError, r"ax: got 3 axes; this figure needs 1, for the main panel, or 2"),
        ({"ax": "one", "figsize": (3, 2)}, ValueError, "figsize: is that of a new figure"),
        ({"figsize": 3}, ValueError, "figsize: got 3"),
        ({"title": 3}, TypeError, "title: got int"),
        ({"style": "poster"}, ValueError, "style: got 'poster'"),
        ({"columns": 2}, ValueError, "columns: is that of a paper"),
        ({"style": "paper", "columns": 3}, ValueError, "columns: got 3"),
        ({"path": "a.xyz"}, ValueError, "its suffix must be one of"),
    ],
)
def test_bad_arguments_of_a_figure(result, options, kind, message):
    figure, axes = plt.subplots(1, 3)
    chosen = {"three": axes, "one": axes[0]}
    options = {name: chosen.get(v, v) if isinstance(v, str) else v for name, v in options.items()}
    try:
        with pytest.raises(kind, match=message):
            result.plot(**options)
    finally:
        plt.close(figure)


def test_a_style_is_either_given_columns_or_a_width():
    for arguments, message in (
        ({"name": "paper", "columns": 1, "width": 5.5}, "both are given"),
        ({"name": "paper", "width": -1.0}, "width: got -1"),
        ({"width": 5.0}, "width: is that of a paper"),
    ):
        with pytest.raises(ValueError, match=message), sl.style(**arguments):
            pass
