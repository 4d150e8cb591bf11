"""The result of `ramp`: a run with a changing batch size, and the hyperparameters of every step."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sdelens.core import check
from sdelens.results.printable import Parts, Plotted, Table
from sdelens.scaling._rules import ADAPTIVE
from sdelens.scaling.hyperparameters import L2, Hyperparameters
from sdelens.scaling.memory import ACCUMULATORS

if TYPE_CHECKING:
    import optax

    from sdelens.results.figures import Sheet

__all__ = ["Ramp", "numbers_of"]

_ROWS: Final = 12


@dataclass(frozen=True, repr=False)
class Ramp(Plotted):
    """A run with a changing batch size.

    Attributes:
        batch_size: batch size of every step, shape (n,).
        samples: number of samples seen before every step, shape (n,).
        numbers: hyperparameters of every step by name, each of shape (n,); lr includes the optimizer's schedule.
        rule: name of the rule.
        momentum: how decays β are scaled.
        assumed: sentences that state what is assumed.
        records: the hyperparameters of every batch size, without the schedule.
        optimizer: the optimizer that was given.
        first: B₀, the batch size for which its hyperparameters were chosen.
        base: the hyperparameters at B₀.
        multiplier: the schedule as a function of an array of steps at B₀, None if there is none.
        squares: E g² at every batch size over that at B₀, as the rule assumes it.
    """

    batch_size: np.ndarray
    samples: np.ndarray
    numbers: dict[str, np.ndarray]
    rule: str
    momentum: str
    assumed: tuple[str, ...]
    records: dict[int, Hyperparameters]
    optimizer: Any
    first: int
    base: Hyperparameters
    multiplier: Callable[[np.ndarray], np.ndarray] | None = None
    squares: dict[int, float] = dataclasses.field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Number of optimizer steps."""
        return len(self.batch_size)

    @property
    def schedules(self) -> dict[str, Callable[[Any], Any]]:
        """Functions of the step number for ``optax.inject_hyperparams``, by name; the last value is kept afterwards."""
        return {name: _schedule(values) for name, values in self.numbers.items()}

    def at(self, step: int) -> dict[str, float]:
        """Batch size, samples seen and every hyperparameter at a step; after the end, those of the last step.

        Raises:
            ValueError, TypeError: if `step` is not a whole number of at least 0.
        """
        k = min(check.at_least("step", step, 0), self.steps - 1)
        found = {"batch_size": int(self.batch_size[k]), "samples": int(self.samples[k])}
        return {**found, **{name: float(values[k]) for name, values in self.numbers.items()}}

    def to_optax(self, accumulators: str = "scale") -> "optax.GradientTransformation":
        """The optimizer with all its numbers scheduled by ``optax.inject_hyperparams``; its update needs parameters.

        Momentum is damped, that is a mean of gradients, so a change of its decay does not change its size.

        Args:
            accumulators: ``"scale"`` multiplies second moments at every jump of the batch size by the factor by which
                the rule expects them to change; ``"keep"`` leaves them unchanged, so that they lag behind for about
                1/(1 − b2) steps. Adam's step count is not changed.

        Raises:
            ValueError: for RMSprop with momentum, for which the library has no specification.
        """
        import optax

        from sdelens.scaling._specifications import scaling_squares, specification_of

        check.choice("accumulators", accumulators, ACCUMULATORS)

        first = next(iter(self.records.values()))
        nesterov = bool(self.optimizer.get("nesterov")) if isinstance(self.optimizer, dict) else None
        base = specification_of(first, self.optimizer, nesterov)
        order = [self.records[int(b)] for b in np.unique(self.batch_size)]
        which = np.unique(self.batch_size, return_inverse=True)[1]
        rates = np.array([r.lr for r in order])[which]
        # `numbers` has learning rates as written; η is the rate of damped momentum; the schedule multiplies both.
        multiplier = self.numbers["lr"] / np.array([r.written_lr for r in order])[which]
        decays = np.array([r.weight_decay for r in order])[which]
        l2 = first.decay == L2
        parts = {"lr": rates * multiplier, "weight_decay": decays / rates if first.decay == "independent" else decays}
        names = {"alpha": "b2", "momentum": "b1"}
        for name in first.memories:
            parts[names.get(name, name)] = np.array([r.memories[name] for r in order])[which]
        if first.eps is not None:
            parts["eps"] = np.array([r.eps for r in order], float)[which]

        if accumulators == "scale" and first.family in ADAPTIVE and self.squares:
            each = np.array([self.squares[int(b)] for b in self.batch_size])
            parts["square"] = np.concatenate([[1.0], each[1:] / each[:-1]])

        def build(
            lr: Any, weight_decay: Any, b1: Any = None, b2: Any = None, eps: Any = None, square: Any = None
        ) -> Any:
            given = {"b1": b1, "b2": b2, "eps": eps, "weight_decay": None if l2 else weight_decay}
            changed = {name: value for name, value in given.items() if value is not None}
            own = dataclasses.replace(base, lr=1.0, decay="coupled", schedule=None, **changed)
            before = [optax.add_decayed_weights(weight_decay)] if l2 else []
            update = own.to_optax() if square is None else scaling_squares(own.to_optax(), square)
            return optax.chain(*before, update, optax.scale(lr))  # lr may be 0 at the end of a schedule

        return optax.inject_hyperparams(build)(**{name: _schedule(values) for name, values in parts.items()})

    def along(self, noise: Any) -> tuple[Any, Any]:
        """Noise and optimizer with which `simulate` runs the optimizer itself along this ramp.

        The optimizer is that of `to_optax`.

        Args:
            noise: law of the gradient noise at B₀.

        Returns:
            The noise, whose law depends on the step, and the optimizer.

        Raises:
            ValueError, TypeError: if the noise is not known at a batch size of the ramp.
        """
        from sdelens.noise import ScheduledNoise
        from sdelens.optimizers import FromOptax

        name = f"{self.base.family}, batch × {self.batch_size.min() / self.first:g}"
        if self.batch_size.max() > self.batch_size.min():
            name += f" to {self.batch_size.max() / self.first:g}"
        law = ScheduledNoise(noise, batch_ratio=self.batch_size / self.first)
        return law, FromOptax(self.to_optax(), self.base.lr, name=name)

    def constant(self) -> "Ramp":
        """The run at B₀ with about as many samples (at least), the same schedule and the optimizer as it was given."""
        steps = -(-int(self.samples[-1] + self.batch_size[-1]) // self.first)
        table = {name: np.full(steps, value) for name, value in numbers_of(self.base).items()}
        if self.multiplier is not None:
            table["lr"] = table["lr"] * self.multiplier(np.arange(steps, dtype=float))
        return dataclasses.replace(
            self,
            batch_size=np.full(steps, self.first),
            samples=np.arange(steps) * self.first,
            numbers=table,
            records={self.first: self.base},
            squares={self.first: 1.0},
        )

    def _parts(self) -> Parts:
        """A table of the stages; if there are many, a selection spread over the run."""
        starts = np.flatnonzero(np.diff(self.batch_size, prepend=0))
        shown = starts if len(starts) <= _ROWS else starts[np.linspace(0, len(starts) - 1, _ROWS).round().astype(int)]
        head = ["from step", "samples", "batch size", *self.numbers]
        rows = [
            [str(k), str(self.samples[k]), str(self.batch_size[k]), *(f"{v[k]:.6g}" for v in self.numbers.values())]
            for k in shown
        ]
        title = f"{self.steps} steps, rule {self.rule}, momentum {self.momentum}"
        more = [f"{len(starts)} batch sizes, of which {len(shown)} are shown."] if len(shown) < len(starts) else []
        return [title, Table(head, rows), *more]

    def _draw(self, sheet: "Sheet") -> None:
        """Batch size and learning rate of every step."""
        batch, *rest = sheet.panels(2, size=(5.6, 4.0), sharex=True)
        steps = np.arange(self.steps + 1)
        batch.step(steps, np.append(self.batch_size, self.batch_size[-1]), where="post", color="#0072B2")
        batch.set(ylabel="batch size", yscale="log" if self.batch_size.max() > 4 * self.batch_size.min() else "linear")
        batch.set_ylim(bottom=0 if batch.get_yscale() == "linear" else None)
        for rate in rest:
            rate.step(steps, np.append(self.numbers["lr"], self.numbers["lr"][-1]), where="post", color="#D55E00")
            rate.set_ylabel("learning rate")
            rate.set_ylim(bottom=0)
        (rest or [batch])[-1].set_xlabel("optimizer step")
        sizes, rates = self.batch_size, self.numbers["lr"]
        sheet.headline(
            f"Batch size {sizes[0]:g} to {sizes[-1]:g}, learning rate at most {rates.max():.3g}\nrule {self.rule}",
            batch,
        )
        sheet.align()


def _schedule(values: np.ndarray) -> Callable[[Any], Any]:
    def at(count: Any) -> Any:
        import jax.numpy as jnp

        return jnp.asarray(values, float)[jnp.clip(count, 0, len(values) - 1)]

    return at


def numbers_of(numbers: Hyperparameters) -> dict[str, float]:
    """The numbers of a ramp by name, in the convention in which they were given."""
    named = {"lr": numbers.written_lr, **numbers.memories, "eps": numbers.eps, "weight_decay": numbers.weight_decay}
    return {name: float(value) for name, value in named.items() if value is not None}
