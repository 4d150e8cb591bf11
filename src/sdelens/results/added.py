"""What is added to the dataset of a run: a logged curve, a bound, an observable in place of the loss."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sdelens.core import check
from sdelens.results.joined import checked_label

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["logged_curve", "observable_as_loss", "with_bound"]


def logged_curve(dataset: "xr.Dataset", label: str, losses: Any, steps: Any) -> "xr.Dataset":
    """A loss curve at the recorded steps of a dataset, as one of a model beside it, NaN where it does not reach."""
    import xarray as xr

    label = checked_label("label", label)
    losses, steps = (check.finite_array(n, v, (1,)) for n, v in (("losses", losses), ("steps", steps)))
    if losses.shape != steps.shape or losses.size < 2:
        raise ValueError(f"losses: got {losses.size} for {steps.size} steps; give equally many, at least two.")
    if (np.diff(steps) <= 0).any() or steps[0] < 0:
        raise ValueError("steps: must be 0 or greater and strictly increasing; sort them and remove duplicates.")
    own = dataset.step.values
    curve = np.interp(own, steps, losses, left=np.nan, right=np.nan)
    if np.isfinite(curve).sum() < 2:
        raise ValueError(
            f"steps: from {steps[0]:g} to {steps[-1]:g}; fewer than two recorded steps of this run, which has "
            f"{own[-1]}, lie there."
        )
    missing, none = np.full(own.shape, np.nan), np.zeros(own.shape, np.int64)
    columns = {"loss_mean": curve, "loss_std": missing, "loss_sem": missing, "n_paths": none}
    variables = {name: (("model", "step"), values[None]) for name, values in columns.items()}
    coordinates = {"model": [label], "step": own, "time": ("step", dataset.time.values)}
    settings = {label: {"model": "logged", "stream": label, "wall_time": 0.0}}
    return xr.Dataset(variables, coordinates, dict(dataset.attrs) | {"models": json.dumps(settings)})


def with_bound(dataset: "xr.Dataset", label: str, losses: Any) -> "xr.Dataset":
    """The dataset with one more bound of the loss."""
    import xarray as xr

    label = checked_label("label", label)
    try:
        values = np.asarray(losses, np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"losses: got {losses!r}; give numbers.") from error
    if values.shape != dataset.step.shape:
        raise ValueError(
            f"losses: got shape {values.shape}; give one number per recorded step, of which there are "
            f"{dataset.step.size}."
        )
    if np.isnan(values).any() or (values < dataset.attrs["infimum"]).any():
        raise ValueError(
            "losses: has entries that are NaN or below the infimum; give infinity where there is no bound."
        )
    bound = xr.DataArray(values[None], dims=("bound", "step"), coords={"bound": [label], "step": dataset.step})
    if "loss_bound" in dataset:
        if label in dataset.bound.values:
            raise ValueError(f"label: there is a bound {label!r} already; name this one differently.")
        bound = xr.concat([dataset.loss_bound, bound], dim="bound")
    rest = dataset.drop_dims("bound", errors="ignore")
    return rest.assign(loss_bound=bound.drop_vars("time", errors="ignore"))


def observable_as_loss(dataset: "xr.Dataset", observable: str, recorded: Sequence[str]) -> "xr.Dataset":
    """The dataset with one of the recorded observables in place of the loss."""
    if not recorded:
        raise ValueError(
            f"observable: got {observable!r}; the run recorded none. Repeat it with "
            "record=sl.Record(observables=[...])."
        )
    name = check.choice("observable", observable, recorded)
    here = dataset.sel(observable=name)
    taken = {f"loss_{part}": here[f"observable_{part}"] for part in ("mean", "std", "group_mean", "group_m2")}
    taken["loss_sem"] = here.observable_std / np.sqrt(np.maximum(here.n_paths, 1))
    if "law_observable" in here:
        taken["law_loss"] = here.law_observable
    rest = dataset.drop_dims(["observable", "quantile", "bound"], errors="ignore")
    replaced = rest.assign({key: values.drop_vars("observable") for key, values in taken.items()})
    return replaced.assign_attrs(infimum=float("nan"), quantity=name)
