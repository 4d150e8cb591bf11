"""Rescale a live PyTorch optimizer to another batch size, in place."""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sdelens.core import check
from sdelens.scaling import Rescaled, ratio_of, rescale_readings
from sdelens.scaling.hyperparameters import Hyperparameters, Reading, read_dict
from sdelens.scaling.memory import ACCUMULATORS, buffer_gain, clock, square_factor

if TYPE_CHECKING:
    import torch

__all__ = ["rescale"]

Conversion = Callable[[], Any]
"""Changes one accumulator in place."""
_KINDS: Final = {"AdamW": "adamw", "Adam": "adam", "RMSprop": "rmsprop", "SGD": "sgd"}


def rescale(
    optimizer: "torch.optim.Optimizer",
    batch_ratio: float,
    rule: str | None = None,
    *,
    steps: int | None = None,
    warmup: int | None = None,
    clip_norm: float | None = None,
    momentum: str | None = None,
    decay: str | None = None,
    accumulators: str = "scale",
) -> Rescaled:
    r"""Rescale a live optimizer to a batch `batch_ratio` times as large, in place, each parameter group separately.

    Hyperparameters change as in `sdelens.scaling.rescale`; the accumulators are converted if their meaning depends on
    the hyperparameters:

    - a momentum buffer that is a sum of gradients, as in SGD without dampening, is multiplied by (1 − μ)/(1 − μ′); this
      preserves the mean of gradients that it represents;
    - second moments become those of the new batch, v ← ĝ² + σ̂²/δ, at once rather than within 1/(1 − b2) steps. The
      split is one number per tensor, from the averages over it of m̂² and v̂: σ̂² = (v̂ − m̂²)/(1 − c), with
      c = (1 − b1)(1 + b1ᵏ)/((1 + b1)(1 − b1ᵏ)). RMSprop has no m, and all of v is treated as noise, or, if it is
      centred, all but the square of the mean of gradients that it keeps;
    - Adam's step count k becomes k ln b2/ln b2′, for the same number of samples; this keeps its bias correction.

    ``accumulators="keep"`` leaves out the last two. On a quadratic at rest, the error of the mean loss over the 1600/δ
    steps after the jump is then 28 % (δ = 4) and 52 % (δ = 16); with them it is at most the standard error, 1.6 %
    (docs/scaling.md).

    Args:
        optimizer: a ``torch.optim.AdamW``, ``Adam``, ``RMSprop`` or ``SGD``, or a subclass of one of them.
        batch_ratio: δ > 0.
        rule: as for `sdelens.scaling.rescale`.
        steps: remaining steps at the old batch size.
        warmup: warm-up steps of that run.
        clip_norm: norm at which gradients are clipped in that run.
        momentum: how decays β are scaled.
        decay: kind of decay of a subclass, if it differs from that of its base class.
        accumulators: ``"scale"`` or ``"keep"``.

    Returns:
        The account, whose ``optimizer`` is the given optimizer.

    Raises:
        ValueError: as in `sdelens.scaling.rescale`, or if the state of a parameter is not what its optimizer makes
            (a part is missing, on the meta device, or a second moment is negative or not finite); the optimizer is
            then unchanged.
        TypeError: if it is an unsupported optimizer; the message names it.

    Warns:
        UserWarning: if a learning-rate scheduler was made for the optimizer, because it stores separate learning rates
            and step numbers.
    """
    import torch

    kind = next((k for k in _KINDS if isinstance(optimizer, getattr(torch.optim, k))), None)
    if kind is None:
        raise TypeError(
            f"optimizer: got {type(optimizer).__name__}; give torch.optim's {', '.join(_KINDS)} or a subclass of one "
            "of them, or give a dict of hyperparameters to sdelens.scaling.rescale."
        )
    check.choice("accumulators", accumulators, ACCUMULATORS)
    ratio = ratio_of(batch_ratio)
    readings = [_read(group, _KINDS[kind], i, decay) for i, group in enumerate(optimizer.param_groups)]
    options: dict[str, Any] = {"steps": steps, "warmup": warmup, "clip_norm": clip_norm}
    rescaled, records = rescale_readings(readings, lambda _: optimizer, ratio, rule, momentum, **options)
    # Everything is computed and checked before anything is written.
    conversions: list[Conversion] = []
    written = []
    for number, (group, reading, new) in enumerate(zip(optimizer.param_groups, readings, records, strict=True)):
        written.append(reading.write(new))
        for index, parameter in enumerate(group["params"]):
            state = _State(optimizer.state.get(parameter, {}), f"group {number}, parameter {index}")
            conversions += _conversions(state, reading.numbers, new, float(ratio), accumulators)
    with torch.no_grad():
        for convert in conversions:
            convert()
        for group, numbers in zip(optimizer.param_groups, written, strict=True):
            _set(group, numbers)
    if any("initial_lr" in group for group in optimizer.param_groups):
        warnings.warn(
            "optimizer: its learning-rate scheduler stores base_lrs and numbers of steps, which are not rescaled. "
            "Multiply scheduler.base_lrs by the factors of lr in the account, and divide its numbers of steps by "
            f"{float(ratio):g}, or create a new scheduler.",
            stacklevel=2,
        )
    return rescaled


def _read(group: dict[str, Any], kind: str, number: int, decay: str | None) -> Reading:
    """The reading of one parameter group, with 0-d tensors as numbers."""
    plain = {k: _plain(v) for k, v in group.items() if k not in ("params", "param_names")}
    try:
        return read_dict({"optimizer": kind, **plain}, decay)
    except (ValueError, TypeError) as error:
        raise type(error)(f"group {number}: {error}") from error


def _plain(value: Any) -> Any:
    """A one-element tensor as a number; it may be a learning rate (capturable) or one of the betas."""
    if isinstance(value, tuple | list):
        return type(value)(_plain(v) for v in value)
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return float(
            str(value.detach().float().cpu().numpy())
        )  # the shortest decimal, 0.9 instead of the expansion of float32
    return value


def _set(group: dict[str, Any], written: Mapping[str, Any]) -> None:
    """Write new numbers to the group; tensors are changed in place, because a captured graph reads them."""
    for key, value in written.items():
        if key not in group or value == _plain(group[key]):
            continue
        if isinstance(value, tuple | list):
            for old, new in zip(group[key], value, strict=True):
                if hasattr(old, "fill_"):
                    old.fill_(new)
            if not any(hasattr(old, "fill_") for old in group[key]):
                group[key] = value
        elif hasattr(group[key], "fill_"):
            group[key].fill_(value)
        else:
            group[key] = value


class _State(NamedTuple):
    """The state of one parameter, and its name in messages."""

    parts: dict[str, Any]
    label: str

    def part(self, name: str) -> "torch.Tensor":
        """A tensor of the state.

        Raises:
            ValueError: if it is missing, not a tensor, or has no data.
        """
        value = self.parts.get(name)
        is_tensor = hasattr(value, "mul_")
        if value is None or not is_tensor or value.is_meta:
            found = "is missing" if value is None else "is on the meta device" if is_tensor else "is not a tensor"
            raise ValueError(
                f"optimizer: {self.label}: {name} {found}, but the state has {', '.join(self.parts)}; load a complete "
                "state, or give accumulators='keep'."
            )
        return value

    def squares(self, name: str) -> "torch.Tensor":
        """A second moment, with real and imaginary parts of complex parameters apart.

        Raises:
            ValueError: also if it has negative values or values that are not finite.
        """
        value = _real(self.part(name))
        if not bool((value >= 0).all() & value.isfinite().all()):
            raise ValueError(
                f"optimizer: {self.label}: {name} has values that are negative or not finite, which no second moment "
                "has; load a state from before the run failed, or give accumulators='keep'."
            )
        return value


def _real(tensor: "torch.Tensor") -> "torch.Tensor":
    """A view of real numbers."""
    import torch

    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _conversions(
    state: _State, old: Hyperparameters, new: Hyperparameters, ratio: float, accumulators: str
) -> list[Conversion]:
    """What converts the accumulators of one tensor to the new hyperparameters."""
    gain = buffer_gain(old, new)
    found: list[Conversion] = []
    if accumulators == "scale" and "exp_avg_sq" in state.parts:
        squares, step = state.squares("exp_avg_sq"), state.part("step")
        v, m = float(squares.double().mean()), float(_real(state.part("exp_avg")).double().square().mean())
        factor = square_factor(old, ratio, float(step), v, m)
        found.append(partial(squares.mul_, factor))
        if "max_exp_avg_sq" in state.parts:
            found.append(partial(state.squares("max_exp_avg_sq").mul_, factor))
        found.append(partial(step.div_, clock(old, new)))
    elif accumulators == "scale" and "square_avg" in state.parts:
        squares = state.squares("square_avg")
        if "grad_avg" in state.parts:
            found.append(partial(_scale_about, squares, _real(state.part("grad_avg")), 1 / ratio))
        else:
            found.append(partial(squares.div_, ratio))
        gain *= ratio**0.5  # the buffer is a sum of gradients over √v
    if gain != 1 and state.parts.get("momentum_buffer") is not None:
        found.append(partial(state.part("momentum_buffer").mul_, gain))
    return found


def _scale_about(squares: "torch.Tensor", mean: "torch.Tensor", factor: float) -> None:
    """Multiply what v has above the square of a mean, at least 0, by a factor: v ← mean² + (v − mean²) factor."""
    centre = mean.square()
    squares.sub_(centre).clamp_(min=0).mul_(factor).add_(centre)
