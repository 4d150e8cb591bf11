"""The description of a run: all that its dataset needs besides its statistics, in JSON types, so that it travels.

This module does not import JAX.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sdelens.run.options import record_steps
from sdelens.run.summary import Summary

__all__ = ["LEVELS", "Description", "SweepDescription", "divergence_warning", "infimum_warning"]

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Levels of the quantiles of the loss over paths that a result contains."""


@dataclass(frozen=True)
class Description:
    """A run without its statistics.

    Attributes:
        steps: optimizer steps.
        paths: number of paths, of all shares together.
        record_every: steps between records.
        groups: number of groups of paths.
        lr: learning rate, the unit of time.
        dim: number of parameters.
        has_coordinates: whether moments of the coordinates are recorded.
        infimum: infimum of the loss, None if it is not known.
        observables: names of what is recorded in addition to the loss.
        marginals: coordinates whose values are stored for every path.
        moments: indices of the records at which values of every path are stored.
        hits: names of the conditions whose first steps are stored.
        kept: by label of the model, shapes per path and record of what is kept of the first paths.
        attributes: attributes of the dataset, without wall times.
        doubts: warnings about the law of the noise.
    """

    steps: int
    paths: int
    record_every: int
    groups: int
    lr: float
    dim: int
    has_coordinates: bool
    infimum: float | None
    observables: Sequence[str]
    marginals: Sequence[int]
    moments: Sequence[int]
    hits: Sequence[str]
    kept: Mapping[str, Mapping[str, Sequence[int]]]
    attributes: Mapping[str, Any]
    doubts: Sequence[str]

    @property
    def models(self) -> list[str]:
        """Labels of the models."""
        return list(self.kept)

    @property
    def recorded(self) -> np.ndarray:
        """The recorded steps."""
        return record_steps(self.steps, self.record_every)

    def coordinates(self) -> dict[str, Any]:
        """Coordinates of the dataset."""
        found: dict[str, Any] = {
            "model": self.models,
            "step": self.recorded,
            "time": ("step", self.recorded * self.lr),
            "quantile": np.array(LEVELS),
            "group": np.arange(self.groups),
        }
        found |= {"observable": list(self.observables)} if self.observables else {}
        found |= {"marginal": list(self.marginals)} if self.marginals else {}
        found |= {"moment": self.recorded[list(self.moments)]} if self.moments else {}
        return found | ({"hit": list(self.hits)} if self.hits else {})

    def attributes_with(self, seconds: Mapping[str, float], shares: int) -> dict[str, Any]:
        """Attributes of the dataset, with wall times by model, of a run in so many shares, 1 if it was not divided."""
        models = {
            label: settings | {"wall_time": round(seconds[label], 3)}
            for label, settings in json.loads(self.attributes["models"]).items()
        }
        device = json.loads(self.attributes["device"]) | ({"shares": shares} if shares > 1 else {})
        return {**self.attributes, "models": json.dumps(models), "device": json.dumps(device)}


@dataclass(frozen=True)
class SweepDescription:
    """A sweep without its statistics.

    Attributes:
        over: by key, its values as numbers or strings, or their indices; the last key varies fastest.
        values: the values as JSON text, by key where `over` has indices.
        settings: the values of all keys as JSON text, the attribute of the dataset.
        rate: the key of the learning rate, None if it is not swept.
        names: names of the points in messages.
        points: their descriptions.
    """

    over: Mapping[str, Sequence[Any]]
    values: Mapping[str, str]
    settings: str
    rate: str | None
    names: Sequence[str]
    points: Sequence[Description]


def divergence_warning(description: Description, label: str, summary: Summary) -> str | None:
    """A warning if paths of a model diverged."""
    lost = int(description.paths - summary.paths[-1])
    if not lost:
        return None
    first = int(description.recorded[np.argmax(summary.paths < description.paths)])
    return (
        f"{lost} of {description.paths} paths of {label!r} diverged, the first by step {first}; diverged paths are "
        "excluded from the averages from that step on. Try a smaller lr."
    )


def infimum_warning(description: Description, label: str, summary: Summary) -> str | None:
    """A warning if the mean loss of a model falls below the infimum."""
    infimum, mean = description.infimum, summary.overall()[0]
    if infimum is None or not np.nanmin(mean) < infimum - 1e-6 * abs(mean[0] - infimum):
        return None
    return (
        f"infimum: got {infimum:g}, but the mean loss of {label!r} falls to {np.nanmin(mean):g}; errors "
        "relative to it are wrong. Give the true infimum, or None."
    )
