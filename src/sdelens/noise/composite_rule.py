"""The laws of single coordinates in float64 precision, and composite quadrature rules for them."""

from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sdelens.noise._base import NoiseLaw
from sdelens.noise._sum import SumLaw
from sdelens.noise.gaussian import IndependentNormal
from sdelens.noise.scaled import ScaledNoise

__all__ = ["CoordinateLaw", "Rule", "rule_of"]

_FARTHEST = 150.0
"""Largest t, at which z⁴ is still within the range of float64."""
_SPACING, _ORDER = 0.7, 8
_BLOCK, _LEVELS, _NEGLIGIBLE, _MOST_KINKS = 512, 6, 1e-7, 4
_FIRST = (1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0, 55.0)


class CoordinateLaw(eqx.Module):
    """Densities of the coordinates of a noise, each symmetric, in the variable t with z = s sinh t.

    It is created and used where float64 is enabled. Power-law tails in z decay exponentially in t.

    Attributes:
        terms: the law of the noise, or the two laws of which it is the sum.
        scale: s = 1/(2p(0)), shape (d, 1).
        reach: for each term the t beyond which P(|Z| > z) is below rounding, or 0, shape (d, 1).
    """

    terms: tuple[NoiseLaw, ...]
    scale: Array
    reach: tuple[Array, ...]

    def __init__(self, law: NoiseLaw, dim: int) -> None:
        bound = jax.tree.map(lambda a: jax.device_put(np.asarray(a, float)) if eqx.is_inexact_array(a) else a, law)
        if not (bound.independent and bound.constant):
            raise ValueError(
                f"noise: {bound.describe()['name']} noise has coordinates that depend on each other or on the "
                "parameters; quadrature takes one coordinate at a time."
            )
        self.terms = bound.terms if isinstance(bound, SumLaw) else (bound,)
        if len(self.terms) > 2:
            raise ValueError(
                f"noise: is a sum of {len(self.terms)} laws; quadrature takes sums of up to two (normal ones are "
                "joined, and count once)."
            )
        alike = len(self.terms) == 1 and isinstance(self.terms[0], IndependentNormal | ScaledNoise)
        self.scale, self.reach = _measures(self.terms, dim, alike)
        scale = np.asarray(self.scale)
        if not (np.isfinite(scale) & (scale > 0)).all():
            raise ValueError(
                f"noise: {bound.describe()['name']} noise has no density at 0 in some coordinates (a scale of 0, or "
                "none there) that quadrature could use; use coefficients='sampled'."
            )

    def first(self) -> "CoordinateLaw":
        """The law of t of the first coordinate alone if all coordinates have the same law, else this law."""
        if len(self.terms) > 1 or not isinstance(self.terms[0], IndependentNormal | ScaledNoise):
            return self
        standard = _standard(self.terms[0])
        return eqx.tree_at(lambda law: (law.terms, law.scale), self, ((standard,), _scale(standard, 1)))

    def density(self, t: Array) -> Array:
        """Density of t, of shape (d, M) as t: p(s sinh t) s cosh t."""
        z = self.scale * jnp.sinh(t)
        return _density(self.terms, self.reach, z) * self.scale * jnp.cosh(t)

    def breaks(self) -> np.ndarray:
        """Points t > 0 at which the density may not be smooth, shape (d, number)."""
        return np.asarray(_breaks(self))


def _standard(noise: NoiseLaw) -> NoiseLaw:
    return eqx.tree_at(lambda n: n.scale, noise, jnp.ones(()))


@jax.jit
def _breaks(law: CoordinateLaw) -> Array:
    dim = law.scale.shape[0]
    ends = [_scale(t, dim) * jnp.sinh(r) / law.scale for t, r in zip(law.terms, law.reach, strict=True)]
    return jnp.arcsinh(jnp.concatenate(ends, axis=1))


@partial(jax.jit, static_argnums=(1, 2))
def _measures(terms: tuple[NoiseLaw, ...], dim: int, alike: bool) -> tuple[Array, tuple[Array, ...]]:
    """Scale and reach of a `CoordinateLaw`; `alike`: its coordinates differ in scale alone."""
    reach = (_reach(_standard(terms[0]), 1),) if alike else tuple(_reach(t, dim) for t in terms)
    return 0.5 / _density(terms, reach, jnp.zeros((dim, 1))), reach


def _scale(noise: NoiseLaw, dim: int) -> Array:
    zero = jnp.zeros((dim, 1))
    return 0.5 / jnp.broadcast_to(noise.density(zero, zero), zero.shape)


def _reach(noise: NoiseLaw, dim: int) -> Array:
    scale = _scale(noise, dim)

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        z = scale * jnp.sinh(middle)
        inside = noise.mean_sign(z, jnp.zeros_like(z)) < 1 - 1e-15
        return jnp.where(inside, middle, low), jnp.where(inside, high, middle)

    return jax.lax.fori_loop(0, 60, halve, (jnp.zeros((dim, 1)), jnp.full((dim, 1), _FARTHEST)))[1]


@jax.jit
def _density(terms: tuple[NoiseLaw, ...], reach: tuple[Array, ...], z: Array) -> Array:
    """Density at z of shape (d, M); for a sum by Gauss-Legendre quadrature on panels that suit both laws."""
    if len(terms) == 1:
        return jnp.broadcast_to(terms[0].density(z, jnp.zeros_like(z)), z.shape)
    nodes, weights = np.polynomial.legendre.leggauss(_ORDER)
    # Around each law's centre panels grow like sinh; the union of both sets of edges resolves both laws.
    sides = []
    for term, end in zip(terms, reach, strict=True):
        grid = jnp.arange(0, _FARTHEST / 3, _SPACING)
        half = _scale(term, z.shape[0]) * jnp.sinh(jnp.minimum(grid, end))
        sides.append(jnp.concatenate([-half[:, ::-1], half], axis=1)[:, None, :])
    z = z[:, :, None]
    edges = jnp.sort(jnp.concatenate(jnp.broadcast_arrays(z - sides[0], sides[1] + 0 * z), axis=-1), axis=-1)
    centre, half = (edges[..., 1:] + edges[..., :-1]) / 2, (edges[..., 1:] - edges[..., :-1]) / 2

    def add(total: Array, node: tuple[Array, Array]) -> tuple[Array, None]:
        y = centre + half * node[0]
        flat = [a.reshape(z.shape[0], -1) for a in (jnp.broadcast_to(z - y, y.shape), y)]
        parts = [t.density(a, jnp.zeros_like(a)).reshape(y.shape) for t, a in zip(terms, flat, strict=True)]
        return total + (node[1] * half * parts[0] * parts[1]).sum(axis=-1), None

    return jax.lax.scan(add, jnp.zeros(z.shape[:2]), (jnp.asarray(nodes), jnp.asarray(weights)))[0]


class Rule(NamedTuple):
    """A composite rule of n Gauss-Legendre nodes on each of M panels of t, the same panels for all coordinates.

    Attributes:
        scale: s, shape (d, 1): z = s sinh t.
        edges: edges of the panels, shape (M + 1,).
        nodes: t, ascending, shape (Mn,).
        weights: weights with sum 1 over nodes, shape (Mn, 1), or (Mn, d) where laws differ.
        density: density of t on every panel, as coefficients of a polynomial in τ ∈ [−1, 1], highest power first: shape
            (n, M, 1) or (n, M, d).
    """

    scale: Array
    edges: Array
    nodes: Array
    weights: Array
    density: Array


def rule_of(law: CoordinateLaw, order: int, tolerance: float) -> Rule:
    """A rule with panels halved until those of 1, E|Z|, …, E Z⁴ that exist agree to `tolerance` when halved again."""
    own = law.first()
    dim = own.scale.shape[0]
    nodes, weights = np.polynomial.legendre.leggauss(order)

    def density(t: np.ndarray) -> np.ndarray:
        """Density at points of any shape, with a last axis of coordinates; in blocks of one size, compiled once."""
        flat = np.zeros(-(-t.size // _BLOCK) * _BLOCK)
        flat[: t.size] = t.ravel()
        parts = [_law_density(own, jnp.broadcast_to(part, (dim, _BLOCK))) for part in flat.reshape(-1, _BLOCK)]
        return np.maximum(np.concatenate(parts, axis=1).T[: t.size].reshape(*t.shape, dim), 0)

    def spread(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Nodes on panels, and the weights of a density there: shapes (M, n) and (M, n, d)."""
        half = (b - a)[:, None] / 2
        t = (a + b)[:, None] / 2 + half * nodes
        return t, density(t) * (half * weights)[..., None]

    grid = np.linspace(0, _FARTHEST / 2, 751)
    power = 0  # power of the highest existing moment, judged by the tail
    if np.isfinite(np.asarray(sum(term.variance(jnp.zeros(dim)) for term in own.terms))).all():
        power = 4 if (density(grid[-1:]) * np.cosh(grid[-1]) ** 4 < _NEGLIGIBLE).all() else 2
    tail = density(grid) * np.cosh(grid)[:, None] ** power
    ends = own.breaks()
    end = float(grid[np.flatnonzero((tail > _NEGLIGIBLE).any(axis=1)).max()])
    end += grid[1]
    if not density(np.array([end])).any():  # a law of bounded support
        end = min(end, float(ends.max()))
    kinks = {float(t) for t in ends.ravel() if t < end} if ends.size <= _MOST_KINKS else set()
    edges = np.array(sorted({0.0, end, *kinks, *(t for t in _FIRST if t < end)}))

    def integrals(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        t, w = spread(a, b)
        return np.stack([(w * np.sinh(t)[..., None] ** p).sum(axis=1) for p in range(power + 1)])

    for _ in range(_LEVELS):
        a, b = edges[:-1], edges[1:]
        middle = (a + b) / 2
        whole = integrals(a, b)
        off = np.abs(integrals(a, middle) + integrals(middle, b) - whole)
        bad = (off > tolerance * np.abs(whole).sum(axis=1, keepdims=True)).any(axis=(0, 2))
        if not bad.any():
            break
        edges = np.sort(np.concatenate([edges, middle[bad]]))
    edges = np.concatenate([-edges[:0:-1], edges])
    t, w = spread(edges[:-1], edges[1:])
    total = w.sum(axis=(0, 1))
    polynomials = np.einsum("cn,mnd->cmd", np.linalg.inv(np.vander(nodes)), density(t) / total)
    weight = (w / total).reshape(t.size, dim)
    return Rule(law.scale, *(jnp.asarray(part) for part in (edges, t.ravel(), weight, polynomials)))


@jax.jit
def _law_density(law: CoordinateLaw, t: Array) -> Array:
    return law.density(t)
