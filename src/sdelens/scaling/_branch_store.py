"""Finished runs of a comparison, one JSON file each, so that an interrupted comparison continues."""

import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdelens.core.files import atomic_path
from sdelens.scaling._branches import BranchRun, Curve, Plan

__all__ = ["Kept"]


class Kept:
    """Finished runs in a folder, one JSON file each; without a folder nothing is kept."""

    def __init__(self, folder: Path | None, checkpoint: Any, plan: Plan) -> None:
        self.folder = folder
        self.common = {
            "checkpoint": os.fspath(checkpoint) if isinstance(checkpoint, str | os.PathLike) else None,
            "samples": plan.samples,
        }

    def check(self, runs: Sequence[BranchRun]) -> None:
        """Compare everything that is in the folder with the plan, before anything is run.

        Raises:
            ValueError: if a file belongs to another comparison; the message names what differs.
        """
        for path, run in self._paths(runs):
            if not path.exists():
                continue
            try:
                stored = json.loads(path.read_text(encoding="utf-8"))
                found = stored["plan"]
                stored["samples"], stored["losses"], stored["failure"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"folder: {path} is not a run of sdelens.scaling.branch; give another folder."
                ) from error
            ours = self._plan(run)
            differ = [k for k in ours if found.get(k) != ours[k]]
            if differ:
                raise ValueError(
                    f"folder: {path} belongs to another comparison: its {differ[0]} is {found.get(differ[0])}, not "
                    f"{ours[differ[0]]}; give another folder."
                )

    def load(self, run: BranchRun) -> Curve | None:
        """The run, if it was finished before."""
        for path, _ in self._paths([run]):
            if path.exists():
                stored = json.loads(path.read_text(encoding="utf-8"))
                x, y = (np.asarray(stored[k], float) for k in ("samples", "losses"))
                return Curve(run.label, run.ratio, run.seed, x, y, stored["failure"])
        return None

    def save(self, run: BranchRun, curve: Curve) -> Curve:
        """Keep a run; one that raised is not kept, so that it is repeated."""
        for path, _ in () if curve.raised else self._paths([run]):
            stored = {"plan": self._plan(run), "failure": curve.failure}
            stored |= {"samples": curve.samples.tolist(), "losses": curve.losses.tolist()}
            with atomic_path(path) as temporary:
                Path(temporary).write_text(json.dumps(stored), encoding="utf-8")
        return curve

    def _paths(self, runs: Sequence[BranchRun]) -> Iterator[tuple[Path, BranchRun]]:
        if self.folder is None:
            return
        for run in runs:
            label = re.sub(r"[^\w.-]+", "-", run.label)
            if label != run.label:  # other labels may be written alike
                label += f"-{zlib.crc32(run.label.encode()):08x}"
            yield self.folder / f"{label}-x{run.ratio:g}-seed{run.seed}.json", run

    def _plan(self, run: BranchRun) -> dict[str, Any]:
        numbers = {r.name if r.group is None else f"{r.name} [{r.group}]": r.after for r in run.rescaled.account}
        own = {"label": run.label, "batch_size": run.batch_size, "steps": run.steps, "hyperparameters": numbers}
        found: dict[str, Any] = json.loads(json.dumps({**self.common, **own}))
        return found
