"""Sums over gradients of matrices, for their noise in the nuclear norm, of NumPy arrays or PyTorch tensors."""

import copy
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

__all__ = ["Checkpoint", "Matrices", "NuclearSums", "as_matrices", "oriented", "root_trace"]

Matrices = bool | str | Sequence[str] | None
Shape = tuple[int, int]


def as_matrices(
    names: Sequence[str], shapes: Sequence[tuple[int, ...]], wanted: Matrices, excluded: Collection[str] = ()
) -> tuple[Shape | None, ...]:
    """Rows and columns of the tensors whose noise is measured in the nuclear norm, None for the others.

    Args:
        names: names of the tensors.
        shapes: their shapes. Of more than two axes, the first is kept and the others are joined, as PyTorch's
            convolutions are treated by Muon.
        wanted: None or False for none, True for all with two or more axes, or one or more regular expressions, of which
            one must be found in a tensor's name.
        excluded: names that are never matrices, as of complex tensors, which are pairs of numbers here.

    Raises:
        TypeError: if `wanted` is of another type.
        ValueError: if an expression is invalid, or none of the tensors is a matrix.
    """
    if wanted is None or wanted is False:
        return ()
    expressions = [""] if wanted is True else [wanted] if isinstance(wanted, str) else wanted
    if not isinstance(expressions, Sequence) or not all(isinstance(text, str) for text in expressions):
        raise TypeError(
            f"matrices: got {wanted!r}; give True, a regular expression on the names of tensors, or a list of them."
        )
    try:
        compiled = [re.compile(text) for text in expressions]
    except re.error as error:
        raise ValueError(
            f"matrices: got {wanted!r}, which is not a regular expression ({error}); correct it."
        ) from error
    found: list[Shape | None] = []
    for name, shape in zip(names, shapes, strict=True):
        flat = (shape[0], int(np.prod(shape[1:]))) if len(shape) > 1 else (0, 0)
        chosen = min(flat) > 0 and name not in excluded and any(text.search(name) for text in compiled)
        found.append(flat if chosen else None)
    if not any(found):
        raise ValueError(
            f"matrices: got {wanted!r}, which selects no tensor with two axes of real numbers among "
            f"{', '.join(names)}; give expressions for names of matrices, or leave it out."
        )
    return tuple(found)


def oriented(matrix: Any) -> Any:
    """The matrix with its shorter side first."""
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


def root_trace(gram: Any, eigenvalues: Callable[[Any], Any]) -> Any:
    """The trace of the square root of a Gram matrix; of MMᵀ, the nuclear norm of M."""
    return (eigenvalues(_finite(gram)).clip(min=0) ** 0.5).sum()


@dataclass(frozen=True)
class Checkpoint:
    """The mean of the first gradients, and those after it until the next checkpoint, per group.

    Attributes:
        count, weight: number and weight of the first gradients.
        norms: nuclear norms of the mean.
        roots: traces of the square roots of the sums of δδᵀ.
        later: sum of weighted products of the later gradients with the orthogonal factor of the mean.
        later_weight: weight of these.
    """

    count: int
    weight: float
    norms: Any
    roots: Any
    later: Any
    later_weight: float = 0.0


class NuclearSums:
    r"""Gram matrices Σ wᵢWᵢ₋₁/Wᵢ δᵢδᵢᵀ of deviations δᵢ = gᵢ − ḡᵢ₋₁, and products with orthogonal factors of means.

    At K = 1, 2, 4, 8, … gradients the mean ḡ = USVᵀ of every matrix is decomposed; until the next of these checkpoints
    the products ⟨gᵢ, UVᵀ⟩ are kept. For an m × n matrix, m ≤ n, memory is that of mn + m² numbers; a gradient costs
    2m²n operations, and each of the 1 + log₂ K decompositions about 6m²n + 20m³ in float64.

    Attributes:
        shapes: rows and columns per tensor, None for tensors that are no matrices.
        grams: the Gram matrices, None for other tensors.
        products: ⟨gᵢ, UVᵀ⟩ per group, for all gradients but the first.
        checkpoints: the checkpoints.
    """

    def __init__(
        self,
        shapes: Sequence[Shape | None],
        linalg: Any,
        zeros: Callable[[int, int], Any],
        by_group: Callable[[list[int], list[Any]], Any],
    ) -> None:
        """Begin without gradients.

        Args:
            shapes: rows and columns per tensor, None for tensors that are no matrices.
            linalg: `numpy.linalg` or `torch.linalg`.
            zeros: function from the number of a tensor and a length m to a matrix of zeros, shape (m, m).
            by_group: function from numbers of tensors and a scalar of each to their sums per group.
        """
        self.shapes, self._by_group = tuple(shapes), by_group
        self._decompose, self._eigenvalues = linalg.eigh, linalg.eigvalsh
        self._places = [i for i, shape in enumerate(shapes) if shape is not None]
        self.grams: list[Any] = [None if shape is None else zeros(i, min(shape)) for i, shape in enumerate(shapes)]
        self._factors: list[Any] = [None] * len(self.shapes)
        self._row: dict[int, Any] = {}
        self.products: list[Any] = []
        self.checkpoints: list[Checkpoint] = []

    def take(self, number: int, gradient: Any, deviation: Any, factor: float) -> None:
        """Add the gradient of one tensor with its deviation from the mean before, flat; others are ignored."""
        shape = self.shapes[number]
        if shape is None:
            return
        if self._factors[number] is not None:
            self._row[number] = (self._factors[number] * oriented(gradient.reshape(shape))).sum()
        if factor > 0:
            change = oriented(deviation.reshape(shape))
            self.grams[number] += factor * (change @ change.T)

    def close(self, count: int, weight: float, total: float, means: Sequence[Any]) -> None:
        """End a gradient of a given weight, after which there are `count` gradients of weight `total`."""
        if self._row:
            products = self._by_group([*self._row], [*self._row.values()])
            self.products.append(products)
            last = self.checkpoints[-1]
            self.checkpoints[-1] = replace(
                last, later=last.later + weight * products, later_weight=last.later_weight + weight
            )
            self._row = {}
        if count & (count - 1) == 0:
            norms = []
            for i in self._places:
                self._factors[i], norm = _orthogonal(oriented(means[i].reshape(self.shapes[i])), self._decompose)
                norms.append(norm)
            found = self._by_group(self._places, norms)
            self.checkpoints.append(Checkpoint(count, total, found, self.roots(), 0 * found))

    def roots(self) -> Any:
        """Traces of the square roots of the Gram matrices, per group."""
        values = [root_trace(self.grams[i], self._eigenvalues) for i in self._places]
        return self._by_group(self._places, values)

    def read(self, convert: Callable[[Any], np.ndarray], by_group: Callable[..., np.ndarray]) -> "NuclearSums":
        """The sums so far as NumPy arrays, without the orthogonal factors: gradients are no longer added to them."""
        out = copy.copy(self)
        out._factors, out._row, out._by_group = [None] * len(self.shapes), {}, by_group
        out._decompose, out._eigenvalues = np.linalg.eigh, np.linalg.eigvalsh
        out.grams = [None if gram is None else convert(gram) for gram in self.grams]
        out.products = [convert(row) for row in self.products]
        out.checkpoints = [
            replace(c, norms=convert(c.norms), roots=convert(c.roots), later=convert(c.later)) for c in self.checkpoints
        ]
        return out

    def merge(
        self, other: "NuclearSums", shift: Sequence[np.ndarray], counts: Sequence[int], weights: Sequence[float]
    ) -> "NuclearSums":
        """Join two sets of sums of given numbers and weights, whose means differ by `shift`, by Chan's formula."""
        out = self.read(np.array, self._by_group)
        factor = weights[0] * weights[1] / (weights[0] + weights[1])
        for i in self._places:
            change = oriented(shift[i].reshape(self.shapes[i]))
            out.grams[i] += other.grams[i] + factor * (change @ change.T)
        out.products = self.products + other.products
        ends = [
            Checkpoint(count, weight, 0 * roots, roots, 0 * roots)
            for count, weight, roots in zip(counts, weights, (self.roots(), other.roots()), strict=True)
        ]
        out.checkpoints = sorted([*self.checkpoints, *other.checkpoints, *ends], key=lambda found: found.count)
        return out


def _orthogonal(matrix: Any, decompose: Callable[[Any], Any]) -> tuple[Any, Any]:
    """UVᵀ and the sum of S for a matrix USVᵀ, from eigenvectors U of its Gram matrix and the norms S of UᵀM.

    Singular values that rounding hides in the Gram matrix are not raised to 1, so that no singular value of UVᵀ is
    above 1.
    """
    wide = _finite(matrix)
    _, u = decompose(wide @ wide.T)
    rotated = u.T @ wide
    sizes = (rotated**2).sum(1) ** 0.5
    hidden = 2.0 ** (-26 if wide.itemsize == 8 else -11) * len(wide) ** 0.5 * float(sizes.max())
    factor = (u / sizes.clip(min=hidden or 1.0)) @ rotated
    return (factor if isinstance(factor, np.ndarray) else factor.to(matrix.dtype)), sizes.sum()


def _finite(matrix: Any) -> Any:
    """The matrix in float64, if the device has it, with 0 for what is not finite and is refused in a result."""
    if isinstance(matrix, np.ndarray):
        return np.nan_to_num(matrix, nan=0.0, posinf=0.0, neginf=0.0)
    return (matrix if matrix.device.type == "mps" else matrix.double()).nan_to_num(0.0, 0.0, 0.0)
