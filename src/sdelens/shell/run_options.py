"""The shell's options for models, sizes, records and execution; part of their help comes from library docstrings."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any

from sdelens.core import check, names
from sdelens.run.options import Execution, Record
from sdelens.shell.constructors import calls
from sdelens.shell.panels import MODELS, PLACE, RECORD, SIZE

__all__ = ["RunOptions", "models_from", "saved_to", "takes_run"]


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """The options of a command about its models, sizes, records and execution."""

    given: dict[str, Any]

    @property
    def devices(self) -> int | None:
        """Number of devices to use, None for the default."""
        devices: int | None = self.given["devices"]
        return devices

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `compare` and `sweep`, including the models; without checkpoints.

        Raises:
            ValueError, TypeError: if an option is invalid; the message names it.
        """
        import sdelens as sl

        given = self.given
        observables = given["observables"]
        record = sl.Record(
            every=given["record_every"],
            keep_paths=given["keep_paths"],
            observables=None if observables is None else [name.strip() for name in observables.split(",")],
            marginals=given["marginals"],
        )
        execution = sl.Execution(chunk=given["chunk"], parameter_shards=given["parameter_shards"])
        sizes = {name: given[name] for name in ("steps", "paths", "seed")}
        return {"models": models_from(given["models"]), **sizes, "record": record, "execution": execution}


def saved_to(arguments: dict[str, Any], checkpoints: Any) -> dict[str, Any]:
    """The arguments of a run that saves to these checkpoints, None for none."""
    return {**arguments, "execution": dataclasses.replace(arguments["execution"], checkpoint=checkpoints)}


def models_from(text: str | None) -> list[Any] | None:
    """Parse names and objects of models from text such as ``optimizer, sde(substeps=8)``.

    Raises:
        ValueError, TypeError: if the text cannot be read or an option of a model is invalid; the message names it.
    """
    import sdelens as sl

    if text is None:
        return None
    found: list[Any] = []
    for name, positional, named in calls("models", text):
        if positional:
            raise ValueError(f"models: {name} has {positional[0]!r}; name its options, as {name}(option=value).")
        if not named:
            found.append(name)
            continue
        if name == "optimizer":
            raise ValueError(f"models: the optimizer takes no options here; got {', '.join(named)}.")
        kind = sl.Empirical if name == "empirical" else sl.ClosedForm
        for option in named:
            check.choice(f"models: {name}", option, [f.name for f in dataclasses.fields(kind) if f.name != "sde"])
        found.append(sl.Empirical(**named) if name == "empirical" else sl.ClosedForm(name, **named))
    return found


def _help(kind: type, name: str) -> str:
    """The description of an argument in a class's docstring, as plain text."""
    said = inspect.getdoc(kind) or ""
    match = re.search(rf"^    {name}: (.*?)(?=^    \w+: |^\w|\Z)", said, re.MULTILINE | re.DOTALL)
    assert match is not None, f"{kind.__name__} does not describe {name}"
    text = re.sub(r"\s+", " ", match[1]).strip()
    text = re.sub(r"``\"?([^`\"]*)\"?``", r"\1", text).replace("`", "")
    return text[0].upper() + text[1:]


def _options(
    models: Annotated[
        str | None,
        MODELS(
            help="Comma-separated, each by name or as name(option=value), for example sde(substeps=8); default: all "
            f"that exist for the optimizer but {' and '.join(names.ON_REQUEST)}; where there is no SDE in closed form, "
            "empirical. "
            + "; ".join(f"{name}: {meaning}" for name, meaning in names.MODELS.items())
            + ". Options of SDEs in closed form: integrator, substeps, increments, bias_correction; of empirical: "
            "samples, coefficients, accumulators, substeps, increments."
        ),
    ] = None,
    steps: Annotated[int, SIZE(help="Optimizer steps.")] = 1000,
    paths: Annotated[int, SIZE(help="Independent paths per model.")] = 1024,
    seed: Annotated[int, SIZE(help="Seed of all randomness.")] = 0,
    record_every: Annotated[int, RECORD(help=_help(Record, "every"))] = 1,
    keep_paths: Annotated[int, RECORD(help=_help(Record, "keep_paths"))] = 0,
    observables: Annotated[
        str | None,
        RECORD(
            help="What to record beside the loss, comma-separated: accuracy (networks), "
            f"{', '.join(names.OBSERVABLES)}."
        ),
    ] = None,
    marginals: Annotated[
        int | None,
        RECORD(help="Number of coordinates, evenly spread, whose laws at the end are compared."),
    ] = None,
    chunk: Annotated[int | None, PLACE(help=_help(Execution, "chunk"))] = None,
    devices: Annotated[int | None, PLACE(help="Devices to use; on a CPU default: one per core.")] = None,
    parameter_shards: Annotated[int, PLACE(help=_help(Execution, "parameter_shards"))] = 1,
) -> None:
    """Template of the options; never called."""


_PARAMETERS = inspect.signature(_options).parameters


def takes_run(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options above before its other optional ones; it gets them as its second argument."""
    first, _, *own = inspect.signature(command).parameters.values()

    @functools.wraps(command)
    def wrapped(subject: Any, *others: Any, **given: Any) -> None:
        command(subject, RunOptions({name: given.pop(name) for name in _PARAMETERS}), *others, **given)

    required = [p for p in own if p.default is inspect.Parameter.empty]
    optional = [p for p in own if p not in required]
    wrapped.__signature__ = inspect.Signature([first, *required, *_PARAMETERS.values(), *optional])  # type: ignore[attr-defined]
    return wrapped
