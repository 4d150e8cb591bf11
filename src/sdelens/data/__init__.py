"""Data sets by name, from files, and texts."""

from sdelens.data._dataset import Dataset
from sdelens.data._load import is_text, load_dataset
from sdelens.data._text import Text, load_text

__all__ = ["Dataset", "Text", "is_text", "load_dataset", "load_text"]
