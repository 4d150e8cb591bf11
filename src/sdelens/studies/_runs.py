"""Run claims one after another into a folder, and write the page with their verdicts."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdelens.core import check
from sdelens.core.tasks import check_executor, completed
from sdelens.results.printable import Parts, Printable, Table
from sdelens.results.report import claim_folder
from sdelens.studies import _records
from sdelens.studies._claims import STUDIES
from sdelens.studies._page import row_of, write_page
from sdelens.studies._records import Record
from sdelens.studies._study import PRESETS, Outcome, Plan, Study
from sdelens.studies._verdicts import FAMILY_RATE

__all__ = ["Reproduction", "confidence_of", "reproduce", "run_study"]


@dataclass(frozen=True, repr=False)
class Reproduction(Printable):
    """The verdicts of a run.

    Attributes:
        records: record of every claim, by name; that of a claim that could not be run has no numbers and an `error`.
        page: path of the report.
    """

    records: dict[str, Record]
    page: Path

    @property
    def verdicts(self) -> dict[str, str]:
        """``"holds"``, ``"fails"`` or ``"not resolved"``, by claim."""
        return {name: record.verdict for name, record in self.records.items()}

    def _parts(self) -> Parts:
        head = ["claim", "verdict", "decided by", "seconds"]
        return [Table(head, [list(row_of(record)) for record in self.records.values()])]


def confidence_of(study: Study) -> float:
    """One-sided confidence of each limit at which the error rate of all claims together is at most `FAMILY_RATE`."""
    return 1 - FAMILY_RATE / (len(STUDIES) * study.items)


def run_study(
    study: Study, preset: str, seed: int, folder: Path | None = None, progress: bool | None = None
) -> Outcome:
    """The `Outcome` of one study."""
    plan = Plan(study.sizes[preset], seed, confidence_of(study), folder, progress)
    outcome = study.run(plan)
    if len(outcome.items) > study.items:
        raise RuntimeError(
            f"items: {study.name} returned {len(outcome.items)}, but declares at most {study.items}; correct the "
            "declaration."
        )
    return outcome


def reproduce(
    claims: Sequence[str] | None = None,
    preset: str = "quick",
    *,
    seed: int = 0,
    out: str | os.PathLike[str] = "reproduction",
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    tell: Callable[[str], None] | None = None,
    executor: "Executor | Callable[[], Executor] | None" = None,
) -> Reproduction:
    """Run claims of the paper and of this library, and write a report with a verdict on each.

    Args:
        claims: names of claims in `sdelens.studies.STUDIES`, by default all.
        preset: ``"quick"`` (15 minutes for all on two cores), ``"full"`` (some hours) or ``"paper"`` (for a GPU).
        seed: seed of all randomness; equal seeds give equal verdicts.
        out: folder for the self-contained ``index.html``, and for every claim's numbers, runs and figures. The page
            also shows claims that were run there earlier with the same preset, seed and code.
        resume: keep finished claims in that folder with the same preset, seed, code and versions, and continue.
        overwrite: replace existing files of the claims; with `resume`, only those that cannot be kept.
        progress: progress display of single runs, as in `compare`.
        tell: function called with a line of text when a claim ends.
        executor: as in `sdelens.Execution`; every claim is then run by a worker, which must reach the folder `out`.
            A claim whose worker dies is run again and continues from its checkpoints.

    Returns:
        A `Reproduction`: records by claim, and the path of the page.

    Raises:
        ValueError, TypeError: if an argument is invalid; the message names it.
        FileExistsError: if the folder contains a report and neither `resume` nor `overwrite` is given, or a claim's
            folder has runs that cannot be resumed and `overwrite` is not given, or files of other origin.
        OSError: if the folder cannot be written, or another run uses it.
        RuntimeError: if the executor loses the workers of a claim three times, or cannot run any more.
    """
    if executor is not None:
        check_executor(executor)
    preset = check.choice("preset", preset, PRESETS)
    seed = check.at_least("seed", seed, 0)
    names = list(STUDIES) if not claims else [check.choice("claim", name, STUDIES) for name in claims]
    names = list(dict.fromkeys(names))
    say = (lambda line: None) if tell is None else tell
    records: dict[str, Record] = {}
    with claim_folder(out, overwrite or resume) as folder:
        page = folder / "index.html"
        wanted = {name: _records.identity(study, preset, seed, confidence_of(study)) for name, study in STUDIES.items()}
        found = {name: _records.kept(folder / name, wanted[name]) for name in STUDIES}
        shown = {name: record for name, record in found.items() if record is not None and name not in names}
        tasks: dict[str, _Claim] = {}
        for name in names:
            if not resume or found[name] is None:
                tasks[name] = (name, preset, seed, folder.absolute() / name, wanted[name], progress)

        def begin(name: str) -> None:
            _records.begin(folder / name, wanted[name], resume, overwrite)

        for number, (name, record) in enumerate(_in_turn(names, found, tasks, begin, executor), 1):
            records[name] = record
            page = write_page(folder, [*names, *shown], records | shown, preset, seed)
            say(f"{number:2}/{len(names)}  {_line(record)}")
    return Reproduction(records, page)


_Claim = tuple[str, str, int, Path, dict[str, Any], bool | None]
"""A claim to run: name, preset, seed, folder, identity of its record, and display of progress."""


def _in_turn(
    names: Sequence[str],
    found: Mapping[str, Record | None],
    tasks: Mapping[str, _Claim],
    begin: Callable[[str], None],
    executor: Any,
) -> Iterator[tuple[str, Record]]:
    """The records of claims, one after another or, on an executor, those that are kept first and then as they end."""
    if executor is None:
        for name in names:
            if name in tasks:
                begin(name)
                yield name, _run(tasks[name])
            elif (record := found[name]) is not None:
                yield name, record
        return
    for name in names:
        if name not in tasks and (record := found[name]) is not None:
            yield name, record
    for name in tasks:
        begin(name)
    own = {name: (*task[:-1], False) for name, task in tasks.items()}
    yield from completed(executor, _run, own, "claim {}".format, "Claims that have ended are kept for resume=True.")


def _run(claim: _Claim) -> Record:
    """Run a claim and return its record; an error in one claim does not stop the others."""
    name, preset, seed, own, wanted, progress = claim
    study = STUDIES[name]
    start = time.perf_counter()
    try:
        outcome = run_study(study, preset, seed, own, progress)
        return _records.write(own, study, outcome, time.perf_counter() - start, wanted)
    except Exception as error:
        return _records.broken(study, error, time.perf_counter() - start, wanted)


def _line(record: Record) -> str:
    name, verdict, decided, seconds = row_of(record)
    return f"{name:22} {verdict:12}  {seconds:>5} s  {decided}"
