"""Noise of any symmetric, continuous law, given by its distribution function and the inverse."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sdelens.core import check
from sdelens.core.random import Stream
from sdelens.noise._values import described, nonnegative
from sdelens.noise.scaled import ScaledNoise, half_rule

__all__ = ["SymmetricNoise"]

_DEEPEST = 60.0
"""−log of the probability to which the tail of a law is followed: e⁻⁶⁰ = 10⁻²⁶."""
_STEEPEST = 0.245
"""Largest 1/α, α the tail index, at which a fourth moment is taken to exist; it does for 1/α < 1/4."""
_FEW = np.polynomial.legendre.leggauss(6)


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

        nodes, weights = (jnp.asarray(part, s.dtype) for part in half_rule())
        return tail * jax.lax.scan(add, jnp.zeros_like(s), (nodes, weights))[0]

    def quadrature(self, x: Array) -> tuple[Array, Array]:
        share, weight = half_rule()
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
