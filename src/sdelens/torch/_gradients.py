"""Gradient noise of a PyTorch model, from the gradients of micro-batches as they are accumulated."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import torch
from torch import Tensor, nn

from sdelens.core import check
from sdelens.core.limits import CONFIDENCE
from sdelens.diagnosis import GradientNoise
from sdelens.diagnosis.gradients import Groups, as_groups
from sdelens.diagnosis.logged import logged
from sdelens.diagnosis.nuclear_sums import Matrices
from sdelens.torch._watch_moments import MomentStore
from sdelens.torch._watch_sums import Found, SumStore
from sdelens.torch._watched import (
    after_backward,
    backward_pass,
    matrices_of,
    on_step,
    processes_of,
    shape_of,
    unwrapped,
    watched,
)

__all__ = ["GradientWatch", "watch"]

_MOMENTS: Final = "moments"
_KEEP: Final = (_MOMENTS, "sums")
_NOTHING: Final = nullcontext()


class GradientWatch:
    """Moments of the micro-batch gradients of a model; `watch` makes one.

    Attributes:
        batch_size: number of samples over which the next micro-batch's gradient is averaged; may be set before every
            backward pass.
        scale: factor of the loss before its backward pass (loss scaling, 1/n for n accumulated micro-batches): a
            number, or a function that returns it.
        step_batch_size: number of samples of one optimizer step, the batch size of the SNR; None to take it from the
            watched steps.
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
        last: int | None,
        step_batch_size: float | None,
        matrices: Matrices | torch.optim.Optimizer,
    ) -> None:
        self.batch_size, self.scale, self.step_batch_size, self._keep = batch_size, scale, step_batch_size, keep
        module, self._reducer = unwrapped(model)
        self._parameters = watched(module)
        self._all, names = list(self._parameters.values()), tuple(self._parameters)
        shapes = tuple(shape_of(p) for p in self._all)
        measured = matrices_of(self._parameters, matrices)
        pairs = [name for name, p in self._parameters.items() if p.is_complex()]
        self._layout = as_groups(names, shapes, functools.partial(_named, names), groups, measured, pairs)
        self._options = tail_coordinates, seed, last
        self.reset()
        hooks = (functools.partial(self._hook, number) for number in range(len(names)))
        self._handles: list[Any] = [p.register_hook(hook) for p, hook in zip(self._all, hooks, strict=True)]
        self._handles.append(on_step(self._all, self._on_step))

    def reset(self) -> None:
        """Forget all micro-batches so far; call it between an optimizer step and the next backward pass."""
        coordinates, seed, last = self._options
        self._moments: MomentStore | None = None
        self._sums: SumStore | None = None
        if self._keep == _MOMENTS:
            self._moments = MomentStore(self._layout, self._all, coordinates, seed, callable(self.scale))
        else:
            self._sums = SumStore(self._layout, self._all[0].device, last, processes_of(self._reducer))
        self._seen: set[int] = set()
        self._task: int | None = None
        self._count, self._stepped, self._version, self._now = 0, False, self._versions(), 1.0

    @property
    def count(self) -> int:
        """Number of micro-batches seen since the start or the last `reset`."""
        return self._count

    @property
    def skipped(self) -> int:
        """Number of micro-batches that were left out, with their window.

        A gradient was not finite, or p.grad was not empty when the window began.
        """
        self._close()
        if self._moments is not None:
            return self._moments.skipped
        found = self._store.found()
        return found.skipped + found.torn

    @property
    def _store(self) -> SumStore:
        assert self._sums is not None
        return self._sums

    def _versions(self) -> int:
        """A number that grows if a parameter is changed in place."""
        return sum(p._version for p in self._all)

    def _on_step(self) -> None:
        self._stepped = True

    def _hook(self, number: int, gradient: Tensor) -> None:
        if gradient.layout is not torch.strided:
            raise TypeError(
                f"{self._layout.names[number]}: got a sparse gradient; use sparse=False, or requires_grad_(False) "
                "while watching."
            )
        task = backward_pass()
        if number in self._seen or task != self._task:
            self._close()
            self._task = task
        with torch.no_grad() if torch.is_grad_enabled() else _NOTHING:  # enabled only under create_graph
            if not self._seen:
                self._begin()
            self._seen.add(number)
            if self._moments is not None:
                self._moments.take(number, gradient, self._now)
            else:
                self._store.take(number, gradient, self._all[number].grad)

    def _begin(self) -> None:
        size = float(check.at_least("batch_size", self.batch_size, 1))
        self._now = float(check.positive("scale", self.scale() if callable(self.scale) else self.scale))
        version = self._versions()
        moved, self._stepped, self._version = self._stepped or version != self._version, False, version
        if self._moments is not None:
            self._moments.begin(moved, size)
        else:
            self._store.begin(moved or all(p.grad is None for p in self._all), size)
            if self._reducer is not None and self._reducer.require_backward_grad_sync:
                after_backward(self._reduced)
        self._count += 1

    def _reduced(self) -> None:
        with torch.no_grad():
            self._store.reduced([p.grad for p in self._all], self._now)

    def _close(self) -> None:
        """End the micro-batch."""
        if self._seen:
            self._seen.clear()
            with torch.no_grad():
                (self._moments or self._store).end(self._now)

    def close(self) -> None:
        """Remove the hooks from the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._close()

    def result(self, *, per: str = "sample", confidence: float = CONFIDENCE) -> GradientNoise:
        """The noise of the micro-batches so far; call it only after the current backward pass has ended.

        Under data parallelism, this is what this process knows; `gather` joins all of them.

        Raises:
            ValueError: if there were fewer than two micro-batches at every point, or a gradient was not finite.
        """
        check.choice("per", per, ("sample", "batch"))
        self._close()
        return self._result(None, per, confidence)

    def gather(self, *, per: str = "sample", confidence: float = CONFIDENCE) -> GradientNoise:
        """The noise of the micro-batches of all processes; every process must call it, and gets the same result.

        Raises:
            RuntimeError: if the default process group of torch.distributed has not been initialised.
            ValueError: as `result`, in all processes.
        """
        check.choice("per", per, ("sample", "batch"))
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            raise RuntimeError("gather: torch.distributed is not initialised; call init_process_group, or use result.")
        self._close()
        own: Any
        try:
            own = self._store.found() if self._moments is None else self._result(None, per, confidence)
        except ValueError as error:
            own = error
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, own)
        failed = [f"process {i}: {part}" for i, part in enumerate(parts) if isinstance(part, ValueError)]
        if failed:
            raise ValueError(failed[0])
        return (
            self._result(parts, per, confidence)
            if self._moments is None
            else functools.reduce(GradientNoise.merge, parts)
        )

    def log(self, prefix: str = "") -> dict[str, float]:
        """The numbers of `result` as a flat dict, for a logger; what is not known is NaN.

        The keys are ``noise_scale``, ``noise_scale_l1``, ``noise_scale_nuclear`` and ``snr``, each also with
        ``_lower`` and ``_upper``, ``gradient_norm`` (‖∇f‖), ``noise_trace`` (tr Σ of one sample) and
        ``micro_batches``. The SNR is that of one optimizer step.

        Args:
            prefix: what is written before every key, for example ``"noise/"``.
        """
        try:
            return logged(self.result(), prefix)
        except ValueError:
            return logged(None, prefix)

    def _result(self, parts: list[Found] | None, per: str, confidence: float) -> GradientNoise:
        step = None if self.step_batch_size is None else float(check.positive("step_batch_size", self.step_batch_size))
        if self._moments is not None:
            moments = self._moments.moments()
            step = moments.weight / moments.points if step is None and moments.points > 1 else step
            return GradientNoise(moments, per, None, confidence, step)
        windows = self._store.windows(parts)
        if not windows.count:
            raise ValueError(self._store.missing(self._count))
        return GradientNoise(windows, per, None, confidence, step)


@contextmanager
def watch(
    model: nn.Module,
    *,
    batch_size: int,
    scale: float | Callable[[], float] = 1.0,
    groups: Groups = None,
    matrices: Matrices | torch.optim.Optimizer = None,
    tails: bool = True,
    tail_coordinates: int = 32,
    seed: int = 0,
    keep: str = _MOMENTS,
    last: int | None = None,
    step_batch_size: float | None = None,
) -> Iterator[GradientWatch]:
    r"""Watch a model's micro-batch gradients, without changing them.

    Every ``backward()`` inside is one micro-batch: its gradient is read before it is added to ``p.grad``, so gradients
    may be accumulated or not. Two losses that are each backpropagated count as two micro-batches, and so do
    the segments of a checkpointed model with ``use_reentrant=True``: use False.

    With ``keep="moments"`` the result has moments per coordinate, tails, and the noise scale of the ℓ1 norm. If the
    parameters change inside, noise is measured between the micro-batches at each point, of which there must be two or
    more, and only the covariance and the noise scale are given. Memory is twice the parameters in float32 (float64 for
    float64 parameters), temporarily one more parameter (a gradient of all of them if `scale` is a function), and the
    values of the sampled coordinates.

    With ``keep="sums"`` only two numbers per group and micro-batch are kept, because p.grad already contains the
    sum of the earlier micro-batches. A window begins where p.grad is empty, or the parameters have changed; it needs
    two or more micro-batches. The result is the mean over windows of their unbiased estimates, and has neither
    coordinates nor tails. Do not change p.grad between the micro-batches of a window.

    Under `torch.nn.parallel.DistributedDataParallel`, give the wrapped model. With ``keep="sums"`` the norm of the
    gradient after the all-reduce is read too, so that one micro-batch per process and step is enough;
    `GradientWatch.gather` joins what the processes know. Limits then need at least five steps.

    A micro-batch with a gradient that is not finite is left out together with its window, as after an overflow of
    scaled losses (with ``keep="moments"`` only if `scale` is a function). Complex parameters are taken as pairs of real
    numbers. With a number as `scale`, nothing waits for the device until a result is asked for.

    Args:
        model: its parameters with ``requires_grad`` are watched, shared ones once, named as ``named_parameters`` of the
            unwrapped module does.
        batch_size: number of samples over which a micro-batch's loss is averaged; if they differ, set it on the result.
        scale: factor of the loss before its backward pass: 1/n for n accumulated micro-batches,
            ``scaler.get_scale`` with mixed precision; a number, or a function that is called once per backward pass.
        groups: as in `gradient_noise`.
        matrices: parameters whose noise scale is also measured in the nuclear norm, as in `gradient_noise`; or an
            optimizer, as `torch.optim.Muon`, for its matrices. It needs ``keep="moments"`` at one point, and decomposes
            them at the micro-batches 1, 2, 4, 8, ….
        tails: whether to keep coordinates for the tails.
        tail_coordinates: number of these coordinates per group.
        seed: seed of their draw.
        keep: ``"moments"`` for every coordinate, or ``"sums"`` over each parameter.
        last: with ``keep="sums"``, the number of windows (optimizer steps) over which the moving average is taken; None
            for all since the last `GradientWatch.reset`, for which memory grows with the number of steps.
        step_batch_size: number of samples of one optimizer step over all processes, at which the SNR is given; by
            default that of the watched windows.

    Returns:
        A context manager that yields a `GradientWatch`; its ``result()`` is a `GradientNoise`, also after the context
        has ended.

    Raises:
        TypeError: if a gradient is sparse (the message names the parameter), or parameters are sharded, as under FSDP.
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
    if last is not None and keep == _MOMENTS:
        raise ValueError("last: applies only to keep='sums'; call reset() to start anew, or watch with keep='sums'.")
    if matrices is not None and matrices is not False and keep != _MOMENTS:
        raise ValueError("matrices: their nuclear norm needs keep='moments'; leave matrices out, or keep moments.")
    number = None if last is None else check.at_least("last", last, 1)
    step = None if step_batch_size is None else float(check.positive("step_batch_size", step_batch_size))
    sampled = check.at_least("tail_coordinates", tail_coordinates, 1) if tails and keep == _MOMENTS else 0
    seed = check.at_least("seed", seed, 0)
    found = GradientWatch(model, batch_size, scale, groups, sampled, seed, keep, number, step, matrices)
    try:
        yield found
    finally:
        found.close()


def _named(names: tuple[str, ...], leaves: list[Any]) -> dict[str, Any]:
    return dict(zip(names, leaves, strict=True))
