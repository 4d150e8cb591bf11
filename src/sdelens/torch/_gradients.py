"""Gradient noise of a PyTorch model, from the gradients of micro-batches as they are accumulated."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from sdelens.core import check
from sdelens.diagnosis import GradientNoise
from sdelens.diagnosis.gradients import Groups, as_groups
from sdelens.diagnosis.streams import KEPT, Moments
from sdelens.diagnosis.windows import from_sums

__all__ = ["GradientWatch", "watch"]

_MOMENTS: Final = "moments"
_KEEP: Final = (_MOMENTS, "sums")


class _Moments:
    """Moments of one parameter's gradients; these and scalars stay on its device, so nothing waits for it."""

    def __init__(self, parameter: Tensor, index: np.ndarray) -> None:
        self.mean = torch.zeros(parameter.numel(), dtype=_wide(parameter), device=parameter.device)
        self.square = torch.zeros_like(self.mean)
        self.index = torch.as_tensor(index, device=parameter.device)
        self.spread: list[Any] = []
        self.cross: list[Any] = []
        self.sample: list[Tensor] = []

    def take(self, flat: Tensor | None, before: float, weight: float, keep: bool) -> None:
        """Add one gradient, where None means 0; the recursion is that of `diagnosis.streams.Moments`."""
        flat = torch.zeros_like(self.mean) if flat is None else flat
        after = before + weight
        factor = weight * before / after
        if keep:
            self.sample.append(flat[self.index].clone())
        delta = flat - self.mean
        self.cross.append(weight**0.5 * torch.dot(flat if len(self.cross) == 1 else delta, self.mean))
        self.mean.add_(delta, alpha=weight / after)
        self.spread.append(factor * torch.dot(delta, delta))
        self.square.addcmul_(delta, delta, value=factor)


class _Sums:
    """‖g‖², gᵀs and ‖s‖² of every gradient g and s = p.grad before it; None if there was no g, NaN if no s."""

    def __init__(self) -> None:
        self.rows: list[Tensor | None] = []

    def take(self, flat: Tensor, held: Tensor | None, scale: float) -> None:
        """Add one gradient, given p.grad before this gradient is added to it."""
        if held is None:
            self.rows.append(torch.stack([torch.dot(flat, flat), flat.new_zeros(()), flat.new_full((), torch.nan)]))
            return
        held = held.detach().reshape(-1).to(flat.dtype) / scale
        self.rows.append(torch.stack([torch.dot(flat, flat), torch.dot(flat, held), torch.dot(held, held)]))

    def table(self) -> np.ndarray:
        """Shape (K, 3), NaN where there was no gradient."""
        none = torch.full((3,), torch.nan, dtype=torch.float64)
        found: np.ndarray = torch.stack([none if r is None else r.double().cpu() for r in self.rows]).numpy()
        return found


class GradientWatch:
    """Moments of the micro-batch gradients of a model; `watch` makes one.

    Attributes:
        batch_size: number of samples over which the next micro-batch's gradient is averaged; may be set before every
            backward pass.
        scale: factor of the loss before its backward pass (loss scaling, 1/n for n accumulated micro-batches): a
            number, or a function that returns it.
    """

    def __init__(
        self,
        model: nn.Module,
        batch_size: int,
        scale: float | Callable[[], float],
        groups: Groups,
        tail_coordinates: int,
        seed: int,
        keep: str,
    ) -> None:
        self.batch_size, self.scale, self._keep = batch_size, scale, keep
        self._parameters = {
            name: p for name, p in model.named_parameters() if p.requires_grad
        }  # shared parameters once
        if not self._parameters:
            raise ValueError(
                "model: has no parameter that requires a gradient; call requires_grad_() on the parameters to watch."
            )
        names = tuple(self._parameters)
        shapes = tuple(tuple(p.shape) for p in self._parameters.values())
        self._layout = as_groups(names, shapes, functools.partial(_named, names), groups)
        self._coordinates, self._seed = tail_coordinates, seed
        index = self._layout.sampled(tail_coordinates, seed)
        each = zip(self._parameters.items(), index, strict=True)
        self._own = {name: _Moments(p, i) for (name, p), i in each if keep == _MOMENTS}
        self._sums = {name: _Sums() for name in names if keep != _MOMENTS}
        self._seen: set[str] = set()
        self._task: int | None = None
        self._weight, self._size, self._stride = 0.0, 0.0, 1
        self._weights: list[float] = []
        self._empty: list[bool] = []
        self._handles = [p.register_hook(functools.partial(self._hook, name)) for name, p in self._parameters.items()]

    @property
    def count(self) -> int:
        """Number of micro-batches seen."""
        return len(self._weights) + bool(self._seen)

    def _hook(self, name: str, gradient: Tensor) -> None:
        if gradient.layout is not torch.strided:
            raise TypeError(
                f"{name}: got a sparse gradient; use sparse=False, or requires_grad_(False) while watching."
            )
        task = _backward_pass()
        if name in self._seen or task != self._task:
            self._close()
            self._task = task
        if not self._seen:
            self._empty.append(all(p.grad is None for p in self._parameters.values()))
            self._size = float(check.at_least("batch_size", self.batch_size, 1))
        self._seen.add(name)
        scale = check.positive("scale", self.scale() if callable(self.scale) else self.scale)
        with torch.no_grad():
            flat = gradient.detach().reshape(-1)
            flat = flat.to(_wide(flat)) / scale
            if self._keep == _MOMENTS:
                self._own[name].take(flat, self._weight, self._size, self._kept)
            else:
                self._sums[name].take(flat, self._parameters[name].grad, scale)

    @property
    def _kept(self) -> bool:
        return bool(self._coordinates) and len(self._weights) % self._stride == 0

    def _close(self) -> None:
        """End the micro-batch; parameters that it did not reach had a gradient of 0."""
        if not self._seen:
            return
        with torch.no_grad():
            for name, own in self._own.items():
                if name not in self._seen:
                    own.take(None, self._weight, self._size, self._kept)
        for name, sums in self._sums.items():
            if name not in self._seen:
                sums.rows.append(None)
        self._seen.clear()
        self._weight += self._size
        self._weights.append(self._size)
        if self._coordinates and len(next(iter(self._own.values())).sample) > KEPT:
            self._stride *= 2
            for own in self._own.values():
                own.sample = own.sample[::2]

    def close(self) -> None:
        """Remove the hooks from the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._close()

    def result(self, *, per: str = "sample", confidence: float = 0.95) -> GradientNoise:
        """The noise of the micro-batches so far; call it only after the current backward pass has ended.

        Raises:
            ValueError: if there were fewer than two micro-batches, or a gradient was not finite.
        """
        check.choice("per", per, ("sample", "batch"))
        self._close()
        if self._keep != _MOMENTS:
            tables = {name: sums.table() for name, sums in self._sums.items() if sums.rows}
            return from_sums(self._layout, tables, self._empty, self._weights, per, confidence)
        moments = Moments(self._layout, self._coordinates, self._seed)
        moments.weight, moments.count = self._weight, len(self._weights)
        before = np.cumsum(self._weights)
        moments.at = [(w, float(before[i]), i + 1) for i, w in enumerate(self._weights[1:])]
        moments.weights = (min(self._weights, default=0), max(self._weights, default=0))
        moments.stride = self._stride
        spread, cross = (np.zeros((len(self._layout.groups), max(moments.count - 1, 0))) for _ in range(2))
        sample = []
        for i, (name, own) in enumerate(self._own.items()):
            moments.mean[i] = own.mean.double().cpu().numpy()
            moments.square[i] = own.square.double().cpu().numpy()
            if not np.isfinite(moments.square[i]).all():
                raise ValueError(
                    f"{name}: got a gradient that is not finite, for example because the loss scale is too large; "
                    "start watching after the loss scale has stabilised."
                )
            if own.spread[1:]:
                spread[self._layout.group[i]] += torch.stack(own.spread[1:]).double().cpu().numpy()
                cross[self._layout.group[i]] += torch.stack(own.cross[1:]).double().cpu().numpy()
            if own.sample:
                sample.append(torch.stack(own.sample).double().cpu().numpy())
        moments.spread, moments.cross = list(spread.T), list(cross.T)
        if sample:
            moments.sample = list(np.concatenate(sample, axis=1))
        return GradientNoise(moments, per, None, confidence)


@contextmanager
def watch(
    model: nn.Module,
    *,
    batch_size: int,
    scale: float | Callable[[], float] = 1.0,
    groups: Groups = None,
    tails: bool = True,
    tail_coordinates: int = 32,
    seed: int = 0,
    keep: str = _MOMENTS,
) -> Iterator[GradientWatch]:
    r"""Watch a model's micro-batch gradients, without changing them.

    Every ``backward()`` inside is one micro-batch: its gradient is read before it is added to ``p.grad``, so gradients
    may be accumulated or not. Two losses that are each backpropagated count as two micro-batches, and so do
    the segments of a checkpointed model with ``use_reentrant=True``: use False.

    With ``keep="moments"`` the parameters must not change, because the noise is that at one point: if the optimizer
    steps inside, the movement of the parameters is counted as noise. Memory is twice the parameters in float32 (float64
    for float64 parameters), temporarily one more parameter, and the values of the sampled coordinates.

    With ``keep="sums"`` only three numbers per parameter and micro-batch are kept, because p.grad already contains the
    sum of the earlier micro-batches. The optimizer may step, and ``zero_grad`` starts a new window, which needs two or
    more micro-batches. The result is the mean over windows of their unbiased estimates, and has neither coordinates nor
    tails. Do not change p.grad between the micro-batches of a window.

    Nothing waits for the device until `GradientWatch.result`. Under data parallelism every process sees its own
    gradients, before they are averaged; join their results with `GradientNoise.merge`.

    Args:
        model: its parameters with ``requires_grad`` are watched, shared ones once, named as ``named_parameters`` does.
        batch_size: number of samples over which a micro-batch's loss is averaged; if they differ, set it on the result.
        scale: factor of the loss before its backward pass: 1/n for n accumulated micro-batches,
            ``scaler.get_scale`` with mixed precision; a number, or a function that is called at every gradient.
        groups: as in `gradient_noise`.
        tails: whether to keep coordinates for the tails.
        tail_coordinates: number of these coordinates per group.
        seed: seed of their draw.
        keep: ``"moments"`` for every coordinate, or ``"sums"`` over each parameter.

    Returns:
        A context manager that yields a `GradientWatch`; its ``result()`` is a `GradientNoise`, also after the context
        has ended.

    Raises:
        TypeError: if a gradient is sparse; the message names the parameter.
        ValueError: if no parameter requires a gradient.

    Source: ``"sums"`` is the two-batch-size estimate of arXiv 1812.06162, appendix A.1, of one micro-batch and the
    window.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}; give a torch.nn.Module.")
    check.at_least("batch_size", batch_size, 1)
    if not callable(scale):
        check.positive("scale", scale)
    check.choice("keep", keep, _KEEP)
    sampled = check.at_least("tail_coordinates", tail_coordinates, 1) if tails and keep == _MOMENTS else 0
    found = GradientWatch(model, batch_size, scale, groups, sampled, check.at_least("seed", seed, 0), keep)
    try:
        yield found
    finally:
        found.close()


def _backward_pass() -> int | None:
    """Number of the current backward pass; if None, a parameter that is seen again marks a new pass."""
    number = getattr(torch._C, "_current_graph_task_id", None)
    return None if number is None else int(number())


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _named(names: tuple[str, ...], leaves: list[Any]) -> dict[str, Any]:
    return dict(zip(names, leaves, strict=True))
