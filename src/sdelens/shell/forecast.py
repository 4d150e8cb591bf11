"""The shell's `forecast`: a fit to logged runs, predictions of other runs, and advice on them."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from sdelens.core import check
from sdelens.core.files import held_folder
from sdelens.core.limits import OF_FORECAST
from sdelens.shell.case_options import numbers
from sdelens.shell.forecast_output import (
    CURVES,
    as_json,
    check_figure,
    check_file,
    curve_of,
    fit_as_dict,
    prediction_as_dict,
    table_of,
    write_curve,
)
from sdelens.shell.forecast_runs import LOGS, Columns, at_every_length, optimizer_from, runs_from, runs_in
from sdelens.shell.panels import OUTPUT, SIZE, WHAT
from sdelens.shell.session import named, shell

if TYPE_CHECKING:
    from sdelens.forecast import BestBatch, BestLearningRate, BestSchedule, DecayStart, Run

__all__ = ["advise", "fit", "predict"]

_OPTIMIZER: Final = (
    "with its learning rate, for example adamw(lr=3e-4, b2=0.95, weight_decay=0.1, schedule=warmup(2160, cosine(21840, "
    "end=0.1))). Any of sgd, momentum, signsgd, signum, lion, rmspropw and adamw"
)
_FORMATS: Final = ("table", "json")

Stored = Annotated[Path, typer.Argument(help="File that sdelens forecast fit wrote.")]
Form = Annotated[str, OUTPUT("--format", help="'table' or 'json'.")]


@dataclass(frozen=True)
class Planned:
    """The options of a command about the run that is not logged yet."""

    optimizer: Annotated[str, WHAT(help=f"The optimizer of the run {_OPTIMIZER}.")]
    batch_size: Annotated[
        float | None,
        SIZE(help="Samples or tokens per step, in the unit of the fitted runs; needed exactly if they have one."),
    ] = None
    size: Annotated[
        float | None,
        SIZE(help="Number of parameters of the model; needed exactly if models of several sizes were fitted."),
    ] = None

    @property
    def sizes(self) -> dict[str, Any]:
        """Batch size and model size, as arguments."""
        return {"batch_size": self.batch_size, "size": self.size}


def fit(
    columns: Columns,
    logs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Logs, one per run: CSV (W&B's export is one), JSON or JSONL, trainer_state.json of the Hugging Face "
            "Trainer, or an event file or folder of TensorBoard."
        ),
    ] = None,
    runs: Annotated[
        Path | None,
        WHAT(
            help="Instead of logs: a CSV file with one row per run and the columns path (relative to this file), "
            "optimizer, batch_size, size, steps, warmup and name, all but path optional; for a run of which only the "
            "last loss is known, the columns step and loss instead of a path."
        ),
    ] = None,
    optimizer: Annotated[
        list[str] | None,
        WHAT(
            help=f"The optimizer, once for all runs or once for each in their order, {_OPTIMIZER}. Without a schedule, "
            "the learning rates in the log are followed, and are constant if it has none."
        ),
    ] = None,
    batch_size: Annotated[
        list[str] | None, SIZE(help="Samples or tokens per step, once for all runs or once for each; if it is known.")
    ] = None,
    size: Annotated[
        list[str] | None,
        SIZE(help="Number of parameters of the model, once for all runs or once for each; if it is known."),
    ] = None,
    steps: Annotated[
        list[str] | None,
        SIZE(help="Optimizer steps, once for all runs or once for each. Default: the last logged step."),
    ] = None,
    warmup: Annotated[
        list[str] | None,
        LOGS(
            help="Steps of a linear warm-up that logged learning rates leave out, once for all runs or once for each."
        ),
    ] = None,
    skip: Annotated[
        int | None,
        LOGS(
            help="Steps left out at the beginning of each run. Default: its warm-up, or 1 % of the run if it has none, "
            "and at most 10 %."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        OUTPUT(help="JSON file for the fit, which predict and advise read; it is replaced if it exists."),
    ] = None,
    plot: Annotated[Path | None, OUTPUT(help="File of a figure to write, for example fit.png.")] = None,
    form: Form = "table",
) -> None:
    """Fit a noisy power-law quadratic to logged runs, to predict other runs from it."""
    with shell(1):
        import sdelens as sl

        check.choice("format", form, _FORMATS)
        check_file("out", out)
        check_figure("plot", plot)
        if not logs and runs is None:
            raise ValueError("logs: missing; give one per run, or a table of runs by --runs.")
        if logs and runs:
            raise ValueError(f"runs: got {str(runs)!r} and {len(logs)} logs; give the logs or a table of runs.")
        given = {"batch_size": batch_size, "size": size, "steps": steps, "warmup": warmup}
        if runs is None:
            read = runs_from(logs or (), optimizer or (), given, columns)
        else:
            read = _from_table(runs, optimizer or [], given, columns)
        found = sl.forecast.fit(read, skip=skip)
        if plot is not None:
            with named(path="plot"):
                found.plot(plot)
        if out is not None:
            with named(path="out"):
                found.save(out)
        typer.echo(as_json(fit_as_dict(found)) if form == "json" else str(found))


def _from_table(
    table: Path, optimizers: list[str], given: dict[str, list[str] | None], columns: Columns
) -> list["Run"]:
    """The runs in a table, which has all their numbers in its columns."""
    for name, values in given.items():
        if values:
            raise ValueError(f"{name}: got {values[0]}; with a table of runs, give it in the table's column {name}.")
    if len(optimizers) > 1:
        raise ValueError(
            f"optimizer: was given {len(optimizers)} times; with a table of runs, give it once for all rows without "
            "one, or in the table's column optimizer."
        )
    return runs_in(table, optimizers[0] if optimizers else None, columns)


def predict(
    forecast: Stored,
    planned: Planned,
    columns: Columns,
    steps: Annotated[int | None, SIZE(help="Optimizer steps. Default: those of --logged.")] = None,
    at: Annotated[
        str | None,
        SIZE(
            help="Steps, comma-separated, at which the loss is wanted. Default: some 400, of which the last is shown."
        ),
    ] = None,
    logged: Annotated[
        Path | None,
        LOGS(
            help="Log of the run, to compare the forecast with. If the optimizer has no schedule, the learning rates "
            "in this log are followed; after their end, the last of them."
        ),
    ] = None,
    warmup: Annotated[
        int | None, LOGS(help="Steps of a linear warm-up that the logged learning rates leave out.")
    ] = None,
    confidence: Annotated[float, OUTPUT(help="Two-sided probability of the limits.")] = OF_FORECAST,
    out: Annotated[
        Path | None,
        OUTPUT(help="File for the curve, .csv or .nc (NetCDF); it is replaced if it exists."),
    ] = None,
    plot: Annotated[Path | None, OUTPUT(help="File of a figure to write, for example prediction.png.")] = None,
    form: Form = "table",
) -> None:
    """Predict the loss curve of a run, with limits, from a fit to other runs."""
    with shell(1):
        import sdelens as sl

        check.choice("format", form, _FORMATS)
        check_file("out", out, CURVES)
        check_figure("plot", plot)
        wanted = None if at is None else numbers("at", at)
        with named(path="forecast"):
            forecaster = sl.forecast.load(forecast)
        optimizer = optimizer_from(planned.optimizer)
        schedule = None
        if logged is not None:
            options = planned.sizes | columns.given
            run = sl.forecast.Run(logged, optimizer, steps=steps, warmup=warmup or 0, **options)
            steps = run.total
            if run.logged_lr is not None:
                optimizer = dataclasses.replace(optimizer, lr=float(run.rates().max()))
                schedule = run.rates() / float(optimizer.lr)
        elif steps is None:
            raise ValueError("steps: missing; give the number of optimizer steps, or the log of the run by --logged.")
        else:
            given = columns.given if warmup is None else columns.given | {"warmup": warmup}
            for name, value in given.items():
                raise ValueError(f"{name}: got {value} without --logged; it is about a log. Add --logged FILE.")
        found = forecaster.predict(
            optimizer, steps=steps, **planned.sizes, schedule=schedule, at=wanted, confidence=confidence
        )
        if logged is not None:
            found = found.with_curve("logged", run.losses, run.steps)
        curve = curve_of(found)
        if plot is not None:
            with named(path="plot"):
                found.plot(plot)
        if out is not None:
            with named(path="out"):
                write_curve(found, curve, out)
        if form == "json":
            typer.echo(as_json(prediction_as_dict(found, curve)))
            return
        shown = curve if at is not None else curve.tail(1)
        typer.echo("\n".join([*table_of(shown, confidence), "", str(found)]))


def advise(
    forecast: Stored,
    planned: Planned,
    steps: Annotated[
        int | None,
        SIZE(help="Optimizer steps, for advice on the schedule, the learning rate and the decay at --batch-size."),
    ] = None,
    samples: Annotated[
        float | None,
        SIZE(
            help="Samples or tokens of the run, for advice on its batch size. The learning rate is then constant or, "
            "if the optimizer has a schedule, this is stretched from --steps to the steps at every batch size."
        ),
    ] = None,
    warmup: Annotated[
        int | None, SIZE(help="Steps of a linear warm-up. Default: those of the optimizer's schedule, if it has one.")
    ] = None,
    done: Annotated[
        int, SIZE(help="Steps already made at the constant learning rate, before which it cannot begin to decay.")
    ] = 0,
    tune_lr: Annotated[
        bool,
        SIZE(
            "--tune-lr",
            help="Choose the peak learning rate together with the schedule and with the batch size. Default: keep it.",
        ),
    ] = False,
    plot: Annotated[
        Path | None,
        OUTPUT(help="Folder for one figure (PNG) per piece of advice; it is created if it does not exist."),
    ] = None,
    form: Form = "table",
) -> None:
    """Advise on a run before it is made: schedule, learning rate, when to decay, and batch size.

    The schedule is compared with a cosine and with a constant learning rate that decays at the end. Learning rates are
    compared with the optimizer's schedule, or with the best one if it has none.
    """
    with shell(1):
        import sdelens as sl

        check.choice("format", form, _FORMATS)
        if steps is None and samples is None:
            raise ValueError("steps: missing; give --steps, or --samples for advice on the batch size alone.")
        if plot is not None and plot.is_file():
            raise NotADirectoryError(f"plot: {str(plot)!r} is a file; give a folder.")
        with named(path="forecast"):
            forecaster = sl.forecast.load(forecast)
        optimizer = optimizer_from(planned.optimizer)
        found: dict[str, BestSchedule | BestLearningRate | DecayStart | BestBatch] = {}
        if steps is not None:
            best = forecaster.best_schedule(steps, optimizer, **planned.sizes, warmup=warmup, peak=tune_lr)
            scheduled = best.optimizer if optimizer.schedule is None else optimizer
            found["schedule"] = best
            found["learning rate"] = forecaster.best_lr(steps, scheduled, **planned.sizes)
            found["decay"] = forecaster.when_to_decay(steps, optimizer, **planned.sizes, warmup=warmup, done=done)
        if samples is not None:
            every = at_every_length(optimizer, steps)
            found["batch size"] = forecaster.best_batch(
                every, samples=samples, lr="best" if tune_lr else None, size=planned.size
            )
        if plot is not None:
            with held_folder("plot", plot) as folder:
                for name, choice in found.items():
                    choice.plot(folder / f"{name.replace(' ', '-')}.png")
        if form == "json":
            typer.echo(as_json({name.replace(" ", "_"): choice.describe() for name, choice in found.items()}))
            return
        typer.echo("\n\n".join(map(str, found.values())))
