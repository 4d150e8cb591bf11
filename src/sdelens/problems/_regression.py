"""Linear regression with a random Gaussian design, the model whose risk curves are known without a simulation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sdelens.core import check
from sdelens.core.arrays import plain
from sdelens.core.matrix import symmetric_root, times
from sdelens.core.tree import Layout, column, sum_coordinates
from sdelens.problems._analytic import curvature_and_start, vector_layout
from sdelens.problems._base import AbstractProblem

__all__ = ["LinearRegression"]


class LinearRegression(AbstractProblem):
    r"""Least squares with a random Gaussian design: examples (φ, y) with φ ~ N(0, K) and y = φ·w + s·N(0, 1).

    In one pass (`samples` None) the population risk f(x) = ½ E(φ·x − y)² = ½ (x − w)ᵀK(x − w) + ½s² is minimised, and
    `MinibatchNoise` takes fresh examples at every step. With `samples` n, that many examples are drawn once, their mean
    loss f(x) = Σ (φᵢ·x − yᵢ)²/(2n) is minimised, and mini-batches are drawn from them with replacement.

    Args:
        design_covariance: K: its diagonal, shape (d,), or a positive semi-definite matrix, shape (d, d).
        label_noise: s ≥ 0, the standard deviation of the labels about φ·w.
        solution: w, a scalar or shape (d,).
        start: x₀, a scalar or shape (d,).
        samples: number of examples n, or None for one pass over endless data.
        seed: seed of those examples.

    Raises:
        ValueError, TypeError: if the covariance is not valid or shapes do not fit; the message names the argument.

    Examples:
        >>> import sdelens as sl
        >>> problem = sl.LinearRegression([1.0, 0.5, 0.25], label_noise=0.5)
        >>> float(problem.infimum)
        0.125
    """

    start: Array
    design_covariance: Array
    label_noise: float
    solution: Array
    features: Array | None
    labels: Array | None
    curvature: Array
    minimiser: Array
    _infimum: float
    _seed: int

    def __init__(
        self,
        design_covariance: Any,
        label_noise: float,
        *,
        solution: Any = 1.0,
        start: Any = 0.0,
        samples: int | None = None,
        seed: int = 0,
    ) -> None:
        covariance, start = curvature_and_start(design_covariance, start, "design_covariance")
        traced = check.any_traced(covariance, label_noise, solution, start)
        if traced and samples is not None:
            raise TypeError(
                "samples: examples cannot be drawn inside a JAX transformation (jit, grad, vmap); create the problem "
                "outside of it, or give samples=None."
            )
        values = np.ones(1) if check.is_traced(covariance) else covariance
        values = values if values.ndim == 1 else np.linalg.eigvalsh(values)
        if values.min() < -1e-6 * np.abs(values).max():
            raise ValueError(
                "design_covariance: got a matrix that is not positive semi-definite (smallest eigenvalue "
                f"{values.min():.3g}); give a covariance matrix."
            )
        self.label_noise = check.nonnegative("label_noise", label_noise)
        solution = check.finite_array("solution", solution, (0, 1))
        if solution.ndim == 1 and solution.shape != start.shape:
            raise ValueError(
                f"solution: got shape {solution.shape}, but the design has {start.shape[0]} coordinates; give as "
                "many numbers, or one for all."
            )
        solution = (jnp if traced else np).broadcast_to(solution, start.shape).astype(start.dtype)
        self.start, self.design_covariance = jax.device_put((start, covariance))
        self.solution, self._seed = jax.device_put(solution), check.at_least("seed", seed, 0)
        self.features = self.labels = None
        self.curvature, self.minimiser = self.design_covariance, self.solution
        self._infimum = 0.5 * self.label_noise**2
        if samples is not None:
            self._draw(check.at_least("samples", samples, 1))

    def _draw(self, samples: int) -> None:
        """Draw the examples from the stored numbers, so that the same examples can be drawn again."""
        rng, dtype = np.random.default_rng(self._seed), self.start.dtype
        covariance, solution = (np.asarray(a, np.float64) for a in (self.design_covariance, self.solution))
        normal = rng.standard_normal((samples, len(solution)))
        root = symmetric_root(covariance)
        features = normal * root if root.ndim == 1 else normal @ root
        labels = features @ solution + self.label_noise * rng.standard_normal(samples)
        minimiser = np.linalg.lstsq(features, labels, rcond=None)[0]
        self._infimum = 0.5 * float(np.mean((features @ minimiser - labels) ** 2))
        arrays = (features, labels, features.T @ features / samples, minimiser)
        found = jax.device_put(tuple(a.astype(dtype) for a in arrays))
        self.features, self.labels, self.curvature, self.minimiser = found

    @property
    def layout(self) -> Layout:
        return vector_layout(self.start)

    @property
    def infimum(self) -> float:
        return self._infimum

    @property
    def samples(self) -> int | None:
        """Number of examples n, None for one pass."""
        return None if self.features is None else int(self.features.shape[0])

    @property
    def population(self) -> "LinearRegression":
        """The problem of the population from which the examples are drawn; its `loss` is the test risk."""
        return LinearRegression(
            np.asarray(self.design_covariance),
            self.label_noise,
            solution=np.asarray(self.solution),
            start=np.asarray(self.start),
        )

    def loss(self, x: Array) -> Array:
        return self.evaluate(x)[0]

    def evaluate(self, x: Array) -> tuple[Array, Array]:
        off = x - column(self.minimiser, x)
        grad = times(self.curvature, off)
        return 0.5 * sum_coordinates(off * grad) + self._infimum, grad

    def describe(self) -> dict[str, Any]:
        described = {
            "name": "linear-regression",
            "design_covariance": plain(self.design_covariance),
            "label_noise": float(self.label_noise),
            "solution": plain(self.solution),
            "start": plain(self.start),
        }
        return described if self.samples is None else described | {"samples": self.samples, "seed": self._seed}
