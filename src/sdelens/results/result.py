"""The outcome of a simulation or comparison: one dataset, its table of errors, its figure, its file."""

import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdelens.core import check
from sdelens.core.files import atomic_path
from sdelens.results import joined, latex, tables
from sdelens.results.autocorrelation import Autocorrelation, autocorrelation_of
from sdelens.results.hitting import HittingTimes, times_of
from sdelens.results.joined import PATHLESS
from sdelens.results.law_statistics import QUANTITIES as QUANTITIES_OF_LAWS
from sdelens.results.laws import Laws, compared_laws
from sdelens.results.printable import Parts, Plotted, Table
from sdelens.results.quantities import QUANTITIES, long_table, wide_table
from sdelens.results.tracking import (
    FEWEST_GROUPS,
    Curves,
    Interval,
    late_window,
    spread_ratio,
    thirds,
    tracking_error,
)

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

    from sdelens.results.figures import Sheet

__all__ = ["Result", "read_dataset", "write_dataset"]

FORMAT = 1
_LINEAR = ("sgd", "momentum")
"""Optimizers whose updates are linear in the stochastic gradients."""


class Result(Plotted):
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
    - ``path_x`` (model, path, step, parameter): with ``keep_paths``; parameters in the order of `jax.tree.leaves`; what
      else ``keep`` names is stored likewise, as ``path_m`` or ``path_loss``;
    - ``observable_mean, observable_std, observable_group_mean, observable_group_m2``: with ``observables``, like those
      of the loss, with a dimension ``observable``; `of` makes a result of one observable;
    - ``law_loss, law_observable, law_x`` (model, moment, every_path, …): with ``times`` or ``marginals``, the values of
      every path at these steps; NaN from where it diverged;
    - ``hit_step`` (model, hit, every_path): with ``hits``, the first step at which each condition held, NaN if it never
      did until the step ``watched_until`` (model, every_path);
    - ``loss_bound`` (bound, step): bounds added by `with_bound`.

    A prediction (`sdelens.theory.predict`), a forecast (`sdelens.forecast`) or a curve added by `with_curve` has no
    paths, and NaN where it has no value; the quantiles of a forecast are the limits of its band.

    Its attributes hold what is needed to repeat the run, as JSON: ``problem, noise, optimizer, run, models, versions,
    device``, and ``rerunnable``, which is 0 if a function of the user cannot be written down.
    """

    def __init__(self, dataset: "xr.Dataset") -> None:
        self.dataset = dataset
        # Tables, pages and users request the same values several times.
        self._laws: dict[Any, Laws] = {}
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
        return Result(joined.merged(self.dataset, other.dataset))

    def rename(self, names: Mapping[str, str]) -> "Result":
        """The result with other labels of its models, as {old: new}; the others keep theirs.

        Raises:
            ValueError: if there is no such model, or two models would have one label.
        """
        if not isinstance(names, Mapping):
            raise TypeError(f"names: got {type(names).__name__}; give the new labels by the old ones.")
        wanted = {check.choice("names", old, self.models): _checked_label(new) for old, new in names.items()}
        labels = [wanted.get(label, label) for label in self.models]
        twice = [label for label in dict.fromkeys(labels) if labels.count(label) > 1]
        if twice:
            raise ValueError(f"names: two models would be called {twice[0]!r}; give each its own label.")
        return Result(joined.renamed(self.dataset, wanted))

    def select(self, models: Sequence[str]) -> "Result":
        """The result with only these models, in this order.

        Raises:
            ValueError: if there is no such model, or one is named twice.
        """
        if isinstance(models, str) or not isinstance(models, Sequence) or not models:
            raise TypeError(f"models: got {models!r}; give a list of labels, of {self.models}.")
        wanted = [check.choice("models", label, self.models) for label in models]
        if len(set(wanted)) < len(wanted):
            raise ValueError(f"models: got {list(models)}; name each once.")
        return Result(joined.selected(self.dataset, wanted))

    def pool(self, *others: "Result") -> "Result":
        r"""Join equal runs with other seeds to one result with the paths of all.

        Group g of the result consists of the groups g of all runs. Their counts add up, and means and squared
        deviations are joined as those of the chunks of one run are (Chan, Golub and LeVeque 1983), so that nothing but
        rounding distinguishes the statistics from those of one run of all paths. Errors, limits and floors follow from
        them. The quantiles of the loss do not follow from those of the parts, and are left out, which `notes` says;
        figures show the standard deviation in their place. Kept paths and the coordinates of every path are joined.

        Args:
            others: results of the same problem, noise, optimizer, models, steps and records. Numbers of paths may
                differ as long as the number of groups is the same.

        Raises:
            ValueError: if the runs differ in anything else, which the message names, or share a seed.
        """
        for other in others:
            if not isinstance(other, Result):
                raise TypeError(f"others: got {type(other).__name__}; give results of runs with other seeds.")
        return Result(joined.pooled([self.dataset, *(other.dataset for other in others)]))

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
        if "law_observable" in here:
            taken["law_loss"] = here.law_observable
        rest = self.dataset.drop_dims(["observable", "quantile", "bound"], errors="ignore")
        dataset = rest.assign({key: values.drop_vars("observable") for key, values in taken.items()})
        return Result(dataset.assign_attrs(infimum=float("nan"), quantity=name))

    def laws(
        self,
        at: Any = None,
        reference: str | None = None,
        *,
        quantities: Sequence[str] = QUANTITIES_OF_LAWS,
        confidence: float = 0.99,
        resamples: int = 999,
        paths: int = 2048,
    ) -> Laws:
        r"""Differences between the laws of all paths and those of the reference, at the steps that were stored.

        The columns that are compared are the loss, the observables and the coordinates stored by `Record` (``times``,
        ``marginals``), each in units of its standard deviation in the reference; ``"all"`` is the joint law of the
        coordinates. The quantities are, with F and G the distribution functions of model and reference:

        - ``w1``: W₁ = ∫|F − G|; for all coordinates the sliced distance, its mean over directions;
        - ``energy``: the energy distance (2∫(F − G)²)^½; for all, (2E‖X − Y‖ − E‖X − X'‖ − E‖Y − Y'‖)^½;
        - ``quantile_5, …, quantile_95``: differences of the quantiles;
        - ``covariance``: ‖Cov X − Cov Y‖_F/‖Cov Y‖_F of the coordinates.

        ``floor`` is what a perfect model would show on average; it is removed from the energy distance and from the
        covariance, but not from W₁. ``p_value`` is the share of permutations of the pooled paths (swaps within pairs
        for models that share their random numbers) that show at least as much, and ``null`` the quantile of what they
        show, at `confidence`. Both limits hold together with at least `confidence`, for many paths of finite variance,
        whether the laws differ or not; `sdelens.results.law_statistics` has the formulas.

        Args:
            at: a stored step, a list of them, or ``"all"``; by default the last.
            reference: label of the model to compare with, by default as in `errors`.
            quantities: which of ``"w1"``, ``"energy"``, ``"quantiles"`` and ``"covariance"``.
            confidence: one-sided confidence of each limit.
            resamples: number of permutations and of bootstrap samples, 99 or more.
            paths: number of paths of each model that are used, the first ones.

        Raises:
            ValueError: if the run stored no values of every path, or an argument does not fit.
        """
        key = (str(at), self._reference(reference), tuple(quantities), confidence, resamples, paths)
        if key not in self._laws:
            streams = {m: self.settings[m]["stream"] for m in self.models if self.has_paths(m)}
            kinds = {m: self.settings[m]["model"] for m in streams}
            chosen = (key[1], at, quantities, confidence, resamples, paths)
            self._laws[key] = compared_laws(self.dataset, streams, kinds, *chosen)
        return self._laws[key]

    def hitting_times(self, reference: str | None = None, confidence: float = 0.99) -> HittingTimes:
        r"""How long paths take until the conditions of `Record` (``hits``) hold, by model.

        The mean is restricted to the K steps of the run, E min(T, K): paths for which the condition never holds count
        with K. Paths that diverge are censored there (Kaplan and Meier 1958). Columns of its table:

        - ``hits``, ``paths``: number of paths for which the condition held, and of all;
        - ``mean``, ``lower``, ``upper``: the mean in steps with normal limits (Greenwood's variance);
        - ``difference``, ``difference_lower``, ``difference_upper``: the mean minus that of the reference, path by path
          for models that share their random numbers.

        Its ``survival`` has the share of paths for which the condition has not held yet, with the limits of the beta
        product (Clopper and Pearson's, if no path diverges).

        Args:
            reference: label of the model to compare with, by default the optimizer, if it was run.
            confidence: one-sided confidence of each limit.

        Raises:
            ValueError: if the run counted no hitting times, or an argument does not fit.
        """
        if reference is not None or self._default_reference is not None:
            reference = self._reference(reference)
        streams = {m: self.settings[m]["stream"] for m in self.models if self.has_paths(m)}
        kinds = {m: self.settings[m]["model"] for m in streams}
        return times_of(self.dataset, streams, kinds, reference, confidence)

    def autocorrelation(
        self, of: Any = 0, *, since: int | None = None, lags: int | None = None, confidence: float = 0.99
    ) -> Autocorrelation:
        r"""Autocorrelation and integrated autocorrelation time of the kept paths at rest.

        It is estimated about the mean over all kept paths and steps, from products of values l steps apart; the time is
        1 + 2Σr(l) up to Sokal's window. Limits are those of the jackknife over paths and need eight of them.

        Args:
            of: a coordinate by its index, the name of a kept quantity that is one number (``"loss"``), or (name,
                index), as ``("m", 0)``; see ``keep`` of `Record`.
            since: first step that counts, by default that of the last third of the run; the paths must be at rest.
            lags: largest lag in steps, by default half of what is recorded since then.
            confidence: one-sided confidence of each limit.

        Raises:
            ValueError: if the run kept no paths, or an argument does not fit.
        """
        kinds = {m: self.settings[m]["model"] for m in self.models if self.has_paths(m)}
        return autocorrelation_of(self.dataset, kinds, of, since, lags, confidence)

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
        - ``late_shift``: difference of the mean losses over the last third, relative to the reference's minus b_min, or
          to the height of the whole curve where the infimum is not known, with limits;
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
        confidence = check.confidence(confidence)
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
        optimizer = self.info["optimizer"]
        while "base" in optimizer:
            optimizer = optimizer["base"]
        linear = optimizer.get("name") in _LINEAR
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

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        reference: str | None = None,
        *,
        ax: Any = None,
        figsize: tuple[float, float] | None = None,
        title: str | None = None,
        style: str | None = None,
        columns: int | None = None,
    ) -> "Figure":
        """Mean-loss curves with bands, and their relative difference from `reference` below; saved if `path` is given.

        Args:
            path: file to save it to, in the format of its suffix.
            reference: label of the model that others are compared with; by default as in `errors`.
            ax: axes to draw into instead of a new figure: one for the curves alone, or two.
            figsize: width and height of a new figure in inches.
            title: title instead of the figure's own; ``""`` for none.
            style: ``"screen"`` or ``"paper"``, as for `style`; by default the one in use.
            columns: number of columns of a paper that the figure covers, 1 or 2.

        Returns:
            The figure.

        Raises:
            ValueError: if matplotlib does not write files with the suffix of `path`, the number of axes does not fit,
                or a name is not known.
        """
        from sdelens.results.figures import drawn

        draw = functools.partial(self._draw, reference=reference)
        return drawn(draw, path, ax=ax, figsize=figsize, title=title, style=style, columns=columns)

    def _draw(self, sheet: "Sheet", reference: str | None = None) -> None:
        from sdelens.results.plotting import plot_losses

        compared = self.compares if reference is None else len(self.models) > 1
        shown = self._reference(reference) if compared else self.models[0]
        kinds = {label: model["model"] for label, model in self.settings.items()}
        plot_losses(sheet, self.dataset, shown, kinds, compared, self._height(shown))

    def export(self, path: str | os.PathLike[str], reference: str | None = None, confidence: float = 0.99) -> None:
        """Write the table of `errors` as ``.csv`` or ``.tex`` (a LaTeX tabular with booktabs rules).

        Raises:
            ValueError: if the suffix is neither of these.
        """
        suffix = Path(path).suffix.lower()
        if suffix == ".csv":
            text = self.errors(reference, confidence).to_csv()
        elif suffix == ".tex":
            text = latex.tables([Table(*tables.latex_table(self, reference, confidence))], None, None)
        else:
            raise ValueError(f"path: got {str(path)!r}; end it in .csv or .tex.")
        with atomic_path(path) as temporary:
            Path(temporary).write_text(text, encoding="utf-8")

    def explore(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        coordinates: Sequence[int] | None = None,
        show: bool = True,
    ) -> Path:
        """Open the explorer, a page in the browser, with the settings of this run.

        The page computes the run again in the browser, at once after every change of a setting: particles of the
        optimizer and of its SDEs, the closure, the stationary law and the bound.

        Args:
            path: file for the page; by default one in the user's cache folder.
            coordinates: one or two coordinates to show, if the problem has more; they must not be coupled to others.
            show: whether to open the page.

        Returns:
            The page's file.

        Raises:
            ValueError: if the explorer cannot show the run. It shows quadratic losses of one or two coordinates,
                normal, Laplace and Student t noise with independent coordinates, and SGD, Momentum, SignSGD, Signum,
                Lion, RMSpropW and AdamW with constant learning rates. A random start is replaced by its mean.
        """
        from sdelens.explorer import open_page, settings_of

        info, start = self.info, None
        if "x_mean" in self.dataset:
            start = self.dataset.x_mean.isel(model=0, step=0).values
        described = info["problem"], info["noise"], info["optimizer"]
        return open_page(settings_of(*described, info["run"]["steps"], coordinates, start), path, show=show)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the dataset as NetCDF (HDF5), atomically.

        Raises:
            OSError: if it cannot be written, or `path` is a folder.
        """
        write_dataset(self.dataset, path)

    def _parts(self) -> Parts:
        """The table of errors, or of final losses where there is nothing to compare, and further tables."""
        further = [Table(head, rows, caption) for caption, head, rows in self.details()]
        return [self.title(), Table(*self.table()).without_empty(), *self.notes(), *further]

    def _tables(self) -> list[Table]:
        return [Table(*tables.latex_table(self))]

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
