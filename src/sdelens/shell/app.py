"""The shell: a thin layer that turns text into the library's arguments; the library interprets them."""

import json
import os
import platform
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from sdelens.core import names
from sdelens.core.declarations import NOISES, OPTIMIZERS
from sdelens.shell.case_options import Subject, build_subject, numbers, read_curve, takes_subject
from sdelens.shell.diagnose import diagnose
from sdelens.shell.members import Members, takes_members
from sdelens.shell.panels import OUTPUT, PLACE, SIZE
from sdelens.shell.reproduce import reproduce
from sdelens.shell.run_options import RunOptions, models_from, saved_to, takes_run
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
    rich_markup_mode="rich",
)


def _examples(*lines: str) -> str:
    """Example commands, shown below the options."""
    return "\n\n".join(["Examples:", *lines])


@app.command(
    epilog=_examples(
        "sdelens compare --optimizer 'adamw(lr=0.01, b2=0.99)' --steps 600 --paths 8000 --out adamw",
        "sdelens compare --problem 'cnn(subset=128)' --noise 'minibatch(32)' --optimizer signsgd --lr 0.001 --paths 32",
    )
)
@takes_subject
@takes_members
@takes_run
def compare(
    subject: dict[str, Any],
    run: RunOptions,
    members: Members,
    theory: Annotated[
        bool,
        OUTPUT("--theory", help="Add the prediction of the loss and its bound (quadratic, linear-regression)."),
    ] = False,
    curve: Annotated[
        Path | None,
        OUTPUT(help="CSV file of a logged loss curve to lay over, with columns step and loss."),
    ] = None,
    out: Annotated[
        Path | None,
        OUTPUT(help="Folder for NetCDF, figure (PNG, PDF), table (CSV, LaTeX) and index.html."),
    ] = None,
    overwrite: Annotated[bool, OUTPUT("--overwrite", help="Replace results in the folder.")] = False,
    checkpoint_every: Annotated[
        int | None,
        OUTPUT(help="Save where the run stands every so many steps, in the folder checkpoint in --out."),
    ] = None,
    resume: Annotated[
        bool,
        OUTPUT(
            "--resume",
            help="Go on from the checkpoint in --out, from the beginning if there is none. Saves every 30 s, unless "
            "--checkpoint-every is given.",
        ),
    ] = False,
    dry_run: Annotated[bool, OUTPUT("--dry-run", help="Only say what it would cost.")] = False,
) -> None:
    """Run an optimizer and its SDEs side by side and print how well each tracks it."""
    with shell(run.devices, members) as first:
        setting = build_subject(subject)
        logged = None if curve is None else read_curve(curve)
        options = run.arguments()
        if dry_run:
            _estimate(setting, options, first)
            return
        with claimed(out, overwrite, checkpoint_every, resume, first) as (folder, checkpoints):
            _compare(setting, saved_to(options, checkpoints), theory, logged, folder, first)


def _estimate(setting: Subject, options: dict[str, Any], first: bool) -> None:
    import sdelens as sl

    cost = sl.estimate(setting.problem, setting.noise, setting.optimizer, **options)
    if first:
        typer.echo(f"This would take {cost}.")


def _compare(
    setting: Subject,
    run: dict[str, Any],
    theory: bool,
    logged: tuple[list[float], list[float]] | None,
    folder: Path | None,
    first: bool,
) -> None:
    import sdelens as sl

    subject = (setting.problem, setting.noise, setting.optimizer)
    result = sl.compare(*subject, **run)
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
    """Write the result's files and page to the folder, if there is one."""
    from sdelens.results.report import write_report

    if folder is None:
        return
    name = f"{setting.optimizer.name}-{result.info['problem']['name']}"
    title, made_by = f"sdelens {command}: {name}", f"sdelens {command_line()}"
    page = write_report(folder, {name: result}, title, made_by, {name: text})
    typer.echo(f"\nWritten to {page}")


@app.command(
    epilog=_examples(
        "sdelens predict --optimizer signsgd --lr 0.01 --steps 500 --out prediction",
        "sdelens predict --problem 'linear-regression(samples=200)' --noise 'minibatch(8)' --optimizer sgd --lr 0.1",
    )
)
@takes_subject
def predict(
    subject: dict[str, Any],
    steps: Annotated[int, SIZE(help="Optimizer steps.")] = 1000,
    record_every: Annotated[int, SIZE(help="Steps between records.")] = 1,
    out: Annotated[Path | None, OUTPUT(help="Folder for NetCDF, figure (PNG, PDF) and index.html.")] = None,
    overwrite: Annotated[bool, OUTPUT("--overwrite", help="Replace results in the folder.")] = False,
    dry_run: Annotated[bool, OUTPUT("--dry-run", help="Only say what it would cost.")] = False,
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


@app.command(
    epilog=_examples(
        "sdelens order --optimizer signsgd --lrs 0.1,0.05,0.025,0.0125 --out order",
        "sdelens order --optimizer 'adamw(b1=0.5, b2=0.8, v0=second-moment)' --lr 0.1 --models 'sde(integrator=euler)'",
    )
)
@takes_subject
def order(
    subject: dict[str, Any],
    lrs: Annotated[
        str, typer.Option(help="Learning rates, decreasing, comma-separated. ρ and θ are those of --lr and are held.")
    ] = "0.1,0.05,0.025,0.0125",
    horizon: Annotated[float, typer.Option(help="Time up to which expectations are compared.")] = 1.6,
    times: Annotated[int, typer.Option(help="Equally spaced times up to the horizon.")] = 4,
    models: Annotated[
        str | None,
        typer.Option(help="SDEs, comma-separated, as of compare: sde(integrator=euler); default: all there are."),
    ] = None,
    paths: Annotated[int, typer.Option(help="Coupled paths per learning rate.")] = 20_000,
    substeps: Annotated[
        int | None, typer.Option(help="Of the resolved SDE, a multiple of 4; default: as many as it needs.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="'coupled' paths, transition 'kernel's (signsgd, separable problems), or 'auto'.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
    devices: Annotated[
        int | None,
        PLACE(help="Devices to use; on a CPU default: one per core."),
    ] = None,
    out: Annotated[
        Path | None,
        OUTPUT(help="Folder for the table (CSV) and the figure (PNG, PDF)."),
    ] = None,
    overwrite: Annotated[bool, OUTPUT("--overwrite", help="Replace results in the folder.")] = False,
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
                models_from(models),
                times=times,
                paths=paths,
                substeps=substeps,
                method=method,
                seed=seed,
            )
            typer.echo(str(study))
            if folder is not None:
                study.export(folder / f"{name}.csv")
                for ending in ("png", "pdf"):
                    study.plot(folder / f"{name}.{ending}")
                typer.echo(f"\nWritten to {folder}")


@app.command(epilog=_examples("sdelens info", "sdelens info --json"))
def info(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    devices: Annotated[int | None, PLACE(help="CPU devices to ask for; default: one per core.")] = None,
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
        "optimizers": list(OPTIMIZERS),
        "models": list(names.MODELS),
        "problems": list(names.PROBLEMS),
        "datasets": list(names.DATASETS),
        "noises": list(NOISES),
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


app.command(
    epilog=_examples(
        "sdelens sweep --optimizer adamw --over lr=1e-3,3e-3,1e-2 --over weight_decay=0,0.1,1 --out sweep",
        "sdelens sweep --optimizer sgd --over noise.scale=1,2 --models optimizer,sde --quantity error --out tracking",
    )
)(sweep)
app.command(epilog=_examples("sdelens reproduce --list", "sdelens reproduce --preset quick --out report"))(reproduce)
app.command(
    epilog=_examples(
        "sdelens scale adamw --lr 1e-3 --b2 0.95 --batch 256 --to 2048",
        "sdelens scale sgd --lr 0.1 --mu 0.9 --batch 128 --to 512 --format torch",
    )
)(refusals()(scale))
app.command(
    epilog=_examples(
        "sdelens diagnose optimizer.pt --b1 0.9 --b2 0.999",
        "sdelens diagnose checkpoint --batch-size 256 --format json",
    )
)(refusals()(diagnose))


@app.callback(invoke_without_command=True)
def main(
    show_version: Annotated[bool, typer.Option("--version", help="Show the version.", is_eager=True)] = False,
) -> None:
    """Stochastic optimizers and their stochastic differential equations, side by side."""
    if show_version:
        typer.echo(version("sdelens"))
        raise typer.Exit
