"""The entry point of scaling: rescales an optimizer, in any of several forms, to another batch size."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from sdelens.core import check
from sdelens.core.names import MOMENTA
from sdelens.scaling._account import Rescaled, assumptions
from sdelens.scaling._factors import Row, regime_of, row, scaled
from sdelens.scaling._rules import RULES, Rule, default_rule
from sdelens.scaling.hyperparameters import L2, Hyperparameters, Reading, read_dict
from sdelens.scaling.memory import ACCUMULATORS

__all__ = ["chosen", "ratio_of", "read", "rescale", "rescale_readings"]


def rescale(
    optimizer: Any,
    batch_ratio: float,
    rule: str | None = None,
    *,
    steps: int | None = None,
    warmup: int | None = None,
    clip_norm: float | None = None,
    momentum: str | None = None,
    decay: str | None = None,
    accumulators: str = "scale",
) -> Rescaled:
    r"""The hyperparameters for a batch `batch_ratio` times as large, with an account of every number.

    Let δ be the ratio, and compare runs at equal numbers of samples. Steps and warm-up are then divided by δ, and the
    rule that keeps an optimizer's SDE changes

    - SGD, Momentum: η × δ, 1 − β × δ, θ × 1;
    - SignSGD: η × √δ, θ × √δ;
    - RMSprop(W), Adam(W): η × √δ, 1 − β × δ, ε ÷ √δ, θ × √δ;
    - Signum, Lion: 1 − β × δ for the mean of gradients, and η × the change in standard deviation of the sign's
      argument, between √δ and δ; θ × δ/(factor of η);
    - Adagrad: η × 1, sum at the start and ε inside the root ÷ δ², θ × δ.

    Here θ is weight decay that η multiplies (``"coupled"``). ``"independent"`` decay is multiplied by δ in all cases,
    and L2 in the gradient is not changed. For PyTorch's undamped momentum, the rules hold for η = lr/(1 − μ).

    Args:
        optimizer: one of our specifications; a dict such as ``{"optimizer": "adamw", "lr": 3e-4, "betas": (0.9, 0.95),
            "eps": 1e-8, "weight_decay": 0.1}``; a list of dicts (parameter groups, each on its own); or the state of
            ``optax.inject_hyperparams``. Live PyTorch optimizers: `sdelens.torch.rescale`.
        batch_ratio: δ > 0, below 1 for a smaller batch.
        rule: a name in `RULES`; None is the rule that keeps the optimizer's SDE: ``"sqrt"`` for SignSGD and adaptive
            optimizers, ``"linear"`` for SGD and Momentum, ``"sign-momentum"`` for Signum and Lion,
            ``"sum-of-squares"`` for Adagrad.
        steps: optimizer steps of the run at the old batch size.
        warmup: warm-up steps of that run.
        clip_norm: norm at which gradients are clipped in that run.
        momentum: how decays β are scaled: ``"samples"`` (1 − β × δ), ``"half-life"`` (β to the power δ), ``"time"``
            (1 − β is multiplied by the learning rate's factor) or ``"fixed"``; None selects the default of the rule.
        decay: ``"coupled"``, ``"independent"`` or ``"l2"``, for a dict that does not state it.
        accumulators: for an optax state: ``"scale"`` converts second moments to the new batch at once, and Adam's step
            count to the same number of samples, as `sdelens.torch.rescale` does; ``"keep"`` leaves both unchanged.

    Returns:
        A `Rescaled`: the new optimizer, of the type given, the new steps, and the account.

    Raises:
        ValueError: if a decay β would be negative, naming the largest legal ratio and the alternatives; for a rule made
            for other optimizers, an unknown name, or a number in a dict for which there is no rule.
        TypeError: if the optimizer is of no supported kind.

    Source: arXiv 2411.15958 (AdamW, RMSpropW, SignSGD), arXiv 2205.10287 (without decay), arXiv 1706.02677 (SGD); the
    rules of Momentum, Signum, Lion and Adagrad, and of L2, are derived in docs/scaling.md.

    Examples:
        >>> import sdelens as sl
        >>> new = sl.scaling.rescale(sl.AdamW(lr=3e-4, b1=0.9, b2=0.95, weight_decay=0.1), 4, steps=10_000)
        >>> new.optimizer.lr, new.optimizer.b1, new.optimizer.b2, new.optimizer.weight_decay, new.steps
        (0.0006, 0.6, 0.8, 0.2, 2500)
    """
    ratio = ratio_of(batch_ratio)
    readings, join = read(optimizer, decay, float(ratio), check.choice("accumulators", accumulators, ACCUMULATORS))
    options: dict[str, Any] = {"steps": steps, "warmup": warmup, "clip_norm": clip_norm}
    return rescale_readings(readings, join, ratio, rule, momentum, **options)[0]


def ratio_of(value: Any) -> Fraction:
    """δ as an exact fraction; a float counts as its shortest decimal.

    Raises:
        ValueError, TypeError: if it is not a number greater than 0.
    """
    return (
        Fraction(value)
        if isinstance(value, Fraction | int) and not isinstance(value, bool) and value > 0
        else (Fraction(repr(float(check.positive("batch_ratio", value)))))
    )


def read(
    optimizer: Any, decay: str | None, ratio: float = 1.0, accumulators: str = "keep"
) -> tuple[list[Reading], Any]:
    """The readings of all groups, and the function that joins the rescaled groups.

    Raises:
        ValueError, TypeError: if something cannot be read; the message names it.
    """
    if isinstance(optimizer, Mapping):
        return [read_dict(optimizer, decay)], lambda parts: parts[0]
    if isinstance(optimizer, list):
        if not optimizer or not all(isinstance(group, Mapping) for group in optimizer):
            raise TypeError(
                "optimizer: got a list that is empty or does not consist of dicts; give a list of parameter groups."
            )
        return [_in_group(i, group, decay) for i, group in enumerate(optimizer)], list
    if type(optimizer).__module__.startswith("torch."):
        raise TypeError(
            f"optimizer: got a {type(optimizer).__name__} of PyTorch; use sdelens.torch.rescale, which changes it in "
            "place."
        )
    if isinstance(optimizer, tuple) or hasattr(optimizer, "hyperparams"):
        from sdelens.scaling._optax import read_state

        return read_state(optimizer, decay, ratio, accumulators)
    if decay is not None:
        raise ValueError(
            f"decay: got {decay!r}, but the optimizer itself specifies how its weight decay acts; leave it out."
        )
    from sdelens.scaling._specifications import read_specification

    return [read_specification(optimizer)], lambda parts: parts[0]


def _in_group(number: int, group: Mapping[str, Any], decay: str | None) -> Reading:
    try:
        return read_dict(group, decay)
    except (ValueError, TypeError) as error:
        raise type(error)(f"group {number}: {error}") from error


def chosen(numbers: Hyperparameters, rule: str | None, momentum: str | None) -> tuple[Rule, str]:
    """The rule and the treatment of β for one record.

    Raises:
        ValueError: if the rule is unknown or made for other optimizers; the message names it.
    """
    found = RULES[default_rule(numbers.family) if rule is None else check.choice("rule", rule, RULES)]
    if found.families and numbers.family not in found.families:
        raise ValueError(
            f"rule: got {found.name!r}, which applies to {' and '.join(found.families)}, not to {numbers.family}; "
            f"give {default_rule(numbers.family)!r}, which keeps its SDE."
        )
    how = found.momentum if momentum is None else check.choice("momentum", momentum, MOMENTA)
    if found.lr is None and how == "time":
        raise ValueError(
            f"momentum: got 'time', which keeps (1 − β)/lr, but with rule {found.name!r} lr follows from β; choose "
            "'samples', 'half-life' or 'fixed', or another rule."
        )
    return found, how


def rescale_readings(
    readings: Sequence[Reading],
    join: Any,
    ratio: Fraction,
    rule: str | None,
    momentum: str | None,
    *,
    steps: int | None = None,
    warmup: int | None = None,
    clip_norm: float | None = None,
) -> tuple[Rescaled, list[Hyperparameters]]:
    """The `Rescaled` of some readings, and the new records."""
    written, records, names = [], [], []
    rows: list[Row] = []
    said: list[str] = []
    delta = float(ratio)
    for i, reading in enumerate(readings):
        group = i if len(readings) > 1 else None
        found, how = chosen(reading.numbers, rule, momentum)
        try:
            new, own = scaled(reading.numbers, ratio, found, how)
        except ValueError as error:
            raise ValueError(str(error) if group is None else f"group {i}: {error}") from error
        records.append(new)
        factor = new.written_lr / reading.numbers.written_lr
        own += [row(name, value, value * factor, "like lr") for name, value in reading.extra.items()]
        optimizer, more = _with_schedule(reading.write(new), delta, new.lr / reading.numbers.lr)
        written.append(optimizer)
        rows += [dataclasses.replace(r, group=group) for r in [*own, *more]]
        said += reading.assumed + tuple(assumptions(reading.numbers, new, delta, found, clip_norm is not None))
        said += _undone(reading.numbers, found)
        names.append((found, how))
    first = names[0][0]
    counts = [_count("steps", steps, 1, ratio), _count("warmup", warmup, 0, ratio)]
    rows += [r for r in counts if r is not None]
    if counts[0] is not None and counts[1] is not None and counts[1].before > counts[0].before:
        raise ValueError(f"warmup: got {warmup}, which is more than the run's {steps} steps.")
    clip = None if clip_norm is None else _clip(clip_norm, delta, first, readings[0].numbers.family)
    rows += [] if clip is None else [clip]
    rescaled = Rescaled(
        optimizer=join(written),
        batch_ratio=delta,
        rule=", ".join(dict.fromkeys(r.name for r, _ in names)),
        momentum=", ".join(dict.fromkeys(how for _, how in names)),
        steps=None if counts[0] is None else int(counts[0].after),
        warmup=None if counts[1] is None else int(counts[1].after),
        clip_norm=None if clip is None else clip.after,
        account=tuple(rows),
        assumed=tuple(dict.fromkeys(said)),
    )
    return rescaled, records


def _with_schedule(optimizer: Any, delta: float, rate: float) -> tuple[Any, list[Row]]:
    """The specification with its schedule, if any, kept as the same function of the number of samples."""
    schedule = None if isinstance(optimizer, Mapping | tuple) else getattr(optimizer, "schedule", None)
    if schedule is None:
        return optimizer, []
    from sdelens.scaling._specifications import scaled_schedule

    schedule, steps = scaled_schedule(schedule, delta, rate)
    rows = [row(name, before, after, _rounded(before / delta, after)) for name, before, after in steps]
    return dataclasses.replace(optimizer, schedule=schedule), rows


def _count(name: str, value: int | None, least: int, ratio: Fraction) -> Row | None:
    """Steps divided by δ and rounded; at least 1 if there were any."""
    if value is None:
        return None
    before = check.at_least(name, value, least)
    exact = before / ratio
    after = max(math.floor(exact + Fraction(1, 2)), 1 if before else 0)
    return row(name, before, after, _rounded(float(exact), after))


def _rounded(exact: float, after: float) -> str:
    same = "÷ δ: the same number of samples"
    return same if exact == after else f"{same}, {exact:.8g} steps, rounded to a whole number"


def _clip(value: Any, delta: float, rule: Rule, family: str) -> Row:
    before = check.positive("clip_norm", value)
    regime = regime_of(rule, family)
    if regime == "noise":
        return row(
            "clip_norm",
            before,
            before / math.sqrt(delta),
            "÷ √δ: where noise dominates, ‖g‖ changes by the same factor",
        )
    why = "the gradient dominates, so ‖g‖ does not change" if regime == "signal" else "not changed by this rule"
    return row("clip_norm", before, before, why)


def _undone(old: Hyperparameters, rule: Rule) -> tuple[str, ...]:
    """Remarks about weight decay in addition to its row."""
    if old.family != "adamw" or old.decay != L2 or old.weight_decay == 0:
        return ()
    return (
        "Weight decay is treated as L2 in the gradient (torch.optim.Adam), which is not rescaled. Give "
        "decay='coupled' for AdamW's decoupled decay, which is rescaled.",
    )
