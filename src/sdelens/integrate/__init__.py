"""Steppers: the discrete optimizer and the integrators of its SDEs."""

from sdelens.integrate._base import MAX_COORDINATES, Integration, Stepper
from sdelens.integrate.coupled import Coupled
from sdelens.integrate.discrete import Discrete
from sdelens.integrate.empirical import Empirical
from sdelens.integrate.euler import STAGES, EulerMaruyama
from sdelens.integrate.quadrature import NoQuadratureError, Quadrature
from sdelens.integrate.query_check import check_queried
from sdelens.integrate.watched import Average, Exponential, Polyak, Watched

__all__ = [
    "MAX_COORDINATES",
    "STAGES",
    "Average",
    "Coupled",
    "Discrete",
    "Empirical",
    "EulerMaruyama",
    "Exponential",
    "Integration",
    "NoQuadratureError",
    "Polyak",
    "Quadrature",
    "Stepper",
    "Watched",
    "check_queried",
]
