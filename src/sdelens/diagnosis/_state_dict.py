"""Moments in PyTorch optimizers and in their state dicts, nested or flattened, with the names of their parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sdelens.diagnosis._identity import Format, Unknown, by_fields, by_type, lacking, unwrapped
from sdelens.diagnosis._names import Names, models_in
from sdelens.diagnosis._tensor import AMSGRAD, Source, Tensor, as_real, scalar, shape_of
from sdelens.diagnosis._why import NO_STATE

__all__ = ["find_state_dicts", "from_state_dict", "live"]

_DEEPEST = 8
_MOMENTS = ("exp_avg_sq", "square_avg", "state1", "momentum_buffer", "exp_avg")
_QUANTISED = "__bnb_optimizer_quant_state__"
_SHAPED = ("exp_avg", "momentum_buffer", "state2", "state1", "exp_avg_sq", "square_avg", "exp_inf")


def live(optimizer: Any) -> Source:
    """A live PyTorch optimizer, parameter group by parameter group."""
    number, optimizer = 0, unwrapped(optimizer)
    known = by_type(optimizer)
    for index, group in enumerate(optimizer.param_groups):
        names = group.get("param_names")
        for at, parameter in enumerate(group["params"]):
            name = str(names[at]) if names else f"parameter {number}"
            number += 1
            held = optimizer.state[parameter] if parameter in optimizer.state else None  # noqa: SIM401 - a defaultdict
            found = _tensor(name, _label(group, index), held, group, known)
            x = as_real(parameter, parameter)[0]
            yield replace(found, x=x, shape=shape_of(parameter))


def from_state_dict(
    found: Any,
    key: str | None,
    where: str,
    common: Sequence[Any] = (),
    partial: bool = False,
    names: Names | None = None,
) -> Source:
    """The tensors of an optimizer's `state_dict()`, which may lie at any depth of `found`.

    Args:
        found: the dictionary.
        key: key of the one to use, with dots between levels, if there are several.
        where: name of the source in error messages.
        common: parameter groups from another file, for parameters that are in no group here.
        partial: whether other files contain the rest, so that parameters without state are skipped.
        names: names and shapes of parameters from a file beside this one.

    Raises:
        ValueError: if there is none, or several.
    """
    path, chosen = _choose(find_state_dicts(found), key, where, found)
    held = {k: _plain(h) for k, h in chosen["state"].items() if isinstance(h, Mapping)}
    owner: dict[Any, tuple[Any, int, str | None]] = {}
    groups = [*enumerate(common), *enumerate(_groups(chosen, where))]  # the last one with a parameter counts
    for index, group in groups:
        listed = group.get("param_names")
        for at, given in enumerate(group.get("params", ())):
            parameter = given if given in held or str(given) not in held else str(given)
            owner[parameter] = (group, index, str(listed[at]) if listed else None)
    order = [*owner, *(parameter for parameter in held if parameter not in owner)]
    beside = _beside(found, path, held, owner, names)
    for parameter in order:
        group, index, listed = owner.get(parameter, (groups[0][1] if len(groups) == 1 else {}, 0, None))
        if partial and parameter not in held:
            continue
        numbered = isinstance(parameter, int) or str(parameter).isdigit()
        plain = f"parameter {parameter}" if numbered else str(parameter)
        name, shape, x = beside.get(parameter, (plain, None, None))
        here = _tensor(listed or name, _label(group, index), held.get(parameter), group, None)
        yield replace(here, x=x if x is None else as_real(x, x)[0], shape=here.shape or shape)


def _groups(chosen: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    """The parameter groups of a state dict.

    Raises:
        ValueError: if they are not a list of dictionaries whose `params` are a list of numbers or names.
    """
    groups = chosen.get("param_groups", [])
    for group in groups if isinstance(groups, list | tuple) else [None]:
        params = group.get("params", ()) if isinstance(group, Mapping) else None
        if not isinstance(params, list | tuple) or not all(isinstance(p, int | str) for p in params):
            raise ValueError(
                f"{where}: its param_groups are not a list of dictionaries with a list of parameters as 'params'; give "
                "what optimizer.state_dict() returns."
            )
    return list(groups)


def _beside(
    found: Any, path: str, held: Mapping[Any, Any], owner: Mapping[Any, Any], names: Names | None
) -> dict[Any, tuple[str, tuple[int, ...] | None, Any]]:
    """Name, shape and value of parameters, from the model in the same file, else from a file beside it."""
    if not owner:
        return {}
    by_group: dict[int, list[Any]] = {}
    for parameter, (_, index, _) in owner.items():
        by_group.setdefault(index, []).append(parameter)
    own = {parameter: str(listed or parameter) for parameter, (_, _, listed) in owner.items()}
    shapes = {parameter: _state_shape(held.get(parameter)) for parameter in owner}
    groups = list(by_group.values())
    for model in [*models_in(found, path), *([] if names is None else [names])]:
        known = all(name in model.shapes for name in own.values())
        matched = own if known else model.match(groups, shapes)
        if matched:
            return {p: (name, model.shapes[name], model.values.get(name)) for p, name in matched.items()}
    return {}


def _state_shape(held: Any) -> tuple[int, ...] | None:
    """The shape of a parameter, by that of its moments; None if its accumulators have different shapes."""
    if not isinstance(held, Mapping):
        return None
    known = next((shape_of(held[n]) for n in _SHAPED if hasattr(held.get(n), "shape")), None)
    others = {shape_of(array) for array in held.values() if shape_of(array)}
    return known or (others.pop() if len(others) == 1 else None)


def _plain(held: Any) -> Any:
    """A parameter's state; bitsandbytes puts what it quantises, or could, into a dictionary of its own."""
    if isinstance(held, Mapping) and isinstance(held.get(_QUANTISED), Mapping):
        return {**{k: v for k, v in held.items() if k != _QUANTISED}, **held[_QUANTISED]}
    return held


def _label(group: Mapping[str, Any], index: int) -> str:
    return str(group.get("name", index))


def _tensor(name: str, label: str, held: Any, group: Mapping[str, Any], known: Format | Unknown | None) -> Tensor:
    """The moments of one parameter; `known` is the optimizer if it is live."""
    shape = _state_shape(held)
    format_ = _format(held or {}, group, known)
    if isinstance(format_, str):
        return Tensor(name, label, reason=format_, shape=shape)
    m, v = (held[field] for field in format_.moments)
    unreadable = _unreadable(m, v)
    if unreadable is not None:
        return Tensor(name, label, reason=unreadable, shape=shape, optimizer=format_.optimizer)
    m, v = as_real(m, v)
    b1, b2 = _betas(group)
    top = "max_exp_avg_sq" in held or group.get("amsgrad") is True
    return Tensor(
        name,
        label,
        m,
        v,
        scalar("step", held["step"] if "step" in held else group["step"]),
        b1,
        b2,
        remark=AMSGRAD.format(v="exp_avg_sq", top="max_exp_avg_sq") if top else None,
        weight_decay=_decay(format_, group),
        shape=shape,
        optimizer=format_.optimizer,
    )


def _format(held: Mapping[str, Any], group: Mapping[str, Any], known: Format | Unknown | None) -> Format | str:
    """The format of a parameter's state, or why its moments cannot be used."""
    if isinstance(known, Unknown):
        return known.said(held)
    if not held and group and "betas" not in group:
        return "it has no state, and its parameter group has no betas, so that its optimizer is not Adam"
    if not held:
        return NO_STATE
    missing = lacking(held)
    if missing is not None:
        return missing
    if "step" not in held and "step" not in group:
        return "its number of steps is missing, so the bias cannot be corrected"
    return by_fields({str(k) for k in held}, group) if known is None else known


def _betas(group: Mapping[str, Any]) -> list[float]:
    betas = group.get("betas")
    if not isinstance(betas, list | tuple) or len(betas) != 2:
        raise ValueError(f"state: its betas are {betas!r}; give two numbers.")
    return [scalar(f"betas[{at}]", beta) for at, beta in enumerate(betas)]


def _unreadable(m: Any, v: Any) -> str | None:
    """Why two moments are not arrays of numbers; None if they are."""
    for moment in (m, v):
        kind = type(moment)
        if not hasattr(moment, "shape"):
            return f"its moments are of {kind.__module__}.{kind.__qualname__}, which cannot be read here"
        if kind.__module__.startswith("torchao"):
            return f"its moments are quantised ({kind.__qualname__}); keep them in bfloat16 or float32"
        if getattr(moment, "is_meta", False):
            return "its moments are on the device 'meta', without values"
        if str(getattr(moment, "dtype", "")).rpartition(".")[2].startswith(("int", "uint", "bool", "float8", "qint")):
            return f"its moments are of {moment.dtype}; keep them in bfloat16 or float32"
    return None


def _decay(known: Format, group: Mapping[str, Any]) -> float | None:
    """Decoupled weight decay; 0 if it is part of the gradient, None if that is not known."""
    given = group.get("weight_decay")
    decay = 0.0 if given is None else scalar("weight_decay", given)
    decoupled = group.get("decoupled_weight_decay", known.decoupled)
    decoupled = decoupled if isinstance(decoupled, bool) else None
    return decay if decoupled else 0.0 if decoupled is not None or decay == 0 else None


def find_state_dicts(found: Any, path: str = "", depth: int = 0) -> dict[str, Mapping[str, Any]]:
    """Every optimizer state dict in nested dictionaries and lists, by its path with dots."""
    if depth > _DEEPEST:
        return {}
    if isinstance(found, Mapping):
        whole = _state_dict(found)
        if whole is not None:
            return {path: whole}
        flat = _unflattened(found)
        if flat:
            return {".".join(part for part in (path, key) if part): value for key, value in flat.items()}
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


def _state_dict(found: Mapping[Any, Any]) -> Mapping[str, Any] | None:
    """The dictionary itself, with groups as a list, if it is an optimizer's state dict."""
    held, groups = found.get("state"), found.get("param_groups")
    if not isinstance(held, Mapping):
        return None
    if isinstance(groups, Mapping) and all(isinstance(group, Mapping) for group in groups.values()):
        return {**found, "param_groups": list(groups.values())}  # numbered, as checkpoint formats without lists do
    if isinstance(groups, list | tuple):
        return found
    moments = any(isinstance(h, Mapping) and any(name in _plain(h) for name in _MOMENTS) for h in held.values())
    return found if moments else None


def _unflattened(found: Mapping[Any, Any]) -> dict[str, Mapping[str, Any]]:
    """State dicts whose keys are joined with dots: `state.<parameter>.exp_avg`, `param_groups.<parameter>.betas`."""
    states: dict[str, dict[str, dict[str, Any]]] = {}
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for key, value in found.items():
        for marker, into in (("state.", states), ("param_groups.", groups)):
            before, at, rest = f".{key}".partition(f".{marker}")
            parameter, _, field = rest.rpartition(".")
            if at and parameter:
                into.setdefault(before.lstrip("."), {}).setdefault(parameter, {})[field] = value
                break
    wanted = {prefix: held for prefix, held in states.items() if any(set(h) & set(_MOMENTS) for h in held.values())}
    return {prefix: {"state": held, "param_groups": _merged(groups.get(prefix, {}))} for prefix, held in wanted.items()}


def _merged(groups: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Parameter groups from the settings of every parameter: those with equal settings are one group."""
    found: dict[str, dict[str, Any]] = {}
    for parameter, settings in groups.items():
        same = repr(sorted((k, v) for k, v in settings.items() if k not in ("params", "param_names")))
        found.setdefault(same, {**settings, "params": []})["params"].append(parameter)
    return list(found.values())


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
