"""A predicted curve as a `Result`, for figures and tables together with logged curves."""

import os
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from sdelens.cases.case import result_attributes
from sdelens.forecast._numbers import PowerLaw
from sdelens.forecast._plan import Plan
from sdelens.results.result import Result

__all__ = ["Band", "result_of"]


class Band(NamedTuple):
    """A predicted curve with pointwise two-sided limits, arrays of shape (n,)."""

    steps: NDArray[np.int64]
    value: NDArray[np.float64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]


def result_of(
    numbers: PowerLaw, fitted: int, plan: Plan, band: Band, confidence: float, label: str, outside: list[str]
) -> Result:
    """The band of a forecast as a result with one model; `fitted` is the number of fitted runs."""
    import xarray as xr

    none, missing = np.zeros(len(band.steps), np.int64), np.full(len(band.steps), np.nan)
    columns = {"loss_mean": band.value, "loss_std": missing, "loss_sem": missing, "n_paths": none}
    levels = [0.5 - confidence / 2, 0.5 + confidence / 2]
    variables: dict[str, Any] = {name: (("model", "step"), values[None]) for name, values in columns.items()}
    variables["loss_quantile"] = (("model", "quantile", "step"), np.stack([band.lower, band.upper])[None])
    coordinates = {
        "model": [label],
        "step": band.steps,
        "time": ("step", band.steps.astype(float)),
        "quantile": np.round(levels, 6),
    }
    run: dict[str, Any] = {"steps": plan.steps, "fitted_runs": fitted}
    run |= {name: value for name in ("batch_size", "size") if (value := getattr(plan, name)) is not None}
    settings = {label: {"model": "forecast", "stream": label, "wall_time": 0.0, "outside": outside}}
    device = jax.local_devices()[0]
    where = {"platform": device.platform, "kind": device.device_kind, "count": 1, "cores": os.cpu_count() or 1}
    problem = {"name": "power-law quadratic", **numbers.describe(), "rerunnable": False}
    described = (problem, {"name": "fitted"}, plan.optimizer.describe())
    attrs = result_attributes(described, run, settings, where, None)
    return Result(xr.Dataset(variables, coordinates, attrs | {"clock": "optimizer step"}))
