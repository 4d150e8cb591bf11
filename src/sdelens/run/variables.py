"""The variables of a result's dataset, from the statistics of one model."""

import numpy as np

from sdelens.run.description import Description
from sdelens.run.summary import Summary

__all__ = ["Variables", "variables_of"]

Variables = dict[str, tuple[tuple[str, ...], np.ndarray]]
"""Arrays of a dataset with their dimensions."""


def variables_of(summary: Summary, description: Description, label: str) -> Variables:
    """The variables of one model, from the statistics of all of its paths."""
    observables, infimum = description.observables, description.infimum or 0.0
    mean, std = summary.overall()
    n_paths, empty = summary.paths, summary.living == 0
    found: Variables = {
        "loss_mean": (("step",), mean),
        "loss_std": (("step",), std),
        "loss_sem": (("step",), std / np.sqrt(np.maximum(n_paths, 1))),
        "loss_group_mean": (("group", "step"), np.where(empty, np.nan, summary.mean[:, 0]).T),
        "loss_group_m2": (("group", "step"), np.where(empty, np.nan, summary.m2[:, 0]).T),
        "group_paths": (("group", "step"), summary.living.astype(np.int64).T),
        "loss_quantile": (("quantile", "step"), (summary.histogram + infimum).T),
        "grad_norm_mean": (("step",), np.where(n_paths == 0, np.nan, summary.grad_norm)),
        "n_paths": (("step",), n_paths.astype(np.int64)),
    }
    if description.has_coordinates:
        alive = n_paths[:, None]
        found["x_mean"] = ("step", "coordinate"), np.where(alive == 0, np.nan, summary.seen_mean)
        x_var = np.where(alive < 2, np.nan, summary.seen_m2 / np.maximum(alive - 1, 1))
        found["x_var"] = ("step", "coordinate"), x_var
    if observables:
        overall = [summary.overall(row) for row in range(1, len(observables) + 1)]
        by_name = ("observable", "step")
        found["observable_mean"] = by_name, np.stack([m for m, _ in overall])
        found["observable_std"] = by_name, np.stack([s for _, s in overall])
        for name, array in (("mean", summary.mean), ("m2", summary.m2)):
            groups = np.where(empty[:, None], np.nan, array[:, 1:])
            found[f"observable_group_{name}"] = ("observable", "group", "step"), groups.transpose(1, 2, 0)
    return found | _of_every_path(summary, description) | _kept(summary, description, label)


def _of_every_path(summary: Summary, description: Description) -> Variables:
    """Variables with a value for every path: the laws at the chosen moments, and the first steps of the conditions."""
    found: Variables = {}
    if description.moments:
        loss, watched, x = np.split(summary.laws, [1, 1 + len(description.observables)], axis=2)
        found["law_loss"] = ("moment", "every_path"), loss[..., 0]
        if description.observables:
            found["law_observable"] = ("moment", "every_path", "observable"), watched
        if description.marginals:
            found["law_x"] = ("moment", "every_path", "marginal"), x
    if description.hits:
        first, lost = summary.hits[:, :-1].astype(float), summary.hits[:, -1]
        found["hit_step"] = ("hit", "every_path"), np.where(first < 0, np.nan, first).T
        found["watched_until"] = ("every_path",), np.where(lost < 0, description.steps, lost - 1).astype(float)
    return found


def _kept(summary: Summary, description: Description, label: str) -> Variables:
    """What is kept of the first paths, one variable for every name."""
    found: Variables = {}
    kept = {name: tuple(shape) for name, shape in description.kept[label].items()}
    ends = np.cumsum([int(np.prod(shape)) for shape in kept.values()])[:-1]
    for (name, shape), rows in zip(kept.items(), np.split(summary.kept, ends, axis=2), strict=True) if kept else ():
        wide = rows.transpose(1, 0, 2)
        if not shape:
            found[f"path_{name}"] = ("path", "step"), wide[..., 0]
        else:
            own = "parameter" if shape == (description.dim,) else f"entry_{name}"
            found[f"path_{name}"] = ("path", "step", own), wide
    return found
