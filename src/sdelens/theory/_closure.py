r"""The Gaussian closure: mean and covariance of an optimizer's state from step to step, without a path.

With α = 1 − ηhθ, u = E ∇f, v₊ the new second moment and A = α − pH the factor of x,

- SGD (p = ηh) and RMSpropW (p = ηh/(√E v₊ + ε)):  μ ← αμ − pu;  S ← ASAᵀ + p E Σ p;
- SignSGD: μ ← αμ − ηh E sign(g);  S ← α²S − αηh(JS + SJᵀ) + η²h² Cov sign(g), with J of `SignMoments`;
- AdamW: the pair (x, m) is linear given p = ηh/((1 − β₁ᵏ⁺¹)(√v̂ + ε)): m ← β₁m + (1 − β₁)g, x ← αx − pm; mean and
  covariance of the pair are propagated.

E v₊ = β₂E v + (1 − β₂)(u² + diag HSH + diag E Σ). Exact for SGD; for the others exact if x is normal, and 1/√E v in
place of E 1/√v.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from sdelens.optimizers import AdamW, Optimizer, RMSpropW, SignSGD, State, precondition
from sdelens.theory._moments import LinearGradient, apply, congruent, diagonal, rows, transpose

__all__ = ["Moments", "Record", "advance", "propagate", "start_moments"]


class Moments(NamedTuple):
    """Mean and covariance of the state, diagonal or matrices; None where the optimizer has no such part.

    Attributes:
        x: E x, shape (d,).
        xx: Cov x.
        m: E m.
        xm: Cov(x, m).
        mm: Cov m.
        v: E v.
        count: gradients averaged at step 0.
    """

    x: Any
    xx: Any
    m: Any = None
    xm: Any = None
    mm: Any = None
    v: Any = None
    count: Any = None


class Record(NamedTuple):
    """What is kept of one step: mean and variance of the loss, and mean and variance of the first coordinates."""

    loss: Any
    loss_variance: Any
    x: Any
    x_variance: Any


def start_moments(state: State, spread: Array, optimizer: Optimizer) -> Moments:
    """Moments at step 0 of the optimizer's state, with Cov x `spread` and everything else known."""
    x = state.x
    zero = jnp.zeros_like(spread)
    if isinstance(optimizer, AdamW):
        return Moments(x, spread, state.m, zero, zero, state.v, state.count)
    return Moments(x, spread, v=state.v if isinstance(optimizer, RMSpropW) else None)


def advance(model: LinearGradient, optimizer: Optimizer, y: Moments, k: Array) -> Moments:
    """Moments after step k."""
    rate = optimizer.lr * optimizer.multiplier(k)
    keep = 1 - rate * optimizer.decay_rate
    grad, product = model.gradient(y.x), apply(model.curvature, y.xx)
    if isinstance(optimizer, SignSGD):
        signs = model.signs(y.x, y.xx)
        pull = apply(signs.jacobian, y.xx)
        xx = keep**2 * y.xx - keep * rate * (pull + transpose(pull)) + rate**2 * signs.covariance
        return _like(y, y._replace(x=keep * y.x - rate * signs.mean, xx=xx))
    noise = model.noise_covariance(y.x, y.xx, product)
    ones = jnp.ones_like(y.x)
    v = None
    if isinstance(optimizer, RMSpropW | AdamW):
        square = grad**2 + model.gradient_variance(product) + diagonal(noise)
        v = optimizer.b2 * y.v + (1 - optimizer.b2) * square
    if isinstance(optimizer, AdamW):
        return _like(y, _advance_pair(model, optimizer, y._replace(v=v), k, (grad, product, noise)))
    p = rate * ones if v is None else precondition(rate * ones, v, optimizer.eps)  # type: ignore[attr-defined]
    moved = keep * y.xx - rows(p, product)  # A S
    moved = keep * transpose(moved) - rows(p, apply(model.curvature, transpose(moved)))  # A S Aᵀ
    return _like(y, y._replace(x=keep * y.x - p * grad, xx=_even(moved) + congruent(p, noise), v=v))


def _advance_pair(
    model: LinearGradient, optimizer: AdamW, y: Moments, k: Array, gradient: tuple[Array, Array, Array]
) -> Moments:
    grad, product, noise = gradient
    rate, b1 = optimizer.lr * optimizer.multiplier(k), optimizer.b1
    keep = 1 - rate * optimizer.decay_rate
    steps = (k + y.count).astype(y.x.dtype) + 1
    corrections = [-jnp.expm1(steps * jnp.log(b)) for b in (b1, optimizer.b2)]
    p = precondition(rate / corrections[0] * jnp.ones_like(y.x), y.v / corrections[1], optimizer.eps)

    def factor(x: Array, m: Array, product: Array | None = None) -> tuple[Array, Array]:
        """The pair's linear map without noise, of columns x and m."""
        product = apply(model.curvature, x) if product is None else product
        m = b1 * m + (1 - b1) * product
        return keep * x - rows(p, m), m

    m = b1 * y.m + (1 - b1) * grad
    # Twice the map from the left, with a transposition of the block matrix in between.
    (xx, mx), (xm, mm) = factor(y.xx, transpose(y.xm), product), factor(y.xm, y.mm)
    xx, mx = factor(transpose(xx), transpose(xm)), factor(transpose(mx), transpose(mm))  # type: ignore[assignment]
    (new_xx, _), (new_xm, new_mm) = xx, mx
    fresh = (1 - b1) ** 2 * noise
    return y._replace(
        x=keep * y.x - p * m,
        xx=_even(new_xx) + congruent(p, fresh),
        m=m,
        xm=new_xm - rows(p, fresh),
        mm=_even(new_mm) + fresh,
    )


def propagate(
    model: LinearGradient, optimizer: Optimizer, start: Moments, steps: int, record_every: int, kept: int
) -> Record:
    """Moments along the run, recorded every `record_every`-th step and at the last; the first `kept` coordinates."""
    full = steps // record_every
    return _propagate(model, optimizer, start, full, record_every, steps - full * record_every, kept)


@partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _propagate(
    model: LinearGradient, optimizer: Optimizer, y: Moments, full: int, every: int, rest: int, kept: int
) -> Record:
    def observe(y: Moments) -> Record:
        return Record(*model.loss(y.x, y.xx), y.x[:kept], diagonal(y.xx)[:kept])

    def several(k: Array, y: Moments, count: int) -> Moments:
        if count == 1:
            return advance(model, optimizer, y, k)
        return lax.fori_loop(k, k + count, lambda k, y: advance(model, optimizer, y, k), y)

    def body(y: Moments, i: Array) -> tuple[Moments, Record]:
        return several(i * every, y, every), observe(y)

    y, records = lax.scan(body, y, jnp.arange(full))
    last = [observe(y)]
    if rest:
        last.append(observe(several(jnp.asarray(full * every), y, rest)))
    return jax.tree.map(lambda a, *b: jnp.concatenate([a, jnp.stack(b)]), records, *last)


def _even(covariance: Array) -> Array:
    """Symmetric up to rounding, made so."""
    return covariance if covariance.ndim == 1 else 0.5 * (covariance + covariance.T)


def _like(old: Moments, new: Moments) -> Moments:
    return jax.tree.map(lambda a, b: b.astype(a.dtype), old, new)
