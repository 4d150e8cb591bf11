"""Mean-loss curves of several results in one figure, labelled at their ends."""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from sdelens.core import check
from sdelens.core.limits import normal_point
from sdelens.results.end_labels import End, label_ends
from sdelens.results.figures import Sheet, drawn, line_scale, short_lines
from sdelens.results.plotting import written
from sdelens.results.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["overlay"]

_COLOURS: Final = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8C510A", "#332288", "#56B4E9", "#882255")
"""Okabe and Ito's, without the light ones, and Tol's: safe for colour-blind readers."""
_DASHES: Final = ("-", (0, (4, 1.6)), (0, (1, 1.2)), (0, (4, 1.5, 1, 1.5)), (0, (2, 2)))
_LOG_FROM: Final = 5.0
_AT_ENDS: Final = 6
"""Results up to which each is named at the end of its line; more are named in a legend."""
_CLOCKS: Final = {"time": "time  $t = k\\eta$", "step": "optimizer step", "samples": "samples"}
_SCALES: Final = ("log", "linear")


class _Curve(NamedTuple):
    """A curve with its 99 % interval.

    Attributes:
        name: name of the result.
        model: label of its model.
        at: positions, shape (R,).
        value: mean loss, minus the infimum where heights are shown, shape (R,).
        half: half of the width of the interval of the mean, shape (R,).
    """

    name: str
    model: str
    at: np.ndarray
    value: np.ndarray
    half: np.ndarray


def overlay(
    results: Mapping[str, Result],
    path: str | os.PathLike[str] | None = None,
    *,
    models: Sequence[str] | None = None,
    over: str = "time",
    scale: str | None = None,
    relative: bool | None = None,
    ax: Any = None,
    figsize: tuple[float, float] | None = None,
    title: str | None = None,
    style: str | None = None,
    columns: int | None = None,
) -> "Figure":
    """Draw mean losses of several results into one figure: of other optimizers, noises, problems or numbers of steps.

    Each result has a colour and, if there are at most six, a label at the end of its line, otherwise one in a legend;
    each model has a line style, which a key explains if there are several. Bands are 99 % intervals of the means.

    Args:
        results: results by name.
        path: file to save the figure to, in the format of its suffix.
        models: labels of the models to draw, of which every result has one or more; by default the optimizer, or the
            first model of a result without one.
        over: ``"time"`` t = kη, ``"step"`` k, or ``"samples"``, if the noise has a batch size.
        scale: ``"log"`` or ``"linear"``; by default logarithmic if the curves span more than a factor of 5.
        relative: whether the infimum of each problem is subtracted; by default if all of them are known.
        ax: axes to draw into instead of a new figure.
        figsize: width and height of a new figure in inches.
        title: title; by default that of the screen style.
        style: ``"screen"`` or ``"paper"``, as for `style`; by default the one in use.
        columns: number of columns of a paper that the figure covers, 1 or 2.

    Returns:
        The figure.

    Raises:
        ValueError, TypeError: if an argument does not fit, a result has none of the models, a curve has no point that
            the scale can show, or an infimum or a batch size that is needed is not known.

    Examples:
        >>> import sdelens as sl
        >>> problem, noise = sl.Quadratic([1.0, 4.0]), sl.GaussianNoise(1.0)
        >>> runs = {o.name: sl.simulate(problem, noise, o, "optimizer", steps=20, paths=64)
        ...         for o in (sl.SGD(0.1), sl.SignSGD(0.1))}
        >>> figure = sl.overlay(runs, over="step")
    """
    if not isinstance(results, Mapping):
        raise TypeError(f"results: got {type(results).__name__}; give results by name, {{'AdamW': result}}.")
    if not results:
        raise ValueError("results: got none, an empty mapping; give results by name, {'AdamW': result}.")
    for name, result in results.items():
        if not isinstance(result, Result):
            raise TypeError(f"results: {name!r} is {type(result).__name__}; give a Result.")
    check.choice("over", over, _CLOCKS)
    if scale is not None:
        check.choice("scale", scale, _SCALES)
    known = {name: bool(np.isfinite(float(r.dataset.attrs["infimum"]))) for name, r in results.items()}
    if relative and not all(known.values()):
        lacking = next(name for name, is_known in known.items() if not is_known)
        raise ValueError(f"relative: the infimum of {lacking!r} is not known; leave relative out.")
    above = all(known.values()) if relative is None else bool(relative)
    curves = [curve for name, r in results.items() for curve in _curves(name, r, models, over, above)]
    lost = [m for m in models or () if all(curve.model != m for curve in curves)]
    if lost:
        has = sorted({label for r in results.values() for label in r.models})
        raise ValueError(f"models: {lost[0]!r} is in none of the results, which have {has}.")
    empty = [name for name in results if all(curve.name != name for curve in curves)]
    if empty:
        raise ValueError(
            f"models: {empty[0]!r} has none of {list(models or ())}, so it would not be drawn; it has "
            f"{results[empty[0]].models}. Give one of these too, or leave this result out."
        )
    _check_shown(curves, scale)
    quantities = {r.dataset.attrs.get("quantity", "loss") for r in results.values()}
    if len(quantities) > 1:
        raise ValueError(f"results: they show different quantities, {sorted(quantities)}; give those of one.")
    label = f"mean {quantities.pop()}" + (" $-$ infimum" if above else "")
    draw = functools.partial(_draw, curves=curves, over=over, scale=scale, label=label)
    return drawn(draw, path, ax=ax, figsize=figsize, title=title, style=style, columns=columns)


def _check_shown(curves: Sequence[_Curve], scale: str | None) -> None:
    """Refuse curves that the figure could not show."""
    for curve in curves:
        if not np.isfinite(curve.value).any():
            raise ValueError(f"results: {curve.model!r} of {curve.name!r} has no finite loss; leave it out.")
        if scale == "log" and not (curve.value > 0).any():
            raise ValueError(
                f"scale: got 'log', but the curve of {curve.model!r} of {curve.name!r} is nowhere above 0; give "
                "'linear'."
            )


def _curves(name: str, result: Result, models: Sequence[str] | None, over: str, above: bool) -> list[_Curve]:
    first = result.optimizer or result.models[0]
    chosen = [first] if models is None else [m for m in models if m in result.models]
    data, infimum = result.dataset, float(result.dataset.attrs["infimum"])
    at = data.step.values if over == "step" else data.time.values
    if over == "samples":
        size = _batch_size(result)
        if size is None:
            raise ValueError(f"over: the noise of {name!r} has no batch size; give 'step' or 'time'.")
        at = data.step.values * size
    found = []
    for model in chosen:
        here = data.sel(model=model)
        value = here.loss_mean.values - (infimum if above else 0.0)
        found.append(
            _Curve(name, model, np.asarray(at, float), value, normal_point() * np.nan_to_num(here.loss_sem.values))
        )
    return found


def _batch_size(result: Result) -> float | None:
    """Samples of a step: those of mini-batch noise, over all its workers."""
    noise, factor = result.info["noise"], 1
    while isinstance(noise, dict) and noise.get("name") == "distributed":
        noise, factor = noise["noise"], factor * noise["workers"]
    size = noise.get("batch_size") if isinstance(noise, dict) else None
    return None if size is None else float(size) * factor


def _draw(sheet: Sheet, curves: list[_Curve], over: str, scale: str | None, label: str) -> None:
    (axes,) = sheet.panels(size=(5.6, 3.8))
    names, models = (list(dict.fromkeys(part)) for part in zip(*((c.name, c.model) for c in curves), strict=True))
    colours = dict(zip(names, _colours(len(names)), strict=True))
    looks: dict[str, dict[str, Any]] = {
        model: {"linestyle": _DASHES[i % len(_DASHES)], "linewidth": 1.6 * line_scale()}
        for i, model in enumerate(models)
    }
    if len(models) > 1:  # wide and pale, because curves of models that agree lie upon it
        looks[models[0]] |= {"linewidth": 3.2 * line_scale(), "alpha": 0.4}
    values = np.concatenate([curve.value for curve in curves])
    values = values[np.isfinite(values)]
    wide = bool(values.size and values.min() > 0 and values.max() > _LOG_FROM * values.min())
    logarithmic = wide if scale is None else scale == "log"
    for curve in curves:
        colour, low = colours[curve.name], curve.value - curve.half
        if logarithmic:
            low = np.maximum(low, 0.1 * np.abs(curve.value))
        if curve.half.any():
            axes.fill_between(curve.at, low, curve.value + curve.half, color=colour, alpha=0.2, linewidth=0)
        axes.plot(curve.at, curve.value, color=colour, **looks[curve.model])
    axes.set_yscale("log" if logarithmic else "linear")
    last = max(float(curve.at[-1]) for curve in curves)
    axes.set(xlabel=_CLOCKS[over], ylabel=label, xlim=(min(float(curve.at[0]) for curve in curves), last))
    firsts = [next(curve for curve in curves if curve.name == name) for name in names]
    ends = [np.where(c.value > 0, c.value, np.nan) if logarithmic else c.value for c in firsts]
    at_ends = len(names) <= _AT_ENDS
    if at_ends:
        shown = [short_lines(written(name)) for name in names]
        label_ends(axes, [End.of(s, colours[c.name], c.at, v) for s, c, v in zip(shown, firsts, ends, strict=True)])
    else:
        for name in names:
            axes.plot([], [], color=colours[name], label=written(name))
    if len(models) > 1:
        for model in models:
            axes.plot([], [], color="0.2", label=written(model), **looks[model])
    if not at_ends:
        sheet.legend_above(axes, columns=3)
    elif len(models) > 1:
        axes.legend(loc="upper right", frameon=True, framealpha=0.7, edgecolor="none")
    bands = ", with 99 % intervals" if any(curve.half.any() for curve in curves) else ""
    said = f"{label.partition(' $')[0].capitalize()} of {len(names)} result{'s' * (len(names) > 1)}{bands}"
    sheet.headline("" if sheet.is_given else said, axes)


def _colours(count: int) -> list[Any]:
    """Colours of so many results: different ones, and from dark to light where there are many."""
    if count <= len(_COLOURS):
        return list(_COLOURS[:count])
    from matplotlib import colormaps

    return [colormaps["viridis"](place) for place in np.linspace(0, 0.92, count)]
