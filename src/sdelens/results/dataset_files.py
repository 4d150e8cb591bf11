"""Files of results and sweeps: NetCDF, written as a whole or not at all."""

import os
from typing import TYPE_CHECKING, Final

from sdelens.core.files import as_path, atomic_path

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["FORMAT", "read_dataset", "write_dataset"]

FORMAT: Final = 1
"""Version of the datasets' form, which is stored in them."""


def write_dataset(dataset: "xr.Dataset", path: str | os.PathLike[str]) -> None:
    """Write a dataset as NetCDF (HDF5), atomically."""
    with atomic_path(path) as temporary:
        dataset.to_netcdf(temporary, engine="h5netcdf")


def read_dataset(path: str | os.PathLike[str]) -> "xr.Dataset":
    """Read the dataset of a result or of a sweep from a file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is truncated, not NetCDF, or not a result of this library.
    """
    import xarray as xr

    path = as_path(path)
    if path.is_dir():
        raise IsADirectoryError(f"path: {str(path)!r} is a folder; give the .nc file in it.")
    if not path.is_file():
        raise FileNotFoundError(f"path: there is no file {str(path)!r}; give one that was written by save.")
    try:
        with xr.open_dataset(path, engine="h5netcdf") as opened:
            dataset = opened.load()
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"path: {str(path)!r} is truncated or not a NetCDF file ({error}); write it again with Result.save."
        ) from error
    if "sdelens_format" not in dataset.attrs:
        raise ValueError(f"path: {str(path)!r} is a NetCDF file, but not one that Result.save wrote.")
    if int(dataset.attrs["sdelens_format"]) > FORMAT:
        raise ValueError(
            f"path: {str(path)!r} has format {dataset.attrs['sdelens_format']}, this version reads up to {FORMAT}; "
            "upgrade sdelens."
        )
    return dataset
