"""Student t noise: exact draws, and its law in closed form or by expansions, with the derivatives that it needs."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import betainc, gammaln

from sdelens.core import check
from sdelens.core.random import Stream
from sdelens.noise._base import AbstractNoise
from sdelens.noise._values import described, nonnegative
from sdelens.noise.scaled import LEGENDRE, ScaledNoise

__all__ = ["StudentTNoise"]

_LEAST_DF = 0.2
_CLOSED_FORM_DF = 32


class StudentTNoise(ScaledNoise):
    r"""Student t noise: Z = σT with T of ν degrees of freedom, independent on every coordinate.

    The variance is σ²ν/(ν − 2) for ν > 2 and infinite otherwise; for ν ≤ 1 there is no mean either. SignSGD needs
    neither. E sign(g) = 2F_ν(∇f/σ) − 1 = sign(s) I_{s²/(ν+s²)}(½, ν/2), in closed form for whole ν up to 32 (Abramowitz
    and Stegun 26.7.3-4) and by Hill's expansion (1970, *Algorithm 395*) for ν > 32; otherwise by the incomplete beta
    function, which is about a hundred times slower than drawing the noise.

    Draws are exact, by Bailey's polar method (1994): T = √(ν(U^{−2/ν} − 1)) cos(2πW).

    Args:
        scale: σ ≥ 0, the scale (not the standard deviation): as for `GaussianNoise`.
        df: ν ≥ 0.2, the degrees of freedom, one for all coordinates; below that, draws exceed float32.

    Raises:
        ValueError, TypeError: if an argument is out of its range; the message names it.

    Examples:
        >>> import sdelens as sl
        >>> cauchy = sl.StudentTNoise(scale=0.5, df=1)
    """

    name: ClassVar[str] = "student-t"
    scale: Any
    df: float
    _form: int | str = eqx.field(static=True)

    def __init__(self, scale: Any, df: float) -> None:
        self.scale = nonnegative("scale", scale, "the scale")
        self.df = check.number("df", df)
        if not check.is_traced(self.df) and self.df < _LEAST_DF:
            raise ValueError(
                f"df: got {self.df:g}; give {_LEAST_DF} or more (below that, draws exceed what float32 can hold)."
            )
        self._form = "beta"
        if not check.is_traced(self.df):
            if self.df > _CLOSED_FORM_DF:
                self._form = "hill"
            elif self.df == int(self.df):
                self._form = int(self.df)

    @property
    def is_cauchy(self) -> bool:
        """Whether ν = 1, where the mean of any number of draws has the law of one draw."""
        return self._form == 1

    def standard_sample(self, x: Array, stream: Stream) -> Array:
        radius, angle = stream.uniforms(x.shape[0], x.dtype)
        growth = -jnp.log(radius) / self.df  # √(U^{-2/ν} - 1) = e^{growth} √(1 - e^{-2 growth}), without overflow
        return jnp.sqrt(self.df) * jnp.exp(growth) * jnp.sqrt(-jnp.expm1(-2 * growth)) * _cosine(angle)

    def standard_variance(self, x: Array) -> Array:
        df = jnp.asarray(self.df, x.dtype)
        return jnp.where(df > 2, df / jnp.where(df > 2, df - 2, 1), jnp.inf)

    def standard_mean_sign(self, s: Array) -> Array:
        if isinstance(self._form, int):
            return _t_mean_sign_whole(s, jnp.asarray(self.df, s.dtype), self._form)
        function = _t_mean_sign_many if self._form == "hill" else _t_mean_sign
        return function(s, jnp.asarray(self.df, s.dtype))

    def standard_density(self, s: Array) -> Array:
        return _t_density(s, jnp.asarray(self.df, s.dtype))

    def standard_signed_mean(self, s: Array) -> Array:
        """2p(s)(ν + s²)/(ν − 1) for ν > 1."""
        df = jnp.asarray(self.df, s.dtype)
        return jnp.where(df > 1, 2 * _t_density(s, df) * (df + s**2) / jnp.where(df > 1, df - 1, 1), jnp.inf)

    def standard_fourth_cumulant(self, x: Array) -> Array:
        """6ν²/((ν − 2)²(ν − 4)) for ν > 4."""
        df = jnp.asarray(self.df, x.dtype)
        safe = jnp.where(df > 4, df, 5)
        return jnp.where(df > 4, 6 * (safe / (safe - 2)) ** 2 / (safe - 4), jnp.inf)

    def quadrature(self, x: Array) -> tuple[Array, Array]:
        """By Gauss-Legendre quadrature, for ν ≤ 8 in θ with s = √ν tan θ, otherwise in v with s = 2v/(1 − v²)."""
        df = jnp.asarray(self.df, x.dtype)
        half, weight = (LEGENDRE[0] + 1) / 2, LEGENDRE[1] / 2
        # θ = ½π(1 - u³) near the ends: cos θ vanishes there slowly enough for ν < 1. Its density is ∝ cos^{ν−1} θ.
        off = (np.pi / 2) * half**3
        heavy = jnp.sqrt(df) / jnp.asarray(np.tan(off), x.dtype)
        heavy_weight = jnp.asarray(np.sin(off), x.dtype) ** (df - 1) * jnp.asarray(half**2 * weight, x.dtype)
        light = jnp.asarray(2 * half / (1 - half**2), x.dtype)
        light_weight = _t_density(light, df) * jnp.asarray(weight * (1 + half**2) / (1 - half**2) ** 2, x.dtype)
        standard = jnp.where(df <= 8, heavy[::-1], light)
        share = jnp.where(df <= 8, heavy_weight[::-1], light_weight)
        weights = jnp.concatenate([share[::-1], share]) / (2 * share.sum())
        return self._nodes(jnp.concatenate([-standard[::-1], standard]), weights, x)

    def at_batch_ratio(self, ratio: float) -> AbstractNoise:
        """For ν = 1 the same law, since the mean of any number of draws has the law of one; an error for other ν."""
        check.positive("ratio", ratio)
        return self if self.is_cauchy else super().at_batch_ratio(ratio)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "scale": described(self.scale), "df": float(self.df)}


_SINE = [(-1) ** n / math.factorial(2 * n + 1) for n in range(6)]


def _cosine(turns: Array) -> Array:
    """cos(2πw) for w in (0, 1): the sine of up to a quarter turn either way, by its series (to 1e-7 in float32)."""
    y = (np.pi / 2) * (4 * jnp.abs(turns - 0.5) - 1)
    if y.dtype == jnp.float64:
        return jnp.sin(y)
    return y * jnp.polyval(jnp.asarray(_SINE[::-1], y.dtype), y * y, unroll=6)


def _t_log_norm(df: Array) -> Array:
    """Logarithm of the density of Student's t at 0."""
    # Γ((ν+1)/2)/(Γ(ν/2)√(ν/2)) by its series where differences of log Γ would lose most digits.
    inverse = 1 / jnp.maximum(df, 20)
    far = jnp.log1p(-inverse / 4 + inverse**2 / 32 + 5 * inverse**3 / 128)
    near = gammaln((df + 1) / 2) - gammaln(df / 2) - 0.5 * jnp.log(df / 2)
    return jnp.where(df > 20, far, near) - 0.5 * math.log(2 * math.pi)


def _t_density(s: Array, df: Array) -> Array:
    return jnp.exp(_t_log_norm(df) - (df + 1) / 2 * jnp.log1p(s**2 / df))


@jax.custom_jvp
def _t_mean_sign(s: Array, df: Array) -> Array:
    """2F_ν(s) − 1 by the incomplete beta function, from the side on which its argument is accurate."""
    square = jnp.minimum(jnp.abs(s), 1e18) ** 2
    near = square < df
    share = jnp.where(near, square, df) / (df + square)
    half = jnp.full_like(share, 0.5)
    part = betainc(jnp.where(near, half, df / 2), jnp.where(near, df / 2, half), share)
    return jnp.sign(s) * jnp.where(near, part, 1 - part)


_t_mean_sign.defjvp(lambda primals, tangents: _t_tangent(_t_mean_sign, primals, tangents), symbolic_zeros=True)


@jax.custom_jvp
def _t_mean_sign_many(s: Array, df: Array) -> Array:
    """2F_ν(s) − 1 for ν > 32: erf of Hill's normal deviate, within 1e-7."""
    a = df - 0.5
    b = 48 * a**2
    w2 = a * jnp.log1p(jnp.minimum(jnp.abs(s), 1e18) ** 2 / df)
    w = jnp.sqrt(w2)
    correction = (((4 * w2 + 33) * w2 + 240) * w2 + 855) / (10 * b * (b + 0.8 * w2**2 + 100))
    return jnp.sign(s) * jax.lax.erf(w * (1 + (w2 + 3) / b - correction) / math.sqrt(2))


_t_mean_sign_many.defjvp(
    lambda primals, tangents: _t_tangent(_t_mean_sign_many, primals, tangents), symbolic_zeros=True
)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _t_mean_sign_whole(s: Array, nu: Array, df: int) -> Array:
    """2F_ν(s) − 1 for whole ν, a finite sum in cos θ with tan θ = s/√ν; ν as an array is used in derivatives."""
    root = jnp.where(nu == df, math.sqrt(df), jnp.nan)  # another ν, put into a specification of this form, is refused
    tangent = jnp.clip(s, -1e18, 1e18) / root
    square = 1 / (1 + tangent**2)
    total = jnp.zeros_like(s)
    if df % 2:
        for n in range(df - 3, -1, -2):  # 1 + ⅔c² + (2·4)/(3·5)c⁴ + … to c^{ν-3}
            total = 1 + (n + 2) / (n + 3) * square * total if n < df - 3 else jnp.ones_like(s)
        value = (2 / np.pi) * (jnp.arctan(tangent) + tangent * square * total)
    else:
        for n in range(df - 2, -1, -2):  # 1 + ½c² + (1·3)/(2·4)c⁴ + … to c^{ν-2}
            total = 1 + (n + 1) / (n + 2) * square * total if n < df - 2 else jnp.ones_like(s)
        value = tangent * jnp.sqrt(square) * total
    return jnp.clip(value, -1, 1)


_t_mean_sign_whole.defjvp(
    lambda df, primals, tangents: _t_tangent(lambda s, nu: _t_mean_sign_whole(s, nu, df), primals, tangents),
    symbolic_zeros=True,
)


def _t_tangent(function: Callable[[Array, Array], Array], primals: Any, tangents: Any) -> tuple[Array, Array]:
    """2F_ν(s) − 1 and its tangent: 2p(s) ds + 2 ∂F_ν(s)/∂ν dν, the second part only where ν is differentiated."""
    (s, df), (by_s, by_df) = primals, tangents
    value, zero = function(s, df), jax.custom_derivatives.SymbolicZero
    tangent = jnp.zeros_like(value)
    if not isinstance(by_s, zero):
        tangent = tangent + 2 * _t_density(s, df) * by_s
    if not isinstance(by_df, zero):
        tangent = tangent + 2 * _t_slope_in_df(s, df) * by_df
    return value, tangent


def _t_slope_in_df(s: Array, df: Array) -> Array:
    """∂F_ν(s)/∂ν, where F_ν(s) − ½ = ∫₀ˢ p_ν(t) dt with t = √ν tan φ, by Gauss-Legendre quadrature in φ.

    ∂F/∂ν = ∫ p ∂(log p)/∂ν dt, at fixed t.
    """
    size = jnp.abs(s)[..., None]
    # φ = ½π(1 − w³): nodes are dense where cos φ vanishes.
    last = (jnp.arctan2(jnp.sqrt(df) * jnp.ones_like(size), size) / (np.pi / 2)) ** (1 / 3)
    half, weight = (jnp.asarray(a, s.dtype) for a in ((LEGENDRE[0] + 1) / 2, LEGENDRE[1] / 2))
    w = last + (1 - last) * half
    off = (np.pi / 2) * w**3
    t = jnp.sqrt(df) / jnp.tan(off)
    jacobian = jnp.sqrt(df) / jnp.sin(off) ** 2 * (np.pi / 2) * 3 * w**2 * (1 - last)
    slope = jax.grad(_t_log_norm)(df) - 0.5 * jnp.log1p(t**2 / df) + (df + 1) / (2 * df) * t**2 / (df + t**2)
    return jnp.sign(s) * ((_t_density(t, df) * slope * jacobian) @ weight)
