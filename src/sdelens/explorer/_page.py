"""The page as one HTML file: template, style sheet and modules put together, with the settings it starts from.

Browsers do not load modules from `file://`, so every module becomes a function that returns what it exports.
"""

import json
import os
import re
import webbrowser
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import platformdirs

from sdelens.core.files import as_path, atomic_path

__all__ = ["open_page", "page"]

_SCRIPTS: Final = {
    "engine": ("laws", "engine", "particles", "scaling"),
    "worker": ("worker",),
    "page": ("settings", "charts", "calculator", "explorer"),
}
"""The modules of each script, those that others import first; a worker runs the first two scripts."""
_IMPORT: Final = re.compile(r'^import \{([^}]*)\} from "\./(\w+)\.js";$', re.M)
_COMMENT: Final = re.compile(r"^ *(?://.*|/\*\*(?:.|\n)*?\*/)\n", re.M)
_EXPORT: Final = re.compile(r"^export (?:const|class|function|async function) (\w+)", re.M)


def page(settings: Mapping[str, Any] | None = None) -> str:
    """The explorer as one self-contained HTML document.

    Args:
        settings: what it shows first, as from `settings_of`; by default AdamW on a quadratic of two coordinates.
    """
    shown = json.dumps(settings, ensure_ascii=False).replace("<", "\\u003c")
    return _without_settings().replace("/* settings */", shown)


def open_page(
    settings: Mapping[str, Any] | None = None, path: str | os.PathLike[str] | None = None, *, show: bool = True
) -> Path:
    """Write the explorer to a file, and open it in the browser.

    Args:
        settings: as in `page`.
        path: where to write it; by default ``explorer.html`` in the user's cache folder.
        show: whether to open it.

    Returns:
        The file's path.

    Raises:
        OSError: if it cannot be written; the message names the path.
    """
    if path is None:
        target = platformdirs.user_cache_path("sdelens") / "explorer.html"
        target.parent.mkdir(parents=True, exist_ok=True)
    else:
        target = as_path(path)
    with atomic_path(target) as temporary:
        Path(temporary).write_text(page(settings), encoding="utf-8")
    target = target.resolve()
    if show:
        webbrowser.open(target.as_uri())
    return target


@cache
def _without_settings() -> str:
    text = _asset("page.html").replace("/* style.css */", _asset("style.css").strip())
    for name, modules in _SCRIPTS.items():
        start = "var modules = {};\n" if name == "engine" else ""
        script = start + "\n".join(_as_function(module) for module in modules)
        text = text.replace(f"/* {name} */", script)
    return text


def _as_function(module: str) -> str:
    """A module of JavaScript, without comments on lines of their own, as a function whose value is what it exports."""
    source = _COMMENT.sub("", _asset(f"{module}.js"))
    source = re.sub(r"^ +", "", source, flags=re.M)
    exported = ", ".join(_EXPORT.findall(source))
    body = _IMPORT.sub(r"const {\1} = modules.\2;", source)
    body = re.sub(r"^export ", "", body, flags=re.M)
    return f"modules.{module} = (() => {{\n{body}return {{ {exported} }};\n}})();"


def _asset(name: str) -> str:
    return (files("sdelens.explorer") / "assets" / name).read_text(encoding="utf-8")
