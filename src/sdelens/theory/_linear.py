"""The linear gradient of a problem under a law of noise, as the theory needs it."""

import jax.numpy as jnp

from sdelens.noise import NoiseLaw
from sdelens.noise.distributed import RandomKLaw
from sdelens.noise.regression import ResamplingLaw, StreamingLaw
from sdelens.problems import AbstractProblem, LinearRegression, Quadratic
from sdelens.theory._moments import MAX_DENSE, LinearGradient, RandomKGradient
from sdelens.theory._regression_moments import ResamplingGradient, StreamingGradient

__all__ = ["linear_gradient"]

_KINDS: dict[type[NoiseLaw], type[LinearGradient]] = {
    RandomKLaw: RandomKGradient,
    ResamplingLaw: ResamplingGradient,
    StreamingLaw: StreamingGradient,
}


def linear_gradient(problem: AbstractProblem, noise: NoiseLaw) -> LinearGradient:
    """The problem's gradient with the law of its noise.

    Raises:
        TypeError: if the gradient is not linear.
        ValueError: if coordinates are coupled and there are more than 2000 of them.
    """
    if not isinstance(problem, Quadratic | LinearRegression):
        raise TypeError(
            f"problem: got {type(problem).__name__}; the theory needs a quadratic loss: sl.Quadratic or "
            "sl.LinearRegression. Expand yours about its minimum: sl.Quadratic(hessian, start)."
        )
    curvature = problem.curvature
    own = noise.noise if isinstance(noise, RandomKLaw) else noise
    if curvature.ndim == 1 and own.has_covariance:
        curvature = jnp.diag(curvature) if problem.dim <= MAX_DENSE else jnp.zeros((0, 0), curvature.dtype)
    if curvature.ndim == 2 and problem.dim > MAX_DENSE:
        raise ValueError(
            f"problem: has {problem.dim} coupled coordinates; the theory takes up to {MAX_DENSE}, and any number where "
            "curvature and noise are diagonal."
        )
    infimum = 0.0 if isinstance(problem, Quadratic) else problem.infimum
    return _KINDS.get(type(noise), LinearGradient)(curvature, problem.minimiser, infimum, noise)
