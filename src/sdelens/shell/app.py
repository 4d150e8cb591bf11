"""The shell: a thin layer that turns text into the library's arguments; the library interprets them."""

import json
import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer

from sdelens.core import check
from sdelens.core.text import listed, wrapped
from sdelens.shell import forecast
from sdelens.shell.advise import advise
from sdelens.shell.case_options import Subject, SubjectOptions, named, numbers
from sdelens.shell.command import Command, Group, takes_options
from sdelens.shell.diagnose import diagnose
from sdelens.shell.explore import explore
from sdelens.shell.join import join, read_curve, refuse_of_share, write_and_print, write_and_print_comparison
from sdelens.shell.output import Output, RunOutput
from sdelens.shell.panels import SIZE, Curve, Devices, DryRun, Theory
from sdelens.shell.reproduce import reproduce
from sdelens.shell.rescale import rescale
from sdelens.shell.run_options import RunOptions, models_from, saved_to
from sdelens.shell.scale import scale
from sdelens.shell.session import refusals, say, shell
from sdelens.shell.sweep import sweep

__all__ = ["app"]

app = typer.Typer(
    name="sdelens",
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
_forecasts = typer.Typer(name="forecast", cls=Group, no_args_is_help=True, rich_markup_mode="rich")
app.add_typer(_forecasts)


def _command(*examples: str, group: typer.Typer = app) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator that adds a function to the program, or to a group, as a command, with examples below its help."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        return group.command(cls=Command, epilog="\n\n".join(["Examples:", *examples]))(takes_options(function))

    return add


@_command(
    "sdelens compare --optimizer 'adamw(lr=0.01, b2=0.99)' --steps 600 --paths 8000 --out adamw",
    "sdelens compare --problem 'cnn(subset=128)' --noise 'minibatch(32)' --optimizer signsgd --lr 0.001 --paths 32",
)
def compare(
    subject: SubjectOptions,
    run: RunOptions,
    output: RunOutput,
    theory: Theory = False,
    curve: Curve = None,
) -> None:
    """Run an optimizer and its SDEs side by side, and print how well each SDE tracks the optimizer.

    With --out, it writes NetCDF, a figure (PNG, PDF), a table (CSV, LaTeX) and index.html.
    """
    with shell(run.devices):
        setting = subject.build()
        logged = None if curve is None else read_curve(curve)
        options = run.arguments()
        if output.dry_run:
            _estimate(setting, options)
            return
        if (share := run.chosen_share) is not None:
            refuse_of_share(theory=theory, curve=curve)
            from sdelens.run.api import identity_of_share

            def identify() -> Any:
                return identity_of_share(setting.problem, setting.noise, setting.optimizer, **options)

            def compute(checkpoints: Any) -> Any:
                return _compared(setting, saved_to(options, checkpoints))

            typer.echo(output.write_share(share, compute, identify, subject))
            return
        with output.claimed() as (folder, checkpoints):
            result = _compared(setting, saved_to(options, checkpoints))
            write_and_print_comparison(folder, result, setting if theory else None, logged)


def _compared(setting: Subject, run: dict[str, Any]) -> Any:
    import sdelens as sl

    return sl.compare(setting.problem, setting.noise, setting.optimizer, **run)


def _estimate(setting: Subject, options: dict[str, Any]) -> None:
    import sdelens as sl

    say(f"This would take {sl.estimate(setting.problem, setting.noise, setting.optimizer, **options)}.")


@_command(
    "sdelens predict --optimizer signsgd --lr 0.01 --steps 500 --out prediction",
    "sdelens predict --problem 'linear-regression(samples=200)' --noise 'minibatch(8)' --optimizer sgd --lr 0.1",
)
def predict(
    subject: SubjectOptions,
    output: Output,
    steps: Annotated[int, SIZE(help="Number of optimizer steps.")] = 1000,
    record_every: Annotated[int, SIZE(help="Steps between records.")] = 1,
    dry_run: DryRun = False,
) -> None:
    """Predict the loss curve, the stationary distribution, the bound and the phases without a simulation.

    With --out, it writes NetCDF, a figure (PNG, PDF) and index.html.
    """
    with shell(1):
        import sdelens as sl

        setting = subject.build()
        case = (setting.problem, setting.noise, setting.optimizer)
        if dry_run:
            say(f"This would take {sl.theory.estimate(*case, steps=steps, record_every=record_every)}.")
            return
        with output.folder() as folder:
            found = sl.theory.overview(*case, steps=steps, record_every=record_every)
            write_and_print(folder, found.prediction, "predict", str(found), str(found))


@_command(
    "sdelens order --optimizer signsgd --lrs 0.1,0.05,0.025,0.0125 --out order",
    "sdelens order --optimizer 'adamw(b1=0.5, b2=0.8, v0=second-moment)' --lr 0.1 --models 'sde(integrator=euler)'",
)
def order(
    subject: SubjectOptions,
    output: Output,
    lrs: Annotated[
        str,
        typer.Option(
            help="Learning rates, decreasing, comma-separated. At all of them ρ and θ have the values that they have "
            "at --lr."
        ),
    ] = "0.1,0.05,0.025,0.0125",
    horizon: Annotated[float, typer.Option(help="Time up to which expectations are compared.")] = 1.6,
    times: Annotated[int, typer.Option(help="Number of equally spaced times up to the horizon.")] = 4,
    models: Annotated[
        str | None,
        typer.Option(help="SDEs, comma-separated, written as for compare: sde(integrator=euler). Default: all."),
    ] = None,
    paths: Annotated[int, typer.Option(help="Number of coupled paths per learning rate.")] = 20_000,
    substeps: Annotated[
        int | None,
        typer.Option(help="Substeps of the resolved SDE, a multiple of 4. Default: as many as it needs."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(help="'coupled' (paths), 'kernel' (transition kernels; signsgd, separable problems) or 'auto'."),
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
    devices: Devices = None,
) -> None:
    """Measure the weak order of an optimizer's SDEs: how their error shrinks with the learning rate.

    With --out, it writes a table (CSV) and a figure (PNG, PDF).
    """
    with shell(devices):
        import sdelens as sl

        setting = subject.build()
        name = f"order-{setting.optimizer.name}-{setting.problem.describe()['name']}"
        with output.folder(f"{name}.csv") as folder:
            study = sl.weak_order(
                setting.problem,
                setting.noise,
                setting.optimizer,
                numbers("lrs", lrs),
                horizon,
                models_from(models),
                times=times,
                paths=paths,
                substeps=substeps,
                method=method,
                seed=seed,
            )
            if folder is not None:
                study.export(folder / f"{name}.csv")
                for ending in ("png", "pdf"):
                    study.plot(folder / f"{name}.{ending}")
            typer.echo(str(study) if folder is None else f"{study}\n\nWritten to {folder}")


@_command("sdelens info", "sdelens info optimizers", "sdelens info --json")
def info(
    topic: Annotated[str | None, typer.Argument(help=f"What to explain: {', '.join(named())}.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    devices: Devices = None,
) -> None:
    """Show versions, devices, and the names that options accept; or what the names of one kind mean."""
    if topic is not None:
        with refusals():
            meanings = named()[check.choice("topic", topic, named())]
        rows = [[name, meaning] for name, meaning in meanings.items()]
        typer.echo(json.dumps(meanings, indent=2, ensure_ascii=False) if as_json else "\n".join(listed(rows)))
        return
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
        **{topic: list(meanings) for topic, meanings in named().items()},
    }
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    rows = []
    for key, value in found.items():
        pairs = [f"{k} {v}" for k, v in value.items()] if isinstance(value, dict) else value
        rows.append([key, ", ".join(pairs) if isinstance(pairs, list) else str(pairs)])
    typer.echo("\n".join([*listed(rows), "", *wrapped("sdelens info optimizers says what these names mean.")]))


_command(
    "sdelens explore --optimizer 'signsgd(lr=0.02)' --noise 'student-t(df=1)'",
    "sdelens explore --result adamw/adamw-quadratic.nc --coordinates 0,4",
)(explore)
_command(
    "sdelens sweep --optimizer adamw --over lr=1e-3,3e-3,1e-2 --over weight_decay=0,0.1,1 --out sweep",
    "sdelens sweep --optimizer sgd --over noise.scale=1,2 --models optimizer,sde --quantity error --out tracking",
)(sweep)
_command(
    "sdelens join shares --theory --out adamw",
    "sdelens join share-0-of-2.safetensors share-1-of-2.safetensors",
)(join)
_command("sdelens reproduce --list", "sdelens reproduce --preset quick --out report")(reproduce)
_command(
    "sdelens scale adamw --lr 1e-3 --b2 0.95 --batch 256 --to 2048",
    "sdelens scale sgd --lr 0.1 --mu 0.9 --batch 128 --to 512 --format torch",
)(refusals()(scale))
_command(
    "sdelens advise 1200,800,1900 --batch-size 256 --lr 3e-4",
    "sdelens advise noise.csv --batch-size 256 --plot advice.png",
)(refusals()(advise))
_command(
    "sdelens rescale checkpoint.pt --ratio 4 --out checkpoint-4x.pt",
    "sdelens rescale output/checkpoint-1000 --ratio 2 --warmup 500 --out checkpoint-2x",
)(refusals()(rescale))
_command(
    "sdelens diagnose optimizer.pt --b1 0.9 --b2 0.999",
    "sdelens diagnose checkpoint --batch-size 256 --format json",
)(refusals()(diagnose))

_command(
    "sdelens forecast fit cosine.csv constant.csv --optimizer 'adamw(lr=3e-4, weight_decay=0.1)' --out forecast.json",
    "sdelens forecast fit --runs runs.csv --out forecast.json --plot fit.png",
    group=_forecasts,
)(forecast.fit)
_command(
    "sdelens forecast predict forecast.json --optimizer 'adamw(lr=3e-4, schedule=cosine(72000))' --steps 72000",
    "sdelens forecast predict forecast.json --optimizer 'adamw(lr=3e-4)' --logged run.csv --plot prediction.png",
    group=_forecasts,
)(forecast.predict)
_command(
    "sdelens forecast advise forecast.json --optimizer 'adamw(lr=3e-4)' --steps 72000 --warmup 2160 --plot advice",
    "sdelens forecast advise forecast.json --optimizer 'adamw(lr=1e-3)' --samples 2e7 --size 6e7 --tune-lr",
    group=_forecasts,
)(forecast.advise)


@_forecasts.callback()
def forecasts() -> None:
    """Predict loss curves of training runs from a fit to logged ones."""


@app.callback(invoke_without_command=True)
def main(
    show_version: Annotated[bool, typer.Option("--version", help="Show the version.", is_eager=True)] = False,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Neither load nor keep compiled programs in the user's cache folder.")
    ] = False,
) -> None:
    """Stochastic optimizers and their stochastic differential equations, side by side."""
    if no_cache:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    if show_version:
        typer.echo(version("sdelens"))
        raise typer.Exit
