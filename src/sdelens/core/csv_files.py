"""Read tables from text files: CSV with commas, semicolons or tabs."""

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["as_frame", "plain_header", "read_text", "separator_of"]


def read_text(name: str, path: Path, remedy: str) -> str:
    """The text of a file.

    Args:
        name: name of the argument that gave the path.
        path: the file.
        remedy: what to give instead, such as "a CSV file".

    Raises:
        FileNotFoundError, IsADirectoryError: if there is no such file, or it is a folder.
        ValueError: if it is not text.
    """
    if not path.exists():
        raise FileNotFoundError(f"{name}: there is no file {str(path)!r}; check its name and its folder.")
    if path.is_dir():
        raise IsADirectoryError(f"{name}: {str(path)!r} is a folder; give {remedy}.")
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: {str(path)!r} is not a text file; give {remedy}.") from error


def plain_header(text: str) -> str:
    """The first line without what is in quotes."""
    return re.sub(r'"[^"]*"', "", text.partition("\n")[0])


def separator_of(text: str) -> str:
    """The separator of the fields, by the first line."""
    return max(("\t", ";", ","), key=plain_header(text).count)


def as_frame(name: str, path: Path, text: str, **options: Any) -> "pd.DataFrame":
    """The text of a file as a table.

    Args:
        name: name of the argument that gave the path.
        path: the file, for messages.
        text: its text.
        **options: of `pandas.read_csv`.

    Raises:
        ValueError: if it is empty, or its lines differ in their number of fields.
    """
    import pandas as pd

    if not text.strip():
        raise ValueError(f"{name}: {str(path)!r} is empty; give a CSV file with at least one row.")
    try:
        return pd.read_csv(io.StringIO(text.lstrip("\r\n")), **options)
    except pd.errors.ParserError as error:
        raise ValueError(
            f"{name}: {str(path)!r} cannot be read as a table ({str(error).strip()}); give a CSV file with a line of "
            "names and the same number of fields in every line."
        ) from error
