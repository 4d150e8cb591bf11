"""Gaussian noise: independent coordinates, a covariance matrix, or a covariance that depends on the parameters."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sdelens.core import check
from sdelens.core.matrix import symmetric_root
from sdelens.core.random import Stream
from sdelens.core.tree import column
from sdelens.noise._base import AbstractNoise, NoiseLaw
from sdelens.noise._values import density_over, described, laid_out, nonnegative, nonzero
from sdelens.noise.scaled import NODES
from sdelens.noise.sign import EXACT_UP_TO, SignCovariance, lower_root
from sdelens.problems import AbstractProblem

__all__ = ["Correlated", "GaussianNoise", "IndependentNormal", "VaryingDiagonal", "VaryingMatrix", "normal_signed_mean"]

MAX_MATRIX = 2000
"""Largest dimension of a covariance matrix."""

_HERMITE = np.polynomial.hermite_e.hermegauss(NODES)


class GaussianNoise(AbstractNoise):
    r"""Normal noise Z ~ N(0, Σ).

    E sign(g) = erf(∇f/(√2 σ)) with σ² the diagonal of Σ. The signs of correlated noise are correlated: their covariance
    4(Φ₂ − ΦΦ), at ∇f = 0 equal to (2/π) arcsin(corr), enters SignSGD's SDE. It is exact for d ≤ 64. For larger d and a
    constant Σ, it is Hermite's series up to the sixth power of the correlations, with a remainder that makes the
    variances, and everything at ∇f = 0, exact (largest error of an entry 0.002 at a correlation of 0.6, 0.05 at 0.9).

    Args:
        scale: σ ≥ 0 of independent coordinates, the standard deviation: a scalar, one per coordinate (shape (d,)), or a
            pytree of the structure of the parameters whose leaves broadcast to theirs. A coordinate with σ = 0 has no
            noise; its E sign(g) is sign(∇f).
        covariance: Σ, in place of `scale`: a symmetric positive semi-definite matrix of shape (d, d), d ≤ 2000; or a
            function of the parameters (the user's pytree) that returns such a matrix or, for
            independent coordinates, the variances: shape () or (d,), or a pytree like the parameters. A matrix that a
            function returns is factored for every path and step, so it is meant for small d.

    Raises:
        ValueError, TypeError: if a scale is negative or not finite, all are 0, or a covariance is not valid; and, when
            it is bound to a problem, if a shape does not fit; the message names the leaf.

    Examples:
        >>> import sdelens as sl
        >>> noise = sl.GaussianNoise(covariance=[[1.0, 0.5], [0.5, 1.0]])
        >>> varying = sl.GaussianNoise(covariance=lambda x: 0.1 + x**2)
    """

    scale: Any = None
    covariance: Any = None

    def __init__(self, scale: Any = None, *, covariance: Any = None) -> None:
        if scale is None and covariance is None:
            raise TypeError("scale: is missing; give the standard deviation, or covariance=...")
        if scale is not None and covariance is not None:
            raise TypeError("scale: got a scale and a covariance; give one of them.")
        if callable(scale):
            raise TypeError("scale: got a function; give real numbers, or covariance=function, which returns a matrix.")
        self.scale = None if scale is None else nonnegative("scale", scale, "the standard deviation")
        self.covariance = _Varying(covariance) if callable(covariance) else _checked_matrix(covariance)

    def bind(self, problem: AbstractProblem) -> NoiseLaw:
        if self.scale is not None:
            return IndependentNormal(laid_out("scale", self.scale, problem))
        if isinstance(self.covariance, _Varying):
            return self.covariance.bind(problem)
        if self.covariance.shape != (problem.dim, problem.dim):
            raise ValueError(
                f"covariance: got shape {self.covariance.shape}; the problem has {problem.dim} coordinates, so give "
                f"({problem.dim}, {problem.dim})."
            )
        return Correlated(self.covariance, problem.start.dtype)

    def at_batch_ratio(self, ratio: float) -> "GaussianNoise":
        """Exact: the covariance divided by `ratio`."""
        ratio = check.positive("ratio", ratio)
        if self.scale is not None:
            library: Any = jnp if check.any_traced(self.scale, ratio) else np
            return GaussianNoise(jax.tree.map(lambda a: library.asarray(a) / library.sqrt(ratio), self.scale))
        if isinstance(self.covariance, _Varying):
            function = self.covariance.function
            return GaussianNoise(covariance=lambda params: jax.tree.map(lambda a: a / ratio, function(params)))
        return GaussianNoise(covariance=self.covariance / ratio)

    def describe(self) -> dict[str, Any]:
        if self.scale is not None:
            return {"name": "gaussian", "scale": described(self.scale)}
        return _described_covariance(self.covariance)


class _Normal(NoiseLaw):
    """Base of normal laws."""

    normal: ClassVar[bool] = True

    def mean_sign(self, grad: Array, x: Array) -> Array:
        r"""E sign(∇f + Z) = erf(∇f / (√2 σ)), and sign(∇f) where σ = 0."""
        scale = self.scales(x)
        return jnp.where(scale > 0, jax.lax.erf(grad / (math.sqrt(2) * nonzero(scale))), jnp.sign(grad))

    def density(self, z: Array, x: Array) -> Array:
        scale = self.scales(x)
        return density_over(scale, z, _normal_density(z, nonzero(scale)))

    def signed_mean(self, grad: Array, x: Array) -> Array:
        """2σφ(∇f/σ), and 0 where σ = 0."""
        scale = self.scales(x)
        return jnp.where(scale > 0, normal_signed_mean(grad, nonzero(scale)), 0)

    def _noisy(self, x: Array) -> Array:
        return (self.scales(x) > 0).astype(x.dtype)

    def fourth_cumulant(self, x: Array) -> Array:
        return jnp.zeros_like(x)

    def excess_kurtosis(self, x: Array) -> Array:
        return jnp.zeros_like(x)

    def scales(self, x: Array) -> Array:
        """The standard deviations."""
        return jnp.sqrt(self.variance(x))


class IndependentNormal(_Normal):
    """N(0, diag σ²) with constant σ, shape () or (d,)."""

    scale: Array

    def sample(self, x: Array, stream: Stream) -> Array:
        return column(self.scale, x) * stream.normal(x.shape[0], x.dtype)

    def variance(self, x: Array) -> Array:
        return column(self.scale, x) ** 2

    def has_variance(self, x: Array) -> bool:
        return True

    def scales(self, x: Array) -> Array:
        return column(self.scale, x)

    def quadrature(self, x: Array) -> tuple[Array, Array]:
        return _hermite(jnp.atleast_1d(self.scale), x)

    def apply_root(self, x: Array, dW: Array) -> Array:
        return column(self.scale, x) * dW

    def describe(self) -> dict[str, Any]:
        return {"name": "gaussian", "scale": described(self.scale)}


class Correlated(_Normal):
    """N(0, Σ) with a constant matrix."""

    independent: ClassVar[bool] = False
    has_covariance: ClassVar[bool] = True
    matrix: Array
    root: Array
    signs: SignCovariance

    def __init__(self, matrix: np.ndarray, dtype: Any) -> None:
        self.matrix = jnp.asarray(matrix, dtype)
        if check.is_traced(matrix):  # roots are only needed to draw noise
            self.root, self.signs = self.matrix, SignCovariance.exact(self.matrix)
            return
        self.root = jnp.asarray(symmetric_root(matrix), dtype)
        sd = np.sqrt(np.diag(matrix))
        safe = np.where(sd > 0, sd, 1)
        correlation = np.clip(matrix / np.outer(safe, safe), -1, 1)
        self.signs = SignCovariance(correlation + np.diag(np.where(sd > 0, 0, 1)), dtype)

    def sample(self, x: Array, stream: Stream) -> Array:
        return self.apply_root(x, stream.normal(x.shape[0], x.dtype))

    def variance(self, x: Array) -> Array:
        return column(jnp.diag(self.matrix), x)

    def covariance(self, x: Array) -> Array:
        return self.matrix

    def apply_root(self, x: Array, dW: Array) -> Array:
        return jnp.matmul(self.root, dW, precision="highest")

    def quadrature(self, x: Array) -> tuple[Array, Array]:
        return _hermite(jnp.sqrt(jnp.diag(self.matrix)), x)

    def sign_shape(self, dim: int) -> tuple[int, ...]:
        return self.signs.shape

    def apply_sign_root(self, grad: Array, x: Array, dW: Array) -> Array:
        return self._noisy(x) * self.signs.apply_root(grad / nonzero(self.scales(x)), dW)

    def joint_shape(self, dim: int) -> tuple[int, ...]:
        return (dim + math.prod(self.signs.shape),)

    def apply_joint_root(self, grad: Array, x: Array, dW: Array) -> tuple[Array, Array]:
        """Each sign is regressed on its Zᵢ; for normal noise the residual is uncorrelated with every Zⱼ."""
        sd, dim = nonzero(self.scales(x)), grad.shape[0]
        own = self.apply_root(x, dW[:dim])
        rest = self.signs.apply_rest_root(grad / sd, dW[dim:].reshape(*self.signs.shape, *dW.shape[1:]))
        return self.signed_mean(grad, x) / sd**2 * own + self._noisy(x) * rest, own

    def describe(self) -> dict[str, Any]:
        return _described_covariance(self.matrix)


class VaryingDiagonal(_Normal):
    """N(0, diag s(x)); `function` maps flat x of shape (d,) to variances of shape (d,)."""

    constant: ClassVar[bool] = False
    has_quadrature: ClassVar[bool] = False
    function: Callable[[Array], Array] = eqx.field(static=True)
    label: str = eqx.field(static=True)

    def sample(self, x: Array, stream: Stream) -> Array:
        return self.apply_root(x, stream.normal(x.shape[0], x.dtype))

    def variance(self, x: Array) -> Array:
        return _per_path(self.function, x)

    def quadrature(self, x: Array) -> tuple[Array, Array]:
        raise ValueError("noise: a covariance that depends on the parameters cannot be part of a sum of other laws.")

    def describe(self) -> dict[str, Any]:
        return _described_covariance(self.label)


class VaryingMatrix(VaryingDiagonal):
    """N(0, Σ(x)); `function` maps flat x of shape (d,) to a matrix of shape (d, d)."""

    independent: ClassVar[bool] = False
    has_covariance: ClassVar[bool] = True

    def variance(self, x: Array) -> Array:
        return _per_path(lambda p: jnp.diag(self.function(p)), x)

    def covariance(self, x: Array) -> Array:
        return self.function(x)

    def apply_root(self, x: Array, dW: Array) -> Array:
        return _per_path(lambda p, w: lower_root(self.function(p)) @ w, x, dW)

    def sign_shape(self, dim: int) -> tuple[int, ...]:
        if dim > EXACT_UP_TO:
            raise ValueError(
                f"noise: the signs' covariance under a covariance that depends on the parameters is computed for up to "
                f"{EXACT_UP_TO} coordinates; the problem has {dim}. Use a constant matrix, or return variances."
            )
        return (dim,)

    def apply_sign_root(self, grad: Array, x: Array, dW: Array) -> Array:
        def one(grad: Array, x: Array, dW: Array) -> Array:
            sd, noisy, correlation = _correlation(self.function(x))
            return noisy * SignCovariance.exact(correlation).apply_root(grad / sd, dW)

        return _per_path(one, grad, x, dW)

    def joint_shape(self, dim: int) -> tuple[int, ...]:
        return (dim + self.sign_shape(dim)[0],)

    def apply_joint_root(self, grad: Array, x: Array, dW: Array) -> tuple[Array, Array]:
        def one(grad: Array, x: Array, dW: Array) -> Array:
            matrix, dim = self.function(x), grad.shape[0]
            sd, noisy, correlation = _correlation(matrix)
            own = lower_root(matrix) @ dW[:dim]
            rest = SignCovariance.exact(correlation).apply_rest_root(grad / sd, dW[dim:])
            return jnp.stack([normal_signed_mean(grad, sd) / sd**2 * own + noisy * rest, own])

        sign, own = _per_path(one, grad, x, dW)
        return sign, own


class _Varying:
    """A covariance given as a function of the parameters, not yet bound to a problem."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function
        self.label = getattr(function, "__qualname__", "function")

    def bind(self, problem: AbstractProblem) -> VaryingDiagonal:
        layout, dim, dtype = problem.layout, problem.dim, problem.start.dtype
        function = self.function

        def raw(x: Array) -> Any:
            return function(layout.unravel(x))

        try:
            kind = jax.eval_shape(raw, problem.start)
        except (jax.errors.JAXTypeError, TypeError, AttributeError) as error:
            raise TypeError(
                f"covariance: cannot be compiled as a function of the parameters ({error}). Use jax.numpy."
            ) from error
        label = self.label
        shape = getattr(kind, "shape", None)
        if shape == (dim, dim) and dim > 1:
            if dim > MAX_MATRIX:
                raise ValueError(f"covariance: is of size {dim}; matrices may have up to {MAX_MATRIX} rows.")
            _checked_matrix(raw(problem.start), "covariance at the start")
            return VaryingMatrix(lambda x: raw(x).astype(dtype), label)

        def variances(x: Array) -> Array:
            values = raw(x)
            if shape in ((), (dim,), (1, 1)):
                return jnp.broadcast_to(jnp.ravel(values), (dim,)).astype(dtype)
            leaves = zip(layout.treedef.flatten_up_to(values), layout.shapes, strict=True)
            parts = [jnp.broadcast_to(leaf, s).ravel() for leaf, s in leaves if s is not None]
            return jnp.concatenate(parts).astype(dtype)

        try:
            jax.eval_shape(variances, problem.start)
        except (ValueError, TypeError) as error:
            found = f"shape {shape}" if shape is not None else "a pytree that is not like the parameters"
            raise ValueError(
                f"covariance: returned {found}; return ({dim}, {dim}), or variances of shape ({dim},) or (), or a "
                "pytree like the parameters."
            ) from error
        nonnegative("covariance at the start", np.asarray(variances(problem.start)), "a variance")
        return VaryingDiagonal(variances, label)


def _correlation(matrix: Array) -> tuple[Array, Array, Array]:
    """Standard deviations, 1 where they are 0; whether they are not; and the correlations of a covariance matrix."""
    variance = jnp.diag(matrix)
    noisy = (variance > 0).astype(matrix.dtype)
    sd = jnp.sqrt(nonzero(variance))
    return sd, noisy, jnp.clip(matrix / jnp.outer(sd, sd), -1, 1) + jnp.diag(1 - noisy)


def _described_covariance(covariance: Any) -> dict[str, Any]:
    """`describe` of a matrix, of a function, or of the name of one."""
    if isinstance(covariance, _Varying | str):
        label = covariance if isinstance(covariance, str) else covariance.label
        return {"name": "gaussian", "covariance": label, "rerunnable": False}
    if covariance.shape[0] <= EXACT_UP_TO:
        return {"name": "gaussian", "covariance": np.asarray(covariance, np.float64).tolist()}
    return {"name": "gaussian", "covariance": f"{covariance.shape} matrix", "rerunnable": False}


def _per_path(function: Callable[..., Array], *arrays: Array) -> Array:
    """Apply `function` to the arrays of one path or, along the last axis, of many paths."""
    if arrays[0].ndim == 1:
        return function(*arrays)
    return jax.vmap(function, in_axes=-1, out_axes=-1)(*arrays)


def _normal_density(z: Array, scale: Array) -> Array:
    return jnp.exp(-0.5 * (z / scale) ** 2) / (math.sqrt(2 * math.pi) * scale)


def normal_signed_mean(grad: Array, scale: Array) -> Array:
    """2σφ(∇f/σ)."""
    return 2 * scale**2 * _normal_density(grad, scale)


def _hermite(scale: Array, x: Array) -> tuple[Array, Array]:
    nodes, weights = _HERMITE
    return jnp.asarray(nodes, x.dtype)[:, None] * scale, jnp.asarray(weights / weights.sum(), x.dtype)


def _checked_matrix(matrix: Any, name: str = "covariance") -> np.ndarray | None:
    """A covariance matrix in float64.

    Raises:
        ValueError: if it is not square, symmetric, not 0, and positive semi-definite.
    """
    if matrix is None:
        return None
    if check.any_traced(matrix):
        return jnp.asarray(matrix, float)  # type: ignore[return-value]  # inside a JAX transformation
    array = np.asarray(check.finite_array(name, matrix, (2,)), np.float64)
    if array.shape[0] != array.shape[1]:
        raise ValueError(f"{name}: got shape {array.shape}; a covariance matrix is square.")
    if array.shape[0] > MAX_MATRIX:
        raise ValueError(
            f"{name}: has {array.shape[0]} rows; matrices may have up to {MAX_MATRIX}. Give a scale per coordinate."
        )
    largest = np.abs(array).max()
    gap = np.abs(array - array.T).max()
    if gap > 1e-6 * largest:
        raise ValueError(f"{name}: is not symmetric (largest difference {gap:.3g}); use (C + C.T) / 2.")
    if (np.diag(array) < 0).any() or not np.diag(array).any():
        at = int(np.argmin(np.diag(array)))
        raise ValueError(
            f"{name}: its diagonal is {array[at, at]:g} at entry {at}; variances must not be negative, and not all 0."
        )
    lowest = float(np.linalg.eigvalsh(array)[0])
    if lowest < -1e-6 * largest:
        raise ValueError(
            f"{name}: is not positive semi-definite (lowest eigenvalue {lowest:.3g}); no noise has this covariance."
        )
    return array
