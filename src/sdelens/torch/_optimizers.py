"""The optimizers of PyTorch whose state can be rescaled: which they are, and what their parameter groups hold."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = [
    "KNOWN",
    "Known",
    "known_by_fields",
    "known_by_type",
    "plain_group",
    "plain_number",
    "positive_rate",
    "unwrapped",
]

_WRAPPERS: Final = ("accelerate", "lightning", "pytorch_lightning", "lightning_fabric")
"""Libraries whose wrappers of optimizers and schedulers leave their state as it is."""
_DEEPEST: Final = 4
_SWITCHES: Final = frozenset({"maximize", "foreach", "capturable", "differentiable", "fused", "caution"})
_ADDED: Final = frozenset(
    {"params", "param_names", "name", "initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "lr_scale"}
)
"""What schedulers and other libraries add to a parameter group of any optimizer."""


@dataclass(frozen=True)
class Known:
    """An optimizer whose state can be rescaled.

    Attributes:
        name: name of its class.
        reads: the optimizer by whose rules it is scaled, a name for `sdelens.scaling.hyperparameters.read_dict`.
        fields: what every parameter group has.
        parts: what the state of a parameter that has been updated has.
        more: further fields of a group in some versions.
        extra: further parts of the state with some options.
        decay: how weight decay acts, if neither `reads` nor the group states it.
        counts: whether the step count is a Python number, not a tensor.
        own: numbers of a group that are not rescaled, or are rescaled apart, by `sdelens.torch`.
        rates: further learning rates in a group.
        remark: what is only approximate.
    """

    name: str
    reads: str
    fields: frozenset[str]
    parts: tuple[str, ...]
    more: frozenset[str] = frozenset()
    extra: tuple[str, ...] = ()
    decay: str | None = None
    counts: bool = False
    own: tuple[str, ...] = ()
    rates: tuple[str, ...] = ()
    remark: str | None = None

    def has_fields(self, group: Mapping[str, Any]) -> bool:
        """Whether a parameter group has all fields of this optimizer and no others."""
        fields = set(group) - _ADDED
        return self.fields <= fields <= self.fields | self.more | _SWITCHES

    def has_parts(self, parts: Mapping[str, Any]) -> bool:
        """Whether the state of a parameter is one of this optimizer's."""
        return not parts or set(self.parts) <= set(parts) <= {*self.parts, *self.extra}


_ADAM = frozenset({"lr", "betas", "eps", "weight_decay"})
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_DECOUPLED = frozenset({"decoupled_weight_decay"})
_LISTED: Final = (
    Known("AdamW", "adamw", _ADAM | {"amsgrad"}, _MOMENTS, _DECOUPLED, ("max_exp_avg_sq",)),
    Known("Adam", "adam", _ADAM | {"amsgrad"}, _MOMENTS, _DECOUPLED, ("max_exp_avg_sq",)),
    Known(
        "NAdam",
        "adam",
        _ADAM | {"momentum_decay"},
        (*_MOMENTS, "mu_product"),
        _DECOUPLED,
        own=("momentum_decay",),
        remark="NAdam is rescaled by the rule of Adam. The weight of its momentum grows with the step count; "
        "momentum_decay and mu_product are converted so that it grows with the number of samples, exactly for long "
        "memories only, and its look-ahead spans one step, which is δ times as many samples.",
    ),
    Known(
        "RAdam",
        "adam",
        _ADAM,
        _MOMENTS,
        _DECOUPLED,
        remark="RAdam is rescaled by the rule of Adam. Its rectification depends on b2 and the step count; after the "
        "conversion it is that of about the same number of samples, exactly for long memories only.",
    ),
    Known(
        "RMSprop",
        "rmsprop",
        frozenset({"lr", "momentum", "alpha", "eps", "centered", "weight_decay"}),
        ("step", "square_avg"),
        extra=("momentum_buffer", "grad_avg"),
    ),
    Known(
        "SGD",
        "sgd",
        frozenset({"lr", "momentum", "dampening", "weight_decay", "nesterov"}),
        (),
        extra=("momentum_buffer",),
    ),
    Known(
        "Adagrad",
        "adagrad",
        frozenset({"lr", "lr_decay", "eps", "weight_decay", "initial_accumulator_value"}),
        ("step", "sum"),
        decay="l2",
        own=("lr_decay",),
    ),
    Known(
        "Lion",
        "lion",
        frozenset({"lr", "betas", "weight_decay"}),
        ("exp_avg",),
        frozenset({"corrected_weight_decay", "max_lr_snapshot"}),
        rates=("max_lr_snapshot",),
    ),
    Known(
        "AdamP",
        "adamw",
        _ADAM | {"delta", "wd_ratio", "nesterov"},
        _MOMENTS,
        counts=True,
        own=("delta", "wd_ratio"),
        remark="AdamP is rescaled by the rule of AdamW. Its threshold delta is compared with the cosine between "
        "gradient and parameters, which depends on the batch size where noise dominates; delta is not changed.",
    ),
)
KNOWN: Final = {known.name: known for known in _LISTED}
"""The optimizers by the name of their class."""


def unwrapped(thing: Any, kind: str) -> tuple[Any, list[str]]:
    """What wrappers of accelerate or Lightning hold, and a sentence for each of them.

    Args:
        thing: the optimizer or scheduler.
        kind: ``"optimizer"`` or ``"scheduler"``.
    """
    said = []
    for _ in range(_DEEPEST):
        if not any(base.__module__.partition(".")[0] in _WRAPPERS for base in type(thing).__mro__):
            break  # wrappers of other libraries, such as Lookahead, change what a step is
        held = getattr(thing, "__dict__", {})
        found = next((held[name] for name in (kind, f"_{kind}") if held.get(name) is not None), None)
        if found is None:
            break
        said.append(f"{kind}: the wrapper {type(thing).__name__} was removed; {type(found).__name__} in it is changed.")
        thing = found
    return thing, said


def known_by_type(optimizer: Any) -> Known:
    """What a live optimizer is.

    Raises:
        TypeError: if it is not known, or has its own `step`; the message names it.
    """
    import torch

    kind, own = type(optimizer), ""
    for known in _LISTED:
        base = getattr(torch.optim, known.name, None)
        if base is not None and isinstance(optimizer, base):
            if inspect.unwrap(kind.step) is inspect.unwrap(base.step):
                return known
            own = f", which has its own step() and may use the state of {known.name} in another way"
            break
        has_fields = all(map(known.has_fields, getattr(optimizer, "param_groups", [{}])))
        if base is None and kind.__name__ == known.name and has_fields:
            return known
    raise TypeError(
        f"optimizer: got {kind.__module__}.{kind.__name__}{own}; give one of torch.optim's "
        f"{', '.join(n for n in KNOWN if hasattr(torch.optim, n))}, a subclass with the same step(), Lion "
        "(lion_pytorch, timm) or AdamP, or give its hyperparameters as a dict to sdelens.scaling.rescale."
    )


def known_by_fields(groups: Sequence[Mapping[str, Any]], states: Sequence[Mapping[str, Any]]) -> Known:
    """What optimizer a state dict belongs to, by a full match of the fields of its groups and of its states.

    Raises:
        ValueError: if it is none, or Adam or AdamW.
    """
    listed = [k for k in _LISTED if all(map(k.has_fields, groups)) and all(map(k.has_parts, states))]
    if {known.name for known in listed} == {"AdamW", "Adam"}:
        if all("decoupled_weight_decay" in group or group["weight_decay"] == 0 for group in groups):
            return KNOWN["Adam"]  # the group states its decay, or there is none
        raise ValueError(
            "optimizer: this checkpoint is of Adam or of AdamW, and does not state which, but their weight decays are "
            "scaled differently; give optimizer='AdamW' or optimizer='Adam'."
        )
    if len(listed) == 1:
        return listed[0]
    fields = sorted(set(groups[0]) - _ADDED) if groups else []
    parts = sorted({name for state in states for name in state})
    raise ValueError(
        f"optimizer: cannot tell which optimizer has groups with {', '.join(fields)} and states with "
        f"{', '.join(parts) or 'nothing'}; if it is one of {', '.join(KNOWN)}, name it as optimizer=."
    )


def plain_number(value: Any) -> Any:
    """A one-element tensor as a number; it may be a learning rate (capturable) or one of the betas."""
    if isinstance(value, tuple | list):
        return type(value)(plain_number(v) for v in value)
    if hasattr(value, "numel") and hasattr(value, "item") and value.numel() == 1:
        number = float(value.detach().item())
        # The shortest decimal of float32: 0.9 instead of its expansion.
        return number if value.element_size() == 8 else float(str(value.detach().reshape(()).float().cpu().numpy()))
    return value


def plain_group(group: Mapping[str, Any], known: Known, cycled: bool) -> dict[str, Any]:
    """The numbers of a group for which there is a rule.

    Args:
        group: a parameter group.
        known: what optimizer it is of.
        cycled: whether a scheduler that is rescaled too changes the momentum of this group.
    """
    left_out = {"params", "param_names", "name", *known.own, *known.rates}
    left_out |= {"max_momentum", "base_momentum"} if cycled else set()
    plain = {key: plain_number(value) for key, value in group.items() if key not in left_out}
    return {"optimizer": known.reads, **plain}


def positive_rate(group: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> float:
    """A positive learning rate that stands for one of 0: the scheduler's, or that of another group."""
    for source in (group, *others):
        for key in ("initial_lr", "max_lr", "lr"):
            value = plain_number(source.get(key))
            if isinstance(value, int | float) and 0 < value < math.inf:
                return float(value)
    return 1.0
