"""Differences between two descriptions, in words."""

from collections.abc import Mapping
from typing import Any

__all__ = ["differences"]

_SHOWN_LENGTH = 40


def differences(saved: Mapping[str, Any], own: Mapping[str, Any], prefix: str = "", where: str = "here") -> list[str]:
    """Describe each difference between two nested mappings; `where` is the word for the mapping `own`."""
    found: list[str] = []
    for key in {**saved, **own}:
        a, b = saved.get(key), own.get(key)
        if a == b:
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.", where)
        elif max(len(str(a)), len(str(b))) > _SHOWN_LENGTH:
            found.append(f"{prefix}{key} differs")
        else:
            found.append(f"{prefix}{key} is {a}, {where} {b}")
    return found
