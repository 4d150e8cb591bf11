"""Does an SDE describe this run? The same training with smaller steps and amplified noise, on a live optimizer."""

import copy
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from sdelens.core import check
from sdelens.core.limits import OF_FEW
from sdelens.core.numerals import percent, signed
from sdelens.core.progress import progress_bar
from sdelens.results.paired import MEASURED, Change, measured, on_grid, scale_of, seeds_needed, shown
from sdelens.results.paired_plot import Compared, plot_paired
from sdelens.results.printable import Parts, Plotted, Table
from sdelens.torch._rescale import rescale

if TYPE_CHECKING:
    import pandas as pd

    from sdelens.results.figures import Sheet

__all__ = ["SVAG", "svag"]

Loss = Callable[[Any, torch.Generator], Tensor]
SAME, DIFFERENT, UNTOLD, FAILED = "same", "different", "cannot tell", "failed"
_LEAST: Final = 10
_RECORDS: Final = 60
_ANSWERS: Final = {
    "yes": "Yes: with smaller steps and the same noise per time, the loss stays that of the run itself within "
    "{bound} (factors {factors}), as an SDE that describes this run requires.",
    "no": "No: with smaller steps and the same noise per time, the loss changes by more than {bound} (factor {worst}), "
    "so that the SDE that the scaling rule keeps does not describe this run.",
    "cannot tell": "Cannot tell: the limits of the change are not on one side of {bound}{remedy}.",
}


@dataclass(frozen=True, repr=False)
class SVAG(Plotted):
    """Runs of the same duration in continuous time, with smaller and smaller steps.

    Attributes:
        losses: for every factor l that was run, shape (S, R): the loss of every seed and record, NaN from the first
            that is not finite. Factor 1 is the run itself.
        times: for every factor the times of its records, shape (R,), in steps of the run itself.
        steps: n, steps of the run itself.
        tolerance: largest relative change of the loss, in either direction, that counts as none.
        minimum: infimum of the loss, or None.
        confidence: two-sided confidence of the limits.
        learning_rates: learning rate of the first parameter group for every factor.
    """

    losses: Mapping[int, np.ndarray]
    times: Mapping[int, np.ndarray]
    steps: int
    tolerance: float
    minimum: float | None
    confidence: float
    learning_rates: Mapping[int, float]

    @functools.cached_property
    def table(self) -> "pd.DataFrame":
        """A row per factor above 1.

        Columns: ``steps``, ``lr``; ``loss``, the mean over the last third of the time; ``difference``, ``relative`` and
        ``error``, against factor 1, each with ``_lower`` and ``_upper`` as in `sdelens.scaling.branch`; ``verdict``,
        which is ``"same"``, ``"different"``, ``"cannot tell"`` or ``"failed"``; ``seeds_needed``.
        """
        import pandas as pd

        rows = [{"factor": factor, **self._row(factor)} for factor in sorted(self.losses) if factor > 1]
        return pd.DataFrame(rows).set_index("factor")

    @property
    def answer(self) -> str:
        """Whether an SDE describes this run: ``"yes"``, ``"no"`` or ``"cannot tell"``."""
        words = set(self.table.verdict)
        return "no" if words & {DIFFERENT, FAILED} else UNTOLD if UNTOLD in words else "yes"

    def verdict(self) -> str:
        """The answer in words."""
        frame, bound = self.table, f"{100 * self.tolerance:g} %{' of its decrease' if self.minimum is None else ''}"
        differ = frame.index[frame.verdict.isin([DIFFERENT, FAILED])]
        needed = frame.seeds_needed.max()
        remedy = "; give more steps or seeds"
        if math.isfinite(needed):
            remedy = f"; about {needed:.0f} seeds would be needed"
        factors = ", ".join(map(str, frame.index))
        said = _ANSWERS[self.answer].format(
            bound=bound, factors=factors, worst=", ".join(map(str, differ)), remedy=remedy
        )
        if (frame.verdict == FAILED).any():
            said += " A loss was not finite."
        return said

    def _draw(self, sheet: "Sheet") -> None:
        """Mean losses at equal times, with the single runs, and their differences below."""
        edges, level = on_grid(self._curves(1))
        runs = {"the run itself": Compared(edges, level, level)}
        runs |= {f"l = {factor}": self._compared(factor) for factor in self.table.index[self.table.verdict != FAILED]}
        title = "Steps shortened l times, noise amplified"
        plot_paired(sheet, runs, self.confidence, title, "time, in steps of the run itself")

    def to_dict(self) -> dict[str, Any]:
        """Everything but the losses as JSON types; unknown numbers are None."""
        rows = self.table.reset_index().to_dict("records")
        names = ("steps", "tolerance", "minimum", "confidence")
        return {
            "answer": self.answer,
            "verdict": self.verdict(),
            **{name: getattr(self, name) for name in names},
            "table": [{str(k): _plain(v) for k, v in row.items()} for row in rows],
        }

    def _parts(self) -> Parts:
        first = self.losses[1]
        title = f"{self.steps} steps against l times as many, {len(first)} seed{'s' * (len(first) > 1)}"
        rows = [
            [
                str(factor),
                f"{row.steps:g}",
                f"{row.lr:.4g}",
                f"{row.loss:.4g}" if math.isfinite(row.loss) else "–",
                shown(row, "difference", signed),
                shown(row, "relative", partial(percent, plus=True)),
                shown(row, "error", percent),
                row.verdict,
            ]
            for factor, row in self.table.iterrows()
        ]
        head = ["l", "steps", "lr", "loss", "difference", "relative", "error", "verdict"]
        note = (
            "loss: mean over the last third; difference and relative: its change against the run itself, with "
            f"{100 * self.confidence:g} % limits over the seeds; error: relative L2 distance of the mean curves at "
            f"equal times, with the noise removed; relative and error refer to {scale_of(self.minimum)}."
        )
        return [title, Table(head, rows), self.verdict(), note]

    def _compared(self, factor: int) -> Compared:
        edges, means = on_grid([*self._curves(factor), *self._curves(1)])
        count = len(self.losses[1])
        return Compared(edges, means[:count], means[count:])

    def _curves(self, factor: int) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(self.times[factor], row) for row in self.losses[factor]]

    def _row(self, factor: int) -> dict[str, Any]:
        row: dict[str, Any] = {"steps": factor * self.steps, "lr": self.learning_rates[factor]}
        row |= dict.fromkeys(MEASURED, math.nan) | {"seeds_needed": math.nan}
        if not np.isfinite(self.losses[factor]).all():
            return row | {"verdict": FAILED}
        found, numbers = measured(*self._compared(factor), self.minimum, self.confidence)
        word = self._word(found)
        if word == UNTOLD:
            bound = math.copysign(self.tolerance, found.relative)
            row["seeds_needed"] = seeds_needed(found, bound, self.confidence)
        return row | numbers | {"verdict": word}

    def _word(self, found: Change) -> str:
        if -self.tolerance <= found.relative_lower and found.relative_upper <= self.tolerance:
            return SAME
        outside = found.relative_lower > self.tolerance or found.relative_upper < -self.tolerance
        return DIFFERENT if outside else UNTOLD


def svag(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    *,
    steps: int,
    factors: Sequence[int] = (2, 4),
    seeds: int = 3,
    tolerance: float = 0.05,
    minimum: float | None = None,
    confidence: float = OF_FEW,
    rule: str | None = None,
    evaluate: Callable[[Any], Any] | None = None,
    progress: bool | None = None,
) -> SVAG:
    r"""Test whether an SDE describes a run: shorter steps with amplified noise must not change its loss.

    With factor l, every step is replaced by l steps whose gradient combines those of two independent batches γ₁ and γ₂,

        g = (1 + √(2l − 1))/2 ∇f_γ₁ + (1 − √(2l − 1))/2 ∇f_γ₂,   E g = ∇f,   Cov g = l Σ,

    because the squares of the weights add up to l. The hyperparameters are those of `rescale` for a batch 1/l times as
    large, whose noise has this covariance: for SGD the learning rate is divided by l; for Adam and RMSprop lr/√l,
    1 − β divided by l, ε √l and weight decay divided by √l, and v is converted to lσ². Per time, drift and noise are
    then those of the run itself, and for l → ∞ the losses approach those of its SDE. If they do not change with l, the
    SDE describes the run; if they do, it does not. For Adam and RMSprop it is the SDE for dominant noise that is
    tested: where the gradient is larger than the noise, the answer is "no".

    The model and the optimizer are copied for every run, and are not changed. The learning rate stays at its present
    value; gradients are not clipped.

    Args:
        model: the model, at the point from which to start.
        optimizer: its optimizer, which `sdelens.torch.rescale` must be able to rescale.
        loss: function of a copy of the model and a ``torch.Generator`` of the CPU; it draws a batch with the generator,
            each call another one, and returns the mean loss of that batch, for example
            ``lambda model, g: cross_entropy(model(x[i := torch.randint(len(x), (64,), generator=g)]), y[i])``.
        steps: steps n of the run itself; a run with factor l takes ln steps, with two batches each.
        factors: values of l above 1; factor 1, the run itself, is always run.
        seeds: number of seeds.
        tolerance: largest relative change of the loss that counts as none, in (0, 1).
        minimum: infimum of the loss, or its level at rest, above which losses are taken as heights. By default changes
            are relative to the decrease of the loss of the run itself; if it hardly decreases, they cannot be told.
        confidence: two-sided confidence of the limits of every factor.
        rule: as in `rescale`; by default the rule that keeps the optimizer's SDE.
        evaluate: function of a copy of the model that returns the loss to compare, for example on held-out data; it is
            called, without gradients, at about 60 times of the run. By default the losses of the batches are compared,
            whose own noise may need more seeds.
        progress: whether to show progress; by default only on a terminal.

    Returns:
        An `SVAG`; printed, it is the table and the answer.

    Raises:
        ValueError, TypeError: if an argument is invalid, naming it; if the loss of the run itself is not finite; or
            from `sdelens.torch.rescale`.

    Source: Li, Malladi, Arora (2021), *On the Validity of Modeling SGD with Stochastic Differential Equations*, arXiv
    2102.12470; for Adam and RMSprop Malladi et al. (2022), arXiv 2205.10287, whose l is the square root of this one.
    Departure: weight decay and momentum are included, by the scaling rule.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}; give a torch.nn.Module.")
    if not callable(loss):
        raise TypeError(f"loss: got {type(loss).__name__}; give a function of the model and a torch.Generator.")
    count, number = check.at_least("steps", steps, _LEAST), check.at_least("seeds", seeds, 1)
    chosen = sorted({check.at_least("factors", f, 1) for f in factors} | {1})
    if chosen == [1]:
        raise ValueError(f"factors: got {list(factors)}; give factors above 1, for example (2, 4).")
    for name, value in (("tolerance", tolerance), ("confidence", confidence)):
        if not 0 < check.number(name, value) < 1:
            raise ValueError(f"{name}: got {value:g}; it must lie between 0 and 1, for example 0.05 for 5 %.")
    _check_owner(model, optimizer)
    floor = None if minimum is None else float(check.number("minimum", minimum))
    losses, times, rates = {}, {}, {}
    stride = max(count // _RECORDS, 1)
    total = count * number * sum(chosen)
    with progress_bar(progress, total) as report:
        for factor in chosen:
            rows = []
            for seed in range(number):
                ours, own = copy.deepcopy((model, optimizer))  # the optimizer keeps the copied parameters
                if factor > 1:
                    _shortened(own, factor, rule)
                rates[factor] = float(own.param_groups[0]["lr"])
                taken = _run(ours, own, loss, count * factor, factor, seed)
                with torch.random.fork_rng():
                    torch.manual_seed(seed)  # for dropout
                    rows.append(np.array([*_evaluated(taken, ours, evaluate, factor * stride)]))
                report(count * factor, f"l = {factor}, seed {seed}")
            losses[factor] = np.array(rows)
            times[factor] = np.arange(losses[factor].shape[1]) * (1 / factor if evaluate is None else stride)
            if factor == 1 and not np.isfinite(losses[1]).all():
                raise ValueError("loss: the loss of the run itself is not finite, so there is nothing to compare with.")
    return SVAG(losses, times, count, float(tolerance), floor, float(confidence), rates)


def _shortened(optimizer: torch.optim.Optimizer, factor: int, rule: str | None) -> None:
    """Rescale to a batch 1/l times as large; schedulers do not matter, because the learning rate stays as it is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "optimizer: its learning-rate scheduler")
        rescale(optimizer, 1 / factor, rule)


def _run(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, steps: int, factor: int, seed: int
) -> Iterator[float]:
    """The mean loss of the batches of every step, before it; NaN from the first that is not finite."""
    generator = torch.Generator().manual_seed(seed)
    root = math.sqrt(2 * factor - 1)
    weights = [w for w in ((1 + root) / 2, (1 - root) / 2) if w]
    mean = 0.0
    for _ in range(steps):
        values = []
        optimizer.zero_grad()
        for weight in weights if math.isfinite(mean) else ():
            value = loss(model, generator)
            if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
                raise TypeError("loss: must return a tensor of one element that depends on the model's parameters.")
            (weight * value).backward()
            values.append(float(value.detach()))
        mean = sum(values) / len(values) if values else math.nan
        yield mean
        if math.isfinite(mean):
            optimizer.step()


def _evaluated(
    losses: Iterator[float], model: nn.Module, evaluate: Callable[[Any], Any] | None, stride: int
) -> Iterator[float]:
    """The losses to compare: those of the batches, or at every `stride`-th step those of `evaluate`."""
    if evaluate is None:
        yield from losses
        return
    finite = True
    for step, value in enumerate(losses):
        finite = finite and math.isfinite(value)
        if step % stride == 0:
            with torch.no_grad():
                yield float(evaluate(model)) if finite else math.nan


def _check_owner(model: nn.Module, optimizer: Any) -> None:
    """The optimizer updates parameters of this model.

    Raises:
        ValueError, TypeError: if it does not.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer: got {type(optimizer).__name__}; give the torch.optim.Optimizer of the model.")
    own = {id(p) for p in model.parameters()}
    if any(id(p) not in own for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("optimizer: it updates parameters that are not in the model; give the model's own optimizer.")


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
