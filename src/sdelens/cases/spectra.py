"""Norms of the parameters that are matrices, recorded for every path without LAPACK."""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import jax.numpy as jnp
from jax import Array

from sdelens.core.singular import singular_values
from sdelens.core.tree import Layout

__all__ = ["SPECTRA", "check_matrices", "spectrum"]

SPECTRA: Final[Mapping[str, Callable[[list[Array]], Array]]] = {
    "spectral_norm": lambda values: jnp.stack([s[0] for s in values]).max(axis=0),
    "nuclear_norm": lambda values: jnp.stack([s.sum(axis=0) for s in values]).sum(axis=0),
}
"""Functions of the singular values of all matrices, each of shape (r, P) and descending, by name."""


def spectrum(name: str, x: Array, layout: Layout) -> Array:
    """The quantity of that name for parameters of shape (d, P): shape (P,)."""
    return SPECTRA[name]([singular_values(part) for part in layout.split(x) if part.ndim == 3])


def check_matrices(names: Iterable[str], layout: Layout) -> None:
    """Refuse spectra among these observables if no parameter is a matrix.

    Raises:
        ValueError: naming the observable.
    """
    spectra = [name for name in names if name in SPECTRA]
    if spectra and not any(shape is not None and len(shape) == 2 for shape in layout.shapes):
        raise ValueError(
            f"observables: got {spectra[0]!r}, but no parameter is a matrix; give the matrices among the parameters as "
            "arrays of shape (n, m), or leave it out."
        )
