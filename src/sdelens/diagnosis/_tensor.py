"""The moments of one tensor of an optimizer's state, as the sources yield them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["AMSGRAD", "Source", "Tensor", "as_real", "scalar", "shape_of"]

AMSGRAD = (
    "AMSGrad: signal and noise are computed from {v}, but the optimizer divides by its maximum so far, which does not "
    "decrease at a larger batch size: no scaling rule holds until {top} is reset."
)


@dataclass(frozen=True)
class Tensor:
    """The moments of one tensor, or the reason why there are none.

    Attributes:
        name: name of the parameter.
        group: name of the optimizer's parameter group, or label of a part of the optimizer.
        m: first moment, not corrected for bias; real and imaginary parts lie side by side.
        v: second moment.
        steps: number of averaged gradients, infinite if no bias is left.
        b1: β₁, None if the state does not contain it.
        b2: β₂, likewise.
        reason: why the noise cannot be estimated; None if it can.
        remark: a peculiarity to report.
        x: the parameter, if the state has it.
        weight_decay: decoupled weight decay θ that the learning rate multiplies, None if the state does not contain it.
        shape: shape of the parameter, or of the part of it in this source; None if it is not known.
        optimizer: the optimizer that keeps these moments, empty if the state does not say.
    """

    name: str
    group: str = ""
    m: Any = None
    v: Any = None
    steps: float = np.inf
    b1: float | None = None
    b2: float | None = None
    reason: str | None = None
    remark: str | None = None
    x: Any = None
    weight_decay: float | None = None
    shape: tuple[int, ...] | None = None
    optimizer: str = ""

    @property
    def size(self) -> int | None:
        """How many numbers the tensor has (a complex number is two once its moments are read); None if not known."""
        shape = shape_of(self.m) if self.m is not None else self.shape
        return None if shape is None else math.prod(shape)


Source = Iterator[Tensor]


def shape_of(array: Any) -> tuple[int, ...] | None:
    """The shape of an array, of this process's part of a distributed one; None of anything else."""
    array = array.to_local() if hasattr(array, "to_local") else array
    return tuple(int(n) for n in array.shape) if hasattr(array, "shape") else None


def as_real(m: Any, v: Any) -> tuple[Any, Any]:
    """Complex moments as real ones, with real and imaginary parts along a last axis.

    PyTorch keeps the squares of both parts in a complex v. If v is real, it is a mean of |g|² (optax): each part is
    given half of it, which leaves the sums of signal and noise unchanged.
    """
    if not _is_complex(m):
        return m, v
    first, second = _view(m), _view(v)
    if not _is_complex(v):
        second = v[..., None] / 2
        second = second.expand_as(first) if hasattr(v, "detach") else np.broadcast_to(np.asarray(second), first.shape)
    return first, second


def _is_complex(array: Any) -> bool:
    return "complex" in str(getattr(array, "dtype", ""))


def _view(array: Any) -> Any:
    if not _is_complex(array):
        return array
    if hasattr(array, "detach"):
        import torch

        array = array.to_local() if hasattr(array, "to_local") else array
        return torch.view_as_real(array.detach().resolve_conj())
    plain = np.asarray(array)
    return np.stack([plain.real, plain.imag], axis=-1)


def scalar(name: str, value: Any) -> float:
    """A number from an array of one element.

    Raises:
        ValueError: if it has more elements or is no number.
    """
    array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    if array.size != 1:
        raise ValueError(
            f"state: its {name} has shape {array.shape}; give the state of one device, without an axis for replicas."
        )
    try:
        number = float(array.reshape(()))
    except (TypeError, ValueError):
        number = float("nan")
    if np.isnan(number):
        raise ValueError(f"state: its {name} is {value!r}; give a number.")
    return number
