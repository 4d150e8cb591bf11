"""The parameters of a model as they are watched, and the signals of PyTorch that a watch needs."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from sdelens.diagnosis.nuclear_sums import Matrices

__all__ = [
    "after_backward",
    "backward_pass",
    "matrices_of",
    "on_step",
    "processes_of",
    "shape_of",
    "unwrapped",
    "watched",
]


def unwrapped(model: nn.Module) -> tuple[nn.Module, DistributedDataParallel | None]:
    """The user's own module, and the wrapper that averages its gradients over processes."""
    reducer = None
    while isinstance(model, DistributedDataParallel) or hasattr(model, "_orig_mod"):
        if isinstance(model, DistributedDataParallel):
            reducer, model = model, model.module
        else:
            model = model._orig_mod
    return model, reducer


def watched(model: nn.Module) -> dict[str, Tensor]:
    """Parameters that require a gradient, shared ones once.

    Raises:
        TypeError: if the parameters are sharded, so that no process has a whole gradient.
        ValueError: if there are none.
    """
    kinds = {type(module).__name__ for module in model.modules()}
    sharded = "FullyShardedDataParallel" in kinds or any(hasattr(p, "device_mesh") for p in model.parameters())
    if sharded:
        raise TypeError(
            "model: its parameters are sharded (FSDP or tensor parallelism), and a sharded gradient can be read only "
            "after it was averaged over the processes, so that the norms of single micro-batches are not known; watch "
            "the model under DistributedDataParallel or in one process, for example from a checkpoint with a smaller "
            "batch, or give gradients of micro-batches to sdelens.gradient_noise."
        )
    found: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise ValueError(
            "model: has no parameter that requires a gradient; call requires_grad_() on the parameters to watch."
        )
    return found


def matrices_of(parameters: Mapping[str, Tensor], wanted: Matrices | torch.optim.Optimizer) -> Matrices:
    """The matrices whose nuclear norm is measured, where an optimizer such as Muon stands for its parameters.

    Raises:
        ValueError: if the optimizer has none of the watched parameters.
    """
    if not isinstance(wanted, torch.optim.Optimizer):
        return wanted
    own = {id(p) for group in wanted.param_groups for p in group["params"]}
    names = [name for name, p in parameters.items() if id(p) in own]
    if not names:
        raise ValueError(
            f"matrices: the {type(wanted).__name__} has none of the watched parameters; give this model's optimizer."
        )
    return [f"^{re.escape(name)}$" for name in names]


def shape_of(parameter: Tensor) -> tuple[int, ...]:
    """Shape of a parameter, where complex numbers are pairs."""
    return (*parameter.shape, 2) if parameter.is_complex() else tuple(parameter.shape)


def processes_of(reducer: DistributedDataParallel | None) -> int:
    """Number of processes over which gradients are averaged."""
    return 1 if reducer is None else torch.distributed.get_world_size(reducer.process_group)


def backward_pass() -> int | None:
    """Number of the current backward pass; if None, a parameter that is seen again marks a new pass."""
    number = getattr(torch._C, "_current_graph_task_id", None)
    return None if number is None else int(number())


def after_backward(call: Callable[[], None]) -> None:
    """Call a function at the end of the present backward pass, after the last all-reduce of its gradients.

    The all-reduce is completed by a callback too, which is registered before the first of these runs.
    """
    queue: Any = torch.autograd.Variable._execution_engine.queue_callback
    queue(lambda: queue(call))


def on_step(parameters: list[Tensor], call: Callable[[], None]) -> RemovableHandle:
    """Call a function after every step of an optimizer of one of the parameters."""
    own = {id(p) for p in parameters}

    def stepped(optimizer: Any, args: Any, kwargs: Any) -> None:
        if any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
            call()

    return register_optimizer_step_post_hook(stepped)
