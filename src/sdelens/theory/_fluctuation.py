r"""The effect of the fluctuation of v on m/√v: factor F of its mean, and factor N of the variance of its noise.

Both are relative to a constant divisor √E v: E[m/√v] = F E m/√E v, and noise of variance σ² in m contributes Nσ²/E v.
F differs from 1 because 1/√v is convex and because a large gradient also increases its divisor, N because of the latter
and because 1/v is convex. The first-order effect of v on the variance of m/√v, where E m is not 0, is not part of N.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sdelens.core import check
from sdelens.core.compilation import quick
from sdelens.noise import NoiseLaw
from sdelens.optimizers import AdamW, RMSpropW

__all__ = [
    "LawOfSquares",
    "at_rest",
    "by_expansion",
    "by_law",
    "by_law_if",
    "fluctuation_factors",
    "law_is_needed",
    "share_of_root",
]

_LEAST = 0.05
"""Lower limit of F, because the expansion fails at first steps with very heavy tails."""
_SMALL = 0.05
"""Largest (1 − β₂)(κ + 2), with the excess kurtosis κ of the noise, up to which the expansion is used."""
_LEGENDRE = np.polynomial.legendre.leggauss(2)
_LARGE = 60.0
"""Exponents are bounded, so that e^{−a} times the square of a far node is finite and negligible."""
_LOG_TIMES = np.linspace(-8, 10, 19)


class LawOfSquares(NamedTuple):
    """What `by_law` needs to know of g and of the weights in m̂ and v.

    Attributes:
        grad: u = E ∇f, shape (d,).
        variance: variance of ∇f, shape (d,).
        noise: σ², the variance of the noise, shape (d,).
        nodes: nodes of a quadrature over the noise, shape (Q, 1) or (Q, d).
        weights: its weights, shape (Q,).
        b1: β₁; 0 without a first moment.
        b2: β₂.
        count: number K of gradients since the start, at least 1; infinite in the stationary state.
        first: sum of the weights in m̂ before the bias correction, 1 − β₁^(number of all gradients).
    """

    grad: Array
    variance: Array
    noise: Array
    nodes: Array
    weights: Array
    b1: Any
    b2: Any
    count: Any
    first: Any


def share_of_root(v: Array, eps: Any) -> Array:
    """√v/(√v + ε): the fraction of the divisor that fluctuates."""
    root = jnp.sqrt(v)
    return root / (root + jnp.maximum(eps, jnp.finfo(root.dtype).tiny))


def by_law_if(needed: bool | Array, from_law: Callable[[], Any], expanded: Callable[[], Any]) -> Any:
    """`from_law()` if it is needed, else `expanded()`; both are compiled only if that is not known while tracing."""
    if isinstance(needed, bool):
        return from_law() if needed else expanded()
    return lax.cond(needed, from_law, expanded)


def law_is_needed(noise: NoiseLaw, b2: Any, x: Array) -> bool | Array:
    """Whether v fluctuates so much that `by_expansion` is poor, and the law of the noise is known for `by_law`.

    It is an abstract array if JAX traces β₂ or the law of the noise.
    """
    if not noise.has_quadrature:
        return False
    kurtosis: Any = 0.0
    if not noise.normal:
        with check.evaluated(noise, x):
            kurtosis = noise.excess_kurtosis(x)
    if check.any_traced(kurtosis, b2):
        needed = (1 - b2) * (jnp.max(jnp.asarray(kurtosis)) + 2) > _SMALL
        return needed if check.is_traced(needed) else bool(needed)
    return bool((1 - float(b2)) * (np.max(np.asarray(kurtosis)) + 2) > _SMALL)


def by_expansion(
    v: Array, vv: Array, lean: Array, own: Array, total: Array, share: Array | float = 1.0
) -> tuple[Array, Array]:
    r"""F and N to first order in the weights of single gradients.

    With r = Var v/(E v)²,

    F = 1 + ⅜r − lean/E v,   N = 1 + r − own/(E v · Var g).

    F is continued to large r as (1 + r)^⅜ − (lean/E v)(1 + r)^{−0.3}; for n equal weights and normal noise this
    agrees within 1 % with the exact value √(2/n) Γ((n + 1)/2)/Γ(n/2). Without a fourth moment both factors are 1.

    Args:
        v: E v.
        vv: Var v.
        lean: Σ uⱼwⱼ Cov(gⱼ, gⱼ²)/(2 E gⱼ), where the weights uⱼ of gⱼ in m̂ add up to 1, and wⱼ is that of gⱼ² in v.
        own: Σ uⱼwⱼ (Var gⱼ² − 4(E gⱼ)² Var gⱼ): the part of Var gⱼ² that is not linear in the noise.
        total: Var g.
        share: factor by which F − 1 and N − 1 are reduced because the divisor is √v + ε; see `share_of_root`.
    """
    tiny = jnp.finfo(v.dtype).tiny
    ratio, safe = vv / jnp.maximum(v**2, tiny), jnp.maximum(v, tiny)
    pull = (1 + ratio) ** 0.375 - lean / safe * (1 + ratio) ** -0.3
    spread = 1 + ratio - own / jnp.maximum(safe * total, tiny)
    known = jnp.isfinite(ratio) & jnp.isfinite(own) & (v > 0)
    return _limited(pull, spread, known, share)


def by_law(v: Array, law: LawOfSquares, share: Array | float = 1.0) -> tuple[Array, Array]:
    r"""F and N from the law of the noise; finite for every law with a variance, also without a fourth moment.

    Let w be the mean weight of a gradient's own square in the v by which it is divided, and V′ the rest of v. With
    1/√a = π^{−½} ∫ t^{−½} e^{−at} dt and 1/a = ∫ e^{−at} dt over t > 0,

        F = (√E v/u) E[g/√(V′ + wg²)] = (√E v/u) π^{−½} ∫ t^{−½} E[g e^{−twg²}] E e^{−tV′} dt,
        N = (E v/σ²) E[Z²/(V′ + wg²)] = (E v/σ²) ∫ E[Z² e^{−twg²}] E e^{−tV′} dt.

    Gradients of the past are taken as independent and of the present law, and the excess of E v over their contribution
    as constant. Then log E e^{−tv} is a sum over the weights (1 − β₂)β₂ʲ, j < K, which is computed by a Gauss-Legendre
    rule of two nodes in the weight: exact to the fourth cumulant of v. Both integrals are sums over log t. F and N are
    within 2.3 % of those of infinitely many draws for t noise with ν ≥ 2.2 and β₂ ≥ .9.

    Args:
        v: E v, including the newest gradient.
        law: law of g and the weights.
        share: as for `by_expansion`.

    Source: derived here.
    """
    b1, b2, eps, tiny = law.b1, law.b2, jnp.finfo(v.dtype).eps, jnp.finfo(v.dtype).tiny
    square, safe = law.grad**2 + law.variance + law.noise, jnp.maximum(v, tiny)
    rate, left = -jnp.log(b2), b2**law.count
    top, bottom = b2**-0.5, left * b2**-0.5
    at = bottom + (top - bottom) * (jnp.asarray(_LEGENDRE[0], v.dtype) + 1) / 2
    many = (top - bottom) / 2 * jnp.asarray(_LEGENDRE[1], v.dtype) / (at * rate)
    weight = at * ((1 - left) / (many @ at))
    scale = jnp.minimum(1, safe / jnp.maximum((1 - left) * square, tiny))
    constant = jnp.maximum(safe - (1 - left) * square * scale, 0)
    own = (1 - b1) * (1 - b2) * (1 - (b1 * b2) ** law.count) / ((1 - b1 * b2) * law.first) * scale
    centre = law.grad + law.nodes  # (Q, d)
    small = law.grad**2 <= 1e-4 * square

    def exponent(t: Array) -> tuple[Array, Array]:
        """1 + 2t Var ∇f, and the exponent a of E[e^{−tg²} | Z] = e^{−a}/√(1 + 2t Var ∇f), at most large."""
        wide = 1 + 2 * t * law.variance
        return wide, jnp.minimum(t * centre**2 / wide, _LARGE)

    def log_laplace(t: Array) -> Array:
        wide, minus = exponent(t)
        return jnp.log1p(jnp.maximum(law.weights @ jnp.expm1(-minus), eps - 1)) - 0.5 * jnp.log(wide)

    def integrands(t: Array) -> tuple[Array, Array]:
        wide, minus = exponent(own * t)
        here = jnp.exp(-minus) / jnp.sqrt(wide)
        slope = law.weights @ (here * (1 - 2 * minus) / wide)
        secant = law.weights @ (here * centre / wide) / jnp.where(small, 1, law.grad)
        rest = sum(many[i] * log_laplace(weight[i] * scale * t) for i in range(len(_LEGENDRE[0])))
        rest = jnp.exp(rest - log_laplace(own * t) - constant * t)
        return jnp.sqrt(t) * jnp.where(small, slope, secant) * rest, t * (law.weights @ (here * law.nodes**2)) * rest

    def add(total: tuple[Array, Array], log_time: Array) -> tuple[tuple[Array, Array], None]:
        here = integrands(jnp.exp(log_time) / safe)
        return (total[0] + here[0], total[1] + here[1]), None

    # Before the first of these times the integrands are proportional to √t and t, and their sums geometric series.
    step = float(_LOG_TIMES[1] - _LOG_TIMES[0])
    begin = integrands(np.exp(_LOG_TIMES[0]) / safe)
    begin = begin[0] / (1 - np.exp(-step / 2)), begin[1] / (1 - np.exp(-step))
    (pull, spread), _ = lax.scan(add, begin, jnp.asarray(_LOG_TIMES[1:], v.dtype))
    pull = step * jnp.sqrt(safe / np.pi) * pull
    # In the first steps E[Z²/(V′ + wg²)] is dominated by small g, where it does not describe the noise of an update.
    spread = jnp.minimum(step * spread * safe / jnp.maximum(law.noise, tiny), jnp.maximum(pull, 1) ** 2)
    known = (v > 0) & (law.noise > 0)
    return _limited(pull, spread, known, share)


def _limited(pull: Array, spread: Array, known: Array, share: Array | float) -> tuple[Array, Array]:
    """F and N within their limits, 1 where they are not known, and reduced by `share`."""
    pull, spread = (jnp.where(known, jnp.maximum(a, least), 1) for a, least in ((pull, _LEAST), (spread, 0)))
    return 1 + share * (pull - 1), 1 + share * (spread - 1)


def at_rest(
    rule: tuple[Array, Array] | None,
    b1: Any,
    b2: Any,
    gradient: tuple[Array, Array],
    squares: tuple[Array, Array],
    total: Array,
    share: Array | float = 1.0,
) -> tuple[Array, Array]:
    """F and N in the stationary state, by the law of the noise if a quadrature over it is given.

    Args:
        rule: nodes and weights of the noise, or None.
        b1: β₁, 0 without a first moment.
        b2: β₂.
        gradient: u = E ∇f and Var ∇f.
        squares: Cov(g, g²)/(2u) and Var g², as from `LinearGradient.square_moments`.
        total: Var g.
        share: as for `by_expansion`.
    """
    (grad, variance), (lean, fourth), v = gradient, squares, gradient[0] ** 2 + total
    if rule is not None:
        return by_law(v, LawOfSquares(grad, variance, total - variance, *rule, b1, b2, jnp.inf, 1.0), share)
    weight = (1 - b1) * (1 - b2) / (1 - b1 * b2)
    own = weight * (fourth - 4 * grad**2 * total)
    return by_expansion(v, (1 - b2) / (1 + b2) * fourth, weight * lean, own, total, share)


def fluctuation_factors(optimizer: RMSpropW | AdamW) -> tuple[float, float]:
    r"""Factors F and N of a step of RMSpropW or AdamW at rest, where gradients are normal noise.

    A step is ηm/√v on average F ηE m/√E v, and its noise has the variance N η² Var g/E v over many steps: with
    r = Var v/(E v)² = 2(1 − β₂)/(1 + β₂) and w = (1 − β₁)(1 − β₂)/(1 − β₁β₂),

        F = (1 + r)^⅜ − w(1 + r)^{−0.3},   N = 1 + r − 2w.

    Args:
        optimizer: specification, of which β₁ and β₂ matter; ε is taken as 0.

    Returns:
        F and N, both 1 where β₂ → 1.

    Raises:
        TypeError: if the optimizer is another one.

    Source: derived here; for normal noise within 1 % of the exact values (`by_expansion`).

    Examples:
        >>> import sdelens as sl
        >>> [round(factor, 3) for factor in sl.theory.fluctuation_factors(sl.AdamW(lr=1e-3, b2=0.95))]
        [0.985, 0.982]
    """
    if not isinstance(optimizer, RMSpropW | AdamW):
        given = optimizer.__name__ if isinstance(optimizer, type) else type(optimizer).__name__
        raise TypeError(f"optimizer: got {given}; give sl.RMSpropW or sl.AdamW with its arguments.")
    b1, b2 = (check.fraction(name, float(getattr(optimizer, name, 0.0))) for name in ("b1", "b2"))
    none, one = jnp.zeros(1), jnp.ones(1)
    pull, spread = _rest_of_normal(b1, b2, (none, none), (one, 2 * one), one)
    return float(pull[0]), float(spread[0])


_rest_of_normal = quick(lambda b1, b2, gradient, squares, total: at_rest(None, b1, b2, gradient, squares, total))
