"""Sharpness-aware minimisation: the gradient at a point uphill."""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jax import Array

from sdelens.core import check
from sdelens.optimizers._base import Optimizer, Query, number
from sdelens.optimizers._wrapped import Wrapped, checked_base

__all__ = ["SAM", "direction"]


class SAM(Wrapped):
    r"""Sharpness-aware minimisation on another optimizer, which moves by the gradient of the same draw uphill.

    ĝ = g(x + ρ g(x)/‖g(x)‖), or, with ``normalise=False`` (USAM), ĝ = g(x + ρ g(x)), where all three are gradients of
    one mini-batch, or of one draw of the noise; the base then moves with ĝ in place of g. Where g = 0, ĝ = g(x).

    Args:
        base: the optimizer that moves with ĝ, for example ``sl.SGD(lr=0.1)``.
        rho: ρ ≥ 0, the distance by which x is moved uphill, or for USAM the factor of g; 0 is the base itself.
        normalise: whether g is divided by its norm over all parameters.

    `at_lr` keeps ρ. A second moment at which the base may start is that of g, not that of ĝ.

    Raises:
        ValueError, TypeError: if an argument is out of its range; the message names it.

    Source: Foret, Kleiner, Mobahi, Neyshabur 2021 (arXiv 2010.01412); USAM: Andriushchenko and Flammarion 2022 (arXiv
    2206.06232).

    Examples:
        >>> import sdelens as sl
        >>> sl.models_of(sl.SAM(sl.SGD(lr=0.1), rho=0.05))
        ['optimizer', 'sde', 'empirical']
    """

    name: ClassVar[str] = "sam"
    base: Optimizer = eqx.field()
    rho: float = eqx.field(default=0.05, converter=number(check.nonnegative, "rho"))
    normalise: bool = eqx.field(default=True, static=True)

    def __check_init__(self) -> None:
        checked_base(self.base)
        if not isinstance(self.normalise, bool):
            raise TypeError(f"normalise: got {self.normalise!r}; give True or False.")

    def queried(self, x: Array, inner: Any, gradient: Array, query: Query) -> Array:
        return query(x + self.rho * (direction(gradient) if self.normalise else gradient))

    def _numbers(self) -> dict[str, Any]:
        return {"rho": float(self.rho), "normalise": self.normalise}


def direction(gradient: Array) -> Array:
    """g/‖g‖ of every path, 0 where g = 0."""
    square = (gradient * gradient).sum(axis=0, keepdims=True)
    known = square > 0
    return gradient * jnp.where(known, 1 / jnp.sqrt(jnp.where(known, square, 1)), 0)
