"""The laws of all paths at chosen steps, compared with those of a reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sdelens.core import check
from sdelens.core.limits import CONFIDENCE
from sdelens.core.numerals import MISSING, between, number
from sdelens.results.law_statistics import QUANTITIES, LawDifference, law_differences
from sdelens.results.printable import Parts, Plotted, Table

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from sdelens.results.figures import Sheet

__all__ = ["Laws", "compared_laws", "main_column"]

_FEWEST = 99
_SHOWN_COLUMNS = 8


@dataclass(frozen=True, repr=False)
class Laws(Plotted):
    """Differences between the laws of models and of a reference, as `Result.laws` returns them.

    Attributes:
        table: one row per model, step, quantity and column, with the columns value, lower, upper, floor, null and
            p_value; see `Result.laws`.
        reference: label of the model with which the others are compared.
        confidence: one-sided confidence of each limit.
        kinds: kind of each model by label.
    """

    table: "pd.DataFrame"
    reference: str
    confidence: float
    kinds: Mapping[str, str]

    def _parts(self) -> Parts:
        table, head = self.table, ["model", "step", "of", "W₁", f"{100 * self.confidence:g} % limits", "floor", "p"]
        quantities = table.index.unique("quantity")
        if "w1" not in quantities:
            return [f"Differences from the laws of {self.reference!r}: {', '.join(quantities)}; see `table`."]
        others = [q for q in ("energy", "covariance") if q in quantities]
        columns = list(dict.fromkeys(table.index.get_level_values("column")))
        if len(columns) > _SHOWN_COLUMNS and "all" in columns:
            columns = [name for name in columns if not name.startswith("x[")]
        rows = []
        for model in table.index.unique("model"):
            for step in table.index.unique("step"):
                own: Any = table.xs((model, step), level=("model", "step"))
                for name in (c for c in columns if ("w1", c) in own.index):
                    row = own.loc["w1", name]
                    cells = [number(row.value), _limits(row), number(row.floor), number(row.p_value, 2)]
                    more = [_cell(own, quantity, name) for quantity in others]
                    rows.append([str(model), str(step), name, *cells, *more])
        said = (
            f"Distances from the laws of {self.reference!r}, in its standard deviations; all: the coordinates "
            "together; floor: what a perfect model shows on average; p: how often it shows as much."
        )
        return [said, Table([*head, *others], rows, keys=3).without_empty()]

    def _tables(self) -> list[Table]:
        return [part for part in self._parts() if isinstance(part, Table)]

    def _draw(self, sheet: "Sheet") -> None:
        """W₁ against the step, of the main column."""
        from sdelens.results.plotting import look_of, written

        table = self.table.xs("w1", level="quantity")
        column = main_column(list(table.index.unique("column")))
        table = table.xs(column, level="column")
        axes = sheet.panels(size=(5.0, 3.2))[0]
        looks = look_of({self.reference: "optimizer", **self.kinds})
        for model in table.index.unique("model"):
            own, look = table.xs(model, level="model"), looks[model]
            steps = own.index.to_numpy()
            axes.plot(steps, own.value, marker="o", markersize=3.5, label=written(str(model)), **look)
            axes.fill_between(steps, own.lower, own.upper, color=look["color"], alpha=0.15, linewidth=0)
            axes.plot(steps, own.floor, color=look["color"], linewidth=0.8, linestyle=(0, (1, 2)))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("step")
        of = "coordinates" if column == "all" else column
        axes.set_ylabel(f"W$_1$ of {of}")
        axes.margins(x=0)
        sheet.label_lines(axes)
        last = table[table.index.get_level_values("step") == table.index.get_level_values("step").max()]
        each = ", ".join(f"{written(str(model))} {row.value:.2g}" for (model, _), row in last.iterrows())
        said = f"Distance from the law of {written(self.reference)} at the last step: {each}"
        sheet.headline(f"{said}\ndotted: the distance that a perfect model would show", axes)


def compared_laws(
    dataset: "xr.Dataset",
    streams: Mapping[str, str],
    kinds: Mapping[str, str],
    reference: str,
    at: Any = None,
    quantities: Sequence[str] = QUANTITIES,
    confidence: float = CONFIDENCE,
    resamples: int = 999,
    paths: int = 2048,
) -> Laws:
    """The laws of all models compared with those of `reference`; see `Result.laws`.

    Args:
        dataset: the dataset of a result.
        streams: names of the random numbers of the models that have paths, by label.
        kinds: kinds of these models, by label.
        reference: label of the model with which the others are compared.
        at: steps, None for the last one, ``"all"`` for all that were stored.
        quantities: what is computed.
        confidence: one-sided confidence of each limit.
        resamples: number of permutations and of bootstrap samples.
        paths: number of paths of each model that are used, the first ones.

    Raises:
        ValueError, TypeError: naming the argument.
    """
    import pandas as pd

    if "law_loss" not in dataset:
        raise ValueError(
            "laws: the run stored no values of every path; repeat it with record=sl.Record(marginals=8), and with "
            "times= for other steps than the last."
        )
    if reference not in streams:
        raise ValueError(f"reference: {reference!r} is a curve without paths; name one of {list(streams)}.")
    confidence = check.confidence(confidence)
    resamples = check.at_least("resamples", resamples, _FEWEST)
    paths = check.at_least("paths", paths, 2)
    if isinstance(quantities, str):
        raise TypeError(f"quantities: got the text {quantities!r}; give a list, for example [{quantities!r}].")
    for quantity in quantities:
        check.choice("quantities", quantity, QUANTITIES)
    rows: dict[Any, LawDifference] = {}
    for model in (label for label in streams if label != reference):
        for step in _steps(dataset, at):
            here = dataset.sel(moment=step)
            (first, columns, joint), (second, *_) = (_sample(here.sel(model=m), paths) for m in (model, reference))
            paired = streams[model] == streams[reference]
            found = law_differences(first, second, columns, joint, paired, quantities, confidence, resamples)
            rows |= {(model, step, *key): row for key, row in found.items()}
    index = pd.MultiIndex.from_tuples(list(rows), names=["model", "step", "quantity", "column"]) if rows else None
    table = pd.DataFrame(list(rows.values()), index, columns=list(LawDifference._fields), dtype=float)
    return Laws(table, reference, confidence, {m: kinds[m] for m in streams if m != reference})


def _steps(dataset: "xr.Dataset", at: Any) -> list[int]:
    """The chosen steps."""
    stored = [int(step) for step in dataset.moment.values]
    if at is None:
        return stored[-1:]
    if at == "all":
        return stored
    if isinstance(at, str):
        raise ValueError(f"at: got {at!r}; give None for the last stored step, 'all', or steps among {stored}.")
    wanted = [check.at_least("at", step, 0) for step in (at if np.ndim(at) else [at])]
    for step in wanted:
        if step not in stored:
            raise ValueError(f"at: got {step}; values of every path were stored at the steps {stored}.")
    return wanted


def _sample(here: "xr.Dataset", paths: int) -> tuple[np.ndarray, list[str], list[int]]:
    """Values of the first paths, (paths, C), names of the columns, and the indices of the coordinates."""
    parts, names = [here.law_loss.values[:, None]], ["loss"]
    if "law_observable" in here:
        parts.append(here.law_observable.transpose("every_path", "observable").values)
        names += [str(name) for name in here.observable.values]
    joint: list[int] = []
    if "law_x" in here:
        parts.append(here.law_x.transpose("every_path", "marginal").values)
        joint = list(range(len(names), len(names) + here.sizes["marginal"]))
        names += [f"x[{int(i)}]" for i in here.marginal.values]
    return np.concatenate(parts, axis=1)[:paths], names, joint


def main_column(columns: Sequence[str]) -> str:
    """The column that stands for the law of a path: the coordinates together, the only one, or the loss."""
    return next((name for name in ("all", *(c for c in columns if c.startswith("x["))) if name in columns), "loss")


def _limits(row: Any) -> str:
    return MISSING if np.isnan(row.upper) else between(row.lower, row.upper)


def _cell(own: Any, quantity: str, name: str) -> str:
    return number(own.loc[(quantity, name)].value) if (quantity, name) in own.index else MISSING
