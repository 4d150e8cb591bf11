"""A model beside its reference: every quantity of the table of errors, computed from the recorded group means."""

import functools
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from sdelens.results.joined import PATHLESS
from sdelens.results.quantities import QUANTITIES
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
    import xarray as xr

__all__ = ["Comparison", "loss_moments"]

_LINEAR = ("sgd", "momentum")
"""Optimizers whose updates are linear in the stochastic gradients."""


class Comparison:
    """The models of a dataset compared with one of them.

    Attributes:
        reference: label of that model.
    """

    def __init__(self, dataset: "xr.Dataset", reference: str) -> None:
        self.reference = reference
        self._dataset = dataset
        self._settings: dict[str, dict[str, Any]] = json.loads(dataset.attrs["models"])
        self._steps = dataset.step.values

    def quantities(self, model: str, confidence: float) -> dict[str, Interval]:
        """Every quantity of `QUANTITIES` of one model, with one-sided limits where it has them."""
        covered = self._covered(model)
        full = tracking_error(*self._both(model, covered), self.minimum, confidence)
        late = tracking_error(
            *self._both(model, covered & late_window(self._steps)), self.minimum, confidence, height=self.height
        )
        n_paths = self._dataset.n_paths.sel(model=model).values
        found = {
            "error": Interval(full.error, full.lower, full.upper),
            "floor": Interval(full.floor),
            "late_error": Interval(late.error, late.lower, late.upper),
            "late_shift": Interval(late.shift, late.shift_lower, late.shift_upper),
            "discretisation": Interval(self._integrator_error(model)),
            "spread": spread_ratio(*self._both(model), confidence),
            **{
                f"spread_{name}": spread_ratio(*self._both(model, part), confidence)
                for name, part in thirds(self._steps).items()
            },
            "quantile_5": Interval(self._quantile_error(model, 0.05)),
            "quantile_95": Interval(self._quantile_error(model, 0.95)),
            "diverged": Interval(float(n_paths[0] - n_paths[-1])),
        }
        order = self._order(model)
        return {k: v if order > QUANTITIES[k].moment else Interval(v.value) for k, v in found.items()}

    def point_error(self, model: str, late: bool = False) -> tuple[float, float]:
        """``error``, or ``late_error``, and its floor, without limits."""
        covered = self._covered(model)
        covered = covered & late_window(self._steps) if late else covered
        height = self.height if late else None
        value = tracking_error(*self._both(model, covered), self.minimum, resamples=0, height=height)
        return value.error, value.floor

    def stated_error(self, model: str) -> tuple[float, float, float]:
        """``error``, its floor, and its upper limit if it is not larger than the floor, NaN otherwise."""
        error, floor = self.point_error(model)
        needed = error <= floor and self._order(model) > QUANTITIES["error"].moment
        upper = tracking_error(*self._both(model, self._covered(model)), self.minimum).upper if needed else np.nan
        return error, floor, upper

    @functools.cached_property
    def minimum(self) -> float:
        """b_min: the problem's infimum, or the reference's smallest mean loss where that is not known."""
        infimum = float(self._dataset.attrs["infimum"])
        return infimum if np.isfinite(infimum) else float(self._dataset.loss_mean.sel(model=self.reference).min())

    @functools.cached_property
    def height(self) -> float | None:
        """Scale of late errors: None for the late loss itself; that of the whole run if the infimum is not known.

        On a plateau, the loss minus its smallest value is only noise, and not a suitable scale.
        """
        if np.isfinite(float(self._dataset.attrs["infimum"])):
            return None
        curve = self._dataset.loss_mean.sel(model=self.reference).values - self.minimum
        return float(np.sqrt(np.nanmean(curve**2)))

    def _order(self, model: str) -> float:
        """Order below which the losses of both have moments."""
        return min(loss_moments(self._dataset, label) for label in (model, self.reference))

    def _integrator_error(self, model: str) -> float:
        """Error between a model with substeps and the same at Δt = η; NaN if that was not run."""
        coarse = self._settings[model].get("coarse")
        if coarse not in self._settings:
            return np.nan
        return tracking_error(self._curves(coarse), self._curves(model), self.minimum).error

    def _quantile_error(self, model: str, level: float) -> float:
        """‖a − b‖/‖b − b_min‖ of the curves of a quantile; NaN where it was not recorded."""
        if "loss_quantile" not in self._dataset:
            return np.nan
        a, b = (self._dataset.loss_quantile.sel(model=m, quantile=level).values for m in (model, self.reference))
        height = np.sqrt(np.sum((b - self.minimum) ** 2))
        return float(np.sqrt(np.sum((a - b) ** 2)) / height) if height > 0 else np.nan

    def _covered(self, model: str) -> np.ndarray:
        """Which records model and reference have values for: all, except for a logged curve."""
        covered = np.ones(self._steps.shape, bool)
        for label in (model, self.reference):
            if self._settings[label]["model"] == "logged":
                covered &= np.isfinite(self._dataset.loss_mean.sel(model=label).values)
        return covered

    def _both(self, model: str, part: Any = slice(None)) -> tuple[Curves, Curves]:
        return self._curves(model, part), self._curves(self.reference, part)

    def _curves(self, model: str, part: Any = slice(None)) -> Curves:
        here, settings = self._dataset.sel(model=model), self._settings[model]
        if settings["model"] in PATHLESS:  # a curve without noise is the mean of every group
            mean = np.broadcast_to(here.loss_mean.values[part], (FEWEST_GROUPS, here.loss_mean.values[part].size))
            return Curves(mean, np.ones(FEWEST_GROUPS), settings["stream"])
        groups = here.loss_group_mean.transpose("group", "step").values[:, part]
        counts = here.group_paths.isel(step=0).values.astype(float)
        m2 = here.loss_group_m2.transpose("group", "step").values[:, part] if "loss_group_m2" in here else None
        living = here.group_paths.transpose("group", "step").values[:, part].astype(float)
        return Curves(groups, counts, settings["stream"], m2, living)


def loss_moments(dataset: "xr.Dataset", model: str) -> float:
    """Order below which a model's loss has moments over paths, as `Result.moments` describes."""
    if dataset.attrs.get("quantity", "loss") != "loss":
        return np.inf
    settings = json.loads(dataset.attrs["models"])[model]
    drawn = settings["model"] == "optimizer" or (
        settings["model"] == "empirical" and settings.get("coefficients") != "quadrature"
    )
    optimizer = json.loads(dataset.attrs["optimizer"])
    while "base" in optimizer:
        optimizer = optimizer["base"]
    linear = optimizer.get("name") in _LINEAR
    return _noise_moments(json.loads(dataset.attrs["noise"])) / 2 if drawn and linear else np.inf


def _noise_moments(noise: Any) -> float:
    """Order below which described noise has moments: the fewest degrees of freedom in it; infinite where not known."""
    if isinstance(noise, list):
        return min(map(_noise_moments, noise), default=np.inf)
    if not isinstance(noise, dict) or noise.get("compression", {}).get("name") == "majority-vote":
        return np.inf
    own = float(noise.get("df", 2 if noise.get("variance") == "inf" else np.inf))
    return min([own, *(_noise_moments(part) for part in noise.values())])
