"""Sums of independent noises."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sdelens.core.compilation import quick
from sdelens.core.random import Stream
from sdelens.noise._base import AbstractNoise, NoiseLaw, independent_sum
from sdelens.noise._joined import JoinedLaw
from sdelens.noise.distributed import DistributedNoise
from sdelens.noise.gaussian import Correlated, IndependentNormal, VaryingDiagonal
from sdelens.problems import AbstractProblem

__all__ = ["SumNoise"]


class SumNoise(AbstractNoise):
    r"""Z = Z₁ + Z₂ + …, independent; also written ``noise + noise``.

    E sign(g) = E e₁(∇f + Z₂ + …), where e₁ is the mean sign of the broadest law, in closed form, and the expectation
    over the other terms is taken by quadrature with 64 to 128 nodes each (error in float32 about 3e-4; in the tails of
    a sum with Student t and ν < 1 up to 4e-3). The cost is that many evaluations per further term. Normal terms are
    joined into one.

    A sum with a term that has no density here (mini-batches, `SampledNoise`, a covariance matrix or function with noise
    that is not normal) has no quadrature either. Covariances then add, and each term keeps its own Brownian motion:
    that is all that the SDEs of SGD, RMSprop and Adam need. For SignSGD's SDE the terms without a density are drawn
    (`samples` of `MinibatchNoise`, or 8 times), and E sign and Cov sign are those of the other terms given the draws;
    with ``signs="normal"`` for the mini-batches and otherwise normal noise, the sum is treated as normal.

    Args:
        terms: two or more noises.

    Raises:
        ValueError, TypeError: if there are fewer than two, or one is not a noise; when bound, if several terms have a
            mean gradient other than ∇f; for SignSGD's SDE, if mini-batches have ``signs="edgeworth"``.

    Examples:
        >>> import sdelens as sl
        >>> noise = sl.MinibatchNoise(8) + sl.GaussianNoise(0.1)
    """

    terms: tuple[AbstractNoise, ...]

    def __init__(self, terms: Sequence[AbstractNoise]) -> None:
        flat: list[AbstractNoise] = []
        for term in terms:
            if not isinstance(term, AbstractNoise):
                raise TypeError(f"terms: got {type(term).__name__}; give noises, for example sl.GaussianNoise(1.0).")
            flat += term.terms if isinstance(term, SumNoise) else [term]
        if len(flat) < 2:
            raise ValueError(f"terms: got {len(flat)}; a sum needs two or more noises.")
        self.terms = tuple(flat)

    def bind(self, problem: AbstractProblem) -> NoiseLaw:
        """Join the normal terms, and find the broadest law of each coordinate, which has the least density at 0."""
        for term in self.terms:
            if isinstance(term, DistributedNoise):
                raise TypeError(
                    "terms: got a DistributedNoise; sum the noises of one worker, then distribute: "
                    "DistributedNoise(a + b, workers)."
                )
        bound = _flat([term.bind(problem) for term in self.terms])
        normal = [term for term in bound if isinstance(term, IndependentNormal)]
        others = [term for term in bound if not isinstance(term, IndependentNormal)]
        scale = reduce(jnp.hypot, [term.scale for term in normal], jnp.zeros(()))
        if normal:
            others.insert(0, IndependentNormal(scale))
        if len(others) == 1:
            return others[0]
        matrices = [term.matrix for term in others if isinstance(term, Correlated)]
        if len(matrices) + bool(normal) == len(others):
            total = np.asarray(sum(matrices), np.float64)
            own = [np.diag(np.broadcast_to(np.asarray(scale, np.float64) ** 2, problem.dim))] if normal else []
            return Correlated(sum(own, total), problem.start.dtype)
        smooth = [term for term in others if term.independent and term.has_quadrature]
        drawn = [term for term in others if not (term.independent and term.has_quadrature)]
        if not drawn:
            return _by_quadrature(smooth, problem)
        if sum(term.biased for term in drawn) > 1:
            raise ValueError("terms: several of them clip gradients; clip once, in one sl.DPNoise.")
        if smooth:
            known = smooth[0] if len(smooth) == 1 else _by_quadrature(smooth, problem)
            return JoinedLaw((*drawn, known), len(drawn))
        varying = [i for i, term in enumerate(drawn) if isinstance(term, VaryingDiagonal) and term.independent]
        return JoinedLaw(tuple(drawn), varying[0] if varying else None)

    def at_batch_ratio(self, ratio: float) -> "SumNoise":
        """The sum of the averaged terms; an error where one term raises one."""
        return SumNoise([term.at_batch_ratio(ratio) for term in self.terms])

    def describe(self) -> dict[str, Any]:
        return _described(self.terms)


def _flat(terms: Sequence[NoiseLaw]) -> list[NoiseLaw]:
    """The terms with those of sums among them in their place."""
    found: list[NoiseLaw] = []
    for term in terms:
        found += _flat(term.terms) if isinstance(term, JoinedLaw | SumLaw) else [term]
    return found


def _by_quadrature(terms: Sequence[NoiseLaw], problem: AbstractProblem) -> "SumLaw":
    """The law of a sum of independent coordinates with densities."""
    at_zero = np.asarray(_densities_at_zero(tuple(terms), problem.start))
    return SumLaw(tuple(terms), tuple(int(i) for i in np.unique(at_zero.argmin(axis=0))))


@quick
def _densities_at_zero(terms: tuple[NoiseLaw, ...], x: Array) -> Array:
    """The density of every term at 0, shape (terms, d)."""
    return jnp.stack([jnp.broadcast_to(term.density(jnp.zeros_like(x), x), x.shape) for term in terms])


class SumLaw(NoiseLaw):
    """The law of a sum; `broadest` are the terms that are the broadest of some coordinate."""

    has_quadrature: ClassVar[bool] = False
    terms: tuple[NoiseLaw, ...]
    broadest: tuple[int, ...] = eqx.field(static=True)

    def _noisy(self, x: Array) -> Array | float:
        return reduce(jnp.maximum, [term._noisy(x) for term in self.terms])

    def sample(self, x: Array, stream: Stream) -> Array:
        return sum((term.sample(x, stream.at(i)) for i, term in enumerate(self.terms)), jnp.zeros_like(x))

    def variance(self, x: Array) -> Array:
        return sum((term.variance(x) for term in self.terms), jnp.zeros_like(x))

    def mean_sign(self, grad: Array, x: Array) -> Array:
        return jnp.clip(self._expect(lambda term, z: term.mean_sign(z, x), grad, x), -1, 1)

    def density(self, z: Array, x: Array) -> Array:
        return self._expect(lambda term, z: term.density(z, x), z, x)

    def signed_mean(self, grad: Array, x: Array) -> Array:
        """E of the broadest term's signed mean at ∇f plus the others, and of the others' sum times its E sign there."""
        return self._expect(lambda term, z: term.signed_mean(z, x) + (z - grad) * term.mean_sign(z, x), grad, x)

    def fourth_cumulant(self, x: Array) -> Array:
        return sum((term.fourth_cumulant(x) for term in self.terms), jnp.zeros_like(x))

    def quadrature(self, x: Array) -> tuple[Array, Array]:
        raise ValueError("terms: a sum has no quadrature rule; its terms have.")

    def describe(self) -> dict[str, Any]:
        return _described(self.terms)

    def _expect(self, function: Callable[[NoiseLaw, Array], Array], z: Array, x: Array) -> Array:
        """E of a function of the broadest term at z plus the others; the broadest term may differ by coordinate."""
        values = [self._expect_given(i, function, z, x) for i in self.broadest]
        if len(values) == 1:
            return values[0]
        here = jnp.zeros_like(z)
        density = [jnp.broadcast_to(self.terms[i].density(here, x), z.shape) for i in self.broadest]
        least = jnp.argmin(jnp.stack(density), axis=0)
        return jnp.select([least == n for n in range(len(values))], values)

    def _expect_given(self, analytic: int, function: Callable[[NoiseLaw, Array], Array], z: Array, x: Array) -> Array:
        broadest = self.terms[analytic]
        others = [term for i, term in enumerate(self.terms) if i != analytic]

        def expectation(remaining: list[NoiseLaw], z: Array) -> Array:
            if not remaining:
                return jnp.broadcast_to(function(broadest, z), z.shape)
            nodes, weights = remaining[0].quadrature(x)
            nodes = nodes[..., None] if z.ndim == 2 else nodes

            def add(total: Array, node: tuple[Array, Array]) -> tuple[Array, None]:
                return total + node[1] * expectation(remaining[1:], z + node[0]), None

            return jax.lax.scan(add, jnp.zeros_like(z), (nodes, weights))[0]

        return expectation(others, z)


def _described(terms: Sequence[AbstractNoise | NoiseLaw]) -> dict[str, Any]:
    parts = [term.describe() for term in terms]
    return {"name": "sum", "terms": parts, "rerunnable": all(p.get("rerunnable", True) for p in parts)}


@independent_sum.register
def _(first: AbstractNoise, second: Any) -> Any:
    return SumNoise((first, second)) if isinstance(second, AbstractNoise) else NotImplemented
