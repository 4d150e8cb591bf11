"""The three phases of SignSGD, defined by the signal-to-noise ratio of each coordinate of the gradient."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import erfinv

from sdelens.core import check
from sdelens.core.compilation import quick
from sdelens.core.tree import Layout, flatten_parameters
from sdelens.noise import AbstractNoise, NoiseLaw
from sdelens.problems import AbstractProblem
from sdelens.results.printable import Parts, Plotted, Table
from sdelens.results.result import Result
from sdelens.theory._supported import check_law

if TYPE_CHECKING:
    from sdelens.results.figures import Sheet

__all__ = ["BOUNDARIES", "Phases", "phases", "signal"]

BOUNDARIES: Final = (1.5, 1.0)
"""A coordinate is in phase 1 if |Y| is above the first value, and in phase 3 if it is below the second."""


@dataclass(frozen=True, repr=False)
class Phases(Plotted):
    """Phases of every coordinate, at one point or along a trajectory of T points.

    Attributes:
        signal: |Y|, shape (d,) or (T, d).
        phase: 1, 2 or 3, with the same shape.
        shares: fractions of the coordinates in phases 1, 2 and 3, shape (3,) or (T, 3).
        gradient_shares: fractions of ‖∇f‖² in the phases, with the same shape; NaN where the gradient is 0.
        time: times of the trajectory, shape (T,); None for one point.
    """

    signal: np.ndarray
    phase: np.ndarray
    shares: np.ndarray
    gradient_shares: np.ndarray
    time: np.ndarray | None = None

    @property
    def left(self) -> np.ndarray:
        """Time at which each coordinate has left phase 1 (row 0) and phase 2 (row 1) for good, shape (2, d).

        It is the first recorded time from which on the coordinate is in a later phase: the first recorded time if it
        always is, and infinite if it is not in a later phase at the end.

        Raises:
            ValueError: for one point, which has no times.
        """
        if self.time is None:
            raise ValueError("left: there is one point only; give phases() a trajectory by along=.")
        out = np.empty((2, self.phase.shape[1]))
        for row, last in enumerate((1, 2)):
            inside = self.phase <= last
            after = inside.shape[0] - np.argmax(inside[::-1], axis=0)  # first record after the last inside
            after = np.where(inside.any(axis=0), after, 0)
            out[row] = np.append(self.time, np.inf)[after]
        return out

    def _parts(self) -> Parts:
        """The shares, at the start and the end of a trajectory, and the times when phases are left."""
        head = ["", "phase 1", "phase 2", "phase 3"]
        rows = []
        points = [("", 0)] if self.time is None else [(f", t = {self.time[i]:g}", i) for i in (0, -1)]
        for where, i in points:
            for label, shares in (("coordinates", self.shares), ("of ‖∇f‖²", self.gradient_shares)):
                rows.append([label + where, *(f"{100 * v:.1f} %" for v in np.atleast_2d(shares)[i])])
        where = f"{self.signal.shape[-1]} coordinates"
        where += "" if self.time is None else f", {len(self.time)} times from {self.time[0]:g} to {self.time[-1]:g}"
        parts: list[str | Table] = [f"Phases of SignSGD: {where}", Table(head, rows)]
        if self.time is not None:
            for number, left in zip((1, 2), self.left, strict=True):
                ends = f"{left.min():g} (first coordinate) to {left.max():g} (last)"
                parts.append(f"Phase {number} is left from t = {ends}.")
        return parts

    def _draw(self, sheet: "Sheet") -> None:
        """Shares of the coordinates in the phases along the trajectory."""
        from sdelens.theory._figures import plot_shares

        plot_shares(sheet, np.atleast_2d(self.shares), self.time)


def phases(subject: Any, noise: AbstractNoise, *, along: Any = None, time: Any = None) -> Phases:
    r"""Signal-to-noise ratio and phase of every coordinate.

    |Y| = |∂f|/(√2 σ). In phase 1, |Y| > 3/2, SignSGD moves almost as if there were no noise; phase 2 is in between; in
    phase 3, |Y| < 1, its drift is nearly linear in ∇f. For noise that is not normal, |Y| = erf⁻¹|E sign(g)|, which
    needs no variance and equals the definition above for normal noise; it is infinite if the noise never changes the
    sign.

    Args:
        subject: a problem, whose gradient at the start is used; or a gradient: an array of shape (d,), or of shape
            (T, d) along a trajectory, or a pytree.
        noise: law of the gradient noise.
        along: for a problem, positions along a trajectory, shape (T, d), or a `Result`, whose first model's mean
            trajectory is used.
        time: times of a trajectory that is passed as an array, shape (T,); by default 0, 1, ….

    Returns:
        `Phases`; print it for a table.

    Raises:
        TypeError, ValueError: naming what does not fit.

    Source: arXiv 2411.15958; the definition for other laws is ours.

    Examples:
        >>> import sdelens as sl
        >>> sl.theory.phases(sl.Quadratic([1.0, 4.0], start=[0.1, 1.0]), sl.GaussianNoise(1.0)).phase
        array([3, 1])
    """
    if not isinstance(noise, AbstractNoise):
        raise TypeError(f"noise: got {type(noise).__name__}; give sl.GaussianNoise(scale) or another law.")
    if isinstance(subject, AbstractProblem):
        x, time = _positions(subject, along, time)
        gradient = np.asarray(jax.jit(lambda x: subject.evaluate(x)[1])(jnp.asarray(x.T, subject.start.dtype))).T
        bound = noise.bind(subject)
    else:
        if along is not None:
            raise TypeError("along: belongs to a problem; give the gradients along the trajectory, shape (T, d).")
        gradient, holder = _gradients(subject)
        x, bound = np.broadcast_to(np.asarray(holder.start), gradient.shape), noise.bind(holder)
        time = _times(time, gradient)
    check_law(bound, jax.device_put(np.asarray(x[0])))
    value = np.abs(signal(bound, gradient.T, x.T).T)
    phase = np.where(value > BOUNDARIES[0], 1, np.where(value >= BOUNDARIES[1], 2, 3))
    within = phase[..., None] == np.arange(1, 4)
    square = gradient.astype(np.float64) ** 2
    total = square.sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        weighted = (square[..., None] * within).sum(axis=-2) / total
    return Phases(value, phase, within.mean(axis=-2), weighted, time)


def signal(noise: NoiseLaw, gradient: Any, x: Any) -> np.ndarray:
    """Y for noise bound to a problem, at gradients and positions of shape (d,) or (d, T)."""
    dtype = jnp.result_type(float)
    gradient, x = (np.asarray(a).astype(dtype) for a in (gradient, x))
    if noise.normal:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = gradient / np.sqrt(2 * np.asarray(_variance(noise, x), np.float64))
        return np.where(gradient == 0, 0.0, ratio)  # 0 also where there is no noise either
    return np.asarray(erfinv(np.clip(np.asarray(_mean_sign(noise, gradient, x), np.float64), -1, 1)))


@quick
def _variance(noise: NoiseLaw, x: Array) -> Array:
    return noise.variance(x)


@quick
def _mean_sign(noise: NoiseLaw, gradient: Array, x: Array) -> Array:
    return jnp.broadcast_to(noise.mean_sign(gradient, x), gradient.shape)


class Gradient(AbstractProblem):
    """A problem that has coordinates but no loss, to which noise can be bound."""

    start: Array
    _layout: Layout

    @property
    def layout(self) -> Layout:
        return self._layout

    def loss(self, x: Array) -> Array:
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        return {"name": "gradient"}


def _gradients(subject: Any) -> tuple[np.ndarray, Gradient]:
    """Gradients of shape (d,) or (T, d), and a problem with their coordinates."""
    subject = subject.values if hasattr(subject, "dims") else subject  # an xarray object
    if subject is None or isinstance(subject, str | Result) or np.isscalar(subject):
        raise TypeError(
            f"subject: got {type(subject).__name__}; give a problem, a gradient of shape (d,) or (T, d), or a pytree "
            "of gradients."
        )
    if (
        isinstance(subject, np.ndarray | jax.Array | list | tuple)
        and np.ndim(subject) > 0
        and not hasattr(subject, "_fields")
    ):
        array = np.asarray(check.finite_array("gradient", subject, (1, 2)))
        flat, layout = flatten_parameters(array if array.ndim == 1 else array[0], "gradient")
        return array, Gradient(flat, layout)
    flat, layout = flatten_parameters(subject, "gradient")
    return np.asarray(flat), Gradient(flat, layout)


def _times(time: Any, gradient: np.ndarray) -> np.ndarray | None:
    if gradient.ndim == 1:
        if time is not None:
            raise ValueError("time: there is one point only; give gradients of shape (T, d).")
        return None
    if time is None:
        return np.arange(len(gradient), dtype=float)
    array = np.asarray(check.finite_array("time", time, (1,)), np.float64)
    if (np.diff(array) <= 0).any():
        raise ValueError("time: does not increase; give the points in the order of time.")
    if array.shape != gradient.shape[:1]:
        raise ValueError(f"time: got {array.size} times for {len(gradient)} points; give one each.")
    return array


def _positions(problem: AbstractProblem, along: Any, time: Any) -> tuple[np.ndarray, np.ndarray | None]:
    if along is None:
        if time is not None:
            raise ValueError("time: belongs to a trajectory; give its positions by along=.")
        return np.asarray(problem.start), None
    if isinstance(along, Result):
        if time is not None:
            raise ValueError("time: is that of the result; leave it out.")
        if "x_mean" not in along.dataset:
            raise ValueError(f"along: the result holds no mean positions, since d = {problem.dim} > 64; give an array.")
        along, time = along.dataset.x_mean.values[0], along.dataset.time.values
    array = np.asarray(check.finite_array("along", along, (2,)))
    if array.shape[1] != problem.dim:
        raise ValueError(
            f"along: got shape {array.shape}; the problem has {problem.dim} coordinates, so give (T, {problem.dim})."
        )
    return array, _times(time, array)


def boundary_slope() -> tuple[float, float]:
    """Slope m and intercept q⁻ of the secant of erf between 1 and 3/2."""
    slope = 2 * (math.erf(BOUNDARIES[0]) - math.erf(BOUNDARIES[1]))
    return slope, math.erf(BOUNDARIES[1]) - slope
