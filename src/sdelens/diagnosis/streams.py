"""First and second moments of gradients in one pass, mergeable, with scalars for their uncertainty."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from sdelens.diagnosis.nuclear_sums import NuclearSums

__all__ = ["Layout", "Moments"]

KEPT: Final = 4096
"""Most gradients for which the sampled coordinates are kept; beyond, those of every second, fourth, …."""
POOLED: Final = 256
"""Most coordinates to which the tails of all groups together are fitted."""
PROBES: Final = 64
"""Most gradients for which the product with the Hessian is kept, likewise."""
Product = Callable[[list[np.ndarray]], Sequence[Any]]


@dataclass(frozen=True)
class Layout:
    """How a gradient is divided into leaves and groups.

    Attributes:
        names: names of the leaves.
        shapes: shapes of the leaves.
        groups: names of the groups.
        group: index of the group of every leaf.
        rebuild: function from a list of leaves to the user's pytree.
        matrices: rows and columns of every leaf whose noise is measured in the nuclear norm, None for the others;
            empty if there are none.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    groups: tuple[str, ...]
    group: tuple[int, ...]
    rebuild: Callable[[list[Any]], Any] = field(compare=False)
    matrices: tuple[tuple[int, int] | None, ...] = ()

    @property
    def sizes(self) -> np.ndarray:
        """Coordinates per group."""
        out = np.zeros(len(self.groups), int)
        np.add.at(out, list(self.group), [int(np.prod(s)) for s in self.shapes])
        return out

    @property
    def widths(self) -> np.ndarray:
        """Sum of the shorter sides of the matrices per group: the largest number of singular values."""
        numbers = [i for i, shape in enumerate(self.matrices) if shape is not None]
        return self.by_group(numbers, [min(self.matrices[i] or (0,)) for i in numbers])

    def by_group(self, leaves: Sequence[int], values: Sequence[Any]) -> np.ndarray:
        """Sums per group of a number for each of the given leaves."""
        out = np.zeros(len(self.groups))
        np.add.at(out, [self.group[i] for i in leaves], values)
        return out

    def sampled(self, per_group: int, seed: int) -> list[np.ndarray]:
        """Sorted indices into every leaf: `per_group` random coordinates of each group, or all if it has fewer."""
        sizes = [int(np.prod(s)) for s in self.shapes]
        chosen: list[np.ndarray] = [np.zeros(0, int) for _ in sizes]
        for number in range(len(self.groups)):
            leaves = [i for i, g in enumerate(self.group) if g == number]
            ends = np.cumsum([sizes[i] for i in leaves])
            total = int(ends[-1])
            generator = np.random.default_rng([seed, number])
            flat = np.arange(total)
            if total > per_group:
                flat = np.sort(generator.choice(total, per_group, replace=False))
            for i, end in zip(leaves, ends, strict=True):
                chosen[i] = flat[(flat >= end - sizes[i]) & (flat < end)] - (end - sizes[i])
        return chosen


class Moments:
    r"""Weighted mean and squares of deviations per coordinate, by Welford's recursion in float64.

    A gradient that is the mean of w samples has weight w, so all results are per sample:

        W ← W + w,  δ = g − ḡ,  ḡ ← ḡ + (w/W) δ,  M₂ ← M₂ + w(W − w)/W δ²,  E M₂ = (K − 1) diag Σ.

    Attributes:
        layout: layout of the gradients.
        mean, square: ḡ and M₂ per leaf, flat.
        weight, count: W and K.
        points: number of points at which there are gradients. If there are several, mean and squares of deviations are
            those of each point, pooled: ḡ = Σ Wₚḡₚ/Σ Wₚ, E M₂ = (K − points) diag Σ, and i begins at 1 again.
        spread, cross, at: per group wᵢ‖gᵢ − ḡᵢ₋₁‖² Wᵢ₋₁/Wᵢ and √wᵢ(gᵢ − ḡᵢ₋₁)ᵀḡᵢ₋₁, and (wᵢ, Wᵢ₋₁, i − 1), as
            `_ratio.residuals` takes them; each a list over all gradients but the first of each point.
        signed, sized: gᵢᵀ sign(ḡᵢ₋₁) and ‖gᵢ − ḡᵢ₋₁‖₁ per group, likewise.
        nuclear: sums for the nuclear norm of matrices, or None if there are none.
        roots: K′ and Σ √M₂ per group after K′ gradients, K′ = 2, 4, 8, …, at the first point.
        index: indices of the sampled coordinates of every leaf.
        sample: their values, one array of shape (q,) per kept gradient.
        product: the product of the Hessian with shaped leaves, or None; ``probes`` are the same five numbers of some
            gradients, with H between the factors.
        weights: smallest and largest weight.
    """

    def __init__(self, layout: Layout, coordinates: int, seed: int, product: Product | None = None) -> None:
        self.layout, self.seed, self.coordinates, self.product = layout, seed, coordinates, product
        sizes = [int(np.prod(s)) for s in layout.shapes]
        self.mean = [np.zeros(n) for n in sizes]
        self.square = [np.zeros(n) for n in sizes]
        self.weight, self.count, self.points = 0.0, 0, 1
        self.spread: list[np.ndarray] = []
        self.cross: list[np.ndarray] = []
        self.signed: list[np.ndarray] = []
        self.sized: list[np.ndarray] = []
        self.roots: list[tuple[int, np.ndarray]] = []
        self.nuclear: NuclearSums | None = None
        if any(layout.matrices):
            self.nuclear = NuclearSums(layout.matrices, np.linalg, lambda _, m: np.zeros((m, m)), layout.by_group)
        self.at: list[tuple[float, float, int]] = []
        self.index = layout.sampled(coordinates, seed)
        self.sample: list[np.ndarray] = []
        self.stride = 1
        self.probes: list[tuple[float, ...]] = []
        self.probe_stride = 1
        self.weights = (np.inf, 0.0)

    def add(self, leaves: Sequence[np.ndarray], weight: float = 1.0) -> None:
        """Add one gradient.

        Raises:
            ValueError: if a leaf has another shape, or an entry is not finite.
        """
        for i, leaf in enumerate(leaves):
            self._check(i, leaf)  # check all leaves first, so that a gradient is never added in part
        before, after = self.weight, self.weight + weight
        factor = weight * before / after
        spread, cross, signed, sized = (np.zeros(len(self.layout.groups)) for _ in range(4))
        probed = self.product is not None and before > 0 and (self.count - 1) % self.probe_stride == 0
        probe, sample = [], []
        for i, leaf in enumerate(leaves):
            group, mean = self.layout.group[i], self.mean[i]
            delta = np.array(leaf, np.float64).ravel()
            if self.coordinates and self.count % self.stride == 0:
                sample.append(delta[self.index[i]])
            if before > 0:
                signed[group] += np.sign(mean) @ delta
            delta -= mean
            if self.nuclear is not None:
                self.nuclear.take(i, np.asarray(leaf, np.float64), delta, factor)
            sized[group] += np.abs(delta).sum()
            cross[group] += delta @ mean + (mean @ mean if self.count == 1 else 0)
            if probed:
                probe.append((mean.copy(), delta.copy()))
            mean += (weight / after) * delta
            spread[group] += delta @ delta
            np.multiply(delta, delta, out=delta)
            delta *= factor
            self.square[i] += delta
        if before > 0:
            self.spread.append(factor * spread)
            self.cross.append(np.sqrt(weight) * cross)
            self.signed.append(signed)
            self.sized.append(sized)
            self.at.append((weight, before, self.count))
        if probed:
            old, change = ([p[i] for p in probe] for i in (0, 1))
            curved = self.curved(change)
            crossed = _dot(old, curved) + (_dot(old, self.curved(old)) if self.count == 1 else 0)
            self.probes.append((factor * _dot(change, curved), np.sqrt(weight) * crossed, *self.at[-1]))
            if len(self.probes) > PROBES:
                self.probes, self.probe_stride = self.probes[::2], 2 * self.probe_stride
        if sample:
            self.sample.append(np.concatenate(sample))
        self._thin()
        self.weight, self.count = after, self.count + 1
        if self.count > 1 and self.count & (self.count - 1) == 0:
            self.roots.append((self.count, self.rooted()))
        if self.nuclear is not None:
            self.nuclear.close(self.count, weight, after, self.mean)
        self.weights = (min(self.weights[0], weight), max(self.weights[1], weight))

    def rooted(self) -> np.ndarray:
        """Σ √M₂ per group."""
        return self.layout.by_group(range(len(self.square)), [np.sqrt(v).sum() for v in self.square])

    def curved(self, leaves: list[np.ndarray]) -> list[np.ndarray]:
        """The Hessian times a vector given as flat leaves, as flat leaves."""
        assert self.product is not None
        shaped = [v.reshape(s) for v, s in zip(leaves, self.layout.shapes, strict=True)]
        out = self.product(shaped)
        if [np.shape(v) for v in out] != list(self.layout.shapes):
            raise ValueError(
                f"hvp: returned leaves of shapes {[np.shape(v) for v in out]}; it must return a pytree like the "
                f"gradient's, with leaves of shapes {list(self.layout.shapes)}."
            )
        return [np.asarray(v, np.float64).ravel() for v in out]

    def _check(self, i: int, leaf: np.ndarray) -> None:
        name = self.layout.names[i]
        if np.shape(leaf) != self.layout.shapes[i]:
            raise ValueError(
                f"gradients: {name} of gradient {self.count} has shape {np.shape(leaf)}, but that of the first has "
                f"{self.layout.shapes[i]}; give gradients of the same shapes."
            )
        finite = np.isfinite(leaf)
        if not finite.all():
            raise ValueError(
                f"gradients: {name} of gradient {self.count} has {int((~finite).sum())} entries that are not finite; "
                "leave out gradients that overflowed."
            )

    def _thin(self) -> None:
        if len(self.sample) > KEPT:
            self.sample, self.stride = self.sample[::2], 2 * self.stride

    def merge(self, other: "Moments") -> "Moments":
        """Join two objects: moments by Chan's formula, scalars and samples by concatenation.

        Raises:
            ValueError: if the gradients, groups or sampled coordinates differ.
        """
        if self.layout != other.layout:
            raise ValueError("other: its parameters or groups differ; merge gradients of the same model.")
        if (self.coordinates, self.seed) != (other.coordinates, other.seed):
            raise ValueError("other: its sampled coordinates differ; use the same seed and tail_coordinates.")
        if max(self.points, other.points) > 1:
            raise ValueError(
                "other: the parameters changed between these gradients, so that their means cannot be joined; watch "
                "with keep='sums', or at one point."
            )
        out = copy.copy(self)
        out.weight, out.count = self.weight + other.weight, self.count + other.count
        share = other.weight / out.weight
        shift = [b - a for a, b in zip(self.mean, other.mean, strict=True)]
        out.mean = [a + share * d for a, d in zip(self.mean, shift, strict=True)]
        factor = self.weight * share
        squares = zip(self.square, other.square, shift, strict=True)
        out.square = [a + b + factor * d * d for a, b, d in squares]
        out.spread, out.cross = self.spread + other.spread, self.cross + other.cross
        out.at, out.signed, out.sized = self.at + other.at, self.signed + other.signed, self.sized + other.sized
        known = [*self.roots, *other.roots, (self.count, self.rooted()), (other.count, other.rooted())]
        out.roots = sorted(known, key=lambda found: found[0])
        if self.nuclear is not None and other.nuclear is not None:
            counts, weights = (self.count, other.count), (self.weight, other.weight)
            out.nuclear = self.nuclear.merge(other.nuclear, shift, counts, weights)
        out.stride = max(self.stride, other.stride)
        out.sample = self.sample[:: out.stride // self.stride] + other.sample[:: out.stride // other.stride]
        out._thin()
        out.probes = self.probes + other.probes
        out.weights = (min(self.weights[0], other.weights[0]), max(self.weights[1], other.weights[1]))
        return out

    def columns(self, group: int | None) -> np.ndarray:
        """Sampled values of a group, or at most `POOLED` coordinates of all groups, shape (kept, q)."""
        owner = np.repeat(self.layout.group, [len(i) for i in self.index])
        chosen = np.flatnonzero(owner == group) if group is not None else np.arange(owner.size)
        if group is None and owner.size > POOLED:
            chosen = np.sort(np.random.default_rng(self.seed).choice(owner.size, POOLED, replace=False))
        return np.stack([s[chosen] for s in self.sample])


def _dot(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
    return float(sum(x @ y for x, y in zip(a, b, strict=True)))
