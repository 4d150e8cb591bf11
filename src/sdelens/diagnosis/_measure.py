"""The entry point of diagnosis: from an optimizer state, from measured gradients, or both, to a `Diagnosis`."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sdelens.core import check
from sdelens.diagnosis._checkpoint import from_files, is_path
from sdelens.diagnosis._diagnosis_report import general_notes
from sdelens.diagnosis._from_gradients import batch_of, groups_of, pulls_by_group
from sdelens.diagnosis._patterns import OTHER, labels_by
from sdelens.diagnosis._sources import Source, Tensor, in_memory, leaves_of
from sdelens.diagnosis._tensor import as_real
from sdelens.diagnosis._verdict import Diagnosis
from sdelens.diagnosis._why import NO_FIRST, NO_STATE
from sdelens.diagnosis.moments import FALSE_ALARM, Group, Split, Weights, combine, split, squares

if TYPE_CHECKING:
    from sdelens.diagnosis._noise import GradientNoise

__all__ = ["diagnose"]

_FILLED = 3.0
"""Steps, in units of 1/(1 − β₂), from which the memory of v counts as filled."""


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
    tally = _Tally(
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


_ROUNDING = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
"""Relative rounding error of formats coarser than float32."""


class _Tally:
    """Sums that are collected tensor by tensor."""

    def __init__(
        self,
        given: Mapping[str, float | None],
        correlation: float,
        weight_decay: float | None,
        parameters: Mapping[str, Any] | None,
    ) -> None:
        self.given, self.correlation = given, correlation
        self.weight_decay, self.parameters = weight_decay, parameters
        self.tensors: list[tuple[str, tuple[int, ...], float | None]] = []  # name, shape, pull
        self.numbers = 0
        self.others: dict[str | None, None] = {}  # why tensors are not those of Adam or RMSprop; None: they are
        self.left_out: dict[str, list[str]] = {}
        self.pulls: set[bool | None] = set()  # whether weight decay is known, and not 0
        self.parts: dict[str, list[Split]] = {}
        self.first = ""
        self.remarks: dict[str, None] = {}
        self.betas: set[tuple[float, float]] = set()
        self.steps: set[float] = set()

    def describe(self, tensor: Tensor) -> None:
        """Betas and weight decay of a tensor whose noise is measured otherwise."""
        if tensor.remark is not None:
            self.remarks[tensor.remark] = None
        self.others[tensor.reason if tensor.reason not in (NO_FIRST, NO_STATE) else None] = None
        self.tensors.append((tensor.name, tensor.shape or tuple(np.shape(tensor.m)), self._pull(tensor)))
        self._add_betas(tensor.b1, tensor.b2)
        if math.isfinite(tensor.steps):
            self.steps.add(tensor.steps)

    def add(self, tensor: Tensor, before: Tensor | None, label: str) -> None:
        """Sums over the moments of a tensor."""
        self.first = self.first or tensor.name
        self.numbers += tensor.size or 0
        if tensor.remark is not None:
            self.remarks[tensor.remark] = None
        if tensor.reason is not None:
            self._leave_out(tensor, tensor.reason)
            return
        b1, b2 = self._beta("b1", tensor.b1), self._beta("b2", tensor.b2)
        self.betas.add((b1, b2))
        steps, decays = tensor.steps, None
        if before is not None:
            if before.reason is not None:
                raise ValueError(f"earlier: {before.name}: {before.reason}; give a state with moments.")
            steps = tensor.steps - before.steps
            if not (math.isfinite(steps) and steps >= 2):
                raise ValueError(
                    f"earlier: {tensor.name} is at step {before.steps:g} there and at {tensor.steps:g} in state; "
                    "give a state two or more steps earlier, preferably 20 to 100."
                )
            decays = (before.m, before.v, b1**steps, b2**steps)
            rounding = _ROUNDING.get(str(getattr(tensor.v, "dtype", "")).rpartition(".")[2], 2.0**-24)
            if 1 - decays[3] < 64 * rounding:
                self.remarks[
                    f"{steps:g} steps change v by only {1 - decays[3]:.1g} of its size, which is not large compared "
                    "with the rounding error of its format: give an earlier state, or moments of higher precision."
                ] = None
        if b1 == 0:
            self._leave_out(
                tensor,
                "b1 is 0, so the first moment is the last gradient and does not separate signal from noise",
            )
            return
        if steps < 2:
            self._leave_out(
                tensor, f"the number of steps is {steps:g}, and noise cannot be estimated from fewer than 2"
            )
            return
        self.steps.add(steps)
        found = split(Weights.of(b1, b2, steps, self.correlation, tensor.steps), tensor.m, tensor.v, decays)
        pull = self._pull(tensor)
        self.pulls.add(None if pull is None else pull > 0)
        found.pull = pull or 0.0
        self.parts.setdefault(label, []).append(found)

    def _add_betas(self, b1: float | None, b2: float | None) -> None:
        """Betas of the state, or those that were given, if both are known."""
        carried = {"b1": b1, "b2": b2}
        if all(self.given[name] is not None or beta is not None for name, beta in carried.items()):
            self.betas.add((self._beta("b1", b1), self._beta("b2", b2)))

    def _leave_out(self, tensor: Tensor, reason: str) -> None:
        self.left_out.setdefault(reason, []).append(tensor.name)

    def _pull(self, tensor: Tensor) -> float | None:
        """Σ (θx)², None if it is not known."""
        carried, given = tensor.weight_decay, self.weight_decay
        if carried is not None and given is not None and not math.isclose(carried, given, rel_tol=1e-6):
            raise ValueError(f"weight_decay: got {given:g}, but the optimizer has {carried:g}; leave it out.")
        theta = given if carried is None else carried
        if theta == 0:
            return 0.0
        x = tensor.x
        if self.parameters is not None:
            name = tensor.name.removeprefix(f"{tensor.group}: ") if tensor.group else tensor.name
            x = self.parameters.get("" if name == "state" else name)
            if x is None:
                listed = ", ".join(repr(known) for known in list(self.parameters)[:8])
                raise ValueError(
                    f"parameters: {tensor.name!r} is not among them ({listed}); give a tree with the structure of m."
                )
        return None if theta is None or x is None else theta**2 * squares(as_real(x, x)[0])

    def _beta(self, name: str, carried: float | None) -> float:
        given = self.given[name]
        if carried is None and given is None:
            raise ValueError(f"{name}: the state does not contain it; give the optimizer's value as {name}=.")
        if carried is not None and given is not None and not math.isclose(carried, given, rel_tol=1e-6):
            raise ValueError(f"{name}: got {given:g}, but the state has {carried:g}; leave it out.")
        return check.fraction(name, given if carried is None else carried)

    @property
    def legal(self) -> float:
        """δ beyond which a β would be negative."""
        smallest = min((beta for pair in self.betas for beta in pair if beta > 0), default=1.0)
        return float(f"{1 / (1 - smallest):.12g}") if smallest < 1 else math.inf

    def with_gradients(
        self, noise: "GradientNoise", batch: float, ratios: tuple[float, ...], tolerance: float
    ) -> Diagnosis:
        """The diagnosis from measured gradients, with the betas and the decay of the state."""
        if not self.tensors:  # there is no state, but the betas may have been given
            self._add_betas(None, None)
        pulls = pulls_by_group(noise, self.tensors)
        parts, total = groups_of(noise, batch, pulls or {})
        reason = noise.noise_scale_reason()
        notes = [*general_notes("gradients", True, math.nan, None if pulls is None else any(pulls.values()))]
        notes += [] if reason is None else [f"The SNR has no lower limit: {reason}."]
        info = {
            "measured": {"micro_batches": noise.count, "samples": noise.samples, "micro_batch_size": noise.batch_size},
            "steps": sorted(self.steps),
            "betas": [list(pair) for pair in sorted(self.betas)],
            "numbers": total.size,
            "another_rule": None if None in self.others else next(iter(self.others), None),
            "confidence": noise.confidence,
        }
        known = total.signal != 0 or total.noise != 0
        why = "" if known else "all measured gradients are 0"
        found = (*notes, *self.remarks)
        return Diagnosis(parts, total, "gradients", known, why, batch, ratios, tolerance, self.legal, found, info)

    def result(self, batch: float | None, ratios: tuple[float, ...], tolerance: float, window: bool) -> Diagnosis:
        """The diagnosis from moments."""
        everything = [part for parts in self.parts.values() for part in parts]
        total = combine(everything)
        known = total.size > 0
        counts = {name: sum(getattr(p, name) for p in everything) for name in _EXCLUDED}
        reason = ""
        if not known:
            reason = next(iter(self.left_out), "no coordinate has had a finite gradient")
        notes: list[str] = []
        if known:
            worst = max(part.weights.first for part in everything)
            decays = None if None in self.pulls else True in self.pulls
            notes += general_notes("moments", batch is not None, _alone(worst), decays)
            notes += self._memory(everything, window)
            notes += self._spread(total)
            if total.below < -_CONTRADICTED:
                notes.append(
                    f"The estimate of ‖∇f‖² is {total.signal:.3g}, which is {-total.below:.1f} standard errors below "
                    "0: gradients of successive steps are not a constant gradient plus independent noise (for "
                    "example in a stationary run, where steps cancel each other, or with the batches of an epoch "
                    "without replacement)."
                )
        notes += [_left_out(names, why) for why, names in self.left_out.items() if known or why != reason]
        notes += [said.format(count=counts[name]) for name, said in _EXCLUDED.items() if counts[name]]
        notes += list(self.remarks)
        info = {
            "tensors": len(everything),
            "numbers": self.numbers,
            "left_out": {why: list(names) for why, names in self.left_out.items()},
            "steps": sorted(self.steps),
            "betas": [list(pair) for pair in sorted(self.betas)],
            "window": window,
            **counts,
        }
        parts: dict[str, Group] = {name: combine(found) for name, found in self.parts.items()}
        return Diagnosis(
            parts, total, "moments", known, reason, batch, ratios, tolerance, self.legal, tuple(notes), info
        )

    def _memory(self, everything: list[Split], window: bool) -> list[str]:
        """Notes about the memory of v."""
        longest = max(1 / (1 - b2) for _, b2 in self.betas)
        steps = min(self.steps)
        if window:
            return [
                f"Only the {steps:g} steps since the earlier state are used; earlier steps in the memory of v are "
                "removed."
            ]
        said = [
            f"v averages over about {longest:.4g} steps: a gradient that has decreased within them is counted as "
            "noise, and a gradient or noise that has increased is underestimated. With earlier=, a state 20 to 100 "
            "steps before, only the steps since then are used."
        ]
        if steps < _FILLED * longest:
            filled = min(part.weights.bias2 for part in everything)
            said.append(
                f"After {steps:g} steps, {100 * filled:.0f} % of this memory is filled, so v includes all steps of "
                "the run, even the first ones."
            )
        return said

    @staticmethod
    def _spread(total: Group) -> list[str]:
        said = []
        if total.design > 2:
            said.append(
                f"Estimates from blocks of coordinates vary {math.sqrt(total.design):.2g} times as much as they "
                "would with independent coordinates: their noise is correlated, or their SNR differs. The limits "
                "allow for this."
            )
        if total.noise > 0 and total.concentrated > 2 * math.sqrt(max(total.signal, 0.0) / total.noise):
            said.append(
                "The signal may be concentrated in few coordinates: a coordinate drawn with probability "
                f"proportional to its signal has an SNR of up to {total.concentrated:.2g} (noise with heavy tails "
                "has the same effect)."
            )
        return said


_CONTRADICTED = 2.0
"""How many standard errors below 0 an estimate of ‖∇f‖² must be to be mentioned."""
_EXCLUDED = dict(
    nonfinite="{count} coordinates are NaN or infinite and are left out.",
    untouched="{count} coordinates have m = v = 0 and are left out, because they have had no gradient.",
    lost="{count} coordinates have v = 0 but m ≠ 0 and are left out, because their squares are too small for the "
    "format.",
    impossible="{count} coordinates have a first moment that is too large for their second moment: the betas or the "
    "number of steps are wrong, or the second moment is not Adam's (Adamax, Yogi).",
)
"""Notes about coordinates, by the name of their count."""


def _left_out(names: list[str], why: str) -> str:
    listed = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    return f"Left out: {listed}. Reason: {why}."


_NAMED = 8
"""Tensors that are named before the others are only counted."""


def _alone(c: float) -> float:
    """The SNR that a group whose noise lies in one direction may show, at the same probability as its limit."""
    from scipy import special

    share = c * special.chdtri(1, FALSE_ALARM)
    return math.sqrt((share - c) / (1 - share)) if share < 1 else math.inf
