"""Steppers: the discrete optimizer and the integrators of its SDEs."""

from sdelens.integrate._base import Stepper
from sdelens.integrate.discrete import Discrete
from sdelens.integrate.euler import STAGES, EulerMaruyama

__all__ = ["STAGES", "Discrete", "EulerMaruyama", "Stepper"]
