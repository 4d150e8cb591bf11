"""Moments in optax states: named tuples, or dictionaries that were restored without their types."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sdelens.diagnosis._tensor import AMSGRAD, Source, Tensor, as_real, scalar, shape_of
from sdelens.diagnosis._why import NO_FIRST, WHY

__all__ = ["STATELESS", "from_arrays", "leaves_of", "walk"]

SPELLINGS = (("exp_avg", "exp_avg_sq", "step"), ("mu", "nu", "count"), ("m", "v", "count"), ("m", "v", "step"))
"""Names of the first moment, the second moment and the number of steps: in PyTorch, optax and sdelens."""
_DEEPEST = 32
_LENGTH = "length of the chain"
_SHARED = (
    "optax keeps the states of adam, adamw, nadam and radam in the same type as those of lamb, whose steps are divided "
    "by their norm, and of yogi, adamax and adopt, whose moments are others; this one is read as that of Adam."
)
_OTHERS = {
    "ScaleByBeliefState": WHY["adabelief"],
    "ScaleByNovogradState": WHY["novograd"],
    "ScaleByRmsState": NO_FIRST,
    "ScaleByRmsWithCountState": NO_FIRST,
    "ScaleByAdaDeltaState": NO_FIRST,
    "ScaleByRStdDevState": WHY["centred"],
    "ScaleByRStdDevWithCountState": WHY["centred"],
    "ScaleByLionState": WHY["lion"],
    "MuonState": WHY["muon"],
    "TraceState": WHY["sgd"],
    "ScaleByAdanState": WHY["adan"],
    "ScaleByAdemamixState": WHY["ademamix"],
    "ScaleBySimplifiedAdEMAMixState": WHY["ademamix"],
    "FactoredState": WHY["adafactor"],
    "ScaleByRssState": WHY["adagrad"],
    "ScheduleFreeState": WHY["sgdschedulefree"],
    "ProdigyState": WHY["prodigy"],
    "DAdaptAdamWState": WHY["dadaptadam"],
    "GaLoreState": WHY["galore"],
    "MomoAdamState": WHY["momo"],
}
"""Optax states that are not those of Adam, and why."""
_RESTORED = {
    frozenset({"count", "mu"}): WHY["lion"],
    frozenset({"count", "mu", "ns_coeffs"}): _OTHERS["MuonState"],
    frozenset({"trace"}): _OTHERS["TraceState"],
    frozenset({"nu"}): NO_FIRST,
    frozenset({"count", "nu"}): NO_FIRST,
}
"""The same for fields of states that were restored without their types."""
STATELESS = "it keeps no means of gradients (SGD without momentum, or frozen parameters)"
_NO_LABELS = (
    "opt_state",
    "inner_state",
    "inner_states",
    "inner_opt_state",
    "base_optimizer_state",
    "optimizer",
    "state",
)
"""Keys that are not labels of parts of an optimizer."""


def walk(state: Any) -> Source:
    """Every tensor of an optax state, at any depth; tensors without Adam's moments come last, each once.

    An optimizer has several accumulators of the same parameters (accumulated gradients, an average of updates): what
    Adam covers under the same label is not named again.
    """
    found = list(_nodes(state, "", {}, 0))
    covered = {(t.group, t.name) for t in found if t.reason is None}
    yield from (t for t in found if t.reason is None)
    for tensor in found:
        if tensor.reason is not None and (tensor.group, tensor.name) not in covered:
            covered.add((tensor.group, tensor.name))
            yield tensor


def _nodes(node: Any, label: str, numbers: Mapping[str, Any], depth: int) -> Source:
    """Every state below a node; `numbers` come from an enclosing `inject_hyperparams`."""
    if depth > _DEEPEST or node is None:
        return
    kind = type(node).__name__
    fields = _fields(node)
    injected = fields.get("hyperparams")
    if isinstance(injected, Mapping):
        chain = fields.get("inner_state")
        numbers = {**numbers, **injected, _LENGTH: len(chain) if isinstance(chain, Mapping | tuple | list) else 1}
    if _is_adam(kind, node, fields):
        yield from _adam(fields, label, numbers)
    elif hasattr(node, "_fields"):
        yield from _named_tuple(kind, fields, label, numbers, depth)
    elif isinstance(node, Mapping):
        why = _RESTORED.get(frozenset(map(str, fields)))
        if why is not None and not any(name.isdigit() for name in fields):
            yield from _left_out(fields, label, why)
        else:
            yield from _branches(fields, label, numbers, depth)
    elif isinstance(node, tuple | list):
        for part in node:
            yield from _nodes(part, label, numbers, depth + 1)
    elif fields:
        yield from _branches(fields, label, numbers, depth)


def _fields(node: Any) -> dict[str, Any]:
    """The parts of a node by name: of a named tuple, of a dictionary, or the state of a train state or optimizer."""
    if hasattr(node, "_fields"):
        return {name: getattr(node, name) for name in node._fields}
    if isinstance(node, Mapping):
        return {str(key): value for key, value in node.items()}
    return {name: getattr(node, name) for name in ("opt_state", "inner_state") if hasattr(node, name)}


def _branches(fields: Mapping[str, Any], label: str, numbers: Mapping[str, Any], depth: int) -> Source:
    for key, value in fields.items():
        if key == "inner_states" and isinstance(value, Mapping):
            yield from _parts(value, label, numbers, depth)
        elif isinstance(value, Mapping | tuple | list) or hasattr(value, "opt_state") or hasattr(value, "inner_state"):
            own = "" if key.isdigit() or key in _NO_LABELS else key
            yield from _nodes(value, ".".join(part for part in (label, own) if part), numbers, depth + 1)


def _parts(parts: Mapping[Any, Any], label: str, numbers: Mapping[str, Any], depth: int) -> Source:
    """The labelled parts of an optimizer (`optax.partition`); one without any accumulator is named, too."""
    for key, value in parts.items():
        own = ".".join(part for part in (label, str(key)) if part)
        found = list(_nodes(value, own, numbers, depth + 1))
        yield from found or [Tensor(own, own, reason=STATELESS)]


def _named_tuple(kind: str, fields: Mapping[str, Any], label: str, numbers: Mapping[str, Any], depth: int) -> Source:
    """A state of optax that is not Adam's: its inner states, and its own accumulators."""
    why = _OTHERS.get(kind)
    for name, value in fields.items():
        if name == "inner_states" and isinstance(value, Mapping):
            yield from _parts(value, label, numbers, depth)
        elif _holds_states(value):
            yield from _nodes(value, label, numbers, depth + 1)
    if kind not in ("MaskedNode", "EmptyState"):
        plain = {name: value for name, value in fields.items() if name != "hyperparams" and not _holds_states(value)}
        yield from _left_out(plain, label, why or f"{kind} is not the state of an Adam optimizer")


def _holds_states(value: Any) -> bool:
    """Whether named tuples or optimizers are inside, which parameters are not."""
    if hasattr(value, "_fields") or hasattr(value, "opt_state") or hasattr(value, "inner_state"):
        return type(value).__name__ != "MaskedNode"
    if isinstance(value, Mapping):
        return any(_holds_states(part) for part in value.values())
    return isinstance(value, tuple | list) and any(_holds_states(part) for part in value)


def _left_out(fields: Mapping[str, Any], label: str, why: str) -> Source:
    """The tensors of the accumulators of a state that is not Adam's; numbers and counters are none."""
    values = [value for value in fields.values() if value is not None and not isinstance(value, float | int | str)]
    leaves = [(name, leaf) for value in values for name, leaf in leaves_of(value)]
    named = [(name, leaf) for name, leaf in leaves if name]
    for name, leaf in named or [("", leaf) for _, leaf in leaves if leaf.ndim][:1]:  # a tree, or a single array
        yield Tensor(_full(label, name), label, reason=why, shape=shape_of(leaf))


def _full(label: str, name: str) -> str:
    return f"{label}: {name}" if label and name else name or label or "state"


def _is_adam(kind: str, node: Any, fields: Mapping[str, Any]) -> bool:
    names = set(fields)
    if hasattr(node, "_fields"):
        ours = kind == "State" and {"x", "m", "v", "count"} <= names
        return ours or kind in ("ScaleByAdamState", "ScaleByAmsgradState")
    return names in ({"count", "mu", "nu"}, {"count", "mu", "nu", "nu_max"})


def _adam(fields: Mapping[str, Any], label: str, numbers: Mapping[str, Any]) -> Source:
    """A state with Adam's fields; injected hyperparameters tell adamax, yogi, adopt and lamb from it."""
    betas = {b: numbers[b] for b in ("b1", "b2") if b in numbers}
    others = {"b1", "b2", "eps"} <= numbers.keys() and "eps_root" not in numbers
    if {"eps_root", "weight_decay"} <= numbers.keys() and numbers[_LENGTH] == 4:  # one more than that of adamw
        yield from _left_out({"mu": fields["mu"]}, label, WHY["lamb"])
        return
    if others and "mu" in fields:
        listed = ", ".join(str(name) for name in numbers if name != _LENGTH)
        why = (
            f"its injected hyperparameters ({listed}) are those of adamax, yogi or adopt, whose moments are not "
            "those of Adam: eps_root is not among them"
        )
        yield from _left_out({"mu": fields["mu"]}, label, why)
        return
    remark = None
    if "nu_max" in fields:
        remark = AMSGRAD.format(v="nu", top="nu_max")
    elif "mu" in fields and not ("eps_root" in numbers and ("weight_decay" not in numbers or numbers[_LENGTH] == 3)):
        remark = _SHARED  # also if empty states of the chain were not kept
    yield from from_arrays({**fields, **betas}, label, remark)


def from_arrays(held: Mapping[str, Any], label: str, remark: str | None = None) -> Source:
    """The tensors of a dictionary of first moment, second moment (arrays or trees of arrays) and number of steps.

    Raises:
        ValueError: if the number of steps is missing, the moments have different structures, or there are other fields.
    """
    spelling = next((s for s in SPELLINGS if s[1] in held and held.get(s[1]) is not None), None)
    if spelling is None or held.get(spelling[0]) is None:
        what = NO_FIRST if spelling is not None or "square_avg" in held else "it has no second moment"
        yield Tensor(label or "state", label, reason=what)
        return
    named = next((n for n in ("count", "step") if held.get(n) is not None), "")
    steps = held.get(named)
    if steps is None and spelling[0] != "m":
        raise ValueError(f"state: it has {spelling[1]!r} but no number of steps; add it as {spelling[2]!r}.")
    count = np.inf if steps is None else scalar(named, steps)
    b1, b2 = (None if held.get(b) is None else scalar(b, held[b]) for b in ("b1", "b2"))
    firsts, seconds = leaves_of(held[spelling[0]]), leaves_of(held[spelling[1]])
    if [name for name, _ in firsts] != [name for name, _ in seconds]:
        raise ValueError(
            f"state: {spelling[0]} and {spelling[1]} have different structures; give the moments of one optimizer."
        )
    known = dict(leaves_of(held["x"])) if held.get("x") is not None else {}
    for (name, m), (_, v) in zip(firsts, seconds, strict=True):
        x = known.get(name)
        first, second = as_real(m, v)
        x = None if x is None else as_real(x, x)[0]
        full = _full(label, name)
        yield Tensor(full, label, first, second, count, b1, b2, remark=remark, x=x, shape=shape_of(m))


def leaves_of(tree: Any) -> list[tuple[str, Any]]:
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
