"""The result of a diagnosis: signal-to-noise ratios, the regime, and whether the square-root rule holds."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sdelens.core import check
from sdelens.core.files import text_table
from sdelens.diagnosis.expected import largest_ratio, path_error
from sdelens.diagnosis.moments import FALSE_ALARM, Group

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Diagnosis", "regime_of"]

_QUIET, _LOUD = 0.5, 2.0
"""SNR below and above which √(g² + σ²), Adam's divisor, is within 12 % of σ, or of |g|."""
_SHOWN = 20
_COUNTS = 0.01
"""Least share of the signal for a group to be considered as the best or the worst."""
_SPOKEN = 0.1
"""Least share of the signal in a regime different from the total's for it to be mentioned."""
_TOTAL = "all"


def regime_of(snr: float) -> str:
    """Name of the regime at a signal-to-noise ratio."""
    if math.isnan(snr):
        return "unknown"
    return "noise-dominated" if snr <= _QUIET else "signal-dominated" if snr >= _LOUD else "mixed"


@dataclass(frozen=True)
class Diagnosis:
    r"""The diagnosis of a run from Adam's moments, as `diagnose` returns it.

    SNR = √(‖∇f‖²/tr Σ) at the present batch, where Σ is the covariance of its noise; at δ times the batch it is √δ
    times as large.
    Regimes: noise-dominated up to 0.5, signal-dominated from 2 (there √((∇f)² + σ²), by which Adam divides, is within
    12 % of σ or of \|∇f\|), mixed in between.

    Attributes:
        parts: results of every group by name, in the order of the state.
        total: results over all groups.
        known: whether signal and noise can be estimated from the state; if not, numbers are NaN.
        reason: why they cannot be estimated, or "".
        batch_size: batch size of the run, None if it was not given.
        ratios: values of δ in the table.
        tolerance: relative L2 error of the loss curve up to which the rule counts as holding.
        legal_ratio: δ beyond which the rule requires a negative β; infinite if the betas are not known.
        notes: remarks on the interpretation of these numbers.
        info: steps, betas and counts of coordinates, as JSON types only.
    """

    parts: Mapping[str, Group]
    total: Group
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
        """SNR over all coordinates, at the present batch."""
        return self.total.snr

    @property
    def limit(self) -> float:
        """SNR below which it is indistinguishable from 0: without a signal, one estimate in a thousand exceeds it."""
        return self.total.limit

    @property
    def interval(self) -> tuple[float, float]:
        """95 % limits of the SNR for a steady gradient."""
        return self.total.lower, self.total.upper

    @property
    def noise_scale(self) -> float:
        """Gradient noise scale tr Σ·B/‖∇f‖² in samples (arXiv 1812.06162); NaN without a batch size or a signal."""
        return self._scale(self.total)

    @property
    def regime(self) -> str:
        """``"noise-dominated"``, ``"mixed"``, ``"signal-dominated"``, or ``"unknown"``, at the present batch."""
        return self.regime_at(1)

    def regime_at(self, batch_ratio: float) -> str:
        """The regime at `batch_ratio` times the batch; unknown if an SNR above 0.5 there may be 0."""
        scale = math.sqrt(check.positive("batch_ratio", batch_ratio))
        if not self.total.resolved and self.total.limit * scale > _QUIET:
            return "unknown"
        return regime_of(self.snr * scale)

    @functools.cached_property
    def groups(self) -> "pd.DataFrame":
        """A row per group and one for all: size, signal ‖∇f‖², noise tr Σ, snr and its 95 % limits, and more.

        ``limit`` is the SNR below which it is indistinguishable from 0, ``resolved`` whether `snr` is above it;
        ``design`` is the factor by which correlation between coordinates increases the variance; ``concentrated`` is an
        upper bound of the SNR of a coordinate drawn in proportion to its signal; ``noise_scale`` is in samples if the
        batch size is known. Signal and noise are
        unbiased and may be negative.
        """
        import pandas as pd

        rows = {
            name: {
                "size": part.size,
                "signal": part.signal,
                "noise": part.noise,
                "snr": part.snr,
                "lower": part.lower,
                "upper": part.upper,
                "limit": part.limit,
                "resolved": part.resolved,
                "regime": regime_of(part.snr),
                "design": part.design,
                "concentrated": part.concentrated,
                "noise_scale": self._scale(part),
            }
            for name, part in [*self.parts.items(), (_TOTAL if _TOTAL not in self.parts else f"({_TOTAL})", self.total)]
        }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("group")

    def _scale(self, part: Group) -> float:
        if self.batch_size is None or part.size == 0:
            return math.nan
        return self.batch_size / part.snr**2 if part.snr > 0 else math.inf

    def expected_error(self, batch_ratio: float) -> float:
        r"""Relative L2 error of the loss curve at equal samples, from now to rest, under the square-root rule.

        Every group moves like Adam with stationary v (`sdelens.diagnosis.expected`), and its coordinates are treated as
        equal. The losses of groups are weighted by their signal, which assumes equal curvature; all groups whose signal
        is indistinguishable from 0 count as one. The discretisation error, of order η√δ, is not included.

        Raises:
            ValueError: if `batch_ratio` is not above 0.
        """
        ratio = check.positive("batch_ratio", batch_ratio)
        return self._path_error(ratio) if self.known else math.nan

    def error_range(self, batch_ratio: float) -> tuple[float, float]:
        """Smallest and largest `expected_error` under other assumptions.

        They are: v too slow to follow the gradient; no weight decay, or one that pulls away from rest; curvature
        proportional to the gradient; the limits of the SNR; the best and the worst group with at least 1 % of the
        signal; signal concentrated within groups as much as fourth moments allow.
        """
        ratio = check.positive("batch_ratio", batch_ratio)
        if not self.known:
            return math.nan, math.nan
        signal, noise, size, _ = self._mix
        steep = np.sqrt(np.maximum(signal, 1e-300) / size)
        found = [self._path_error(ratio), self._path_error(ratio, settled=False)]
        found += [self._path_error(ratio, curvature=steep), path_error(signal, noise, size, ratio)]
        heavy = signal >= _COUNTS * signal.sum()
        single = [self.total.lower, self.total.upper, self.total.concentrated]
        if heavy.any() and signal.sum() > 0:
            own = np.sqrt(signal[heavy] / np.maximum(noise[heavy], 1e-12 * signal[heavy]))
            single += [float(own.min()), float(own.max())]
        found += [_of_snr(snr, ratio) for snr in single if not math.isnan(snr)]
        return min(found), max(found)

    def _path_error(self, ratio: float, **options: Any) -> float:
        signal, noise, size, pull = self._mix
        return path_error(signal, noise, size, ratio, pull=pull, **options)

    def holds(self, batch_ratio: float) -> bool | None:
        """Whether the square-root rule is expected to hold within `tolerance`; None if that cannot be estimated."""
        return self.expected_error(batch_ratio) <= self.tolerance if self.known else None

    @functools.cached_property
    def largest_ratio(self) -> float:
        """Largest δ for which the rule holds; infinite without a signal; NaN if it cannot be estimated."""
        return largest_ratio(self.expected_error, self.tolerance) if self.known else math.nan

    @functools.cached_property
    def _mix(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Signal, noise, size and pull of the decay of every resolved group, and of all other groups together."""
        told = [part for part in self.parts.values() if part.resolved]
        rest = [part for part in self.parts.values() if part.size and not part.resolved]
        rows = [(part.signal, max(part.noise, 0.0), part.size, part.pull) for part in told]
        if rest:
            sums = [sum(getattr(part, name) for part in rest) for name in ("signal", "noise", "size", "pull")]
            rows.append((max(sums[0], 0.0), max(sums[1], 0.0), sums[2], sums[3]))
        return tuple(np.asarray(column, dtype=float) for column in zip(*rows, strict=True))  # type: ignore[return-value]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types: unknown numbers become None, infinite ones the text ``"infinity"``."""
        table = [
            {
                "batch_ratio": ratio,
                "snr": self.snr * math.sqrt(ratio),
                "regime": self.regime_at(ratio),
                "expected_error": self.expected_error(ratio),
                "range": list(self.error_range(ratio)),
                "holds": self.holds(ratio),
                "legal": ratio <= self.legal_ratio,
            }
            for ratio in self.ratios
        ]
        rows = self.groups.reset_index().to_dict("records")
        return _plain(
            {
                "known": self.known,
                "reason": self.reason,
                "regime": self.regime,
                "snr": self.snr,
                "limit": self.limit,
                "interval": list(self.interval),
                "batch_size": self.batch_size,
                "noise_scale": self.noise_scale,
                "tolerance": self.tolerance,
                "largest_ratio": self.largest_ratio,
                "legal_ratio": self.legal_ratio,
                "verdict": self.verdict(),
                "ratios": table,
                "groups": rows,
                "notes": list(self.notes),
                "info": dict(self.info),
            }
        )

    def verdict(self) -> str:
        """The regime and whether the rule holds, in words."""
        if not self.known:
            return f"No diagnosis is possible from this state: {self.reason}."
        read = (
            f"SNR {self.snr:.2g}" if self.total.resolved else f"SNR below {self.limit:.2g}, not distinguishable from 0"
        )
        if math.isinf(self.snr):
            read = "no noise detected"
        said = [f"{self.regime.capitalize()} at the present batch size ({read})."]
        signal, noise, _, _ = self._mix
        elsewhere: dict[str, float] = {}
        for part, other in zip(signal, noise, strict=True):
            name = regime_of(math.sqrt(part / other) if other > 0 else math.inf)
            elsewhere[name] = elsewhere.get(name, 0.0) + part
        said += [
            f"{100 * part / signal.sum():.0f} % of the signal is in {name} groups."
            for name, part in elsewhere.items()
            if name != self.regime and part > _SPOKEN * signal.sum()
        ]
        if math.isinf(self.largest_ratio):
            said.append("No signal is detected, so there is no evidence against the square-root rule at any ratio.")
        else:
            said.append(
                f"The square-root rule is expected to hold within {100 * self.tolerance:g} % up to "
                f"{_ratio(self.largest_ratio)} times the batch size"
                + (f" ({self.batch_size * self.largest_ratio:.3g})." if self.batch_size is not None else ".")
            )
        if self.legal_ratio < max(self.largest_ratio, max(self.ratios, default=1.0)):
            said.append(f"Beyond {_ratio(self.legal_ratio)} times the batch size it would need a negative β.")
        unsure = [r for r in self.ratios if self._word(r).endswith("unsure")]
        if unsure:
            said.append(f"The verdict is unsure at ratio {', '.join(f'{r:g}' for r in unsure)}: see the range.")
        return " ".join(said)

    def _word(self, ratio: float) -> str:
        low, high = self.error_range(ratio)
        sure = high <= self.tolerance or low > self.tolerance
        return ("holds" if self.holds(ratio) else "fails") + ("" if sure else ", unsure")

    def __str__(self) -> str:
        """Groups, verdict and notes as plain text."""
        if not self.known:
            return "\n".join([self.verdict(), "", *self.notes])
        head = ["group", "size", "‖∇f‖²", "tr Σ", "SNR", "95 % limits"]
        head += ["noise scale"] if self.batch_size is not None else []
        shown = sorted(self.parts, key=lambda name: -self.parts[name].signal)[:_SHOWN]
        names = [name for name in self.parts if name in shown]
        rows = [self._row(name, self.parts[name]) for name in names]
        if len(self.parts) != 1:
            rows.append(self._row(_TOTAL, self.total))
        lines = text_table(head, rows)
        if len(self.parts) > len(names):
            lines.append(f"({len(self.parts) - len(names)} more groups with less signal are in .groups)")
        verdicts = [
            [
                f"{ratio:g}",
                f"{self.snr * math.sqrt(ratio):.2g}"
                if self.total.resolved
                else f"< {self.limit * math.sqrt(ratio):.2g}",
                self.regime_at(ratio),
                _percent(self.expected_error(ratio)),
                " – ".join(_percent(e) for e in self.error_range(ratio)),
                self._word(ratio) + ("" if ratio <= self.legal_ratio else ", β < 0"),
            ]
            for ratio in self.ratios
        ]
        table = text_table(["batch ×", "SNR", "regime", "error", "range", "square-root rule"], verdicts)
        return "\n".join([*lines, "", *table, "", self.verdict(), "", *self.notes])

    __repr__ = __str__

    def _row(self, name: str, part: Group) -> list[str]:
        if part.size == 0:
            return [name, "0"] + ["-"] * (4 + (self.batch_size is not None))
        infinite = math.isinf(part.snr)
        read = "no noise" if infinite else f"{part.snr:.3g}" if part.resolved else f"< {part.limit:.2g}"
        row = [name, f"{part.size:,}", f"{part.signal:.3g}", f"{part.noise:.3g}", read]
        row.append("-" if infinite else f"{part.lower:.2g} – {part.upper:.2g}")
        if self.batch_size is not None:
            row.append(f"{self._scale(part):.3g}" if part.resolved else f"> {self.batch_size / part.limit**2:.2g}")
        return row


def general_notes(batch: bool, alone: float, decays: bool | None) -> Sequence[str]:
    """Notes for every diagnosis; `decays` is whether there is weight decay, None if that is not known."""
    known = "" if batch else " With batch_size= the noise scale is given in samples."
    return (
        "SNR is √(‖∇f‖²/tr Σ) at the present batch size; '< x' means not distinguishable from 0, where a share of "
        f"{FALSE_ALARM:g} of all groups without signal exceeds x.{known}",
        "The limits assume independent coordinates, apart from the correlation estimated from blocks of each "
        "tensor. Noise along one direction common to all coordinates would not be detected, and could appear as an "
        f"SNR of {alone:.2g} without any signal.",
        "error: relative L2 distance of the loss curves at equal numbers of samples (training examples), from here "
        "to the stationary distribution, with groups weighted by their signal as if they had equal curvature"
        + (
            "; decoupled weight decay, which is not known here, reduces it (give weight_decay= and parameters=). "
            if decays is None
            else "; weight decay is included. "
            if decays
            else ". "
        )
        + "A floor of order lr·√δ from the larger steps is not included, because it depends on the curvature.",
    )


def _of_snr(snr: float, ratio: float) -> float:
    one = np.ones(1)
    return path_error(one * min(snr, 1e6) ** 2, one, one, ratio)


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2g} %" if value < 0.995 else f"{100 * value:.0f} %"


def _ratio(value: float) -> str:
    return f"{value:.3g}" if value < 1e5 else f"{value:.1e}"


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
