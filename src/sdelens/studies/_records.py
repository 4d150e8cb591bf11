"""A finished claim on disk: its numbers as JSON next to figures and animations, written atomically."""

import functools
import hashlib
import json
import math
import shutil
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib as mpl

from sdelens.core.files import atomic_path, save_figure
from sdelens.results.figures import style
from sdelens.studies._study import Outcome, Study
from sdelens.studies._verdicts import Item, joined

__all__ = ["Record", "begin", "broken", "identity", "kept", "write"]

_NAME = "outcome.json"
_PLAN = "plan.json"
_ENDINGS = ("svg", "pdf", "png")


@dataclass(frozen=True)
class Record:
    """The contents of a claim's folder.

    Attributes:
        name: name of the claim.
        items: numbers of the claim.
        settings: lines that say what was run.
        remarks: remarks for the reader.
        pictures: name, caption and alternative text of every figure; files are ``name.svg``, ``.pdf``, ``.png``.
        animations: likewise; files are ``name.gif``.
        seconds: duration of the run.
        identity: everything that determines the numbers, see `identity`.
        error: why the claim could not be run, else empty.
    """

    name: str
    items: list[Item]
    settings: list[str]
    remarks: list[str]
    pictures: list[dict[str, str]]
    animations: list[dict[str, str]]
    seconds: float
    identity: dict[str, Any]
    error: str = ""

    @property
    def verdict(self) -> str:
        """``"holds"``, ``"fails"`` or ``"not resolved"``."""
        return joined(self.items)


def identity(study: Study, preset: str, seed: int, confidence: float) -> dict[str, Any]:
    """What determines a claim's numbers, including all code of the library; other records are not reused."""
    return {
        "claim": study.name,
        "preset": preset,
        "sizes": json.loads(json.dumps(study.sizes[preset])),
        "seed": seed,
        "confidence": confidence,
        "versions": {name: version(name) for name in ("sdelens", "jax", "numpy", "optax")},
        "source": _source(),
    }


@functools.cache
def _source() -> str:
    """A digest of every module of the library."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def kept(folder: Path, wanted: dict[str, Any]) -> Record | None:
    """The record in a claim's folder, if it is complete and its identity is `wanted`."""
    try:
        found = json.loads((folder / _NAME).read_text(encoding="utf-8"))
        items = [Item(**{k: _from_json(v) for k, v in item.items()}) for item in found.pop("items")]
        record = Record(items=items, **found)
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError):
        return None
    files = [f"{p['name']}.{e}" for p in record.pictures for e in _ENDINGS]
    files += [f"{a['name']}.gif" for a in record.animations]
    whole = all((folder / file).is_file() for file in files)
    return record if whole and record.identity == wanted else None


def begin(folder: Path, wanted: dict[str, Any], resume: bool, overwrite: bool) -> None:
    """Prepare a claim's folder: existing runs are kept if resumed, and removed only if `overwrite` is True.

    Raises:
        FileExistsError: if there are other files, or runs that can be neither resumed nor replaced.
    """
    path = folder / _PLAN
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found = {}
        if not (resume and found == wanted):
            if not overwrite:
                other = [key for key, value in wanted.items() if found.get(key) != value]
                said = f"with another {', '.join(other)}" if other else "with the same settings"
                remedy = "give another folder, or --overwrite" + ("" if other else ", or --resume")
                raise FileExistsError(f"out: {str(folder)!r} contains runs {said}; {remedy}.")
            shutil.rmtree(folder)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"out: {str(folder)!r} contains no study; give another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(path, wanted)


def broken(study: Study, error: Exception, seconds: float, wanted: dict[str, Any]) -> Record:
    """The record of a claim that could not be run; it is not saved, so the next run tries again."""
    said = f"{type(error).__name__}: {error}"
    return Record(study.name, [], [], [f"The claim could not be run. {said}"], [], [], seconds, wanted, said)


def write(folder: Path, study: Study, outcome: Outcome, seconds: float, wanted: dict[str, Any]) -> Record:
    """Write figures and animations, then the record that names them."""
    for picture in outcome.pictures:
        with style(), mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": study.name}):
            figure = picture.draw()
            for ending in _ENDINGS:
                save_figure(figure, folder / f"{picture.name}.{ending}")
    for animation in outcome.animations:
        with atomic_path(folder / f"{animation.name}.gif") as temporary:
            animation.write(Path(temporary))
    shown = [{"name": p.name, "caption": p.caption, "alt": p.alt} for p in outcome.pictures]
    films = [{"name": a.name, "caption": a.caption, "alt": a.alt} for a in outcome.animations]
    lists = (list(outcome.items), list(outcome.settings), list(outcome.remarks))
    record = Record(study.name, *lists, shown, films, seconds, wanted)
    items = [{k: _to_json(v) for k, v in asdict(item).items()} for item in record.items]
    _write_json(folder / _NAME, asdict(record) | {"items": items})
    return record


def _write_json(path: Path, content: Any) -> None:
    with atomic_path(path) as temporary:
        Path(temporary).write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")


def _to_json(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _from_json(value: Any) -> Any:
    return float(value) if value in ("inf", "-inf", "nan") else value
