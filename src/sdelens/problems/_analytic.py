"""Losses in closed form, for x of shape (d,) or (d, P), paths last."""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sdelens.core import check
from sdelens.core.arrays import plain
from sdelens.core.matrix import times
from sdelens.core.tree import Layout, flatten_parameters, sum_coordinates
from sdelens.problems._base import AbstractProblem

__all__ = ["EmbeddedSaddle", "Quadratic", "Rosenbrock", "curvature_and_start", "vector_layout"]


class Quadratic(AbstractProblem):
    r"""Quadratic loss f(x) = ½ xᵀ H x, minimised at 0 where H is positive.

    Args:
        curvature: H: its diagonal, shape (d,), or a symmetric matrix, shape (d, d). A scalar is the curvature of every
            coordinate of `start`.
        start: x₀, a scalar or shape (d,).

    Raises:
        ValueError: if `curvature` is not finite or not symmetric, or the shapes do not fit.

    Examples:
        >>> import sdelens as sl
        >>> float(sl.Quadratic([1.0, 4.0], start=1.0).loss(sl.Quadratic([1.0, 4.0], start=1.0).start))
        2.5
    """

    start: Array
    curvature: Array
    _infimum: float | None

    def __init__(self, curvature: Any, start: Any = 1.0) -> None:
        curvature, start = curvature_and_start(curvature, start)
        self.curvature, self.start = jax.device_put((curvature, start))
        if check.is_traced(curvature):  # not known inside a JAX transformation
            self._infimum = None
            return
        lowest = curvature.min() if curvature.ndim == 1 else np.linalg.eigvalsh(curvature).min()
        self._infimum = 0.0 if lowest >= -1e-6 * np.abs(curvature).max() else None

    @property
    def layout(self) -> Layout:
        return vector_layout(self.start)

    @property
    def infimum(self) -> float | None:
        return self._infimum

    @property
    def minimiser(self) -> Array:
        """Where the gradient vanishes: 0."""
        return jnp.zeros_like(self.start)

    def with_l2(self, strength: float) -> "Quadratic":
        """The quadratic with `strength` added to every eigenvalue of H."""
        strength = check.nonnegative("strength", strength)
        curvature = np.asarray(self.curvature, np.float64)
        added = strength if curvature.ndim == 1 else strength * np.eye(len(curvature))
        return Quadratic((curvature + added).astype(self.curvature.dtype), np.asarray(self.start))

    def loss(self, x: Array) -> Array:
        return 0.5 * sum_coordinates(x * times(self.curvature, x))

    def evaluate(self, x: Array) -> tuple[Array, Array]:
        grad = times(self.curvature, x)
        return 0.5 * sum_coordinates(x * grad), grad

    def describe(self) -> dict[str, Any]:
        return {"name": "quadratic", "curvature": plain(self.curvature), "start": plain(self.start)}


class Rosenbrock(AbstractProblem):
    r"""Rosenbrock's valley f(x) = Σᵢ (a − xᵢ)² + b (xᵢ₊₁ − xᵢ²)², with infimum 0 at x = 1 for a = 1.

    Args:
        start: x₀, shape (d,), d ≥ 2.
        a: position of the minimum.
        b: steepness of the valley's walls.
    """

    start: Array
    a: float
    b: float
    _infimum: float | None

    def __init__(self, start: Any = (-1.0, 1.5), a: float = 1.0, b: float = 100.0) -> None:
        start = check.finite_array("start", start, (1,))
        if start.shape[0] < 2:
            raise ValueError(
                f"start: got {start.shape[0]} coordinate, but Rosenbrock's function needs at least 2; give 2 or more."
            )
        self.start = jnp.asarray(start)
        self.a, self.b = check.number("a", a), check.nonnegative("b", b)
        # All terms vanish together at x₁ = a, x₂ = a², …; with more than two coordinates only if a² = a.
        self._infimum = 0.0 if start.shape[0] == 2 or self.a in (0.0, 1.0) else None

    @property
    def layout(self) -> Layout:
        return vector_layout(self.start)

    @property
    def infimum(self) -> float | None:
        return self._infimum

    def loss(self, x: Array) -> Array:
        head, tail = x[:-1], x[1:]
        return sum_coordinates((self.a - head) ** 2 + self.b * (tail - head**2) ** 2)

    def describe(self) -> dict[str, Any]:
        return {"name": "rosenbrock", "start": plain(self.start), "a": float(self.a), "b": float(self.b)}


class EmbeddedSaddle(AbstractProblem):
    r"""A saddle between minima, f(x) = ½ xᵀ H x + ¼ λ Σᵢ xᵢ⁴ − ⅓ ξ Σᵢ xᵢ³.

    Args:
        curvature: H as in `Quadratic`; a negative entry makes the origin a saddle.
        lam: λ > 0, which keeps the loss bounded below.
        xi: ξ, which makes one of the minima deeper.
        start: x₀, a scalar or shape (d,).
    """

    start: Array
    curvature: Array
    lam: float
    xi: float
    _infimum: float | None

    def __init__(
        self,
        curvature: Any = (-1.0, 2.0),
        lam: float = 1.0,
        xi: float = 0.1,
        start: Any = (0.2, 1.5),
    ) -> None:
        curvature, start = curvature_and_start(curvature, start)
        self.curvature, self.start = jnp.asarray(curvature), jnp.asarray(start)
        self.lam, self.xi = check.positive("lam", lam), check.number("xi", xi)
        self._infimum = _separable_infimum(curvature, self.lam, self.xi) if curvature.ndim == 1 else None

    @property
    def layout(self) -> Layout:
        return vector_layout(self.start)

    @property
    def infimum(self) -> float | None:
        return self._infimum

    def loss(self, x: Array) -> Array:
        quartic = 0.25 * self.lam * x**4 - self.xi / 3 * x**3
        return sum_coordinates(0.5 * x * times(self.curvature, x) + quartic)

    def describe(self) -> dict[str, Any]:
        return {
            "name": "embedded-saddle",
            "curvature": plain(self.curvature),
            "lam": float(self.lam),
            "xi": float(self.xi),
            "start": plain(self.start),
        }


def curvature_and_start(curvature: Any, start: Any, name: str = "curvature") -> tuple[np.ndarray, np.ndarray]:
    """A diagonal or symmetric matrix and a point with as many coordinates, checked and in one dtype."""
    curvature = check.finite_array(name, curvature, (0, 1, 2))
    start = check.finite_array("start", start, (0, 1))
    traced = check.any_traced(curvature, start)  # inside a JAX transformation, where only shapes are known
    if curvature.ndim == 2:
        if curvature.shape[0] != curvature.shape[1]:
            raise ValueError(
                f"{name}: got shape {curvature.shape}; give a square matrix, a vector (the diagonal) or a number."
            )
        gap = 0.0 if traced else float(np.abs(curvature - curvature.T).max())
        if gap > 0 and gap > 1e-6 * np.abs(curvature).max():
            raise ValueError(
                f"{name}: got a matrix that is not symmetric (largest difference {gap:.3g}); give (H + H.T) / 2."
            )
    dim = start.shape[0] if curvature.ndim == 0 and start.ndim == 1 else max(curvature.size, 1)
    dim = curvature.shape[0] if curvature.ndim == 2 else dim
    if start.ndim == 1 and start.shape[0] != dim:
        raise ValueError(
            f"start: got shape {start.shape}, but {name} has {dim} coordinates; give as many numbers, or one for all."
        )
    if traced:
        dtype = jnp.result_type(curvature, start)
        curvature = jnp.full(dim, curvature) if curvature.ndim == 0 else jnp.asarray(curvature)
        return curvature.astype(dtype), jnp.broadcast_to(start, (dim,)).astype(dtype)  # type: ignore[return-value]
    dtype = np.result_type(curvature, start)
    if curvature.ndim == 0:
        curvature = np.full(dim, curvature)
    return curvature.astype(dtype), np.broadcast_to(start, (dim,)).astype(dtype)


def _separable_infimum(curvature: np.ndarray, lam: float, xi: float) -> float:
    """Sum over coordinates of the least value of ½hx² + ¼λx⁴ − ⅓ξx³, at the real roots of its derivative."""
    total = 0.0
    for h in curvature:
        points = np.array([0.0, *[r.real for r in np.roots([lam, -xi, h]) if abs(r.imag) < 1e-12]])
        total += float(np.min(0.5 * h * points**2 + 0.25 * lam * points**4 - xi / 3 * points**3))
    return total


def vector_layout(start: Array) -> Layout:
    """The layout of parameters that are one vector."""
    return _vector_layout(start.shape, jax.dtypes.canonicalize_dtype(start.dtype))


@lru_cache(maxsize=64)
def _vector_layout(shape: tuple[int, ...], dtype: Any) -> Layout:
    return flatten_parameters(np.zeros(shape, dtype))[1]
