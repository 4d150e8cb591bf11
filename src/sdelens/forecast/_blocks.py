"""Blocks of steps over which the law of a run is advanced at once, so that its cost hardly depends on the length."""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Blocks", "blocks_of", "edges_of", "padded"]

_GROWTH: Final = 1.15
"""Ratio of the ends of two neighbouring blocks early in a run."""
_EVEN: Final = 48
"""Blocks of equal length, and of equal variation of the learning rate, into which a run is divided besides."""
_JUMP: Final = 0.02
"""Change of the learning rate from one step to the next, as a fraction of its peak, at which a block ends."""
_JUMPS: Final = 64
"""Most jumps at which blocks end."""
_MULTIPLE: Final = 128
"""Numbers of blocks are rounded up to a multiple of this, so that few programs are compiled."""


class Blocks(NamedTuple):
    """Blocks of steps, all arrays of shape (b,) or (runs, b).

    Attributes:
        steps: number of steps n of each block.
        rate: mean learning rate over the block.
        square: mean squared learning rate over the block.
    """

    steps: Any
    rate: Any
    square: Any


def edges_of(rates: NDArray[np.float64], at: ArrayLike = ()) -> NDArray[np.int64]:
    """Ends of the blocks of a run, increasing from 0 to the number of steps, with all steps in `at` among them.

    Blocks grow by at most 15 % (early), are at most 1/48 of the run, and contain at most 1/48 of the total variation of
    the learning rate, so that a short decay is resolved; a block ends where the learning rate jumps.

    Args:
        rates: learning rate of every step, shape (steps,).
        at: steps after which the loss is wanted, each from 0 to the number of steps.
    """
    total = len(rates)
    early = np.floor(_GROWTH ** np.arange(int(np.log(max(total, 2)) / np.log(_GROWTH)) + 1))
    even = np.linspace(0, total, _EVEN + 1).round()
    change = np.abs(np.diff(rates))
    jumps = np.flatnonzero(change > _JUMP * max(float(rates.max()), np.finfo(float).tiny)) + 1
    if len(jumps) > _JUMPS:
        jumps = np.sort(jumps[np.argsort(-change[jumps - 1], kind="stable")[:_JUMPS]])
    variation = np.append(0.0, np.cumsum(change))
    varied = np.searchsorted(variation, np.linspace(0, variation[-1], _EVEN + 1)[1:-1])
    found = np.concatenate([[0, total], early, even, jumps, varied, np.asarray(at, float).round()])
    return np.unique(found[(found >= 0) & (found <= total)]).astype(np.int64)


def blocks_of(rates: NDArray[np.float64], edges: NDArray[np.int64]) -> Blocks:
    """The blocks between `edges` of a run with these learning rates."""
    counts = np.diff(edges).astype(float)
    sums, squares = (np.diff(np.append(0, np.cumsum(power))[edges]) for power in (rates, rates**2))
    return Blocks(counts, sums / counts, squares / counts)


def padded(parts: list[Blocks]) -> Blocks:
    """The blocks of several runs, stacked; the shorter ones are continued by blocks without steps."""
    most = max(len(part.steps) for part in parts)
    most = -(-most // _MULTIPLE) * _MULTIPLE
    return Blocks(*(np.stack([np.pad(a, (0, most - len(a))) for a in column]) for column in zip(*parts, strict=True)))
