"""Do this library's bounds of the mean loss hold for the optimizers themselves?"""

from sdelens.studies._bound_cases import run_bounds
from sdelens.studies._study import Outcome, Plan, Study

__all__ = ["STUDY"]

NAMES = [
    "SGD",
    "SignSGD, any start",
    "SignSGD, any start, Cauchy noise",
    "SignSGD, phase 1",
    "SignSGD, phase 2",
    "SignSGD, phase 3",
    "RMSpropW",
    "AdamW, t → ∞",
]


def run(plan: Plan) -> Outcome:
    """Check every bound in the form for the algorithm."""
    return run_bounds(plan, NAMES, "algorithm", {})


STUDY = Study(
    name="loss-bounds",
    statement="The mean loss of SGD, SignSGD (in every phase and from any start, Cauchy noise included), RMSpropW "
    "and AdamW stays below this library's bounds.",
    source="This library (docs/theory.md, form “algorithm”).",
    criterion="Largest ratio of mean loss to bound over all problems and records, with limits that hold for all of "
    "them simultaneously: at most 1.02. (Where a bound is attained exactly, the ratio is 1.)",
    items=8,
    sizes={
        "quick": {"problems": 4, "paths": 131_072},
        "full": {"problems": 100, "paths": 200_000},
        "paper": {"problems": 300, "paths": 400_000},
    },
    run=run,
)
