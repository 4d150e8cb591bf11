"""Descent by the matrix sign of a momentum: Muon with an exact polar factor."""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array

from sdelens.core import check
from sdelens.core.singular import polar_factor
from sdelens.core.tree import Layout
from sdelens.optimizers._base import DecayedOptimizer, State, number
from sdelens.optimizers._elementwise import Update, update_of
from sdelens.optimizers.schedules import Schedule, as_schedule

if TYPE_CHECKING:
    from sdelens.noise import NoiseLaw
    from sdelens.problems import AbstractProblem

__all__ = ["Muon", "width_factor"]


class MuonState(NamedTuple):
    """Number of gradients so far, and their momentum."""

    count: Any
    mu: Any


class Muon(DecayedOptimizer):
    r"""Muon: descent by the matrix sign of a momentum, and by the element-wise sign where a parameter is no matrix.

    m ← β₁m + (1 − β₁)g, and with the new m  d = m, or in Nesterov's form
    d = β₁m/(1 − β₁^(k+2)) + (1 − β₁)g/(1 − β₁^(k+1)).

    A matrix of shape (n, p) moves by x ← x − η max(1, p/n)^½ U Vᵀ − ηθx, where d = U diag(s) Vᵀ is the singular value
    decomposition, and every other parameter by x ← x − η sign(d) − ηθx.

    For matrices it is ``optax.contrib.muon`` with the same β₁ where the Newton-Schulz iteration has converged. The five
    steps of optax's default have not: most of their singular values are between 0.68 and 1.13 instead of 1. For them
    use ``sl.FromOptax(optax.contrib.muon, lr)``, whose SDE is ``"empirical"``. optax moves other parameters by AdamW;
    here the sign is used, which keeps one learning rate and has an SDE in closed form (as in Scion, Pethick et al.
    2025, arXiv 2502.07529).

    The polar factor is computed by sixteen quintic iterations, without LAPACK, to within rounding for singular values
    above 1e-6 ‖d‖. A row or column of zeros stays at zero.

    Source: Jordan et al. 2024 (kellerjordan.github.io/posts/muon); Bernstein and Newhouse 2024 (arXiv 2409.20325).

    Args:
        lr: η > 0.
        b1: β₁ in [0, 1); 0 is spectral descent without momentum.
        nesterov: Nesterov's form.
        weight_decay: θ ≥ 0.
        decay: ``"coupled"`` (η multiplies θ) or ``"independent"``.
        schedule: multiplier of η, as for `Momentum`.

    m starts at 0, or from the m of a `State`; the powers of β₁ count the steps of the run. `at_lr` keeps
    ρ = (1 − β₁)/η.

    Raises:
        ValueError, TypeError: if an argument is out of its range; the message names it.

    Examples:
        >>> import jax.numpy as jnp, sdelens as sl
        >>> problem = sl.Problem(lambda w: 0.5 * jnp.sum(w**2), jnp.ones((4, 3)), infimum=0.0)
        >>> result = sl.compare(problem, sl.GaussianNoise(1.0), sl.Muon(0.05, b1=0.0), steps=20, paths=64)
    """

    name: ClassVar[str] = "muon"
    accumulators: ClassVar[Mapping[str, str]] = {"m": "mu"}
    lr: float = eqx.field(converter=number(check.positive, "lr"))
    b1: float = eqx.field(default=0.95, converter=number(check.fraction, "b1"))
    nesterov: bool = eqx.field(default=True, static=True)
    weight_decay: float = eqx.field(default=0.0, converter=number(check.nonnegative, "weight_decay"))
    decay: str = eqx.field(default="coupled", static=True)
    schedule: Schedule | None = eqx.field(default=None, converter=as_schedule)

    def __check_init__(self) -> None:
        if not isinstance(self.nesterov, bool):
            raise TypeError(f"nesterov: got {self.nesterov!r}; give True or False.")

    @property
    def rho1(self) -> Any:
        """ρ₁ = (1 − β₁)/η, the rate at which M forgets, per unit of time."""
        return (1 - self.b1) / self.lr

    def weights(self, count: Any) -> tuple[Any, Any]:
        """Weights of the old m and of g in d, if m has averaged `count` gradients before this one."""
        b = self.b1
        if not self.nesterov:
            return b, 1 - b
        late = b * (1 - b ** (count + 1)) / (1 - b ** (count + 2))  # relative to the weight of g itself
        return late * b, (1 - b) * (1 + late)

    def _direction(self) -> optax.GradientTransformation:
        return self._along(lambda tree: jax.tree.map(_oriented, tree))

    def _along(self, orient: Callable[[Any], Any]) -> optax.GradientTransformation:
        """The averages m and d of the gradients, and what `orient` makes of d."""

        def init(params: Any) -> MuonState:
            return MuonState(jnp.zeros([], jnp.int32), jax.tree.map(jnp.zeros_like, params))

        def update(gradient: Any, state: MuonState, params: Any = None) -> tuple[Any, MuonState]:
            old, new = self.weights(state.count)
            d = jax.tree.map(lambda m, g: old * m + new * g, state.mu, gradient)
            mu = jax.tree.map(lambda m, g: self.b1 * m + (1 - self.b1) * g, state.mu, gradient)
            return orient(d), MuonState(optax.safe_increment(state.count), mu)

        return optax.GradientTransformation(init, update)

    def initial_state(self, problem: "AbstractProblem", noise: "NoiseLaw", x: Array) -> State:
        return State(x, jnp.zeros_like(x))

    def advance(self, x: Array, inner: Any, gradient: Array, layout: Layout) -> tuple[Array, Any]:
        """One update of all paths at once, with the matrices of the layout."""

        def orient(d: Array) -> Array:
            parts = [_oriented(part, d.ndim - 1) for part in layout.split(d)]
            return jnp.concatenate([part.reshape(-1, *d.shape[1:]) for part in parts])

        updates, inner = self._finished(self._along(orient)).update(gradient, inner, x)
        return optax.apply_updates(x, updates), inner

    def update_on(self, layout: Layout, dtype: Any) -> Update:
        """Matrices couple the coordinates; without a matrix the update is element-wise."""
        shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape in layout.shapes if shape is not None]
        return update_of(self.to_optax(), shapes)


def _oriented(d: Array, paths: int = 0) -> Array:
    """The direction of one parameter; `paths` is 1 if its last axis counts the paths, otherwise 0."""
    shape = d.shape[: d.ndim - paths]
    return width_factor(shape) * polar_factor(d) if len(shape) == 2 else jnp.sign(d)


def width_factor(shape: tuple[int, ...]) -> float:
    """The factor of the step of a matrix: max(1, columns/rows)^½."""
    return math.sqrt(max(1.0, shape[1] / shape[0]))
