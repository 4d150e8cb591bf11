"""Statistics of gradient noise: size, noise scale, phases and tails, per group and in total."""

import copy
import math
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sdelens.core import check
from sdelens.core.files import text_table
from sdelens.diagnosis._ratio import FEW, Pair, limits, pair, residuals
from sdelens.diagnosis._shares import PhaseShares, phase_shares
from sdelens.diagnosis._tails import HEAVY, Tail, no_tail, tail
from sdelens.diagnosis.streams import Moments

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ALL", "GradientNoise"]

ALL: Final = "all"


class GradientNoise:
    r"""The result of `gradient_noise`: statistics per group of parameters, and for ``"all"``.

    With K gradients gᵢ, each the mean of wᵢ samples (`batch_size`), W = Σ wᵢ and ḡ = Σ wᵢgᵢ/W, per *sample*:

        tr Σ̂ = Σᵢ wᵢ ‖gᵢ − ḡ‖²/(K − 1),   ‖∇f‖² ≈ ‖ḡ‖² − tr Σ̂/W  (both unbiased),

        B_simple = tr Σ/‖∇f‖²  samples,   SNR(B) = √(B ‖∇f‖²/tr Σ).

    If K gradients were drawn from a population of N, tr Σ̂ is multiplied by (N − 1)/N, and tr Σ̂/W by 1 − K/N.

    Attributes:
        count: K.
        samples: W.
        batch_size: W/K.
        per: ``"sample"`` or ``"batch"``: whether Σ is that of one sample or of a mean of `batch_size`. Noise scales
            are in samples in both cases.
        confidence: confidence of all limits.
        names: the groups, ``"all"`` last.
    """

    def __init__(
        self,
        moments: Moments,
        per: str = "sample",
        population: int | None = None,
        confidence: float = 0.95,
        sums: dict[str, Pair] | None = None,
    ) -> None:
        if moments.count < 2:
            raise ValueError(f"gradients: got {moments.count}; give two or more, which an estimate of the noise needs.")
        if population is not None and population < moments.count:
            raise ValueError(
                f"population: got {population}, but there are {moments.count} gradients; give the number of all "
                "examples, or None."
            )
        self._moments, self.per, self.population, self.confidence = moments, per, population, confidence
        self._sums = sums  # used if no moments per coordinate were kept
        self.count, self.samples = moments.count, moments.weight
        self.batch_size = self.samples / self.count
        self.names = (*moments.layout.groups, ALL)

    @property
    def mean(self) -> Any:
        """ḡ, a pytree of the structure of a gradient."""
        self._need_coordinates("mean")
        return self._tree(self._moments.mean)

    @property
    def variance(self) -> Any:
        """Diagonal of Σ̂, a pytree of the structure of a gradient, per sample or batch according to `per`."""
        self._need_coordinates("variance")
        return self._tree([v * self._unit for v in self._variances])

    @property
    def trace(self) -> float:
        """The trace of Σ̂ over all parameters, per sample or batch according to `per`."""
        return self._pairs[ALL].trace * self._unit

    @property
    def gradient_square(self) -> float:
        """‖∇f‖² over all parameters; the estimate is unbiased and may be negative."""
        return self._pairs[ALL].square

    def noise_scale(self, group: str = ALL) -> float:
        """B_simple = tr Σ/‖∇f‖² in samples; infinite if the estimate of ‖∇f‖² is 0 or less.

        Source: McCandlish, Kaplan, Amodei et al. (2018), *An Empirical Model of Large-Batch Training*, arXiv
        1812.06162.
        """
        of = self._pair(group)
        return of.trace / of.square if of.square > 0 else (math.inf if of.trace > 0 else math.nan)

    def noise_scale_limits(self, group: str = ALL) -> tuple[float, float]:
        """Limits of `noise_scale`, by Fieller's method; the upper is infinite if ‖∇f‖² may be 0.

        The upper limit is NaN if these gradients do not allow one; `noise_scale_reason` says why.
        """
        return self._inverted(self._pair(group), self.noise_scale_reason(group))

    def noise_scale_reason(self, group: str = ALL) -> str | None:
        """Why `noise_scale_limits` has no upper limit, or None if it has one.

        The upper limit needs one of tr Σ, which is not given if tails were fitted and κ is above 1/3, or if only few
        gradients differ from most of the others. It is given all the same if it is infinite, or if less than a tenth of
        the variance that determines it comes from tr Σ̂.
        """
        return self._reason(self._pair(group), group)

    def snr(self, batch_size: float | None = None, group: str = ALL) -> float:
        """√(B ‖∇f‖²/tr Σ) at batch size B, by default that of the gradients; 0 if the estimate of ‖∇f‖² is negative.

        It is infinite if there is no noise, and NaN if there is neither noise nor gradient.
        """
        size = self.batch_size if batch_size is None else check.positive("batch_size", batch_size)
        scale = self.noise_scale(group)
        return math.sqrt(size / scale) if scale > 0 else math.nan if math.isnan(scale) else math.inf

    def curved_noise_scale(self) -> tuple[float, float, float]:
        r"""B_noise = tr(HΣ)/(gᵀHg) in samples over all parameters, with its limits.

        tr(HΣ) is a mean of rᵀHr over some gradients; gᵀHg is ḡᵀHḡ minus the contribution of noise. If either is
        negative, because of its error or because H is indefinite, B_noise is NaN. The upper limit is NaN under the
        conditions of `noise_scale_reason`.

        Raises:
            ValueError: if no products with the Hessian were computed.

        Source: as `noise_scale`.
        """
        of = self._curved
        if of is None:
            raise ValueError(
                "curved_noise_scale: no products with the Hessian were computed; call gradient_noise with hvp=."
            )
        scale = of.trace / of.square if of.square > 0 and of.trace > 0 else math.nan
        return scale, *self._inverted(of, self._reason(of, ALL))

    def phases(self, batch_size: float | None = None, group: str = ALL) -> PhaseShares:
        """Shares of the coordinates in the phases of SignSGD at batch size B, by default that of the gradients.

        The phases are those of `theory.phases` for normal noise, |Y| = |∂f|√B/(√2 σ).
        """
        self._need_coordinates("phases")
        size = self.batch_size if batch_size is None else check.positive("batch_size", batch_size)
        leaves = self._leaves(group)
        mean = np.concatenate([self._moments.mean[i] for i in leaves])
        variance = np.concatenate([self._variances[i] for i in leaves])
        return phase_shares(mean, variance, self.samples, self.count - 1, size, self.is_exact)

    @cached_property
    def tails(self) -> dict[str, Tail]:
        """Tails per group, of the gradients as given, not of single samples; empty if none were requested."""
        if not self._moments.coordinates:
            return {}
        low, high = self._moments.weights
        if low != high:
            why = "batches of different sizes have different distributions"
            return dict.fromkeys(self.names, no_tail(self.count, self.confidence, why))
        groups: list[int | None] = [*range(len(self.names) - 1)]
        found = {self.names[g]: tail(self._moments.columns(g), self.confidence) for g in groups if g is not None}
        one = len(found) == 1
        return found | {ALL: next(iter(found.values())) if one else tail(self._moments.columns(None), self.confidence)}

    @property
    def groups(self) -> "pd.DataFrame":
        """One row per group: size, ‖∇f‖², tr Σ (per `per`), SNR, noise scale with limits, and the tails' κ = 1/ν."""
        import pandas as pd

        rows = []
        for name, size in zip(self.names, [*self._moments.layout.sizes, self._moments.layout.sizes.sum()], strict=True):
            of = self._pair(name)
            low, high = self.noise_scale_limits(name)
            row = {
                "size": int(size),
                "gradient_square": of.square,
                "gradient_square_sem": math.sqrt(of.square_variance),
                "trace": of.trace * self._unit,
                "trace_sem": math.sqrt(of.trace_variance) * self._unit,
                "snr": self.snr(group=name),
                "noise_scale": self.noise_scale(name),
                "noise_scale_lower": low,
                "noise_scale_upper": high,
            }
            if self.tails:
                own = self.tails[name]
                row |= {"kappa": own.kappa, "kappa_lower": own.lower, "kappa_upper": own.upper}
                row |= {"normal_p": own.normal_p, "efficiency": own.efficiency}
            rows.append(row)
        return pd.DataFrame(rows, index=pd.Index(self.names, name="group"))

    def merge(self, other: "GradientNoise") -> "GradientNoise":
        """Join two sets of gradients, for example those of several processes at one point.

        Raises:
            ValueError: if the parameters, groups or sampled coordinates differ.
        """
        if not isinstance(other, GradientNoise):
            raise TypeError(f"other: got {type(other).__name__}; give another GradientNoise.")
        self._need_coordinates("merge")
        other._need_coordinates("merge")
        if (self.per, self.population) != (other.per, other.population):
            raise ValueError("other: its `per` or `population` differs; compute both with the same values.")
        return GradientNoise(self._moments.merge(other._moments), self.per, self.population, self.confidence)

    def __getstate__(self) -> dict[str, Any]:
        """State without the product with the Hessian, a function that cannot be sent to other processes."""
        curved = self._curved
        moments = copy.copy(self._moments)
        moments.product = None
        return {**self.__dict__, "_moments": moments, "_curved": curved}

    def verdict(self, batch_size: float | None = None) -> list[str]:
        """Interpretation in sentences at batch size B, by default that of the gradients."""
        from sdelens.diagnosis._noise_report import verdict

        size = self.batch_size if batch_size is None else check.positive("batch_size", batch_size)
        return verdict(self, size)

    def to_dict(self) -> dict[str, Any]:
        """Numbers as JSON types; NaN and infinite numbers become None."""
        rows = {
            str(name): {k: None if not math.isfinite(v) else v for k, v in row.items()}
            for name, row in self.groups.to_dict("index").items()
        }
        head = {k: getattr(self, k) for k in ("count", "samples", "batch_size", "per", "confidence", "population")}
        reasons = {name: why for name in self.names if (why := self.noise_scale_reason(name)) is not None}
        tails = {k: v.to_dict() for k, v in self.tails.items()}
        return head | {"groups": rows, "noise_scale_reasons": reasons, "tails": tails}

    def __str__(self) -> str:
        """Tables and verdict."""
        from sdelens.diagnosis._noise_report import tables

        lines = []
        for head, rows in tables(self):
            lines += [*text_table(head, rows), ""]
        return "\n".join([*lines, *self.verdict()])

    __repr__ = __str__

    @property
    def has_coordinates(self) -> bool:
        """Whether moments per coordinate were kept, which `mean`, `variance`, `phases` and `merge` need."""
        return self._sums is None

    @property
    def is_exact(self) -> bool:
        """Whether these are all gradients of the population, so that only the tails are estimates."""
        return self._share == 0

    def _need_coordinates(self, name: str) -> None:
        if not self.has_coordinates:
            raise ValueError(f"{name}: only sums over the coordinates were kept; watch with keep='moments'.")

    @property
    def _unit(self) -> float:
        """The factor from Σ per sample to Σ according to `per`."""
        return 1.0 if self.per == "sample" else 1 / self.batch_size

    @property
    def _share(self) -> float:
        return 1.0 if self.population is None else 1 - self.count / self.population

    @property
    def _bessel(self) -> float:
        finite = 1.0 if self.population is None else (self.population - 1) / self.population
        return finite / (self.count - 1)

    @cached_property
    def _variances(self) -> list[np.ndarray]:
        return [s * self._bessel for s in self._moments.square]

    @cached_property
    def _pairs(self) -> dict[str, Pair]:
        if self._sums is not None:
            return self._sums
        spread, cross, at = (np.asarray(v) for v in (self._moments.spread, self._moments.cross, self._moments.at))
        cross, design = residuals(spread, cross, at)
        found = {}
        for number, name in enumerate(self.names):
            leaves = self._leaves(name)
            trace = float(sum(self._variances[i].sum() for i in leaves))
            square = float(sum(self._moments.mean[i] @ self._moments.mean[i] for i in leaves))
            own = slice(number, number + 1) if name != ALL else slice(None)
            scalars = (spread[:, own].sum(axis=1), cross[:, own].sum(axis=1))
            square -= self._share * trace / self.samples
            size = sum(self._moments.mean[i].size for i in leaves)
            found[name] = pair(square, trace, *scalars, design, self._inverse, self._share, size)
        return found

    @property
    def _inverse(self) -> tuple[float, float]:
        return 1 / self.samples, self.count / ((self.count - 1) * self.samples**2)

    @cached_property
    def _curved(self) -> Pair | None:
        moments = self._moments
        if moments.product is None or not moments.probes:
            return None
        probes = np.asarray(moments.probes)
        spread = probes[:, 0]
        trace = float(spread.mean())
        curved = moments.curved(moments.mean)
        square = float(sum(a @ b for a, b in zip(moments.mean, curved, strict=True)))
        square -= self._share * trace / self.samples
        # The probes are a sample even if the gradients are the whole population.
        return pair(square, trace, spread, *residuals(spread, probes[:, 1], probes[:, 2:]), self._inverse)

    def _inverted(self, of: Pair, reason: str | None) -> tuple[float, float]:
        """Limits of the noise scale from those of its inverse."""
        low, high = limits(of, self.confidence)
        upper = math.inf if low == 0 else 1 / low if reason is None else math.nan
        return (1 / high if high > 0 else math.inf), upper

    def _reason(self, of: Pair, group: str) -> str | None:
        if not of.depends_on_trace or limits(of, self.confidence)[0] == 0:
            return None
        if of.effective < min(FEW, self.count / 4):
            return (
                f"few of the {self.count} gradients decide tr Σ (effectively {of.effective:.1f} of them), and its "
                "error cannot be estimated; give more gradients, or gradients of larger batches"
            )
        own = self.tails.get(group)
        if own is not None and own.kappa > HEAVY:
            return (
                f"the tails are so heavy (κ = {own.kappa:.2g}, above 1/3) that few values decide tr Σ, and its error "
                "cannot be estimated; give gradients of larger batches"
            )
        return None

    def _pair(self, group: str) -> Pair:
        return self._pairs[check.choice("group", group, self.names)]

    def _leaves(self, group: str) -> list[int]:
        number = self.names.index(check.choice("group", group, self.names))
        return [i for i, g in enumerate(self._moments.layout.group) if number in (g, len(self.names) - 1)]

    def _tree(self, leaves: list[np.ndarray]) -> Any:
        shaped = [v.reshape(s) for v, s in zip(leaves, self._moments.layout.shapes, strict=True)]
        return self._moments.layout.rebuild(shaped)
