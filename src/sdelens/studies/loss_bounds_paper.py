"""Do the paper's bounds of the mean loss hold for the optimizers themselves?"""

from sdelens.studies._bound_cases import run_bounds
from sdelens.studies._study import Outcome, Plan, Study

__all__ = ["STUDY"]

NAMES = ["SGD", "SignSGD, phase 1", "SignSGD, phase 2", "SignSGD, phase 3", "RMSpropW", "AdamW, t → ∞"]


def run(plan: Plan) -> Outcome:
    """Check every bound in the form of the paper."""
    return run_bounds(plan, NAMES, "paper", {"SignSGD, phase 3": 1.25})


STUDY = Study(
    name="loss-bounds-paper",
    statement="The mean loss of SGD, SignSGD (phase by phase), RMSpropW and AdamW stays below the paper's bounds.",
    source="arXiv 2411.15958, its bounds on the expected loss.",
    criterion="Largest ratio of mean loss to bound over all problems and records, with limits that hold for all of "
    "them simultaneously: at most 1.02, which allows for the finite step size.",
    items=6,
    sizes={
        "quick": {"problems": 4, "paths": 131_072},
        "full": {"problems": 100, "paths": 200_000},
        "paper": {"problems": 300, "paths": 400_000},
    },
    run=run,
    reasons={
        "SignSGD, phase 3": "The paper's bound is that of a linearised SDE, in which erf(y) is replaced by its "
        "tangent 2y/√π. The tangent lies above erf, so SignSGD's true drift is smaller, down to "
        "erf(1)√π/2 = 0.75 times the linearised one. On isotropic problems, where the bound loses nothing by using the "
        "smallest curvature and the largest noise, the loss exceeds it. With Δ = erf(1)/(√2 σ) in place of √(2/π)/σ + "
        "(η/π)μ/σ² the bound holds: see loss-bounds.",
        "RMSpropW": "This is a bound for the SDE, which the optimizer may exceed by O(η) because its steps are finite.",
    },
)
