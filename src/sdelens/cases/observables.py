"""Quantities recorded for every path besides the loss: metrics, norms, the noise's trace, a user's functions."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from sdelens.cases.case import Case
from sdelens.cases.path_functions import PathFunction, path_function
from sdelens.cases.sharpness import Divisor, batch_sharpness, check_batch_sharpness, divisor_of, sharpness
from sdelens.cases.spectra import SPECTRA, check_matrices, spectrum
from sdelens.core import check
from sdelens.core.names import OBSERVABLES
from sdelens.core.tree import Layout, sum_coordinates
from sdelens.noise import NoiseLaw
from sdelens.problems import AbstractProblem

__all__ = ["Observables", "check_condition", "hits_of", "observables_of"]

_OF_PART = re.compile(r"([^\[\]]+)\[([^\[\]]+)\]")
"""A quantity of another part of the state than x, such as ``loss[ema]``."""


class Observables(eqx.Module):
    """Named functions of the parameters, or of the whole state, of every path.

    Attributes:
        problem: the problem whose metrics and layout of parameters they use.
        noise: the noise, bound to the problem.
        names: their names, in order.
        functions: the user's functions.
        layout: layout of the parameters.
        divisor: what the optimizer divides gradients by, if an observable needs it.
    """

    problem: AbstractProblem
    noise: NoiseLaw
    names: tuple[str, ...] = eqx.field(static=True)
    functions: tuple[PathFunction, ...] = eqx.field(static=True)
    layout: Layout = eqx.field(static=True)
    divisor: Divisor | None = None

    def __call__(self, x: Array, grad: Array, parts: Mapping[str, Array], step: Any) -> Array:
        """Values of shape (W, P) at x and ∇f of shape (d, P) after some steps; parts as from `Stepper.parts`."""
        own = {f.name: f for f in self.functions}
        rows = [
            own[n].values(x, parts, self.layout).astype(x.dtype) if n in own else self._known(n, x, grad, parts, step)
            for n in self.names
        ]
        return jnp.stack(rows) if rows else jnp.zeros((0, x.shape[-1]), x.dtype)

    @property
    def of_state(self) -> bool:
        """Whether one of them reads another part of the state than x."""
        return any(f.of_state for f in self.functions) or any(_OF_PART.fullmatch(name) for name in self.names)

    def check(self, model: str, x: Any, parts: Mapping[str, Any]) -> None:
        """Refuse an observable that a model's state does not allow; x and the parts as shapes, for many paths.

        Raises:
            ValueError, TypeError: naming the observable and the model.
        """
        for function in self.functions:
            if function.of_state:
                function.check(model, x, parts, self.layout)
        if self.divisor is not None and "v" not in parts:
            raise ValueError(
                f"observables: got 'preconditioned_sharpness', but the state of the model {model!r} has no v; leave it "
                "out, or run that model separately."
            )
        for name in self.names:
            if (match := _OF_PART.fullmatch(name)) is None or any(f.name == name for f in self.functions):
                continue
            quantity, part = match.groups()
            if part not in parts:
                raise ValueError(
                    f"observables: got {name!r}, but the state of the model {model!r} has no part {part!r}; it has "
                    f"{', '.join(sorted(parts))}. Leave it out, or run that model separately."
                )
            if quantity != "norm" and parts[part].shape != x.shape:
                raise ValueError(
                    f"observables: got {name!r}, but {part!r} has {_size(parts[part])} numbers in the model {model!r} "
                    f"and the parameters have {x.shape[0]}; only its norm[{part}] can be recorded."
                )

    def _known(self, name: str, x: Array, grad: Array, parts: Mapping[str, Array], step: Any) -> Array:
        if match := _OF_PART.fullmatch(name):
            quantity, part = match.groups()
            return self._of_part(quantity, parts[part]).astype(x.dtype)
        if name in ("norm", "grad_norm"):
            return jnp.sqrt(sum_coordinates((x if name == "norm" else grad) ** 2))
        if name in SPECTRA:
            return spectrum(name, x, self.layout)
        if name == "noise_trace":
            return sum_coordinates(jnp.broadcast_to(self.noise.variance(x), x.shape))
        if name.endswith("sharpness") and name in OBSERVABLES:
            return self._sharpness(name, x, parts, step)
        return self.problem.metric(name, x)

    def _sharpness(self, name: str, x: Array, parts: Mapping[str, Array], step: Any) -> Array:
        if name == "batch_sharpness":
            return batch_sharpness(self.problem, self.noise, x)
        if name == "sharpness" or self.divisor is None:
            return sharpness(self.problem, x)
        return sharpness(self.problem, x, self.divisor(parts["v"], step))

    def _of_part(self, quantity: str, part: Array) -> Array:
        if quantity == "norm":
            return jnp.abs(part) if part.ndim == 1 else jnp.sqrt(sum_coordinates(part**2))
        x = part.astype(self.problem.start.dtype)
        return self.problem.loss(x) if quantity == "loss" else self.problem.metric(quantity, x)


def observables_of(
    given: Sequence[str] | Mapping[str, Callable[..., Any] | None] | None,
    case: Case,
    averages: Sequence[str] = (),
) -> Observables:
    """The observables that a user's ``observables=`` specifies; see `sdelens.Record`.

    The loss at every average of x, and the metrics of the problem among the observables there, are added to them.

    Raises:
        ValueError, TypeError: if a name is not known, or a function returns no number; the message names it.
    """
    problem, noise = case.problem, case.noise
    if isinstance(given, str):
        raise TypeError(f"observables: got the text {given!r}; give a list, for example [{given!r}].")
    if given is not None and not isinstance(given, Mapping | Sequence):
        raise TypeError(
            f"observables: got {type(given).__name__}; give a list of names, or a mapping from names to functions."
        )
    for name in given or ():
        if not isinstance(name, str):
            raise TypeError(
                f"observables: got {name!r}, which is not a name; give names, or a mapping from names to functions "
                "such as {'mine': function}."
            )
    named: dict[str, Any] = dict(given) if isinstance(given, Mapping) else dict.fromkeys(given or ())
    known = [*OBSERVABLES, *problem.metrics]
    functions = []
    for name, function in named.items():
        match = _OF_PART.fullmatch(name)
        if function is None and match is not None:
            check.choice(f"observables: {name}", match[1], ["loss", "norm", *problem.metrics])
        elif function is None:
            check.choice("observables", name, known)
        elif name in known:
            raise ValueError(
                f"observables[{name!r}]: the name belongs to an observable of the library; give the function another "
                "name, or give None to record that observable."
            )
        else:
            functions.append(path_function("observables", name, function, problem.start, problem.layout))
    check_matrices(named, problem.layout)
    if "noise_trace" in named and noise.scheduled:
        raise ValueError("observables: got 'noise_trace', but the noise changes with the step; leave it out.")
    if "noise_trace" in named and not noise.has_variance(problem.start):
        raise ValueError("observables: got 'noise_trace', which is infinite under this noise; leave it out.")
    if "batch_sharpness" in named:
        check_batch_sharpness(noise)
    divisor = divisor_of(case) if "preconditioned_sharpness" in named else None
    metrics = [name for name in problem.metrics if name in named]
    names = dict.fromkeys([*named, *(f"{quantity}[{a}]" for a in averages for quantity in ("loss", *metrics))])
    return Observables(problem, noise, tuple(names), tuple(functions), problem.layout, divisor)


def hits_of(given: Any, problem: AbstractProblem) -> tuple[PathFunction, ...]:
    """The conditions that a user's ``hits=`` specifies; see `sdelens.Record`.

    Raises:
        ValueError, TypeError: if one is no function of the parameters to a Boolean; the message names it.
    """
    if given is None:
        return ()
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise TypeError(
            f"hits: got {given!r}; give a mapping from names to conditions, for example {{'escape': lambda p: p < 0}}."
        )
    found = tuple(
        path_function("hits", name, function, problem.start, problem.layout) for name, function in given.items()
    )
    for condition in found:
        if not condition.of_state:
            x = jax.ShapeDtypeStruct((*problem.start.shape, 1), problem.start.dtype)
            check_condition(condition, "", x, {}, problem.layout)
    return found


def check_condition(condition: PathFunction, model: str, x: Any, parts: Mapping[str, Any], layout: Layout) -> None:
    """Refuse a condition whose value is not one Boolean; x and the parts as shapes, for many paths.

    Raises:
        ValueError, TypeError: naming the condition and what came.
    """
    value = condition.check(model, x, parts, layout)
    if value.dtype != jnp.bool_:
        raise TypeError(f"{condition.where}: returned {value.dtype}; return a Boolean, for example x < 0.")


def _size(part: Any) -> int:
    return 1 if part.ndim == 1 else int(part.shape[0])
