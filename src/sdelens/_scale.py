"""The shell's `scale`: options to a dict of hyperparameters, and what is printed of it. No JAX."""

from typing import Any, Final

from sdelens import _check
from sdelens._names import CODE_FORMATS, SCALED
from sdelens.scaling import rescale
from sdelens.scaling._code import as_code

__all__ = ["scale"]

_DEFAULTS: Final = {
    "adamw": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "adam": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "rmspropw": {"b2": 0.99, "eps": 1e-8},
    "rmsprop": {"b2": 0.99, "eps": 1e-8},
    "momentum": {"b1": 0.9},
    "signum": {"b1": 0.9},
    "lion": {"b1": 0.9, "b2": 0.99},
    "adagrad": {"initial_accumulator": 0.1, "eps": 1e-7},
}
"""Those of our specifications, so that what is printed is complete."""


def scale(
    optimizer: str,
    batch: float,
    to: float,
    given: dict[str, Any],
    form: str,
    **options: Any,
) -> str:
    """What `sdelens scale` prints.

    Args:
        optimizer: its name.
        batch: batch size of the numbers.
        to: batch size wanted.
        given: the numbers that were given; None for those that were not.
        form: one of CODE_FORMATS.
        **options: of `rescale`.

    Raises:
        ValueError: naming what is wrong, or which number the optimizer does not take.
    """
    name = _check.choice("optimizer", optimizer.lower(), SCALED)
    _check.choice("format", form, CODE_FORMATS)
    ratio = _check.positive("to", to) / _check.positive("batch", batch)
    numbers = {key: value for key, value in given.items() if value is not None}
    numbers = {"optimizer": name, **_DEFAULTS.get(name, {}), **numbers}
    if not numbers.get("nesterov"):
        numbers.pop("nesterov", None)
    rescaled = rescale(numbers, ratio, **options)
    return str(rescaled) if form == "table" else as_code(rescaled, form)
