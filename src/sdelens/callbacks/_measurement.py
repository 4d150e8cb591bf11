"""What a training loop logs of its gradient noise: numbers, a verdict and advice."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdelens import Advice, Diagnosis, GradientNoise, advise, diagnose
from sdelens.diagnosis.logged import logged

__all__ = ["Measurement", "measure"]


@dataclass(frozen=True)
class Measurement:
    """One measurement of a run.

    Attributes:
        step: number of optimizer steps before it.
        numbers: what is logged, by key; numbers that are not known are left out.
        text: the verdict and the advice, or why nothing can be told.
        noise: the measured noise, None if nothing can be told.
        diagnosis: what `sdelens.diagnose` makes of it, None without an optimizer, or if it cannot be told.
        advice: what `sdelens.advise` makes of it, likewise.
    """

    step: int
    numbers: Mapping[str, float]
    text: str
    noise: GradientNoise | None = None
    diagnosis: Diagnosis | None = None
    advice: Advice | None = None


def measure(
    noise: GradientNoise,
    step: int,
    state: Any = None,
    optimizer: Any = None,
    *,
    prefix: str = "noise/",
    **options: Any,
) -> Measurement:
    """Numbers, verdict and advice of measured gradients, for the log of a run.

    The numbers are those of `sdelens.torch.GradientWatch.log`; with a state ``largest_ratio``, the batch ratio up
    to which the square-root rule is expected to hold, with ``_lower``, up to which it holds whatever is assumed, and
    ``_upper``, from which it fails; and with an optimizer ``largest_batch``, the largest batch size that is known
    to use half of its samples. Numbers that are not known are left out. A run must not end because something cannot be
    told: errors of the verdict and of the advice are part of the text.

    Args:
        noise: what was measured.
        step: number of optimizer steps before.
        state: the optimizer or its state, as for `sdelens.diagnose`; None for no verdict.
        optimizer: its hyperparameters, as for `sdelens.advise`; None for no advice.
        prefix: what is written before every name.
        options: further options of `sdelens.diagnose`, such as b1, b2 and ``tolerance``.
    """
    numbers, said = logged(noise, prefix), []
    diagnosis = advice = None
    try:
        if state is not None:
            diagnosis = diagnose(state, noise=noise, **options)
            said.append(diagnosis.verdict())
            lower, upper = diagnosis.largest_ratio_limits
            values = {"": diagnosis.largest_ratio, "_lower": lower, "_upper": upper}
            numbers |= {f"{prefix}largest_ratio{end}": value for end, value in values.items()}
        if optimizer is not None:
            advice = advise(noise, batch_size=noise.step_batch_size, optimizer=optimizer)
            numbers[f"{prefix}largest_batch"] = advice.largest_batch
            said.append(advice.recommendation)
    except (ValueError, TypeError, ArithmeticError) as error:
        said.append(f"Cannot tell: {error}")
    if diagnosis is None:
        said = [*noise.verdict(), *said]
    known = {name: float(value) for name, value in numbers.items() if math.isfinite(value)}
    return Measurement(step, known, " ".join(said), noise, diagnosis, advice)
