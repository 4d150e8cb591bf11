"""The optimizer and several integrations of its SDEs on one Brownian path, which makes their differences less noisy."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sdelens.core.random import Stream
from sdelens.integrate._base import Integration, Stepper
from sdelens.integrate.discrete import Discrete
from sdelens.integrate.empirical import Empirical
from sdelens.optimizers import Query

__all__ = ["Coupled"]

_OWN_NOISE = np.uint32(2**31)
"""Step index whose stream is used for gradient noise that is not driven by the Brownian motion."""
_OWN_SAMPLES = np.uint32(2**31 + 1)
"""Step index whose stream is used for sampled coefficients."""


class Coupled(Stepper):
    """Steppers of one experiment that share their random numbers.

    The increments ΔW of the other integrations are sums of those of the finest one. With normal noise the optimizer
    uses them too: its gradient noise is Σ^{1/2} ΔW/√η with the increment over the whole step; if an integration is
    driven by further Brownian motions, the optimizer uses the first ones. Rademacher increments are the signs of the
    normal increments, with which they have a correlation of √(2/π). The paths then differ because of the models, not
    because of different noise. Noise that is not normal is drawn independently, and so are sampled coefficients, which
    have no Brownian path. No coupling changes the law of a single path, and thus no expectation.

    Attributes:
        optimizer: the discrete optimizer, whose position is recorded as the position of the path.
        integrations: integrations of its SDEs, each with a number of substeps that divides the largest one.
        functions: (positions of the optimizer and of every integration, each of shape (d, P)) -> observables (K, P).
    """

    optimizer: Discrete
    integrations: tuple[Integration | Empirical, ...]
    functions: Callable[[tuple[Array, ...]], Array] = eqx.field(static=True)

    def init(self, stream: Stream) -> tuple[Any, ...]:  # noqa: D102
        return tuple(stepper.init(stream) for stepper in self._all)

    def position(self, state: tuple[Any, ...]) -> Array:  # noqa: D102
        return self.optimizer.position(state[0])

    def observables(self, state: tuple[Any, ...]) -> Array:  # noqa: D102
        return self.functions(tuple(s.position(y) for s, y in zip(self._all, state, strict=True)))

    def evaluate(self, x: Array) -> tuple[Array, Array]:  # noqa: D102
        return self.optimizer.evaluate(x)

    @property
    def expensive_gradient(self) -> bool:  # noqa: D102
        return self.optimizer.expensive_gradient

    def step(self, k: Array, state: tuple[Any, ...], grad: Array, stream: Stream) -> tuple[Any, ...]:  # noqa: D102
        finest = max(s.substeps for s in self.integrations)
        noise, discrete, dtype = self.optimizer.noise, state[0], grad.dtype
        root = noise.noise_shape(grad.shape[0])
        shapes = [s.noise_shape if isinstance(s, Integration) else () for s in self.integrations]
        size = max(math.prod(shape) for shape in (root, *shapes))
        xi = lax.map(lambda j: stream.at(k, j).normal(size, dtype), jnp.arange(finest))
        if noise.normal:
            own = lax.slice_in_dim(xi, 0, math.prod(root), axis=1)
            total = own.sum(axis=0).reshape(*root, -1) / math.sqrt(finest)
            law = noise.at_step(k)

            def noisy(x: Array, grad: Array) -> Array:
                return law.mean_gradient(x, grad) + law.apply_root(x, total)
        else:

            def noisy(x: Array, grad: Array) -> Array:
                return noise.gradient(k, x, grad, stream.at(_OWN_NOISE))

        gradient = noisy(discrete.x, grad)
        query = Query(
            lambda x: noisy(x, self.evaluate(x)[1]),
            lambda x: noise.at_step(k).mean_gradient(x, self.evaluate(x)[1]),
        )
        moved: list[Any] = [self.optimizer.advance(discrete, gradient, query)]
        for stepper, shape, y in zip(self.integrations, shapes, state[1:], strict=True):
            n = stepper.substeps
            if isinstance(stepper, Empirical):
                gradient = stepper.evaluate(y.x)[1] if stepper.needs_gradient else y.x
                moved.append(stepper.step(k, y, gradient, stream.at(_OWN_SAMPLES)))
                continue
            first = lax.slice_in_dim(xi, 0, math.prod(shape), axis=1)
            joined = first.reshape(n, finest // n, math.prod(shape), -1).sum(axis=1).reshape(n, *shape, -1)
            dW = jnp.sqrt(stepper.lr / finest) * joined
            if stepper.increments == "rademacher":
                dW = jnp.sqrt(stepper.lr / n) * jnp.where(joined < 0, -1, 1).astype(dtype)
            moved.append(stepper.step_along(k, y, dW, stream))
        return tuple(moved)

    @property
    def _all(self) -> tuple[Stepper, ...]:
        return (self.optimizer, *self.integrations)
