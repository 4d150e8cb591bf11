"""The result of a diagnosis: signal-to-noise ratios, the regime, and whether the square-root rule holds."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sdelens.core import check
from sdelens.diagnosis import _ranges
from sdelens.diagnosis.expected import largest_ratio
from sdelens.diagnosis.moments import Group
from sdelens.results.printable import Parts, Plotted

if TYPE_CHECKING:
    import pandas as pd

    from sdelens.results.figures import Sheet

__all__ = ["Diagnosis", "regimes_of"]

_QUIET, _LOUD = 0.5, 2.0
"""SNR below and above which √(g² + σ²), Adam's divisor, is within 12 % of σ, or of |g|."""
_TOTAL: Final = "all"
_MOST: Final = 1e9
"""Largest batch ratio that is considered."""
_PRECISION: Final = 1e-3
"""Relative precision of batch ratios."""


def regimes_of(lower: float, upper: float) -> str:
    """The regimes that limits of the SNR allow, joined by "or"; "unknown" if they allow all."""
    found = [
        name
        for name, allowed in (
            ("noise-dominated", lower <= _QUIET),
            ("mixed", lower < _LOUD and upper > _QUIET),
            ("signal-dominated", upper >= _LOUD),
        )
        if allowed
    ]
    return "unknown" if len(found) == 3 or math.isnan(lower + upper) else " or ".join(found)


@dataclass(frozen=True, repr=False)
class Diagnosis(Plotted):
    r"""The diagnosis of a run, as `diagnose` returns it.

    SNR = √(‖∇f‖²/tr Σ) at the present batch, where Σ is the covariance of its noise; at δ times the batch it is √δ
    times as large. From measured gradients it has two limits. From an optimizer's moments it has only a lower one,
    because a gradient that turns over within their memory looks like noise: moments can show that the rule fails, but
    not that it holds. What is not known is NaN in attributes, None in `to_dict`, and a dash in the text.

    Regimes: noise-dominated up to SNR 0.5, signal-dominated from 2 (there √((∇f)² + σ²), by which Adam divides, is
    within 12 % of σ or of \|∇f\|), mixed in between.

    Attributes:
        parts: results of every group by name, in the order of the state.
        total: results over all groups.
        source: ``"moments"`` or ``"gradients"``.
        known: whether signal and noise can be estimated at all; if not, numbers are NaN.
        reason: why they cannot be estimated, or "".
        batch_size: batch size of the run, None if it was not given.
        ratios: values of δ in the table.
        tolerance: relative L2 error of the loss curve up to which the rule counts as holding.
        legal_ratio: δ beyond which the rule requires a negative β; infinite if the betas are not known.
        notes: remarks on the interpretation of these numbers.
        info: steps, betas, counts of coordinates and what is left out, as JSON types only.
    """

    parts: Mapping[str, Group]
    total: Group
    source: str
    known: bool
    reason: str
    batch_size: float | None
    ratios: tuple[float, ...]
    tolerance: float
    legal_ratio: float
    notes: tuple[str, ...]
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def snr(self) -> float:
        """SNR over all coordinates at the present batch; NaN if it is not resolved, and from moments."""
        return self.total.snr

    @property
    def limits(self) -> tuple[float, float]:
        """Limits of the SNR; the lower is 0 if no signal is resolved, the upper is infinite from moments.

        Their confidence is that of the measured gradients, 99 % by default, and 99 % from moments.
        """
        return self.total.lower, self.total.upper

    @property
    def noise_scale(self) -> float:
        """Gradient noise scale tr Σ·B/‖∇f‖² in samples (arXiv 1812.06162); NaN if the SNR or the batch size is."""
        return self._scales(self.total)[0]

    @property
    def noise_scale_limits(self) -> tuple[float, float]:
        """Limits of the noise scale in samples, with the confidence of `limits`.

        They are 0 or infinite where there is none, and NaN without a batch size.
        """
        return self._scales(self.total)[1:]

    @property
    def regime(self) -> str:
        """The regime at the present batch, as of `regime_at`."""
        return self.regime_at(1)

    def regime_at(self, batch_ratio: float) -> str:
        """The regimes at `batch_ratio` times the batch that the limits of the SNR allow, "unknown" if they allow all.

        For example ``"noise-dominated"``, or ``"noise-dominated or mixed"``.
        """
        scale = math.sqrt(check.positive("batch_ratio", batch_ratio))
        return regimes_of(self.total.lower * scale, self.total.upper * scale) if self.known else "unknown"

    def expected_error(self, batch_ratio: float, progress: float = 1.0) -> float:
        r"""Relative L2 error of the loss curve at equal samples under the square-root rule, from now on.

        Every group moves like Adam with stationary v (`sdelens.diagnosis.expected`), and its coordinates are treated as
        equal. The losses of groups are weighted by their signal, which assumes equal curvature; all groups whose signal
        is not resolved count as one. The discretisation error, of order η√δ, is not included.

        Args:
            batch_ratio: δ > 0.
            progress: share of the loss, above what it is at rest, that the rest of the run is to remove; 1: all of it.

        Returns:
            The error; NaN if the SNR is not resolved, and from moments.

        Raises:
            ValueError: if an argument is out of its range.
        """
        ratio, share = check.positive("batch_ratio", batch_ratio), _share(progress)
        return math.nan if math.isnan(self.snr) else _ranges.expected_error(self.parts.values(), ratio, share)

    def error_range(self, batch_ratio: float, progress: float = 1.0) -> tuple[float, float]:
        """Smallest and largest `expected_error` within the limits of the SNR, and under other assumptions.

        They are: v too slow to follow the gradient; no weight decay, or one that pulls away from rest; curvature
        proportional to the gradient; the best and the worst group with at least 1 % of the signal; signal concentrated
        within groups as much as fourth moments allow. From moments the largest is infinite.
        """
        ratio, share = check.positive("batch_ratio", batch_ratio), _share(progress)
        if not self.known:
            return math.nan, math.nan
        return self._least(ratio, share), self._greatest(ratio, share)

    def _least(self, ratio: float, progress: float = 1.0) -> float:
        return _ranges.least_error(self.parts.values(), self.total, ratio, progress)

    def _greatest(self, ratio: float, progress: float = 1.0) -> float:
        return _ranges.greatest_error(self.parts.values(), self.total, ratio, progress)

    def holds(self, batch_ratio: float) -> bool | None:
        """Whether the square-root rule holds within `tolerance`: True or False if all of `error_range` says so."""
        low, high = self.error_range(batch_ratio)
        return True if high <= self.tolerance else False if low > self.tolerance else None

    @functools.cached_property
    def largest_ratio(self) -> float:
        """Largest δ at which `expected_error` is within the tolerance, at most `legal_ratio`; NaN if it is not known.

        It is infinite if there is no such δ.
        """
        if math.isnan(self.snr):
            return math.nan
        return min(largest_ratio(self.expected_error, self.tolerance, _MOST, _PRECISION), self.legal_ratio)

    @functools.cached_property
    def largest_ratio_limits(self) -> tuple[float, float]:
        """δ up to which the rule holds whatever is assumed, 1 if there is none, and δ from which it fails likewise.

        Neither exceeds `legal_ratio`, beyond which a β would be negative. The second is infinite if there is none.
        """
        if not self.known:
            return math.nan, math.nan
        sure = 1.0
        if math.isfinite(self.total.upper):
            sure = largest_ratio(self._greatest, self.tolerance, _MOST, _PRECISION)
        fails = largest_ratio(self._least, self.tolerance, _MOST, _PRECISION)
        return min(max(sure, 1.0), self.legal_ratio), min(fails, self.legal_ratio)

    @functools.cached_property
    def groups(self) -> "pd.DataFrame":
        """A row per group and one for all: size, signal ‖∇f‖², noise tr Σ, snr with its limits, and more.

        ``resolved`` is whether a signal is distinguishable from 0, ``limit`` the SNR that has to be exceeded for it (of
        moments); ``design`` is the factor by which correlation between coordinates increases the variance;
        ``concentrated`` is an upper bound of the SNR of a coordinate drawn in proportion to its signal;
        ``noise_scale`` is in samples if the batch size is known. Signal and noise may be negative.
        """
        import pandas as pd

        rows = {}
        for name, part in [*self.parts.items(), (_TOTAL if _TOTAL not in self.parts else f"({_TOTAL})", self.total)]:
            scale, low, high = self._scales(part)
            rows[name] = {
                "size": part.size,
                "signal": part.signal,
                "noise": part.noise,
                "snr": part.snr,
                "lower": part.lower,
                "upper": part.upper,
                "limit": part.limit,
                "resolved": part.resolved,
                "regime": regimes_of(part.lower, part.upper) if part.size else "unknown",
                "design": part.design,
                "concentrated": part.concentrated,
                "noise_scale": scale,
                "noise_scale_lower": low,
                "noise_scale_upper": high,
            }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("group")

    def _scales(self, part: Group) -> tuple[float, float, float]:
        """Noise scale in samples with its limits."""
        if self.batch_size is None or part.size == 0:
            return math.nan, math.nan, math.nan
        found = [self.batch_size / snr**2 if snr > 0 else math.inf for snr in (part.upper, part.lower)]
        return (self.batch_size / part.snr**2 if part.snr > 0 else math.nan), found[0], found[1]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types: unknown numbers become None, infinite ones the text ``"infinity"``."""
        table = [
            {
                "batch_ratio": ratio,
                "snr": self.snr * math.sqrt(ratio),
                "limits": [limit * math.sqrt(ratio) for limit in self.limits],
                "regime": self.regime_at(ratio),
                "expected_error": self.expected_error(ratio),
                "range": list(self.error_range(ratio)),
                "holds": self.holds(ratio),
                "legal": ratio <= self.legal_ratio,
            }
            for ratio in self.ratios
        ]
        head = {name: getattr(self, name) for name in _PLAIN}
        rest = {"ratios": table, "groups": self.groups.reset_index().to_dict("records")}
        return _plain({**head, "verdict": self.verdict(), **rest, "notes": list(self.notes), "info": dict(self.info)})

    def verdict(self) -> str:
        """What is known of the regime and of the rule, in one sentence, and what to do next."""
        from sdelens.diagnosis._diagnosis_report import verdict

        return verdict(self)

    def _parts(self) -> Parts:
        """Verdict, groups, batch ratios and notes."""
        from sdelens.diagnosis._diagnosis_report import parts

        return parts(self)

    def _draw(self, sheet: "Sheet") -> None:
        """The error of the square-root rule that is expected at each batch ratio, with its range."""
        from sdelens.diagnosis._figures import plot_rule

        plot_rule(sheet, self)

    @property
    def _has_figure(self) -> bool:
        return self.known


_PLAIN: Final = (
    *("source", "known", "reason", "regime", "snr", "limits", "batch_size", "noise_scale", "noise_scale_limits"),
    *("tolerance", "largest_ratio", "largest_ratio_limits", "legal_ratio"),
)
"""Attributes of a `Diagnosis` that `to_dict` contains as they are."""


def _share(progress: float) -> float:
    if not 0 < check.number("progress", progress) <= 1:
        raise ValueError(f"progress: got {progress}; give a share of the loss above 0 and at most 1.")
    return float(progress)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "infinity" if value > 0 else "-infinity"
    return value
