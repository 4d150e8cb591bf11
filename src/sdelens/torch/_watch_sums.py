"""Sums over the coordinates of micro-batch gradients, kept on their device until a result needs them."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sdelens.diagnosis.streams import Layout
from sdelens.diagnosis.windows import Windows

__all__ = ["Found", "SumStore", "stacked", "wide"]

_PENDING = 256
"""Most stretches whose sums stay on the device."""
_SETS = 16
"""Most sets of parameters whose places are kept."""


def wide(tensor: Tensor) -> Tensor:
    """A tensor's numbers, flat, complex ones as pairs, in float32 or float64."""
    if tensor.dtype == torch.float32 and not tensor.requires_grad:
        return tensor.view(-1) if tensor.is_contiguous() else tensor.reshape(-1)
    flat = tensor.detach()
    flat = (torch.view_as_real(flat.resolve_conj()) if flat.is_complex() else flat).reshape(-1)
    return flat if flat.dtype == torch.float64 else flat.float()


def stacked(values: list[Tensor], device: torch.device) -> Tensor:
    """Tensors of one shape as one, in the widest of their types."""
    kinds = {(v.device, v.dtype) for v in values}
    if len(kinds) > 1:
        dtype = torch.float64 if any(d == torch.float64 for _, d in kinds) else torch.float32
        values = [v.to(device, dtype) for v in values]
    return torch.stack(values)


@dataclass
class Segment:
    """Micro-batches between two points at which it is known that a window begins.

    Attributes:
        rows: ‖g‖² and gᵀs of every micro-batch and group, shape (groups, 2).
        held: ‖s‖² of every micro-batch over all parameters, or None where s is known not to have begun anew.
        large: ‖S‖² per group over all processes after the last all-reduce, and the number of micro-batches in it.
    """

    rows: list[Tensor] = field(default_factory=list)
    held: list[Tensor | None] = field(default_factory=list)
    large: tuple[Tensor, int] | None = None


class SumStore:
    """‖g‖² of every gradient and gᵀs with s = p.grad before it, summed over the parameters of a group.

    Attributes:
        size: samples of a micro-batch, 0 before the first.
    """

    def __init__(self, layout: Layout, device: torch.device, last: int | None, processes: int) -> None:
        self._layout, self._device, self._processes = layout, device, processes
        self._known_places: dict[tuple[tuple[int, ...], ...], Tensor] = {}
        self._segment, self._last = Segment(), last
        self._pending: list[Segment] = []
        self._settled = Found([], [], 0, 0)
        self._own: dict[int, Tensor] = {}
        self._products: dict[int, Tensor] = {}
        self._held: list[Tensor] = []
        self._expected: tuple[int, ...] = ()
        self._checked: bool | None = None
        self.size = 0.0

    def begin(self, new: bool, size: float) -> None:
        """Begin a micro-batch, and a window too if that is known.

        Raises:
            ValueError: if its number of samples differs from the others'.
        """
        if self.size and size != self.size:
            raise ValueError(
                f"batch_size: got {size:g} after {self.size:g}, but only sums are kept; give micro-batches of one "
                "size, or watch with keep='moments'."
            )
        self.size, self._checked = size, None
        self._expected = () if new else self._expected
        if new and self._segment.rows:
            self._pending.append(self._segment)
            self._segment = Segment()
            if len(self._pending) >= _PENDING:
                self._settled = (self._settled + self._read(self._pending)).latest(self._last)
                self._pending = []

    def take(self, number: int, gradient: Tensor, held: Tensor | None) -> None:
        """Read one parameter's gradient, given p.grad before this gradient is added to it.

        Whether p.grad has been set to 0 is looked at only if more has happened to it than the previous addition.
        """
        flat = wide(gradient)
        self._own[number] = torch.dot(flat, flat)
        if held is None:
            return
        before = wide(held)
        self._products[number] = torch.dot(flat, before)
        if self._checked is None:
            now = number, held.data_ptr(), held._version
            self._checked, self._expected = now != self._expected, (*now[:2], now[2] + 1)
        if self._checked:
            self._held.append(torch.dot(before, before))

    def end(self, scale: float) -> None:
        """End the micro-batch; parameters that it did not reach had a gradient of 0."""
        known = [*self._own.values(), *self._products.values()]
        sums = stacked(known, self._device)
        sums = sums.new_zeros(2 * len(self._layout.groups)).index_add_(0, self._places(), sums)
        self._segment.rows.append(sums.view(-1, 2) / scale**2)
        self._segment.held.append(stacked(self._held, self._device).sum() if self._held else None)
        self._own, self._products, self._held = {}, {}, []

    def _places(self) -> Tensor:
        """Where the numbers of this micro-batch are added; few sets of parameters occur."""
        reached = (tuple(self._own), tuple(self._products))
        if reached not in self._known_places:
            places = [2 * self._layout.group[i] + which for which in (0, 1) for i in reached[which]]
            if len(self._known_places) >= _SETS:
                self._known_places.clear()
            self._known_places[reached] = torch.tensor(places, device=self._device)
        return self._known_places[reached]

    def reduced(self, gradients: list[Tensor | None], scale: float) -> None:
        """Read p.grad after it was averaged over all processes; rows of this micro-batch may still come."""
        known = [(g, wide(v)) for g, v in zip(self._layout.group, gradients, strict=True) if v is not None]
        values = stacked([torch.dot(v, v) for _, v in known], self._device)
        groups = torch.tensor([g for g, _ in known], device=self._device)
        sums = values.new_zeros(len(self._layout.groups)).index_add_(0, groups, values)
        self._segment.large = sums * (self._processes / scale) ** 2, len(self._segment.rows) + 1

    def found(self) -> "Found":
        """The windows so far, with the one that is not yet complete."""
        return (self._settled + self._read([*self._pending, self._segment])).latest(self._last)

    def windows(self, parts: "list[Found] | None" = None) -> Windows:
        """Windows as this process sees them, or from what every process found.

        Raises:
            ValueError: if the processes saw different numbers of windows, or none had two micro-batches.
        """
        own = self.found()
        if self._processes == 1:
            return Windows(self._layout, self.size, [w for part in parts or [own] for w in part.single])
        parts = parts or [own] * self._processes
        if len({len(part.joint) for part in parts}) > 1:
            raise ValueError(
                f"gather: the processes saw {[len(part.joint) for part in parts]} optimizer steps; start and reset the "
                "watch at the same step in all of them."
            )
        joint = []
        for same in zip(*(part.joint for part in parts), strict=True):
            small = np.sum([sums[:, 0] for _, sums in same], axis=0)
            joint.append((sum(n for n, _ in same), np.stack([small, same[0][1][:, 1]], axis=1)))
        return Windows(self._layout, self.size, (), [(n, sums) for n, sums in joint if np.isfinite(sums).all()])

    def missing(self, count: int) -> str:
        """Why there is no window of two micro-batches, for an error."""
        found = self.found()
        if not count:
            return "gradients: got none; make two or more backward passes."
        if found.skipped:
            return (
                f"gradients: got {found.skipped} that are not finite, and their windows were left out; watch for "
                "longer, after the loss scale has stabilised."
            )
        if found.torn:
            return (
                "gradients: p.grad was not empty when a window began; call zero_grad after the optimizer has stepped, "
                "and start or reset the watch before the first micro-batch."
            )
        if self._processes > 1:
            return "gradients: there was no all-reduce; make the last backward pass of a step outside of no_sync."
        return (
            "gradients: p.grad was empty at every backward pass; accumulate two or more micro-batches before "
            "zero_grad, or watch with keep='moments'."
        )

    def _read(self, segments: list[Segment]) -> "Found":
        """Move sums to the host, and divide them into windows."""
        found = Found([], [], 0, 0)
        for segment in segments:
            if not segment.rows:
                continue
            table = torch.stack(segment.rows).double().cpu().numpy()
            held = [None if v is None else float(v) for v in segment.held]
            starts = [0, *(i for i in range(1, len(held)) if held[i] == 0)]
            torn = held[0] not in (None, 0)
            if self._processes == 1:
                for i, rows in enumerate(np.split(table, starts[1:])):
                    found.add(rows, torn and i == 0)
            elif segment.large is not None and segment.large[1] == len(table):
                rows = table[starts[-1] :]
                found.add(rows, torn and len(starts) == 1, segment.large[0].double().cpu().numpy())
        return found


class Found:
    """Windows on the host.

    Attributes:
        single: of every window of one process ‖g‖² and gᵀs, shape (n, groups, 2).
        joint: of every window of several processes n, and Σ‖g‖² here and ‖S‖² of all, shape (groups, 2).
        skipped, torn: numbers of micro-batches that were left out.
    """

    def __init__(self, single: list[np.ndarray], joint: list[tuple[int, np.ndarray]], skipped: int, torn: int) -> None:
        self.single, self.joint, self.skipped, self.torn = single, joint, skipped, torn

    def add(self, rows: np.ndarray, torn: bool, large: np.ndarray | None = None) -> None:
        """Add a window, unless a gradient in it is not finite, or p.grad was not empty when it began."""
        if torn:
            self.torn += len(rows)
        elif not np.isfinite(rows if large is None else large).all():
            self.skipped += len(rows)
        elif large is None:
            self.single.append(rows)
        else:
            self.joint.append((len(rows), np.stack([rows[..., 0].sum(axis=0), large], axis=1)))

    def __add__(self, other: "Found") -> "Found":
        """Both one after the other."""
        counts = self.skipped + other.skipped, self.torn + other.torn
        return Found(self.single + other.single, self.joint + other.joint, *counts)

    def latest(self, number: int | None) -> "Found":
        """At most the last windows."""
        if number is None:
            return self
        return Found(self.single[-number:], self.joint[-number:], self.skipped, self.torn)
