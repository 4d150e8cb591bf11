"""The optimizer and several integrations of its SDEs on one Brownian path, for differences with little noise."""

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

__all__ = ["Coupled"]

_OWN_NOISE = np.uint32(2**31)
"""Step whose stream is that of noise that no Brownian motion drives."""


class Coupled(Stepper):
    """Steppers of one experiment that share their random numbers.

    The finest integration's increments ΔW make up those of all others, and under normal noise the optimizer's too: its
    gradient noise is Σ^{1/2} ΔW/√η with the increment over the whole step, of which it takes the first numbers where
    an integration has further ones of its own. Rademacher increments are the signs of the
    normal ones, with which they have a correlation of √(2/π). Paths then differ by what the models differ
    in, not by their noise. Other noise is drawn by itself.

    Attributes:
        optimizer: the discrete optimizer, whose position counts as that of the path.
        integrations: of its SDEs, each with a number of substeps that divides the largest.
        functions: (positions of the optimizer and of every integration, each of shape (d, P)) -> observables (K, P).
    """

    optimizer: Discrete
    integrations: tuple[Integration, ...]
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
        shapes, dtype = [s.noise_shape for s in self.integrations], grad.dtype
        size = max(math.prod(shape) for shape in shapes)
        xi = lax.map(lambda j: stream.at(k, j).normal(size, dtype), jnp.arange(finest))
        noise, discrete = self.optimizer.noise, state[0]
        root = noise.noise_shape(grad.shape[0])
        if noise.normal and all(s.noise_shape == root or s.root_first for s in self.integrations):
            own = lax.slice_in_dim(xi, 0, math.prod(root), axis=1)
            total = own.sum(axis=0).reshape(*root, -1) / math.sqrt(finest)
            noisy = grad + noise.apply_root(discrete.x, total)
        else:
            noisy = noise.gradient(k, discrete.x, grad, stream.at(_OWN_NOISE))
        moved: list[Any] = [self.optimizer.advance(discrete, noisy)]
        for stepper, shape, y in zip(self.integrations, shapes, state[1:], strict=True):
            n = stepper.substeps
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
