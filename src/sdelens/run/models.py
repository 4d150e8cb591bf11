"""Models of an optimizer, as objects: the optimizer itself, its SDEs in closed form, and the empirical SDE."""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from functools import partial
from inspect import signature
from typing import Any, ClassVar

from sdelens.cases.case import Case
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
from sdelens.integrate import Discrete, EulerMaruyama, Quadrature, Stepper, check_queried
from sdelens.integrate import Empirical as EmpiricalStepper
from sdelens.optimizers import Optimizer
from sdelens.sdes import Builder, build_sde, check_pathwise, sdes_of

__all__ = [
    "ClosedForm",
    "DiscreteOptimizer",
    "Empirical",
    "Model",
    "Models",
    "check_model",
    "chosen_models",
    "coarse_of",
    "models_of",
]

_BROWNIAN = {"gaussian": "brownian", "rademacher": "rademacher"}


def models_of(optimizer: Optimizer) -> list[str]:
    """Names of the models of an optimizer: the optimizer, its closed-form SDEs if there are any, the empirical SDE."""
    return ["optimizer", *sdes_of(optimizer), "empirical"]


class Model(abc.ABC):
    """A model that can be run in a comparison."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """Name of the model: one of `models_of`, or the name of the user's function."""

    @property
    @abc.abstractmethod
    def stream(self) -> str:
        """Name of the stream of random numbers; models with the same stream share them.

        SDEs with the same number of substeps thus share their Brownian motion.
        """

    @abc.abstractmethod
    def stepper(self, case: Case) -> Stepper:
        """The stepper that advances paths of the model by one optimizer step."""

    @property
    def label(self) -> str:
        """The name, and every option that differs from its default."""
        return ", ".join([self.name, *self._details()])

    def _details(self) -> list[str]:
        return []

    def settings(self) -> dict[str, Any]:
        """Name and options, as JSON types."""
        options = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "sde"}  # type: ignore[arg-type]
        given = {key: value for key, value in options.items() if value is not None}
        return {"model": self.name, **given}


Models = Sequence[str | Model | Builder] | Mapping[str, str | Model | Builder] | None
"""How users specify models: names, objects and user-defined SDEs, in a list or by label; None for the default."""


@dataclass(frozen=True)
class DiscreteOptimizer(Model):
    """The optimizer itself, through optax."""

    name: ClassVar[str] = "optimizer"
    stream: ClassVar[str] = "optimizer"
    substeps: ClassVar[int] = 1

    def stepper(self, case: Case) -> Stepper:
        """The optimizer's update."""
        return Discrete(*_parts(case))


@dataclass(frozen=True)
class ClosedForm(Model):
    """An SDE with drift and diffusion in closed form, and how it is integrated.

    Args:
        sde: ``"sde"`` (from the paper, or of the same kind), ``"full-noise"`` and ``"malladi2022"`` (RMSprop and
            Adam), ``"second-order"`` (SGD, RMSprop and Adam), or an SDE that you define: a subclass of `OptimizerSDE`,
            or a function from problem, noise and optimizer to an `SDE`.
        integrator: ``"sequential"`` (V, then M, then X, each with the newest values) or ``"euler"``; see
            `sdelens.integrate`.
        substeps: integration steps per optimizer step.
        increments: increments of Brownian motion: ``"gaussian"``, or ``"rademacher"`` (±√Δt, of the same weak order
            and faster).
        bias_correction: only for Adam's SDEs: ``"discrete"`` (1 − βᵏ⁺¹, the default) or ``"exponential"`` (as in the
            paper).

    Raises:
        ValueError, TypeError: naming the option.

    Examples:
        >>> import sdelens as sl
        >>> sl.ClosedForm("sde", substeps=8).label
        'sde, 8 substeps'
    """

    sde: str | Builder = "sde"
    _: KW_ONLY
    integrator: str = "sequential"
    substeps: int = 1
    increments: str = "gaussian"
    bias_correction: str | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.sde, str) or callable(self.sde)):
            raise TypeError(f"sde: got {self.sde!r}; give a name, or a function that returns an sl.SDE.")
        if self.sde in ("optimizer", "empirical"):
            remedy = "name it in the list of models" if self.sde == "optimizer" else "use sl.Empirical()"
            raise ValueError(f"sde: got {self.sde!r}, which is not an SDE in closed form; {remedy}.")
        check.choice("integrator", self.integrator, INTEGRATORS)
        object.__setattr__(self, "substeps", check.at_least("substeps", self.substeps, 1))
        check.choice("increments", self.increments, INCREMENTS)
        if self.bias_correction is not None:
            check.choice("bias_correction", self.bias_correction, BIAS_CORRECTIONS)

    @property
    def name(self) -> str:  # noqa: D102
        if isinstance(self.sde, str):
            return self.sde
        made = self.sde
        while isinstance(made, partial):
            made = made.func
        return str(getattr(made, "__name__", type(made).__name__))

    @property
    def stream(self) -> str:  # noqa: D102
        return f"{_BROWNIAN[self.increments]}/{self.substeps}"

    def settings(self) -> dict[str, Any]:
        """Name and options, as JSON types; ``rerunnable`` is False for a user-defined SDE."""
        fixed = {name: value for name, value in self.fields().items() if isinstance(value, bool | int | float | str)}
        return super().settings() | ({} if isinstance(self.sde, str) else {**fixed, "rerunnable": False})

    def fields(self) -> dict[str, Any]:
        """The fields of a user's SDE besides problem, noise and optimizer, with their values or defaults.

        They are those of its class, or the further arguments of its function.
        """
        if isinstance(self.sde, str):
            return {}
        own = list(signature(self.sde).parameters.values())[3:]
        named = [p for p in own if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        return {p.name: p.default for p in named if p.default is not p.empty}

    def with_fields(self, values: Mapping[str, Any]) -> "ClosedForm":
        """The model whose user-defined SDE has other values of some of its `fields`.

        Whole numbers become floats where the field is a float, so that all values share one compilation.
        """
        assert not isinstance(self.sde, str)
        held = self.fields()
        whole = {name for name, value in values.items() if isinstance(value, int) and isinstance(held[name], float)}
        numbers = {name: float(value) if name in whole else value for name, value in values.items()}
        return replace(self, sde=partial(self.sde, **numbers))

    def stepper(self, case: Case) -> Stepper:
        """The SDE's integrator."""
        sde = build_sde(self.sde, case.problem, case.noise, case.optimizer, self.bias_correction)
        if sde.squares_increments and self.increments != "gaussian":
            raise ValueError(
                f"increments: got {self.increments!r}, but {self.name!r} of {case.optimizer.name} computes the noise "
                "of V from the squares of the increments, which must be normal; use increments='gaussian'."
            )
        options = (self.integrator, self.substeps, self.increments)
        return EulerMaruyama(sde, case.optimizer.lr, case.start, *options)

    def _details(self) -> list[str]:
        said = [self.integrator] if self.integrator != "sequential" else []
        said += _substeps(self.substeps)
        said += [self.increments] if self.increments != "gaussian" else []
        return said + ([self.bias_correction] if self.bias_correction == "exponential" else [])


@dataclass(frozen=True)
class Empirical(Model):
    """An SDE whose coefficients are computed from the optimizer's update; it exists for every optimizer.

    Args:
        samples: number of updates per step from which the coefficients are estimated, at least 2.
        coefficients: ``"sampled"``, or ``"quadrature"``, which has no sampling error but requires a coordinate-wise
            optimizer and independent noise.
        accumulators: the noise of sums and means of squares: ``"lognormal"``, ``"update"`` or ``"drift"`` (none); see
            `sdelens.integrate.empirical`.
        substeps: integration steps per optimizer step.
        increments: increments of Brownian motion, as in `ClosedForm`.

    Raises:
        ValueError, TypeError: naming the option.

    Examples:
        >>> import sdelens as sl
        >>> sl.Empirical(coefficients="quadrature").label
        'empirical, quadrature'
    """

    name: ClassVar[str] = "empirical"
    _: KW_ONLY
    samples: int = 8
    coefficients: str = "sampled"
    accumulators: str = "lognormal"
    substeps: int = 1
    increments: str = "gaussian"

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", check.at_least("samples", self.samples, 2))
        check.choice("coefficients", self.coefficients, COEFFICIENTS)
        check.choice("accumulators", self.accumulators, ACCUMULATORS)
        object.__setattr__(self, "substeps", check.at_least("substeps", self.substeps, 1))
        check.choice("increments", self.increments, INCREMENTS)

    @property
    def stream(self) -> str:  # noqa: D102
        motion = "empirical" if self.coefficients == "sampled" else _BROWNIAN[self.increments]
        return f"{motion}/{self.substeps}"

    def stepper(self, case: Case) -> Stepper:
        """The integrator of the estimated coefficients."""
        options = (self.substeps, self.increments, self.accumulators)
        if self.coefficients == "quadrature":
            return Quadrature(Discrete(*_parts(case)), *options)
        return EmpiricalStepper(*_parts(case), self.samples, *options)

    def _details(self) -> list[str]:
        said = [f"{self.samples} samples"] if self.samples != 8 and self.coefficients == "sampled" else []
        said += [self.coefficients] if self.coefficients != "sampled" else []
        said += [f"accumulators {self.accumulators}"] if self.accumulators != "lognormal" else []
        said += _substeps(self.substeps)
        return said + ([self.increments] if self.increments != "gaussian" else [])


def _substeps(number: int) -> list[str]:
    return [f"{number} substeps"] if number > 1 else []


def _parts(case: Case) -> tuple[Any, Any, Any, Any, Any]:
    return case.problem, case.noise, case.optimizer, case.start, case.problem.layout


def chosen_models(optimizer: Optimizer, models: Any, where: str = "models") -> dict[str, Model]:
    """The models to run by label: the default ones, or those that are given.

    Args:
        optimizer: the optimizer whose models are chosen.
        models: None, a sequence of names and objects, or a mapping from labels to them.
        where: name of the argument, for messages.

    Raises:
        ValueError, TypeError: naming what is unknown, and the known models.
    """
    known = models_of(optimizer)
    if models is None:
        unasked = [] if sdes_of(optimizer) else ["empirical"]
        models = [name for name in known if name not in ON_REQUEST or name in unasked]
    if isinstance(models, str | Model) or callable(models):
        shown = repr(models) if isinstance(models, str) else getattr(models, "__qualname__", None)
        shown = shown or f"sl.{type(models).__name__}(...)"
        raise TypeError(f"{where}: got {shown}, which is not a list; give a list, for example ['optimizer', {shown}].")
    if isinstance(models, Mapping):
        labelled = {str(label): _model(own, f"{where}[{label!r}]") for label, own in models.items()}
    else:
        made = [_model(own, where) for own in models]
        labelled = {model.label: model for model in made}
        if len(labelled) < len(made):
            raise ValueError(
                f"{where}: got {[model.label for model in made]}; give each model once, or give labels: {{'mine': "
                "sl.ClosedForm('sde', substeps=8), ...}."
            )
    if not labelled:
        raise ValueError(f"{where}: got no models; choose from {known}.")
    for model in labelled.values():
        _check_exists(model, optimizer, known, where)
    return labelled


def _model(given: Any, where: str) -> Model:
    """Convert a name, an object or a user-defined function to a model."""
    if isinstance(given, Model):
        return given
    if isinstance(given, str):
        if given == "optimizer":
            return DiscreteOptimizer()
        return Empirical() if given == "empirical" else ClosedForm(given)
    if given in (ClosedForm, Empirical):
        raise TypeError(f"{where}: got the class {given.__name__} itself; call it with its options.")
    if callable(given):
        return ClosedForm(given)
    raise TypeError(
        f"{where}: got {given!r}; give a name, or an object such as sl.ClosedForm('sde', substeps=8) or "
        "sl.Empirical(samples=16)."
    )


def _check_exists(model: Model, optimizer: Optimizer, known: list[str], where: str) -> None:
    own = isinstance(model, ClosedForm) and not isinstance(model.sde, str)
    if own and model.name in MODELS:
        raise ValueError(
            f"{where}: got an SDE named {model.name!r}, which is the name of a model of the library; rename it."
        )
    if own:
        return
    if model.name not in known and model.name in MODELS:
        raise ValueError(
            f"{where}: got {model.name!r}, which does not exist for {optimizer.name}; choose from {', '.join(known)}."
        )
    check.choice(where, model.name, known)


def check_model(model: Model, case: Case) -> Stepper:
    """The stepper of a model, if it can be built and no SDE or optimizer of the user lets paths depend on each other.

    Raises:
        ValueError, TypeError: naming what does not fit.
    """
    stepper = model.stepper(case)
    if isinstance(stepper, EulerMaruyama):
        check_pathwise(stepper.sde, case.problem.start)
    if isinstance(stepper, Discrete):
        check_queried(stepper)
    return stepper


def coarse_of(models: Mapping[str, Model]) -> dict[str, str]:
    """Labels of models with several substeps, mapped to the label of the same model with one substep, if it exists."""
    found: dict[str, str] = {}
    for label, model in models.items():
        if isinstance(model, ClosedForm | Empirical) and model.substeps > 1:
            single = replace(model, substeps=1)
            same = [other for other, m in models.items() if m == single]
            if same:
                found[label] = same[0]
    return found
