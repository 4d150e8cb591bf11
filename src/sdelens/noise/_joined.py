r"""The law of a sum of which no density is known: a mini-batch, or draws of the user, plus other noise.

Variances and covariances add, and the roots of the terms stand side by side, each with a Brownian motion of its own.
With Z = A + C, where C has independent coordinates and a known mean sign e_C, and A is drawn,

    E sign(∇f + Z) = E_A e_C(∇f + A),   Cov sign = Cov_A e_C(∇f + A) + diag E_A (1 − e_C(∇f + A)²).

The expectations over A are those of K draws; only A is sampled, so the estimates fluctuate less than signs do.
"""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import Array, lax

from sdelens.core.random import Stream
from sdelens.noise._base import NoiseLaw, RareGradients
from sdelens.noise._batch_sign import normal_signs, sampled_root
from sdelens.noise._values import nonzero

__all__ = ["JoinedLaw"]


class JoinedLaw(NoiseLaw):
    """The law of the sum of independent terms, some of which can only be drawn.

    Attributes:
        terms: their laws; the first may be biased.
        smooth: index of the term C, whose mean sign is known; None if all are drawn.
        draws: drawn values of A, of shape (K, d, P), a part of the cache.
    """

    independent = False
    constant = False
    has_quadrature = False
    terms: tuple[NoiseLaw, ...]
    smooth: int | None = eqx.field(static=True)
    draws: Any = None

    @property
    def normal(self) -> bool:  # type: ignore[override]
        return all(term.normal for term in self.terms)

    @property
    def biased(self) -> bool:  # type: ignore[override]
        return any(term.biased for term in self.terms)

    @property
    def scheduled(self) -> bool:  # type: ignore[override]
        return any(term.scheduled for term in self.terms)

    @property
    def variance_remedy(self) -> str:  # type: ignore[override]
        return "".join({term.variance_remedy: "" for term in self.terms})

    @property
    def needs_gradient(self) -> bool:  # type: ignore[override]
        return all(term.needs_gradient for term in self.terms)

    @property
    def signs_as_normal(self) -> bool:
        return all(term.signs_as_normal for term in self.terms)

    @property
    def sign_samples(self) -> int:  # type: ignore[override]
        return max(term.sign_samples for i, term in enumerate(self.terms) if i != self.smooth)

    def at_step(self, k: Array | int) -> "JoinedLaw":
        if not self.scheduled:
            return self
        return eqx.tree_at(lambda law: law.terms, self, tuple(term.at_step(k) for term in self.terms))

    def mean_gradient(self, x: Array, grad: Array) -> Array:
        for term in self.terms:
            if term.biased:
                return term.mean_gradient(x, grad)
        return grad

    def gradient(self, k: Array, x: Array, grad: Array, stream: Stream) -> Array:
        """The gradient of the term that has one of its own, plus draws of the others."""
        first = self._first
        total = self.terms[first].gradient(k, x, grad, stream.at(first, 1))
        for i, term in enumerate(self.terms):
            if i != first:
                total = total + term.at_step(k).sample(x, stream.at(i, 1).at(k))
        return total

    def draw(self, x: Array, grad: Array, stream: Stream) -> Array:
        first = self._first
        total = self.terms[first].draw(x, grad, stream.at(first))
        for i, term in enumerate(self.terms):
            total = total + term.sample(x, stream.at(i)) if i != first else total
        return total

    def sample(self, x: Array, stream: Stream) -> Array:
        return sum((term.sample(x, stream.at(i)) for i, term in enumerate(self.terms)), jnp.zeros_like(x))

    def has_variance(self, x: Array) -> bool:
        return all(term.has_variance(x) for term in self.terms)

    def variance(self, x: Array) -> Array:
        return sum((term.variance(x) for term in self.terms), jnp.zeros_like(x))

    def fourth_cumulant(self, x: Array) -> Array:
        return sum((term.fourth_cumulant(x) for term in self.terms), jnp.zeros_like(x))

    def lacks_fourth_moment(self, x: Array) -> bool:
        return any(term.lacks_fourth_moment(x) for term in self.terms)

    def rare_gradients(self, x: Array) -> RareGradients | None:
        """None where a term has a density, for then no gradient is exactly 0."""
        return None

    def density(self, z: Array, x: Array) -> Array:
        raise ValueError(f"noise: the sum {self._names} has no density here; use the models of sl.compare.")

    def quadrature(self, x: Array) -> tuple[Array, Array]:
        raise ValueError(f"noise: the sum {self._names} has no quadrature; use coefficients='sampled'.")

    def describe(self) -> dict[str, Any]:
        parts = [term.describe() for term in self.terms]
        return {"name": "sum", "terms": parts, "rerunnable": all(p.get("rerunnable", True) for p in parts)}

    def noise_shape(self, dim: int) -> tuple[int, ...]:
        return (sum(self._sizes(dim)),)

    def apply_root(self, x: Array, dW: Array) -> Array:
        return sum((term.apply_root(x, w) for term, w in self._split(x, dW)), jnp.zeros_like(x))

    def apply_root_and_square(self, grad: Array, x: Array, dW: Array, dt: Any) -> tuple[Array, Array]:
        """The sums of the terms' noises of g and of g², and 2AC for all pairs, which is 2 (root A)(root C)/√dt."""
        root, square = jnp.zeros_like(x), jnp.zeros_like(x)
        for term, w in self._split(x, dW):
            own, own_square = term.apply_root_and_square(grad, x, w, dt)
            square = square + own_square + 2 * root * own / jnp.sqrt(dt)
            root = root + own
        return root, square

    @property
    def cache_steps(self) -> int:
        return max(term.cache_steps for term in self.terms)

    def compute_cache(self, use: str, x: Array, grad: Array, stream: Stream) -> Any:
        """The terms' caches and, where signs are sampled, draws of A."""
        sampled = use == "signs" and not self.signs_as_normal and self._alone is None
        own = "root" if sampled else "variance" if use == "signs" and self._alone is None else use
        found = tuple(term.compute_cache(own, x, grad, stream.at(i)) for i, term in enumerate(self.terms))
        if not sampled:
            return None if all(part is None for part in found) else (found, None)
        drawn = [(i, term) for i, term in enumerate(self._known(found)) if i != self.smooth and not term.silent]
        means = [term.mean_gradient(x, grad) for _, term in drawn]

        def one(j: Array) -> Array:
            total = jnp.zeros_like(x)
            for (i, term), mean in zip(drawn, means, strict=True):
                total = total + term.draw(x, grad, stream.at(j, i + 1)) - mean
            return total

        return found, lax.map(one, jnp.arange(self.sign_samples))

    def with_cache(self, found: Any) -> "JoinedLaw":
        terms, draws = found
        law = eqx.tree_at(lambda law: law.terms, self, self._known(terms))
        return eqx.tree_at(lambda law: law.draws, law, draws, is_leaf=lambda leaf: leaf is None)

    def mean_sign(self, grad: Array, x: Array) -> Array:
        if self._alone is not None:
            return self._alone.mean_sign(grad, x)
        if self.signs_as_normal:
            scale = jnp.sqrt(self.variance(x))
            return jnp.where(scale > 0, lax.erf(grad / (math.sqrt(2) * nonzero(scale))), jnp.sign(grad))
        return self._mean_signs(grad, x).mean(axis=0)

    def sign_shape(self, dim: int) -> tuple[int, ...]:
        if self._alone is not None:
            return self._alone.sign_shape(dim)
        if self.signs_as_normal:
            return (sum(self._sizes(dim)) + dim,)
        for term in self.terms:
            if getattr(getattr(term, "options", None), "signs", "sampled") == "edgeworth":
                raise ValueError(
                    "signs: 'edgeworth' is the law of the signs of mini-batches alone; in a sum use 'sampled' or "
                    "'normal'."
                )
        if self.cache_steps > self.sign_samples:
            raise ValueError(
                f"refresh: got {self.cache_steps} with {self.sign_samples} samples of signs; give at least as many "
                "samples as refresh."
            )
        return (self.sign_samples + (0 if self.smooth is None else dim),)

    def apply_sign_root(self, grad: Array, x: Array, dW: Array) -> Array:
        """Of signs as of a normal g: each is regressed on its noise, and the rest of its variance is independent."""
        if self._alone is not None:
            return self._alone.apply_sign_root(grad, x, dW)
        dim = x.shape[0]
        if self.signs_as_normal:
            law = normal_signs(grad, self.variance(x))
            rest = jnp.maximum(law.spread - law.slope**2 * law.variance, 0)
            return law.slope * self.apply_root(x, dW[:-dim]) + jnp.sqrt(rest) * (law.variance > 0) * dW[-dim:]
        signs = self._mean_signs(grad, x)
        common = sampled_root(signs, self.cache_steps, dW[: self.sign_samples])
        if self.smooth is None:
            return common
        rest = jnp.maximum((1 - signs) * (1 + signs), jnp.finfo(x.dtype).tiny).mean(axis=0)
        return common + jnp.sqrt(rest) * self.terms[self.smooth]._noisy(x) * dW[self.sign_samples :]

    def joint_shape(self, dim: int) -> tuple[int, ...]:
        if self._alone is not None:
            return self._alone.joint_shape(dim)
        raise ValueError(
            f"noise: the joint law of the signs and the noise of the sum {self._names} is not known here; use the "
            "model 'empirical', which draws both."
        )

    def apply_joint_root(self, grad: Array, x: Array, dW: Array) -> tuple[Array, Array]:
        assert self._alone is not None
        return self._alone.apply_joint_root(grad, x, dW)

    @property
    def _names(self) -> str:
        return " + ".join(str(term.describe()["name"]) for term in self.terms)

    @property
    def _first(self) -> int:
        """Index of the term whose `gradient` is used: a biased one, or one that does not use ∇f."""
        ranks = [(not term.biased, term.needs_gradient) for term in self.terms]
        return ranks.index(min(ranks))

    @property
    def _alone(self) -> NoiseLaw | None:
        """The only term that has noise, None if there are several."""
        loud = [term for term in self.terms if not term.silent]
        return loud[0] if len(loud) == 1 else None

    def _mean_signs(self, grad: Array, x: Array) -> Array:
        """e_C(∇f + A) of every draw of A, shape (K, d, P)."""
        if self.draws is None:
            raise ValueError(
                f"noise: the signs of the sum {self._names} are sampled by the library's own integrators only; use "
                "sl.compare or sl.simulate."
            )
        known = None if self.smooth is None else self.terms[self.smooth]

        def given(z: Array) -> Array:
            signs = jnp.sign(grad + z) if known is None else known.mean_sign(grad + z, x)
            return jnp.broadcast_to(signs, z.shape)

        return lax.map(given, self.draws)

    def _sizes(self, dim: int) -> list[int]:
        return [math.prod(term.noise_shape(dim)) for term in self.terms]

    def _split(self, x: Array, dW: Array) -> list[tuple[NoiseLaw, Array]]:
        """Every term with its Brownian motion."""
        dim, found, begin = x.shape[0], [], 0
        for term, size in zip(self.terms, self._sizes(dim), strict=True):
            part = lax.slice_in_dim(dW, begin, begin + size, axis=0)
            found.append((term, part.reshape(*term.noise_shape(dim), *dW.shape[1:])))
            begin += size
        return found

    def _known(self, found: Any) -> tuple[NoiseLaw, ...]:
        """The terms with their caches."""
        pairs = zip(self.terms, found, strict=True)
        return tuple(term if part is None else term.with_cache(part) for term, part in pairs)
