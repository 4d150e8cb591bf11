"""Advice on batch sizes in words, and as a table of plain text."""

import math
from typing import TYPE_CHECKING, Protocol

from sdelens.core.numerals import MISSING, between
from sdelens.results.printable import Parts, Remarks, Table
from sdelens.scaling._noise_source import NoiseScale
from sdelens.scaling._rules import ADAPTIVE

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Advised", "interval", "notes", "parts", "recommendation"]

_SIGN_LIKE = (*ADAPTIVE, "signsgd", "signum", "lion")


class Advised(Protocol):
    """The part of the interface of `Advice` that words and figure use."""

    @property
    def noise_scale(self) -> float: ...
    @property
    def noise_scale_limits(self) -> tuple[float, float]: ...
    @property
    def batch_size(self) -> float: ...
    @property
    def snr(self) -> float: ...
    @property
    def snr_limits(self) -> tuple[float, float]: ...
    @property
    def efficiency(self) -> float: ...
    @property
    def largest_batch(self) -> float: ...
    @property
    def largest_batch_limits(self) -> tuple[float, float]: ...
    @property
    def family(self) -> str: ...
    @property
    def is_factor(self) -> bool: ...
    @property
    def table(self) -> "pd.DataFrame": ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def source(self) -> str: ...
    @property
    def recommendation(self) -> str: ...


def recommendation(advice: Advised) -> str:
    """What to do, in one or two sentences, and what cannot be told."""
    low, high = advice.largest_batch, advice.largest_batch_limits[1]
    exact = all(math.isnan(end) for end in advice.noise_scale_limits)
    high = low if exact else high
    share = f"{100 * advice.efficiency:g} %"
    here = advice.batch_size
    if math.isnan(low):
        return _without_lower_limit(here, high, share)
    bound = f"at least up to {_short(low)}" if math.isnan(high) else f"up to {_short(low)}"
    unsure = "" if math.isnan(high) or exact else f"; from there to {_short(high)} it cannot be told"
    unsure = ", if the noise scale, which has no limits, is right" if exact else unsure
    if math.isnan(here):
        return f"Batch sizes {bound} use {share} of their samples or more{unsure}."
    if here > low:
        if here > high:
            return (
                f"The present batch size {_short(here)} uses less than {share} of its samples: one of at most "
                f"{_short(low)} reaches the same loss with fewer samples, in more steps."
            )
        return (
            f"Cannot tell whether the present batch size {_short(here)} uses {share} of its samples: batch sizes "
            f"{bound} do{unsure}. Do not increase it before the noise scale is known better."
        )
    rows = advice.table
    fit = rows[(rows.index <= low) & (rows.index > here)]
    if not len(fit):
        return (
            f"Stay at the present batch size {_short(here)}: batch sizes {bound} use {share} of their samples{unsure}."
        )
    size = float(fit.index[-1])
    row = fit.iloc[-1]
    return (
        f"The batch size can grow to {_short(size)} ({_short(size / here)} times the present one) with lr "
        f"{'× ' * advice.is_factor}{row.lr:.3g}{_lr_range(row)}: batch sizes {bound} use {share} of their samples or "
        f"more{unsure}."
    )


def _without_lower_limit(here: float, high: float, share: str) -> str:
    """The advice if the noise scale may be anything below a limit."""
    if here > high:
        return (
            f"The present batch size {_short(here)} uses less than {share} of its samples. How large a sensible one is "
            f"cannot be told, except that it is at most {_short(high)}: the noise scale has no lower limit here."
        )
    if math.isnan(high):
        return (
            "Cannot tell how large a sensible batch size is: neither the noise scale nor a limit of it is known. "
            "Measure it from gradients, for example by sdelens.torch.watch for 20 steps."
        )
    return (
        "Cannot tell how large a sensible batch size is: the noise scale has no lower limit here, and a batch size "
        f"above {_short(high)} uses less than {share} of its samples. Measure the noise scale from gradients, for "
        "example by sdelens.torch.watch for 20 steps."
    )


def parts(advice: Advised) -> Parts:
    """The recommendation, the table and the notes."""
    unit = "noise scale " + interval(advice.noise_scale, *advice.noise_scale_limits) + " samples"
    said = [f"From {advice.source}: {unit}."]
    if not math.isnan(advice.batch_size):
        snr = interval(advice.snr, *advice.snr_limits)
        said.append(f"At the present batch size {_short(advice.batch_size)} the SNR is {snr}.")
    notes = Remarks(advice.notes, "What this assumes, and what it does not say:")
    return [advice.recommendation, " ".join(said), Table(*_cells(advice)), notes]


def interval(value: float, low: float, high: float) -> str:
    """A number with its limits; without an estimate the limit that is known."""
    if math.isnan(value):
        known = [f"{word} {_short(v)}" for word, v in (("at least", low), ("at most", high)) if not math.isnan(v)]
        return f"– ({' and '.join(known) or 'unknown'})"
    if math.isnan(low) and math.isnan(high):
        return _short(value)
    ends = (MISSING if math.isnan(end) else _short(end) for end in (low, high))
    return f"{_short(value)} ({' to '.join(ends)})"


def notes(scale: NoiseScale, given: float | None, family: str, why: list[str], named: bool) -> list[str]:
    """What the advice assumes, and what is not known."""
    said = []
    if math.isnan(scale.estimate) and scale.lower > 0:
        said.append(
            "The noise scale is not resolved: the gradient could not be distinguished from 0. Only its lower limit is "
            "known; measure it over more micro-batches."
        )
    elif math.isnan(scale.estimate) and math.isinf(scale.upper):
        said.append(
            "Nothing is known of the noise scale; learning rates lie between the square-root and the linear rule."
        )
    elif math.isnan(scale.estimate):
        said.append(
            "Only an upper limit of the noise scale is known, as from an optimizer's moments, which give a lower bound "
            "of the SNR. It excludes batch sizes, and recommends none."
        )
    elif scale.is_exact:
        said.append("The noise scale was given without limits, and is taken as exact here; it never is.")
    said.append(
        "Efficiency, steps and samples compare runs to the same loss with the learning rate tuned at each batch size "
        "(McCandlish et al. 2018, arXiv 1812.06162, for SGD on a quadratic). The noise scale usually grows during a "
        "run: what is too large now may not be so later."
    )
    if family in _SIGN_LIKE:
        said.append(
            f"The noise scale is that of the Euclidean norm; {family} measures gradients differently, and the batch "
            "size up to which it profits may differ by a factor of several."
        )
    if given is None:
        said.append("Without the batch size of the run (batch_size) there is no SNR, and no learning rate.")
        return said
    if family in _SIGN_LIKE:
        said.append(
            "lr keeps drift and noise per sample; its range is that of the limits of the SNR, and √δ and δ are its "
            "values without signal and without noise. surge (Li et al. 2024, arXiv 2405.14578) answers another "
            "question: the lr that decreases the loss most in one step. It rises up to the noise scale and then falls, "
            "and holds for the sign of a gradient without memory, on a loss whose curvature couples the coordinates, "
            "if its peak is the noise scale given here. Where they differ, only a comparison of runs tells "
            "(sl.scaling.branch)."
        )
    if family in _SIGN_LIKE and named:
        said.append(f"lr are factors of the present learning rate, for {family} with its usual β.")
    said += dict.fromkeys(why)
    return said


def _cells(advice: Advised) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table."""
    rated = "lr" in advice.table
    head = ["batch size", "efficiency", "sensible", "steps/fewest", "samples/fewest"]
    if "steps" in advice.table:
        head += ["steps", "samples"]
    if rated:
        head += ["lr ×" if advice.is_factor else "lr", "range", "√δ", "δ", "surge"]
        head += [name for name in ("b1", "b2", "momentum", "alpha") if _is_number(advice, name)]
        head += ["weight_decay"] if _is_number(advice, "weight_decay") and advice.table.weight_decay.any() else []
    rows = []
    for size, row in advice.table.iterrows():
        cells = [
            _short(float(str(size))),
            _percent(row),
            row.sensible,
            _short(row.steps_factor),
            _short(row.samples_factor),
        ]
        if "steps" in advice.table:
            cells += [_short(row.steps), _short(row.samples)]
        if rated:
            cells += [_short(row.lr), between(row.lr_lower, row.lr_upper, _short)]
            cells += [_short(row[name]) for name in ("lr_sqrt", "lr_linear", "lr_surge")]
            cells += [f"{row[name]:.4g}" for name in head[len(cells) :]]
        rows.append(cells)
    return head, rows


def _is_number(advice: Advised, name: str) -> bool:
    return name in advice.table and advice.table[name].dtype.kind == "f"


def _percent(row: "object") -> str:
    """Efficiency in per cent, with the limits that are known."""
    value, low, high = (100 * getattr(row, f"efficiency{side}") for side in ("", "_lower", "_upper"))
    if math.isnan(value):
        known = [f"{word} {v:.0f} %" for word, v in (("at least", low), ("at most", high)) if not math.isnan(v)]
        return ", ".join(known) or MISSING
    if low == high or (math.isnan(low) and math.isnan(high)):
        return f"{value:.0f} %"
    ends = (MISSING if math.isnan(end) else f"{end:.0f}" for end in (low, high))
    return f"{value:.0f} % ({' – '.join(ends)})"


def _lr_range(row: "object") -> str:
    low, high = row.lr_lower, row.lr_upper  # type: ignore[attr-defined]
    return "" if math.isclose(low, high) else f" ({low:.3g} to {high:.3g})"


def _short(value: float, digits: int = 3) -> str:
    if not math.isfinite(value):
        return MISSING
    return f"{value:.0f}" if 100 <= abs(value) < 1e6 else f"{value:.{digits}g}"
