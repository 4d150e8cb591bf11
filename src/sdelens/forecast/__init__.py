"""Forecasts of training runs: fit the optimizer's SDE on a power-law quadratic to logged runs, predict other runs."""

from sdelens.forecast._forecaster import Forecaster, Interval, fit, load
from sdelens.forecast._numbers import PowerLaw
from sdelens.forecast._range import FittedRun
from sdelens.forecast._run import Run

__all__ = ["FittedRun", "Forecaster", "Interval", "PowerLaw", "Run", "fit", "load"]
