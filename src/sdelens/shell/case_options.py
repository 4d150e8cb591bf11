"""The shell's options for problem, noise and optimizer, shared by its commands, and the objects they name."""

import ast
import csv
import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdelens.core import names

if TYPE_CHECKING:
    from sdelens.noise import AbstractNoise
    from sdelens.optimizers import Optimizer
    from sdelens.problems import AbstractProblem

__all__ = ["Subject", "build_subject", "listing", "numbers", "optax_optimizers", "read_curve", "takes_subject"]

_NETWORK = ("dataset", "subset", "data_dir", "data_seed", "init_seed", "dtype", "gradient_dtype")
_ACCEPTS = {
    "sgd": (),
    "signsgd": (),
    "rmspropw": ("b2", "eps", "v0"),
    "adamw": ("b1", "b2", "eps", "v0"),
    "optax": ("opt",),
    "momentum": ("b1", "nesterov"),
    "signum": ("b1",),
    "lion": ("b1", "b2"),
    "adagrad": ("initial_accumulator", "eps"),
    "quadratic": ("curvature", "start"),
    "linear-regression": ("design", "label_noise", "solution", "start", "samples", "data_seed"),
    "rosenbrock": ("start",),
    "embedded-saddle": ("curvature", "start", "lam", "xi"),
    "mlp": (*_NETWORK, "width", "depth"),
    "cnn": (*_NETWORK, "channels", "dense"),
    "resnet": (*_NETWORK, "channels", "blocks", "dense"),
    "vit": (*_NETWORK, "patch", "width", "depth", "heads", "mlp"),
    "transformer": (*_NETWORK, "width", "depth", "heads", "mlp", "context"),
    "gaussian": ("covariance", "scale"),
    "student-t": ("df", "scale"),
    "laplace": ("scale",),
    "uniform": ("scale",),
    "minibatch": ("batch_size", "epochs", "batch_covariance", "signs", "sign_samples", "refresh", "subsample"),
    "random-k": ("keep",),
    "quantisation": ("quantum",),
    "majority-vote": (),
    "cosine": ("schedule_steps", "end"),
    "polynomial": ("power",),
}
"""Options each optimizer, problem, noise, compression or schedule takes beyond those common to all."""


@dataclass(frozen=True)
class Subject:
    """Problem, noise and optimizer of one command."""

    problem: "AbstractProblem"
    noise: "AbstractNoise"
    optimizer: "Optimizer"


def listing(names: dict[str, str]) -> str:
    """Names and meanings in one line of help."""
    return "; ".join(f"{name}: {meaning}" for name, meaning in names.items())


def numbers(name: str, text: str) -> float | list[float]:
    """One number, or a list of comma-separated ones."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{name}: got {text!r}; give numbers separated by commas, for example 1,2.5,4.") from error
    return values[0] if len(values) == 1 else values


def _options(
    optimizer: Annotated[
        str,
        typer.Option(help=f"{listing(names.OPTIMIZERS)}; {names.OPTAX}NAME: any of optax's, as optax:lion."),
    ] = "adamw",
    opt: Annotated[
        list[str] | None,
        typer.Option(help="An argument of an optax: optimizer, as lr=1e-3 or momentum=0.9; may be repeated."),
    ] = None,
    lr: Annotated[float, typer.Option(help="Learning rate η, the unit of time.")] = 0.01,
    b1: Annotated[
        float | None,
        typer.Option(help="Decay of the first moment (adamw, momentum, signum; lion: of its sign); default 0.9."),
    ] = None,
    b2: Annotated[
        float | None,
        typer.Option(
            help="Decay of the second moment (adamw: default 0.999; rmspropw: default 0.99), or of lion's (0.99)."
        ),
    ] = None,
    eps: Annotated[
        float | None,
        typer.Option(help="ε outside the root (adamw, rmspropw; default 1e-8) or inside (adagrad; default 1e-7)."),
    ] = None,
    nesterov: Annotated[bool | None, typer.Option("--nesterov", help="Nesterov's form of momentum.")] = None,
    initial_accumulator: Annotated[
        float | None, typer.Option(help="Sum of squares at the start (adagrad; default 0.1).")
    ] = None,
    weight_decay: Annotated[float, typer.Option(help="Decoupled weight decay θ.")] = 0.0,
    decay: Annotated[
        str,
        typer.Option(help="'coupled': η multiplies θ, as in PyTorch; 'independent': it does not."),
    ] = "coupled",
    v0: Annotated[
        str | None,
        typer.Option(
            help="Accumulators at the start: 'zero' (adamw's default) or 'second-moment' (rmspropw's), where they "
            "would settle at the start."
        ),
    ] = None,
    schedule: Annotated[str | None, typer.Option(help=f"What multiplies lr. {listing(names.SCHEDULES)}")] = None,
    schedule_steps: Annotated[int | None, typer.Option(help="Steps of cosine, after the warm-up.")] = None,
    end: Annotated[float | None, typer.Option(help="Last multiplier of cosine (default 0).")] = None,
    power: Annotated[float | None, typer.Option(help="Power ϑ of polynomial.")] = None,
    warmup: Annotated[int | None, typer.Option(help="Steps of a linear warm-up before the schedule.")] = None,
    problem: Annotated[str, typer.Option(help=listing(names.PROBLEMS))] = "quadratic",
    curvature: Annotated[
        str | None,
        typer.Option(help="Diagonal of H, comma-separated (quadratic, embedded-saddle). quadratic: default 1,2,3,4,5."),
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="Start: one number for all coordinates, or comma-separated.")
    ] = None,
    lam: Annotated[float | None, typer.Option(help="λ of embedded-saddle (default 1).")] = None,
    xi: Annotated[float | None, typer.Option(help="ξ of embedded-saddle (default 0.1).")] = None,
    design: Annotated[
        str | None, typer.Option(help="Diagonal of the features' covariance (linear-regression; default 1,1,1,1,1).")
    ] = None,
    label_noise: Annotated[
        float | None, typer.Option(help="Standard deviation of the labels (linear-regression; default 1).")
    ] = None,
    solution: Annotated[
        str | None, typer.Option(help="True coefficients, as --start (linear-regression; default 1).")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Examples of linear-regression; default: fresh ones at every step.")
    ] = None,
    data_seed: Annotated[
        int | None, typer.Option(help="Seed of those examples, or of a network's --subset (default 0).")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help=f"Data of a network. {listing(names.DATASETS)}")] = None,
    subset: Annotated[
        int | None, typer.Option(help="Examples of it, of each class equally many; default: all, at every step.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with the files of mnist, fashion-mnist (IDX) or cifar-10 (binary).")
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(help="Units of a hidden layer (mlp; default 20) or of the embedding (vit, transformer; 48)."),
    ] = None,
    depth: Annotated[
        int | None, typer.Option(help="Hidden layers (mlp; default 10) or blocks (vit, transformer; 3).")
    ] = None,
    channels: Annotated[int | None, typer.Option(help="Of a convolution (cnn, resnet; default 32).")] = None,
    blocks: Annotated[int | None, typer.Option(help="Residual convolutions (resnet; default 1).")] = None,
    dense: Annotated[int | None, typer.Option(help="Units of the dense layer (cnn, resnet; default 128).")] = None,
    patch: Annotated[
        int | None, typer.Option(help="Pixels of a patch's side (vit; default 4, below 16 pixels 2).")
    ] = None,
    heads: Annotated[int | None, typer.Option(help="Of the attention (vit, transformer; default 6).")] = None,
    mlp: Annotated[int | None, typer.Option(help="Hidden units of a block (vit, transformer; default 192).")] = None,
    context: Annotated[int | None, typer.Option(help="Characters of a window (transformer; default 32).")] = None,
    init_seed: Annotated[int | None, typer.Option(help="Seed of a network's initialisation (default 0).")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of a network's parameters and losses: 'float32' (default) or 'float64'.")
    ] = None,
    gradient_dtype: Annotated[
        str | None, typer.Option(help=f"Of a network's gradients, where another: {', '.join(names.DTYPES)}.")
    ] = None,
    noise: Annotated[str, typer.Option(help=listing(names.NOISES))] = "gaussian",
    scale: Annotated[
        str | None,
        typer.Option(
            help="Scale of the gradient noise, one number or comma-separated per coordinate (default 1): the standard "
            "deviation of gaussian, σ of student-t, b of laplace, the half-width of uniform."
        ),
    ] = None,
    covariance: Annotated[
        Path | None, typer.Option(help="File with Σ in place of the scale: .npy, or text with a row a line (gaussian).")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples in a mini-batch (minibatch).")] = None,
    epochs: Annotated[
        bool | None,
        typer.Option("--epochs", help="The optimizer goes through the examples epoch by epoch, without replacement."),
    ] = None,
    batch_covariance: Annotated[
        str | None, typer.Option(help="Of the SDE's mini-batch noise: 'exact' (default) or 'diagonal'.")
    ] = None,
    signs: Annotated[
        str | None,
        typer.Option(help="Law of a mini-batch's signs (signsgd): 'sampled' (default), 'edgeworth' or 'normal'."),
    ] = None,
    sign_samples: Annotated[int | None, typer.Option(help="Mini-batches of sampled signs (default 8).")] = None,
    refresh: Annotated[
        int | None, typer.Option(help="Steps for which second moments or the law of signs are kept (default 1).")
    ] = None,
    subsample: Annotated[
        int | None, typer.Option(help="Examples from which second moments are estimated; default: all.")
    ] = None,
    df: Annotated[float | None, typer.Option(help="Degrees of freedom ν of student-t, at least 0.2.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Workers, each with a stochastic gradient of its own; the optimizer gets the mean."),
    ] = None,
    compression: Annotated[
        str | None, typer.Option(help=f"What --workers send of their gradients. {listing(names.COMPRESSIONS)}")
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            help="What random-k keeps: with a point or an exponent a share of the coordinates, else a number."
        ),
    ] = None,
    quantum: Annotated[float | None, typer.Option(help="Step of the grid of quantisation.")] = None,
) -> None:
    """Template of the options; never called."""


_PARAMETERS = inspect.signature(_options).parameters


def takes_subject(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options above before its own; it gets their values as its first argument."""
    own = list(inspect.signature(command).parameters.values())[1:]

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        chosen = {name: given.pop(name) for name in _PARAMETERS}
        command({name: value for name, value in chosen.items() if value is not None}, **given)

    required = [p for p in own if p.default is inspect.Parameter.empty]
    merged = [*required, *_PARAMETERS.values(), *(p for p in own if p not in required)]
    wrapped.__signature__ = inspect.Signature(merged)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in merged}
    return wrapped


def build_subject(given: dict[str, Any]) -> Subject:
    """The objects that the options name.

    Raises:
        ValueError: naming an option that is misspelt, or that what was chosen does not take.
    """
    from sdelens.core import check

    theirs = given["optimizer"].startswith(names.OPTAX)
    optimizer = "optax" if theirs else check.choice("optimizer", given["optimizer"], names.OPTIMIZERS)
    problem = check.choice("problem", given["problem"], names.PROBLEMS)
    noise = check.choice("noise", given["noise"], names.NOISES)
    schedule = check.choice("schedule", given["schedule"], names.SCHEDULES) if "schedule" in given else None
    compression = None
    if "compression" in given:
        compression = check.choice("compression", given["compression"], names.COMPRESSIONS)
    chosen = {optimizer, problem, noise, schedule, compression}
    for option in sorted({option for options in _ACCEPTS.values() for option in options} & given.keys()):
        takers = [name for name, options in _ACCEPTS.items() if option in options]
        if not chosen & set(takers):
            raise ValueError(
                f"{option}: {optimizer} on {problem} with {noise} noise does not take it; it belongs to "
                f"{', '.join(takers)}."
            )
    made = _from_optax(given, schedule) if theirs else _specified(optimizer, given, schedule)
    return Subject(_problem(problem, given), _distributed(_noise(noise, given), compression, given), made)


def _specified(name: str, given: dict[str, Any], schedule: str | None) -> "Optimizer":
    import sdelens as sl

    own = {k: given[k] for k in _ACCEPTS[name] if k in given}
    common = {k: given[k] for k in ("lr", "weight_decay", "decay")}
    kinds: dict[str, Any] = {"sgd": sl.SGD, "signsgd": sl.SignSGD, "rmspropw": sl.RMSpropW, "adamw": sl.AdamW}
    kinds |= {"momentum": sl.Momentum, "signum": sl.Signum, "lion": sl.Lion, "adagrad": sl.Adagrad}
    return kinds[name](**common, **own, schedule=_schedule(schedule, given))


def _from_optax(given: dict[str, Any], schedule: str | None) -> "Optimizer":
    """One of optax's named optimizers, with the arguments of ``--opt``."""
    import sdelens as sl
    from sdelens.core import check

    known = optax_optimizers()
    name = given["optimizer"].removeprefix(names.OPTAX)
    function = known[check.choice("optimizer", name, sorted(known))]
    for option in ("weight_decay", "decay"):
        if given[option] != _PARAMETERS[option].default:
            raise ValueError(f"{option}: belongs to our own optimizers; give {name} its arguments by --opt.")
    if schedule is not None or "warmup" in given:
        raise ValueError("schedule: belongs to our own optimizers; in Python, sl.FromOptax takes optax's schedules.")
    arguments = dict(_argument(text) for text in given.get("opt", []))
    rates = [arguments.pop(key) for key in ("lr", "learning_rate") if key in arguments]
    if given["lr"] != _PARAMETERS["lr"].default:
        rates.append(given["lr"])
    if len(rates) > 1:
        raise ValueError(f"lr: got {' and '.join(map(str, rates))}; give one learning rate.")
    rate = rates[0] if rates else given["lr"]
    for argument in arguments:
        check.choice(f"opt: {name}'s argument", argument, inspect.signature(function).parameters)
    try:
        return sl.FromOptax(lambda lr: function(learning_rate=lr, **arguments), rate, name=name)
    except (TypeError, ValueError) as error:
        raise ValueError(f"opt: optax.{name} does not take {arguments or 'these arguments'} ({error}).") from error


def optax_optimizers() -> dict[str, Callable[..., Any]]:
    """Optax's functions from a learning rate to a transformation, by name; those of optax.contrib with that before."""
    import optax
    import optax.contrib

    known = {name: function for name, function in vars(optax).items() if _is_optimizer(name, function)}
    contrib = {name: function for name, function in vars(optax.contrib).items() if _is_optimizer(name, function)}
    return known | {f"contrib.{name}": function for name, function in contrib.items()}


def _is_optimizer(name: str, function: Any) -> bool:
    """Whether it is one of optax's functions from a learning rate to a transformation."""
    plain = function.func if isinstance(function, functools.partial) else function
    if not inspect.isfunction(plain) or name.startswith(("_", "scale_by")):
        return False
    return "learning_rate" in inspect.signature(function).parameters


def _argument(text: str) -> tuple[str, Any]:
    """Name and value of an argument ``name=value``, the value a Python literal or a word."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip().isidentifier():
        raise ValueError(f"opt: got {text!r}; give name=value, for example momentum=0.9.")
    try:
        return name.strip(), ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name.strip(), value


def _schedule(name: str | None, given: dict[str, Any]) -> Any:
    import sdelens as sl

    needs = {"cosine": "schedule_steps", "polynomial": "power"}
    if name is not None and needs[name] not in given:
        raise ValueError(f"schedule: {name} needs --{needs[name].replace('_', '-')}.")
    made: Any = None
    if name == "cosine":
        made = sl.Cosine(given["schedule_steps"], given.get("end", 0.0))
    elif name == "polynomial":
        made = sl.Polynomial(given["power"])
    return sl.Warmup(given["warmup"], made) if "warmup" in given else made


def _problem(name: str, given: dict[str, Any]) -> "AbstractProblem":
    import sdelens as sl

    options = {k: given[k] for k in _ACCEPTS[name] if k in given}
    for option in ("curvature", "start", "design", "solution"):
        if option in options:
            options[option] = numbers(option, options[option])
    if name in names.NETWORKS:
        if "float64" in (options.get("dtype"), options.get("gradient_dtype")):
            import jax

            jax.config.update("jax_enable_x64", True)
        options["seed"] = options.pop("init_seed", 0)
        return sl.network(name, **options)
    if name == "linear-regression":
        options["seed"] = options.pop("data_seed", 0)
        return sl.LinearRegression(options.pop("design", [1.0] * 5), options.pop("label_noise", 1.0), **options)
    if name == "quadratic":
        return sl.Quadratic(**{"curvature": [1.0, 2.0, 3.0, 4.0, 5.0], **options})
    return {"rosenbrock": sl.Rosenbrock, "embedded-saddle": sl.EmbeddedSaddle}[name](**options)


def _noise(name: str, given: dict[str, Any]) -> "AbstractNoise":
    import sdelens as sl

    if "covariance" in given:
        if "scale" in given:
            raise ValueError("covariance: takes the place of the scale; give one of them.")
        return sl.GaussianNoise(covariance=_matrix(given["covariance"]))
    if name == "minibatch":
        if "batch_size" not in given:
            raise ValueError("noise: minibatch needs --batch-size, the number of examples.")
        renamed = {"batch_covariance": "covariance", "sign_samples": "samples"}
        options = {renamed.get(k, k): given[k] for k in _ACCEPTS["minibatch"] if k in given}
        return sl.MinibatchNoise(replacement=not options.pop("epochs", False), **options)
    scale = numbers("scale", given.get("scale", "1"))
    if name == "student-t":
        if "df" not in given:
            raise ValueError("noise: student-t needs --df, its degrees of freedom.")
        return sl.StudentTNoise(scale, given["df"])
    return {"gaussian": sl.GaussianNoise, "laplace": sl.LaplaceNoise, "uniform": sl.UniformNoise}[name](scale)


def _distributed(noise: "AbstractNoise", name: str | None, given: dict[str, Any]) -> "AbstractNoise":
    import sdelens as sl

    if "workers" not in given:
        if name is not None:
            raise ValueError(f"compression: {name} needs --workers, the number of those that send; 1 is a number too.")
        return noise
    needs = {"random-k": "keep", "quantisation": "quantum"}
    if name in needs and needs[name] not in given:
        raise ValueError(f"compression: {name} needs --{needs[name]}.")
    compression: Any = None
    if name == "random-k":
        text = given["keep"]
        share = numbers("keep", text)
        compression = sl.RandomK(int(text) if text.strip().isdigit() else share)  # type: ignore[arg-type]
    elif name == "quantisation":
        compression = sl.Quantisation(given["quantum"])
    elif name == "majority-vote":
        compression = sl.MajorityVote()
    return sl.DistributedNoise(noise, given["workers"], compression)


def _matrix(path: Path) -> Any:
    import numpy as np

    if not path.exists():
        raise ValueError(f"covariance: there is no file {str(path)!r}.")
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        text = path.read_text(encoding="utf-8")
        rows = [line.replace(",", " ").split() for line in text.splitlines() if line.strip()]
        return np.array([[float(value) for value in row] for row in rows])
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"covariance: cannot read {str(path)!r} as a matrix of numbers ({error}).") from error


def read_curve(path: Path) -> tuple[list[float], list[float]]:
    """Steps and losses of a logged curve: a CSV file with columns ``step`` and ``loss``, or with two columns.

    Raises:
        ValueError: naming the line that is not one.
    """
    if not path.is_file():
        raise ValueError(f"curve: there is no file {str(path)!r}.")
    try:
        rows = [
            row for row in csv.reader(path.read_text(encoding="utf-8-sig").splitlines()) if any(c.strip() for c in row)
        ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"curve: cannot read {str(path)!r} as CSV ({error}).") from error
    columns, first = (0, 1), 0
    if rows and not _is_number(rows[0][0]):
        names, first = [cell.strip().lower() for cell in rows[0]], 1
        if "step" not in names or "loss" not in names:
            raise ValueError(
                f"curve: {str(path)!r} has columns {names}; separate them by commas and name two step and loss."
            )
        columns = names.index("step"), names.index("loss")
    steps, losses = [], []
    for line, row in enumerate(rows[first:], first + 1):
        try:
            steps.append(float(row[columns[0]]))
            losses.append(float(row[columns[1]]))
            if not (math.isfinite(steps[-1]) and math.isfinite(losses[-1])):
                raise ValueError("not finite")
        except (ValueError, IndexError) as error:
            raise ValueError(f"curve: row {line} of {str(path)!r} is {row}; give a step and a loss.") from error
    if len(steps) < 2:
        raise ValueError(f"curve: {str(path)!r} has {len(steps)} rows of numbers; give two or more.")
    return steps, losses


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
