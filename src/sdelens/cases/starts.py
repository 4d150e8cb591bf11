"""Where paths start: at one point, at random points, or from the saved state of an optimizer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sdelens.core import check
from sdelens.core.random import Stream
from sdelens.core.tree import Layout
from sdelens.optimizers import CONVERGED, Optimizer, State
from sdelens.problems import AbstractProblem

__all__ = ["Start", "start_of"]


class Start(eqx.Module):
    """Initial positions, and saved accumulators if there are any; otherwise the optimizer initialises its accumulators.

    Attributes:
        x: position of all paths, shape (d,), or None if it is random.
        saved: accumulators to start from, None where the optimizer initialises them.
        sampler: function from a random key to a flat position, or None.
        label: the text that `describe` gives.
    """

    x: Array | None
    saved: State = State(None)
    sampler: Callable[[Array], Array] | None = eqx.field(default=None, static=True)
    label: str = eqx.field(default="", static=True)

    def state(self, stream: Stream, initial: Callable[[Array], State]) -> State:
        """State at step 0, of shape (d,) where it is the same for all paths and (d, P) where it is random.

        Args:
            stream: random numbers of the paths.
            initial: function from x to the initial state of an optimizer or SDE at x.
        """
        if self.sampler is None:
            assert self.x is not None
            made = initial(self.x)
            given = {name: value for name, value in self.saved._asdict().items() if value is not None}
            return made._replace(**given)
        first, second = (word[0] for word in stream.bits(1))
        keys = jax.random.wrap_key_data(jnp.stack([first, second], axis=-1), impl="threefry2x32")
        return initial(jax.vmap(self.sampler, out_axes=-1)(keys))

    def scaled(self, ratio: float) -> "Start":
        """The start with the count of averaged gradients times `ratio`, for a learning rate divided by `ratio`."""
        if self.saved.count is None:
            return self
        count = min(round(int(self.saved.count) * float(ratio)), CONVERGED)
        return eqx.tree_at(lambda s: s.saved.count, self, jnp.asarray(count, jnp.int32))

    def centre(self) -> Array:
        """Mean initial position, for a random start the mean of 1024 draws: shape (d,)."""
        stream = Stream(*jax.device_put((np.zeros(2, np.uint32), np.arange(1024, dtype=np.uint32))))
        x = self.state(stream, State).x
        return x if x.ndim == 1 else x.mean(axis=-1)

    def describe(self) -> dict[str, Any]:
        """What is needed to reproduce it, JSON types only; ``rerunnable`` is False for saved states and functions."""
        return {"start": self.label, "rerunnable": False} if self.label else {}


def start_of(given: Any, problem: AbstractProblem, optimizer: Optimizer) -> Start:
    """The `Start` that a user's ``start=`` specifies; see `sdelens.compare`.

    Raises:
        ValueError, TypeError: if a part does not fit; the message names it.
    """
    if given is None:
        return Start(problem.start)
    if isinstance(given, State):
        return _saved(given, problem, optimizer)
    if isinstance(given, str) or (isinstance(given, tuple) and any(hasattr(part, "_fields") for part in given)):
        raise TypeError(
            f"start: got {type(given).__name__}; give parameters, a function of a random key, or sl.State(x, m, v, "
            "count), for example with the `mu`, `nu` and `count` of an optax state."
        )
    if callable(given):
        return _random(given, problem)
    return Start(_flat("start", given, problem), label="given parameters")


@dataclass(frozen=True)
class _Sampler:
    """A user's function, returning flat positions; samplers of the same function are equal and share programs.

    Attributes:
        function: a function from a random key to parameters.
        layout: layout of the parameters.
        dtype: dtype of the flat position.
        example: bytes of one draw, which differ if values that the function reads from elsewhere have changed since it
            was compiled.
    """

    function: Callable[[Any], Any]
    layout: Layout
    dtype: Any
    example: bytes

    def __call__(self, key: Array) -> Array:
        return self.layout.ravel(self.function(key)).astype(self.dtype)


def _random(function: Callable[[Any], Any], problem: AbstractProblem) -> Start:
    try:
        first, again = (_flat("start", function(jax.random.key(0)), problem) for _ in range(2))
        sampler = _Sampler(function, problem.layout, problem.start.dtype, np.asarray(first).tobytes())
        jax.eval_shape(sampler, jax.random.key(0))
    except (jax.errors.JAXTypeError, TypeError) as error:
        raise TypeError(
            f"start: cannot be compiled as a function of a random key; use jax.random in it ({error})."
        ) from error
    if not np.array_equal(first, again):
        raise ValueError(
            "start: the function returned different parameters for the same key; draw them by jax.random from the "
            "key that it receives."
        )
    if np.array_equal(first, _flat("start", function(jax.random.key(1)), problem)):
        raise ValueError(
            "start: the function returned the same parameters for two keys; draw them from the key, or give the "
            "parameters instead of a function."
        )
    return Start(None, sampler=sampler, label=getattr(function, "__qualname__", "function"))


def _saved(given: State, problem: AbstractProblem, optimizer: Optimizer) -> Start:
    x = problem.start if given.x is None else _flat("start.x", given.x, problem)
    owns = optimizer.accumulators
    parts: dict[str, Any] = {}
    for name in ("m", "v"):
        value = getattr(given, name)
        if value is None:
            continue
        if name not in owns:
            raise ValueError(f"start.{name}: {optimizer.name} has no such accumulator; leave it out.")
        parts[name] = _flat(f"start.{name}", value, problem)
    if "v" in parts and bool((parts["v"] < 0).any()):
        raise ValueError(f"start.v: got {float(parts['v'].min())}; second moments are 0 or greater.")
    if "count" in owns:
        if bool(parts) != (given.count is not None) or len(parts) == 1:
            raise ValueError(
                f"start: for {optimizer.name} give m, v and count together; count is the number of gradients that "
                "they average (`step` in a PyTorch optimizer's state, `count` in optax's)."
            )
        if given.count is not None:
            parts["count"] = jnp.asarray(min(check.at_least("start.count", given.count, 0), CONVERGED), jnp.int32)
    elif given.count is not None:
        raise ValueError(f"start.count: {optimizer.name} has no bias correction; leave it out.")
    return Start(x, State(None, **parts), label="saved state" if parts else "given parameters")


def _flat(name: str, value: Any, problem: AbstractProblem) -> Array:
    """The flat vector of a pytree like the parameters, or of an array of d numbers."""
    layout: Layout = problem.layout
    one = np.ndim(value) == 1 and np.shape(value) == (problem.dim,) if _is_numeric(value) else False
    if one and not layout.matches(value):
        flat = jnp.asarray(np.asarray(value), problem.start.dtype)
    else:
        try:
            leaves = layout.treedef.flatten_up_to(value)
        except ValueError as error:
            raise ValueError(
                f"{name}: got a pytree whose structure differs from that of the problem's parameters; give "
                f"{problem.dim} coordinates in these leaves: {', '.join(n or 'one array' for n in layout.names)}."
            ) from error
        for leaf, shape, label in zip(leaves, layout.shapes, layout.names, strict=True):
            if shape is not None and np.shape(leaf) != shape:
                found = f"shape {np.shape(leaf)}" if _is_numeric(leaf) or np.isscalar(leaf) else type(leaf).__name__
                raise ValueError(f"{name}{label}: got {found}; give an array of the parameter's shape {shape}.")
        parts = [jnp.ravel(jnp.asarray(a)) for a, s in zip(leaves, layout.shapes, strict=True) if s is not None]
        flat = jnp.concatenate(parts).astype(problem.start.dtype)
    if not bool(jnp.isfinite(flat).all()):
        raise ValueError(f"{name}: has entries that are not finite; give finite numbers.")
    return flat


def _is_numeric(value: Any) -> bool:
    return isinstance(value, np.ndarray | jax.Array) or (
        isinstance(value, list | tuple) and all(np.ndim(a) == 0 for a in value) and not isinstance(value, State)
    )
