"""Estimates of each group of parameters from moments or sums, computed when they are first needed."""

import copy
import math
from functools import cached_property
from typing import Any, Final

import numpy as np

from sdelens.core import check
from sdelens.diagnosis._dual_scale import Bounds, DualScale, unknown
from sdelens.diagnosis._noise_pairs import curved_pair, moment_pair
from sdelens.diagnosis._nuclear_scale import NuclearMoments, Step, nuclear_scale
from sdelens.diagnosis._ratio import FEW, Pair, limits
from sdelens.diagnosis._sign_scale import SignMoments, sign_scale
from sdelens.diagnosis._tails import HEAVY, Tail, no_tail, tail
from sdelens.diagnosis.streams import Moments
from sdelens.diagnosis.windows import Windows

__all__ = ["ALL", "SEVERAL", "Estimates"]

ALL: Final = "all"
SEVERAL: Final = "the parameters changed between the gradients"


class Estimates:
    """Estimates per group.

    Attributes:
        source: the moments or sums.
        population: size of the population, or None.
        confidence: confidence of limits.
        names: the groups, ``"all"`` last.
        sizes: their numbers of coordinates.
    """

    def __init__(self, source: Moments | Windows, population: int | None, confidence: float) -> None:
        self.source, self.population, self.confidence = source, population, confidence
        self.names = (*source.layout.groups, ALL)
        self.sizes = [*map(int, source.layout.sizes), int(source.layout.sizes.sum())]
        self._found: dict[tuple[str, str], Any] = {}

    @property
    def share(self) -> float:
        """Share of the population that was not drawn."""
        return 1.0 if self.population is None else 1 - self.source.count / self.population

    @property
    def _per_sample(self) -> float:
        """The factor from squares of deviations to Σ̂ of one sample."""
        finite = 1.0 if self.population is None else (self.population - 1) / self.population
        return finite / (self.source.count - self.source.points)

    @cached_property
    def variances(self) -> list[np.ndarray]:
        """Diagonal of Σ̂ per leaf and sample."""
        return [s * self._per_sample for s in self.coordinates("variance").square]

    @cached_property
    def curved(self) -> Pair | None:
        """gᵀHg and tr HΣ, or None if there are no products with the Hessian."""
        return curved_pair(self.source, self.share) if isinstance(self.source, Moments) else None

    def coordinates(self, name: str) -> Moments:
        """The moments per coordinate.

        Raises:
            ValueError: if there are only sums.
        """
        if not isinstance(self.source, Moments):
            raise ValueError(f"{name}: only sums over the coordinates were kept; watch with keep='moments'.")
        return self.source

    def columns(self, group: str) -> tuple[np.ndarray, np.ndarray]:
        """ḡ and σ̂² of the coordinates of a group."""
        number, source = self._number(group), self.coordinates("coordinates")
        leaves = [i for i, g in enumerate(source.layout.group) if number in (g, None)]
        chosen = ([values[i] for i in leaves] for values in (source.mean, self.variances))
        mean, variance = map(np.concatenate, chosen)
        return mean, variance

    def pair(self, group: str) -> Pair:
        """‖∇f‖² and tr Σ."""
        number = self._number(group)
        if ("pair", group) not in self._found:
            if isinstance(self.source, Windows):
                of = self.source.pair(number, self.sizes[self.names.index(group)])
            else:
                of = moment_pair(self.source, number, self.variances, self.share)
            self._found["pair", group] = of
        found: Pair = self._found["pair", group]
        return found

    def tail(self, group: str) -> Tail | None:
        """The tail, or None if none was requested."""
        source, number = self.source, self._number(group)
        if not isinstance(source, Moments) or not source.coordinates:
            return None
        if number is None and len(self.names) == 2:
            return self.tail(self.names[0])
        if ("tail", group) not in self._found:
            why = SEVERAL if source.points > 1 else None
            if source.weights[0] != source.weights[1]:
                why = "batches of different sizes have different distributions"
            known = None if why is None else no_tail(source.count, self.confidence, why)
            self._found["tail", group] = known or tail(source.columns(number), self.confidence)
        found: Tail = self._found["tail", group]
        return found

    def dual(self, group: str, norm: str) -> DualScale:
        """The noise scale of ``"l1"``, for methods that follow the sign, or of ``"nuclear"``, for Muon."""
        number, source = self._number(group), self.source
        if not isinstance(source, Moments):
            return unknown("only sums over the coordinates were kept; watch with keep='moments'")
        if source.points > 1:
            return unknown(f"{SEVERAL}; watch at one point")
        if norm == "nuclear":
            if source.nuclear is None:
                return unknown("no matrices were selected; measure with matrices=True, or give names of matrices")
            if number is not None and not source.layout.widths[number]:
                return unknown("none of the selected matrices is in this group")
        if number is None and len(self.names) == 2:
            return self.dual(self.names[0], norm)
        if (norm, group) not in self._found:
            self._found[norm, group] = (self._nuclear if norm == "nuclear" else self._sign)(source, number, group)
        found: DualScale = self._found[norm, group]
        return found

    def _sign(self, source: Moments, number: int | None, group: str) -> DualScale:
        own = slice(None) if number is None else slice(number, number + 1)
        earlier = [(k, float(v[own].sum())) for k, v in source.roots if k <= 2 * source.count / 3]
        products, sizes = (np.asarray(v)[:, own].sum(axis=1) for v in (source.signed, source.sized))
        of = SignMoments(
            *self.columns(group), source.weight, source.count - 1, products, sizes, np.asarray(source.at),
            earlier[-1] if earlier else None, self._bounds(group, source.layout.sizes),
        )  # fmt: skip
        return sign_scale(of, self.confidence)

    def _nuclear(self, source: Moments, number: int | None, group: str) -> DualScale:
        own, sums, layout = slice(None) if number is None else slice(number, number + 1), source.nuclear, source.layout
        assert sums is not None
        places = [i for i, shape in enumerate(layout.matrices) if shape and number in (layout.group[i], None)]
        means = [source.mean[i].reshape(layout.matrices[i] or ()) for i in places]
        grams = [np.asarray(sums.grams[i]) * self._per_sample for i in places]
        steps = []
        for c in sums.checkpoints:
            norm, root, later = (float(v[own].sum()) for v in (c.norms, c.roots, c.later))
            mean = later / c.later_weight if c.later_weight else math.nan
            steps.append(Step(c.count, c.weight, norm, root, mean, c.later_weight))
        of = NuclearMoments(
            means, grams, steps, source.weight, source.count, np.asarray(sums.products)[:, own].sum(axis=1),
            np.asarray(source.at), self._bounds(group, layout.widths),
        )  # fmt: skip
        return nuclear_scale(of, self.confidence)

    def _bounds(self, group: str, sizes: np.ndarray) -> Bounds:
        """What limits in a dual norm need besides it.

        Args:
            group: the group.
            sizes: the largest square of the ratio of the norm to ‖∇f‖₂, per group.
        """
        trace = self.pair(group)
        error = math.sqrt(trace.trace_variance) / trace.trace if trace.trace > 0 else 0.0
        numbers = range(len(sizes)) if group == ALL else [self.names.index(group)]
        most = sum(math.sqrt(sizes[i]) * self._most(self.names[i]) for i in numbers if sizes[i])
        return Bounds(error, most, self.share, self._heavy(group))

    def scale(self, group: str) -> float:
        """The noise scale tr Σ/‖∇f‖², NaN if it is not resolved."""
        of = self.pair(group)
        resolved = of.square > 0 and limits(of, self.confidence)[0] > 0
        return of.trace / of.square if resolved else math.nan

    def inverted(self, of: Pair, reason: str | None) -> tuple[float, float]:
        """Limits of the noise scale from those of its inverse; no upper one for a reason."""
        low, high = limits(of, self.confidence)
        upper = math.inf if low == 0 else 1 / low if reason is None else math.nan
        return (1 / high if high > 0 else math.inf), upper

    def reason(self, of: Pair, group: str) -> str | None:
        """Why the noise scale has no upper limit, or None."""
        if not of.depends_on_trace or limits(of, self.confidence)[0] == 0:
            return None
        if of.effective < min(FEW, self.source.count / 4):
            return (
                f"few of the {self.source.count} gradients decide tr Σ (effectively {of.effective:.1f} of them), and "
                "its error cannot be estimated; give more gradients, or gradients of larger batches"
            )
        own = self.tail(group)
        if own is not None and own.kappa > HEAVY:
            return (
                f"the tails are so heavy (κ = {own.kappa:.2g}, above 1/3) that few values decide tr Σ, and its error "
                "cannot be estimated; give gradients of larger batches"
            )
        return None

    def __getstate__(self) -> dict[str, Any]:
        """State without the product with the Hessian, a function that cannot be sent to other processes."""
        curved, source = self.curved, copy.copy(self.source)
        if isinstance(source, Moments):
            source.product = None
        return {**self.__dict__, "source": source, "curved": curved}

    def _heavy(self, group: str) -> bool:
        own = self.tail(group)
        return own is not None and own.kappa > HEAVY

    def _most(self, group: str) -> float:
        """An upper limit of ‖∇f‖₂."""
        of = self.pair(group)
        high = limits(of, self.confidence)[1]
        square = high * of.trace if of.trace > 0 else max(of.square, 0.0)
        return math.sqrt(square)

    def _number(self, group: str) -> int | None:
        number = self.names.index(check.choice("group", group, self.names))
        return None if number == len(self.names) - 1 else number
