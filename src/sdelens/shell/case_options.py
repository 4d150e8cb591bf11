"""The shell's options for problem, noise and optimizer, written as constructors, and the objects built from them."""

import csv
import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from sdelens.core import check, names
from sdelens.core.declarations import ALIASES, NOISES, OPTIMIZERS, NoiseDeclaration, canonical_name
from sdelens.shell.constructors import Call, calls, terms
from sdelens.shell.panels import WHAT

if TYPE_CHECKING:
    from sdelens.noise import AbstractNoise
    from sdelens.optimizers import Optimizer
    from sdelens.problems import AbstractProblem

__all__ = [
    "Subject",
    "build_subject",
    "listing",
    "made_value",
    "numbers",
    "optax_optimizers",
    "read_curve",
    "takes_subject",
]

_HOLD_PARTS = ("noise", "compression", "schedule", "then")
"""Arguments whose values are constructors, so a word there is a constructor without arguments."""
_RATE = 0.01
"""The learning rate if none is given."""


@dataclass(frozen=True)
class Subject:
    """Problem, noise and optimizer of one command."""

    problem: "AbstractProblem"
    noise: "AbstractNoise"
    optimizer: "Optimizer"


def listing(names: dict[str, str]) -> str:
    """Names and meanings as one line of help."""
    return "; ".join(f"{name}: {meaning}" for name, meaning in names.items())


def numbers(name: str, text: str) -> float | list[float]:
    """One number, or a list of comma-separated ones."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{name}: got {text!r}; give numbers separated by commas, for example 1,2.5,4.") from error
    return values[0] if len(values) == 1 else values


def _options(
    problem: Annotated[
        str,
        WHAT(
            help="What is minimised, as quadratic(curvature=[0.5, 2], start=1) or mlp(dataset=digits, width=16). "
            f"{listing(names.PROBLEMS)}. Data sets: {listing(names.DATASETS)}."
        ),
    ] = "quadratic",
    noise: Annotated[
        str,
        WHAT(
            help="Law of the gradient noise, as gaussian(scale=[1, 2]), student-t(df=1) or minibatch(batch_size=32); "
            f"sums by +. {listing(names.meanings(NOISES))}. Compressions: {listing(names.COMPRESSIONS)}. @FILE is the "
            "matrix in a file (.npy, or text with a row a line), as gaussian(covariance=@sigma.npy)."
        ),
    ] = "gaussian",
    optimizer: Annotated[
        str,
        WHAT(
            help="As adamw(lr=0.01, b2=0.99, weight_decay=0.1) or sgd(schedule=warmup(100, cosine(1000))). "
            f"{listing(names.meanings(OPTIMIZERS))}; {' and '.join(ALIASES)} mean {' and '.join(ALIASES.values())}; "
            f"{names.OPTAX}NAME: any of optax's, as {names.OPTAX}lion(b2=0.95). "
            f"Schedules: {listing(names.SCHEDULES)}."
        ),
    ] = "adamw",
    lr: Annotated[
        float | None,
        WHAT(help=f"Learning rate η, where the optimizer does not name it; default {_RATE}."),
    ] = None,
) -> None:
    """Template of the options; never called."""


_PARAMETERS = inspect.signature(_options).parameters


def takes_subject(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options above before its other optional ones; it gets them as its first argument."""
    own = list(inspect.signature(command).parameters.values())[1:]

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        command({name: given.pop(name) for name in _PARAMETERS}, **given)

    required = [p for p in own if p.default is inspect.Parameter.empty]
    merged = [*required, *_PARAMETERS.values(), *(p for p in own if p not in required)]
    wrapped.__signature__ = inspect.Signature(merged)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in merged}
    return wrapped


def build_subject(given: dict[str, Any]) -> Subject:
    """Build the objects that the options name.

    Args:
        given: the texts of ``problem``, ``noise`` and ``optimizer``, and ``lr``.

    Raises:
        ValueError, TypeError: if something is misspelt or missing, naming it and the option; or from the constructors.
    """
    problem = _made("problem", _one("problem", given["problem"]), _problems())
    return Subject(problem, _noise(given["noise"]), _optimizer(given["optimizer"], given.get("lr")))


def _one(argument: str, text: str) -> Call:
    """The only constructor in the text."""
    found = calls(argument, text)
    if len(found) != 1:
        raise ValueError(f"{argument}: got {text!r}; give one, as name or name(key=value).")
    return found[0]


def _made(argument: str, call: Call, known: dict[str, Callable[..., Any]]) -> Any:
    """Call the constructor of that name; constructors among the arguments are called first.

    Raises:
        ValueError: if a constructor or argument does not exist, or an argument is missing; the message names it.
    """
    make = known[check.choice(argument, call.name, known)]
    signature = inspect.signature(make)
    for key in call.named:
        check.choice(f"{argument}: {call.name}", key, signature.parameters)
    try:
        bound = signature.bind(*call.positional, **call.named)
    except TypeError as error:
        raise ValueError(f"{argument}: {call.name}: {error}; it takes {', '.join(signature.parameters)}.") from error
    for key, value in bound.arguments.items():
        bound.arguments[key] = made_value(key, value)
    return make(*bound.args, **bound.kwargs)


def made_value(name: str, value: Any) -> Any:
    """The value of an argument: constructors in it are called, and @FILE is read."""
    if isinstance(value, str) and name in _HOLD_PARTS:
        value = Call(value, (), {})
    if isinstance(value, Call):
        return _made(name, value, _parts())
    if isinstance(value, list):
        return [made_value(name, part) for part in value]
    if isinstance(value, str) and value.startswith("@"):
        return _matrix(name, Path(value[1:]))
    return value


def _problems() -> dict[str, Callable[..., Any]]:
    import sdelens as sl

    def quadratic(curvature: Any = (1.0, 2.0, 3.0, 4.0, 5.0), start: Any = 1.0) -> Any:
        return sl.Quadratic(curvature, start)

    def linear_regression(
        design_covariance: Any = (1.0,) * 5,
        label_noise: float = 1.0,
        *,
        solution: Any = 1.0,
        start: Any = 0.0,
        samples: int | None = None,
        seed: int = 0,
    ) -> Any:
        return sl.LinearRegression(
            design_covariance, label_noise, solution=solution, start=start, samples=samples, seed=seed
        )

    analytic: dict[str, Callable[..., Any]] = {
        "quadratic": quadratic,
        "rosenbrock": sl.Rosenbrock,
        "embedded-saddle": sl.EmbeddedSaddle,
        "linear-regression": linear_regression,
    }
    return analytic | {name: _network(name) for name in names.NETWORKS}


def _network(name: str) -> Callable[..., Any]:
    """`sdelens.network` with that name and, as arguments, the sizes of such a network."""
    import sdelens as sl
    from sdelens.problems.networks import sizes_of

    def network(*dataset: Any, **options: Any) -> Any:
        if "float64" in (options.get("dtype"), options.get("gradient_dtype")):
            import jax

            jax.config.update("jax_enable_x64", True)
        return sl.network(name, *dataset, **options)

    common = [p for p in inspect.signature(sl.network).parameters.values() if p.name not in ("name", "size")]
    sizes = [inspect.Parameter(size, inspect.Parameter.KEYWORD_ONLY, default=None) for size in sizes_of(name)]
    network.__signature__ = inspect.Signature([*common, *sizes])  # type: ignore[attr-defined]
    return network


def _noises() -> dict[str, Callable[..., Any]]:
    return {name: _law(declared) for name, declared in NOISES.items()}


def _law(declared: NoiseDeclaration) -> Callable[..., Any]:
    """The constructor of a noise law, with the shell's defaults for some arguments."""
    kind = declared.load()

    def law(*positional: Any, **named: Any) -> Any:
        given = inspect.signature(kind).bind_partial(*positional, **named).arguments
        missing = {} if "covariance" in given else declared.defaults  # a covariance replaces the scale
        return kind(**{**missing, **given})

    parameters = [
        p.replace(default=declared.defaults.get(p.name, p.default)) for p in inspect.signature(kind).parameters.values()
    ]
    optional = [p.default is not p.empty for p in parameters]
    if optional != sorted(optional):  # arguments after an optional one must be named
        first = optional.index(True)
        parameters[first + 1 :] = [p.replace(kind=p.KEYWORD_ONLY) for p in parameters[first + 1 :]]
    law.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return law


def _parts() -> dict[str, Callable[..., Any]]:
    """Constructors that may be arguments of another: noise laws, compressions and schedules."""
    import sdelens as sl

    compressions = dict(zip(names.COMPRESSIONS, (sl.RandomK, sl.Quantisation, sl.MajorityVote), strict=True))
    schedules = dict(zip(names.SCHEDULES, (sl.Cosine, sl.Polynomial, sl.Warmup), strict=True))
    return _noises() | compressions | schedules


def _noise(text: str) -> "AbstractNoise":
    found = [_made("noise", _one("noise", term), _noises()) for term in terms("noise", text)]
    total: AbstractNoise = functools.reduce(lambda a, b: a + b, found)
    return total


def _optimizer(text: str, lr: float | None) -> "Optimizer":
    call = _one("optimizer", text)
    theirs = call.name.startswith(names.OPTAX)
    given = [call.named[key] for key in ("lr", "learning_rate") if key in call.named]
    given += list(call.positional[:1]) + ([] if lr is None else [lr])
    if len(given) > 1:
        raise ValueError(f"lr: got {' and '.join(map(str, given))}; give one learning rate.")
    rate = given[0] if given else _RATE
    named = {key: value for key, value in call.named.items() if key not in ("lr", "learning_rate")}
    if theirs:
        return _from_optax(call.name.removeprefix(names.OPTAX), rate, named, call.positional[1:])
    kind = OPTIMIZERS[canonical_name(check.choice("optimizer", call.name, (*OPTIMIZERS, *ALIASES)))].load()
    first = (rate,) if call.positional else ()
    named |= {} if first else {"lr": rate}
    made: Optimizer = _made("optimizer", Call(call.name, (*first, *call.positional[1:]), named), {call.name: kind})
    return made


def _from_optax(name: str, rate: Any, arguments: dict[str, Any], positional: tuple[Any, ...]) -> "Optimizer":
    """One of optax's named optimizers, with optax's arguments."""
    import sdelens as sl

    known = optax_optimizers()
    function = known[check.choice("optimizer", name, sorted(known))]
    if positional:
        raise ValueError(f"optimizer: {name} has {positional[0]!r} without a name; write key=value.")
    for argument in arguments:
        check.choice(f"optimizer: {name}", argument, inspect.signature(function).parameters)
    for argument, value in {"lr": rate, **arguments}.items():
        if isinstance(value, Call):
            raise ValueError(f"optimizer: {name} takes numbers and words; for {argument}={value.name}(...) use Python.")
    try:
        return sl.FromOptax(lambda lr: function(learning_rate=lr, **arguments), rate, name=name)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"optimizer: optax.{name} does not take {arguments or 'these arguments'} ({error})."
        ) from error


def optax_optimizers() -> dict[str, Callable[..., Any]]:
    """Optax's functions from a learning rate to a transformation, by name; ``contrib.NAME`` for optax.contrib."""
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


def _matrix(argument: str, path: Path) -> Any:
    """The array in a file."""
    import numpy as np

    if not path.is_file():
        raise ValueError(f"{argument}: there is no file {str(path)!r}.")
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        text = path.read_text(encoding="utf-8")
        rows = [line.replace(",", " ").split() for line in text.splitlines() if line.strip()]
        return np.array([[float(value) for value in row] for row in rows])
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{argument}: cannot read {str(path)!r} as a matrix of numbers ({error}).") from error


def read_curve(path: Path) -> tuple[list[float], list[float]]:
    """Read steps and losses of a logged curve: a CSV file with columns ``step`` and ``loss``, or with two columns.

    Raises:
        ValueError: if the file cannot be read or a row is not a step and a loss; the message names it.
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
        columns_named, first = [cell.strip().lower() for cell in rows[0]], 1
        if "step" not in columns_named or "loss" not in columns_named:
            raise ValueError(
                f"curve: {str(path)!r} has columns {columns_named}; separate them by commas and name two step and loss."
            )
        columns = columns_named.index("step"), columns_named.index("loss")
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
