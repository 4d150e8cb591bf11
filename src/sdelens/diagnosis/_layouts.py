"""Where training frameworks put the state of the optimizer in their folders, and what they wrap it in."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["ENDINGS", "Place", "is_megatron", "locate", "megatron_state", "plain_state"]

ENDINGS = (".pt", ".pth", ".bin", ".ckpt", ".pth.tar")
"""Endings of the files that are read from a folder."""
_DEEPEST = 8


class Place(NamedTuple):
    """Where a state lies.

    Attributes:
        kind: "files" of PyTorch, a "distributed" checkpoint of PyTorch, or an "orbax" checkpoint.
        paths: the files, or the folder.
    """

    kind: str
    paths: list[Path]


def locate(folder: Path) -> Place:
    """The state of the optimizer in a folder, from which subfolders of the last checkpoint are followed.

    Raises:
        ValueError: if there is none, or there are several.
    """
    for _ in range(_DEEPEST):
        place = _here(folder)
        if place is not None:
            return place
        below = _last(folder) or _below(folder)
        if below is None:
            break
        folder = below
    raise ValueError(
        f"state: {str(folder)!r} contains no file that ends in {', '.join(ENDINGS)}, and no distributed, Orbax, "
        "DeepSpeed, Megatron or Trainer checkpoint; give a list of the files."
    )


def _here(folder: Path) -> Place | None:
    """The state in a folder itself."""
    names = {path.name for path in folder.iterdir()}
    if any(name.endswith(".distcp") for name in names) or {".metadata"} & names:
        if ".metadata" not in names:
            raise ValueError(
                f"state: {str(folder)!r} has .distcp files but no .metadata, which is written last: the checkpoint is "
                "incomplete; give an earlier one."
            )
        return Place("distributed", [folder])
    if {"_METADATA", "manifest.ocdbt"} & names:
        return Place("orbax", [folder])
    files = _files(folder)
    return Place("files", files) if files else None


def _files(folder: Path) -> list[Path]:
    """The files with the optimizer's state in a folder; none if they are in a subfolder."""
    ranks = sorted(path for path in folder.glob("mp_rank_*") if path.is_dir())
    zero = sorted(folder.glob("*_optim_states.pt"))
    if ranks or zero:
        return zero or [_megatron(rank) for rank in ranks]
    whole = sorted(path for path in folder.iterdir() if re.fullmatch(r"optimizer(_\d+)?\.(pt|bin)", path.name))
    if len(whole) > 1:
        listed = ", ".join(repr(path.name) for path in whole)
        raise ValueError(
            f"state: {str(folder)!r} contains {len(whole)} optimizers ({listed}); give one of these files."
        )
    if whole or _last(folder) is not None:
        return whole
    return sorted(path for path in folder.iterdir() if path.name.endswith(ENDINGS) and path.is_file())


def _below(folder: Path) -> Path | None:
    """The subfolder in which training frameworks put the optimizer."""
    names = ("optimizer", "optimizer_0", "optim", "opt_state", "train_state", "state", "default", "checkpoints")
    named = next((folder / name for name in (*names, "lightning_logs") if (folder / name).is_dir()), None)
    items = [path for path in folder.iterdir() if (path / "_METADATA").is_file()]
    return named or (items[0] if len(items) == 1 else None)


def _last(folder: Path) -> Path | None:
    """The subfolder with the last checkpoint, by the notes and names of training frameworks."""
    for note, pattern in (("latest", "{}"), ("latest_checkpointed_iteration.txt", "iter_{:0>7}")):
        if (folder / note).is_file():
            named = pattern.format((folder / note).read_text(errors="replace").strip()[:200])
            if named and "/" not in named and (folder / named).is_dir():
                return folder / named
    folders = [path for path in folder.iterdir() if path.is_dir()]
    for pattern in (
        r"checkpoint-(\d+)",
        r"global_step(\d+)",
        r"iter_(\d+)",
        r"version_(\d+)",
        r"(?:step|epoch)[-_]?(\d+)",
    ):
        numbered = [(int(found[1]), path) for path in folders if (found := re.fullmatch(pattern, path.name))]
        if numbered:
            return max(numbered)[1]
    steps = [
        (int(path.name), path) for path in folders if path.name.isdigit() and (path / "_CHECKPOINT_METADATA").exists()
    ]
    return max(steps)[1] if steps else None


def _megatron(rank: Path) -> Path:
    """The file with the moments of a rank of Megatron."""
    for name in ("distrib_optim.pt", "model_optim_rng.pt"):
        if (rank / name).is_file():
            return rank / name
    raise ValueError(
        f"state: {str(rank)!r} contains neither distrib_optim.pt nor model_optim_rng.pt; save the optimizer with the "
        "checkpoint (without --no-save-optim)."
    )


def plain_state(found: Any) -> Any:
    """A DeepSpeed ZeRO file whose optimizer is a list of flat groups, as a state dict; anything else as it is."""
    inner = found.get("optimizer_state_dict") if isinstance(found, Mapping) else None
    groups = inner.get("base_optimizer_state") if isinstance(inner, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(groups, list):
        return found
    step = inner.get("base_optimizer_state_step")
    state = {
        index: {**group, **({} if step is None else {"step": step})}
        for index, group in enumerate(groups)
        if isinstance(group, Mapping)
    }
    return {"state": state, "param_groups": []}


def is_megatron(found: Any) -> bool:
    """Whether it is the content of a `distrib_optim.pt`, with the moments of whole buffers of parameters."""
    return next(_buffers(found, 0), None) is not None and not _has_state(found)


def _has_state(found: Any) -> bool:
    return isinstance(found, Mapping) and any(key in found for key in ("state", "optimizer", "optimizer_states"))


def megatron_state(found: Any, beside: Any) -> Any:
    """The buffers of a `distrib_optim.pt` as a state dict.

    Args:
        found: its content.
        beside: content of the `model_optim_rng.pt` beside it, which has the parameter groups, or None.
    """
    groups = list(_groups(beside, 0))
    step = next((group["step"] for group in groups if group.get("step") is not None), None)
    shared = {k: v for k, v in (groups[0] if groups else {}).items() if k != "step"}
    if any(group.get("betas") != shared.get("betas") for group in groups):
        shared["betas"] = ()  # the buffers mix the groups
    decays = [float(group.get("weight_decay") or 0.0) for group in groups]
    if len(set(decays)) > 1:
        shared["weight_decay"] = max(decays)
        shared.pop("decoupled_weight_decay", None)
    moments = ("exp_avg", "exp_avg_sq")
    state = {
        f"buffer {index}": {**{k: held[k] for k in moments}, **({} if step is None else {"step": step})}
        for index, held in enumerate(_buffers(found, 0))
    }
    return {"state": state, "param_groups": [{**shared, "params": list(state)}] if groups else []}


def _buffers(found: Any, depth: int) -> Iterator[Mapping[str, Any]]:
    if isinstance(found, Mapping):
        if {"param", "exp_avg", "exp_avg_sq"} <= {str(key) for key in found} and hasattr(found["exp_avg"], "shape"):
            yield found
            return
        inside = list(found.values())
    else:
        inside = list(found) if isinstance(found, list | tuple) else []
    if depth < _DEEPEST:
        for part in inside:
            yield from _buffers(part, depth + 1)


def _groups(found: Any, depth: int) -> Iterator[Mapping[str, Any]]:
    """Parameter groups at any depth."""
    if depth > _DEEPEST or not isinstance(found, Mapping | list):
        return
    groups = found.get("param_groups") if isinstance(found, Mapping) else None
    if isinstance(groups, list):
        yield from (group for group in groups if isinstance(group, Mapping) and "betas" in group)
        return
    for part in found.values() if isinstance(found, Mapping) else found:
        yield from _groups(part, depth + 1)
