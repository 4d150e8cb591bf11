"""`python -m benchmarks [NAME ...]`: measure, print tables, write speed.json and its two figures.

All numbers of a question are of one run; compare quotients, not times of different runs. Everything together takes over
half an hour on two cores, which should have nothing else to do. Without names: all but `checkpoint`, which needs 4 GB.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks import checkpoint, costs, ensembles, minibatch, networks, noise, startup, theory, watching
from benchmarks.report import as_markdown, as_text, described, fill, markdown, read, write

QUESTIONS = {
    "ensembles": ensembles,
    "networks": networks,
    "costs": costs,
    "startup": startup,
    "noise": noise,
    "minibatch": minibatch,
    "theory": theory,
    "watching": watching,
    "checkpoint": checkpoint,
}
DOCS = Path(__file__).parents[1] / "docs"
RUNS = ("speed.json", "speed-gpu.json")
"""What the page of the documentation shows: a run on CPU cores, and one on a GPU, copied there from another --out."""


def main() -> None:
    """Measure what is named, or only write anew what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    summaries = "; ".join(f"{name}: {(module.__doc__ or '').splitlines()[0]}" for name, module in QUESTIONS.items())
    parser.add_argument("names", nargs="*", metavar="NAME", help=summaries)
    parser.add_argument("--quick", action="store_true", help="small sizes and few cases, to see that it runs")
    parser.add_argument("--rounds", type=int, default=None, help="rounds of each measurement (default: 5; quick: 3)")
    parser.add_argument("--seconds", type=float, default=None, help="least length of each (default: 0.3; quick: 0.2)")
    parser.add_argument("--out", type=Path, default=None, help="folder of speed.json and the figures (default: none)")
    parser.add_argument(
        "--docs",
        action="store_true",
        help="write to docs/, the tables of its pages too; with NAMEs, those anew",
    )
    parser.add_argument("--again", action="store_true", help="measure nothing: figure and tables of speed.json anew")
    given = parser.parse_args()
    for name in given.names:
        if name not in QUESTIONS:
            parser.error(f"NAME: got {name!r}; choose from {', '.join(QUESTIONS)}.")
    if given.docs and given.quick:
        parser.error("--docs: the documentation holds whole runs; leave --quick away, or give --out.")
    out = DOCS if given.docs else given.out
    if given.again:
        if out is None:
            parser.error("--again: give --docs, or --out and the folder with speed.json.")
        found = read(out / "speed.json")
    else:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
        found = measured(given, out)
    print(as_text(found, QUESTIONS), flush=True)
    if given.docs:
        document()
    elif out is not None:
        from benchmarks.figure import draw, draw_scaling

        draw(found, out / "speed.png")
        draw_scaling(found, out / "speed-scaling.png")


def document() -> None:
    """The figures and the pages of the documentation, from the runs that lie there."""
    from benchmarks.figure import draw, draw_scaling

    for name in RUNS:
        draw(read(DOCS / name), (DOCS / name).with_suffix(".png"))
    draw_scaling(read(DOCS / RUNS[0]), DOCS / "speed-scaling.png")
    for path, text in pages().items():
        write(path, text)


def pages() -> dict[Path, str]:
    """The pages of the documentation with the tables of the runs that lie there."""
    speed, tables = DOCS / "benchmarks.md", DOCS / "benchmark-tables.md"
    text = {path: path.read_text(encoding="utf-8") for path in (speed, tables)}
    for name in RUNS:
        text[tables] = fill(text[tables], name, as_markdown(read(DOCS / name), QUESTIONS))
    summary = ensembles.summary(read(DOCS / RUNS[0])["questions"]["ensembles"])
    text[speed] = fill(text[speed], f"the ensembles of {RUNS[0]}", "\n".join(markdown(summary)))
    return text


def measured(given: argparse.Namespace, out: Path | None) -> dict:
    """All questions in turn, and what they found so far in speed.json after each."""
    from benchmarks.environment import environment
    from benchmarks.timing import Workers

    rounds = given.rounds or (3 if given.quick else 5)
    seconds = given.seconds or (0.2 if given.quick else 0.3)
    names = given.names or [name for name in QUESTIONS if name != "checkpoint"]
    begin = time.perf_counter()

    def say(text: str) -> None:
        print(f"{time.perf_counter() - begin:6.0f} s  {text}", file=sys.stderr, flush=True)

    with Workers() as workers:
        found = {"environment": environment(workers), "quick": given.quick}
        found |= {"rounds": rounds, "seconds": seconds, "questions": {}}
        print(described(found["environment"]), flush=True)
        if given.docs and given.names:
            found = renewed(read(DOCS / RUNS[0]), found, given.names)
        for name in names:
            measure = QUESTIONS[name].measure
            found["questions"][name] = measure(
                workers, rounds, seconds, given.quick, lambda text, name=name: say(f"{name}: {text}")
            )
            if out is not None:
                write(out / "speed.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    say("done")
    return found


def renewed(before: dict, now: dict, names: list[str]) -> dict:
    """An earlier run, of which some questions are measured anew on the same machine with the same libraries."""
    same = ("cpu", "cores", "kind", "python", "packages")
    other = [key for key in same if before["environment"][key] != now["environment"][key]]
    if other or before["rounds"] != now["rounds"]:
        sys.exit(f"--docs: the run in docs/ differs in {', '.join(other) or 'rounds'}; measure everything anew.")
    commit = now["environment"]["commit"]
    return before | {"anew": before.get("anew", {}) | dict.fromkeys(names, commit)}


if __name__ == "__main__":
    main()
