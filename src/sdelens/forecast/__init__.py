"""Forecasts of training runs: fit the optimizer's SDE on a power-law quadratic to logged runs, predict other runs."""

from sdelens.forecast._batch_choice import BestBatch
from sdelens.forecast._decay_choice import DecayStart
from sdelens.forecast._forecaster import Forecaster
from sdelens.forecast._from_file import load
from sdelens.forecast._from_runs import fit
from sdelens.forecast._interval import Interval
from sdelens.forecast._lr_choice import BestLearningRate
from sdelens.forecast._numbers import PowerLaw
from sdelens.forecast._range import FittedRun
from sdelens.forecast._readers import Logged, read_log
from sdelens.forecast._run import Run
from sdelens.forecast._schedule_choice import BestSchedule

__all__ = [
    "BestBatch",
    "BestLearningRate",
    "BestSchedule",
    "DecayStart",
    "FittedRun",
    "Forecaster",
    "Interval",
    "Logged",
    "PowerLaw",
    "Run",
    "fit",
    "load",
    "read_log",
]
