"""Is a run dominated by noise? Measured from what its optimizer keeps."""

from sdelens.diagnosis._measure import diagnose
from sdelens.diagnosis._verdict import Diagnosis

__all__ = ["Diagnosis", "diagnose"]
