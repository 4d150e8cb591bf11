r"""Measurement of the weak order of an SDE: how |E u(xₖ) − E u(X_{kη})| decays as η → 0 at fixed ρ, θ and horizon.

There are two methods to make the Monte-Carlo error smaller than the bias:

- *coupled*: optimizer and SDE run on one Brownian path (`sdelens.integrate.Coupled`), so the standard deviation of
  their difference is O(η) and a few thousand paths resolve its mean. This needs normal noise. The SDE is *resolved*: it
  is integrated with n, n/2 and n/4 substeps on that path and extrapolated, 2E(n) − E(n/2), which leaves an error of
  O(1/n²). This error is estimated as a third of the change from the next coarser pair, and n is doubled until the
  estimate is below the Monte-Carlo error or, if the Monte-Carlo error is very small, below ½ % of the error itself.
- *kernel*: for SignSGD, whose signs are not determined by a Brownian path, on separable problems: expectations by
  transition kernels in one dimension (`sdelens.order._kernel`), without Monte-Carlo error.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from sdelens.cases.case import Case, check_schedule, check_start, check_subject
from sdelens.cases.starts import Start, start_of
from sdelens.core import check
from sdelens.core.names import ON_REQUEST
from sdelens.core.random import Stream
from sdelens.integrate import NoQuadratureError
from sdelens.noise import AbstractNoise, NoiseLaw
from sdelens.optimizers import SGD, DecayedOptimizer, FromOptax, Optimizer, SignSGD
from sdelens.order._functions import test_functions
from sdelens.order._kernel import TooSteepError, is_separable
from sdelens.order._result import WeakOrder
from sdelens.order._runs import Row, Study
from sdelens.problems import AbstractProblem
from sdelens.run.models import ClosedForm, Empirical, Model, Models, check_model, chosen_models
from sdelens.run.options import Execution, Options
from sdelens.run.plan import checked_seed, plan_of
from sdelens.sdes import sdes_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["weak_order"]


def weak_order(
    problem: AbstractProblem,
    noise: AbstractNoise,
    optimizer: Optimizer,
    lrs: Sequence[float],
    horizon: float,
    models: Models = None,
    *,
    times: int = 4,
    functions: Mapping[str, Callable[[Any], Any]] | None = None,
    paths: int = 20_000,
    substeps: int | None = None,
    start: Any = None,
    method: str = "auto",
    seed: int = 0,
    execution: Execution | None = None,
) -> WeakOrder:
    r"""Measure the weak order of an optimizer's SDEs: the log-log slope of |E u(xₖ) − E u(X_{kη})| as η → 0.

    ρ = (1 − β)/η, θ and the schedule as a function of time are those of `optimizer` at its lr; they and the horizon are
    the same for all lrs (`Optimizer.at_lr`). Every SDE is integrated in two ways: resolved, and with one substep per
    optimizer step. If accumulators start at 0, the order is less than 1, since the coefficients are not bounded there:
    use ``v0="second-moment"``.

    Source of the definition: Kloeden and Platen 1992, chapter 9; for optimizers Li, Tai, E 2017 (arXiv 1511.06251).

    Args:
        problem: what is minimised.
        noise: law of the gradient noise.
        optimizer: specification at one learning rate, which fixes ρ and θ.
        lrs: learning rates, decreasing, at least three.
        horizon: the time T = kη; expectations are compared at this time and at fractions of it.
        models: SDEs by name or as objects, as in `compare`, each with one substep, since the study chooses the number
            of substeps. The default is all that exist in closed form for the optimizer, except ``"full-noise"`` and
            ``"second-order"`` for RMSprop and Adam: their noise of V is only partly coupled to the optimizer by the
            Brownian path, so they need more paths. An SDE that you define is given as in `compare`; its first Brownian
            motions are coupled to the gradient noise (with many components, ``dW`` is flattened in order). The sign and
            the root with which it uses them do not change any expectation, but they decide how precise the result is:
            use ``noise.apply_root(y.x, dW)``, with the sign of the gradient. ``"empirical"`` is the default if there is
            no other SDE. Its coefficients are computed from the optimizer's update by quadrature where that is
            possible, otherwise, and with options of sampling, from samples. These have no Brownian path in common with
            the optimizer, so their errors are those of independent paths. Coupled Rademacher increments are the signs
            of the Gaussian ones, follow the optimizer less closely and need more paths (a million for errors of 1e-3).
        times: number of equally spaced times up to the horizon; each must be a whole number of steps at every lr.
        functions: test functions u of the parameters, by name; by default the loss, for d ≤ 4 every coordinate and its
            square (otherwise their averages over coordinates), and the bump exp(−‖x − x₀‖²/(2d s²)), where s² is the
            mean square of x₀, or 1 if that is 0.
        paths: number of coupled paths per lr.
        substeps: substeps of the resolved SDE on coupled paths, a multiple of 4; by default 8, doubled up to 128 until
            the error that extrapolation leaves is below the Monte-Carlo error or ½ % of the error itself.
        start: as in `compare`.
        method: ``"coupled"``, ``"kernel"`` (SignSGD on a separable problem), or ``"auto"``: the kernel if possible.
        seed: seed of all randomness.
        execution: devices and progress, as in `compare`; nothing is saved, resumed or divided into shares.

    Returns:
        A `WeakOrder`; print it, or see its `slope`, `slopes`, `errors`, `plot`.

    Raises:
        ValueError, TypeError: naming the argument, for learning rates that do not decrease or have ηρ > 1 (with the
            largest allowed one), a horizon shorter than one step, or times that are not whole numbers of steps.

    Examples:
        >>> import sdelens as sl
        >>> study = sl.weak_order(sl.Quadratic([1.0]), sl.GaussianNoise(1.0), sl.SignSGD(0.1), [0.2, 0.1, 0.05], 0.8)
        >>> 0.9 < study.slope < 1.1
        True
    """
    check_subject(problem, noise, optimizer)
    rates = _checked_rates(optimizer, lrs, horizon, times)
    named = _checked_models(optimizer, models)
    if substeps is not None and (check.at_least("substeps", substeps, 4) % 4):
        raise ValueError(
            f"substeps: got {substeps}; give a multiple of 4, because the SDE is run with n, n/2 and n/4 substeps."
        )
    if (fewest := check.at_least("paths", paths, 1)) < 2:
        raise ValueError(f"paths: got {fewest}; give 2 or more, which a standard error needs.")
    options = Options(steps=1, paths=paths, seed=seed, execution=execution)
    for name in ("share", "executor", "kernel"):
        if getattr(options.execution, name) not in (None, False):
            raise ValueError(
                f"{name}: weak_order runs in one process, on all of its devices and without kernels; give an execution "
                f"without {name}."
            )
    plan = plan_of(options, problem.dim)
    seed = checked_seed(options)
    if isinstance(optimizer.unwrapped, FromOptax):
        optimizer.unwrapped.check(problem.layout)
    bound, begin = noise.bind(problem), start_of(start, problem, optimizer)
    if bound.scheduled:
        raise ValueError(
            "noise: changes with the step, and runs at several learning rates take different numbers of steps; give "
            "noise with one law."
        )
    check_start(optimizer, bound, problem, begin)
    family = [optimizer.at_lr(lr) for lr in rates]
    for member in family:
        check_schedule(member, round(horizon / member.lr))
    check.choice("method", method, ("auto", "coupled", "kernel"))
    tests = test_functions(problem, functions, begin.centre())
    kernel = _kernel_exists(problem, bound, optimizer, begin, functions, named)
    if method == "kernel" and kernel is not None:
        raise ValueError(f"method: got 'kernel', but {kernel}; use method='coupled'.")
    case = Case(problem, bound, optimizer, begin)
    named = {label: _with_coefficients(model, case) for label, model in named.items()}
    study = Study(problem, noise, family, named, tests, float(horizon), times, begin, optimizer.lr, seed)
    used, rows = "coupled", None
    if method != "coupled" and kernel is None:
        try:
            used, rows = "kernel", study.by_kernel()
        except TooSteepError as error:
            if method == "kernel":
                raise ValueError(f"method: got 'kernel', but {error}; use method='coupled'.") from error
    if rows is None:
        rows = study.by_coupling(bound, plan, substeps, options.execution.progress)
    info = {
        "optimizer": optimizer.describe(),
        "problem": problem.describe(),
        "noise": bound.describe(),
        "dim": problem.dim,
        "lrs": rates,
        "horizon": float(horizon),
        "times": times,
        "models": {label: model.settings() for label, model in named.items()},
        **begin.describe(),
        "paths": 0 if used == "kernel" else plan.paths,
        "method": used,
        "rounding": 1e-7 if used == "kernel" else 1e-6,
        "seed": seed,
    }
    return WeakOrder(_with_sizes(rows).assign(method=used), info)


def _checked_rates(optimizer: Optimizer, lrs: Any, horizon: Any, times: Any) -> list[float]:
    if isinstance(lrs, str) or np.ndim(lrs) != 1:
        raise TypeError(f"lrs: got {lrs!r}; give a list of decreasing learning rates, for example [0.2, 0.1, 0.05].")
    rates = [check.positive(f"lrs[{i}]", lr) for i, lr in enumerate(lrs)]
    if len(rates) < 3:
        raise ValueError(
            f"lrs: got {len(rates)} of them; give three or more, which a slope with confidence limits needs."
        )
    if any(b >= a for a, b in itertools.pairwise(rates)):
        raise ValueError(f"lrs: got {rates}; give decreasing learning rates.")
    horizon = check.positive("horizon", horizon)
    check.at_least("times", times, 1)
    if horizon < rates[0] * (1 - 1e-9):
        raise ValueError(
            f"horizon: got {horizon:g}, shorter than one step of {rates[0]:g}; with {times} times give at least "
            f"{times * rates[0]:g}."
        )
    optimizer = optimizer.unwrapped
    memories = optimizer.memories if isinstance(optimizer, DecayedOptimizer) else ()
    limits = [optimizer.lr / (1 - getattr(optimizer, b)) for b in memories if hasattr(optimizer, b)]
    if limits and rates[0] > min(limits) * (1 + 1e-9):
        raise ValueError(
            f"lrs: got {rates[0]:g}, at which ηρ > 1 and a β would be negative; with this optimizer's ρ give "
            f"learning rates of at most {min(limits):g}."
        )
    for lr in rates:
        steps = horizon / (times * lr)
        if abs(steps - round(steps)) > 1e-6 * max(steps, 1) or round(steps) < 1:
            nearest = max(round(steps), 1) * times * lr
            raise ValueError(
                f"horizon: got {horizon:g}; {horizon:g}/{times} is {steps:g} steps of lr {lr:g}; the number of steps "
                f"must be a whole number for every lr. Change the horizon (to {nearest:g} for this lr), times or lrs."
            )
    return rates


def _checked_models(optimizer: Optimizer, models: Any) -> dict[str, ClosedForm | Empirical]:
    """Check `models` and return the SDEs by label."""
    if models is None:
        closed = sdes_of(optimizer)
        models = [n for n in closed if n not in ON_REQUEST or isinstance(optimizer, SGD)] or ["empirical"]
    found: dict[str, ClosedForm | Empirical] = {}
    for label, model in chosen_models(optimizer, models).items():
        if not isinstance(model, ClosedForm | Empirical):
            raise ValueError(f"models: got {label!r}; give only SDEs, each of which is compared with the optimizer.")
        if model.substeps > 1:
            raise ValueError(
                f"models: {label!r} has {model.substeps} substeps; use the argument substeps of weak_order instead."
            )
        found[label] = model
    return found


def _with_coefficients(model: ClosedForm | Empirical, case: Case) -> ClosedForm | Empirical:
    """The model; the default empirical SDE uses quadrature where that is possible, because it can be coupled."""
    if model == Empirical():
        by_quadrature = Empirical(coefficients="quadrature")
        try:
            check_model(by_quadrature, case)
            jax.eval_shape(_moved, by_quadrature.stepper(case))
        except NoQuadratureError:
            return model
        return by_quadrature
    check_model(model, case)
    return model


def _moved(stepper: Any) -> Any:
    """A step of a stepper, which is traced to see whether quadrature is possible."""
    stream = Stream(jnp.zeros(2, jnp.uint32), jnp.zeros(1, jnp.uint32))
    state = jax.tree.map(lambda a: a[:, None] if jnp.ndim(a) == 1 else a, stepper.init(stream))
    return stepper.step(jnp.asarray(0), state, jnp.zeros_like(stepper.position(state)), stream)


def _kernel_exists(
    problem: AbstractProblem,
    noise: NoiseLaw,
    optimizer: Optimizer,
    start: Start,
    functions: Any,
    models: Mapping[str, Model],
) -> str | None:
    """The reason why transition kernels cannot be used, or None if they can be used."""
    if not isinstance(optimizer, SignSGD) or optimizer.queries(problem.layout):
        return f"it supports only SignSGD, not {optimizer.name}"
    if not all(isinstance(model, ClosedForm) and model.sde == "sde" for model in models.values()):
        return "it supports only the model 'sde'"
    if start.x is None:
        return "it does not support a random start"
    if functions is not None:
        return "it does not support user-defined test functions"
    return (
        None if is_separable(problem, noise) else "it supports only problems that separate into independent coordinates"
    )


def _with_sizes(rows: list[Row]) -> "pd.DataFrame":
    """The table with a column for the size of every test function: the largest |E u|, including the start."""
    import pandas as pd

    table = pd.DataFrame(rows)
    largest = table[["expected", "at_start"]].abs().max(axis=1).groupby(table.function).max()
    table["size"] = [max(float(largest[name]), 1e-300) for name in table.function]
    return table.drop(columns="at_start")
