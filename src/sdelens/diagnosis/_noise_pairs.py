"""‖∇f‖² and tr Σ with their errors, from the moments of gradients at one point or at several."""

import numpy as np

from sdelens.diagnosis._ratio import Pair, pair, residuals
from sdelens.diagnosis.streams import Moments
from sdelens.diagnosis.windows import inverses

__all__ = ["curved_pair", "moment_pair"]


def moment_pair(moments: Moments, number: int | None, variances: list[np.ndarray], share: float) -> Pair:
    """The estimates of one group, or of all for None.

    Args:
        moments: the moments.
        number: number of the group.
        variances: diagonal of Σ̂ per leaf and sample.
        share: share of the population that was not drawn.
    """
    own = slice(None) if number is None else slice(number, number + 1)
    leaves = [i for i, group in enumerate(moments.layout.group) if number in (group, None)]
    spread, cross, at = (np.asarray(v) for v in (moments.spread, moments.cross, moments.at))
    spread, cross = spread[:, own].sum(axis=1), cross[:, own].sum(axis=1)
    cross, design = residuals(spread, cross, at)
    trace = float(sum(variances[i].sum() for i in leaves))
    size = sum(moments.mean[i].size for i in leaves)
    if moments.points > 1:
        square, inverse = _along_path(cross, at)
        return pair(square, trace, spread, cross, design, inverse, size=size, gradients=moments.count)
    square = float(sum(moments.mean[i] @ moments.mean[i] for i in leaves)) - share * trace / moments.weight
    return pair(square, trace, spread, cross, design, _inverse(moments), share, size)


def curved_pair(moments: Moments, share: float) -> Pair | None:
    """gᵀHg and tr HΣ, or None if there are no products with the Hessian."""
    if moments.product is None or not moments.probes:
        return None
    probes = np.asarray(moments.probes)
    spread = probes[:, 0]
    trace = float(spread.mean())
    curved = moments.curved(moments.mean)
    square = float(sum(a @ b for a, b in zip(moments.mean, curved, strict=True))) - share * trace / moments.weight
    # The probes are a sample even if the gradients are the whole population.
    return pair(square, trace, spread, *residuals(spread, probes[:, 1], probes[:, 2:]), _inverse(moments))


def _inverse(moments: Moments) -> tuple[float, float]:
    return 1 / moments.weight, moments.count / ((moments.count - 1) * moments.weight**2)


def _along_path(cross: np.ndarray, at: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Mean of the points' unbiased estimates of ‖∇f‖², with weights n − 1, from D of `_ratio.residuals`.

    With Uᵢ the estimate from the first i gradients of equal size, i Uᵢ = (i − 2) Uᵢ₋₁ + 2 gᵢᵀḡᵢ₋₁ and gᵢᵀḡᵢ₋₁ = Uᵢ₋₁ +
    Dᵢ/√w, so that Uᵢ = Uᵢ₋₁ + 2 Dᵢ/(i√w).
    """
    size, counts, squares = float(at[0, 0]), [], []
    for d, before in zip(cross / np.sqrt(size), at[:, 2], strict=True):
        if before == 1:
            counts.append(2.0)
            squares.append(float(d))
        else:
            counts[-1] = before + 1
            squares[-1] += 2 * float(d) / (before + 1)
    share = np.array(counts) - 1
    share /= share.sum()
    return float(share @ np.array(squares)), inverses(share, np.array(counts), size)
