"""The MLP on Breast Cancer in eager PyTorch: RMSprop, its SDE and the earlier one, many paths, noise in the gradient.

Three ways to have the gradients of all paths: a loop over them, `torch.func.vmap`, and batched products of matrices.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.contenders.networks import LR, NOISE, specification
from benchmarks.contenders.task import Curve
from benchmarks.contenders.with_torch import curve_of, device

__all__ = ["compare"]

MODELS = ("optimizer", "sde", "malladi2022")


def compare(every: int, batch: str) -> Callable[[int, int, int], Curve]:
    """Mean losses of the three models, one after another.

    Args:
        every: steps between records.
        batch: ``"loop"``, ``"func"`` or ``"stacked"``.
    """
    start, evaluate = _network(batch)
    b2, eps = float(specification().b2), float(specification().eps)

    def simulate(model: str, paths: int, steps: int, generator: torch.Generator) -> Curve:
        x = start.repeat(paths, 1)
        z, losses, v = torch.empty_like(x), [], torch.empty(0)
        for k in range(steps + 1):
            grad, values = evaluate(x)
            if k == 0:
                v = grad**2 + NOISE**2
            if k % every == 0:
                losses.append(values)
            if k == steps:
                break
            z.normal_(0.0, NOISE, generator=generator)
            noisy = grad + z
            v.mul_(b2)
            if model == "optimizer":
                v.addcmul_(noisy, noisy, value=1 - b2)
            elif model == "sde":
                v.addcmul_(grad, grad, value=1 - b2).add_((1 - b2) * NOISE**2)
            else:
                v.add_((1 - b2) * NOISE**2)
            x.addcdiv_(noisy, v.sqrt().add_(eps), value=-LR)
        return curve_of(torch.stack(losses), paths)

    def run(seed: int, paths: int, steps: int) -> Curve:
        generator = torch.Generator(device()).manual_seed(seed)
        curves = [simulate(model, paths, steps, generator) for model in MODELS]
        return Curve(*(np.concatenate([c[i] for c in curves]) for i in range(2)), paths)

    return run


def _network(batch: str) -> tuple[torch.Tensor, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]]:
    """The start, and gradients and losses of parameters of shape (P, d)."""
    import sdelens as sl

    problem = sl.network("mlp")
    shapes = problem.layout.shapes
    layers, sizes = len(shapes) // 2, [int(np.prod(shape)) for shape in shapes]
    features, labels = (torch.from_numpy(np.array(a)).to(device()) for a in problem.data)
    features, labels = features.T.contiguous(), labels.float()

    def parts(x: torch.Tensor) -> Any:
        pieces = [piece.unflatten(-1, shape) for piece, shape in zip(x.split(sizes, dim=-1), shapes, strict=True)]
        return zip(pieces[:layers], pieces[layers:], strict=True)

    def logits(x: torch.Tensor, hidden: torch.Tensor, product: Callable[..., torch.Tensor]) -> torch.Tensor:
        for i, (weight, bias) in enumerate(parts(x)):
            hidden = product(bias[..., None], weight, hidden)
            hidden = functional.relu(hidden) if i + 1 < layers else hidden
        return hidden[..., 0, :]

    def loss(x: torch.Tensor) -> torch.Tensor:
        return functional.binary_cross_entropy_with_logits(logits(x, features, torch.addmm), labels)

    def looped(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        grads, values = [], []
        for row in x:
            y = row.detach().requires_grad_(True)
            value = loss(y)
            grads.append(torch.autograd.grad(value, y)[0])
            values.append(value.detach())
        return torch.stack(grads), torch.stack(values)

    def stacked(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = x.detach().requires_grad_(True)
        found = logits(y, features.expand(len(x), -1, -1), torch.baddbmm)
        wanted = labels.expand_as(found)
        values = functional.binary_cross_entropy_with_logits(found, wanted, reduction="none").mean(dim=1)
        return torch.autograd.grad(values.sum(), y)[0], values.detach()

    ways = {"loop": looped, "stacked": stacked, "func": torch.func.vmap(torch.func.grad_and_value(loss))}
    return torch.from_numpy(np.array(problem.start)).to(device()), ways[batch]
