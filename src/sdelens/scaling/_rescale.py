"""The entry point of scaling: rescales an optimizer, in any of several forms, to another batch size."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from sdelens.core import check
from sdelens.core.names import MOMENTA
from sdelens.scaling._account import Rescaled, assumptions
from sdelens.scaling._factors import Change, regime_of, scaled, second_moments
from sdelens.scaling._horizon import decay_time
from sdelens.scaling._reasons import Row, row, rows_of
from sdelens.scaling._rules import RULES, Rule, default_rule
from sdelens.scaling._snr import Measured, measured, square_change
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
    snr: Any = None,
    tokens: float = 1,
    batch_size: float | None = None,
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

    ``rule="signal-to-noise"`` lies between √δ and δ. With the SNR u = √(B‖∇f‖²/tr Σ) at the old batch, E g² is
    multiplied by q = (u² + 1/δ)/(u² + 1), and

    - RMSprop(W), Adam(W): η × δ√q = √(δ(1 + δu²)/(1 + u²)), ε × √q, θ × 1/√q, β₁ unchanged, β₂ to the power δ;
    - SignSGD, Signum, Lion: η × δ times the mean sign at the old batch over that at the new one.

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
        momentum: how decays β are scaled: ``"samples"`` (1 − β × δ), ``"second-moment"`` (β₁ unchanged, β₂ to the power
            δ), ``"half-life"`` (every β to the power δ), ``"time"`` (1 − β is multiplied by the learning rate's factor)
            or ``"fixed"``; None selects the default of the rule.
        decay: ``"coupled"``, ``"independent"`` or ``"l2"``, for a dict that does not state it; the new dict does.
        accumulators: for an optax state: ``"scale"`` converts second moments to the new batch at once, and Adam's step
            count to the same number of samples, as `sdelens.torch.rescale` does; ``"keep"`` leaves both unchanged.
        snr: for ``rule="signal-to-noise"``, u at the old batch size: a number, or (estimate, lower limit, upper limit),
            which adds a range of the learning rate. It must be measured from gradients; moments give a lower bound.
        tokens: k, samples of the new run over those of the old one. Steps and the optimizer's schedule then cover k
            times as many samples, warm-up as many as before; decoupled θ is divided by k, which keeps the decay time
            scale τ = B/(ηθ) as a fraction of the run. The learning rate is not changed for the length of the run.
        batch_size: B of the old run, to state τ in samples instead of steps of B.

    Returns:
        A `Rescaled`: the new optimizer, of the type given, the new steps, and the account.

    Raises:
        ValueError: if a decay β would be negative, naming the largest legal ratio and the alternatives; for a rule made
            for other optimizers, an unknown name, or a number in a dict for which there is no rule.
        TypeError: if the optimizer is of no supported kind.

    Source: arXiv 2411.15958 (AdamW, RMSpropW, SignSGD), arXiv 2205.10287 (without decay), arXiv 1706.02677 (SGD), arXiv
    2405.13698 and 2505.13738 (τ); the rules of Momentum, Signum, Lion and Adagrad, of L2, and of the SNR are derived in
    docs/scaling.md.

    Examples:
        >>> import sdelens as sl
        >>> new = sl.scaling.rescale(sl.AdamW(lr=3e-4, b1=0.9, b2=0.95, weight_decay=0.1), 4, steps=10_000)
        >>> new.optimizer.lr, new.optimizer.b1, new.optimizer.b2, new.optimizer.weight_decay, new.steps
        (0.0006, 0.6, 0.8, 0.2, 2500)
    """
    ratio = ratio_of(batch_ratio)
    found = None if snr is None else measured(snr)
    how = check.choice("accumulators", accumulators, ACCUMULATORS)
    readings, join = read(optimizer, decay, float(ratio), how, _square_of(found, rule, ratio))
    return rescale_readings(
        readings,
        join,
        ratio,
        rule,
        momentum,
        steps=steps,
        warmup=warmup,
        clip_norm=clip_norm,
        snr=snr,
        tokens=tokens,
        batch_size=batch_size,
    )[0]


def _square_of(snr: Measured | None, rule: str | None, ratio: Fraction) -> float | None:
    """The factor of E g² if the rule is one that uses a measured SNR."""
    used = snr is not None and rule in RULES and RULES[rule].regime == "measured"
    return square_change(float(ratio), snr.snr) if used and snr is not None else None


def ratio_of(value: Any) -> Fraction:
    """δ as an exact fraction; a float counts as its shortest decimal.

    Raises:
        ValueError, TypeError: if it is not a number greater than 0.
    """
    return _fraction("batch_ratio", value)


def _fraction(name: str, value: Any) -> Fraction:
    if isinstance(value, Fraction | int) and not isinstance(value, bool) and value > 0:
        return Fraction(value)
    return Fraction(repr(float(check.positive(name, value))))


def read(
    optimizer: Any, decay: str | None, ratio: float = 1.0, accumulators: str = "keep", square: float | None = None
) -> tuple[list[Reading], Any]:
    """The readings of all groups, and the function that joins the rescaled groups.

    Args:
        optimizer: as in `rescale`.
        decay: as in `rescale`.
        ratio: δ.
        accumulators: as in `rescale`.
        square: the factor of second moments if it is known from a measured SNR.

    Raises:
        ValueError, TypeError: if something cannot be read; the message names it.
    """
    if isinstance(optimizer, Mapping):
        return [read_dict(_stating(optimizer, decay))], lambda parts: parts[0]
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

        return read_state(optimizer, decay, ratio, accumulators, square)
    if decay is not None:
        raise ValueError(
            f"decay: got {decay!r}, but the optimizer itself specifies how its weight decay acts; leave it out."
        )
    from sdelens.scaling._specifications import read_specification

    return [read_specification(optimizer)], lambda parts: parts[0]


def _stating(given: Mapping[str, Any], decay: str | None) -> Mapping[str, Any]:
    """The dict with the kind of decay, so that what is made of the rescaled dict knows it too.

    Raises:
        ValueError: if the dict states another kind, or has a number under this name.
    """
    stated = given.get("decay")
    if stated is None and "decoupled_weight_decay" in given:
        stated = "coupled" if given["decoupled_weight_decay"] else L2
    if decay is None or stated == decay:
        return given
    if stated is None:
        return {**given, "decay": decay}
    remedy = "leave one of them out" if isinstance(stated, str) else "name this number b2 in the dict"
    raise ValueError(f"decay: got {decay!r}, but the dict has {stated!r}; {remedy}.")


def _in_group(number: int, group: Mapping[str, Any], decay: str | None) -> Reading:
    try:
        return read_dict(_stating(group, decay))
    except (ValueError, TypeError) as error:
        raise type(error)(f"group {number}: {error}") from error


def chosen(
    numbers: Hyperparameters,
    ratio: Fraction,
    rule: str | None,
    momentum: str | None,
    snr: Measured | None = None,
    tokens: Fraction = Fraction(1),
) -> Change:
    """The rule and the treatment of β for one record.

    Raises:
        ValueError: if the rule is unknown or made for other optimizers, or needs an SNR; the message names it.
    """
    found = RULES[default_rule(numbers.family) if rule is None else check.choice("rule", rule, RULES)]
    if found.families and numbers.family not in found.families:
        raise ValueError(
            f"rule: got {found.name!r}, which applies to {' and '.join(found.families)}, not to {numbers.family}; "
            f"give {default_rule(numbers.family)!r}, which keeps its SDE."
        )
    if found.regime == "measured" and snr is None:
        raise ValueError(
            f"snr: not given, but rule {found.name!r} needs the signal-to-noise ratio at the old batch size; measure "
            "it by sdelens.torch.watch or sl.gradient_noise, and give snr= a number, or choose another rule."
        )
    if found.regime != "measured" and snr is not None:
        raise ValueError(
            f"snr: got {snr.snr:g}, which rule {found.name!r} does not use; leave it out, or give "
            "rule='signal-to-noise'."
        )
    how = found.momentum if momentum is None else check.choice("momentum", momentum, MOMENTA)
    if how == "second-moment" and numbers.memories and not second_moments(numbers):
        if momentum is not None:
            raise ValueError(
                f"momentum: got 'second-moment', but {numbers.family} keeps no mean of squared gradients; choose "
                "'samples', 'half-life' or 'fixed'."
            )
        how = "samples"
    by_memory = found.lr is None and (found.regime != "measured" or not second_moments(numbers))
    if by_memory and how == "time":
        raise ValueError(
            f"momentum: got 'time', which keeps (1 − β)/lr, but with rule {found.name!r} lr follows from β; choose "
            "'samples', 'half-life' or 'fixed', or another rule."
        )
    return Change(ratio, found, how, snr, tokens)


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
    snr: Any = None,
    tokens: float = 1,
    batch_size: float | None = None,
) -> tuple[Rescaled, list[Hyperparameters]]:
    """The `Rescaled` of some readings, and the new records."""
    read_snr = None if snr is None else measured(snr)
    times, size = _fraction("tokens", tokens), None if batch_size is None else check.positive("batch_size", batch_size)
    counts = [_count("steps", steps, 1, ratio, times), _count("warmup", warmup, 0, ratio)]
    if counts[0] is not None and counts[1] is not None and counts[1].before > counts[0].before:
        raise ValueError(f"warmup: got {warmup}, which is more than the run's {steps} steps.")
    written, records, changes, decays = [], [], [], []
    rows: list[Row] = []
    said: list[str] = []
    delta = float(ratio)
    for i, reading in enumerate(readings):
        group = i if len(readings) > 1 else None
        change = chosen(reading.numbers, ratio, rule, momentum, read_snr, times)
        try:
            new = scaled(reading.numbers, change)
        except ValueError as error:
            raise ValueError(str(error) if group is None else f"group {i}: {error}") from error
        records.append(new)
        factor = new.written_lr / reading.numbers.written_lr
        own = rows_of(reading.numbers, new, change)
        own += [row(name, value, value * factor, "like lr") for name, value in reading.extra.items()]
        optimizer, more = _with_schedule(reading.write(new), delta, new.lr / reading.numbers.lr, float(times))
        written.append(optimizer)
        rows += [dataclasses.replace(r, group=group) for r in [*own, *more]]
        said += reading.assumed + tuple(assumptions(reading.numbers, new, change, clip_norm is not None))
        said += _undone(reading.numbers, change.rule)
        changes.append(change)
        span = float(times), steps
        decays.append(decay_time(reading.numbers, new, delta, span, batch_size=size, group=group))
    first = changes[0]
    rows += [r for r in counts if r is not None]
    clip = None if clip_norm is None else _clip(clip_norm, first, readings[0].numbers.family)
    rows += [] if clip is None else [clip]
    rescaled = Rescaled(
        optimizer=join(written),
        batch_ratio=delta,
        rule=", ".join(dict.fromkeys(c.rule.name for c in changes)),
        momentum=", ".join(dict.fromkeys(c.momentum for c in changes)),
        steps=None if counts[0] is None else int(counts[0].after),
        warmup=None if counts[1] is None else int(counts[1].after),
        clip_norm=None if clip is None else clip.after,
        account=tuple(rows),
        assumed=tuple(dict.fromkeys(said)),
        decay_times=tuple(time for time in decays if time is not None),
    )
    return rescaled, records


def _with_schedule(optimizer: Any, delta: float, rate: float, tokens: float) -> tuple[Any, list[Row]]:
    """The specification with its schedule, if any, kept as the same function of the samples, or of the whole run."""
    schedule = None if isinstance(optimizer, Mapping | tuple) else getattr(optimizer, "schedule", None)
    if schedule is None:
        return optimizer, []
    from sdelens.scaling._specifications import scaled_schedule

    schedule, steps = scaled_schedule(schedule, delta, rate, tokens)
    rows = [row(name, before, after, _rounded(exact, after, tokens)) for name, before, exact, after in steps]
    return dataclasses.replace(optimizer, schedule=schedule), rows


def _count(name: str, value: int | None, least: int, ratio: Fraction, tokens: Fraction = Fraction(1)) -> Row | None:
    """Steps divided by δ, for `tokens` times as many samples, and rounded; at least 1 if there were any."""
    if value is None:
        return None
    before = check.at_least(name, value, least)
    exact = before * tokens / ratio
    after = max(math.floor(exact + Fraction(1, 2)), 1 if before else 0)
    return row(name, before, after, _rounded(float(exact), after, float(tokens)))


def _rounded(exact: float, after: float, tokens: float = 1.0) -> str:
    same = "÷ δ: the same number of samples"
    if tokens != 1:
        same = f"× {tokens:g} ÷ δ: {tokens:g} times as many samples"
    return same if exact == after else f"{same}, {exact:.8g} steps, rounded to a whole number"


def _clip(value: Any, change: Change, family: str) -> Row:
    before, delta = check.positive("clip_norm", value), float(change.ratio)
    regime = regime_of(change.rule, family)
    if regime == "noise":
        return row(
            "clip_norm",
            before,
            before / math.sqrt(delta),
            "÷ √δ: where noise dominates, ‖g‖ changes by the same factor",
        )
    if regime == "measured" and change.snr is not None:
        after = before * math.sqrt(square_change(delta, change.snr.snr))
        return row("clip_norm", before, after, "like ‖g‖, whose square is multiplied by (u² + 1/δ)/(u² + 1)")
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
