"""Result folders for readers: results with their figures and tables, and one page that shows them."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from sdelens.core.files import atomic_path, held_folder, save_figure
from sdelens.core.names import optimizer_label, problem_label
from sdelens.core.numerals import signed, with_limits
from sdelens.core.progress import stage
from sdelens.results.agreement import LEGEND, agreement_of, summary
from sdelens.results.printable import Table
from sdelens.results.quantities import columns
from sdelens.results.result import Result
from sdelens.results.sweep import Sweep

__all__ = ["claim_folder", "write_rendered", "write_report", "write_sweep"]

_MOST_KEYS = 3
"""Most swept keys that a figure can show."""
_MOST_NAMES = 4
"""Most models that are named in a small figure."""


@contextlib.contextmanager
def claim_folder(path: str | os.PathLike[str], overwrite: bool = False, marker: str = "index.html") -> Iterator[Path]:
    """Create the folder for results if needed, and lock it against other runs until the block ends.

    Raises:
        OSError: if it cannot be created or written, is a file, or is locked by another run.
        FileExistsError: if it already contains results, recognised by the file `marker`, and `overwrite` is False.
    """
    with held_folder("out", path) as folder:
        if not overwrite and (folder / marker).exists():
            raise FileExistsError(f"out: {str(folder)!r} holds results already; give another folder or --overwrite.")
        yield folder


_COMPARED = (
    "Above: mean loss over paths; the grey band is the middle 90 % of the optimizer's paths. Below: difference of the "
    "mean loss from the optimizer's, relative to it, with 99 % intervals."
)
_ALONE = "Mean loss; the band is the middle 90 % of the paths or, of a prediction, a standard deviation to either side."
_SMALL_SIZE = (2.9, 2.0)


def write_report(
    folder: str | os.PathLike[str],
    results: Mapping[str, Result],
    title: str,
    command: str,
    texts: Mapping[str, str] | None = None,
) -> Path:
    """Write each result as NetCDF, figure (PNG, PDF) and table (CSV, LaTeX), and an ``index.html`` that shows them all.

    The page begins with what the limits of the errors say about every model; several results have small figures, which
    link to the full ones, and their tables are folded.

    Args:
        folder: an existing folder.
        results: by name; the names are used in file names.
        title: heading of the page.
        command: the command that reproduces it, shown on the page.
        texts: further text about a result, by its name.

    Returns:
        Path of ``index.html``.
    """
    folder, several = Path(folder), len(results) > 1
    for name, result in results.items():  # before anything else that could fail
        result.save(folder / f"{name}.nc")
    labels = [_label(result) for result in results.values()]
    entries, verdicts = [], []
    for (name, result), label in zip(results.items(), labels, strict=True):
        short = label if labels.count(label) == 1 else f"{label}, {name}"
        with stage(f"writing {name}"):
            found = _verdicts(name, short, result)
            entry = _entry(folder, name, result)
            if several:
                entry["small"] = f"{name}-small.png"
                _write_small(folder / entry["small"], result)
        message = "; ".join(f"{row['model']} {row['agreement'].brief}" for row in found)
        entries.append(entry | {"short": short, "message": message, "text": (texts or {}).get(name, "")})
        verdicts += found
    models = dict.fromkeys(row["model"] for row in verdicts)
    lead = [
        summary(f"mean-loss curve of the {model}", [row["agreement"] for row in rows], rows[0]["reference"])
        for model in models
        if (rows := [row for row in verdicts if row["model"] == model])
    ]
    return _write_page(folder, title, command, entries, lead, verdicts)


def _label(result: Result) -> str:
    return f"{optimizer_label(result.info['optimizer'])} on {problem_label(result.info['problem'])}"


def _verdicts(name: str, short: str, result: Result) -> list[dict[str, Any]]:
    """A row of the table of verdicts for every model that is compared."""
    from sdelens.results.plotting import written

    if not result.compares:
        return []
    reference = "the optimizer" if result.optimizer is not None else "the logged curve"
    rows = []
    for model, row in result.errors().to_dict("index").items():
        found = agreement_of(row, reference)
        shift, low, high = (100 * row[column] for column in columns("late_shift"))
        ratio, least, most = (row[column] for column in columns("spread"))
        shown = {"late": with_limits(shift, low, high, signed), "spread": with_limits(ratio, least, most)}
        rows.append(
            {"name": name, "short": short, "model": written(str(model)), "reference": reference, "agreement": found}
            | shown
        )
    return rows


def _entry(folder: Path, name: str, result: Result) -> dict[str, Any]:
    """Write the figures and tables of a saved result, and describe them for the page."""
    files = [f"{name}.nc", f"{name}.pdf"]
    for suffix in ("png", "pdf"):
        result.plot(folder / f"{name}.{suffix}")
    if result.compares:
        files += [f"{name}.csv", f"{name}.tex"]
        result.export(folder / f"{name}.csv")
        result.export(folder / f"{name}.tex")
    names = ", ".join(result.models)
    below = ", with their differences below" if result.compares else ""
    alt = f"Mean-loss curves over time of {names}{below}; the numbers are in the table."
    figures = [{"file": f"{name}.png", "alt": alt, "caption": _COMPARED if result.compares else _ALONE}]
    for observable in result.observables:
        files.append(f"{name}-{observable}.pdf")
        for suffix in ("png", "pdf"):
            result.of(observable).plot(folder / f"{name}-{observable}.{suffix}")
        alt = f"Mean {observable} over time of {names}{below}; the numbers are in the table of observables."
        caption = f"{observable}: mean over paths; the band is a standard deviation of the optimizer's to either side."
        figures.append({"file": f"{name}-{observable}.png", "alt": alt, "caption": caption})
    tables = [Table(*result.table()).without_empty(), *result.details()]
    return {
        "name": name,
        "title": result.title(),
        "figures": figures,
        "tables": tables,
        "files": files,
        "notes": result.notes(),
    }


def _write_small(path: Path, result: Result) -> None:
    """A small figure of the mean-loss curves alone, with the names of the models."""
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    from sdelens.results.figures import style

    with style(font_size=8, legend_fontsize=7):
        figure, axes = plt.subplots(figsize=_SMALL_SIZE)
        result.plot(ax=axes, title="")
        lines = [
            line for line in axes.get_lines() if isinstance(line, Line2D) and not str(line.get_label()).startswith("_")
        ]
        axes.legend(handles=lines[:_MOST_NAMES], handlelength=1.8, labelspacing=0.2, frameon=True, edgecolor="none")
        plt.close(figure)
        save_figure(figure, path)


def write_sweep(
    folder: str | os.PathLike[str], name: str, sweep: Sweep, command: str, quantities: Sequence[str] | None = None
) -> Path:
    """Write a sweep as NetCDF, figures (PNG, PDF) and table (CSV), and an ``index.html`` that shows them.

    Args:
        folder: an existing folder.
        name: used in file names.
        sweep: the sweep to write.
        command: the command that reproduces it, shown on the page.
        quantities: what figures show, as in `Sweep.plot`; by default the loss and, where there is one, the error. No
            figures are written if more than three keys are swept.

    Returns:
        Path of ``index.html``.
    """
    from sdelens.results.plotting import written

    folder, files, figures = Path(folder), [f"{name}.nc", f"{name}.csv"], []
    sweep.save(folder / files[0])
    sweep.export(folder / files[1])
    plotted = quantities or ["late_loss", *(["error"] if sweep.compares else [])]
    if sum(len(values) > 1 for values in sweep.over.values()) > _MOST_KEYS:
        plotted = []
    for quantity in plotted:
        stem = f"{name}-{quantity.replace('_', '-')}"
        files.append(f"{stem}.pdf")
        for suffix in ("png", "pdf"):
            sweep.plot(folder / f"{stem}.{suffix}", quantity)
        alt = (
            f"{quantity.replace('_', ' ').capitalize()} over {' and '.join(sweep.over)}; the numbers are in the table."
        )
        figures.append({"file": f"{stem}.png", "alt": alt, "caption": ""})
    lead = []
    for model, rows in sweep.errors().groupby(level="model", sort=False) if sweep.compares else []:
        found = [agreement_of(row) for row in rows.to_dict("records")]
        lead.append(summary(f"mean-loss curve of the {written(str(model))}", found, cases="points"))
    if np.isfinite(sweep.late_loss().xs(sweep.reference, level="model").late_loss).any():
        lead.append(f"Best point of the {written(sweep.reference)}: {sweep.best().sentence()}.")
    short = f"{_label(sweep.first)} over {' and '.join(sweep.over)}"
    entry = {
        "name": name,
        "short": short,
        "title": sweep.title(),
        "figures": figures,
        "files": files,
        "tables": [Table(*sweep.table(), keys=len(sweep.over))],
        "notes": sweep.notes(),
        "text": "",
    }
    return _write_page(folder, "sdelens sweep", command, [entry], lead, [])


def _write_page(
    folder: Path,
    title: str,
    command: str,
    entries: list[dict[str, Any]],
    lead: list[str],
    verdicts: list[dict[str, Any]],
) -> Path:
    return write_rendered(
        folder / "index.html",
        "results.html",
        title=title,
        command=command,
        entries=entries,
        lead=lead,
        verdicts=verdicts,
        legend=LEGEND,
    )


def write_rendered(path: Path, template: str, **values: Any) -> Path:
    """Write a template of the library filled with values, atomically.

    Returns:
        The path.
    """
    loader = jinja2.PackageLoader("sdelens.results")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["unbroken"] = _unbroken
    page = environment.get_template(template).render(**values)
    with atomic_path(path) as temporary:
        Path(temporary).write_text(page, encoding="utf-8")
    return path


def _unbroken(text: str) -> str:
    """A text whose lines do not break between a number and what belongs to it."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%").replace("< ", "<\N{NO-BREAK SPACE}")
