r"""Fixed points of the Gaussian closure and of the paper's SDEs: the stationary mean and covariance of an optimizer.

With the moments of gradients and signs taken at a mean and covariance, one step of the state's deviation from its mean
is linear, and the stationary covariance solves S = ASAᵀ + Q. The new mean and covariance give new moments, and so on
until they no longer change. Everything is in JAX: derivatives follow from the equation of the fixed point by the
implicit function theorem, in both modes, without running through the iteration.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.flatten_util import ravel_pytree

from sdelens.core import check
from sdelens.core.matrix import times
from sdelens.optimizers import SGD, AdamW, DecayedOptimizer, Lion, Momentum, RMSpropW, SignSGD, Signum
from sdelens.theory._closure import Linearised, mixture, squares_of
from sdelens.theory._fluctuation import at_rest, by_law_if, law_is_needed, share_of_root
from sdelens.theory._moments import LinearGradient, congruent, diagonal, rows, transpose

__all__ = ["options_of", "rest_of_algorithm", "rest_of_paper"]

_ROUNDS = 100
_WIDER = 12
_PLAIN = 20
_TOLERANCE = 1e-6
_DOUBLINGS = 60
_DENSE = 1500
"""Largest number of unknowns for which the linear equations of a derivative are solved with a matrix."""

Parts = tuple[Array, ...]
"""Mean and covariance of x, and for optimizers that move by the sign of m also Cov(x, m) and Cov m."""


def options_of(model: LinearGradient, optimizer: DecayedOptimizer) -> tuple[bool | Array, bool]:
    """Whether factors are computed `by_law`, abstract if it is not known, and whether E ∇f is known to be 0 at rest."""
    use_law = isinstance(optimizer, RMSpropW | AdamW) and law_is_needed(model.noise, optimizer.b2, model.minimiser)
    known = not check.any_traced(optimizer.decay_rate, model.minimiser)
    stays = known and not (float(optimizer.decay_rate) and np.asarray(model.minimiser).any())
    return use_law, stays


def rest_of_algorithm(
    model: LinearGradient, optimizer: DecayedOptimizer, use_law: bool | Array, stays: bool
) -> tuple[Array, Array, Array]:
    """Stationary mean and covariance of the closure, and whether they were found; NaN where they were not.

    Args:
        model: the gradient and its noise.
        optimizer: specification.
        use_law: see `options_of`.
        stays: see `options_of`; then x does not follow v.
    """
    mean, none = jnp.asarray(model.minimiser), jnp.zeros_like(model.curvature)
    one = jnp.ones_like(none) if none.ndim == 1 else jnp.eye(len(mean), dtype=none.dtype)
    # Steps of adaptive optimizers have size η. The restoring force and 1/√E g² decrease as the spread grows, so with a
    # spread that is too small the recursion may look unstable.
    linear = isinstance(optimizer, SGD | Momentum)
    size = 0.0 if linear else lax.stop_gradient(jnp.asarray(optimizer.lr, mean.dtype)) ** 2
    start: Parts = (mean, size * one)
    if isinstance(optimizer, Signum | Lion):
        fresh = 1 - optimizer.memory
        noise = model.noise_covariance(mean, none, none)
        start = (*start, none, lax.stop_gradient(fresh / (1 + optimizer.memory) * noise).astype(none.dtype))

        def step(parts: Parts) -> Parts:
            return _mixed_rest(model, optimizer, parts)

    elif isinstance(optimizer, SignSGD):

        def step(parts: Parts) -> Parts:
            return _sign_rest(model, optimizer, *parts)

    else:

        def step(parts: Parts) -> Parts:
            return _linear_rest(model, optimizer, *parts, use_law=use_law, stays=stays)

    start = jax.tree.map(lax.stop_gradient, start)
    found, done = _fixed_point(lambda parts: _cast(step(parts), start), start, linear)
    return found[0], found[1], done


def _fixed_point(step: Callable[[Parts], Parts], start: Parts, linear: bool) -> tuple[Parts, Array]:
    """Z with z = step(z), and whether it was found; `linear` if a wider start cannot make an unstable recursion stable.

    Derivatives are those of the implicit function theorem: (1 − ∂step/∂z) dz = ∂step/∂θ dθ.
    """

    def residual(parts: Parts) -> Parts:
        return jax.tree.map(jnp.subtract, step(parts), parts)

    def solve(_: Any, start: Parts) -> tuple[Parts, Array]:
        def unfinished(loop: tuple[Array, Array, Parts, Array]) -> Array:
            rounds, wider, _, done = loop
            return ~done & (rounds < _ROUNDS) & (wider <= (0 if linear else _WIDER))

        def body(loop: tuple[Array, Array, Parts, Array]) -> tuple[Array, Array, Parts, Array]:
            rounds, wider, old, _ = loop
            new = step(old)
            works = jnp.all(jnp.asarray([jnp.isfinite(a).all() for a in new]))
            largest = jnp.abs(new[1]).max()
            still = jnp.abs(new[0] - old[0]).max() <= _TOLERANCE * jnp.maximum(jnp.abs(new[0]).max(), jnp.sqrt(largest))
            still = works & still & (jnp.abs(new[1] - old[1]).max() <= _TOLERANCE * largest)
            # If the iteration oscillates, damping it brings it closer to the fixed point.
            share = jnp.where(still | (rounds < _PLAIN), 1.0, 0.2).astype(new[1].dtype)
            damped = (new[0], *(a + share * (b - a) for a, b in zip(old[1:], new[1:], strict=True)))
            wide = (old[0], 4 * old[1], *old[2:])
            after = jax.tree.map(lambda a, b: jnp.where(works, a, b), damped, wide)
            return rounds + 1, wider + ~works, after, still

        count = jnp.zeros((), jnp.int32)
        _, _, found, done = lax.while_loop(unfinished, body, (count, count, start, jnp.zeros((), bool)))
        # Not as a Boolean, for which custom_root makes no tangent.
        return jax.tree.map(lambda a: jnp.where(done, a, jnp.nan), found), done.astype(start[0].dtype)

    def tangent(linear_map: Callable[[Parts], Parts], right: Parts) -> Parts:
        flat, back = ravel_pytree(right)
        if flat.size <= _DENSE:
            columns = jax.vmap(lambda v: ravel_pytree(linear_map(back(v)))[0])(jnp.eye(flat.size, dtype=flat.dtype))
            return back(jnp.linalg.solve(columns.T, flat))

        # linear_map is J − 1 with the contraction J of the iteration.
        def again(value: Parts, _: None) -> tuple[Parts, None]:
            return jax.tree.map(lambda a, b, c: a + b - c, value, linear_map(value), right), None

        return lax.scan(again, jax.tree.map(jnp.zeros_like, right), length=_ROUNDS)[0]

    found, done = lax.custom_root(residual, start, solve, tangent, has_aux=True)
    return found, done > 0


def _linear_rest(
    model: LinearGradient,
    optimizer: Any,
    mean: Array,
    spread: Array,
    *,
    use_law: bool | Array,
    stays: bool,
) -> Parts:
    """Stationary mean and covariance with E Σ and E v taken at a mean and covariance; options as `options_of`."""
    product, grad = times(model.curvature, spread), model.gradient(mean)
    noise, one = model.noise_covariance(mean, spread, product), jnp.ones_like(mean)
    rate, bend, size, squares = one, 0 * one, one, None
    if isinstance(optimizer, RMSpropW | AdamW):
        variance = model.gradient_variance(product)
        moments = model.square_moments(mean, grad, variance, diagonal(noise))
        total = variance + diagonal(noise)
        square = grad**2 + total
        share, b1 = share_of_root(square, optimizer.eps), getattr(optimizer, "b1", 0.0)

        def factors(rule: tuple[Array, Array] | None) -> tuple[Array, Array]:
            found = at_rest(rule, b1, optimizer.b2, (grad, variance), moments, total, share)
            return jax.tree.map(lambda a: a.astype(mean.dtype), found)

        pull, wide = by_law_if(use_law, lambda: factors(model.noise.quadrature(mean)), lambda: factors(None))
        rate, size = pull / (jnp.sqrt(square) + optimizer.eps), jnp.sqrt(wide) / pull
        bend = 0.5 * share * grad / square
        squares = None if stays else squares_of(grad, variance, noise, moments)
    theta, p = optimizer.decay_rate, optimizer.lr * rate
    forces = rows(rate, model.curvature)
    centre = _solve(forces, theta, times(forces, model.minimiser))
    linear = Linearised(model.curvature, optimizer, 1 - optimizer.lr * theta, p, p * bend, grad, noise, size, squares)
    unit = jnp.ones_like(mean) if spread.ndim == 1 else jnp.eye(len(mean), dtype=mean.dtype)
    columns = [linear.moved({i: unit if i == j else 0 * unit for i in linear.parts}) for j in linear.parts]
    factor = [[column[i] for column in columns] for i in linear.parts]
    drive = [[linear.drive(i, j) for j in linear.parts] for i in linear.parts]
    return centre, _discrete_blocks(factor, drive)[0][0]


def _sign_rest(model: LinearGradient, optimizer: SignSGD, mean: Array, spread: Array) -> Parts:
    """Stationary mean (one Newton step) and covariance of SignSGD, with moments of sign(g) at a mean and covariance."""
    sign, jacobian, covariance = model.signs(mean, spread)
    lr, theta = optimizer.lr, optimizer.decay_rate
    keep = 1 - lr * theta
    centre = mean - _solve(jacobian, theta, sign + theta * mean)
    if jacobian.ndim == 1:
        return centre, lr**2 * covariance / (1 - keep**2 + 2 * keep * lr * jacobian)
    factor = keep * jnp.eye(len(mean), dtype=mean.dtype) - lr * jacobian
    rest = covariance - _product(_product(jacobian, spread), jacobian.T)
    return centre, _discrete_blocks([[factor]], [[lr**2 * rest]])[0][0]


def _mixed_rest(model: LinearGradient, optimizer: Signum | Lion, parts: Parts) -> Parts:
    """The same for s = sign(A + bZ), A = am + b∇f: mean of x, and the covariance of the pair (x, m)."""
    mean, xx, xm, mm = parts
    lr, theta, forget, (old, new) = optimizer.lr, optimizer.decay_rate, optimizer.memory, mixture(optimizer)
    keep, fresh, curvature = 1 - lr * theta, 1 - forget, model.curvature
    product = times(curvature, xx)
    noise = model.noise_covariance(mean, xx, product)
    through = times(curvature, xm)
    argument = old**2 * mm + old * new * (through + transpose(through)) + new**2 * model.gradient_covariance(product)
    signs, cross = model.mixed_signs(mean, model.gradient(mean), argument, new, noise)
    residual = signs.covariance - congruent(signs.slope, argument)  # without what A explains
    pull = rows(signs.slope, curvature)
    centre = mean - _solve(pull, theta, signs.mean + theta * mean)
    one = jnp.ones_like(mean) if xx.ndim == 1 else jnp.eye(len(mean), dtype=mean.dtype)
    factor = [[keep * one - lr * new * pull, -lr * old * rows(signs.slope, one)], [fresh * curvature, forget * one]]
    drive = [[lr**2 * residual, -lr * fresh * cross], [-lr * fresh * transpose(cross), fresh**2 * noise]]
    found = _discrete_blocks(factor, drive)
    return centre, found[0][0], found[0][1], found[1][1]


def rest_of_paper(model: LinearGradient, optimizer: DecayedOptimizer) -> tuple[Array, Array, Array]:
    """Stationary mean and covariance of the SDE, linearised at the minimum, with P = σ; and whether they exist."""
    curvature, theta, lr = model.curvature, optimizer.decay_rate, optimizer.lr
    at, none = model.minimiser, jnp.zeros_like(curvature)
    if isinstance(optimizer, SignSGD):
        moments = model.signs(at, none)
        pull, drive = moments.jacobian, moments.covariance
    else:
        drive = model.noise_covariance(at, none, none)
        scale = jnp.ones_like(at) if isinstance(optimizer, SGD) else jnp.sqrt(diagonal(drive)) + optimizer.eps  # type: ignore[attr-defined]
        pull, drive = rows(1 / scale, curvature), congruent(1 / scale, drive)
    mean = _solve(pull, theta, times(pull, at))
    if pull.ndim == 1:
        spread = lr * drive / (2 * (pull + theta) + (lr * pull**2 if isinstance(optimizer, SignSGD) else 0))
    elif isinstance(optimizer, SignSGD):

        def again(spread: Array, _: None) -> tuple[Array, None]:
            own = jnp.diag(jnp.diag(_product(_product(pull, spread), pull.T)))
            return _continuous(pull, theta, lr * (drive - own)), None

        spread = lax.scan(again, none, length=_ROUNDS)[0]
    else:
        spread = _continuous(pull, theta, lr * drive)
    return mean, spread, jnp.isfinite(spread).all()


def _continuous(pull: Array, theta: Any, drive: Array) -> Array:
    """S with MS + SMᵀ = Q, M = B + θ: with c > 0 it is S = ASAᵀ + 2c(M + c)⁻¹Q(M + c)⁻ᵀ, A = (M + c)⁻¹(M − c)."""
    one = jnp.eye(len(pull), dtype=pull.dtype)
    whole = pull + theta * one
    c = lax.stop_gradient(jnp.trace(whole)) / len(pull)
    inverse = jnp.linalg.inv(whole + c * one)
    factor = _product(inverse, whole - c * one)
    return _discrete(factor, 2 * c * _product(_product(inverse, drive), inverse.T))


def _discrete_blocks(factor: list[list[Array]], drive: list[list[Array]]) -> list[list[Array]]:
    """S with S = A S Aᵀ + Q in blocks, each the diagonal of a matrix, shape (d,), or a matrix (d, d)."""
    count = len(factor)
    if factor[0][0].ndim == 2:
        dim, found = len(factor[0][0]), _discrete(jnp.block(factor), jnp.block(drive))
        return [[found[i * dim : (i + 1) * dim, j * dim : (j + 1) * dim] for j in range(count)] for i in range(count)]
    # One small system for each coordinate.
    a, q = (jnp.moveaxis(jnp.stack([jnp.stack(row) for row in rows]), -1, 0) for rows in (factor, drive))
    found = _discrete(a, q)
    return [[found[:, i, j] for j in range(count)] for i in range(count)]


def _discrete(factor: Array, drive: Array) -> Array:
    """S with S = A S Aᵀ + Q for matrices on the last two axes; NaN if A has an eigenvalue of modulus 1 or more."""

    def turned(matrix: Array) -> Array:
        return jnp.swapaxes(matrix, -1, -2)

    def left(s: Array) -> Array:
        return s - _product(_product(factor, s), turned(factor))

    found = lax.custom_linear_solve(
        left,
        drive,
        lambda _, right: _doubled(factor, right),
        lambda _, right: _doubled(turned(factor), right),
    )
    return 0.5 * (found + turned(found))


def _doubled(factor: Array, drive: Array) -> Array:
    """Σₖ AᵏQ(Aᵏ)ᵀ by doubling the number of terms (Smith 1968)."""

    def unfinished(loop: tuple[Array, Array, Array]) -> Array:
        return (loop[0] < _DOUBLINGS) & (jnp.abs(loop[1]).max() > 1e-20)

    def body(loop: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, power, total = loop
        added = _product(_product(power, total), jnp.swapaxes(power, -1, -2))
        return count + 1, _product(power, power), total + added

    _, power, total = lax.while_loop(unfinished, body, (jnp.zeros((), jnp.int32), factor, drive))
    return jnp.where(jnp.abs(power).max() <= 1e-20, total, jnp.nan)


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")


def _solve(pull: Array, theta: Any, right: Array) -> Array:
    """(B + θ)⁻¹ right."""
    if pull.ndim == 1:
        return right / (pull + theta)
    return jnp.linalg.solve(pull + theta * jnp.eye(len(pull), dtype=pull.dtype), right)


def _cast(parts: Parts, like: Parts) -> Parts:
    return tuple(a.astype(b.dtype) for a, b in zip(parts, like, strict=True))
