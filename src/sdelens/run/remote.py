"""Runs on an executor: each share, a range of paths or a group of points of a sweep, is computed by a worker."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import cloudpickle
import jax

from sdelens.core.differences import differences
from sdelens.core.files import atomic_path, held_folder
from sdelens.core.progress import progress_bar
from sdelens.core.tasks import completed
from sdelens.run.checkpoint import open_checkpoints
from sdelens.run.experiment import prepare, run
from sdelens.run.grid import grid_of, run_grid
from sdelens.run.options import Execution, Options
from sdelens.run.plan import paths_of_share
from sdelens.run.shares import SHARE_FILES, Join, Share, share_name

__all__ = ["run_remotely"]


@dataclass(frozen=True)
class Task:
    """What a worker is to compute.

    Attributes:
        options: options of the run; their execution is that of one share.
        points: numbers of the points of a sweep, None for all.
        index: number of the share.
        count: number of shares.
        wide: whether JAX uses 64-bit numbers.
    """

    options: Options
    points: tuple[int, ...] | None
    index: int
    count: int
    wide: bool


def run_remotely(
    subject: tuple[Any, Any, Any, Any],
    over: Mapping[str, Any] | None,
    options: Options,
    points: int,
    identified: Mapping[str, Any],
) -> tuple[Any, list[str]]:
    """Run all shares on the executor, and join them as they arrive: the result or sweep, and the texts of warnings.

    Args:
        subject: problem, noise, optimizer and models, which have been checked.
        over: the values of a sweep; None for `compare`.
        options: options of the run.
        points: number of points of the sweep, otherwise 1.
        identified: identity of the run, of which the device is not known here.

    Raises:
        ValueError: if the folder for checkpoints contains shares of another run.
        TaskError: if a share is lost again and again, or the executor cannot run any more.
        Exception: what a worker raises, with the number of the share and the remedy as a note.
    """
    execution = options.execution
    assert execution.executor is not None
    assert execution.shares is not None
    joined = Join()
    with _kept_shares(execution) as kept:
        tasks = _tasks(options, points if over is not None else 0)
        common = cloudpickle.dumps((*subject, over))  # once, because it may contain large data
        done = dict(kept.found(len(tasks), identified))
        for index, share in done.items():
            joined.announce(share, f"share {index}")
            joined.add(share)
        left = {index: (common, cloudpickle.dumps(task)) for index, task in tasks.items() if index not in done}
        ended = len(done)
        with progress_bar(execution.progress, len(tasks), ended) as report:
            report(0, f"{ended} of {len(tasks)} shares")
            run = completed(execution.executor, _computed, left, _named(len(tasks)), _remedy(execution))
            with closing(run) as found:
                for index, data in found:
                    share = Share.from_bytes(data)
                    joined.announce(share, f"share {index}")
                    kept.save(share, data)
                    joined.add(share)
                    ended += 1
                    report(1, f"{ended} of {len(tasks)} shares")
        return joined.finish()


def _named(count: int) -> Callable[[int], str]:
    """The name of a share in messages, by its number."""
    return lambda index: f"share {index} of {count}"


def _remedy(execution: Execution) -> str:
    """What to do after an error of a worker."""
    if execution.checkpoint is None:
        return (
            "Correct the cause and run again; with checkpoint=folder the shares that have ended are kept, and "
            "resume=True runs only the others."
        )
    return (
        f"The shares that have ended are kept in {str(execution.checkpoint)!r}; correct the cause and run again with "
        "resume=True."
    )


def _tasks(options: Options, points: int) -> dict[int, Task]:
    """The tasks by number: groups of points if there are as many as shares, otherwise ranges of paths."""
    execution, wide = options.execution, bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]
    count, tasks = execution.shares or 1, {}
    by_points = points >= count
    if not by_points:
        paths_of_share(options.paths, (0, count), execution.chunk)  # refuses more shares than paths
    for index in range(count):
        kept = cast("str | os.PathLike[str] | None", execution.checkpoint)
        folder = None if kept is None else Path(kept).absolute() / f"running-{index}"
        own = replace(
            execution,
            share=None if by_points else (index, count),
            executor=None,
            shares=None,
            progress=False,
            checkpoint=folder,
            checkpoint_every=None if folder is None else execution.checkpoint_every,
            resume=folder is not None,
        )
        some = tuple(range(points * index // count, points * (index + 1) // count)) if by_points else None
        tasks[index] = Task(replace(options, execution=own), some, index, count, wide)
    return tasks


def _computed(data: tuple[bytes, bytes]) -> bytes:
    """Compute a share in the worker; the bytes of its file."""
    common, own = data
    task = cloudpickle.loads(own)
    with jax.enable_x64(task.wide):
        problem, noise, optimizer, models, over = cloudpickle.loads(common)
        options, execution = task.options, task.options.execution
        saved = open_checkpoints(execution.checkpoint, execution.checkpoint_every, execution.resume)
        if over is None:
            experiment = prepare(problem, noise, optimizer, models, options)
            with saved as checkpoints:
                return run(experiment, False, checkpoints).to_bytes()
        grid = grid_of(problem, noise, optimizer, models, over, options)
        with saved as checkpoints:
            share = run_grid(grid, False, checkpoints, task.points)
        return replace(share, index=task.index, count=task.count).to_bytes()


class _Kept:
    """The finished shares of a run that is executed elsewhere, in a folder, if there is one.

    Attributes:
        files: the files of this run, which are removed at its end.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.files: set[Path] = set()

    def found(self, count: int, identified: Mapping[str, Any]) -> Iterator[tuple[int, Share]]:
        """The shares that an earlier call finished.

        Raises:
            ValueError: if they are of another run, naming what differs.
        """
        for path in sorted(self._folder.glob(SHARE_FILES)) if self._folder is not None else ():
            try:
                share = Share.from_bytes(path.read_bytes())
            except ValueError:
                continue  # damaged, so it is computed again and replaced
            here = dict(identified)
            known = {**share.identity, "shares": share.count}
            if share.identity["device"] != here["device"]:  # that of the workers; the code is traced for the device
                known.pop("code", None)
                here.pop("code", None)
                known["device"] = here["device"]
            if differing := differences(known, {**here, "shares": count}):
                raise ValueError(
                    f"checkpoint: {str(self._folder)!r} contains shares of a different run: {'; '.join(differing)}. "
                    "Use the settings of that run, or give another folder."
                )
            self.files.add(path)
            yield share.index, share

    def save(self, share: Share, data: bytes) -> None:
        if self._folder is not None:
            path = self._folder / share_name(share.index, share.count)
            with atomic_path(path) as temporary:
                Path(temporary).write_bytes(data)
            self.files.add(path)


@contextmanager
def _kept_shares(execution: Execution) -> Iterator[_Kept]:
    """The finished shares in the folder for checkpoints, which are removed if the block ends without error."""
    folder = execution.checkpoint
    if folder is None:
        yield _Kept(None)
        return
    assert isinstance(folder, str | os.PathLike)
    try:
        with held_folder("checkpoint", folder) as held:
            if not execution.resume and any([*held.glob(SHARE_FILES), *held.glob("running-*")]):
                raise FileExistsError(
                    f"checkpoint: {str(held)!r} contains shares of an unfinished run; continue that run with "
                    "resume=True, or delete the folder to start from the beginning."
                )
            kept = _Kept(held)
            yield kept
            for path in kept.files:
                path.unlink()
    finally:
        with suppress(OSError):  # raised if the folder is not empty
            Path(folder).rmdir()
