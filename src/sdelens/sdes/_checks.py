"""Checks of SDEs that users define: coefficients fit the state, and no path depends on the other paths."""

from collections.abc import Hashable
from functools import partial
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sdelens.core.captured import alike
from sdelens.core.compilation import quick
from sdelens.core.pathwise import MOST_COORDINATES, PATHS_LAST, differs
from sdelens.core.random import Stream
from sdelens.optimizers import State
from sdelens.sdes._base import SDE, Instant

__all__ = ["check_parts", "check_pathwise", "is_own"]

_METHODS: Final = ("drift", "apply_diffusion")
_PARTS: Final = ("x", "m", "v")
_SHAPES: Final = f"arrays have shape (d, P), {PATHS_LAST}"


def is_own(sde: SDE) -> bool:
    """Whether a user defined the SDE, or one that it contains."""
    inner = [value for value in vars(sde).values() if isinstance(value, SDE)]
    return not type(sde).__module__.startswith("sdelens.") or any(map(is_own, inner))


def check_parts(sde: SDE, start: Array) -> None:
    """Refuse an SDE whose drift or diffusion does not fit its state, without computing anything.

    Raises:
        TypeError, ValueError: naming what does not fit.
    """
    paths = _paths(sde, start)
    x = jax.ShapeDtypeStruct((*start.shape, paths), start.dtype)
    state = jax.eval_shape(sde.init, x)
    dW = jax.ShapeDtypeStruct((*sde.noise_shape, paths), start.dtype)
    t = Instant(jnp.asarray(0), jnp.asarray(0.0))
    name = type(sde).__name__
    if not isinstance(state, State):
        raise TypeError(f"models: {name}.init returns {type(state).__name__}; it must return sl.State(x, m, v).")
    parts = {
        "drift": lambda y, g, dW: sde.drift(t, y, g),
        "apply_diffusion": lambda y, g, dW: sde.apply_diffusion(t, y, g, dW),
    }
    has = [part for part in _PARTS if getattr(state, part) is not None]
    for method, coefficient in parts.items():
        try:
            found = jax.eval_shape(coefficient, state, x, dW)
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            if _refuses(error):
                raise
            raise ValueError(
                f"models: {name}.{method} fails at a state with {', '.join(has)} only, of shape {x.shape} "
                f"({type(error).__name__}: {error}); {_SHAPES}."
            ) from error
        if not isinstance(found, State):
            raise TypeError(
                f"models: {name}.{method} returns {type(found).__name__}; it must return sl.State(x, m, v)."
            )
        for part in _PARTS:
            own, moved = getattr(state, part), getattr(found, part)
            if own is None and moved is None:
                continue
            if own is None:
                raise ValueError(
                    f"models: {name}.{method} returns {part}, but the state has no {part}, only {', '.join(has)}; "
                    f"leave it out, or give the state a start for it by {name}.init."
                )
            if moved is None:
                raise ValueError(
                    f"models: {name}.{method} returns no {part}, but the state has one; return 0.0 where it vanishes."
                )
            if jnp.shape(moved) not in ((), jnp.shape(own)):
                raise ValueError(
                    f"models: {name}.{method} returns {part} of shape {jnp.shape(moved)} for a state of shape "
                    f"{jnp.shape(own)}; return that shape (its last axis counts the paths) or a number."
                )


def check_pathwise(sde: SDE, start: Array) -> None:
    """Refuse an SDE of a user whose drift or diffusion of one path depends on other paths.

    The coefficients are evaluated at different states of several paths, together and for each path alone, in one
    compiled program. They must agree up to rounding. SDEs of the library are not checked.

    Raises:
        ValueError: naming the coefficient.
    """
    if not is_own(sde) or start.size > MOST_COORDINATES:
        return
    paths, name = _paths(sde, start), type(sde).__name__
    rng = np.random.default_rng(0)
    apart = np.arange(paths) - (paths - 1) / 2

    def spread(shape: tuple[int, ...]) -> np.ndarray:
        """Numbers whose mean differs from path to path."""
        return rng.uniform(-1, 1, shape) + apart

    x0, shape = np.asarray(start, np.float64)[:, None], (*start.shape, paths)
    begin = jax.eval_shape(sde.init, jax.ShapeDtypeStruct(shape, start.dtype))
    y = State(
        jnp.asarray(x0 + 0.1 * (1 + np.abs(x0)) * spread(shape), start.dtype),
        None if begin.m is None else jnp.asarray(spread(begin.m.shape), begin.m.dtype),
        None if begin.v is None else jnp.asarray(0.5 + spread(begin.v.shape) ** 2, begin.v.dtype),
        None if begin.count is None else jnp.asarray(np.ones(begin.count.shape), begin.count.dtype),
    )
    grad, dW = (jnp.asarray(spread((*own, paths)), start.dtype) for own in (start.shape, sde.noise_shape))
    stream = Stream(jnp.asarray(np.zeros(2, np.uint32)), jnp.asarray(np.arange(paths, dtype=np.uint32)))
    try:
        known, key = alike(sde)
        mixed = _mixed(known, y, grad, dW, stream, captured=key)
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"models: {name} fails for one path, an array of shape {(*start.shape, 1)} ({type(error).__name__}: "
            f"{error}); {_SHAPES}."
        ) from error
    for method in _METHODS:
        for part, found in mixed[method].items():
            if found:
                raise ValueError(
                    f"models: {name}.{method} mixes paths: its {part} is different for {paths} paths together and for "
                    f"each of them alone; {_SHAPES}, for example jnp.linalg.norm(grad, axis=0, keepdims=True)."
                )


def _paths(sde: SDE, start: Array) -> int:
    """A number of paths, at least 3, that no other axis has, so that a mistaken axis is noticed."""
    taken = {*start.shape, *sde.noise_shape}
    return next(count for count in range(3, 4 + len(taken)) if count not in taken)


def _refuses(error: Exception) -> bool:
    """Whether an error already names the argument, as the errors of the library do."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith("sdelens.")


def _coefficients(sde: SDE, y: State, grad: Array, dW: Array, stream: Stream) -> dict[str, dict[str, Array]]:
    """Drift and diffusion of every part of a state, each of its shape."""
    t = Instant(jnp.asarray(1), jnp.asarray(1.0), 1.0)
    sde = sde.at_step(t.step)
    sde = sde.with_cache(sde.compute_cache(y.x, grad, stream))
    grad = sde.mean_gradient(y.x, grad)
    found = {"drift": sde.drift(t, y, grad), "apply_diffusion": sde.apply_diffusion(t, y, grad, dW)}
    own = {part: getattr(y, part) for part in _PARTS if getattr(y, part) is not None}
    return {
        method: {part: jnp.broadcast_to(getattr(state, part), a.shape).astype(a.dtype) for part, a in own.items()}
        for method, state in found.items()
    }


@partial(quick, static_argnames="captured")
def _mixed(
    sde: SDE, y: State, grad: Array, dW: Array, stream: Stream, captured: Hashable
) -> dict[str, dict[str, Array]]:
    """Whether the coefficients of several paths differ from those of each path alone, by method and part.

    It is compiled anew when something changes that the user's functions read from outside: `captured`.
    """
    together = _coefficients(sde, y, grad, dW, stream)

    def alone(i: Array) -> Any:
        def own(a: Array) -> Array:
            return lax.dynamic_slice_in_dim(a, i, 1, axis=a.ndim - 1) if a.ndim else a

        one = _coefficients(sde, jax.tree.map(own, y), own(grad), own(dW), stream._replace(paths=own(stream.paths)))
        return jax.tree.map(lambda a: a[..., 0], one)

    singles = lax.map(alone, jnp.arange(grad.shape[-1]))
    return jax.tree.map(lambda several, single: differs(several.T, single), together, singles)
