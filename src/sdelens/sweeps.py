"""The outcome of a sweep: one dataset over the grid, its points as results, its tables, its figure, its file."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sdelens import _check, _tables
from sdelens._maps import Panel, plot_sweep
from sdelens._names import point_label, value_label
from sdelens._output import atomic_path, save_figure, text_table
from sdelens.result import Result, read_dataset

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

__all__ = ["Best", "Sweep", "load"]

_OWN = ("point", "wall_time")
"""Variables of the sweep that are not those of its results."""
_ROWS = 60
"""Points up to which the printed table holds all."""
_SHOWN = 20
_QUANTITIES = {
    "late_loss": "mean loss, last third",
    "error": "error of the mean-loss curve",
    "late_error": "error, last third",
    "late_shift": "shift of the mean loss, last third",
    "spread": "standard deviation over paths, relative",
}


class Best(NamedTuple):
    """The point with the smallest late loss.

    Attributes:
        point: its values by key.
        late_loss: mean loss over the last third.
        sem: its standard error.
        runner_up: values of the second, None where there is none.
        difference: late loss of the second less that of the best.
        lower: lower limit of that, one-sided.
        ties: points that are not told from the best at `confidence`; the second, if it is one, comes first.
        confidence: with which no point but the ties is better, all of them together.
    """

    point: dict[str, Any]
    late_loss: float
    sem: float
    runner_up: dict[str, Any] | None
    difference: float
    lower: float
    ties: tuple[dict[str, Any], ...]
    confidence: float

    @property
    def resolved(self) -> bool:
        """Whether the best is told from every other point."""
        return not self.ties

    def __str__(self) -> str:
        """One line for people."""
        found = f"{point_label(self.point)}: late loss {self.late_loss:.5g} ± {self.sem:.1g}"
        if self.runner_up is None:
            return found
        found += f"; next {point_label(self.runner_up)}, {self.difference:.2g} above it"
        if self.resolved:
            return f"{found} (resolved from all others at {self.confidence:.0%})"
        return f"{found} (not told from {len(self.ties)} point{'s' * (len(self.ties) > 1)} at {self.confidence:.0%})"


class Sweep:
    """What `sweep` measured.

    ``dataset`` is an `xarray.Dataset` with the swept keys as first dimensions, in the order given, and then those of
    `Result.dataset`; ``time`` = kη depends on ``lr`` where that is swept. Coordinates of keys are the values where
    these are numbers or words, else their indices, with the values as an attribute. ``wall_time`` (…, model) is in s.
    Attributes are those of the first point's `Result`, and ``over``, the values by key; ``point`` holds what differs
    elsewhere.
    """

    def __init__(self, dataset: "xr.Dataset") -> None:
        self.dataset = dataset
        self._errors: dict[tuple[str | None, float], pd.DataFrame] = {}

    @property
    def over(self) -> dict[str, list[Any]]:
        """Values by key, as they are selected: indices where they are arrays or options."""
        keys = json.loads(self.dataset.attrs["over"])
        return {key: self.dataset[key].values.tolist() for key in keys}

    @property
    def models(self) -> list[str]:
        """Names of the models, in the order they were run."""
        return [str(m) for m in self.dataset.model.values]

    @property
    def points(self) -> list[dict[str, Any]]:
        """Values by key of every point, the last key fastest."""
        return [self._point(index) for index in np.ndindex(self._shape)]

    def at(self, point: Mapping[str, Any] | None = None, /, **values: Any) -> Result:
        """The result at one point: what `compare` gives there.

        Args:
            point: values by key, for keys that are no Python names: ``{"noise.scale": 2.0}``.
            values: the same as keywords, ``lr=0.01``. A key with a single value may be left out.

        Raises:
            ValueError: if a key or value is not in the grid; those there are are listed.
        """
        wanted = {**(point or {}), **values}
        over = self.over
        for key in wanted:
            _check.choice("at", key, over)
        index = []
        for key, known in over.items():
            if key not in wanted and len(known) > 1:
                raise ValueError(f"{key}: is missing; choose one of {_listed(known)}.")
            matching = [i for i, v in enumerate(known) if _equal(v, wanted.get(key, known[0]))]
            if len(matching) != 1:
                raise ValueError(f"{key}: got {wanted[key]!r}; choose one of {_listed(known)}.")
            index.append(matching[0])
        return self._result(tuple(index))

    def late_loss(self) -> "pd.DataFrame":
        """Mean loss over the last third of the run, of every point and model.

        Returns:
            A data frame indexed by the swept keys and the model, with columns ``late_loss``, ``sem`` (its standard
            error, from groups of paths) and ``diverged`` (paths that left the averages); NaN where there are any.
        """
        import pandas as pd

        value, sem, lost = (array.ravel() for array in self._late())
        frame = pd.DataFrame({"late_loss": value, "sem": sem, "diverged": lost})
        frame.index = pd.MultiIndex.from_product([*self.over.values(), self.models], names=[*self.over, "model"])
        return frame

    def errors(self, reference: str | None = None, confidence: float = 0.99) -> "pd.DataFrame":
        """`Result.errors` of every point, indexed by the swept keys and the model.

        Args:
            reference: label of the model to compare with, by default that of the optimizer.
            confidence: one-sided confidence of each limit, in (0.5, 1).

        Raises:
            ValueError: as `Result.errors`.
        """
        import pandas as pd

        if (reference, confidence) not in self._errors:  # tables, figures and users ask for the same
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

    def best(self, model: str | None = None, confidence: float = 0.99) -> Best:
        r"""The point with the smallest late loss of a model, and which others are not told from it.

        Points share their random numbers, so each is compared with the best group of paths by group: with D the mean
        and s the standard error of the differences of G groups, it is told from the best if D > t s, t the quantile
        1 − (1 − `confidence`)/(n − 1) of Student's law with G − 1 degrees of freedom, n the number of points. The claim
        that no other point is better is then wrong with a probability of at most 1 − `confidence` (Bonferroni's
        inequality over the points that might be taken for the best). Points of which paths diverged do not count.

        Args:
            model: its label, by default the optimizer's.
            confidence: of that claim, in (0.5, 1).

        Raises:
            ValueError: if paths diverged at every point, or there is no such model.
        """
        from scipy.special import stdtrit

        confidence = _check.fraction("confidence", confidence)
        if confidence <= 0.5:
            raise ValueError(f"confidence: got {confidence}; it must lie in (0.5, 1), for example 0.99.")
        at = self.models.index(self._shown(model))
        value, sem, _ = (array[..., at].ravel() for array in self._late())
        groups, counts = self._group_losses()
        curves, counts = groups[..., at, :].reshape(value.size, -1), counts[at]
        order = np.argsort(np.where(np.isnan(value), np.inf, value), kind="stable")
        order = order[np.isfinite(value[order])]
        if not order.size:
            raise ValueError(
                f"model: paths of {self.models[at]!r} diverged at every point; sweep smaller values of lr."
            )
        first, others = order[0], order[1:]
        if not others.size:
            return Best(self._flat_point(first), value[first], sem[first], None, np.nan, np.nan, (), confidence)
        with np.errstate(invalid="ignore"):
            difference, error = _mean_and_sem(curves[others] - curves[first], counts)
            critical = float(stdtrit(max(curves.shape[1] - 1, 1), 1 - (1 - confidence) / max(value.size - 1, 1)))
            lower = difference - critical * error
        ties = tuple(self._flat_point(i) for i, low in zip(others, lower, strict=True) if not low > 0)
        second = others[0]
        return Best(
            self._flat_point(first),
            value[first],
            sem[first],
            self._flat_point(second),
            difference[0],
            lower[0],
            ties,
            confidence,
        )

    def plot(
        self, path: str | os.PathLike[str] | None = None, quantity: str = "late_loss", model: str | None = None
    ) -> "Figure":
        """A quantity over the grid: a line for one key, a heat map for two, one for each value of the third for three.

        Crosses mark points of which paths diverged; the frame marks the smallest late loss, dashed frames those not
        told from it. An error whose lower limit is 0 is written as "< upper limit".

        Args:
            path: where to save it.
            quantity: ``"late_loss"`` (less the infimum where that is known), ``"error"``, ``"late_error"``,
                ``"late_shift"`` or ``"spread"``, as in `errors`.
            model: whose; by default the optimizer for the loss, else the first other model; lines show all.

        Raises:
            ValueError: if more than three keys have several values, naming the remedy, or a name is not known.
        """
        _check.choice("quantity", quantity, _QUANTITIES)
        keys = [key for key, values in self.over.items() if len(values) > 1] or [next(iter(self.over))]
        if len(keys) > 3:
            raise ValueError(
                f"plot: {len(keys)} keys are swept, {', '.join(keys)}; a figure shows three. Choose one of the others' "
                "values: Sweep(sweep.dataset.sel(...)), with lists to keep the dimensions."
            )
        if model is None and len(keys) == 1:
            shown = self.models if quantity == "late_loss" else self._others()
        else:
            shown = [self._shown(model) if quantity == "late_loss" else self._compared(model)]
        panels = {name: self._panel(quantity, name, keys) for name in shown}
        kinds = {label: settings["model"] for label, settings in self._result((0,) * len(self._shape)).settings.items()}
        figure = plot_sweep({k: self.over[k] for k in keys}, panels, kinds, self._label(quantity), self.title())
        if path is not None:
            save_figure(figure, path)
        return figure

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write `late_loss` and, where there is something to compare, `errors` as one table, ``.csv``.

        Raises:
            ValueError: if the ending is another.
        """
        if Path(path).suffix.lower() != ".csv":
            raise ValueError(f"path: got {str(path)!r}; end it in .csv.")
        frame = self.late_loss()
        if self._compares:
            frame = frame.join(self.errors().drop(columns="diverged"))
        with atomic_path(path) as temporary:
            Path(temporary).write_text(frame.to_csv(), encoding="utf-8")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the dataset as NetCDF (HDF5); the file appears whole or not at all. `load` reads it.

        Raises:
            OSError: if it cannot be written, or `path` is a folder.
        """
        with atomic_path(path) as temporary:
            self.dataset.to_netcdf(temporary, engine="h5netcdf")

    def __str__(self) -> str:
        """Late loss and error of every point, or of the best, as plain text."""
        return "\n".join([self.title(), "", *text_table(*self.table()), "", *self.notes()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return (
            _tables.html_table(self.title(), *self.table()) + f"<p>{'<br>'.join(map(_tables.escape, self.notes()))}</p>"
        )

    def title(self) -> str:
        """One line: what was run."""
        base = _tables.title(self._result((0,) * len(self._shape)), without=self.over)
        return f"{base}; {' × '.join(f'{len(v)} {key}' for key, v in self.over.items())}"

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the printed table, as text: all points, or the best of many."""
        value, sem, lost = self._late()
        points = list(np.ndindex(self._shape))
        if len(points) > _ROWS:
            ranks = value[..., self.models.index(self._shown(None))].ravel()
            points = [points[i] for i in np.argsort(np.where(np.isnan(ranks), np.inf, ranks), kind="stable")[:_SHOWN]]
        others = self._others() if self._compares else []
        head = [*self.over, *(f"{m}: late loss ± sem" for m in self.models), *(f"{m}: error" for m in others)]
        rows = []
        for index in points:
            cells = [value_label(v) for v in self._point(index).values()]
            for at in ((*index, i) for i in range(len(self.models))):
                cells.append("diverged" if lost[at] else f"{value[at]:.4g} ± {sem[at]:.1g}")
            errors = self._result(index).point_errors() if others else {}
            cells += [_tables.percent(errors[model]) for model in others]
            rows.append(cells)
        return [*head, "diverged"], [[*row, str(int(lost[i].max()))] for row, i in zip(rows, points, strict=True)]

    def notes(self) -> list[str]:
        """What the table's columns mean, which point is best, and the time it took."""
        info = json.loads(self.dataset.attrs["device"])
        count = int(np.prod(self._shape))
        notes = ["late loss: mean over the last third of the run. All points share their random numbers."]
        if self._compares:
            notes.append("error: L2 of the mean-loss curve against the optimizer's; `errors` has its limits.")
        if count > _ROWS:
            notes.append(f"The {_SHOWN} best of {count} points; `late_loss` has all.")
        if np.isfinite(self._late()[0][..., self.models.index(self._shown(None))]).any():
            notes.append(f"Best of {self._shown(None)!r}: {self.best()}.")
        indexed = [key for key in self.over if "values" in self.dataset[key].attrs]
        notes += [f"{key}: {self.dataset[key].attrs['values']}." for key in indexed]
        seconds = float(self.dataset.wall_time.sum())
        return [*notes, f"{count} points on {info['count']} × {info['kind']}, {seconds:.1f} s."]

    @property
    def _shape(self) -> tuple[int, ...]:
        return tuple(self.dataset.sizes[key] for key in self.over)

    @property
    def _compares(self) -> bool:
        return self._result((0,) * len(self._shape)).compares

    def _point(self, index: tuple[int, ...]) -> dict[str, Any]:
        return {key: values[i] for (key, values), i in zip(self.over.items(), index, strict=True)}

    def _flat_point(self, flat: int) -> dict[str, Any]:
        return self._point(tuple(int(i) for i in np.unravel_index(flat, self._shape)))

    def _result(self, index: tuple[int, ...]) -> Result:
        here = self.dataset.isel(dict(zip(self.over, index, strict=True)), drop=True)
        models = json.loads(self.dataset.attrs["models"])
        for label, seconds in zip(self.models, here.wall_time.values, strict=True):
            models[label]["wall_time"] = float(seconds)
        attrs = {key: value for key, value in self.dataset.attrs.items() if key != "over"}
        attrs |= {**json.loads(str(here.point.item())), "models": json.dumps(models)}
        dataset = here.drop_vars(_OWN)
        dataset.attrs = attrs
        return Result(dataset)

    def _shown(self, model: str | None) -> str:
        """The model by that name, by default the optimizer, or the first."""
        if model is not None:
            return _check.choice("model", model, self.models)
        return self._result((0,) * len(self._shape)).optimizer or self.models[0]

    def _others(self) -> list[str]:
        if not self._compares:
            raise ValueError("quantity: there is nothing to compare; sweep the optimizer and another model.")
        return [model for model in self.models if model != self._shown(None)]

    def _compared(self, model: str | None) -> str:
        others = self._others()
        return others[0] if model is None else _check.choice("model", model, others)

    def _group_losses(self) -> tuple[np.ndarray, np.ndarray]:
        """Late loss of every group of paths, (…, model, group), and paths in each, (model, group)."""
        steps = self.dataset.step.values
        late = self.dataset.loss_group_mean.isel(step=np.flatnonzero(steps >= steps[-1] * 2 / 3))
        groups = late.transpose(*self.over, "model", "group", "step").values.mean(axis=-1)
        first = self.dataset.group_paths.isel({"step": 0, **dict.fromkeys(self.over, 0)})
        return groups, first.transpose("model", "group").values.astype(float)

    def _late(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Late loss, its standard error and the paths lost, each (…, model)."""
        groups, counts = self._group_losses()
        n_paths = self.dataset.n_paths.transpose(*self.over, "model", "step").values
        lost = n_paths[..., 0] - n_paths[..., -1]
        value, sem = _mean_and_sem(groups, counts)
        return np.where(lost > 0, np.nan, value), np.where(lost > 0, np.nan, sem), lost

    def _panel(self, quantity: str, model: str, keys: list[str]) -> Panel:
        at = self.models.index(model)
        value, sem, lost = (array[..., at] for array in self._late())
        shape = tuple(len(self.over[key]) for key in keys)
        marked, dashed = None, []
        if quantity == "late_loss":
            infimum = np.array([self._infimum(index) for index in np.ndindex(self._shape)]).reshape(self._shape)
            known = np.isfinite(infimum).all()
            low, high = ((value - (infimum if known else 0)) + sign * 2.576 * sem for sign in (-1, 1))
            value = value - infimum if known else value
            if np.isfinite(value).any():
                best = self.best(model)
                marked, *dashed = (tuple(p[key] for key in keys) for p in (best.point, *best.ties))
        else:
            frame = self.errors().xs(model, level="model")
            value = frame[quantity].to_numpy().reshape(self._shape)
            names = {"error": ("lower", "upper")}.get(quantity, (f"{quantity}_lower", f"{quantity}_upper"))
            names = {"late_error": ("late_lower", "late_upper")}.get(quantity, names)
            low, high = (frame[name].to_numpy().reshape(self._shape) for name in names)
            value = np.where(lost > 0, np.nan, value)
        marks = [tuple(self.over[k].index(v) for k, v in zip(keys, m, strict=True)) for m in [marked, *dashed] if m]
        value, low, high = (np.asarray(a, float).reshape(shape) for a in (value, low, high))
        return Panel(value, low, high, (lost > 0).reshape(shape), marks)

    def _infimum(self, index: tuple[int, ...]) -> float:
        here = self.dataset.point.isel(dict(zip(self.over, index, strict=True))).item()
        return float(json.loads(str(here)).get("infimum", self.dataset.attrs["infimum"]))

    def _label(self, quantity: str) -> str:
        if quantity != "late_loss":
            return _QUANTITIES[quantity]
        known = all(np.isfinite(self._infimum(index)) for index in np.ndindex(self._shape))
        return "mean loss $-$ infimum, last third" if known else _QUANTITIES[quantity]


def _mean_and_sem(groups: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over all paths and its standard error, from group means on the last axis and numbers of paths."""
    weights = counts / counts.sum(axis=-1, keepdims=True)
    mean = (weights * groups).sum(axis=-1)
    number = groups.shape[-1]
    if number < 2:
        return mean, np.full(mean.shape, np.nan)
    square = (weights**2 * (groups - mean[..., None]) ** 2).sum(axis=-1) * number / (number - 1)
    return mean, np.sqrt(square)


def _equal(value: Any, wanted: Any) -> bool:
    """Whether it is the same label; numbers up to rounding."""
    if isinstance(value, bool | str) or isinstance(wanted, bool | str):
        return bool(value == wanted)
    return bool(np.ndim(wanted) == 0 and np.isclose(value, wanted, rtol=1e-9, atol=0))


def _listed(values: list[Any]) -> str:
    return ", ".join(value_label(value) for value in values)


def load(path: str | os.PathLike[str]) -> Result | Sweep:
    """Read what `Result.save` or `Sweep.save` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, not NetCDF, or not a result of this library.
    """
    dataset = read_dataset(path)
    return Sweep(dataset) if "over" in dataset.attrs else Result(dataset)
