"""Execution of a weak-order study: coupled paths or transition kernels, which give rows of errors."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sdelens.cases.case import Case
from sdelens.cases.starts import Start
from sdelens.core.compilation import quick
from sdelens.core.progress import progress_bar, stage
from sdelens.integrate import Coupled, Discrete, Integration
from sdelens.integrate import Empirical as EmpiricalStepper
from sdelens.noise import AbstractNoise, NoiseLaw
from sdelens.optimizers import Optimizer, SignSGD
from sdelens.order._functions import TestFunction
from sdelens.order._kernel import FINENESS, SignChain
from sdelens.order._result import COARSE, RESOLVED
from sdelens.problems import AbstractProblem
from sdelens.run.ensemble import run_paths
from sdelens.run.models import ClosedForm, Empirical
from sdelens.run.programs import Programs
from sdelens.run.sizes import padded_paths
from sdelens.run.summary import total

__all__ = ["Row", "Study"]

_FEWEST_SUBSTEPS, _MOST_SUBSTEPS = 8, 128
_RESOLVED_SHARE = 1 / 200
_HELPS = 0.9
_CHUNK, _CHUNK_BYTES = 8192, 2**29


class Row(NamedTuple):
    """One row of a study's table, see `WeakOrder`; `at_start` is E u(x₀)."""

    model: str
    scheme: str
    lr: float
    time: float
    function: str
    expected: float
    error: float
    sem: float
    unresolved: float
    at_start: float
    substeps: int


@dataclass(frozen=True)
class Study:
    """A study with all arguments checked; `lr` is that of the user's optimizer, to which a saved start belongs."""

    problem: AbstractProblem
    noise: AbstractNoise
    family: list[Optimizer]
    models: Mapping[str, ClosedForm | Empirical]
    tests: list[TestFunction]
    horizon: float
    times: int
    start: Start
    lr: float
    seed: int

    def steps(self, optimizer: Optimizer) -> list[int]:
        """Numbers of optimizer steps at the times of comparison."""
        between = round(self.horizon / (self.times * optimizer.lr))
        return [between * n for n in range(1, self.times + 1)]

    def by_kernel(self) -> list[Row]:
        """Compute the rows by transition kernels: deterministic, in float64."""
        rows: list[Row] = []
        with jax.enable_x64(True):
            problem = jax.tree.map(_wide, self.problem)
            noise, x0 = self.noise.bind(problem), np.asarray(self.start.x, np.float64)
            # No coordinate moves faster than 1, and its noise is at most √(ηt). All η share one grid and compilation.
            largest = self.family[0].lr
            at_start = self._at(x0)
            parts_at = quick(lambda z: jnp.stack([test.parts(z) for test in self.tests if test.parts is not None]))
            reach = self.horizon + 6 * np.sqrt(largest * self.horizon) + 2 * largest
            for optimizer, (label, model) in itertools.product(self.family, self.models.items()):
                assert isinstance(optimizer, SignSGD)
                steps = self.steps(optimizer)
                grids = []
                for fineness in FINENESS:
                    chain = SignChain(problem, noise, optimizer, x0, reach, model.increments, fineness)
                    grid = jnp.asarray(chain.grid)
                    parts = np.asarray(parts_at(grid))
                    grids.append({n: self._expected(chain, parts, steps, n) for n in (None, 1, 4, 8, 16)})
                truth = grids[0][None]
                found = [_kernel_errors(grid) for grid in grids]
                for scheme, n in ((RESOLVED, 16), (COARSE, 1)):
                    (error, left), (check, _) = (by_scheme[scheme] for by_scheme in found)
                    rows += self._rows(
                        label, scheme, optimizer, at_start, truth, error, 0 * truth, left + np.abs(error - check), n
                    )
        return rows

    def _at(self, x0: np.ndarray) -> np.ndarray:
        """The values of all u at one point, shape (functions,)."""
        return np.asarray(quick(lambda x: jnp.stack([test.value(x)[0] for test in self.tests]))(x0[:, None]))

    def _expected(self, chain: SignChain, parts: np.ndarray, steps: list[int], substeps: int | None) -> np.ndarray:
        """E u at `steps`, shape (times, functions), for functions with the given parts on the chain's grid."""
        values = chain.expectations(parts, steps, substeps)
        product = np.array([test.product for test in self.tests])
        return np.where(product, values.prod(axis=-1), values.sum(axis=-1))

    def by_coupling(self, noise: NoiseLaw, plan: Any, substeps: int | None, progress: bool | None) -> list[Row]:
        """Compute the rows by Monte Carlo on common Brownian paths."""
        functions = _coupled_functions([test.value for test in self.tests], len(self.models))
        rows: list[Row] = []
        total = sum(self.steps(o)[-1] for o in self.family) * len(plan.own)
        with progress_bar(progress, total) as report:
            for optimizer in self.family:
                tick = partial(self._tick, report, f"η = {optimizer.lr:g}")
                run = partial(self._coupled_run, noise, optimizer, plan=plan, functions=functions, report=tick)
                n = _FEWEST_SUBSTEPS if substeps is None else substeps
                found = run(n)
                excess = _excess(found)
                while substeps is None and excess > 1 and n < _MOST_SUBSTEPS:
                    n *= 2
                    finer = run(n)
                    before, excess = excess, _excess(finer)
                    if excess > _HELPS * before:  # the rest is rounding error, which grows with more substeps
                        break
                    found = finer
                rows += found
        return rows

    @staticmethod
    def _tick(report: Callable[[int, str], None], label: str, done: int) -> None:
        report(done, label)

    def _coupled_run(
        self,
        noise: NoiseLaw,
        optimizer: Optimizer,
        n: int,
        plan: Any,
        functions: Callable[[tuple[Array, ...]], Array],
        report: Callable[[int], None],
    ) -> list[Row]:
        start = self.start.scaled(self.lr / optimizer.lr)
        integrations: list[Integration | EmpiricalStepper] = []
        discrete = Discrete(self.problem, noise, optimizer, start, self.problem.layout)
        case = Case(self.problem, noise, optimizer, start)
        for model in self.models.values():
            for level in (n, n // 2, n // 4, 1):
                integration = replace(model, substeps=level).stepper(case)
                assert isinstance(integration, Integration | EmpiricalStepper)
                integrations.append(integration)
        stepper = Coupled(discrete, tuple(integrations), functions)
        steps = self.steps(optimizer)
        devices = plan.width
        widest = max(s.draws for s in integrations)
        numbers = widest * 4 * n + self.problem.dim * 8 * len(integrations)
        fitting = max(min(_CHUNK, _CHUNK_BYTES // (8 * numbers)), 1)
        width = min(padded_paths(-(-len(plan.own) // devices)), fitting) * devices
        own = plan._replace(steps=steps[-1], record_every=steps[0], chunk=width, keep_paths=0)
        programs = Programs(stepper, own, 0.0)
        with stage(f"compiling η = {optimizer.lr:g}"):
            for compilation in programs.compilations():
                if compilation is not None:
                    compilation()
        with np.errstate(invalid="ignore", over="ignore"):  # diverged paths are detected below
            name, median = f"order/{optimizer.lr:.9g}", np.array([0.5])
            summary = total(run_paths(programs, self.seed, name, median, report))
        count = summary.paths[1:, None, None]
        lost = int(plan.paths - summary.paths[-1])
        if lost or not np.isfinite(summary.seen_mean).all():
            which = f"{lost} of {plan.paths} paths of the optimizer" if lost else "paths of an SDE"
            raise ValueError(
                f"lrs: at lr {optimizer.lr:g} {which} diverge, so expectations are not defined; give smaller "
                "learning rates."
            )
        shape = (len(steps), 1 + 3 * len(self.models), len(self.tests))
        mean = summary.seen_mean[1:].reshape(shape)
        sem = np.sqrt(summary.seen_m2[1:].reshape(shape) / (count * np.maximum(count - 1, 1)))
        rows: list[Row] = []
        for i, label in enumerate(self.models):
            fine, left, coarse = 1 + 3 * i, 2 + 3 * i, 3 + 3 * i
            zero = np.zeros(shape[::2])
            common = (optimizer, summary.seen_mean[0, : len(self.tests)], mean[:, 0])
            rows += self._rows(label, RESOLVED, *common, mean[:, fine], sem[:, fine], np.abs(mean[:, left]) / 3, n)
            rows += self._rows(label, COARSE, *common, mean[:, coarse], sem[:, coarse], zero, 1)
        return rows

    def _rows(
        self,
        model: str,
        scheme: str,
        optimizer: Optimizer,
        at_start: np.ndarray,
        expected: np.ndarray,
        error: np.ndarray,
        sem: np.ndarray,
        left: np.ndarray,
        substeps: int,
    ) -> list[Row]:
        """Convert arrays of shape (times, functions) to rows."""
        return [
            Row(
                model,
                scheme,
                float(optimizer.lr),
                step * float(optimizer.lr),
                test.name,
                float(expected[i, j]),
                float(error[i, j]),
                float(sem[i, j]),
                float(left[i, j]),
                float(at_start[j]),
                substeps,
            )
            for i, step in enumerate(self.steps(optimizer))
            for j, test in enumerate(self.tests)
        ]


def _kernel_errors(expected: dict[int | None, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Weak errors and the estimated remaining error of the integration, from expectations by number of substeps."""
    truth, four, eight, sixteen = (expected[n] for n in (None, 4, 8, 16))
    first = 2 * sixteen - eight
    resolved = (4 * first - (2 * eight - four)) / 3
    return {RESOLVED: (truth - resolved, np.abs(resolved - first)), COARSE: (truth - expected[1], 0 * truth)}


def _excess(rows: list[Row]) -> float:
    """Largest ratio of the remaining integration error to the Monte-Carlo error or, if larger, ½ % of weak error."""
    resolved = [row for row in rows if row.scheme == RESOLVED]
    errors: dict[tuple[str, str], list[float]] = {}
    for row in resolved:
        errors.setdefault((row.model, row.function), []).append(row.error)
    share = {key: _RESOLVED_SHARE * float(np.sqrt(np.mean(np.square(own)))) for key, own in errors.items()}
    return max(
        row.unresolved / max(row.sem, share[row.model, row.function], 1e-7 * abs(row.expected), 1e-300)
        for row in resolved
    )


def _coupled_functions(tests: list[Callable[[Array], Array]], models: int) -> Callable[[tuple[Array, ...]], Array]:
    """Observables of coupled positions: u of the optimizer, and three differences per model.

    With E(n) for the integration with n substeps, these are u − (2E(n) − E(n/2)), the difference of 2E(n) − E(n/2) and
    2E(n/2) − E(n/4), and u − E(1).
    """

    def observables(positions: tuple[Array, ...]) -> Array:
        values = [jnp.stack([u(x) for u in tests]) for x in positions]
        truth, rows = values[0], [values[0]]
        for i in range(models):
            fine, half, quarter, one = values[1 + 4 * i : 5 + 4 * i]
            rows += [truth - (2 * fine - half), (2 * fine - half) - (2 * half - quarter), truth - one]
        return jnp.concatenate(rows)

    return observables


def _wide(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.floating):
        return jnp.asarray(np.asarray(leaf), jnp.float64)
    return leaf
