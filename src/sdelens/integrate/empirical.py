r"""The SDE of any optimizer, with coefficients computed from its update.

With y = (x, state of the optimizer) and one update y ← y + D(y, g), the drift is E[D]/η and the diffusion has
covariance Cov(D)/η. No formula is derived for them: K stochastic gradients g_j are drawn at one state, the update is
applied to each, and

    y ← y + D̄ + (1/√K) Σ_j ξ_j (D_j − D̄),   ξ_j independent N(0, 1), the same for all parts and coordinates.

D̄ is unbiased; conditional on the samples the step is normal; and its covariance, including that of D̄, is Cov(D) on
average, with all correlations between coordinates and parts, without storing a matrix. With n substeps the step is D̄/n
plus the sum times √((1 − 1/(nK))/(n(K − 1))), so the total covariance over n substeps is again Cov(D).

This is a weak approximation of order 1 if every increment is O(η) with smooth coefficients (β = 1 − ηρ). At fixed β,
for sums of squares with increments of O(1), and for signs of small numbers, it matches two moments of a step.

If a part is a sum or mean of squares, normal noise could make it negative and the next step would diverge. It moves by

    v ← μ exp(s ζ − s²/2),  μ = v + D̄,  s² = log(1 + q/μ²),

where its noise is a multiple of the standard normal number ζ and has the variance q: mean, variance and, to first
order, all correlations equal those of the normal step, and v stays positive (``accumulators="lognormal"``). Where the
standard deviation of the step exceeds half of μ (rare gradients, the first steps from v = 0), a log-normal v would
mostly be far too small. There, and everywhere with ``"update"``, it is moved by the update itself, at a normal gradient
with the mean and covariance of the samples,

    v ← v + D_v(y, G),  G = ḡ + (1/√K) Σ_j ξ_j (g_j − ḡ),

which preserves every bound that the optimizer preserves, and the mean of squares, E G² = E g², but loses the covariance
of squares with a skewed g, such as that of mini-batches. Parts that bound each other (a centred second moment, ν ≥ μ²)
always move in this way. With substeps these parts have no noise, and squares have log-normal noise only. ``"drift"``
omits the noise of both.
"""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sdelens.core.random import Stream
from sdelens.integrate._positive import by_update, moved, needs_variance
from sdelens.integrate.discrete import Discrete, DiscreteState
from sdelens.optimizers import HELD, Query

__all__ = ["Empirical"]

_SAMPLES = np.uint32(2**31 + 2)
"""Substep index of the random draws that are used for the sampled gradients."""


class Empirical(Discrete):
    """One optimizer step η as `substeps` steps of the SDE whose coefficients are estimated from sampled updates.

    Attributes:
        samples: K ≥ 2 updates per (sub)step.
        substeps: n ≥ 1. Counters stay constant during an optimizer step; every sample uses different random keys.
        increments: ξ: ``"gaussian"``, or ``"rademacher"``, ±1 with equal probability.
        accumulators: the noise of squares: ``"lognormal"``, ``"update"`` or ``"drift"``.
    """

    samples: int = eqx.field(default=8, static=True)
    substeps: int = eqx.field(default=1, static=True)
    increments: str = eqx.field(default="gaussian", static=True)
    accumulators: str = eqx.field(default="lognormal", static=True)

    def step(self, k: Array, state: DiscreteState, grad: Array, stream: Stream) -> DiscreteState:  # noqa: D102
        laws = jax.tree.leaves(self.optimizer.leaf_kinds(state.inner, self.layout))
        state, whole = self._substep(k, 0, state, grad, stream, laws)
        if self.substeps > 1:

            def body(j: Array, loop: tuple[DiscreteState, list[Array]]) -> tuple[DiscreteState, list[Array]]:
                state = loop[0]
                grad = self.evaluate(state.x)[1] if self.needs_gradient else state.x
                return self._substep(k, j, state, grad, stream, laws)

            state, whole = lax.fori_loop(1, self.substeps, body, (state, whole))
        inner, tree = jax.tree.flatten(state.inner)
        held = iter(whole)
        inner = [next(held) if law in HELD else leaf for leaf, law in zip(inner, laws, strict=True)]
        return DiscreteState(state.x, jax.tree.unflatten(tree, inner))

    def _substep(
        self, k: Array, j: Array | int, state: DiscreteState, grad: Array, stream: Stream, laws: list[str]
    ) -> tuple[DiscreteState, list[Array]]:
        """The state after a substep, and the updated values of leaves that are held until the optimizer step ends."""
        draw = stream.at(k, j).normal if self.increments == "gaussian" else stream.at(k, j).signs
        xi = draw(self.samples, state.x.dtype)
        inner, tree = jax.tree.flatten(state.inner)
        old, laws = [state.x, *inner], ["free", *laws]
        moving = [i for i, law in enumerate(laws) if law not in HELD]
        updated = [i for i in moving if by_update(laws[i], self.accumulators, self.substeps)]

        def update(gradient: Array, sample: Array | int, query: Query) -> list[Array]:
            own = self.optimizer.rekeyed(state.inner, jnp.asarray(j) * self.samples + sample, self.layout)
            x, kept = self.optimizer.step(state.x, own, gradient, query, self.layout)
            return [x, *jax.tree.leaves(kept)]

        def drawn(sample: Array | int) -> tuple[Array, Query]:
            """The gradient of a sample, and those of the same draw at other points."""
            own = stream.at(jnp.asarray(j) * self.samples + sample, _SAMPLES)
            return self.noise.gradient(k, state.x, grad, own), self.query(k, own)

        def add(sums: list[_Sums], i: Array) -> tuple[list[_Sums], list[Array]]:
            gradient, query = drawn(i)
            new, weight = update(gradient, i, query), lax.dynamic_index_in_dim(xi, i)
            terms = [*(_wide(new[m]) - _wide(old[m]) for m in moving), *([gradient] if updated else [])]
            sums = [total.add(term, weight) for term, total in zip(terms, sums, strict=True)]
            return sums, [leaf for leaf, law in zip(new, laws, strict=True) if law in HELD]

        zeros = [_Sums.zeros(old[m], needs_variance(laws[m], self.accumulators, self.substeps)) for m in moving]
        zeros += [_Sums.zeros(state.x, False)] if updated else []
        sums, held = lax.scan(add, zeros, jnp.arange(self.samples))
        total = xi.sum(axis=0)
        if updated:
            mean, noise, _ = self._parts(sums[-1], total)
            gradient = (mean + noise).astype(state.x.dtype)
            normal = update(gradient, 0, self._shifted(gradient, *drawn(0)))
        for m, own in zip(moving, sums, strict=False):
            after = normal[m] if m in updated else None
            old[m] = self._moved(old[m], laws[m], own, total, after).astype(old[m].dtype)
        return DiscreteState(old[0], jax.tree.unflatten(tree, old[1:])), [leaf[0] for leaf in held]

    @staticmethod
    def _shifted(gradient: Array, sample: Array, query: Query) -> Query:
        """Gradients at other points that fit a gradient at x other than that of the draw: shifted by the difference."""
        return Query(lambda x: query(x) + (gradient - sample), query.mean)

    def _parts(self, sums: "_Sums", weights: Array) -> tuple[Array, Array, Array | None]:
        """Mean of the samples, noise of a substep, and the variance of that noise if squares were summed."""
        samples, n = self.samples, self.substeps
        share = math.sqrt((1 - 1 / (n * samples)) / (n * (samples - 1)))
        mean = sums.steps / samples
        variance = None if sums.squares is None else share**2 * (sums.squares - samples * mean**2)
        return mean, share * (sums.weighted - weights * mean), variance

    def _moved(self, old: Array, law: str, sums: "_Sums", weights: Array, updated: Array | None) -> Array:
        """One part of the state after a substep."""
        mean, noise, variance = self._parts(sums, weights)
        return moved(law, self.accumulators, old + mean / self.substeps, noise, variance, updated)


class _Sums(NamedTuple):
    """Sums over the samples of D_j, of ξ_j D_j and, if requested, of D_j²."""

    steps: Array
    weighted: Array
    squares: Array | None

    @classmethod
    def zeros(cls, like: Array, squares: bool) -> "_Sums":
        zero = jnp.zeros_like(_wide(like))
        return cls(zero, zero, zero if squares else None)

    def add(self, step: Array, weight: Array) -> "_Sums":
        step, weight = _wide(step), weight.astype(self.steps.dtype)
        squares = None if self.squares is None else self.squares + step**2
        return _Sums(self.steps + step, self.weighted + weight * step, squares)


def _wide(part: Array) -> Array:
    """Convert to float32 or wider, because sums over the samples suffer from cancellation."""
    return part.astype(jnp.promote_types(part.dtype, jnp.float32))
