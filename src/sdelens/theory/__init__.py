"""Theoretical predictions without simulation. They do not use the SDEs, so agreement with an SDE is evidence."""

from sdelens.theory._bounds import Assumption, LossBound, loss_bound
from sdelens.theory._fluctuation import fluctuation_factors
from sdelens.theory._matrix_sign import MatrixSign, matrix_sign
from sdelens.theory._optimise import optimise
from sdelens.theory._optimum import Optimum, OptimumByBatch
from sdelens.theory._overview import Overview, add_theory, overview
from sdelens.theory._phases import BOUNDARIES, Phases, phases
from sdelens.theory._predict import estimate, predict, predicted_loss
from sdelens.theory._stability import StabilityLimit, stability_limit
from sdelens.theory._stationary import Stationary, stationary
from sdelens.theory._time_to import TimeTo, time_to

__all__ = [
    "BOUNDARIES",
    "Assumption",
    "LossBound",
    "MatrixSign",
    "Optimum",
    "OptimumByBatch",
    "Overview",
    "Phases",
    "StabilityLimit",
    "Stationary",
    "TimeTo",
    "add_theory",
    "estimate",
    "fluctuation_factors",
    "loss_bound",
    "matrix_sign",
    "optimise",
    "overview",
    "phases",
    "predict",
    "predicted_loss",
    "stability_limit",
    "stationary",
    "time_to",
]
