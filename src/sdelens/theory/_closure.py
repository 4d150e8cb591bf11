r"""The Gaussian closure: mean and covariance of an optimizer's state from step to step, without simulating paths.

With α = 1 − ηhθ, u = E ∇f, v₊ the new second moment and A = α − pH the matrix that multiplies x,

- SGD (p = ηh):  μ ← αμ − pu;  S ← ASAᵀ + p E Σ p;
- Momentum: the pair (x, m) is linear, m ← β₁m + (1 − β₁)g, x ← αx − p(am + bg) with the old m and (a, b) of `mixture`;
  mean and covariance of the pair are propagated;
- RMSpropW (p = ηhF/(√E v₊ + ε)) and AdamW (p = ηhF/((1 − β₁ᵏ⁺¹)(√v̂ + ε))): likewise, together with v, in which the
  state is linearised at its mean (`Linearised`);
- SignSGD, Signum, Lion: x ← αx − ηh sign(am + bg), where am + b∇f is taken as normal, including the noise of earlier
  gradients in m; mean and covariance of x, or of the pair, follow from moments of the sign (`LinearGradient.signs`).

E v₊ = β₂E v + (1 − β₂)(u² + diag HSH + diag E Σ). F, and a factor N/F² of the noise, describe what the fluctuation of v
does beyond first order (`theory/_fluctuation.py`). The closure is exact for SGD and Momentum, and for the optimizers
that move by signs if the state is normal.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sdelens.core.matrix import times
from sdelens.optimizers import (
    SGD,
    AdamW,
    DecayedOptimizer,
    Lion,
    Momentum,
    RMSpropW,
    SignSGD,
    Signum,
    State,
    precondition,
)
from sdelens.theory._fluctuation import LawOfSquares, by_expansion, by_law, by_law_if, share_of_root
from sdelens.theory._moments import LinearGradient, between, diagonal, root, rows, transpose, with_diagonal

__all__ = [
    "Linearised",
    "Moments",
    "Squares",
    "advance",
    "mixture",
    "squares_of",
    "start_moments",
]

_EVERY_STEP, _EVERY = 32, 8
"""F and N, which vary slowly, are computed by the law at each of so many first steps, and then at every eighth."""


class Moments(NamedTuple):
    """Mean and covariance of the state, as diagonals or matrices; None for parts that the optimizer does not have.

    Attributes:
        x: E x, shape (d,).
        xx: Cov x.
        m: E m.
        xm: Cov(x, m).
        mm: Cov m.
        v: E v.
        xv: Cov(x, v).
        mv: Cov(m, v).
        vv: Cov v.
        lean: Σ uⱼwⱼ Cov(gⱼ, gⱼ²)/(2 E gⱼ), where u and w are the weights of gⱼ in m and of gⱼ² in v.
        own: Σ uⱼwⱼ (Var gⱼ² − 4(E gⱼ)² Var gⱼ).
        count: number of gradients already averaged at step 0.
        factors: F and N of the last step at which they were computed `by_law`.
    """

    x: Any
    xx: Any
    m: Any = None
    xm: Any = None
    mm: Any = None
    v: Any = None
    xv: Any = None
    mv: Any = None
    vv: Any = None
    lean: Any = None
    own: Any = None
    count: Any = None
    factors: Any = None


def start_moments(model: LinearGradient, state: State, spread: Array, optimizer: DecayedOptimizer) -> Moments:
    """Moments of the optimizer's state at step 0, where Cov x is `spread`."""
    x, none = state.x, jnp.zeros_like(spread)
    if isinstance(optimizer, SGD | SignSGD):
        return Moments(x, spread)
    if not isinstance(optimizer, RMSpropW | AdamW):
        return Moments(x, spread, state.m, none, none)
    zero, one = jnp.zeros_like(x), jnp.ones_like(x)
    second = Moments(x, spread, v=state.v, xv=none, vv=none, lean=zero, own=zero, factors=(one, one))
    if isinstance(optimizer, RMSpropW):
        return second
    xm = mm = none
    if optimizer.v0 == "second-moment":  # m = ∇f(x)
        product = times(model.curvature, spread)
        xm, mm = transpose(product), times(model.curvature, transpose(product))
    return second._replace(m=state.m, xm=xm, mm=mm, mv=none, count=state.count)


def mixture(optimizer: DecayedOptimizer) -> tuple[Any, Any]:
    """The weights (a, b) of the old m and of g in what x moves by, or in its sign."""
    if isinstance(optimizer, Momentum) and optimizer.nesterov:
        return optimizer.b1**2, (1 + optimizer.b1) * (1 - optimizer.b1)
    b1 = getattr(optimizer, "b1", 0.0)
    return b1, 1 - b1


def advance(
    model: LinearGradient, optimizer: DecayedOptimizer, y: Moments, k: Array, use_law: bool | Array = False
) -> Moments:
    """Moments after step k; if `use_law`, which may be abstract, the fluctuation of v is computed `by_law`."""
    rate = optimizer.lr * optimizer.multiplier(k)
    keep = 1 - rate * optimizer.decay_rate
    grad, product = model.gradient(y.x), times(model.curvature, y.xx)
    if isinstance(optimizer, SignSGD | Signum | Lion):
        return _like(y, _advance_by_signs(model, optimizer, y, (keep, rate), grad, product))
    noise = model.noise_covariance(y.x, y.xx, product)
    p, size, squares = rate * jnp.ones_like(y.x), jnp.ones_like(y.x), None
    old, new = mixture(optimizer)
    if isinstance(optimizer, RMSpropW | AdamW):
        variance = model.gradient_variance(product)
        y, squares, vv, known = _advance_squares(model, optimizer, y, (grad, variance, noise))
        first: Any = 1.0
        second: Any = 1.0
        if isinstance(optimizer, AdamW):
            steps = (k + y.count).astype(y.x.dtype) + 1
            first, second = (-jnp.expm1(steps * jnp.log(b)) for b in (optimizer.b1, optimizer.b2))
        share = share_of_root(y.v / second, optimizer.eps)
        old_factors, total = y.factors, diagonal(noise) + variance

        def expanded(y: Moments = y) -> tuple[Array, Array]:
            pull, spread = by_expansion(y.v, vv, y.lean / first, y.own / first, total, share)
            return jnp.where(known, pull, 1).astype(pull.dtype), jnp.where(known, spread, 1).astype(pull.dtype)

        def from_law(y: Moments = y) -> tuple[Array, Array]:
            nodes, weights = model.noise.quadrature(y.x)
            b1, b2 = getattr(optimizer, "b1", 0.0), optimizer.b2
            count = (k + 1).astype(y.x.dtype)
            law = LawOfSquares(grad, variance, diagonal(noise), nodes, weights, b1, b2, count, first)
            due = (k < _EVERY_STEP) | (k % _EVERY == 0)
            return lax.cond(due, lambda: by_law(y.v, law, share), lambda: old_factors)

        factors = by_law_if(use_law, from_law, expanded)
        if use_law is not False:
            y = y._replace(factors=factors)
        pull, spread = factors
        p = precondition(rate / first * jnp.ones_like(y.x), y.v / second, optimizer.eps) * pull
        size = jnp.sqrt(spread) / pull
    direction = new * grad if y.m is None else old * y.m + new * grad
    bend = 0 * p if y.v is None else 0.5 * share / jnp.maximum(y.v, jnp.finfo(y.v.dtype).tiny)
    linear = Linearised(model.curvature, optimizer, keep, p, bend * p * direction, grad, noise, size, squares)
    blocks = {i + j: getattr(y, i + j) for i, j in itertools.combinations_with_replacement(linear.parts, 2)}
    if y.m is not None:
        y = y._replace(m=optimizer.b1 * y.m + (1 - optimizer.b1) * grad)  # type: ignore[attr-defined]
    return _like(y, y._replace(x=keep * y.x - p * direction, **linear.after(blocks)))


class Squares(NamedTuple):
    """The noise of one gradient's square, g² − E(g² | x) = 2u∘Z + Z² − σ² for x at its mean: 0 without a fourth moment.

    Attributes:
        with_noise: its covariance with Z, rows for Z.
        covariance: its covariance.
    """

    with_noise: Array
    covariance: Array


def squares_of(grad: Array, variance: Array, noise: Array, moments: tuple[Array, Array]) -> Squares:
    """Moments of the noise of g² from u, the variance of ∇f, Cov Z, and `LinearGradient.square_moments`."""
    lean, fourth = moments
    known, skew = jnp.isfinite(fourth), 2 * grad * (lean - variance)
    skew, rest = (jnp.where(known, a, 0) for a in (skew, jnp.maximum(fourth - 4 * grad**2 * variance, 0)))
    if noise.ndim == 1:
        return Squares(skew, rest)
    coupled = jnp.where(jnp.outer(known, known), 4 * jnp.outer(grad, grad) * noise + 2 * noise**2, 0)
    twice = jnp.where(known, 2 * grad, 0)
    return Squares(with_diagonal(noise * twice, skew), with_diagonal(coupled, rest))


def _advance_squares(
    model: LinearGradient, optimizer: Any, y: Moments, gradient: tuple[Array, Array, Array]
) -> tuple[Moments, Squares, Array, Array]:
    """E v and its fluctuation after one more gradient, from its mean u, the variance of ∇f, and Cov Z.

    Last, Var v, and whether there is a fourth moment, without which the fluctuation is 0 here.
    """
    grad, variance, noise = gradient
    b1, b2, own = getattr(optimizer, "b1", 0.0), optimizer.b2, diagonal(noise)
    lean, fourth = model.square_moments(y.x, grad, variance, own)
    squares = squares_of(grad, variance, noise, (lean, fourth))
    fresh = (1 - b1) * (1 - b2)
    known = jnp.isfinite(fourth)
    lean, fourth = (jnp.where(known, a, 0) for a in (lean, fourth))
    y = y._replace(
        v=b2 * y.v + (1 - b2) * (grad**2 + variance + own),
        lean=b1 * b2 * y.lean + fresh * lean,
        own=b1 * b2 * y.own + fresh * (fourth - 4 * grad**2 * (variance + own)),
    )
    together = model.curvature * y.xv if y.xv.ndim == 1 else jnp.sum(model.curvature * y.xv.T, axis=1)  # Cov(∇f, v)
    single = 4 * grad**2 * variance + diagonal(squares.covariance)
    vv = b2**2 * diagonal(y.vv) + 4 * b2 * (1 - b2) * grad * together + (1 - b2) ** 2 * single
    return y, squares, vv, known


class Linearised(NamedTuple):
    """One step of the deviation of x, m and v from their means, of which an optimizer has the first, two, or all.

    Its arrays are those of JAX or of NumPy.

    m ← β₁m + (1 − β₁)g, v ← β₂v + (1 − β₂)(2u∘H x + q), x ← αx − p(am + bg) + c∘v with the old m and the new v, where
    g = Hx + Z, and q is the noise of g².

    Attributes:
        curvature: H.
        optimizer: specification.
        keep: α.
        p: p.
        follows: c = p E(am + bg)/(2 E v) times the fraction of the divisor that fluctuates.
        grad: u.
        noise: Cov Z.
        root: factor √N/F of Z in x and m.
        squares: moments of q; None if the optimizer has no v.
    """

    curvature: Any
    optimizer: DecayedOptimizer
    keep: Any
    p: Any
    follows: Any
    grad: Any
    noise: Any
    root: Any
    squares: Squares | None

    @property
    def parts(self) -> str:
        """The names of the parts of the state, some of "xmv"."""
        has_m = isinstance(self.optimizer, AdamW | Momentum)
        return "x" + "m" * has_m + "v" * (self.squares is not None)

    def moved(self, column: dict[str, Any]) -> dict[str, Any]:
        """The linear map without noise, applied to a column of blocks."""
        (old, new), through = mixture(self.optimizer), self._times(column["x"])
        b1, b2 = getattr(self.optimizer, "b1", 0.0), getattr(self.optimizer, "b2", 0.0)
        found = {"x": self.keep * column["x"] - rows(self.p, new * through)}
        if "m" in column:
            found["x"] = found["x"] - rows(self.p, old * column["m"])
            found["m"] = b1 * column["m"] + (1 - b1) * through
        if "v" in column:
            found["v"] = b2 * column["v"] + (1 - b2) * rows(2 * self.grad, through)
            found["x"] = found["x"] + rows(self.follows, found["v"])
        return found

    def drive(self, i: str, j: str) -> Any:
        """Covariance of the noise of two parts, each of the form aZ + bq."""
        b1, b2, one = getattr(self.optimizer, "b1", 0.0), getattr(self.optimizer, "b2", 0.0), 0 * self.p + 1
        of_noise = {"x": -mixture(self.optimizer)[1] * self.p * self.root, "m": (1 - b1) * self.root, "v": 0 * one}
        total = between(of_noise[i], self.noise, of_noise[j])
        if self.squares is None:
            return total
        of_squares = {"x": (1 - b2) * self.follows, "m": 0 * one, "v": (1 - b2) * one}
        total = total + between(of_squares[i], self.squares.covariance, of_squares[j])
        total = total + between(of_noise[i], self.squares.with_noise, of_squares[j])
        return total + between(of_squares[i], transpose(self.squares.with_noise), of_noise[j])

    def _times(self, column: Any) -> Any:
        """H times a column."""
        if isinstance(column, np.ndarray):  # in double precision
            return self.curvature * column if column.ndim == 1 else self.curvature @ column
        return times(self.curvature, column)

    def after(self, blocks: dict[str, Any]) -> dict[str, Any]:
        """The covariance after one step, in blocks "xx", "xm", and so on."""
        whole = {name[::-1]: transpose(block) for name, block in blocks.items()} | blocks
        once = {j: self.moved({i: whole[i + j] for i in self.parts}) for j in self.parts}
        twice = {i: self.moved({j: transpose(once[j][i]) for j in self.parts}) for i in self.parts}
        found = {name: twice[name[1]][name[0]] + self.drive(*name) for name in blocks}
        return {name: _even(block) if name[0] == name[1] else block for name, block in found.items()}


def _advance_by_signs(
    model: LinearGradient,
    optimizer: DecayedOptimizer,
    y: Moments,
    rates: tuple[Array, Array],
    grad: Array,
    product: Array,
) -> Moments:
    """One step of x ← αx − ηh sign(am + bg), and of m ← βm + (1 − β)g with the optimizer's β if it has an m."""
    keep, rate = rates
    if y.m is None:
        signs = model.signs(y.x, y.xx)
        pull = _bounded(times(signs.jacobian, y.xx), y.xx, signs.covariance)
        xx = keep**2 * y.xx - keep * rate * (pull + transpose(pull)) + rate**2 * signs.covariance
        return y._replace(x=keep * y.x - rate * signs.mean, xx=_even(xx))
    forget, (old, new) = optimizer.memory, mixture(optimizer)  # type: ignore[attr-defined]
    noise = model.noise_covariance(y.x, y.xx, product)
    through = times(model.curvature, y.xm)  # Cov(∇f, m)
    within = model.gradient_covariance(product)
    both = old * new * (through + transpose(through))
    argument = old**2 * y.mm + both + new**2 * within
    mixed, fresh = model.mixed_signs(y.x, old * y.m + new * grad, argument, new, noise)
    # Covariances of the sign with x, m and g.
    with_x = rows(mixed.slope, old * transpose(y.xm) + new * product)
    with_m = rows(mixed.slope, old * y.mm + new * through)
    with_g = rows(mixed.slope, old * transpose(through) + new * within) + fresh
    with_x, with_m = _bounded(with_x, y.xx, mixed.covariance), _bounded(with_m, y.mm, mixed.covariance)
    xx = keep**2 * y.xx - keep * rate * (with_x + transpose(with_x)) + rate**2 * mixed.covariance
    xm = keep * (forget * y.xm + (1 - forget) * transpose(product)) - rate * (forget * with_m + (1 - forget) * with_g)
    mm = (
        forget**2 * y.mm + forget * (1 - forget) * (through + transpose(through)) + (1 - forget) ** 2 * (within + noise)
    )
    return y._replace(
        x=keep * y.x - rate * mixed.mean,
        xx=_even(xx),
        m=forget * y.m + (1 - forget) * grad,
        xm=xm,
        mm=_even(mm),
    )


def _bounded(pull: Array, spread: Array, signs: Array) -> Array:
    """Cov(sign, y) with |Cov(signᵢ, yᵢ)|² at most the product of variances, also if E sign is an approximation."""
    most, size = root(diagonal(spread) * diagonal(signs)), jnp.abs(diagonal(pull))
    over = size > most
    return rows(jnp.where(over, most / jnp.where(over, size, 1), 1), pull)


def _even(covariance: Array) -> Array:
    """Make a matrix that is symmetric up to rounding exactly symmetric."""
    return covariance if covariance.ndim == 1 else 0.5 * (covariance + covariance.T)


def _like(old: Moments, new: Moments) -> Moments:
    return jax.tree.map(lambda a, b: b.astype(a.dtype), old, new)
