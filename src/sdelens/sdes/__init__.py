"""SDEs of optimizers, one file per model, and the table of which exist for which optimizer."""

from collections.abc import Callable
from typing import Any

from sdelens.noise import AbstractNoise
from sdelens.optimizers import SGD, Adagrad, AdamW, Lion, Momentum, Optimizer, RMSpropW, SignSGD, Signum
from sdelens.problems import AbstractProblem
from sdelens.sdes._base import SDE, Instant, OptimizerSDE
from sdelens.sdes.adagrad import AdagradSDE
from sdelens.sdes.adamw import AdamWSDE
from sdelens.sdes.malladi2022 import Malladi2022SDE
from sdelens.sdes.momentum import MomentumSDE
from sdelens.sdes.rmspropw import RMSpropWSDE
from sdelens.sdes.second_order_adamw import SecondOrderAdamWSDE
from sdelens.sdes.second_order_rmspropw import SecondOrderRMSpropWSDE
from sdelens.sdes.sgd import SGDSDE, SecondOrderSGDSDE
from sdelens.sdes.signsgd import SignSGDSDE
from sdelens.sdes.signum import SignumSDE

__all__ = [
    "SDE",
    "SGDSDE",
    "AdagradSDE",
    "AdamWSDE",
    "Builder",
    "Instant",
    "Malladi2022SDE",
    "MomentumSDE",
    "OptimizerSDE",
    "RMSpropWSDE",
    "SecondOrderAdamWSDE",
    "SecondOrderRMSpropWSDE",
    "SecondOrderSGDSDE",
    "SignSGDSDE",
    "SignumSDE",
    "build_sde",
    "sdes_of",
]

Builder = Callable[[AbstractProblem, AbstractNoise, Any], SDE]
"""A function, or a subclass of `OptimizerSDE`, that makes the SDE of a case."""
_Builder = Callable[[AbstractProblem, AbstractNoise, Any, str], SDE]

_SDES: dict[type[Optimizer], dict[str, _Builder]] = {
    SGD: {
        "sde": lambda p, n, o, _: SGDSDE(p, n, o),
        "second-order": lambda p, n, o, _: SecondOrderSGDSDE(p, n, o),
    },
    SignSGD: {"sde": lambda p, n, o, _: SignSGDSDE(p, n, o)},
    RMSpropW: {
        "sde": lambda p, n, o, _: RMSpropWSDE(p, n, o),
        "malladi2022": lambda p, n, o, _: Malladi2022SDE(RMSpropWSDE(p, n, o)),
        "second-order": lambda p, n, o, _: SecondOrderRMSpropWSDE(p, n, o),
    },
    AdamW: {
        "sde": AdamWSDE,
        "malladi2022": lambda p, n, o, b: Malladi2022SDE(AdamWSDE(p, n, o, b)),
        "second-order": SecondOrderAdamWSDE,
    },
    Momentum: {"sde": lambda p, n, o, _: MomentumSDE(p, n, o)},
    Signum: {"sde": lambda p, n, o, _: SignumSDE(p, n, o)},
    Lion: {"sde": lambda p, n, o, _: SignumSDE(p, n, o)},
    Adagrad: {"sde": lambda p, n, o, _: AdagradSDE(p, n, o)},
}


def sdes_of(optimizer: Optimizer) -> list[str]:
    """Names of the SDEs that exist for an optimizer."""
    return list(_SDES.get(type(optimizer), {}))


def build_sde(
    model: "str | Builder",
    problem: AbstractProblem,
    noise: AbstractNoise,
    optimizer: Optimizer,
    bias_correction: str = "discrete",
) -> SDE:
    """The SDE of one of the names `sdes_of(optimizer)`, or what a function of the user's own makes of the case.

    Args:
        model: the name or the function.
        problem: what is minimised.
        noise: law of the gradient noise, bound to the problem.
        optimizer: its specification.
        bias_correction: of Adam's SDEs.

    Raises:
        TypeError: if the function makes no SDE.
    """
    if isinstance(model, str):
        return _SDES[type(optimizer)][model](problem, noise, optimizer, bias_correction)
    made = model(problem, noise, optimizer)
    if not isinstance(made, SDE):
        raise TypeError(
            f"models: {getattr(model, '__qualname__', model)} returned {type(made).__name__}; it must return an sl.SDE."
        )
    return made
