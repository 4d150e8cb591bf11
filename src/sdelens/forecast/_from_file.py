"""A forecaster from a file."""

import json
import os
from pathlib import Path

import numpy as np

from sdelens.forecast._forecaster import FORMAT, Forecaster
from sdelens.forecast._numbers import Frame, PowerLaw, parameters_of
from sdelens.forecast._range import FittedRun

__all__ = ["load"]


def load(path: str | os.PathLike[str]) -> Forecaster:
    """Read a forecaster that `Forecaster.save` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not such a file, or was written by a later version.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"path: there is no file {str(path)!r}; give one that Forecaster.save wrote.")
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        version = found["sdelens_forecast"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"path: {str(path)!r} is not a forecast; give a file that Forecaster.save wrote.") from error
    if isinstance(version, int) and version > FORMAT:
        raise ValueError(f"path: {str(path)!r} has format {version}, this version reads {FORMAT}; upgrade sdelens.")
    try:
        loaded = Forecaster(
            PowerLaw.from_description(found["numbers"]),
            tuple(FittedRun.from_description(run) for run in found["runs"]),
            float(found["scatter"]),
            tuple(found["remarks"]),
            Frame(**found["frame"]),
            np.array(found["theta"], np.float64),
            np.array(found["covariance"], np.float64),
        )
        k = len(parameters_of(loaded._frame))
        if version != FORMAT or loaded._theta.shape != (k,) or loaded._covariance.shape != (k, k) or not loaded.runs:
            raise ValueError("its parts do not fit together")
        return loaded
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"path: {str(path)!r} lacks parts of a forecast ({error}); write it again with Forecaster.save."
        ) from error
