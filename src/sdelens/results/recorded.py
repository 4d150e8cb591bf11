"""What was recorded of a run, and the statistics that follow from it, without figures or files."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from sdelens.core import check
from sdelens.core.limits import CONFIDENCE
from sdelens.core.progress import stage
from sdelens.results import added
from sdelens.results.autocorrelation import Autocorrelation, autocorrelation_of
from sdelens.results.comparison import Comparison, loss_moments
from sdelens.results.hitting import HittingTimes, times_of
from sdelens.results.joined import PATHLESS
from sdelens.results.law_statistics import QUANTITIES as QUANTITIES_OF_LAWS
from sdelens.results.laws import Laws, compared_laws
from sdelens.results.quantities import long_table, wide_table

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["RecordedRun"]


class RecordedRun:
    """What was recorded of the models of one experiment; abstract: see `Result`."""

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
    def settings(self) -> dict[str, dict[str, Any]]:
        """How each model was run, by label."""
        decoded: dict[str, dict[str, Any]] = json.loads(self.dataset.attrs["models"])
        return decoded

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

    @property
    def observables(self) -> list[str]:
        """Names of the observables recorded in addition to the loss."""
        return [str(name) for name in self.dataset.observable.values] if "observable" in self.dataset.dims else []

    @property
    def optimizer(self) -> str | None:
        """Label of the discrete optimizer, if it was run."""
        return next((label for label in self.models if self.settings[label]["model"] == "optimizer"), None)

    @property
    def compares(self) -> bool:
        """Whether there is an optimizer's run, or a logged curve beside forecasts, to compare other models with."""
        return self._default_reference is not None and len(self.models) > 1

    def has_paths(self, model: str) -> bool:
        """Whether a model is an ensemble, not a single curve."""
        return self.settings[model]["model"] not in PATHLESS

    def moments(self, model: str) -> float:
        """Order below which the loss of a model has moments over paths; infinite where all exist or none is known.

        Student t noise of ν degrees of freedom has moments of order below ν. So has x, if updates are linear in the
        gradient (SGD and momentum), and a loss that grows like ‖x‖² then has those below ν/2. All moments exist for
        bounded updates, as those of SignSGD and Adam, and for SDEs in closed form, whose increments are normal.
        """
        return loss_moments(self.dataset, model)

    def of(self, observable: str) -> Self:
        """The result with an observable in place of the loss, to get its errors, table and figure.

        Errors are then relative to the height of the reference's mean above its minimum; there are no quantiles.

        Raises:
            ValueError: if it was not recorded.
        """
        return type(self)(added.observable_as_loss(self.dataset, observable, self.observables))

    def errors(self, reference: str | None = None, confidence: float = CONFIDENCE) -> "pd.DataFrame":
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

    def statistics(self, reference: str | None = None, confidence: float = CONFIDENCE) -> "pd.DataFrame":
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
            comparison = Comparison(self.dataset, reference)
            with stage("computing limits"):
                rows = {m: comparison.quantities(m, confidence) for m in self.models if m != reference}
            self._statistics[reference, confidence] = long_table(rows)
        return self._statistics[reference, confidence].copy()

    def point_errors(self, late: bool = False) -> dict[str, tuple[float, float]]:
        """``error``, or ``late_error``, and its floor of every model against the optimizer; fast, without limits."""
        comparison = Comparison(self.dataset, self._reference(None))
        return {m: comparison.point_error(m, late) for m in self.models if m != comparison.reference}

    def stated_errors(self) -> dict[str, tuple[float, float, float]]:
        """For every model the tuple (error, floor, upper limit) of its ``error`` against the optimizer.

        The upper limit is what to state where the error is not resolved, that is, not larger than the floor. Elsewhere
        it is NaN, because limits take longer to compute.
        """
        comparison = Comparison(self.dataset, self._reference(None))
        return {m: comparison.stated_error(m) for m in self.models if m != comparison.reference}

    def laws(
        self,
        at: Any = None,
        reference: str | None = None,
        *,
        quantities: Sequence[str] = QUANTITIES_OF_LAWS,
        confidence: float = CONFIDENCE,
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
            with stage("computing limits"):
                self._laws[key] = compared_laws(self.dataset, streams, kinds, *chosen)
        return self._laws[key]

    def hitting_times(self, reference: str | None = None, confidence: float = CONFIDENCE) -> HittingTimes:
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
        self, of: Any = 0, *, since: int | None = None, lags: int | None = None, confidence: float = CONFIDENCE
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
