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
from sdelens.optimizers import SGD, AdamW, DecayedOptimizer, Optimizer, RMSpropW, SignSGD
from sdelens.problems import AbstractProblem
from sdelens.theory._closure import Moments, advance, fluctuation, share_of_root
from sdelens.theory._linear import MAX_DENSE, linear_gradient
from sdelens.theory._moments import LinearGradient, SignMoments, congruent, diagonal, rows
from sdelens.theory._predict import require_variance
from sdelens.theory._supported import check_known

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
      RMSpropW and AdamW with P² = E g² (noise and gradient), the full momentum and the effect of the fluctuation of v.

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
        TypeError: if the gradient is not linear.
        ValueError: if there is no stationary law: no curvature and no decay along some direction, a learning rate for
            which the optimizer is not stable, noise without a variance, or a schedule.

    Source: arXiv 2411.15958; the algorithm's form is derived here.

    Examples:
        >>> import sdelens as sl
        >>> sl.theory.stationary(sl.Quadratic([2.0]), sl.GaussianNoise(1.0), sl.SGD(0.1)).variance.round(6)
        array([0.027778])
    """
    optimizer = check_known(problem, noise, optimizer)
    check.choice("form", form, FORMS)
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
    step: Any = _sign_rest if isinstance(optimizer, SignSGD) else _linear_rest
    dim, shape = len(model.minimiser), model.curvature.shape
    # Steps of adaptive optimizers have size η. The restoring force and 1/√E g² decrease as the spread grows, so with a
    # spread that is too small the recursion may look unstable.
    size = 0.0 if isinstance(optimizer, SGD) else float(optimizer.lr) ** 2
    mean = np.asarray(model.minimiser, np.float64)
    spread = size * (np.ones(dim) if len(shape) == 1 else np.eye(dim))
    wider = 0
    for rounds in range(_ROUNDS):
        try:
            new_mean, new_spread = step(model, optimizer, mean, spread)
        except _UnstableError:
            if isinstance(optimizer, SGD) or wider == _WIDER:
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


@program()
def _signs(model: LinearGradient, mean: Any, spread: Any) -> SignMoments:
    return model.signs(mean, spread)


@program(static_argnums=3)
def _run(model: LinearGradient, optimizer: SignSGD, y: Moments, steps: int) -> Moments:
    return jax.lax.fori_loop(0, steps, lambda k, y: advance(model, optimizer, y, k), y)


def _by_running(model: LinearGradient, optimizer: SignSGD) -> tuple[np.ndarray, np.ndarray]:
    """Fixed point of the closure if the iteration oscillates about it: run the closure until it stops changing."""
    y = Moments(model.minimiser, jnp.zeros_like(model.curvature))
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
    """Stationary mean and covariance of SGD, RMSpropW or AdamW, with E Σ and E v taken at a mean and covariance."""
    dtype = model.minimiser.dtype
    mu, s = jnp.asarray(mean, dtype), jnp.asarray(spread, dtype)
    product = times(model.curvature, s)
    noise = model.noise_covariance(mu, s, product)
    curvature, at = np.asarray(model.curvature, np.float64), np.asarray(model.minimiser, np.float64)
    lr, theta = float(optimizer.lr), float(optimizer.decay_rate)
    scale, share = np.ones(len(at)), np.ones(len(at))
    if isinstance(optimizer, RMSpropW | AdamW):
        square, factor, share = _second_moment(model, optimizer, mu, s)
        scale = (np.sqrt(square) + float(optimizer.eps)) / factor
    pull = rows(1 / scale, curvature)
    drive = congruent(share / scale, np.asarray(noise, np.float64))
    centre = _solve(pull, theta, pull @ at if pull.ndim == 2 else pull * at)
    b1 = float(getattr(optimizer, "b1", 0.0))
    return centre, _discrete_pair(pull, lr, theta, b1, drive, optimizer)


def _second_moment(
    model: LinearGradient, optimizer: Any, mean: Any, covariance: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stationary E v, the factor F of the mean of m/√v, and √N/F for its noise; see `fluctuation`."""
    b1, b2 = float(getattr(optimizer, "b1", 0.0)), float(optimizer.b2)
    product, grad = times(model.curvature, covariance), model.gradient(mean)
    own = diagonal(model.noise_covariance(mean, covariance, product))
    variance = model.gradient_variance(product)
    lean, fourth = model.square_moments(mean, grad, variance, own)
    weight, v = (1 - b1) * (1 - b2) / (1 - b1 * b2), grad**2 + variance + own
    fluctuating = (v, (1 - b2) / (1 + b2) * fourth, weight * lean, weight * fourth, variance + own)
    factor, noise = fluctuation(*fluctuating, share_of_root(v, optimizer.eps))
    found = [np.asarray(a, np.float64) for a in (v, factor, noise)]
    return found[0], found[1], np.sqrt(found[2]) / found[1]


def _discrete_pair(
    pull: np.ndarray, lr: float, theta: float, b1: float, drive: np.ndarray, optimizer: DecayedOptimizer
) -> np.ndarray:
    """Stationary Cov x of x ← (1 − ηθ)x − ηn, n ← β₁n + (1 − β₁)(Px + z), where Cov z is `drive` and n is P⁻¹m."""
    c, keep = 1 - b1, 1 - lr * theta
    if pull.ndim == 1:
        variance = drive * pair_at_rest(pull, lr, theta, b1)
        if not np.isfinite(variance).all():
            raise _unstable(optimizer)
        return variance
    dim = len(pull)
    one = np.eye(dim)
    if b1 == 0:
        factor, noise = keep * one - lr * pull, lr**2 * drive
    else:
        factor = np.block([[keep * one - lr * c * pull, -lr * b1 * one], [c * pull, b1 * one]])
        share = np.concatenate([-lr * c * one, c * one])
        noise = share @ drive @ share.T
    return _discrete(factor, noise, optimizer)[:dim, :dim]


def pair_at_rest(pull: np.ndarray, lr: float, theta: float, b1: float) -> np.ndarray:
    """Stationary Var x of the pair (x, n) of `_discrete_pair` for one coordinate with Var z = 1; infinite if unstable.

    It solves the 3 equations of the stationary covariance, with P = `pull` and k = P + θ:

    η(1 − β₁)(1 + β₁ − β₁ηθ)/{k(1 − β₁ + β₁ηθ)[2(1 + β₁) − ηP(1 − β₁) − ηθ(1 + β₁)]}, which is η/(k(2 − ηk)) at β₁ = 0.
    """
    c = 1 - b1
    top, bottom = 1 + b1 - b1 * lr * theta, 2 * (1 + b1) - lr * pull * c - lr * theta * (1 + b1)
    stable = (bottom > 0) & (top > 0)
    return np.where(
        stable, lr * c * top / ((pull + theta) * (c + b1 * lr * theta) * np.where(stable, bottom, 1)), np.inf
    )


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


def _discrete(factor: np.ndarray, drive: np.ndarray, optimizer: DecayedOptimizer) -> np.ndarray:
    """S with S = A S Aᵀ + drive."""
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
    return 0.5 * (matrix + matrix.T)
