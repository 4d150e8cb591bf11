"""Integrals of many functions over many coordinates at once; panels are halved where a function is not smooth."""

from collections.abc import Callable

import numpy as np

__all__ = ["POINTS", "integrate"]

_ORDER, _PANELS, _LEVELS = 10, 32, 60
POINTS = _ORDER * _PANELS
"""Number of points per coordinate at which a function is evaluated in one call."""


def _lobatto(order: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Lobatto rule on [−1, 1], which includes the end points: it detects jumps in a panel also near its ends."""
    polynomial = np.polynomial.Legendre.basis(order - 1)
    nodes = np.concatenate([[-1], np.sort(polynomial.deriv().roots().real), [1]])
    return nodes, 2 / (order * (order - 1) * polynomial(nodes) ** 2)


_LOBATTO = _lobatto(_ORDER)


def integrate(function: Callable[[np.ndarray], np.ndarray], edges: np.ndarray, tolerance: float) -> np.ndarray:
    """∫ function dt from the first to the last edge, shape (d, Q).

    Each panel is halved until the sum of its halves agrees with it to `tolerance` times the sum of the absolute values
    of all panels, but at most 60 times, which locates a jump to within rounding.

    Raises:
        ValueError: if the function is not finite somewhere; the message names the coordinate.

    Args:
        function: (d, POINTS) points t -> (d, POINTS, Q) values.
        edges: edges of the first panels, ascending, shape (d, E).
        tolerance: relative tolerance of every integral.
    """
    dim = edges.shape[0]
    a, b = edges[:, :-1].ravel(), edges[:, 1:].ravel()
    owner = np.repeat(np.arange(dim), edges.shape[1] - 1)
    whole = _panels(function, dim, owner, a, b)
    size = _total(dim, owner, np.abs(whole))
    done = np.zeros_like(size)
    for level in range(_LEVELS):
        middle = (a + b) / 2
        left, right = _panels(function, dim, owner, a, middle), _panels(function, dim, owner, middle, b)
        both = left + right
        size = np.maximum(size, _total(dim, owner, np.abs(left) + np.abs(right)))
        ready = (np.abs(both - whole) <= tolerance * size[owner]).all(axis=1) | (level == _LEVELS - 1)
        done += _total(dim, owner[ready], both[ready])
        left, right, owner, old = left[~ready], right[~ready], owner[~ready], (a[~ready], middle[~ready], b[~ready])
        if not owner.size:
            break
        a, b = np.concatenate(old[:2]), np.concatenate(old[1:])
        whole, owner = np.concatenate([left, right]), np.concatenate([owner, owner])
    return done


def _total(dim: int, owner: np.ndarray, values: np.ndarray) -> np.ndarray:
    total = np.zeros((dim, values.shape[1]))
    np.add.at(total, owner, values)
    return total


def _panels(
    function: Callable[[np.ndarray], np.ndarray], dim: int, owner: np.ndarray, a: np.ndarray, b: np.ndarray
) -> np.ndarray:
    """Integrals over single panels, shape (N, Q)."""
    nodes, weights = _LOBATTO
    order = np.argsort(owner, kind="stable")
    rank = np.empty(len(owner), int)  # of a panel among those of its coordinate
    counts = np.bincount(owner, minlength=dim)
    rank[order] = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    found: np.ndarray | None = None
    for first in range(0, int(counts.max()), _PANELS):
        now = (rank >= first) & (rank < first + _PANELS)
        place = (owner[now], rank[now] - first)
        centre, half = np.zeros((dim, _PANELS)), np.zeros((dim, _PANELS))
        centre[place], half[place] = (a + b)[now] / 2, (b - a)[now] / 2
        t = centre[..., None] + half[..., None] * nodes
        values = function(t.reshape(dim, POINTS)).reshape(dim, _PANELS, _ORDER, -1)
        if not np.isfinite(values).all():
            where = int(np.argmax(~np.isfinite(values).all(axis=(1, 2, 3))))
            raise ValueError(f"state: the update of coordinate {where} is not finite for some gradients.")
        sums = np.einsum("dpnq,n->dpq", values, weights) * half[..., None]
        found = np.zeros((len(owner), sums.shape[-1])) if found is None else found
        found[now] = sums[place]
    assert found is not None
    return found
