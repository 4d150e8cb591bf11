r"""The loss of an optimizer on a noisy power-law quadratic, from the law of its SDE, block by block.

Modes i ∈ [1, M] have curvature λᵢ = λ i^{−q}, gradient noise of variance σᵢ² = σ² i^{−q} per sample (in proportion to
the curvature, as where the Fisher matrix is the Hessian), and initial loss R (p − 1) i^{−p}. With u² = λᵢ²(μᵢ² + Vᵢ)
and s² = σᵢ²/B, mean and variance of mode i follow, per step of size η̃ = ηₖ/ρ,

    μᵢ ← (1 − η̃ φᵢ λᵢ) μᵢ,      Vᵢ ← (1 − η̃ ψᵢ λᵢ)² Vᵢ + η̃² Dᵢ,

- SGD, Momentum: φ = ψ = 1, D = s², and ρ = 1; the variance at rest of Momentum is η²D/(z(2 − z(1 − β)/(1 + β))),
  z = ηλ;
- RMSpropW, AdamW: φ = ψ = F/√(u² + s²), D = N s²/(u² + s²), with the factors F and N by which the fluctuation of v
  changes a step (`sdelens.theory`);
- SignSGD, Signum, Lion, with T = λᵢ²Vᵢ + κ²s² and a = λᵢμᵢ/√(2T): φ = erf(a)/(λᵢμᵢ), ψ = √(2/(πT)) e^{−a²},
  D = (1 − erf²a) τ, where κ² is the variance of the averaged noise over that of one batch, and τ is the sum of the
  correlations of its sign at all lags.

**Weight norm.** A normalised layer does not depend on the norm of its weights, so that relative updates count. The
squared norm, relative to the initial one, follows

    ρ² ← ρ² (1 − 2ηₖθ) + G ηₖ² D̄,     D̄ = 1 (RMSpropW, AdamW, SignSGD) or τ (Signum, Lion),

since updates of these optimizers have a known size; G is the inverse of the mean squared initial weight.

**Loss.** L = L∞ + R M^{1−p} + Σᵢ [R(p − 1) i^{−p} μᵢ²/μᵢ(0)² + ½λᵢVᵢ]; the second term are the modes that a model of
finite size lacks, M = M₀ (size/reference)^ω.

Sums over i are integrals over log i by the trapezoidal rule. Within a block of n steps the learning rate and
coefficients are constant, so its factors are powers \|1 − z\|ⁿ. A mode moves by at most z = η̃φλ = 0.95 of its distance
per step (1.99 for SGD and Momentum, which diverge beyond 2).
"""

from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sdelens.forecast._blocks import Blocks
from sdelens.optimizers import SGD, AdamW, DecayedOptimizer, Lion, Momentum, RMSpropW, Signum
from sdelens.theory import fluctuation_factors

__all__ = ["ADAPTIVE", "Kind", "LogNumbers", "Setting", "kind_of", "losses", "many", "setting_of"]

Kind = Literal["linear", "root", "sign"]
ADAPTIVE: Final[tuple[Kind, ...]] = ("root", "sign")
"""Kinds whose steps do not depend on the scale of the gradient."""

_MODES: Final = 48
"""Points of the grid of modes."""
_ALL: Final = float(np.log(1e12))
"""Log number of modes where the size of the model does not limit it."""
_LARGEST: Final[dict[Kind, float]] = {"linear": 1.99, "root": 0.95, "sign": 0.95}
"""Largest η̃φλ of one step; larger ones are taken as this."""
_LEAST: Final = 1e-12
_MEMORIES: Final = 20.0
"""Lags of the averages of Signum and Lion that count, in units of their memory 1/(1 − β)."""


class LogNumbers(NamedTuple):
    """What is fitted, as scalars that may be traced.

    Attributes:
        infimum: L∞.
        reducible: log R.
        risk_exponent: p.
        curvature: log λ.
        curvature_exponent: q.
        noise: log σ.
        norm_growth: log G.
        batch_exponent: ω.
        coordinates: log n₀.
        coordinates_exponent: ν.
        modes: log M₀; None if unlimited.
        modes_exponent: μ; None likewise.
    """

    infimum: Any
    reducible: Any
    risk_exponent: Any
    curvature: Any
    curvature_exponent: Any
    noise: Any
    norm_growth: Any
    batch_exponent: Any
    coordinates: Any
    coordinates_exponent: Any
    modes: Any = None
    modes_exponent: Any = None


class Setting(NamedTuple):
    """What the law of one run depends on besides its learning rates; scalars, or arrays of shape (runs,).

    Attributes:
        batch_size: B; 1 where batch sizes are not known.
        log_size: log of the model's size over the reference size; 0 where sizes are not known.
        decay: decay of the weights per unit of learning rate, θ.
        drift: F for RMSpropW and AdamW, κ for signs, (1 − β)/(1 + β) for Momentum, else 1.
        diffusion: N, or τ for signs.
    """

    batch_size: Any
    log_size: Any
    decay: Any
    drift: Any
    diffusion: Any


def kind_of(optimizer: DecayedOptimizer) -> Kind:
    """Which of the three laws an optimizer has."""
    if isinstance(optimizer, SGD | Momentum):
        return "linear"
    return "root" if isinstance(optimizer, RMSpropW | AdamW) else "sign"


def setting_of(optimizer: DecayedOptimizer, batch_size: float | None, log_size: float) -> Setting:
    """The setting of a run."""
    drift, diffusion = 1.0, 1.0
    if isinstance(optimizer, RMSpropW | AdamW):
        drift, diffusion = fluctuation_factors(optimizer)
    elif isinstance(optimizer, Momentum) and not optimizer.nesterov:
        drift = float((1 - optimizer.b1) / (1 + optimizer.b1))
    elif isinstance(optimizer, Signum | Lion):
        weights = _weights(optimizer)
        drift = float(np.sqrt(weights @ weights))
        size = 2 * len(weights)
        power = np.abs(np.fft.rfft(weights, size)) ** 2
        correlations = np.clip(np.fft.irfft(power, size)[: len(weights)] / drift**2, -1, 1)
        diffusion = float(2 / np.pi * (2 * np.arcsin(correlations).sum() - np.pi / 2))
    return Setting(1.0 if batch_size is None else batch_size, log_size, float(optimizer.decay_rate), drift, diffusion)


def _weights(optimizer: Signum | Lion) -> np.ndarray:
    """Weights of the gradients, the newest first, in what x moves by the sign of."""
    memory = float(optimizer.b2 if isinstance(optimizer, Lion) else optimizer.b1)
    powers = memory ** np.arange(min(int(np.ceil(_MEMORIES / (1 - memory))), 1 << 20))
    if isinstance(optimizer, Lion):
        return np.append(1 - optimizer.b1, optimizer.b1 * (1 - optimizer.b2) * powers)
    return (1 - optimizer.b1) * powers


class _Grid(NamedTuple):
    """Modes on a grid of log i, shape (modes,), and the loss of the modes that are missing."""

    weight: Array
    curvature: Array
    noise: Array
    risk: Array
    missing: Array


def _grid(kind: Kind, numbers: LogNumbers, setting: Setting) -> _Grid:
    most: Any = _ALL
    if numbers.modes is not None:
        most = jnp.maximum(numbers.modes + numbers.modes_exponent * setting.log_size, 0.5)
    share = jnp.linspace(0.0, 1.0, _MODES)
    at = share * most
    width = jnp.full(_MODES, 1 / (_MODES - 1)).at[jnp.array([0, -1])].mul(0.5) * most
    p, q = numbers.risk_exponent, numbers.curvature_exponent
    curvature, noise = numbers.curvature - q * at, 2 * numbers.noise - q * at
    if kind == "linear":
        spread = numbers.coordinates + numbers.coordinates_exponent * at
        curvature, noise = curvature - spread, noise - spread - jnp.log(setting.batch_size)
    else:
        noise = noise - numbers.batch_exponent * jnp.log(setting.batch_size)
    return _Grid(
        width * jnp.exp(at),
        jnp.exp(curvature),
        jnp.exp(noise),
        (p - 1) * jnp.exp(numbers.reducible - p * at),
        jnp.exp(numbers.reducible + (1 - p) * most),
    )


def _linear(grid: _Grid, setting: Setting, share: Array, variance: Array) -> tuple[Array, Array, Array]:
    one = jnp.ones_like(share)
    return one, one, grid.noise


def _root(grid: _Grid, setting: Setting, share: Array, variance: Array) -> tuple[Array, Array, Array]:
    square = 2 * grid.curvature * (grid.risk * share**2 + variance) + grid.noise
    slope = setting.drift / jnp.sqrt(square)
    return slope, slope, setting.diffusion * grid.noise / square


def _sign(grid: _Grid, setting: Setting, share: Array, variance: Array) -> tuple[Array, Array, Array]:
    total = 2 * grid.curvature * variance + setting.drift**2 * grid.noise
    a = share * jnp.sqrt(grid.curvature * grid.risk / total)
    small = a < 1e-4
    safe = jnp.where(small, 1.0, a)
    ratio = jnp.where(small, 2 / np.sqrt(np.pi), jax.scipy.special.erf(safe) / safe)
    root = jnp.sqrt(2 * total)
    slope = (2 / np.sqrt(np.pi)) * jnp.exp(-(a**2)) / root
    return ratio / root, slope, setting.diffusion * (1 - jax.scipy.special.erf(a) ** 2)


_LAWS: Final[dict[Kind, Callable[..., tuple[Array, Array, Array]]]] = {"linear": _linear, "root": _root, "sign": _sign}


def _log_kept(z: Array) -> Array:
    r"""Log \|1 − z\|, finite at z = 1."""
    near = z > 0.9
    return jnp.where(near, 0.5 * jnp.log((1 - z) ** 2 + 1e-14), jnp.log1p(-jnp.where(near, 0.0, z)))


def losses(kind: Kind, numbers: LogNumbers, setting: Setting, blocks: Blocks) -> Array:
    """Loss at the start and after every block, shape (b + 1,).

    Args:
        kind: the law of the optimizer.
        numbers: the problem.
        setting: the run, scalars.
        blocks: its learning rates, arrays of shape (b,).
    """
    grid = _grid(kind, numbers, setting)
    law = _LAWS[kind]
    floor = numbers.infimum + grid.missing
    adaptive = kind in ADAPTIVE
    damping = setting.drift if kind == "linear" else 1.0
    growth = jnp.exp(numbers.norm_growth) * (setting.diffusion if kind == "sign" else 1.0)

    def loss(share: Array, variance: Array) -> Array:
        return floor + grid.weight @ (grid.risk * share**2 + variance)

    def advance(state: tuple[Array, Array, Array], block: Blocks) -> tuple[tuple[Array, Array, Array], Array]:
        # `share` is μ/μ(0) and `variance` is ½λV, a loss.
        share, variance, norm = state
        n, rate, square = block
        size: Any = 1.0
        if adaptive:
            shrunk = jnp.maximum(2 * setting.decay * rate * n, _LEAST)
            after = norm * jnp.exp(-shrunk) + growth * square * n * -jnp.expm1(-shrunk) / shrunk
            size, norm = 1 / jnp.sqrt(0.5 * (norm + after)), after
        phi, psi, diffusion = law(grid, setting, share, variance)
        z, y = (jnp.clip(size * rate * slope * grid.curvature, _LEAST, _LARGEST[kind]) for slope in (phi, psi))
        noise = 0.5 * grid.curvature * size**2 * square * diffusion
        lost = 2 * n * _log_kept(y)
        variance = variance * jnp.exp(lost) + noise * -jnp.expm1(lost) / (y * (2 - damping * y))
        share = share * jnp.exp(n * _log_kept(z))
        return (share, variance, norm), loss(share, variance)

    start = jnp.ones(_MODES), jnp.zeros(_MODES), jnp.ones(())
    _, found = lax.scan(advance, start, blocks)
    return jnp.concatenate([loss(*start[:2])[None], found])


def many(kind: Kind, numbers: LogNumbers, settings: Setting, blocks: Blocks) -> Array:
    """`losses` of several runs, shape (runs, b + 1), for settings of shape (runs,) and blocks of shape (runs, b)."""
    return jax.vmap(lambda s, b: losses(kind, numbers, s, b))(settings, blocks)
