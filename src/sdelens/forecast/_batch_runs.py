"""Runs at several batch sizes: their final losses, at the best learning rates if these are asked for."""

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdelens.core import check
from sdelens.forecast._plan import stable_lr
from sdelens.forecast._run import multipliers
from sdelens.forecast._trials import Fitted, Trial, final_losses, trial_of, with_lr
from sdelens.optimizers import DecayedOptimizer

__all__ = ["FACTOR", "BatchRuns", "Pair", "Tried"]

FACTOR: Final = 32.0
"""Largest factor by which the learning rate is changed where the best one is looked for."""
_LRS: Final = 25
_LONGEST: Final = 1e8
_STRIDE: Final = math.log(4)
"""Change of log steps until the loss is bracketed."""
_PRECISE: Final = 0.02
"""Width of the bracket of log steps within which they are interpolated."""


class Pair(NamedTuple):
    """A number of steps, which need not be whole, at a batch size."""

    batch: float
    steps: float


class Tried(NamedTuple):
    """Final losses and learning rates of runs, arrays of shape (n,)."""

    loss: NDArray[np.float64]
    lr: NDArray[np.float64]


class BatchRuns:
    """Runs at several batch sizes and lengths, each with its optimizer and learning rate."""

    def __init__(self, fitted: Fitted, optimizer: Any, lr: Any, size: float | None) -> None:
        self.fitted, self.given, self.lr, self.size = fitted, optimizer, lr, size

    def optimizer(self, pair: Pair) -> DecayedOptimizer:
        """The optimizer of a run, with a learning rate that is kept or given by a rule."""
        found = self.given
        if not isinstance(found, DecayedOptimizer):
            try:
                found = self.given(max(round(pair.steps), 1))
            except ValueError as error:
                raise ValueError(
                    f"optimizer: the function failed for {round(pair.steps)} steps (batch size {pair.batch:g}): "
                    f"{error} Give batch_sizes= for which there are enough steps."
                ) from error
            if not isinstance(found, DecayedOptimizer):
                raise TypeError(f"optimizer: the function gave {found!r}; it must give one such as sl.AdamW(lr=3e-4).")
        if callable(self.lr):
            found = with_lr(found, check.positive("lr", self.lr(pair.batch)))
        stable = stable_lr(found, self.fitted.numbers)
        if float(found.lr) > stable:
            if self.lr != "best":
                raise ValueError(
                    f"lr: got {float(found.lr):.4g} at batch size {pair.batch:g}, at which {found.name} diverges on "
                    f"the fitted quadratic; give learning rates below {stable:.4g}, or lr='best'."
                )
            found = with_lr(found, stable)
        return found

    def trial(self, pair: Pair, lr: float | None = None) -> Trial:
        optimizer = self.optimizer(pair)
        optimizer = optimizer if lr is None else with_lr(optimizer, lr)
        return trial_of(self.fitted, optimizer, pair.steps, pair.batch, self.size)

    def losses(self, pairs: Sequence[Pair], refine: bool) -> Tried:
        """Final losses and learning rates, of the best learning rates if these are looked for."""
        optimizers = [self.optimizer(pair) for pair in pairs]
        own = np.array([float(one.lr) for one in optimizers])
        trials = [self.trial(pair) for pair in pairs]
        if self.lr != "best":
            return Tried(final_losses(self.fitted, trials), own)
        timed = _depends_on_time(optimizers[0], pairs[0].steps)
        stable = np.array([stable_lr(one, self.fitted.numbers) for one in optimizers])
        low, high = np.log(own / FACTOR), np.log(np.minimum(own * FACTOR, stable))
        for _ in range(2 if refine else 1):
            lrs = np.exp(np.linspace(low, high, _LRS, axis=1))
            rows = [
                self.trial(pair, lr) if timed else trial.with_lr(one, lr)
                for pair, trial, one, row in zip(pairs, trials, optimizers, lrs.tolist(), strict=True)
                for lr in row
            ]
            found = final_losses(self.fitted, rows).reshape(lrs.shape)
            best, every = found.argmin(1), np.arange(len(pairs))
            low = np.log(lrs[every, np.maximum(best - 1, 0)])
            high = np.log(lrs[every, np.minimum(best + 1, _LRS - 1)])
        return Tried(found[every, best], lrs[every, best])

    def steps_to(self, target: float, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        """Fewest steps after which runs at these batch sizes reach a loss; NaN if they do not."""
        at = np.log([pair.steps for pair in pairs])
        low, high = np.full(len(at), -np.inf), np.full(len(at), np.inf)
        above, below = np.full(len(at), np.nan), np.full(len(at), np.nan)
        active = np.ones(len(at), bool)
        while active.any():
            index = np.flatnonzero(active)
            found = self.losses([Pair(pairs[i].batch, math.exp(at[i])) for i in index.tolist()], refine=False).loss
            for i, value in zip(index.tolist(), found.tolist(), strict=True):
                missed = not value <= target
                if missed:
                    low[i], above[i] = at[i], value
                else:
                    high[i], below[i] = at[i], value
                bracketed = np.isfinite(high[i] - low[i])
                at[i] = 0.5 * (low[i] + high[i]) if bracketed else at[i] + (_STRIDE if missed else -_STRIDE)
            with np.errstate(invalid="ignore"):
                active &= ~(high - low < _PRECISE) & (at >= 0) & (at <= math.log(_LONGEST))
        share = (above - target) / (above - below)
        with np.errstate(invalid="ignore"):
            logs: NDArray[np.float64] = low + share * (high - low)
            return np.array([math.exp(log) for log in logs])


def _depends_on_time(optimizer: DecayedOptimizer, steps: float) -> bool:
    """Whether the multiplier at one step depends on the learning rate, as that of a `Polynomial` does."""
    last = np.array([max(round(steps) - 1, 0)])
    other = with_lr(optimizer, 0.5 * float(optimizer.lr))
    return not np.array_equal(multipliers(optimizer, last), multipliers(other, last))
