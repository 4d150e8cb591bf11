"""The quantities that compare a model with its reference: their names, labels and columns, in one place."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from sdelens.results.tracking import Interval

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["QUANTITIES", "Quantity", "columns", "long_table", "wide_table"]


class Quantity(NamedTuple):
    """A quantity of `Result.errors`.

    Attributes:
        label: label of an axis.
        limits: whether it has confidence limits.
        percent: whether it is a share that is shown in percent.
        signed: whether it may be negative.
        bootstrap: whether its limits are from a bootstrap, not from a jackknife with Student's t.
        moment: order of the moment of the loss over paths that its limits need: 2 for those of a mean, 4 for those of
            a standard deviation.
    """

    label: str
    limits: bool = True
    percent: bool = True
    signed: bool = False
    bootstrap: bool = False
    moment: int = 2


QUANTITIES = {
    "error": Quantity("error of the mean-loss curve", bootstrap=True),
    "floor": Quantity("error that a perfect model would show", limits=False),
    "late_error": Quantity("error, last third", bootstrap=True),
    "late_shift": Quantity("shift of the mean loss, last third", signed=True),
    "discretisation": Quantity("error of the integrator", limits=False),
    "spread": Quantity("standard deviation over paths, relative", percent=False, moment=4),
    "spread_early": Quantity("standard deviation over paths, relative, first third", percent=False, moment=4),
    "spread_middle": Quantity("standard deviation over paths, relative, second third", percent=False, moment=4),
    "spread_late": Quantity("standard deviation over paths, relative, last third", percent=False, moment=4),
    "quantile_5": Quantity("error of the 5 % quantile of the loss over paths", limits=False),
    "quantile_95": Quantity("error of the 95 % quantile of the loss over paths", limits=False),
    "diverged": Quantity("number of diverged paths", limits=False, percent=False),
}
"""By the name of the column of `Result.errors`, in its order."""


def columns(quantity: str) -> tuple[str, str, str]:
    """Names of the columns of a quantity's value, lower limit and upper limit in `Result.errors`."""
    return quantity, f"{quantity}_lower", f"{quantity}_upper"


def long_table(rows: Mapping[str, Mapping[str, Interval]]) -> "pd.DataFrame":
    """One row per model and quantity, with columns value, lower and upper, from intervals by model and quantity."""
    import pandas as pd

    flat = {(model, name): rows[model][name]._asdict() for model in rows for name in QUANTITIES}
    index = pd.MultiIndex.from_tuples(list(flat), names=["model", "quantity"])
    return pd.DataFrame(list(flat.values()), index, columns=list(Interval._fields), dtype=float)


def wide_table(long: "pd.DataFrame") -> "pd.DataFrame":
    """One row per model: the columns of every quantity side by side, limits only where it has them."""
    import pandas as pd

    models = long.index.get_level_values("model").unique()
    found = {}
    for name, quantity in QUANTITIES.items():
        values = long.xs(name, level="quantity").reindex(models)
        for column, part in zip(columns(name), values, strict=True):
            if part == "value" or quantity.limits:
                found[column] = values[part].to_numpy()
    frame = pd.DataFrame(found, pd.Index(models, name="model"))
    return frame.astype({"diverged": int})
