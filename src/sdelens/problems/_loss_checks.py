"""What a user's loss and metrics must be: traceable, deterministic, finite at the start, of the right shape."""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import jaxpr_as_fun

from sdelens.core.captured import alike
from sdelens.core.compilation import program, quick
from sdelens.core.tree import Layout

__all__ = ["check_examples", "check_loss", "check_metric"]


class LossProblem(Protocol):
    """The part of the interface of `Problem` that the checks use."""

    @property
    def start(self) -> Array: ...
    @property
    def data(self) -> Any: ...
    @property
    def _loss(self) -> Callable[..., Array]: ...
    @property
    def layout(self) -> Layout: ...
    @property
    def infimum(self) -> float | None: ...
    @property
    def dim(self) -> int: ...
    @property
    def examples(self) -> int | None: ...
    def evaluate(self, x: Array) -> tuple[Array, Array]: ...


def check_loss(problem: LossProblem) -> None:
    """Evaluate the loss and its gradient at the start, and refuse a loss that cannot be simulated."""
    data = () if problem.data is None else (problem.data,)

    def traced(x: Array, *data: Any) -> Array:
        found = problem._loss(problem.layout.unravel(x), *data)
        try:
            return jnp.asarray(found)
        except TypeError as error:
            raise _NotAnArrayError(type(found).__name__) from error

    try:
        # JAX remembers the trace of a function; a new object each time is traced again.
        first, second = (jax.make_jaxpr(partial(traced))(problem.start, *data) for _ in range(2))
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        raise TypeError(
            "loss: cannot be compiled, because it converts a traced array to a Python or NumPy value. Use jax.numpy "
            "instead of NumPy, and jnp.where or lax.cond instead of `if`."
        ) from error
    except _NotAnArrayError as error:
        raise TypeError(f"loss: returned {error}; return a real JAX array.") from error
    except TypeError as error:
        call = "loss(params)" if problem.data is None else "loss(params, data)"
        raise TypeError(
            f"loss: the call {call} fails ({error}); give a function that can be called in this way."
        ) from error
    _check_returned(problem, *first.out_avals)
    values, grad = (np.asarray(a) for a in _at_start(*alike(problem)))
    if not np.isfinite(values).all():
        raise ValueError(
            f"loss: is {values if values.ndim == 0 else 'not finite'} at the start; choose a start where it is finite."
        )
    if problem.infimum is not None and problem.infimum > float(np.mean(values)) * (1 + 1e-6) + 1e-30:
        raise ValueError(
            f"infimum: got {problem.infimum}, which is above the loss {float(np.mean(values)):.6g} at the start; give "
            "a lower bound of the loss, or None."
        )
    if _differ(first, second, (problem.start, *data)):
        raise ValueError(
            "loss: two calls at the start return different values, so it is random. Switch dropout and batch "
            "normalisation to evaluation mode; add noise through the `noise` argument instead."
        )
    if not np.isfinite(grad).all():
        raise ValueError(
            "loss: its gradient is not finite at the start; choose a start where the loss is differentiable."
        )


def _check_returned(problem: LossProblem, out: Any) -> None:
    """Refuse a dtype or a shape that the values of a loss cannot have."""
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(f"loss: returned {out.dtype}; return a real floating value.")
    if problem.data is None:
        if out.shape != ():
            raise ValueError(
                f"loss: returned shape {out.shape} at the start; return a scalar (sum or average it), or give "
                "`data` and return one loss for each example."
            )
    else:
        sizes = {int(np.shape(leaf)[0]) if np.ndim(leaf) else 0 for leaf in jax.tree.leaves(problem.data)}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError(
                f"data: leaves have first axes {sorted(sizes)}; the first axis of every leaf must be the number of "
                "examples."
            )
        if out.shape != (n := sizes.pop(),):
            raise ValueError(
                f"loss: returned shape {out.shape} for {n} examples; return one loss for each example, with shape "
                f"({n},)."
            )


class _NotAnArrayError(TypeError):
    """A function returned something else than numbers."""


@program(static_argnames="captured")
def _at_start(problem: LossProblem, captured: Hashable) -> tuple[Array, Array]:
    """The loss, for every example if there are data, and its gradient at the start."""
    data = () if problem.data is None else (problem.data,)
    loss = jnp.asarray(problem._loss(problem.layout.unravel(problem.start), *data))
    return loss, problem.evaluate(problem.start)[1]


def check_examples(problem: LossProblem, count: int) -> None:
    """Refuse a user's loss whose value for an example depends on other examples or on its position.

    Raises:
        ValueError: if it does; the message says what to do.
    """
    # Dependence on the other examples may vanish at a special start, such as 0.
    step = np.random.default_rng(0).standard_normal(problem.dim)
    start = np.asarray(problem.start)
    moved = jax.device_put(start + (0.1 * (1 + np.abs(start)) * step).astype(start.dtype))
    try:
        known, key = alike(problem)
        found = jax.device_get([_of_parts(known, x, key) for x in (problem.start, moved)])
        fits = all(
            own.shape == whole[part].shape and np.allclose(own, whole[part], rtol=1e-3, atol=1e-5, equal_nan=True)
            for whole, owns in found
            for own, part in zip(owns, _slices(count), strict=True)
        )
    except (TypeError, ValueError, IndexError):
        fits = False
    if not fits:
        raise ValueError(
            "loss: the loss of an example changes when the function is called with fewer examples, so "
            "mini-batches are not defined. It must depend on that example alone: pass per-example arrays "
            "(weights, targets) as part of `data`, and do not average over examples."
        )


def check_metric(problem: LossProblem, name: str, function: Callable[..., Array]) -> None:
    """Refuse a metric that does not return real numbers in the loss's shape."""
    label = f"metrics[{name!r}]"
    data = () if problem.data is None else (problem.data,)
    try:
        found, expected = (
            jax.eval_shape(lambda x, f=f: f(problem.layout.unravel(x), *data), problem.start)
            for f in (function, problem._loss)
        )
        shape, dtype = found.shape, found.dtype
    except (TypeError, AttributeError) as error:
        call = "function(params)" if problem.data is None else "function(params, data)"
        raise TypeError(
            f"{label}: the call {call} fails ({error}); give a function that can be called in this way and returns a "
            "real JAX array."
        ) from error
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer) or dtype.kind == "b"):
        raise TypeError(f"{label}: returned {dtype}; return real numbers.")
    if shape != expected.shape:
        raise ValueError(f"{label}: returned shape {shape}; return the same shape as the loss, {expected.shape}.")


def _slices(count: int) -> tuple[slice, ...]:
    """Some of the examples: the first one, the last one, and every second one."""
    return slice(0, 1), slice(count - 1, count), slice(0, count, 2)


@program(static_argnames="captured")
def _of_parts(problem: LossProblem, x: Array, captured: Hashable) -> tuple[Array, list[Array]]:
    """The losses of all examples at x, and those that the loss function returns for some of the examples alone."""
    params, parts = problem.layout.unravel(x), _slices(problem.examples or 0)
    own = [problem._loss(params, jax.tree.map(lambda a, part=part: a[part], problem.data)) for part in parts]
    return problem._loss(params, problem.data), own


def _differ(first: Any, second: Any, arguments: Any) -> bool:
    """Whether two traces of one function compute different values."""
    same = len(first.consts) == len(second.consts) and str(first.jaxpr) == str(second.jaxpr)
    if same and all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first.consts, second.consts, strict=True)):
        return False
    values = [quick(jaxpr_as_fun(traced))(*jax.tree.leaves(arguments)) for traced in (first, second)]
    return not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(*values, strict=True))
