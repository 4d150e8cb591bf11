"""The numbers of a noisy power-law quadratic: what is fitted to logged runs, and what is assumed of it before."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sdelens.core import check
from sdelens.forecast._dynamics import LogNumbers

__all__ = ["Frame", "Parameter", "PowerLaw", "logs_of", "parameters_of", "power_law_of"]


@dataclass(frozen=True)
class PowerLaw:
    r"""A noisy quadratic whose modes follow power laws; it belongs to the problem, not to the optimizer.

    Mode i = 1, …, M has curvature λ i^{−q}, gradient noise of variance σ² i^{−q} per sample, and initial loss
    R (p − 1) i^{−p}. The loss at the minimum of all modes is L∞, and R M^{1−p} above it if only M modes are trained.

    Attributes:
        infimum: L∞, in units of the loss, at least 0.
        reducible: R, in units of the loss.
        risk_exponent: p > 1.
        curvature: λ, loss per squared parameter.
        curvature_exponent: q > 0.
        noise: σ, standard deviation of the first mode's gradient for one sample (for one batch where batch sizes are
            not known).
        norm_growth: G, the inverse of the mean squared initial weight of layers that do not depend on the norm of their
            weights: ρ² ← ρ²(1 − 2ηθ) + Gη² for relative steps η/ρ.
        batch_exponent: ω: the noise that adaptive optimizers and signs see falls like B^{−ω}; 1 for independent
            samples, larger where most samples have no gradient in a coordinate (sparse gradients).
        coordinates: n₀, number of coordinates that share the first mode; 1 unless both SGD or Momentum and an adaptive
            optimizer were fitted.
        coordinates_exponent: ν: mode i is shared by n₀ i^ν coordinates. SGD and Momentum see the curvature λᵢ/(n₀ i^ν)
            and noise of the variance σᵢ²/(n₀ i^ν), since coordinates of n equal parts of a gradient are divided by
            parts of its size.
        modes: M for a model of the reference size; infinite where sizes are not known.
        modes_exponent: μ in M = modes · (size/reference_size)^μ; 0 where sizes are not known.
        reference_size: size of the model to which `modes` refers; None where sizes are not known.

    Raises:
        ValueError, TypeError: if a number is out of its range; the message names it.
    """

    infimum: float
    reducible: float
    risk_exponent: float
    curvature: float
    curvature_exponent: float
    noise: float
    norm_growth: float = 0.0
    batch_exponent: float = 1.0
    coordinates: float = 1.0
    coordinates_exponent: float = 0.0
    modes: float = math.inf
    modes_exponent: float = 0.0
    reference_size: float | None = None

    def __post_init__(self) -> None:
        check.nonnegative("infimum", self.infimum)
        for name in ("reducible", "curvature", "curvature_exponent", "noise", "batch_exponent", "coordinates"):
            check.positive(name, getattr(self, name))
        check.nonnegative("norm_growth", self.norm_growth)
        if not check.number("risk_exponent", self.risk_exponent) > 1:
            raise ValueError(f"risk_exponent: got {self.risk_exponent}; the risk of all modes is finite only above 1.")
        if not self.modes > 1:
            raise ValueError(f"modes: got {self.modes}; give a number greater than 1, or infinity.")
        if (self.reference_size is None) != math.isinf(self.modes):
            raise ValueError(
                f"reference_size: got {self.reference_size} with modes = {self.modes}; give the size of the model that "
                "has this number of modes, or leave out both."
            )

    @property
    def logs(self) -> LogNumbers:
        """The numbers as the law of a run takes them."""
        limited = self.reference_size is not None
        return LogNumbers(
            self.infimum,
            math.log(self.reducible),
            self.risk_exponent,
            math.log(self.curvature),
            self.curvature_exponent,
            math.log(self.noise),
            math.log(self.norm_growth) if self.norm_growth > 0 else -math.inf,
            self.batch_exponent,
            math.log(self.coordinates),
            self.coordinates_exponent,
            math.log(self.modes) if limited else None,
            self.modes_exponent if limited else None,
        )

    def describe(self) -> dict[str, Any]:
        """The numbers, JSON types only."""
        return {k: None if v == math.inf else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_description(cls, described: dict[str, Any]) -> "PowerLaw":
        """The numbers that `describe` wrote.

        Raises:
            ValueError, TypeError: if one is missing, unknown or out of its range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if set(described) != known:
            raise ValueError(f"numbers: got {sorted(described)}; a forecast has {sorted(known)}.")
        return cls(**(described | {"modes": math.inf if described["modes"] is None else described["modes"]}))


class Frame(NamedTuple):
    """Units in which the numbers are fitted, those of a typical run, so that they are of order 1.

    Attributes:
        adaptive: whether its steps do not depend on the scale of the gradient.
        mixed: whether there are also runs whose steps do.
        batches: whether adaptive runs have different batch sizes.
        log_lr: log of its peak learning rate η.
        log_batch: log of its batch size B.
        first: a typical first loss.
        last: the smallest loss of all runs.
        size: reference size, or None.
    """

    adaptive: bool
    mixed: bool
    batches: bool
    log_lr: float
    log_batch: float
    first: float
    last: float
    size: float | None


class Parameter(NamedTuple):
    """One coordinate of the fit, θ = centre + spread · x, and its range.

    Attributes:
        name: the number of `PowerLaw` that it determines most.
        centre: centre of the normal prior.
        spread: its standard deviation.
        lower: smallest θ.
        upper: largest θ.
    """

    name: str
    centre: float
    spread: float
    lower: float
    upper: float


_LOG_INVERSE_SQUARE: Final = 7.8
"""log 1/w² for weights that start with standard deviation w = 0.02."""


def parameters_of(frame: Frame) -> tuple[Parameter, ...]:
    r"""The coordinates of the fit and their weak priors.

    They are L∞, log R, log(p − 1), log z, log q and log b, where for a typical run z is the rate of the first mode per
    step, and b is its loss at rest, ηs/4 for adaptive steps and ηs²/4 for SGD, s² = σ²/B; log G where adaptive
    optimizers were run, ω where these have different batch sizes, log n₀ and ν where both kinds of optimizers were run,
    and log M, log μ where sizes are known.
    """
    last, first = frame.last, frame.first
    gap = max(first - 0.6 * last, 0.1 * first)
    found = [
        Parameter("infimum", 0.6 * last, 0.4 * last, 0.0, last),
        Parameter("reducible", math.log(gap), 1.5, math.log(gap) - 6, math.log(gap) + 6),
        Parameter("risk_exponent", math.log(0.4), 0.8, math.log(0.01), math.log(4.0)),
        Parameter("curvature", -1.5, 2.5, -12.0, 8.0),
        Parameter("curvature_exponent", math.log(2.0), 0.5, math.log(0.2), math.log(8.0)),
        Parameter("noise", math.log(0.01 * gap), 2.5, math.log(gap) - 18, math.log(gap) + 4),
    ]
    if frame.adaptive:
        growth = _LOG_INVERSE_SQUARE
        found.append(Parameter("norm_growth", growth, 2.0, growth - 10, growth + 6))
    if frame.batches:
        found.append(Parameter("batch_exponent", 1.0, 0.3, 0.2, 3.0))
    if frame.mixed:
        found.append(Parameter("coordinates", 0.0, 4.0, -12.0, 20.0))
        found.append(Parameter("coordinates_exponent", 0.0, 0.7, -4.0, 4.0))
    if frame.size is not None:
        found.append(Parameter("modes", 5.0, 4.0, 0.7, 27.0))
        found.append(Parameter("modes_exponent", math.log(0.5), 0.5, math.log(0.05), math.log(2.0)))
    return tuple(found)


def logs_of(theta: Any, frame: Frame) -> LogNumbers:
    """The numbers at one point θ of the fit, which may be traced."""
    at = {parameter.name: theta[i] for i, parameter in enumerate(parameters_of(frame))}
    log_s = at["noise"] + math.log(4) - frame.log_lr
    if not frame.adaptive:  # the loss of a mode at rest is ηs²/4
        log_s = 0.5 * log_s
    exponent = at.get("batch_exponent", 1.0)
    return LogNumbers(
        infimum=at["infimum"],
        reducible=at["reducible"],
        risk_exponent=1 + jnp.exp(at["risk_exponent"]),
        curvature=at["curvature"] - frame.log_lr + (log_s if frame.adaptive else 0.0),
        curvature_exponent=jnp.exp(at["curvature_exponent"]),
        noise=log_s + 0.5 * exponent * frame.log_batch,
        norm_growth=at.get("norm_growth", -math.inf),
        batch_exponent=exponent,
        coordinates=at.get("coordinates", 0.0),
        coordinates_exponent=at.get("coordinates_exponent", 0.0),
        modes=at.get("modes"),
        modes_exponent=jnp.exp(at["modes_exponent"]) if "modes_exponent" in at else None,
    )


def power_law_of(theta: NDArray[np.float64], frame: Frame) -> PowerLaw:
    """The record of one point of the fit."""
    logs = logs_of(theta, frame)
    limited = {}
    if frame.size is not None:
        limited = {"modes": math.exp(logs.modes), "modes_exponent": float(logs.modes_exponent)}
    return PowerLaw(
        infimum=float(logs.infimum),
        reducible=math.exp(logs.reducible),
        risk_exponent=float(logs.risk_exponent),
        curvature=math.exp(logs.curvature),
        curvature_exponent=float(logs.curvature_exponent),
        noise=math.exp(logs.noise),
        norm_growth=math.exp(logs.norm_growth),
        batch_exponent=float(logs.batch_exponent),
        coordinates=math.exp(logs.coordinates),
        coordinates_exponent=float(logs.coordinates_exponent),
        reference_size=frame.size,
        **limited,
    )
