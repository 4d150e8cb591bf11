"""Groups of a diagnosis from measured gradients."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sdelens.diagnosis.moments import Group, concentrated

if TYPE_CHECKING:
    from sdelens.diagnosis._noise import GradientNoise

__all__ = ["batch_of", "groups_of", "pulls_by_group"]


def batch_of(noise: "GradientNoise", batch_size: float | None) -> float:
    """Batch size of an optimizer step: the one that is given, or the one that was recorded.

    Raises:
        ValueError: if there is none.
    """
    found = noise.step_batch_size if batch_size is None else batch_size
    if found is None:
        raise ValueError(
            "batch_size: got None, but measured gradients are those of micro-batches; give the number of samples of "
            "one optimizer step, over all micro-batches and processes."
        )
    return float(found)


def groups_of(noise: "GradientNoise", batch_size: float, pulls: Mapping[str, float]) -> tuple[dict[str, Group], Group]:
    """Every group, and all parameters together, with the noise at a batch size.

    Args:
        noise: what was measured.
        batch_size: B of an optimizer step.
        pulls: Σ(θx)² by group.
    """
    *names, everything = noise.names
    rows: dict[Any, dict[Any, Any]] = noise.groups.to_dict("index")
    unit = 1.0 if noise.per == "sample" else noise.batch_size
    parts = {name: _group(rows[name], unit / batch_size, batch_size, pulls.get(name, 0.0)) for name in names}
    total = _group(rows[everything], unit / batch_size, batch_size, sum(pulls.values()))
    return parts, total._replace(concentrated=_concentrated(noise, batch_size, total))


def _group(row: Mapping[Any, Any], unit: float, batch: float, pull: float) -> Group:
    """A group from its row; `unit` is the factor from the trace there to that of a batch."""
    noise = float(row["trace"]) * unit
    low, high = (float(row[f"noise_scale_{end}"]) for end in ("lower", "upper"))
    lower = math.sqrt(batch / high) if high > 0 else math.inf if high == 0 else 0.0  # 0 also where it is refused (NaN)
    upper = math.sqrt(batch / low) if low > 0 else math.inf
    square, error = float(row["gradient_square"]), float(row["gradient_square_sem"])
    return Group(
        int(row["size"]),
        square,
        noise,
        math.sqrt(square / noise) if lower > 0 and square > 0 and noise > 0 else math.nan,
        lower,
        upper,
        pull=pull,
        below=square / error if error > 0 else 0.0,
    )


def _concentrated(noise: "GradientNoise", batch: float, total: Group) -> float:
    """`moments.concentrated` of all coordinates; the mean of W samples has c = B/W times the variance of a batch."""
    if not noise.is_at_one_point or math.isnan(total.snr):
        return math.nan
    c = batch / noise.samples
    mean, variance = (np.concatenate([np.ravel(a) for a in _leaves(tree)]) for tree in (noise.mean, noise.variance))
    variance = variance * (1.0 if noise.per == "sample" else noise.batch_size) / batch
    square = np.maximum(mean**2 - c * variance, 0.0) + variance
    fourth = float(np.divide(mean**4, square, out=np.zeros_like(mean), where=square > 0).sum())
    return concentrated([(c, fourth, total.signal, float(square.sum()))], total.signal, total.noise)


def _leaves(tree: Any) -> Sequence[Any]:
    from sdelens.diagnosis._sources import leaves_of

    return [leaf for _, leaf in leaves_of(tree)]


def pulls_by_group(
    noise: "GradientNoise", tensors: Sequence[tuple[str, tuple[int, ...], float | None]]
) -> dict[str, float] | None:
    """Σ(θx)² by group of the measurement, from that of every tensor of a state.

    Args:
        noise: what was measured.
        tensors: name, shape and Σ(θx)² of the tensors, None where it is not known.

    Returns:
        None if it is not known, or the parameters of the two cannot be matched by name or by order and shape.
    """
    if not tensors or any(pull is None for _, _, pull in tensors):
        return None
    layout = noise.layout
    known = {name: pull for name, _, pull in tensors}
    if not all(name in known for name in layout.names):
        if [shape for _, shape, _ in tensors] != [tuple(shape) for shape in layout.shapes]:
            return None
        known = dict(zip(layout.names, known.values(), strict=True))
    found = dict.fromkeys(layout.groups, 0.0)
    for name, group in zip(layout.names, layout.group, strict=True):
        found[layout.groups[group]] += known[name] or 0.0
    return found
