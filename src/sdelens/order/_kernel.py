"""Expectations of SignSGD and its SDE without sampling, coordinate by coordinate, by transition kernels.

If the loss is a sum over coordinates and the noise is independent, every coordinate is a Markov chain on the real line.
In one step x' takes two values for SignSGD and for an Euler-Maruyama substep with Rademacher increments; with Gaussian
increments it is normal, which Gauss-Hermite quadrature reduces to a few values. The law of x is represented by weights
on a uniform grid: mass at a point between nodes is distributed to the six nearest nodes with Lagrange weights, so that
expectations of smooth functions keep their value. The spacing depends on how fast E sign(g) varies. Everything is
computed in float64 with the steppers of the library, so the results are the expectations of these steppers.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy import sparse

from sdelens.cases.starts import Start
from sdelens.core.compilation import quick
from sdelens.integrate import Discrete, EulerMaruyama
from sdelens.integrate.discrete import DiscreteState
from sdelens.noise import NoiseLaw
from sdelens.optimizers import SignSGD, State
from sdelens.optimizers.schedules import Constant
from sdelens.problems import AbstractProblem
from sdelens.sdes import build_sde

__all__ = ["FINENESS", "SignChain", "TooSteepError", "is_separable"]

FINENESS = (1.0, 0.75)
"""Relative numbers of nodes: for the expectations that are used, and for those that serve as a check."""

_STENCIL = np.arange(-2, 4)
_FEWEST, _MOST = 201, 20_001
_PER_TRANSITION = 25
_INCREMENTS = {
    "gaussian": np.polynomial.hermite_e.hermegauss(12),
    "rademacher": (np.array([-1.0, 1.0]), np.array([1.0, 1.0])),
}
"""Quadrature nodes and weights for the law of ξ."""


def is_separable(problem: AbstractProblem, noise: NoiseLaw) -> bool:
    """Whether ∂ᵢf depends on xᵢ alone (checked at random points) and the signs are independent."""
    if (
        problem.dim > 16
        or noise.sign_shape(problem.dim) != (problem.dim,)
        or not (noise.independent and noise.constant)
    ):
        return False
    x0 = np.asarray(problem.start, np.float64)
    points = x0[:, None] + np.random.default_rng(0).standard_normal((problem.dim, 8)) * (1 + np.abs(x0[:, None]))
    x = jnp.asarray(points, problem.start.dtype)
    for i, unit in enumerate(np.eye(problem.dim, dtype=x.dtype)):
        column = np.asarray(_column(problem, x, np.broadcast_to(unit[:, None], x.shape)))
        if np.abs(np.delete(column, i, axis=0)).max(initial=0.0) > 1e-6 * (1 + np.abs(column).max()):
            return False
    return True


class TooSteepError(ValueError):
    """E sign(g) varies too fast for any grid of reasonable size."""


@quick
def _column(problem: AbstractProblem, x: Array, direction: Array) -> Array:
    """Product of the Hessian and a direction."""
    return jax.jvp(lambda x: problem.evaluate(x)[1], (x,), (direction,))[1]


@quick
def _gradient_and_sign(problem: AbstractProblem, noise: NoiseLaw, x: Array) -> tuple[Array, Array]:
    """∇f and E sign(g)."""
    grad = problem.evaluate(x)[1]
    return grad, jnp.broadcast_to(noise.mean_sign(grad, x), x.shape)


@quick
def _moved(stepper: EulerMaruyama, x: Array, grad: Array, increment: Any) -> Array:
    """One substep from x with the same increment for all coordinates."""
    return stepper.advance(jnp.asarray(0), 0, State(x), grad, increment * jnp.ones_like(x)).x


@quick
def _stepped(stepper: Discrete, optimizer: SignSGD, x: Array, gradient: Array) -> Array:
    """One step of the stepper's optimizer from x."""
    return stepper.advance(DiscreteState(x, optimizer.optax_state(State(x))), gradient).x


class SignChain:
    """SignSGD on a separable problem, from a fixed start; use it within `jax.enable_x64`.

    Args:
        problem: the problem in float64.
        noise: law of the gradient noise, bound to the problem.
        optimizer: the optimizer with its learning rate.
        start: x₀, shape (d,).
        reach: maximal distance of the paths from x₀.
        increments: increments of the SDE's integration, ``"gaussian"`` or ``"rademacher"``.
        fineness: number of nodes relative to the default.

    Raises:
        TooSteepError: if E sign(g) varies too fast for a grid of 20 000 nodes.
    """

    def __init__(
        self,
        problem: AbstractProblem,
        noise: NoiseLaw,
        optimizer: SignSGD,
        start: np.ndarray,
        reach: float,
        increments: str = "gaussian",
        fineness: float = 1.0,
    ) -> None:
        self.problem, self.noise, self.optimizer, self.x0 = problem, noise, optimizer, np.asarray(start, np.float64)
        self.increments = increments
        self.low = np.minimum(self.x0, 0 if optimizer.weight_decay else np.inf) - reach
        self.high = np.maximum(self.x0, 0 if optimizer.weight_decay else -np.inf) + reach
        self.nodes = self._count(fineness)
        share = np.linspace(0, 1, self.nodes)
        self.grid = self.low[:, None] + (self.high - self.low)[:, None] * share

    def expectations(self, parts: np.ndarray, steps: list[int], substeps: int | None) -> np.ndarray:
        """E uᵢ(xₖ,ᵢ) at `steps`, shape (times, U, d), of functions given by their values on the grid.

        Args:
            parts: values at `grid` of the part of every function for every coordinate, shape (U, d, nodes).
            steps: numbers of optimizer steps, increasing.
            substeps: substeps of the SDE's integration; None for SignSGD itself.
        """
        laws = [self._matrix(i, [(self.x0[i : i + 1], np.ones(1))]).toarray()[0] for i in range(len(self.x0))]
        found, kernels, held = [], self._kernels(1.0, substeps), 1.0
        for k in range(steps[-1]):
            h = float(self.optimizer.multiplier(k))
            if h != held:
                kernels, held = self._kernels(h, substeps), h
            for _ in range(substeps or 1):
                laws = [kernel @ law for kernel, law in zip(kernels, laws, strict=True)]
            if k + 1 in steps:
                found.append(np.stack([parts[:, i] @ law for i, law in enumerate(laws)], axis=-1))
        return np.stack(found)

    def _count(self, fineness: float) -> int:
        """Number of nodes, such that E sign(g) rises from −1 to 1 over about fifty nodes where it is steepest."""
        x = jnp.asarray(self.low[:, None] + (self.high - self.low)[:, None] * np.linspace(0, 1, _MOST))
        mean = np.asarray(_gradient_and_sign(self.problem, self.noise, x)[1])
        steepest = np.abs(np.diff(mean, axis=1)).max(axis=1) * (_MOST - 1)  # per width of the grid
        if (needed := _PER_TRANSITION * steepest.max()) > _MOST:
            raise TooSteepError(
                f"E sign(g) changes sign within {100 / steepest.max():.2g} % of the range that the paths can reach, "
                f"which a grid of {_MOST} nodes cannot resolve"
            )
        return int(fineness * max(needed, _FEWEST))

    def _kernels(self, h: float, substeps: int | None) -> list[Any]:
        """Sparse matrices, one per coordinate, from the law before a (sub)step to the law after it."""
        held = dataclasses.replace(self.optimizer, schedule=Constant(h))
        moves = self._discrete(held) if substeps is None else self._euler(held, substeps)
        return [self._matrix(i, [(to[i], weight[i]) for to, weight in moves]).T.tocsr() for i in range(len(self.x0))]

    def _discrete(self, optimizer: SignSGD) -> list[tuple[np.ndarray, np.ndarray]]:
        x = jnp.asarray(self.grid)
        mean = np.asarray(_gradient_and_sign(self.problem, self.noise, x)[1])
        stepper = Discrete(self.problem, self.noise, optimizer, Start(self.problem.start), self.problem.layout)
        moves = []
        for sign in (1.0, -1.0):
            moved = np.asarray(_stepped(stepper, optimizer, x, np.full(x.shape, sign)))
            moves.append((moved, 0.5 * (1 + sign * mean)))
        return moves

    def _euler(self, optimizer: SignSGD, substeps: int) -> list[tuple[np.ndarray, np.ndarray]]:
        x = jnp.asarray(self.grid)
        grad = _gradient_and_sign(self.problem, self.noise, x)[0]
        sde = build_sde("sde", self.problem, self.noise, optimizer)
        stepper = EulerMaruyama(sde, optimizer.lr, Start(self.problem.start), substeps=substeps)
        nodes, weights = _INCREMENTS[self.increments]
        size = np.sqrt(optimizer.lr / substeps)
        return [
            (np.asarray(_moved(stepper, x, grad, size * z)), np.full(x.shape, w / weights.sum()))
            for z, w in zip(nodes, weights, strict=True)
        ]

    def _matrix(self, i: int, moves: list[tuple[np.ndarray, np.ndarray]]) -> Any:
        """Sparse matrix from function values at coordinate i's nodes to Σ weight · (value at the point moved to)."""
        rows = np.concatenate([np.repeat(np.arange(len(to)), len(_STENCIL)) for to, _ in moves])
        shared = [self._shared(i, to) for to, _ in moves]
        columns = np.concatenate([columns.ravel() for columns, _ in shared])
        values = np.concatenate([(w[:, None] * own).ravel() for (_, own), (_, w) in zip(shared, moves, strict=True)])
        return sparse.coo_array((values, (rows, columns)), (len(moves[0][0]), self.nodes)).tocsr()

    def _shared(self, i: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The six nearest nodes of coordinate i and their weights for each point, clipped to the grid: (points, 6)."""
        at = (np.clip(points, self.low[i], self.high[i]) - self.low[i]) / (self.high[i] - self.low[i])
        cell = np.clip(np.floor(at * (self.nodes - 1)).astype(int), 0, self.nodes - 2)
        offset = at * (self.nodes - 1) - cell
        weights = np.empty((len(points), len(_STENCIL)))
        for column, node in enumerate(_STENCIL):
            others = np.delete(_STENCIL, column)
            weights[:, column] = np.prod((offset[:, None] - others) / (node - others), axis=1)
        # Linear interpolation in the outermost cells, whose mass is negligible, so that accuracy is not needed.
        edge = (cell < -_STENCIL[0]) | (cell > self.nodes - 1 - _STENCIL[-1])
        linear = np.where(_STENCIL == 0, 1 - offset[:, None], np.where(_STENCIL == 1, offset[:, None], 0.0))
        weights[edge] = linear[edge]
        return np.clip(cell[:, None] + _STENCIL, 0, self.nodes - 1), weights
