"""The result of `verify`: losses at two batch sizes on a common clock of samples."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sdelens.core.limits import CONFIDENCE
from sdelens.core.names import noise_label, optimizer_label, problem_label
from sdelens.core.numerals import MISSING, percent, with_limits
from sdelens.optimizers import Optimizer
from sdelens.results.printable import Parts, Plotted, Table
from sdelens.results.quantities import columns
from sdelens.results.result import Result

if TYPE_CHECKING:
    import pandas as pd

    from sdelens.results.figures import Sheet

__all__ = ["SOURCE", "Verification"]

SOURCE = "batch × 1"
"""Label of the run at the batch size that was given."""


@dataclass(frozen=True, repr=False)
class Verification(Plotted):
    """Comparison of two batch sizes.

    Attributes:
        result: the losses on a common clock, the steps of the run at the given batch size; the models are
            ``"batch × 1"`` and one per rescaled optimizer.
        optimizers: the optimizer of each model.
        batch_ratio: δ, of a ramp the largest.
        snr: √(‖∇f‖²/tr Σ) at the start for the larger of both batches; NaN if Σ is infinite or the start is random.
        expected: path-wise error of the square-root rule expected from signal and noise at the start, computed as in
            `diagnose` (`sdelens.diagnosis`); None for optimizers other than RMSprop and Adam, and if `snr` is NaN.
        stiffness: for each model, its largest curvature at the start over its stability limit, λη(1 − β₁)/(2 + 2β₁),
            with λ for RMSprop and Adam that of the preconditioned Hessian D H D, where D = v^(−1/4) and v = E g² at its
            batch (arXiv 2207.14484); NaN for sign methods and Adagrad, and for ramps. If it is close to 1, steps are
            not small.
        other_steps: steps of the runs at the other batch size.
    """

    result: Result
    optimizers: dict[str, Optimizer]
    batch_ratio: float
    snr: float
    expected: float | None
    stiffness: dict[str, float]
    other_steps: int

    def agreement(self, confidence: float = CONFIDENCE) -> "pd.DataFrame":
        """How well every rescaled run agrees with the original run, at equal numbers of samples.

        Columns:

        - ``path_error, path_error_lower, path_error_upper``: relative L2 distance of the mean-loss curves, as in
          `Result.errors`, with one-sided limits;
        - ``asymptotic_ratio, asymptotic_ratio_lower, asymptotic_ratio_upper``: ratio of mean loss −
          infimum over the last third; if the infimum is unknown, 1 + the difference relative to the height of the
          whole curve;
        - ``spread, spread_lower, spread_upper``: standard deviation over paths, relative, averaged over time.

        Args:
            confidence: one-sided confidence of each limit, in (0.5, 1).

        Raises:
            ValueError: if `confidence` is not in (0.5, 1).
        """
        errors = self.result.errors(SOURCE, confidence)
        frame = errors[[*columns("error")]].add_prefix("path_")
        for ours, theirs in zip(columns("asymptotic_ratio"), columns("late_shift"), strict=True):
            frame[ours] = 1 + errors[theirs]
        return frame.join(errors[[*columns("spread"), "diverged"]])

    def _draw(self, sheet: "Sheet") -> None:
        """Mean losses against samples, and their relative difference below."""
        self.result._draw(sheet, SOURCE)

    def _parts(self) -> Parts:
        info = self.result.info
        title = (
            f"{optimizer_label(info['optimizer'])} on {problem_label(info['problem'])}, {noise_label(info['noise'])} "
            f"noise: batch × 1 against × {self.batch_ratio:g}, {info['run']['steps']} and {self.other_steps} steps, "
            f"{info['run']['paths']} paths"
        )
        final, rows = self.result.dataset.isel(step=-1), []
        frame: dict[Any, Any] = self.agreement().to_dict("index")
        for model in self.result.models:
            here = final.sel(model=model)
            row = frame.get(model)
            cells = [
                model,
                _numbers(self.optimizers[model]),
                _short(self.stiffness[model]),
                f"{float(here.loss_mean):.4g} ± {float(here.loss_sem):.1g}",
            ]
            if row is None:
                rows.append([*cells, "-", "-", "-"])
                continue
            path = _range(row, "path_error", percent)
            late = _range(row, "asymptotic_ratio", "{:.3f}".format)
            rows.append([*cells, path, late, _short(row["spread"])])
        head = ["run", "optimizer", "stiffness", "final loss ± sem", "path-wise error", "asymptotic ratio", "spread"]
        floor = (
            ""
            if np.isfinite(float(self.result.dataset.attrs["infimum"]))
            else " (relative to the height of the curve, because the infimum is unknown)"
        )
        note = (
            "Runs are compared at equal numbers of samples (training examples). path-wise error: relative L2 "
            "distance of the mean losses, with Monte-Carlo noise removed; asymptotic ratio: ratio of the mean "
            f"losses over the last third{floor}; both with one-sided 99 % limits; spread: standard deviation over "
            "paths, relative to the first run; stiffness: largest curvature at the start, divided by the curvature "
            "up to which steps are stable."
        )
        said = [f"SNR at the start and the larger batch size: {self.snr:.2g}."] if np.isfinite(self.snr) else []
        if self.expected is not None:
            said.append(
                "From there to the stationary distribution, the expected path-wise error of the square-root rule is "
                f"about {percent(self.expected)}, without the error from larger steps."
            )
        return [title, Table(head, rows), note, *([" ".join(said)] if said else [])]


def _numbers(optimizer: Optimizer) -> str:
    said = {k: v for k, v in optimizer.describe().items() if isinstance(v, float) and (k == "lr" or v)}
    return ", ".join(f"{k} {v:.4g}" for k, v in said.items() if k != "eps")


def _short(value: float) -> str:
    return f"{value:.2g}" if value < 0.995 else f"{value:.3g}" if np.isfinite(value) else "-"


def _range(row: dict[Any, Any], name: str, written: Any) -> str:
    found, low, high = (row[column] for column in columns(name))
    if not np.isfinite(found):
        return "diverged" if row["diverged"] else MISSING
    return with_limits(found, low, high, written)
