"""Two-player games: one player minimises a payoff, the other maximises it."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sdelens.core import check
from sdelens.core.arrays import plain
from sdelens.core.compilation import quick
from sdelens.core.tree import Layout, flatten_parameters, sum_coordinates
from sdelens.problems._analytic import vector_layout
from sdelens.problems._base import AbstractProblem

__all__ = ["Game", "QuadraticGame"]


class _GameProblem(AbstractProblem):
    """Base of games: `evaluate` returns the Hamiltonian ½‖F‖² and the field F = (∇ₓf, −∇_y f) in place of f and ∇f."""

    @property
    def infimum(self) -> float | None:
        """0, the Hamiltonian at a solution F = 0."""
        return 0.0

    def loss(self, x: Array) -> Array:
        return self.evaluate(x)[0]


class Game(_GameProblem):
    r"""A game minₓ max_y f(x, y) of two players with any pytrees of parameters.

    Optimizers move z = (x, y) by the field F(z) = (∇ₓf, −∇_y f) as they move parameters by a gradient, so that `SGD` is
    stochastic gradient descent-ascent. The recorded loss is the Hamiltonian ½‖F‖², which is 0 at a solution; the field
    is not its gradient, nor that of any other function.

    Args:
        payoff: f(x, y), a scalar; a differentiable function of JAX operations.
        start: the parameters (x₀, y₀) of both players.

    Raises:
        ValueError, TypeError: if `start` is not a pair, or the payoff is not a real scalar that is finite at the start.

    Examples:
        >>> import jax.numpy as jnp, sdelens as sl
        >>> game = sl.Game(lambda x, y: x @ y, start=(jnp.ones(2), jnp.ones(2)))
        >>> game.evaluate(game.start)[1].tolist()
        [1.0, 1.0, -1.0, -1.0]
    """

    start: Array
    _payoff: Callable[[Any, Any], Array] = eqx.field(static=True)
    _layout: Layout = eqx.field(static=True)
    _first: int = eqx.field(static=True)

    def __init__(self, payoff: Callable[[Any, Any], Array], start: tuple[Any, Any]) -> None:
        if not callable(payoff):
            raise TypeError(f"payoff: got {payoff!r}; give a function payoff(x, y).")
        if not isinstance(start, tuple) or len(start) != 2:
            raise ValueError(
                f"start: got {type(start).__name__}; give the pair (x, y) of the parameters of both players."
            )
        self.start, self._layout = flatten_parameters(start)
        self._payoff, self._first = payoff, flatten_parameters(start[0])[1].size
        try:
            value = jax.eval_shape(lambda z: jnp.asarray(payoff(*self._layout.unravel(z))), self.start)
        except (TypeError, ValueError, jax.errors.JAXTypeError) as error:
            raise TypeError(f"payoff: the call payoff(x, y) fails ({error}); use JAX operations in it.") from error
        if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(f"payoff: returned {value.dtype} of shape {value.shape}; return a real scalar.")
        if not bool(np.isfinite(quick(lambda z: self.evaluate(z)[1])(self.start)).all()):
            raise ValueError("payoff: its gradient is not finite at the start; choose a start where it is.")

    @property
    def layout(self) -> Layout:
        return self._layout

    @property
    def expensive_gradient(self) -> bool:
        return True

    def evaluate(self, x: Array) -> tuple[Array, Array]:
        def field(z: Array) -> Array:
            grad = jax.grad(lambda z: self._payoff(*self._layout.unravel(z)))(z)
            return jnp.where(jnp.arange(z.shape[0]) < self._first, grad, -grad)

        found = field(x) if x.ndim == 1 else jax.vmap(field, in_axes=-1, out_axes=-1)(x)
        return 0.5 * sum_coordinates(found * found), found

    def describe(self) -> dict[str, Any]:
        name = getattr(self._payoff, "__qualname__", type(self._payoff).__name__)
        return {"name": "game", "payoff": name, "start": plain(self.start), "rerunnable": False}


class QuadraticGame(_GameProblem):
    r"""The game minₓ max_y ½ xᵀAx + xᵀBy − ½ yᵀCy, solved by x = y = 0; the bilinear game xᵀBy by default.

    Optimizers move z = (x, y) by the field F(z) = (Ax + By, Cy − Bᵀx); see `Game`. The recorded loss is the Hamiltonian
    ½‖F‖²; the metric ``"distance"`` is the squared distance ‖z‖² from the solution.

    Args:
        coupling: B, shape (p, q) for p and q parameters, or the diagonal of a square matrix, or a number (p = q = 1).
        x_curvature: A, a number, its diagonal or a symmetric matrix.
        y_curvature: C, likewise.
        start: (x₀, y₀) as one vector of p + q numbers, or one number for all.

    Raises:
        ValueError, TypeError: if an argument is not finite, or the shapes do not fit; the message names it.

    Examples:
        >>> import sdelens as sl
        >>> game = sl.QuadraticGame(coupling=2.0, start=[1.0, 3.0])
        >>> game.evaluate(game.start)[1].tolist()
        [6.0, -2.0]
    """

    start: Array
    coupling: Array
    x_curvature: Array
    y_curvature: Array

    def __init__(self, coupling: Any = 1.0, x_curvature: Any = 0.0, y_curvature: Any = 0.0, start: Any = 1.0) -> None:
        coupling = check.finite_array("coupling", coupling, (0, 1, 2))
        start = check.finite_array("start", start, (0, 1))
        wide = coupling if coupling.ndim == 2 else np.diag(np.atleast_1d(coupling))
        sizes = wide.shape
        if start.ndim == 1 and start.shape[0] != sum(sizes):
            raise ValueError(
                f"start: got {start.shape[0]} numbers; with a coupling of shape {sizes} give {sum(sizes)}, first those "
                "of x, or one number for all."
            )
        matrices = {
            name: _curvature(name, value, size)
            for name, value, size in zip(("x_curvature", "y_curvature"), (x_curvature, y_curvature), sizes, strict=True)
        }
        dtype = np.result_type(wide, start, *matrices.values())
        self.coupling, self.start = jax.device_put((wide.astype(dtype), np.full(sum(sizes), start, dtype)))
        self.x_curvature, self.y_curvature = jax.device_put([m.astype(dtype) for m in matrices.values()])

    @property
    def layout(self) -> Layout:
        return vector_layout(self.start)

    @property
    def solution(self) -> Array:
        """Where the field vanishes: 0."""
        return jnp.zeros_like(self.start)

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("distance",)

    def metric(self, name: str, x: Array) -> Array:
        check.choice("metric", name, self.metrics)
        return sum_coordinates(x * x)

    def evaluate(self, x: Array) -> tuple[Array, Array]:
        first, second = x[: self.coupling.shape[0]], x[self.coupling.shape[0] :]

        def product(matrix: Array, part: Array) -> Array:
            return jnp.matmul(matrix, part, precision="highest")

        above = product(self.x_curvature, first) + product(self.coupling, second)
        below = product(self.y_curvature, second) - product(self.coupling.T, first)
        field = jnp.concatenate([above, below])
        return 0.5 * sum_coordinates(field * field), field

    def describe(self) -> dict[str, Any]:
        names = ("coupling", "x_curvature", "y_curvature", "start")
        return {"name": "quadratic-game", **{name: plain(getattr(self, name)) for name in names}}


def _curvature(name: str, value: Any, size: int) -> np.ndarray:
    """A symmetric matrix of that size from a number, a diagonal or a matrix."""
    matrix = check.finite_array(name, value, (0, 1, 2))
    if matrix.ndim < 2:
        if matrix.ndim == 1 and len(matrix) != size:
            raise ValueError(f"{name}: got {len(matrix)} numbers; this player has {size} parameters.")
        return np.diag(np.broadcast_to(matrix, (size,)))
    if matrix.shape != (size, size):
        raise ValueError(f"{name}: got shape {matrix.shape}; this player has {size} parameters: give ({size}, {size}).")
    if np.abs(matrix - matrix.T).max() > 1e-6 * max(np.abs(matrix).max(), 1e-300):
        raise ValueError(f"{name}: got a matrix that is not symmetric; give (A + A.T) / 2.")
    return matrix
