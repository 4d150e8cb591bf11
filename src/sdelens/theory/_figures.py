"""Figures of theoretical results: a stationary law, and the shares of the phases along a trajectory."""

from typing import Final

import numpy as np

from sdelens.results.figures import Sheet

__all__ = ["plot_law", "plot_shares"]

_BLUE: Final = "#0072B2"
_PHASES: Final = ("#0072B2", "#56B4E9", "#E69F00")
_RADII: Final = (1.0, 2.0)
_MOST: Final = 40
"""Most coordinates whose standard deviations are drawn as single bars."""


def plot_law(sheet: Sheet, mean: np.ndarray, spread: np.ndarray, title: str) -> None:
    """A normal law: in two coordinates ellipses of one and two standard deviations, else bars of all coordinates.

    Args:
        sheet: where it is drawn.
        mean: shape (d,).
        spread: covariance, its diagonal of shape (d,) or a matrix.
        title: title of the figure.
    """
    (axes,) = sheet.panels(size=(4.6, 3.6))
    if len(mean) == 2:
        matrix = np.diag(spread) if spread.ndim == 1 else spread
        values, vectors = np.linalg.eigh(matrix)
        angle = np.linspace(0, 2 * np.pi, 200)
        circle = (vectors * np.sqrt(np.maximum(values, 0))) @ np.stack([np.cos(angle), np.sin(angle)])
        for radius in _RADII:
            line = mean[:, None] + radius * circle
            axes.fill(*line, color=_BLUE, alpha=0.12, linewidth=0)
            axes.plot(*line, color=_BLUE, alpha=1 / radius, label=f"{radius:g} standard deviation{'s' * (radius > 1)}")
        axes.plot(*mean, "+", color="black", label="mean")
        axes.set(xlabel="$x_0$", ylabel="$x_1$", aspect="equal", adjustable="datalim")
        axes.legend(loc="upper right", frameon=True, framealpha=0.7, edgecolor="none")
    else:
        deviation = np.sqrt(spread if spread.ndim == 1 else np.diag(spread))
        at = np.arange(len(mean))
        if len(mean) <= _MOST:
            axes.errorbar(at, mean, deviation, fmt="o", color=_BLUE, markersize=4, capsize=3)
            axes.set_xticks(at if len(at) <= 12 else at[:: len(at) // 8])
        else:
            axes.fill_between(at, mean - deviation, mean + deviation, color=_BLUE, alpha=0.25, linewidth=0)
            axes.plot(at, mean, color=_BLUE)
        axes.set(xlabel="coordinate", ylabel="mean ± standard deviation")
    sheet.headline(title, axes)


def plot_shares(sheet: Sheet, shares: np.ndarray, time: np.ndarray | None) -> None:
    """Shares of the coordinates in the three phases.

    Args:
        sheet: where they are drawn.
        shares: shape (T, 3).
        time: shape (T,); None for one point.
    """
    (axes,) = sheet.panels(size=(5.6, 2.6))
    if time is None:
        for i, colour in enumerate(_PHASES):
            axes.bar(i + 1, 100 * shares[0, i], color=colour)
        axes.set(xlabel="phase", xticks=[1, 2, 3])
    else:
        labels = [f"phase {i}" for i in (1, 2, 3)]
        axes.stackplot(time, 100 * shares.T, labels=labels, colors=_PHASES, alpha=0.85, linewidth=0)
        axes.set(xlabel="time  $t = k\\eta$", xlim=(time[0], time[-1]) if len(time) > 1 else None)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=True)
    axes.set(ylabel="coordinates (%)", ylim=(0, 100))
    first, last = (" – ".join(f"{100 * share:.0f}" for share in shares[i]) for i in (0, -1))
    said = f"SignSGD: {first} % of the coordinates in phases 1 – 2 – 3"
    sheet.headline(said if time is None else f"{said} at the start, {last} % at the end", axes)
