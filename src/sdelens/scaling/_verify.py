"""Simulation of both batch sizes, and comparison of their losses at equal numbers of samples."""

import functools
import json
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sdelens.cases.case import Case
from sdelens.core import check
from sdelens.diagnosis.expected import path_error
from sdelens.integrate import MAX_COORDINATES
from sdelens.noise import AbstractNoise, at_ratio
from sdelens.optimizers import SGD, AdamW, Momentum, Optimizer, RMSpropW, second_moment
from sdelens.problems import AbstractProblem
from sdelens.results.result import Result
from sdelens.run.api import compare
from sdelens.run.models import Model
from sdelens.run.options import Execution, Record
from sdelens.scaling._ramp_result import Ramp
from sdelens.scaling._rescale import rescale
from sdelens.scaling._verification import SOURCE, Verification
from sdelens.theory.constants import spectrum

__all__ = ["verify"]

_LARGEST = 64
_RECORDS = 100


def verify(
    problem: AbstractProblem,
    noise: AbstractNoise,
    optimizer: Optimizer | None,
    batch_ratio: float | Ramp,
    rescaled: Optimizer | Mapping[str, Optimizer] | None = None,
    *,
    steps: int | None = None,
    rule: str | None = None,
    momentum: str | None = None,
    snr: Any = None,
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
        optimizer: specification at that batch size; for a ramp its own, or None.
        batch_ratio: δ > 0, a ratio of whole numbers of at most 64. Or a `Ramp` whose batch sizes are multiples of its
            B₀: the optimizer itself is then run along it, and compared with the run at B₀ with the same schedule; only
            `paths`, `seed`, `start` (parameters) and `execution` can be given in addition.
        rescaled: what to run at the other batch size: a specification, or several by label, for example a full rule
            and versions of it with omissions; default: ``rescale(optimizer, batch_ratio, rule, momentum=momentum)``.
        steps: optimizer steps at batch × 1; rounded up so that both runs end after equally many samples.
        rule: as in `rescale`.
        momentum: as in `rescale`.
        snr: as in `rescale`.
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
    if execution is not None and execution.share is not None:
        raise ValueError(
            "share: verify compares several runs, so it needs all of their paths; give executor= and shares= in place "
            "of share."
        )
    if isinstance(batch_ratio, Ramp):
        options = {"rescaled": rescaled, "steps": steps, "rule": rule, "momentum": momentum, "snr": snr}
        options |= {"record_every": record_every, "model": None if model == "optimizer" else model}
        if optimizer is not None and not _same(optimizer, batch_ratio.optimizer):
            raise ValueError("optimizer: differs from that of the ramp; give the same, or None.")
        return _verify_ramp(
            problem, noise, batch_ratio, options, paths=paths, seed=seed, start=start, execution=execution
        )
    if steps is None or optimizer is None:
        raise ValueError("steps, optimizer: not given; both are needed unless batch_ratio is a ramp.")
    ratio = _ratio(batch_ratio)
    targets = _targets(optimizer, batch_ratio, rescaled, rule, momentum, snr)
    larger = at_ratio(noise, float(ratio))
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
    at_start, expected = _foretold(begin, optimizer, float(ratio))
    here = functools.cache(functools.partial(_largest_curvature, begin))
    there = functools.cache(functools.partial(_largest_curvature, Case.checked(problem, larger, optimizer, start, 1)))
    stiffness = {SOURCE: _stiffness(optimizer, here)}
    stiffness |= {label: _stiffness(target, there) for label, target in targets.items()}
    others = rounds * stride * ratio.denominator
    return Verification(joined, {SOURCE: optimizer, **targets}, float(ratio), at_start, expected, stiffness, others)


def _verify_ramp(
    problem: AbstractProblem, noise: AbstractNoise, ramp: Ramp, given: Mapping[str, Any], *, seed: int, **options: Any
) -> Verification:
    """Run the optimizer along a ramp and at B₀; compare at the numbers of samples at which both have ended a step."""
    extra = [name for name, value in given.items() if value is not None]
    if extra:
        raise ValueError(f"{', '.join(extra)}: got a value, but a ramp determines it; leave it out.")
    if (ramp.batch_size % ramp.first).any():
        raise ValueError(
            f"batch_ratio: got a ramp with batch sizes that are not multiples of {ramp.first}, the batch size of its "
            "optimizer; to compare runs at equal numbers of samples, give multiples."
        )
    clock = np.concatenate([[0], np.cumsum(ramp.batch_size // ramp.first)])  # steps at B₀ after every step of the ramp
    stride = max(1, ramp.steps // _RECORDS)
    ours = np.minimum(np.arange(-(-ramp.steps // stride) + 1) * stride, ramp.steps)
    theirs = clock[ours]
    every = int(np.gcd.reduce(np.diff(theirs)))
    label = f"ramp to × {ramp.batch_size.max() / ramp.first:g}"
    runs = {SOURCE: (ramp.constant(), every, seed), label: (ramp, stride, seed + 1)}
    found, optimizers = {}, {}
    for name, (one, step, own) in runs.items():
        law, optimizers[name] = one.along(noise)
        record = Record(every=step)
        found[name] = compare(
            problem, law, optimizers[name], {name: "optimizer"}, steps=one.steps, seed=own, record=record, **options
        )
    base = Result(found[SOURCE].dataset.sel(step=theirs))
    joined = _labelled(base, SOURCE, base, "optimizer").merge(_labelled(found[label], label, base, "rescaled"))
    nothing = dict.fromkeys(runs, math.nan)
    ratio = float(ramp.batch_size.max() / ramp.first)
    return Verification(joined, optimizers, ratio, math.nan, None, nothing, ramp.steps)


def _same(given: Any, other: Any) -> bool:
    """Whether two optimizers have the same numbers and schedules."""
    if isinstance(given, Mapping) or isinstance(other, Mapping):
        return bool(given == other)
    return given is other or bool(eqx.tree_equal(given, other))


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
    optimizer: Optimizer, batch_ratio: float, rescaled: Any, rule: str | None, momentum: str | None, snr: Any
) -> dict[str, Optimizer]:
    default = f"batch × {float(batch_ratio):g}" if batch_ratio != 1 else "repeated"
    if rescaled is None:
        return {default: rescale(optimizer, batch_ratio, rule, momentum=momentum, snr=snr).optimizer}
    if rule is not None or momentum is not None or snr is not None:
        raise ValueError(
            f"rule, momentum{', snr' * (snr is not None)}: got values together with rescaled, which replaces "
            "them; leave them out, or leave "
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
