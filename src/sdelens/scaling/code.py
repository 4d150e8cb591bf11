"""Rescaled hyperparameters as text to copy: JSON, or the code of a PyTorch or optax optimizer."""

import json
from collections.abc import Callable
from typing import Any

from sdelens.core import check
from sdelens.core.names import CODE_FORMATS
from sdelens.scaling._account import Rescaled
from sdelens.scaling.hyperparameters import L2, Hyperparameters, read_dict

__all__ = ["as_code"]


def as_code(rescaled: Rescaled, form: str) -> str:
    """The new optimizer as JSON, or as code that builds it with its warm-up and clipping.

    The PyTorch code uses a variable ``model``; the optax code defines ``optimizer``.

    Args:
        rescaled: result of rescaling a dict.
        form: ``"json"``, ``"torch"`` or ``"optax"``.

    Raises:
        ValueError: if the target library has no such optimizer, or `form` is unknown.
    """
    check.choice("format", form, [f for f in CODE_FORMATS if f != "table"])
    counts = {"steps": rescaled.steps, "warmup": rescaled.warmup, "clip_norm": rescaled.clip_norm}
    counts = {name: value for name, value in counts.items() if value is not None}
    if form == "json":
        said = {"batch_ratio": rescaled.batch_ratio, "rule": rescaled.rule, "momentum": rescaled.momentum}
        return json.dumps(
            {**rescaled.optimizer, **counts, **said, "assumed": list(rescaled.assumed)}, indent=2, ensure_ascii=False
        )
    numbers = read_dict(rescaled.optimizer).numbers
    build = _torch if form == "torch" else _optax
    return "\n".join(build(numbers, bool(rescaled.optimizer.get("nesterov")), counts))


def _torch(numbers: Hyperparameters, nesterov: bool, counts: dict[str, Any]) -> list[str]:
    kind, arguments = _torch_call(numbers, nesterov)
    lines = ["import torch", "", f"optimizer = torch.optim.{kind}(model.parameters(), {_listed(arguments)})"]
    if counts.get("warmup"):
        lines.append(
            "scheduler = torch.optim.lr_scheduler.LambdaLR("
            f"optimizer, lambda step: min(1.0, (step + 1) / {counts['warmup']}))"
        )
    if "clip_norm" in counts:
        clip = f"torch.nn.utils.clip_grad_norm_(model.parameters(), {_text(counts['clip_norm'])})"
        lines.append(f"# before every optimizer.step(): {clip}")
    return [*lines, *_total(counts)]


def _torch_call(numbers: Hyperparameters, nesterov: bool) -> tuple[str, dict[str, Any]]:
    family, l2 = numbers.family, numbers.decay == L2
    arguments: dict[str, Any] = {"lr": numbers.lr}
    if family == "adamw":
        kind = "Adam" if l2 else "AdamW"
        arguments |= {"betas": (numbers.memories["b1"], numbers.memories["b2"])}
    elif family == "rmspropw" and (l2 or not numbers.weight_decay):
        kind = "RMSprop"
        arguments |= {
            "lr": numbers.written_lr,
            "alpha": next(numbers.memories[k] for k in ("b2", "alpha") if k in numbers.memories),
        }
    elif family in ("sgd", "momentum") and (l2 or not numbers.weight_decay or family == "sgd"):
        kind = "SGD"
    else:
        raise ValueError(
            "format: got 'torch', but torch.optim.Adagrad adds ε outside the root, where it scales differently; use "
            "'optax' or 'json'."
            if family == "adagrad"
            else f"format: got 'torch', but torch.optim has no {family}"
            + (" with decoupled decay" if family in ("rmspropw", "momentum") else "")
            + "; use 'optax' or 'json'."
        )
    momentum = numbers.memories.get("momentum", numbers.memories.get("b1") if family == "momentum" else None)
    if kind in ("SGD", "RMSprop") and momentum:
        arguments |= {"lr": numbers.lr * (1 - momentum), "momentum": momentum}
        if nesterov:
            arguments["nesterov"] = True
    if numbers.eps is not None and kind != "SGD":
        arguments["eps"] = numbers.eps
    decay = numbers.weight_decay / numbers.lr if numbers.decay == "independent" else numbers.weight_decay
    return kind, arguments | {"weight_decay": decay}


def _optax(numbers: Hyperparameters, nesterov: bool, counts: dict[str, Any]) -> list[str]:
    if numbers.memories.get("momentum") and numbers.family == "rmspropw":
        parts = [
            f"optax.scale_by_rms({_listed(_root(numbers))})",
            f"optax.trace({_text(numbers.memories['momentum'])})",
        ]
        gain = 1 - numbers.memories["momentum"]
    else:
        parts, gain = [_optax_direction(numbers, nesterov)], 1.0
    decay = numbers.weight_decay / numbers.lr if numbers.decay == "independent" else numbers.weight_decay
    if decay:
        parts.insert(0 if numbers.decay == L2 else len(parts), f"optax.add_decayed_weights({_text(decay)})")
    if "clip_norm" in counts:
        parts.insert(0, f"optax.clip_by_global_norm({_text(counts['clip_norm'])})")
    rate = numbers.lr * gain
    lines = ["import optax", ""]
    if counts.get("warmup"):
        n = counts["warmup"]
        start = "0.0" if n == 1 else _text(rate / n)
        lines.append(
            f"learning_rate = optax.linear_schedule({start if n > 1 else _text(rate)}, {_text(rate)}, {max(n - 1, 1)})"
        )
    else:
        lines.append(f"learning_rate = {_text(rate)}")
    parts.append("optax.scale_by_learning_rate(learning_rate)")
    return [*lines, "optimizer = optax.chain(", *(f"    {part}," for part in parts if part), ")", *_total(counts)]


def _root(numbers: Hyperparameters) -> dict[str, Any]:
    beta = next(numbers.memories[k] for k in ("b2", "alpha") if k in numbers.memories)
    return {"decay": beta, "eps": 1e-8 if numbers.eps is None else numbers.eps, "eps_in_sqrt": False}


def _optax_direction(numbers: Hyperparameters, nesterov: bool) -> str:
    """The optax transformation of the gradient before decay and learning rate, as code; empty for SGD."""
    memories = numbers.memories
    eps = {"eps": numbers.eps} | ({"eps_root": numbers.eps_root} if numbers.eps_root else {})
    calls: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
        "adamw": ("scale_by_adam", lambda: {"b1": memories["b1"], "b2": memories["b2"], **eps}),
        "rmspropw": ("scale_by_rms", lambda: _root(numbers)),
        "lion": ("scale_by_lion", lambda: {"b1": numbers.blend, "b2": memories["b2"]}),
        "adagrad": ("scale_by_rss", lambda: {"initial_accumulator_value": numbers.accumulator, **eps}),
        "signsgd": ("scale_by_sign", dict),
    }
    if numbers.family in calls:
        name, arguments = calls[numbers.family]
        return f"optax.{name}({_listed(arguments())})"
    if numbers.family == "sgd":
        return ""
    beta = next(iter(memories.values()))
    mean = f"optax.scale({_text(1 - beta)}), optax.trace({_text(beta)}{', nesterov=True' if nesterov else ''})"
    return f"optax.chain({mean}{', optax.scale_by_sign()' if numbers.family == 'signum' else ''})"


def _total(counts: dict[str, Any]) -> list[str]:
    return [f"steps = {counts['steps']}"] if "steps" in counts else []


def _listed(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name}={_text(value)}" for name, value in arguments.items())


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(_text(v) for v in value)})"
    return repr(float(f"{value:.12g}")) if isinstance(value, float) else repr(value)
