"""Names of parameters that a state dict only numbers: from the model's state dict, or a safetensors file's header."""

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdelens.diagnosis._tensor import shape_of

__all__ = ["Names", "models_in", "names_beside"]

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_MOST_STATES = 50_000
"""Assignments that are followed before the names are given up."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Names:
    """Names and shapes of a model's parameters.

    Attributes:
        shapes: shape by name.
        values: the parameters, if the source has them at hand.
        ordered: whether they are in the order of the model; a safetensors file sorts them.
    """

    shapes: Mapping[str, Shape]
    values: Mapping[str, Any] = field(default_factory=dict)
    ordered: bool = True

    def match(self, groups: Sequence[Sequence[Hashable]], shapes: Mapping[Any, Shape | None]) -> dict[Any, str]:
        """The names of an optimizer's parameters, as far as shapes leave only one possibility.

        Args:
            groups: the parameters of each group, in order: each group is in the order of the model.
            shapes: shapes of the parameters, None if not known.
        """
        known = {shape for shape in shapes.values() if shape is not None}
        if not known <= set(self.shapes.values()):
            return {}  # another model, or flattened parts
        order = [parameter for group in groups for parameter in group]
        if not self.ordered:
            return _by_shape(self.shapes, order, shapes)
        whole = [shapes[parameter] for parameter in order]
        if len(whole) == len(self.shapes) and all(
            a in (None, b) for a, b in zip(whole, self.shapes.values(), strict=True)
        ):
            return dict(zip(order, self.shapes, strict=True))  # one group after the other in the order of the model
        return _in_order(list(self.shapes.items()), groups, shapes)


def _in_order(
    entries: Sequence[tuple[str, Shape]], groups: Sequence[Sequence[Hashable]], shapes: Mapping[Any, Shape | None]
) -> dict[Any, str]:
    """The only way to deal out the entries to groups in order; nothing if there are several.

    Goes through the entries with the number of parameters that each group has received. An entry that no group needs is
    left over (a buffer, or a frozen parameter), if there are more entries than parameters.
    """
    spare = len(entries) - sum(len(group) for group in groups)
    if spare < 0:
        return {}
    start = (0,) * len(groups)
    ways: dict[tuple[int, ...], int] = {start: 1}
    back: list[dict[tuple[int, ...], tuple[tuple[int, ...], int | None]]] = []
    for at, (_, shape) in enumerate(entries):
        after: dict[tuple[int, ...], int] = {}
        came: dict[tuple[int, ...], tuple[tuple[int, ...], int | None]] = {}
        for taken, count in ways.items():
            for to, group in _moves(taken, at, shape, groups, shapes, spare):
                after[to] = after.get(to, 0) + count
                came[to] = (taken, group)
        if len(after) > _MOST_STATES:
            return {}
        ways = after
        back.append(came)
    end = tuple(len(group) for group in groups)
    if ways.get(end) != 1:
        return {}
    found: dict[Any, str] = {}
    state = end
    for (name, _), came in zip(reversed(entries), reversed(back), strict=True):
        state, group = came[state]
        if group is not None:
            found[groups[group][state[group]]] = name
    return found


def _moves(
    taken: tuple[int, ...],
    at: int,
    shape: Shape,
    groups: Sequence[Sequence[Hashable]],
    shapes: Mapping[Any, Shape | None],
    spare: int,
) -> Iterator[tuple[tuple[int, ...], int | None]]:
    """What may happen to an entry: a group takes it, or it is left over."""
    if at - sum(taken) < spare:
        yield taken, None
    for index, group in enumerate(groups):
        if taken[index] < len(group) and shapes[group[taken[index]]] in (None, shape):
            yield (*taken[:index], taken[index] + 1, *taken[index + 1 :]), index


def _by_shape(
    names: Mapping[str, Shape], order: Sequence[Hashable], shapes: Mapping[Any, Shape | None]
) -> dict[Any, str]:
    """Names by shape alone, where only one fits, or those that fit differ only in the number of a layer."""
    found: dict[Any, str] = {}
    for shape in set(names.values()):
        fitting = [name for name, other in names.items() if other == shape]
        parameters = [parameter for parameter in order if shapes[parameter] == shape]
        roles = {re.sub(r"\d+", "#", name) for name in fitting}
        if len(fitting) == len(parameters) and len(roles) == 1:
            layered = sorted(fitting, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
            found |= dict(zip(parameters, layered, strict=True))
    return found


def models_in(found: Any, path: str) -> Iterator[Names]:
    """Dictionaries of named arrays beside an optimizer's state at `path`."""
    if not isinstance(found, Mapping) or path == "":
        return
    for key, model in found.items():
        if str(key) == path.split(".", maxsplit=1)[0] or not isinstance(model, Mapping) or not model:
            continue
        entries: dict[str, Any] = {}
        seen: set[Any] = set()
        for name, value in model.items():
            shape = shape_of(value)
            if shape is None or str(name).endswith(_BUFFERS):
                continue
            place = (value.data_ptr(), shape) if hasattr(value, "data_ptr") and 0 not in shape else name
            if place not in seen:  # tied parameters occur once in the optimizer
                entries[str(name)] = value
            seen.add(place)
        if entries:
            yield Names({name: shape_of(value) or () for name, value in entries.items()}, entries)


def names_beside(folder: Path) -> Names | None:
    """Names and shapes from the headers of the safetensors files of a folder; their numbers are not read."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, Shape] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "numpy") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):  # names are a help: without them, parameters are numbered
            return None
    shapes = {name: shape for name, shape in shapes.items() if not name.endswith(_BUFFERS)}
    return Names(shapes, ordered=False) if shapes else None
