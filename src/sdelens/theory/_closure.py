r"""The Gaussian closure: mean and covariance of an optimizer's state from step to step, without simulating paths.

With α = 1 − ηhθ, u = E ∇f, v₊ the new second moment and A = α − pH the matrix that multiplies x,

- SGD (p = ηh) and RMSpropW (p = ηhF/(√E v₊ + ε)):  μ ← αμ − pu;  S ← ASAᵀ + p E Σ p;
- SignSGD: μ ← αμ − ηh E sign(g);  S ← α²S − αηh(JS + SJᵀ) + η²h² Cov sign(g), with J of `SignMoments`;
- AdamW: the pair (x, m) is linear given p = ηhF/((1 − β₁ᵏ⁺¹)(√v̂ + ε)): m ← β₁m + (1 − β₁)g, x ← αx − pm; mean and
  covariance of the pair are propagated.

E v₊ = β₂E v + (1 − β₂)(u² + diag HSH + diag E Σ). F, and a factor N/F² of the noise, describe the effect of the
fluctuation of v (`fluctuation`). The closure is exact for SGD, and for SignSGD if x is normal; for the others it is
also an expansion to first order in 1 − β₂.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sdelens.core.compilation import program
from sdelens.core.matrix import times
from sdelens.optimizers import AdamW, DecayedOptimizer, RMSpropW, SignSGD, State, precondition
from sdelens.theory._moments import LinearGradient, congruent, diagonal, rows, transpose

__all__ = ["Moments", "Record", "advance", "fluctuation", "propagate", "share_of_root", "start_moments"]

_ROOM = 4096
"""Most records for which their room is rounded up to a power of 2; beyond it, to a multiple of this."""
_LEAST = 0.05
"""Lower limit of the factor of the mean of m/√v, because the expansion fails at first steps with very heavy tails."""


class Moments(NamedTuple):
    """Mean and covariance of the state, as diagonals or matrices; None for parts that the optimizer does not have.

    Attributes:
        x: E x, shape (d,).
        xx: Cov x.
        m: E m.
        xm: Cov(x, m).
        mm: Cov m.
        v: E v.
        vv: Var v.
        lean: Σ uⱼwⱼ Cov(gⱼ, gⱼ²)/(2 E gⱼ), where u and w are the weights of gⱼ in m and of gⱼ² in v.
        own: Σ uⱼwⱼ Var gⱼ².
        count: number of gradients already averaged at step 0.
    """

    x: Any
    xx: Any
    m: Any = None
    xm: Any = None
    mm: Any = None
    v: Any = None
    vv: Any = None
    lean: Any = None
    own: Any = None
    count: Any = None


class Record(NamedTuple):
    """The record of one step: mean and variance of the loss and of the first coordinates."""

    loss: Any
    loss_variance: Any
    x: Any
    x_variance: Any


def start_moments(model: LinearGradient, state: State, spread: Array, optimizer: DecayedOptimizer) -> Moments:
    """Moments of the optimizer's state at step 0, where Cov x is `spread`."""
    x = state.x
    if not isinstance(optimizer, RMSpropW | AdamW):
        return Moments(x, spread)
    known = dict.fromkeys(("vv", "lean", "own"), jnp.zeros_like(x))
    if isinstance(optimizer, RMSpropW):
        return Moments(x, spread, v=state.v, **known)
    xm = mm = jnp.zeros_like(spread)
    if optimizer.v0 == "second-moment":  # m = ∇f(x)
        product = times(model.curvature, spread)
        xm, mm = transpose(product), times(model.curvature, transpose(product))
    return Moments(x, spread, state.m, xm, mm, state.v, count=state.count, **known)


def advance(model: LinearGradient, optimizer: DecayedOptimizer, y: Moments, k: Array) -> Moments:
    """Moments after step k."""
    rate = optimizer.lr * optimizer.multiplier(k)
    keep = 1 - rate * optimizer.decay_rate
    grad, product = model.gradient(y.x), times(model.curvature, y.xx)
    if isinstance(optimizer, SignSGD):
        signs = model.signs(y.x, y.xx)
        pull = times(signs.jacobian, y.xx)
        # Enforce that |Cov(sign, x)|² is at most the product of the variances, also if E sign is an approximation.
        most = jnp.sqrt(jnp.maximum(diagonal(y.xx) * diagonal(signs.covariance), 0))
        pull = rows(most / jnp.maximum(jnp.abs(diagonal(pull)), jnp.maximum(most, jnp.finfo(most.dtype).tiny)), pull)
        xx = keep**2 * y.xx - keep * rate * (pull + transpose(pull)) + rate**2 * signs.covariance
        return _like(y, y._replace(x=keep * y.x - rate * signs.mean, xx=xx))
    noise = model.noise_covariance(y.x, y.xx, product)
    rates = rate * jnp.ones_like(y.x)
    if not isinstance(optimizer, RMSpropW | AdamW):
        return _like(y, _advance_alone(model, y, keep, rates, (grad, product, noise)))
    y = _advance_squares(model, optimizer, y, (grad, product, noise))
    b1: Any = 0.0
    first: Any = 1.0
    second: Any = 1.0
    if isinstance(optimizer, AdamW):
        steps = (k + y.count).astype(y.x.dtype) + 1
        b1 = optimizer.b1
        first, second = (-jnp.expm1(steps * jnp.log(b)) for b in (b1, optimizer.b2))
    total = diagonal(noise) + model.gradient_variance(product)
    share = share_of_root(y.v / second, optimizer.eps)
    pull, spread = fluctuation(y.v, y.vv, y.lean / first, y.own / first, total, share)
    p = precondition(rates / first, y.v / second, optimizer.eps) * pull
    noise = congruent(jnp.sqrt(spread) / pull, noise)
    if isinstance(optimizer, RMSpropW):
        return _like(y, _advance_alone(model, y, keep, p, (grad, product, noise)))
    return _like(y, _advance_pair(model, b1, y, keep, p, (grad, product, noise)))


def share_of_root(v: Array, eps: Any) -> Array:
    """√v/(√v + ε): the fraction of the divisor that fluctuates."""
    root = jnp.sqrt(v)
    return root / (root + jnp.maximum(eps, jnp.finfo(root.dtype).tiny))


def fluctuation(
    v: Array, vv: Array, lean: Array, own: Array, total: Array, share: Array | float = 1.0
) -> tuple[Array, Array]:
    r"""The effect of the fluctuation of v on m/√v: factor F of its mean, and N of the variance of its noise.

    With r = Var v/(E v)², to first order in the weights of single gradients

    F = 1 + ⅜r − lean/E v,   N = 1 + r − own/(E v · Var g):

    the first correction comes from Jensen's inequality, the second from the fact that a large g also makes its divisor
    large. F is continued to large r as (1 + r)^⅜ − (lean/E v)(1 + r)^{−0.3}; for n equal weights and normal noise this
    agrees within 1 % with the exact value √(2/n) Γ((n + 1)/2)/Γ(n/2). Without a fourth moment both factors are 1.

    Args:
        v: E v.
        vv: Var v.
        lean: as in `Moments`, with u the weights in m̂, which add up to 1.
        own: as in `Moments`, with the same u.
        total: Var g.
        share: factor by which F − 1 and N − 1 are reduced because the divisor is √v + ε; see `share_of_root`.
    """
    tiny = jnp.finfo(v.dtype).tiny
    ratio, safe = vv / jnp.maximum(v**2, tiny), jnp.maximum(v, tiny)
    pull = (1 + ratio) ** 0.375 - lean / safe * (1 + ratio) ** -0.3
    spread = 1 + ratio - own / jnp.maximum(safe * total, tiny)
    known = jnp.isfinite(ratio) & jnp.isfinite(own) & (v > 0)
    pull, spread = (jnp.where(known, jnp.maximum(a, least), 1) for a, least in ((pull, _LEAST), (spread, 0)))
    return 1 + share * (pull - 1), 1 + share * (spread - 1)


def _advance_squares(
    model: LinearGradient, optimizer: Any, y: Moments, gradient: tuple[Array, Array, Array]
) -> Moments:
    """The second moment and its fluctuation after one more gradient."""
    grad, product, noise = gradient
    b1, b2 = getattr(optimizer, "b1", 0.0), optimizer.b2
    variance, own = model.gradient_variance(product), diagonal(noise)
    lean, fourth = model.square_moments(y.x, grad, variance, own)
    fresh = (1 - b1) * (1 - b2)
    return y._replace(
        v=b2 * y.v + (1 - b2) * (grad**2 + variance + own),
        vv=b2**2 * y.vv + (1 - b2) ** 2 * fourth,
        lean=b1 * b2 * y.lean + fresh * lean,
        own=b1 * b2 * y.own + fresh * fourth,
    )


def _advance_alone(
    model: LinearGradient, y: Moments, keep: Array, p: Array, gradient: tuple[Array, Array, Array]
) -> Moments:
    """One step of x ← αx − pg."""
    grad, product, noise = gradient
    moved = keep * y.xx - rows(p, product)  # A S
    moved = keep * transpose(moved) - rows(p, times(model.curvature, transpose(moved)))  # A S Aᵀ
    return y._replace(x=keep * y.x - p * grad, xx=_even(moved) + congruent(p, noise))


def _advance_pair(
    model: LinearGradient, b1: Any, y: Moments, keep: Array, p: Array, gradient: tuple[Array, Array, Array]
) -> Moments:
    """One step of m ← β₁m + (1 − β₁)g, x ← αx − pm."""
    grad, product, noise = gradient

    def factor(x: Array, m: Array, product: Array | None = None) -> tuple[Array, Array]:
        """The linear map of the pair without noise, applied to columns x and m."""
        product = times(model.curvature, x) if product is None else product
        m = b1 * m + (1 - b1) * product
        return keep * x - rows(p, m), m

    m = b1 * y.m + (1 - b1) * grad
    # Apply the map twice from the left, transposing the block matrix in between.
    (xx, mx), (xm, mm) = factor(y.xx, transpose(y.xm), product), factor(y.xm, y.mm)
    new_xx, _ = factor(transpose(xx), transpose(xm))
    new_xm, new_mm = factor(transpose(mx), transpose(mm))
    fresh = (1 - b1) ** 2 * noise
    return y._replace(
        x=keep * y.x - p * m,
        xx=_even(new_xx) + congruent(p, fresh),
        m=m,
        xm=new_xm - rows(p, fresh),
        mm=_even(new_mm) + fresh,
    )


def propagate(
    model: LinearGradient, optimizer: DecayedOptimizer, start: Moments, steps: int, record_every: int, kept: int
) -> Record:
    """Propagate moments; record every `record_every`-th step and the last, with the first `kept` coordinates.

    Steps and records are arguments of the compiled program; only the room for records, rounded up, is part of it.
    """
    full, rest = divmod(steps, record_every)
    rows = full + 1 + (rest > 0)
    room = 2 ** max(rows - 1, 63).bit_length() if rows <= _ROOM else -(-rows // _ROOM) * _ROOM
    records = _propagate(model, optimizer, start, full, record_every, rest, room, kept)
    return jax.tree.map(lambda a: np.asarray(a)[:rows], records)


@program(static_argnums=(6, 7))
def _propagate(
    model: LinearGradient,
    optimizer: DecayedOptimizer,
    y: Moments,
    full: Array,
    every: Array,
    rest: Array,
    room: int,
    kept: int,
) -> Record:
    def observe(y: Moments) -> Record:
        return Record(*model.loss(y.x, y.xx), y.x[:kept], diagonal(y.xx)[:kept])

    def several(k: Array, y: Moments, count: Array) -> Moments:
        return lax.fori_loop(k, k + count, lambda k, y: advance(model, optimizer, y, k), y)

    def keep(records: Record, i: Array, y: Moments) -> Record:
        return jax.tree.map(lambda a, b: a.at[i].set(b), records, observe(y))

    def body(i: Array, carry: tuple[Moments, Record]) -> tuple[Moments, Record]:
        y, records = carry
        return several(i * every, y, every), keep(records, i, y)

    records = jax.tree.map(lambda a: jnp.zeros((room, *a.shape), a.dtype), jax.eval_shape(observe, y))
    y, records = lax.fori_loop(0, full, body, (y, records))
    records = keep(records, full, y)
    return keep(records, full + jnp.minimum(rest, 1), several(full * every, y, rest))


def _even(covariance: Array) -> Array:
    """Make a matrix that is symmetric up to rounding exactly symmetric."""
    return covariance if covariance.ndim == 1 else 0.5 * (covariance + covariance.T)


def _like(old: Moments, new: Moments) -> Moments:
    return jax.tree.map(lambda a, b: b.astype(a.dtype), old, new)
