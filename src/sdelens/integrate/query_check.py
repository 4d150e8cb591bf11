"""A check of optimizers that a user defines and that ask for gradients at other points."""

from collections.abc import Hashable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sdelens.core.captured import alike
from sdelens.core.compilation import quick
from sdelens.core.pathwise import MOST_COORDINATES, PATHS_LAST, differs
from sdelens.core.random import Stream, stream_key
from sdelens.core.tree import over_paths
from sdelens.integrate.discrete import Discrete
from sdelens.optimizers import Wrapped

__all__ = ["check_queried"]

_PATHS = 3
_SHAPES = f"x and gradient have shape (d, P), {PATHS_LAST}"


def check_queried(discrete: Discrete) -> None:
    """Refuse an optimizer of a user whose `queried` does not fit, or in which one path depends on other paths.

    The gradient by which several paths move is compared with that of one of them alone, for the same draws. Optimizers
    of the library are not checked.

    Raises:
        TypeError, ValueError: naming what does not fit.
    """
    optimizer, start = discrete.optimizer, discrete.problem.start
    if isinstance(optimizer, Wrapped):  # its base asks for gradients too
        check_queried(eqx.tree_at(lambda own: own.optimizer, discrete, optimizer.base))
    method = type(optimizer).queried
    if str(method.__module__).startswith("sdelens.") or start.size > MOST_COORDINATES:
        return
    name = f"{type(optimizer).__name__}.queried"
    paths = jnp.asarray(np.arange(_PATHS, dtype=np.uint32))
    try:
        found = jax.eval_shape(_queried, discrete, paths)
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(
            f"optimizer: {name} fails for {_PATHS} paths ({type(error).__name__}: {error}); define "
            f"queried(self, x, inner, gradient, query) and return an array like gradient. {_SHAPES}."
        ) from error
    shape = (*start.shape, _PATHS)
    if getattr(found, "shape", None) != shape:
        given = f"shape {found.shape}" if hasattr(found, "shape") else type(found).__name__
        raise ValueError(f"optimizer: {name} returns {given} for a gradient of shape {shape}; return that shape.")
    known, key = alike(discrete)
    if bool(_mixed(known, paths, captured=key)):
        raise ValueError(
            f"optimizer: {name} mixes paths: the gradient of one path depends on the other paths. {_SHAPES}."
        )


def _queried(discrete: Discrete, paths: Array) -> Array:
    """The gradient by which the optimizer moves in its first step, for these paths."""
    stream, first = Stream(jnp.asarray(stream_key(0, "check")), paths), jnp.asarray(0)
    state = discrete.init(stream)
    x = over_paths(state.x, paths.shape[0])
    grad = discrete.evaluate(x)[1] if discrete.needs_gradient else x
    gradient = discrete.noise.gradient(first, x, grad, stream)
    return discrete.optimizer.queried(x, state.inner, gradient, discrete.query(first, stream))


@partial(quick, static_argnames="captured")
def _mixed(discrete: Discrete, paths: Array, captured: Hashable) -> Array:
    """Whether the gradient of the second of several paths differs from that of this path alone."""
    return differs(_queried(discrete, paths)[:, 1:2].T, _queried(discrete, paths[1:2]).T)
