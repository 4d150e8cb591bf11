"""Limits of the fitted numbers, from the covariance of the fit's coordinates, each within the number's own range."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sdelens.core.limits import OF_FORECAST, normal_point
from sdelens.forecast._numbers import Frame, logs_of, parameters_of

__all__ = ["number_limits"]


def number_limits(
    theta: NDArray[np.float64], covariance: NDArray[np.float64], frame: Frame
) -> tuple[list[str], list[float], list[float]]:
    """Names of the numbers, their lower and their upper limits."""
    names = [p.name for p in parameters_of(frame)]

    def logs(theta: Any) -> Any:
        found = logs_of(theta, frame)
        return jnp.stack([jnp.asarray(getattr(found, name)) for name in names])

    with jax.enable_x64(True):
        at = jnp.asarray(theta)
        centre, slope = np.asarray(logs(at)), np.asarray(jax.jacfwd(logs)(at))
    half = normal_point(OF_FORECAST) * np.sqrt(np.einsum("ij,jk,ik->i", slope, covariance, slope))
    low, high = [], []
    for name, middle, width in zip(names, centre, half, strict=True):
        match name:
            case "infimum":
                low.append(max(middle - width, 0.0))
                high.append(min(middle + width, frame.last))
            case "risk_exponent" | "curvature_exponent" | "modes_exponent":
                base = 1.0 if name == "risk_exponent" else 0.0
                low.append(base + (middle - base) * math.exp(-width / (middle - base)))
                high.append(base + (middle - base) * math.exp(width / (middle - base)))
            case "batch_exponent" | "coordinates_exponent":
                low.append(middle - width)
                high.append(middle + width)
            case _:
                low.append(math.exp(middle - width))
                high.append(math.exp(middle + width))
    return names, [float(v) for v in low], [float(v) for v in high]
