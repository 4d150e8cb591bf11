"""Rescale a live PyTorch optimizer, and its learning-rate scheduler, to another batch size, in place."""

import dataclasses
import warnings
from typing import TYPE_CHECKING, Any

from sdelens.torch._optimizers import known_by_type, unwrapped
from sdelens.torch._plan import Options, RescaledRun, Target, plan
from sdelens.torch._schedules import of_live, write

if TYPE_CHECKING:
    import torch

__all__ = ["rescale"]


def rescale(
    optimizer: "torch.optim.Optimizer",
    batch_ratio: float,
    rule: str | None = None,
    *,
    scheduler: Any = None,
    interval: str | None = None,
    steps: int | None = None,
    warmup: int | None = None,
    clip_norm: float | None = None,
    momentum: str | None = None,
    decay: str | None = None,
    accumulators: str = "scale",
    snr: Any = None,
    batch_size: float | None = None,
) -> RescaledRun:
    r"""Rescale a live optimizer to a batch `batch_ratio` times as large, in place, each parameter group separately.

    Hyperparameters change as in `sdelens.scaling.rescale`; the accumulators are converted if their meaning depends on
    the hyperparameters:

    - a momentum buffer that is a sum of gradients, as in SGD without dampening, is multiplied by (1 − μ)/(1 − μ′); this
      preserves the mean of gradients that it represents;
    - second moments become those of the new batch, v ← ĝ² + σ̂²/δ, at once rather than within 1/(1 − b2) steps. The
      split is one number per tensor, from the averages over it of m̂² and v̂: σ̂² = (v̂ − m̂²)/(1 − c), with
      c = (1 − b1)(1 + b1ᵏ)/((1 + b1)(1 − b1ᵏ)). RMSprop has no m, and all of v is treated as noise, or, if it is
      centred, all but the square of the mean of gradients that it keeps. Adagrad's sum of squares is divided by δ²;
    - Adam's step count k becomes k ln b2/ln b2′, for the same number of samples; this keeps its bias correction.

    ``accumulators="keep"`` leaves out the last two. On a quadratic at rest, the error of the mean loss over the 1600/δ
    steps after the jump is then 28 % (δ = 4) and 52 % (δ = 16); with them it is at most the standard error, 1.6 %
    (docs/scaling.md).

    A scheduler with the learning rate η(k) at step k becomes one with φ η(kδ), φ being the factor of lr; it remains the
    same object, and its state dict can be loaded by a scheduler that was made for the new batch size. Ends of warm-up
    and milestones are rounded to whole steps; StepLR becomes MultiStepLR if its period is then no whole number. A cycle
    of the momentum (OneCycleLR, CyclicLR) is rescaled like the momentum.

    Args:
        optimizer: a ``torch.optim.AdamW``, ``Adam``, ``NAdam``, ``RAdam``, ``RMSprop``, ``SGD`` or ``Adagrad``, a
            subclass with the same ``step``, ``Lion`` (lion_pytorch, timm) or ``AdamP``, also inside the wrappers of
            accelerate and Lightning.
        batch_ratio: δ > 0.
        rule: as for `sdelens.scaling.rescale`.
        scheduler: its scheduler, of ``torch.optim.lr_scheduler`` (those of Hugging Face are ``LambdaLR``); it may be
            wrapped too.
        interval: ``"step"`` if the scheduler is called after every step, ``"epoch"`` if once per epoch or validation;
            its numbers of steps then do not change. None finds out from the step counts of both, and fails if the
            optimizer does not count its steps (SGD, Lion).
        steps: remaining steps at the old batch size.
        warmup: warm-up steps of that run.
        clip_norm: norm at which gradients are clipped in that run.
        momentum: how decays β are scaled.
        decay: kind of decay of a subclass, if it differs from that of its base class.
        accumulators: ``"scale"`` or ``"keep"``.
        snr: the measured SNR, for rules that use it; it also gives the factor of second moments.
        batch_size: B of the old run, for the time scale of weight decay in samples.

    Returns:
        The account, whose ``optimizer`` and ``scheduler`` are the given ones, without wrappers.

    Raises:
        ValueError: as in `sdelens.scaling.rescale`, or if the state of a parameter is not what its optimizer makes
            (a part is missing, on the meta device, or a second moment is negative or not finite), or a number of the
            scheduler cannot be converted. Optimizer and scheduler are then unchanged.
        TypeError: if it is an unsupported optimizer or scheduler; the message names it.

    Warns:
        UserWarning: if a scheduler was made for the optimizer but not given, because it stores separate learning rates
            and step numbers.
    """
    inner, said = unwrapped(optimizer, "optimizer")
    known = known_by_type(inner)
    schedules = []
    if scheduler is not None:
        interval = interval or getattr(scheduler, "interval", None)  # Lightning's LRSchedulerConfig
        scheduler, more = unwrapped(scheduler, "scheduler")
        said += more
        schedules.append(of_live(scheduler))
        if unwrapped(getattr(scheduler, "optimizer", None), "optimizer")[0] is not inner:
            raise ValueError("scheduler: it belongs to another optimizer; give the scheduler of this one.")
    target = Target(known, inner.param_groups, inner.state, schedules, said)
    options = Options(
        batch_ratio, rule, interval, steps, warmup, clip_norm, momentum, decay, accumulators, snr, batch_size
    )
    # Everything is computed and checked before anything is written.
    found = plan(target, options)
    found.write(target)
    for old, new in zip(schedules, found.schedules, strict=True):
        write(old, new)
    if scheduler is None and any("initial_lr" in group for group in inner.param_groups):
        warnings.warn(
            "optimizer: its learning-rate scheduler stores base_lrs and numbers of steps, which are not rescaled; give "
            "it as scheduler=, or create a new scheduler.",
            stacklevel=2,
        )
    account = dataclasses.replace(found.account, optimizer=inner)
    return RescaledRun.of(account, scheduler=scheduler)
