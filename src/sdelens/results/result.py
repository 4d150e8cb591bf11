"""The outcome of a simulation or comparison: one dataset, its table of errors, its figure, its file."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdelens.core import check
from sdelens.core.files import atomic_path, save_figure
from sdelens.results import tables
from sdelens.results.quantities import QUANTITIES, long_table, wide_table
from sdelens.results.tracking import (
    FEWEST_GROUPS,
    Curves,
    Interval,
    late_window,
    marginal_distances,
    spread_ratio,
    thirds,
    tracking_error,
)

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

__all__ = ["PATHLESS", "Result", "read_dataset", "write_dataset"]

FORMAT = 1
_LINEAR = ("sgd", "momentum")
"""Optimizers whose updates are linear in the stochastic gradients."""
PATHLESS = ("prediction", "forecast", "logged")
"""Kinds of models that are a single curve, not an ensemble."""


class Result:
    """What a run measured.

    ``dataset`` is an `xarray.Dataset` with dimensions ``model``, ``step`` (0 is the start; coordinate ``time`` = kη),
    ``group``, ``quantile`` and, where the problem has at most 64 parameters, ``coordinate``:

    - ``loss_mean, loss_std, loss_sem`` (model, step): over the paths that are still finite;
    - ``loss_group_mean, loss_group_m2, group_paths`` (model, group, step): mean, sum of squared deviations and number
      of finite paths; path i is in group i mod G;
    - ``loss_quantile`` (model, quantile, step): accurate to 1.6 % of loss − infimum, where that is 2⁻³² to 2³²;
    - ``grad_norm_mean`` (model, step): mean of ‖∇f‖;
    - ``x_mean, x_var`` (model, step, coordinate);
    - ``n_paths`` (model, step): paths that are still finite; the others are excluded from the averages;
    - ``path_x`` (model, path, step, parameter): with ``keep_paths``; parameters in the order of `jax.tree.leaves`;
    - ``observable_mean, observable_std, observable_group_mean, observable_group_m2``: with ``observables``, like those
      of the loss, with a dimension ``observable``; `of` makes a result of one observable;
    - ``end_x`` (model, end_path, marginal): with ``marginals``, the chosen coordinates of every path at the last step;
    - ``loss_bound`` (bound, step): bounds added by `with_bound`.

    A prediction (`sdelens.theory.predict`), a forecast (`sdelens.forecast`) or a curve added by `with_curve` has no
    paths, and NaN where it has no value; the quantiles of a forecast are the limits of its band.

    Its attributes hold what is needed to repeat the run, as JSON: ``problem, noise, optimizer, run, models, versions,
    device``, and ``rerunnable``, which is 0 if a function of the user cannot be written down.
    """

    def __init__(self, dataset: "xr.Dataset") -> None:
        self.dataset = dataset
        # Tables, pages and users request the same values several times.
        self._distances: dict[tuple[str, int], pd.DataFrame] = {}
        self._statistics: dict[tuple[str, float], pd.DataFrame] = {}

    @property
    def models(self) -> list[str]:
        """Names of the models, in the order they were run."""
        return [str(m) for m in self.dataset.model.values]

    @property
    def compares(self) -> bool:
        """Whether there is an optimizer's run, or a logged curve beside forecasts, to compare other models with."""
        return self._default_reference is not None and len(self.models) > 1

    @property
    def observables(self) -> list[str]:
        """Names of the observables recorded in addition to the loss."""
        return [str(name) for name in self.dataset.observable.values] if "observable" in self.dataset.dims else []

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
        """Join the models of both results, those of `other` last; for example a prediction and the runs it predicts.

        Raises:
            ValueError: if they share a model's name, or differ in problem, noise, optimizer, start, steps or paths.
        """
        if not isinstance(other, Result):
            raise TypeError(f"other: got {type(other).__name__}; give a Result.")
        shared = set(self.models) & set(other.models)
        if shared:
            raise ValueError(
                f"other: both results have models named {sorted(shared)}; run one of them with another label, "
                f"models={{label: model}}."
            )
        for key in ("problem", "noise", "optimizer", "infimum", "quantity"):
            mine, theirs = self.dataset.attrs.get(key, "loss"), other.dataset.attrs.get(key, "loss")
            if mine != theirs and not (mine != mine and theirs != theirs):  # noqa: PLR0124 (NaN: no infimum known)
                raise ValueError(f"other: differs in {key}: {theirs}; merge runs of one experiment.")
        run, their_run = self.info["run"], other.info["run"]
        for key in {"start", *(run.keys() & their_run.keys())}:
            if run.get(key) != their_run.get(key):
                raise ValueError(f"other: differs in {key}: {their_run.get(key)}; merge runs of one experiment.")
        if not np.array_equal(self.dataset.step, other.dataset.step):
            raise ValueError("other: is recorded at other steps; merge runs with the same record.every.")
        with_paths = self if "paths" in run or "paths" not in their_run else other
        attrs = dict(with_paths.dataset.attrs) | {"run": json.dumps({**their_run, **run})}
        attrs["models"] = json.dumps({**self.info["models"], **other.info["models"]})
        return Result(_concatenated(self.dataset, other.dataset).assign_attrs(attrs))

    def with_curve(self, label: str, losses: Any, steps: Any) -> "Result":
        """Add your own loss curve, for example a logged one, as a further model.

        It is interpolated to the recorded steps and is NaN outside the range of the logged ones, which `errors` leaves
        out. Its noise is not known, so errors and limits count this noise as part of the difference.

        Args:
            label: name of the curve.
            losses: shape (n,), n ≥ 2.
            steps: optimizer steps at which they were logged, increasing, shape (n,).

        Raises:
            ValueError, TypeError: if the shapes differ, steps do not increase or none lies within the run, a loss is
                not finite, or the label is taken.
        """
        import xarray as xr

        label = _checked_label(label)
        losses, steps = (check.finite_array(n, v, (1,)) for n, v in (("losses", losses), ("steps", steps)))
        if losses.shape != steps.shape or losses.size < 2:
            raise ValueError(f"losses: got {losses.size} for {steps.size} steps; give equally many, at least two.")
        if (np.diff(steps) <= 0).any() or steps[0] < 0:
            raise ValueError("steps: must be 0 or greater and strictly increasing; sort them and remove duplicates.")
        own = self.dataset.step.values
        curve = np.interp(own, steps, losses, left=np.nan, right=np.nan)
        if np.isfinite(curve).sum() < 2:
            raise ValueError(
                f"steps: from {steps[0]:g} to {steps[-1]:g}; fewer than two recorded steps of this run, which has "
                f"{own[-1]}, lie there."
            )
        missing, none = np.full(own.shape, np.nan), np.zeros(own.shape, np.int64)
        columns = {"loss_mean": curve, "loss_std": missing, "loss_sem": missing, "n_paths": none}
        variables = {name: (("model", "step"), values[None]) for name, values in columns.items()}
        coordinates = {"model": [label], "step": own, "time": ("step", self.dataset.time.values)}
        settings = {label: {"model": "logged", "stream": label, "wall_time": 0.0}}
        attrs = dict(self.dataset.attrs) | {"models": json.dumps(settings)}
        return self.merge(Result(xr.Dataset(variables, coordinates, attrs)))

    def with_bound(self, label: str, losses: Any) -> "Result":
        """Add a bound of the loss at the recorded steps, shape (steps,), to the figure; infinite where there is none.

        Raises:
            ValueError: if the shape differs, an entry is NaN or below the infimum, or the label is taken.
        """
        import xarray as xr

        label = _checked_label(label)
        try:
            values = np.asarray(losses, np.float64)
        except (TypeError, ValueError) as error:
            raise TypeError(f"losses: got {losses!r}; give numbers.") from error
        if values.shape != self.dataset.step.shape:
            raise ValueError(
                f"losses: got shape {values.shape}; give one number per recorded step, of which there are "
                f"{self.dataset.step.size}."
            )
        if np.isnan(values).any() or (values < self.dataset.attrs["infimum"]).any():
            raise ValueError(
                "losses: has entries that are NaN or below the infimum; give infinity where there is no bound."
            )
        own = xr.DataArray(values[None], dims=("bound", "step"), coords={"bound": [label], "step": self.dataset.step})
        if "loss_bound" in self.dataset:
            if label in self.dataset.bound.values:
                raise ValueError(f"label: there is a bound {label!r} already; name this one differently.")
            own = xr.concat([self.dataset.loss_bound, own], dim="bound")
        rest = self.dataset.drop_dims("bound", errors="ignore")
        return Result(rest.assign(loss_bound=own.drop_vars("time", errors="ignore")))

    def of(self, observable: str) -> "Result":
        """The result with an observable in place of the loss, to get its errors, table and figure.

        Errors are then relative to the height of the reference's mean above its minimum; there are no quantiles.

        Raises:
            ValueError: if it was not recorded.
        """
        if not self.observables:
            raise ValueError(
                f"observable: got {observable!r}; the run recorded none. Repeat it with "
                "record=sl.Record(observables=[...])."
            )
        name = check.choice("observable", observable, self.observables)
        here = self.dataset.sel(observable=name)
        taken = {f"loss_{part}": here[f"observable_{part}"] for part in ("mean", "std", "group_mean", "group_m2")}
        taken["loss_sem"] = here.observable_std / np.sqrt(np.maximum(here.n_paths, 1))
        rest = self.dataset.drop_dims(["observable", "quantile", "bound"], errors="ignore")
        dataset = rest.assign({key: values.drop_vars("observable") for key, values in taken.items()})
        return Result(dataset.assign_attrs(infimum=float("nan"), quantity=name))

    def distances(self, reference: str | None = None, permutations: int = 999) -> "pd.DataFrame":
        r"""Distances between the laws of single coordinates and the reference's at the last step (needs ``marginals``).

        W₁ = ∫ |F − G| of the two empirical distribution functions, in units of the reference's standard deviation.
        ``null`` is its 99 % quantile for two samples of one law, from permutations of the pooled paths (swaps within
        pairs for models that share their random numbers), and ``p_value`` is the share of permutations that reach the
        observed distance. The row ``all`` has the mean over the coordinates.

        Args:
            reference: label of the model to compare with, by default that of the optimizer, or of the logged curve
                beside forecasts.
            permutations: number of permutations, 99 or more.

        Returns:
            A data frame indexed by model and coordinate, with columns distance, null and p_value.

        Raises:
            ValueError: if the run kept no marginals, or `reference` is not among the models.
        """
        import pandas as pd

        reference = self._reference(reference)
        permutations = check.at_least("permutations", permutations, 99)
        if "end_x" not in self.dataset:
            raise ValueError(
                "marginals: the run kept none; repeat it with record=sl.Record(marginals=8), or coordinates by index."
            )
        ends = {m: self.dataset.end_x.sel(model=m).values for m in self.models if self.has_paths(m)}
        if reference not in ends:
            raise ValueError(f"reference: {reference!r} is a curve without paths; name one of {list(ends)}.")
        if (reference, permutations) in self._distances:
            return self._distances[reference, permutations].copy()
        marginals, rows = list(self.dataset.marginal.values), {}
        for model, values in ends.items():
            if model == reference:
                continue
            paired = self.settings[model]["stream"] == self.settings[reference]["stream"]
            found = marginal_distances(values, ends[reference], paired, permutations)
            for name, row in zip([*(int(m) for m in marginals), "all"], found, strict=True):
                rows[model, name] = row._asdict()
        frame = pd.DataFrame.from_dict(rows, orient="index")
        frame.index = pd.MultiIndex.from_tuples(rows, names=["model", "coordinate"])
        self._distances[reference, permutations] = frame
        return frame.copy()

    def errors(self, reference: str | None = None, confidence: float = 0.99) -> "pd.DataFrame":
        r"""Tracking error of every model against `reference`.

        The error is ‖a − b‖/‖b − b_min‖ of the mean-loss curves over the recorded steps, with the bias of Monte-Carlo
        noise removed; b_min is the problem's infimum, or the reference's smallest mean loss where that is not known.
        Columns; a quantity q with one-sided limits at `confidence` has ``q``, ``q_lower`` and ``q_upper``. The limits
        of errors are from a bootstrap, the others from a jackknife, over groups of paths. They are NaN where the loss
        has no moment of the order that they need (`moments`): 2, and 4 for the spread.

        - ``error``: with limits;
        - ``floor``: the error that a perfect model would show at these numbers of paths without the correction;
        - ``late_error``: the error over the last third of the run (relative to the height of the whole curve where the
          infimum is not known), with limits;
        - ``late_shift``: relative difference of the mean loss over the last third, with limits;
        - ``discretisation``: for a model run both with substeps and at Δt = η, the error between the two; ``error`` is
          then the error of the SDE itself, and this is the error of the integrator;
        - ``spread``: standard deviation over paths relative to the reference's, averaged over the recorded steps at
          which paths differ, with limits; ``spread_early, spread_middle, spread_late``: the same over the thirds of
          the run, since errors of both signs cancel in the average;
        - ``quantile_5, quantile_95``: relative L2 error of the 5 % and 95 % quantiles of the loss over paths; the
          Monte-Carlo noise and the resolution of the recorded quantiles (1.6 %) are not removed;
        - ``diverged``: number of paths that diverged and were excluded from the averages.

        Args:
            reference: label of the model to compare with, by default that of the optimizer, or of the logged curve
                beside forecasts.
            confidence: one-sided confidence of each limit, in (0.5, 1).

        Returns:
            A data frame with one row per model other than the reference; NaN where a whole group of paths diverged.

        Raises:
            ValueError: if `reference` is not among the models, if it is not given and there is no optimizer, or
                if `confidence` is not in (0.5, 1).
        """
        return wide_table(self.statistics(reference, confidence))

    def statistics(self, reference: str | None = None, confidence: float = 0.99) -> "pd.DataFrame":
        """The numbers of `errors` in long form: one row per model and quantity, with columns value, lower and upper.

        Args:
            reference: as in `errors`.
            confidence: as in `errors`.

        Raises:
            ValueError: as `errors`.
        """
        reference = self._reference(reference)
        confidence = check.number("confidence", confidence)
        if not 0.5 < confidence < 1:
            raise ValueError(f"confidence: got {confidence}; it must lie in (0.5, 1), for example 0.99.")
        if (reference, confidence) not in self._statistics:
            rows = {m: self._compared(m, reference, confidence) for m in self.models if m != reference}
            self._statistics[reference, confidence] = long_table(rows)
        return self._statistics[reference, confidence].copy()

    def _compared(self, model: str, reference: str, confidence: float) -> dict[str, Interval]:
        """Every quantity of `errors` of one model."""
        covered = self._covered(model) & self._covered(reference)
        minimum = self._minimum(reference)
        full = tracking_error(self._curves(model, covered), self._curves(reference, covered), minimum, confidence)
        last = covered & late_window(self.dataset.step.values)
        sides = self._curves(model, last), self._curves(reference, last)
        late = tracking_error(*sides, minimum, confidence, height=self._height(reference))
        coarse = self.settings[model].get("coarse")
        integrator = np.nan
        if coarse in self.models:
            integrator = tracking_error(self._curves(coarse), self._curves(model), minimum).error
        n_paths = self.dataset.n_paths.sel(model=model).values
        found = {
            "error": Interval(full.error, full.lower, full.upper),
            "floor": Interval(full.floor),
            "late_error": Interval(late.error, late.lower, late.upper),
            "late_shift": Interval(late.shift, late.shift_lower, late.shift_upper),
            "discretisation": Interval(integrator),
            "spread": spread_ratio(self._curves(model), self._curves(reference), confidence),
            **{
                f"spread_{name}": spread_ratio(self._curves(model, part), self._curves(reference, part), confidence)
                for name, part in thirds(self.dataset.step.values).items()
            },
            "quantile_5": Interval(self._quantile_error(model, reference, 0.05)),
            "quantile_95": Interval(self._quantile_error(model, reference, 0.95)),
            "diverged": Interval(float(n_paths[0] - n_paths[-1])),
        }
        order = min(self.moments(model), self.moments(reference))
        return {k: v if order > QUANTITIES[k].moment else Interval(v.value) for k, v in found.items()}

    def moments(self, model: str) -> float:
        """Order below which the loss of a model has moments over paths; infinite where all exist or none is known.

        Student t noise of ν degrees of freedom has moments of order below ν. So has x, if updates are linear in the
        gradient (SGD and momentum), and a loss that grows like ‖x‖² then has those below ν/2. All moments exist for
        bounded updates, as those of SignSGD and Adam, and for SDEs in closed form, whose increments are normal.
        """
        settings = self.settings[model]
        drawn = settings["model"] == "optimizer" or (
            settings["model"] == "empirical" and settings.get("coefficients") != "quadrature"
        )
        linear = self.info["optimizer"].get("name") in _LINEAR
        loss = self.dataset.attrs.get("quantity", "loss") == "loss"
        return _degrees(self.info["noise"]) / 2 if drawn and linear and loss else np.inf

    def _quantile_error(self, model: str, reference: str, level: float) -> float:
        """‖a − b‖/‖b − b_min‖ of the curves of a quantile; NaN where it was not recorded."""
        if "loss_quantile" not in self.dataset:
            return np.nan
        a, b = (self.dataset.loss_quantile.sel(model=m, quantile=level).values for m in (model, reference))
        height = np.sqrt(np.sum((b - self._minimum(reference)) ** 2))
        return float(np.sqrt(np.sum((a - b) ** 2)) / height) if height > 0 else np.nan

    def point_errors(self, late: bool = False) -> dict[str, tuple[float, float]]:
        """``error``, or ``late_error``, and its floor of every model against the optimizer; fast, without limits."""
        reference = self._reference(None)
        minimum, found = self._minimum(reference), {}
        height = self._height(reference) if late else None
        for model in (m for m in self.models if m != reference):
            covered = self._covered(model) & self._covered(reference)
            covered = covered & late_window(self.dataset.step.values) if late else covered
            own, theirs = (self._curves(m, covered) for m in (model, reference))
            value = tracking_error(own, theirs, minimum, resamples=0, height=height)
            found[model] = value.error, value.floor
        return found

    def plot(self, path: str | os.PathLike[str] | None = None, reference: str | None = None) -> "Figure":
        """Mean-loss curves with bands, and their relative difference from `reference` below; saved if `path` is given.

        Raises:
            ValueError: if matplotlib does not write files with the suffix of `path`.
        """
        from sdelens.results.plotting import plot_losses

        compared = self.compares if reference is None else len(self.models) > 1
        shown = self._reference(reference) if compared else self.models[0]
        kinds = {label: model["model"] for label, model in self.settings.items()}
        figure = plot_losses(self.dataset, shown, kinds, compared, self._height(shown))
        if path is not None:
            save_figure(figure, path)
        return figure

    def export(self, path: str | os.PathLike[str], reference: str | None = None, confidence: float = 0.99) -> None:
        """Write the table of `errors` as ``.csv`` or ``.tex`` (a LaTeX tabular with booktabs rules).

        Raises:
            ValueError: if the suffix is neither of these.
        """
        frame = self.errors(reference, confidence)
        suffix = Path(path).suffix.lower()
        if suffix == ".csv":
            text = frame.to_csv()
        elif suffix == ".tex":
            short = frame[["error", "error_lower", "error_upper", "floor", "late_shift"]]
            short.columns = ["error", "lower", "upper", "floor", "last third"]
            text = short.to_latex(float_format=lambda v: f"{v:.2e}", escape=True)
        else:
            raise ValueError(f"path: got {str(path)!r}; end it in .csv or .tex.")
        with atomic_path(path) as temporary:
            Path(temporary).write_text(text, encoding="utf-8")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the dataset as NetCDF (HDF5), atomically.

        Raises:
            OSError: if it cannot be written, or `path` is a folder.
        """
        write_dataset(self.dataset, path)

    def __str__(self) -> str:
        """The table of errors, or of final losses where there is nothing to compare, as plain text."""
        return tables.as_text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return tables.as_html(self)

    def title(self) -> str:
        """One line that says what was run."""
        return tables.title(self)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the printed table, as text."""
        return tables.table(self)

    def details(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """Further tables with caption, header and rows: observables, and the laws of coordinates at the last step."""
        return tables.details(self)

    def notes(self) -> list[str]:
        """What the table's columns mean, the devices used, and how to use more."""
        return tables.notes(self)

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """How each model was run, by label."""
        decoded: dict[str, dict[str, Any]] = json.loads(self.dataset.attrs["models"])
        return decoded

    @property
    def optimizer(self) -> str | None:
        """Label of the discrete optimizer, if it was run."""
        return next((label for label in self.models if self.settings[label]["model"] == "optimizer"), None)

    def _reference(self, reference: str | None) -> str:
        if reference is not None:
            return check.choice("reference", reference, self.models)
        if self._default_reference is None:
            raise ValueError(f"reference: there is no optimizer among the models; name one of {self.models}.")
        return self._default_reference

    @property
    def _default_reference(self) -> str | None:
        """The optimizer, or the logged curve if all others are forecasts."""
        kinds = {label: self.settings[label]["model"] for label in self.models}
        logged = [label for label, kind in kinds.items() if kind == "logged"]
        if len(logged) == 1 and set(kinds.values()) == {"forecast", "logged"}:
            return logged[0]
        return self.optimizer

    def _minimum(self, reference: str) -> float:
        infimum = float(self.dataset.attrs["infimum"])
        return infimum if np.isfinite(infimum) else float(self.dataset.loss_mean.sel(model=reference).min())

    def _height(self, reference: str) -> float | None:
        """Scale of late errors: None for the late loss itself; that of the whole run if the infimum is not known.

        On a plateau, the loss minus its smallest value is only noise, and not a suitable scale.
        """
        if np.isfinite(float(self.dataset.attrs["infimum"])):
            return None
        curve = self.dataset.loss_mean.sel(model=reference).values - self._minimum(reference)
        return float(np.sqrt(np.nanmean(curve**2)))

    def _covered(self, model: str) -> np.ndarray:
        """Which records a model has values for: all, except for a logged curve."""
        if self.settings[model]["model"] == "logged":
            return np.isfinite(self.dataset.loss_mean.sel(model=model).values)
        return np.ones(self.dataset.step.shape, bool)

    def has_paths(self, model: str) -> bool:
        """Whether a model is an ensemble, not a single curve."""
        return self.settings[model]["model"] not in PATHLESS

    def _curves(self, model: str, part: Any = slice(None)) -> Curves:
        here = self.dataset.sel(model=model)
        if not self.has_paths(model):  # a curve without noise is the mean of every group
            mean = np.broadcast_to(here.loss_mean.values[part], (FEWEST_GROUPS, here.loss_mean.values[part].size))
            return Curves(mean, np.ones(FEWEST_GROUPS), self.settings[model]["stream"])
        groups = here.loss_group_mean.transpose("group", "step").values[:, part]
        counts = here.group_paths.isel(step=0).values.astype(float)
        m2 = here.loss_group_m2.transpose("group", "step").values[:, part] if "loss_group_m2" in here else None
        living = here.group_paths.transpose("group", "step").values[:, part].astype(float)
        return Curves(groups, counts, self.settings[model]["stream"], m2, living)


def _degrees(noise: Any) -> float:
    """Order below which described noise has moments: the fewest degrees of freedom in it; infinite where not known."""
    if isinstance(noise, list):
        return min(map(_degrees, noise), default=np.inf)
    if not isinstance(noise, dict) or noise.get("compression", {}).get("name") == "majority-vote":
        return np.inf
    own = float(noise.get("df", 2 if noise.get("variance") == "inf" else np.inf))
    return min([own, *(_degrees(part) for part in noise.values())])


def _checked_label(label: Any) -> str:
    if not isinstance(label, str) or not label.strip():
        raise TypeError(f"label: got {label!r}; give a name.")
    return label


def _concatenated(first: "xr.Dataset", second: "xr.Dataset") -> "xr.Dataset":
    """The models of both datasets; a variable that one of them lacks is filled with NaN, or 0 for counts."""
    import xarray as xr

    def filled(dataset: "xr.Dataset", like: "xr.Dataset") -> "xr.Dataset":
        for name, values in like.data_vars.items():
            if name not in dataset and "model" in values.dims:
                one = values.isel(model=[0] * dataset.sizes["model"]).assign_coords(model=dataset.model)
                fill = 0 if np.issubdtype(values.dtype, np.integer) else np.nan
                dataset = dataset.assign({name: xr.full_like(one, fill)})
        return dataset

    bounds = [d.loss_bound for d in (first, second) if "loss_bound" in d]
    if len(bounds) == 2 and set(bounds[0].bound.values) & set(bounds[1].bound.values):
        raise ValueError("other: has a bound of the same name; add it under another by with_bound.")
    first, second = (d.drop_dims("bound", errors="ignore") for d in (first, second))
    parts = [filled(first, second), filled(second, first)]
    joined = xr.concat(parts, dim="model", combine_attrs="override", join="exact")
    return joined.assign(loss_bound=xr.concat(bounds, dim="bound")) if bounds else joined


def write_dataset(dataset: "xr.Dataset", path: str | os.PathLike[str]) -> None:
    """Write a dataset as NetCDF (HDF5), atomically."""
    with atomic_path(path) as temporary:
        dataset.to_netcdf(temporary, engine="h5netcdf")


def read_dataset(path: str | os.PathLike[str]) -> "xr.Dataset":
    """Read the dataset of a result or of a sweep from a file.

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
    return dataset
