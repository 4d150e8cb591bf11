"""Make the pictures of the documentation by the commands that stand below them in the gallery, docs/gallery.md.

    python docs/site/pictures.py                         # all of them: half an hour on two cores
    python docs/site/pictures.py theory.png advice.png   # some

A block of commands names the files that it writes after ``#``, in the order of the pictures above it; ``a.png + b.png``
are put side by side. Each picture is reduced to 128 colours, a third of its weight, and stamped with its command, so
that a test can compare the two: see tests/test_gallery.py.
"""

import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdelens.core.files import few_colours

DOCS = Path(__file__).parents[1]
_BLOCK = re.compile(r"((?:!\[[^]]*\]\([\w-]+\.(?:png|gif)\)\n\n)+)```sh\n(.*?)```", re.S)
_PICTURE = re.compile(r"!\[([^]]*)\]\(([\w-]+\.(?:png|gif))\)")
_GIF_COMMENT = b"\x21\xfe"
_MARGIN = 40
"""Pixels between two pictures side by side."""


class Entry(NamedTuple):
    """A picture of the gallery.

    Attributes:
        name: name of its file in docs.
        alt: its alternative text.
        command: the command that makes it, in one line.
        files: the files that the command writes for it.
    """

    name: str
    alt: str
    command: str
    files: list[str]


def entries(page: str) -> list[Entry]:
    """The pictures of a page whose commands name files."""
    found = []
    for pictures, block in _BLOCK.findall(page):
        command, _, comment = block.partition("    # ")
        files = [name.strip().split(" + ") for name in comment.split(",")]
        named = _PICTURE.findall(pictures)
        if all(re.fullmatch(r"[\w/.-]+\.(png|gif)", file) for part in files for file in part):
            line = " ".join(command.replace("\\\n", " ").split())
            found += [Entry(name, alt, line, part) for (alt, name), part in zip(named, files, strict=True)]
    return found


def stamp_of(path: Path) -> dict[str, str]:
    """What a picture says of itself: ``Source``, its command, and, of a PNG, ``Title`` and ``Description``."""
    if path.suffix == ".gif":
        data = path.read_bytes()
        at = data.rfind(_GIF_COMMENT)
        return {} if at < 0 else {"Source": data[at + 3 : at + 3 + data[at + 2]].decode("latin-1")}
    return {key: str(text) for key, text in Image.open(path).info.items() if isinstance(text, str)}


def write(entry: Entry, folder: Path) -> None:
    """Put the picture that a command has written under `folder` into the documentation."""
    target, sources = DOCS / entry.name, [folder / file for file in entry.files]
    if target.suffix == ".gif":
        said, data = entry.command.encode("latin-1"), sources[0].read_bytes()
        target.write_bytes(data[:-1] + _GIF_COMMENT + bytes([len(said)]) + said + b"\0" + data[-1:])
        return
    images, stamps = [Image.open(path).convert("RGB") for path in sources], [stamp_of(path) for path in sources]
    width = sum(image.width for image in images) + _MARGIN * (len(images) - 1)
    whole, left = Image.new("RGB", (width, max(image.height for image in images)), "white"), 0
    for image in images:
        whole.paste(image, (left, whole.height - image.height))
        left += image.width + _MARGIN
    info = PngInfo()
    for key in ("Title", "Description", "Software"):
        info.add_itxt(key, "\n".join(dict.fromkeys(stamp[key] for stamp in stamps)))
    info.add_itxt("Source", entry.command)
    few_colours(whole).save(target, pnginfo=info, optimize=True)


def main() -> None:
    """Run the commands of the chosen pictures in an empty folder each."""
    known = entries((DOCS / "gallery.md").read_text(encoding="utf-8"))
    chosen = sys.argv[1:] or [entry.name for entry in known]
    unknown = set(chosen) - {entry.name for entry in known}
    if unknown:
        sys.exit(f"{sorted(unknown)[0]}: choose from {', '.join(entry.name for entry in known)}.")
    for command in dict.fromkeys(entry.command for entry in known if entry.name in chosen):
        with tempfile.TemporaryDirectory() as folder:
            print(command, flush=True)
            subprocess.run(arguments(command), cwd=folder, check=True)
            for entry in known:
                if entry.command == command and entry.name in chosen:
                    write(entry, Path(folder))


def arguments(command: str) -> list[str]:
    """A command of the gallery as it is run from another folder than the repository, with this Python."""
    program, *rest = shlex.split(command)
    if program == "python":
        return [sys.executable, str(DOCS.parent / rest[0]), *rest[1:]]
    if program == "make":
        return [sys.executable, str(DOCS.parent / "examples" / f"{rest[0]}.py")]
    return [sys.executable, "-m", program, *rest]


if __name__ == "__main__":
    main()
