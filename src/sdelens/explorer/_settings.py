"""The explorer's settings from the descriptions of a problem, a noise law and an optimizer."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from sdelens.core import check
from sdelens.core.arrays import restored
from sdelens.core.names import noise_label, optimizer_label, problem_label

__all__ = ["settings_of"]

_OPTIMIZERS: Final = ("sgd", "momentum", "signsgd", "signum", "lion", "rmspropw", "adamw")
_NOISES: Final = ("gaussian", "laplace", "student-t")
_NUMBERS: Final = ("lr", "b1", "b2", "eps", "weight_decay")
_MOST_STEPS: Final = 20_000
_LEAST_DF: Final = 0.5


def settings_of(
    problem: Mapping[str, Any],
    noise: Mapping[str, Any],
    optimizer: Mapping[str, Any],
    steps: int,
    coordinates: Sequence[int] | None = None,
    start: Any = None,
) -> dict[str, Any]:
    """Settings with which the explorer shows a run.

    Args:
        problem: description of the problem, a quadratic.
        noise: description of the noise: normal, Laplace or Student t with independent coordinates.
        optimizer: description of the optimizer, without a schedule.
        steps: optimizer steps; the explorer shows at most 20 000.
        coordinates: one or two coordinates to show, if the problem has more; they must not be coupled to others.
        start: where the run started, if not at the problem's start.

    Raises:
        ValueError: if the explorer cannot show it; the message names the argument and the remedy.
    """
    if problem["name"] != "quadratic":
        raise ValueError(
            f"problem: the explorer shows quadratic losses, not {problem_label(dict(problem))}; see result.plot() or "
            "explore sl.Quadratic with the curvatures of interest."
        )
    curvature = restored(problem["curvature"])
    origin = problem["start"] if start is None else start
    x = np.broadcast_to(restored(origin), curvature.shape[:1])
    chosen = _chosen(curvature, coordinates)
    curvature = _selected(curvature, chosen)
    return {
        "dim": len(chosen),
        **_axes(curvature),
        "start": _two(x[chosen]),
        "noise": _noise(noise, x.size, chosen),
        "optimizer": _optimizer(optimizer),
        "steps": min(int(steps), _MOST_STEPS),
    }


def _chosen(curvature: np.ndarray, coordinates: Sequence[int] | None) -> list[int]:
    dim = len(curvature)
    if coordinates is None:
        if dim > 2:
            raise ValueError(
                f"coordinates: the problem has {dim}, and the explorer shows one or two; choose them, for "
                f"example 0 and {dim - 1}."
            )
        return list(range(dim))
    chosen = [check.whole("coordinates", i) for i in coordinates]
    if len(chosen) not in (1, 2) or len(set(chosen)) < len(chosen) or any(not 0 <= i < dim for i in chosen):
        raise ValueError(f"coordinates: got {tuple(coordinates)}; give one or two different ones from 0 to {dim - 1}.")
    return chosen


def _selected(curvature: np.ndarray, chosen: list[int]) -> np.ndarray:
    if curvature.ndim == 1:
        return np.diag(curvature[chosen])
    others = [i for i in range(len(curvature)) if i not in chosen]
    if others and np.abs(curvature[np.ix_(chosen, others)]).max() > 1e-9 * np.abs(curvature).max():
        raise ValueError(
            f"coordinates: the curvature couples {tuple(chosen)} to other coordinates, so these do not move on their "
            "own; the explorer shows uncoupled coordinates."
        )
    return curvature[np.ix_(chosen, chosen)]


def _axes(curvature: np.ndarray) -> dict[str, Any]:
    """Curvatures along the axes, the first of which is nearest to the first coordinate, and its angle in degrees."""
    values, vectors = np.linalg.eigh(curvature)
    if values.min() <= 0:
        raise ValueError(
            f"problem: has curvature {values.min():.3g} along some direction; the explorer shows positive curvature."
        )
    order = np.argsort(-np.abs(vectors[0]))
    values, vectors = values[order], vectors[:, order]
    angle = 0.0 if len(values) == 1 else math.degrees(math.atan2(vectors[1, 0], vectors[0, 0]))
    angle = (angle + 90) % 180 - 90
    if abs(angle) < 1e-9:
        angle = 0.0
    return {"curvature": _two(values), "angle": angle}


def _noise(noise: Mapping[str, Any], dim: int, chosen: list[int]) -> dict[str, Any]:
    name = noise["name"]
    if name not in _NOISES or "scale" not in noise:
        raise ValueError(
            f"noise: the explorer shows normal, Laplace and Student t noise with independent coordinates, not "
            f"{noise_label(dict(noise))}; give one of these with a scale."
        )
    if noise.get("df", 3.0) < _LEAST_DF:
        raise ValueError(f"noise: the explorer shows Student t noise with df of {_LEAST_DF} or more.")
    scale = np.broadcast_to(restored(noise["scale"]), (dim,))[chosen]
    if scale.min() <= 0:
        raise ValueError("noise: has scale 0; the explorer shows scales greater than 0.")
    return {"name": name, "scale": _two(scale), **({"df": float(noise["df"])} if "df" in noise else {})}


def _optimizer(optimizer: Mapping[str, Any]) -> dict[str, Any]:
    name = optimizer["name"]
    if name not in _OPTIMIZERS or "optax" in optimizer:
        raise ValueError(
            f"optimizer: the explorer shows {', '.join(_OPTIMIZERS)}, not {optimizer_label(dict(optimizer))}."
        )
    if optimizer.get("schedule"):
        raise ValueError(
            "optimizer: has a schedule; the explorer shows constant learning rates. Leave the schedule out."
        )
    found: dict[str, Any] = {key: float(optimizer[key]) for key in _NUMBERS if key in optimizer}
    if optimizer.get("decay") == "independent":
        found["weight_decay"] /= found["lr"]
    found |= {key: optimizer[key] for key in ("v0", "nesterov") if key in optimizer}
    return {"name": name, **found}


def _two(values: np.ndarray) -> list[float]:
    """Two numbers; the page keeps both also for one coordinate."""
    return [float(values[0]), float(values[-1])]
