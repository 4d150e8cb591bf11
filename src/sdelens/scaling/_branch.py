"""A user's own training, continued from one checkpoint at several batch sizes under our rules."""

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sdelens.core import check
from sdelens.core.files import held_folder
from sdelens.core.limits import OF_FEW
from sdelens.core.progress import progress_bar
from sdelens.scaling._branch_store import Kept
from sdelens.scaling._branches import BASE, Branches, BranchRun, Curve, Plan
from sdelens.scaling._rescale import ratio_of, rescale

if TYPE_CHECKING:
    from sdelens.diagnosis import Diagnosis

__all__ = ["branch"]

Train = Callable[[Any, BranchRun], Any]
_LEAST: Final = 3
"""Fewest records of a run."""


def branch(
    train: Train,
    checkpoint: Any,
    ratios: Sequence[float] = (2, 4, 8),
    *,
    optimizer: Any,
    batch_size: int,
    samples: int,
    seeds: int | Sequence[int] = 3,
    rules: str | Mapping[str, Mapping[str, Any]] | None = None,
    tolerance: float = 0.05,
    minimum: float | None = None,
    confidence: float = OF_FEW,
    predicted: "Diagnosis | None" = None,
    folder: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Branches:
    r"""Continue a run from one checkpoint at several batch sizes, and compare its losses at equal samples.

    For every ratio δ, rule and seed, ``train(checkpoint, run)`` continues the run; `run` is a `BranchRun`: its batch
    size δB, its number of steps and the hyperparameters that `rescale` gives. The runs at δ = 1 with the same seeds are
    the reference. Let aₛ be the mean loss over the last third of the samples with seed s, and bₛ that of the
    reference. Reported are

    - the difference, the mean of aₛ − bₛ, with Student's limits over the seeds;
    - the relative change, this difference divided by the decrease of the reference's loss since the checkpoint (or by
      its loss above `minimum`), with Fieller's limits: 0.05 means that 5 % of the progress is lost;
    - the error, the relative L2 distance of the mean curves over all samples, with the noise removed, as in
      `Result.errors`; it has limits from eight seeds on.

    A ratio is *within* the tolerance if the upper limit of its relative change is at most `tolerance`, and *beyond* it
    if the lower limit is above; otherwise these seeds cannot tell. A lower loss than the reference counts as within.

    A run that raises an exception or returns a loss that is not finite is recorded as failed, with the reason, and the
    other runs continue. An exception of the reference is raised.

    Args:
        train: function of the checkpoint and a `BranchRun`. It returns the losses, either one number per step (that of
            the step's batch, before the step), or pairs of samples since the checkpoint and loss, as an array of shape
            (n, 2): a loss on held-out data, for example, every few steps. It must not change the checkpoint.
        checkpoint: whatever `train` takes: a path, a dict, a state.
        ratios: values of δ; the batch sizes δB must be whole numbers.
        optimizer: hyperparameters at the present batch size, in any form that `rescale` accepts, for example
            ``{"optimizer": "adamw", "lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.1}``.
        batch_size: present batch size B.
        samples: samples of every run; they should last longer than the memory of the optimizer, 1/(1 − b2) steps.
        seeds: number of seeds, or the seeds.
        rules: name of a rule; or options of `rescale` by label, for example ``{"full": {}, "lr alone": {"rule":
            "sqrt-lr"}, "nothing": {"rule": "none"}}``; by default the rule that keeps the optimizer's SDE.
        tolerance: largest relative increase of the loss that counts as none, in (0, 1).
        minimum: infimum of the loss, or its level at rest, above which losses are taken as heights. By default changes
            are relative to the decrease of the reference; if it hardly decreases in `samples`, they cannot be told.
        confidence: two-sided confidence of the limits of every single comparison.
        predicted: a diagnosis of the checkpoint, whose predictions are shown beside the measurements.
        folder: where finished runs are kept as JSON. A comparison that was interrupted, or is repeated with more
            ratios, rules or seeds, continues from there; runs that raised an exception are repeated.
        progress: whether to show progress; by default only on a terminal.

    Returns:
        A `Branches`; printed, it is the table and the verdict.

    Raises:
        ValueError, TypeError: if an argument is invalid, naming it, or if the folder holds another comparison.

    Warns:
        UserWarning: if a run fails; the message says why.

    Examples:
        >>> import numpy as np, sdelens as sl
        >>> def train(x, run):  # SGD on x²/2 with a noise of variance 1/B
        ...     rng, losses = np.random.default_rng(run.seed), []
        ...     for _ in range(run.steps):
        ...         losses.append(x**2 / 2)
        ...         x = x - run.optimizer["lr"] * (x + rng.normal() / run.batch_size**0.5)
        ...     return losses
        >>> found = sl.scaling.branch(
        ...     train, 10.0, [2], optimizer={"optimizer": "sgd", "lr": 0.01}, batch_size=64, samples=64 * 100
        ... )
        >>> found.largest_ratio
        2.0
    """
    if hasattr(optimizer, "param_groups"):
        raise TypeError(
            f"optimizer: got a live {type(optimizer).__name__}; give its hyperparameters as a dict, for example "
            '{"optimizer": "adamw", "lr": 1e-3, "betas": (0.9, 0.99)}, and rescale it within train.'
        )
    size = check.at_least("batch_size", batch_size, 1)
    base_steps = check.at_least("samples", samples, 1) // size
    numbers = _seeds(seeds)
    fractions = _ratios(ratios, size, base_steps)
    labelled = _labelled(optimizer, rules)
    plan = Plan(
        batch_size=size,
        samples=int(samples),
        seeds=numbers,
        tolerance=_share("tolerance", tolerance),
        minimum=None if minimum is None else float(check.number("minimum", minimum)),
        confidence=_share("confidence", confidence),
    )
    if predicted is not None and not hasattr(predicted, "expected_error"):
        raise TypeError(f"predicted: got {type(predicted).__name__}; give what sl.diagnose returns.")

    jobs, refused = [], {}
    for label, options in labelled.items():
        for ratio in fractions:
            try:
                rescaled = rescale(optimizer, float(ratio), **{"steps": base_steps, **options})
            except ValueError as error:  # the same options are accepted at δ = 1, so it is the ratio
                refused[label, float(ratio)] = str(error)
                continue
            jobs.append((label, ratio, rescaled, options))
    if not jobs:
        reason = "; ".join(dict.fromkeys(refused.values()))
        raise ValueError(f"ratios: no rule can be applied at any of {[float(r) for r in fractions]}: {reason}")
    own = next(iter(labelled.values()))  # at δ = 1 all rules are the same; a clipping norm is in the account
    jobs.insert(0, (BASE, Fraction(1), rescale(optimizer, 1, **{"steps": base_steps, **own}), own))
    runs = [
        BranchRun(label, float(r), int(size * r), max(int(base_steps / r), 1), seed, new.optimizer, new, options)
        for label, r, new, options in jobs
        for seed in numbers
    ]
    with contextlib.ExitStack() as stack:
        held = None if folder is None else stack.enter_context(held_folder("folder", folder))
        kept = Kept(held, checkpoint, plan)
        kept.check(runs)
        report = stack.enter_context(progress_bar(progress, len(runs)))
        curves = []
        for run in runs:
            curves.append(kept.load(run) or kept.save(run, _one(train, checkpoint, run)))
            report(1, f"batch × {run.ratio:g}, {run.label}, seed {run.seed}")
    accounts = {(label, float(ratio)): new for label, ratio, new, _ in jobs}
    return Branches(plan, tuple(curves), accounts, refused, predicted)


def _seeds(seeds: Any) -> tuple[int, ...]:
    if isinstance(seeds, Sequence):
        found = tuple(check.at_least("seeds", s, 0) for s in seeds)
        if not found or len(set(found)) < len(found):
            raise ValueError(f"seeds: got {list(seeds)}; give a number of seeds, or different seeds.")
        return found
    return tuple(range(check.at_least("seeds", seeds, 1)))


def _share(name: str, value: Any) -> float:
    number = float(check.number(name, value))
    if not 0 < number < 1:
        raise ValueError(f"{name}: got {number:g}; it must lie between 0 and 1, for example 0.05 for 5 %.")
    return number


def _ratios(ratios: Any, size: int, steps: int) -> list[Fraction]:
    """The ratios, smallest first.

    Raises:
        ValueError: if a batch size is not a whole number, or a run has too few steps.
    """
    given = [ratios] if isinstance(ratios, int | float) else list(ratios)
    found: list[Fraction] = sorted({ratio_of(r) for r in given} - {Fraction(1)})
    if not found:
        raise ValueError(f"ratios: got {given}; give batch ratios other than 1, which is always run.")
    for ratio in found:
        if (size * ratio).denominator > 1:
            raise ValueError(
                f"ratios: got {float(ratio):g}, but {float(ratio):g} × {size} is not a whole batch size; give ratios "
                "for which it is."
            )
    largest = max(float(found[-1]), 1.0)
    fewest = int(steps / largest)
    if fewest < _LEAST:
        raise ValueError(
            f"samples: with {steps * size} samples a run has only {fewest} steps; give at least "
            f"{_LEAST * math.ceil(largest * size)}, or smaller ratios."
        )
    return found


def _labelled(optimizer: Any, rules: Any) -> dict[str, dict[str, Any]]:
    """Options of `rescale` by label, each accepted for this optimizer.

    Raises:
        ValueError, TypeError: if they are not, or a label cannot be used.
    """
    if rules is None or isinstance(rules, str):
        options: dict[str, Any] = {} if rules is None else {"rule": rules}
        return {rescale(optimizer, 1, **options).rule: options}
    if not isinstance(rules, Mapping) or not rules:
        raise TypeError(f"rules: got {rules!r}; give the name of a rule, or a mapping from labels to options.")
    for label, given in rules.items():
        if not isinstance(label, str) or not label or label == BASE:
            raise ValueError(f"rules: got the label {label!r}; give a non-empty text other than {BASE!r}.")
        if not isinstance(given, Mapping) or "steps" in given:
            raise TypeError(f"rules[{label!r}]: got {given!r}; give a mapping of options of rescale without steps.")
        rescale(optimizer, 1, **given)
    return {label: dict(given) for label, given in rules.items()}


def _one(train: Train, checkpoint: Any, run: BranchRun) -> Curve:
    """The losses of one run, or why there are none."""
    where: dict[str, Any] = {"label": run.label, "ratio": run.ratio, "seed": run.seed}
    try:
        x, y = _read(train(checkpoint, run), run)
    except Exception as error:
        if run.label == BASE:
            raise
        reason = f"{type(error).__name__}: {error}"
        warnings.warn(f"batch × {run.ratio:g}, {run.label}, seed {run.seed} failed: {reason}", stacklevel=3)
        return Curve(**where, failure=reason, raised=True)
    if np.isfinite(y).all():
        return Curve(**where, samples=x, losses=y)
    at = x[np.flatnonzero(~np.isfinite(y))[0]]
    if run.label == BASE:
        raise ValueError(
            f"train: the loss of the run at the present batch size, seed {run.seed}, is not finite after {at:.0f} "
            "samples, so there is nothing to compare with; check the checkpoint and the hyperparameters."
        )
    reason = f"the loss is not finite from {at:.0f} samples on"
    warnings.warn(f"batch × {run.ratio:g}, {run.label}, seed {run.seed} failed: {reason}", stacklevel=3)
    return Curve(**where, failure=reason)


def _read(returned: Any, run: BranchRun) -> tuple[np.ndarray, np.ndarray]:
    """Samples and losses of what a training function returned.

    Raises:
        ValueError: if it has another form, saying which.
    """
    try:
        found = np.asarray(returned, float)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"train: returned {type(returned).__name__}; return an array of one loss per step, or of pairs of samples "
            "and loss."
        ) from error
    if found.ndim == 1 and found.size in (run.steps, run.steps + 1):
        return np.arange(found.size) * float(run.batch_size), found
    if found.ndim != 2 or found.shape[1] != 2 or len(found) < _LEAST:
        raise ValueError(
            f"train: returned an array of shape {found.shape}; return one loss for each of the {run.steps} steps, or "
            f"at least {_LEAST} pairs of samples and loss, of shape (n, 2)."
        )
    x, y = found.T
    if not (np.isfinite(x).all() and (np.diff(x) > 0).all() and x[0] >= 0):
        raise ValueError("train: the samples of the pairs must be 0 or more and increase from pair to pair.")
    whole = run.steps * run.batch_size
    if x[0] > whole / 3 or x[-1] < whole * 2 / 3:
        raise ValueError(
            f"train: the pairs are between {x[0]:.0f} and {x[-1]:.0f} of {whole} samples; the first must be in the "
            "first third of them and the last in the last third."
        )
    return x, y
