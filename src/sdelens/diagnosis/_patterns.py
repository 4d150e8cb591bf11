"""Groups by regular expressions on names, without JAX."""

import re
from collections.abc import Callable, Mapping
from typing import Final

__all__ = ["OTHER", "labels_by"]

OTHER: Final = "other"
"""Group of names in which no expression is found."""


def labels_by(patterns: Mapping[str, str]) -> Callable[[str], str]:
    """The function from a name to the group whose expression is the first one found in it, or `OTHER`.

    Raises:
        ValueError: if a text is not a regular expression; the message names it.
    """
    compiled = {}
    for label, pattern in patterns.items():
        try:
            compiled[str(label)] = re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"groups: got {pattern!r}, which is not a regular expression ({error}); correct it."
            ) from error
    return lambda name: next((label for label, found in compiled.items() if found.search(name)), OTHER)
