"""Shares of a run: what a machine computed of it, as a file, and the join of all shares. It does not import JAX."""

import functools
import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sdelens.core.differences import differences
from sdelens.core.files import atomic_path
from sdelens.results.printable import Parts as Shown
from sdelens.results.printable import Printable
from sdelens.results.result import Result
from sdelens.results.sweep import Sweep
from sdelens.run.datasets import result_dataset, sweep_dataset
from sdelens.run.description import Description, SweepDescription
from sdelens.run.store import decoded, encoded, head_of
from sdelens.run.summary import Nodes, Part, Parts, Summary, add, merge, packed, total, unpacked

__all__ = ["SHARE_FILES", "Join", "Share", "head", "join", "read", "share_files", "share_name"]

SHARE_FILES = "share-*-of-*.safetensors"
"""Pattern of the names of the files of shares in a folder."""

_FORMAT = 1
_SHOWN = 5
_FOREIGN = "is not a share of a run, or is damaged; leave it out, or run that share again"


@dataclass(frozen=True, repr=False)
class Share(Printable):
    """What one machine computed of a run, see ``Execution(share=(i, n))``: statistics that `join` can add up.

    Attributes:
        index: number of the share, from 0.
        count: number of shares.
        paths: its first path and its end (exclusive).
        points: numbers of its points in a sweep, None if it has all.
        block: number of paths by which its statistics were reduced.
        identity: what shares of one run agree in; empty if it is all of a run.
        description: all that the result needs besides statistics.
        parts: the statistics and wall times, by model.
        subject: the shell's options for problem, noise and optimizer; empty if the share was not computed there.
    """

    index: int
    count: int
    paths: tuple[int, int]
    points: tuple[int, ...] | None
    block: int
    identity: Mapping[str, Any]
    description: Description | SweepDescription
    parts: Parts = field(default_factory=dict)
    subject: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the share to a file, which `join` reads; an existing file is replaced once all is written.

        Raises:
            OSError: if the file cannot be written.
        """
        with atomic_path(path) as temporary:
            Path(temporary).write_bytes(self.to_bytes())

    def to_bytes(self) -> bytes:
        """The bytes of the file that `save` writes."""
        arrays: dict[str, np.ndarray] = {}
        for number, part in enumerate(self.parts.values()):
            arrays |= packed(part.nodes, f"{number}/")
        kind = "sweep" if isinstance(self.description, SweepDescription) else "result"
        told = {"sdelens_share": _FORMAT, "index": self.index, "count": self.count, "paths": self.paths}
        told |= {"points": self.points, "block": self.block, "identity": self.identity, "kind": kind}
        told |= {"subject": self.subject}
        told |= {"description": asdict(self.description)}
        told |= {"parts": [[name, part.seconds] for name, part in self.parts.items()]}
        return encoded(arrays, told | {"digest": _digest(arrays, told)})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Share":
        """The share with these bytes.

        Raises:
            ValueError: if they are damaged, or are not a share.
        """
        try:
            arrays, told = decoded(data)
            sound = _digest(arrays, told) == told["digest"]
        except Exception as error:
            raise ValueError(_FOREIGN) from error
        if not sound:
            raise ValueError("is damaged; run that share again")
        parts = {
            name: Part(unpacked(arrays, f"{number}/"), seconds) for number, (name, seconds) in enumerate(told["parts"])
        }
        return replace(_without_parts(told), parts=parts)

    def _parts(self) -> Shown:
        first = self.description.points[0] if isinstance(self.description, SweepDescription) else self.description
        what = f"paths {self.paths[0]} to {self.paths[1] - 1} of {first.paths}, models {', '.join(first.models)}"
        if isinstance(self.description, SweepDescription):
            what += f", {len(self.points or self.description.points)} of {len(self.description.points)} points"
        return [f"Share {self.index} of {self.count}: {what}.", "Save it by save(path), and join all by sl.join."]


def _digest(arrays: Mapping[str, np.ndarray], told: Mapping[str, Any]) -> str:
    """SHA-256 of arrays with their names, types and shapes, and of the description without the digest itself."""
    plain = json.dumps({name: value for name, value in told.items() if name != "digest"}, sort_keys=True)
    found = hashlib.sha256(plain.encode())
    for name in sorted(arrays):
        found.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        found.update(np.ascontiguousarray(arrays[name]).tobytes())
    return found.hexdigest()


def _without_parts(told: Mapping[str, Any]) -> Share:
    """A share with all but its statistics, from the description in its file.

    Raises:
        ValueError: saying what the file is, and what to do.
    """
    if "sdelens_share" not in told:
        raise ValueError(_FOREIGN)
    try:
        if told["sdelens_share"] != _FORMAT:
            raise ValueError("the format is another one")
        described = told["description"]
        if told["kind"] == "sweep":
            of_points = [Description(**point) for point in described["points"]]
            description: Description | SweepDescription = SweepDescription(**{**described, "points": of_points})
        else:
            description = Description(**described)
        points = None if told["points"] is None else tuple(told["points"])
        own = {name: told[name] for name in ("index", "count", "block", "identity", "subject")}
        return Share(**own, paths=tuple(told["paths"]), points=points, description=description)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            "was written by another version of sdelens; join it with that version, or run that share again"
        ) from error


class Join:
    """The join of shares that arrive in any order; those of one run have the same numbers whatever the order."""

    def __init__(self) -> None:
        self._first: tuple[Share, str] | None = None
        self._names: dict[int, str] = {}
        self._paths: dict[int, tuple[int, int]] = {}
        self._points: dict[int, tuple[int, ...]] = {}
        self._trees: dict[str, dict[int, Nodes]] = {}
        self._seconds: dict[str, float] = {}

    def announce(self, share: Share, name: str) -> None:
        """Check that a share, whose statistics are not needed yet, belongs to the others.

        Raises:
            ValueError: naming the share, and what differs.
        """
        if self._first is None:
            self._first = share, name
        first, other = self._first
        if share.count != first.count:
            raise ValueError(
                f"shares: {name} is one of {share.count} shares, but {other} one of {first.count}; join the shares of "
                "one run."
            )
        if share.index in self._names:
            raise ValueError(
                f"shares: {name} and {self._names[share.index]} are both share {share.index} of {share.count}; give "
                "each share once."
            )
        kinds = [type(one.description) is SweepDescription for one in (share, first)]
        if kinds[0] != kinds[1]:
            what = ["of sweep" if kind else "of compare" for kind in kinds]
            raise ValueError(f"shares: {name} is {what[0]}, but {other} {what[1]}; join the shares of one run.")
        if differing := differences(share.identity, first.identity, where=f"in {other}"):
            more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
            remedy = "Join the shares of one run."
            if all(text.startswith("versions.") for text in differing):
                remedy = "Run all shares with the same versions."
            elif all(text.startswith("code") for text in differing):
                remedy = (
                    "The code is what JAX traces from all functions; run all shares with the same functions, and all "
                    "or none with kernel=True."
                )
            raise ValueError(
                f"shares: {name} is of another run than {other}: {'; '.join(differing[:_SHOWN])}{more}. {remedy}"
            )
        if (share.points is None) != (first.points is None):
            raise ValueError(
                f"shares: one of {name} and {other} has some points of the sweep, the other some paths of all points; "
                "join the shares of one run."
            )
        self._names[share.index], self._paths[share.index] = name, share.paths
        if share.points is not None:
            self._points[share.index] = share.points

    def check(self) -> None:
        """Check that all shares have been announced.

        Raises:
            ValueError: naming the shares that are missing.
        """
        if self._first is None:
            raise ValueError("shares: got none; give the shares of a run, or their files.")
        count = self._first[0].count
        if missing := [share_name(index, count) for index in range(count) if index not in self._names]:
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            raise ValueError(
                f"shares: {len(missing)} of {count} missing, {', '.join(missing[:_SHOWN])}{more}; run what is missing "
                "with the settings of the others."
            )
        if self._points:
            return
        end = 0
        for index in sorted(self._paths):
            if self._paths[index][0] != end:
                raise ValueError(
                    f"shares: {self._names[index]} begins with path {self._paths[index][0]}, but the share before it "
                    f"ends with path {end - 1}; run all shares with the same chunk."
                )
            end = self._paths[index][1]

    def add(self, share: Share) -> None:
        """Add the statistics of a share that has been announced."""
        description = share.description
        paths = (description.points[0] if isinstance(description, SweepDescription) else description).paths
        first, end = share.paths
        whole_blocks = first % share.block == 0 and (end % share.block == 0 or end == paths)
        for name, part in share.parts.items():
            self._seconds[name] = self._seconds.get(name, 0.0) + part.seconds
            trees = self._trees.setdefault(name, {})
            if whole_blocks:
                for node, summary in part.nodes.items():
                    add(trees.setdefault(share.block, {}), node, summary)
            else:
                add(trees.setdefault(0, {}), (0, share.index), total(part.nodes))

    def finish(self) -> "tuple[Any, list[str]]":
        """The result or the sweep, and the texts of warnings."""
        self.check()
        assert self._first is not None
        description, count = self._first[0].description, self._first[0].count
        parts: Parts = {}
        for name in list(self._trees):
            parts[name] = Part({(0, 0): self._whole(self._trees.pop(name))}, self._seconds[name])
        if isinstance(description, SweepDescription):
            dataset, texts = sweep_dataset(description, parts, count)
            return Sweep(dataset), texts
        dataset, texts = result_dataset(description, parts, count)
        return Result(dataset), texts

    def doubts(self) -> list[str]:
        """Warnings about the law of the noise, which the shares did not give."""
        assert self._first is not None
        description = self._first[0].description
        return list(description.doubts) if isinstance(description, Description) else []  # a sweep gives none

    def _whole(self, trees: dict[int, Nodes]) -> Summary:
        """The summary of all paths; where blocks differ, their trees are joined in the order of the paths."""
        placed: list[tuple[int, Summary]] = []
        for block, nodes in trees.items():
            for (level, index), summary in nodes.items():
                first = index << level
                placed.append((first * block if block else self._paths[first][0], summary))
        ordered = [summary for _, summary in sorted(placed, key=lambda pair: pair[0])]
        return functools.reduce(merge, ordered)


def join(shares: "Iterable[Share | str | os.PathLike[str]] | str | os.PathLike[str]") -> Result | Sweep:
    """The result of a run from all of its shares, which ``Execution(share=(i, n))`` computed.

    The numbers are those of one machine that runs all paths, up to the rounding of sums over paths. They have the same
    bits if the shares consist of whole chunks and the machines have the same kind and number of devices. Shares consist
    of whole chunks if ``chunk`` is given, is a multiple of the number of devices, and there are at least as many chunks
    as shares.

    Args:
        shares: shares, their files or folders of these, in any order; a file is read when it is needed.

    Returns:
        A `Result` or, if the shares are those of `sweep`, a `Sweep`. Wall times are sums over the shares.

    Raises:
        ValueError, TypeError: if shares are of different runs, missing, given twice or damaged; the message names the
            file and what differs.
        OSError: if a file cannot be read.

    Warns:
        RuntimeWarning: as `compare`.

    Examples:
        >>> import sdelens as sl
        >>> case = sl.Quadratic([1.0, 2.0]), sl.GaussianNoise(1.0), sl.SGD(lr=0.1)
        >>> run = lambda i: sl.compare(*case, steps=5, paths=64, execution=sl.Execution(share=(i, 2)))
        >>> sl.join([run(0), run(1)]).models
        ['optimizer', 'sde']
    """
    joined = Join()
    given = [one for part in _listed(shares) for one in ([part] if isinstance(part, Share) else share_files(part))]
    for number, one in enumerate(given):
        if isinstance(one, Share):
            joined.announce(one, f"number {number}")
        else:
            joined.announce(head(one), repr(str(one)))
    joined.check()
    for one in given:
        joined.add(one if isinstance(one, Share) else read(one))
    found, texts = joined.finish()
    for text in [*joined.doubts(), *texts]:
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    return found


def _listed(shares: Any) -> list[Any]:
    """Shares, and paths of files and folders.

    Raises:
        TypeError: if there is anything else.
    """
    given = [shares] if isinstance(shares, Share | str | os.PathLike) or not isinstance(shares, Iterable) else shares
    found = list(given)
    for one in found:
        if not isinstance(one, Share | str | os.PathLike):
            raise TypeError(f"shares: got {type(one).__name__}; give shares, their files, or the folder of the files.")
    return found


def head(path: Path) -> Share:
    """A share with all but its statistics, read from its file.

    Raises:
        ValueError: if the file is not a share.
        OSError: if it cannot be read.
    """
    try:
        with _readable(path):
            told = head_of(path)
    except (AttributeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"shares: {str(path)!r} {_FOREIGN}.") from error
    try:
        return _without_parts(told)
    except ValueError as error:
        raise ValueError(f"shares: {str(path)!r} {error}.") from error


def read(path: Path) -> Share:
    """The share in a file.

    Raises:
        ValueError: if the file is not a share, or is damaged.
        OSError: if it cannot be read.
    """
    try:
        with _readable(path):
            return Share.from_bytes(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"shares: {str(path)!r} {error}.") from error


@contextmanager
def _readable(path: str | os.PathLike[str]) -> Iterator[None]:
    """Say which file cannot be read."""
    try:
        yield
    except OSError as error:
        raise type(error)(
            f"shares: {str(path)!r} cannot be read ({error.strerror}); give files and folders that can be read."
        ) from error


def share_name(index: int, count: int) -> str:
    """The name of the file of a share, so that names are in the order of the shares."""
    return f"share-{index:0{len(str(count - 1))}}-of-{count}.safetensors"


def share_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The files of shares in a folder.

    Raises:
        ValueError: if there are none.
        FileNotFoundError: if there is no such folder or file.
    """
    with _readable(folder):
        there = Path(folder).exists()
        found = sorted(Path(folder).glob(SHARE_FILES)) if Path(folder).is_dir() else [Path(folder)]
    if not there:
        raise FileNotFoundError(
            f"shares: there is no file or folder {str(folder)!r}; give the folder of the shares, or their files."
        )
    if not found:
        raise ValueError(
            f"shares: {str(folder)!r} contains no files of shares (share-…-of-….safetensors); give the folder in which "
            "they were saved."
        )
    return found
