"""A claim, the plan for running it, and its outcome."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from sdelens.results.quantities import QUANTITIES, columns
from sdelens.results.result import Result
from sdelens.results.sweep import Sweep, load
from sdelens.run import api
from sdelens.run.options import Execution
from sdelens.run.summary import GROUPS
from sdelens.studies._verdicts import Estimate, Item, at_least, at_most, joined, within

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PRESETS", "Animation", "Outcome", "Picture", "Plan", "Study"]

PRESETS = {
    "quick": "all claims in 15 minutes on two cores",
    "full": "a few hours on a few cores",
    "paper": "the paper's sizes, for a GPU",
}


@dataclass(frozen=True)
class Picture:
    """A figure of a claim: the function that draws it, its caption, and its alternative text."""

    name: str
    draw: Callable[[], "Figure"]
    caption: str
    alt: str


@dataclass(frozen=True)
class Animation:
    """An animation of a claim, which `write` writes as GIF to a path."""

    name: str
    write: Callable[[Path], None]
    caption: str
    alt: str


@dataclass(frozen=True)
class Outcome:
    """The outcome of a claim.

    Attributes:
        items: every number with its limits and its allowed range.
        settings: lines that say what was run.
        pictures: figures of the claim.
        animations: animations of the claim.
        remarks: reasons for failures, and other remarks for the reader.
    """

    items: Sequence[Item]
    settings: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    animations: Sequence[Animation] = ()
    remarks: Sequence[str] = ()

    @property
    def verdict(self) -> str:
        """``"holds"``, ``"fails"`` or ``"not resolved"``."""
        return joined(self.items)


@dataclass(frozen=True)
class Study:
    """One claim, and everything about it that is fixed before it is run.

    Attributes:
        name: name of the claim in the shell.
        statement: the claim, in a sentence or two.
        source: reference for the claim.
        criterion: which numbers decide, and by which threshold.
        items: largest number of deciding numbers, among which the rate of wrong verdicts is shared.
        sizes: sizes of the runs, by preset.
        run: function that runs the study.
        reasons: known reasons for expected failures of items, by label; shown if the items fail.
    """

    name: str
    statement: str
    source: str
    criterion: str
    items: int
    sizes: Mapping[str, Mapping[str, Any]]
    run: Callable[["Plan"], Outcome] = field(repr=False)
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """How a study is to be run: its sizes, seed, confidence, and where its runs are kept.

    Attributes:
        size: the sizes of the preset.
        seed: seed of all randomness.
        confidence: one-sided confidence of every limit of every item.
        folder: folder in which finished runs are kept, so that an interrupted study can resume; None: not kept.
        progress: as in `sdelens.compare`.
    """

    size: Mapping[str, Any]
    seed: int
    confidence: float
    folder: Path | None = None
    progress: bool | None = None
    _errors: dict[int, tuple[Result, Any]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def compare(
        self, name: str, problem: Any, noise: Any, optimizer: Any, models: Any = None, **options: Any
    ) -> Result:
        """Run `sdelens.compare`, or read the result kept under that name."""
        return self._kept(name, api.compare, problem, noise, optimizer, models, options)

    def sweep(self, name: str, problem: Any, noise: Any, optimizer: Any, models: Any = None, **options: Any) -> Sweep:
        """Run `sdelens.sweep`, or read the result kept under that name."""
        return self._kept(name, api.sweep, problem, noise, optimizer, models, options)

    def _kept(self, name: str, function: Callable[..., Any], *case: Any) -> Any:
        *subject, options = case
        options, execution = {"seed": self.seed} | options, Execution(progress=self.progress)
        if self.folder is None:
            return function(*subject, **options, execution=execution)
        path = self.folder / f"{name}.nc"
        if path.exists():
            try:
                return load(path)
            except (ValueError, OSError):
                path.unlink()  # the file is damaged, which our runs cannot cause
        kept = replace(execution, checkpoint=self.folder / f"{name}-checkpoint", resume=True)
        found = function(*subject, **options, execution=kept)
        found.save(path)
        return found

    @functools.cached_property
    def z(self) -> float:
        """Student's quantile for 64 groups at the confidence; slightly too large for errors from thousands of paths."""
        return float(stats.t.ppf(self.confidence, GROUPS - 1))

    def normal(self, value: float, error: float) -> Estimate:
        """Limits of a number with a standard error."""
        return Estimate(float(value), float(value - self.z * error), float(value + self.z * error))

    def mean(self, values: Any) -> Estimate:
        """Limits of the mean of independent values, by Student's t."""
        values = np.asarray(values, float)
        error = values.std(ddof=1) / np.sqrt(values.size) * stats.t.ppf(self.confidence, values.size - 1)
        return Estimate(float(values.mean()), float(values.mean() - error), float(values.mean() + error))

    def error(self, result: Result, model: str = "sde", column: str = "error") -> Estimate:
        """A quantity of `Result.errors` with its limits; those of a bootstrap are widened as Student's t is."""
        row = self.errors(result).loc[model]
        counts = result.dataset.n_paths.isel(step=0).values
        groups = int(min(GROUPS, counts[counts > 0].min()))  # a prediction has no paths
        wider = 1.0
        if QUANTITIES[column].bootstrap:
            wider = float(stats.t.ppf(self.confidence, groups - 1) / stats.norm.ppf(self.confidence))
        value = float(row[column])
        low, high = (value + wider * (float(row[end]) - value) for end in columns(column)[1:])
        return Estimate(value, low if QUANTITIES[column].signed else max(low, 0.0), high)

    def error_of_fall(self, result: Result, model: str = "sde") -> Estimate:
        """The error of the mean loss relative to the fall of the optimizer's loss, not to the loss itself."""
        loss = result.dataset.loss_mean.sel(model=result.optimizer).values
        infimum = float(result.dataset.attrs["infimum"])
        factor = float(np.sqrt(np.mean((loss - infimum) ** 2) / np.mean((loss[0] - loss) ** 2)))
        return self.error(result, model).times(factor)

    def tracked(
        self,
        label: str,
        result: Result,
        model: str = "sde",
        whole: tuple[float, float] = (0.01, 1e-3),
        late: tuple[float, float] = (0.05, 0.01),
    ) -> tuple[Item, Item]:
        """The error of a model's mean loss over the whole run, which the start dominates, and over its last third.

        Args:
            label: label of the first item; that of the second ends in "late".
            result: result with the optimizer and the model.
            model: label of the model.
            whole: largest allowed error, and expected error.
            late: the same over the last third.
        """
        number, end = self.error(result, model), self.error(result, model, "late_error")
        return (
            self.at_most(label, number, *whole, percent=True),
            self.at_most(f"{label}, late", end, *late, percent=True),
        )

    def errors(self, result: Result) -> Any:
        """`Result.errors` at the plan's confidence, computed once."""
        if id(result) not in self._errors:
            self._errors[id(result)] = (
                result,
                result.errors(confidence=self.confidence),
            )  # keeps the result alive, so its id stays valid
        return self._errors[id(result)][1]

    def at_most(self, label: str, number: Estimate, bound: float, expected: float = 0.0, percent: bool = False) -> Item:
        """An item: a number that must be at most `bound`."""
        return at_most(label, number, bound, self.confidence, expected, percent)

    def at_least(self, label: str, number: Estimate, bound: float, expected: float, percent: bool = False) -> Item:
        """An item: a number that must be at least `bound`."""
        return at_least(label, number, bound, self.confidence, expected, percent)

    def within(
        self,
        label: str,
        number: Estimate,
        bounds: tuple[float, float],
        expected: float | None = None,
        percent: bool = False,
    ) -> Item:
        """An item: a number that must lie between two bounds."""
        return within(label, number, bounds, self.confidence, expected, percent)
