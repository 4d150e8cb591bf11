"""The interface of an SDE; integrators use SDEs only through it."""

import abc
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

import equinox as eqx
import jax
from jax import Array

from sdelens.core.random import Stream
from sdelens.noise import NoiseLaw
from sdelens.optimizers import State
from sdelens.problems import AbstractProblem

__all__ = ["SDE", "Instant", "OptimizerSDE"]


class Instant(NamedTuple):
    """A moment of the run.

    Attributes:
        step: the optimizer step k that contains the moment: coefficients that change from step to step (bias
            correction, schedule) are constant during the whole step, substeps included.
        time: t in [kη, (k + 1)η).
        share: Δt/η for an integrator that keeps drift and diffusion constant during Δt; 0 for solvers of the equation
            itself. SDEs with correction terms for finite steps reduce them by this share, because such an integrator
            already contributes it.
        advanced: names of the components that the integrator has already advanced within this step, and by how much
            time. A drift or diffusion that deliberately looks ahead of t must subtract that time, so that it is not
            counted twice.
    """

    step: Array
    time: Array
    share: float = 0.0
    advanced: Mapping[str, Any] = MappingProxyType({})


class SDE(eqx.Module):
    """dY = drift(t, Y) dt + diffusion(t, Y) dW, for a state Y = (X, M, V) and several Brownian motions W.

    Components have shape (d,) for one path or (d, P) for many and are treated element-wise, so one definition serves
    both cases. A reduction over the coordinates needs axis=0, keepdims=True; without them it would mix the paths, which
    a run refuses. `grad` is the mean of the stochastic gradient at Y.x, that is ∇f unless the noise is biased
    (`mean_gradient`), computed once per (sub)step by the integrator and shared by all methods.
    """

    together: ClassVar[bool] = False
    """Whether X moves by the old M; if so, integrators advance X and M together."""
    root_first: ClassVar[bool] = False
    """Whether dW is flat and begins with the Brownian motion of the gradient noise, followed by others."""

    squares_increments: ClassVar[bool] = False
    """Whether the diffusion uses the squares of the increments dW, which must then be normal and of length Δt."""

    @abc.abstractmethod
    def init(self, x: Array) -> State:
        """State at t = 0 of paths at x; every component has the shape of x, (d,) or (d, P)."""

    @abc.abstractmethod
    def evaluate(self, x: Array) -> tuple[Array, Array]:
        """f(x) and ∇f(x)."""

    @property
    def expensive_gradient(self) -> bool:
        """Whether evaluating f and ∇f dominates the cost of a step."""
        return True

    @property
    @abc.abstractmethod
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of dW per path; many paths add a last axis."""

    @property
    def cache_steps(self) -> int:
        """Steps for which the value of `compute_cache` is reused."""
        return 1

    def compute_cache(self, x: Array, grad: Array, stream: Stream) -> Any:
        """Expensive statistics of the coefficients at x, reusable for `cache_steps` steps: a pytree, or None."""
        return None

    def with_cache(self, found: Any) -> Self:
        """The SDE that uses an earlier value of `compute_cache` as its present one."""
        return self

    def at_step(self, k: Array) -> Self:
        """The SDE during optimizer step k; it is this one unless the noise changes with the step."""
        return self

    def mean_gradient(self, x: Array, grad: Array) -> Array:
        """E g at x, where ∇f = `grad`: ∇f itself unless the stochastic gradient is biased."""
        return grad

    @abc.abstractmethod
    def drift(self, t: Instant, y: State, grad: Array) -> State:
        """Drift of every component at the moment t and the state y, with `grad` = E g at y.x, which is ∇f(y.x)."""

    @abc.abstractmethod
    def apply_diffusion(self, t: Instant, y: State, grad: Array, dW: Array) -> State:
        """Diffusion times dW for every component; 0 for components without noise."""

    def positive_parts(self, t: Instant) -> Mapping[str, bool]:
        """Components that an integrator must keep positive, and whether their noise does so except for rounding."""
        return {}


class OptimizerSDE(SDE):
    """Base class of SDEs for one optimizer, problem and noise; it provides the start, f and the Brownian motion.

    To define your own equation, only `drift` and `apply_diffusion` are needed; `sdelens.compare` accepts the class as a
    model.

    Attributes:
        problem: what is minimised.
        noise: law of the gradient noise, bound to the problem.
        optimizer: its specification.
    """

    uses: ClassVar[str] = "variance"
    """What the SDE needs from the noise besides its root, as a value for `NoiseLaw.compute_cache`."""
    problem: AbstractProblem
    noise: NoiseLaw
    optimizer: Any

    def init(self, x: Array) -> State:
        return self.optimizer.initial_state(self.problem, self.noise, x)

    def evaluate(self, x: Array) -> tuple[Array, Array]:
        return self.problem.evaluate(x)

    @property
    def expensive_gradient(self) -> bool:
        return self.problem.expensive_gradient

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the Brownian motion of the gradient noise."""
        return self.noise.noise_shape(self.problem.dim)

    @property
    def cache_steps(self) -> int:
        return self.noise.cache_steps

    def compute_cache(self, x: Array, grad: Array, stream: Stream) -> Any:
        return self.noise.compute_cache(self.uses, x, grad, stream)

    def with_cache(self, found: Any) -> Self:
        return self if found is None else self._with_noise(self.noise.with_cache(found))

    def at_step(self, k: Array) -> Self:
        return self._with_noise(self.noise.at_step(k))

    def mean_gradient(self, x: Array, grad: Array) -> Array:
        return self.noise.mean_gradient(x, grad)

    def _with_noise(self, noise: NoiseLaw) -> Self:
        """The SDE with another law of the noise."""
        return self if noise is self.noise else eqx.tree_at(lambda sde: sde.noise, self, noise)

    def _shortened(self, leading: Callable[[State], State], y: State, noise: State, back: Any) -> State:
        """(I − back ∂b) dN for the noise dN of a step and the leading drift b, which `leading` computes.

        With back = (η − Δt)/2 this gives the noise of several steps of Δt the covariance of one step of the optimizer,
        to second order in η: noise that enters within the step decays until its end. It costs a Hessian-vector product.
        """
        along = jax.jvp(leading, (y,), (noise,))[1]
        return jax.tree.map(lambda a, b: a - back * b, noise, along)

    def _require_unbiased(self) -> None:
        """Refuse stochastic gradients whose mean is not ∇f, whose derivative the SDE would need."""
        if self.noise.biased:
            raise ValueError(
                f"noise: {self.noise.describe()['name']} noise has a mean gradient other than ∇f, and an SDE of second "
                "order needs its derivative, which is not known here; use the model 'sde'."
            )

    def _require_variance(self) -> None:
        """Refuse noise of infinite variance, which no Brownian motion can represent."""
        if not self.noise.has_variance(self.problem.start):
            raise ValueError(
                f"noise: {self.noise.describe()['name']} noise has no finite variance here, but the SDE of "
                f"{self.optimizer.name} is driven by Brownian motion with the noise's covariance, so it does not "
                "exist (sums of such noise tend to jump processes). Run only models=['optimizer'], or use SignSGD, "
                f"whose SDE does not need a finite variance.{self.noise.variance_remedy}"
            )
