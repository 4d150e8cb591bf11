r"""Rounding to a grid at random: unbiased quantisation with a fixed step.

With f the fractional part of g/Δ, a gradient is rounded up with probability f, so that Var(C(g) | g) = Δ² f(1 − f). For
normal g/Δ of mean μ and standard deviation s there are two exact sums; each needs few terms where the other needs many:

    E f(1 − f) = 1/6 − Σₘ cos(2πmμ) e^{−2π²m²s²}/(π²m²),
    E f(1 − f) = f_μ(1 − f_μ) − s² + 2s Σⱼ h(−|μ − j|/s),   h(a) = φ(a) + aΦ(a),  j over the whole numbers,

the second because f(1 − f) has the second derivative −2 between whole numbers and its slope jumps by 2 at each.
"""

import math
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.special import ndtr

from sdelens.core import check
from sdelens.core.random import Stream
from sdelens.noise._base import NoiseLaw
from sdelens.noise.distributed._workers import Compression, WorkersLaw, sign_gain_unknown
from sdelens.problems import AbstractProblem

__all__ = ["Quantisation", "normal_rounding"]

_WIDE = 0.25
_TERMS = 4


class Quantisation(Compression):
    r"""Every worker rounds each coordinate of its gradient to a multiple of Δ, up or down at random: unbiased.

    C(g) = Δ⌊g/Δ + U⌋, U uniform on (0, 1). The mean of N workers has the covariance (Σ + Δ² diag E f(1 − f))/N with f
    the fractional part of g/Δ: exact for normal noise, by quadrature for other independent laws. Rounding adds Δ E|g|
    where the gradient is far below Δ, and Δ²/6 where its noise is far above Δ. The law of signs is not known, so
    SignSGD has no SDE under it.

    It differs from QSGD (Alistarh, Grubic, Li, Tomioka, Vojnovic 2017, arXiv 1610.02132), whose step is ‖g‖/levels, in
    its fixed step, so that the law of one coordinate does not depend on all others.

    Args:
        step: Δ > 0.

    Raises:
        ValueError, TypeError: if it is not greater than 0.
    """

    step: float

    def __init__(self, step: float) -> None:
        self.step = check.positive("step", step)

    def message(self, gradient: Array, stream: Stream) -> Array:
        return self.step * jnp.floor(gradient / self.step + stream.uniform(gradient.shape[0], gradient.dtype))

    def bind(self, problem: AbstractProblem, noise: NoiseLaw, workers: int) -> "QuantisedLaw":
        return QuantisedLaw(problem, noise, workers, self)

    def describe(self) -> dict[str, Any]:
        return {"name": "quantisation", "step": float(self.step)}


class QuantisedLaw(WorkersLaw):
    """The mean of N workers' rounded gradients, bound."""

    compression: Quantisation

    def rounding(self, x: Array) -> Array:
        """Δ² E f(1 − f) of one worker."""
        step, grad = self.compression.step, self.problem.evaluate(x)[1]
        if self.noise.normal:
            sd = jnp.broadcast_to(jnp.sqrt(self.noise.variance(x)), grad.shape)
            return step**2 * normal_rounding(grad / step, sd / step)
        if not self.noise.has_quadrature:
            raise ValueError(
                f"compression: the variance that rounding adds is not known for {self.noise.describe()['name']} noise. "
                "Use normal noise or another single law, sl.RandomK(keep), or the models 'optimizer' and 'empirical'."
            )
        nodes, weights = self.noise.quadrature(x)
        nodes = nodes[..., None] if x.ndim == 2 else nodes

        def add(total: Array, node: tuple[Array, Array]) -> tuple[Array, None]:
            part = (grad + node[0]) / step
            part = part - jnp.floor(part)
            return total + node[1] * part * (1 - part), None

        return step**2 * lax.scan(add, jnp.zeros_like(grad), (nodes, weights))[0]

    def has_variance(self, x: Array) -> bool:
        self.rounding(x)  # raises an error for a law under which it is not known
        return self.noise.has_variance(x)

    def variance(self, x: Array) -> Array:
        return (self.noise.variance(x) + self.rounding(x)) / self.workers

    def noise_shape(self, dim: int) -> tuple[int, ...]:
        own = self.noise.noise_shape(dim)
        return own if self.noise.independent else (math.prod(own) + dim,)

    def apply_root(self, x: Array, dW: Array) -> Array:
        """Exact: coordinates are rounded independently."""
        if self.noise.independent:
            return jnp.sqrt(self.variance(x)) * dW
        own, other = self.noise.split_root(x, dW)
        return (own + jnp.sqrt(self.rounding(x)) * other) / math.sqrt(self.workers)

    def mean_sign(self, grad: Array, x: Array) -> Array:
        raise sign_gain_unknown("sl.Quantisation")

    def sign_shape(self, dim: int) -> tuple[int, ...]:
        raise sign_gain_unknown("sl.Quantisation")


def normal_rounding(mean: Array, sd: Array) -> Array:
    """E f(1 − f), f the fractional part of a normal number, within 1e-7."""
    part = mean - jnp.floor(mean)
    wide = jnp.full_like(part, 1 / 6)
    for m in range(1, _TERMS + 1):
        damped = jnp.exp(-2 * (math.pi * m * jnp.maximum(sd, _WIDE)) ** 2)
        wide = wide - jnp.cos(2 * math.pi * m * part) * damped / (math.pi * m) ** 2
    small = jnp.minimum(sd, _WIDE)
    narrow = part * (1 - part) - small**2
    for j in (-1, 0, 1, 2):
        a = -jnp.abs(part - j) / small
        narrow = narrow + 2 * small * (jnp.exp(-0.5 * a * a) / math.sqrt(2 * math.pi) + a * ndtr(a))
    return jnp.maximum(jnp.where(sd > _WIDE, wide, narrow), 0)
