"""What there is by name: optimizers and noise laws, declared once for shell, scaling rules and tables. No JAX."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = [
    "ALIASES",
    "NOISES",
    "OPTIMIZERS",
    "NoiseDeclaration",
    "OptimizerDeclaration",
    "canonical_name",
    "declare_noise",
    "declare_optimizer",
]


@dataclass(frozen=True)
class OptimizerDeclaration:
    """An optimizer as everything outside `sdelens.optimizers` needs to know it.

    Attributes:
        name: what its specification is called in the shell, in dicts and in results.
        label: its name as it is written in tables and figures.
        meaning: a few words for lists.
        specification: the class, or ``"module:name"`` of it, which is then imported when it is needed.
        defaults: numbers of the specification beside lr and weight_decay, with their defaults.
        scaling_rule: the rule of `sdelens.scaling.RULES` that keeps its SDE.
        accepted: numbers that a dict of its hyperparameters may hold beside lr and weight_decay, in the library's words
            or in PyTorch's.
        common: defaults of these on which PyTorch and optax agree.
        family: the optimizer whose arithmetic of hyperparameters it shares; "" is its own.
    """

    name: str
    label: str
    meaning: str
    specification: Any
    scaling_rule: str
    defaults: Mapping[str, float] = field(default_factory=dict)
    accepted: tuple[str, ...] = ()
    common: Mapping[str, float] = field(default_factory=dict)
    family: str = ""

    @property
    def of_family(self) -> str:
        """The family by whose arithmetic its hyperparameters are scaled."""
        return self.family or self.name

    def load(self) -> Any:
        """The class of its specification."""
        return _loaded(self.specification)


@dataclass(frozen=True)
class NoiseDeclaration:
    """A noise law as everything outside `sdelens.noise` needs to know it.

    Attributes:
        name: what it is called in the shell and in results.
        label: its name as it is written in tables and figures.
        meaning: a few words for lists.
        law: the class, or ``"module:name"`` of it, which is then imported when it is needed.
        defaults: arguments that the shell takes where they are not given.
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
        "SGD with momentum, heavy-ball or with nesterov=True, damped by 1 - b1",
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
)
OPTIMIZERS: Final[dict[str, OptimizerDeclaration]] = {declared.name: declared for declared in _OURS}
"""The declarations by name."""
ALIASES: Final = {"adam": "adamw", "rmsprop": "rmspropw"}
"""Further names of two optimizers; in dicts of hyperparameters their decay is that of PyTorch, within the gradient."""


def canonical_name(name: str) -> str:
    """The name of the declaration that a name or an alias means."""
    return ALIASES.get(name, name)


def declare_optimizer(declaration: OptimizerDeclaration) -> None:
    """Make an optimizer known by its name, to the shell and the scaling rules.

    Raises:
        ValueError: if there is another of that name, or no optimizer of its family.
    """
    if declaration.name in OPTIMIZERS or declaration.name in ALIASES:
        raise ValueError(f"name: there is an optimizer {declaration.name!r} already; choose another name.")
    if declaration.family and declaration.family not in OPTIMIZERS:
        raise ValueError(f"family: got {declaration.family!r}; choose one of {', '.join(OPTIMIZERS)}, or leave it out.")
    OPTIMIZERS[declaration.name] = declaration


_LAWS = (
    NoiseDeclaration(
        "gaussian",
        "Gaussian",
        "normal noise on the full gradient, independent on every coordinate or with a covariance",
        "sdelens.noise:GaussianNoise",
        {"scale": 1.0},
    ),
    NoiseDeclaration(
        "student-t",
        "Student t",
        "heavy tails, with df degrees of freedom: 1 is Cauchy, infinite variance for 2 and less",
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
        "distributed",
        "distributed",
        "mean of workers' gradients: distributed(minibatch(8), workers=4, compression=random-k(0.1))",
        "sdelens.noise:DistributedNoise",
    ),
)
NOISES: Final[dict[str, NoiseDeclaration]] = {declared.name: declared for declared in _LAWS}
"""The declarations by name."""


def declare_noise(declaration: NoiseDeclaration) -> None:
    """Make a noise law known by its name, to the shell and the tables.

    Raises:
        ValueError: if there is another of that name.
    """
    if declaration.name in NOISES:
        raise ValueError(f"name: there is a noise law {declaration.name!r} already; choose another name.")
    NOISES[declaration.name] = declaration
