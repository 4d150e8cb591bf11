"""Rescale a training checkpoint on disk to another batch size, and write it under a new name."""

import dataclasses
import pickle
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from sdelens.core import check
from sdelens.core.files import atomic_path, check_writable
from sdelens.torch._layouts import LIGHTNING, Place, arguments_of, left_alone, lightning_counts, places, trainer_state
from sdelens.torch._optimizers import KNOWN, Known, known_by_fields
from sdelens.torch._plan import Options, Plan, RescaledRun, Target, plan
from sdelens.torch._schedules import of_state, to_state

__all__ = ["rescale_checkpoint"]

_OPTIMIZERS: Final = ("optimizer.pt", "optimizer.bin")
_SCHEDULERS: Final = ("scheduler.pt", "scheduler.bin")
_STATE: Final = "trainer_state.json"


def rescale_checkpoint(
    path: str | Path,
    batch_ratio: float,
    out: str | Path,
    rule: str | None = None,
    *,
    optimizer: str | None = None,
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
    """Write a checkpoint with which a run continues at a batch size `batch_ratio` times as large.

    The optimizer's state, its scheduler's, and the counts of steps of the Hugging Face Trainer and of Lightning are
    converted as `sdelens.torch.rescale` converts live ones; everything else is copied. The file is read without
    executing its contents. The account lists the new arguments of the training script: a scheduler made by a function
    (``LambdaLR``, Hugging Face's ``get_scheduler``) is not in the checkpoint, and the script must divide its numbers of
    steps by δ itself.

    Args:
        path: a file that holds the ``state_dict()`` of one optimizer at any depth, such as a plain checkpoint or one of
            Lightning; or a folder of the Hugging Face Trainer or of accelerate; or a Trainer's output folder, of which
            the last checkpoint is taken.
        batch_ratio: δ > 0.
        out: name of the new file or folder, which must not exist.
        rule: as for `sdelens.scaling.rescale`.
        optimizer: name of its class, if the state dict does not tell, for example ``"AdamW"``.
        interval: ``"step"`` or ``"epoch"``, as for `sdelens.torch.rescale`.
        steps: steps of the whole run at the old batch size.
        warmup: warm-up steps of that run.
        clip_norm: norm at which gradients are clipped in that run.
        momentum: how decays β are scaled.
        decay: kind of decay, if it differs from that of the optimizer.
        accumulators: ``"scale"`` or ``"keep"``.
        snr: the measured SNR, for rules that use it.
        batch_size: B of the old run.

    Returns:
        The account, with the new ``arguments`` and the ``path`` written.

    Raises:
        FileNotFoundError, FileExistsError: if `path` does not exist, or `out` does.
        OSError: if `out` cannot be written.
        ValueError, TypeError: if the checkpoint cannot be read or converted; nothing is then written.
    """
    options = Options(
        batch_ratio, rule, interval, steps, warmup, clip_norm, momentum, decay, accumulators, snr, batch_size
    )
    source, target = _source(Path(path)), Path(out)
    if target.exists():
        raise FileExistsError(f"out: {str(target)!r} exists already; give a name that does not exist.")
    check_writable(target, "out")
    if optimizer is not None:
        optimizer = check.choice("optimizer", optimizer, KNOWN)
    rescaled = (_folder if source.is_dir() else _file)(source, target, options, optimizer)
    return dataclasses.replace(rescaled, path=target)


def _source(path: Path) -> Path:
    """The file or folder that holds the state.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is a folder of a kind that is not read.
    """
    if not path.exists():
        raise FileNotFoundError(f"path: {str(path)!r} does not exist; give the path of a checkpoint.")
    if path.is_file():
        return path
    names = {entry.name for entry in path.iterdir()}
    if ".metadata" in names or any(name.endswith(".distcp") for name in names):
        raise ValueError(
            f"path: {str(path)!r} is a distributed checkpoint; convert it to one file by python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {path} FILE, rescale FILE, and convert the result "
            "back by the same command with torch_to_dcp."
        )
    if names & {*_OPTIMIZERS}:
        return path
    numbered = [entry for entry in path.glob("checkpoint-*") if entry.name.rpartition("-")[2].isdigit()]
    if numbered:
        return _source(max(numbered, key=lambda entry: int(entry.name.rpartition("-")[2])))
    raise ValueError(
        f"path: the folder {str(path)!r} has none of {', '.join(_OPTIMIZERS)} and no folder checkpoint-N; give the "
        "file that holds the optimizer's state dict. States that are split over files (DeepSpeed, FSDP) must be joined "
        "first."
    )


def _file(path: Path, out: Path, options: Options, name: str | None) -> RescaledRun:
    """Rescale a single file."""
    content = load(path)
    is_lightning = isinstance(content, Mapping) and LIGHTNING in content
    target, found, put = _planned(content, options, name, str(path))
    more: dict[str, Any] = {}
    said = left_alone(content, options.batch_ratio) if isinstance(content, Mapping) and not is_lightning else []
    if is_lightning:
        more, remarks = lightning_counts(content, options.batch_ratio, found.per_step)
        said += remarks
    account = _account(found, target, options, {}, said)
    found.write(target)
    put()
    _save({**content, **more} if more else content, out)
    return account


def _folder(path: Path, out: Path, options: Options, name: str | None) -> RescaledRun:
    """Rescale a folder of the Trainer or of accelerate: a copy with the converted files in place of the old ones."""
    if path.resolve() in out.resolve().parents:
        raise ValueError(f"out: {str(out)!r} is inside the checkpoint; give a name outside of it.")
    files = [file for names in (_OPTIMIZERS, _SCHEDULERS) for n in names if (file := path / n).is_file()]
    contents = {file.name: load(file) for file in files}
    target, found, put = _planned(contents, options, name, str(path))
    trainer = trainer_state(path / _STATE, options.batch_ratio) if (path / _STATE).is_file() else None
    arguments, said = ({}, []) if trainer is None else (trainer.arguments, trainer.said)
    account = _account(found, target, options, arguments, said)
    found.write(target)
    put()
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=f".{out.name}.") as temporary:
        new = Path(temporary) / out.name
        shutil.copytree(path, new)
        for written, content in contents.items():
            _save(content, new / written)
        if trainer is not None:
            (new / _STATE).write_text(trainer.text, encoding="utf-8")
        new.rename(out)
    return account


def _planned(content: Any, options: Options, name: str | None, where: str) -> tuple[Target, Plan, Callable[[], None]]:
    """The plan for the optimizer in `content`, and what puts the new states of its schedulers into it."""
    optimizers, schedulers = places(content)
    if len(optimizers) != 1:
        listed = ", ".join(str(place) for place in optimizers) or "none"
        raise ValueError(
            f"path: {where!r} must hold the state dict of one optimizer, with state and param_groups, but has "
            f"{listed}; save optimizer.state_dict() under one key, or load it and rescale each optimizer by "
            "sdelens.torch.rescale."
        )
    place = optimizers[0]
    groups, state = place.value["param_groups"], place.value["state"]
    _check_groups(groups, state, place)
    _check_listed(groups, state)
    known = _known(groups, state, name)
    target = Target(known, groups, state, [of_state(scheduler.value) for scheduler in schedulers])
    found = plan(target, options)

    def put() -> None:
        for scheduler, new in zip(schedulers, found.schedules, strict=True):
            scheduler.replace(to_state(new))

    return target, found, put


def _known(groups: Sequence[Mapping[str, Any]], state: Mapping[Any, Any], name: str | None) -> Known:
    if name is None:
        return known_by_fields(groups, list(state.values()))
    known = KNOWN[name]
    missing = sorted({field for group in groups for field in known.fields - group.keys()})
    if missing:
        raise ValueError(
            f"optimizer: got {name!r}, but the parameter groups have no {', '.join(missing)}; give the name of the "
            "class that wrote this checkpoint, or leave it out."
        )
    wrong = next((parts for parts in state.values() if not known.has_parts(parts)), None)
    if wrong is not None:
        raise ValueError(
            f"optimizer: got {name!r}, whose states have {', '.join(known.parts) or 'nothing'}, but here one has "
            f"{', '.join(map(str, wrong))}; give the name of the class that wrote this checkpoint, or load a complete "
            "state."
        )
    return known


def _check_groups(groups: Any, state: Any, place: Place) -> None:
    is_list = isinstance(groups, list) and groups and all(isinstance(g, dict) and "params" in g for g in groups)
    if not is_list or not isinstance(state, Mapping) or not all(isinstance(s, dict) for s in state.values()):
        raise ValueError(
            f"path: {place} is not the state dict of an optimizer of PyTorch, in which param_groups is a list of dicts "
            "with params, and state a dict of dicts; save optimizer.state_dict()."
        )


def _check_listed(groups: Sequence[Mapping[str, Any]], state: Mapping[Any, Any]) -> None:
    """Refuse states of parameters that are in no group, because they would not be converted."""
    listed = {parameter for group in groups for parameter in group["params"]}
    strange = [str(parameter) for parameter in state if parameter not in listed]
    if strange:
        raise ValueError(
            f"path: {len(strange)} states are of parameters that are in no parameter group ({', '.join(strange[:3])}); "
            "save optimizer.state_dict() again."
        )


def _account(
    found: Plan, target: Target, options: Options, arguments: Mapping[str, Any], said: Sequence[str]
) -> RescaledRun:
    """The account with the new arguments, and what the training script must do itself."""
    delta = float(options.batch_ratio)
    steps = f"divide its numbers of steps by {delta:g} (length, warm-up, intervals of logging and saving)"
    remarks = [f"The training script must use a batch {delta:g} times as large, and {steps}."]
    by_function = any(s.kind in ("LambdaLR", "MultiplicativeLR") for s in target.schedules)
    if by_function:
        remarks.append(
            "The function of the scheduler (LambdaLR, get_scheduler of transformers) is not in the checkpoint; the "
            "script must make it with the numbers of steps of the new batch size."
        )
    if not target.schedules:
        remarks.append("There is no scheduler in the checkpoint.")
    account = dataclasses.replace(found.account, assumed=(*remarks, *said, *found.account.assumed))
    # Loaded groups are dicts with numbers of the state; the account holds those that are to be written.
    groups = [{**group, **new} for group, new in zip(target.groups, found.groups, strict=True)]
    account = dataclasses.replace(account, optimizer=groups)
    named = arguments_of(groups, account, found.schedules, bool(arguments))
    states = [to_state(schedule) for schedule in found.schedules]
    return RescaledRun.of(
        account, scheduler=(states[0] if len(states) == 1 else states or None), arguments={**named, **arguments}
    )


def _save(content: Any, out: Path) -> None:
    import torch

    with atomic_path(out, "out") as temporary:
        torch.save(content, temporary)


def load(path: Path) -> Any:
    """The content of a file, of tensors and plain data only.

    Raises:
        ValueError: if it is empty, broken, or contains more; the message names it.
    """
    import torch

    name = repr(str(path))
    if not path.stat().st_size:
        raise ValueError(f"path: {name} is empty; save the checkpoint again.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's warning about what is refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"path: {name} was not read: it is no file of torch.save, or it contains more than tensors and plain data, "
            "whose reading could execute code. If you trust it, allow its classes by "
            "torch.serialization.add_safe_globals, or save only the state dicts of model, optimizer and scheduler."
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # torch.load raises errors of any kind on broken files
        reason = str(error).splitlines()[0] if str(error) else "no message"
        raise ValueError(
            f"path: {name} cannot be read as a checkpoint ({type(error).__name__}: {reason}); copy it again, or save "
            "the state dicts by torch.save."
        ) from error
