"""The table of claims, in the order of the report."""

from typing import Final

from sdelens.studies import closure, sdes_track
from sdelens.studies._study import Study

__all__ = ["STUDIES"]

STUDIES: Final[dict[str, Study]] = {
    module.STUDY.name: module.STUDY
    for module in (
        sdes_track,
        closure,
    )
}
"""Every claim, by name."""
