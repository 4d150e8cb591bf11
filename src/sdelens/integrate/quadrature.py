r"""The SDE of any coordinate-wise optimizer, with coefficients computed from its update by quadrature over the noise.

With y = (x, state of the optimizer), one update y ← y + D(y, g) and g = ∇f + Z, the drift E[D]/η and the diffusion
covariance Cov(D)/η are expectations over one number per coordinate, without sampling error. The update D(z) of a
coordinate is evaluated at the nodes of a composite Gauss-Legendre rule in t, z = s sinh t, for all coordinates and
paths at once. If D jumps, as signs do, by more than 0.4 of its total variation between two neighbouring nodes, the jump
is located by bisection, and the panel that contains it is replaced by its two parts, on which the density is the
polynomial through the panel's nodes. Kinks of D are not treated specially, and of several jumps only the largest is
located.

The parts D_a of one coordinate move by

    y_a ← y_a + E[D_a] Δt/η + (b_a ΔW_0 + Σ_c L_ac ΔW_c)/√η,  b_a = Cov(D_a, Z)/σ,  L Lᵀ = Cov(D) − b bᵀ,

so with normal noise ΔW_0 is the Brownian motion of the gradient noise, σ ΔW_0/√η over a whole step, with which
`sdelens.integrate.Coupled` runs the optimizer itself. With other noise b = 0 and there is no ΔW_0.

With normal noise, a linear function of z is subtracted from D before the moments are computed, because rounding in
float32 would otherwise cause spurious noise. Sums and means of squares move as in `sdelens.integrate.empirical`; parts
that move by the update there use the normal gradient ∇f + σ ΔW_0/√η here (with normal noise and n = 1).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sdelens.core.random import Stream
from sdelens.integrate._base import Integration
from sdelens.integrate._positive import by_update, moved
from sdelens.integrate.discrete import Discrete, DiscreteState
from sdelens.noise.composite_rule import CoordinateLaw, Rule, rule_of
from sdelens.optimizers import HELD, Update

__all__ = ["NoQuadratureError", "Quadrature"]

_ORDER, _TOLERANCE = 5, 1e-5
_HALVINGS, _STEEP = 16, 0.4
_UNROLL = 5
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(_ORDER)

_Steps = Callable[[Array], Array]
"""A function from noise z of shape (d, P) or (d, 1) to the steps D of the parts, shape (C, d, P)."""


class NoQuadratureError(ValueError):
    """The coefficients cannot be computed by quadrature, for a reason that callers may give another remedy for."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"coefficients: {reason}. Use coefficients='sampled'.")
        self.reason = reason


class Quadrature(Integration):
    """One optimizer step η as `substeps` steps of the SDE whose coefficients are computed from the optimizer's update.

    Attributes:
        discrete: the stepper of the optimizer, which defines the state.
        lr: η.
        substeps: n ≥ 1. Counters stay constant during an optimizer step.
        increments: ``"gaussian"`` or ``"rademacher"``.
        accumulators: the noise of squares: ``"lognormal"``, ``"update"`` or ``"drift"``.
        rule: nodes and weights of the noise of every coordinate.
        update: which parts of the state follow the coordinates.

    Raises:
        NoQuadratureError: if the update couples coordinates, naming the operation, or uses random numbers; or if the
            noise has coordinates that depend on each other or on x.
    """

    discrete: Discrete
    lr: float
    rule: Rule
    substeps: int = eqx.field(static=True)
    increments: str = eqx.field(static=True)
    accumulators: str = eqx.field(static=True)
    update: Update = eqx.field(static=True)

    def __init__(
        self, discrete: Discrete, substeps: int = 1, increments: str = "gaussian", accumulators: str = "lognormal"
    ) -> None:
        problem, optimizer, noise = discrete.problem, discrete.optimizer, discrete.noise
        dtype = problem.start.dtype
        self.update = optimizer.update_on(discrete.layout, dtype)
        if self.update.coupling is not None:
            raise NoQuadratureError(
                f"an update of {optimizer.name} couples coordinates, by {self.update.coupling}; 'quadrature' "
                "integrates over each coordinate separately"
            )
        if not (noise.independent and noise.constant):
            raise NoQuadratureError(
                f"{noise.describe()['name']} noise has coordinates that depend on each other or on the parameters; "
                "'quadrature' integrates over each coordinate separately"
            )
        with jax.enable_x64(True):
            rule = rule_of(CoordinateLaw(noise, problem.dim), _ORDER, _TOLERANCE)
        self.rule = jax.tree.map(lambda a: jax.device_put(np.asarray(a).astype(dtype)), rule)
        self.discrete, self.lr = discrete, optimizer.lr
        self.substeps, self.increments, self.accumulators = substeps, increments, accumulators

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """(C, d) for C parts per coordinate; with normal noise (C + 1, d), the first of them for the gradient noise."""
        return (self._parts + self.discrete.noise.normal, sum(self.update.sizes))

    @property
    def expensive_gradient(self) -> bool:  # noqa: D102
        return self.discrete.expensive_gradient

    @property
    def root_first(self) -> bool:  # noqa: D102
        return self.discrete.noise.normal

    @property
    def _parts(self) -> int:
        """Largest number of parts of the state that belong to one coordinate."""
        return 1 + max(self.update.owners.count(i) for i in range(len(self.update.sizes)))

    def init(self, stream: Stream) -> DiscreteState:  # noqa: D102
        return self.discrete.init(stream)

    def position(self, state: DiscreteState) -> Array:  # noqa: D102
        return state.x

    def parts(self, state: DiscreteState) -> dict[str, Array]:  # noqa: D102
        return self.discrete.parts(state)

    def evaluate(self, x: Array) -> tuple[Array, Array]:  # noqa: D102
        return self.discrete.evaluate(x)

    def moments(self, y: DiscreteState, grad: Array) -> "Moments":
        """E D and Cov D of one update at a state, where ∇f is `grad`, of shape (d, P)."""
        old, laws = jax.tree.leaves(y.inner), self._laws(y)

        def steps(z: Array) -> Array:
            new = self.discrete.advance(y, grad + z)
            kept = zip(jax.tree.leaves(new.inner), old, laws, strict=True)
            return self._gathered(new.x - y.x, [a if law in HELD else a - b for a, b, law in kept])

        return _moments(steps, self.rule, y.x, self.discrete.noise.normal, not self.update.smooth)

    def advance(self, k: Array, j: Array | int, y: DiscreteState, grad: Array, dW: Array) -> DiscreteState:  # noqa: D102
        n, found = self.substeps, self.moments(y, grad)
        noise = found.noise(dW) / jnp.sqrt(self.lr)
        advanced = [self._spread(a) for a in (found.mean / n, noise, found.variance() / n)]
        laws, normal = self._laws(y), self.discrete.noise.normal
        updated = [normal and by_update(law, self.accumulators, n) for law in laws]
        own_noise = self.discrete.noise.apply_root(y.x, dW[0]) / jnp.sqrt(self.lr) if any(updated) else 0
        whole = jax.tree.leaves(self.discrete.advance(y, grad + own_noise).inner)
        old, tree = jax.tree.flatten(y.inner)
        last = jnp.asarray(j) == n - 1
        new = []
        for i, (before, after, law) in enumerate(zip(old, whole, laws, strict=True)):
            if law in HELD:
                new.append(jnp.where(last, after, before))
            elif self.update.owners[i] is None:
                new.append(before + (after - before) / n)
            else:
                step, own, variance = (part[1 + i].reshape(before.shape) for part in advanced)
                by = after if updated[i] else None
                new.append(moved(law, self.accumulators, before + step, own, variance, by).astype(before.dtype))
        x = (y.x + advanced[0][0] + advanced[1][0]).astype(y.x.dtype)
        return DiscreteState(x, jax.tree.unflatten(tree, new))

    def _laws(self, y: DiscreteState) -> list[str]:
        laws = jax.tree.leaves(self.discrete.optimizer.leaf_kinds(y.inner, self.discrete.layout))
        if "key" in laws:
            raise NoQuadratureError(
                f"{self.discrete.optimizer.name} draws random numbers of its own, which 'quadrature' does not average "
                "over"
            )
        return laws

    def _gathered(self, x: Array, leaves: list[Array]) -> Array:
        """Parts by coordinate, shape (C, d, P): x and the leaves that belong to it; 0 if a coordinate has fewer."""
        slots = []
        for c in range(self._parts):
            if c == 0:
                slots.append(x)
                continue
            rows = []
            for owner, size in enumerate(self.update.sizes):
                own = [i for i, o in enumerate(self.update.owners) if o == owner]
                shape = (size, x.shape[1])
                rows.append(leaves[own[c - 1]].reshape(shape).astype(x.dtype) if c <= len(own) else jnp.zeros(shape))
            slots.append(rows[0] if len(rows) == 1 else jnp.concatenate(rows).astype(x.dtype))
        return jnp.stack(slots)

    def _spread(self, parts: Array) -> list[Any]:
        """The inverse of `_gathered`: x, and the values of every leaf, None if it belongs to no coordinate."""
        offsets = np.cumsum((0, *self.update.sizes))
        seen = [0] * len(self.update.sizes)
        spread: list[Any] = [parts[0]]
        for owner in self.update.owners:
            if owner is None:
                spread.append(None)
                continue
            seen[owner] += 1
            spread.append(parts[seen[owner], offsets[owner] : offsets[owner + 1]])
        return spread


class Moments(NamedTuple):
    """Moments of the steps D of C parts; every part has shape (d, P).

    Attributes:
        mean: E D, shape (C, …).
        along: b = Cov(D, Z)/σ under normal noise, else None.
        root: L, as the rows of its lower triangle.
    """

    mean: Array
    along: Array | None
    root: list[list[Array]]

    def variance(self) -> Array:
        """Var D, shape (C, …)."""
        own = jnp.stack([sum((a**2 for a in row[1:]), row[0] ** 2) for row in self.root])
        return own if self.along is None else own + self.along**2

    def noise(self, dW: Array) -> Array:
        """Noise of variance Var D for independent numbers of variance 1, shape (C, …) or (C + 1, …)."""
        rest = dW if self.along is None else dW[1:]
        own = jnp.stack([sum((a * rest[c] for c, a in enumerate(row[1:], 1)), row[0] * rest[0]) for row in self.root])
        return own if self.along is None else own + self.along * dW[0]


class _Sums(NamedTuple):
    """Sums over nodes of we, of we eᵀ (upper triangle) and of wez, where e is D without its linear part."""

    first: Array
    second: Array
    cross: Array


class _Jumps(NamedTuple):
    """Per part, over neighbouring nodes: the last D, Σ|ΔD|, the largest |ΔD| and the interval that contains it."""

    last: Array
    total: Array
    largest: Array
    where: Array


def _moments(steps: _Steps, rule: Rule, x: Array, normal: bool, jumps: bool) -> Moments:
    scale = rule.scale.astype(x.dtype)
    second = (rule.weights.T * (scale * jnp.sinh(rule.nodes)) ** 2).sum(axis=1, keepdims=True)  # (d, 1)
    if normal:
        sigma = jnp.sqrt(second)
        above, below = steps(sigma), steps(-sigma)
        centre, slope = (above + below) / 2, (above - below) / (2 * sigma)
    else:
        centre = steps(jnp.zeros_like(scale))
        slope = jnp.zeros_like(centre)
    upper = np.triu_indices(len(centre))

    def rest(z: Array) -> tuple[Array, Array]:
        step = steps(z)
        return step, step - centre - slope * z

    def add(sums: _Sums, z: Array, w: Array, e: Array) -> _Sums:
        return _Sums(
            sums.first + w * e, sums.second + w * e[upper[0]] * e[upper[1]], sums.cross + (w * z * e if normal else 0)
        )

    zeros = jnp.zeros_like(centre)
    sums = _Sums(zeros, jnp.zeros((len(upper[0]), *zeros.shape[1:]), zeros.dtype), zeros)
    start = scale * jnp.sinh(rule.nodes[0])
    seen = _Jumps(steps(start), zeros, zeros, jnp.zeros(zeros.shape, jnp.int32))

    def node(carry: tuple[_Sums, _Jumps], at: tuple[Array, Array, Array]) -> tuple[tuple[_Sums, _Jumps], None]:
        (sums, seen), (i, t, w) = carry, at
        z = scale * jnp.sinh(t)
        step, e = rest(z)
        sums = add(sums, z, w[:, None], e)
        if jumps:
            change = jnp.abs(step - seen.last)
            larger = change > seen.largest
            seen = _Jumps(
                step, seen.total + change, jnp.maximum(seen.largest, change), jnp.where(larger, i - 1, seen.where)
            )
        return (sums, seen), None

    count = rule.nodes.shape[0]
    (sums, seen), _ = lax.scan(
        node, (sums, seen), (jnp.arange(count, dtype=jnp.int32), rule.nodes, rule.weights), unroll=_UNROLL
    )
    if jumps:
        share = seen.largest / jnp.maximum(seen.total, jnp.finfo(seen.total.dtype).tiny)
        steep = share.max(axis=0) > _STEEP

        def corrected() -> _Sums:
            split = _split(steps, rule, scale, seen.where, jnp.argmax(share, axis=0)[None])

            def correction(i: Array, sums: _Sums) -> _Sums:
                t, w = split(i)
                z = scale * jnp.sinh(t)
                return add(sums, z, jnp.where(steep, w, 0), rest(z)[1])

            return lax.fori_loop(0, 3 * _ORDER, correction, sums)

        sums = lax.cond(steep.any(), corrected, lambda: sums)
    covariance = sums.second - sums.first[upper[0]] * sums.first[upper[1]]
    along = None
    if normal:
        own = sums.cross / sigma
        along = slope * sigma + own
        covariance = covariance - own[upper[0]] * own[upper[1]]
    return Moments(centre + sums.first, along, _root(covariance, len(centre)))


def _split(
    steps: _Steps, rule: Rule, scale: Array, where: Array, part: Array
) -> Callable[[Array], tuple[Array, Array]]:
    """Correction nodes that replace the panel of a jump by its two parts: index below 3n -> t and weight, (d, P).

    Args:
        steps: the update.
        rule: quadrature rule of the noise.
        scale: s.
        where: per part, the interval between nodes that contains its largest jump.
        part: the part whose jump is located, shape (1, d, P).
    """

    def of_part(values: Array) -> Array:
        return jnp.take_along_axis(values, part, axis=0)[0]

    def at(t: Array) -> Array:
        return of_part(steps(scale * jnp.sinh(t)))

    left = of_part(where)
    low, high = rule.nodes[left], rule.nodes[left + 1]

    def halve(_: Any, bracket: tuple[Array, ...]) -> tuple[Array, ...]:
        low, high, below, above = bracket
        middle = (low + high) / 2
        here = at(middle)
        first = jnp.abs(here - below) > jnp.abs(above - here)
        return (
            jnp.where(first, low, middle),
            jnp.where(first, middle, high),
            jnp.where(first, below, here),
            jnp.where(first, here, above),
        )

    low, high, _, _ = lax.fori_loop(0, _HALVINGS, halve, (low, high, at(low), at(high)))
    jump = (low + high) / 2
    panels = rule.edges.shape[0] - 1
    panel = jnp.clip(jnp.searchsorted(rule.edges, jump, side="right") - 1, 0, panels - 1)
    begin, end = rule.edges[panel], rule.edges[panel + 1]
    laws = rule.density.shape[-1]
    own = [c[panel, 0] if laws == 1 else c[panel, jnp.arange(laws)[:, None]] for c in rule.density]

    def replacement(i: Array) -> tuple[Array, Array]:
        kind, node = i // _ORDER, i % _ORDER  # 0: subtract the panel; 1, 2: add its parts below and above the jump
        first, last = jnp.where(kind == 2, jump, begin), jnp.where(kind == 1, jump, end)
        half = (last - first) / 2
        t = first + half * (1 + jnp.asarray(_NODES, half.dtype)[node])
        tau = (2 * t - begin - end) / (end - begin)
        density = own[0]
        for c in own[1:]:
            density = density * tau + c
        weight = jnp.maximum(density, 0) * half * jnp.asarray(_WEIGHTS, half.dtype)[node]
        return t, jnp.where(kind == 0, -weight, weight)

    return replacement


def _root(covariance: Array, count: int) -> list[list[Array]]:
    """Lower Cholesky factor of matrices given by their upper triangles in row order; they may be singular."""
    rows, columns = (index.tolist() for index in np.triu_indices(count))
    entry = dict(zip(zip(rows, columns, strict=True), covariance, strict=True))
    tiny = math.sqrt(jnp.finfo(covariance.dtype).tiny)
    root: list[list[Array]] = []
    for i in range(count):
        row: list[Array] = []
        most = jnp.sqrt(jnp.maximum(entry[i, i], 0))
        for j, above in enumerate(root):
            rest = entry[j, i] - sum((a * b for a, b in zip(row, above, strict=False)), jnp.zeros(()))
            row.append(jnp.where(above[j] > tiny, jnp.clip(rest / jnp.maximum(above[j], tiny), -most, most), 0))
        left = entry[i, i] - sum((a**2 for a in row), jnp.zeros(()))
        row.append(jnp.sqrt(jnp.maximum(left, 0)))
        root.append(row)
    return root
