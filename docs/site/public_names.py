"""Which public names of the library the pages of the API lack. The build and the tests ask."""

import inspect
import re
from pathlib import Path
from types import ModuleType

import sdelens

PAGES = Path(__file__).parents[1] / "api"


def undocumented() -> list[str]:
    """Public names that no page of `docs/api` has, or that have no docstring."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in sorted(PAGES.glob("*.md")))
    listed = set(re.findall(r"^::: (\S+)$", text, re.M))
    modules = [name for name in sdelens.__all__ if isinstance(getattr(sdelens, name), ModuleType)]
    wanted = [(sdelens, name) for name in sdelens.__all__ if name not in modules]
    wanted += [(getattr(sdelens, module), name) for module in modules for name in getattr(sdelens, module).__all__]
    found = []
    for module, name in wanted:
        thing = getattr(module, name)
        own = inspect.isclass(thing) or inspect.isroutine(thing)
        # A function may bear the name of its module, which the longer path tells from it.
        paths = {f"{module.__name__}.{name}", f"{getattr(thing, '__module__', '')}.{name}"}
        if not paths & listed:
            found.append(f"{module.__name__}.{name} is on no page of docs/api")
        elif own and not (thing.__doc__ or "").strip():
            found.append(f"{module.__name__}.{name} has no docstring")
    return found
