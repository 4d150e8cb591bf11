"""Simulation of both batch sizes, and comparison of their losses at equal numbers of samples."""

import functools
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sdelens.cases.case import Case
from sdelens.core import check
from sdelens.core.files import text_table
from sdelens.core.names import noise_label, optimizer_label, problem_label
from sdelens.diagnosis.expected import path_error
from sdelens.integrate import MAX_COORDINATES
from sdelens.noise import AbstractNoise, DistributedNoise
from sdelens.optimizers import SGD, AdamW, Momentum, Optimizer, RMSpropW, second_moment
from sdelens.problems import AbstractProblem
from sdelens.results.quantities import columns
from sdelens.results.result import Result
from sdelens.run.api import compare
from sdelens.run.models import Model
from sdelens.run.options import Execution, Record
from sdelens.scaling._rescale import rescale
from sdelens.theory.constants import spectrum

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Verification", "verify"]

SOURCE = "batch × 1"
"""Label of the run at the batch size that was given."""
_LARGEST = 64
_RECORDS = 100


@dataclass(frozen=True)
class Verification:
    """Comparison of two batch sizes.

    Attributes:
        result: the losses on a common clock, the steps of the run at the given batch size; the models are
            ``"batch × 1"`` and one per rescaled optimizer.
        optimizers: the optimizer of each model.
        batch_ratio: δ.
        snr: √(‖∇f‖²/tr Σ) at the start for the larger of both batches; NaN if Σ is infinite or the start is random.
        expected: path-wise error of the square-root rule expected from signal and noise at the start, computed as in
            `diagnose` (`sdelens.diagnosis`); None for optimizers other than RMSprop and Adam, and if `snr` is NaN.
        stiffness: for each model, its largest curvature at the start over its stability limit, λη(1 − β₁)/(2 + 2β₁),
            with λ for RMSprop and Adam that of the preconditioned Hessian D H D, where D = v^(−1/4) and v = E g² at its
            batch (arXiv 2207.14484); NaN for sign methods and Adagrad. If it is close to 1, steps are not small.
    """

    result: Result
    optimizers: dict[str, Optimizer]
    batch_ratio: float
    snr: float
    expected: float | None
    stiffness: dict[str, float]

    def agreement(self, confidence: float = 0.99) -> "pd.DataFrame":
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

    def plot(self, path: str | os.PathLike[str] | None = None) -> "Figure":
        """Mean losses against samples, and their relative difference below; saved if `path` is given.

        Raises:
            ValueError: if matplotlib does not write files with the suffix of `path`.
        """
        return self.result.plot(path, reference=SOURCE)

    def __str__(self) -> str:
        info = self.result.info
        title = (
            f"{optimizer_label(info['optimizer'])} on {problem_label(info['problem'])}, {noise_label(info['noise'])} "
            f"noise: batch × 1 against × {self.batch_ratio:g}, {info['run']['steps']} and "
            f"{round(info['run']['steps'] / self.batch_ratio)} steps, {info['run']['paths']} paths"
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
            path = _range(row, "path_error", lambda v: f"{100 * v:.2g} %")
            late = _range(row, "asymptotic_ratio", lambda v: f"{v:.3f}")
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
                f"about {100 * self.expected:.2g} %, without the error from larger steps."
            )
        return "\n".join([title, "", *text_table(head, rows), "", note, " ".join(said)]).rstrip()

    __repr__ = __str__


def verify(
    problem: AbstractProblem,
    noise: AbstractNoise,
    optimizer: Optimizer,
    batch_ratio: float,
    rescaled: Optimizer | Mapping[str, Optimizer] | None = None,
    *,
    steps: int,
    rule: str | None = None,
    momentum: str | None = None,
    paths: int = 1024,
    seed: int = 0,
    record_every: int | None = None,
    model: str | Model = "optimizer",
    start: Any = None,
    execution: Execution | None = None,
) -> Verification:
    r"""Simulate an optimizer and its rescaled version at δ times the batch size; compare at equal samples.

    The run at batch × 1 takes n = `steps` steps with the given noise, the other n/δ steps with
    ``noise.at_batch_ratio(δ)``: Σ/δ, mini-batches δ times as large, or, if the law of the mean has no name, the mean of
    δ actual draws. Step k of the former and step k/δ of the latter have seen equally many samples.

    Args:
        problem: what is minimised.
        noise: law of the gradient noise at the batch size of `optimizer`.
        optimizer: specification at that batch size.
        batch_ratio: δ > 0, a ratio of whole numbers of at most 64.
        rescaled: what to run at the other batch size: a specification, or several by label, for example a full rule
            and versions of it with omissions; default: ``rescale(optimizer, batch_ratio, rule, momentum=momentum)``.
        steps: optimizer steps at batch × 1; rounded up so that both runs end after equally many samples.
        rule: as in `rescale`.
        momentum: as in `rescale`.
        paths: independent paths of each run.
        seed: seed of all randomness; the runs are independent.
        record_every: steps of the run at batch × 1 between records, rounded so that both have then seen equally many
            samples; by default about a hundredth of the run.
        model: ``"optimizer"``, the algorithm itself, or one of its SDEs, as in `compare`.
        start: as in `compare`.
        execution: as in `compare`, for all runs.

    Returns:
        A `Verification`; printed, it is the table.

    Raises:
        ValueError, TypeError: if an argument is invalid, naming it; or from `rescale`.
    """
    ratio = _ratio(batch_ratio)
    targets = _targets(optimizer, batch_ratio, rescaled, rule, momentum)
    larger = _at_ratio(noise, ratio)
    steps = check.at_least("steps", steps, 2)
    wanted = steps // _RECORDS if record_every is None else check.at_least("record_every", record_every, 1)
    stride = max(1, round(wanted / ratio.numerator))
    every = stride * ratio.numerator
    rounds = math.ceil(steps / every)
    if rounds < 2:
        raise ValueError(
            f"steps: got {steps}; at a batch ratio of {ratio} both runs are recorded every {every} steps; give at "
            f"least {2 * every}."
        )

    def run(law: AbstractNoise, taken: Optimizer, label: str, step: int, own: int) -> Result:
        return compare(
            problem,
            law,
            taken,
            {label: model},
            steps=rounds * step,
            paths=paths,
            seed=own,
            start=start,
            record=Record(every=step),
            execution=execution,
        )

    source = run(noise, optimizer, SOURCE, every, seed)
    joined = _labelled(source, SOURCE, source, "optimizer")
    for i, (label, target) in enumerate(targets.items(), 1):
        theirs = run(larger, target, label, stride * ratio.denominator, seed + i)
        joined = joined.merge(_labelled(theirs, label, source, "rescaled"))
    begin = Case.checked(problem, noise, optimizer, start, 1)
    snr, expected = _foretold(begin, optimizer, float(ratio))
    here = functools.cache(functools.partial(_largest_curvature, begin))
    there = functools.cache(functools.partial(_largest_curvature, Case.checked(problem, larger, optimizer, start, 1)))
    stiffness = {SOURCE: _stiffness(optimizer, here)}
    stiffness |= {label: _stiffness(target, there) for label, target in targets.items()}
    return Verification(joined, {SOURCE: optimizer, **targets}, float(ratio), snr, expected, stiffness)


def _ratio(batch_ratio: Any) -> Fraction:
    given = check.positive("batch_ratio", batch_ratio)
    ratio = Fraction(given).limit_denominator(_LARGEST)
    if ratio == 0 or abs(float(ratio) / given - 1) > 1e-9:
        raise ValueError(
            f"batch_ratio: got {given:g}; to compare runs at equal numbers of samples, give a ratio of whole numbers "
            f"with a denominator of at most {_LARGEST}, for example {max(ratio, Fraction(1, _LARGEST))}."
        )
    return ratio


def _targets(
    optimizer: Optimizer, batch_ratio: float, rescaled: Any, rule: str | None, momentum: str | None
) -> dict[str, Optimizer]:
    default = f"batch × {float(batch_ratio):g}" if batch_ratio != 1 else "repeated"
    if rescaled is None:
        return {default: rescale(optimizer, batch_ratio, rule, momentum=momentum).optimizer}
    if rule is not None or momentum is not None:
        raise ValueError(
            "rule, momentum: got values together with rescaled, which replaces them; leave them out, or leave "
            "rescaled out."
        )
    named = dict(rescaled) if isinstance(rescaled, Mapping) else {default: rescaled}
    if not named:
        raise ValueError("rescaled: got no optimizers; give an optimizer, or a mapping from labels to optimizers.")
    for label, given in named.items():
        if not isinstance(label, str) or not label or label == SOURCE:
            raise ValueError(f"rescaled: got the label {label!r}; give a non-empty text other than {SOURCE!r}.")
        if not isinstance(given, Optimizer):
            raise TypeError(
                f"rescaled[{label!r}]: got {type(given).__name__}; give an optimizer, for example sl.AdamW(0.01)."
            )
    return named


def _at_ratio(noise: Any, ratio: Fraction) -> AbstractNoise:
    """The noise at δ times the batch size, from its law or as the mean of δ draws."""
    if not isinstance(noise, AbstractNoise):
        raise TypeError(f"noise: got {type(noise).__name__}; give a noise law, for example sl.GaussianNoise(1.0).")
    try:
        return noise.at_batch_ratio(float(ratio))
    except ValueError:
        if ratio.denominator > 1 or ratio <= 1 or isinstance(noise, DistributedNoise):
            raise
        return DistributedNoise(noise, workers=ratio.numerator)


def _foretold(case: Case, optimizer: Optimizer, ratio: float) -> tuple[float, float | None]:
    """SNR at the larger batch, and the expected error of the square-root rule, from signal and noise at the start."""
    x = case.start.x
    if x is None or not case.noise.has_variance(x):
        return math.nan, None
    signal, noise2 = (np.asarray(a, float) for a in (case.problem.evaluate(x)[1] ** 2, case.noise.variance(x)))
    noise2 = np.broadcast_to(noise2, signal.shape)
    snr = math.sqrt(signal.sum() * max(ratio, 1.0) / noise2.sum()) if noise2.sum() > 0 else math.inf
    if not isinstance(optimizer, AdamW | RMSpropW):
        return snr, None
    pull = (float(optimizer.decay_rate) * np.asarray(x, float)) ** 2
    sizes = [math.prod(shape) for shape in case.problem.layout.shapes if shape is not None]
    # Single coordinates if there are few, else whole tensors.
    starts = np.arange(signal.size) if signal.size <= MAX_COORDINATES else np.cumsum([0, *sizes[:-1]])
    starts = starts[np.diff([*starts, signal.size]) > 0]
    signal, noise2, size, pull = (np.add.reduceat(a, starts) for a in (signal, noise2, np.ones(signal.size), pull))
    return snr, path_error(signal, noise2, size, ratio, pull=pull)


def _stiffness(optimizer: Optimizer, largest: Callable[[float | None], float]) -> float:
    """Largest curvature at the start divided by the optimizer's stability limit; NaN if not known."""
    eps = float(optimizer.eps) if isinstance(optimizer, AdamW | RMSpropW) else None
    if eps is None and not isinstance(optimizer, SGD | Momentum):
        return math.nan
    b1 = float(getattr(optimizer, "b1", 0.0))
    return largest(eps) * float(optimizer.lr) * (1 - b1) / (2 + 2 * b1)


def _largest_curvature(case: Case, eps: float | None) -> float:
    """Largest eigenvalue of ∇²f at the start, or with ε of D ∇²f D, D² = 1/(√E g² + ε); NaN if it is not defined."""
    x, problem = case.start.x, case.problem
    if x is None or (eps is not None and not case.noise.has_variance(x)):
        return math.nan
    scale = jnp.ones_like(x)
    if eps is not None:
        scale = 1 / jnp.sqrt(jnp.sqrt(second_moment(problem, case.noise, x)[1]) + eps)

    def product(v: Array) -> Array:
        return scale * jax.jvp(lambda z: problem.evaluate(z)[1], (x,), (scale * v.astype(x.dtype),))[1]

    return float(spectrum(product, x, jax.random.key(0))[-1])


def _labelled(run: Result, label: str, source: Result, kind: str) -> Result:
    """The run relabelled as a model of `source`'s experiment, on the clock of `source`."""
    (own,) = run.models
    steps = source.dataset.step.values
    settings = {**run.settings[own], "model": kind, "stream": label}
    dataset = run.dataset.assign_coords(model=[label], step=steps, time=("step", steps.astype(float)))
    return Result(
        dataset.assign_attrs({**source.dataset.attrs, "models": json.dumps({label: settings}), "clock": _CLOCK})
    )


_CLOCK = "samples, in steps at batch × 1"


def _numbers(optimizer: Optimizer) -> str:
    said = {k: v for k, v in optimizer.describe().items() if isinstance(v, float) and (k == "lr" or v)}
    return ", ".join(f"{k} {v:.4g}" for k, v in said.items() if k != "eps")


def _short(value: float) -> str:
    return f"{value:.2g}" if value < 0.995 else f"{value:.3g}" if np.isfinite(value) else "-"


def _range(row: dict[Any, Any], name: str, written: Any) -> str:
    found, low, high = (row[column] for column in columns(name))
    if not np.isfinite(found):
        return "diverged" if row["diverged"] else "-"
    return f"{written(found)} ({written(low)} – {written(high)})" if np.isfinite(high) else written(found)
