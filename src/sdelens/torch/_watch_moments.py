"""Moments per coordinate of micro-batch gradients, kept on the device of their parameters."""

import numpy as np
import torch
from torch import Tensor

from sdelens.diagnosis.nuclear_sums import NuclearSums
from sdelens.diagnosis.streams import KEPT, Layout, Moments
from sdelens.torch._watch_sums import stacked, wide

__all__ = ["MomentStore"]


class _Parameter:
    """Mean at the present point and squares of deviations of one parameter's gradients."""

    def __init__(self, parameter: Tensor, index: np.ndarray) -> None:
        self.mean = torch.zeros_like(wide(parameter))
        self.square = torch.zeros_like(self.mean)
        self.index = torch.as_tensor(index, device=parameter.device)
        self.past: Tensor | None = None

    def take(self, flat: Tensor, before: float, weight: float, number: int) -> tuple[Tensor, ...]:
        """Add one gradient by the recursion of `diagnosis.streams.Moments`; its four scalars."""
        factor = weight * before / (before + weight)
        signed = torch.dot(flat, self.mean.sign())
        delta = flat - self.mean
        sized = torch.linalg.vector_norm(delta, 1)
        cross = weight**0.5 * torch.dot(flat if number == 1 else delta, self.mean)
        self.mean.add_(delta, alpha=weight / (before + weight))
        spread = factor * torch.dot(delta, delta)
        self.square.addcmul_(delta, delta, value=factor)
        return spread, cross, signed, sized

    def leave(self, weight: float) -> None:
        """Begin at a new point, after `weight` samples at the present one."""
        self.past = weight * self.mean if self.past is None else self.past.add_(self.mean, alpha=weight)
        self.mean.zero_()

    def average(self, weight: float, total: float) -> Tensor:
        """The mean over all points."""
        return self.mean if self.past is None else (self.past + weight * self.mean) / total


class MomentStore:
    """The moments of all parameters; recursions and scalars stay on the device, so that nothing waits for it.

    If gradients may overflow, those of a micro-batch are held until all are known, and the device is waited for.

    Attributes:
        skipped: number of micro-batches with a gradient that is not finite.
    """

    def __init__(self, layout: Layout, parameters: list[Tensor], coordinates: int, seed: int, holding: bool) -> None:
        self._layout, self._coordinates, self._seed, self._holding = layout, coordinates, seed, holding
        index = layout.sampled(coordinates, seed)
        self._own = [_Parameter(p, i) for p, i in zip(parameters, index, strict=True)]
        self._device = parameters[0].device
        self._held: list[Tensor | None] = [None] * len(parameters)
        self._scalars: list[tuple[Tensor, ...] | None] = [None] * len(parameters)
        self._kept: list[Tensor] = []
        self._rows: list[Tensor] = []
        self._roots: list[tuple[int, Tensor]] = []
        self._at: list[tuple[float, float, int]] = []
        self._weights: list[float] = []
        self._nuclear: NuclearSums | None = None
        if any(layout.matrices):
            means = [own.mean for own in self._own]
            self._nuclear = NuclearSums(
                layout.matrices, torch.linalg, lambda i, m: means[i].new_zeros(m, m), self._nuclear_by_group
            )
        self._points, self._number, self._before, self._stride, self._size = 1, 0, 0.0, 1, 0.0
        self.skipped = 0

    def begin(self, moved: bool, size: float) -> None:
        """Begin a micro-batch, at a new point if the parameters have changed.

        Raises:
            ValueError: if they have changed, and batches differ in size.
        """
        if moved and self._number:
            for own in self._own:
                own.leave(self._before)
            self._nuclear = None  # measured only at one point
            self._points, self._number, self._before = self._points + 1, 0, 0.0
        self._size = size
        if self._points > 1 and len({size, *self._weights}) > 1:
            raise ValueError(
                "batch_size: got different sizes, and the parameters changed while watching; give micro-batches of one "
                "size, or watch at one point."
            )

    def take(self, number: int, gradient: Tensor, scale: float) -> None:
        """Read one parameter's gradient."""
        if self._holding:
            self._held[number] = gradient.detach()
        else:
            self._add(number, wide(gradient) / scale)

    def _add(self, number: int, flat: Tensor) -> None:
        own = self._own[number]
        if self._coordinates and len(self._weights) % self._stride == 0:
            self._held[number] = flat[own.index].clone()
        if self._nuclear is not None and self._layout.matrices[number] is not None:
            factor = self._size * self._before / (self._before + self._size)
            self._nuclear.take(number, flat, flat - own.mean, factor)
        self._scalars[number] = own.take(flat, self._before, self._size, self._number)

    def end(self, scale: float) -> None:
        """End the micro-batch; parameters that it did not reach had a gradient of 0."""
        if self._holding:
            held, self._held = self._held, [None] * len(self._own)
            sums = [torch.dot(v, v) for v in (wide(g) for g in held if g is not None)]
            if not bool(torch.isfinite(stacked(sums, self._device)).all()):
                self.skipped += 1
                return
            for number, gradient in enumerate(held):
                if gradient is not None:
                    self._add(number, wide(gradient) / scale)
        for number, scalars in enumerate(self._scalars):
            if scalars is None:
                self._add(number, torch.zeros_like(self._own[number].mean))
        self._close()

    def _close(self) -> None:
        values = stacked([torch.stack(row) for row in self._scalars if row is not None], self._device)
        if self._number:
            self._rows.append(self._by_group(values))
            self._at.append((self._size, self._before, self._number))
        sample = [v.to(self._device) for v in self._held if v is not None]
        if sample:
            self._kept.append(torch.cat(sample))
        self._held, self._scalars = [None] * len(self._own), [None] * len(self._own)
        self._weights.append(self._size)
        self._before += self._size
        self._number += 1
        count = len(self._weights)
        if self._points == 1 and count > 1 and count & (count - 1) == 0:
            roots = stacked([own.square.sqrt().sum() for own in self._own], self._device)
            self._roots.append((count, self._by_group(roots)))
        if self._nuclear is not None:
            self._nuclear.close(count, self._size, self._before, [own.mean for own in self._own])
        if len(self._kept) > KEPT:
            self._stride *= 2
            self._kept = self._kept[::2]

    def _nuclear_by_group(self, numbers: list[int], values: list[Tensor]) -> Tensor:
        return self._by_group(stacked(values, self._device), numbers)

    def _by_group(self, values: Tensor, numbers: list[int] | None = None) -> Tensor:
        own = self._layout.group if numbers is None else [self._layout.group[i] for i in numbers]
        groups = torch.tensor(own, device=self._device)
        return values.new_zeros(len(self._layout.groups), *values.shape[1:]).index_add_(0, groups, values)

    @property
    def points(self) -> int:
        """Number of points."""
        return self._points

    def moments(self) -> Moments:
        """The moments so far, on the host.

        Raises:
            ValueError: if a gradient was not finite, or there were not two at any point.
        """
        found = Moments(self._layout, self._coordinates, self._seed)
        found.count, found.points, found.at, found.stride = len(self._weights), self._points, [*self._at], self._stride
        found.weight = float(sum(self._weights))
        found.weights = (min(self._weights, default=0.0), max(self._weights, default=0.0))
        if self._points > 1 and not self._at:
            raise ValueError(
                "gradients: the parameters changed after every backward pass, so that noise cannot be told from their "
                "movement; accumulate two or more micro-batches before the optimizer steps."
            )
        for i, own in enumerate(self._own):
            found.mean[i] = own.average(self._before, found.weight or 1.0).double().cpu().numpy()
            found.square[i] = own.square.double().cpu().numpy()
            if not np.isfinite(found.square[i]).all():
                raise ValueError(
                    f"{self._layout.names[i]}: got a gradient that is not finite; with loss scaling, give "
                    "scale=scaler.get_scale, so that micro-batches that overflow are left out."
                )
        rows = torch.stack(self._rows).double().cpu().numpy() if self._rows else np.zeros((0, 0, 4))
        found.spread, found.cross, found.signed, found.sized = (list(rows[..., i]) for i in range(4))
        found.roots = [(count, roots.double().cpu().numpy()) for count, roots in self._roots]
        if self._nuclear is not None:
            found.nuclear = self._nuclear.read(lambda v: v.double().cpu().numpy(), self._layout.by_group)
        if self._kept:
            found.sample = list(torch.stack(self._kept).double().cpu().numpy())
        return found
