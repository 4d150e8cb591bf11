r"""Hitting and escape times: how long paths take until a condition holds, with paths for which it never does.

Path i is watched until step C_i, the end of the run, or the step at which it diverged, and the condition first holds at
T_i, if T_i ≤ C_i. With Y_k paths still watched and unhit before step k, of which d_k are hit at it, the share of paths
that are not hit until k is estimated by Kaplan and Meier (1958),

    S(k) = Π_{j ≤ k} (1 − d_j/Y_j),

which is the plain share as long as no path diverges. Its limits are those of the beta product (Fay, Brittain and
Proschan 2013), which without diverged paths are those of Clopper and Pearson, with at least the stated confidence.

The mean is restricted to the K steps of the run, E min(T, K) = Σ_{k < K} S(k), so that paths that are never hit count
with K; it is the mean hitting time where all are hit. With A(k) = Σ_{j ≥ k}^{K−1} S(j), path i has the influence

    u_i = P (Σ_{k ≤ min(T_i, C_i)} A(k) d_k/(Y_k(Y_k − d_k)) − A(T_i) 1{hit}/(Y_T − d_T)),

whose mean square over P is the variance of the mean (Greenwood's). Limits are the mean ± z of
the standard error; those of the difference of two models use the differences u_i − u'_i of paths that share their
random numbers. If no path is hit, the lower limit is K times that of S(K). Paths that diverge are taken as censored
independently of T, which they may not be.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from sdelens.core import check
from sdelens.core.limits import CONFIDENCE
from sdelens.core.numerals import MISSING, number, signed, with_limits
from sdelens.results.printable import Parts, Plotted, Table

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from sdelens.results.figures import Sheet

__all__ = ["HittingTimes", "Survival", "survival_of", "times_of"]


class Survival(NamedTuple):
    """The law of a hitting time, from paths of which some were not hit.

    Attributes:
        steps: steps 0, …, K at which the share is given, shape (K + 1,).
        share: S: the share of paths that are not hit up to and including the step.
        lower: one-sided lower limit of the share.
        upper: one-sided upper limit of the share.
        mean: the mean restricted to K steps.
        influence: u_i of every path, shape (P,).
    """

    steps: np.ndarray
    share: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    mean: float
    influence: np.ndarray

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return _error(self.influence)


def survival_of(first: np.ndarray, until: np.ndarray, steps: int, confidence: float = CONFIDENCE) -> Survival:
    """The law of the first step at which a condition holds.

    Args:
        first: the first step of every path, NaN where there is none, shape (P,).
        until: the last step until which every path was watched, shape (P,).
        steps: K, the number of steps of the run.
        confidence: one-sided confidence of each limit of the share.
    """
    hit = np.isfinite(first)
    end = np.where(hit, first, until).astype(int)
    count = len(end)
    left = np.bincount(end, minlength=steps + 2)[: steps + 2]
    hits = np.bincount(end[hit], minlength=steps + 1)[: steps + 1].astype(float)
    watched = (count - np.concatenate([[0], np.cumsum(left)[:-1]]))[: steps + 1].astype(float)
    share = np.cumprod(np.where(watched > 0, 1 - hits / np.maximum(watched, 1), 1.0))
    rest = np.append(np.cumsum(share[:-1][::-1])[::-1], 0.0)  # A(k) = Σ_{j = k}^{K − 1} S(j)
    after = np.where(watched > hits, watched - hits, np.inf)  # where all are hit, A(k) = 0
    rate = np.cumsum(rest * hits / (np.maximum(watched, 1) * after))
    influence = count * (rate[end] - np.where(hit, (rest / after)[end], 0.0))
    lower, upper = _beta_product(hits, watched, confidence)
    return Survival(np.arange(steps + 1), share, lower, upper, float(share[:-1].sum()), influence)


def _beta_product(hits: np.ndarray, watched: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Limits of the share after every step: quantiles of products of beta laws, by matching two moments."""
    from scipy.special import betaincinv

    after = np.append(watched[1:], 0.0)
    after = np.where(np.arange(len(watched)) == len(watched) - 1, watched - hits, after)

    def quantile(level: float, mean: np.ndarray, square: np.ndarray) -> np.ndarray:
        spread = square - mean**2
        known = (spread > 0) & (mean > 0) & (mean < 1)
        size = np.where(known, (mean - square) / np.where(known, spread, 1.0), 1.0)
        found = betaincinv(np.maximum(size * mean, 1e-300), np.maximum(size * (1 - mean), 1e-300), level)
        return np.where(known, found, mean)

    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = watched - hits + 1, hits
        mean, square = np.cumprod(a / (a + b)), np.cumprod(a * (a + 1) / ((a + b) * (a + b + 1)))
        upper = quantile(confidence, mean, square)
        low_mean, low_square = mean * after / (after + 1), square * after / (after + 2)
        lower = quantile(1 - confidence, low_mean, low_square)
    return lower, np.where(mean >= 1, 1.0, upper)


def _error(influence: np.ndarray) -> float:
    count = len(influence)
    return float(np.sqrt((influence**2).sum() / max(count - 1, 1) / count)) if count > 1 else np.nan


@dataclass(frozen=True, repr=False)
class HittingTimes(Plotted):
    """Hitting times of all models, as `Result.hitting_times` returns them.

    Attributes:
        table: one row per condition and model, with the columns of `Result.hitting_times`.
        survival: one row per condition, model and step, with the columns share, lower and upper: the share of paths for
            which the condition has not held up to and including the step.
        steps: K, the number of steps of the run.
        reference: label of the model with which the others are compared, None if there is none.
        kinds: kind of each model by label.
    """

    table: "pd.DataFrame"
    survival: "pd.DataFrame"
    steps: int
    reference: str | None
    kinds: Mapping[str, str]

    def caption_and_table(self) -> tuple[str, Table]:
        """What is shown, and its table."""
        rows = []
        for key, row in self.table.iterrows():
            name, model = cast("tuple[str, str]", key)
            mean = with_limits(row["mean"], row.lower, row.upper, partial(number, digits=4))
            off = MISSING
            if np.isfinite(row.difference_upper):
                off = with_limits(row.difference, row.difference_lower, row.difference_upper, partial(signed, digits=3))
            rows.append([name, model, f"{int(row.hits)} of {int(row.paths)}", mean, off])
        head = ["condition", "model", "hit", "mean step (limits)", "difference (limits)"]
        said = (
            f"Steps until a condition holds; paths for which it does not hold within the run count with {self.steps}."
        )
        return said, Table(head, rows, keys=2).without_empty()

    def _parts(self) -> Parts:
        return list(self.caption_and_table())

    def _draw(self, sheet: "Sheet") -> None:
        """The share of paths that are not hit, with its limits, one panel per condition."""
        from sdelens.results.plotting import look_of, written

        names = list(self.survival.index.unique("condition"))
        panels = sheet.panels(1, len(names), size=(4.4 * len(names), 3.2), stack=True, equal=True)
        looks = look_of(dict(self.kinds))
        for axes, name in zip(panels, names, strict=False):
            for model in self.kinds:
                if (name, model) not in self.table.index:
                    continue
                own, look = self.survival.xs((name, model), level=("condition", "model")), looks[model]
                steps = own.index.to_numpy()
                axes.plot(steps, own.share, drawstyle="steps-post", label=written(model), **look)
                axes.fill_between(
                    steps, own.lower, own.upper, step="post", color=look["color"], alpha=0.15, linewidth=0
                )
            axes.set_ylim(0, 1.02)
            axes.set_xlabel("step")
            axes.set_ylabel(f"share of paths before {name!r}")
            axes.margins(x=0)
            sheet.label_lines(axes)
        means: dict[Any, float] = self.table["mean"].to_dict()
        several = len(names) > 1
        each = [f"{written(m)} {value:.3g}" + f" ({name})" * several for (name, m), value in means.items()]
        sheet.headline(f"Mean number of steps: {', '.join(each)}")


def times_of(
    dataset: "xr.Dataset",
    streams: Mapping[str, str],
    kinds: Mapping[str, str],
    reference: str | None,
    confidence: float = CONFIDENCE,
) -> HittingTimes:
    """Hitting times of all models that have paths; see `Result.hitting_times`.

    Args:
        dataset: the dataset of a result.
        streams: names of the random numbers of the models that have paths, by label.
        kinds: kinds of these models, by label.
        reference: label of the model with which the others are compared, or None.
        confidence: one-sided confidence of each limit.

    Raises:
        ValueError: naming the argument, or if the run counted no hitting times.
    """
    import pandas as pd
    from scipy.special import ndtri

    if "hit_step" not in dataset:
        raise ValueError(
            "hits: the run counted no hitting times; repeat it with record=sl.Record(hits={'escape': lambda p: ...})."
        )
    confidence = check.confidence(confidence)
    steps, z = int(dataset.step.values[-1]), float(ndtri(confidence))
    rows: dict[Any, dict[str, float]] = {}
    curves: dict[Any, pd.DataFrame] = {}
    for name in map(str, dataset.hit.values):
        own = {m: _survival(dataset, name, m, steps, confidence) for m in streams}
        known = {m: survival for m, survival in own.items() if survival is not None}
        for model, survival in known.items():
            first = dataset.hit_step.sel(hit=name, model=model).values
            row = {
                "hits": float(np.isfinite(first).sum()),
                "paths": float(len(survival.influence)),
                "mean": survival.mean,
                "lower": survival.mean - z * survival.error,
                "upper": survival.mean + z * survival.error,
            }
            if not row["hits"]:  # the mean is at least K times the share that is not hit within the run
                row["lower"] = steps * float(survival.lower[-1])
            if reference in known and model != reference:
                other = known[reference]
                paired = streams[model] == streams[reference] and len(other.influence) == len(survival.influence)
                error = (
                    _error(survival.influence - other.influence)
                    if paired
                    else float(np.hypot(survival.error, other.error))
                )
                off = survival.mean - other.mean
                row |= {"difference": off}
                if error > 0:
                    row |= {"difference_lower": off - z * error, "difference_upper": off + z * error}
            rows[name, model] = row
            curves[name, model] = pd.DataFrame(
                {"share": survival.share, "lower": survival.lower, "upper": survival.upper},
                index=pd.Index(survival.steps, name="step"),
            )
    columns = ["hits", "paths", "mean", "lower", "upper", "difference", "difference_lower", "difference_upper"]
    index = pd.MultiIndex.from_tuples(list(rows), names=["condition", "model"])
    table = pd.DataFrame(list(rows.values()), index, columns=columns, dtype=float)
    survival = pd.concat(curves, names=["condition", "model"])
    return HittingTimes(table, survival, steps, reference, {m: kinds[m] for m in streams})


def _survival(dataset: "xr.Dataset", name: str, model: str, steps: int, confidence: float) -> Survival | None:
    """The law of the hitting times of one model; None where it was not watched."""
    until = dataset.watched_until.sel(model=model).values
    if not np.isfinite(until).all():
        return None
    return survival_of(dataset.hit_step.sel(hit=name, model=model).values, until, steps, confidence)
