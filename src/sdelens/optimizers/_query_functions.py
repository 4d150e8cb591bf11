"""The functions by which optax transformations ask for gradients and curvature at other points of the same draw."""

import inspect
from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.custom_batching import custom_vmap

from sdelens.optimizers._base import Query

__all__ = ["QUERIES", "asked_functions", "of_one_path", "query_functions", "traceable"]

QUERIES: Final = ("grad_fn", "obj_fn")
"""Names of the arguments of an update that are functions of the parameters."""


def query_functions(gradient: Callable[[Any], Any]) -> dict[str, Callable[..., Any]]:
    """The functions by name, from the stochastic gradient of one draw as a function of the parameters."""

    @jax.custom_vjp
    def objective(params: Any) -> Array:
        return jnp.full((), jnp.nan)

    def forward(params: Any) -> tuple[Array, Any]:
        return jnp.full((), jnp.nan), params

    def backward(params: Any, factor: Array) -> tuple[Any]:
        return (jax.tree.map(lambda g: factor.astype(g.dtype) * g, gradient(params)),)

    objective.defvjp(forward, backward)
    return {
        "grad_fn": lambda params, *further, **named: gradient(params),
        "obj_fn": lambda params, *further, **named: objective(params),
    }


def of_one_path(query: Query, paths: int) -> Callable[[Array], Array]:
    """The query of one path, shape (d,), for use under `jax.vmap` over all `paths` on the last axis.

    All paths are then asked together, as `query` does it, also in the derivative of the query.
    """

    @custom_vmap
    def own(x: Array) -> Array:
        return query(jnp.broadcast_to(x[:, None], (x.shape[0], paths)))[:, 0]  # only its shape is used

    @own.def_vmap
    def every(_: int, batched: list[bool], x: Array) -> tuple[Array, bool]:
        x = x if batched[0] else jnp.broadcast_to(x, (paths, *x.shape))
        return jnp.moveaxis(query(jnp.moveaxis(x, 0, -1)), -1, 0), True

    def query_of_path(x: Array) -> Array:
        found: Array = own(x)
        return found

    return query_of_path


def asked_functions(transformation: Any, parameters: Any) -> tuple[str, ...]:
    """Names of the functions that an update calls, found by tracing it for such parameters (shapes suffice)."""
    state = jax.eval_shape(transformation.init, parameters)
    accepted = inspect.signature(transformation.update).parameters
    if any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        accepted = dict.fromkeys(QUERIES)  # type: ignore[assignment]
    given = tuple(name for name in QUERIES if name in accepted)
    for names in dict.fromkeys((given, *((name,) for name in given))):
        if not names:
            break
        called: set[str] = set()
        try:
            jax.eval_shape(traceable(transformation, names, called), parameters, state, parameters)
        except Exception:  # whatever the update raises; `FromOptax.check` reports it
            continue
        return tuple(name for name in QUERIES if name in called)
    return ()


def traceable(
    transformation: optax.GradientTransformation, names: tuple[str, ...], called: set[str] | None = None
) -> Callable[..., Any]:
    """The update with functions of those names, for tracing only; the names of those it calls are put in `called`."""

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def own(*arguments: Any, **named: Any) -> Any:
            if called is not None:
                called.add(name)
            return function(*arguments, **named)

        return own

    def update(gradient: Any, state: Any, parameters: Any) -> Any:
        functions = query_functions(lambda params: params)
        asked: Any = {name: noted(name, functions[name]) for name in names}
        return transformation.update(gradient, state, parameters, **asked)

    return update
