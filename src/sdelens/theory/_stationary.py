r"""Stationary laws of optimizers on quadratics: the stationary mean and covariance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import solve_continuous_lyapunov, solve_discrete_lyapunov
from scipy.stats import multivariate_normal

from sdelens.cases.case import Case
from sdelens.core import check
from sdelens.core.compilation import program
from sdelens.core.files import text_table
from sdelens.core.matrix import times
from sdelens.core.names import FORMS
from sdelens.noise import AbstractNoise
from sdelens.optimizers import (
    SGD,
    AdamW,
    DecayedOptimizer,
    Lion,
    Momentum,
    Optimizer,
    RMSpropW,
    SignSGD,
    Signum,
)
from sdelens.problems import AbstractProblem
from sdelens.theory._closure import Linearised, Moments, advance, mixture, squares_of
from sdelens.theory._fluctuation import at_rest, law_is_needed, share_of_root
from sdelens.theory._linear import linear_gradient
from sdelens.theory._moments import MAX_DENSE, LinearGradient, SignMoments, congruent, diagonal, rows, transpose
from sdelens.theory._predict import require_variance
from sdelens.theory._supported import OF_THE_PAPER, check_known

__all__ = ["Stationary", "stationary"]

_ROUNDS = 100
_WIDER = 12
_PLAIN = 20
_BLOCK = 500
_BLOCKS = 40
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Stationary:
    """The normal law with the stationary mean and covariance.

    Attributes:
        mean: mean, shape (d,).
        spread: covariance: its diagonal, shape (d,), if the coordinates are not coupled, otherwise a matrix.
        loss: expected loss.
        excess: expected loss minus the infimum.
        form: ``"algorithm"`` or ``"paper"``.
        title: title for tables.
    """

    mean: np.ndarray
    spread: np.ndarray
    loss: float
    excess: float
    form: str
    title: str

    @property
    def variance(self) -> np.ndarray:
        """Variances of the coordinates, shape (d,)."""
        return self.spread if self.spread.ndim == 1 else np.diag(self.spread)

    @property
    def covariance(self) -> np.ndarray:
        """Covariance matrix, shape (d, d).

        Raises:
            ValueError: for d > 2000 uncoupled coordinates; use `variance`.
        """
        if self.spread.ndim == 1 and len(self.spread) > MAX_DENSE:
            raise ValueError(f"covariance: a matrix of {len(self.spread)} rows; it is diagonal, see variance.")
        return np.diag(self.spread) if self.spread.ndim == 1 else self.spread

    def sample(self, count: int, seed: int = 0) -> np.ndarray:
        """Random samples from the law, shape (count, d)."""
        count = check.at_least("count", count, 1)
        normal = np.random.default_rng(check.at_least("seed", seed, 0)).standard_normal((count, len(self.mean)))
        if self.spread.ndim == 1:
            return self.mean + normal * np.sqrt(self.spread)
        values, vectors = np.linalg.eigh(self.spread)
        return self.mean + (normal * np.sqrt(np.maximum(values, 0))) @ vectors.T

    def density(self, points: Any, coordinates: int | Sequence[int] = 0) -> np.ndarray:
        """Density of one coordinate, or joint density of two, for plots.

        Args:
            points: points of any shape for one coordinate, of shape (…, 2) for two.
            coordinates: index of the coordinate, or a pair of indices.

        Raises:
            ValueError: if an index is out of range, or the points do not fit.
        """
        chosen = [coordinates] if np.ndim(coordinates) == 0 else list(coordinates)  # type: ignore[arg-type]
        index = [check.whole("coordinates", i) for i in chosen]
        if len(index) not in (1, 2) or len(set(index)) < len(index) or any(not 0 <= i < len(self.mean) for i in index):
            raise ValueError(
                f"coordinates: got {coordinates}; give one or two different ones of 0 to {len(self.mean) - 1}."
            )
        points = np.asarray(points, np.float64)
        if len(index) == 2 and (points.ndim == 0 or points.shape[-1] != 2):
            raise ValueError(f"points: got shape {points.shape}; give (…, 2) for two coordinates.")
        part = np.diag(self.spread[index]) if self.spread.ndim == 1 else self.spread[np.ix_(index, index)]
        flat = points.reshape(-1, len(index))
        values = multivariate_normal(self.mean[index], part, allow_singular=True).pdf(flat)
        return np.reshape(values, points.shape if len(index) == 1 else points.shape[:-1])

    def __str__(self) -> str:
        """Mean and standard deviation of the first coordinates, and the loss."""
        shown = min(len(self.mean), 12)
        rows = [[str(i), f"{self.mean[i]:.5g}", f"{np.sqrt(self.variance[i]):.5g}"] for i in range(shown)]
        lines = [self.title, "", *text_table(["coordinate", "mean", "standard deviation"], rows)]
        if shown < len(self.mean):
            lines.append(f"… {len(self.mean) - shown} more")
        return "\n".join([*lines, "", f"Expected loss {self.loss:.6g}, {self.excess:.6g} above its infimum."])


def stationary(
    problem: AbstractProblem, noise: AbstractNoise, optimizer: Optimizer, *, form: str = "algorithm"
) -> Stationary:
    r"""Compute the stationary mean, covariance and loss of an optimizer.

    For one coordinate of curvature λ with noise of scale σ and density p, with b = 2p(0)λ and k = λ/σ + θ, the
    variance is

    - ``"paper"``: that of the SDE of arXiv 2411.15958, linearised and with P = σ. SGD (η/2)σ²/(λ + θ); SignSGD
      (η/2)/(b + θ + ηb²/2); RMSpropW and AdamW (η/2)/k.
    - ``"algorithm"``: that of the optimizer itself, at the fixed point of the closure of `predict`. SGD
      ησ²/(κ(2 − ηκ)), κ = λ + θ, which is exact; SignSGD η²/(1 − α² + 2αηJ(s)), where s is the variance itself;
      RMSpropW and AdamW with P² = E g² (noise and gradient), the full momentum and the effect of the fluctuation of v;
      Momentum, exact, Signum and Lion.

    Covariance matrices satisfy the Lyapunov equation, in continuous time for the paper's form and in discrete time for
    the algorithm's. Compared with simulation (λ = ½…5, σ = ½…2, η = .01, β₂ = .999), the algorithm's variances are
    within 1 %, the paper's within 4 %.

    Args:
        problem: `Quadratic` or `LinearRegression`.
        noise: any law; it must have a variance unless the optimizer is SignSGD.
        optimizer: specification, without a schedule.
        form: ``"algorithm"`` or ``"paper"``.

    Returns:
        A `Stationary`.

    Raises:
        TypeError: if the gradient is not linear, or the form does not cover the optimizer; the paper's covers its own
            four.
        ValueError: if there is no stationary law: no curvature and no decay along some direction, a learning rate for
            which the optimizer is not stable, noise without a variance, or a schedule.

    Source: arXiv 2411.15958; the algorithm's form is derived here.

    Examples:
        >>> import sdelens as sl
        >>> sl.theory.stationary(sl.Quadratic([2.0]), sl.GaussianNoise(1.0), sl.SGD(0.1)).variance.round(6)
        array([0.027778])
    """
    check.choice("form", form, FORMS)
    optimizer = check_known(problem, noise, optimizer, *([OF_THE_PAPER] if form == "paper" else []))
    if optimizer.schedule is not None:
        raise ValueError("optimizer: has a schedule, under which nothing is stationary; give one without.")
    case = Case.checked(problem, noise, optimizer, None, 1)
    model = linear_gradient(problem, case.noise)
    require_variance(case, "a stationary law")
    _require_restoring(model, optimizer)
    mean, spread = (_of_paper if form == "paper" else _of_algorithm)(model, optimizer)
    loss = float(model.loss(jnp.asarray(mean), jnp.asarray(spread))[0])
    described = f"{type(optimizer).__name__} in the stationary state ({form}), d = {problem.dim}"
    return Stationary(mean, spread, loss, loss - float(model.infimum), form, described)


def _require_restoring(model: LinearGradient, optimizer: DecayedOptimizer) -> None:
    curvature = np.asarray(model.curvature, np.float64)
    values = curvature if curvature.ndim == 1 else np.linalg.eigvalsh(curvature)
    lowest, decay = float(values.min()), float(optimizer.decay_rate)
    scale = float(np.abs(values).max())
    if lowest < -1e-6 * scale or lowest + decay <= 1e-7 * scale:
        raise ValueError(
            f"problem: has curvature {lowest:.3g} along some direction, in which no force pulls {optimizer.name} back "
            f"(weight decay {decay:g}), so there is no stationary distribution; give positive curvature, or 0 and "
            "weight decay."
        )


def _of_paper(model: LinearGradient, optimizer: DecayedOptimizer) -> tuple[np.ndarray, np.ndarray]:
    """Stationary mean and covariance of the SDE, linearised at the minimum, with P = σ."""
    curvature, theta, lr = np.asarray(model.curvature, np.float64), float(optimizer.decay_rate), float(optimizer.lr)
    at, none = model.minimiser, jnp.zeros_like(model.curvature)
    if isinstance(optimizer, SignSGD):
        moments = model.signs(at, none)
        pull, drive = (np.asarray(a, np.float64) for a in (moments.jacobian, moments.covariance))
    else:
        drive = np.asarray(model.noise_covariance(at, none, none), np.float64)
        scale = np.ones(len(at)) if isinstance(optimizer, SGD) else np.sqrt(diagonal(drive)) + float(optimizer.eps)  # type: ignore[attr-defined]
        pull, drive = rows(1 / scale, curvature), congruent(1 / scale, drive)
    mean = _solve(pull, theta, pull @ np.asarray(at) if pull.ndim == 2 else pull * np.asarray(at))
    if not isinstance(optimizer, SignSGD):
        return mean, _continuous(pull, theta, lr * drive)
    if pull.ndim == 1:
        return mean, lr * drive / (2 * (pull + theta) + lr * pull**2)

    def again(spread: np.ndarray) -> np.ndarray:
        return _continuous(pull, theta, lr * (drive - np.diag(np.diag(pull @ spread @ pull.T))))

    return mean, _fixed_point(again, np.zeros_like(drive), optimizer)


def _of_algorithm(model: LinearGradient, optimizer: DecayedOptimizer) -> tuple[np.ndarray, np.ndarray]:
    """Stationary mean and covariance of the closure, by fixed-point iteration of mean, covariance and second moment."""
    if isinstance(optimizer, Signum | Lion):
        return _of_mixed_signs(model, optimizer)
    step: Any = _sign_rest if isinstance(optimizer, SignSGD) else _linear_rest
    dim, shape = len(model.minimiser), model.curvature.shape
    # Steps of adaptive optimizers have size η. The restoring force and 1/√E g² decrease as the spread grows, so with a
    # spread that is too small the recursion may look unstable.
    linear = isinstance(optimizer, SGD | Momentum)
    size = 0.0 if linear else float(optimizer.lr) ** 2
    mean = np.asarray(model.minimiser, np.float64)
    spread = size * (np.ones(dim) if len(shape) == 1 else np.eye(dim))
    wider = 0
    for rounds in range(_ROUNDS):
        try:
            new_mean, new_spread = step(model, optimizer, mean, spread)
        except _UnstableError:
            if linear or wider == _WIDER:
                break
            wider, spread = wider + 1, 4 * spread
            continue
        except np.linalg.LinAlgError:
            break
        if not (np.isfinite(new_mean).all() and np.isfinite(new_spread).all()):
            break
        still = np.abs(new_mean - mean).max() <= _TOLERANCE * max(
            np.abs(new_mean).max(), np.sqrt(np.abs(new_spread).max())
        )
        if still and np.abs(new_spread - spread).max() <= _TOLERANCE * np.abs(new_spread).max():
            return new_mean, new_spread
        # If the iteration oscillates, damping it brings it closer to the fixed point.
        mean, spread = new_mean, new_spread if rounds < _PLAIN else 0.8 * spread + 0.2 * new_spread
    if isinstance(optimizer, SignSGD):
        return _by_running(model, optimizer)
    raise _unstable(optimizer)


def _of_mixed_signs(model: LinearGradient, optimizer: Signum | Lion) -> tuple[np.ndarray, np.ndarray]:
    """As `_of_algorithm`, by fixed-point iteration of the covariance of the pair (x, m)."""
    lr, theta, forget = float(optimizer.lr), float(optimizer.decay_rate), float(optimizer.memory)
    keep, fresh, (old, new) = 1 - lr * theta, 1 - forget, mixture(optimizer)
    curvature, dtype = np.asarray(model.curvature, np.float64), model.minimiser.dtype
    one = np.ones_like(curvature) if curvature.ndim == 1 else np.eye(len(curvature))
    mean = np.asarray(model.minimiser, np.float64)
    none = jnp.zeros_like(model.curvature)
    at_start = fresh / (1 + forget) * np.asarray(model.noise_covariance(model.minimiser, none, none), np.float64)
    blocks = [[lr**2 * one, 0 * one], [0 * one, at_start]]
    for rounds in range(_ROUNDS):
        parts = [jnp.asarray(a, dtype) for a in (mean, blocks[0][0], blocks[0][1], blocks[1][1])]
        sign, slope, residual, cross, noise = (np.asarray(a, np.float64) for a in _mixed(model, (old, new), *parts))
        pull = rows(slope, curvature)
        mean = mean - _solve(pull, theta, sign + theta * mean)
        factor = [[keep * one - lr * new * pull, -lr * old * rows(slope, one)], [fresh * curvature, forget * one]]
        drive = [[lr**2 * residual, -lr * fresh * cross], [-lr * fresh * cross.T, fresh**2 * noise]]
        try:
            found = _discrete_blocks(factor, drive, optimizer)
        except (_UnstableError, np.linalg.LinAlgError):
            break
        change = float(np.abs(found[0][0] - blocks[0][0]).max())
        share = 1.0 if rounds < _PLAIN else 0.2
        blocks = [[a + share * (b - a) for a, b in zip(*pair, strict=True)] for pair in zip(blocks, found, strict=True)]
        if change <= _TOLERANCE * np.abs(found[0][0]).max():
            return mean, found[0][0]
    return _by_running(model, optimizer)


@program()
def _mixed(
    model: LinearGradient, weights: tuple[Any, Any], mean: Any, xx: Any, xm: Any, mm: Any
) -> tuple[Any, Any, Any, Any, Any]:
    """E s, its slope, Cov s minus what A explains, Cov(s, Z) and E Σ, for s = sign(A + bZ) with A = am + b∇f."""
    old, new = weights
    product = times(model.curvature, xx)
    noise = model.noise_covariance(mean, xx, product)
    through = times(model.curvature, xm)
    argument = old**2 * mm + old * new * (through + transpose(through)) + new**2 * model.gradient_covariance(product)
    signs, fresh = model.mixed_signs(mean, model.gradient(mean), argument, new, noise)
    return signs.mean, signs.slope, signs.covariance - congruent(signs.slope, argument), fresh, noise


@program()
def _signs(model: LinearGradient, mean: Any, spread: Any) -> SignMoments:
    return model.signs(mean, spread)


@program(static_argnums=3)
def _run(model: LinearGradient, optimizer: DecayedOptimizer, y: Moments, steps: int) -> Moments:
    return jax.lax.fori_loop(0, steps, lambda k, y: advance(model, optimizer, y, k), y)


def _by_running(model: LinearGradient, optimizer: DecayedOptimizer) -> tuple[np.ndarray, np.ndarray]:
    """Fixed point of the closure of an optimizer that moves by signs: run the closure until it stops changing."""
    none = jnp.zeros_like(model.curvature)
    has_m = not isinstance(optimizer, SignSGD)
    y = Moments(model.minimiser, none, *((jnp.zeros_like(model.minimiser), none, none) if has_m else ()))
    for _ in range(_BLOCKS):
        new = _run(model, optimizer, y, _BLOCK)
        spread, before = (np.asarray(a.xx, np.float64) for a in (new, y))
        if not np.isfinite(spread).all():
            break
        if np.abs(spread - before).max() <= 1e-3 * np.abs(spread).max():
            return np.asarray(new.x, np.float64), spread
        y = new
    raise _unstable(optimizer)


def _linear_rest(
    model: LinearGradient, optimizer: Any, mean: np.ndarray, spread: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Stationary mean and covariance of all other optimizers, with E Σ and E v taken at a mean and covariance."""
    dtype = model.minimiser.dtype
    mu, s = jnp.asarray(mean, dtype), jnp.asarray(spread, dtype)
    use_law = isinstance(optimizer, RMSpropW | AdamW) and law_is_needed(model.noise, optimizer.b2, mu)
    found = jax.tree.map(lambda a: np.asarray(a, np.float64), _linear(model, optimizer, mu, s, use_law))
    curvature, at = np.asarray(model.curvature, np.float64), np.asarray(model.minimiser, np.float64)
    lr, theta = float(optimizer.lr), float(optimizer.decay_rate)
    rate, bend, grad, noise, root, squares = found
    forces, p = rows(rate, curvature), lr * rate
    centre = _solve(forces, theta, forces @ at if forces.ndim == 2 else forces * at)
    if np.abs(bend * np.sqrt(diagonal(noise))).max() <= _TOLERANCE:  # x does not follow v
        squares = None
    linear = Linearised(curvature, optimizer, 1 - lr * theta, p, p * bend, grad, noise, root, squares)
    unit = np.ones(len(at)) if curvature.ndim == 1 else np.eye(len(at))
    columns = [linear.moved({i: unit if i == j else 0 * unit for i in linear.parts}) for j in linear.parts]
    factor = [[column[i] for column in columns] for i in linear.parts]
    drive = [[linear.drive(i, j) for j in linear.parts] for i in linear.parts]
    return centre, _discrete_blocks(factor, drive, optimizer)[0][0]


@program(static_argnums=4)
def _linear(model: LinearGradient, optimizer: Any, mean: Any, covariance: Any, use_law: bool) -> tuple[Any, ...]:
    """What `Linearised` needs: p/η, c/p, u, Cov Z, the factor of Z and the moments of the noise of g²."""
    product, grad = times(model.curvature, covariance), model.gradient(mean)
    noise, one = model.noise_covariance(mean, covariance, product), jnp.ones_like(mean)
    if not isinstance(optimizer, RMSpropW | AdamW):
        return one, 0 * one, grad, noise, one, None
    variance = model.gradient_variance(product)
    moments = model.square_moments(mean, grad, variance, diagonal(noise))
    total = variance + diagonal(noise)
    square = grad**2 + total
    share, b1 = share_of_root(square, optimizer.eps), getattr(optimizer, "b1", 0.0)
    law = model.noise.quadrature(mean) if use_law else None
    mean_factor, noise_factor = at_rest(law, b1, optimizer.b2, (grad, variance), moments, total, share)
    rate, root = mean_factor / (jnp.sqrt(square) + optimizer.eps), jnp.sqrt(noise_factor) / mean_factor
    return rate, 0.5 * share * grad / square, grad, noise, root, squares_of(grad, variance, noise, moments)


def _sign_rest(
    model: LinearGradient, optimizer: SignSGD, mean: np.ndarray, spread: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Stationary mean (one Newton step) and covariance of SignSGD, with moments of sign(g) at a mean and covariance."""
    dtype = model.minimiser.dtype
    moments = _signs(model, jnp.asarray(mean, dtype), jnp.asarray(spread, dtype))
    sign, jacobian, covariance = (np.asarray(a, np.float64) for a in moments)
    lr, theta = float(optimizer.lr), float(optimizer.decay_rate)
    keep = 1 - lr * theta
    centre = mean - _solve(jacobian, theta, sign + theta * mean)
    if jacobian.ndim == 1:
        return centre, lr**2 * covariance / (1 - keep**2 + 2 * keep * lr * jacobian)
    factor = keep * np.eye(len(mean)) - lr * jacobian
    rest = covariance - jacobian @ spread @ jacobian.T
    return centre, _discrete(factor, lr**2 * rest, optimizer)


def _fixed_point(
    function: Callable[[np.ndarray], np.ndarray], start: np.ndarray, optimizer: DecayedOptimizer
) -> np.ndarray:
    value = start
    for _ in range(_ROUNDS):
        new = function(value)
        if not np.isfinite(new).all():
            break
        if np.abs(new - value).max() <= _TOLERANCE * np.abs(new).max():
            return new
        value = new
    raise _unstable(optimizer)


def _continuous(pull: np.ndarray, theta: float, drive: np.ndarray) -> np.ndarray:
    """S with (B + θ)S + S(B + θ)ᵀ = drive."""
    if pull.ndim == 1:
        return drive / (2 * (pull + theta))
    total = pull + theta * np.eye(len(pull))
    return _even(solve_continuous_lyapunov(total, drive))


def _discrete_blocks(
    factor: list[list[np.ndarray]], drive: list[list[np.ndarray]], optimizer: DecayedOptimizer
) -> list[list[np.ndarray]]:
    """S with S = A S Aᵀ + Q in blocks, each the diagonal of a matrix, shape (d,), or a matrix (d, d)."""
    count = len(factor)
    if factor[0][0].ndim == 2:
        dim, found = len(factor[0][0]), _discrete(np.block(factor), np.block(drive), optimizer)
        return [[found[i * dim : (i + 1) * dim, j * dim : (j + 1) * dim] for j in range(count)] for i in range(count)]
    # One small system for each coordinate: vec S = (1 − A ⊗ A)⁻¹ vec Q.
    a, q = (np.moveaxis(np.array(v), -1, 0) for v in (factor, drive))
    if np.abs(np.linalg.eigvals(a)).max() >= 1:
        raise _unstable(optimizer)
    twice = np.einsum("dij,dkl->dikjl", a, a).reshape(len(a), count**2, count**2)
    solved = np.linalg.solve(np.eye(count**2) - twice, q.reshape(len(a), count**2, 1)).reshape(len(a), count, count)
    return [[solved[:, i, j] for j in range(count)] for i in range(count)]


def _discrete(factor: np.ndarray, drive: np.ndarray, optimizer: DecayedOptimizer) -> np.ndarray:
    """S with S = A S Aᵀ + Q."""
    if np.abs(np.linalg.eigvals(factor)).max() >= 1:
        raise _unstable(optimizer)
    return _even(solve_discrete_lyapunov(factor, drive))


class _UnstableError(ValueError):
    """The recursion with the given coefficients has no stationary law."""


def _unstable(optimizer: DecayedOptimizer) -> _UnstableError:
    return _UnstableError(
        f"optimizer: at lr = {optimizer.lr:g} {optimizer.name} has no stationary distribution, because its steps are "
        "unstable; "
        "give a smaller lr."
    )


def _solve(pull: np.ndarray, theta: float, right: np.ndarray) -> np.ndarray:
    """(B + θ)⁻¹ right."""
    if pull.ndim == 1:
        return right / (pull + theta)
    return np.linalg.solve(pull + theta * np.eye(len(pull)), right)


def _even(matrix: np.ndarray) -> np.ndarray:
    return matrix if matrix.ndim == 1 else 0.5 * (matrix + matrix.T)
