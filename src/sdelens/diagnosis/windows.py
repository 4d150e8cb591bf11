"""Gradient noise from sums over coordinates alone, which gradient accumulation provides without extra memory."""

import numpy as np

from sdelens.diagnosis._noise import ALL, GradientNoise
from sdelens.diagnosis._ratio import Pair, pair, residuals
from sdelens.diagnosis.streams import Layout, Moments

__all__ = ["from_sums"]


def from_sums(
    layout: Layout,
    tables: dict[str, np.ndarray],
    empty: list[bool],
    weights: list[float],
    per: str,
    confidence: float,
) -> GradientNoise:
    r"""Noise from ‖g‖², gᵀs and ‖s‖² of every gradient g and the sum s of those accumulated before it.

    In a window of n gradients of b samples each, with S their sum,

        ‖∇f‖² ≈ 2 Σ gᵀs/(n(n − 1)),   tr Σ ≈ b (Σ ‖g‖² − ‖S‖²/n)/(n − 1),   ‖S‖² = Σ ‖g‖² + 2 Σ gᵀs,

    where both estimates are unbiased; the scalars of `_ratio` follow from the same sums. Windows are averaged with
    weights n − 1.

    Args:
        layout: layout of the parameters.
        tables: the three numbers of every parameter and gradient, shape (K, 3): all NaN if the parameter had no
            gradient, only the third NaN if nothing was accumulated for it.
        empty: whether nothing was accumulated for any parameter; a window begins there, and where all sums are 0.
        weights: number of samples of every gradient.
        per: as in `GradientNoise`.
        confidence: as in `GradientNoise`.

    Raises:
        ValueError: if batches differ in size, nothing was accumulated, or a gradient was not finite.
    """
    if len(set(weights)) > 1:
        raise ValueError("batch_size: got different sizes, but only sums were kept; give micro-batches of one size.")
    if not tables:
        raise ValueError("gradients: got none; make two or more backward passes.")
    table = np.stack([tables[name] for name in layout.names])
    reached, none = ~np.isnan(table).all(axis=2), np.isnan(table[:, :, 2])
    if not np.isfinite(table[reached][:, :2]).all() or np.isinf(table).any():
        raise ValueError("gradients: got one that is not finite; start watching after the loss scale has stabilised.")
    zero = (~reached | (table[:, :, 2] == 0)).all(axis=0)
    table[reached & none, 2] = 0
    starts = sorted({0, *(int(i) for i in np.flatnonzero(np.array(empty) | zero))})
    ends = [*starts[1:], table.shape[1]]
    grouped = np.zeros((len(layout.groups), *table.shape[1:]))
    for first, last in zip(starts, ends, strict=True):
        _fill(table[:, first:last], reached[:, first:last])
    np.add.at(grouped, list(layout.group), table)
    windows = [(a, b) for a, b in zip(starts, ends, strict=True) if b - a > 1]
    if not windows:
        raise ValueError(
            "gradients: p.grad was empty at every backward pass; accumulate two or more micro-batches before "
            "zero_grad, or watch with keep='moments'."
        )
    size = weights[0]
    sizes = layout.sizes
    pairs = {name: _pair(grouped[i], windows, size, int(sizes[i])) for i, name in enumerate(layout.groups)}
    pairs[ALL] = _pair(grouped.sum(axis=0), windows, size, int(sizes.sum()))
    moments = Moments(layout, 0, 0)
    moments.count = sum(b - a for a, b in windows)
    moments.weight = size * moments.count
    return GradientNoise(moments, per, None, confidence, pairs)


def _fill(window: np.ndarray, reached: np.ndarray) -> None:
    """Fill rows of parameters that a micro-batch did not reach: g = 0, and s keeps its last value."""
    held = np.zeros(len(window))
    for k in range(window.shape[1]):
        row, missing = window[:, k], ~reached[:, k]
        row[missing] = 0
        row[missing, 2] = held[missing]
        held = row.sum(axis=1) + row[:, 1]


def _pair(table: np.ndarray, windows: list[tuple[int, int]], size: float, coordinates: int) -> Pair:
    squares, traces, spread, cross, at = [], [], [], [], []
    for first, last in windows:
        own, product, held = table[first:last].T
        n = last - first
        squares.append(2 * product.sum() / (n * (n - 1)))
        traces.append(size * (own.sum() - (own.sum() + 2 * product.sum()) / n) / (n - 1))
        before = np.arange(1.0, n)
        own, product, held = own[1:], product[1:] / before, held[1:] / before**2
        spread.append(size * before / (before + 1) * (own - 2 * product + held))
        cross.append(np.sqrt(size) * (product - held * (before > 1)))
        at.append(np.stack([np.full(n - 1, size), size * before, before], axis=1))
    counts = np.array([b - a for a, b in windows], float)
    share = (counts - 1) / (counts - 1).sum()
    inverse = (float((share**2 / counts).sum()) / size, float((share**2 / counts / (counts - 1)).sum()) / size**2)
    joined = np.concatenate(spread)
    scalars = residuals(joined, np.concatenate(cross), np.concatenate(at))
    return pair(float(share @ squares), float(share @ traces), joined, *scalars, inverse, size=coordinates)
