"""The result of a weak-order study: its table, fitted slopes and figure."""

import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from sdelens.core.files import atomic_path
from sdelens.core.limits import OF_FEW
from sdelens.core.names import noise_label, optimizer_label, problem_label
from sdelens.core.numerals import MISSING, between
from sdelens.results import latex
from sdelens.results.printable import Parts, Plotted, Table

if TYPE_CHECKING:
    import pandas as pd

    from sdelens.results.figures import Sheet

__all__ = ["COARSE", "RESOLVED", "WeakOrder"]

RESOLVED, COARSE = "resolved", "Δt = η"
"""The two ways in which an SDE is integrated."""
_TOTAL = "all"
_NARROW, _SURE = 0.15, 3.0
"""Half the width of the limits of a slope that tell orders apart, and standard errors that make an error certain."""


class WeakOrder(Plotted):
    """The errors that `weak_order` measured.

    Attributes:
        table: a data frame with one row per model, scheme (``"resolved"`` or ``"Δt = η"``), lr, time and test function:
            ``expected`` is E u(xₖ) of the optimizer, ``error`` is E u(xₖ) − E u(X), ``sem`` is its standard error,
            ``unresolved`` is the estimated remaining error of the integration of the SDE, ``size`` is the largest |E u|
            of the function, including the start, by which errors are divided; ``substeps`` and ``method`` follow.
        info: description of the run.
        confidence: level of the limits of the slopes.
    """

    def __init__(self, table: "pd.DataFrame", info: dict[str, Any], confidence: float = OF_FEW) -> None:
        self.table, self.info, self.confidence = table, info, confidence

    @property
    def slope(self) -> float:
        """Fitted order of the first model with the resolved scheme, over all test functions and times."""
        model = str(self.table.model.iloc[0])
        slopes: Any = self.slopes()
        return float(slopes.loc[(model, RESOLVED, _TOTAL), "slope"])

    def errors(self) -> "pd.DataFrame":
        r"""Size of the error per model, scheme, test function and lr.

        It is the root mean square over the times of error/|u|, minus the contribution of Monte-Carlo noise, where |u|
        is the largest |E u(xₖ)| of that function, including the start; the function ``"all"`` is the root mean square
        over all functions. ``sem`` bounds its standard error for any correlation of the terms; ``unresolved`` is the
        estimated remaining error of the SDE's integration, also as a root mean square.
        """
        import pandas as pd

        rows = []
        keys = ["model", "scheme", "lr"]
        for (model, scheme, lr), part in self.table.groupby(keys, sort=False):
            for name in [_TOTAL, *part.function.unique()]:
                own = part if name == _TOTAL else part[part.function == name]
                relative, sem = own.error / own["size"], own["sem"] / own["size"]
                square = float(np.mean(relative**2 - sem**2))
                value = math.sqrt(max(square, 0.0))
                # The standard error if all terms were fully correlated, because they share paths and functions.
                spread = (
                    float(np.mean(np.abs(relative) * sem)) / value if value > 0 else float(np.sqrt(np.mean(sem**2)))
                )
                rows.append(
                    {
                        "model": model,
                        "scheme": scheme,
                        "function": name,
                        "lr": lr,
                        "error": value,
                        "sem": spread,
                        "unresolved": float(np.sqrt(np.mean((own.unresolved / own["size"]) ** 2))),
                    }
                )
        return pd.DataFrame(rows)

    def slopes(self) -> "pd.DataFrame":
        r"""Slope of log error against log η per model, scheme and test function, by weighted least squares.

        ``lower`` and ``upper`` are two-sided limits at level `confidence` by Student's t, whose degrees of freedom are
        the number of η minus two, from the larger of the residual scatter and the Monte-Carlo error: a curved or noisy
        curve has a wide interval. ``smallest`` is the error at the smallest η: the plateau of a model that does not
        converge. Slopes are NaN if an error cannot be distinguished from 0, that is, if it is below
        ``info["rounding"]`` or below twice its standard error combined with the remaining error of the integration.
        """
        import pandas as pd
        from scipy import stats

        rows = {}
        for (model, scheme, name), part in self.errors().groupby(["model", "scheme", "function"], sort=False):
            x, count = np.log(part.lr.to_numpy()), len(part)
            error, sem = part.error.to_numpy(), part["sem"].to_numpy()
            row = {"slope": np.nan, "lower": np.nan, "upper": np.nan, "smallest": error[-1], "sem": sem[-1]}
            doubt = np.hypot(sem, part.unresolved.to_numpy())
            noise = np.divide(doubt, error, out=np.full(count, np.inf), where=error > 0) ** 2
            if (error > np.maximum(2 * doubt, self.info["rounding"])).all():
                weights = 1 / np.maximum(noise, max(noise.mean(), 1e-12))
                centred = x - np.average(x, weights=weights)
                y = np.log(error)
                slope = np.sum(weights * centred * y) / np.sum(weights * centred**2)
                fit = np.average(y, weights=weights) + slope * centred
                scatter = np.sum(weights * (y - fit) ** 2) / max(count - 2, 1)
                variance = max(scatter, 1.0 if doubt.any() else 0.0) / np.sum(weights * centred**2)
                half = stats.t.ppf(0.5 + self.confidence / 2, max(count - 2, 1)) * math.sqrt(variance)
                row |= {"slope": slope, "lower": slope - half, "upper": slope + half}
            rows[(model, scheme, name)] = row
        frame = pd.DataFrame.from_dict(rows, orient="index")
        frame.index = pd.MultiIndex.from_tuples(frame.index, names=["model", "scheme", "function"])
        return frame

    def _draw(self, sheet: "Sheet") -> None:
        """Errors against η with reference slopes: resolved on the left, Δt = η on the right."""
        from sdelens.results.plotting import plot_orders

        plot_orders(sheet, self.errors(), self.slopes(), self._title(), self.info["rounding"])

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write `table` as CSV; the file is written atomically."""
        with atomic_path(path) as temporary:
            self.table.to_csv(temporary, index=False)

    def _parts(self) -> Parts:
        """Slopes and errors over all test functions."""
        errors = self.errors()
        slopes: Any = self.slopes()
        lrs = sorted(self.table.lr.unique(), reverse=True)
        head = ["model", "scheme", "slope", f"{100 * self.confidence:g} % limits", *(f"η = {lr:g}" for lr in lrs)]
        rows = []
        for (model, scheme, name), row in slopes.iterrows():
            if name != _TOTAL:
                continue
            part = errors[(errors.model == model) & (errors.scheme == scheme) & (errors.function == name)]
            known = np.isfinite(row.slope)
            rows.append(
                [
                    model,
                    scheme,
                    f"{row.slope:.3f}" if known else "not resolved",
                    between(row.lower, row.upper, _decimal) if known else MISSING,
                    *(f"{e:.2e}" + f" ± {s:.0e}" * (s > 0) for e, s in zip(part.error, part["sem"], strict=True)),
                ]
            )
        return [self._title(), Table(head, rows, keys=2), *self.notes()]

    def _tables(self) -> list[Table]:
        """Slopes with limits, and the errors with their standard errors, over all test functions."""
        errors = self.errors()
        slopes: Any = self.slopes()
        lrs = sorted(self.table.lr.unique(), reverse=True)
        rows: list[list[str]] = []
        for (model, scheme, name), row in slopes.iterrows():
            if name == _TOTAL:
                part = errors[(errors.model == model) & (errors.scheme == scheme) & (errors.function == name)]
                known = np.isfinite(row.slope)
                slope = latex.limited([row.slope, row.lower, row.upper]) if known else "not resolved"
                each = [latex.uncertain(*pair) for pair in zip(part.error, part["sem"], strict=True)]
                rows.append([model, scheme, slope, *each])
        head = ["model", "scheme", f"slope [{100 * self.confidence:g} %]", *(f"error at η = {lr:g}" for lr in lrs)]
        return [Table(head, rows)]

    def notes(self) -> list[str]:
        """Notes on the meaning and the limitations of the numbers."""
        used = self.table[self.table.scheme == RESOLVED]
        notes = [
            "error: root mean square of E u(x) − E u(X) over times and test functions u, relative to the largest |E "
            f"u|; test functions: {', '.join(self.table.function.unique())}.",
        ]
        left = float((used.unresolved / used["size"]).max())
        if self.info["method"] == "kernel":
            notes.append(
                "Computed by transition kernels: there is no Monte-Carlo error, and the estimated numerical error "
                f"is at most {left:.1e}."
            )
        else:
            notes.append(
                f"{self.info['paths']} paths; substeps {used.substeps.min()} to {used.substeps.max()}, extrapolated; "
                f"the estimated remaining error of the integrator is at most {left:.1e}."
            )
            sampled = [label for label, m in self.info["models"].items() if m.get("coefficients") == "sampled"]
            if sampled:
                notes.append(
                    f"{', '.join(sampled)}: sampled coefficients have no Brownian path in common with the optimizer, "
                    "so the standard errors are those of independent paths."
                )
            notes += self._needed()
            if self.slopes().slope.isna().any():
                notes.append(
                    "'not resolved': the error is below twice its standard error. Four times as many paths halve "
                    "the standard error."
                )
        if self.info["optimizer"]["name"] in ("sgd", "signsgd"):
            notes.append(
                "At Δt = η the scheme for SGD is SGD itself (under normal noise), and the scheme for SignSGD has "
                "exactly its first two moments: agreement there says nothing about the SDE."
            )
        if self.info["optimizer"].get("v0") == "zero":
            notes.append(
                "Accumulators start at 0, where the coefficients are not bounded, so the order is less than 1. "
                "Start from the second moment (v0='second-moment') to measure the order of the SDE itself."
            )
        return notes

    def _needed(self) -> list[str]:
        """Numbers of paths with which wide limits of resolved SDEs would be narrow, if their order is 1."""
        from scipy import stats

        notes, errors = [], self.errors()
        chosen = errors[(errors.scheme == RESOLVED) & (errors.function == _TOTAL)]
        for model, part in chosen.groupby("model", sort=False):
            lr, error, sem = (part[name].to_numpy() for name in ("lr", "error", "sem"))
            if not (sem > 0).all():
                continue
            size = np.sum(error * lr / sem**2) / np.sum(lr**2 / sem**2)  # error = size η, by weighted least squares
            if size * math.sqrt(np.sum(lr**2 / sem**2)) < _SURE:
                notes.append(f"{model}: no error is resolved, so the paths that it needs cannot be estimated.")
                continue
            x, weights = np.log(lr), (size * lr / sem) ** 2
            spread = np.sum(weights * (x - np.average(x, weights=weights)) ** 2)
            half = stats.t.ppf(0.5 + self.confidence / 2, max(len(part) - 2, 1)) / math.sqrt(spread)
            if half > _NARROW:
                paths = self.info["paths"] * (half / _NARROW) ** 2
                notes.append(
                    f"{model}: with an order of 1, limits of ± {_NARROW:g} would need about {paths:.0e} paths with "
                    f"these {len(part)} learning rates; more or more different learning rates need fewer."
                )
        return notes

    def _title(self) -> str:
        info = self.info
        return (
            f"{optimizer_label(info['optimizer'])} on {problem_label(info['problem'])}, d = {info['dim']}, "
            f"{noise_label(info['noise'])} noise, horizon {info['horizon']:g}: weak order"
        )


def _decimal(value: float, digits: int = 2) -> str:
    """Format with so many decimals, with a Unicode minus sign and no minus sign before 0."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "\N{MINUS SIGN}")
