"""The time scale of decoupled weight decay, τ = B/(ηθ) in samples, before and after a rescaling."""

from dataclasses import dataclass

from sdelens.scaling.hyperparameters import L2, Hyperparameters

__all__ = ["DecayTime", "decay_time"]


@dataclass(frozen=True)
class DecayTime:
    """Time scale over which decoupled weight decay forgets old updates, at the learning rate given.

    Weights are a mean of past updates with the decay 1 − ηθ (AdamW: Wang and Aitchison 2024, arXiv 2405.13698), so that
    τ = B/(ηθ) samples for coupled, and B/θ for independent decay.

    Attributes:
        before: τ of the old run in steps of the old batch size, that is, in units of B samples.
        after: τ of the new run in the same unit.
        batch_size: B, None if it was not given.
        share_before: τ of the old run as a fraction of all its samples, None if its steps were not given.
        share_after: the same of the new run.
        group: index of the parameter group, None if there is only one.
    """

    before: float
    after: float
    batch_size: float | None = None
    share_before: float | None = None
    share_after: float | None = None
    group: int | None = None

    def __str__(self) -> str:
        unit = 1.0 if self.batch_size is None else self.batch_size
        name = "steps of the old batch size" if self.batch_size is None else "samples"
        where = "" if self.group is None else f" [{self.group}]"

        def told(value: float, share: float | None) -> str:
            return f"{value * unit:.4g}" + ("" if share is None else f" ({share:.3g} of the run)")

        return (
            f"Decay time scale B/(ηθ){where}, in {name}: {told(self.before, self.share_before)} before, "
            f"{told(self.after, self.share_after)} after."
        )


def decay_time(
    old: Hyperparameters,
    new: Hyperparameters,
    ratio: float,
    span: tuple[float, int | None],
    *,
    batch_size: float | None = None,
    group: int | None = None,
) -> DecayTime | None:
    """The time scale of one record, None without decoupled decay.

    Args:
        old: the old record.
        new: the new record.
        ratio: δ.
        span: samples of the new run over those of the old one, and steps of the old one if they are known.
        batch_size: B of the old run.
        group: index of the parameter group.
    """
    if old.decay == L2 or old.weight_decay == 0:
        return None
    before, after = (1 / (n.weight_decay * (n.lr if n.decay == "coupled" else 1.0)) for n in (old, new))
    after *= ratio
    tokens, steps = span
    shares = (None, None) if steps is None else (before / steps, after / (steps * tokens))
    return DecayTime(before, after, batch_size, shares[0], shares[1], group)
