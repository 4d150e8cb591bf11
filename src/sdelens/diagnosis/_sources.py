"""Find Adam's moments in optax states, PyTorch optimizers and state dicts, `sl.State` and dictionaries of arrays.

This module never imports PyTorch, and imports JAX only for states of JAX.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

__all__ = ["SPELLINGS", "Source", "Tensor", "find_state_dicts", "from_state_dict", "in_memory", "leaves_of"]

SPELLINGS = (("exp_avg", "exp_avg_sq", "step"), ("mu", "nu", "count"), ("m", "v", "count"), ("m", "v", "step"))
"""Names of the first moment, the second moment and the number of steps: in PyTorch, optax and sdelens."""
_DEEPEST = 8
_OTHER_SQUARES = {
    "ScaleByBeliefState": "AdaBelief's second moment is that of g - m, not of g",
    "ScaleByNovogradState": "NovoGrad keeps one second moment per tensor",
}
"""Optax states with `mu` and `nu` in which `nu` is not a mean of squared gradients."""


@dataclass(frozen=True)
class Tensor:
    """The moments of one tensor, or the reason why there are none.

    Attributes:
        name: name of the parameter.
        group: name of the optimizer's parameter group, or label of a part of the optimizer.
        m: first moment, not corrected for bias.
        v: second moment.
        steps: number of averaged gradients, infinite if no bias is left.
        b1: β₁, None if the state does not contain it.
        b2: β₂, likewise.
        reason: why the noise cannot be estimated; None if it can.
        remark: a peculiarity to report.
        x: the parameter, if the state has it.
        weight_decay: decoupled weight decay θ that the learning rate multiplies, None if the state does not contain it.
    """

    name: str
    group: str = ""
    m: Any = None
    v: Any = None
    steps: float = np.inf
    b1: float | None = None
    b2: float | None = None
    reason: str | None = None
    remark: str | None = None
    x: Any = None
    weight_decay: float | None = None


Source = Iterator[Tensor]

_NO_FIRST = (
    "it has a mean of squared gradients but no mean of gradients (RMSprop, or Adam with b1 = 0), so signal and "
    "noise cannot be separated; measure them from gradients instead"
)


def in_memory(state: Any, key: str | None = None) -> Source:
    """The tensors of a state in memory.

    Raises:
        TypeError: if it is of no supported kind.
        ValueError: if there is no optimizer state in it, or more than one and no `key`.
    """
    if hasattr(state, "param_groups") and hasattr(state, "state"):
        return _live(state)
    if isinstance(state, Mapping):
        if _is_moments(state):
            return _arrays(state, "")
        return from_state_dict(state, key, "state")
    if isinstance(state, tuple | list) or hasattr(state, "opt_state") or hasattr(state, "inner_state"):
        found = list(_walk(state, "", {}, 0))
        if not found:
            raise ValueError(
                "state: it contains no moments (mu and nu, m and v, or exp_avg and exp_avg_sq); give the state of "
                "an Adam optimizer as tx.init or tx.update returns it, a PyTorch optimizer, or the path of a "
                "checkpoint."
            )
        return iter(found)
    raise TypeError(
        f"state: got {type(state).__name__}; give an optax state, a PyTorch optimizer or its state_dict(), the path of "
        "a .pt checkpoint, an sl.State, or a dictionary with m, v and step."
    )


def _is_moments(state: Mapping[Any, Any]) -> bool:
    return any(second in state for _, second, _ in SPELLINGS) or "square_avg" in state


# PyTorch


def _live(optimizer: Any) -> Source:
    """A live PyTorch optimizer, parameter group by parameter group."""
    number = 0
    for index, group in enumerate(optimizer.param_groups):
        names = group.get("param_names")
        for at, parameter in enumerate(group["params"]):
            name = str(names[at]) if names else f"parameter {number}"
            number += 1
            held = optimizer.state[parameter] if parameter in optimizer.state else None  # noqa: SIM401 - a defaultdict
            decoupled = group.get("decoupled_weight_decay", "AdamW" in type(optimizer).__name__)
            found = _torch_tensor(name, _label(group, index), held, group)
            yield replace(found, x=parameter, weight_decay=_decoupled(group, decoupled))


def from_state_dict(
    found: Any, key: str | None, where: str, common: Sequence[Any] = (), partial: bool = False
) -> Source:
    """The tensors of an optimizer's `state_dict()`, which may lie at any depth of `found`.

    Args:
        found: the dictionary.
        key: key of the one to use, with dots between levels, if there are several.
        where: name of the source in error messages.
        common: parameter groups from another file, for parameters that are in no group here.
        partial: whether other files contain the rest, so that parameters without state are skipped.

    Raises:
        ValueError: if there is none, or several.
    """
    path, chosen = _choose(find_state_dicts(found), key, where, found)
    model = _model(found, chosen, path)
    owner: dict[Any, tuple[Any, int, str | None]] = {}
    groups = [*enumerate(common), *enumerate(chosen.get("param_groups") or [])]  # the last one with a parameter counts
    for index, group in groups:
        listed = group.get("param_names")
        for at, parameter in enumerate(group.get("params", ())):
            owner[parameter] = (group, index, str(listed[at]) if listed else None)
    held = chosen["state"]
    order = [*owner, *(parameter for parameter in held if parameter not in owner)]
    for parameter in order:
        group, index, listed = owner.get(parameter, (groups[0][1] if len(groups) == 1 else {}, 0, None))
        if partial and parameter not in held:
            continue
        plain = parameter if isinstance(parameter, str) else f"parameter {parameter}"
        beside, x = model.get(parameter, (plain, None))
        found_here = _torch_tensor(listed or beside, _label(group, index), held.get(parameter), group)
        yield replace(found_here, x=x, weight_decay=_decoupled(group, group.get("decoupled_weight_decay")))


def _decoupled(group: Mapping[str, Any], decoupled: bool | None) -> float | None:
    """Decoupled weight decay; 0 if it is part of the gradient, None if that is not known."""
    decay = float(group.get("weight_decay", 0.0))
    return None if decoupled is None and decay > 0 else decay if decoupled else 0.0


def _label(group: Mapping[str, Any], index: int) -> str:
    return str(group.get("name", index))


def _torch_tensor(name: str, label: str, held: Any, group: Mapping[str, Any]) -> Tensor:
    if not held:
        return Tensor(name, label, reason="it has no state yet (no step, or no gradient)")
    if "state1" in held:
        return Tensor(name, label, reason="its moments are quantised to 8 bits; keep them in bfloat16 or float32")
    if "exp_avg" not in held or "exp_avg_sq" not in held:
        return Tensor(name, label, reason=_lacking(held))
    if "step" not in held and "step" not in group:
        return Tensor(name, label, reason="its number of steps is missing, so the bias cannot be corrected")
    betas = group.get("betas") or (None, None)
    remark = None
    if group.get("amsgrad") or "max_exp_avg_sq" in held:
        remark = (
            "AMSGrad: signal and noise are computed from exp_avg_sq, but the optimizer divides by its maximum so "
            "far, which does not decrease at a larger batch size: no scaling rule holds until max_exp_avg_sq is "
            "reset."
        )
    return Tensor(
        name,
        label,
        held["exp_avg"],
        held["exp_avg_sq"],
        float(held["step"] if "step" in held else group["step"]),
        None if betas[0] is None else float(betas[0]),
        None if betas[1] is None else float(betas[1]),
        remark=remark,
    )


def _lacking(held: Mapping[str, Any]) -> str:
    """Why noise cannot be estimated from a state that is not Adam's."""
    listed = ", ".join(str(k) for k in held)
    if "exp_avg_sq" in held or "square_avg" in held:
        return _NO_FIRST
    return f"it has no first and second moment (only {listed}); the optimizer must be Adam or a variant of it"


def find_state_dicts(found: Any, path: str = "", depth: int = 0) -> dict[str, Mapping[str, Any]]:
    """Every optimizer state dict in nested dictionaries and lists, by its path with dots."""
    if depth > _DEEPEST:
        return {}
    if isinstance(found, Mapping):
        held = found.get("state")
        groups = isinstance(found.get("param_groups"), list | tuple)
        if isinstance(held, Mapping) and (
            groups or any(isinstance(h, Mapping) and _is_moments(h) for h in held.values())
        ):
            return {path: found}
        items = list(found.items())
    elif isinstance(found, list | tuple):
        items = list(enumerate(found))
    else:
        return {}
    inside: dict[str, Mapping[str, Any]] = {}
    for name, value in items:
        if isinstance(value, Mapping | list | tuple):
            inside |= find_state_dicts(value, f"{path}.{name}" if path else str(name), depth + 1)
    return inside


def _choose(
    known: dict[str, Mapping[str, Any]], key: str | None, where: str, found: Any
) -> tuple[str, Mapping[str, Any]]:
    if key is not None:
        inside = {path: value for path, value in known.items() if path == key or path.startswith(f"{key}.")}
        if not inside:
            listed = ", ".join(repr(k) for k in known) or "none"
            raise ValueError(
                f"key: got {key!r}, but {where} has no optimizer state there; its optimizer states are at: {listed}."
            )
        known = inside
    if len(known) > 1:
        listed = ", ".join(repr(k) for k in known)
        raise ValueError(f"key: got {key!r}, but {where} contains {len(known)} optimizers; give one of {listed}.")
    if not known:
        listed = ", ".join(str(k) for k in list(found)[:8]) if isinstance(found, Mapping) else type(found).__name__
        raise ValueError(
            f"{where}: it contains no optimizer state (its content: {listed}); save optimizer.state_dict(), alone or "
            "in a dictionary."
        )
    return next(iter(known.items()))


def _model(found: Any, chosen: Mapping[str, Any], path: str) -> dict[Any, tuple[str, Any]]:
    """Name and value of numbered parameters, from the model's state dict next to it, if all sizes agree in order."""
    if not isinstance(found, Mapping) or path == "":
        return {}
    order = [p for group in chosen.get("param_groups") or [] for p in group.get("params", ())]
    sizes = [_shape(chosen["state"].get(p)) for p in order]
    for key, model in found.items():
        if key == path.split(".", maxsplit=1)[0] or not isinstance(model, Mapping) or not model:
            continue
        buffers = ("running_mean", "running_var", "num_batches_tracked")
        entries = {str(k): v for k, v in model.items() if hasattr(v, "shape") and not str(k).endswith(buffers)}
        shapes = [tuple(v.shape) for v in entries.values()]
        if len(entries) == len(order) and all(a in (None, b) for a, b in zip(sizes, shapes, strict=True)):
            return dict(zip(order, entries.items(), strict=True))
    return {}


def _shape(held: Any) -> tuple[int, ...] | None:
    moment = held.get("exp_avg") if isinstance(held, Mapping) else None
    return None if moment is None else tuple(moment.shape)


# JAX, and plain arrays


def _walk(node: Any, label: str, numbers: Mapping[str, Any], depth: int) -> Source:
    """Every Adam state in a tree of optax states; `numbers` come from an enclosing `inject_hyperparams`."""
    if depth > 4 * _DEEPEST:
        return
    names = getattr(node, "_fields", ())
    if hasattr(node, "hyperparams"):
        numbers = {**numbers, **node.hyperparams}
    kind = type(node).__name__
    if kind in _OTHER_SQUARES:
        yield Tensor(label or kind, label, reason=_OTHER_SQUARES[kind])
        return
    for first, second, count in SPELLINGS:
        if second in names and (first in names or count in names or kind.startswith("ScaleByR")):
            held = {name: getattr(node, name) for name in names}
            beta = {b: numbers[b] for b in ("b1", "b2") if b in numbers}
            remark = None
            if "nu_max" in names:
                remark = (
                    "AMSGrad: signal and noise are computed from nu, but the optimizer divides by its maximum so "
                    "far, which does not decrease at a larger batch size: no scaling rule holds until nu_max is "
                    "reset."
                )
            yield from _arrays({**held, **beta}, label, remark)
            return
    if kind == "ScaleByRmsState":
        yield Tensor(label or kind, label, reason=_NO_FIRST)
        return
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _walk(value, f"{label}{'.' if label else ''}{key}", numbers, depth + 1)
        return
    parts = (
        list(node) if isinstance(node, tuple | list) else [getattr(node, a, ()) for a in ("opt_state", "inner_state")]
    )
    for part in parts:
        if isinstance(part, tuple | list | Mapping) or hasattr(part, "opt_state") or hasattr(part, "inner_state"):
            yield from _walk(part, label, numbers, depth + 1)


def _arrays(held: Mapping[str, Any], label: str, remark: str | None = None) -> Source:
    """The tensors of a dictionary of first moment, second moment (arrays or trees of arrays) and number of steps."""
    spelling = next((s for s in SPELLINGS if s[1] in held and held.get(s[1]) is not None), None)
    if spelling is None or held.get(spelling[0]) is None:
        what = _NO_FIRST if spelling is not None or "square_avg" in held else "it has no second moment"
        yield Tensor(label or "state", label, reason=what)
        return
    named = next((n for n in ("count", "step") if held.get(n) is not None), "")
    steps = held.get(named)
    if steps is None and spelling[0] != "m":
        raise ValueError(f"state: it has {spelling[1]!r} but no number of steps; add it as {spelling[2]!r}.")
    count = np.inf if steps is None else _scalar(named, steps)
    b1, b2 = (None if held.get(b) is None else _scalar(b, held[b]) for b in ("b1", "b2"))
    firsts, seconds = leaves_of(held[spelling[0]]), leaves_of(held[spelling[1]])
    if [name for name, _ in firsts] != [name for name, _ in seconds]:
        raise ValueError(
            f"state: {spelling[0]} and {spelling[1]} have different structures; give the moments of one optimizer."
        )
    known = dict(leaves_of(held["x"])) if held.get("x") is not None else {}
    for (name, m), (_, v) in zip(firsts, seconds, strict=True):
        full = f"{label}: {name}" if label and name else name or label or "state"
        yield Tensor(full, label, m, v, count, b1, b2, remark=remark, x=known.get(name))


def _scalar(name: str, value: Any) -> float:
    array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    if array.size != 1:
        raise ValueError(
            f"state: its {name} has shape {array.shape}; give the state of one device, without an axis for replicas."
        )
    try:
        number = float(array.reshape(()))
    except (TypeError, ValueError):
        number = float("nan")
    if np.isnan(number):
        raise ValueError(f"state: its {name} is {value!r}; give a number.")
    return number


def leaves_of(tree: Any) -> Sequence[tuple[str, Any]]:
    """Leaves with their paths; arrays of NumPy and PyTorch need no JAX."""
    if hasattr(tree, "shape"):
        return [("", tree)]
    if isinstance(tree, Mapping) and all(hasattr(leaf, "shape") for leaf in tree.values()):
        return [(str(name), leaf) for name, leaf in tree.items()]
    if (
        isinstance(tree, list | tuple)
        and not hasattr(tree, "_fields")
        and all(isinstance(x, float | int) for x in tree)
    ):
        return [("", np.asarray(tree, dtype=float))]
    import jax

    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in paths if hasattr(leaf, "shape")
    ]
