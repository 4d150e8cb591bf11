r"""The ensembles' task, which every contender writes in its own words.

On f(x) = ½ Σ λᵢ xᵢ², λ from 1 to 5, with normal gradient noise of variance σ² and decoupled weight decay θ:

RMSpropW:  V ← β₂V + (1 − β₂)(g² + σ²),  X ← X − η g/(√V + ε) − √η σ/(√V + ε) ΔW − ηθX,  g = λX, the new V in X;
SignSGD:   X ← X − η e − √η √(1 − e²) ΔW − ηθX,  e = erf(g/(√2 σ)).

Δt = η. All compute this scheme to rounding: solvers for which a drift is a function of the old V are given V + its own
drift times η in P, which costs them nothing, since the drift of V is at hand.
"""

from typing import Any, NamedTuple

import numpy as np

__all__ = ["B2", "DECAY", "EPS", "LR", "SIGMA", "START", "Curve", "curvature", "recorded", "scheme"]

LR, B2, EPS, DECAY, SIGMA, START = 0.01, 0.99, 1e-8, 0.1, 1.0, 2.0


class Curve(NamedTuple):
    """Mean loss over paths at the recorded steps, its standard error, and the number of paths."""

    mean: np.ndarray
    sem: np.ndarray
    paths: int


def curvature(dim: int) -> np.ndarray:
    """λ, shape (d,)."""
    return np.linspace(1.0, 5.0, dim).astype(np.float32)


def scheme(optimizer: str, xp: Any, lam: Any, x: Any, v: Any, xi: Any) -> tuple[Any, Any]:
    """One step of the scheme from standard normal numbers, with the functions of `xp`, `jax.numpy`."""
    if optimizer == "signsgd":
        from jax.lax import erf

        mean = erf(lam * x * (0.5**0.5 / SIGMA))
        return (1 - LR * DECAY) * x - LR * (mean + xp.sqrt(xp.maximum(1 - mean**2, 0)) * xi), v
    grad = lam * x
    v = B2 * v + (1 - B2) * (grad**2 + SIGMA**2)
    return (1 - LR * DECAY) * x - LR * (grad + SIGMA * xi) / (xp.sqrt(v) + EPS), v


def recorded(mean: Any, std: Any, paths: int) -> Curve:
    """The curve of mean and standard deviation (division by P) over the paths, each of shape (records,).

    Contenders reduce on the device: the losses of a million paths would take longer to fetch than to compute.
    """
    return Curve(np.asarray(mean, np.float64), np.asarray(std, np.float64) / np.sqrt(max(paths - 1, 1)), paths)
