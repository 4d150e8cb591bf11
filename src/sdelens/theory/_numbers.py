"""Formulas that are the same for numbers and inside JAX transformations."""

from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np

from sdelens.core import check

__all__ = ["array", "library", "number", "shown"]


def library(*values: Any) -> ModuleType:
    """NumPy, or its counterpart in JAX if a value is traced."""
    return jnp if check.any_traced(*values) else np


def array(value: Any) -> Any:
    """A value in float64, or as it is if it is traced."""
    return jnp.asarray(value) if check.is_traced(value) else np.asarray(value, np.float64)


def number(value: Any) -> Any:
    """A value as a float, or as it is if it is traced."""
    return value if check.is_traced(value) else float(value)


def shown(value: Any, digits: int = 4) -> str:
    """A number as text."""
    return "a traced number" if check.is_traced(value) else f"{value:.{digits}g}"
