"""Statistics of gradient noise: size, noise scale, phases and tails, per group and in total."""

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sdelens.core import check
from sdelens.core.limits import CONFIDENCE
from sdelens.diagnosis._estimates import ALL, SEVERAL, Estimates
from sdelens.diagnosis._shares import PhaseShares, phase_shares
from sdelens.diagnosis._tails import Tail
from sdelens.diagnosis.streams import Layout, Moments
from sdelens.diagnosis.windows import Windows
from sdelens.results.printable import Parts, Plotted, Table

if TYPE_CHECKING:
    import pandas as pd

    from sdelens.results.figures import Sheet

__all__ = ["ALL", "GradientNoise"]

_NORMS: Final = ("l2", "l1", "nuclear")


class GradientNoise(Plotted):
    r"""The result of `gradient_noise`: statistics per group of parameters, and for ``"all"``.

    With K gradients gᵢ, each the mean of wᵢ samples (`batch_size`), W = Σ wᵢ and ḡ = Σ wᵢgᵢ/W, per *sample*:

        tr Σ̂ = Σᵢ wᵢ ‖gᵢ − ḡ‖²/(K − 1),   ‖∇f‖² ≈ ‖ḡ‖² − tr Σ̂/W  (both unbiased),

        B_simple = tr Σ/‖∇f‖²  samples,   SNR(B) = √(B ‖∇f‖²/tr Σ).

    If K gradients were drawn from a population of N, tr Σ̂ is multiplied by (N − 1)/N, and tr Σ̂/W by 1 − K/N.
    For methods that follow the sign of the gradient, there is also the noise scale of the ℓ1 norm, (Σ σⱼ/‖∇f‖₁)², and
    for Muon, if `matrices` were selected, that of the nuclear norm, (tr(E NNᵀ)^½/‖∇f‖⁎)².

    Attributes:
        count: K.
        samples: W.
        batch_size: W/K.
        step_batch_size: samples of one step of the optimizer, over its micro-batches and processes, or None if this is
            not known. The default of B in all methods and tables is this, or else `batch_size`.
        per: ``"sample"`` or ``"batch"``: whether Σ is that of one sample or of a mean of `batch_size`. Noise scales
            are in samples in both cases.
        confidence: confidence of all limits.
        names: the groups, ``"all"`` last.
    """

    def __init__(
        self,
        source: Moments | Windows,
        per: str = "sample",
        population: int | None = None,
        confidence: float = CONFIDENCE,
        step_batch_size: float | None = None,
    ) -> None:
        if source.count - source.points < 1:
            raise ValueError(f"gradients: got {source.count}; give two or more, which an estimate of the noise needs.")
        if population is not None and population < source.count:
            raise ValueError(
                f"population: got {population}, but there are {source.count} gradients; give the number of all "
                "examples, or None."
            )
        self._estimates = Estimates(source, population, confidence)
        self.per, self.population, self.confidence = per, population, confidence
        self.count, self.samples = source.count, source.weight
        self.batch_size = self.samples / self.count
        known = source.step_size if isinstance(source, Windows) else None
        self.step_batch_size = known if step_batch_size is None else step_batch_size
        self.names = self._estimates.names

    @property
    def layout(self) -> Layout:
        """Names, shapes and groups of the parameters."""
        return self._estimates.source.layout

    @property
    def mean(self) -> Any:
        """ḡ, a pytree of the structure of a gradient."""
        return self._tree(self._estimates.coordinates("mean").mean)

    @property
    def variance(self) -> Any:
        """Diagonal of Σ̂, a pytree of the structure of a gradient, per sample or batch according to `per`."""
        self._estimates.coordinates("variance")
        return self._tree([v * self._unit for v in self._estimates.variances])

    @property
    def trace(self) -> float:
        """The trace of Σ̂ over all parameters, per sample or batch according to `per`."""
        return self._estimates.pair(ALL).trace * self._unit

    @property
    def gradient_square(self) -> float:
        """‖∇f‖² over all parameters; the estimate is unbiased and may be negative."""
        return self._estimates.pair(ALL).square

    def noise_scale(self, group: str = ALL, norm: str = "l2") -> float:
        """The noise scale in samples: B_simple, or that of another norm.

        It is NaN if it is not resolved, that is if the gradient may be 0 and the upper limit is infinite.
        ``norm="l1"``, (Σ σⱼ/‖∇f‖₁)², is that of methods that follow the sign of the gradient (SignSGD, Lion, Adam).
        ``norm="nuclear"``, (Σ tr(E NNᵀ)^½/Σ ‖∇f‖⁎)² with the noise N of one sample and sums over the selected matrices
        of the group, is that of methods that orthogonalise the gradient (Muon); it costs the
        eigenvalues of two matrices of the size of the shorter side of each.

        Source: McCandlish, Kaplan, Amodei et al. (2018), *An Empirical Model of Large-Batch Training*, arXiv
        1812.06162; for other norms arXiv 2602.03001.
        """
        if check.choice("norm", norm, _NORMS) != "l2":
            return self._estimates.dual(group, norm).estimate
        return self._estimates.scale(group)

    def noise_scale_limits(self, group: str = ALL, norm: str = "l2") -> tuple[float, float]:
        """Limits of `noise_scale`; the upper is infinite if the gradient may be 0.

        Those of B_simple are by Fieller's method. The upper limit is NaN if these gradients do not allow one, and both
        are if there are no coordinates at one point for other norms; `noise_scale_reason` says why.
        """
        if check.choice("norm", norm, _NORMS) != "l2":
            return self._estimates.dual(group, norm)[1:3]
        return self._estimates.inverted(self._estimates.pair(group), self.noise_scale_reason(group))

    def noise_scale_reason(self, group: str = ALL, norm: str = "l2") -> str | None:
        """Why a limit of `noise_scale_limits` (for other norms also `noise_scale`) is missing, or None if it is there.

        The upper limit of B_simple needs one of tr Σ, which is not given if tails were fitted and κ is above 1/3, or if
        only few gradients differ from most of the others. It is given all the same if it is infinite, or if less than a
        tenth of the variance that determines it comes from tr Σ̂.
        """
        if check.choice("norm", norm, _NORMS) != "l2":
            return self._estimates.dual(group, norm).reason
        return self._estimates.reason(self._estimates.pair(group), group)

    def snr(self, batch_size: float | None = None, group: str = ALL) -> float:
        """√(B ‖∇f‖²/tr Σ) at batch size B: infinite without noise, NaN if it is not resolved (`noise_scale`)."""
        return self._as_snr(self.noise_scale(group), batch_size)

    def snr_limits(self, batch_size: float | None = None, group: str = ALL) -> tuple[float, float]:
        """Limits of `snr`, those of `noise_scale_limits`: the lower is 0 if the gradient may be 0.

        The lower limit is NaN if these gradients do not allow one; `noise_scale_reason` says why.
        """
        low, high = self.noise_scale_limits(group)
        return self._as_snr(high, batch_size), self._as_snr(low, batch_size)

    def curved_noise_scale(self) -> tuple[float, float, float]:
        r"""B_noise = tr(HΣ)/(gᵀHg) in samples over all parameters, with its limits.

        tr(HΣ) is a mean of rᵀHr over some gradients; gᵀHg is ḡᵀHḡ minus the contribution of noise. If either is
        negative, because of its error or because H is indefinite, B_noise is NaN. The upper limit is NaN under the
        conditions of `noise_scale_reason`.

        Raises:
            ValueError: if no products with the Hessian were computed.

        Source: as `noise_scale`.
        """
        of = self._estimates.curved
        if of is None:
            raise ValueError(
                "curved_noise_scale: no products with the Hessian were computed; call gradient_noise with hvp=."
            )
        scale = of.trace / of.square if of.square > 0 and of.trace > 0 else math.nan
        return scale, *self._estimates.inverted(of, self._estimates.reason(of, ALL))

    def phases(self, batch_size: float | None = None, group: str = ALL) -> PhaseShares:
        """Shares of the coordinates in the phases of SignSGD at batch size B.

        The phases are those of `theory.phases` for normal noise, |Y| = |∂f|√B/(√2 σ).

        Raises:
            ValueError: if there are no moments per coordinate, or the parameters changed between the gradients.
        """
        if self._estimates.coordinates("phases").points > 1:
            raise ValueError(f"phases: {SEVERAL}; watch at one point.")
        mean, variance = self._estimates.columns(group)
        return phase_shares(mean, variance, self.samples, self.count - 1, self._size(batch_size), self.is_exact)

    @property
    def tails(self) -> dict[str, Tail]:
        """Tails per group, of the gradients as given, not of single samples; empty if none were requested."""
        found = {name: self._estimates.tail(name) for name in self.names}
        return {name: own for name, own in found.items() if own is not None}

    @property
    def groups(self) -> "pd.DataFrame":
        """One row per group: size, ‖∇f‖², tr Σ (per `per`), SNR, noise scales with limits, and the tails' κ = 1/ν."""
        import pandas as pd

        rows = []
        for name, size in zip(self.names, self._estimates.sizes, strict=True):
            of = self._estimates.pair(name)
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
            for norm in self.dual_norms:
                dual = self._estimates.dual(name, norm)
                row |= {f"noise_scale_{norm}": dual.estimate}
                row |= {f"noise_scale_{norm}_lower": dual.lower, f"noise_scale_{norm}_upper": dual.upper}
            if (own := self._estimates.tail(name)) is not None:
                row |= {"kappa": own.kappa, "kappa_lower": own.lower, "kappa_upper": own.upper}
                row |= {"normal_p": own.normal_p, "efficiency": own.efficiency}
            rows.append(row)
        return pd.DataFrame(rows, index=pd.Index(self.names, name="group"))

    def merge(self, other: "GradientNoise") -> "GradientNoise":
        """Join two sets of gradients: those of several processes at one point, or sums of windows at different points.

        Raises:
            ValueError: if the parameters, groups or sampled coordinates differ, only one of them has coordinates, or
                both have coordinates but the parameters changed between the gradients.
        """
        if not isinstance(other, GradientNoise):
            raise TypeError(f"other: got {type(other).__name__}; give another GradientNoise.")
        if (self.per, self.population) != (other.per, other.population):
            raise ValueError("other: its `per` or `population` differs; compute both with the same values.")
        if type(self._estimates.source) is not type(other._estimates.source):
            raise ValueError("other: only one of the results has moments per coordinate; watch with the same `keep`.")
        joined = self._estimates.source.merge(other._estimates.source)  # type: ignore[arg-type]
        same = self.step_batch_size == other.step_batch_size
        step = self.step_batch_size if same and isinstance(joined, Moments) else None
        return GradientNoise(joined, self.per, self.population, self.confidence, step)

    def verdict(self, batch_size: float | None = None) -> list[str]:
        """Interpretation in sentences at batch size B."""
        from sdelens.diagnosis._noise_report import verdict

        return verdict(self, self._size(batch_size))

    def to_dict(self) -> dict[str, Any]:
        """Numbers as JSON types; NaN and infinite numbers become None."""
        rows = {
            str(name): {k: None if not math.isfinite(v) else v for k, v in row.items()}
            for name, row in self.groups.to_dict("index").items()
        }
        keys = ("count", "samples", "batch_size", "step_batch_size", "per", "confidence", "population")
        head = {k: getattr(self, k) for k in keys}
        tails = {k: v.to_dict() for k, v in self.tails.items()}
        told = {
            "groups": rows,
            "noise_scale_reasons": self._reasons("l2"),
            "noise_scale_l1_reasons": self._reasons("l1"),
        }
        if self.has_matrices:
            told["noise_scale_nuclear_reasons"] = self._reasons("nuclear")
        return head | told | {"tails": tails}

    def _reasons(self, norm: str) -> dict[str, str]:
        reasons = {name: self.noise_scale_reason(name, norm) for name in self.names}
        return {name: why for name, why in reasons.items() if why is not None}

    def _parts(self) -> Parts:
        """Tables and verdict."""
        from sdelens.diagnosis._noise_report import tables

        return [*(Table(head, rows) for head, rows in tables(self)), *self.verdict()]

    def _draw(self, sheet: "Sheet") -> None:
        """The noise scale of every group with its limits, and the batch size."""
        from sdelens.diagnosis._figures import plot_noise_scales

        plot_noise_scales(sheet, self.groups, self._size(None), self.confidence)

    @property
    def has_coordinates(self) -> bool:
        """Whether moments per coordinate were kept, which `mean`, `variance` and `phases` need."""
        return isinstance(self._estimates.source, Moments)

    @property
    def is_at_one_point(self) -> bool:
        """Whether moments per coordinate were kept and the parameters did not change between the gradients."""
        return isinstance(self._estimates.source, Moments) and self._estimates.source.points == 1

    @property
    def has_matrices(self) -> bool:
        """Whether matrices were selected, which the noise scale of the nuclear norm needs."""
        return any(self.layout.matrices)

    @property
    def dual_norms(self) -> tuple[str, ...]:
        """The other norms for which noise scales are known: ``"l1"``, and ``"nuclear"`` for matrices."""
        if not self.is_at_one_point:
            return ()
        return ("l1", "nuclear") if self.has_matrices else ("l1",)

    @property
    def is_exact(self) -> bool:
        """Whether these are all gradients of the population, so that only the tails are estimates."""
        return self._estimates.share == 0

    def _size(self, batch_size: float | None) -> float:
        if batch_size is not None:
            return float(check.positive("batch_size", batch_size))
        return self.batch_size if self.step_batch_size is None else self.step_batch_size

    def _as_snr(self, scale: float, batch_size: float | None) -> float:
        size = self._size(batch_size)
        return math.sqrt(size / scale) if scale > 0 else math.nan if math.isnan(scale) else math.inf

    @property
    def _unit(self) -> float:
        """The factor from Σ per sample to Σ according to `per`."""
        return 1.0 if self.per == "sample" else 1 / self.batch_size

    def _tree(self, leaves: list[np.ndarray]) -> Any:
        return self.layout.rebuild([v.reshape(s) for v, s in zip(leaves, self.layout.shapes, strict=True)])
