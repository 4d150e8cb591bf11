"""A result in words and tables: title, table of errors, further tables and notes, as text and as HTML."""

from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from sdelens.core.limits import CONFIDENCE
from sdelens.core.names import hyperparameters, noise_label, optimizer_label, problem_label, schedule_label
from sdelens.core.numerals import between, number, percent, resolved, with_limits
from sdelens.results import latex
from sdelens.results.edge import sharpness_notes
from sdelens.results.joined import seeds_of
from sdelens.results.laws import main_column
from sdelens.results.printable import Table
from sdelens.results.quantities import QUANTITIES, columns

if TYPE_CHECKING:
    from sdelens.results.recorded import RecordedRun

__all__ = ["details", "latex_table", "notes", "table", "title"]


def title(result: "RecordedRun", without: Collection[str] = (), without_noise: Collection[str] = ()) -> str:
    """One line that says what was run, without the named numbers of the optimizer and of the noise."""
    info, run = result.info, result.info["run"]
    noise = {k: v for k, v in info["noise"].items() if k not in without_noise}
    own, without = hyperparameters(info["optimizer"]), frozenset(without)
    numbers = ", ".join(f"{k}={v:g}" for k, v in own.items() if isinstance(v, float) and not {k, f"base.{k}"} & without)
    numbers += f", schedule {schedule_label(own['schedule'])}" if "schedule" in own else ""
    numbers += ", independent decay" if own.get("decay") == "independent" else ""
    start = f"start: {run['start']}, " if "start" in run else ""
    dimension = f"d = {run['dim']}, " if "dim" in run else ""
    return (
        f"{optimizer_label(info['optimizer'])} ({numbers}) on {problem_label(info['problem'])}, {dimension}"
        f"{noise_label(noise)} noise: {start}{run['steps']} steps"
        + (f", {run['paths']} paths, {_seeds(run)}" if "paths" in run else "")
    )


def _seeds(run: dict[str, Any]) -> str:
    seeds = seeds_of(run)
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def table(result: "RecordedRun") -> tuple[list[str], list[list[str]]]:
    """Header and rows of the printed table, as text."""
    if {model["model"] for model in result.settings.values()} <= {"forecast", "logged"}:
        return _forecast_table(result)
    final = result.dataset.isel(step=-1)
    head = [
        "model",
        "final loss ± sem",
        "error",
        "99 % limits",
        "floor",
        "last third",
        "spread by thirds",
        "5, 95 %",
        "diverged",
    ]
    compared = result.compares
    errors: dict[Any, dict[Any, Any]] = result.errors().to_dict("index") if compared else {}
    resolved = any(np.isfinite(row["discretisation"]) for row in errors.values())
    rows = []
    for model in result.models:
        here = final.sel(model=model)
        n_paths = result.dataset.n_paths.sel(model=model).values
        final_loss = f"{float(here.loss_mean):.5g}" if np.isfinite(float(here.loss_mean)) else "-"
        start = [model, f"{final_loss} ± {float(here.loss_sem):.1g}" if result.has_paths(model) else final_loss]
        middle = ["-"] * 6
        split = ["-"] if resolved else []
        if model in errors:
            row = errors[model]
            limits = "-" if np.isnan(row["error_upper"]) else _limits(row)
            shift = percent(row["late_shift"], plus=True)
            error = "diverged" if row["diverged"] and np.isnan(row["error"]) else _error(row)
            middle = [error, limits, percent(row["floor"]), shift, _thirds(row), _quantiles(row)]
            if np.isfinite(row["discretisation"]):
                split = [percent(row["discretisation"])]
        rows.append([*start, *middle, str(int(n_paths[0] - n_paths[-1])), *split])
    if resolved:
        head.append("discretisation")
    return head, rows


def _forecast_table(result: "RecordedRun") -> tuple[list[str], list[list[str]]]:
    """Header and rows of forecasts and the logged curve beside them."""
    levels = result.dataset["quantile"].values
    share = f"{100 * (levels[-1] - levels[0]):.3g} % band"
    errors: dict[Any, dict[Any, Any]] = result.errors().to_dict("index") if result.compares else {}
    rows = []
    for model in result.models:
        here = result.dataset.sel(model=model)
        known = np.flatnonzero(np.isfinite(here.loss_mean.values))[-1]
        low, high = (float(here.loss_quantile.isel(step=known, quantile=i)) for i in (0, -1))
        band = f"{low:.5g} – {high:.5g}" if np.isfinite(low) else "-"
        row = errors.get(model)
        compared = ["-", "-"] if row is None else [percent(row["error"]), percent(row["late_shift"], plus=True)]
        rows.append([model, str(int(here.step[known])), f"{float(here.loss_mean[known]):.5g}", band, *compared])
    return ["curve", "last step", "loss", share, "error", "last third"], rows


def latex_table(
    result: "RecordedRun", reference: str | None = None, confidence: float = CONFIDENCE
) -> tuple[list[str], list[list[str]]]:
    """Header and rows in LaTeX: final losses with standard errors, and what compares models, with limits."""
    compared = result.compares or reference is not None
    errors: dict[Any, Any] = result.errors(reference, confidence).to_dict("index") if compared else {}
    said = f"[{100 * confidence:g} %]"
    head = ["model", "final loss"]
    head += [f"error (%) {said}", f"last third: shift (%) {said}", f"spread {said}"] if compared else []
    rows: list[list[str]] = []
    for model in result.models:
        known = result.dataset.sel(model=model).loss_mean.values
        here = result.dataset.sel(model=model).isel(step=int(np.flatnonzero(np.isfinite(known))[-1]))
        sem = float(here.loss_sem) if "loss_sem" in here else np.nan
        cells: list[str] = [model, latex.uncertain(float(here.loss_mean), sem)]
        row = errors.get(model)
        if row is not None:
            percent_of = {name: [100 * row[column] for column in columns(name)] for name in ("error", "late_shift")}
            cells += [
                latex.limited(percent_of["error"], 100 * row["floor"]),
                latex.limited(percent_of["late_shift"]),
                latex.limited([row[column] for column in columns("spread")]),
            ]
        else:
            cells += ["reference", "", ""] if compared else []
        rows.append(cells)
    return head, rows


def details(result: "RecordedRun") -> list[Table]:
    """Further tables: observables, the laws of coordinates at the last step, and hitting times."""
    found: list[Table] = []
    if result.observables:
        rows = []
        for name in result.observables:
            table = result.of(name)
            errors: dict[Any, Any] = table.errors().to_dict("index") if result.compares else {}
            for model in (m for m in result.models if result.has_paths(m)):
                here = table.dataset.sel(model=model).isel(step=-1)
                row = errors.get(model)
                limits = "-" if row is None else _limits(row)
                error, spread = ("-", "-") if row is None else (_error(row), _interval(row))
                final = f"{float(here.loss_mean):.5g} ± {float(here.loss_sem):.1g}"
                rows.append([name, model, final, error, limits, spread])
        caption = "Observables: errors relative to the rise of the optimizer's mean above its smallest value."
        head = ["observable", "model", "final ± sem", "error", "99 % limits", "spread"]
        found.append(Table(head, rows, caption, keys=2))
    if "law_loss" in result.dataset and result.compares:
        found.append(_laws_table(result))
    if "hit_step" in result.dataset:
        said, times = result.hitting_times().caption_and_table()
        found.append(times._replace(caption=said))
    return found


def _laws_table(result: "RecordedRun") -> Table:
    """Distances of the laws at the last stored step: of the coordinates together, or of the loss without them."""
    found = result.laws(quantities=["w1"])
    step = int(found.table.index.unique("step")[-1])
    rows = []
    for model in found.table.index.unique("model"):
        own = found.table.xs((model, step, "w1"), level=("model", "step", "quantity"))
        shown: Any = own.loc[main_column(list(own.index))]
        single = own[own.index.str.startswith("x[")]
        cells = [
            f"{shown.value:.3g}",
            between(shown.lower, shown.upper, partial(number, digits=2)),
            f"{shown.floor:.3g}",
        ]
        largest = f"{single.value.max():.3g} ({single.value.idxmax()})" if single.value.notna().any() else "-"
        rows.append([model, *(cells if np.isfinite(shown.value) else ["-"] * 3), f"{shown.p_value:.2g}", largest])
    count = result.dataset.sizes.get("marginal", 0)
    of = f"{count} coordinates" if count > 1 else main_column(list(own.index))
    caption = (
        f"Laws of {of} of every path at step {step}: W₁ distance from the optimizer's in its standard deviations (mean "
        "over directions), 99 % limits, what a perfect model shows (floor), and how often it shows as much (p)."
    )
    return Table(["model", "W₁", "limits", "floor", "p", "largest"], rows, caption)


def notes(result: "RecordedRun") -> list[str]:
    """What the table's columns mean, the devices used, and how to use more."""
    device = result.info["device"]
    seconds = sum(m["wall_time"] for m in result.info["models"].values())
    shares = device.get("shares", 1)
    notes = [f"{device['count']} × {device['kind']}, {seconds:.1f} s."]
    if shares > 1:
        notes = [f"{shares} shares, the first on {device['count']} × {device['kind']}, {seconds:.1f} s in all."]
    elif device["platform"] == "cpu" and device["count"] < device["cores"] and "paths" in result.info["run"]:
        notes.append(
            f"This machine has {device['cores']} cores: jax.config.update('jax_num_cpu_devices', {device['cores']}) "
            "before the "
            "first use of JAX makes each of them a device."
        )
    forecasts = [model for model in result.settings.values() if model["model"] == "forecast"]
    if result.compares and forecasts:
        notes.insert(
            0,
            "error: L2 of the forecast against the logged curve, relative to that less its smallest value; last third: "
            "shift of its mean, relative to the height of the whole curve.",
        )
    elif result.compares:
        known = np.isfinite(float(result.dataset.attrs["infimum"]))
        scale = "" if known else " less its smallest value"
        shift = "relative to the optimizer's" if known else "relative to the height of the whole curve"
        notes.insert(
            0,
            f"error: L2 of the mean-loss curve against the optimizer's, relative to that{scale}, Monte-Carlo noise "
            "removed; limits: 99 % on each side; floor: what a perfect model shows; last third: shift of its mean, "
            f"{shift}; "
            "spread: standard deviation over paths relative to the optimizer's, averaged over each third of the run; "
            "5, 95 %: errors of these quantiles of the loss over paths.",
        )
        order = min(result.moments(model) for model in result.models)
        if order <= QUANTITIES["spread"].moment:
            lacking = "errors, shift and spread" if order <= QUANTITIES["error"].moment else "the spread"
            notes.insert(
                1,
                f"No limits of {lacking}: under this noise the loss of {optimizer_label(result.info['optimizer'])} has "
                f"moments of order below {order:g} only, and limits of a mean need order 2, those of a spread order 4.",
            )
    if len(seeds_of(result.info["run"])) > 1:
        notes.insert(
            0,
            "Several seeds are pooled: quantiles of the loss over paths do not follow from those of the parts, and are "
            "left out.",
        )
    if len(result.models) > 1 and not result.compares:
        notes.insert(0, "No errors: there is no optimizer among the models to compare with.")
    for model in forecasts:
        beyond = "; ".join(model["outside"])
        notes.insert(0, f"Outside the range of the fitted runs: {beyond}." if beyond else "Within the fitted range.")
    lost = result.dataset.n_paths.isel(step=0) - result.dataset.n_paths.isel(step=-1)
    if "loss_bound" in result.dataset:
        notes.insert(0, f"Bounds in the figure: {', '.join(str(b) for b in result.dataset.bound.values)}.")
    if any(model["model"] == "prediction" for model in result.settings.values()):
        notes.insert(0, "prediction: mean and covariance of the state from step to step, without paths.")
    if int(lost.sum()):
        notes.insert(
            0,
            "Paths that diverge inflate mean, spread and errors until they overflow; then they leave the averages.",
        )
    notes += sharpness_notes(result.dataset, result.info["optimizer"])
    return notes


def _error(row: dict[Any, Any]) -> str:
    """The error; if it is not resolved, "<" and its upper limit."""
    return resolved(row["error"], row["floor"], row["error_upper"])


def _limits(row: dict[Any, Any]) -> str:
    """The limits of the error."""
    return between(row["error_lower"], row["error_upper"], percent)


def _thirds(row: dict[Any, Any]) -> str:
    """The ratios of standard deviations in the first, second and last third of the run."""
    values = [row[f"spread_{part}"] for part in ("early", "middle", "late")]
    return ", ".join("-" if np.isnan(v) else f"{v:.2f}" for v in values) if np.isfinite(values).any() else "-"


def _quantiles(row: dict[Any, Any]) -> str:
    """The errors of the 5 % and 95 % quantiles."""
    values = row["quantile_5"], row["quantile_95"]
    return "-" if np.isnan(values).all() else ", ".join(percent(v) for v in values)


def _interval(row: dict[Any, Any]) -> str:
    """The ratio of standard deviations with its limits."""
    value, low, high = (row[column] for column in columns("spread"))
    return with_limits(value, low, high, "{:.2f}".format)
