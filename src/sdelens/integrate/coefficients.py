"""Coefficients of the SDE of any coordinate-wise optimizer, computed from its update without sampling."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sdelens.core import check
from sdelens.core.compilation import program
from sdelens.core.integrals import POINTS, integrate
from sdelens.core.random import Stream
from sdelens.core.text import brief
from sdelens.core.tree import Layout
from sdelens.noise import AbstractNoise, NoiseLaw
from sdelens.noise.composite_rule import CoordinateLaw
from sdelens.optimizers import FromOptax, Optimizer, State
from sdelens.problems import Problem

__all__ = ["Coefficients", "coefficients"]

_END, _STEP_BACK = 150.0, 10.0
_EDGES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 10, 20, 40, 80, _END])
_TOLERANCE, _MASS = 1e-12, 1e-6


@dataclass(frozen=True, repr=False)
class Coefficients:
    """Drift and diffusion of the SDE of an update y ← y + D(y, g), per unit of time t = kη, for d coordinates.

    Attributes:
        names: names of the parts of the state that have noise, beginning with x.
        drift: E[D]/η by part, each of shape (d,).
        covariance: Cov(D)/η of the parts of each coordinate, in the order of `names`: shape (d, parts, parts).

    A moment that does not exist is infinite, or NaN if it has the form ∞ − ∞.
    """

    names: tuple[str, ...]
    drift: dict[str, np.ndarray]
    covariance: np.ndarray

    __repr__ = brief

    def between(self, first: str, second: str) -> np.ndarray:
        """Cov(D)/η of two parts, shape (d,).

        Raises:
            ValueError: if there is no part of that name.
        """
        i, j = (self.names.index(check.choice("part", name, self.names)) for name in (first, second))
        return self.covariance[:, i, j]


def coefficients(
    optimizer: Optimizer, gradient: Any, noise: AbstractNoise, state: Any = None, *, x: Any = None
) -> Coefficients:
    r"""Drift E[D]/η and diffusion covariance Cov(D)/η of an optimizer's update at one state.

    With y = (x, state of the optimizer) and one update y ← y + D(y, g), g = ∇f + Z, both expectations are integrals
    over one number per coordinate: ∫ u(∇f + z) p(z) dz with z = s sinh t, computed by adaptive quadrature in float64.
    Jumps, for example of signs, are located by bisection; for power-law tails the remainder is added in closed form.
    The error is about 1e-10 of E|D| and E D² for any coordinate-wise update, however steep.

    Args:
        optimizer: an optimizer whose update treats each coordinate separately: ours, and most of those in optax.
        gradient: ∇f, shape (d,).
        noise: law of Z with independent coordinates, or a sum of two such laws.
        state: for the optimizers of this library a `State` (x, m, v, count); for `FromOptax` the state of its
            transformation on a vector of d parameters. By default the initial state of the optimizer.
        x: the parameters, shape (d,), by default those of `state`, or 0.

    Returns:
        `Coefficients`. Numbers that are the same for all gradients (counters, rates) are not included.

    Raises:
        ValueError, TypeError: if the update couples coordinates, naming the operation; if the noise has dependent
            coordinates or the transformation uses random numbers; if a shape does not fit.

    Examples:
        >>> import sdelens as sl
        >>> found = sl.coefficients(sl.SignSGD(0.1), [0.0, 1.0], sl.GaussianNoise(1.0))
        >>> found.drift["x"].round(4).tolist()
        [0.0, -0.6827]
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer: got {type(optimizer).__name__}; give one of sl.SGD, …, or sl.FromOptax.")
    if not isinstance(noise, AbstractNoise):
        raise TypeError(f"noise: got {type(noise).__name__}; give sl.GaussianNoise(scale) or another law.")
    gradient = np.asarray(check.finite_array("gradient", gradient, (1,)), np.float64)
    dim = len(gradient)
    with jax.enable_x64(True):
        at = _vector("x", x if x is not None else getattr(state, "x", None), dim)
        # A linear loss with that gradient: the initial state of the optimizer and the noise need a problem.
        slope = jax.device_put(gradient)
        problem = Problem(lambda x: slope @ x, at)
        layout = problem.layout
        update = optimizer.update_on(layout, at.dtype)
        if update.coupling is not None:
            raise ValueError(
                f"optimizer: an update of {optimizer.name} couples coordinates, by {update.coupling}; only "
                "coordinate-wise updates have coefficients by quadrature. Use model='empirical' with "
                "coefficients='sampled'."
            )
        bound = noise.bind(problem)
        law = CoordinateLaw(bound, dim)
        inner = _inner(optimizer, problem, bound, state, at)
        laws = jax.tree.leaves(optimizer.leaf_kinds(inner, layout))
        if "key" in laws:
            raise ValueError(f"optimizer: {optimizer.name} draws random numbers of its own; quadrature has one law, Z.")
        parts = tuple(i for i, owner in enumerate(update.owners) if owner is not None)
        call = partial(_integrands, optimizer, law, at, inner, slope, layout=layout, parts=parts)
        centre = np.asarray(_steps(optimizer, at, inner, slope[:, None], layout, parts))[..., 0].T
        integrals = _whole_line(lambda t: np.asarray(call(jax.device_put(t))), law)
        names = ("x", *(_name(optimizer, inner, layout)[i] for i in parts))
    mass = integrals[:, :1]
    if not (np.abs(mass - 1) < _MASS).all():
        raise ValueError(f"noise: its density has the integral {mass.ravel()}, not 1; give its pdf.")
    return _assembled(names, centre, integrals[:, 1:] / mass, float(optimizer.lr))


def _vector(name: str, value: Any, dim: int) -> Array:
    if value is None:
        return jax.device_put(np.zeros(dim))
    array = np.asarray(check.finite_array(name, value, (0, 1)), np.float64)
    if array.shape not in ((), (dim,)):
        raise ValueError(f"{name}: got shape {array.shape}; the gradient has {dim} coordinates, so give ({dim},).")
    return jax.device_put(np.array(np.broadcast_to(array, (dim,))))


def _inner(optimizer: Optimizer, problem: Problem, noise: NoiseLaw, state: Any, x: Array) -> Any:
    """The state of the optimizer besides x, in float64."""
    stream = Stream(*jax.device_put((np.zeros(2, np.uint32), np.zeros(1, np.uint32))))
    if isinstance(optimizer, FromOptax):
        own = optimizer.begin(State(x), problem.layout, stream)
        if isinstance(state, State):
            extra = [n for n in ("m", "v", "count") if getattr(state, n) is not None]
            if extra:
                raise ValueError(
                    f"state.{extra[0]}: {optimizer.name} has no such accumulator; give the state that its "
                    "transformation's init returns, and the parameters by x=."
                )
            return own
        if state is None:
            return own
        leaves = jax.tree.leaves(state)
        if [np.size(a) for a in leaves] != [a.size for a in own]:
            raise ValueError(
                f"state: does not have the leaves of {optimizer.name}'s state on a vector of {len(x)} parameters; "
                "make it by its transformation's init."
            )
        return tuple(jnp.ravel(jnp.asarray(a)).astype(b.dtype) for a, b in zip(leaves, own, strict=True))
    if state is not None and not isinstance(state, State):
        raise TypeError(f"state: got {type(state).__name__}; give sl.State(x, m, v, count) for {optimizer.name}.")
    begin = optimizer.initial_state(problem, noise, x)
    if state is not None:
        given = {n: _vector(f"state.{n}", getattr(state, n), len(x)) for n in "mv" if getattr(state, n) is not None}
        unknown = [n for n in given if n not in optimizer.accumulators]
        if unknown:
            raise ValueError(f"state.{unknown[0]}: {optimizer.name} has no such accumulator; leave it out.")
        if "v" in given and bool((given["v"] < 0).any()):
            raise ValueError(f"state.v: got {float(given['v'].min())}; second moments are 0 or greater.")
        if state.count is not None:
            given["count"] = jnp.asarray(check.at_least("state.count", state.count, 0), jnp.int32)
        begin = begin._replace(**given)
    return optimizer.begin(begin, problem.layout, stream)


def _name(optimizer: Optimizer, inner: Any, layout: Layout) -> list[str]:
    """Names of the leaves: the library's name if there is one, otherwise the path in the optax state."""
    if isinstance(optimizer, FromOptax):
        return [leaf.path for leaf in optimizer.leaves(layout)]
    ours = {theirs: name for name, theirs in optimizer.accumulators.items()}
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(inner)[0]]
    return [ours.get(getattr(path[-1], "name", ""), jax.tree_util.keystr(path)) for path in paths]


def _steps(
    optimizer: Optimizer, x: Array, inner: Any, gradient: Array, layout: Layout, parts: tuple[int, ...]
) -> Array:
    """D of x and of the leaves `parts` for gradients of shape (d, M): shape (parts + 1, d, M)."""
    shape = gradient.shape

    def wide(leaf: Array) -> Array:
        return leaf if leaf.ndim == 0 else jnp.broadcast_to(leaf[:, None], (leaf.shape[0], shape[1]))

    old = jax.tree.map(wide, inner)
    x = wide(x)
    new, kept = optimizer.advance(x, old, gradient, layout)
    leaves = [jax.tree.leaves(kept), jax.tree.leaves(old)]
    return jnp.stack([new - x, *(jnp.broadcast_to(leaves[0][i] - leaves[1][i], shape) for i in parts)])


@program(static_argnames=("layout", "parts"))
def _integrands(
    optimizer: Optimizer,
    law: CoordinateLaw,
    x: Array,
    inner: Any,
    gradient: Array,
    t: Array,
    *,
    layout: Layout,
    parts: tuple[int, ...],
) -> Array:
    """Density of t times 1, D − D(∇f) of all parts and their products, shape (d, M, Q)."""
    steps = partial(_steps, optimizer, x, inner, layout=layout, parts=parts)
    away = steps(gradient=gradient[:, None] + law.scale * jnp.sinh(t)) - steps(gradient=gradient[:, None])
    first, second = np.triu_indices(len(away))
    values = jnp.concatenate([jnp.ones((1, *t.shape)), away, away[first] * away[second]])
    density = law.density(t)
    return jnp.where(density > 0, values * density, 0).transpose(1, 2, 0)


def _whole_line(function: Any, law: CoordinateLaw) -> np.ndarray:
    """∫ over all t, shape (d, Q): numerically to t = ±150, then the tail of a power of z, which may be infinite."""
    breaks = np.minimum(law.breaks(), _END)
    dim = breaks.shape[0]
    half = np.sort(np.concatenate([np.broadcast_to(_EDGES, (dim, len(_EDGES))), breaks], axis=1), axis=1)
    total = integrate(function, np.concatenate([-half[:, :0:-1], half], axis=1), _TOLERANCE)
    at = np.zeros((dim, POINTS))
    at[:, :4] = [_END, _END - _STEP_BACK, -_END, -_END + _STEP_BACK]
    values = function(at)
    rest = np.zeros_like(total)
    for end, before in ((0, 1), (2, 3)):
        last, earlier = values[:, end], values[:, before]
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = np.log(np.abs(earlier / last)) / _STEP_BACK
            tail = np.where(rate > 1e-6, last / rate, np.sign(last) * np.inf)
            rest = rest + np.where(last == 0, 0.0, tail)  # ∞ − ∞ is NaN
    return total + rest


def _assembled(names: tuple[str, ...], centre: np.ndarray, moments: np.ndarray, lr: float) -> Coefficients:
    """Coefficients from D(∇f) and the moments of D − D(∇f)."""
    count = len(names)
    mean, products = moments[:, :count], moments[:, count:]
    first, second = np.triu_indices(count)
    covariance = np.zeros((len(mean), count, count))
    with np.errstate(invalid="ignore"):
        centred = products - mean[:, first] * mean[:, second]
    centred = np.where(np.isinf(products) & (first == second), np.inf, centred)
    covariance[:, first, second] = covariance[:, second, first] = centred / lr
    return Coefficients(names, {n: (centre[:, i] + mean[:, i]) / lr for i, n in enumerate(names)}, covariance)
