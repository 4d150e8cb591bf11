r"""Random sparsification: every worker keeps k of the d coordinates.

With mᵢ = 1 where coordinate i is kept, E mᵢ = k/d and E mᵢmⱼ = k(k − 1)/(d(d − 1)), so that of C(g)ᵢ = (d/k) mᵢgᵢ

    E C(g)ᵢ² = (d/k)((∂ᵢf)² + Σᵢᵢ),   E C(g)ᵢC(g)ⱼ = r (∂ᵢf ∂ⱼf + Σᵢⱼ),   r = d(k − 1)/(k(d − 1)).

With ω = d/k − 1, 1 − r = ω/(d − 1) and d/k − r = ωd/(d − 1), and the mean of N workers has the covariance

    N Cov = rΣ + (ωd/(d − 1)) diag(Σᵢᵢ + (∂ᵢf)²) − (ω/(d − 1)) ∇f∇fᵀ.

The rank-one part leaves the covariance positive semi-definite: (ωd/(d − 1)) (diag (∂ᵢf)² − ∇f∇fᵀ/d) is D(I − 11ᵀ/d)D
with D diagonal.
"""

import math
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sdelens.core import check
from sdelens.core.random import Stream
from sdelens.core.tree import sum_coordinates
from sdelens.noise._base import NoiseLaw
from sdelens.noise.distributed._workers import Compression, WorkersLaw
from sdelens.noise.student_t import StudentTNoise
from sdelens.problems import AbstractProblem

__all__ = ["RandomK", "RandomKLaw"]

_LEAST = 1e-10
"""Probability below which a number of senders is ignored."""


class RandomK(Compression):
    r"""Every worker sends k of the d coordinates, drawn anew uniformly without replacement, times d/k: unbiased.

    With ω = d/k − 1 the mean of N workers has the variances ((1 + ω)Σᵢᵢ + ω(∂ᵢf)²)/N; its covariances,
    ((1 − ω/(d − 1))Σᵢⱼ − ω∂ᵢf∂ⱼf/(d − 1))/N, are exact in the SDEs too.

    For SignSGD's SDE: a coordinate that no worker sends has the sign 0, with probability (1 − k/d)^N. Given n senders
    of normal noise their sum is normal, so E sign(g) = Σₙ P(n) erf(√n ∂f/(√2 σ)) with n binomial. Known for
    uncorrelated normal noise, for Cauchy noise and for one worker. The signs of two coordinates are correlated because
    the numbers of their senders are, by −1/(d − 1); this is included to first order.

    Args:
        keep: a float is the share of the coordinates that are kept, in (0, 1] (k is the nearest whole number, 1 or
            more); an int is k.

    Raises:
        ValueError, TypeError: if it is neither; when it is bound to a problem, if k exceeds d.
    """

    keep: float = eqx.field(static=True)

    def __init__(self, keep: float) -> None:
        if isinstance(keep, int | np.integer) and not isinstance(keep, bool):
            self.keep = check.at_least("keep", keep, 1)
            return
        self.keep = check.positive("keep", keep)
        if self.keep > 1:
            raise ValueError(
                f"keep: got {self.keep:g}; a float is the share of the coordinates, at most 1. Give a number of them "
                "as an int."
            )

    def kept(self, dim: int) -> int:
        """The number k of the d coordinates that are kept."""
        if isinstance(self.keep, int):
            if self.keep > dim:
                raise ValueError(f"keep: got {self.keep}; the problem has {dim} coordinates.")
            return self.keep
        return max(1, math.floor(self.keep * dim + 0.5))

    def omega(self, dim: int) -> float:
        """ω = d/k − 1 for d coordinates: E‖C(g)‖² = (1 + ω)‖g‖²."""
        return dim / self.kept(dim) - 1

    def message(self, gradient: Array, stream: Stream) -> Array:
        dim = gradient.shape[0]
        k = self.kept(dim)
        if k == dim:
            return gradient
        chosen = stream.permutation(jnp.arange(dim), dim) < k
        return jnp.where(chosen, gradient * (dim / k), 0)

    def bind(self, problem: AbstractProblem, noise: NoiseLaw, workers: int) -> "RandomKLaw":
        self.kept(problem.dim)
        return RandomKLaw(problem, noise, workers, self)

    def describe(self) -> dict[str, Any]:
        return {"name": "random-k", "keep": self.keep}


class RandomKLaw(WorkersLaw):
    """The mean of the parts of their gradients that N workers keep, bound to a problem."""

    compression: RandomK

    @property
    def omega(self) -> float:
        """ω = d/k − 1."""
        return self.compression.omega(self.problem.dim)

    @property
    def shrinkage(self) -> float:
        """ω/(d − 1), by which products of two coordinates shrink: 1 − r."""
        return self.omega / max(self.problem.dim - 1, 1)

    def variance(self, x: Array) -> Array:
        grad = self.problem.evaluate(x)[1]
        return ((1 + self.omega) * self.noise.variance(x) + self.omega * grad**2) / self.workers

    def has_variance(self, x: Array) -> bool:
        return self.noise.has_variance(x)

    def noise_shape(self, dim: int) -> tuple[int, ...]:
        own = self.noise.noise_shape(dim)
        return own if self.omega == 0 or self.noise.independent else (math.prod(own) + dim,)

    def apply_root(self, x: Array, dW: Array) -> Array:
        """Exact; for independent noise with d Brownian motions, otherwise with d more than the worker's noise has."""
        size = 1 / math.sqrt(self.workers)
        if self.omega == 0:
            return size * self.noise.apply_root(x, dW)
        dim, grad = self.problem.dim, self.problem.evaluate(x)[1]
        common = jnp.sqrt(jnp.asarray(self.shrinkage, x.dtype)) * grad
        variance = self.noise.variance(x)
        if self.noise.independent:
            return size * _root_less(dim * common**2 + (1 + self.omega) * variance, common, dW)
        own, other = self.noise.split_root(x, dW)
        rest = _root_less(dim * (common**2 + self.shrinkage * variance), common, other)
        return size * (math.sqrt(1 - self.shrinkage) * own + rest)

    def mean_sign(self, grad: Array, x: Array) -> Array:
        return self._signs(grad, x)[0]

    def sign_shape(self, dim: int) -> tuple[int, ...]:
        self._require_signs()
        return (dim,)

    def apply_sign_root(self, grad: Array, x: Array, dW: Array) -> Array:
        mean, slope = self._signs(grad, x)
        sure = math.sqrt(1 - self._silence)
        spread = jnp.maximum((sure - mean) * (sure + mean), jnp.finfo(mean.dtype).tiny)
        if self.omega == 0:
            return jnp.sqrt(spread) * dW
        common = slope / math.sqrt(self.problem.dim - 1)
        return _root_less(spread + common**2, common, dW)

    @property
    def _share(self) -> float:
        """k/d."""
        return 1 / (1 + self.omega)

    @property
    def _silence(self) -> float:
        """Probability that no worker sends a coordinate."""
        return (1 - self._share) ** self.workers

    def _require_signs(self) -> None:
        if not self.noise.independent or not (self.workers == 1 or self.noise.normal or _is_cauchy(self.noise)):
            what = "correlated" if not self.noise.independent else self.noise.describe()["name"]
            raise ValueError(
                f"compression: the law of the sign of the mean of what {self.workers} workers keep is not known for "
                f"{what} noise, and SignSGD's SDE needs it; it is known for sl.GaussianNoise(scale) and for "
                "Cauchy noise, sl.StudentTNoise(scale, df=1). Use one of these, or the models 'optimizer' and "
                "'empirical'."
            )

    def _signs(self, grad: Array, x: Array) -> tuple[Array, Array]:
        """E sign(g), and the covariance of E(sign(g) | n) with the standardised number n of senders."""
        self._require_signs()
        from scipy import stats

        average, spread = self.workers * self._share, math.sqrt(self.workers * self._share * (1 - self._share))
        if not self.noise.normal:
            one = self.noise.mean_sign(grad, x)
            return (1 - self._silence) * one, (self._silence * average / spread if spread else 0.0) * one
        senders = np.arange(1, self.workers + 1)
        chance = stats.binom.pmf(senders, self.workers, self._share)
        senders, chance = senders[chance > _LEAST], chance[chance > _LEAST]
        deviation = (senders - average) / spread if spread else np.zeros(len(senders))
        standard = grad / jnp.sqrt(2 * self.noise.variance(x))

        def add(total: tuple[Array, Array], node: Array) -> tuple[tuple[Array, Array], None]:
            sign = lax.erf(node[0] * standard)
            return (total[0] + node[1] * sign, total[1] + node[2] * sign), None

        columns = np.stack([np.sqrt(senders), chance, chance * deviation], axis=1)
        zero = jnp.zeros_like(standard)
        return lax.scan(add, (zero, zero), jnp.asarray(columns, grad.dtype))[0]


def _is_cauchy(noise: NoiseLaw) -> bool:
    return isinstance(noise, StudentTNoise) and noise.is_cauchy


def _root_less(spread: Array, common: Array, dW: Array) -> Array:
    """(diag s − vvᵀ)^{1/2} dW for Σ vᵢ²/sᵢ ≤ 1: D(I − α uuᵀ)dW with D = diag √s, u = D⁻¹v, α|u|² = 1 − √(1 − |u|²)."""
    tiny = jnp.finfo(dW.dtype).tiny
    sd = jnp.sqrt(jnp.maximum(jnp.broadcast_to(spread, common.shape), tiny))
    u = common / sd
    square = jnp.clip(sum_coordinates(u * u), 0, 1)
    along = sum_coordinates(u * dW) / (1 + jnp.sqrt(jnp.maximum(1 - square, tiny)))
    return sd * (dW - u * along)
