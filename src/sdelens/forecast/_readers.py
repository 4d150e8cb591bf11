"""Read steps, losses and learning rates from what training loops log: tables, W&B, TensorBoard, Hugging Face."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from sdelens.core.text import brief
from sdelens.forecast._tables import FILES, Table, listed, of_file, of_frame, split_name

__all__ = ["Logged", "read_log"]

_STEPS: Final = re.compile(
    r"((train|trainer|training|optimizer)_)?(global_)?(steps?|iterations?|iters?|(num_)?updates?)"
)
_LOSSES: Final = (
    re.compile(
        r"((train|trainer|training)_)?((lm|ce|nll|cross_?entropy|mean|total)_)?loss(_(step|train|training))?"
        r"|lm_loss_training_lm_loss|(train_)?crossentropyloss|(train_)?(nll|cross_entropy)"
    ),
    re.compile(r"(val|valid|validation|eval|evaluation|test)_(lm_|ce_)?loss(_step|_epoch)?|loss_(val|validation|eval)"),
    re.compile(r"values?"),  # what TensorBoard's own page exports
)
"""Names of the loss, the best first: of training, of validation, of whatever the table holds."""
_RATES: Final = re.compile(
    r"((train|trainer|training|optim|optimizer)_)?(lr|learning_rate)(_(learning_rate|adamw?|sgd|group_?0|pg_?1|0))*"
)


@dataclass(frozen=True, repr=False)
class Logged:
    """What a log says, before it is checked.

    Attributes:
        steps: optimizer steps, shape (n,), float64.
        losses: losses at these steps, shape (n,), float64.
        rate_steps: steps at which learning rates are logged, shape (r,); None if the log has none.
        rates: learning rates at these steps, shape (r,); None if the log has none.
        source: what it was read from, in words.
        name: name of the run in the log, or of the file; None for arrays.
        where: how a message says where the losses are.
    """

    steps: np.ndarray
    losses: np.ndarray
    rate_steps: np.ndarray | None
    rates: np.ndarray | None
    source: str
    name: str | None
    where: str

    __repr__ = brief


def read_log(curve: Any, *, loss: str | None = None, step: str | None = None, lr: Any = None) -> Logged:
    """Steps, losses and, where there are any, learning rates of a log.

    Args:
        curve: the log, as `Run` takes it.
        loss: name of the column or tag of the loss; default: one of the usual names.
        step: name of the column of the step; default: one of the usual names.
        lr: name of the column or tag of the learning rate; default: one of the usual names, if there is one. For a pair
            of arrays: the learning rates themselves, shape (n,).

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if it is a log of TensorBoard, which is not installed.
        TypeError: if `curve` is none of these.
        ValueError: if it cannot be read, or a column is not found or is not the only one; the message lists them.
    """
    if isinstance(curve, str | os.PathLike):
        table = of_file(Path(curve))
    elif isinstance(curve, tuple | list) and len(curve) == 2 and not isinstance(curve[0], Mapping | str):
        return _pair(curve, loss, step, lr)
    elif isinstance(curve, Mapping) or (hasattr(curve, "columns") and hasattr(curve, "iloc")):
        table = of_frame(curve)
    else:
        shape = f" of shape {np.shape(curve)}" if isinstance(curve, np.ndarray) else ""
        raise TypeError(
            f"curve: got {type(curve).__name__}{shape}; give a pair (steps, losses) of arrays, a pandas DataFrame, or "
            f"the path of {FILES}."
        )
    for argument, value in (("loss", loss), ("step", step), ("lr", lr)):
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{argument}: got {type(value).__name__}; give the name of a column of the log.")
    return _chosen(table, loss, step, lr)


def _pair(curve: Any, loss: str | None, step: str | None, lr: Any) -> Logged:
    """A pair of arrays, whose learning rates are a third."""
    for argument, name in (("loss", loss), ("step", step)):
        if name is not None:
            raise ValueError(f"{argument}: got {name!r}, but curve is a pair of arrays without names; leave it out.")
    if isinstance(lr, str):
        raise ValueError(f"lr: got {lr!r}, but curve is a pair of arrays without names; give the learning rates.")
    steps, losses = (_numbers(f"curve: its {n}", v) for n, v in zip(("steps", "losses"), curve, strict=True))
    if steps.shape != losses.shape:
        raise ValueError(f"curve: got {steps.size} steps and {losses.size} losses; give one loss for every step.")
    rates = None if lr is None else _numbers("lr", lr)
    if rates is not None and rates.shape != steps.shape:
        raise ValueError(f"lr: got {rates.size} learning rates for {steps.size} steps; give one for every step.")
    return Logged(steps, losses, None if rates is None else steps, rates, "arrays", None, "losses")


def _numbers(name: str, value: Any) -> np.ndarray:
    try:
        found = np.atleast_1d(np.asarray(value, np.float64))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: got {value!r}; give an array of real numbers.") from error
    if found.ndim != 1:
        raise ValueError(f"{name}: got an array of shape {found.shape}; give one of shape (n,).")
    return found


def _chosen(table: Table, loss: str | None, step: str | None, lr: str | None) -> Logged:
    """The columns of a table that are meant."""
    plain = [name for name in table.names if not re.search(r"__(MIN|MAX)$", name)]  # W&B's range of each mean
    losses = _named("loss", loss, _LOSSES, table, plain)
    for usual in _LOSSES:
        losses = losses or _usual("loss", usual, table, plain)
    if losses is None:
        raise ValueError(
            f"loss: no column of {table.source} has a usual name of a loss, such as 'loss' or 'train/loss'; name one "
            f"of its columns by the argument loss: {listed(plain)}."
        )
    run, _ = split_name(losses)
    near = [name for name in plain if name != losses and split_name(name)[0] in (run, None)]  # W&B: of the same run
    rates = _named("lr", lr, (_RATES,), table, plain) or _usual("lr", _RATES, table, near)
    column = table.column(losses)
    if table.stepped:
        if step is not None:
            raise ValueError(f"step: got {step!r}, but TensorBoard keeps the step of every number; leave it out.")
        steps = column.steps
    else:
        named = _named("step", step, (_STEPS,), table, plain) or _usual("step", _STEPS, table, near, column.known)
        if named is None:
            raise ValueError(
                f"step: no column of {table.source} has a usual name of the step, such as 'step' or 'iteration'; name "
                f"one of its columns by the argument step: {listed(near)}."
            )
        steps = _steps(table, named, column.known)
    assert steps is not None
    known = column.known
    where = f"tag {losses!r}" if table.stepped else f"column {losses!r}"
    about = f"{table.source}, {where}", run or table.stem, f"{where} of {table.source}"
    logged = Logged(steps[known], column.values[known], None, None, *about)
    if rates is None:
        return logged
    column = table.column(rates)
    steps = column.steps if table.stepped else steps
    if steps is None or not column.known.any():
        return logged
    return replace(logged, rate_steps=steps[column.known], rates=column.values[column.known])


def _steps(table: Table, name: str, needed: np.ndarray) -> np.ndarray:
    """The step of every row; an error if one with a loss has none."""
    column = table.column(name)
    lost = np.flatnonzero(needed & (~column.known | np.isnan(column.values)))
    if lost.size:
        raise ValueError(
            f"step: row {lost[0] + 1} of {table.source} has a loss but no {name!r} ({lost.size} such rows); drop these "
            "rows, or name another column by the argument step."
        )
    return np.where(column.known, column.values, np.nan)


def _named(
    argument: str, name: str | None, usual: Sequence[re.Pattern[str]], table: Table, plain: Sequence[str]
) -> str | None:
    """The column with a name, or that of a run of W&B with this name; None if no name was given."""
    if name is None or name in table.names:
        return name
    for test in (lambda other: split_name(other)[1] == name, lambda other: _key(other) == _key(name)):
        found = [other for other in plain if test(other)]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(
                f"{argument}: {name!r} fits several columns of {table.source}: {listed(found)}; name one of them."
            )
    of_run = [other for other in plain if split_name(other)[0] == name]
    for pattern in usual:
        if (only := _usual(argument, pattern, table, of_run)) is not None:
            return only
    raise ValueError(f"{argument}: {table.source} has no column {name!r}; its columns are {listed(plain)}.")


def _usual(
    argument: str, names: re.Pattern[str], table: Table, among: Sequence[str], rows: Any = slice(None)
) -> str | None:
    """The one column whose name is usual; columns of equal values in these rows count as one."""
    found = [name for name in among if names.fullmatch(_key(name))]
    first = table.column(found[0]) if len(found) > 1 else None
    if first is not None and not all(first.same(table.column(name), rows) for name in found[1:]):
        raise ValueError(
            f"{argument}: {table.source} has several columns that can be meant: {listed(found)}; name one by "
            f"the argument {argument}."
        )
    return found[0] if found else None


def _key(name: str) -> str:
    """The name of the quantity in lower case with words joined by underscores."""
    return re.sub(r"[^a-z0-9]+", "_", split_name(name)[1].lower()).strip("_")
