"""Result folders for readers: results with their figures and tables, and one page that shows them."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from sdelens.core.files import atomic_path, held_folder
from sdelens.results.result import Result
from sdelens.results.sweep import Sweep

__all__ = ["claim_folder", "write_rendered", "write_report", "write_sweep"]

_MOST_KEYS = 3
"""Most swept keys that a figure can show."""


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


def write_report(
    folder: str | os.PathLike[str],
    results: Mapping[str, Result],
    title: str,
    command: str,
    texts: Mapping[str, str] | None = None,
) -> Path:
    """Write each result as NetCDF, figure (PNG, PDF) and table (CSV, LaTeX), and an ``index.html`` that shows them all.

    Args:
        folder: an existing folder.
        results: by name; the names are used in file names.
        title: heading of the page.
        command: the command that reproduces it, shown on the page.
        texts: further text about a result, by its name.

    Returns:
        Path of ``index.html``.
    """
    folder = Path(folder)
    entries = []
    for name, result in results.items():
        files = [f"{name}.nc", f"{name}.pdf"]
        result.save(folder / files[0])
        for suffix in ("png", "pdf"):
            result.plot(folder / f"{name}.{suffix}")
        if result.compares:
            files += [f"{name}.csv", f"{name}.tex"]
            result.export(folder / f"{name}.csv")
            result.export(folder / f"{name}.tex")
        head, rows = result.table()
        names = ", ".join(result.models)
        below = ", with their differences below" if result.compares else ""
        alt = f"Mean-loss curves over time of {names}{below}; the numbers are in the table."
        figures = [{"file": f"{name}.png", "alt": alt, "caption": _COMPARED if result.compares else _ALONE}]
        for observable in result.observables:
            files.append(f"{name}-{observable}.pdf")
            for suffix in ("png", "pdf"):
                result.of(observable).plot(folder / f"{name}-{observable}.{suffix}")
            alt = f"Mean {observable} over time of {names}{below}; the numbers are in the table of observables."
            caption = (
                f"{observable}: mean over paths; the band is a standard deviation of the optimizer's to either side."
            )
            figures.append({"file": f"{name}-{observable}.png", "alt": alt, "caption": caption})
        tables = [{"caption": "", "head": head, "rows": rows}]
        tables += [{"caption": c, "head": h, "rows": r} for c, h, r in result.details()]
        entries.append(
            {"name": name, "title": result.title(), "figures": figures, "tables": tables, "files": files}
            | {"notes": result.notes(), "text": (texts or {}).get(name, "")}
        )
    return _write_page(folder, title, command, entries)


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
    head, rows = sweep.table()
    entry = {
        "name": name,
        "title": sweep.title(),
        "figures": figures,
        "files": files,
        "notes": sweep.notes(),
        "text": "",
    }
    entry["tables"] = [{"caption": "", "head": head, "rows": rows}]
    return _write_page(folder, "sdelens sweep", command, [entry])


def _write_page(folder: Path, title: str, command: str, entries: list[dict[str, Any]]) -> Path:
    return write_rendered(folder / "index.html", "index.html", title=title, entries=entries, command=command)


def write_rendered(path: Path, template: str, **values: Any) -> Path:
    """Write a template of the library filled with values, atomically.

    Returns:
        The path.
    """
    loader = jinja2.PackageLoader("sdelens.results")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.get_template(template).render(**values)
    with atomic_path(path) as temporary:
        Path(temporary).write_text(page, encoding="utf-8")
    return path
