"""The named parts of an optax state, flat, as observables read them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from optax import contrib

__all__ = ["parts_of"]


def parts_of(state: Any, parameters: Any, x: Array, inner: Sequence[Array]) -> dict[str, Array]:
    """The floating parts of a state by name.

    Args:
        state: the optax state of one path, as shapes.
        parameters: the parameters, as shapes; a subtree of the state that is like them is one part (d, P).
        x: the parameters of all paths, shape (d, P).
        inner: the leaves of the state of all paths, each (n, P).

    Returns:
        Arrays (n, P), and (P,) for single numbers; also the evaluation point of a schedule-free optimizer.
    """
    left = list(inner)
    structure: Any = jax.tree.structure(parameters)
    shapes = [a.shape for a in jax.tree.leaves(parameters)]

    def like_parameters(node: Any) -> bool:
        if jax.tree.structure(node) != structure:
            return False
        leaves = jax.tree.leaves(node)
        return all(a.shape == s and jnp.issubdtype(a.dtype, jnp.floating) for a, s in zip(leaves, shapes, strict=True))

    found: list[tuple[tuple[Any, ...], Array]] = []
    for path, node in jax.tree_util.tree_flatten_with_path(state, is_leaf=like_parameters)[0]:
        own = jax.tree.leaves(node)
        taken, left = left[: len(own)], left[len(own) :]
        if like_parameters(node):
            found.append((path, taken[0] if len(taken) == 1 else jnp.concatenate(taken)))
        elif jnp.issubdtype(own[0].dtype, jnp.floating):
            found.append((path, taken[0] if own[0].shape else taken[0][0]))
    short = [_written(path[-1]) for path, _ in found]
    often = Counter(short)
    unique = [often[name] == 1 and not name.isdecimal() and name != "x" for name in short]
    whole = [".".join(map(_written, path)) for path, _ in found]
    names = [name if only else full for name, full, only in zip(short, whole, unique, strict=True)]
    parts = dict(zip(names, (value for _, value in found), strict=True))
    return parts | _evaluation(state, dict(found), x)


def _evaluation(state: Any, values: dict[tuple[Any, ...], Array], x: Array) -> dict[str, Array]:
    """(x − (1 − β₁)z)/β₁, where optax's schedule-free optimizers are evaluated; nothing for others."""
    nodes = jax.tree_util.tree_flatten_with_path(state, is_leaf=_is_schedule_free)[0]
    for path, node in nodes:
        if _is_schedule_free(node):
            b1, z = (values[(*path, jax.tree_util.GetAttrKey(name))] for name in ("b1", "z"))
            return {"evaluation": (x - (1 - b1) * z) / b1}
    return {}


def _is_schedule_free(node: Any) -> bool:
    return isinstance(node, contrib.ScheduleFreeState)


def _written(key: Any) -> str:
    """A step of a path as text: the name of a field, a key or an index."""
    for name in ("name", "key", "idx"):
        if hasattr(key, name):
            return str(getattr(key, name))
    return str(key)
