"""Where checkpoints keep the states of optimizers and schedulers, their counts of steps, and their arguments."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from pathlib import Path
from typing import Any, Final, NamedTuple

from sdelens.scaling import Rescaled, ratio_of
from sdelens.torch._optimizers import plain_number
from sdelens.torch._schedulers import nearest
from sdelens.torch._schedules import Schedule, is_state

__all__ = ["LIGHTNING", "Place", "arguments_of", "left_alone", "lightning_counts", "places", "trainer_state"]

LIGHTNING: Final = "pytorch-lightning_version"
"""A key that only checkpoints of Lightning have."""
_DEEPEST: Final = 6
_COUNTS: Final = ("step", "steps", "global_step", "iter", "iteration", "iterations", "iter_num", "num_updates")
_PER_STEP: Final = ("epoch_loop.batch_progress", "epoch_loop.automatic_optimization", "epoch_loop.manual_optimization")
"""Parts of Lightning's fit loop that count batches or steps."""


@dataclass(frozen=True)
class Place:
    """A value in a nested checkpoint.

    Attributes:
        value: the value.
        holder: the dict or list that holds it; None for the whole checkpoint.
        key: its key in the holder.
        name: keys from the top, for messages.
    """

    value: Any
    holder: Any
    key: Any
    name: str

    def __str__(self) -> str:
        return self.name or "the whole file"

    def replace(self, value: Any) -> None:
        """Put another value in its place."""
        self.holder[self.key] = value


def places(content: Any) -> tuple[list[Place], list[Place]]:
    """The state dicts of optimizers and of schedulers in a nested checkpoint."""
    optimizers: list[Place] = []
    schedulers: list[Place] = []

    def visit(place: Place, depth: int) -> None:
        value = place.value
        if isinstance(value, Mapping) and "param_groups" in value and "state" in value:
            optimizers.append(place)
        elif is_state(value):
            schedulers.append(place)
        elif depth < _DEEPEST and isinstance(value, dict | list):
            for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
                visit(Place(inner, value, key, f"{place.name}.{key}".lstrip(".")), depth + 1)

    visit(Place(content, None, None, ""), 0)
    return optimizers, schedulers


def left_alone(content: Mapping[str, Any], batch_ratio: float) -> list[str]:
    """A sentence on the counts of a plain checkpoint, whose meaning only the training script knows."""
    ratio = ratio_of(batch_ratio)
    found = {k: v for k, v in content.items() if k in _COUNTS and isinstance(v, int) and not isinstance(v, bool)}
    listed = ", ".join(f"{k} = {v}, which is {float(v / ratio):.8g} steps of the new batch" for k, v in found.items())
    return [f"Left as they are in the file: {listed}."] if found else []


def lightning_counts(
    content: Mapping[str, Any], batch_ratio: float, scheduler_by_step: bool
) -> tuple[dict[str, Any], list[str]]:
    """The counts of a checkpoint of Lightning at the new batch size, and a sentence about them."""
    ratio = ratio_of(batch_ratio)
    parts = (*_PER_STEP, "epoch_loop.scheduler_progress") if scheduler_by_step else _PER_STEP
    loops = dict(content.get("loops") or {})
    fit = dict(loops.get("fit_loop") or {})
    for key, value in fit.items():
        if key.startswith(parts) or (key == "epoch_loop.state_dict" and isinstance(value, Mapping)):
            fit[key] = _divided(value, ratio)
    if fit:
        loops["fit_loop"] = fit
    said = [
        "The counts of batches and steps of the fit loop are those of a data loader with the larger batches; "
        "hyper_parameters and callbacks are as they were."
    ]
    found: dict[str, Any] = {"global_step": nearest(content["global_step"], ratio)}
    return found | ({"loops": loops} if loops else {}), said


def _divided(value: Any, ratio: Fraction) -> Any:
    """All whole numbers in a nested dict divided by the ratio and rounded."""
    if isinstance(value, Mapping):
        return {key: _divided(inner, ratio) for key, inner in value.items()}
    return nearest(value, ratio) if isinstance(value, int) and not isinstance(value, bool) else value


class Trainer(NamedTuple):
    """What becomes of a checkpoint of the Hugging Face Trainer.

    Attributes:
        text: the new trainer_state.json.
        arguments: new arguments of the training script.
        said: sentences for the account.
    """

    text: str
    arguments: dict[str, Any]
    said: list[str]


def trainer_state(path: Path, batch_ratio: float) -> Trainer:
    """The new trainer_state.json of the Hugging Face Trainer.

    Raises:
        ValueError: if the file is not one.
    """
    ratio = ratio_of(batch_ratio)
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"path: {str(path)!r} is not JSON ({error}); copy the checkpoint again.") from error
    if not isinstance(state, dict) or not isinstance(state.get("global_step"), int):
        raise ValueError(f"path: {str(path)!r} has no whole number global_step; copy the checkpoint again.")
    said = ["log_history of the Trainer is left as it is, in steps of the old batch size."]
    arguments: dict[str, Any] = {}
    new = dict(state)
    new["global_step"] = nearest(state["global_step"], ratio)
    if isinstance(state.get("max_steps"), int) and state["max_steps"] > 0:
        new["max_steps"] = arguments["max_steps"] = nearest(state["max_steps"], ratio, 1)
    for name in ("logging_steps", "eval_steps", "save_steps"):
        if isinstance(state.get(name), int) and state[name] > 0:
            new[name] = arguments[name] = nearest(state[name], ratio, 1)
    size = state.get("train_batch_size")
    if isinstance(size, int) and size > 0:
        larger = size * ratio
        if larger.denominator == 1:
            new["train_batch_size"] = arguments["per_device_train_batch_size"] = int(larger)
            said.append(
                f"per_device_train_batch_size is {int(larger)} on the same number of devices; gradient accumulation "
                f"over {float(ratio):g} times as many batches of {size} does the same."
            )
        else:
            said.append(f"A batch of {size} times {float(ratio):g} is no whole number; choose another ratio for it.")
    return Trainer(json.dumps(new, indent=2, sort_keys=True) + "\n", arguments, said)


_HF: Final = {"lr": "learning_rate", "eps": "adam_epsilon", "weight_decay": "weight_decay"}


def arguments_of(
    groups: Sequence[Mapping[str, Any]], account: Rescaled, schedules: Sequence[Schedule], trainer: bool
) -> dict[str, Any]:
    """New arguments of the training script by name: those of Hugging Face's Trainer, or those of PyTorch."""
    first = {key: plain_number(value) for key, value in groups[0].items() if key != "params"}
    first["lr"] = first.get("initial_lr", first["lr"])
    decays = [plain_number(group.get("weight_decay", 0)) for group in groups]
    first["weight_decay"] = max(decays)  # groups without decay are those of biases and norms
    found: dict[str, Any] = {}
    for key in ("lr", "betas", "momentum", "alpha", "eps", "weight_decay"):
        if key not in first:
            continue
        if trainer and key == "betas":
            found |= {"adam_beta1": first[key][0], "adam_beta2": first[key][1]}
        else:
            found[_HF.get(key, key) if trainer else key] = first[key]
    if account.warmup is not None:
        found["warmup_steps"] = account.warmup
    if account.clip_norm is not None:
        found["max_grad_norm" if trainer else "clip_norm"] = account.clip_norm
    if account.steps is not None:
        found["max_steps"] = account.steps
    for schedule in schedules:
        found |= _scheduler_arguments(schedule)
    return found


def _scheduler_arguments(schedule: Schedule) -> dict[str, Any]:
    """The numbers of steps of a scheduler that its constructor takes."""
    names = ("step_size", "total_iters", "T_max", "T_0", "total_steps", "patience", "cooldown")
    found: dict[str, Any] = {
        f"{schedule.kind}.{k}": v for k, v in schedule.state.items() if k in names and isinstance(v, Real)
    }
    if "milestones" in schedule.state:
        found[f"{schedule.kind}.milestones"] = sorted(schedule.state["milestones"])
    if "_milestones" in schedule.state:
        found[f"{schedule.kind}.milestones"] = list(schedule.state["_milestones"])
    for number, part in enumerate(schedule.parts):
        found |= {f"[{number}].{key}": value for key, value in _scheduler_arguments(part).items()}
    return found
