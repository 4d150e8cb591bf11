"""The shell's options for results, shared by its commands, and the folder that they name."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from sdelens.shell.case_options import SubjectOptions
from sdelens.shell.panels import OUTPUT, DryRun
from sdelens.shell.session import complain

__all__ = ["Output", "RunOutput"]

_SHOWN = 5
"""Most differences that a message names."""


@dataclass(frozen=True)
class Output:
    """The options of a command about the folder for its results."""

    out: Annotated[
        Path | None, OUTPUT(help="Folder for the results; it is created if it does not exist. Default: only print.")
    ] = None
    overwrite: Annotated[bool, OUTPUT("--overwrite", help="Replace results that are in the folder already.")] = False

    def folder(self, marker: str = "index.html", overwrite: bool = False) -> AbstractContextManager[Path | None]:
        """The folder, created and locked; None without one. Results in it are recognised by the file `marker`."""
        from sdelens.results.report import claim_folder

        return nullcontext() if self.out is None else claim_folder(self.out, self.overwrite or overwrite, marker)

    def require_folder(self, why: str, **given: Any) -> None:
        """Refuse options of these names and values, which need the folder, if there is none.

        Raises:
            ValueError: if one of the options is given without ``--out``; the message names it.
        """
        for name, value in given.items() if self.out is None else ():
            if value is not None and value is not False:
                option = f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
                raise ValueError(f"{name}: got {option} without --out; {why}. Add --out FOLDER.")


@dataclass(frozen=True)
class RunOutput(Output):
    """The options of a command that runs an ensemble, which may take long."""

    checkpoint_every: Annotated[
        int | None,
        OUTPUT(help="Save the state of the run every so many steps, in the folder checkpoint inside --out."),
    ] = None
    resume: Annotated[
        bool,
        OUTPUT(
            "--resume",
            help="Continue from the checkpoint inside --out, or start from the beginning if there is none. Without "
            "--checkpoint-every, the state is saved about every 30 s.",
        ),
    ] = False
    dry_run: DryRun = False

    @contextmanager
    def claimed(self) -> Iterator[tuple[Path | None, Any]]:
        """The folder for results and the checkpoints in it, which are removed only after the results are written."""
        from sdelens.run.checkpoint import has_checkpoint, keep_checkpoints

        self.require_folder(
            "checkpoints are kept in that folder", resume=self.resume, checkpoint_every=self.checkpoint_every
        )
        if self.out is None:
            yield None, None
            return
        kept = self.out / "checkpoint"
        unfinished = has_checkpoint(kept)
        with self.folder(overwrite=self.resume and unfinished) as folder:
            if self.checkpoint_every is None and not self.resume and not unfinished:
                yield folder, None
                return
            with keep_checkpoints(kept, self.checkpoint_every, self.resume) as checkpoints:
                yield folder, checkpoints

    def write_share(
        self,
        share: tuple[int, int],
        compute: Callable[[Any], Any],
        identify: Callable[[], Mapping[str, Any]],
        subject: SubjectOptions,
    ) -> str:
        """Compute a share, with checkpoints of its own, and write its file to the folder; returns a line that says so.

        With ``--resume``, a share of this run whose file is there already is not computed again, unless it is damaged.

        Args:
            share: its number, and the number of all.
            compute: returns the share, given its checkpoints.
            identify: returns the identity of the run, `Share.identity`.
            subject: the options that name what is run, kept in the file for ``sdelens join --theory``.

        Raises:
            ValueError: if there is no folder, or if the file that is there is of another run.
            FileExistsError: if the file is there, and neither ``--resume`` nor ``--overwrite`` is given.
        """
        from sdelens.core.differences import differences
        from sdelens.run.checkpoint import keep_checkpoints
        from sdelens.run.shares import SHARE_FILES, share_name

        self.require_folder("each share is written to a file in that folder", share="/".join(map(str, share)))
        assert self.out is not None
        path = self.out / share_name(*share)
        if others := [p.name for p in self.out.glob(SHARE_FILES) if not p.name.endswith(f"-of-{share[1]}.safetensors")]:
            raise ValueError(
                f"share: got {share[0]} of {share[1]}, but {str(self.out)!r} contains {others[0]!r}, one of another "
                "number of shares; give another folder."
            )
        found = _sound(path) if self.resume else None
        if found is not None:
            if differing := differences(found.identity, identify()):
                raise ValueError(
                    f"out: {str(path)!r} is a share of another run: {'; '.join(differing[:_SHOWN])}. Give another "
                    "folder, or --overwrite in place of --resume."
                )
            return f"{path} is there already."
        if path.exists() and not (self.resume or self.overwrite):
            raise FileExistsError(f"out: {str(path)!r} exists; give another folder, --resume or --overwrite.")
        with keep_checkpoints(self.out / f"checkpoint-{share[0]}", self.checkpoint_every, self.resume) as checkpoints:
            replace(compute(checkpoints), subject=asdict(subject)).save(path)
        return f"Written to {path}; when all are there: sdelens join {self.out} --out FOLDER"


def _sound(path: Path) -> Any:
    """The share in a file; None if there is none or it cannot be read, so that it is computed again and replaced."""
    from sdelens.run.shares import read

    try:
        return read(path) if path.exists() else None
    except ValueError as error:
        complain(f"{path} cannot be read as a share and is computed again ({error})")
        return None
