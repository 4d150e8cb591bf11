"""The state of one parameter in an optimizer of PyTorch, checked, and converted to another batch size."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any

from sdelens.scaling.hyperparameters import Hyperparameters
from sdelens.scaling.memory import buffer_gain, clock, square_factor, sum_factor
from sdelens.torch._optimizers import Known

if TYPE_CHECKING:
    import torch

__all__ = ["Change", "Conversion", "StateOf", "conversions", "momentum_weights"]

Conversion = Callable[[], Any]
"""Changes one accumulator in place."""
_SHORTEST = 5.0
"""RAdam divides by √v̂ only where its effective number of averaged squares exceeds this."""


@dataclass(frozen=True)
class Change:
    """How one parameter group changes.

    Attributes:
        known: the optimizer.
        old: its hyperparameters.
        new: those at the new batch size.
        ratio: δ.
        accumulators: ``"scale"`` or ``"keep"``.
        square: the factor of second moments, if the SNR was measured; else None.
        own: old and new values of numbers without a rule of `sdelens.scaling`.
    """

    known: Known
    old: Hyperparameters
    new: Hyperparameters
    ratio: float
    accumulators: str
    square: float | None
    own: dict[str, tuple[float, float]]

    @property
    def noise(self) -> float:
        """The factor of second moments that cannot be split into signal and noise: 1/δ, or from the measured SNR."""
        return 1 / self.ratio if self.square is None else self.square

    @property
    def pace(self) -> float:
        """Old steps per new step in the count of steps."""
        return self.ratio if self.known.name == "Adagrad" else clock(self.old, self.new)


@dataclass(frozen=True)
class StateOf:
    """The state of one parameter, and its name in messages."""

    parts: dict[str, Any]
    label: str

    def part(self, name: str) -> "torch.Tensor":
        """A tensor of the state.

        Raises:
            ValueError: if it is missing, or not a tensor that can be changed in place.
        """
        value: Any = self.parts.get(name)
        found = "is missing" if value is None else _fault(value)
        if found is not None:
            raise ValueError(
                f"optimizer: {self.label}: {name} {found} (the state has {', '.join(self.parts)}); load a complete "
                "state, or give accumulators='keep'."
            )
        return value

    def squares(self, name: str) -> "torch.Tensor":
        """A second moment, with real and imaginary parts of complex parameters apart.

        Raises:
            ValueError: also if it has negative values or values that are not finite.
        """
        value = _real(self.part(name))
        if not bool(_gathered((value >= 0).all() & value.isfinite().all())):
            raise ValueError(
                f"optimizer: {self.label}: {name} has values that are negative or not finite, which no second moment "
                "has; load a state from before the run failed, or give accumulators='keep'."
            )
        return value

    def mean(self, name: str) -> "torch.Tensor":
        """A mean or a sum of gradients.

        Raises:
            ValueError: also if it has values that are not finite.
        """
        value = _real(self.part(name))
        if not bool(_gathered(value.isfinite().all())):
            raise ValueError(
                f"optimizer: {self.label}: {name} has values that are not finite; load a state from before the run "
                "failed, or give accumulators='keep'."
            )
        return value

    def count(self, number: bool) -> float:
        """The step count.

        Args:
            number: whether this optimizer keeps it as a Python number.

        Raises:
            ValueError: also if it is negative or not finite.
        """
        given = self.parts.get("step")
        if number and isinstance(given, Real) and not isinstance(given, bool):
            value = float(given)
        else:
            counted = self.part("step")
            value = float(counted) if counted.numel() == 1 else math.nan
        if not 0 <= value < math.inf:
            raise ValueError(
                f"optimizer: {self.label}: step is {given}; it must be one number, 0 or more. Load a complete state, "
                "or give accumulators='keep'."
            )
        return value


def conversions(state: StateOf, change: Change) -> list[Conversion]:
    """What converts the accumulators of one tensor; computes and checks all, and changes nothing yet.

    Raises:
        ValueError: if a part of the state is missing, or is not what the optimizer makes; the message names it.
    """
    found: list[Conversion] = []
    if not state.parts:  # its parameter was never updated
        return found
    gain = buffer_gain(change.old, change.new)
    if change.accumulators == "scale":
        if "exp_avg_sq" in change.known.parts:
            found += _adam(state, change)
        elif "square_avg" in change.known.parts:
            found += _rmsprop(state, change)
            gain *= change.noise**-0.5  # the buffer is a sum of gradients over √v
        elif "sum" in change.known.parts:
            factor = sum_factor(change.old, change.new)
            found += [partial(state.squares("sum").mul_, factor), *_counted(state, change)]
    elif change.known.name == "RAdam":
        _check_rectified(state, change, 1.0)
    if gain != 1 and state.parts.get("momentum_buffer") is not None:
        found.append(partial(state.mean("momentum_buffer").mul_, gain))
    return found


def _adam(state: StateOf, change: Change) -> list[Conversion]:
    """v, its largest values and the step count of the optimizers of Adam's family."""
    squares, step = state.squares("exp_avg_sq"), state.count(change.known.counts)
    v, m = (float(_gathered(x.double().mean())) for x in (squares, state.mean("exp_avg").double().square()))
    factor = change.square
    if factor is None:
        factor = square_factor(change.old, change.ratio, step, v, m)
    found: list[Conversion] = [partial(squares.mul_, factor)]
    if "max_exp_avg_sq" in state.parts:
        found.append(partial(state.squares("max_exp_avg_sq").mul_, factor))
    if change.known.name == "RAdam":
        _check_rectified(state, change, change.pace)
    if "mu_product" in change.known.parts:
        after = step / change.pace
        product = momentum_weights(change.new.memories["b1"], change.own["momentum_decay"][1], after)
        found.append(partial(state.part("mu_product").fill_, product))
    return [*found, *_counted(state, change)]


def _rmsprop(state: StateOf, change: Change) -> list[Conversion]:
    squares = state.squares("square_avg")
    if "grad_avg" in state.parts:
        return [partial(_scale_about, squares, state.mean("grad_avg"), 1 / change.ratio)]
    return [partial(squares.mul_, change.noise)]


def _counted(state: StateOf, change: Change) -> list[Conversion]:
    """The conversion of the step count, which need not be a whole number afterwards."""
    step, pace = state.count(change.known.counts), change.pace
    if hasattr(state.parts["step"], "div_"):
        return [partial(state.parts["step"].div_, pace)]
    return [partial(state.parts.__setitem__, "step", step / pace)]


def momentum_weights(b1: float, momentum_decay: float, steps: float) -> float:
    """NAdam's product of μᵢ = b1 (1 − 0.96^(iψ)/2) over as many steps, which may end in a fraction of one."""
    whole = math.floor(steps)
    total = 0.0
    for i in range(1, whole + 2):
        part = 1.0 if i <= whole else steps - whole
        mu = b1 * (1 - 0.5 * 0.96 ** (i * momentum_decay))
        if part > 0:
            total += part * math.log(mu) if mu > 0 else -math.inf
        if total < -750:  # below the smallest number
            return 0.0
    return math.exp(total)


def _check_rectified(state: StateOf, change: Change, pace: float) -> None:
    """Refuse a conversion after which RAdam would no longer divide by √v̂; the step count is divided by `pace`."""
    step = state.count(False)
    before = _effective(change.old.memories["b2"], step)
    after = _effective(change.new.memories["b2"], step / pace)
    if before > _SHORTEST >= after:
        raise ValueError(
            f"optimizer: {state.label}: at b2 = {change.new.memories['b2']:.4g} and step {step / pace:.4g}, RAdam "
            f"would no longer divide by the root of its second moment (it averages {after:.3g} squares; more than 5 "
            "are needed), and its steps would change in size; rescale later in the run, by a smaller ratio, or with "
            "momentum 'fixed'."
        )


def _effective(b2: float, step: float) -> float:
    """RAdam's number of averaged squares, ρ."""
    most = 2 / (1 - b2) - 1
    left = b2**step
    return most - 2 * step * left / (1 - left) if left < 1 else 1.0


def _gathered(value: Any) -> Any:
    """A number over all of a tensor, also if it is sharded over processes (FSDP2)."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def _fault(value: Any) -> str | None:
    """Why a part of a state cannot be changed in place; None if it can."""
    import torch

    if not isinstance(value, torch.Tensor):
        return "is not a tensor"
    is_plain = type(value) in (torch.Tensor, torch.nn.Parameter) or hasattr(value, "full_tensor")
    faults = {
        "is on the meta device": value.is_meta,
        f"is a {type(value).__name__}, which may be quantized": not is_plain,
        f"has the layout {value.layout}": value.layout != torch.strided,
        "was made in inference mode and cannot be changed": value.is_inference(),
        f"is a tensor of {value.dtype}": not (value.is_floating_point() or value.is_complex()),
    }
    return next((fault for fault, has in faults.items() if has), None)


def _real(tensor: "torch.Tensor") -> "torch.Tensor":
    """A view of real numbers."""
    import torch

    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _scale_about(squares: "torch.Tensor", mean: "torch.Tensor", factor: float) -> None:
    """Multiply what v has above the square of a mean, at least 0, by a factor: v ← mean² + (v − mean²) factor."""
    centre = mean.square()
    squares.sub_(centre).clamp_(min=0).mul_(factor).add_(centre)
