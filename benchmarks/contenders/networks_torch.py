"""Networks in PyTorch, eager or compiled: RMSprop, its SDE and the earlier one, many paths, noise in the gradient.

Three ways to have the gradients of all paths: a loop over them, `torch.func.vmap`, and batched products of matrices.
Products of float32 matrices have the precision of those of JAX: TF32 on a GPU, all bits on a CPU.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from benchmarks.contenders.networks import LR, MODELS, NOISE, problem_of, specification
from benchmarks.contenders.task import Curve
from benchmarks.contenders.with_torch import curve_of, device

__all__ = ["compare"]

_Logits = Callable[[Iterator[torch.Tensor]], torch.Tensor]


def compare(network: str, every: int, batch: str, compiled: bool, whole: bool) -> Callable[[int, int, int], Curve]:
    """Mean losses of the three models, one after another.

    Args:
        network: ``"mlp"``, ``"cnn"`` or ``"vit"``.
        every: steps between records.
        batch: ``"loop"``, ``"func"`` or, without convolutions, ``"stacked"``.
        compiled: whether `torch.compile` makes the gradient and the update.
        whole: whether the network has its default sizes, as on a GPU.

    Raises:
        RuntimeError: if JAX computes on a GPU and PyTorch finds none.
    """
    if whole and device().type == "cpu":
        raise RuntimeError("PyTorch finds no GPU.")
    torch.set_float32_matmul_precision("high" if device().type == "cuda" else "highest")
    compiler: Callable[[Any], Any] = (lambda function: function) if not compiled else _compiler()
    start, evaluate = _network(network, batch, whole, compiler)
    b2, eps = float(specification().b2), float(specification().eps)

    @compiler
    def advance(model: str, x: torch.Tensor, v: torch.Tensor, grad: torch.Tensor, z: torch.Tensor) -> None:
        noisy = grad + z
        v.mul_(b2)
        if model == "optimizer":
            v.addcmul_(noisy, noisy, value=1 - b2)
        elif model == "sde":
            v.addcmul_(grad, grad, value=1 - b2).add_((1 - b2) * NOISE**2)
        else:
            v.add_((1 - b2) * NOISE**2)
        x.addcdiv_(noisy, v.sqrt().add_(eps), value=-LR)

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
            advance(model, x, v, grad, z)
        return curve_of(torch.stack(losses), paths)

    def run(seed: int, paths: int, steps: int) -> Curve:
        generator = torch.Generator(device()).manual_seed(seed)
        curves = [simulate(model, paths, steps, generator) for model in MODELS[:3]]
        return Curve(*(np.concatenate([c[i] for c in curves]) for i in range(2)), paths)

    return run


def _compiler() -> Callable[[Any], Any]:
    """`torch.compile` for the sizes at hand, without its cache on disk."""
    import torch._inductor.config

    torch._inductor.config.force_disable_caches = True
    return partial(torch.compile, dynamic=False)


class _Task(NamedTuple):
    """A network as functions of its parameters, each of shape (…) or, of many paths, (P, …).

    Attributes:
        logits: of shape (n,) for two classes or (n, classes), after P if there are many paths.
        labels: of shape (n,).
    """

    logits: _Logits
    labels: torch.Tensor


def _network(
    network: str, batch: str, whole: bool, compiler: Callable[[Any], Any]
) -> tuple[torch.Tensor, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]]:
    """The start, and gradients and losses of parameters of shape (P, d)."""
    problem = problem_of(network, whole)
    shapes = problem.layout.shapes
    sizes = [int(np.prod(shape)) for shape in shapes]
    task = _TASKS[network](problem, *(torch.from_numpy(np.array(a)).to(device()) for a in problem.data))
    binary = task.labels.is_floating_point()

    def parts(x: torch.Tensor) -> Iterator[torch.Tensor]:
        return (piece.unflatten(-1, shape) for piece, shape in zip(x.split(sizes, dim=-1), shapes, strict=True))

    def loss(x: torch.Tensor) -> torch.Tensor:
        found = task.logits(parts(x))
        if binary:
            return functional.binary_cross_entropy_with_logits(found, task.labels)
        return functional.cross_entropy(found, task.labels)

    @compiler
    def losses(x: torch.Tensor) -> torch.Tensor:
        found = task.logits(parts(x))
        wanted = task.labels.expand(len(x), -1)
        if binary:
            return functional.binary_cross_entropy_with_logits(found, wanted, reduction="none").mean(dim=1)
        return functional.cross_entropy(found.flatten(0, 1), wanted.flatten(), reduction="none").view_as(wanted).mean(1)

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
        values = losses(y)
        return torch.autograd.grad(values.sum(), y)[0], values.detach()

    together = compiler(torch.func.vmap(torch.func.grad_and_value(loss)))
    ways = {"loop": looped, "stacked": stacked, "func": together}
    return torch.from_numpy(np.array(problem.start)).to(device()), ways[batch]


def _mlp(problem: Any, features: torch.Tensor, labels: torch.Tensor) -> _Task:
    columns, layers = features.T.contiguous(), len(problem.layout.shapes) // 2

    def logits(parts: Iterator[torch.Tensor]) -> torch.Tensor:
        pieces = list(parts)
        many = pieces[0].ndim == 3
        hidden = columns.expand(len(pieces[0]), -1, -1) if many else columns
        product = torch.baddbmm if many else torch.addmm
        for i, (weight, bias) in enumerate(zip(pieces[:layers], pieces[layers:], strict=True)):
            hidden = product(bias[..., None], weight, hidden)
            hidden = functional.relu(hidden) if i + 1 < layers else hidden
        return hidden[..., 0, :]

    return _Task(logits, labels.float())


def _cnn(problem: Any, features: torch.Tensor, labels: torch.Tensor) -> _Task:
    images = features.permute(0, 3, 1, 2).contiguous()

    def logits(parts: Iterator[torch.Tensor]) -> torch.Tensor:
        hidden = images
        for _ in range(2):
            weight, bias = next(parts), next(parts)
            hidden = functional.conv2d(hidden, weight.permute(3, 2, 0, 1), bias, padding=1)
            hidden = functional.relu(functional.max_pool2d(hidden, 2))
        hidden = functional.relu(_dense(parts, hidden.permute(0, 2, 3, 1).flatten(1)))
        return _dense(parts, hidden)

    return _Task(logits, labels.long())


def _vit(problem: Any, features: torch.Tensor, labels: torch.Tensor) -> _Task:
    sizes = problem.describe()
    n, height, width, channels = features.shape
    p = sizes["patch"]
    grid = features.reshape(n, height // p, p, width // p, p, channels).permute(0, 1, 3, 2, 4, 5)
    patches, positions = grid.reshape(-1, p * p * channels), (height // p) * (width // p)

    def attended(qkv: torch.Tensor) -> torch.Tensor:
        q, k, v = qkv.unflatten(-1, (3, sizes["heads"], -1)).unflatten(-4, (n, positions)).unbind(-3)
        q, k, v = (a.flatten(0, -4).transpose(1, 2) for a in (q, k, v))
        if qkv.ndim == 2:  # one path: `vmap` of the fused function would fall back to a loop on a CPU
            found = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v
        else:
            found = functional.scaled_dot_product_attention(q, k, v)
        return found.transpose(1, 2).reshape(*qkv.shape[:-1], -1)

    def logits(parts: Iterator[torch.Tensor]) -> torch.Tensor:
        embedded = _dense(parts, patches).unflatten(-2, (n, positions))
        hidden = (embedded + next(parts)[..., None, :, :]).flatten(-3, -2)
        for _ in range(sizes["depth"]):
            hidden = hidden + _dense(parts, attended(_dense(parts, _norm(parts, hidden))))
            hidden = hidden + _dense(parts, functional.gelu(_dense(parts, _norm(parts, hidden)), approximate="tanh"))
        return _dense(parts, _norm(parts, hidden).unflatten(-2, (n, positions)).mean(dim=-2))

    return _Task(logits, labels.long())


def _dense(parts: Iterator[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    weight, bias = next(parts), next(parts)
    return x @ weight + bias[..., None, :]


def _norm(parts: Iterator[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    scale, bias = next(parts), next(parts)
    return functional.layer_norm(x, x.shape[-1:]) * scale[..., None, :] + bias[..., None, :]


_TASKS: dict[str, Callable[[Any, torch.Tensor, torch.Tensor], _Task]] = {"mlp": _mlp, "cnn": _cnn, "vit": _vit}
