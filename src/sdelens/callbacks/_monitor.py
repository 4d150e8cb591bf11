"""The noise of a PyTorch training loop, measured every n steps; also what the callbacks of frameworks are made of."""

import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import nn

from sdelens.callbacks._measurement import Measurement, measure
from sdelens.core import check
from sdelens.diagnosis import GradientNoise
from sdelens.diagnosis.gradients import Groups
from sdelens.torch import GradientWatch, watch

__all__ = ["NoiseMonitor"]

Log = Callable[[Mapping[str, float], int], Any]
_LOGGER: Final = logging.getLogger("sdelens")
_KINDS: Final = {
    **{"Adam": "adam", "AdamW": "adamw", "NAdam": "adam", "RAdam": "adam", "RMSprop": "rmsprop", "SGD": "sgd"},
    **{"Adagrad": "adagrad", "Lion": "lion"},
}
"""Classes of optimizers, by the names under which `sdelens.advise` knows them."""
_SQUARE_ROOT: Final = ("adam", "adamw", "rmsprop")
_NUMBERS: Final = ("lr", "betas", "eps", "weight_decay", "momentum", "dampening", "alpha")


class NoiseMonitor:
    r"""Measure the gradient noise of a run every n steps, with a verdict and advice.

    The gradients of the last `windows` optimizer steps before a measurement are watched (`sdelens.torch.watch`, with
    ``keep="sums"``), and no others, so that most steps cost nothing extra. Each step needs two or more micro-batches:
    either of gradient accumulation, or one on each of several processes. A batch that fits in one pass can be divided
    into two halves, which gives the same gradient:

        with NoiseMonitor(model, optimizer, batch_size=16, scale=1 / 2, every=50, log=print) as monitor:
            for batch in data:
                for half in batch.chunk(2):
                    (loss(model, half) / 2).backward()
                optimizer.step()
                optimizer.zero_grad()
                monitor.step()

    Every `every` steps, `log` gets these numbers, their names beginning with `prefix`: ``noise_scale`` (in samples) and
    ``snr`` (at the batch of one step), each with ``_lower`` and ``_upper``, ``gradient_norm``, ``noise_trace``,
    ``micro_batches``, and those of `measure`. Numbers that are not known are left out. The verdict and the advice, in
    words, are in `last`, and go to the logger ``"sdelens"`` of the module `logging` at level INFO.

    Args:
        model: the model; under DistributedDataParallel the wrapped one.
        optimizer: its optimizer, for verdict and advice; None to measure the noise only.
        batch_size: number of samples of a micro-batch.
        every: optimizer steps between measurements.
        windows: steps that a measurement watches; at most `every`.
        scale: factor of the loss before its backward pass, a number or a function, as for `sdelens.torch.watch`.
        log: function of a dict of numbers and the step, for example ``lambda numbers, step: wandb.log(numbers, step)``;
            None to keep them in `history` only.
        prefix: what is written before every name.
        groups: groups of parameters in the measured noise, as for `sdelens.torch.watch`.
        options: further options of `sdelens.diagnose`, such as ``tolerance``.

    Attributes:
        history: all measurements.

    Raises:
        ValueError, TypeError: if an argument is invalid, naming it.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Any = None,
        *,
        batch_size: int,
        every: int = 100,
        windows: int = 20,
        scale: float | Callable[[], float] = 1.0,
        log: Log | None = None,
        prefix: str = "noise/",
        groups: Groups = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.history: list[Measurement] = []
        self._every, self._windows = check.at_least("every", every, 1), check.at_least("windows", windows, 1)
        self._windows = min(self._windows, self._every)
        self._model, self._optimizer, self._log, self._prefix = model, optimizer, log, prefix
        self._watching: dict[str, Any] = {"batch_size": batch_size, "scale": scale, "groups": groups, "keep": "sums"}
        self._options, self._step = dict(options or {}), 0
        self._stack = contextlib.ExitStack()
        self._watch: GradientWatch | None = None
        with watch(model, **self._watching):  # its errors are raised now, not after many steps
            pass
        self._open_if_due()

    @property
    def last(self) -> Measurement | None:
        """The last measurement, None before the first."""
        return self.history[-1] if self.history else None

    @property
    def steps(self) -> int:
        """Number of optimizer steps so far."""
        return self._step

    def resume(self, step: int) -> None:
        """Begin at a step, without a measurement: that of a checkpoint from which the run continues."""
        self.close()
        self._step = check.at_least("step", step, 0)
        self._open_if_due()

    def step(self, step: int | None = None) -> Measurement | None:
        """Count an optimizer step; call it after ``optimizer.step()``, before the next backward pass.

        Args:
            step: number of optimizer steps so far; by default the number of calls.

        Returns:
            The measurement, if one is due, else None.
        """
        self._step = self._step + 1 if step is None else check.at_least("step", step, 0)
        found = None
        if self._watch is not None and self._step % self._every == 0:
            found = self._measure(self._watch)
            self.close()
        self._open_if_due()
        return found

    def close(self) -> None:
        """Stop watching."""
        self._stack.close()
        self._watch = None

    def __enter__(self) -> "NoiseMonitor":
        """Watch until the block ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self.close()

    def _open_if_due(self) -> None:
        if self._watch is None and self._every - self._step % self._every <= self._windows:
            self._watch = self._stack.enter_context(watch(self._model, **self._watching))

    def _measure(self, watched: GradientWatch) -> Measurement:
        """Measure, judge and log; a run does not end because something cannot be told."""
        try:
            several = torch.distributed.is_available() and torch.distributed.is_initialized()
            noise = watched.gather() if several else watched.result()
        except ValueError as error:
            found = Measurement(self._step, {}, f"Cannot tell the noise: {error}")
        else:
            found = self._judged(noise)
        self.history.append(found)
        _LOGGER.info("step %d: %s", found.step, found.text)
        if self._log is not None and found.numbers:
            self._log(found.numbers, found.step)
        return found

    def _judged(self, noise: GradientNoise) -> Measurement:
        """The measurement, with the verdict on the square-root rule for optimizers whose rule it is."""
        if self._optimizer is None:
            return measure(noise, self._step, prefix=self._prefix)
        inner, name = _kind(self._optimizer)
        state = inner if name in _SQUARE_ROOT else None
        return measure(noise, self._step, state, _advised(inner), prefix=self._prefix, **self._options)


def _kind(optimizer: Any) -> tuple[Any, str | None]:
    """The optimizer without accelerate's wrapper, and which one it is: the first known class that it inherits from."""
    inner = getattr(optimizer, "optimizer", optimizer)
    return inner, next((_KINDS[c.__name__] for c in type(inner).__mro__ if c.__name__ in _KINDS), None)


def _advised(optimizer: Any) -> dict[str, Any] | str | None:
    """What `sdelens.advise` takes: the numbers of the first group, or the name alone if they do not suffice."""
    inner, name = _kind(optimizer)
    group = inner.param_groups[0]
    if name is None or name == "adagrad" or float(group["lr"]) == 0:
        return name
    found: dict[str, Any] = {"optimizer": name}
    for key in _NUMBERS:
        value = group.get(key)
        if value is not None:
            found[key] = tuple(map(float, value)) if isinstance(value, tuple | list) else float(value)
    return found
