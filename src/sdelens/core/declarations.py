"""Optimizers and noise laws by name, declared once for the shell, scaling rules and tables. Imports no JAX."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = [
    "ALIASES",
    "NOISES",
    "OPTIMIZERS",
    "WRAPPERS",
    "NoiseDeclaration",
    "OptimizerDeclaration",
    "WrapperDeclaration",
    "canonical_name",
    "declare_noise",
    "declare_optimizer",
    "scaled_names",
]


@dataclass(frozen=True)
class OptimizerDeclaration:
    """What code outside `sdelens.optimizers` needs to know about an optimizer.

    Attributes:
        name: name of its specification in the shell, in dicts and in results.
        label: its name in tables and figures.
        meaning: a short description for lists.
        specification: the class, or its ``"module:name"``, which is imported when it is needed.
        defaults: numbers of the specification other than lr and weight_decay, with their default values.
        scaling_rule: the rule of `sdelens.scaling.RULES` that keeps its SDE; "" if none is known.
        accepted: names that a dict of its hyperparameters may contain besides lr and weight_decay, as in this library
            or in PyTorch.
        common: default values of these on which PyTorch and optax agree.
        family: the optimizer whose rules for scaling hyperparameters it shares; "" means the optimizer itself.
    """

    name: str
    label: str
    meaning: str
    specification: Any
    scaling_rule: str = ""
    defaults: Mapping[str, float] = field(default_factory=dict)
    accepted: tuple[str, ...] = ()
    common: Mapping[str, float] = field(default_factory=dict)
    family: str = ""

    @property
    def of_family(self) -> str:
        """The optimizer by whose rules its hyperparameters are scaled."""
        return self.family or self.name

    def load(self) -> Any:
        """The class of its specification."""
        return _loaded(self.specification)


@dataclass(frozen=True)
class WrapperDeclaration:
    """What code outside `sdelens.optimizers` needs to know about an optimizer that wraps another one.

    Attributes:
        name: its name in the shell and in results.
        label: its name in tables and figures.
        meaning: a short description for lists.
        specification: the class as ``"module:name"``, which is imported when it is needed; its argument `base` is the
            wrapped optimizer.
        labels: other names in tables and figures, by the value of an option: (option, value, label).
    """

    name: str
    label: str
    meaning: str
    specification: str
    labels: tuple[tuple[str, Any, str], ...] = ()

    def load(self) -> Any:
        """The class of its specification."""
        return _loaded(self.specification)

    def label_of(self, described: Mapping[str, Any]) -> str:
        """Its label with the options of a description."""
        return next((label for key, value, label in self.labels if described.get(key) == value), self.label)


@dataclass(frozen=True)
class NoiseDeclaration:
    """What code outside `sdelens.noise` needs to know about a noise law.

    Attributes:
        name: its name in the shell and in results.
        label: its name in tables and figures.
        meaning: a short description for lists.
        law: the class, or its ``"module:name"``, which is imported when it is needed.
        defaults: arguments that the shell uses if they are not given.
    """

    name: str
    label: str
    meaning: str
    law: Any
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Any:
        """The class of the law."""
        return _loaded(self.law)


def _loaded(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    module, _, name = given.partition(":")
    return getattr(importlib.import_module(module), name)


_OURS = (
    OptimizerDeclaration("sgd", "SGD", "SGD", "sdelens.optimizers:SGD", "linear", accepted=("momentum", "dampening")),
    OptimizerDeclaration("signsgd", "SignSGD", "SignSGD", "sdelens.optimizers:SignSGD", "sqrt"),
    OptimizerDeclaration(
        "rmspropw",
        "RMSpropW",
        "RMSpropW (weight decay 0: RMSprop)",
        "sdelens.optimizers:RMSpropW",
        "sqrt",
        {"b2": 0.99, "eps": 1e-8},
        ("b2", "alpha", "momentum", "eps", "eps_root"),
    ),
    OptimizerDeclaration(
        "adamw",
        "AdamW",
        "AdamW (weight decay 0: Adam)",
        "sdelens.optimizers:AdamW",
        "sqrt",
        {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
        ("b1", "b2", "eps", "eps_root"),
        {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    ),
    OptimizerDeclaration(
        "momentum",
        "Momentum",
        "SGD with momentum, heavy-ball or with nesterov=True, damped by 1 − b1",
        "sdelens.optimizers:Momentum",
        "linear",
        {"b1": 0.9},
        ("b1", "momentum", "dampening"),
    ),
    OptimizerDeclaration(
        "signum",
        "Signum",
        "the sign of a momentum",
        "sdelens.optimizers:Signum",
        "sign-momentum",
        {"b1": 0.9},
        ("b1",),
    ),
    OptimizerDeclaration(
        "lion",
        "Lion",
        "Lion",
        "sdelens.optimizers:Lion",
        "sign-momentum",
        {"b1": 0.9, "b2": 0.99},
        ("b1", "b2"),
        {"b1": 0.9, "b2": 0.99},
    ),
    OptimizerDeclaration(
        "adagrad",
        "Adagrad",
        "Adagrad",
        "sdelens.optimizers:Adagrad",
        "sum-of-squares",
        {"initial_accumulator": 0.1, "eps": 1e-7},
        ("eps", "initial_accumulator"),
    ),
    OptimizerDeclaration(
        "muon",
        "Muon",
        "the matrix sign of a momentum for matrices (networks), and the sign for other parameters",
        "sdelens.optimizers:Muon",
    ),
)
OPTIMIZERS: Final[dict[str, OptimizerDeclaration]] = {declared.name: declared for declared in _OURS}
"""The declarations by name."""
_AROUND_OTHERS = (
    WrapperDeclaration(
        "sam",
        "SAM",
        "gradients of the same draw uphill: sam(sgd(0.1), rho=0.05)",
        "sdelens.optimizers:SAM",
        (("normalise", False, "USAM"),),
    ),
    WrapperDeclaration(
        "extragradient",
        "Extragradient",
        "gradients of the same draw at an extrapolated point: extragradient(sgd(0.1), rho=0.05)",
        "sdelens.optimizers:Extragradient",
    ),
    WrapperDeclaration(
        "svrg",
        "SVRG",
        "gradients of the same draw at an earlier point: svrg(sgd(0.1), every=50)",
        "sdelens.optimizers:SVRG",
    ),
)
WRAPPERS: Final[dict[str, WrapperDeclaration]] = {declared.name: declared for declared in _AROUND_OTHERS}
"""The declarations of optimizers that wrap another one, by name."""
ALIASES: Final = {"adam": "adamw", "rmsprop": "rmspropw"}
"""Other names of two optimizers; in dicts of hyperparameters their decay is part of the gradient, as in PyTorch."""


def canonical_name(name: str) -> str:
    """The name of the declaration to which a name or an alias refers."""
    return ALIASES.get(name, name)


def scaled_names() -> tuple[str, ...]:
    """Names and aliases of the optimizers for which a scaling rule is known."""
    return (*(name for name, declared in OPTIMIZERS.items() if declared.scaling_rule), *ALIASES)


def declare_optimizer(declaration: OptimizerDeclaration) -> None:
    """Register an optimizer by its name for the shell and the scaling rules.

    Raises:
        ValueError: if the name is taken, or its family is not a registered optimizer.
    """
    if declaration.name in OPTIMIZERS or declaration.name in ALIASES:
        raise ValueError(
            f"name: got {declaration.name!r}, which is already the name of an optimizer; choose another name."
        )
    if declaration.family and declaration.family not in OPTIMIZERS:
        raise ValueError(f"family: got {declaration.family!r}; choose one of {', '.join(OPTIMIZERS)}, or leave it out.")
    OPTIMIZERS[declaration.name] = declaration


_LAWS = (
    NoiseDeclaration(
        "gaussian",
        "Gaussian",
        "normal noise added to the full gradient, with independent coordinates or a given covariance",
        "sdelens.noise:GaussianNoise",
        {"scale": 1.0},
    ),
    NoiseDeclaration(
        "student-t",
        "Student t",
        "heavy tails with df degrees of freedom: Cauchy for df = 1, infinite variance for df ≤ 2",
        "sdelens.noise:StudentTNoise",
        {"scale": 1.0},
    ),
    NoiseDeclaration("laplace", "Laplace", "double-exponential", "sdelens.noise:LaplaceNoise", {"scale": 1.0}),
    NoiseDeclaration("uniform", "uniform", "on an interval about 0", "sdelens.noise:UniformNoise", {"scale": 1.0}),
    NoiseDeclaration(
        "minibatch",
        "mini-batch",
        "real mini-batches of batch_size examples (networks, linear-regression)",
        "sdelens.noise:MinibatchNoise",
    ),
    NoiseDeclaration(
        "dp",
        "DP",
        "DP-SGD's: clipped for each example, averaged, plus normal noise: dp(minibatch(32), clip=1, multiplier=0.8)",
        "sdelens.noise:DPNoise",
    ),
    NoiseDeclaration(
        "distributed",
        "distributed",
        "mean of workers' gradients: distributed(minibatch(8), workers=4, compression=random-k(0.1))",
        "sdelens.noise:DistributedNoise",
    ),
)
NOISES: Final[dict[str, NoiseDeclaration]] = {declared.name: declared for declared in _LAWS}
"""The declarations by name."""


def declare_noise(declaration: NoiseDeclaration) -> None:
    """Register a noise law by its name for the shell and the tables.

    Raises:
        ValueError: if the name is taken.
    """
    if declaration.name in NOISES:
        raise ValueError(
            f"name: got {declaration.name!r}, which is already the name of a noise law; choose another name."
        )
    NOISES[declaration.name] = declaration
