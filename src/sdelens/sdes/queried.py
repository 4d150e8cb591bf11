"""The SDE of an optimizer that moves by the gradient of the same draw at another point: SAM, USAM, extragradient."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from sdelens.core.random import Stream
from sdelens.optimizers import SAM, Extragradient, Query, State
from sdelens.problems import L2Problem, Quadratic, QuadraticGame
from sdelens.sdes._base import Instant, OptimizerSDE
from sdelens.sdes._direction import mean_direction, turned_direction

__all__ = ["QueriedSDE"]

_DRAW = 1
"""Substep of the draw of the stochastic gradients in the mean, apart from the statistics of the noise."""


class QueriedSDE(OptimizerSDE):
    r"""SDE of SGD or Momentum that moves by ĝ = g(x + r u(g(x))), with both gradients of the same draw.

    For SAM r = ρ and u(g) = g/‖g‖, for USAM r = ρ and u(g) = g, for extragradient r = −ρ and u(g) = g. The SDE is that
    of the base with the mean and the noise of ĝ in place of those of g; on SGD with decoupled weight decay

    dX = −h(E ĝ(X) + θX) dt − h√η [Σ^{1/2}(X⁺) + r ∇²f(X⁺) ∂U Σ^{1/2}(X)] dW,  X⁺ = X + r U(X),

    where U = ∇f and ∂U = I or, with a norm, U = E g/‖g‖ for normal g with the variances of g, and ∂U is its derivative
    in ∇f, both by quadrature (`mean_direction`). In games ∇f is the field F and ∇²f its Jacobian.

    Derivation. With Z the noise of one draw, ĝ = ∇f(x⁺) + Z(x⁺) + r ∇²f(x⁺) ∂U Z(x) + s: the leading noise of ĝ is
    linear in that of g, with the same dW at both points, since Σ^{1/2}(x) dW at another x is the same draw (of a
    mini-batch: the same weights of the examples). Of a normal g, ∂U Z is the regression of u(g) on Z (Stein's lemma).
    The rest is

    s = g(x + r u(g(x))) − g(x⁺) − r ∇²f(x⁺) ∂U (g(x) − ∇f(x)),  and therefore E ĝ = ∇f(x⁺) + E s

    exactly, whatever r is, because Z has mean 0 at every point. E s is O(r²) for injected noise and vanishes where ∇f
    and u are linear; with mini-batches it is r Cov(H_B, g_B) = (r/2) ∇tr Σ + O(r²), the part of the drift that comes
    from the same mini-batch being used twice. An integrator draws s once per step of the optimizer, from an independent
    draw of the noise. The mean is then unbiased, and the variance of s, which is uncorrelated with Z for normal g, is
    that part of the variance of ĝ that the linear terms lack.

    So the weak order is 1 at fixed ρ. The paper expands in ρ = O(√η): USAM's drift is −∇(f + (ρ/2) E‖g‖²), SAM's
    −∇(f + ρ E‖g‖), with the same covariance to O(ρ); extragradient's is −F + ρ E[∇F_B F_B]. The exact mean is used here
    because these expansions have errors of O(ρ²) that do not vanish as η → 0.

    Of roots that do not follow the draw (linear regression, diagonal covariances of mini-batches) the covariance has a
    relative error of O(ρ), which does not change the order.

    Source: Compagnoni et al. 2023 (arXiv 2301.08203) for SAM and USAM, 2024 (arXiv 2402.12508) for extragradient;
    derived again here.

    Attributes:
        of_base: SDE of the base.
        residual: s, None where it vanishes or has not been drawn.
    """

    optimizer: SAM | Extragradient
    of_base: OptimizerSDE
    residual: Array | None = None

    def __check_init__(self) -> None:
        self._require_variance()

    @property
    def uses(self) -> str:  # type: ignore[override]
        """What the SDE needs from the noise besides its root: with a norm, its variance."""
        return "variance" if self._normalised else "root"

    @property
    def _normalised(self) -> bool:
        return isinstance(self.optimizer, SAM) and self.optimizer.normalise

    @property
    def _radius(self) -> Any:
        """The signed distance r, or the factor of g."""
        return self.optimizer.rho if isinstance(self.optimizer, SAM) else -self.optimizer.extrapolation

    @property
    def _vanishes(self) -> bool:
        """Whether s = 0: ∇f is linear, the noise is the same everywhere, and there is no norm."""
        problem = self.problem
        while isinstance(problem, L2Problem):
            problem = problem.problem
        return isinstance(problem, Quadratic | QuadraticGame) and self.noise.constant and not self._normalised

    def compute_cache(self, x: Array, grad: Array, stream: Stream) -> Any:  # noqa: D102
        found = self.noise.compute_cache(self.uses, x, grad, stream)
        if self._vanishes:
            return found if found is None else (found, None)
        sde = self if found is None else self._with_noise(self.noise.with_cache(found))
        return found, sde._drawn_residual(x, self.mean_gradient(x, grad), stream.at(0, _DRAW))

    def with_cache(self, found: Any) -> "QueriedSDE":  # noqa: D102
        if found is None:
            return self
        sde = self if found[0] is None else self._with_noise(self.noise.with_cache(found[0]))
        return eqx.tree_at(lambda s: s.residual, sde, found[1], is_leaf=lambda leaf: leaf is None)

    def drift(self, t: Instant, y: State, grad: Array) -> State:  # noqa: D102
        if self.residual is None and not self._vanishes:
            raise ValueError(
                f"models: the drift of the SDE of {self.optimizer.name} contains a mean over draws of the noise, which "
                "the library's own integrators compute, except without a norm on a quadratic with the same noise "
                "everywhere; use sl.compare or sl.simulate."
            )
        mean = self._mean(self._moved(y.x, grad))
        return self.of_base.drift(t, y, mean if self.residual is None else mean + self.residual)

    def apply_diffusion(self, t: Instant, y: State, grad: Array, dW: Array) -> State:  # noqa: D102
        of_base = eqx.tree_at(lambda sde: sde.noise, self.of_base, _RootAt(self, grad))
        return of_base.apply_diffusion(t, y, grad, dW)

    def root(self, x: Array, grad: Array, dW: Array) -> Array:
        """The noise of ĝ for the increments of the noise of g, with E g = `grad` at x."""
        own = self.noise.apply_root(x, dW)
        there = self._moved(x, grad)
        far = own if self.noise.constant else self.noise.apply_root(there, dW)
        return far + self._along(there, self._turned(x, grad, own))

    def _mean(self, x: Array) -> Array:
        """E g at x."""
        return self.mean_gradient(x, self.evaluate(x)[1])

    def _along(self, x: Array, v: Array) -> Array:
        """The product r ∇²f(x) v."""
        return self._radius * jax.jvp(self._mean, (x,), (v.astype(x.dtype),))[1]

    def _moved(self, x: Array, grad: Array) -> Array:
        """x⁺."""
        return x + self._radius * (mean_direction(grad, self._variance(x)) if self._normalised else grad)

    def _turned(self, x: Array, grad: Array, v: Array) -> Array:
        """∂U v."""
        return turned_direction(grad, self._variance(x), v) if self._normalised else v

    def _variance(self, x: Array) -> Array:
        return jnp.broadcast_to(self.noise.variance(x), x.shape)

    def _drawn_residual(self, x: Array, grad: Array, stream: Stream) -> Array:
        """The rest s for one draw of the noise."""

        def draw(x: Array) -> Array:
            return self.noise.draw(x, self.evaluate(x)[1] if self.noise.needs_gradient else x, stream)

        query = Query(draw, self._mean)
        own, there = query(x), self._moved(x, grad)
        far = self.optimizer.queried(x, None, own, query) - query(there)
        return (far - self._along(there, self._turned(x, grad, own - grad))).astype(x.dtype)


class _RootAt(eqx.Module):
    """In place of the law of g in the SDE of a base: the root of the covariance of ĝ."""

    sde: QueriedSDE
    grad: Array

    def apply_root(self, x: Array, dW: Array) -> Array:
        return self.sde.root(x, self.grad, dW)
