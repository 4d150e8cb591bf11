"""The entry point of diagnosis: from an optimizer state, from measured gradients, or both, to a `Diagnosis`."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sdelens.core import check
from sdelens.diagnosis._checkpoint import from_files, is_path
from sdelens.diagnosis._from_gradients import batch_of
from sdelens.diagnosis._patterns import OTHER, labels_by
from sdelens.diagnosis._sources import Source, Tensor, in_memory, leaves_of
from sdelens.diagnosis._tally import Tally
from sdelens.diagnosis._verdict import Diagnosis

if TYPE_CHECKING:
    from sdelens.diagnosis._noise import GradientNoise

__all__ = ["diagnose"]


def diagnose(
    state: Any = None,
    *,
    noise: "GradientNoise | None" = None,
    b1: float | None = None,
    b2: float | None = None,
    weight_decay: float | None = None,
    parameters: Any = None,
    groups: str | Mapping[str, str] | Callable[[str], str] | None = None,
    batch_size: float | None = None,
    ratios: Iterable[float] = (2, 4, 8, 16, 32, 64),
    tolerance: float = 0.05,
    earlier: Any = None,
    noise_correlation: float = 0.5,
    key: str | None = None,
) -> Diagnosis:
    r"""Signal and noise of a run, and whether the square-root rule holds for it, from gradients or Adam's moments.

    Measured gradients (`noise`) give the SNR with two limits. Adam's moments give a lower limit of it: for a steady
    gradient E m̂² = (∇f)² + cσ² and E v̂ = (∇f)² + σ² with c = (1 − β₁)(1 + β₁ᵏ)/((1 + β₁)(1 − β₁ᵏ)) after k
    steps; so

        tr Σ = Σ (v̂ − m̂²)/(1 − c),    ‖∇f‖² = Σ (m̂² − c v̂)/(1 − c),    SNR = √(‖∇f‖²/tr Σ),

    summed over the coordinates of a group before anything is clipped. Σ is the covariance of the noise of one batch.
    The gradient of a real run turns over within the memory of m, and what turns over appears as noise; so there is no
    upper limit. The lower one allows for correlated noise and for growing squares (`sdelens.diagnosis.moments`).

    v̂ averages over 1/(1 − β₂) steps; a gradient that decreased within them appears as noise. With `earlier`, m and v
    of the n steps in between are recovered exactly, m − β₁ⁿm′ and v − β₂ⁿv′, and diagnosed as a run of n steps.

    Args:
        state: an optax state (moments anywhere in it); a PyTorch optimizer with `exp_avg` and `exp_avg_sq`, or its
            `state_dict()`; the path of its checkpoint, of a folder of checkpoints, or a list of paths, which need
            PyTorch; an `sl.State`; or a dictionary with m, v and step (or mu, nu, count; exp_avg, exp_avg_sq, step),
            arrays or trees of them. With `noise` it may be left out, and gives only the betas and the weight decay.
        noise: gradients measured at the present point, from `sdelens.torch.watch` or `gradient_noise`.
        b1: β₁, if the state does not contain it, as optax states do not without `inject_hyperparams`.
        b2: β₂, likewise.
        weight_decay: decoupled weight decay θ that the learning rate multiplies, if the state does not contain it, as a
            live PyTorch optimizer does; it moves the run equally at both batch sizes, which reduces the error.
        parameters: the parameters x, if they are not in the state, for the size of that decay: a tree of the same
            structure as the moments. Without them decay is ignored.
        groups: how tensors are grouped. None: each tensor is a group. ``"parameter groups"``: those of the optimizer,
            or labels of `optax.multi_transform`. A mapping from names to regular expressions: the first one that is
            found in a tensor's name decides, else ``"other"``. Or a function from the tensor's name to its group's.
        batch_size: B of an optimizer step, in the unit in which the noise scale is to be reported; needed with `noise`,
            unless it was recorded there.
        ratios: batch ratios δ > 0 of the table.
        tolerance: relative L2 error of the loss curve up to which the rule holds, above 0 and below 1.
        earlier: the state of the same run some steps before, of the same kind.
        noise_correlation: φ, the largest correlation of the noise of successive batches that the lower limit from
            moments allows for; 0 if batches are drawn independently.
        key: which of several optimizers in a checkpoint, with dots between levels.

    Returns:
        A `Diagnosis`. If noise cannot be estimated from the state (RMSprop, β₁ = 0, fewer than two steps, an optimizer
        that is not known), it says so.

    Raises:
        ValueError: if there are no moments, betas are missing or contradict those of the state, numbers are out of
            their range, or a file is broken or contains data that would have to be executed.
        TypeError: if `state` is of no supported kind.
        FileNotFoundError, ImportError: for files; see `state`.

    Source: the moments' expectations are derived in docs/diagnosis.md; the noise scale is that of McCandlish et al.
    2018 (arXiv 1812.06162), the rule that of Malladi et al. 2022 (arXiv 2205.10287) and arXiv 2411.15958.
    """
    if state is None and noise is None:
        raise ValueError("state, noise: got neither; give an optimizer's state, measured gradients, or both.")
    given = {n: None if b is None else check.fraction(n, b) for n, b in (("b1", b1), ("b2", b2))}
    batch = None if batch_size is None else check.positive("batch_size", batch_size)
    wanted = tuple(float(check.positive("ratios", ratio)) for ratio in ratios)
    limit = check.positive("tolerance", tolerance)
    if limit >= 1:
        raise ValueError(f"tolerance: got {tolerance}; give a relative error below 1, for example 0.05 for 5 %.")
    label = _labels(groups)
    decay = None if weight_decay is None else check.nonnegative("weight_decay", weight_decay)
    tally = Tally(
        given,
        check.fraction("noise_correlation", noise_correlation),
        decay,
        None if parameters is None else dict(leaves_of(parameters)),
    )
    if noise is not None:
        _refuse(noise, groups=groups, earlier=earlier)
        for tensor in _source(state, key) if state is not None else ():
            tally.describe(tensor)
        return tally.with_gradients(noise, batch_of(noise, batch), wanted, limit)
    for tensor, before in _paired(state, earlier, key):
        tally.add(tensor, before, label(tensor))
    if isinstance(groups, Mapping) and tally.parts and not tally.parts.keys() - {OTHER}:
        raise ValueError(
            f"groups: got {dict(groups)!r}, but no expression matches the name of a tensor; the first name is "
            f"{tally.first!r}. In a checkpoint without names the parameters are numbered."
        )
    return tally.result(batch, wanted, limit, earlier is not None)


def _refuse(noise: Any, **unused: Any) -> None:
    """Refuse what is no measurement, and arguments that have no meaning with one."""
    from sdelens.diagnosis._noise import GradientNoise

    if not isinstance(noise, GradientNoise):
        raise TypeError(
            f"noise: got {type(noise).__name__}; give a GradientNoise, as watch.result() or sl.gradient_noise returns "
            "it."
        )
    for name, value in unused.items():
        if value is not None:
            raise ValueError(
                f"{name}: got a value together with noise, whose groups and point are those of the measurement; leave "
                "it out."
            )


def _source(state: Any, key: str | None) -> Source:
    return from_files(state, key) if is_path(state) else in_memory(state, key)


def _paired(state: Any, earlier: Any, key: str | None) -> Iterable[tuple[Tensor, Tensor | None]]:
    now = _source(state, key)
    if earlier is None:
        yield from ((tensor, None) for tensor in now)
        return
    for tensor, before in itertools.zip_longest(now, _source(earlier, key)):
        if tensor is None or before is None or tensor.name != before.name:
            names = [None if t is None else t.name for t in (tensor, before)]
            raise ValueError(
                f"earlier: its tensors differ from those of state ({names[1]} instead of {names[0]}); give a state "
                "of the same run."
            )
        yield tensor, before


def _labels(groups: Any) -> Callable[[Tensor], str]:
    if groups is None:
        return lambda tensor: tensor.name
    if groups == "parameter groups":
        return lambda tensor: tensor.group or "state"
    if isinstance(groups, Mapping):
        by_name = labels_by(groups)
        return lambda tensor: by_name(tensor.name)
    if callable(groups):
        return lambda tensor: str(groups(tensor.name))
    raise TypeError(
        f"groups: got {groups!r}; give None, 'parameter groups', a mapping from names to regular expressions, or a "
        "function from a tensor's name to the name of its group."
    )
