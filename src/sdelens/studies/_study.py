"""A claim, the plan by which it is run, and what came of it."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from sdelens.results.result import Result
from sdelens.results.sweep import Sweep, load
from sdelens.run import api
from sdelens.run.options import Execution
from sdelens.run.statistics import GROUPS
from sdelens.studies._verdicts import Estimate, Item, at_least, at_most, joined, within

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PRESETS", "Animation", "Outcome", "Picture", "Plan", "Study"]

PRESETS = {
    "quick": "everything in 15 minutes on two cores",
    "full": "some hours on a few cores",
    "paper": "the paper's sizes, for a GPU",
}


@dataclass(frozen=True)
class Picture:
    """A figure of a claim: how it is drawn, what it shows, and what is to be seen by those who cannot see it."""

    name: str
    draw: Callable[[], "Figure"]
    caption: str
    alt: str


@dataclass(frozen=True)
class Animation:
    """A film of a claim, written as GIF to the path that `write` is given."""

    name: str
    write: Callable[[Path], None]
    caption: str
    alt: str


@dataclass(frozen=True)
class Outcome:
    """What came of a claim.

    Attributes:
        items: every number with its limits and where it must lie.
        settings: what was run, a line each.
        pictures: figures.
        animations: films.
        remarks: why the claim fails where it does, and whatever else its reader should know.
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
        name: as the shell calls it.
        statement: the claim, in a sentence or two.
        source: where it is made.
        criterion: which numbers decide, and by what threshold.
        items: how many numbers that is, at most; the rate of wrong verdicts is shared among them.
        sizes: what each preset runs, by preset.
        run: the study itself.
        reasons: why items fail, by label, where that is known and expected; shown if they do.
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
        seed: of all randomness.
        confidence: one-sided, of every limit of every item.
        folder: where finished runs are kept, so that a study that is killed goes on; None: nowhere.
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
        """`sdelens.compare`, kept under a name."""
        return self._kept(name, api.compare, problem, noise, optimizer, models, options)

    def sweep(self, name: str, problem: Any, noise: Any, optimizer: Any, models: Any = None, **options: Any) -> Sweep:
        """`sdelens.sweep`, kept under a name."""
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
                path.unlink()  # damaged, as no run of ours leaves it
        kept = replace(execution, checkpoint=self.folder / f"{name}-checkpoint", resume=True)
        found = function(*subject, **options, execution=kept)
        found.save(path)
        return found

    @functools.cached_property
    def z(self) -> float:
        """Student's quantile for 64 groups at the confidence; for errors from thousands of paths a little too wide."""
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
        """A column of `Result.errors` with its limits, as much wider as Student's law of as many groups is."""
        row = self.errors(result).loc[model]
        lower, upper = {"error": ("lower", "upper"), "late_error": ("late_lower", "late_upper")}.get(
            column, (f"{column}_lower", f"{column}_upper")
        )
        counts = result.dataset.n_paths.isel(step=0).values
        groups = int(min(GROUPS, counts[counts > 0].min()))  # a prediction has no paths
        wider = float(stats.t.ppf(self.confidence, groups - 1) / stats.norm.ppf(self.confidence))
        value = float(row[column])
        low, high = (value + wider * (float(row[end]) - value) for end in (lower, upper))
        return Estimate(value, max(low, 0.0) if column in ("error", "late_error") else low, high)

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
        """The error of a model's mean loss over the whole run, which the start decides, and over its last third.

        Args:
            label: of the first item; that of the second ends in "late".
            result: of the optimizer and the model.
            model: its label.
            whole: how large the error may be, and how large it is expected.
            late: likewise over the last third.
        """
        number, end = self.error(result, model), self.error(result, model, "late_error")
        return (
            self.at_most(label, number, *whole, percent=True),
            self.at_most(f"{label}, late", end, *late, percent=True),
        )

    def errors(self, result: Result) -> Any:
        """`Result.errors` at the plan's confidence, computed once."""
        if id(result) not in self._errors:
            self._errors[id(result)] = (result, result.errors(confidence=self.confidence))  # it lives as long as its id
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
