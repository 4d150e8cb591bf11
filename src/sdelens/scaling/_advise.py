"""Advice on the next batch size and learning rate, from a measured gradient noise scale."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

from sdelens.core import check
from sdelens.core.declarations import OPTIMIZERS, canonical_name, scaled_names
from sdelens.results.printable import Parts, Plotted
from sdelens.scaling._factors import Change, damping, scaled
from sdelens.scaling._noise_source import NoiseScale, noise_scale_of
from sdelens.scaling._recommend import recommended
from sdelens.scaling._rescale import chosen, read
from sdelens.scaling._rules import ADAPTIVE, RULES
from sdelens.scaling._snr import Measured
from sdelens.scaling.hyperparameters import Hyperparameters

if TYPE_CHECKING:
    import pandas as pd

    from sdelens.results.figures import Sheet

__all__ = ["Advice", "advise"]

_MOST: Final = 12
"""Default batch sizes, about."""
_SIGN_LIKE: Final = (*ADAPTIVE, "signsgd", "signum", "lion")


@dataclass(frozen=True, repr=False)
class Advice(Plotted):
    """What a noise scale says of batch sizes, as `advise` returns it. Unknown numbers are NaN.

    Attributes:
        noise_scale: B_noise = tr Σ/‖∇f‖² in samples.
        noise_scale_limits: its limits.
        batch_size: B of the present run.
        snr: √(B/B_noise), the signal-to-noise ratio at B.
        snr_limits: its limits.
        efficiency: 1/(1 + B/B_noise) that a batch size must have to be sensible.
        largest_batch: largest batch size that is known to be sensible, from the lower limit of the noise scale, or from
            the estimate if it has no limits.
        largest_batch_limits: limits of the largest sensible batch size.
        family: the optimizer.
        is_factor: whether learning rates of the table are factors of the present one.
        table: a row per batch size, described in `advise`.
        notes: what was assumed, and what is not known.
        source: where the noise scale comes from.
    """

    noise_scale: float
    noise_scale_limits: tuple[float, float]
    batch_size: float
    snr: float
    snr_limits: tuple[float, float]
    efficiency: float
    largest_batch: float
    largest_batch_limits: tuple[float, float]
    family: str
    is_factor: bool
    table: "pd.DataFrame"
    notes: tuple[str, ...]
    source: str

    @property
    def recommendation(self) -> str:
        """The advice in one sentence or two."""
        from sdelens.scaling._advice_text import recommendation

        return recommendation(self)

    def _parts(self) -> Parts:
        from sdelens.scaling._advice_text import parts

        return parts(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types; unknown and infinite numbers become None."""
        numbers = ("noise_scale", "batch_size", "snr", "efficiency", "largest_batch")
        pairs = ("noise_scale_limits", "snr_limits", "largest_batch_limits")
        head = {name: getattr(self, name) for name in (*numbers, *pairs)}
        rows = self.table.reset_index().to_dict("records")
        said = {"family": self.family, "is_factor": self.is_factor, "source": self.source, "notes": list(self.notes)}
        found: dict[str, Any] = _plain({"recommendation": self.recommendation, **head, "table": rows, **said})
        return found

    def _draw(self, sheet: "Sheet") -> None:
        """Steps against samples, and learning rate against batch size."""
        from sdelens.scaling._advice_plot import plot_advice

        plot_advice(sheet, self)


def advise(
    noise: Any,
    *,
    batch_size: float | None = None,
    optimizer: Any = "adamw",
    batches: Sequence[float] | None = None,
    steps: int | None = None,
    efficiency: float = 0.5,
) -> Advice:
    r"""Which batch size to use next, at which learning rate, and what is not known.

    To reach one loss with a tuned learning rate at each batch size B takes S steps and E = SB samples with

        (S/S_min − 1)(E/E_min − 1) = 1,   S/S_min = 1 + B_noise/B,   E/E_min = 1 + B/B_noise,

    where B_noise is the noise scale. The efficiency is E_min/E; a batch size is called sensible if that is at least
    `efficiency`, that is, up to B_noise (1/efficiency − 1). The learning rate at B is that of `rescale` under the rule
    of `recommended`, with the SNR √(B/B_noise) of the present batch size.

    Args:
        noise: the noise scale: a `GradientNoise`, a `Diagnosis`, a number, (estimate, lower limit, upper limit) with
            NaN for what is unknown, or a log of it, of which the last fifth counts: a data frame, or the path of a CSV
            file, with columns step or samples, noise_scale and, if measured, noise_scale_lower and noise_scale_upper.
        batch_size: samples of one optimizer step of the present run, over all devices and micro-batches; needed for
            learning rates. By default that of the `Diagnosis`, or of the watched steps.
        optimizer: the optimizer's name, a dict or a specification as for `rescale`; by the name alone, learning rates
            are factors.
        batches: batch sizes of the table; by default powers of two times the present one.
        steps: steps of the present run, to predict steps and samples at the other batch sizes.
        efficiency: in (0, 1).

    Returns:
        An `Advice`; print it, or see its `recommendation`, `table` and `plot`. Columns of the table, with ``_lower``
        and ``_upper`` for limits (the estimate itself if the noise scale was given without limits): ``efficiency``;
        ``steps_factor`` S/S_min and ``samples_factor`` E/E_min; ``sensible`` (yes, no or cannot tell); ``steps`` and
        ``samples`` of a run to the same loss, if `steps` is given; and, with a batch size, ``lr`` (a factor if the
        optimizer is only a name), ``lr_sqrt`` and ``lr_linear``, ``lr_surge``, ``rule``, ``momentum``, and the
        optimizer's other numbers.

        ``lr_surge`` is another question: the best learning rate for one step of a sign-like optimizer, which rises and
        then falls with the batch size, η(B) ∝ 1/(√(B/B_noise) + √(B_noise/B)), with its peak at B_noise.

    Raises:
        ValueError, TypeError: if an argument is invalid, or neither the noise scale nor a limit of it nor the batch
            size is known.

    Source: McCandlish et al. 2018 (arXiv 1812.06162) for the frontier; Li et al. 2024 (arXiv 2405.14578) for
    ``lr_surge``; the rule is derived in docs/scaling.md.

    Examples:
        >>> import sdelens as sl
        >>> found = sl.advise((1200, 800, 1900), batch_size=256, optimizer={"optimizer": "adamw", "lr": 3e-4})
        >>> found.largest_batch, round(float(found.table.loc[512, "efficiency"]), 3)
        (800.0, 0.701)
    """
    share = check.number("efficiency", efficiency)
    if not 0 < share < 1:
        raise ValueError(f"efficiency: got {efficiency}; it must lie between 0 and 1, for example 0.5.")
    scale = noise_scale_of(noise)
    given = scale.batch_size if batch_size is None else check.positive("batch_size", batch_size)
    if given is None and math.isnan(scale.estimate) and scale.lower == 0 and math.isinf(scale.upper):
        raise ValueError(
            "noise: neither the noise scale nor a limit of it is known, and no batch_size is given, so nothing can be "
            "advised; measure the noise scale, for example by sdelens.torch.watch for 20 steps."
        )
    count = None if steps is None else check.at_least("steps", steps, 1)
    if count is not None and given is None:
        raise ValueError("batch_size: not given, but steps are those of the present batch size; give it too.")
    numbers, named = _numbers(optimizer)
    worth = 1 / share - 1
    sizes = _sizes(batches, given, scale, worth)
    snr = None if given is None else _snr(given, scale)
    rows, why = [], []
    for size in sizes:
        row = _row(size, scale, share)
        if count is not None and given is not None:
            row.update(_run(size, count, given, scale))
        if given is not None and snr is not None:
            more, reason = _rates(size / given, numbers, named, snr, scale, given)
            row.update(more)
            why.append(reason)
        rows.append(row)
    import pandas as pd

    table = pd.DataFrame(rows, index=pd.Index(sizes, name="batch_size"))
    known = (math.nan, math.nan) if scale.is_exact else (_unknown(scale.lower), _unknown(scale.upper))
    return Advice(
        noise_scale=scale.estimate,
        noise_scale_limits=known,
        batch_size=math.nan if given is None else given,
        snr=math.nan if snr is None else snr[0],
        snr_limits=(math.nan, math.nan) if snr is None or scale.is_exact else (_unknown(snr[1]), _unknown(snr[2])),
        efficiency=share,
        largest_batch=_unknown(scale.lower) * worth,
        largest_batch_limits=(known[0] * worth, known[1] * worth),
        family=numbers.family,
        is_factor=named,
        table=table,
        notes=tuple(_notes(scale, given, numbers.family, [r for r in why if r], named)),
        source=scale.source,
    )


def _numbers(optimizer: Any) -> tuple[Hyperparameters, bool]:
    """The hyperparameters, and whether only a name was given, so that learning rates are factors."""
    if not isinstance(optimizer, str):
        readings, _ = read(optimizer, None)
        if len(readings) > 1:
            raise ValueError(f"optimizer: got {len(readings)} parameter groups; give one of them.")
        return readings[0].numbers, False
    name = check.choice("optimizer", optimizer.lower(), scaled_names())
    declared = OPTIMIZERS[canonical_name(name)]
    return read({"optimizer": name, "lr": 1.0, **declared.defaults}, None)[0][0].numbers, True


def _sizes(batches: Any, given: float | None, scale: NoiseScale, worth: float) -> list[float]:
    if batches is not None:
        if isinstance(batches, str | Mapping) or not isinstance(batches, Sequence) or not len(batches):
            raise TypeError(f"batches: got {batches!r}; give a list of batch sizes.")
        sizes = {float(check.positive("batches", size)) for size in batches}
        return sorted(sizes | ({given} if given is not None else set()))
    known = [v * worth for v in (scale.lower, scale.estimate, scale.upper) if 0 < v < math.inf]
    unit = 2.0 ** round(math.log2(known[0])) if given is None else given
    known = known or [unit]
    low = min(-2, math.floor(math.log2(min(known) / unit)))
    high = max(3, math.ceil(math.log2(max(known) / unit)) + 1)
    stride = math.ceil((high - low + 1) / _MOST)
    powers = [k for k in range(-((-low // stride + 1) * stride), high + stride, stride) if low <= k <= high]
    return [unit * 2.0**k for k in powers if unit * 2.0**k >= 1] or [unit]


def _snr(batch: float, scale: NoiseScale) -> tuple[float, float, float]:
    """√(B/B_noise) with limits; the upper is infinite without a lower limit of the noise scale."""
    found = [math.sqrt(batch / value) if not value <= 0 else math.inf for value in (scale.estimate, scale.upper)]
    return found[0], found[1], math.sqrt(batch / scale.lower) if scale.lower > 0 else math.inf


def _row(batch: float, scale: NoiseScale, share: float) -> dict[str, Any]:
    """Efficiency and position on the frontier."""

    def of(noise: float) -> float:
        return math.nan if math.isnan(noise) else 1 / (1 + batch / noise) if noise > 0 else 0.0

    low, found, high = (of(noise) for noise in (scale.lower, scale.estimate, scale.upper))
    low, high = (math.nan if scale.lower == 0 else low), (math.nan if math.isinf(scale.upper) else high)
    row: dict[str, Any] = {"efficiency": found, "efficiency_lower": low, "efficiency_upper": high}
    for side, e in (("", found), ("_lower", low), ("_upper", high)):
        row[f"steps_factor{side}"] = 1 / (1 - e) if e < 1 else math.nan
    for side, e in (("", found), ("_lower", high), ("_upper", low)):
        row[f"samples_factor{side}"] = 1 / e
    row["sensible"] = "yes" if low >= share else "no" if high < share else "cannot tell"
    return row


def _run(batch: float, steps: int, given: float, scale: NoiseScale) -> dict[str, Any]:
    """Steps and samples of a run at another batch size to the loss that the present run reaches."""

    def factors(noise: float) -> tuple[float, float]:
        if not 0 < noise < math.inf:
            return math.nan, math.nan
        return (1 + noise / batch) / (1 + noise / given), (1 + batch / noise) / (1 + given / noise)

    row: dict[str, Any] = {}
    found, ends = factors(scale.estimate), [factors(noise) for noise in (scale.lower, scale.upper)]
    for i, (name, unit) in enumerate((("steps", steps), ("samples", steps * given))):
        limits = sorted(end[i] for end in ends) if not any(math.isnan(e[i]) for e in ends) else [math.nan] * 2
        row |= {name: found[i] * unit, f"{name}_lower": limits[0] * unit, f"{name}_upper": limits[1] * unit}
    return row


def _rates(
    ratio: float,
    numbers: Hyperparameters,
    named: bool,
    snr: tuple[float, float, float],
    scale: NoiseScale,
    given: float,
) -> tuple[dict[str, Any], str]:
    """Learning rates at a batch ratio, and the reason of the rule."""
    rule, momentum, why, used = recommended(
        ratio, snr[0], (_unknown(snr[1]), _unknown(snr[2])), numbers.family, damping(numbers)
    )
    delta = Fraction(repr(ratio))
    measured = None if used is None else Measured(used, used, used)
    new = scaled(numbers, chosen(numbers, delta, rule, momentum, measured))
    by = numbers.family in _SIGN_LIKE
    ends = [new.lr, new.lr]
    if by:  # the range of what the SNR may be, whatever rule is recommended
        wide = [Change(delta, RULES["signal-to-noise"], momentum, Measured(end, end, end)) for end in snr[1:]]
        ends = sorted([new.lr, *(scaled(numbers, change).lr for change in wide)])
    per = new.written_lr / new.lr
    row: dict[str, Any] = {"lr": new.written_lr, "lr_lower": ends[0] * per, "lr_upper": ends[-1] * per}
    row |= {"lr_sqrt": numbers.lr * math.sqrt(ratio) * per, "lr_linear": numbers.lr * ratio * per}
    row["lr_surge"] = numbers.lr * per * _surge(ratio, given, scale.estimate) if by else math.nan
    row |= {"rule": rule, "momentum": momentum}
    if not named:
        row |= {**new.memories, "eps": new.eps, "weight_decay": new.weight_decay}
    return row, why if ratio != 1 else ""


def _surge(ratio: float, batch: float, peak: float) -> float:
    """η(δB)/η(B) for η ∝ 1/(√(B/B_noise) + √(B_noise/B))."""

    def inverse(size: float) -> float:
        return math.sqrt(size / peak) + math.sqrt(peak / size)

    return math.nan if math.isnan(peak) else inverse(batch) / inverse(batch * ratio)


def _notes(scale: NoiseScale, given: float | None, family: str, why: list[str], named: bool) -> list[str]:
    from sdelens.scaling._advice_text import notes

    return notes(scale, given, family, why, named)


def _unknown(limit: float) -> float:
    """A limit that says nothing, as NaN."""
    return limit if 0 < limit < math.inf else math.nan


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
