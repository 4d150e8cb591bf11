"""Which PyTorch optimizer keeps a state: by its type, or by all of its fields; the names of moments decide nothing.

ADOPT, LaProp, Yogi, LAMB and many others keep an `exp_avg` and an `exp_avg_sq` that are not, or not used as, Adam's
means of gradients and of their squares. Known are those whose code was read; everything else is "cannot tell".
"""

import inspect
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

from sdelens.diagnosis._why import CORRECTED, NO_FIRST, WHY

__all__ = ["Format", "Unknown", "by_fields", "by_type", "lacking", "unwrapped"]


class Format(NamedTuple):
    """All fields that an optimizer writes.

    Attributes:
        optimizer: its name.
        group: the keys of a parameter group, apart from `params`.
        older: keys that older or newer versions do not write.
        state: the fields of one parameter.
        extra: fields that it writes with some options.
        moments: the fields of m and v.
        decoupled: whether its weight decay is decoupled; None if the group says so, or nothing does.
    """

    optimizer: str
    group: frozenset[str]
    older: frozenset[str] = frozenset()
    state: frozenset[str] = frozenset({"exp_avg", "exp_avg_sq", "step"})
    extra: frozenset[str] = frozenset()
    moments: tuple[str, str] = ("exp_avg", "exp_avg_sq")
    decoupled: bool | None = None


class Unknown(NamedTuple):
    """An optimizer whose moments cannot be used.

    Attributes:
        why: why, if that is known.
        name: its class.
    """

    why: str | None
    name: str

    def said(self, held: Mapping[str, Any]) -> str:
        """The reason for a parameter with these fields."""
        return (
            self.why
            or (lacking(held) if held else None)
            or (
                f"it is not known how {self.name} computes its moments; if they are means of gradients and of their "
                "squares, give them as a dictionary with m, v and step"
            )
        )


def _set(names: str) -> frozenset[str]:
    return frozenset(names.split())


_BASE = "lr betas eps weight_decay"
_FLAGS = "maximize foreach capturable differentiable"
_MEANS = _set("exp_avg exp_avg_sq")
_ADAM = Format(
    "Adam or AdamW",
    _set(f"{_BASE} amsgrad"),
    _set(f"{_FLAGS} fused decoupled_weight_decay"),
    extra=_set("max_exp_avg_sq"),
)
_NADAM = Format(
    "torch.optim.NAdam",
    _set(f"{_BASE} momentum_decay decoupled_weight_decay"),
    _set(_FLAGS),
    state=_MEANS | _set("step mu_product"),
)
_RADAM = Format("torch.optim.RAdam", _set(f"{_BASE} decoupled_weight_decay foreach differentiable"), _set(_FLAGS))
_FUSED = Format("FusedAdam", _set(f"{_BASE} bias_correction"), _set("step"), _MEANS, _set("step master_param"))
_BITSANDBYTES = Format(
    "bitsandbytes' Adam or AdamW",
    _set(f"{_BASE} alpha t_alpha t_beta3"),
    state=_set("state1 state2 step"),
    moments=("state1", "state2"),
    decoupled=True,
)
_CPU_ADAM = Format("DeepSpeedCPUAdam", _set(f"{_BASE} bias_correction amsgrad"))
_BESIDE_MUON = Format("the Adam beside Muon", _set(f"{_BASE} use_muon"), decoupled=True)
_TRANSFORMERS = Format("the AdamW of transformers", _set(f"{_BASE} correct_bias"), decoupled=True)
FORMATS = (_ADAM, _NADAM, _RADAM, _FUSED, _CPU_ADAM, _BITSANDBYTES, _TRANSFORMERS, _BESIDE_MUON)
"""Optimizers whose m and v are means of the gradients and of their squares, from zero, with the group's betas."""
_NEUTRAL = _set(
    "params param_names name group_name initial_lr lr_scale lr_mult wd_mult pre_lr_mult pre_wd_mult min_lr max_lr "
    "swa_lr max_momentum base_momentum is_expert_parallel is_decoupled_lr default_config start_wd end_wd"
)
"""Keys of a parameter group that schedulers and training loops add; the moments do not depend on them."""

_LIBRARIES = {"optimi": f"optimi {CORRECTED}", "heavyball": f"heavyball {CORRECTED}"}
_AFFIX = re.compile(r"^(?:foreach|fused|distributed|paged|pytorch|heavy)|(?:\d+bit|fp8|legacy)$")


def unwrapped(optimizer: Any) -> Any:
    """The optimizer inside the wrappers of accelerate, Lightning and PyTorch's ZeRO."""
    inside = {
        "AcceleratedOptimizer": "optimizer",
        "LightningOptimizer": "_optimizer",
        "ZeroRedundancyOptimizer": "optim",
    }
    for _ in range(4):
        names = [inside[kind.__name__] for kind in type(optimizer).__mro__ if kind.__name__ in inside]
        held = next((getattr(optimizer, name) for name in names if hasattr(optimizer, name)), None)
        if held is None:
            break
        optimizer = held
    return optimizer


def by_type(optimizer: Any) -> Format | Unknown:
    """The format of a live optimizer, or why its moments cannot be used.

    A subclass counts as its parent if it takes over `step`; schedulers and profilers wrap that function, which does not
    change it.
    """
    kind = type(optimizer)
    owner = _owner(kind, "step")
    full = f"{owner.__module__}.{owner.__qualname__}"
    if full.startswith("torch.optim.") and _owner(kind, "_init_group") is owner:
        known = {"Adam": _ADAM, "AdamW": _ADAM, "NAdam": _NADAM, "RAdam": _RADAM}.get(owner.__name__)
        if known is not None:
            decoupled = any(base.__name__ == "AdamW" for base in kind.__mro__)
            own = "torch.optim.AdamW" if decoupled else "torch.optim.Adam"
            return known._replace(optimizer=own if known is _ADAM else known.optimizer, decoupled=decoupled)
    root = full.partition(".")[0]
    name = str(getattr(optimizer, "optimizer_name", "")) if root == "bitsandbytes" else owner.__name__
    known = _elsewhere(optimizer, root, name)
    if known is not None:
        return known
    said = WHY.get(_AFFIX.sub("", name.lower())) or _LIBRARIES.get(root)
    parents = [base.__name__ for base in kind.__mro__ if base.__module__.startswith("torch.optim.")]
    if said is None and parents[:1] not in ([], ["Optimizer"]) and owner.__name__ not in parents:
        said = (
            f"{owner.__name__} has a step of its own in place of that of {parents[0]}, so that its moments may not be "
            "means of gradients and of their squares"
        )
    return Unknown(said, f"{kind.__module__}.{kind.__qualname__}")


def _elsewhere(optimizer: Any, root: str, name: str) -> Format | None:
    """The format of an Adam of another library, by the library and the name of the class that defines its step."""
    decoupled = bool(getattr(optimizer, "adam_w_mode", True))
    if root == "bitsandbytes" and name == "adam":
        return _BITSANDBYTES
    if root in ("apex", "deepspeed") and name == "FusedAdam":
        return _FUSED._replace(optimizer=f"{root}'s FusedAdam", decoupled=decoupled)
    if root == "deepspeed" and name == "DeepSpeedCPUAdam":
        return _CPU_ADAM._replace(decoupled=decoupled)
    if root == "torchao" and name == "_AdamBase":
        decoupled = bool(getattr(optimizer, "is_adamw", False))
        return _ADAM._replace(optimizer=f"torchao's {type(optimizer).__name__}", decoupled=decoupled)
    if root == "muon" and name.endswith("MuonWithAuxAdam"):
        return _BESIDE_MUON
    return None


def _owner(kind: type, name: str) -> type:
    """The class that defines a method, apart from the wrappers that PyTorch puts around it in subclasses."""
    method = inspect.unwrap(getattr(kind, name, _lost))
    inside = [base for base in kind.__mro__ if inspect.unwrap(vars(base).get(name, _lost)) is method]
    return inside[-1] if inside else kind


def _lost() -> None:
    """Stands for a method that a class does not define."""


def by_fields(state: AbstractSet[str], group: Mapping[str, Any]) -> Format | str:
    """The format of a saved state by all of its fields, or why its moments cannot be used.

    Args:
        state: fields of one parameter, with moments.
        group: its parameter group, empty if there is none.
    """
    keys = frozenset(str(key) for key in group) - _NEUTRAL
    if not keys:
        return (
            "the file has no parameter groups, and the names of its moments do not say which optimizer it is; save the "
            "whole optimizer.state_dict(), or give the moments as a dictionary with m, v and step"
        )
    betas = group.get("betas")
    if isinstance(betas, list | tuple) and len(betas) != 2:
        return f"its optimizer has {len(betas)} betas instead of the two of Adam"
    for known in FORMATS:
        steps = {"step"} if "step" in keys and "step" in known.older else frozenset()
        if not known.group <= keys <= known.group | known.older or not known.state - steps <= state:
            continue
        if state <= known.state | known.extra and not group.get("alpha") and not group.get("use_muon"):
            return _named(known, group)
    return _foreign(state, keys)


def _named(known: Format, group: Mapping[str, Any]) -> Format:
    decoupled = group.get("decoupled_weight_decay")
    if known is _ADAM and decoupled is not None:
        return known._replace(optimizer="torch.optim.AdamW" if decoupled is True else "torch.optim.Adam")
    return known


def _foreign(state: AbstractSet[str], keys: frozenset[str]) -> str:
    """What is unusual about fields, beside those of Adam."""
    near = _BITSANDBYTES if "state1" in state else _ADAM
    parts = [
        ("it also has", (state - near.state - near.extra) | (keys - near.group - near.older)),
        ("it lacks", (near.state - state) | (near.group - keys)),
    ]
    said = " and ".join(f"{verb} {', '.join(sorted(names))}" for verb, names in parts if names)
    return (
        f"its fields are not those of a known optimizer (compared with {near.optimizer}, {said}); give the live "
        "optimizer, or, if its moments are means of gradients and of their squares, a dictionary with m, v and step"
    )


def lacking(held: Mapping[str, Any]) -> str | None:
    """Why noise cannot be estimated from fields without both moments; None if both are there."""
    if "qmap1" in held or "absmax1" in held:
        return "its moments are quantised to 8 bits; keep them in bfloat16 or float32"
    if {"exp_avg", "exp_avg_sq"} <= held.keys() or {"state1", "state2"} <= held.keys():
        return None
    listed = ", ".join(str(k) for k in held)
    if {"exp_avg_sq", "square_avg"} & held.keys():
        return NO_FIRST
    return f"it has no first and second moment (only {listed}); the optimizer must be Adam or a variant of it"
