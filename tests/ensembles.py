"""Results of made-up ensembles, built from the losses of single paths in NumPy, so that nothing is compiled."""

import json

import numpy as np
import xarray as xr

import sdelens as sl

STEPS, GROUPS, DIM = 30, 16, 3
OPTIMIZER = {"name": "rmspropw", "lr": 0.05, "b2": 0.9, "eps": 1e-8, "weight_decay": 0.0, "decay": "coupled"}


def paths(seed, count=64, label="optimizer", dim=DIM):
    """x of every path, shape (count, steps + 1, dim): it decays from 1, with its own noise for each seed and label."""
    rng = np.random.default_rng([seed, sum(map(ord, label))])
    noise = (
        0.1 * rng.standard_normal((count, STEPS + 1, dim)).cumsum(axis=1) / np.sqrt(np.arange(1, STEPS + 2))[:, None]
    )
    return np.exp(-np.arange(STEPS + 1) / 10)[:, None] + noise * (np.arange(STEPS + 1) > 0)[:, None]


def ensemble(*xs, seed=0, labels=("optimizer", "sde"), optimizer=None, infimum=0.0, keep=4, lost=None):
    """A result of ½|x|² of these paths, one array for each label.

    Args:
        xs: paths of every label, shape (P, R, d).
        seed: the seed or seeds that the result names.
        labels: labels of the models, which are also their kinds.
        optimizer: its description.
        infimum: infimum of the loss.
        keep: paths that are kept.
        lost: (path, step) from which on a path of the first model is not finite.
    """
    columns = {}
    for label, x in zip(labels, xs, strict=True):
        count = len(x)
        alive = np.ones(x.shape[:2], bool)
        if lost is not None and label == labels[0]:
            alive[lost[0], lost[1] :] = False
        loss = np.where(alive, 0.5 * (x**2).sum(-1), np.nan)
        rows = {"loss": loss, "norm": np.where(alive, np.linalg.norm(x, axis=-1), np.nan)}
        masked = np.where(alive[..., None], x, np.nan)
        group = np.arange(count) % GROUPS
        living = alive.sum(0)
        split = [loss[group == g] for g in range(GROUPS)]
        values = {
            "loss_mean": (("step",), np.nanmean(loss, 0)),
            "loss_std": (("step",), np.nanstd(loss, 0, ddof=1)),
            "loss_sem": (("step",), np.nanstd(loss, 0, ddof=1) / np.sqrt(living)),
            "loss_group_mean": (("group", "step"), np.stack([np.nanmean(part, 0) for part in split])),
            "loss_group_m2": (
                ("group", "step"),
                np.stack([np.nansum((part - np.nanmean(part, 0)) ** 2, 0) for part in split]),
            ),
            "group_paths": (("group", "step"), np.stack([alive[group == g].sum(0) for g in range(GROUPS)])),
            "loss_quantile": (("quantile", "step"), np.nanquantile(loss, [0.05, 0.5, 0.95], axis=0)),
            "grad_norm_mean": (("step",), np.nanmean(rows["norm"], 0)),
            "x_mean": (("step", "coordinate"), np.nanmean(masked, 0)),
            "x_var": (("step", "coordinate"), np.nanvar(masked, 0, ddof=1)),
            "n_paths": (("step",), living),
            "path_x": (("path", "step", "parameter"), x[:keep]),
        }
        for name, (dims, array) in values.items():
            columns.setdefault(name, (("model", *dims), []))[1].append(array)
    at = np.arange(STEPS + 1)
    described = OPTIMIZER if optimizer is None else optimizer
    coordinates = {"model": list(labels), "step": at, "time": ("step", at * described["lr"])}
    coordinates |= {"quantile": [0.05, 0.5, 0.95], "group": np.arange(GROUPS)}
    run = {"steps": STEPS, "paths": len(xs[0]), "seed": seed, "record_every": 1, "dim": DIM, "start": "problem"}
    models = {label: {"model": label, "stream": label, "wall_time": 1.5} for label in labels}
    device = {"platform": "cpu", "kind": "cpu", "count": 1, "cores": 1}
    attrs = {
        "sdelens_format": 1,
        "problem": json.dumps({"name": "quadratic"}),
        "noise": json.dumps({"name": "gaussian", "scale": 1.0}),
        "optimizer": json.dumps(described),
        "models": json.dumps(models),
        "run": json.dumps(run),
        "device": json.dumps(device),
        "versions": "{}",
        "infimum": infimum,
        "rerunnable": 1,
    }
    variables = {name: (dims, np.stack(arrays)) for name, (dims, arrays) in columns.items()}
    return sl.Result(xr.Dataset(variables, coordinates, attrs))


def of_seed(seed, count=64, **changes):
    """The result of one seed, with an optimizer and an SDE."""
    return ensemble(paths(seed, count), paths(seed, count, "sde"), seed=seed, **changes)
