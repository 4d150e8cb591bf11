"""The outcome of a weak-order study: its table, fitted slopes and figure."""

import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from sdelens.core.files import atomic_path, save_figure, text_table
from sdelens.core.names import noise_label, optimizer_label, problem_label

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["COARSE", "RESOLVED", "WeakOrder"]

RESOLVED, COARSE = "resolved", "Δt = η"
"""The two ways in which an SDE is integrated."""
_TOTAL = "all"


class WeakOrder:
    """What `weak_order` measured.

    Attributes:
        table: a data frame with one row per model, scheme (``"resolved"`` or ``"Δt = η"``), lr, time and test function:
            ``expected`` is E u(xₖ) of the optimizer, ``error`` E u(xₖ) − E u(X), ``sem`` its standard error,
            ``unresolved`` the error that the integration of the SDE may have left, estimated; ``size`` the largest
            |E u| of the function, start included, that errors are relative to; ``substeps`` and ``method``.
        info: what was run.
    """

    def __init__(self, table: "pd.DataFrame", info: dict[str, Any], confidence: float = 0.95) -> None:
        self.table, self.info, self.confidence = table, info, confidence

    @property
    def slope(self) -> float:
        """Fitted order of the first SDE, resolved, over all test functions and times."""
        model = str(self.table.model.iloc[0])
        slopes: Any = self.slopes()
        return float(slopes.loc[(model, RESOLVED, _TOTAL), "slope"])

    def errors(self) -> "pd.DataFrame":
        r"""Size of the error per model, scheme, test function and lr.

        It is the root mean square over the times of error/|u|, with |u| the largest |E u(xₖ)| of that function, start
        included, less what noise adds; the function ``"all"`` is the root mean square over them all. ``sem`` bounds
        its standard error, however the terms are correlated; ``unresolved`` is what the SDE's integration may have
        left, estimated, as a root mean square too.
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
                # What all terms' errors add, were they fully correlated: paths and functions are common to them.
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

        ``lower`` and ``upper`` are two-sided limits at `confidence` by Student's t with two degrees of freedom less
        than there are η, from the larger of the residual scatter and the Monte-Carlo error: a curve that is bent, or
        noisy, has a wide interval. ``smallest`` is the error at the least η: the plateau of a model that does not
        converge. Slopes are NaN where an error is not told from 0: below twice its standard error, twice what its
        integration may have left, or ``info["rounding"]``.
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

    def plot(self, path: str | os.PathLike[str] | None = None) -> "Figure":
        """Errors against η with reference slopes, resolved on the left and at Δt = η on the right; saved if asked.

        Raises:
            ValueError: if the ending of `path` is not one matplotlib writes.
        """
        from sdelens.results.plotting import plot_orders

        figure = plot_orders(self.errors(), self.slopes(), self._title(), self.info["rounding"])
        if path is not None:
            save_figure(figure, path)
        return figure

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write `table` as CSV; the file appears whole or not at all."""
        with atomic_path(path) as temporary:
            self.table.to_csv(temporary, index=False)

    def __str__(self) -> str:
        """Slopes and errors over all test functions as plain text."""
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
                    f"{_two(row.lower)} – {_two(row.upper)}" if known else "-",
                    *(f"{e:.2e} ± {s:.0e}" for e, s in zip(part.error, part["sem"], strict=True)),
                ]
            )
        return "\n".join([self._title(), "", *text_table(head, rows), "", *self.notes()])

    __repr__ = __str__

    def notes(self) -> list[str]:
        """What the numbers mean, and what they do not."""
        used = self.table[self.table.scheme == RESOLVED]
        notes = [
            "error: root mean square over times and test functions of E u(x) - E u(X), relative to the largest |E u|; "
            f"functions: {', '.join(self.table.function.unique())}.",
        ]
        left = float((used.unresolved / used["size"]).max())
        if self.info["method"] == "kernel":
            notes.append(f"Transition kernels: no Monte-Carlo error; numerical error estimated at {left:.1e} or less.")
        else:
            notes.append(
                f"{self.info['paths']} paths; substeps {used.substeps.min()} to {used.substeps.max()}, "
                f"extrapolated, which leaves an estimated {left:.1e} or less of the integrator's error."
            )
            if self.slopes().slope.isna().any():
                notes.append("'not resolved': below twice its standard error. Four times the paths halve that.")
        if self.info["optimizer"]["name"] in ("sgd", "signsgd"):
            notes.append(
                "At Δt = η the scheme for SGD is SGD itself (under normal noise), and that for SignSGD has its first "
                "two moments exactly: agreement there says nothing of the SDE."
            )
        if self.info["optimizer"].get("v0") == "zero":
            notes.append(
                "Accumulators start at 0, where the coefficients are not bounded: the order is then less than 1. Start "
                "from the second moment (v0) to see the order itself."
            )
        return notes

    def _title(self) -> str:
        info = self.info
        return (
            f"{optimizer_label(info['optimizer'])} on {problem_label(info['problem'])}, d = {info['dim']}, "
            f"{noise_label(info['noise'])} noise, horizon {info['horizon']:g}: weak order"
        )


def _two(value: float) -> str:
    """Two decimals, with a true minus sign and no minus before 0."""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")
