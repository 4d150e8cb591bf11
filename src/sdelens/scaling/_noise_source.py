"""A noise scale, or a log of noise scales, from what a user has: a result, numbers, a data frame or a CSV file."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from sdelens.core import check
from sdelens.core.csv_files import as_frame, read_text

__all__ = ["NoiseLog", "NoiseScale", "noise_log", "noise_scale_of"]

_RECENT: Final = 5
"""The last fifth of a log is what it says of the present."""
_ROWS: Final = 5
"""Rows of a log whose median is taken before a fit."""
_FILE: Final = "a CSV file with the columns step or samples, and noise_scale"
_AT: Final = {"samples": ("samples",), "steps": ("step", "steps", "global_step")}


@dataclass(frozen=True)
class NoiseScale:
    """A gradient noise scale tr Σ/‖∇f‖² in samples.

    Attributes:
        estimate: NaN if it is not resolved.
        lower: lower limit, 0 if there is none.
        upper: upper limit, infinite if there is none.
        source: where it comes from, in words.
        batch_size: batch size of the run, None if it is not known.
        is_exact: whether no limits were given, so that both are the estimate.
    """

    estimate: float
    lower: float
    upper: float
    source: str
    batch_size: float | None = None
    is_exact: bool = False


@dataclass(frozen=True)
class NoiseLog:
    """Noise scales along a run.

    Attributes:
        unit: ``"samples"`` or ``"steps"``, that of `at`.
        at: where each was measured, ascending.
        estimate: NaN where it is not resolved.
        lower: lower limits, NaN where there is none.
        upper: upper limits, NaN where there is none.
    """

    unit: str
    at: np.ndarray
    estimate: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    def recent(self) -> NoiseScale:
        """Medians over the last fifth of the log."""
        n = max(1, len(self.at) // _RECENT)
        late = [values[-n:] for values in (self.estimate, self.lower, self.upper)]
        estimate, lower, upper = (float(np.nanmedian(v)) if np.isfinite(v).any() else math.nan for v in late)
        if np.isnan(late[0]).sum() * 2 > n:  # most are not resolved
            estimate = math.nan
        source = f"the last {n} of {len(self.at)} rows of a log (medians)"
        if not np.isfinite(self.lower).any() and not np.isfinite(self.upper).any():
            return NoiseScale(estimate, estimate, estimate, f"{source}, which has no limits", is_exact=True)
        return _scale((estimate, lower, upper), source)

    def rising(self) -> np.ndarray:
        """The closest noise scales that never decrease, from lower limits if there are some, else from estimates.

        They are the isotonic least-squares fit to the logarithms of running medians over 5 rows, so that a single large
        value does not raise all that follow.
        """
        import pandas as pd
        from scipy.optimize import isotonic_regression

        values = self._cautious()
        values = pd.Series(values).rolling(_ROWS, center=True, min_periods=1).median().to_numpy()
        known = np.isfinite(values) & (values > 0)
        if not known.any():
            raise ValueError(
                "noise_scale: no row of the log has a noise scale that is finite and greater than 0; measure it over "
                "more micro-batches."
            )
        fitted = np.exp(isotonic_regression(np.log(values[known])).x)
        place = np.maximum.accumulate(np.where(known, np.arange(len(values)), -1))
        rank = np.cumsum(known) - 1
        return np.where(place >= 0, fitted[np.maximum(rank, 0)], 0.0)

    def _cautious(self) -> np.ndarray:
        has = np.isfinite(self.lower)
        return np.where(has, self.lower, np.nan) if has.any() else self.estimate


def noise_scale_of(given: Any) -> NoiseScale:
    """The noise scale in a `GradientNoise`, a `Diagnosis`, a number, (estimate, lower, upper), or the end of a log.

    Raises:
        ValueError, TypeError: if it is none of these; the message names it.
    """
    if hasattr(given, "noise_scale_limits"):
        value, limits, batch_size = given.noise_scale, given.noise_scale_limits, getattr(given, "batch_size", None)
        if callable(value):  # gradients, whose batches need not be those of optimizer steps
            value, limits, batch_size = value(), limits(), getattr(given, "step_batch_size", None)
        return _scale((value, *limits), f"a {type(given).__name__}", batch_size)
    if hasattr(given, "noise_scale") and not _is_table(given):
        raise TypeError(
            f"noise: got a {type(given).__name__} without limits of its noise scale; give its numbers, (estimate, "
            "lower limit, upper limit)."
        )
    if isinstance(given, tuple | list):
        if len(given) != 3:
            raise ValueError(f"noise: got {len(given)} numbers; give one, or (estimate, lower limit, upper limit).")
        return _scale([_float(part) for part in given], "the numbers that were given")
    if isinstance(given, str | os.PathLike) or _is_table(given):
        return noise_log(given, "noise").recent()
    value = check.positive("noise", given)
    return NoiseScale(value, value, value, "the number that was given, without limits", is_exact=True)


def noise_log(given: Any, name: str = "noise_scale") -> NoiseLog:
    """A log with the columns step or samples, noise_scale and, if it has them, noise_scale_lower and noise_scale_upper.

    A framework's prefix is ignored: ``train/noise_scale`` is read as ``noise_scale``.

    Args:
        given: path of a CSV file, a data frame, or a mapping from columns to values.
        name: name of the argument, for messages.

    Raises:
        ValueError, TypeError: if columns are missing or values cannot be read; the message names them.
    """
    import pandas as pd

    if isinstance(given, str | os.PathLike):
        path = Path(given)
        given = as_frame(name, path, read_text(name, path, _FILE))
    elif isinstance(given, Mapping):
        given = pd.DataFrame(dict(given))
    if not isinstance(given, pd.DataFrame):
        raise TypeError(f"{name}: got {type(given).__name__}; give a data frame, or the path of a CSV file.")
    frame = {found: given[column] for found, column in _columns(given, name).items()}
    unit = "samples" if "samples" in frame else "steps"
    try:
        numbers = {key: pd.to_numeric(values).to_numpy(dtype=float) for key, values in frame.items()}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: a column of the log has values that are not numbers ({error}).") from error
    written = np.isfinite(numbers[unit]) & ~np.isnan(
        np.fmax(numbers["noise_scale"], numbers.get("noise_scale_lower", numbers["noise_scale"]))
    )  # loggers write other quantities into rows of their own
    numbers = {key: values[written] for key, values in numbers.items()}
    at = numbers[unit]
    if not len(at):
        raise ValueError(f"{name}: the log has no row with {unit} and a noise scale.")
    if (at < 0).any() or (np.diff(at) <= 0).any():
        raise ValueError(f"{name}: the {unit} of the log must be 0 or greater and increase from row to row.")
    empty = np.full(len(at), np.nan)
    limits = [_finite(numbers.get(f"noise_scale_{side}", empty)) for side in ("lower", "upper")]
    return NoiseLog(unit, at, _finite(numbers["noise_scale"]), *limits)


def _columns(frame: Any, name: str) -> dict[str, Any]:
    """The frame's column for each of ours that it has."""
    found: dict[str, Any] = {}
    wanted = {"noise_scale": ("noise_scale",), **_AT}
    wanted |= {f"noise_scale_{side}": (f"noise_scale_{side}",) for side in ("lower", "upper")}
    for ours, names in wanted.items():
        own = [column for column in frame.columns if str(column).replace(".", "/").rpartition("/")[2] in names]
        exact = [column for column in own if str(column) in names]
        own = exact or own
        if len(own) > 1 and ours == "steps":
            own = own[:1]
        if len(own) > 1:
            raise ValueError(f"{name}: the log has several columns for {ours}: {', '.join(map(str, own))}; keep one.")
        if own:
            found[ours] = own[0]
    if "noise_scale" not in found or not {"samples", "steps"} & found.keys():
        raise ValueError(
            f"{name}: the log has the columns {', '.join(map(str, frame.columns))}; it needs noise_scale, and "
            "samples or step."
        )
    return found


def _finite(values: np.ndarray) -> np.ndarray:
    """Values without those that mean unknown: infinite, and 0 or less."""
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def _scale(numbers: Sequence[float], source: str, batch_size: float | None = None) -> NoiseScale:
    estimate, lower, upper = map(float, numbers)
    if min(estimate, lower, upper) < 0:
        raise ValueError(f"noise: got {(estimate, lower, upper)}; a noise scale is not negative.")
    lower = lower if math.isfinite(lower) else 0.0
    upper = math.inf if math.isnan(upper) else upper
    estimate = estimate if math.isfinite(estimate) and estimate > 0 else math.nan
    if lower > upper or not (math.isnan(estimate) or lower <= estimate <= upper):
        raise ValueError(f"noise: got {(estimate, lower, upper)}; the estimate must lie between its limits.")
    return NoiseScale(estimate, lower, upper, source, batch_size)


def _float(value: Any) -> float:
    return float(value) if isinstance(value, float) and not math.isfinite(value) else check.nonnegative("noise", value)


def _is_table(given: Any) -> bool:
    return isinstance(given, Mapping) or (hasattr(given, "columns") and hasattr(given, "to_dict"))
