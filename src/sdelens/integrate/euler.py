r"""Integrators of SDEs with a fixed step Δt = η/n.

``euler`` (the paper's choice): Y ← Y + drift Δt + diffusion ΔW with ΔW = √Δt ξ, but V is advanced first and P
uses the new V.

``sequential``: V, then M, then X, each with the newest values of the others and all with the same ΔW. At n = 1 this is
the order of the algorithms themselves, and the noise of the new M reaches X within the same step; with Euler-Maruyama
it reaches X one step later.

If `SDE.together` is true (X moves by the old M, as in Lion), both integrators advance M and X together. A component
that the SDE lists in `positive_parts` is kept positive (`kept_positive`).

For SGD and SignSGD the two integrators coincide. Both have weak order 1, with Gaussian ξ and also with ξ = ±1, because
this only requires that the first three moments of ΔW match (Kloeden and Platen 1992, section 14.1). A sign costs one
random bit.
"""

from typing import Any, Final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sdelens.cases.starts import Start
from sdelens.core.random import Stream
from sdelens.core.tree import over_paths
from sdelens.integrate._base import Integration
from sdelens.integrate._positive import kept_positive
from sdelens.optimizers import State
from sdelens.sdes import SDE, Instant

__all__ = ["STAGES", "EulerMaruyama"]

_SURVEY = np.uint32(2**31 + 1)
"""Substep index of the random draws that are used to compute the cached statistics of the coefficients."""
STAGES: Final = {"sequential": (("v",), ("m",), ("x",)), "euler": (("v",), ("m", "x"))}
"""The stages of each integrator, in order; the components of one stage are advanced together."""


class EulerMaruyama(Integration):
    """One optimizer step η as `substeps` steps of Δt = η/substeps of an SDE.

    Attributes:
        sde: the equation.
        lr: η.
        integrator: ``"sequential"`` or ``"euler"``.
        start: where the paths start.
        substeps: n ≥ 1; as n grows, the integration converges to the SDE itself.
        increments: ξ: ``"gaussian"``, or ``"rademacher"``, ±1 with equal probability.
    """

    sde: SDE
    lr: float
    start: Start
    integrator: str = eqx.field(static=True)
    substeps: int = eqx.field(static=True)
    increments: str = eqx.field(static=True)

    def __init__(
        self,
        sde: SDE,
        lr: float,
        start: Start,
        integrator: str = "sequential",
        substeps: int = 1,
        increments: str = "gaussian",
    ) -> None:
        self.sde, self.lr, self.start = sde, lr, start
        self.integrator, self.substeps, self.increments = integrator, substeps, increments

    def init(self, stream: Stream) -> State:  # noqa: D102
        state = self.start.state(stream, self.sde.init)
        x = over_paths(state.x, stream.paths.shape[0])
        found = jax.eval_shape(self.sde.compute_cache, x, x, stream)
        return state._replace(found=jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), found))

    @property
    def expensive_gradient(self) -> bool:  # noqa: D102
        return self.sde.expensive_gradient

    @property
    def noise_shape(self) -> tuple[int, ...]:  # noqa: D102
        return self.sde.noise_shape

    @property
    def root_first(self) -> bool:  # noqa: D102
        return self.sde.root_first

    def position(self, state: State) -> Array:  # noqa: D102
        return state.x

    def parts(self, state: State) -> dict[str, Array]:  # noqa: D102
        return {name: getattr(state, name) for name in ("x", "m", "v") if getattr(state, name) is not None}

    def evaluate(self, x: Array) -> tuple[Array, Array]:  # noqa: D102
        return self.sde.evaluate(x)

    def with_updated_cache(self, k: Array, j: Array | int, y: State, grad: Array, stream: Stream) -> State:  # noqa: D102
        if y.found is None:
            return y

        def anew() -> Any:
            return self.sde.at_step(k).compute_cache(y.x, grad, stream.at(k, _SURVEY))

        if self.sde.cache_steps == 1 and self.substeps == 1:
            return y._replace(found=anew())
        due = (k % self.sde.cache_steps == 0) & (jnp.asarray(j) == 0)
        return y._replace(found=lax.cond(due, anew, lambda: y.found))

    def advance(self, k: Array, j: Array | int, y: State, grad: Array, dW: Array) -> State:  # noqa: D102
        dt, dtype = self.lr / self.substeps, y.x.dtype
        t = Instant(k, k * self.lr + j * dt, 1 / self.substeps)
        sde = self.sde.at_step(k).with_cache(y.found)
        grad = sde.mean_gradient(y.x, grad)
        for stage in STAGES["euler" if sde.together else self.integrator]:
            names = [name for name in stage if getattr(y, name) is not None]
            drift = sde.drift(t, y, grad)
            noise = sde.apply_diffusion(t, y, grad, dW)
            new = {n: getattr(y, n) + getattr(drift, n) * dt for n in names}
            positive = sde.positive_parts(t)
            for n in names:
                by = getattr(noise, n)
                new[n] = kept_positive(new[n], by, positive[n]) if n in positive else new[n] + by
            y = y._replace(**{n: a.astype(dtype) for n, a in new.items()})
            t = t._replace(advanced={**t.advanced, **dict.fromkeys(names, dt)})
        return y
