"""Forecasts of public training runs that were not fitted, compared with what happened: two tables, and figures.

    python examples/public_curves.py --data MultiPowerLaw                                # half a minute for each size
    python examples/public_curves.py --data Noisy-Quadratic-System --kind scaling --plot figures     # two minutes

`schedules` are loss curves of one model at several learning-rate schedules (Luo et al. 2025, arXiv 2503.12811, in
https://github.com/thu-yao-01-luo/MultiPowerLaw): files `csv_25/cosine_24000.csv` or `25M_cosine_24000.csv` with the
columns step, lr and loss, anywhere below the folder. Of every size there, three curves are fitted and all others are
predicted. `scaling` are final losses of models of several sizes at several batch sizes and numbers of steps (arXiv
2605.09154, https://github.com/chuningxdy/Noisy-Quadratic-System): tables with the columns N, B, K, loss and split.
The runs of the split `train` are fitted and those of `test` are predicted: once from all runs of `train`, and once
without those marked as `filtered`, which the publication leaves out.
"""

import argparse
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import sdelens as sl
from sdelens.core.files import save_figure
from sdelens.core.text import text_table

FITTED = ("cosine_24000", "constant_24000", "wsdcon_9")
"""The curves that are fitted, as in the publication."""
WARMUP = 2160
"""Steps of the warm-up, which the logs leave out."""
PUBLISHED = {"25M": (0.00376, 0.00465, 0.9988), "100M": (0.00435, 0.00592, 0.9983), "400M": (0.00484, 0.00730, 0.9978)}
"""Mean absolute error, root mean square error and R² that the Multi-Power Law's authors publish for their fit."""
PUBLISHED_SCALING = (0.0480, 0.0367, 0.0342)
"""Root mean square, mean and median of |log of predicted over observed loss| of the Noisy Quadratic System, 64 runs."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


class Predicted(NamedTuple):
    """A curve that was not fitted: steps, logged losses, and the prediction with its 90 % band, all of shape (n,)."""

    name: str
    steps: np.ndarray
    losses: np.ndarray
    value: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    @property
    def scores(self) -> list[float]:
        """Mean absolute error, root mean square error, R², and the share within the band."""
        error = np.abs(self.value - self.losses)
        r2 = 1 - (error**2).sum() / ((self.losses - self.losses.mean()) ** 2).sum()
        inside = (self.lower <= self.losses) & (self.losses <= self.upper)
        root = np.sqrt((error**2).mean())
        return [float(v) for v in (error.mean(), root, r2, inside.mean())]


def curves_in(folder: Path) -> dict[str, dict[str, Path]]:
    """The file of every schedule, by size in millions of parameters."""
    found: dict[int, dict[str, Path]] = {}
    for path in sorted(folder.rglob("*.csv")):
        in_name = re.fullmatch(r"(\d+)M?_([a-z].*)", path.stem)
        in_folder = re.fullmatch(r"(?:csv_)?(\d+)M?", path.parent.name)
        if in_name:
            found.setdefault(int(in_name[1]), {})[in_name[2]] = path
        elif in_folder:
            found.setdefault(int(in_folder[1]), {})[path.stem] = path
    sizes = {f"{size}M": found[size] for size in sorted(found)}
    return {size: files for size, files in sizes.items() if set(FITTED) < set(files)}


def a_curve(path: Path, name: str) -> sl.forecast.Run:
    """A logged curve with its optimizer."""
    frame = pd.read_csv(path)
    optimizer = sl.AdamW(lr=float(frame.lr.max()), b1=0.9, b2=0.95, weight_decay=0.1)
    warmup = WARMUP if frame.step.iloc[0] >= WARMUP else 0
    return sl.forecast.Run(frame, optimizer, name=name, warmup=warmup)


def schedules(files: dict[str, Path], fitted: Sequence[str] = FITTED) -> Iterator[Predicted]:
    """Fit the curves `fitted` of one size, and predict all others at the steps of their logs."""
    runs = {name: a_curve(path, name) for name, path in files.items()}
    forecaster = sl.forecast.fit([runs[name] for name in fitted])
    for name, run in runs.items():
        if name not in fitted:
            shape = run.rates() / run.optimizer.lr
            plan = forecaster.plan(run.optimizer, steps=run.total, schedule=shape)
            band = forecaster.band(plan, run.steps)
            yield Predicted(name, run.steps, run.losses, band.value, band.lower, band.upper)


def tables_in(folder: Path) -> pd.DataFrame | None:
    """All runs of the tables below the folder; None if there are none."""
    columns = ["N", "B", "K", "loss", "split"]
    found = []
    for path in sorted(folder.rglob("*.csv")):
        if set(columns) <= set(pd.read_csv(path, nrows=0).columns):
            table = pd.read_csv(path)
            left_out = table["filtered"].astype(str) == "True" if "filtered" in table else False
            found.append(table[columns].assign(filtered=left_out))
    return pd.concat(found, ignore_index=True).drop_duplicates() if found else None


def a_run(row) -> tuple[sl.AdamW, dict]:
    """The optimizer of a row with its schedule, and the sizes of the run."""
    warmup = max(1, round(0.01 * row.K))
    schedule = sl.Warmup(warmup, sl.Cosine(max(row.K - warmup, 1)))
    return sl.AdamW(lr=1e-3, b1=0.9, b2=0.95, schedule=schedule), {"batch_size": row.B, "size": row.N}


def scaling(table: pd.DataFrame) -> Predicted:
    """Fit the final losses of the split `train`, and predict those of `test`; steps are those of whole runs."""
    train, runs = table[table.split == "train"], []
    for row in train.itertuples():
        optimizer, sizes = a_run(row)
        runs.append(sl.forecast.Run(([row.K], [row.loss]), optimizer, **sizes))
    forecaster = sl.forecast.fit(runs)
    test, found = table[table.split == "test"], []
    for row in test.itertuples():
        optimizer, sizes = a_run(row)
        found.append(forecaster.final(optimizer, steps=row.K, **sizes))
    value, lower, upper = (np.array(column) for column in zip(*found, strict=True))
    return Predicted(f"fitted to {len(train)} runs", test.K.to_numpy(), test.loss.to_numpy(), value, lower, upper)


def table_of(size: str, curves: Sequence[Predicted]) -> list[str]:
    """A row for each curve, their mean, and what is published."""
    scores = np.array([curve.scores for curve in curves])
    mean = scores.mean(0)
    ratios = scores[:, 0] / mean[0]
    rows = [[curve.name, *_texts(row, r)] for curve, row, r in zip(curves, scores, ratios, strict=True)]
    rows.append(["mean (and the worst curve)", *_texts(mean, ratios.max())])
    if size in PUBLISHED:
        mae, rmse, r2 = PUBLISHED[size]
        rows.append(["Multi-Power Law, published", f"{mae:.5f}", f"{rmse:.5f}", f"{r2:.4f}", "", ""])
    return text_table([f"{size}: predicted curve", "MAE", "RMSE", "R²", "MAE / mean", "in the 90 % band"], rows)


def _texts(row: Sequence[float], ratio: float) -> list[str]:
    mae, rmse, r2, inside = row
    return [f"{mae:.5f}", f"{rmse:.5f}", f"{r2:.4f}", f"{ratio:.2f}", f"{100 * inside:.0f} %"]


def scaling_table(predictions: Sequence[Predicted]) -> list[str]:
    """Errors of the log of the loss, beside what is published."""
    rows = []
    for found in predictions:
        error = np.abs(np.log(found.value / found.losses))
        inside = ((found.lower <= found.losses) & (found.losses <= found.upper)).mean()
        ours = np.sqrt((error**2).mean()), error.mean(), np.median(error), error.max()
        rows.append([found.name, str(len(error)), *(f"{v:.4f}" for v in ours), f"{100 * inside:.0f} %"])
    published = [f"{v:.4f}" for v in PUBLISHED_SCALING]
    rows.append(["Noisy Quadratic System, published", "64", *published, "", ""])
    head = ["|log predicted / observed|", "test runs", "RMS", "mean", "median", "largest", "in the 90 % band"]
    return text_table(head, rows)


def plot_schedules(size: str, curves: Sequence[Predicted], path: Path) -> None:
    """Predictions with their bands over the logged curves, and relative differences below."""
    with sl.style():
        figure, (top, bottom) = plt.subplots(2, sharex=True, figsize=(5.6, 4.8), height_ratios=[2.2, 1])
        for i, curve in enumerate(curves):
            colour = COLOURS[i % len(COLOURS)]
            top.plot(curve.steps, curve.losses, ".", markersize=2, color=colour, alpha=0.5)
            top.plot(curve.steps, curve.value, color=colour, linewidth=1.2, label=curve.name)
            top.fill_between(curve.steps, curve.lower, curve.upper, color=colour, alpha=0.15, linewidth=0)
            bottom.plot(curve.steps, 100 * (curve.losses / curve.value - 1), color=colour, linewidth=0.8)
        bottom.axhline(0, color="black", linewidth=0.8)
        top.set_title(f"{size}: predicted curves with 90 % bands (points: logged)", loc="left")
        top.set_ylabel("loss")
        top.legend(fontsize=7)
        bottom.set_ylabel("logged $-$ predicted (%)")
        bottom.set_xlabel("optimizer step")
        figure.align_ylabels()
    save_figure(figure, path)
    plt.close(figure)


def plot_scaling(found: Predicted, path: Path) -> None:
    """Predicted over observed final losses."""
    with sl.style():
        figure, axes = plt.subplots(figsize=(4.4, 4.0))
        sides = np.stack([found.value - found.lower, found.upper - found.value])
        ends = np.array([found.losses.min(), found.losses.max()])
        axes.plot(ends, ends, color="black", linewidth=0.8, label="equal")
        label = "forecast with 90 % limits"
        axes.errorbar(found.losses, found.value, sides, fmt=".", color=COLOURS[0], linewidth=0.9, label=label)
        axes.set_title(f"Final losses of {len(found.losses)} runs that were not fitted", loc="left")
        axes.set_xlabel("observed loss")
        axes.set_ylabel("predicted loss")
        axes.legend()
    save_figure(figure, path)
    plt.close(figure)


def main() -> None:
    """Print the tables of what the folder has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder with the public files")
    parser.add_argument("--kind", choices=("schedules", "scaling"), help="default: whatever the folder has")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="folder for figures")
    arguments = parser.parse_args()
    sizes = curves_in(arguments.data) if arguments.kind != "scaling" else {}
    table = tables_in(arguments.data) if arguments.kind != "schedules" else None
    if not sizes and table is None:
        parser.error(f"--data: below {str(arguments.data)!r} there are no such files; see the help for their layout.")
    if arguments.plot is not None:
        arguments.plot.mkdir(parents=True, exist_ok=True)
    for size, files in sizes.items():
        begin = time.perf_counter()
        curves = []
        for curve in schedules(files):
            curves.append(curve)
            said = f"{size}: {len(curves)} of {len(files) - len(FITTED)} curves predicted"
            print(f"{said}, {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
        print(*table_of(size, curves), "", sep="\n", flush=True)
        if arguments.plot is not None:
            plot_schedules(size, curves, arguments.plot / f"schedules-{size}.png")
    if table is not None:
        predictions = []
        for part in (table, table[~table.filtered]) if table.filtered.any() else (table,):
            counts = part.split.value_counts()
            said = f"scaling: fitting {counts['train']} runs, then predicting {counts['test']}"
            print(f"{said} (about a minute)", file=sys.stderr, flush=True)
            predictions.append(scaling(part))
        print(*scaling_table(predictions), sep="\n")
        if arguments.plot is not None:
            plot_scaling(predictions[0], arguments.plot / "scaling.png")


if __name__ == "__main__":
    main()
