"""All theoretical results for one case together, also combined with a simulation."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sdelens.noise import AbstractNoise
from sdelens.optimizers import Optimizer, SignSGD
from sdelens.problems import AbstractProblem
from sdelens.results.printable import Parts, Plotted, Remarks, Table
from sdelens.results.result import Result
from sdelens.theory._bounds import LossBound, loss_bound
from sdelens.theory._phases import Phases, phases
from sdelens.theory._predict import predict
from sdelens.theory._stationary import Stationary, stationary
from sdelens.theory._supported import OF_THE_PAPER

if TYPE_CHECKING:
    from sdelens.results.figures import Sheet

__all__ = ["Overview", "add_theory", "overview"]

_SHOWN_TIMES = 7


@dataclass(frozen=True, repr=False)
class Overview(Plotted):
    """The theoretical results for one case.

    Attributes:
        prediction: the loss curve, with the bound if there is one.
        stationary: the stationary law, None if there is none.
        bound: bound of the mean loss, None if none is known for the optimizer or the start is not the problem's start.
        phases: phases of SignSGD, along the predicted mean if d ≤ 64 and at the start otherwise; None for other
            optimizers.
        remarks: which results are not available, and why.
    """

    prediction: Result
    stationary: Stationary | None
    bound: LossBound | None
    phases: Phases | None
    remarks: list[str] = field(default_factory=list)

    def _parts(self) -> Parts:
        """The loss at several times and in the stationary state, its bound, and the phases."""
        data = self.prediction.dataset.isel(model=0)
        chosen = np.unique(np.linspace(0, data.sizes["step"] - 1, _SHOWN_TIMES).round().astype(int))
        rows = []
        for i in chosen:
            here = data.isel(step=i)
            bound = np.inf if self.bound is None else float(self.bound.loss[i])
            cells = [float(here.time), float(here.loss_mean), float(here.loss_std)]
            rows.append(
                [str(int(here.step)), *(f"{v:.5g}" for v in cells), f"{bound:.5g}" if np.isfinite(bound) else "-"]
            )
        head = ["step", "time", "mean loss", "sd over paths", "bound"]
        parts: list[str | Table | Remarks] = [self.prediction.title(), Table(head, rows)]
        if self.stationary is not None:
            rest = self.stationary
            parts.append(f"Stationary state: expected loss {rest.loss:.5g}, {rest.excess:.5g} above the infimum.")
        for more in (self.bound, self.phases):
            parts += [] if more is None else more._parts()
        return [*parts, *self.remarks]

    def _draw(self, sheet: "Sheet") -> None:
        """The predicted loss with its bound."""
        self.prediction._draw(sheet)


def overview(
    problem: AbstractProblem,
    noise: AbstractNoise,
    optimizer: Optimizer,
    *,
    steps: int,
    record_every: int = 1,
    start: Any = None,
) -> Overview:
    """Compute the prediction, stationary law, bound and phases of one case in one call.

    Args:
        problem: `Quadratic` or `LinearRegression`.
        noise: law of the gradient noise.
        optimizer: specification.
        steps: optimizer steps.
        record_every: steps between records.
        start: as in `predict`; the bound is only available for the problem's start (None).

    Returns:
        An `Overview`; print it.

    Raises:
        ValueError, TypeError: as `predict`.
    """
    prediction = predict(problem, noise, optimizer, steps=steps, record_every=record_every, start=start)
    remarks: list[str] = []
    rest = _or_remark(lambda: stationary(problem, noise, optimizer), "stationary law", remarks)
    bound = None
    if start is None:
        bound = _bound_or_remark(prediction, problem, noise, optimizer, remarks)
        prediction = prediction if bound is None else _with_bound(prediction, bound)
    else:
        remarks.append("No bound: a bound assumes the start of the problem; create the problem with this start.")
    known = None
    if isinstance(optimizer, SignSGD):
        known = phases(problem, noise, along=prediction if "x_mean" in prediction.dataset else None)
    return Overview(prediction, rest, bound, known, remarks)


def add_theory(
    result: Result, problem: AbstractProblem, noise: AbstractNoise, optimizer: Optimizer
) -> tuple[Result, list[str]]:
    """Add the predicted loss and its bound to a simulation, if they exist.

    Args:
        result: a result of `compare` or `simulate`, from the problem's start.
        problem: the problem of the simulation.
        noise: the noise of the simulation.
        optimizer: the optimizer of the simulation.

    Returns:
        The result with a further model and a bound, and remarks on what does not exist and why.

    Raises:
        ValueError: if the result belongs to another case.
    """
    run, remarks = result.info["run"], list[str]()

    def predicted() -> Result:
        return predict(problem, noise, optimizer, steps=run["steps"], record_every=run["record_every"])

    prediction = _or_remark(predicted, "prediction", remarks)
    if prediction is not None:
        result = result.merge(prediction)
    bound = _bound_or_remark(result, problem, noise, optimizer, remarks)
    if bound is None:
        return result, remarks
    if bound.reason:
        remarks.append(
            f"Bound, not at every time: {bound.reason}."
            if np.isfinite(bound.asymptote)
            else f"No bound: {bound.reason}."
        )
    return _with_bound(result, bound), remarks


def _bound_or_remark(
    result: Result, problem: AbstractProblem, noise: AbstractNoise, optimizer: Optimizer, remarks: list[str]
) -> LossBound | None:
    """The bound at the times of a result, or a remark if none is known for the optimizer."""
    if not isinstance(optimizer, OF_THE_PAPER):
        names = ", ".join(kind.__name__ for kind in OF_THE_PAPER)
        remarks.append(f"No bound: bounds are known for {names}.")
        return None
    return loss_bound(problem, noise, optimizer, result.dataset.time.values)


def _with_bound(result: Result, bound: LossBound) -> Result:
    """The result with the bound at its times or, if only a bound for t → ∞ exists, with that bound."""
    if np.isfinite(bound.loss).any():
        return result.with_bound("bound", bound.loss)
    if np.isfinite(bound.asymptote):
        return result.with_bound("bound for t → ∞", np.full(bound.loss.shape, bound.asymptote))
    return result


def _or_remark(function: Callable[[], Any], what: str, remarks: list[str]) -> Any:
    try:
        return function()
    except (ValueError, TypeError) as error:
        remarks.append(f"No {what}: {error}")
        return None
