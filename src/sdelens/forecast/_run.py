"""One logged training run: its curve, its optimizer, and the learning rate at every step."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from sdelens.core import check
from sdelens.core.compilation import quick
from sdelens.forecast._readers import Logged, read_log
from sdelens.optimizers import SGD, AdamW, DecayedOptimizer, Lion, Momentum, RMSpropW, SignSGD, Signum

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Run", "multipliers"]

_OPTIMIZERS: Final = (SGD, Momentum, SignSGD, Signum, Lion, RMSpropW, AdamW)
_AGREES: Final = 0.02
"""Largest relative difference between a schedule and the learning rates in a log."""
_ROUNDED: Final = 1e-3
"""Difference that is allowed besides, as a fraction of the peak: logs round learning rates near 0."""


@dataclass(frozen=True, eq=False, init=False, repr=False)
class Run:
    r"""One logged training run: a loss curve and the optimizer that made it.

    A loss at step s is that after s updates, k = 0, …, s − 1; update k is made with the learning rate ``lr_at(k)``:

    - η hₖ, if the optimizer has a schedule h. If the log has learning rates too, they must agree within 2 % (and 0.1 %
      of the peak, since logs round) with the schedule at step k − 1, k or k + 1, before or after the update;
    - else the logged learning rates, if there are any: interpolated linearly between logged steps, and constant before
      the first and after the last of them. Their peak must agree with η within 2 %;
    - else η.

    Args:
        curve: the log: a pair (steps, losses) of arrays of shape (n,), n ≥ 1; a pandas DataFrame or a dict of columns;
            or the path of a CSV file (with commas, semicolons or tabs; W&B's export is one), of JSON or JSONL records,
            of a ``trainer_state.json`` of the Hugging Face Trainer or its folder, or of a TensorBoard event file or its
            folder. Rows of a file without a loss are left out, as are empty rows of W&B. The loss of training is
            preferred to that of validation.
        optimizer: `SGD`, `Momentum`, `SignSGD`, `Signum`, `Lion`, `RMSpropW` or `AdamW` as it was run.
        batch_size: samples or tokens per step, in the same unit for all runs of a fit; None if it is not known.
        size: number of parameters of the model; None if it is not known.
        steps: optimizer steps of the run; default: the last step with a loss.
        name: name of the run; default: its name in W&B's export, or that of the file.
        loss: name of the column or tag of the loss; default: the one usual name that the log has.
        step: name of the column of the step; default: likewise.
        lr: name of the column or tag of the learning rate; default: likewise, if there is one. For a pair of arrays:
            the learning rates, shape (n,).
        warmup: steps of a linear rise from 0 to the first logged learning rate, η(k + 1)/warmup at step k, for logs
            that begin after it.

    Attributes:
        steps: steps with a loss, shape (n,), whole numbers that increase.
        losses: losses at these steps, shape (n,), greater than 0.
        optimizer: the optimizer.
        batch_size: samples or tokens per step, or None.
        size: number of parameters, or None.
        total: optimizer steps of the run.
        name: name of the run, or None.
        source: what the curve was read from, in words.
        warmup: steps of the rise before the first logged learning rate.
        logged_lr: logged steps and learning rates if the log gives the schedule, two arrays of shape (r,); else None.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if the log is TensorBoard's, whose library is not installed.
        TypeError, ValueError: if an argument, a step, a loss or a learning rate is not as described; the message names
            it, what was given, and a remedy.

    Examples:
        >>> import sdelens as sl
        >>> optimizer = sl.AdamW(lr=3e-4, b2=0.95, schedule=sl.Warmup(100, sl.Cosine(900, end=0.1)))
        >>> run = sl.forecast.Run(([10, 100, 1000], [6.1, 4.2, 3.4]), optimizer, batch_size=256, size=25e6)
        >>> run.total, len(run.rates())
        (1000, 1000)
        >>> run.lr_at([0, 99, 1000]).round(6).tolist()
        [3e-06, 0.0003, 3e-05]
    """

    steps: NDArray[np.int64]
    losses: NDArray[np.float64]
    optimizer: DecayedOptimizer
    batch_size: float | None
    size: float | None
    total: int
    name: str | None
    source: str
    warmup: int
    logged_lr: tuple[NDArray[np.float64], NDArray[np.float64]] | None
    _rates: NDArray[np.float64]

    def __init__(
        self,
        curve: "tuple[ArrayLike, ArrayLike] | Mapping[str, ArrayLike] | pd.DataFrame | str | os.PathLike[str]",
        optimizer: DecayedOptimizer,
        *,
        batch_size: float | None = None,
        size: float | None = None,
        steps: int | None = None,
        name: str | None = None,
        loss: str | None = None,
        step: str | None = None,
        lr: str | Sequence[float] | NDArray[np.floating] | None = None,
        warmup: int = 0,
    ) -> None:
        if type(optimizer) not in _OPTIMIZERS:
            known = ", ".join(f"sl.{kind.__name__}" for kind in _OPTIMIZERS)
            given = optimizer.__name__ if isinstance(optimizer, type) else type(optimizer).__name__
            raise TypeError(f"optimizer: got {given}; give one of {known} with its arguments, as sl.AdamW(lr=3e-4).")
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name: got {type(name).__name__}; give text.")
        batch_size = None if batch_size is None else check.positive("batch_size", batch_size)
        size = None if size is None else check.positive("size", size)
        logged = read_log(curve, loss=loss, step=step, lr=lr)
        at, losses = _curve(logged)
        total = int(at[-1]) if steps is None else check.at_least("steps", steps, 1)
        if at[-1] > total:
            raise ValueError(
                f"steps: got {total}, but the log has a loss at step {at[-1]}; give the number of optimizer steps of "
                "the whole run, or leave it out."
            )
        if total == 0:
            raise ValueError(
                "curve: its only loss is that at step 0, before any update; add a loss at a later step, or give steps=."
            )
        values = {"steps": at, "losses": losses, "optimizer": optimizer, "batch_size": batch_size, "size": size}
        values |= {"total": total, "name": logged.name if name is None else name, "source": logged.source}
        values |= {"warmup": check.at_least("warmup", warmup, 0), "logged_lr": None}
        for field, value in values.items():
            object.__setattr__(self, field, value)
        self._take_rates(logged)

    def _take_rates(self, logged: Logged) -> None:
        """Choose between the schedule and the logged learning rates, and evaluate the choice once."""
        found = None if logged.rate_steps is None or logged.rates is None else _rates(logged.rate_steps, logged.rates)
        if self.optimizer.schedule is None and found is not None:
            _check_peak(*found, float(self.optimizer.lr))
            object.__setattr__(self, "logged_lr", found)
        if self.warmup and self.logged_lr is None:
            remedy = "sl.Warmup(steps, then) in the optimizer's schedule"
            raise ValueError(f"warmup: got {self.warmup}, but the log has no learning rates to follow; use {remedy}.")
        if self.logged_lr is not None and self.warmup > self.logged_lr[0][0]:
            raise ValueError(
                f"warmup: got {self.warmup}, but the log has learning rates from step {self.logged_lr[0][0]:.0f} on; "
                "give at most this step, or leave it out: the log itself tells how they rise."
            )
        rates = _frozen(self._evaluate(np.arange(self.total)))
        object.__setattr__(self, "_rates", rates)
        lost = np.flatnonzero(~np.isfinite(rates) | (rates < 0))
        if lost.size:
            raise ValueError(
                f"optimizer: its schedule gives the learning rate {rates[lost[0]]:g} at step {lost[0]}; give a "
                f"schedule that is 0 or greater for all {self.total} steps."
            )
        if not rates.any():
            raise ValueError(
                f"optimizer: its learning rate is 0 at all {self.total} steps; give the schedule of the run, a "
                "multiplier of lr at the step number."
            )
        if found is not None and self.logged_lr is None:
            self._check_schedule(*found)

    def _check_schedule(self, at: NDArray[np.float64], logged: NDArray[np.float64]) -> None:
        """An error where the schedule differs from the log."""
        near = np.maximum(at + np.array([[-1], [0], [1]]), 0).astype(np.int64)
        own = self._evaluate(near.ravel()).reshape(near.shape)
        spare = _ROUNDED * max(float(own.max()), float(logged.max()))
        differs = (logged < own.min(0) * (1 - _AGREES) - spare) | (logged > own.max(0) * (1 + _AGREES) + spare)
        if differs.any():
            first = int(np.argmax(differs))
            raise ValueError(
                f"optimizer: its schedule does not fit the steps of the log: at step {at[first]:.0f} it gives "
                f"{own[1, first]:.4g} and the log says {logged[first]:.4g} (first of {differs.sum()} of {at.size} "
                "logged learning rates that differ by more than 2 %); correct lr or the schedule, or leave the "
                "schedule out to use the logged learning rates."
            )

    def _evaluate(self, at: NDArray[Any]) -> NDArray[np.float64]:
        """Learning rates at steps of shape (m,)."""
        lr = float(self.optimizer.lr)
        if self.logged_lr is None:
            return lr * multipliers(self.optimizer, at)
        rates = np.interp(at, *self.logged_lr)
        if self.warmup:
            rates = np.where(at < self.warmup, self.logged_lr[1][0] * np.minimum((at + 1) / self.warmup, 1), rates)
        return rates

    def lr_at(self, steps: ArrayLike) -> NDArray[np.float64]:
        """Learning rate of the update at each step.

        Args:
            steps: step numbers, 0 or greater, of any shape; they may lie beyond the end of the run.

        Returns:
            Array of the same shape, float64.

        Raises:
            ValueError: if a step is negative or not finite.
        """
        at = np.asarray(steps)
        if at.dtype.kind not in "iuf":
            raise TypeError(f"steps: got {steps!r}; give step numbers.")
        if at.size and not (np.isfinite(at).all() and at.min() >= 0):
            raise ValueError("steps: at least one is negative or not finite; give step numbers of 0 or greater.")
        flat = at.ravel()
        if at.dtype.kind in "iu" and (flat.size == 0 or flat.max() < self.total):
            return self._rates[flat].reshape(at.shape)
        return self._evaluate(flat).reshape(at.shape)

    def rates(self) -> NDArray[np.float64]:
        """Learning rates of all updates k = 0, …, total − 1, shape (total,)."""
        return self._rates

    def describe(self) -> dict[str, Any]:
        """What the run is, JSON types only, without its curve."""
        return {
            "name": self.name,
            "source": self.source,
            "optimizer": self.optimizer.describe(),
            "batch_size": self.batch_size,
            "size": self.size,
            "total": self.total,
            "points": int(self.steps.size),
            "first_step": int(self.steps[0]),
            "last_step": int(self.steps[-1]),
            "lr": "logged" if self.logged_lr is not None else "scheduled" if self.optimizer.schedule else "constant",
            "warmup": self.warmup,
        }

    def __repr__(self) -> str:
        points = "1 loss" if self.steps.size == 1 else f"{self.steps.size} losses"
        named = "" if self.name is None else f"{self.name!r}, "
        return (
            f"Run({named}{self.optimizer.name}, {points} at steps {self.steps[0]} to {self.steps[-1]}, last "
            f"{self.losses[-1]:.4g}, {self.total} steps)"
        )


def multipliers(optimizer: DecayedOptimizer, at: NDArray[Any]) -> NDArray[np.float64]:
    """Schedule hₖ at steps of shape (m,), evaluated in one batch whose length is a power of 2, to compile rarely."""
    if optimizer.schedule is None or at.size == 0:
        return np.ones(at.size)
    whole = at.dtype.kind in "iu"
    padded = np.resize(at, 1 << max(at.size - 1, 1).bit_length()).astype(np.int32 if whole else np.float32)
    return np.asarray(_evaluated(optimizer, padded), np.float64)[: at.size]


@quick
def _evaluated(optimizer: DecayedOptimizer, steps: jax.Array) -> jax.Array:
    # A user's function may be written for one step at a time.
    return jax.vmap(lambda step: jnp.asarray(optimizer.multiplier(step), float))(steps)


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    array = np.array(array)
    array.flags.writeable = False
    return array


def _some(values: NDArray[Any], most: int = 5) -> str:
    more = f" and {values.size - most} more" if values.size > most else ""
    return ", ".join(f"{value:.15g}" for value in values[:most]) + more


def _check_steps(at: NDArray[np.float64], where: str) -> None:
    """Errors about steps that are not whole numbers that increase."""
    if not np.isfinite(at).all():
        raise ValueError(f"curve: entry {np.argmax(~np.isfinite(at))} of its steps is not finite; give step numbers.")
    if (at < 0).any():
        raise ValueError(f"curve: got the negative steps {_some(at[at < 0])}; count optimizer steps from 0.")
    if (at % 1 != 0).any():
        raise ValueError(
            f"curve: got steps that are not whole numbers, {_some(at[at % 1 != 0])}; give optimizer steps, not epochs "
            "or hours."
        )
    if at.max() > np.iinfo(np.int32).max:
        raise ValueError(f"curve: got step {at.max():.15g}; give optimizer steps, below 2³¹, not samples or tokens.")
    kinds, counts = np.unique(at, return_counts=True)
    fall = np.flatnonzero(np.diff(at) < 0)
    back = f"; after step {at[fall[0]]:.0f} the log goes back to step {at[fall[0] + 1]:.0f}" if fall.size else ""
    if (counts > 1).any():
        raise ValueError(
            f"curve: {where} has several values at the steps {_some(kinds[counts > 1])}{back}; keep one of each, as a "
            "run that was started again logs its steps twice."
        )
    if fall.size:
        raise ValueError(f"curve: the steps of {where} do not increase{back}; sort the log by its steps.")


def _curve(logged: Logged) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Steps and losses, checked."""
    at, losses = logged.steps, logged.losses
    if not at.size:
        raise ValueError(f"curve: {logged.where} is empty; give at least one step and its loss.")
    _check_steps(at, f"the {logged.where}")
    lost = ~np.isfinite(losses)
    if lost.any():
        raise ValueError(
            f"curve: the loss is NaN or infinite at the steps {_some(at[lost])} of {at.size} steps; drop these rows, "
            "or all from the first of them on if the run diverged there."
        )
    if (losses <= 0).any():
        raise ValueError(
            f"curve: the loss is {losses[losses <= 0][0]:.4g} at step {at[losses <= 0][0]:.0f} ({(losses <= 0).sum()} "
            f"of {at.size} are not greater than 0); give a loss such as the cross entropy or a mean square, or drop "
            "these rows."
        )
    return _frozen(at.astype(np.int64)), _frozen(losses)


def _rates(at: NDArray[np.float64], rates: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logged learning rates, checked."""
    _check_steps(at, "the logged learning rate")
    bad = ~np.isfinite(rates) | (rates < 0)
    if bad.any():
        raise ValueError(
            f"lr: the logged learning rate is {rates[bad][0]:g} at step {at[bad][0]:.0f} ({bad.sum()} of {at.size} are "
            "negative or not finite); drop these values, or name another column with lr=."
        )
    if not rates.any():
        raise ValueError(
            f"lr: the logged learning rate is 0 at all {at.size} logged steps; name another column with lr=, or leave "
            "the column out."
        )
    return _frozen(at), _frozen(rates)


def _check_peak(at: NDArray[np.float64], rates: NDArray[np.float64], lr: float) -> None:
    """An error if the peak of the logged learning rates is not that of the optimizer."""
    first = int(np.argmax(rates))
    if abs(rates[first] - lr) > _AGREES * lr:
        raise ValueError(
            f"optimizer: its lr is {lr:.4g}, but the largest logged learning rate is {rates[first]:.4g} (at step "
            f"{at[first]:.0f}); give the optimizer this lr, or, if the log leaves out the peak, its schedule."
        )
