"""What a run is to do, checked before anything runs: sizes, devices, and which models are integrated how."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import numpy as np

from sdelens.core import check
from sdelens.core.names import (
    ACCUMULATORS,
    BIAS_CORRECTIONS,
    COEFFICIENTS,
    INCREMENTS,
    INTEGRATORS,
    MODELS,
    ON_REQUEST,
)
from sdelens.optimizers import Optimizer
from sdelens.run import processes
from sdelens.run.ensemble import Plan
from sdelens.sdes import Builder, sdes_of

__all__ = ["Model", "Options", "chosen_models", "models_of"]

_EMPIRICAL_ONLY = ("samples", "coefficients", "accumulators")
_MOTIONS = {"gaussian": "brownian", "rademacher": "rademacher"}


def models_of(optimizer: Optimizer) -> list[str]:
    """Names of the models of an optimizer: itself, its SDEs in closed form if there are any, and the empirical one."""
    return ["optimizer", *sdes_of(optimizer), "empirical"]


@dataclass(frozen=True)
class Model:
    """How one model of a comparison is integrated; `sde` makes the user's own, where it is one."""

    model: str
    integrator: str
    substeps: int
    bias_correction: str
    increments: str
    samples: int
    coefficients: str
    accumulators: str
    coarse: str | None = None
    sde: Builder | None = None

    @property
    def stream(self) -> str:
        """Models of one stream share their random numbers: SDEs at equal substeps their Brownian motion."""
        if self.model == "optimizer":
            return "optimizer"
        sampled = self.model == "empirical" and self.coefficients == "sampled"
        motion = "empirical" if sampled else _MOTIONS[self.increments]
        return f"{motion}/{self.substeps}"


@dataclass(frozen=True)
class Options:
    """The options that `simulate`, `compare` and `estimate` share, as given."""

    steps: int
    paths: int = 1024
    seed: int = 0
    record_every: int = 1
    integrator: str = "sequential"
    substeps: int = 1
    bias_correction: str = "discrete"
    increments: str = "gaussian"
    samples: int = 8
    coefficients: str = "sampled"
    accumulators: str = "lognormal"
    start: Any = None
    keep_paths: int = 0
    observables: Any = None
    marginals: int | Sequence[int] | None = None
    chunk: int | None = None
    devices: int | Sequence[Any] | None = None
    parameter_shards: int = 1

    def plan(self, dim: int) -> Plan:
        """The plan of the run of a problem with `dim` coordinates, checked; its chunk is still to be settled.

        Raises:
            ValueError, TypeError: naming the option out of range.
        """
        steps = check.at_least("steps", self.steps, 1)
        paths = check.at_least("paths", self.paths, 1)
        if paths >= 2**31:
            raise ValueError(f"paths: got {paths}; at most 2³¹ - 1 paths can be told apart.")
        every = min(check.at_least("record_every", self.record_every, 1), steps)
        keep = min(check.at_least("keep_paths", self.keep_paths, 0), paths)
        if steps >= 2**31:
            raise ValueError(f"steps: got {steps}; it must be less than 2³¹.")
        group = processes.current()
        if paths < group.count:
            raise ValueError(f"paths: got {paths}; {group.count} processes need one each, or more.")
        share = group.share(paths)
        own = share[1] - share[0]
        found, shards = _chosen_devices(self.devices), check.at_least("parameter_shards", self.parameter_shards, 1)
        if shards > 1 and (shards > dim or len(found) % shards):
            raise ValueError(
                f"parameter_shards: got {shards}; it must divide the number of devices, {len(found)}, and be at most "
                f"that of parameters, {dim}."
            )
        used = found[: own * shards]
        width = len(used) // shards
        chunk = own if self.chunk is None else min(check.at_least("chunk", self.chunk, 1), own)
        chunk = -(-chunk // width) * width
        marginals = _chosen_marginals(self.marginals, dim)
        return Plan(steps, paths, every, chunk, keep, used, marginals, share, shards)

    def checked_seed(self) -> int:
        """The seed, checked.

        Raises:
            ValueError, TypeError: if it is not a whole number in [0, 2⁶⁴).
        """
        seed = check.at_least("seed", self.seed, 0)
        if seed >= 2**64:
            raise ValueError(f"seed: got {seed}; it must be less than 2⁶⁴.")
        return seed


def _chosen_marginals(wanted: Any, dim: int) -> tuple[int, ...]:
    """The coordinates whose law at the end is kept: those given, or so many evenly spread."""
    if wanted is None:
        return ()
    if isinstance(wanted, str):
        raise TypeError(f"marginals: got {wanted!r}; give a number, or a list of indices of coordinates.")
    if np.ndim(wanted) == 0 and not isinstance(wanted, set):
        count = min(check.at_least("marginals", wanted, 0), dim)
        return tuple(int(i) for i in np.linspace(0, dim - 1, count).round())
    chosen = tuple(
        check.at_least("marginals", index, 0) for index in (sorted(wanted) if isinstance(wanted, set) else wanted)
    )
    if chosen and max(chosen) >= dim:
        raise ValueError(f"marginals: got {max(chosen)}; the problem has coordinates 0 to {dim - 1}.")
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"marginals: got {chosen}; name each coordinate once.")
    return chosen


def _chosen_devices(wanted: Any) -> tuple[Any, ...]:
    """The devices to shard over: all of this process, the first few, or those given."""
    found = tuple(jax.local_devices())
    if wanted is None:
        return found
    if not isinstance(wanted, Sequence) or isinstance(wanted, str):
        count = check.at_least("devices", wanted, 1)
        if count > len(found):
            raise ValueError(f"devices: got {count}; JAX finds {len(found)} ({found[0].platform}).")
        return found[:count]
    given = tuple(wanted)
    if not given or not set(given) <= set(found) or len(set(given)) < len(given):
        raise ValueError(f"devices: got {given}; give a number, or different ones of jax.local_devices().")
    return given


def chosen_models(optimizer: Optimizer, models: Any, options: Options) -> dict[str, Model]:
    """The models to run by label: all, those named, or those described; with substeps also each at Δt = η.

    Raises:
        ValueError, TypeError: naming what is not known, with what is.
    """
    labelled = _labelled(optimizer, models)
    where = "model" if len(labelled) == 1 else "models"
    chosen: dict[str, Model] = {}
    for label, own in labelled.items():
        model = _described(label, own, options, optimizer, where)
        if model.substeps > 1 and len(labelled) > 1:
            coarse = f"{label}, 1 substep"
            chosen[label] = replace(model, coarse=coarse)
            chosen[coarse] = replace(model, substeps=1)
        else:
            chosen[label] = model
    kinds = [model.model for model in chosen.values()]
    for key in _EMPIRICAL_ONLY if "empirical" not in kinds else ():
        if getattr(options, key) != getattr(Options, key):
            raise ValueError(
                f"{key}: got {getattr(options, key)!r}, which belongs to the model 'empirical'; it is not among the "
                f"models run, {', '.join(kinds)}."
            )
    return chosen


def _labelled(optimizer: Optimizer, models: Any) -> dict[str, Mapping[str, Any]]:
    """Options by label of the models that `compare`'s argument means."""
    known = models_of(optimizer)
    if models is None:
        unasked = [] if sdes_of(optimizer) else ["empirical"]
        models = [name for name in known if name not in ON_REQUEST or name in unasked]
    if isinstance(models, str):
        raise TypeError(f"models: got the text {models!r}; give a list, for example ['optimizer', {models!r}].")
    if not isinstance(models, Mapping):
        for name in models:
            if callable(name):
                shown = getattr(name, "__name__", "sde")
                raise TypeError(
                    f"models: got {shown} in a list; give it a label: {{'optimizer': {{}}, 'mine': {{'model': "
                    f"{shown}}}}}."
                )
        names = [str(name) for name in models]
        if len(set(names)) < len(names):
            raise ValueError(f"models: got {names}; name each once, or give labels: {{'a': {{'model': 'sde'}}, ...}}.")
        models = {name: {} for name in names}
    if not models:
        raise ValueError(f"models: is empty; choose from {known}.")
    for label, own in models.items():
        if not isinstance(own, Mapping):
            raise TypeError(
                f"models[{label!r}]: got {own!r}; give a mapping of options, for example {{'model': 'sde'}}."
            )
    return {str(label): own for label, own in models.items()}


def _described(label: str, own: Mapping[str, Any], options: Options, optimizer: Optimizer, where: str) -> Model:
    """The model that options of its own, and those common to all, describe."""
    allowed = [f.name for f in fields(Model) if f.name not in ("coarse", "sde")]
    for key in own:
        check.choice(f"models[{label!r}]", key, allowed)
    idle = [key for key in own if key in _EMPIRICAL_ONLY]
    merged = {"model": label} | {key: getattr(options, key) for key in allowed if key != "model"} | dict(own)
    name, known = merged["model"], models_of(optimizer)
    sde: Builder | None = None
    if callable(name):
        sde, name = name, getattr(name, "__qualname__", type(name).__name__)
        if name in MODELS:
            raise ValueError(f"models[{label!r}]: your SDE bears the name {name!r} of one of ours; rename it.")
    elif name not in known and name in MODELS:
        raise ValueError(f"{where}: {name!r} does not exist for {optimizer.name}; its models are {', '.join(known)}.")
    if idle and name != "empirical":
        raise ValueError(f"models[{label!r}]: {idle[0]} belongs to the model 'empirical'; {name!r} does not take it.")
    model = Model(
        name if sde is not None else check.choice(where, name, known),
        check.choice("integrator", merged["integrator"], INTEGRATORS),
        check.at_least("substeps", merged["substeps"], 1),
        check.choice("bias_correction", merged["bias_correction"], BIAS_CORRECTIONS),
        check.choice("increments", merged["increments"], INCREMENTS),
        check.at_least("samples", merged["samples"], 2),
        check.choice("coefficients", merged["coefficients"], COEFFICIENTS),
        check.choice("accumulators", merged["accumulators"], ACCUMULATORS),
        sde=sde,
    )
    return replace(model, substeps=1) if model.model == "optimizer" else model
