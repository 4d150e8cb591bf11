"""Matplotlib figures of datasets, with the same colour and line style for a kind of model in all figures."""

import itertools
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib.ticker import MaxNLocator

from sdelens.core.limits import normal_point
from sdelens.core.names import noise_label, optimizer_label, problem_label
from sdelens.core.numerals import number, resolved
from sdelens.results.figures import Sheet, line_scale

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.axes import Axes

__all__ = ["look_of", "plot_losses", "plot_orders", "written"]

# Okabe and Ito's palette, safe for colour-blind readers; the dashes distinguish models in black and white.
_LOOKS: Final[dict[str, dict[str, Any]]] = {
    "optimizer": {"color": "#000000", "linestyle": "-", "linewidth": 2.4, "alpha": 0.75},
    "sde": {"color": "#0072B2", "linestyle": (0, (5, 2))},
    "malladi2022": {"color": "#D55E00", "linestyle": (0, (1, 1.2))},
    "full-noise": {"color": "#009E73", "linestyle": (0, (4, 1.2))},
    "second-order": {"color": "#117733", "linestyle": (0, (6, 1.5, 1, 1.5))},
    "empirical": {"color": "#56B4E9", "linestyle": (0, (2, 2))},
    "prediction": {"color": "#CC79A7", "linestyle": (0, (3, 1.5, 1, 1.5, 1, 1.5))},
    "logged": {"color": "#E69F00", "linestyle": "-", "linewidth": 1.2},
    "forecast": {"color": "#0072B2", "linestyle": "-", "linewidth": 1.4},
    "rescaled": {"color": "#0072B2", "linestyle": (0, (5, 2))},
}
_BOUNDS: Final[list[dict[str, Any]]] = [
    {"color": "0.35", "linestyle": (0, (1, 1)), "linewidth": 1.2},
    {"color": "0.6", "linestyle": (0, (4, 1, 1, 1)), "linewidth": 1.2},
]
_SPARE: Final[list[dict[str, Any]]] = [
    {"color": "#8C510A", "linestyle": (0, (3, 1))},
    {"color": "#882255", "linestyle": (0, (8, 3))},
    {"color": "#999999", "linestyle": (0, (5, 1, 1, 1))},
    {"color": "#332288", "linestyle": (0, (1, 2))},
]
_NAMES: Final = {
    "optimizer": "optimizer",
    "sde": "SDE",
    "malladi2022": "earlier SDE",
    "full-noise": "full-noise SDE",
    "second-order": "second-order SDE",
    "empirical": "empirical SDE",
    "prediction": "prediction",
}
_LOG_FROM: Final = 5.0
_FEW: Final = 6
"""Most curves for which the legend has one column."""
_FALLS: Final = 0.25
"""Slope of an error above which it is said to fall with η."""
_SYMLOG_FROM: Final = 30.0


def look_of(kinds: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Colour and line style per label: the first of each known kind has that kind's, others the rest of the palette."""
    taken = {_LOOKS[kind]["color"] for kind in {"optimizer", *kinds.values()} if kind in _LOOKS}
    absent = [look for look in _LOOKS.values() if look["color"] not in taken]
    spare, known = itertools.cycle([*_SPARE, *absent]), dict(_LOOKS)
    looks = {label: known.pop(kind) if kind in known else next(spare) for label, kind in kinds.items()}
    return {label: _scaled(look) for label, look in looks.items()}


def _scaled(look: Mapping[str, Any]) -> dict[str, Any]:
    """A look with the line width of the style in use."""
    return {k: v * line_scale() if k == "linewidth" else v for k, v in look.items()}


def written(label: str) -> str:
    """A model's label as written in figures."""
    return _NAMES.get(label, label).replace("$", r"\$")


def plot_losses(
    sheet: Sheet,
    dataset: "xr.Dataset",
    reference: str,
    kinds: Mapping[str, str],
    height: float | None,
    errors: Mapping[str, tuple[float, float, float]],
) -> None:
    """Mean loss per model, minus the infimum where it is known, and differences from the reference below.

    Bands: above, the middle 90 % of the reference's paths; below, 99 % intervals of the difference of means.

    Args:
        sheet: where they are drawn; on one axes only the upper panel.
        dataset: dataset of a result.
        reference: label of the model that is drawn with the grey band and with which the others are compared.
        kinds: kind of model (``"optimizer"``, ``"sde"``, …) per label.
        height: the scale of the differences; by default the reference's mean loss minus the infimum at each time.
        errors: error of the mean-loss curve of every model that is compared, the one that a perfect model would
            show, and the upper limit of an error that is not larger than this; without any, there is no lower panel.
    """
    rank = list(_LOOKS)  # the optimizer is drawn first, independently of the order of runs and merges
    models = sorted(kinds, key=lambda model: rank.index(kinds[model]) if kinds[model] in rank else len(rank))
    looks = look_of({model: kinds[model] for model in models})
    infimum = float(dataset.attrs["infimum"])
    minimum = infimum if np.isfinite(infimum) else 0.0
    if errors:
        panels = sheet.panels(2, size=(5.6, 4.8), sharex=True, height_ratios=[2.2, 1])
    else:
        panels = sheet.panels(size=(5.6, 3.4))
    at_ends = _plot_curves(sheet, panels[0], dataset, models, reference, looks, minimum)
    if len(panels) > 1:
        base = dataset.loss_mean.sel(model=reference).values - minimum
        scale = np.where(base > 0, base, np.nan) if height is None else np.full(base.shape, height)
        _plot_differences(panels[1], dataset, models, reference, looks, scale, at_ends)
        panels[1].set_ylabel("difference (%)" if height is None else "difference\n(% of height)")
    panels[-1].set_xlabel(dataset.attrs.get("clock", "time  $t = k\\eta$"))
    each = [f"{written(model)} {resolved(*errors[model])}" for model in models if model in errors]
    said = f"Difference from {written(reference)}: " + ", ".join(text.replace(" ", "\u00a0") for text in each)
    sheet.headline(said * bool(errors) + "\n" * bool(errors) + _title(dataset), panels[0])
    sheet.align()


def _plot_curves(
    sheet: Sheet,
    axes: "Axes",
    dataset: "xr.Dataset",
    models: list[str],
    shown: str,
    looks: dict[str, Any],
    minimum: float,
) -> bool:
    """Draw the upper panel; returns whether its lines are named at their ends."""
    time = dataset.time.values
    mean = dataset.loss_mean.values - minimum
    finite = mean[np.isfinite(mean)]
    # A range of less than a factor of five is easier to read on a linear axis.
    is_loss = "quantity" not in dataset.attrs
    logarithmic = bool(is_loss and finite.size and finite.min() > 0 and finite.max() > _LOG_FROM * finite.min())
    low = np.full(time.shape, np.nan)
    banded = [m for m in models if m == shown or not dataset.n_paths.sel(model=m).values.any()]
    bands = {m: band for m in banded if (band := _quantile_band(dataset, m)) is not None}
    floor = minimum + 1e-3 * finite.min() if logarithmic else -np.inf
    for model, (below, above, label) in bands.items():
        shade = {"color": looks[model]["color"], "alpha": 0.12, "linewidth": 0}
        axes.fill_between(time, np.maximum(below, floor) - minimum, above - minimum, label=label, **shade)
        low = np.fmin(low, below - minimum)
    spread = dataset.loss_std.sel(model=shown).values
    if not bands and np.isfinite(spread).all():
        curve = dataset.loss_mean.sel(model=shown).values - minimum
        low = np.maximum(curve - spread, 0.1 * curve if logarithmic else -np.inf)
        shade = {"color": looks[shown]["color"], "alpha": 0.15, "linewidth": 0}
        axes.fill_between(time, low, curve + spread, label="± standard deviation over paths", **shade)
    for model in models:
        curve = dataset.loss_mean.sel(model=model).values - minimum
        axes.plot(time, curve, label=written(model), **looks[model])
    if logarithmic:
        axes.set_yscale("log")
        positive_low = low[low > 0.02 * finite.min()]
        axes.set_ylim(bottom=0.8 * min(finite.min(), positive_low.min() if positive_low.size else np.inf))
    if "loss_bound" in dataset:
        limits = axes.get_ylim()
        for label, look in zip(dataset.bound.values, itertools.cycle(map(_scaled, _BOUNDS)), strict=False):
            bound = dataset.loss_bound.sel(bound=label).values - minimum
            bound = np.where(np.isfinite(bound), bound, np.nan)
            axes.plot(time, bound, label=written(str(label)), **look)
        axes.set_ylim(limits[0], max(limits[1], min(axes.get_ylim()[1], 3 * finite.max())))
    quantity = dataset.attrs.get("quantity", "loss")
    mean = "" if not dataset.n_paths.values.any() else "mean "
    axes.set_ylabel(f"{mean}{quantity}" if minimum == 0 else f"{mean}{quantity} $-$ infimum")
    crowded: dict[str, Any] = {"ncols": 2, "fontsize": 7, "loc": "upper right"} if len(models) > _FEW else {}
    if len(time) > 1:
        axes.set_xlim(time[0], time[-1])
    return sheet.label_lines(axes, framealpha=0.5, **crowded)


def _quantile_band(dataset: "xr.Dataset", model: str) -> tuple[np.ndarray, np.ndarray, str] | None:
    """The middle of a model's losses, and what it is called; None if no quantiles were recorded."""
    if "loss_quantile" not in dataset or not np.isfinite(dataset.loss_quantile.sel(model=model)).any():
        return None
    levels = dataset["quantile"].values
    levels = np.array([0.05, 0.95]) if 0.05 in levels else levels[[0, -1]]
    low, high = (dataset.loss_quantile.sel(model=model, quantile=level).values for level in levels)
    share = f"{100 * (levels[1] - levels[0]):.3g} %"
    of_paths = dataset.n_paths.sel(model=model).values.any()
    return low, high, f"{written(model)}: middle {share} of paths" if of_paths else f"{written(model)}: {share} band"


def _plot_differences(
    axes: "Axes",
    dataset: "xr.Dataset",
    models: list[str],
    reference: str,
    looks: dict[str, Any],
    scale: np.ndarray,
    at_ends: bool,
) -> None:
    time = dataset.time.values
    base = dataset.loss_mean.sel(model=reference).values
    sem_base = dataset.loss_sem.sel(model=reference).values
    edges: list[np.ndarray] = []
    for model in (m for m in models if m != reference):
        here = dataset.sel(model=model)
        ratio = 100 * (here.loss_mean.values - base) / scale
        sem = np.hypot(np.nan_to_num(here.loss_sem.values), np.nan_to_num(sem_base))
        half = 100 * normal_point() * sem / scale
        look = {k: v for k, v in looks[model].items() if k != "alpha"}
        if half.any():
            label = None if axes.collections else "99 % interval"
            shade = {"color": look["color"], "alpha": 0.2, "linewidth": 0}
            axes.fill_between(time, ratio - half, ratio + half, label=label, **shade)
        axes.plot(time, ratio, **look)
        edges += [ratio - half, ratio + half]
    axes.axhline(0, color="black", linewidth=0.8)
    values = np.concatenate(edges)
    values = values[np.isfinite(values)]
    if values.size and np.quantile(np.abs(values), 0.98) > _SYMLOG_FROM:
        low, high = (max(np.ceil(np.log10(max(v, 1.0))), 0) for v in (-values.min(), values.max()))
        axes.set_yscale("symlog", linthresh=1, linscale=0.5)
        axes.set_ylim(-(10**low), 10**high)
        stride = 1 + (low + high) // 6
        ticks = [*-(10.0 ** np.arange(0, low + 1, stride))[::-1], 0.0, *10.0 ** np.arange(0, high + 1, stride)]
        axes.set_yticks(ticks, [f"{t:g}".replace("-", "\N{MINUS SIGN}") for t in ticks])
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    if axes.collections and at_ends:
        place: dict[str, Any] = {"xycoords": "axes fraction", "annotation_clip": False}
        axes.annotate(" bands: 99 %\n intervals", (1.02, 0.5), color="0.35", va="center", **place)
    elif axes.collections:
        axes.legend(loc="best", handlelength=1.2, borderpad=0.1, frameon=True, framealpha=0.7, edgecolor="none")


def plot_orders(sheet: Sheet, errors: "pd.DataFrame", slopes: Any, title: str, rounding: float) -> None:
    """Errors of a weak-order study against η, one panel per scheme, with fitted slopes and lines of slope 1 and 2.

    Args:
        sheet: where they are drawn; on one axes only the first scheme.
        errors: columns model, scheme, function, lr, error and sem; faint lines show single functions, bold lines all.
        slopes: fitted slopes by (model, scheme, function).
        title: title above the first panel.
        rounding: errors below this value are rounding errors.
    """
    schemes = list(dict.fromkeys(errors.scheme))
    models = list(dict.fromkeys(errors.model))
    looks = look_of({model: model for model in models})
    headings = {"resolved": "SDE resolved", "Δt = η": "one step $\\Delta t = \\eta$"}
    size = (3.6 * len(schemes), 4.1)
    panels = sheet.panels(1, len(schemes), size=size, stack=True, sharex=True, sharey=True)
    shown = errors[(errors.function == "all") & (errors.error > rounding)]
    top = float(shown.error.max()) if len(shown) else 1.0
    lowest = max(float(shown.error.min()) if len(shown) else 1e-6, 1e-5 * top)
    for panel, scheme in zip(panels, schemes, strict=False):
        for model, function in itertools.product(models, dict.fromkeys(errors.function)):
            part = errors[(errors.model == model) & (errors.scheme == scheme) & (errors.function == function)]
            part = part[part.error > 0]
            look = {k: v for k, v in looks[model].items() if k != "alpha"}
            if function != "all":
                panel.plot(part.lr, part.error, color=look["color"], alpha=0.25, linewidth=0.7 * line_scale())
                continue
            slope = slopes.loc[(model, scheme, "all"), "slope"]
            label = f"{written(model)}:\n" + (
                f"slope {number(round(slope, 2), 2)}" if np.isfinite(slope) else "not resolved"
            )
            half = np.minimum(normal_point() * part["sem"], 0.99 * part.error)
            panel.errorbar(part.lr, part.error, half, label=label, marker="o", markersize=3.5, capsize=2, **look)
        _reference_slopes(panel, errors.lr.to_numpy(), top, lowest)
        panel.set_title(headings.get(scheme, scheme), loc="left")
        panel.set(xlabel="learning rate $\\eta$", ylabel="relative weak error")
        if not sheet.is_given:
            panel.label_outer()
        sheet.label_lines(panel, loc="lower right", handlelength=3.2)
    said = [f"{written(m)} {_order_text(slopes.loc[(m, schemes[0], 'all'), 'slope'])}" for m in models]
    key = "bold: all test functions, with 99 % limits; faint: single functions"
    sheet.headline("" if sheet.is_given else f"Weak error: {', '.join(said)}\n{title}\n{key}")


def _order_text(slope: float) -> str:
    """How an error falls with η, in words."""
    if not np.isfinite(slope):
        return "is not resolved"
    return (
        f"falls like $\\eta^{{{slope:.2f}}}$"
        if slope > _FALLS
        else f"does not fall with $\\eta$ (slope {number(round(slope, 2), 2)})"
    )


def _reference_slopes(axes: "Axes", lrs: np.ndarray, top: float, lowest: float) -> None:
    """Set log-log axes that contain the errors; draw grey lines of slope 1 and 2 from the upper right corner."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = np.unique(lrs)
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_xlim(0.87 * ticks[0], 1.15 * ticks[-1])
    axes.minorticks_off()
    axes.set_ylim(0.4 * lowest, 3 * top)
    ends = np.array([lrs.min(), lrs.max()])
    for order, dashes in ((1, (0, (4, 3))), (2, (0, (1, 2)))):
        line = 2 * top * (ends / lrs.max()) ** order
        axes.plot(ends, line, color="0.6", linewidth=0.9, linestyle=dashes, zorder=0)
        at = float(ends[0] ** 0.88 * ends[1] ** 0.12)
        value = 2 * top * (at / lrs.max()) ** order
        if value > lowest:
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}
            axes.annotate(f"slope {order}", (at, value), color="0.35", fontsize=7, ha="center", va="center", bbox=box)


def _title(dataset: "xr.Dataset") -> str:
    optimizer, problem, noise = (json.loads(dataset.attrs[name]) for name in ("optimizer", "problem", "noise"))
    run = json.loads(dataset.attrs["run"])
    name = optimizer_label(optimizer)
    if "fitted_runs" in run:
        return f"{name}, $\\eta$ = {optimizer['lr']:g}: forecast from {run['fitted_runs']} runs"
    dimension = f"$d$ = {run['dim']}, " if "dim" in run else ""
    return (
        f"{name} on {problem_label(problem)}, {dimension}$\\eta$ = {optimizer['lr']:g}\n"
        f"{noise_label(noise)} noise" + (f", {run['paths']} paths" if "paths" in run else "")
    )
