r"""The final loss as a function of a piecewise linear schedule, with its gradient, and its minimum.

After a linear warm-up, the multiplier h of the peak learning rate is linear between knots that lie closer together
towards the end, h₀ = 1 ≥ h₁ ≥ … ≥ 0. Mean and mean square of the learning rate over a block of steps within a piece,
which the law of the run takes, are exact functions of the knots; the final loss is minimised over the decrements
hⱼ − hⱼ₊₁ ≥ 0 by sequential quadratic programming.
"""

from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sdelens.core.compilation import program
from sdelens.forecast._blocks import Blocks, edges_of
from sdelens.forecast._dynamics import Kind, LogNumbers, Setting, losses
from sdelens.forecast._trials import Fitted, Trial
from sdelens.optimizers import DecayedOptimizer

__all__ = ["FinalLoss"]

_MULTIPLE: Final = 192
"""Numbers of blocks are rounded up to a multiple of this, so that few programs are compiled."""


class _Pieces(NamedTuple):
    """Blocks as linear functions of the multipliers at the knots.

    Attributes:
        counts: steps of each block, shape (b,).
        mean: mean multiplier of a block per multiplier at a knot, shape (b, knots).
        slope: its increase per step, likewise.
    """

    counts: Any
    mean: Any
    slope: Any


def _pieces(knots: NDArray[np.int64], warmup: int, steps: int) -> _Pieces:
    edges = edges_of(np.ones(steps), np.append(knots, warmup))
    first, last = edges[:-1], edges[1:]
    rows = -(-len(first) // _MULTIPLE) * _MULTIPLE
    mean, slope = np.zeros((rows, len(knots))), np.zeros((rows, len(knots)))
    for i, (a, b) in enumerate(zip(first, last, strict=True)):
        middle = (a + b - 1) / 2
        if b <= warmup:
            mean[i, 0], slope[i, 0] = (middle + 1) / warmup, 1 / warmup
            continue
        j = int(np.searchsorted(knots, a, side="right")) - 1
        width = knots[j + 1] - knots[j]
        share = (middle - knots[j]) / width
        mean[i, j : j + 2] = 1 - share, share
        slope[i, j : j + 2] = -1 / width, 1 / width
    return _Pieces(np.pad((last - first).astype(float), (0, rows - len(first))), mean, slope)


@program(static_argnames="kind")
def _final(
    kind: Kind, numbers: LogNumbers, setting: Setting, pieces: _Pieces, lr: Any, independent: Any, unknown: Any
) -> tuple[Any, tuple[Any, Any]]:
    """Final loss, and its derivatives by the multipliers and by the log of the peak.

    `independent` is 1 where the decay of the weights per step does not depend on the learning rate, else 0.
    """

    def function(heights: Any, log_peak: Any) -> Any:
        peak = lr * jnp.exp(log_peak)
        rate, slope = pieces.mean @ heights * peak, pieces.slope @ heights * peak
        square = rate**2 + slope**2 * jnp.maximum(pieces.counts**2 - 1, 0) / 12
        here = setting._replace(decay=setting.decay * jnp.exp(-independent * log_peak))
        return losses(kind, numbers, here, Blocks(pieces.counts, rate, square))[-1]

    return jax.value_and_grad(function, argnums=(0, 1))(*unknown)


class FinalLoss:
    """The final loss as a function of x: decrements of the multiplier at knots 1, 2, …, and the log of the peak."""

    def __init__(
        self,
        fitted: Fitted,
        optimizer: DecayedOptimizer,
        trial: Trial,
        knots: NDArray[np.int64],
        warmup: int,
        steps: int,
    ) -> None:
        self.numbers = LogNumbers(*(None if v is None else np.float64(v) for v in fitted.numbers.logs))
        self.kind, self.setting = trial.kind, Setting(*(np.float64(v) for v in trial.setting))
        self.pieces, self.lr = _pieces(knots, warmup, steps), np.float64(optimizer.lr)
        self.independent = np.float64(optimizer.decay == "independent")
        self.base, self.scale = 0.0, 1.0

    def heights(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.append(1.0, 1 - np.cumsum(x[:-1]))

    def __call__(self, x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Loss and gradient, in units of the differences that matter."""
        unknown = np.maximum(self.heights(x), 0.0), np.float64(x[-1])
        value, (by_height, by_peak) = _final(
            self.kind, self.numbers, self.setting, self.pieces, self.lr, self.independent, unknown
        )
        slope = -np.cumsum(np.asarray(by_height)[:0:-1])[::-1]
        return (float(value) - self.base) / self.scale, np.append(slope, float(by_peak)) / self.scale

    def solve(self, start: NDArray[np.float64], bounds: list[tuple[float, float]]) -> Any:
        from scipy.optimize import minimize

        search: Any = minimize
        total = {
            "type": "ineq",
            "fun": lambda x: 1 - x[:-1].sum(),
            "jac": lambda x: np.append(-np.ones(len(x) - 1), 0.0),
        }
        options = {"maxiter": 300, "ftol": 1e-9}
        return search(self, start, jac=True, bounds=bounds, constraints=[total], method="SLSQP", options=options)
