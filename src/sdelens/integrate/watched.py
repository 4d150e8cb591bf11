"""Quantities that are carried along each path: moving averages of x, and the first steps at which conditions hold."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import Array

from sdelens.cases.path_functions import PathFunction
from sdelens.core.random import Stream
from sdelens.core.tree import Layout, over_paths, sum_coordinates
from sdelens.integrate._base import Wrapper

__all__ = ["Average", "Exponential", "Polyak", "Watched", "WatchedState"]


class Average(eqx.Module):
    """A moving average a of x: after step k it moves by a ← a + w_k (x_k − a), and a_0 = x_0."""

    @abc.abstractmethod
    def weight(self, k: Array) -> Array:
        """w_k in (0, 1], k ≥ 1."""


class Polyak(Average):
    """The mean of x_n, …, x_k; x_k itself up to step n.

    Attributes:
        first: n.
    """

    first: int

    def weight(self, k: Array) -> Array:  # noqa: D102
        return 1 / jnp.maximum(k - self.first + 1, 1).astype(jnp.float32)


class Exponential(Average):
    """The exponential moving average with decay β.

    Attributes:
        log_decay: log β, computed in double precision.
        corrected: whether a is Σ_j β^(k−j) x_j over j = 1, …, k divided by the sum of its weights; otherwise a_0 = x_0
            enters with the weight βᵏ.
    """

    log_decay: float
    corrected: bool = eqx.field(static=True)

    def weight(self, k: Array) -> Array:  # noqa: D102
        new = jnp.expm1(jnp.asarray(self.log_decay, jnp.float32))
        if not self.corrected:
            return -new
        return new / jnp.expm1(k.astype(jnp.float32) * self.log_decay)


class WatchedState(NamedTuple):
    """The state of a stepper and what is carried along.

    Attributes:
        inner: the state of the stepper.
        averages: the averages, each of shape (d,) or (d, P), at least in float32.
        firsts: for every condition the first step after which it held, −1 if it has not yet; last, the first step after
            which x was not finite: integers of shape (H + 1,) or (H + 1, P). None without conditions.
    """

    inner: Any
    averages: tuple[Array, ...]
    firsts: Any


class Watched(Wrapper):
    """Any stepper, with averages of x and conditions that are tested after every step, and at the start.

    Attributes:
        stepper: what advances the paths.
        averages: the averages.
        names: their names, by which observables read them as parts of the state.
        conditions: functions of a path to a Boolean; x that is not finite fulfils none of them.
        layout: layout of the parameters, for the conditions.
    """

    averages: tuple[Average, ...]
    names: tuple[str, ...] = eqx.field(static=True)
    conditions: tuple[PathFunction, ...] = eqx.field(static=True)
    layout: Layout = eqx.field(static=True)

    def init(self, stream: Stream) -> WatchedState:  # noqa: D102
        inner = self.stepper.init(stream)
        x = self.stepper.position(inner)
        averages = tuple(_wide(x) for _ in self.averages)
        if not self.conditions:
            return WatchedState(inner, averages, None)
        paths = stream.paths.shape[0]
        wide = {n: over_paths(a, paths) for n, a in self.stepper.parts(inner).items()}
        wide |= dict.fromkeys(self.names, wide["x"])
        none = jnp.full((len(self.conditions) + 1, paths), -1, jnp.int32)
        return WatchedState(inner, averages, self._tested(jnp.asarray(0), wide, none))

    def position(self, state: WatchedState) -> Array:  # noqa: D102
        return self.stepper.position(state.inner)

    def parts(self, state: WatchedState) -> dict[str, Array]:  # noqa: D102
        return self.stepper.parts(state.inner) | dict(zip(self.names, state.averages, strict=True))

    def observables(self, state: WatchedState) -> Array:  # noqa: D102
        return self.stepper.observables(state.inner)

    def step(self, k: Array, state: WatchedState, grad: Array, stream: Stream) -> WatchedState:  # noqa: D102
        inner = self.stepper.step(k, state.inner, grad, stream)
        k = jnp.asarray(k) + 1
        x = _wide(self.stepper.position(inner))
        averages = tuple(
            a + average.weight(k).astype(a.dtype) * (x - a)
            for a, average in zip(state.averages, self.averages, strict=True)
        )
        new = WatchedState(inner, averages, state.firsts)
        return new if state.firsts is None else new._replace(firsts=self._tested(k, self.parts(new), state.firsts))

    def _tested(self, k: Array, parts: dict[str, Array], firsts: Array) -> Array:
        """The first steps, after the conditions were tested at step k."""
        x = parts["x"]
        finite = jnp.isfinite(sum_coordinates(_wide(x)))
        held = [condition.values(x, parts, self.layout) & finite for condition in self.conditions]
        now = jnp.stack([*held, ~finite]) & (firsts < 0) & (firsts[-1] < 0)
        return jnp.where(now, k.astype(firsts.dtype), firsts)


def _wide(x: Array) -> Array:
    """The array in float32 or wider, since small weights would be lost in fewer digits."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
