"""The tables and the verdict of a `GradientNoise`, in words."""

import math
from typing import TYPE_CHECKING, Protocol

from sdelens.core.limits import normal_point
from sdelens.core.numerals import MISSING, between, number, percent

if TYPE_CHECKING:
    import pandas as pd

    from sdelens.diagnosis._shares import PhaseShares
    from sdelens.diagnosis._tails import Tail

__all__ = ["tables", "verdict"]

_NORMS = {
    "l1": ("ℓ1 norm", "For methods that follow the sign of the gradient (SignSGD, Lion, Adam), the noise scale "),
    "nuclear": ("nuclear norm", "For methods that orthogonalise the gradient (Muon), the noise scale "),
}
"""Name of every dual norm, and how a sentence about it begins."""


class MeasuredNoise(Protocol):
    """The part of the interface of `GradientNoise` that the report uses."""

    per: str
    confidence: float
    names: tuple[str, ...]

    @property
    def groups(self) -> "pd.DataFrame": ...
    @property
    def tails(self) -> "dict[str, Tail]": ...
    @property
    def batch_size(self) -> float: ...
    @property
    def count(self) -> int: ...
    @property
    def samples(self) -> float: ...
    @property
    def is_at_one_point(self) -> bool: ...
    @property
    def is_exact(self) -> bool: ...
    @property
    def dual_norms(self) -> tuple[str, ...]: ...
    def noise_scale(self, *, norm: str) -> float: ...
    def noise_scale_limits(self, *, norm: str) -> tuple[float, float]: ...
    def noise_scale_reason(self, group: str, norm: str = ...) -> str | None: ...
    def phases(self, batch_size: float) -> "PhaseShares": ...


def tables(noise: MeasuredNoise) -> list[tuple[list[str], list[list[str]]]]:
    """Header and rows of each table: sizes and noise scales; tails, if there are any."""
    percent = f"{100 * noise.confidence:g} % limits"
    head = ["group", "size", "‖∇f‖² ± sem", f"tr Σ per {noise.per} ± sem", "SNR", "noise scale", percent]
    for norm in noise.dual_norms:
        head += [f"noise scale of {_NORMS[norm][0].removesuffix(' norm')}", percent]
    rows, tails, fitted = [], [], noise.tails
    for name, row in noise.groups.iterrows():
        cells = [
            str(name),
            str(int(row["size"])),
            f"{row.gradient_square:.3g} ± {row.gradient_square_sem:.1g}",
            f"{row.trace:.3g} ± {row.trace_sem:.1g}",
            MISSING if math.isnan(row.snr) else f"{row.snr:.2g}",
            *_scale_cells(row.noise_scale, row.noise_scale_lower, row.noise_scale_upper),
        ]
        for norm in noise.dual_norms:
            cells += _scale_cells(*(row[f"noise_scale_{norm}{end}"] for end in ("", "_lower", "_upper")))
        rows.append(cells)
        if fitted:
            tails.append([str(name), *_tail_cells(fitted[str(name)])])
    found = [(head, rows)]
    if tails:
        head = ["tails", "κ = 1/ν", percent, "ν", "p (normal)", "excess kurtosis ± sem", "efficiency of sign", percent]
        found.append((head, tails))
    return found


def _scale_cells(scale: float, low: float, high: float) -> list[str]:
    """A noise scale and its limits; only a limit if it is not resolved."""
    limits = between(low, high) if math.isfinite(high) else f"> {number(low)}"
    return [number(scale), MISSING if math.isnan(low) else limits]


def _tail_cells(own: "Tail") -> list[str]:
    if own.reason is not None:
        return [MISSING] * 7
    low, high = own.efficiency_limits
    return [
        f"{own.kappa:.3f}",
        between(own.lower, own.upper, _limit),
        number(own.df),
        MISSING if math.isnan(own.normal_p) else f"{own.normal_p:.1g}",
        f"{own.kurtosis:.2g} ± {own.kurtosis_sem:.1g}",
        number(own.efficiency),
        between(low, high),
    ]


def verdict(noise: MeasuredNoise, size: float) -> list[str]:
    """Sentences about whether gradient or noise dominates at batch size `size`, the phases, the tails, the sign."""
    low, high = noise.noise_scale_limits(norm="l2")
    said = [
        f"{noise.count} gradients from {noise.samples:g} samples (training examples) in total; verdict at batch size "
        f"{size:g}."
    ]
    if size < low:
        said.append(
            f"Noise dominates: the noise scale is above {number(low)} samples"
            + (", and the gradient is not distinguishable from 0." if math.isinf(high) else ".")
        )
        dominated: bool | None = True
    elif size > high:
        said.append(f"The gradient dominates: the noise scale is below {number(high)} samples.")
        dominated = False
    else:
        where = f"is above {number(low)}" if math.isnan(high) else f"lies between {number(low)} and {number(high)}"
        said.append(
            f"It is not resolved whether noise dominates: the noise scale {where} samples. More gradients narrow this "
            "range."
        )
        dominated = None
    reasons = {name: noise.noise_scale_reason(name) for name in noise.names}
    for why in dict.fromkeys(w for w in reasons.values() if w is not None):
        said.append(
            f"No upper limit of the noise scale of {', '.join(n for n in reasons if reasons[n] == why)}: {why}."
        )
    said += [_dual_scale_words(noise, norm, size) for norm in noise.dual_norms]
    shares = noise.phases(size) if noise.is_at_one_point else None
    if shares is not None and not math.isnan(shares.raw[0]):
        one, two, three = (f"{100 * max(v, 0.0):.0f} %" for v in shares.estimate)
        said.append(
            f"Phases of SignSGD: {one} of the coordinates are in phase 1 (noise negligible), {two} in phase 2 and "
            f"{three} in phase 3 (linear). Separate estimates for each coordinate would put "
            f"{100 * shares.raw[0]:.0f} % in phase 1; with noise alone they would put {100 * shares.noise[0]:.0f} % "
            "there."
        )
    if noise.tails:
        said += _tail_words(noise.tails["all"], noise, dominated)
    return said


def _dual_scale_words(noise: MeasuredNoise, norm: str, size: float) -> str:
    """The noise scale of methods whose steps have another norm, and what it says at this batch size."""
    low, high = noise.noise_scale_limits(norm=norm)
    scale, reason = noise.noise_scale(norm=norm), noise.noise_scale_reason("all", norm)
    label, methods = _NORMS[norm]
    if math.isnan(low):
        return f"{methods}of the {label} is not known: {reason}."
    if reason is not None:
        return f"{methods}of the {label} is above {number(low)} samples; more is not known: {reason}."
    side = "noise dominates" if size < low else "the gradient dominates" if size > high else None
    told = "it is not resolved which of them dominates" if side is None else f"{side} for them"
    return f"{methods}of the {label} is {number(scale)} samples ({between(low, high)}): {told}."


def _tail_words(own: "Tail", noise: MeasuredNoise, dominated: bool | None) -> list[str]:
    if own.reason is not None:
        return [f"The tail index is not estimated: {own.reason}."]
    law = f"gradients of {noise.batch_size:g} samples" if noise.batch_size != 1 else "gradients of single samples"
    said = []
    if own.lower <= 0 <= own.upper:
        said.append(
            f"Tails: the distribution of {law} is statistically indistinguishable from normal (κ = {own.kappa:.3f})."
        )
    elif own.kappa < 0:
        said.append(f"Tails: the distribution of {law} has lighter tails than normal (κ = {own.kappa:.3f}).")
    else:
        said.append(
            f"Tails: the distribution of {law} has heavier tails than normal, like Student's t with ν = "
            f"{number(own.df)}."
        )
    if own.zeros:
        said.append(
            f"{percent(own.zeros)} of the values are exactly 0; the tail index is that of the distribution of the "
            "other values."
        )
    if own.lower >= 0.5:
        said.append(
            "Its variance is infinite (κ ≥ ½): SGD's SDE does not exist, tr Σ and the noise scale describe only "
            "these gradients, and only the sign has a drift and a diffusion coefficient."
        )
    elif own.upper >= 0.5 and not noise.is_exact:
        said.append(
            "An infinite variance (κ ≥ ½) is not excluded; in that case tr Σ and the noise scale are not defined."
        )
    said.append(_sign_words(own, dominated))
    for why in dict.fromkeys(t.reason for t in noise.tails.values() if t.reason is not None):
        said.append(
            f"The tail index is not estimated for {', '.join(n for n, t in noise.tails.items() if t.reason == why)}: "
            f"{why}."
        )
    differing = [n for n, t in noise.tails.items() if t.lower > own.upper or t.upper < own.lower]
    if differing:
        said.append(f"Groups whose tails differ from those of all parameters together: {', '.join(differing)}.")
    return said


def _sign_words(own: "Tail", dominated: bool | None) -> str:
    """Whether the tails favour the sign or the value of a gradient, and whether its sign points downhill."""
    low, high = own.efficiency_limits
    worth = (
        f"for a small signal, the sign of one gradient is as informative as the values of {number(own.efficiency)} "
        "gradients"
    )
    where = {
        True: "Noise dominates here, so this comparison applies.",
        False: "The gradient dominates here, so this comparison does not apply.",
        None: "This comparison applies only where noise dominates.",
    }[dominated]
    descent = f"mean of E g E sign(g)/σ: {own.sign_descent:.2g} ± {own.sign_descent_sem:.1g}"
    if low > 1 and own.sign_descent < -normal_point() * own.sign_descent_sem:
        return (
            "Sign-based methods such as SignSGD are not suitable, although the tails are heavy: the noise is skewed, "
            f"and steps of −sign(g) increase the loss on average ({descent})."
        )
    skewed = own.asymmetry > normal_point() * own.asymmetry_sem
    if low > 1 and skewed and own.sign_descent < normal_point() * own.sign_descent_sem:
        return (
            "No verdict on sign-based methods is possible: the tails favour them, but the noise is skewed, and these "
            f"gradients do not show whether steps of −sign(g) reduce the loss ({descent})."
        )
    if low > 1:
        return f"Sign-based methods such as SignSGD are preferable: {worth} ({between(low, high)}). {where}"
    if high < 1:
        return f"Linear methods such as SGD are preferable: {worth} ({between(low, high)}). {where}"
    return f"The tails favour neither the sign nor the value: {worth} ({between(low, high)})."


def _limit(kappa: float, digits: int = 3) -> str:
    """A limit of κ as text; infinite outside the range of the fit."""
    return f"{'−' if kappa < 0 else ''}{'∞' if math.isinf(kappa) else f'{abs(kappa):.{digits}f}'}"
