"""What the shell's `forecast` prints and writes."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import pandas as pd

    from sdelens.forecast import Forecaster
    from sdelens.results.result import Result

__all__ = [
    "CURVES",
    "as_json",
    "check_figure",
    "check_file",
    "curve_of",
    "fit_as_dict",
    "prediction_as_dict",
    "table_of",
    "write_curve",
]

CURVES: Final = (".csv", ".nc")
"""Suffixes of files for a predicted curve."""


def curve_of(found: "Result") -> "pd.DataFrame":
    """Columns step, loss, lower and upper of a forecast, and logged if there is a logged curve."""
    import pandas as pd

    data, model = found.dataset, found.models[0]
    lower, upper = data.loss_quantile.sel(model=model).transpose("quantile", "step").values
    columns = {"step": data.step.values, "loss": data.loss_mean.sel(model=model).values, "lower": lower, "upper": upper}
    if "logged" in found.models:
        columns["logged"] = data.loss_mean.sel(model="logged").values
    return pd.DataFrame(columns)


def table_of(curve: "pd.DataFrame", confidence: float) -> list[str]:
    """Lines of a table of the predicted losses at some steps."""
    from sdelens.core.numerals import between, number
    from sdelens.core.text import text_table

    ends = zip(curve["lower"].tolist(), curve["upper"].tolist(), strict=True)
    limits = [between(low, high, partial(number, digits=4)) for low, high in ends]
    parts = [[f"{step}" for step in curve["step"]], [f"{loss:.4g}" for loss in curve["loss"]], limits]
    head = ["step", "loss", f"{100 * confidence:g} % limits"]
    if "logged" in curve:
        head.append("logged")
        parts.append(["-" if loss != loss else f"{loss:.4g}" for loss in curve["logged"]])  # noqa: PLR0124 (NaN)
    return text_table(head, list(zip(*parts, strict=True)))


def write_curve(found: "Result", curve: "pd.DataFrame", path: Path) -> None:
    """Write the curve atomically, as its suffix says."""
    from sdelens.core.files import atomic_path

    if path.suffix.lower() == ".nc":
        found.save(path)
        return
    with atomic_path(path) as temporary:
        curve.to_csv(temporary, index=False)


def fit_as_dict(found: "Forecaster") -> dict[str, Any]:
    """What the report of a fit says."""
    runs = [{"name": r.name, "points": r.points, "last": r.last, "rms_residual": r.error} for r in found.runs]
    limits = found.limits.to_dict("index")
    return {"numbers": limits, "scatter": found.scatter, "runs": runs, "remarks": list(found.remarks)}


def prediction_as_dict(found: "Result", curve: "pd.DataFrame") -> dict[str, Any]:
    """What a prediction says; its curve by columns."""
    info = found.info
    said = {"optimizer": info["optimizer"], "run": info["run"], "outside": found.settings[found.models[0]]["outside"]}
    if "logged" in curve:
        errors = found.errors().iloc[0]
        said |= {name: float(errors[name]) for name in ("error", "late_error", "late_shift")}
    return said | {"curve": curve.to_dict("list")}


def as_json(said: dict[str, Any]) -> str:
    """JSON, in which what is unknown or infinite is null."""
    return json.dumps(_plain(said), indent=2, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def check_figure(name: str, path: Path | None) -> None:
    """Refuse, before anything is computed, a figure that cannot be written."""
    if path is not None:
        from matplotlib.backend_bases import FigureCanvasBase

        check_file(name, path, tuple(f".{kind}" for kind in sorted(FigureCanvasBase.get_supported_filetypes())))


def check_file(name: str, path: Path | None, suffixes: tuple[str, ...] = ()) -> None:
    """Refuse, before anything is computed, a file that cannot be written."""
    from sdelens.core.files import check_writable

    if path is None:
        return
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"{name}: got {str(path)!r}; its suffix must be one of {', '.join(suffixes)}.")
    check_writable(path, name)
