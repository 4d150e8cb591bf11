r"""Shares of the coordinates in the three phases of SignSGD, from estimated gradients and noises.

|Y| = |∂f|√B/(√2 σ) at batch size B; the boundaries of the phases are those of `sdelens.theory.phases`. The measured
quantity is z = |ḡ|√W/σ̂, which for W samples is noncentral t with noncentrality θ = |∂f|√W/σ. When B approaches W, pure
noise alone puts coordinates in all phases.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import special

from sdelens.results.printable import Parts, Printable, Table
from sdelens.theory import BOUNDARIES

__all__ = ["PhaseShares", "mixture", "phase_shares"]

_ROUNDS: Final = 1000
_FINE: Final = 6.0


@dataclass(frozen=True, repr=False)
class PhaseShares(Printable):
    """Shares of coordinates in phases 1, 2 and 3, each of shape (3,).

    Attributes:
        raw: shares of the estimated |Y|.
        noise: what `raw` would be if ∇f = 0 everywhere.
        estimate: shares of |Y| itself, from the mixture of noncentralities under which the observed z are most likely
            (Kiefer and Wolfowitz 1956). It needs many coordinates, and nearly normal means of gradients.
        batch_size: B.
        left_out: number of coordinates with neither gradient nor noise.
    """

    raw: np.ndarray
    noise: np.ndarray
    estimate: np.ndarray
    batch_size: float
    left_out: int

    def _parts(self) -> Parts:
        """The shares as a table."""
        rows = [
            [label, *(f"{100 * v:.1f} %" for v in shares)]
            for label, shares in (
                ("separate estimates", self.raw),
                ("pure noise", self.noise),
                ("mixture", self.estimate),
            )
        ]
        return [Table([f"coordinates, B = {self.batch_size:g}", "phase 1", "phase 2", "phase 3"], rows)]


def phase_shares(
    mean: np.ndarray, variance: np.ndarray, weight: float, df: int, batch_size: float, exact: bool
) -> PhaseShares:
    """Shares from ḡ and σ̂² per sample with `df` = K − 1 degrees of freedom; `exact` if these are population values."""
    dead = (mean == 0) & (variance == 0)
    mean, variance = mean[~dead], variance[~dead]
    if not mean.size:
        none = np.full(3, np.nan)
        return PhaseShares(none, none, none, batch_size, int(dead.sum()))
    with np.errstate(divide="ignore"):
        z = np.abs(mean) * np.sqrt(weight / variance)
    # The boundaries of the phases in units of z: phase 3 is below the first, phase 1 above the second.
    ends = np.sqrt(2 * weight / batch_size) * np.array(BOUNDARIES[::-1])
    raw = np.diff([0, *np.searchsorted(np.sort(z), [ends[0], np.nextafter(ends[1], np.inf)]), z.size])[::-1] / z.size
    if exact:
        return PhaseShares(raw, np.array([0.0, 0.0, 1.0]), raw, batch_size, int(dead.sum()))
    below = [0.0, *(1 - 2 * special.stdtr(df, -ends)), 1.0]
    noise = np.diff(below)[::-1]
    return PhaseShares(raw, noise, _mixture(z, df, ends), batch_size, int(dead.sum()))


def _mixture(z: np.ndarray, df: int, ends: np.ndarray) -> np.ndarray:
    """Shares of the noncentralities in the phases; a node on either side of every boundary keeps phases apart."""
    grid, shares = mixture(z, np.ones_like(z), df, np.concatenate([0.98 * ends, 1.02 * ends]), 2 * ends[1])
    first, third = shares[grid > ends[1]].sum(), shares[grid < ends[0]].sum()
    return np.array([first, 1 - first - third, third])


def mixture(
    z: np.ndarray, weights: np.ndarray, df: int, nodes: np.ndarray, least: float
) -> tuple[np.ndarray, np.ndarray]:
    """Noncentralities |θ| and their shares under which z, with `weights`, are most likely, by the EM algorithm.

    The noncentralities lie on a grid that reaches `least` and contains `nodes`; z is binned.
    """
    top = max(2 * _FINE, float(np.max(z[np.isfinite(z)], initial=0)) * 1.1, least)
    edges = np.concatenate([np.linspace(0, _FINE, 61), np.geomspace(_FINE, top, 60)[1:]])
    counts, _ = np.histogram(np.minimum(z, top), edges, weights=weights)
    grid = np.concatenate([np.linspace(0, _FINE, 25), np.geomspace(_FINE, top, 40)[1:], nodes])
    grid.sort()
    # P(|T| ≤ t) for noncentral T: Abramowitz and Stegun 26.7.10.
    at = edges[:, None]
    width = np.sqrt(1 + at**2 / (2 * df))
    inner = at * (1 - 1 / (4 * df))
    below = special.ndtr((inner - grid) / width) - special.ndtr((-inner - grid) / width)
    below[-1] = 1
    likelihood = np.maximum(np.diff(below, axis=0), 1e-300)
    filled = counts > 0
    counts, likelihood = counts[filled] / counts.sum(), likelihood[filled]
    shares = np.full(grid.size, 1 / grid.size)
    for _ in range(_ROUNDS):
        shares = shares * (likelihood.T @ (counts / (likelihood @ shares)))
    return grid, shares
