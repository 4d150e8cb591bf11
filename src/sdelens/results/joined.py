"""Datasets of several results as one: models side by side, and equal runs with other seeds as one larger ensemble."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sdelens.core import check

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["PATHLESS", "checked_label", "merged", "pooled", "renamed", "seeds_of", "selected"]

PATHLESS: Final = ("prediction", "forecast", "logged")
"""Kinds of models that are a single curve, not an ensemble."""

_OF_THE_SEED: Final = ("seed", "paths")
"""What runs that are pooled may differ in."""
_EQUAL: Final = ("step", "group", "coordinate", "marginal", "moment", "hit", "observable")
"""Dimensions of which pooled runs have the same entries."""
_OF_THE_MACHINE: Final = ("wall_time", "compile_time")
_DONE: Final = (
    *("loss_mean", "loss_std", "loss_sem", "loss_group_mean", "loss_group_m2", "group_paths", "n_paths"),
    *("grad_norm_mean", "x_mean", "x_var"),
    *("observable_mean", "observable_std", "observable_group_mean", "observable_group_m2"),
)
"""Variables that are joined exactly."""
_OVER_PATHS: Final = ("path", "every_path")
"""Dimensions with an entry for every path."""


def merged(first: "xr.Dataset", second: "xr.Dataset") -> "xr.Dataset":
    """The models of both datasets.

    Raises:
        ValueError: if they share a model's name, or are of different experiments.
    """
    shared = set(map(str, first.model.values)) & set(map(str, second.model.values))
    if shared:
        name = sorted(shared)[0]
        raise ValueError(
            f"other: both results have models named {sorted(shared)}; rename them in one, for example by "
            f"other.rename({{{name!r}: {name + ' 2'!r}}}), or leave them out by other.select([...])."
        )
    for key in ("problem", "noise", "optimizer", "infimum", "quantity"):
        mine, theirs = first.attrs.get(key, "loss"), second.attrs.get(key, "loss")
        if mine != theirs and not (mine != mine and theirs != theirs):  # noqa: PLR0124 (NaN: no infimum known)
            raise ValueError(
                f"other: differs in {key}: {theirs}; merge runs of one experiment, and show others by sl.overlay."
            )
    run, their_run = (json.loads(d.attrs["run"]) for d in (first, second))
    for key in {"start", *(run.keys() & their_run.keys())}:
        if run.get(key) != their_run.get(key):
            more = "; join other seeds by Result.pool" if key == "seed" else ""
            raise ValueError(f"other: differs in {key}: {their_run.get(key)}; merge runs of one experiment{more}.")
    if not np.array_equal(first.step, second.step):
        raise ValueError("other: is recorded at other steps; merge runs with the same record.every.")
    with_paths = first if "paths" in run or "paths" not in their_run else second
    attrs = dict(with_paths.attrs) | {"run": json.dumps({**their_run, **run})}
    attrs["models"] = json.dumps({**json.loads(first.attrs["models"]), **json.loads(second.attrs["models"])})
    return _concatenated(first, second).assign_attrs(attrs)


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


def renamed(dataset: "xr.Dataset", names: Mapping[str, str]) -> "xr.Dataset":
    """The dataset with other names of its models, by the old ones.

    Raises:
        ValueError: if there is no such model, or two models would have one name.
    """
    if not isinstance(names, Mapping):
        raise TypeError(f"names: got {type(names).__name__}; give the new labels by the old ones.")
    before = [str(label) for label in dataset.model.values]
    wanted = {check.choice("names", old, before): checked_label("names", new) for old, new in names.items()}
    labels = [wanted.get(label, label) for label in before]
    twice = [label for label in dict.fromkeys(labels) if labels.count(label) > 1]
    if twice:
        raise ValueError(f"names: two models would be called {twice[0]!r}; give each its own label.")
    models = {wanted.get(label, label): _refers(m, wanted) for label, m in json.loads(dataset.attrs["models"]).items()}
    return dataset.assign_coords(model=labels).assign_attrs(models=json.dumps(models))


def checked_label(argument: str, label: Any) -> str:
    """A name of a model or of a bound.

    Raises:
        TypeError: if it is no text, or empty.
    """
    if not isinstance(label, str) or not label.strip():
        raise TypeError(f"{argument}: got {label!r}; give a name.")
    return label


def _refers(settings: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Settings of a model, which may name the same model without substeps."""
    coarse = settings.get("coarse")
    return settings if coarse is None else {**settings, "coarse": names.get(coarse, coarse)}


def selected(dataset: "xr.Dataset", models: Sequence[str]) -> "xr.Dataset":
    """The dataset with only these models, in this order.

    Raises:
        ValueError: if there is no such model, or one is named twice.
    """
    known = [str(label) for label in dataset.model.values]
    if isinstance(models, str) or not isinstance(models, Sequence) or not models:
        raise TypeError(f"models: got {models!r}; give a list of labels, of {known}.")
    wanted = [check.choice("models", label, known) for label in models]
    if len(set(wanted)) < len(wanted):
        raise ValueError(f"models: got {list(models)}; name each once.")
    settings = json.loads(dataset.attrs["models"])
    return dataset.sel(model=wanted).assign_attrs(models=json.dumps({label: settings[label] for label in wanted}))


def pooled(datasets: Sequence["xr.Dataset"]) -> "xr.Dataset":
    """One dataset of all paths of equal runs with other seeds.

    Group g of the joint ensemble consists of the groups g of all runs. Counts add up, and for means a, b and sums of
    squared deviations A, B of n and m paths

        mean (na + mb)/(n + m),   squared deviations A + B + nm/(n + m) (a − b)²,

    as where chunks of one run are joined. Quantiles cannot be computed from those of the parts, and are left out.

    Raises:
        ValueError: if the runs differ in anything but seed and number of paths, or share a seed.
    """
    for number, dataset in enumerate(datasets[1:], 1):
        _check_equal(datasets[0], dataset, number)
    seeds = [seed for dataset in datasets for seed in seeds_of(json.loads(dataset.attrs["run"]))]
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice:
        raise ValueError(
            f"results: several have the seed {twice[0]}, and therefore the same random numbers; run each with its own "
            "seed."
        )
    joined = datasets[0]
    for dataset in datasets[1:]:
        joined = _pair(joined, dataset)
    runs = [json.loads(dataset.attrs["run"]) for dataset in datasets]
    run = runs[0] | {"paths": sum(r["paths"] for r in runs), "seed": seeds if len(seeds) > 1 else seeds[0]}
    models = json.loads(datasets[0].attrs["models"])
    for label, settings in models.items():
        for key in _OF_THE_MACHINE:
            if key in settings:
                settings[key] = sum(json.loads(d.attrs["models"])[label][key] for d in datasets)
    return joined.assign_attrs(run=json.dumps(run), models=json.dumps(models))


def seeds_of(run: Mapping[str, Any]) -> list[int]:
    """The seeds of a run; several if runs were pooled, none of what has no paths."""
    seed = run.get("seed", [])
    return list(seed) if isinstance(seed, list) else [seed]


def _check_equal(first: "xr.Dataset", other: "xr.Dataset", number: int) -> None:
    """Refuse to pool runs that are not equal, naming what differs."""
    mine, theirs = _identity(first), _identity(other)
    for key in [*mine, *(key for key in theirs if key not in mine)]:
        if mine.get(key) != theirs.get(key):
            raise ValueError(
                f"results: number {number} differs from the first in {key}: {theirs.get(key, 'none')}, not "
                f"{mine.get(key, 'none')}; pool equal runs with other seeds."
            )


def _identity(dataset: "xr.Dataset") -> dict[str, Any]:
    """All that pooled runs must agree in, by its name."""
    attrs, run = dataset.attrs, json.loads(dataset.attrs["run"])
    found = {key: attrs.get(key, "loss") for key in ("problem", "noise", "optimizer", "quantity")}
    found["infimum"] = f"{float(attrs['infimum']):g}"  # as text, because NaN differs from itself
    found |= {key: value for key, value in run.items() if key not in _OF_THE_SEED}
    models = json.loads(attrs["models"])
    found["models"] = list(models)
    for label, settings in models.items():
        if settings["model"] in PATHLESS:
            raise ValueError(
                f"results: {label!r} is a curve without paths; pool the others, given by select, and merge it later."
            )
        found |= {f"{key} of {label!r}": value for key, value in settings.items() if key not in _OF_THE_MACHINE}
    return found | {f"its {dim}s": dataset[dim].values.tolist() for dim in _EQUAL if dim in dataset.dims}


def _pair(a: "xr.Dataset", b: "xr.Dataset") -> "xr.Dataset":
    import xarray as xr

    na, nb = a.group_paths.astype(float), b.group_paths.astype(float)
    ka, kb = a.n_paths.astype(float), b.n_paths.astype(float)
    found: dict[str, Any] = {
        "group_paths": a.group_paths + b.group_paths,
        "n_paths": a.n_paths + b.n_paths,
    }
    for row in ("loss", "observable"):
        if f"{row}_group_mean" not in a or f"{row}_group_mean" not in b:
            continue
        mean, m2 = _joined(na, nb, *(d[f"{row}_group_{part}"] for part in ("mean", "m2") for d in (a, b)))
        found |= {f"{row}_group_mean": mean, f"{row}_group_m2": m2} | _overall(row, na + nb, mean, m2, a)
    if "grad_norm_mean" in a and "grad_norm_mean" in b:
        found["grad_norm_mean"] = _joined(ka, kb, a.grad_norm_mean, b.grad_norm_mean, 0.0, 0.0)[0]
    if "x_mean" in a and "x_mean" in b:
        squares = [d.x_var * np.maximum(k - 1, 0) for d, k in ((a, ka), (b, kb))]
        of_one = (s.where(k > 1, 0.0) for s, k in zip(squares, (ka, kb), strict=True))
        mean, m2 = _joined(ka, kb, a.x_mean, b.x_mean, *of_one)
        found |= {"x_mean": mean, "x_var": (m2 / np.maximum(ka + kb - 1, 1)).where(ka + kb > 1)}
    for name, values in a.data_vars.items():
        along = [dim for dim in _OVER_PATHS if dim in values.dims]
        if along and name in b:
            found[str(name)] = xr.concat([d[name].drop_vars(along, errors="ignore") for d in (a, b)], dim=along[0])
    kept = {name: v for name, v in a.data_vars.items() if name not in _DONE and _is_shared(name, v, b)}
    coordinates = {name: c for name, c in a.coords.items() if name not in _OVER_PATHS}
    used = {dim for v in [*found.values(), *kept.values()] for dim in v.dims} | {"model", "step"}
    coordinates = {name: c for name, c in coordinates.items() if set(c.dims) <= used}
    both = {name: found[name].transpose(*a[name].dims).astype(a[name].dtype) for name in a.data_vars if name in found}
    return xr.Dataset({**both, **kept}, coordinates, a.attrs)


def _is_shared(name: Any, values: Any, other: "xr.Dataset") -> bool:
    """Whether a variable is no statistic of the paths, and equal in both."""
    return "model" not in values.dims and name in other and bool(values.identical(other[name]))


def _joined(na: Any, nb: Any, mean_a: Any, mean_b: Any, m2_a: Any, m2_b: Any) -> tuple[Any, Any]:
    """Mean and sum of squared deviations of two sets of paths; what an empty set has does not count."""
    mean_a, mean_b = mean_a.where(na > 0, 0.0), mean_b.where(nb > 0, 0.0)
    m2_a, m2_b = (v.where(n > 0, 0.0) if hasattr(v, "where") else v for v, n in ((m2_a, na), (m2_b, nb)))
    total = np.maximum(na + nb, 1)
    off = mean_b - mean_a
    return (mean_a + off * nb / total).where(na + nb > 0), m2_a + m2_b + off**2 * na * nb / total


def _overall(row: str, living: Any, mean: Any, m2: Any, like: "xr.Dataset") -> dict[str, Any]:
    """Mean, standard deviation and standard error over all paths, from those of the groups."""
    count = living.sum("group")
    filled = mean.where(living > 0, 0.0)
    whole = (living * filled).sum("group") / np.maximum(count, 1)
    squares = m2.where(living > 0, 0.0).sum("group") + (living * (filled - whole) ** 2).sum("group")
    std = np.sqrt(squares / np.maximum(count - 1, 1)).where(count > 1)
    found = {f"{row}_mean": whole.where(count > 0), f"{row}_std": std}
    if f"{row}_sem" in like:
        found[f"{row}_sem"] = std / np.sqrt(np.maximum(count, 1))
    return found
