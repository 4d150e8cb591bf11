"""What has been read of an optimizer's state so far, tensor after tensor, and the diagnosis that follows."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sdelens.core import check
from sdelens.diagnosis._diagnosis_report import general_notes
from sdelens.diagnosis._from_gradients import groups_of, pulls_by_group
from sdelens.diagnosis._sources import Tensor
from sdelens.diagnosis._tensor import as_real
from sdelens.diagnosis._verdict import Diagnosis
from sdelens.diagnosis._why import NO_FIRST, NO_STATE
from sdelens.diagnosis.moments import FALSE_ALARM, Group, Split, Weights, combine, split, squares

if TYPE_CHECKING:
    from sdelens.diagnosis._noise import GradientNoise

__all__ = ["Tally"]

_FILLED = 3.0
"""Steps, in units of 1/(1 − β₂), from which the memory of v counts as filled."""

_ROUNDING = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
"""Relative rounding error of formats coarser than float32."""


class Tally:
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
