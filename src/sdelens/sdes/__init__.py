"""SDEs of optimizers, one file per model, and the table of the SDEs that exist for each optimizer."""

from collections.abc import Callable, Mapping
from typing import Any

from sdelens.noise import NoiseLaw
from sdelens.optimizers import (
    SAM,
    SGD,
    Adagrad,
    AdamW,
    Extragradient,
    Lion,
    Momentum,
    Muon,
    Optimizer,
    RMSpropW,
    SignSGD,
    Signum,
    Wrapped,
)
from sdelens.problems import AbstractProblem
from sdelens.sdes._base import SDE, Instant, OptimizerSDE
from sdelens.sdes._checks import check_parts, check_pathwise, is_own
from sdelens.sdes.adagrad import AdagradSDE
from sdelens.sdes.adamw import AdamWSDE
from sdelens.sdes.full_noise_adamw import FullNoiseAdamWSDE
from sdelens.sdes.full_noise_rmspropw import FullNoiseRMSpropWSDE
from sdelens.sdes.malladi2022 import Malladi2022SDE
from sdelens.sdes.momentum import MomentumSDE
from sdelens.sdes.muon import MuonSDE
from sdelens.sdes.queried import QueriedSDE
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
    "FullNoiseAdamWSDE",
    "FullNoiseRMSpropWSDE",
    "Instant",
    "Malladi2022SDE",
    "MomentumSDE",
    "MuonSDE",
    "OptimizerSDE",
    "QueriedSDE",
    "RMSpropWSDE",
    "SecondOrderAdamWSDE",
    "SecondOrderRMSpropWSDE",
    "SecondOrderSGDSDE",
    "SignSGDSDE",
    "SignumSDE",
    "build_sde",
    "check_pathwise",
    "is_own",
    "register_sdes",
    "sdes_of",
]

Builder = Callable[[AbstractProblem, NoiseLaw, Any], SDE]
"""A function, or a subclass of `OptimizerSDE`, that makes an SDE from problem, noise and optimizer."""


def _malladi2022(first_order: Callable[..., Any]) -> Callable[..., SDE]:
    """A builder of the SDE of Malladi et al. 2022, which is a modification of a first-order SDE."""
    return lambda problem, noise, optimizer, **options: Malladi2022SDE(
        first_order(problem, noise, optimizer, **options)
    )


def _queried(of_base: Callable[..., Any]) -> Callable[..., SDE]:
    """A builder of the SDE of a wrapped optimizer from that of its base, which is linear in the gradient."""
    return lambda problem, noise, optimizer: QueriedSDE(
        problem, noise, optimizer, of_base(problem, noise, optimizer.base)
    )


Kind = type[Optimizer] | tuple[type[Optimizer], ...]
"""A class of optimizers or, for one that wraps another, its class followed by that of the base."""

_SDES: dict[Kind, dict[str, Callable[..., SDE]]] = {
    SGD: {"sde": SGDSDE, "second-order": SecondOrderSGDSDE},
    SignSGD: {"sde": SignSGDSDE},
    RMSpropW: {
        "sde": RMSpropWSDE,
        "full-noise": FullNoiseRMSpropWSDE,
        "malladi2022": _malladi2022(RMSpropWSDE),
        "second-order": SecondOrderRMSpropWSDE,
    },
    AdamW: {
        "sde": AdamWSDE,
        "full-noise": FullNoiseAdamWSDE,
        "malladi2022": _malladi2022(AdamWSDE),
        "second-order": SecondOrderAdamWSDE,
    },
    Momentum: {"sde": MomentumSDE},
    Signum: {"sde": SignumSDE},
    Lion: {"sde": SignumSDE},
    Adagrad: {"sde": AdagradSDE},
    Muon: {"sde": MuonSDE},
    (SAM, SGD): {"sde": _queried(SGDSDE)},
    (SAM, Momentum): {"sde": _queried(MomentumSDE)},
    (Extragradient, SGD): {"sde": _queried(SGDSDE)},
    (Extragradient, Momentum): {"sde": _queried(MomentumSDE)},
}


def register_sdes(optimizer: Kind, sdes: Mapping[str, Callable[..., SDE]]) -> None:
    """Register SDEs in closed form for an optimizer, by name.

    Args:
        optimizer: class of its specification; for an optimizer that wraps another, also a tuple of its class and that
            of the base, such as ``(sl.SAM, sl.SGD)``.
        sdes: functions or classes that make an SDE from problem, noise and optimizer; the one named ``"sde"`` is the
            default of `simulate`.

    Raises:
        TypeError: if it is not a class of optimizers.
        ValueError: if it already has an SDE of that name.
    """
    kinds = optimizer if isinstance(optimizer, tuple) else (optimizer,)
    if not kinds or not all(isinstance(kind, type) and issubclass(kind, Optimizer) for kind in kinds):
        raise TypeError(f"optimizer: got {optimizer!r}; give the class of an optimizer, for example sl.SGD.")
    held = _SDES.setdefault(optimizer, {})
    twice = sorted(held.keys() & sdes.keys())
    if twice:
        raise ValueError(
            f"sdes: got {twice[0]!r}, which is already the name of an SDE of "
            f"{' on '.join(kind.__name__ for kind in kinds)}; choose another name."
        )
    held.update(sdes)


def sdes_of(optimizer: Optimizer) -> list[str]:
    """Names of the SDEs that exist for an optimizer."""
    return list(_registered(optimizer))


def _registered(optimizer: Optimizer) -> Mapping[str, Callable[..., SDE]]:
    """The builders of the SDEs of an optimizer, by name."""
    own, inner = _SDES.get(type(optimizer), {}), optimizer
    kinds: tuple[type[Optimizer], ...] = (type(optimizer),)
    while isinstance(inner, Wrapped):
        inner = inner.base
        kinds = (*kinds, type(inner))
    return {**own, **_SDES.get(kinds, {})}


def build_sde(
    model: "str | Builder",
    problem: AbstractProblem,
    noise: NoiseLaw,
    optimizer: Optimizer,
    bias_correction: str | None = None,
) -> SDE:
    """Build the SDE with one of the names `sdes_of(optimizer)`, or with a user-defined function or class.

    Args:
        model: the name or the function.
        problem: what is minimised.
        noise: law of the gradient noise, bound to the problem.
        optimizer: its specification.
        bias_correction: only for Adam's SDEs; None is their default.

    Raises:
        ValueError: if a bias correction is given for another SDE.
        TypeError: if the function does not return an SDE.
        TypeError, ValueError: if the drift or diffusion of an SDE that a user defined does not fit its state.
    """
    if bias_correction is not None and not (isinstance(model, str) and isinstance(optimizer, AdamW)):
        whose = optimizer.name if isinstance(model, str) else getattr(model, "__qualname__", model)
        raise ValueError(
            f"bias_correction: got {bias_correction!r}, but {whose} has no bias correction; leave it out (it applies "
            "to the SDEs of adamw)."
        )
    if isinstance(model, str):
        options = {} if bias_correction is None else {"bias_correction": bias_correction}
        registered = _registered(optimizer)[model](problem, noise, optimizer, **options)
        if is_own(registered):
            check_parts(registered, problem.start)
        return registered
    made = model(problem, noise, optimizer)
    if not isinstance(made, SDE):
        raise TypeError(
            f"models: {getattr(model, '__qualname__', model)} returned {type(made).__name__}; it must return an sl.SDE."
        )
    check_parts(made, problem.start)
    return made
