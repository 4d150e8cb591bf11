"""The public interface of the Gaussian closure, which predicts a whole loss curve as a `Result`."""

import math
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sdelens.cases.case import Case, Estimate
from sdelens.core import check
from sdelens.core.random import Stream
from sdelens.noise import AbstractNoise
from sdelens.noise.distributed import RandomKLaw, WorkersLaw
from sdelens.optimizers import SGD, Lion, Optimizer, SignSGD, Signum, State
from sdelens.problems import AbstractProblem
from sdelens.results.result import Result
from sdelens.theory._closure import Moments, start_moments
from sdelens.theory._linear import linear_gradient
from sdelens.theory._moments import LinearGradient
from sdelens.theory._propagation import Record, propagate
from sdelens.theory._supported import check_known, check_law

__all__ = ["estimate", "predict", "predicted_loss", "prepared", "require_variance"]

_SHOWN = 64
"""Moments of single coordinates are recorded up to this dimension, as in a simulation."""
_START_DRAWS = 4096


def predict(
    problem: AbstractProblem,
    noise: AbstractNoise,
    optimizer: Optimizer,
    *,
    steps: int,
    record_every: int = 1,
    start: Any = None,
) -> Result:
    r"""Predict the mean loss and the mean and variance of the parameters over a whole run, without a simulation.

    The mean and covariance of the optimizer's state are propagated from step to step, assuming a normal law (a Gaussian
    closure), in O(d) per step if curvature and noise are diagonal, otherwise in O(d³) per step (d ≤ 2000). With
    u = E ∇f, h the schedule, α = 1 − ηhθ, and for one coordinate of curvature λ,

    - SGD: μ ← αμ − ηhu, s ← (α − ηhλ)²s + η²h² E Σ. Exact.
    - SignSGD: μ ← αμ − ηh E sign(g), s ← α²s − 2αηhJs + η²h² Var sign(g), with expectations over x and noise in closed
      form for normal noise and by quadrature for other laws; exact if x is normal.
    - Momentum: (x, m) is linear; exact.
    - Signum, Lion: as SignSGD, for the sign of am + bg, where am + b∇f is taken as normal.
    - RMSpropW, AdamW: (x, m, v) linearised at its mean, and two factors for what the fluctuation of v does to m/√v
      beyond that: to first order in 1 − β₂ or, for noise of heavy tails, from its law.

    Relative L2 error of the loss curve against 20 000 simulated paths (d = 10, λ = 1…5, σ = 1, η = .01): SGD and
    Momentum exact, SignSGD 1e-5, RMSpropW (β₂ = .99) 3e-5, AdamW (.9, .99) 7e-5, Signum and Lion 2e-4; t noise with
    ν = 3 and AdamW 4e-4. The error grows with 1 − β₂ and with heavy tails. The standard deviation of x is within 3 %
    for RMSpropW and 8 % for AdamW, but up to 2 times too large where a coordinate crosses its minimum, and without
    meaning for Signum and Lion while all signs agree.

    Args:
        problem: `Quadratic` or `LinearRegression`.
        noise: any law; if its covariance is a function of x, E Σ(x) is exact for a quadratic Σ (d ≤ 2000).
        optimizer: specification.
        steps: optimizer steps.
        record_every: steps between records; the start and the last step are always recorded.
        start: as in `sdelens.compare`. A random start is treated as normal with the moments of 4096 draws. This is
            exact for SGD and Momentum; for other optimizers the start should be narrow, such that the spread of the
            gradients is below that of the noise.

    Returns:
        A `Result` with one model, ``"prediction"``. Merge it into the result of a simulation to compare them:
        ``result.merge(prediction)``.

    Raises:
        TypeError: if the problem's gradient is not linear.
        ValueError: if the noise has no variance and the optimizer is not SignSGD, or if coordinates are coupled and
            d > 2000.

    Source: derived here.

    Examples:
        >>> import sdelens as sl
        >>> curve = sl.theory.predict(sl.Quadratic([1.0, 4.0]), sl.GaussianNoise(1.0), sl.SignSGD(0.01), steps=400)
        >>> curve.models
        ['prediction']
    """
    if check.any_traced(problem, noise, optimizer, start):
        raise TypeError(
            "predict: JAX is tracing an argument (jit, grad or vmap), and a Result holds numbers; use "
            "sl.theory.predicted_loss, which returns an array, inside transformations."
        )
    case, model, moments, (steps, every) = prepared(problem, noise, optimizer, (steps, record_every), start)
    if isinstance(optimizer, Signum | Lion) and case.noise.lacks_fourth_moment(case.start.centre()):
        warnings.warn(
            f"noise: {case.noise.describe()['name']} noise has no fourth moment, and the noise that m of "
            f"{optimizer.name} remembers is taken as normal, so the predicted loss is too high (measured: 3 % late at "
            "ν = 3, 50 % at ν = 2.2); compare it with a simulation.",
            RuntimeWarning,
            stacklevel=2,
        )
    begin = time.perf_counter()
    record = propagate(model, case.optimizer, moments(), steps, every, problem.dim if problem.dim <= _SHOWN else 0)
    if not np.isfinite(record.loss).all():
        first = int(np.argmax(~np.isfinite(record.loss))) * every
        warnings.warn(
            f"the predicted loss is not finite from step {first} on: the optimizer diverges, or the closure fails; a "
            "smaller lr may help.",
            RuntimeWarning,
            stacklevel=2,
        )
    return Result(_dataset(case, record, steps, every, time.perf_counter() - begin))


def predicted_loss(
    problem: AbstractProblem,
    noise: AbstractNoise,
    optimizer: Optimizer,
    *,
    steps: int,
    record_every: int = 1,
    start: Any = None,
) -> Array:
    """The mean loss of `predict` as an array, also inside `jax.grad`, `jax.jit` and `jax.vmap`.

    The numbers of problem, noise and optimizer, those of a schedule included, may be traced. Build the specification
    from them inside the function that is transformed, or pass a specification as its argument: specifications are
    pytrees, whose numbers are the leaves. What is checked of a number elsewhere is not checked of a traced one: a loss
    that does not exist is then not finite.

    A gradient (reverse mode) costs about 4 times as much as the value, and its memory grows as the root of the number
    of steps. Derivatives with respect to a few numbers may as well be computed forwards (`jax.jvp`, `jax.jacfwd`) in
    constant memory. With β₂ or the noise traced, both ways to describe the fluctuation of v are compiled, and under
    `vmap` over them both are computed.

    Args:
        problem: as in `predict`.
        noise: as in `predict`.
        optimizer: as in `predict`.
        steps: optimizer steps; a whole number that is not traced.
        record_every: steps between records; the start and the last step are always recorded.
        start: as in `predict`.

    Returns:
        E f at the start, after every `record_every` steps and after the last: shape (1 + ⌈steps/record_every⌉,). Its
        dtype is that of the problem's start.

    Raises:
        TypeError, ValueError: as `predict`.

    Source: derived here.

    Examples:
        >>> import jax, sdelens as sl
        >>> problem, noise = sl.Quadratic([1.0, 4.0]), sl.GaussianNoise(1.0)
        >>> def final(lr):
        ...     return sl.theory.predicted_loss(problem, noise, sl.SignSGD(lr), steps=400)[-1]
        >>> round(float(final(0.1)), 3), round(float(jax.grad(final)(0.1)), 2)
        (0.068, 0.73)
    """
    case, model, moments, (steps, every) = prepared(problem, noise, optimizer, (steps, record_every), start)
    return jnp.asarray(propagate(model, case.optimizer, moments(), steps, every, 0).loss)


def prepared(
    problem: AbstractProblem, noise: AbstractNoise, optimizer: Optimizer, sizes: tuple[Any, Any], start: Any
) -> tuple[Case, LinearGradient, Callable[[], Moments], tuple[int, int]]:
    """The checked case, its gradient, a function that computes the moments at the start, and the numbers of steps."""
    optimizer = check_known(problem, noise, optimizer)
    steps = check.at_least("steps", sizes[0], 1)
    every = min(check.at_least("record_every", sizes[1], 1), steps)
    case = Case.checked(problem, noise, optimizer, start, steps)
    model = linear_gradient(problem, case.noise)
    require_variance(case, "the closure")

    def moments() -> Moments:
        return start_moments(model, *_start(case, model), case.optimizer)

    return case, model, moments, (steps, every)


def estimate(
    problem: AbstractProblem, noise: AbstractNoise, optimizer: Optimizer, *, steps: int, record_every: int = 1
) -> Estimate:
    """Estimate the time and memory that `predict` would take with the same arguments, measured on a few steps.

    Args:
        problem: as in `predict`.
        noise: as in `predict`.
        optimizer: as in `predict`.
        steps: as in `predict`.
        record_every: as in `predict`.

    Raises:
        ValueError, TypeError: as `predict`.
    """
    steps = check.at_least("steps", steps, 1)
    every = min(check.at_least("record_every", record_every, 1), steps)
    few = min(steps, 4 * every)
    compiling, (short, long) = 0.0, (few, min(steps, 8 * few))
    times = []
    for size in (short, long):
        best = math.inf
        for attempt in range(3):
            begin = time.perf_counter()
            predict(problem, noise, optimizer, steps=size, record_every=every)
            took = time.perf_counter() - begin
            if attempt == 0 and size == long:
                compiling = took
            best = min(best, took)
        times.append(best)
    one = max(times[1] - times[0], 0.0) / max(long - short, 1)
    model = linear_gradient(problem, noise.bind(problem))
    state = 6 * model.curvature.size * model.curvature.dtype.itemsize
    kept = 2 * problem.dim if problem.dim <= _SHOWN else 0
    result = 8 * (6 + kept) * (-(-steps // every) + 1)
    compiling = max(compiling - times[1], 0.0)
    return Estimate(compiling + times[1] + one * (steps - long), compiling, 2 * state + 2 * result, result)


def require_variance(case: Case, what: str) -> None:
    """Refuse noise of infinite variance, except for SignSGD, and laws that the theory does not cover.

    Raises:
        ValueError: naming the law.
    """
    compressed = isinstance(case.noise, WorkersLaw) and case.noise.compression is not None
    if compressed and not (isinstance(case.noise, RandomKLaw) and isinstance(case.optimizer, SGD)):
        raise ValueError(
            "noise: the theory covers compressed gradients only for sl.RandomK with sl.SGD; simulate others with "
            "sl.compare."
        )
    check_law(case.noise, case.start.centre(), case.optimizer)
    if isinstance(case.optimizer, SignSGD):
        return
    with check.evaluated(case.noise, case.start):
        has_variance = case.noise.has_variance(case.start.centre())
    if not has_variance:
        raise ValueError(
            f"noise: {case.noise.describe()['name']} noise has no finite variance here, so the mean loss of "
            f"{case.optimizer.name} is infinite or unknown, and {what} does not exist. SignSGD needs no variance."
        )


def _start(case: Case, model: LinearGradient) -> tuple[State, Array]:
    """The mean of the optimizer's state at step 0, and Cov x."""
    start, optimizer = case.start, case.optimizer

    def initial(x: Array) -> State:
        return optimizer.initial_state(case.problem, case.noise, x)

    stream = Stream(*jax.device_put((np.zeros(2, np.uint32), np.arange(_START_DRAWS, dtype=np.uint32))))
    state = start.state(stream, initial)
    if state.x.ndim == 1:
        return state, jnp.zeros_like(model.curvature)
    spread = state.x.var(axis=1) if model.curvature.ndim == 1 else jnp.atleast_2d(jnp.cov(state.x))
    return jax.tree.map(lambda a: a.mean(axis=-1) if a.ndim == 2 else a, state), spread


def _dataset(case: Case, record: Record, steps: int, every: int, seconds: float) -> Any:
    import xarray as xr

    at = np.minimum(np.arange(len(record.loss)) * every, steps)
    columns: dict[str, tuple[tuple[str, ...], np.ndarray]] = {
        "loss_mean": (("step",), record.loss),
        "loss_std": (("step",), np.sqrt(np.maximum(record.loss_variance, 0))),
        "loss_sem": (("step",), np.zeros(len(at))),
        "n_paths": (("step",), np.zeros(len(at), np.int64)),
    }
    if record.x.shape[1]:
        columns["x_mean"] = (("step", "coordinate"), record.x)
        columns["x_var"] = (("step", "coordinate"), record.x_variance)
    variables = {
        name: (("model", *dims), values[None].astype(np.int64 if name == "n_paths" else np.float64))
        for name, (dims, values) in columns.items()
    }
    coordinates = {"model": ["prediction"], "step": at, "time": ("step", at * float(case.optimizer.lr))}
    settings = {"prediction": {"model": "prediction", "stream": "prediction", "wall_time": round(seconds, 3)}}
    device = jax.local_devices()[0]
    where = {"platform": device.platform, "kind": device.device_kind, "count": 1, "cores": os.cpu_count() or 1}
    attrs = case.attributes({"steps": steps, "record_every": every}, settings, where)
    return xr.Dataset(variables, coordinates, attrs)
