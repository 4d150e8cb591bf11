"""Gradient noise from sums over coordinates alone, which gradient accumulation provides without extra memory."""

from collections.abc import Sequence

import numpy as np

from sdelens.diagnosis._ratio import Pair, pair, residuals
from sdelens.diagnosis.streams import Layout

__all__ = ["Windows", "inverses"]


class Windows:
    r"""Sums over coordinates of gradients that were accumulated in windows, each of which lies at one point.

    In a window of n gradients g of b samples each, with s the sum of those before g and S that of all,

        ‖∇f‖² ≈ (‖S‖² − Σ‖g‖²)/(n(n − 1)),   tr Σ ≈ b (Σ‖g‖² − ‖S‖²/n)/(n − 1),   ‖S‖² = Σ‖g‖² + 2Σ gᵀs,

    where both estimates are unbiased. Windows are averaged with weights n − 1. Of a window of one process, ‖g‖² and
    gᵀs of every gradient are kept, and their scalars for `_ratio` follow. Of a window of several processes, only Σ‖g‖²
    and ‖S‖² over all of them are known (the norms before and after the all-reduce); there the two estimates of a
    window take the place of these scalars,

        D = √(nb)/2 (U − ‖∇f‖²),   E D² = v₁ + v₂/(2(n − 1)b),   −Cov(D, q)/v₂ = 1/((n − 1)√(nb))  for ∇f = 0,

    with U the window's estimate of ‖∇f‖² and q that of tr Σ.

    Attributes:
        layout: layout of the parameters.
        size: b.
        single: of every window of one process ‖g‖² and gᵀs per gradient and group, shape (n, groups, 2).
        joint: of every window of several processes n, and Σ‖g‖² and ‖S‖² per group, shape (groups, 2).
    """

    points = 1

    def __init__(
        self,
        layout: Layout,
        size: float,
        single: Sequence[np.ndarray] = (),
        joint: Sequence[tuple[int, np.ndarray]] = (),
    ) -> None:
        self.layout, self.size = layout, size
        self.single = [rows for rows in single if len(rows) > 1]
        self.joint = [(n, sums) for n, sums in joint if n > 1]

    @property
    def count(self) -> int:
        """Number of gradients in windows of two or more."""
        return sum(map(len, self.single)) + sum(n for n, _ in self.joint)

    @property
    def weight(self) -> float:
        """Number of samples in these windows."""
        return self.size * self.count

    @property
    def step_size(self) -> float:
        """Mean number of samples of a window."""
        return self.weight / max(len(self.single) + len(self.joint), 1)

    def merge(self, other: "Windows") -> "Windows":
        """Join windows of different steps or data.

        Raises:
            ValueError: if the parameters, groups or batch sizes differ, or one has windows of several processes.
        """
        if self.layout != other.layout:
            raise ValueError("other: its parameters or groups differ; merge gradients of the same model.")
        if self.size != other.size:
            raise ValueError(
                f"other: its micro-batches have {other.size:g} samples, not {self.size:g}; merge sums of micro-batches "
                "of one size, or watch with keep='moments'."
            )
        if bool(self.joint) != bool(other.joint):
            raise ValueError(
                "other: one of the results contains norms after an all-reduce and the other does not; watch both in "
                "the same way, and join the processes of one run with `GradientWatch.gather`."
            )
        return Windows(self.layout, self.size, [*self.single, *other.single], [*self.joint, *other.joint])

    def pair(self, number: int | None, coordinates: int) -> Pair:
        """The estimates with their errors of one group, or of all for None."""
        return self._of_processes(number, coordinates) if self.joint else self._of_one(number, coordinates)

    def _of_one(self, number: int | None, coordinates: int) -> Pair:
        squares, traces, counts, spread, cross, at = ([] for _ in range(6))
        for n in sorted({len(rows) for rows in self.single}):
            table = _column(np.stack([rows for rows in self.single if len(rows) == n]), number)
            own, product = table[..., 0], table[..., 1]
            held = np.cumsum(own + 2 * product, axis=1)
            squares.append(2 * product.sum(axis=1) / (n * (n - 1)))
            traces.append(self.size * (own.sum(axis=1) - held[:, -1] / n) / (n - 1))
            counts.append(np.full(len(table), float(n)))
            before = np.arange(1.0, n)
            own, product, held = own[:, 1:], product[:, 1:] / before, held[:, :-1] / before**2
            spread.append((self.size * before / (before + 1) * (own - 2 * product + held)).ravel())
            cross.append((np.sqrt(self.size) * (product - held * (before > 1))).ravel())
            rows = np.stack([np.full(n - 1, self.size), self.size * before, before], axis=1)
            at.append(np.tile(rows, (len(table), 1)))
        share, inverse = self._weights(np.concatenate(counts))
        joined = np.concatenate(spread)
        scalars = residuals(joined, np.concatenate(cross), np.concatenate(at))
        square, trace = (float(share @ np.concatenate(v)) for v in (squares, traces))
        return pair(square, trace, joined, *scalars, inverse, size=coordinates, gradients=self.count)

    def _of_processes(self, number: int | None, coordinates: int) -> Pair:
        counts = np.array([n for n, _ in self.joint], float)
        small, large = _column(np.stack([sums for _, sums in self.joint]), number).T
        squares = (large - small) / (counts * (counts - 1))
        traces = self.size * (small - large / counts) / (counts - 1)
        share, inverse = self._weights(counts)
        width = np.sqrt(counts * self.size)
        second = 1 / (2 * (counts - 1) * self.size)
        design = np.stack([np.ones_like(counts), second, 1 / ((counts - 1) * width), width / 2], axis=1)
        estimates = float(share @ squares), float(share @ traces)
        return pair(*estimates, traces, width / 2 * squares, design, inverse, size=coordinates, gradients=len(counts))

    def _weights(self, counts: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
        share = (counts - 1) / (counts - 1).sum()
        return share, inverses(share, counts, self.size)


def inverses(share: np.ndarray, counts: np.ndarray, size: float) -> tuple[float, float]:
    """1/W and K/((K − 1)W²) for a mean with weights `share` over windows of `counts` gradients of `size` samples."""
    second = float((share**2 / counts / (counts - 1)).sum()) / size**2
    return float((share**2 / counts).sum()) / size, second


def _column(table: np.ndarray, number: int | None) -> np.ndarray:
    """The sums of one group, or over all groups: the last axis but one."""
    return table.sum(axis=-2) if number is None else table[..., number, :]
