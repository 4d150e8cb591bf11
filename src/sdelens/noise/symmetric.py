"""Independent symmetric noise Z = σX, one standard law X per class: Student t, Laplace, uniform, and any other."""

import abc
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
from sdelens.core.tree import column
from sdelens.noise._base import AbstractNoise, NoiseLaw, density_over, described, laid_out, nonnegative, nonzero
from sdelens.problems import AbstractProblem

__all__ = ["LaplaceNoise", "ScaledNoise", "StudentTNoise", "SymmetricNoise", "UniformNoise"]

NODES = 64
"""Quadrature nodes of one law."""
_LEGENDRE = np.polynomial.legendre.leggauss(NODES)


def _half_rule() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on (0, 1), twice as dense towards 0, where the tail of a law is."""
    half, weight = (_LEGENDRE[0] + 1) / 2, _LEGENDRE[1] / 2
    return half**2, 2 * half * weight


_LEAST_DF = 0.2
_DEEPEST = 60.0
"""−log of the probability to which the tail of a law is followed: e⁻⁶⁰ = 10⁻²⁶."""
_STEEPEST = 0.245
"""Largest 1/α, α the tail index, at which a fourth moment is taken to exist; it does for 1/α < 1/4."""
_FEW = np.polynomial.legendre.leggauss(6)
_CLOSED_FORM_DF = 32


class ScaledNoise(AbstractNoise, NoiseLaw):
    """Z = σX with independent coordinates; subclasses define the law of X by functions of s = z/σ.

    Specification and law in one class: `bind` lays out σ along the coordinates.
    """

    name: eqx.AbstractClassVar[str]
    scale: eqx.AbstractVar[Any]

    @abc.abstractmethod
    def standard_sample(self, x: Array, stream: Stream) -> Array:
        """One draw of X for every path: shape (d, P)."""

    @abc.abstractmethod
    def standard_variance(self, x: Array) -> Any:
        """Var X."""

    @abc.abstractmethod
    def standard_mean_sign(self, s: Array) -> Array:
        """2F(s) − 1, with the derivative 2p(s)."""

    @abc.abstractmethod
    def standard_density(self, s: Array) -> Array:
        """p(s)."""

    @abc.abstractmethod
    def standard_signed_mean(self, s: Array) -> Array:
        """2 ∫_{|s|}^∞ t p(t) dt."""

    @abc.abstractmethod
    def standard_fourth_cumulant(self, x: Array) -> Any:
        """E X⁴ − 3 (Var X)², infinite where there is no fourth moment."""

    def bind(self, problem: AbstractProblem) -> "ScaledNoise":
        return eqx.tree_at(lambda noise: noise.scale, self, laid_out("scale", self.scale, problem))

    def sample(self, x: Array, stream: Stream) -> Array:
        return column(self.scale, x) * self.standard_sample(x, stream)

    def variance(self, x: Array) -> Array:
        square = column(self.scale, x) ** 2
        return jnp.where(square > 0, square * self.standard_variance(x), 0)

    def mean_sign(self, grad: Array, x: Array) -> Array:
        scale = column(self.scale, x)
        return jnp.where(scale > 0, self.standard_mean_sign(grad / nonzero(scale)), jnp.sign(grad))

    def density(self, z: Array, x: Array) -> Array:
        scale = column(self.scale, x)
        safe = nonzero(scale)
        return density_over(scale, z, self.standard_density(z / safe) / safe)

    def _noisy(self, x: Array) -> Array:
        return (column(self.scale, x) > 0).astype(x.dtype)

    def scales(self, x: Array) -> Array:
        return column(self.scale, x)

    def signed_mean(self, grad: Array, x: Array) -> Array:
        scale = column(self.scale, x)
        return jnp.where(scale > 0, scale * self.standard_signed_mean(grad / nonzero(scale)), 0)

    def fourth_cumulant(self, x: Array) -> Array:
        fourth = column(self.scale, x) ** 4
        return jnp.where(fourth > 0, fourth * self.standard_fourth_cumulant(x), 0)

    def excess_kurtosis(self, x: Array) -> Array:
        kurtosis = self.standard_fourth_cumulant(x) / jnp.asarray(self.standard_variance(x), x.dtype) ** 2
        return jnp.where(jnp.isfinite(kurtosis), kurtosis, jnp.inf)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "scale": described(self.scale)}

    def at_batch_ratio(self, ratio: float) -> AbstractNoise:
        check.positive("ratio", ratio)
        if ratio == 1:
            return self
        raise ValueError(
            f"ratio: got {ratio:g}, but the average of several draws of {self.name} noise follows another law, which "
            "has no closed form here. Give that law as SymmetricNoise(cdf, ppf, variance=...), or approximate it by "
            "GaussianNoise with the variance divided by the ratio where there is one and the ratio is large."
        )

    def _nodes(self, standard: Any, weights: Any, x: Array) -> tuple[Array, Array]:
        scale = jnp.atleast_1d(self.scale)
        return jnp.asarray(standard, x.dtype)[:, None] * scale, jnp.asarray(weights, x.dtype)


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
        half, weight = (_LEGENDRE[0] + 1) / 2, _LEGENDRE[1] / 2
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


class LaplaceNoise(ScaledNoise):
    r"""Laplace noise with density e^{−|z|/b}/(2b), independent on every coordinate; its variance is 2b².

    E sign(g) = sign(s)(1 − e^{−|s|}), s = ∇f/b.

    Args:
        scale: b ≥ 0: as for `GaussianNoise`.
    """

    name: ClassVar[str] = "laplace"
    scale: Any

    def __init__(self, scale: Any) -> None:
        self.scale = nonnegative("scale", scale, "the scale")

    def standard_sample(self, x: Array, stream: Stream) -> Array:
        size, side = stream.uniforms(x.shape[0], x.dtype)
        return jnp.where(side < 0.5, 1, -1) * -jnp.log(size)

    def standard_variance(self, x: Array) -> float:
        return 2.0

    def standard_mean_sign(self, s: Array) -> Array:
        return _laplace_mean_sign(s)

    def standard_density(self, s: Array) -> Array:
        return 0.5 * jnp.exp(-jnp.abs(s))

    def standard_signed_mean(self, s: Array) -> Array:
        return (1 + jnp.abs(s)) * jnp.exp(-jnp.abs(s))

    def standard_fourth_cumulant(self, x: Array) -> float:
        return 12.0

    def quadrature(self, x: Array) -> tuple[Array, Array]:
        share, weight = _half_rule()
        standard = -np.log(share)
        return self._nodes(np.concatenate([standard, -standard]), np.concatenate([weight, weight]) / 2, x)


class UniformNoise(ScaledNoise):
    r"""Uniform noise on [−a, a], independent on every coordinate; its variance is a²/3.

    E sign(g) = ∇f/a, clipped to [−1, 1]: for |∇f| > a the noise never changes a sign.

    Args:
        scale: a ≥ 0, the half-width: as for `GaussianNoise`.
    """

    name: ClassVar[str] = "uniform"
    scale: Any

    def __init__(self, scale: Any) -> None:
        self.scale = nonnegative("scale", scale, "the half-width")

    def standard_sample(self, x: Array, stream: Stream) -> Array:
        return 2 * stream.uniform(x.shape[0], x.dtype) - 1

    def standard_variance(self, x: Array) -> float:
        return 1 / 3

    def standard_mean_sign(self, s: Array) -> Array:
        return jnp.clip(s, -1, 1)

    def standard_density(self, s: Array) -> Array:
        return jnp.where(jnp.abs(s) <= 1, 0.5, 0.0)

    def standard_signed_mean(self, s: Array) -> Array:
        return 0.5 * jnp.maximum(1 - s**2, 0)

    def standard_fourth_cumulant(self, x: Array) -> float:
        return -2 / 15

    def quadrature(self, x: Array) -> tuple[Array, Array]:
        return self._nodes(_LEGENDRE[0], _LEGENDRE[1] / 2, x)


class SymmetricNoise(ScaledNoise):
    r"""Noise Z = σX of any symmetric, continuous law X, independent on every coordinate.

    E sign(g) = 2F(∇f/σ) − 1. Draws combine an inversion of the lower half of the law with a random sign.

    Args:
        cdf: F, a function of JAX operations, element-wise, with F(−s) = 1 − F(s).
        ppf: its inverse on (0, 1).
        scale: σ ≥ 0: as for `GaussianNoise`.
        variance: Var X, `math.inf` where there is none. It drives the SDEs of SGD, RMSprop and Adam. It cannot be
            checked for being too large, since a tail may contribute any amount.
        fourth_moment: E X⁴, `math.inf` where there is none; it describes how much squared gradients fluctuate. By
            default it is computed from `ppf`, and taken as infinite unless the tail of `ppf`, followed to a probability
            of 10⁻²⁶, is clearly light enough for it to exist.
        pdf: F′, the density, which gives the derivative of E sign; by default by automatic differentiation of `cdf`.

    Raises:
        ValueError, TypeError: if `cdf` is not that of a symmetric law, `ppf` not its inverse or `pdf` not its
            derivative, a function cannot be compiled, or `variance` is less than that of the central part of the law.

    Examples:
        >>> import math, sdelens as sl
        >>> from jax.scipy.stats import logistic
        >>> noise = sl.SymmetricNoise(logistic.cdf, logistic.ppf, scale=0.5, variance=math.pi**2 / 3)
    """

    name: ClassVar[str] = "symmetric"
    cdf: Callable[[Array], Array] = eqx.field(static=True)
    ppf: Callable[[Array], Array] = eqx.field(static=True)
    scale: Any
    law_variance: float
    law_fourth: float
    pdf: Callable[[Array], Array] = eqx.field(static=True)

    def __init__(
        self,
        cdf: Callable[[Array], Array],
        ppf: Callable[[Array], Array],
        scale: Any = 1.0,
        *,
        variance: float,
        fourth_moment: float | None = None,
        pdf: Callable[[Array], Array] | None = None,
    ) -> None:
        for label, function in (("cdf", cdf), ("ppf", ppf), ("pdf", pdf)):
            if function is not None or label != "pdf":
                _check_function(label, function)
        self.cdf, self.ppf, self.pdf = cdf, ppf, pdf or _derivative(cdf)
        self.scale = nonnegative("scale", scale, "the scale")
        self.law_variance = math.inf if variance == math.inf else check.positive("variance", variance)
        self._check_law()
        self.law_fourth = self._fourth_moment(fourth_moment)

    def _check_law(self) -> None:
        s = np.concatenate([np.linspace(0, 4, 41), np.geomspace(5, 1e4, 20)])
        above, below = (np.asarray(self.cdf(jnp.asarray(v, float)), np.float64) for v in (s, -s))
        gap = np.abs(above + below - 1)
        if not gap.max() < 1e-5:
            at = int(np.nanargmax(gap)) if np.isfinite(gap).any() else 0
            raise ValueError(
                f"cdf: is not that of a law symmetric about 0: F({s[at]:g}) + F({-s[at]:g}) is "
                f"{above[at] + below[at]:g}, not 1. Subtract the centre, or give a symmetric law."
            )
        if (np.diff(above) < -1e-6).any() or above.max() > 1 + 1e-6 or above[-1] < 0.6:
            raise ValueError("cdf: does not rise from ½ at 0 towards 1; give a distribution function.")
        u = np.linspace(0.01, 0.99, 99)
        inverse = np.asarray(self.cdf(self.ppf(jnp.asarray(u, float))), np.float64)
        if not np.abs(inverse - u).max() < 1e-4:
            at = int(np.nanargmax(np.abs(inverse - u))) if np.isfinite(inverse).any() else 0
            raise ValueError(f"ppf: is not the inverse of cdf: cdf(ppf({u[at]:g})) = {inverse[at]:g}.")
        points = np.array([-1.5, -0.4, 0.3, 0.8, 2.0])
        given, slope = (
            np.asarray(f(jnp.asarray(points, float)), np.float64) for f in (self.pdf, _derivative(self.cdf))
        )
        if np.isfinite(slope).all() and not np.abs(given - slope).max() < 1e-3 * max(1.0, np.abs(slope).max()):
            worst = int(np.argmax(np.abs(given - slope)))
            raise ValueError(
                f"pdf: is not the derivative of cdf: at {points[worst]:g} it is {given[worst]:.4g}, where that is "
                f"{slope[worst]:.4g}."
            )
        centre = float(self.pdf(jnp.asarray(0.0)))
        if not (math.isfinite(centre) and centre > 0):
            raise ValueError(f"pdf: is {centre} at 0; give a law with a density there, and pdf=... if cdf hides it.")
        v = (np.arange(4000) + 0.5) / 8000
        central = float(np.mean(np.asarray(self.ppf(jnp.asarray(v, float)), np.float64) ** 2))
        if self.law_variance < 0.999 * central:
            raise ValueError(
                f"variance: got {self.law_variance:g}, but all but the outermost 1/8000 of the law alone has "
                f"{central:.4g}; give that of the law itself (scale multiplies it), or math.inf."
            )

    def _fourth_moment(self, given: float | None) -> float:
        if given is not None:
            value = math.inf if given == math.inf else check.positive("fourth_moment", given)
            if value < 0.999 * self.law_variance**2:
                raise ValueError(
                    f"fourth_moment: got {value:g}, but E X⁴ is at least the squared variance, "
                    f"{self.law_variance**2:.4g}; give E X⁴ of the law itself (scale multiplies it), or math.inf."
                )
            return value
        if not math.isfinite(self.law_variance):
            return math.inf
        # E X⁴ = ∫₀^∞ F⁻¹(e^{−t}/2)⁴ e^{−t} dt. From t on, a law with P(|X| > z) ∝ z^{−α} adds F⁻¹(e^{−t}/2)⁴ e^{−t}
        # divided by 1 − 4/α.
        edges = np.linspace(0, _DEEPEST, 121)
        half = np.diff(edges)[:, None] / 2
        t = np.append(((edges[:-1] + edges[1:])[:, None] / 2 + half * _FEW[0]).ravel(), [_DEEPEST - 1, _DEEPEST])
        z = np.abs(np.asarray(self.ppf(jnp.asarray(np.exp(-t) / 2, float)), np.float64))
        if not np.isfinite(z).all() or z[-2] == 0:
            return math.inf
        inverse_index = max(math.log(z[-1] / z[-2]), 0.0)
        if inverse_index > _STEEPEST:
            return math.inf
        body = (half * _FEW[1]).ravel() @ (z[:-2] ** 4 * np.exp(-t[:-2]))
        return float(body + z[-1] ** 4 * math.exp(-_DEEPEST) / (1 - 4 * inverse_index))

    def standard_sample(self, x: Array, stream: Stream) -> Array:
        depth, side = stream.uniforms(x.shape[0], x.dtype)
        return jnp.where(side < 0.5, 1, -1) * self.ppf(0.5 * depth)

    def standard_variance(self, x: Array) -> float:
        return self.law_variance

    def standard_fourth_cumulant(self, x: Array) -> float:
        return self.law_fourth - 3 * self.law_variance**2 if math.isfinite(self.law_fourth) else math.inf

    def standard_mean_sign(self, s: Array) -> Array:
        return _general_mean_sign(self.cdf, self.pdf, s)

    def standard_density(self, s: Array) -> Array:
        return self.pdf(s)

    def standard_signed_mean(self, s: Array) -> Array:
        """−2 ∫₀^q F⁻¹(u) du, q = F(−|s|), by 64 nodes; a tail without a mean is cut off at the last node."""
        tail = jnp.clip(self.cdf(-jnp.abs(s)), jnp.finfo(s.dtype).tiny, 0.5)

        def add(total: Array, node: tuple[Array, Array]) -> tuple[Array, None]:
            return total - 2 * node[1] * self.ppf(tail * node[0]), None

        nodes, weights = (jnp.asarray(part, s.dtype) for part in _half_rule())
        return tail * jax.lax.scan(add, jnp.zeros_like(s), (nodes, weights))[0]

    def quadrature(self, x: Array) -> tuple[Array, Array]:
        share, weight = _half_rule()
        standard = self.ppf(jnp.asarray(share / 2, x.dtype))
        return self._nodes(jnp.concatenate([standard, -standard]), np.concatenate([weight, weight]) / 2, x)

    def describe(self) -> dict[str, Any]:
        law = getattr(self.cdf, "__qualname__", "custom")
        plain = self.law_variance if math.isfinite(self.law_variance) else "inf"
        return {
            "name": self.name,
            "cdf": law,
            "scale": described(self.scale),
            "variance": plain,
            "rerunnable": False,
        }


def _check_function(label: str, function: Any) -> None:
    if not callable(function):
        raise TypeError(f"{label}: got {function!r}; give a function of JAX operations.")
    try:
        out = jax.eval_shape(function, jax.ShapeDtypeStruct((3, 2), jnp.float32))
    except (jax.errors.JAXTypeError, TypeError, AttributeError) as error:
        raise TypeError(
            f"{label}: cannot be compiled ({type(error).__name__}); write it with jax.numpy, for example "
            "jax.scipy.stats.logistic.cdf rather than SciPy's."
        ) from error
    if getattr(out, "shape", None) != (3, 2):
        raise TypeError(f"{label}: is not element-wise; it must return the shape it is given.")


def _derivative(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    def derivative(s: Array) -> Array:
        return jax.jvp(function, (s,), (jnp.ones_like(s),))[1]

    return derivative


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
    half, weight = (jnp.asarray(a, s.dtype) for a in ((_LEGENDRE[0] + 1) / 2, _LEGENDRE[1] / 2))
    w = last + (1 - last) * half
    off = (np.pi / 2) * w**3
    t = jnp.sqrt(df) / jnp.tan(off)
    jacobian = jnp.sqrt(df) / jnp.sin(off) ** 2 * (np.pi / 2) * 3 * w**2 * (1 - last)
    slope = jax.grad(_t_log_norm)(df) - 0.5 * jnp.log1p(t**2 / df) + (df + 1) / (2 * df) * t**2 / (df + t**2)
    return jnp.sign(s) * ((_t_density(t, df) * slope * jacobian) @ weight)


@jax.custom_jvp
def _laplace_mean_sign(s: Array) -> Array:
    return -jnp.sign(s) * jnp.expm1(-jnp.abs(s))


_laplace_mean_sign.defjvps(lambda t, _, s: jnp.exp(-jnp.abs(s)) * t)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _general_mean_sign(cdf: Callable[[Array], Array], pdf: Callable[[Array], Array], s: Array) -> Array:
    # Computed from the lower half of the law, where F is accurate.
    return jnp.sign(s) * (1 - 2 * jnp.clip(cdf(-jnp.abs(s)), 0, 0.5))


@_general_mean_sign.defjvp
def _(
    cdf: Callable[[Array], Array], pdf: Callable[[Array], Array], primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    (s,), (t,) = primals, tangents
    return _general_mean_sign(cdf, pdf, s), 2 * pdf(s) * t
