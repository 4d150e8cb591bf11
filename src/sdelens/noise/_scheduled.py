"""Noise that changes with the step: its size by a multiplier, or its batch size in stages."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sdelens.core import check
from sdelens.core.compilation import quick
from sdelens.core.random import Stream
from sdelens.noise._base import AbstractNoise, NoiseLaw
from sdelens.noise._forwarded import ForwardedLaw
from sdelens.noise._minibatch import MinibatchNoise
from sdelens.noise._private import DPNoise
from sdelens.noise._staged import StagedLaw, described_schedule
from sdelens.noise.distributed import DistributedNoise
from sdelens.problems import AbstractProblem

__all__ = ["ScheduledNoise", "at_ratio", "check_multipliers"]

_CHECKED = 4096
"""Steps of a run at which a multiplier is evaluated beforehand; always as many, so that its operations compile once."""

_MOST = 32
"""Most batch sizes: every one is compiled."""


class ScheduledNoise(AbstractNoise):
    r"""Noise that changes with the optimizer step k: Z_k = c_k Z, or the noise of a batch r_k times as large.

    The optimizer itself and all of its SDEs use the law of the current step; an SDE keeps it during the whole step,
    substeps included. With a multiplier, c_k² multiplies the covariance. With batch ratios, the law of each stage is
    `noise.at_batch_ratio(r)`; where that is not known and r is a whole number, it is the mean of r draws.

    Args:
        noise: law of Z.
        multiplier: c_k ≥ 0: a function of the step number, written with jax.numpy, or an array with one number for
            every step, whose last number holds afterwards.
        batch_ratio: r_k > 0, in place of a multiplier: a list of (first step, ratio), ascending from step 0, or an
            array with one ratio for every step. At most 32 different ratios, since each is compiled.

    Raises:
        ValueError, TypeError: if none or both are given, one is out of its range or cannot be compiled, the noise is
            not known at a ratio, or mini-batches are drawn without replacement, whose epochs would be cut.

    Examples:
        >>> import sdelens as sl
        >>> fading = sl.ScheduledNoise(sl.GaussianNoise(1.0), lambda k: 1 / (1 + 0.01 * k))
        >>> growing = sl.ScheduledNoise(sl.GaussianNoise(1.0), batch_ratio=[(0, 1), (500, 4)])
    """

    noise: AbstractNoise
    function: Callable[[Any], Any] | None = eqx.field(static=True)
    first: float
    sizes: Array | None
    batch_ratio: Any
    laws: tuple[AbstractNoise, ...]
    which: Array | None

    def __init__(self, noise: AbstractNoise, multiplier: Any = None, *, batch_ratio: Any = None) -> None:
        if not isinstance(noise, AbstractNoise):
            raise TypeError(f"noise: got {type(noise).__name__}; give a noise law, for example sl.GaussianNoise(1.0).")
        if isinstance(noise, ScheduledNoise):
            raise TypeError("noise: got a ScheduledNoise; combine both schedules in one.")
        if (multiplier is None) == (batch_ratio is None):
            raise TypeError("multiplier, batch_ratio: got both or neither; give one of them.")
        self.noise, self.batch_ratio, self.first = noise, batch_ratio, 1.0
        self.function, self.sizes, self.laws, self.which = None, None, (), None
        if callable(multiplier):
            self.function, self.first = multiplier, _checked(multiplier)
        elif multiplier is not None:
            sizes = np.asarray(check.finite_array("multiplier", multiplier, (1,)))
            if (sizes < 0).any():
                raise ValueError(f"multiplier: got {sizes.min():g}; multipliers must not be negative.")
            self.first, self.sizes = float(sizes[0]), jnp.asarray(np.asarray(sizes, jnp.result_type(float)))
        else:
            self.laws, self.which = _staged(noise, batch_ratio)

    def bind(self, problem: AbstractProblem) -> NoiseLaw:
        if self.laws:
            assert self.which is not None
            first = jnp.asarray(np.asarray(self.which)[0])
            return StagedLaw(tuple(law.bind(problem) for law in self.laws), self.which, first)
        size = jnp.asarray(self.first, problem.start.dtype)
        return MultipliedLaw(self.noise.bind(problem), self.function, self.sizes, size)

    @property
    def multiplier(self) -> Any:
        """The multiplier as it was given, None for batch ratios."""
        return self.function if self.sizes is None else self.sizes

    def at_batch_ratio(self, ratio: float) -> "ScheduledNoise":
        """The noise with every batch `ratio` times as large, with the same multiplier; an error for batch ratios."""
        if self.laws:
            raise ValueError("ratio: the batch size of this noise changes with the step already.")
        return ScheduledNoise(self.noise.at_batch_ratio(ratio), self.multiplier)

    def describe(self) -> dict[str, Any]:
        return described_schedule(self.noise.describe(), len(self.laws))


def check_multipliers(noise: AbstractNoise, steps: int) -> None:
    """Refuse a multiplier that is negative or not finite within a run, checked at 4096 of its steps.

    Raises:
        ValueError: if it is; the message names the first such step.
    """
    scheduled = jax.tree.leaves(noise, is_leaf=lambda part: isinstance(part, ScheduledNoise))
    for part in scheduled:
        if isinstance(part, ScheduledNoise) and part.function is not None:
            at = np.linspace(0, max(steps - 1, 0), _CHECKED).astype(np.int32)
            with check.evaluated():
                values = np.asarray(jax.vmap(lambda k, c=part.function: jnp.asarray(c(k), float))(at))
            _refuse_negative(values, at)


def _refuse_negative(values: np.ndarray, at: np.ndarray) -> None:
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"multiplier: got {values[first]:g} at step {at[first]}; multipliers must be finite and not negative "
            "throughout the run, for example by jnp.maximum(…, 0)."
        )


def at_ratio(noise: Any, ratio: float) -> AbstractNoise:
    """The noise at δ times the batch size, from its law or as the mean of δ draws.

    Raises:
        TypeError: if `noise` is no noise.
        ValueError: if the averaged law is not known and δ is no whole number above 1.
    """
    if not isinstance(noise, AbstractNoise):
        raise TypeError(f"noise: got {type(noise).__name__}; give a noise law, for example sl.GaussianNoise(1.0).")
    try:
        return noise.at_batch_ratio(ratio)
    except ValueError:
        if not ratio.is_integer() or ratio <= 1 or isinstance(noise, DistributedNoise | DPNoise):
            raise
        return DistributedNoise(noise, workers=int(ratio))


def _checked(multiplier: Callable[[Any], Any]) -> float:
    """The first value of a multiplier that is a function, if it can be compiled."""
    try:
        kind = jax.eval_shape(lambda k: jnp.asarray(multiplier(k), float), jnp.asarray(0))
        first = quick(lambda k: jnp.asarray(multiplier(k), float))(np.int32(0)) if kind.shape == () else None
    except (jax.errors.JAXTypeError, TypeError) as error:
        raise TypeError(
            f"multiplier: cannot be compiled as a function of the step number ({error}). Use jax.numpy."
        ) from error
    if first is None:
        raise ValueError(f"multiplier: returned shape {kind.shape}; return one number.")
    _refuse_negative(np.atleast_1d(first), np.zeros(1, int))
    return float(first)


def _staged(noise: AbstractNoise, batch_ratio: Any) -> tuple[tuple[AbstractNoise, ...], Array]:
    """The laws of the different ratios, and the index of the law of every step."""
    pairs = isinstance(batch_ratio, Sequence) and all(np.shape(pair) == (2,) for pair in batch_ratio)
    given = np.asarray(check.finite_array("batch_ratio", batch_ratio, (2,) if pairs else (1,)), np.float64)
    if pairs:
        steps = given[:, 0]
        if steps[0] != 0 or (np.diff(steps) <= 0).any() or (steps != np.round(steps)).any():
            raise ValueError(f"batch_ratio: got the first steps {steps.tolist()}; they must ascend from 0.")
        lengths = [*np.diff(steps).astype(int), 1]
        given = np.repeat(given[:, 1], lengths)
    if (given <= 0).any():
        raise ValueError(f"batch_ratio: got {given.min():g}; ratios must be greater than 0.")
    different, which = np.unique(given, return_inverse=True)
    if len(different) > _MOST:
        raise ValueError(f"batch_ratio: got {len(different)} different ratios; give at most {_MOST}.")
    if isinstance(noise, MinibatchNoise) and not noise.options.replacement:
        raise ValueError(
            "noise: got mini-batches without replacement, whose epochs a changing batch size would cut; use "
            "replacement=True."
        )
    return tuple(at_ratio(noise, float(ratio)) for ratio in different), jnp.asarray(which.astype(np.int32))


class MultipliedLaw(ForwardedLaw):
    """The law of c_k Z.

    Attributes:
        law: the law of Z.
        function: the multiplier as a function of the step, or None.
        sizes: the multiplier of every step, or None.
        size: c of the current step.
    """

    scheduled = True
    law: NoiseLaw
    function: Callable[[Any], Any] | None = eqx.field(static=True)
    sizes: Array | None
    size: Array

    @property
    def constant(self) -> bool:  # type: ignore[override]
        return False

    @property
    def has_quadrature(self) -> bool:  # type: ignore[override]
        return False

    def at_step(self, k: Array | int) -> "MultipliedLaw":
        if self.sizes is not None:
            size = self.sizes[jnp.minimum(k, len(self.sizes) - 1)]
        else:
            assert self.function is not None
            size = self.function(jnp.asarray(k))
        now = self.law.at_step(k), jnp.asarray(size, self.size.dtype)
        return eqx.tree_at(lambda law: (law.law, law.size), self, now)

    def gradient(self, k: Array, x: Array, grad: Array, stream: Stream) -> Array:
        mean = self.mean_gradient(x, grad)
        return mean + self.at_step(k).size * (self.law.gradient(k, x, grad, stream) - mean)

    def sample(self, x: Array, stream: Stream) -> Array:
        return self.size * self.law.sample(x, stream)

    def variance(self, x: Array) -> Array:
        return self.size**2 * self.law.variance(x)

    def covariance(self, x: Array) -> Array:
        return self.size**2 * self.law.covariance(x)

    def scales(self, x: Array) -> Array:
        return self.size * self.law.scales(x)

    def mean_sign(self, grad: Array, x: Array) -> Array:
        return self.law.mean_sign(grad / self._safe, x)

    def density(self, z: Array, x: Array) -> Array:
        return self.law.density(z / self._safe, x) / self._safe

    def quadrature(self, x: Array) -> tuple[Array, Array]:
        nodes, weights = self.law.quadrature(x)
        return self.size * nodes, weights

    def apply_root(self, x: Array, dW: Array) -> Array:
        return self.size * self.law.apply_root(x, dW)

    def sign_shape(self, dim: int) -> tuple[int, ...]:
        if self.law.fixed_signs:
            raise ValueError(
                "multiplier: the law of sign(∇f + cZ) is not known for the signs of mini-batches; use "
                "signs='normal', batch_ratio in place of a multiplier, or the models 'optimizer' and 'empirical'."
            )
        return self.law.sign_shape(dim)

    def apply_sign_root(self, grad: Array, x: Array, dW: Array) -> Array:
        return self.law.apply_sign_root(grad / self._safe, x, dW)

    def signed_mean(self, grad: Array, x: Array) -> Array:
        return self.size * self.law.signed_mean(grad / self._safe, x)

    def apply_joint_root(self, grad: Array, x: Array, dW: Array) -> tuple[Array, Array]:
        sign, own = self.law.apply_joint_root(grad / self._safe, x, dW)
        return sign, self.size * own

    def fourth_cumulant(self, x: Array) -> Array:
        return self.size**4 * self.law.fourth_cumulant(x)

    def apply_root_and_square(self, grad: Array, x: Array, dW: Array, dt: Any) -> tuple[Array, Array]:
        """With g = ∇f + cZ, g² − E g² is c² times that of ∇f/c + Z."""
        root, square = self.law.apply_root_and_square(grad / self._safe, x, dW, dt)
        return self.size * root, self.size**2 * square

    def describe(self) -> dict[str, Any]:
        return described_schedule(self.law.describe(), 0)

    @property
    def _safe(self) -> Array:
        """The multiplier, but at least the smallest number by which a gradient can be divided."""
        return jnp.maximum(self.size, jnp.finfo(self.size.dtype).tiny ** 0.5)
