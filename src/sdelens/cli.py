"""The shell. Thin: it turns text into the library's arguments; what they mean is decided there."""

import json
import os
import platform
import shlex
import sys
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from sdelens import _names

if TYPE_CHECKING:
    from sdelens.noise import AbstractNoise
    from sdelens.optimizers import Optimizer
    from sdelens.problems import AbstractProblem

__all__ = ["app"]

app = typer.Typer(
    name="sdelens",
    help="Stochastic optimizers and their stochastic differential equations, side by side.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _listing(names: dict[str, str]) -> str:
    return "; ".join(f"{name}: {meaning}" for name, meaning in names.items())


@dataclass(frozen=True)
class _Setting:
    """Problem, noise and optimizer of one command."""

    problem: "AbstractProblem"
    noise: "AbstractNoise"
    optimizer: "Optimizer"


_ACCEPTS = {
    "sgd": (),
    "signsgd": (),
    "rmspropw": ("b2", "eps", "v0"),
    "adamw": ("b1", "b2", "eps"),
    "quadratic": ("curvature", "start"),
    "rosenbrock": ("start",),
    "embedded-saddle": ("curvature", "start", "lam", "xi"),
    "mlp": ("dataset", "width", "depth", "init_seed"),
}
"""Options each optimizer or problem takes beyond those common to all."""


@app.command()
def compare(
    optimizer: Annotated[str, typer.Option(help=_listing(_names.OPTIMIZERS))] = "adamw",
    lr: Annotated[float, typer.Option(help="Learning rate η, the unit of time.")] = 0.01,
    b1: Annotated[float | None, typer.Option(help="Decay of the first moment (adamw; default 0.9).")] = None,
    b2: Annotated[
        float | None,
        typer.Option(help="Decay of the second moment (adamw: default 0.999; rmspropw: default 0.99)."),
    ] = None,
    eps: Annotated[float | None, typer.Option(help="ε outside the root (adamw, rmspropw; default 1e-8).")] = None,
    weight_decay: Annotated[float, typer.Option(help="Decoupled weight decay θ.")] = 0.0,
    decay: Annotated[
        str,
        typer.Option(help="'coupled': η multiplies θ, as in PyTorch; 'independent': it does not."),
    ] = "coupled",
    v0: Annotated[
        str | None,
        typer.Option(help="rmspropw's accumulator at the start: 'second-moment' (default) or 'zero'."),
    ] = None,
    problem: Annotated[str, typer.Option(help=_listing(_names.PROBLEMS))] = "quadratic",
    curvature: Annotated[
        str | None,
        typer.Option(help="Diagonal of H, comma-separated (quadratic, embedded-saddle). quadratic: default 1,2,3,4,5."),
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="Start: one number for all coordinates, or comma-separated.")
    ] = None,
    lam: Annotated[float | None, typer.Option(help="λ of embedded-saddle (default 1).")] = None,
    xi: Annotated[float | None, typer.Option(help="ξ of embedded-saddle (default 0.1).")] = None,
    dataset: Annotated[str | None, typer.Option(help=f"Data of a network. {_listing(_names.DATASETS)}")] = None,
    width: Annotated[int | None, typer.Option(help="Units of a hidden layer (mlp; default 20).")] = None,
    depth: Annotated[int | None, typer.Option(help="Hidden layers (mlp; default 10).")] = None,
    init_seed: Annotated[int | None, typer.Option(help="Seed of a network's initialisation (default 0).")] = None,
    noise: Annotated[str, typer.Option(help=_listing(_names.NOISES))] = "gaussian",
    scale: Annotated[
        str,
        typer.Option(help="Standard deviation of the gradient noise: one number, or comma-separated per coordinate."),
    ] = "1.0",
    models: Annotated[
        str | None,
        typer.Option(help=f"Comma-separated; default: all that exist for the optimizer. {_listing(_names.MODELS)}"),
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 1000,
    paths: Annotated[int, typer.Option(help="Independent paths.")] = 1024,
    seed: Annotated[int, typer.Option(help="Seed of all randomness.")] = 0,
    record_every: Annotated[int, typer.Option(help="Steps between records.")] = 1,
    integrator: Annotated[str, typer.Option(help=_listing(_names.INTEGRATORS))] = "sequential",
    substeps: Annotated[int, typer.Option(help="Integration steps per optimizer step.")] = 1,
    bias_correction: Annotated[
        str,
        typer.Option(help="Adam's SDEs: 'discrete' (1 - b**(k+1)) or 'exponential' (the paper's)."),
    ] = "discrete",
    keep_paths: Annotated[int, typer.Option(help="Number of paths whose whole course is kept.")] = 0,
    chunk: Annotated[int | None, typer.Option(help="Paths in flight at once; default: about 1 GiB of states.")] = None,
    devices: Annotated[
        int | None,
        typer.Option(help="Devices to use; on a CPU default: one per core."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for NetCDF, figure (PNG, PDF), table (CSV, LaTeX) and index.html."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results in the folder.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would cost.")] = False,
) -> None:
    """Run an optimizer and its SDEs side by side and print how well each tracks it."""
    given = {k: v for k, v in locals().items() if v is not None}
    _start_jax(devices)
    try:
        setting = _setting(given)
        wanted = None if models is None else [name.strip() for name in models.split(",")]
        run = dict(
            steps=steps,
            paths=paths,
            seed=seed,
            record_every=record_every,
            integrator=integrator,
            substeps=substeps,
            bias_correction=bias_correction,
            keep_paths=keep_paths,
            chunk=chunk,
        )
        _compare(setting, wanted, run, None if dry_run else out, overwrite, dry_run)
    except BrokenPipeError:
        raise
    except (ValueError, TypeError, OSError) as error:
        _fail(error)


def _compare(
    setting: _Setting, models: list[str] | None, run: dict[str, Any], out: Path | None, overwrite: bool, dry_run: bool
) -> None:
    import sdelens as sl
    from sdelens.report import claim_folder, write_report

    subject = (setting.problem, setting.noise, setting.optimizer, models)
    if dry_run:
        typer.echo(f"This would take {sl.estimate(*subject, **run)}.")
        return
    folder = None if out is None else claim_folder(out, overwrite)
    result = sl.compare(*subject, **run)
    typer.echo(str(result))
    if folder is not None:
        name = f"{setting.optimizer.name}-{result.info['problem']['name']}"
        page = write_report(folder, {name: result}, f"sdelens compare: {name}", f"sdelens {_command_line()}")
        typer.echo(f"\nWritten to {page}")


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    devices: Annotated[int | None, typer.Option(help="CPU devices to ask for; default: one per core.")] = None,
) -> None:
    """Show versions and devices, and what can be named."""
    _start_jax(devices)
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
        "optimizers": list(_names.OPTIMIZERS),
        "models": list(_names.MODELS),
        "problems": list(_names.PROBLEMS),
        "datasets": list(_names.DATASETS),
        "noises": list(_names.NOISES),
        "integrators": list(_names.INTEGRATORS),
    }
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for key, value in found.items():
        pairs = [f"{k} {v}" for k, v in value.items()] if isinstance(value, dict) else value
        typer.echo(f"{key:12} {', '.join(pairs) if isinstance(pairs, list) else pairs}")


@app.callback(invoke_without_command=True)
def main(
    show_version: Annotated[bool, typer.Option("--version", help="Show the version.", is_eager=True)] = False,
) -> None:
    """Stochastic optimizers and their stochastic differential equations, side by side."""
    if show_version:
        typer.echo(version("sdelens"))
        raise typer.Exit


def _start_jax(devices: int | None) -> None:
    """Make each CPU core a device; this must precede the first use of JAX."""
    if devices is not None and devices < 1:
        _fail(ValueError(f"devices: got {devices}; it must be 1 or more."))
    import jax

    jax.config.update("jax_num_cpu_devices", devices or _cores())
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked = f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')!r}"
        _fail(RuntimeError(f"JAX finds no device ({asked}); unset it, or set it to cpu. {error}".strip()))
    warnings.showwarning = lambda message, *_: typer.echo(f"sdelens: warning: {message}", err=True)


def _cores() -> int:
    """Cores this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _setting(given: dict[str, Any]) -> _Setting:
    import sdelens as sl
    from sdelens import _check

    optimizer = _check.choice("optimizer", given["optimizer"], _names.OPTIMIZERS)
    problem = _check.choice("problem", given["problem"], _names.PROBLEMS)
    _check.choice("noise", given["noise"], _names.NOISES)
    every = {option for options in _ACCEPTS.values() for option in options}
    for option in sorted(every & given.keys()):
        takers = [name for name, options in _ACCEPTS.items() if option in options]
        if not {optimizer, problem} & set(takers):
            raise ValueError(f"{option}: {optimizer} on {problem} does not take it; it belongs to {', '.join(takers)}.")
    own = {k: given[k] for k in _ACCEPTS[optimizer] if k in given}
    common = {k: given[k] for k in ("lr", "weight_decay", "decay")}
    kinds = {"sgd": sl.SGD, "signsgd": sl.SignSGD, "rmspropw": sl.RMSpropW, "adamw": sl.AdamW}
    options = {k: given[k] for k in _ACCEPTS[problem] if k in given}
    for name in ("curvature", "start"):
        if name in options:
            options[name] = _numbers(name, options[name])
    if problem in _names.NETWORKS:
        options["seed"] = options.pop("init_seed", 0)
        made: AbstractProblem = sl.network(problem, **options)
    elif problem == "quadratic":
        made = sl.Quadratic(**{"curvature": [1.0, 2.0, 3.0, 4.0, 5.0], **options})
    else:
        made = {"rosenbrock": sl.Rosenbrock, "embedded-saddle": sl.EmbeddedSaddle}[problem](**options)
    noise = sl.GaussianNoise(_numbers("scale", given["scale"]))
    return _Setting(made, noise, kinds[optimizer](**common, **own))


def _numbers(name: str, text: str) -> float | list[float]:
    """One number, or a list of comma-separated ones."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{name}: got {text!r}; give numbers separated by commas, for example 1,2.5,4.") from error
    return values[0] if len(values) == 1 else values


def _command_line() -> str:
    return shlex.join(sys.argv[1:])


def _fail(error: Exception) -> NoReturn:
    typer.echo(f"sdelens: {error}", err=True)
    raise typer.Exit(2)
