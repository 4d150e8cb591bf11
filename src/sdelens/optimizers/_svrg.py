"""Variance reduction by the gradient of the same draw at an earlier point."""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import optax
from jax import Array, lax

from sdelens.core import check
from sdelens.core.random import Stream
from sdelens.core.tree import Layout
from sdelens.optimizers._base import Optimizer, Query, State
from sdelens.optimizers._wrapped import Wrapped, checked_base

__all__ = ["SVRG"]


class SVRGState(NamedTuple):
    """The state of the base, the last snapshot with its full gradient, and the number of steps."""

    base: Any
    snapshot: Array
    full: Array
    steps: Array


class SVRG(Wrapped):
    r"""Stochastic variance-reduced gradients on another optimizer: ĝ = g(x) − g(x̃) + ∇f(x̃).

    g(x) and g(x̃) are gradients of one mini-batch, or of one draw of the noise, whose noise thus nearly cancels near the
    snapshot x̃; every `every` steps, beginning with the first, x̃ ← x. The full gradient at x̃ is computed then and kept.
    The noise of injected laws that are the same everywhere cancels exactly.

    It has no SDE in closed form: the covariance of ĝ depends on x and x̃, a state that jumps. The model ``"empirical"``
    has both as parts of its state.

    Args:
        base: the optimizer that moves with ĝ, for example ``sl.SGD(lr=0.1)``.
        every: number of steps from one snapshot to the next.

    Raises:
        ValueError, TypeError: if an argument is out of its range; the message names it.

    Source: Johnson and Zhang 2013, *Accelerating stochastic gradient descent using predictive variance reduction*.

    Examples:
        >>> import sdelens as sl
        >>> sl.models_of(sl.SVRG(sl.SGD(lr=0.1), every=50))
        ['optimizer', 'empirical']
    """

    name: ClassVar[str] = "svrg"
    base: Optimizer = eqx.field()
    every: int = eqx.field(default=100, static=True, converter=lambda value: check.at_least("every", value, 1))

    def __check_init__(self) -> None:
        checked_base(self.base)

    def queried(self, x: Array, inner: SVRGState, gradient: Array, query: Query) -> Array:
        return gradient - query(inner.snapshot) + inner.full

    def to_optax(self) -> optax.GradientTransformationExtraArgs:
        """Refused: optax's updates do not receive the full gradient.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("optimizer: svrg needs full gradients, which an update of optax does not receive.")

    def begin(self, state: State, layout: Layout, stream: Stream) -> SVRGState:
        base = self.base.begin(state, layout, stream)
        return SVRGState(base, state.x, jnp.zeros_like(state.x), jnp.zeros((), jnp.int32))

    def step(self, x: Array, inner: SVRGState, gradient: Array, query: Query, layout: Layout) -> tuple[Array, Any]:
        def anew() -> tuple[Array, Array]:
            return x, query.mean(x).astype(x.dtype)

        def kept() -> tuple[Array, Array]:
            return inner.snapshot, inner.full

        snapshot, full = lax.cond(inner.steps % self.every == 0, anew, kept)
        now = SVRGState(inner.base, snapshot, full, inner.steps + 1)
        outer = self.outer(now, query)
        x, base = self.base.step(x, inner.base, self.queried(x, now, gradient, query), outer, layout)
        return x, now._replace(base=base)

    def advance(self, x: Array, inner: SVRGState, gradient: Array, layout: Layout) -> tuple[Array, Any]:
        x, base = self.base.advance(x, inner.base, gradient, layout)
        return x, inner._replace(base=base)

    def parts(self, x: Array, inner: SVRGState, layout: Layout) -> dict[str, Array]:
        """Those of the base, and the snapshot."""
        return {"snapshot": inner.snapshot, **self.base.parts(x, inner.base, layout)}

    def rekeyed(self, inner: SVRGState, number: Array, layout: Layout) -> SVRGState:
        return inner._replace(base=self.base.rekeyed(inner.base, number, layout))

    def leaf_kinds(self, inner: SVRGState, layout: Layout) -> SVRGState:
        """Snapshot and full gradient change once per step, as counters do."""
        return SVRGState(self.base.leaf_kinds(inner.base, layout), "counter", "counter", "counter")  # type: ignore[arg-type]

    def _numbers(self) -> dict[str, Any]:
        return {"every": self.every}
