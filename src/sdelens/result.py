"""The outcome of a simulation or comparison: one dataset, its table of errors, its figure, its file."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdelens import _check
from sdelens._names import noise_label, optimizer_label, problem_label, schedule_label
from sdelens.tracking import Curves, tracking_error

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

__all__ = ["Result", "atomic_path", "load", "save_figure", "text_table"]

FORMAT = 1


class Result:
    """What a run measured.

    ``dataset`` is an `xarray.Dataset` with dimensions ``model``, ``step`` (0 is the start; coordinate ``time`` = kη),
    ``group``, ``quantile`` and, where the problem has at most 64 parameters, ``coordinate``:

    - ``loss_mean, loss_std, loss_sem`` (model, step): over the living paths;
    - ``loss_group_mean, group_paths`` (model, group, step): mean and number of living paths, path i in group i mod G;
    - ``loss_quantile`` (model, quantile, step): to 1.6 % of the loss less its infimum, if that is 2⁻³² to 2³² in size;
    - ``grad_norm_mean`` (model, step): mean of ‖∇f‖;
    - ``x_mean, x_var`` (model, step, coordinate);
    - ``n_paths`` (model, step): paths still finite; the others have left the averages;
    - ``path_x`` (model, path, step, parameter): with ``keep_paths``; parameters in the order of `jax.tree.leaves`.

    Attributes hold what it takes to run it again, as JSON: ``problem, noise, optimizer, run, models, versions,
    device``, and ``rerunnable``, 0 where a function of the user's own cannot be written down.
    """

    def __init__(self, dataset: "xr.Dataset") -> None:
        self.dataset = dataset

    @property
    def models(self) -> list[str]:
        """Names of the models, in the order they were run."""
        return [str(m) for m in self.dataset.model.values]

    @property
    def compares(self) -> bool:
        """Whether the optimizer is there with something to compare."""
        return self._optimizer is not None and len(self.models) > 1

    @property
    def info(self) -> dict[str, Any]:
        """The dataset's attributes, decoded."""
        decoded = {}
        for key, value in self.dataset.attrs.items():
            try:
                decoded[key] = json.loads(value) if isinstance(value, str) else value
            except json.JSONDecodeError:
                decoded[key] = value
        return decoded

    def merge(self, other: "Result") -> "Result":
        """Both results' models in one, the other's after these.

        Raises:
            ValueError: if they share a model's name, or differ in problem, steps or paths.
        """
        import xarray as xr

        if not isinstance(other, Result):
            raise TypeError(f"other: got {type(other).__name__}; give a Result.")
        shared = set(self.models) & set(other.models)
        if shared:
            raise ValueError(f"other: has models {sorted(shared)} of the same name; rename one.")
        for key in ("problem", "noise", "optimizer", "run", "infimum"):
            mine, theirs = self.dataset.attrs[key], other.dataset.attrs[key]
            if mine != theirs and not (mine != mine and theirs != theirs):  # noqa: PLR0124 (NaN: no infimum known)
                raise ValueError(f"other: differs in {key}: {theirs}; merge runs of one experiment.")
        attrs = dict(self.dataset.attrs)
        attrs["models"] = json.dumps({**self.info["models"], **other.info["models"]})
        joined = xr.concat([self.dataset, other.dataset], dim="model", combine_attrs="override")
        return Result(joined.assign_attrs(attrs))

    def errors(self, reference: str | None = None, confidence: float = 0.99) -> "pd.DataFrame":
        r"""Tracking error of every model against `reference`.

        The error is ‖a − b‖/‖b − b_min‖ of the mean-loss curves over the recorded steps, with the bias of Monte-Carlo
        noise removed; b_min is the problem's infimum, or the reference's smallest mean loss where that is not known.
        Columns:

        - ``error, lower, upper``: with one-sided limits at `confidence`, by bootstrap over groups of paths;
        - ``floor``: what a perfect model would show at these path numbers before the correction;
        - ``late_error, late_lower, late_upper``: the same over the last third of the run (relative to the height of the
          whole curve where the infimum is not known);
        - ``late_shift, late_shift_lower, late_shift_upper``: relative difference of the mean loss over the last third;
        - ``discretisation``: for a model run with substeps beside itself at Δt = η, the error between these two: what
          ``error`` says is then the error of the equation, this is the integrator's;
        - ``diverged``: paths that left the averages.

        Args:
            reference: label of the model to compare with, by default that of the optimizer.
            confidence: one-sided confidence of each limit, in (0.5, 1).

        Returns:
            A data frame with one row per other model; NaN where a whole group of paths diverged.

        Raises:
            ValueError: if `reference` is not among the models, if it is not given and there is no optimizer, or
                if `confidence` is not in (0.5, 1).
        """
        import pandas as pd

        reference = self._reference(reference)
        confidence = _check.number("confidence", confidence)
        if not 0.5 < confidence < 1:
            raise ValueError(f"confidence: got {confidence}; it must lie in (0.5, 1), for example 0.99.")
        rows = {}
        for model in self.models:
            if model == reference:
                continue
            full = tracking_error(self._curves(model), self._curves(reference), self._minimum(reference), confidence)
            third = self._third()
            late = tracking_error(
                self._curves(model, third),
                self._curves(reference, third),
                self._minimum(reference),
                confidence,
                height=self._height(reference),
            )
            coarse = self._settings[model].get("coarse")
            steps = np.nan
            if coarse in self.models:
                steps = tracking_error(self._curves(coarse), self._curves(model), self._minimum(reference)).error
            n_paths = self.dataset.n_paths.sel(model=model).values
            rows[model] = {
                "error": full.error,
                "lower": full.lower,
                "upper": full.upper,
                "floor": full.floor,
                "late_error": late.error,
                "late_lower": late.lower,
                "late_upper": late.upper,
                "late_shift": late.shift,
                "late_shift_lower": late.shift_lower,
                "late_shift_upper": late.shift_upper,
                "discretisation": steps,
                "diverged": int(n_paths[0] - n_paths[-1]),
            }
        frame = pd.DataFrame.from_dict(rows, orient="index")
        frame.index.name = "model"
        return frame

    def plot(self, path: str | os.PathLike[str] | None = None, reference: str | None = None) -> "Figure":
        """Mean-loss curves with bands, and their relative difference from `reference` below; saved if `path` is given.

        Raises:
            ValueError: if the ending of `path` is not one matplotlib writes.
        """
        from sdelens.plotting import plot_losses

        compared = self.compares if reference is None else len(self.models) > 1
        shown = self._reference(reference) if compared else self.models[0]
        kinds = {label: model["model"] for label, model in self._settings.items()}
        figure = plot_losses(self.dataset, shown, kinds, compared, self._height(shown))
        if path is not None:
            save_figure(figure, path)
        return figure

    def export(self, path: str | os.PathLike[str], reference: str | None = None, confidence: float = 0.99) -> None:
        """Write the table of `errors` as ``.csv`` or ``.tex`` (a LaTeX tabular with booktabs rules).

        Raises:
            ValueError: if the ending is another.
        """
        frame = self.errors(reference, confidence)
        suffix = Path(path).suffix.lower()
        if suffix == ".csv":
            text = frame.to_csv()
        elif suffix == ".tex":
            short = frame[["error", "lower", "upper", "floor", "late_shift"]]
            short.columns = ["error", "lower", "upper", "floor", "last third"]
            text = short.to_latex(float_format=lambda v: f"{v:.2e}", escape=True)
        else:
            raise ValueError(f"path: got {str(path)!r}; end it in .csv or .tex.")
        with atomic_path(path) as temporary:
            Path(temporary).write_text(text, encoding="utf-8")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the dataset as NetCDF (HDF5); the file appears whole or not at all.

        Raises:
            OSError: if it cannot be written, or `path` is a folder.
        """
        with atomic_path(path) as temporary:
            self.dataset.to_netcdf(temporary, engine="h5netcdf")

    def __str__(self) -> str:
        """The table of errors, or of final losses where there is nothing to compare, as plain text."""
        return "\n".join([self.title(), "", *text_table(*self.table()), "", *self.notes()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, rows = self.table()
        cells = "".join("<tr>" + "".join(f"<td>{_escape(c)}</td>" for c in row) + "</tr>" for row in rows)
        header = "".join(f'<th scope="col">{_escape(c)}</th>' for c in head)
        notes = "<br>".join(_escape(n) for n in self.notes())
        return (
            f"<table><caption>{_escape(self.title())}</caption><thead><tr>{header}</tr></thead>"
            f"<tbody>{cells}</tbody></table><p>{notes}</p>"
        )

    def title(self) -> str:
        """One line: what was run."""
        info, run = self.info, self.info["run"]
        numbers = ", ".join(f"{k}={v:g}" for k, v in info["optimizer"].items() if isinstance(v, float))
        if "schedule" in info["optimizer"]:
            numbers += f", schedule {schedule_label(info['optimizer']['schedule'])}"
        numbers += ", independent decay" if info["optimizer"]["decay"] == "independent" else ""
        start = f"start: {run['start']}, " if "start" in run else ""
        return (
            f"{optimizer_label(info['optimizer'])} ({numbers}) on {problem_label(info['problem'])}, d = {run['dim']}, "
            f"{noise_label(info['noise'])} noise: {start}{run['steps']} steps, {run['paths']} paths, seed {run['seed']}"
        )

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the printed table, as text."""
        final = self.dataset.isel(step=-1)
        head = ["model", "final loss ± sem", "error", "99 % limits", "floor", "last third", "diverged"]
        compared = self.compares
        errors: dict[Any, dict[Any, Any]] = self.errors().to_dict("index") if compared else {}
        resolved = any(np.isfinite(row["discretisation"]) for row in errors.values())
        rows = []
        for model in self.models:
            here = final.sel(model=model)
            n_paths = self.dataset.n_paths.sel(model=model).values
            start = [model, f"{float(here.loss_mean):.5g} ± {float(here.loss_sem):.1g}"]
            middle = ["-"] * 4
            split = ["-"] if resolved else []
            if model in errors:
                row = errors[model]
                limits = f"{_percent(row['lower'])} – {_percent(row['upper'])}" if np.isfinite(row["upper"]) else "-"
                shift = f"{100 * row['late_shift']:+.2g} %" if np.isfinite(row["late_shift"]) else "-"
                error = "diverged" if row["diverged"] and np.isnan(row["error"]) else _percent(row["error"])
                middle = [error, limits, _percent(row["floor"]), shift]
                if np.isfinite(row["discretisation"]):
                    split = [_percent(row["discretisation"])]
            rows.append([*start, *middle, str(int(n_paths[0] - n_paths[-1])), *split])
        if resolved:
            head.append("discretisation")
        return head, rows

    def notes(self) -> list[str]:
        """What the table's columns mean, the devices used, and how to use more."""
        device = self.info["device"]
        seconds = sum(m["wall_time"] for m in self.info["models"].values())
        notes = [f"{device['count']} × {device['kind']}, {seconds:.1f} s."]
        if device["platform"] == "cpu" and device["count"] < device["cores"]:
            notes.append(
                f"{device['cores']} cores are there: jax.config.update('jax_num_cpu_devices', {device['cores']}) "
                "before the first use of JAX makes each a device."
            )
        if self.compares:
            scale = "" if np.isfinite(float(self.dataset.attrs["infimum"])) else " less its smallest value"
            notes.insert(
                0,
                f"error: L2 of the mean-loss curve against the optimizer's, relative to that{scale}, Monte-Carlo noise "
                "removed; limits: 99 % on each side; floor: what a perfect model shows; last third: shift of its mean.",
            )
        elif len(self.models) > 1:
            notes.insert(0, "No errors: there is no optimizer among the models to compare with.")
        lost = self.dataset.n_paths.isel(step=0) - self.dataset.n_paths.isel(step=-1)
        if int(lost.sum()):
            notes.insert(
                0,
                "Paths that diverge inflate mean, spread and errors until they overflow; then they leave the averages.",
            )
        return notes

    @property
    def _settings(self) -> dict[str, dict[str, Any]]:
        """How each model was run, by label."""
        decoded: dict[str, dict[str, Any]] = json.loads(self.dataset.attrs["models"])
        return decoded

    @property
    def _optimizer(self) -> str | None:
        """Label of the discrete optimizer, if it was run."""
        return next((label for label in self.models if self._settings[label]["model"] == "optimizer"), None)

    def _reference(self, reference: str | None) -> str:
        if reference is not None:
            return _check.choice("reference", reference, self.models)
        if self._optimizer is None:
            raise ValueError(f"reference: there is no optimizer among the models; name one of {self.models}.")
        return self._optimizer

    def _minimum(self, reference: str) -> float:
        infimum = float(self.dataset.attrs["infimum"])
        return infimum if np.isfinite(infimum) else float(self.dataset.loss_mean.sel(model=reference).min())

    def _height(self, reference: str) -> float | None:
        """What late errors are relative to: the late loss itself, but the whole run's where the infimum is not known.

        A plateau less its own smallest value is mere noise, and no yardstick.
        """
        if np.isfinite(float(self.dataset.attrs["infimum"])):
            return None
        curve = self.dataset.loss_mean.sel(model=reference).values - self._minimum(reference)
        return float(np.sqrt(np.nanmean(curve**2)))

    def _third(self) -> slice:
        steps = self.dataset.step.values
        return slice(int(np.searchsorted(steps, steps[-1] * 2 / 3)), None)

    def _curves(self, model: str, part: slice = slice(None)) -> Curves:
        here = self.dataset.sel(model=model)
        groups = here.loss_group_mean.transpose("group", "step").values[:, part]
        counts = here.group_paths.isel(step=0).values.astype(float)
        return Curves(groups, counts, self._settings[model]["stream"])


def load(path: str | os.PathLike[str]) -> Result:
    """Read a result that `Result.save` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, not NetCDF, or not a result of this library.
    """
    import xarray as xr

    if Path(path).is_dir():
        raise IsADirectoryError(f"path: {str(path)!r} is a folder; give the .nc file in it.")
    if not Path(path).is_file():
        raise FileNotFoundError(f"path: there is no file {str(path)!r}.")
    try:
        with xr.open_dataset(path, engine="h5netcdf") as opened:
            dataset = opened.load()
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"path: {str(path)!r} is truncated or not a NetCDF file ({error}); write it again with Result.save."
        ) from error
    if "sdelens_format" not in dataset.attrs:
        raise ValueError(f"path: {str(path)!r} is a NetCDF file, but not one that Result.save wrote.")
    if int(dataset.attrs["sdelens_format"]) > FORMAT:
        raise ValueError(
            f"path: {str(path)!r} has format {dataset.attrs['sdelens_format']}, this version reads up to {FORMAT}; "
            "upgrade sdelens."
        )
    return Result(dataset)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[str]:
    """A temporary name beside `path` that takes its place when the block ends well, and vanishes otherwise."""
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"path: {str(target)!r} is a folder; give the name of a file.")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path: the folder {str(target.parent)!r} does not exist; make it first.")
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=target.suffix)
    os.close(handle)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.2g} %"


def save_figure(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Write a figure in the format of the ending of `path`; the file appears whole or not at all.

    Raises:
        ValueError: if the ending is not one matplotlib writes.
    """
    known = figure.canvas.get_supported_filetypes()
    suffix = Path(path).suffix.lstrip(".").lower()
    if suffix not in known:
        raise ValueError(f"path: got {str(path)!r}; end it in one of {', '.join('.' + k for k in sorted(known))}.")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=suffix, dpi=200)


def text_table(head: list[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table with aligned columns, the first to the left, the others to the right."""
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = (
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join([first, *rest]).rstrip()

    return [line(head), "  ".join("-" * w for w in widths), *[line(r) for r in rows]]


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
