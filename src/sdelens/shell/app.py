"""The shell. Thin: it turns text into the library's arguments; what they mean is decided there."""

import json
import os
import platform
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from sdelens.core import names
from sdelens.shell.case_options import Subject, build_subject, listing, numbers, read_curve, takes_subject
from sdelens.shell.diagnose import diagnose
from sdelens.shell.members import Members, takes_members
from sdelens.shell.reproduce import reproduce
from sdelens.shell.scale import scale
from sdelens.shell.session import claimed, command_line, refusals, shell
from sdelens.shell.sweep import sweep

__all__ = ["app"]

app = typer.Typer(
    name="sdelens",
    help="Stochastic optimizers and their stochastic differential equations, side by side.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
@takes_subject
@takes_members
def compare(
    subject: dict[str, Any],
    members: Members,
    models: Annotated[
        str | None,
        typer.Option(help=f"Comma-separated; default: all that exist for the optimizer. {listing(names.MODELS)}"),
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 1000,
    paths: Annotated[int, typer.Option(help="Independent paths.")] = 1024,
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
    record_every: Annotated[int, typer.Option(help="Steps between records.")] = 1,
    integrator: Annotated[str, typer.Option(help=listing(names.INTEGRATORS))] = "sequential",
    substeps: Annotated[int, typer.Option(help="Integration steps per optimizer step.")] = 1,
    bias_correction: Annotated[
        str,
        typer.Option(help="Adam's SDEs: 'discrete' (1 - b**(k+1)) or 'exponential' (the paper's)."),
    ] = "discrete",
    increments: Annotated[str, typer.Option(help=listing(names.INCREMENTS))] = "gaussian",
    update_samples: Annotated[
        int, typer.Option(help="Updates per step from which the empirical SDE has its coefficients.")
    ] = 8,
    coefficients: Annotated[str, typer.Option(help=f"Of the empirical SDE. {listing(names.COEFFICIENTS)}")] = "sampled",
    accumulators: Annotated[
        str, typer.Option(help=f"Their noise in the empirical SDE. {listing(names.ACCUMULATORS)}")
    ] = "lognormal",
    theory: Annotated[
        bool,
        typer.Option("--theory", help="Add the prediction of the loss and its bound (quadratic, linear-regression)."),
    ] = False,
    curve: Annotated[
        Path | None, typer.Option(help="CSV file of a logged loss curve to lay over, with columns step and loss.")
    ] = None,
    keep_paths: Annotated[int, typer.Option(help="Number of paths whose whole course is kept.")] = 0,
    observables: Annotated[
        str | None,
        typer.Option(
            help="What to record beside the loss, comma-separated: accuracy (networks), "
            f"{', '.join(names.OBSERVABLES)}."
        ),
    ] = None,
    marginals: Annotated[
        int | None, typer.Option(help="Number of coordinates, evenly spread, whose laws at the end are compared.")
    ] = None,
    chunk: Annotated[
        int | None, typer.Option(help="Paths in flight at once; default: about 1 GiB of states, on a CPU 64 MiB.")
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(help="Devices to use; on a CPU default: one per core."),
    ] = None,
    parameter_shards: Annotated[
        int, typer.Option(help="Devices over which the parameters of each path are split; the rest split the paths.")
    ] = 1,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for NetCDF, figure (PNG, PDF), table (CSV, LaTeX) and index.html."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results in the folder.")] = False,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(help="Save where the run stands every so many steps, in the folder checkpoint in --out."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on from the checkpoint in --out, from the beginning if there is none. Saves every 30 s, unless "
            "--checkpoint-every is given.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would cost.")] = False,
) -> None:
    """Run an optimizer and its SDEs side by side and print how well each tracks it."""
    with shell(devices, members) as first:
        setting = build_subject(subject)
        wanted = None if models is None else [name.strip() for name in models.split(",")]
        run = dict(
            steps=steps,
            paths=paths,
            seed=seed,
            record_every=record_every,
            integrator=integrator,
            substeps=substeps,
            bias_correction=bias_correction,
            increments=increments,
            samples=update_samples,
            coefficients=coefficients,
            accumulators=accumulators,
            keep_paths=keep_paths,
            observables=None if observables is None else [name.strip() for name in observables.split(",")],
            marginals=marginals,
            chunk=chunk,
            parameter_shards=parameter_shards,
        )
        logged = None if curve is None else read_curve(curve)
        if dry_run:
            _estimate(setting, wanted, run, first)
            return
        with claimed(out, overwrite, checkpoint_every, resume, first) as (folder, checkpoints):
            _compare(setting, wanted, {**run, "checkpoint": checkpoints}, theory, logged, folder, first)


def _estimate(setting: Subject, models: list[str] | None, run: dict[str, Any], first: bool) -> None:
    import sdelens as sl

    cost = sl.estimate(setting.problem, setting.noise, setting.optimizer, models, **run)
    if first:
        typer.echo(f"This would take {cost}.")


def _compare(
    setting: Subject,
    models: list[str] | None,
    run: dict[str, Any],
    theory: bool,
    logged: tuple[list[float], list[float]] | None,
    folder: Path | None,
    first: bool,
) -> None:
    import sdelens as sl

    subject = (setting.problem, setting.noise, setting.optimizer)
    result = sl.compare(*subject, models, **run)
    if not first:
        return
    remarks: list[str] = []
    if theory:
        result, remarks = sl.theory.add_theory(result, *subject)
    if logged is not None:
        steps, losses = logged
        try:
            result = result.with_curve("logged", losses, steps)
        except (ValueError, TypeError) as error:
            raise ValueError(f"curve: {error}") from error
    typer.echo("\n".join([str(result), *remarks]))
    _write(folder, setting, result, "compare", "\n".join(remarks))


def _write(folder: Path | None, setting: Subject, result: Any, command: str, text: str) -> None:
    """The result's files and page in the folder, if there is one."""
    from sdelens.results.report import write_report

    if folder is None:
        return
    name = f"{setting.optimizer.name}-{result.info['problem']['name']}"
    title, made_by = f"sdelens {command}: {name}", f"sdelens {command_line()}"
    page = write_report(folder, {name: result}, title, made_by, {name: text})
    typer.echo(f"\nWritten to {page}")


@app.command()
@takes_subject
def predict(
    subject: dict[str, Any],
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 1000,
    record_every: Annotated[int, typer.Option(help="Steps between records.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder for NetCDF, figure (PNG, PDF) and index.html.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results in the folder.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would cost.")] = False,
) -> None:
    """Predict the loss curve, the law at rest, the bound and the phases without a simulation."""
    with shell(1):
        import sdelens as sl
        from sdelens.results.report import claim_folder

        setting = build_subject(subject)
        case = (setting.problem, setting.noise, setting.optimizer)
        if dry_run:
            typer.echo(f"This would take {sl.theory.estimate(*case, steps=steps, record_every=record_every)}.")
            return
        with nullcontext() if out is None else claim_folder(out, overwrite) as folder:
            found = sl.theory.overview(*case, steps=steps, record_every=record_every)
            typer.echo(str(found))
            _write(folder, setting, found.prediction, "predict", str(found))


@app.command()
@takes_subject
def order(
    subject: dict[str, Any],
    lrs: Annotated[
        str, typer.Option(help="Learning rates, decreasing, comma-separated. ρ and θ are those of --lr and are held.")
    ] = "0.1,0.05,0.025,0.0125",
    horizon: Annotated[float, typer.Option(help="Time up to which expectations are compared.")] = 1.6,
    times: Annotated[int, typer.Option(help="Equally spaced times up to the horizon.")] = 4,
    models: Annotated[str | None, typer.Option(help="SDEs, comma-separated; default: all of the optimizer.")] = None,
    paths: Annotated[int, typer.Option(help="Coupled paths per learning rate.")] = 20_000,
    substeps: Annotated[
        int | None, typer.Option(help="Of the resolved SDE, a multiple of 4; default: as many as it needs.")
    ] = None,
    integrator: Annotated[str, typer.Option(help=listing(names.INTEGRATORS))] = "sequential",
    bias_correction: Annotated[str, typer.Option(help="Adam's SDEs: 'discrete' or 'exponential'.")] = "discrete",
    increments: Annotated[str, typer.Option(help=listing(names.INCREMENTS))] = "gaussian",
    method: Annotated[
        str, typer.Option(help="'coupled' paths, transition 'kernel's (signsgd, separable problems), or 'auto'.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
    devices: Annotated[int | None, typer.Option(help="Devices to use; on a CPU default: one per core.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the table (CSV) and the figure (PNG, PDF).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results in the folder.")] = False,
) -> None:
    """Measure the weak order of an optimizer's SDEs: how their error shrinks with the learning rate."""
    with shell(devices):
        import sdelens as sl
        from sdelens.results.report import claim_folder

        setting = build_subject(subject)
        name = f"order-{setting.optimizer.name}-{setting.problem.describe()['name']}"
        with nullcontext() if out is None else claim_folder(out, overwrite, f"{name}.csv") as folder:
            study = sl.weak_order(
                setting.problem,
                setting.noise,
                setting.optimizer,
                rates if isinstance(rates := numbers("lrs", lrs), list) else [rates],
                horizon,
                None if models is None else [name.strip() for name in models.split(",")],
                times=times,
                paths=paths,
                substeps=substeps,
                integrator=integrator,
                bias_correction=bias_correction,
                increments=increments,
                method=method,
                seed=seed,
            )
            typer.echo(str(study))
            if folder is not None:
                study.export(folder / f"{name}.csv")
                for ending in ("png", "pdf"):
                    study.plot(folder / f"{name}.{ending}")
                typer.echo(f"\nWritten to {folder}")


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    devices: Annotated[int | None, typer.Option(help="CPU devices to ask for; default: one per core.")] = None,
) -> None:
    """Show versions and devices, and what can be named."""
    with shell(devices):
        _info(as_json)


def _info(as_json: bool) -> None:
    import jax

    packages = {}
    for name in ("sdelens", "jax", "jaxlib", "optax", "equinox", "numpy", "xarray"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    found = {
        "python": platform.python_version(),
        "packages": packages,
        "devices": [f"{d.platform}:{d.id} ({d.device_kind})" for d in jax.devices()],
        "cores": os.cpu_count(),
        "optimizers": list(names.OPTIMIZERS),
        "models": list(names.MODELS),
        "problems": list(names.PROBLEMS),
        "datasets": list(names.DATASETS),
        "noises": list(names.NOISES),
        "compressions": list(names.COMPRESSIONS),
        "schedules": list(names.SCHEDULES),
        "integrators": list(names.INTEGRATORS),
        "increments": list(names.INCREMENTS),
    }
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for key, value in found.items():
        pairs = [f"{k} {v}" for k, v in value.items()] if isinstance(value, dict) else value
        typer.echo(f"{key:12} {', '.join(pairs) if isinstance(pairs, list) else pairs}")


app.command()(sweep)
app.command()(reproduce)
app.command()(refusals()(scale))
app.command()(refusals()(diagnose))


@app.callback(invoke_without_command=True)
def main(
    show_version: Annotated[bool, typer.Option("--version", help="Show the version.", is_eager=True)] = False,
) -> None:
    """Stochastic optimizers and their stochastic differential equations, side by side."""
    if show_version:
        typer.echo(version("sdelens"))
        raise typer.Exit
