"""The verdict, the tables and the notes of a `Diagnosis`, in words."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from sdelens.core.limits import CONFIDENCE
from sdelens.core.numerals import MISSING, Writer, between, percent
from sdelens.diagnosis.moments import DOUBLING, FALSE_ALARM, Group
from sdelens.results.printable import Parts, Table

__all__ = ["general_notes", "parts", "verdict"]

_SHOWN = 20
_MEASURE = (
    "Next: measure the gradients of about 20 steps (sdelens.torch.watch, or sl.gradient_noise in JAX), and give the "
    "result as noise=."
)


class Diagnosed(Protocol):
    """The part of the interface of `Diagnosis` that the report uses."""

    @property
    def parts(self) -> Mapping[str, Group]: ...
    @property
    def total(self) -> Group: ...
    @property
    def source(self) -> str: ...
    @property
    def known(self) -> bool: ...
    @property
    def reason(self) -> str: ...
    @property
    def batch_size(self) -> float | None: ...
    @property
    def ratios(self) -> tuple[float, ...]: ...
    @property
    def tolerance(self) -> float: ...
    @property
    def legal_ratio(self) -> float: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def info(self) -> Mapping[str, Any]: ...
    @property
    def snr(self) -> float: ...
    @property
    def limits(self) -> tuple[float, float]: ...
    @property
    def regime(self) -> str: ...
    @property
    def largest_ratio_limits(self) -> tuple[float, float]: ...
    def regime_at(self, batch_ratio: float) -> str: ...
    def expected_error(self, batch_ratio: float) -> float: ...
    def error_range(self, batch_ratio: float) -> tuple[float, float]: ...
    def holds(self, batch_ratio: float) -> bool | None: ...


def verdict(found: Diagnosed) -> str:
    """What is known of the regime and of the rule, and what to do next."""
    if not found.known:
        return f"Cannot tell: {found.reason}. {_MEASURE}"
    said = [_sentence(found), _coverage(found)]
    if found.info.get("another_rule"):
        said.append(
            f"That rule is the one of Adam and RMSprop, which this optimizer is not: {found.info['another_rule']}."
        )
    if found.source == "moments":
        said.append(_MEASURE)
    return " ".join(part for part in said if part)


def _sentence(found: Diagnosed) -> str:
    low, high = found.limits
    moments = found.source == "moments"
    if moments and low == 0:
        return (
            "Cannot tell whether noise dominates: the optimizer's moments show no signal, but a gradient that turns "
            "over within their memory does not show in them."
        )
    if moments:
        read = f"The SNR is at least {low:.2g} at the present batch size"
    elif math.isnan(found.snr):
        read = f"{_capital(found.regime)} at the present batch size (SNR below {high:.2g})"
    else:
        read = f"{_capital(found.regime)} at the present batch size (SNR {found.snr:.2g}, {_between(low, high)})"
    return f"{read}: {_rule(found)}."


def _rule(found: Diagnosed) -> str:
    """What is known of the square-root rule, as the rest of a sentence."""
    percent = f"{100 * found.tolerance:g} %"
    sure, fails = found.largest_ratio_limits
    parts = []
    if sure > 1:
        legal = ", beyond which a β would be negative" if sure == found.legal_ratio else ""
        parts.append(f"the square-root rule holds within {percent} up to {_times(sure, found.batch_size)}{legal}")
    failing = fails < found.legal_ratio
    if failing:
        rule = "it" if parts else "the square-root rule"
        parts.append(
            f"{rule} misses {percent} " + ("at any larger batch" if fails < 1.05 else f"from {_times(fails, None)} on")
        )
    if not parts:
        return f"it cannot be told at which batch size the square-root rule misses {percent}"
    between = sure < min(fails, found.legal_ratio) and not (failing and fails < 1.05)
    end = "; up to there it cannot be told" if sure == 1 else "; in between it cannot be told"
    return " and ".join(parts) + (end if between and failing else "")


def _coverage(found: Diagnosed) -> str:
    counted = found.total.size
    total = int(found.info.get("numbers", 0)) - int(found.info.get("untouched", 0))  # those never had a gradient
    return f"This covers {counted:,} of {total:,} numbers." if total > counted else ""


def parts(found: Diagnosed) -> Parts:
    """Verdict, groups, batch ratios and notes."""
    if not found.known:
        return [verdict(found), *found.notes]
    scale = found.batch_size is not None
    limits = f"{100 * found.info.get('confidence', CONFIDENCE):g} % limits"
    head = ["group", "size", "‖∇f‖²", "tr Σ", "SNR", limits, *["noise scale"] * scale]
    shown = sorted(found.parts, key=lambda name: -found.parts[name].signal)[:_SHOWN]
    names = [name for name in found.parts if name in shown]
    rows = [_row(name, found.parts[name], found.batch_size) for name in names]
    if len(found.parts) != 1:
        rows.append(_row("all", found.total, found.batch_size))
    more = len(found.parts) - len(names)
    left_out = [f"({more} more groups with less signal are in .groups)"] if more > 0 else []
    ratios = Table(["batch ×", "SNR", "regime", "error", "range", "square-root rule"], _ratio_rows(found))
    return [verdict(found), Table(head, rows), *left_out, ratios, *found.notes]


def _row(name: str, part: Group, batch: float | None) -> list[str]:
    if part.size == 0:
        return [name, "0"] + [MISSING] * (4 + (batch is not None))
    known = not math.isnan(part.snr)
    row = [name, f"{part.size:,}", f"{part.signal:.3g}", f"{part.noise:.3g}"]
    row += [f"{part.snr:.3g}" if known else MISSING, _between(part.lower, part.upper)]
    if batch is not None:
        low, high = (batch / snr**2 if snr > 0 else math.inf for snr in (part.upper, part.lower))
        row.append(f"{batch / part.snr**2:.3g} ({_between(low, high)})" if known else _between(low, high))
    return row


def _ratio_rows(found: Diagnosed) -> list[list[str]]:
    rows = []
    for ratio in found.ratios:
        root = math.sqrt(ratio)
        low, high = (limit * root for limit in found.limits)
        snr = f"{found.snr * root:.2g}" if not math.isnan(found.snr) else _between(low, high)
        errors = found.error_range(ratio)
        rule = _word(found, ratio) + ("" if ratio <= found.legal_ratio else ", β < 0")
        rows.append(
            [
                *(f"{ratio:g}", snr, found.regime_at(ratio), percent(found.expected_error(ratio))),
                *(_between(*errors, percent), rule),
            ]
        )
    return rows


def _word(found: Diagnosed, ratio: float) -> str:
    """Whether the rule holds at a ratio."""
    sure, expected = found.holds(ratio), found.expected_error(ratio)
    if sure is not None:
        return "holds" if sure else "fails"
    if math.isnan(expected):
        return "cannot tell"
    return "probably holds" if expected <= found.tolerance else "probably fails"


def _short(value: float, digits: int = 2) -> str:
    return f"{value:.0f}" if 100 <= value < 1e5 else f"{value:.{digits}g}"


def _between(low: float, high: float, write: Writer = _short) -> str:
    """Limits in words, 0 and infinite ones as such."""
    if low <= 0 and math.isinf(high):
        return MISSING
    if math.isinf(low):
        return "no noise"
    if math.isinf(high):
        return f"at least {write(low)}"
    return f"below {write(high)}" if low <= 0 else between(low, high, write)


def _times(ratio: float, batch: float | None) -> str:
    factor = f"{ratio:.2g}" if ratio < 99 else f"{ratio:.3g}" if ratio < 1e5 else f"{ratio:.1e}"
    return f"{factor} times the batch size" + ("" if batch is None else f" (a batch of {batch * ratio:.3g})")


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def general_notes(source: str, batch: bool, alone: float, decays: bool | None) -> Sequence[str]:
    """Notes for every diagnosis.

    Args:
        source: ``"moments"`` or ``"gradients"``.
        batch: whether the batch size is known.
        alone: SNR that noise along one common direction may show in moments.
        decays: whether there is decoupled weight decay, None if that is not known.
    """
    known = "" if batch else " With batch_size= the noise scale is given in samples."
    snr = "SNR is √(‖∇f‖²/tr Σ) at the present batch size; where a signal is not distinguishable from 0, "
    if source == "moments":
        snr += (
            f"which a share of {FALSE_ALARM:g} of all groups without signal is, there is only a dash. Moments give "
            "lower limits of the SNR and no upper ones. The lower ones allow for noise of successive batches with the "
            f"correlation noise_correlation=, and for squared gradients that double within {DOUBLING:g} steps, or "
            f"within a quarter of the run if that is shorter.{known}"
        )
        limits = (
            "The limits assume independent coordinates, apart from the correlation estimated from blocks of each "
            "tensor. Noise along one direction common to all coordinates would not be detected, and could appear as an "
            f"SNR of {alone:.2g} without any signal."
        )
    else:
        snr += f"there is only an upper limit.{known}"
        limits = (
            "Signal and noise are those of the measured gradients, before any clipping, and the limits are those of "
            "the measurement."
        )
    return (
        snr,
        limits,
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
