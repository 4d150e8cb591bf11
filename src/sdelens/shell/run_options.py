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
            help="Comma-separated, each by name or as name(option=value), for example sde(substeps=8). One of "
            f"{', '.join(names.MODELS)}, which 'sdelens info models' explains. Default: all that exist for the "
            f"optimizer except {', '.join(names.ON_REQUEST)}; empirical if there is no SDE in closed form. Options of "
            "SDEs in closed form: integrator, substeps, increments, bias_correction; of empirical: samples, "
            "coefficients, accumulators, substeps, increments."
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
            help="What to record in addition to the loss, comma-separated: norm, grad_norm, accuracy (networks) and "
            "others, which 'sdelens info observables' explains. A sweep writes them only to its NetCDF file."
        ),
    ] = None
    marginals: Annotated[
        int | None,
        RECORD(
            help="Number of coordinates, evenly spaced, whose distributions at --times are recorded and compared."
            " A sweep writes their values only to its NetCDF file, so it needs --out."
        ),
    ] = None
    times: Annotated[
        str | None,
        RECORD(
            help="Recorded steps at which the values of every path are stored, comma-separated, or a number of evenly "
            "spaced steps. Default: the last step if there are --marginals."
        ),
    ] = None
    keep: Annotated[
        str | None,
        RECORD(
            help="What is stored of --keep-paths, comma-separated: x, m, v, other parts of the state, loss, names of "
            "observables and averages. Default: x."
        ),
    ] = None
    averages: Annotated[
        str | None,
        RECORD(
            help="Moving averages of x whose loss is recorded, as name=decay (exponential) or name=step (Polyak, from "
            "that step on), comma-separated, for example ema=0.999,polyak=500. A sweep writes them only to its NetCDF "
            "file."
        ),
    ] = None
    chunk: Annotated[int | None, PLACE(help=_help(Execution, "chunk"))] = None
    devices: Devices = None
    parameter_shards: Annotated[int, PLACE(help=_help(Execution, "parameter_shards"))] = 1
    kernel: Annotated[bool, PLACE(help=_help(Execution, "kernel"))] = False
    share: Annotated[
        str | None,
        PLACE(
            help="Run only a share of the paths, written i/n with i from 0 to n − 1, for example 0/4. It is saved as a "
            "file in --out; sdelens join gives the result of all shares."
        ),
    ] = None

    @property
    def chosen_share(self) -> tuple[int, int] | None:
        """The number of the share and that of all shares; None for all paths.

        Raises:
            ValueError: if it cannot be read.
        """
        if self.share is None:
            return None
        index, _, count = self.share.partition("/")
        if not (index.strip().isdecimal() and count.strip().isdecimal()):
            raise ValueError(f"share: got {self.share!r}; give i/n, for example 0/4.")
        return int(index), int(count)

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
                times=_times(self.times),
                averages=_averages(self.averages),
                keep=("x",) if self.keep is None else [name.strip() for name in self.keep.split(",")],
            ),
            "execution": sl.Execution(
                chunk=self.chunk,
                parameter_shards=self.parameter_shards,
                kernel=self.kernel,
                share=self.chosen_share,
            ),
        }


def _times(text: str | None) -> int | list[int] | None:
    """A number of steps, or the steps themselves."""
    if text is None:
        return None
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"times: got {text!r}; give steps such as 100,200, or a number of steps.") from error
    return found if "," in text else found[0]


def _averages(text: str | None) -> dict[str, float] | None:
    """Averages by name from text such as ``ema=0.999,polyak=500``."""
    if text is None:
        return None
    found: dict[str, float] = {}
    for part in text.split(","):
        name, value = (part.partition("=")[i].strip() for i in (0, 2))
        if name in found:
            raise ValueError(f"averages: {name} is given twice; give each average its own name.")
        try:
            found[name] = int(value) if value.isdecimal() else float(value)
        except ValueError as error:
            raise ValueError(
                f"averages: got {part!r}; give name=decay or name=step, for example ema=0.999,polyak=500."
            ) from error
    return found


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
