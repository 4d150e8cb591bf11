"""The shell's options for problem, noise and optimizer, written as constructors, and the objects built from them."""

import functools
import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from sdelens.core import check, names
from sdelens.core.declarations import ALIASES, NOISES, OPTIMIZERS, WRAPPERS, NoiseDeclaration, canonical_name
from sdelens.shell.constructors import Call, calls, check_argument, terms
from sdelens.shell.panels import WHAT

if TYPE_CHECKING:
    from sdelens.noise import AbstractNoise
    from sdelens.optimizers import Optimizer
    from sdelens.problems import AbstractProblem

__all__ = [
    "Subject",
    "SubjectOptions",
    "listing",
    "made_value",
    "named",
    "numbers",
    "optax_optimizers",
]

_RATE = 0.01
"""The learning rate if none is given."""


def named() -> dict[str, Mapping[str, str]]:
    """Names that options accept at present, by kind, with their meanings; declarations from outside add to them."""
    return {
        "problems": names.PROBLEMS,
        "datasets": names.DATASETS,
        "noises": names.meanings(NOISES),
        "compressions": names.COMPRESSIONS,
        "optimizers": names.meanings(OPTIMIZERS),
        "wrappers": names.meanings(WRAPPERS),
        "schedules": names.SCHEDULES,
        "models": names.MODELS,
        "integrators": names.INTEGRATORS,
        "increments": names.INCREMENTS,
        "observables": names.OBSERVABLES,
        "rules": names.SCALING_RULES,
        "momenta": names.MOMENTA,
    }


@dataclass(frozen=True)
class Subject:
    """Problem, noise and optimizer of one command."""

    problem: "AbstractProblem"
    noise: "AbstractNoise"
    optimizer: "Optimizer"


def listing(names: dict[str, str]) -> str:
    """Names and meanings as one line of help."""
    return "; ".join(f"{name}: {meaning}" for name, meaning in names.items())


def numbers(name: str, text: str) -> list[float]:
    """Comma-separated numbers."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{name}: got {text!r}; give numbers separated by commas, for example 1,2.5,4.") from error


@dataclass(frozen=True)
class SubjectOptions:
    """The options of a command that name its problem, noise and optimizer."""

    problem: Annotated[
        str,
        WHAT(
            help="Loss to minimise, for example quadratic(curvature=[0.5, 2], start=1) or mlp(dataset=digits, "
            f"width=16). One of {', '.join(names.PROBLEMS)}. Data sets: {', '.join(names.DATASETS)}. "
            "'sdelens info problems' and 'sdelens info datasets' explain them."
        ),
    ] = "quadratic"
    noise: Annotated[
        str,
        WHAT(
            help="Distribution of the gradient noise, for example gaussian(scale=[1, 2]), student-t(df=1) or "
            "minibatch(batch_size=32); + adds independent noises, as gaussian + laplace(2). "
            f"One of {', '.join(NOISES)}. Compressions of distributed: {', '.join(names.COMPRESSIONS)}. @FILE is the "
            "matrix in a file (.npy, or text with one row per line), as covariance=@sigma.npy. 'sdelens info noises' "
            "explains them."
        ),
    ] = "gaussian"
    optimizer: Annotated[
        str,
        WHAT(
            help="For example adamw(lr=0.01, b2=0.99, weight_decay=0.1) or sgd(schedule=warmup(100, cosine(1000))). "
            f"One of {', '.join(OPTIMIZERS)}; {' and '.join(ALIASES)} mean {' and '.join(ALIASES.values())}. Around "
            f"another one: {', '.join(WRAPPERS)}, as sam(sgd(0.1), rho=0.05). Any optimizer of optax: "
            f"{names.OPTAX}NAME, as {names.OPTAX}lion(b2=0.95). Schedules: {', '.join(names.SCHEDULES)}. 'sdelens info "
            "optimizers', 'sdelens info wrappers' and 'sdelens info schedules' explain them."
        ),
    ] = "adamw"
    lr: Annotated[
        float | None,
        WHAT(help=f"Learning rate η, if --optimizer does not contain it; default {_RATE}."),
    ] = None

    def build(self) -> Subject:
        """Build the objects that the options name.

        Raises:
            ValueError, TypeError: if something is misspelt or missing, naming it and the option; or from the
                constructors.
        """
        problem = _made("problem", _one("problem", self.problem), _problems())
        return Subject(problem, _part("noise", self.noise), _optimizer(self.optimizer, self.lr))


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
    label = f"{argument}: {call.name}"
    for key in call.named:
        check_argument(label, key, signature.parameters)
    try:
        bound = signature.bind(*call.positional, **call.named)
    except TypeError as error:
        raise ValueError(f"{label} {_wrong(signature, call)}") from error
    for key, value in bound.arguments.items():
        bound.arguments[key] = made_value(key, value)
        _check_kind(f"{label}: {key}", signature.parameters[key], bound.arguments[key])
    return make(*bound.args, **bound.kwargs)


def _wrong(signature: inspect.Signature, call: Call) -> str:
    """What is wrong with arguments that do not fit a signature, and the remedy."""
    parameters = signature.parameters.values()
    places = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    given = {*places[: len(call.positional)], *call.named}
    if len(call.positional) > len(places):
        taken = f"at most {len(places)}" if places else "none"
        return (
            f"has {len(call.positional)} values without a name and takes {taken}; name them, as key=value. "
            f"Its arguments are {', '.join(signature.parameters)}."
        )
    twice = [name for name in places[: len(call.positional)] if name in call.named]
    if twice:
        return f"has {twice[0]} twice, by its place and by its name; give it once."
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in given]
    return f"needs {' and '.join(missing)}; write {call.name}({', '.join(f'{name}=...' for name in missing)})."


def _check_kind(label: str, parameter: inspect.Parameter, value: Any) -> None:
    """Refuse what is certainly not a number, or not true or false, where the parameter must be one."""
    kind = parameter.annotation if parameter.default is parameter.empty else type(parameter.default)
    if kind in (int, float):
        _refuse_words(label, value)
    if kind is bool and not isinstance(value, bool):
        raise ValueError(f"{label}: got {value!r}; give true or false.")


def _refuse_words(label: str, value: Any) -> None:
    """Refuse a word, true, false and none in place of a number."""
    if value is None or isinstance(value, str | bool):
        shown = value if isinstance(value, str) else str(value).lower()
        raise ValueError(f"{label}: got {shown!r}; give a number.")


def made_value(name: str, value: Any) -> Any:
    """The value of an argument: constructors in it are called, and @FILE is read.

    Raises:
        ValueError: if a constructor is not of the kind that the argument takes; the message names the argument.
    """
    if name in _KINDS and (value is not None or name == "noise"):
        return _part(name, value)
    if isinstance(value, Call):
        raise ValueError(f"{name}: got {value.name}(...); give a number, a list of numbers or a word.")
    if isinstance(value, list):
        return [made_value(name, part) for part in value]
    if isinstance(value, str) and value.startswith("@"):
        return _matrix(name, Path(value[1:]))
    return value


def _part(name: str, value: Any) -> Any:
    """The noise law, compression or schedule that is the value of an argument of that name; noise laws can be added."""
    kind, example, known = _KINDS[name]
    if not isinstance(value, str | Call):
        raise ValueError(f"{name}: got {value!r}; give a {kind}, for example {example}.")
    found = [value] if isinstance(value, Call) else [_one(name, term) for term in terms(name, value) or [value]]
    if len(found) > 1 and name != "noise":
        raise ValueError(f"{name}: got {value!r}; give one {kind}. Only noise laws can be added.")
    return functools.reduce(operator.add, [_made(name, call, known()) for call in found])


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
        "quadratic-game": sl.QuadraticGame,
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


def _compressions() -> dict[str, Callable[..., Any]]:
    import sdelens as sl

    return dict(zip(names.COMPRESSIONS, (sl.RandomK, sl.Quantisation, sl.MajorityVote), strict=True))


def _schedules() -> dict[str, Callable[..., Any]]:
    import sdelens as sl

    return dict(zip(names.SCHEDULES, (sl.Cosine, sl.Polynomial, sl.Warmup, sl.Interpolated), strict=True))


_KINDS: dict[str, tuple[str, str, Callable[[], dict[str, Callable[..., Any]]]]] = {
    "noise": ("noise law", "gaussian(scale=1)", _noises),
    "compression": ("compression", "random-k(0.25)", _compressions),
    "schedule": ("schedule", "cosine(1000)", _schedules),
    "then": ("schedule", "cosine(1000)", _schedules),
}
"""Arguments whose values are constructors: of which kind, an example, and the constructors by name."""


def _optimizer(text: str | Call, lr: float | None) -> "Optimizer":
    call = text if isinstance(text, Call) else _one("optimizer", text)
    if call.name in WRAPPERS:
        return _wrapper(call, lr)
    theirs = call.name.startswith(names.OPTAX)
    given = [call.named[key] for key in ("lr", "learning_rate") if key in call.named]
    given += list(call.positional[:1]) + ([] if lr is None else [lr])
    if len(given) > 1:
        raise ValueError(f"lr: got {' and '.join(map(str, given))}; give one learning rate.")
    rate = given[0] if given else _RATE
    _refuse_words("lr", rate)
    named = {key: value for key, value in call.named.items() if key not in ("lr", "learning_rate")}
    if theirs:
        return _from_optax(call.name.removeprefix(names.OPTAX), rate, named, call.positional[1:])
    kind = OPTIMIZERS[canonical_name(check.choice("optimizer", call.name, (*OPTIMIZERS, *ALIASES, *WRAPPERS)))].load()
    first = (rate,) if call.positional else ()
    named |= {} if first else {"lr": rate}
    made: Optimizer = _made("optimizer", Call(call.name, (*first, *call.positional[1:]), named), {call.name: kind})
    return made


def _wrapper(call: Call, lr: float | None) -> "Optimizer":
    """An optimizer that wraps another one, which is its first argument."""
    base = call.positional[0] if call.positional else call.named.get("base")
    if not isinstance(base, str | Call):
        raise ValueError(f"optimizer: {call.name} needs an optimizer; write for example {call.name}(sgd(0.1)).")
    rest = call._replace(
        positional=(None, *call.positional[1:]), named={k: v for k, v in call.named.items() if k != "base"}
    )
    kind, wrapped = WRAPPERS[call.name].load(), _optimizer(base, lr)

    def wrap(*own: Any, **named: Any) -> Any:
        return kind(wrapped, *own[1:], **named)

    wrap.__signature__ = inspect.signature(kind)  # type: ignore[attr-defined]
    made: Optimizer = _made("optimizer", rest, {call.name: wrap})
    return made


def _from_optax(name: str, rate: Any, arguments: dict[str, Any], positional: tuple[Any, ...]) -> "Optimizer":
    """One of optax's named optimizers, with optax's arguments."""
    import sdelens as sl

    known = optax_optimizers()
    function = known[check.choice("optimizer", name, sorted(known))]
    parameters = inspect.signature(function).parameters
    if positional:
        raise ValueError(f"optimizer: {name} has {positional[0]!r} without a name; write key=value.")
    for argument in arguments:
        check_argument(f"optimizer: {name}", argument, parameters)
    for argument, value in {"lr": rate, **arguments}.items():
        if isinstance(value, Call):
            raise ValueError(f"optimizer: {name} takes numbers and words; for {argument}={value.name}(...) use Python.")
        if argument in parameters:
            _check_kind(f"optimizer: {name}: {argument}", parameters[argument], value)
    required = [p.name for p in parameters.values() if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    missing = [argument for argument in required if argument not in ("learning_rate", *arguments)]
    if missing:
        raise ValueError(
            f"optimizer: {names.OPTAX}{name} needs {' and '.join(missing)}; give key=value or, if the value is not a "
            "number or a word, use sl.FromOptax in Python."
        )
    try:
        function(learning_rate=rate, **arguments)
    except (TypeError, ValueError) as error:
        shown = ", ".join(f"{key}={value}" for key, value in arguments.items())
        raise ValueError(
            f"optimizer: optax cannot build {names.OPTAX}{name}({shown}): {error}. Correct its arguments."
        ) from error
    return sl.FromOptax(lambda lr: function(learning_rate=lr, **arguments), rate, name=name)


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
        raise ValueError(f"{argument}: there is no file {str(path)!r}; give the path of a matrix after @.")
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        text = path.read_text(encoding="utf-8")
        rows = [line.replace(",", " ").split() for line in text.splitlines() if line.strip()]
        return np.array([[float(value) for value in row] for row in rows])
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{argument}: cannot read {str(path)!r} as a matrix of numbers ({error}).") from error
