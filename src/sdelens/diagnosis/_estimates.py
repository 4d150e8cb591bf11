"""Estimates of each group of parameters from moments or sums, computed when they are first needed."""

import copy
import math
from functools import cached_property
from typing import Any, Final

import numpy as np

from sdelens.core import check
from sdelens.diagnosis._noise_pairs import curved_pair, moment_pair
from sdelens.diagnosis._ratio import FEW, Pair, limits
from sdelens.diagnosis._sign_scale import SignMoments, SignScale, sign_scale, unknown
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

    @cached_property
    def variances(self) -> list[np.ndarray]:
        """Diagonal of Σ̂ per leaf and sample."""
        finite = 1.0 if self.population is None else (self.population - 1) / self.population
        source = self.coordinates("variance")
        return [s * (finite / (source.count - source.points)) for s in source.square]

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

    def sign(self, group: str) -> SignScale:
        """The noise scale of methods that follow the sign."""
        number, source = self._number(group), self.source
        if not isinstance(source, Moments):
            return unknown("only sums over the coordinates were kept; watch with keep='moments'")
        if source.points > 1:
            return unknown(f"{SEVERAL}; watch at one point")
        if number is None and len(self.names) == 2:
            return self.sign(self.names[0])
        if ("sign", group) not in self._found:
            own = slice(None) if number is None else slice(number, number + 1)
            earlier = [(k, float(v[own].sum())) for k, v in source.roots if k <= 2 * source.count / 3]
            products, sizes = (np.asarray(v)[:, own].sum(axis=1) for v in (source.signed, source.sized))
            trace = self.pair(group)
            error = math.sqrt(trace.trace_variance) / trace.trace if trace.trace > 0 else 0.0
            most = sum(map(self._most, self.names[:-1])) if number is None else self._most(group)
            of = SignMoments(
                *self.columns(group), source.weight, source.count - 1, products, sizes, np.asarray(source.at),
                earlier[-1] if earlier else None, error, most, self.share, self._heavy(group),
            )  # fmt: skip
            self._found["sign", group] = sign_scale(of, self.confidence)
        found: SignScale = self._found["sign", group]
        return found

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
        """An upper limit of ‖∇f‖₁: √d times that of ‖∇f‖₂."""
        of = self.pair(group)
        high = limits(of, self.confidence)[1]
        square = high * of.trace if of.trace > 0 else max(of.square, 0.0)
        return math.sqrt(self.sizes[self.names.index(group)] * square)

    def _number(self, group: str) -> int | None:
        number = self.names.index(check.choice("group", group, self.names))
        return None if number == len(self.names) - 1 else number
