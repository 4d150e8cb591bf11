r"""The weak order of an SDE, measured: how |E u(xₖ) − E u(X_{kη})| falls as η → 0 at fixed ρ, θ and horizon.

Two ways to bring the Monte-Carlo error below the bias:

- *coupled*: optimizer and SDE run on one Brownian path (`sdelens.integrate.Coupled`), so that their difference has a
  spread of O(η) and a few thousand paths resolve its mean. This needs normal noise. The SDE is *resolved*: it is
  integrated with n, n/2 and n/4 substeps on that path and extrapolated, 2E(n) − E(n/2), which leaves an error of
  O(1/n²); what is left of it is estimated as a third of the change from the next coarser pair, and n doubles until that
  is below the Monte-Carlo error, or, where coupling leaves hardly any, below ½ % of the error itself.
- *kernel*: for SignSGD, whose signs no Brownian path determines, on separable problems: expectations by transition
  kernels on the line (`sdelens.order._kernel`), with no Monte-Carlo error at all.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sdelens import _check
from sdelens._names import INCREMENTS, INTEGRATORS
from sdelens.ensemble import run_ensemble
from sdelens.experiment import check_subject, progress_bar
from sdelens.integrate import Coupled, Discrete, EulerMaruyama
from sdelens.noise import AbstractNoise
from sdelens.optimizers import Optimizer, SignSGD
from sdelens.order._functions import TestFunction, test_functions
from sdelens.order._kernel import NODES, SignChain, is_separable
from sdelens.order._result import COARSE, RESOLVED, WeakOrder
from sdelens.problems import AbstractProblem
from sdelens.sdes import build_sde, sdes_of
from sdelens.settings import Options, check_schedule, check_start
from sdelens.starts import Start, start_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["weak_order"]

_FEWEST_SUBSTEPS, _MOST_SUBSTEPS = 8, 128
_RESOLVED_SHARE = 1 / 200
_CHUNK = 8192


def weak_order(
    problem: AbstractProblem,
    noise: AbstractNoise,
    optimizer: Optimizer,
    lrs: Sequence[float],
    horizon: float,
    models: Sequence[str] | None = None,
    *,
    times: int = 4,
    functions: Mapping[str, Callable[[Any], Any]] | None = None,
    paths: int = 20_000,
    substeps: int | None = None,
    integrator: str = "sequential",
    bias_correction: str = "discrete",
    increments: str = "gaussian",
    start: Any = None,
    method: str = "auto",
    seed: int = 0,
    devices: int | Sequence[Any] | None = None,
    progress: bool | None = None,
) -> WeakOrder:
    r"""Measure the weak order of an optimizer's SDEs: the slope of |E u(xₖ) − E u(X_{kη})| as η shrinks.

    ρ = (1 − β)/η, θ, the schedule as a function of time, and the horizon are those of `optimizer` at its own lr and are
    held (`Optimizer.at_lr`). Every SDE is taken twice: resolved, and with one substep per optimizer step. From
    accumulators that start at 0 the order is less than 1, since the coefficients are not bounded there: use
    ``v0="second-moment"``.

    Args:
        problem: what is minimised.
        noise: law of the gradient noise.
        optimizer: specification at one learning rate, which fixes ρ and θ.
        lrs: learning rates, decreasing, at least three.
        horizon: the time T = kη at which, and at fractions of which, expectations are compared.
        models: SDEs by name, by default all that exist for the optimizer.
        times: how many equally spaced times up to the horizon; each must be a whole number of steps at every lr.
        functions: test functions u by name, of the parameters; by default the loss, for d ≤ 4 every coordinate and its
            square (else their averages over coordinates), and the bump exp(−‖x − x₀‖²/(2d s²)), s² the mean square of
            x₀, or 1 where that is 0.
        paths: coupled paths per lr.
        substeps: of the resolved SDE, a multiple of 4; by default 8, doubled up to 128 until what extrapolation leaves
            is below the Monte-Carlo error or ½ % of the error itself.
        integrator: ``"sequential"`` or ``"euler"``.
        bias_correction: for Adam's SDEs.
        increments: ``"gaussian"`` or ``"rademacher"``; coupled, the latter are the signs of the former, follow the
            optimizer less closely and take more paths (a million for errors of 1e-3).
        start: as in `compare`.
        method: ``"coupled"``, ``"kernel"`` (SignSGD on a separable problem), or ``"auto"``: the kernel where it exists.
        seed: seed of all randomness.
        devices: how many or which devices.
        progress: show a bar; by default if standard error is a terminal.

    Returns:
        A `WeakOrder`; print it, or see its `slope`, `slopes`, `errors`, `plot`.

    Raises:
        ValueError, TypeError: naming the argument: learning rates that do not decrease, or with ηρ > 1 (and the largest
            legal one); a horizon shorter than one step, or times that are no whole numbers of steps.

    Example:
        >>> import sdelens as sl
        >>> study = sl.weak_order(sl.Quadratic([1.0]), sl.GaussianNoise(1.0), sl.SignSGD(0.1), [0.2, 0.1, 0.05], 0.8)
        >>> 0.9 < study.slope < 1.1
        True
    """
    check_subject(problem, noise, optimizer)
    rates = _checked_rates(optimizer, lrs, horizon, times)
    named = _checked_models(optimizer, models)
    if substeps is not None and (_check.at_least("substeps", substeps, 4) % 4):
        raise ValueError(f"substeps: got {substeps}; give a multiple of 4, since n, n/2 and n/4 are run.")
    options = Options(steps=1, paths=paths, seed=seed, integrator=integrator, substeps=1, devices=devices)
    plan = options.plan()
    seed = options.checked_seed()
    bound, begin = noise.bind(problem), start_of(start, problem, optimizer)
    check_start(optimizer, bound, problem, begin)
    family = [optimizer.at_lr(lr) for lr in rates]
    for member in family:
        check_schedule(member, round(horizon / member.lr))
    _check.choice("method", method, ("auto", "coupled", "kernel"))
    tests = test_functions(problem, functions)
    kernel = _kernel_exists(problem, bound, optimizer, begin, functions)
    if method == "kernel" and kernel is not None:
        raise ValueError(f"method: got 'kernel', but {kernel}; use 'coupled'.")
    study = _Study(problem, noise, family, named, tests, float(horizon), times, begin, optimizer.lr, seed)
    style = _Style(
        _check.choice("integrator", integrator, INTEGRATORS),
        bias_correction,
        _check.choice("increments", increments, INCREMENTS),
    )
    for name in named:
        build_sde(name, problem, bound, optimizer, bias_correction)
    if method != "coupled" and kernel is None:
        used, rows = "kernel", study.by_kernel(style.increments)
    else:
        used, rows = "coupled", study.by_coupling(bound, plan, substeps, style, progress)
    info = {
        "optimizer": optimizer.describe(),
        "problem": problem.describe(),
        "noise": bound.describe(),
        "dim": problem.dim,
        "horizon": float(horizon),
        "paths": 0 if used == "kernel" else plan.paths,
        "method": used,
        "rounding": 1e-7 if used == "kernel" else 1e-6,
        "seed": seed,
    }
    return WeakOrder(_with_sizes(rows, problem, begin, tests), info)


def _checked_rates(optimizer: Optimizer, lrs: Any, horizon: Any, times: Any) -> list[float]:
    rates = [_check.positive(f"lrs[{i}]", lr) for i, lr in enumerate(np.atleast_1d(np.asarray(lrs)))]
    if len(rates) < 3:
        raise ValueError(f"lrs: got {len(rates)}; a slope with an interval needs three or more.")
    if any(b >= a for a, b in itertools.pairwise(rates)):
        raise ValueError(f"lrs: got {rates}; give decreasing learning rates.")
    horizon = _check.positive("horizon", horizon)
    _check.at_least("times", times, 1)
    if horizon < rates[0] * (1 - 1e-9):
        raise ValueError(f"horizon: got {horizon:g}, shorter than one step of {rates[0]:g}.")
    limits = [optimizer.lr / (1 - getattr(optimizer, b)) for b in ("b1", "b2") if hasattr(optimizer, b)]
    if limits and rates[0] > min(limits) * (1 + 1e-9):
        raise ValueError(
            f"lrs: got {rates[0]:g}, at which ηρ > 1 and a β would be negative; with this optimizer's ρ the largest "
            f"legal η is {min(limits):g}."
        )
    for lr in rates:
        steps = horizon / (times * lr)
        if abs(steps - round(steps)) > 1e-6 * max(steps, 1) or round(steps) < 1:
            nearest = max(round(steps), 1) * times * lr
            raise ValueError(
                f"horizon: {horizon:g}/{times} is {steps:g} steps of lr {lr:g}; it must be whole for every lr. "
                f"Change the horizon (to {nearest:g} for this lr), times or lrs."
            )
    return rates


def _checked_models(optimizer: Optimizer, models: Any) -> list[str]:
    known = sdes_of(optimizer)
    if models is None:
        return known
    if isinstance(models, str):
        raise TypeError(f"models: got the text {models!r}; give a list, for example [{models!r}].")
    named = [_check.choice("models", name, known) for name in models]
    if not named or len(set(named)) < len(named):
        raise ValueError(f"models: got {named}; name at least one SDE, each once.")
    return named


def _kernel_exists(
    problem: AbstractProblem, noise: AbstractNoise, optimizer: Optimizer, start: Start, functions: Any
) -> str | None:
    """Why transition kernels cannot be used, None if they can."""
    if not isinstance(optimizer, SignSGD):
        return f"{optimizer.name} is not signsgd"
    if start.x is None:
        return "the start is random"
    if functions is not None:
        return "test functions of your own need paths"
    return None if is_separable(problem, noise) else "the problem is not separable into independent coordinates"


class _Row(NamedTuple):
    model: str
    scheme: str
    lr: float
    time: float
    function: str
    expected: float
    error: float
    sem: float
    unresolved: float
    substeps: int
    method: str


class _Style(NamedTuple):
    """How SDEs are integrated."""

    integrator: str
    bias_correction: str
    increments: str


@dataclass(frozen=True)
class _Study:
    """Everything checked, ready to run; `lr` is that of the optimizer as given, to which a saved start belongs."""

    problem: AbstractProblem
    noise: AbstractNoise
    family: list[Optimizer]
    models: list[str]
    tests: list[TestFunction]
    horizon: float
    times: int
    start: Start
    lr: float
    seed: int

    def steps(self, optimizer: Optimizer) -> list[int]:
        """Optimizer steps at the times compared."""
        between = round(self.horizon / (self.times * optimizer.lr))
        return [between * n for n in range(1, self.times + 1)]

    def by_kernel(self, increments: str) -> list[_Row]:
        """Deterministic, in float64."""
        rows: list[_Row] = []
        with jax.enable_x64(True):
            problem = jax.tree.map(_wide, self.problem)
            noise, x0 = self.noise.bind(problem), np.asarray(self.start.x, np.float64)
            for optimizer in self.family:
                assert isinstance(optimizer, SignSGD)
                steps = self.steps(optimizer)
                grids = []
                for nodes in NODES:
                    chain = SignChain(problem, noise, optimizer, x0, self.horizon, increments, nodes)
                    grids.append({n: self._expected(chain, steps, n) for n in (None, 1, 4, 8, 16)})
                truth = grids[0][None]
                found = [_kernel_errors(grid) for grid in grids]
                for scheme, n in ((RESOLVED, 16), (COARSE, 1)):
                    (error, left), (check, _) = (by_scheme[scheme] for by_scheme in found)
                    rows += self._rows(
                        "sde", scheme, optimizer, truth, error, 0 * truth, left + np.abs(error - check), n
                    )
        return rows

    def _expected(self, chain: SignChain, steps: list[int], substeps: int | None) -> np.ndarray:
        """E u at `steps`, shape (times, functions)."""
        grid = jnp.asarray(chain.grid)
        parts = np.stack([np.asarray(test.parts(grid)) for test in self.tests if test.parts is not None])
        values = chain.expectations(parts, steps, substeps)
        product = np.array([test.product for test in self.tests])
        return np.where(product, values.prod(axis=-1), values.sum(axis=-1))

    def by_coupling(
        self, noise: AbstractNoise, plan: Any, substeps: int | None, style: _Style, progress: bool | None
    ) -> list[_Row]:
        """Monte Carlo on common Brownian paths."""
        functions = _coupled_functions([test.value for test in self.tests], len(self.models))
        rows: list[_Row] = []
        total = sum(self.steps(o)[-1] for o in self.family) * plan.paths
        with progress_bar(progress, total) as report:
            for optimizer in self.family:
                n = _FEWEST_SUBSTEPS if substeps is None else substeps
                while True:
                    tick = partial(self._tick, report, f"η = {optimizer.lr:g}")
                    found = self._coupled_run(noise, optimizer, n, style, plan, functions, tick)
                    if substeps is not None or n >= _MOST_SUBSTEPS or _is_resolved(found):
                        break
                    n *= 2
                rows += found
        return rows

    @staticmethod
    def _tick(report: Callable[[int, str], None], label: str, done: int) -> None:
        report(done, label)

    def _coupled_run(
        self,
        noise: AbstractNoise,
        optimizer: Optimizer,
        n: int,
        style: _Style,
        plan: Any,
        functions: Callable[[tuple[Array, ...]], Array],
        report: Callable[[int], None],
    ) -> list[_Row]:
        start = self.start.scaled(self.lr / optimizer.lr)
        integrations = []
        for model in self.models:
            sde = build_sde(model, self.problem, noise, optimizer, style.bias_correction)
            integrations += [
                EulerMaruyama(sde, optimizer.lr, start, style.integrator, level, style.increments)
                for level in (n, n // 2, n // 4, 1)
            ]
        discrete = Discrete(self.problem, noise, optimizer, start)
        stepper = Coupled(discrete, tuple(integrations), functions)
        steps = self.steps(optimizer)
        devices = len(plan.devices)
        width = min(-(-plan.paths // devices), _CHUNK) * devices
        own = plan._replace(steps=steps[-1], record_every=steps[0], chunk=width, keep_paths=0)
        summary = run_ensemble(stepper, own, self.seed, f"order/{optimizer.lr:.9g}", 0.0, np.array([0.5]), report)
        count = summary.paths[1:, None, None]
        if (summary.paths[-1] < 2) or not np.isfinite(summary.seen_mean).all():
            raise ValueError(f"lrs: at lr {optimizer.lr:g} paths diverge; begin with a smaller one.")
        shape = (len(steps), 1 + 3 * len(self.models), len(self.tests))
        mean = summary.seen_mean[1:].reshape(shape)
        sem = np.sqrt(summary.seen_m2[1:].reshape(shape) / (count * np.maximum(count - 1, 1)))
        rows: list[_Row] = []
        for i, model in enumerate(self.models):
            fine, left, coarse = 1 + 3 * i, 2 + 3 * i, 3 + 3 * i
            zero = np.zeros(shape[::2])
            common = (optimizer, mean[:, 0])
            rows += self._rows(model, RESOLVED, *common, mean[:, fine], sem[:, fine], np.abs(mean[:, left]) / 3, n)
            rows += self._rows(model, COARSE, *common, mean[:, coarse], sem[:, coarse], zero, 1)
        return rows

    def _rows(
        self,
        model: str,
        scheme: str,
        optimizer: Optimizer,
        expected: np.ndarray,
        error: np.ndarray,
        sem: np.ndarray,
        left: np.ndarray,
        substeps: int,
    ) -> list[_Row]:
        """Rows of arrays of shape (times, functions)."""
        method = "coupled" if sem.any() else "kernel"
        return [
            _Row(
                model,
                scheme,
                float(optimizer.lr),
                step * float(optimizer.lr),
                test.name,
                float(expected[i, j]),
                float(error[i, j]),
                float(sem[i, j]),
                float(left[i, j]),
                substeps,
                method,
            )
            for i, step in enumerate(self.steps(optimizer))
            for j, test in enumerate(self.tests)
        ]


def _kernel_errors(expected: dict[int | None, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Weak errors, and what the integration may have left, from expectations by number of substeps."""
    truth, four, eight, sixteen = (expected[n] for n in (None, 4, 8, 16))
    first = 2 * sixteen - eight
    resolved = (4 * first - (2 * eight - four)) / 3
    return {RESOLVED: (truth - resolved, np.abs(resolved - first)), COARSE: (truth - expected[1], 0 * truth)}


def _is_resolved(rows: list[_Row]) -> bool:
    """Whether what the integration leaves is below the Monte-Carlo error, or a small share of the error measured."""
    sizes: dict[tuple[str, str], list[float]] = {}
    for row in (row for row in rows if row.scheme == RESOLVED):
        sizes.setdefault((row.model, row.function), []).append(row.error)
    share = {key: _RESOLVED_SHARE * float(np.sqrt(np.mean(np.square(errors)))) for key, errors in sizes.items()}
    return all(
        row.unresolved <= max(row.sem, share[row.model, row.function], 1e-7 * abs(row.expected))
        for row in rows
        if row.scheme == RESOLVED
    )


def _coupled_functions(tests: list[Callable[[Array], Array]], models: int) -> Callable[[tuple[Array, ...]], Array]:
    """Observables of coupled positions: u of the optimizer, and per model three differences.

    With E(n) the integration of n substeps: u − (2E(n) − E(n/2)); its change from (2E(n/2) − E(n/4)); and u − E(1).
    """

    def observables(positions: tuple[Array, ...]) -> Array:
        values = [jnp.stack([u(x) for u in tests]) for x in positions]
        truth, rows = values[0], [values[0]]
        for i in range(models):
            fine, half, quarter, one = values[1 + 4 * i : 5 + 4 * i]
            rows += [truth - (2 * fine - half), (2 * fine - half) - (2 * half - quarter), truth - one]
        return jnp.concatenate(rows)

    return observables


def _with_sizes(rows: list[_Row], problem: AbstractProblem, start: Start, tests: list[TestFunction]) -> "pd.DataFrame":
    """The table with the size of every test function: the largest |E u|, start included."""
    import pandas as pd

    table = pd.DataFrame(rows)
    x0 = problem.start if start.x is None else start.x
    at_start = {test.name: abs(float(test.value(x0[:, None])[0])) for test in tests}
    largest = table.expected.abs().groupby(table.function).max()
    table["size"] = [max(largest[name], at_start[name], 1e-300) for name in table.function]
    return table


def _wide(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.asarray(np.asarray(leaf), jnp.float64)
    return leaf
