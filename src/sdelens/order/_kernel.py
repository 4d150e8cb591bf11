"""Expectations of SignSGD and its SDE without sampling, coordinate by coordinate, by transition kernels.

Where the loss is a sum over coordinates and the noise independent, every coordinate is a Markov chain on the line. One
step maps a function u to (Au)(x) = E[u(x') | x]. On Chebyshev nodes A is a matrix: x' takes two values in SignSGD and
in an Euler-Maruyama substep with Rademacher increments, and is normal with Gaussian ones, which Gauss-Hermite's rule
reduces to a few; u between the nodes is its polynomial interpolant. Everything is in float64 and goes through the
library's own steppers, so that it is their expectation that is found.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.interpolate import BarycentricInterpolator

from sdelens.integrate import Discrete, EulerMaruyama
from sdelens.integrate.discrete import DiscreteState
from sdelens.noise import AbstractNoise
from sdelens.optimizers import SignSGD, State
from sdelens.problems import AbstractProblem
from sdelens.schedules import Constant
from sdelens.sdes import build_sde
from sdelens.starts import Start

__all__ = ["NODES", "SignChain", "is_separable"]

NODES = (161, 129)
"""Chebyshev nodes of the expectations that are used, and of those they are checked against."""
_INCREMENTS = {
    "gaussian": np.polynomial.hermite_e.hermegauss(32),
    "rademacher": (np.array([-1.0, 1.0]), np.array([1.0, 1.0])),
}
"""Nodes and weights of the law of ξ."""


def is_separable(problem: AbstractProblem, noise: AbstractNoise) -> bool:
    """Whether ∂ᵢf depends on xᵢ alone (at random points), and the signs are independent."""
    if problem.dim > 16 or noise.sign_shape(problem.dim) != (problem.dim,) or not noise.independent:
        return False
    x0 = np.asarray(problem.start, np.float64)
    points = x0[:, None] + np.random.default_rng(0).standard_normal((problem.dim, 8)) * (1 + np.abs(x0[:, None]))
    x = jnp.asarray(points, problem.start.dtype)
    for i in range(problem.dim):
        unit = jnp.zeros_like(x).at[i].set(1)
        column = np.asarray(jax.jvp(lambda x: problem.evaluate(x)[1], (x,), (unit,))[1])
        if np.abs(np.delete(column, i, axis=0)).max(initial=0.0) > 1e-6 * (1 + np.abs(column).max()):
            return False
    return True


@jax.jit
def _moved(stepper: EulerMaruyama, x: Array, grad: Array, increment: Any) -> Array:
    """One substep from x with the same increment for all coordinates."""
    return stepper.advance(jnp.asarray(0), 0, State(x), grad, increment * jnp.ones_like(x)).x


class SignChain:
    """SignSGD on a separable problem, from a fixed start; call within `jax.enable_x64`.

    Args:
        problem: in float64.
        noise: bound to it.
        optimizer: its learning rate is that of every step.
        start: x₀, shape (d,).
        horizon: longest time; it bounds how far paths get, since no coordinate moves faster than 1.
        increments: of the SDE's integration, ``"gaussian"`` or ``"rademacher"``.
        nodes: number of nodes, odd.
    """

    def __init__(
        self,
        problem: AbstractProblem,
        noise: AbstractNoise,
        optimizer: SignSGD,
        start: np.ndarray,
        horizon: float,
        increments: str = "gaussian",
        nodes: int = NODES[0],
    ) -> None:
        self.problem, self.noise, self.optimizer, self.x0 = problem, noise, optimizer, np.asarray(start, np.float64)
        self.increments, self.nodes = increments, nodes
        reach = horizon + 6 * np.sqrt(optimizer.lr * horizon) + 2 * optimizer.lr
        self.low = np.minimum(self.x0, 0 if optimizer.weight_decay else np.inf) - reach
        self.high = np.maximum(self.x0, 0 if optimizer.weight_decay else -np.inf) + reach
        angles = np.cos(np.pi * np.arange(nodes) / (nodes - 1))
        barycentric = np.where(np.arange(nodes) % 2, -1.0, 1.0) * np.where(np.arange(nodes) % (nodes - 1), 1.0, 0.5)
        self.grid = 0.5 * (self.low + self.high)[:, None] + 0.5 * (self.high - self.low)[:, None] * angles
        self._interpolants = [BarycentricInterpolator(at, np.eye(nodes), wi=barycentric) for at in self.grid]
        self._kernels: dict[Any, list[np.ndarray]] = {}

    def expectations(self, parts: np.ndarray, steps: list[int], substeps: int | None) -> np.ndarray:
        """E uᵢ(xₖ,ᵢ) of functions given on the grid, shape (U, d, nodes), at `steps`: shape (times, U, d).

        Args:
            parts: values of every function's part of every coordinate at `grid`.
            steps: numbers of optimizer steps.
            substeps: of the SDE's integration; None for SignSGD itself.
        """
        result = np.empty((len(steps), *parts.shape[:2]))
        constant = self.optimizer.schedule is None
        for i in range(len(self.x0)):
            at_start = self._interpolate(i, self.x0[i : i + 1])
            values, done = parts[:, i].T, 0
            for n, count in enumerate(steps):
                if constant:
                    kernel = self._kernel(0, substeps)[i]
                    values = np.linalg.matrix_power(kernel, count - done) @ values
                    done = count
                else:
                    values = parts[:, i].T
                    for k in reversed(range(count)):
                        values = self._kernel(k, substeps)[i] @ values
                result[n, :, i] = (at_start @ values)[0]
        return result

    def _kernel(self, k: int, substeps: int | None) -> list[np.ndarray]:
        h = float(self.optimizer.multiplier(k))
        key = (h, substeps)
        if key not in self._kernels:
            held = dataclasses.replace(self.optimizer, schedule=Constant(h))
            if len(self._kernels) > 4096:
                self._kernels.clear()
            self._kernels[key] = self._discrete(held) if substeps is None else self._euler(held, substeps)
        return self._kernels[key]

    def _discrete(self, optimizer: SignSGD) -> list[np.ndarray]:
        x = jnp.asarray(self.grid)
        grad = self.problem.evaluate(x)[1]
        mean = np.asarray(jnp.broadcast_to(self.noise.mean_sign(grad, x), x.shape))
        stepper = Discrete(self.problem, self.noise, optimizer, Start(self.problem.start))
        moves = []
        for sign in (1.0, -1.0):
            state = DiscreteState(x, optimizer.optax_state(State(x)))
            moved = np.asarray(stepper.advance(state, jnp.full_like(x, sign)).x)
            moves.append((moved, 0.5 * (1 + sign * mean)))
        return self._matrices(moves)

    def _euler(self, optimizer: SignSGD, substeps: int) -> list[np.ndarray]:
        x = jnp.asarray(self.grid)
        grad = self.problem.evaluate(x)[1]
        sde = build_sde("sde", self.problem, self.noise, optimizer)
        stepper = EulerMaruyama(sde, optimizer.lr, Start(self.problem.start), substeps=substeps)
        nodes, weights = _INCREMENTS[self.increments]
        size = np.sqrt(optimizer.lr / substeps)
        moves = [
            (np.asarray(_moved(stepper, x, grad, size * z)), np.full(x.shape, w / weights.sum()))
            for z, w in zip(nodes, weights, strict=True)
        ]
        return [np.linalg.matrix_power(kernel, substeps) for kernel in self._matrices(moves)]

    def _matrices(self, moves: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        return [
            sum((w[i][:, None] * self._interpolate(i, to[i]) for to, w in moves), np.zeros((self.nodes, self.nodes)))
            for i in range(len(self.x0))
        ]

    def _interpolate(self, i: int, points: np.ndarray) -> np.ndarray:
        """Matrix from values at coordinate i's nodes to values at `points`, held within the grid."""
        inside = np.clip(points, self.low[i], self.high[i])
        return self._interpolants[i](inside)
