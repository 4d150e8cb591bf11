"""The outcome of a sweep: one dataset over the grid, the result at each point, tables, figure and file."""

import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdelens.core import check
from sdelens.core.files import as_path, atomic_path
from sdelens.core.limits import CONFIDENCE, normal_point
from sdelens.results import sweep_tables
from sdelens.results.dataset_files import read_dataset, write_dataset
from sdelens.results.printable import Parts, Plotted, Table
from sdelens.results.quantities import QUANTITIES, columns
from sdelens.results.ranking import Best, best_of, mean_and_sem
from sdelens.results.result import Result
from sdelens.results.tracking import late_window

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

    from sdelens.results.figures import Sheet
    from sdelens.results.sweep_plots import Panel

__all__ = ["SHOWN", "Best", "Sweep", "load"]

_OWN = ("point", "wall_time")
"""Variables of a sweep that its results do not have."""
LATE_LOSS = "late_loss"
_MOST_KEYS = 3
"""Most swept keys that a figure can show."""
SHOWN = (LATE_LOSS, *(name for name, quantity in QUANTITIES.items() if quantity.limits))
"""Quantities that a figure can show."""


class Sweep(Plotted):
    """Measurements of `sweep`.

    ``dataset`` is an `xarray.Dataset` with the swept keys as first dimensions, in the order given, and then those of
    `Result.dataset`; ``time`` = kη depends on ``lr`` where that is swept. The coordinate of a key has
    its values if these are numbers or words, else their indices, with the values as an attribute. ``wall_time``
    (…, model) is in s. Attributes are those of the first point's `Result`, and ``over``, the values by key; the
    variable ``point`` holds the attributes that differ at each point.
    """

    def __init__(self, dataset: "xr.Dataset") -> None:
        self.dataset = dataset
        self._errors: dict[tuple[str | None, float], pd.DataFrame] = {}

    @functools.cached_property
    def over(self) -> dict[str, list[Any]]:
        """Values by key, as they are used to select points: indices if the values are arrays or options."""
        keys = json.loads(self.dataset.attrs["over"])
        return {key: self.dataset[key].values.tolist() for key in keys}

    @property
    def models(self) -> list[str]:
        """Names of the models, in the order they were run."""
        return [str(m) for m in self.dataset.model.values]

    @property
    def points(self) -> list[dict[str, Any]]:
        """Values by key of every point; the last key varies fastest."""
        return [self._point(index) for index in np.ndindex(self._shape)]

    def at(self, point: Mapping[str, Any] | None = None, /, **values: Any) -> Result:
        """The result at one point, as `compare` would return it.

        Args:
            point: values by key, for keys that are not Python names: ``{"noise.scale": 2.0}``.
            values: the same as keywords, ``lr=0.01``. A key with a single value may be left out.

        Raises:
            ValueError: if a key or value is not in the grid; the message lists the available ones.
        """
        wanted = {**(point or {}), **values}
        for key in wanted:
            check.choice("at", key, self.over)
        missing = [key for key, known in self.over.items() if key not in wanted and len(known) > 1]
        if missing:
            raise ValueError(f"{missing[0]}: is missing; choose one of {_listed(self.over[missing[0]])}.")
        held = self._held(wanted)
        return self._result(tuple(held.get(key, 0) for key in self.over))

    def late_loss(self) -> "pd.DataFrame":
        """Mean loss over the last third of the run, of every point and model.

        Returns:
            A data frame indexed by the swept keys and the model, with columns ``late_loss``, ``sem`` (its standard
            error, from groups of paths) and ``diverged`` (number of diverged paths); the first two are NaN if any did.
        """
        import pandas as pd

        value, sem, lost = (array.ravel() for array in self._late)
        frame = pd.DataFrame({"late_loss": value, "sem": sem, "diverged": lost})
        frame.index = pd.MultiIndex.from_product([*self.over.values(), self.models], names=[*self.over, "model"])
        return frame

    def errors(self, reference: str | None = None, confidence: float = CONFIDENCE) -> "pd.DataFrame":
        """`Result.errors` of every point, indexed by the swept keys and the model.

        Args:
            reference: label of the model to compare with, by default that of the optimizer.
            confidence: one-sided confidence of each limit, in (0.5, 1).

        Raises:
            ValueError: as `Result.errors`.
        """
        import pandas as pd

        if (reference, confidence) not in self._errors:  # tables, figures and users request the same values
            frames = []
            for index in np.ndindex(self._shape):
                frame = self._result(index).errors(reference, confidence)
                point = self._point(index).values()
                frame.index = pd.MultiIndex.from_tuples(
                    [(*point, model) for model in frame.index], names=[*self.over, "model"]
                )
                frames.append(frame)
            self._errors[reference, confidence] = pd.concat(frames)
        return self._errors[reference, confidence].copy()

    def best(self, model: str | None = None, confidence: float = CONFIDENCE) -> Best:
        r"""The point with the smallest late loss of a model, and the points statistically indistinguishable from it.

        Points share their random numbers, so each point is compared with the best one group of paths at a time. Let D
        be the mean and s the standard error of the differences of the G groups. A point is distinguishable from the
        best if D > t s, where t is the quantile 1 − (1 − `confidence`)/(n − 1) of Student's law with G − 1 degrees of
        freedom and n is the number of points. The claim that no point other than the ties is better is then wrong with
        a probability of at most 1 − `confidence` (Bonferroni's inequality over the points that might be mistaken for
        the best). Points at which paths diverged are ignored.

        Args:
            model: label of the model, by default the optimizer's.
            confidence: confidence of that claim, in (0.5, 1).

        Raises:
            ValueError: if paths diverged at every point, or there is no such model.
        """
        at = self.models.index(self._shown(model))
        value, sem, _ = (array[..., at].ravel() for array in self._late)
        groups, counts = self._group_losses
        if not np.isfinite(value).any():
            raise ValueError(
                f"model: paths of {self.models[at]!r} diverged at every point; sweep smaller values of lr."
            )
        return best_of(self.points, value, sem, groups[..., at, :].reshape(value.size, -1), counts[at], confidence)

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        quantity: str = LATE_LOSS,
        model: str | None = None,
        at: Mapping[str, Any] | None = None,
        *,
        ax: Any = None,
        figsize: tuple[float, float] | None = None,
        title: str | None = None,
        style: str | None = None,
        columns: int | None = None,
    ) -> "Figure":
        """Plot a quantity over the grid: a line for one key, a heat map for two, a heat map per value of a third key.

        Crosses mark points at which paths diverged; the frame marks the smallest late loss, dashed frames mark points
        indistinguishable from it. As in the table, an error that is not larger than what a perfect model would show is
        written as "<" and its upper limit.

        Args:
            path: where to save the figure.
            quantity: ``"late_loss"`` (minus the infimum where that is known), ``"error"``, ``"late_error"``,
                ``"late_shift"`` or ``"spread"``, as in `errors`.
            model: whose quantity; by default the optimizer for the loss, else the first other model; lines show all.
            at: fixed values of keys, if more than three keys are swept.
            ax: axes to draw into instead of a new figure: one, or one for each value of the third key.
            figsize: width and height of a new figure in inches.
            title: title instead of the figure's own; ``""`` for none.
            style: ``"screen"`` or ``"paper"``, as for `style`; by default the one in use.
            columns: number of columns of a paper that the figure covers, 1 or 2.

        Returns:
            The figure.

        Raises:
            ValueError: if more than three keys have several values, or a name is not known.
        """
        check.choice("quantity", quantity, SHOWN)
        from sdelens.results.figures import drawn

        shown = self
        if at:
            held = {key: [i] for key, i in self._held(at).items()}
            shown = Sweep(self.dataset.isel(held))
        draw = functools.partial(shown._draw, quantity=quantity, model=model)
        return drawn(draw, path, ax=ax, figsize=figsize, title=title, style=style, columns=columns)

    @property
    def _has_figure(self) -> bool:
        return sum(len(values) > 1 for values in self.over.values()) <= _MOST_KEYS

    def _draw(self, sheet: "Sheet", quantity: str = LATE_LOSS, model: str | None = None) -> None:
        from sdelens.results.sweep_plots import plot_sweep

        keys = [key for key, values in self.over.items() if len(values) > 1] or [next(iter(self.over))]
        if len(keys) > _MOST_KEYS:
            more = {key: self.over[key][0] for key in keys[3:]}
            raise ValueError(
                f"plot: {len(keys)} keys are swept, {', '.join(keys)}; a figure shows three. Hold the others at one "
                f"value each, for example at={more}."
            )
        if model is None and len(keys) == 1:
            shown = self.models if quantity == LATE_LOSS else self._others()
        else:
            shown = [self._shown(model) if quantity == LATE_LOSS else self._compared(model)]
        panels = {name: self._panel(quantity, name, keys) for name in shown}
        kinds = {label: settings["model"] for label, settings in self.first.settings.items()}
        over = {self.head(k): self.over[k] for k in keys}
        plot_sweep(sheet, over, panels, kinds, self._label(quantity), self.title())

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write `late_loss` and, where there is something to compare, `errors` as one table, ``.csv``.

        Raises:
            ValueError: if the suffix is not ``.csv``.
        """
        if as_path(path).suffix.lower() != ".csv":
            raise ValueError(f"path: got {str(path)!r}; end it in .csv.")
        frame = self.late_loss()
        if self.compares:
            frame = frame.join(self.errors().drop(columns="diverged"))
        with atomic_path(path) as temporary:
            Path(temporary).write_text(frame.to_csv(), encoding="utf-8")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the dataset as NetCDF (HDF5), atomically; `load` reads it.

        Raises:
            OSError: if it cannot be written, or `path` is a folder.
        """
        write_dataset(self.dataset, path)

    def _parts(self) -> Parts:
        """Late loss and error of every point, or of the best."""
        return [self.title(), Table(*self.table(), keys=len(self.over)), *self.notes()]

    def _tables(self) -> list[Table]:
        return [Table(*sweep_tables.latex_table(self))]

    def title(self) -> str:
        """One line that says what was run."""
        return sweep_tables.title(self)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the printed table, as text: all points, or only the best if there are many."""
        return sweep_tables.table(self)

    def notes(self) -> list[str]:
        """Lines that say what the table's columns mean, which point is best, and how long the sweep took."""
        return sweep_tables.notes(self)

    @property
    def _shape(self) -> tuple[int, ...]:
        return tuple(self.dataset.sizes[key] for key in self.over)

    @property
    def reference(self) -> str:
        """The optimizer's label, or the first model's."""
        return self.first.optimizer or self.models[0]

    @functools.cached_property
    def first(self) -> Result:
        """The result at the first point."""
        return self._result((0,) * len(self._shape))

    @property
    def compares(self) -> bool:
        """Whether the optimizer was run together with another model to compare with it."""
        return self.first.compares

    def _held(self, values: Mapping[str, Any]) -> dict[str, int]:
        """Indices of values by key."""
        found = {}
        for key, wanted in values.items():
            known = self.over[check.choice("at", key, self.over)]
            matching = [i for i, value in enumerate(known) if _equal(value, wanted)]
            if len(matching) != 1:
                raise ValueError(f"{key}: got {wanted!r}; choose one of {_listed(known)}.")
            found[key] = matching[0]
        return found

    def _point(self, index: tuple[int, ...]) -> dict[str, Any]:
        return {key: values[i] for (key, values), i in zip(self.over.items(), index, strict=True)}

    def head(self, key: str) -> str:
        """A key as written in tables and figures: with # if its values are shown by index."""
        return f"{key} #" if "values" in self.dataset[key].attrs else key

    def _result(self, index: tuple[int, ...]) -> Result:
        here = self.dataset.isel(dict(zip(self.over, index, strict=True)), drop=True)
        own = json.loads(str(here.point.item()))
        models = json.loads(own.get("models", self.dataset.attrs["models"]))
        for label, seconds in zip(self.models, here.wall_time.values, strict=True):
            models[label]["wall_time"] = float(seconds)
        attrs = {key: value for key, value in self.dataset.attrs.items() if key != "over"}
        attrs |= {**own, "models": json.dumps(models)}
        dataset = here.drop_vars(_OWN)
        dataset.attrs = attrs
        return Result(dataset)

    def _shown(self, model: str | None) -> str:
        """The model with that label; by default the optimizer, or the first model if there is none."""
        if model is not None:
            return check.choice("model", model, self.models)
        return self.reference

    def _others(self) -> list[str]:
        if not self.compares:
            raise ValueError("quantity: there is nothing to compare; sweep the optimizer and another model.")
        return [model for model in self.models if model != self._shown(None)]

    def _compared(self, model: str | None) -> str:
        others = self._others()
        return others[0] if model is None else check.choice("model", model, others)

    @functools.cached_property
    def _group_losses(self) -> tuple[np.ndarray, np.ndarray]:
        """Late loss of every group of paths, (…, model, group), and paths in each, (model, group)."""
        steps = self.dataset.step.values
        late = self.dataset.loss_group_mean.isel(step=np.flatnonzero(late_window(steps)))
        groups = late.transpose(*self.over, "model", "group", "step").values.mean(axis=-1)
        first = self.dataset.group_paths.isel({"step": 0, **dict.fromkeys(self.over, 0)})
        return groups, first.transpose("model", "group").values.astype(float)

    @functools.cached_property
    def _late(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Late loss, its standard error and the number of diverged paths, each (…, model)."""
        groups, counts = self._group_losses
        n_paths = self.dataset.n_paths.transpose(*self.over, "model", "step").values
        lost = n_paths[..., 0] - n_paths[..., -1]
        value, sem = mean_and_sem(groups, counts)
        return np.where(lost > 0, np.nan, value), np.where(lost > 0, np.nan, sem), lost

    def _panel(self, quantity: str, model: str, keys: list[str]) -> "Panel":
        from sdelens.results.sweep_plots import Panel

        at = self.models.index(model)
        value, sem, lost = (array[..., at] for array in self._late)
        shape = tuple(len(self.over[key]) for key in keys)
        marked, dashed, floor = None, [], np.full(self._shape, np.nan)
        if quantity == LATE_LOSS:
            infimum = np.array([self._infimum(index) for index in np.ndindex(self._shape)]).reshape(self._shape)
            known = np.isfinite(infimum).all()
            low, high = ((value - (infimum if known else 0)) + sign * normal_point() * sem for sign in (-1, 1))
            value = value - infimum if known else value
            if np.isfinite(value).any():
                best = self.best(model)
                marked, *dashed = (tuple(p[key] for key in keys) for p in (best.point, *best.ties))
        else:
            frame = self.errors().xs(model, level="model")
            frame = 100 * frame if QUANTITIES[quantity].percent else frame
            value, low, high = (frame[name].to_numpy().reshape(self._shape) for name in columns(quantity))
            value = np.where(lost > 0, np.nan, value)
            if quantity in ("error", "late_error"):
                late = quantity == "late_error"
                errors = (self._result(index).point_errors(late)[model] for index in np.ndindex(self._shape))
                floor = np.array([100 * found[1] for found in errors])
        marks = [tuple(self.over[k].index(v) for k, v in zip(keys, m, strict=True)) for m in [marked, *dashed] if m]
        value, low, high, floor = (np.asarray(a, float).reshape(shape) for a in (value, low, high, floor))
        return Panel(value, low, high, floor, (lost > 0).reshape(shape), marks)

    def _infimum(self, index: tuple[int, ...]) -> float:
        here = self.dataset.point.isel(dict(zip(self.over, index, strict=True))).item()
        return float(json.loads(str(here)).get("infimum", self.dataset.attrs["infimum"]))

    def _label(self, quantity: str) -> str:
        if quantity != LATE_LOSS:
            return QUANTITIES[quantity].label + (" (%)" if QUANTITIES[quantity].percent else "")
        known = all(np.isfinite(self._infimum(index)) for index in np.ndindex(self._shape))
        return "mean loss $-$ infimum, last third" if known else "mean loss, last third"


def _equal(value: Any, wanted: Any) -> bool:
    """Whether two values are equal; numbers are compared up to rounding."""
    if isinstance(value, bool | str) or isinstance(wanted, bool | str):
        return bool(value == wanted)
    return bool(np.ndim(wanted) == 0 and np.isclose(value, wanted, rtol=1e-9, atol=0))


def _listed(values: list[Any]) -> str:
    return ", ".join(map(repr, values))


def load(path: str | os.PathLike[str]) -> Result | Sweep:
    """Read a file written by `Result.save` or `Sweep.save`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, not NetCDF, or not a result of this library.
    """
    dataset = read_dataset(path)
    return Sweep(dataset) if "over" in dataset.attrs else Result(dataset)
