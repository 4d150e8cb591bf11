"""One file per claim of the paper and of this library, and functions that run them and report verdicts."""

from sdelens.studies._claims import STUDIES
from sdelens.studies._records import Record
from sdelens.studies._study import PRESETS, Animation, Outcome, Picture, Plan, Study
from sdelens.studies._verdicts import FAILS, FAMILY_RATE, HOLDS, OPEN, Estimate, Item

__all__ = [
    "FAILS",
    "FAMILY_RATE",
    "HOLDS",
    "OPEN",
    "PRESETS",
    "STUDIES",
    "Animation",
    "Estimate",
    "Item",
    "Outcome",
    "Picture",
    "Plan",
    "Record",
    "Study",
]
