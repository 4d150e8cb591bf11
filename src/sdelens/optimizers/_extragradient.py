"""The extragradient method: the gradient at an extrapolated point."""

from typing import Any, ClassVar

import equinox as eqx
from jax import Array

from sdelens.core import check
from sdelens.optimizers._base import Optimizer, Query
from sdelens.optimizers._wrapped import Wrapped, checked_base

__all__ = ["Extragradient"]


class Extragradient(Wrapped):
    r"""Stochastic extragradient with one draw for both gradients: x ← x − ηg(x − ρ g(x)).

    The gradient at x extrapolates, that of the same mini-batch or draw at the extrapolated point moves x. It converges
    on games such as the bilinear one, where gradient descent-ascent (`SGD` on an `sl.QuadraticGame` or `sl.Game`)
    spirals outwards.

    Args:
        base: the optimizer that moves with the extrapolated gradient, for example ``sl.SGD(lr=0.1)``.
        rho: ρ ≥ 0, the rate of extrapolation; None means the learning rate of the base, and 0 is the base itself.

    `at_lr` keeps ρ unless it is None.

    Raises:
        ValueError, TypeError: if an argument is out of its range; the message names it.

    Source: Korpelevich 1976; with one draw for both gradients: Compagnoni et al. 2024 (arXiv 2402.12508).

    Examples:
        >>> import sdelens as sl
        >>> sl.Extragradient(sl.SGD(lr=0.1), rho=0.05).describe()["rho"]
        0.05
    """

    name: ClassVar[str] = "extragradient"
    base: Optimizer = eqx.field()
    rho: float | None = eqx.field(
        default=None, converter=lambda value: None if value is None else check.nonnegative("rho", value)
    )

    def __check_init__(self) -> None:
        checked_base(self.base)

    @property
    def extrapolation(self) -> Any:
        """The rate ρ of extrapolation."""
        return self.lr if self.rho is None else self.rho

    def queried(self, x: Array, inner: Any, gradient: Array, query: Query) -> Array:
        return query(x - self.extrapolation * gradient)

    def _numbers(self) -> dict[str, Any]:
        return {"rho": float(self.extrapolation)}
