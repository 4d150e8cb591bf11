"""Theoretical predictions without simulation. They do not use the SDEs, so agreement with an SDE is evidence."""

from sdelens.theory._bounds import Assumption, LossBound, loss_bound
from sdelens.theory._fluctuation import fluctuation_factors
from sdelens.theory._overview import Overview, add_theory, overview
from sdelens.theory._phases import BOUNDARIES, Phases, phases
from sdelens.theory._predict import estimate, predict
from sdelens.theory._stationary import Stationary, stationary

__all__ = [
    "BOUNDARIES",
    "Assumption",
    "LossBound",
    "Overview",
    "Phases",
    "Stationary",
    "add_theory",
    "estimate",
    "fluctuation_factors",
    "loss_bound",
    "overview",
    "phases",
    "predict",
    "stationary",
]
