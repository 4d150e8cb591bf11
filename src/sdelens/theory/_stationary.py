r"""Stationary laws of optimizers on quadratics: the stationary mean and covariance."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import multivariate_normal

from sdelens.cases.case import Case
from sdelens.core import check
from sdelens.core.compilation import program
from sdelens.core.names import FORMS
from sdelens.noise import AbstractNoise
from sdelens.optimizers import (
    DecayedOptimizer,
    Lion,
    Optimizer,
    SignSGD,
    Signum,
)
from sdelens.problems import AbstractProblem
from sdelens.results.printable import Parts, Plotted, Table
from sdelens.theory._closure import Moments, advance
from sdelens.theory._linear import linear_gradient
from sdelens.theory._moments import MAX_DENSE, LinearGradient
from sdelens.theory._predict import require_variance
from sdelens.theory._rest import options_of, rest_of_algorithm, rest_of_paper
from sdelens.theory._supported import OF_THE_PAPER, check_known

if TYPE_CHECKING:
    from sdelens.results.figures import Sheet

__all__ = ["Stationary", "stationary"]

_BLOCK = 500
_BLOCKS = 40


@dataclass(frozen=True, repr=False)
class Stationary(Plotted):
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
        return self.spread if self.spread.ndim == 1 else self.spread.diagonal()

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

    def _parts(self) -> Parts:
        """Mean and standard deviation of the first coordinates, and the loss."""
        shown = min(len(self.mean), 12)
        rows = [[str(i), f"{self.mean[i]:.5g}", f"{np.sqrt(self.variance[i]):.5g}"] for i in range(shown)]
        more = [f"… {len(self.mean) - shown} more coordinates."] if shown < len(self.mean) else []
        said = f"Expected loss {self.loss:.6g}, {self.excess:.6g} above its infimum."
        return [self.title, Table(["coordinate", "mean", "standard deviation"], rows), *more, said]

    def _draw(self, sheet: "Sheet") -> None:
        """The law of the first two coordinates, or mean and standard deviation of all."""
        from sdelens.theory._figures import plot_law

        plot_law(sheet, self.mean, self.spread, self.title)


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

    Inside `jax.grad`, `jax.jit` and `jax.vmap` the numbers of problem, noise and optimizer may be traced; mean,
    variance and loss are then JAX arrays. Derivatives follow from the equation of the fixed point (implicit function
    theorem). The dtype is that of the problem's start, while numbers are otherwise computed in float64. Nothing can be
    raised there: if there is no stationary law, or it is not found, the loss is infinite and the moments are NaN.

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
    described = f"{type(optimizer).__name__} in the stationary state ({form}), d = {problem.dim}"
    if check.any_traced(model, optimizer):
        if form == "paper":
            found = rest_of_paper(model, optimizer)
        else:
            found = rest_of_algorithm(model, optimizer, *options_of(model, optimizer))
        traced = jnp.where(found[2], model.loss(*found[:2])[0], jnp.inf)
        return Stationary(*found[:2], traced, traced - model.infimum, form, described)  # type: ignore[arg-type]
    _require_restoring(model, optimizer)
    mean, spread = _at_rest(model, optimizer, form)
    loss = float(model.loss(jnp.asarray(mean), jnp.asarray(spread))[0])
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


_of_algorithm = program(static_argnums=(2, 3))(rest_of_algorithm)
_of_paper = program()(rest_of_paper)


def _at_rest(model: LinearGradient, optimizer: DecayedOptimizer, form: str) -> tuple[np.ndarray, np.ndarray]:
    """Stationary mean and covariance as numbers, computed in float64."""
    with jax.enable_x64(True):
        precise = jax.tree.map(_in_float64, (model, optimizer))
        found = _of_paper(*precise) if form == "paper" else _of_algorithm(*precise, *options_of(model, optimizer))
        mean, spread, exists = (np.asarray(a) for a in found)
    if exists:
        return mean, spread
    if isinstance(optimizer, SignSGD | Signum | Lion) and form == "algorithm":
        return _by_running(model, optimizer)
    raise _unstable(optimizer)


def _in_float64(leaf: Any) -> Any:
    floating = isinstance(leaf, np.ndarray | jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)
    return np.asarray(leaf, np.float64) if floating else leaf


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


def _unstable(optimizer: DecayedOptimizer) -> ValueError:
    return ValueError(
        f"optimizer: at lr = {optimizer.lr:g} {optimizer.name} has no stationary distribution, because its steps are "
        "unstable; "
        "give a smaller lr."
    )
