"""The report: one self-contained HTML file that starts with the verdicts."""

import base64
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sdelens.core import numerals
from sdelens.results.printable import Table
from sdelens.results.report import write_rendered
from sdelens.studies._claims import STUDIES
from sdelens.studies._records import Record
from sdelens.studies._study import PRESETS
from sdelens.studies._verdicts import FAILS, FAMILY_RATE, HOLDS, OPEN, Item

__all__ = ["row_of", "write_page"]

_KINDS = {HOLDS: "good", FAILS: "bad", OPEN: "open"}
_HEAD = ["number", "value", "limits", "must be", "verdict", "expected", "power"]
_CAPTION = (
    "Numbers with one-sided {:.5g} % limits; power: chance that limits as wide as these resolve a number that is as "
    "expected."
)


def row_of(record: Record) -> list[str]:
    """A claim in one row: name, verdict, the numbers that decide it, seconds."""
    return [record.name, record.verdict, _decided(record), f"{record.seconds:.0f}"]


def write_page(folder: Path, names: list[str], records: dict[str, Record], preset: str, seed: int) -> Path:
    """Write ``index.html``, with finished claims in full and the others by name.

    Returns:
        The path of the page.
    """
    names = [name for name in STUDIES if name in names]
    entries = [_entry(folder / name, records[name], preset, seed) for name in names if name in records]
    counts = {verdict: sum(r.verdict == verdict for r in records.values()) for verdict in _KINDS}
    said = ", ".join(
        f"{count} {'hold' if verdict == HOLDS else 'fail' if verdict == FAILS else verdict}"
        for verdict, count in counts.items()
        if count
    )
    summary = (
        f"{len(records)} of {len(names)} claims: {said}. Preset {preset} ({PRESETS[preset]}), seed {seed}. A claim "
        "that fails is a result like any other; its cause, where it is known, is given below the claim."
    )
    rates = (
        "Criteria are fixed before the run. If the limits are valid, the probability that any verdict of all "
        f"{len(STUDIES)} claims of one run is wrong is at most {100 * FAMILY_RATE:.0f} %. It is divided equally "
        "among the claims, and within a claim among its numbers (Bonferroni)."
    )
    chosen = [] if set(names) == set(STUDIES) else names
    return write_rendered(
        folder / "index.html",
        "studies.html",
        title="Stochastic optimizers and their SDEs: claims and verdicts",
        summary=summary,
        rates=rates,
        command=_command(chosen, preset, seed),
        version=version("sdelens"),
        entries=entries,
        missing=[name for name in names if name not in records],
    )


def _command(names: list[str], preset: str, seed: int) -> str:
    return " ".join(
        ["sdelens reproduce", *names, f"--preset {preset} --seed {seed}", *(["--out again"] if names else [])]
    )


def _entry(folder: Path, record: Record, preset: str, seed: int) -> dict[str, Any]:
    study, verdict = STUDIES[record.name], record.verdict
    remarks = [*_reasons(record), *record.remarks, *_wanting(record)]
    confidence = record.identity["confidence"]
    rate = FAMILY_RATE / len(STUDIES)
    return {
        "name": record.name,
        "statement": study.statement,
        "source": study.source,
        "criterion": study.criterion,
        "error_rate": f"Chance of a wrong verdict: at most {100 * rate:.2g} %, over at most {study.items} numbers.",
        "settings": record.settings,
        "command": _command([record.name], preset, seed),
        "verdict": verdict,
        "kind": _KINDS[verdict],
        "decided": _decided(record),
        "remarks": remarks,
        "figures": [_embedded(folder, p, "svg", "image/svg+xml") for p in record.pictures],
        "films": [_embedded(folder, a, "gif", "image/gif") for a in record.animations],
        "numbers": Table(_HEAD, [_row(item) for item in record.items], _CAPTION.format(100 * confidence)),
        "seconds": f"{record.seconds:.0f}",
    }


def _embedded(folder: Path, shown: dict[str, str], ending: str, kind: str) -> dict[str, str]:
    data = base64.b64encode((folder / f"{shown['name']}.{ending}").read_bytes()).decode()
    return {**shown, "data": f"data:{kind};base64,{data}"}


def _row(item: Item) -> list[str]:
    def written(value: float) -> str:
        return numerals.percent(value, 3) if item.percent else numerals.number(value, 4)

    power = numerals.MISSING if math.isnan(item.power) else f"{item.power:.2f}"
    limits = f"{written(item.lower)} to {written(item.upper)}"
    bounds = _bounds(item, written)
    return [item.label, written(item.value), limits, bounds, item.verdict, written(item.expected), power]


def _bounds(item: Item, number: Any) -> str:
    if math.isinf(item.low):
        return f"≤ {number(item.high)}"
    return f"≥ {number(item.low)}" if math.isinf(item.high) else f"{number(item.low)} to {number(item.high)}"


def _decided(record: Record) -> str:
    """The decisive item: of those with the claim's verdict, the one closest to another verdict."""
    verdict, count = record.verdict, len(record.items)
    same = [item for item in record.items if item.verdict == verdict]
    if not same:
        return "could not be run" if record.error else "no number"
    shown = min(same, key=_margin) if verdict != FAILS else max(same, key=_margin)
    label, value, limits, bounds, *_ = _row(shown)
    others = f"{len(same)} of {count} numbers; " if count > 1 else ""
    return f"{others}{label}: {value} ({limits}), must be {bounds}"


def _margin(item: Item) -> float:
    """Distance of the nearer limit from the bound of the criterion, in half-widths."""
    width = max(item.upper - item.lower, 1e-12 * abs(item.value), 1e-300)
    edges = [edge for edge in (item.low, item.high) if math.isfinite(edge)]
    return min((min(abs(item.upper - e), abs(item.lower - e)) for e in edges), default=0.0) / width


def _reasons(record: Record) -> list[str]:
    """The known reasons why items of a claim fail."""
    known, failed = STUDIES[record.name].reasons, [item.label for item in record.items if item.verdict == FAILS]
    return [f"{label} fails. {known.get(label, 'The cause is not known.')}" for label in failed]


def _wanting(record: Record) -> list[str]:
    """The effort needed to resolve the items that are not resolved."""
    said = []
    for item in record.items:
        if item.verdict != OPEN:
            continue
        if not math.isfinite(item.value):
            said.append(f"{item.label} could not be computed.")
        elif math.isfinite(item.effort):
            inside = item.low <= item.value <= item.high
            said.append(
                f"{item.label} is not resolved. If its true value equals the measured one, about "
                f"{max(item.effort, 1.5):.2g} times as many paths would resolve it, and it would "
                f"{'hold' if inside else 'fail'}."
            )
        else:
            said.append(
                f"{item.label} is not resolved: its value lies on the bound of the criterion, so that no number of "
                "paths would resolve it."
            )
    return said
