"""The shell's options for models, sizes, records and execution; part of their help comes from library docstrings."""

import dataclasses
import inspect
import re
from typing import Annotated, Any

from sdelens.core import check, names
from sdelens.run.options import Execution, Record
from sdelens.shell.constructors import calls
from sdelens.shell.panels import MODELS, PLACE, RECORD, SIZE, Devices

__all__ = ["RunOptions", "models_from", "saved_to"]


def _help(kind: type, name: str) -> str:
    """The description of an argument in a class's docstring, as plain text."""
    said = inspect.getdoc(kind) or ""
    match = re.search(rf"^    {name}: (.*?)(?=^    \w+: |^\w|\Z)", said, re.MULTILINE | re.DOTALL)
    assert match is not None, f"{kind.__name__} does not describe {name}"
    text = re.sub(r"\s+", " ", match[1]).strip()
    text = re.sub(r"``\"?([^`\"]*)\"?``", r"\1", text).replace("`", "")
    return text[0].upper() + text[1:]


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """The options of a command about its models, sizes, records and execution."""

    models: Annotated[
        str | None,
        MODELS(
            help="Comma-separated, each by name or as name(option=value), for example sde(substeps=8). Default: all "
            f"that exist for the optimizer except {' and '.join(names.ON_REQUEST)}; empirical if there is no SDE in "
            "closed form. "
            + "; ".join(f"{name}: {meaning}" for name, meaning in names.MODELS.items())
            + ". Options of SDEs in closed form: integrator, substeps, increments, bias_correction; of empirical: "
            "samples, coefficients, accumulators, substeps, increments."
        ),
    ] = None
    steps: Annotated[int, SIZE(help="Number of optimizer steps.")] = 1000
    paths: Annotated[int, SIZE(help="Number of independent paths per model.")] = 1024
    seed: Annotated[int, SIZE(help="Seed of all random numbers.")] = 0
    record_every: Annotated[int, RECORD(help=_help(Record, "every"))] = 1
    keep_paths: Annotated[int, RECORD(help=f"{_help(Record, 'keep_paths')} Written only to the NetCDF file.")] = 0
    observables: Annotated[
        str | None,
        RECORD(
            help="What to record in addition to the loss, comma-separated: accuracy (networks), "
            f"{', '.join(names.OBSERVABLES)}. A sweep writes them only to its NetCDF file."
        ),
    ] = None
    marginals: Annotated[
        int | None,
        RECORD(
            help="Number of coordinates, evenly spaced, whose distributions at the last step are recorded and compared."
            " A sweep writes their values only to its NetCDF file, so it needs --out."
        ),
    ] = None
    chunk: Annotated[int | None, PLACE(help=_help(Execution, "chunk"))] = None
    devices: Devices = None
    parameter_shards: Annotated[int, PLACE(help=_help(Execution, "parameter_shards"))] = 1

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `compare` and `sweep`, including the models; without checkpoints.

        Raises:
            ValueError, TypeError: if an option is invalid; the message names it.
        """
        import sdelens as sl

        observables = None if self.observables is None else [name.strip() for name in self.observables.split(",")]
        return {
            "models": models_from(self.models),
            "steps": self.steps,
            "paths": self.paths,
            "seed": self.seed,
            "record": sl.Record(
                every=self.record_every,
                keep_paths=self.keep_paths,
                observables=observables,
                marginals=self.marginals,
            ),
            "execution": sl.Execution(chunk=self.chunk, parameter_shards=self.parameter_shards),
        }


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
            raise ValueError(
                f"models: got optimizer({', '.join(named)}); write its options in --optimizer, and only optimizer here."
            )
        kind = sl.Empirical if name == "empirical" else sl.ClosedForm
        for option in named:
            check.choice(f"models: {name}", option, [f.name for f in dataclasses.fields(kind) if f.name != "sde"])
        found.append(sl.Empirical(**named) if name == "empirical" else sl.ClosedForm(name, **named))
    return found
