"""One run: its checked arguments, its description, and the execution of its models one after another."""

import contextlib
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Any, cast

import jax
import numpy as np

from sdelens.cases.case import Case, check_subject
from sdelens.cases.observables import Observables, check_condition, hits_of, observables_of
from sdelens.cases.path_functions import PathFunction
from sdelens.core.compilation import compiled_ahead
from sdelens.core.progress import progress_bar, stage
from sdelens.integrate import MAX_COORDINATES, Average, Exponential, Polyak, Stepper, Watched
from sdelens.noise import NoiseLaw
from sdelens.optimizers import FromOptax
from sdelens.run.checkpoint import Checkpoints, digest
from sdelens.run.description import LEVELS, Description
from sdelens.run.ensemble import path_steps, run_paths
from sdelens.run.law_warnings import law_warnings
from sdelens.run.models import Model, check_model, chosen_models, coarse_of
from sdelens.run.options import AnyAverage, Options, PolyakAverage, record_steps
from sdelens.run.plan import Plan, checked_seed, plan_of
from sdelens.run.programs import Programs
from sdelens.run.shares import Share
from sdelens.run.sizes import chunk_size, kept_shapes, part_shapes
from sdelens.run.summary import Part, Summary, total

__all__ = [
    "Experiment",
    "attributes",
    "code_of",
    "description_of",
    "identity",
    "plan_of_code",
    "prepare",
    "run",
    "share_code_of",
    "share_identity",
    "simulated",
    "work_of",
]

_TRACED = 16
"""Paths of the chunk for which the code of a share is traced."""
_VERSIONS = ("sdelens", "jax", "jaxlib", "optax", "equinox", "numpy")


@dataclass(frozen=True)
class Experiment:
    """A run with all arguments validated.

    Attributes:
        case: problem, noise, optimizer and start.
        models: models by label.
        plan: sizes and devices.
        seed: seed of all randomness.
        observables: what is recorded in addition to the loss.
        averages: moving averages of x by name.
        hits: the conditions whose first steps are stored.
        steppers: what the ensemble runs for every model, by label.
        share: the number of the share that is run, and that of all shares.
    """

    case: Case
    models: dict[str, Model]
    plan: Plan
    seed: int
    observables: Observables
    averages: dict[str, AnyAverage]
    hits: tuple[PathFunction, ...]
    steppers: dict[str, Stepper]
    share: tuple[int, int] = (0, 1)

    def watched(self, stepper: Stepper, hits: tuple[PathFunction, ...]) -> Stepper:
        """A stepper that carries the averages, and tests these conditions, if there are any."""
        if not (self.averages or hits):
            return stepper
        averages = tuple(_moving(average) for average in self.averages.values())
        return Watched(stepper, averages, tuple(self.averages), hits, self.case.problem.layout)

    def checked(self, label: str, model: Model) -> Stepper:
        """The stepper of a model, if it can be built and its state has all parts that are to be recorded.

        Raises:
            ValueError, TypeError: naming what does not fit, and the model.
        """
        inner = check_model(model, self.case)
        self._check_parts(label, inner)
        return self.watched(inner, self.hits)

    def _check_parts(self, label: str, inner: Stepper) -> None:
        if self.averages and (taken := self.averages.keys() & part_shapes(inner).keys()):
            raise ValueError(
                f"averages: got the name {min(taken)!r}, which is that of a part of the state of the model {label!r}; "
                "choose another name."
            )
        used = self.plan.keep if self.plan.keep_paths else ()
        if not (set(used) - {"x"} or self.observables.of_state or any(hit.of_state for hit in self.hits)):
            return
        parts = part_shapes(self.watched(inner, ()))
        self.observables.check(label, parts["x"], parts)
        for hit in self.hits:
            check_condition(hit, label, parts["x"], parts, self.case.problem.layout)
        names = self.observables.names
        for name in used:
            if name not in parts and name != "loss" and name not in names:
                known = [*sorted(parts), "loss", *names]
                raise ValueError(
                    f"keep: got {name!r}, which the model {label!r} does not have; choose from {', '.join(known)}, or "
                    "run that model separately."
                )
            if name in parts and name in names:
                raise ValueError(f"keep: {name!r} is an observable and a part of the state; rename the observable.")


def _moving(average: AnyAverage) -> Average:
    """The average as it is computed."""
    if isinstance(average, PolyakAverage):
        return Polyak(average.start)
    return Exponential(math.log(average.decay), average.bias_correction)


def prepare(
    problem: Any, noise: Any, optimizer: Any, models: Any, options: Options, bound: NoiseLaw | None = None
) -> Experiment:
    """Check a user's arguments and choose the chunk; `bound` is the noise if it is already bound to the problem.

    Raises:
        ValueError, TypeError: naming the argument that does not fit.
    """
    check_subject(problem, noise, optimizer)
    plan, seed = plan_of(options, problem.dim), checked_seed(options)
    chosen = chosen_models(optimizer, models)
    case = Case.checked(problem, noise, optimizer, options.start, plan.steps, bound)
    _check_factorisations(case, plan)
    record = options.record
    averages = cast("dict[str, AnyAverage]", record.averages or {})
    _check_starts(averages, plan.steps)
    observables = observables_of(record.observables, case, tuple(averages))
    hits = hits_of(record.hits, case.problem)
    share = options.execution.share or (0, 1)
    experiment = Experiment(case, chosen, plan, seed, observables, averages, hits, {}, share)
    steppers = {label: experiment.checked(label, model) for label, model in chosen.items()}
    if options.execution.chunk is None:
        plan = plan._replace(chunk=min(chunk_size(stepper, plan) for stepper in steppers.values()))
    if options.execution.kernel:
        for label, stepper in steppers.items():  # no comprehension, of which warnings would count the frame
            steppers[label] = _with_kernel(label, stepper, plan)
    return replace(experiment, plan=plan, steppers=steppers)


def _with_kernel(label: str, stepper: Stepper, plan: Plan) -> Stepper:
    """The stepper with its steps between records as one kernel if there can be one, otherwise unchanged."""
    try:
        from sdelens.integrate.kernel import NoKernelError, in_kernel  # Pallas takes a while to import
    except ImportError as error:
        raise ValueError(f"kernel: got True, but this version of JAX has no Pallas for Triton ({error}).") from error
    platform = plan.devices[0].platform
    try:
        if plan.record_every == 1:
            raise NoKernelError("every step is recorded; give a larger record.every")
        if platform not in ("cpu", "gpu", "cuda"):
            raise NoKernelError(f"there is none for the platform {platform}")
        return in_kernel(stepper, interpret=platform == "cpu")
    except NoKernelError as error:
        warnings.warn(f"kernel: the model {label!r} runs without one: {error}.", RuntimeWarning, stacklevel=4)
        return stepper


def _check_starts(averages: dict[str, AnyAverage], steps: int) -> None:
    """Refuse an average that starts after the run, which would be the last x itself."""
    for name, average in averages.items():
        if isinstance(average, PolyakAverage) and average.start > steps:
            raise ValueError(
                f"averages[{name!r}]: starts at step {average.start}, but the run has {steps} steps; give an earlier "
                "step, or more steps."
            )


def _check_factorisations(case: Case, plan: Plan) -> None:
    """Refuse several CPU devices if each would call LAPACK: they can wait for one another forever."""
    if (
        len(plan.devices) == 1
        or plan.devices[0].platform != "cpu"
        or not isinstance(case.optimizer.unwrapped, FromOptax)
    ):
        return
    called = case.optimizer.factorisations(case.problem.layout)
    if called:
        raise ValueError(
            f"devices: {case.optimizer.name} factorises matrices ({', '.join(sorted(called))}), which can deadlock "
            "on several CPU devices; give execution=sl.Execution(devices=1)."
        )


def run(experiment: Experiment, progress: bool | None, checkpoints: Checkpoints | None) -> Share:
    """Run all models on the paths of the plan, continuing from checkpoints if there are any."""
    description = description_of(experiment)
    for doubt in description.doubts if experiment.plan.share is None else ():
        warnings.warn(doubt, RuntimeWarning, stacklevel=3)
    is_share = experiment.plan.share is not None
    identified, code = dict[str, Any](), dict[str, str]()
    if is_share or checkpoints is not None:  # all data are read, and all code is traced
        identified, code = identity(experiment), (share_code_of if is_share else code_of)(experiment)
    if checkpoints is not None:
        checkpoints.start(identified | {"code": code})
    work, done = work_of([experiment], checkpoints)
    with progress_bar(progress, work, done) as report:
        parts = dict(simulated(experiment, report, checkpoints))
    plan, (index, count) = experiment.plan, experiment.share
    paths = (plan.own.start, plan.own.stop)
    shared = share_identity(identified, code) if is_share else {}
    return Share(index, count, paths, None, plan.block, shared, description, parts)


def work_of(experiments: Sequence[Experiment], checkpoints: Checkpoints | None) -> tuple[int, int]:
    """Path-steps over all models, and how many are done; all experiments have the same sizes."""
    plan, models = experiments[0].plan, experiments[0].models
    own = len(plan.own)
    done = 0
    if checkpoints is not None:
        done = len(checkpoints.finished) * plan.steps * own + path_steps(plan, checkpoints.position)
    return plan.steps * own * len(models) * len(experiments), done


def simulated(
    experiment: Experiment, report: Callable[[int, str], None], checkpoints: Checkpoints | None, name: str = ""
) -> Iterator[tuple[str, Part]]:
    """Run the models that are not saved yet, one after another: yields label, statistics and wall time in s.

    Args:
        experiment: what to run.
        report: called with the progress.
        checkpoints: where to resume from and where to save.
        name: name of the experiment among several that share the checkpoints.

    Raises:
        ValueError: if the loss at the start differs from its value when the code was compiled.
    """
    saved = {} if checkpoints is None else checkpoints.finished
    names = {label: f"{name}: {label}" if name else label for label in experiment.models}
    offset, programs = experiment.case.problem.infimum or 0.0, dict[str, Programs]()

    def ahead() -> Iterator[tuple[str, Callable[[], Any] | None]]:
        for label, stepper in experiment.steppers.items():
            if names[label] not in saved:
                programs[label] = Programs(stepper, experiment.plan, offset, experiment.observables)
                yield from ((label, compilation) for compilation in programs[label].compilations())

    with contextlib.ExitStack() as stack:
        with stage("compiling"):
            start_loss = experiment.case.start_loss()
            wait = stack.enter_context(compiled_ahead(ahead()))
            import xarray  # noqa: F401  (needed for the result; imported here while programs compile)

        for label, model in experiment.models.items():
            full = names[label]
            if full in saved:
                part = saved[full]
            else:
                report(0, full)
                begin = time.perf_counter()
                with stage(f"compiling {label}"):
                    wait(label)
                if checkpoints is not None:
                    checkpoints.begin(full)
                levels = np.array(LEVELS) if experiment.plan.share is None else None
                reported = partial(_reported, report, full)
                nodes = run_paths(programs[label], experiment.seed, model.stream, levels, reported, checkpoints)
                seconds = time.perf_counter() - begin if checkpoints is None else checkpoints.finish(full, nodes)
                part = Part(nodes, seconds)
            _check_start_loss(start_loss, total(part.nodes))
            yield label, part


def _reported(report: Callable[[int, str], None], label: str, done: int) -> None:
    report(done, label)


def _check_start_loss(start_loss: float | None, summary: Summary) -> None:
    mean = summary.overall()[0]
    # Rounding differs between the two values; only a difference that is large compared with the losses of the run
    # shows that the loss function has changed.
    if start_loss is not None and not np.isclose(mean[0], start_loss, rtol=1e-2, atol=1e-3 * np.nanmax(np.abs(mean))):
        raise ValueError(
            f"loss: is {start_loss:.6g} at the start now, but {mean[0]:.6g} in the compiled run. It must depend only "
            "on its arguments and variables; changes to an object after an earlier run are not detected. Define the "
            "loss function again."
        )


def identity(experiment: Experiment) -> dict[str, Any]:
    """The identity of a run, except for its code: description, sizes, devices, versions and numerical values."""
    attrs = attributes(experiment)
    parts = ("problem", "noise", "optimizer", "models", "run", "device", "versions")
    found: dict[str, Any] = {part: json.loads(attrs[part]) for part in parts}
    found["versions"] = {name: version(name) for name in _VERSIONS}
    case = experiment.case
    found["values"] = {part: digest(getattr(case, part)) for part in ("problem", "noise", "optimizer", "start")}
    found["values"]["infimum"] = case.problem.infimum
    found["x64"] = bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]
    return found if experiment.plan.share is None else found | {"share": list(experiment.share)}


def code_of(experiment: Experiment) -> dict[str, str]:
    """A hash of every model's traced code."""
    plan, observables = experiment.plan, experiment.observables
    return {label: Programs(s, plan, 0.0, observables).fingerprint() for label, s in experiment.steppers.items()}


def share_code_of(experiment: Experiment) -> dict[str, str]:
    """`code_of` the run, whatever the number of devices, the chunk and the share."""
    return code_of(replace(experiment, plan=plan_of_code(experiment.plan)))


def plan_of_code(plan: Plan) -> Plan:
    """The plan with the sizes for which the code of a share is traced."""
    return plan._replace(devices=plan.devices[:1], parameter_shards=1, chunk=_TRACED, share=None, runs=1)


def share_identity(identified: dict[str, Any], code: Any) -> dict[str, Any]:
    """What shares of one run agree in: its identity, but of the device only the kind, and its code."""
    found = {name: value for name, value in identified.items() if name != "share"}
    return found | {"device": {"platform": found["device"]["platform"]}, "code": code}


def description_of(experiment: Experiment, with_doubts: bool = True) -> Description:
    """All that a result needs of an experiment besides its statistics."""
    plan, case = experiment.plan, experiment.case
    return Description(
        steps=plan.steps,
        paths=plan.paths,
        record_every=plan.record_every,
        groups=plan.groups,
        lr=float(case.optimizer.lr),
        dim=case.problem.dim,
        has_coordinates=case.problem.dim <= MAX_COORDINATES,
        infimum=None if case.problem.infimum is None else float(case.problem.infimum),
        observables=experiment.observables.names,
        marginals=plan.marginals,
        moments=plan.moments,
        hits=[hit.name for hit in experiment.hits],
        kept={label: kept_shapes(stepper, plan) for label, stepper in experiment.steppers.items()},
        attributes=attributes(experiment),
        doubts=law_warnings(case, experiment.models.values()) if with_doubts else [],
    )


def attributes(experiment: Experiment) -> dict[str, Any]:
    """Attributes of the dataset of a run, without wall times."""
    plan, devices = experiment.plan, experiment.plan.devices
    coarse = coarse_of(experiment.models)
    models = {
        label: m.settings() | ({"coarse": coarse[label]} if label in coarse else {}) | {"stream": m.stream}
        for label, m in experiment.models.items()
    }
    run = {
        "steps": plan.steps,
        "paths": plan.paths,
        "seed": experiment.seed,
        "record_every": plan.record_every,
        "keep_paths": plan.keep_paths,
        "observables": list(experiment.observables.names),
        "marginals": list(plan.marginals),
    }
    run |= {"times": record_steps(plan.steps, plan.record_every)[list(plan.moments)].tolist()} if plan.moments else {}
    run |= {"keep": list(plan.keep)} if plan.keep_paths and plan.keep != ("x",) else {}
    run |= {"averages": {n: asdict(a) for n, a in experiment.averages.items()}} if experiment.averages else {}
    run |= {"hits": [hit.name for hit in experiment.hits]} if experiment.hits else {}
    device = {
        "platform": devices[0].platform,
        "kind": devices[0].device_kind,
        "count": len(devices),
        "cores": os.cpu_count() or 1,
        "chunk": plan.chunk,
    }
    device |= {"parameter_shards": plan.parameter_shards} if plan.parameter_shards > 1 else {}
    return experiment.case.attributes(run, models, device)
