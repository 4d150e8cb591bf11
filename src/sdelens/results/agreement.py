"""How well a model agrees with the optimizer, in words that its confidence limits allow."""

import math
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any, Final, Literal, NamedTuple

from sdelens.core.numerals import number, percent

__all__ = ["CLOSE", "LEGEND", "Agreement", "agreement_of", "summary"]

CLOSE: Final = 0.05
"""A model is called close to the optimizer if the upper limit of the error of its mean-loss curve is at most this."""
LEGEND: Final = (
    f"✓ close: the upper limit of the error is at most {percent(CLOSE)}; ✗ off: the lower limit is larger; "
    "? not resolved: at this number of paths it may be either. The error is the relative L2 distance of the mean-loss "
    "curve from the optimizer's, with 99 % limits on each side, for each comparison alone; in what is said, limits are "
    "rounded outwards."
)

Kind = Literal["good", "bad", "open"]


class Agreement(NamedTuple):
    """What the limits of the error of one model say.

    Attributes:
        kind: ``"good"`` if it is close to the optimizer, ``"bad"`` if it is not, ``"open"`` if that is not resolved.
        said: what may be said, to follow the name of the model: ``"within 0.4 % of the optimizer"``.
        brief: the same in few words: ``"within 0.4 %"``.
        lower: lower limit of the error.
        upper: upper limit of the error.
    """

    kind: Kind
    said: str
    brief: str
    lower: float = math.nan
    upper: float = math.nan


def agreement_of(row: Mapping[Any, Any], reference: str = "the optimizer") -> Agreement:
    """The agreement of a model whose row of `Result.errors` is given.

    Limits are rounded outwards, so that what is said is never more than they allow. A model of which paths diverged is
    never called close, because the error is that of the other paths.

    Args:
        row: the columns ``error``, ``error_lower``, ``error_upper`` and ``diverged``.
        reference: what the model is compared with, in words.
    """
    error, lower, upper = (float(row[name]) for name in ("error", "error_lower", "error_upper"))
    lost = int(row["diverged"])
    if math.isnan(error):
        diverged = ": paths diverged" if lost else ""
        return Agreement("open", f"cannot be compared{diverged}", f"not comparable{diverged}")
    found = _of_limits(error, lower, upper, reference)
    if not lost:
        return found
    left = f"; {lost} diverged {'path is' if lost == 1 else 'paths are'} left out"
    kind: Kind = "open" if found.kind == "good" else found.kind
    return found._replace(kind=kind, said=found.said + left, brief=f"{found.brief}; {lost} diverged")


def _of_limits(error: float, lower: float, upper: float, reference: str) -> Agreement:
    """The agreement that an error with these limits shows."""
    if math.isnan(upper):
        shown = f"differs by {percent(error)}" if error else "shows no difference"
        return Agreement("open", f"{shown}, without limits", f"{shown}, no limits")
    most, limits = f"within {_above(upper)}", (lower, upper)
    if upper <= CLOSE:
        said, brief = f"{most} of {reference}", most
        if upper == 0:
            said, brief = f"equal to {reference}", "equal"
        elif lower == 0:
            said = f"indistinguishable at this number of paths: error < {_above(upper)}"
            brief = f"{most}, indistinguishable"
        return Agreement("good", said, brief, *limits)
    measured = f"differs by {percent(error)} ({_below(lower)} – {_above(upper)})"
    if lower > CLOSE:
        return Agreement("bad", measured, f"off by {percent(error)}", *limits)
    said = measured if lower > 0 else f"not resolved at this number of paths: error < {_above(upper)}"
    return Agreement("open", said, f"not resolved, < {_above(upper)}", *limits)


def summary(
    model: str, found: Sequence[Agreement], reference: str = "the optimizer", cases: str = "comparisons"
) -> str:
    """One sentence about a model in several cases."""
    count = len(found)
    if count == 1:
        said = found[0].said
        verb = "" if said.startswith(("differs", "cannot", "shows")) else "is "
        return f"The {model} {verb}{said}."
    every = f"in {'both' if count == 2 else f'all {count}'} {cases}"
    kinds = {kind: [one for one in found if one.kind == kind] for kind in ("good", "bad", "open")}
    good, bad = kinds["good"], kinds["bad"]
    unresolved = [one for one in kinds["open"] if not math.isnan(one.upper)]
    unknown = len(kinds["open"]) - len(unresolved)
    if len(good) == count:
        return f"The {model} is within {_above(max(one.upper for one in good))} of {reference} {every}."
    if len(bad) == count:
        return f"The {model} differs from {reference} by at least {_below(min(one.lower for one in bad))} {every}."
    parts = []
    if good:
        parts.append(f"within {_above(max(one.upper for one in good))} of {reference} in {len(good)}")
    if bad:
        parts.append(f"off by at least {_below(min(one.lower for one in bad))} in {len(bad)}")
    if unresolved:
        parts.append(f"not resolved in {len(unresolved)}")
    if unknown:
        parts.append(f"without limits in {unknown}")
    said = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"The {model} is {said} of {count} {cases}."


def _above(share: float) -> str:
    """A share in percent, rounded up."""
    return _rounded(share, ROUND_CEILING)


def _below(share: float) -> str:
    """A share in percent, rounded down."""
    return _rounded(share, ROUND_FLOOR)


def _rounded(share: float, rounding: str) -> str:
    return f"{number(float(Context(prec=2, rounding=rounding).create_decimal(Decimal(repr(100 * share)))))} %"
