"""How an SDE treats the parts of an optax state, by their type, and by their name where optax stores squares."""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["BOUND", "HELD", "LEAF_KINDS", "POSITIVE", "Leaf", "leaf_kinds_of", "leaves_of"]

LEAF_KINDS: Final = {
    "free": "floating-point numbers of any sign: drift and normal noise",
    "positive": "sums and means of squares: drift and noise that keep the sign",
    "bound": "numbers bounded by other parts of the state: noise that respects the bound, or none",
    "counter": "integers and Booleans: as in the optimizer",
    "key": "random keys: as in the optimizer, one for each path",
}
"""The laws (kinds of leaves), and what each is for."""
HELD: Final = ("counter", "key")
"""Laws of leaves that change once per optimizer step, with or without substeps."""

POSITIVE: Final = {
    "ScaleByAdamState": ("nu",),
    "ScaleByNovogradState": ("nu",),
    "ScaleByDistanceOverGradientsState": ("max_dist", "grad_sum_of_squares"),
    "ScaleByAmsgradState": ("nu", "nu_max"),
    "ScaleByBeliefState": ("nu",),
    "ScaleByRmsState": ("nu",),
    "ScaleByRmsWithCountState": ("nu",),
    "ScaleByRssState": ("sum_of_squares",),
    "ScaleByAdaDeltaState": ("e_g", "e_x"),
    "ScaleByAdanState": ("n",),
    "ScaleByRpropState": ("step_sizes",),
    "FactoredState": ("v_row", "v_col", "v"),
    "ScaleByAdemamixState": ("nu",),
    "ScaleBySimplifiedAdEMAMixState": ("n",),
    "DAdaptAdamWState": ("exp_avg_sq", "estim_lr"),
    "ProdigyState": ("exp_avg_sq", "estim_lr"),
    "MomoAdamState": ("exp_avg_sq",),
    "MadgradState": ("grad_sum_sq",),
    "DoGState": ("max_dist", "sum_sq_norm_grads"),
    "DoWGState": ("estim_sq_dist", "weighted_sq_norm_grads"),
    "ScheduleFreeState": ("weight_sum", "max_lr"),
    "COCOBState": ("scale", "subgradients", "reward"),
}
"""Fields of optax's states that are never negative."""

BOUND: Final = {
    "ScaleByRStdDevState": ("mu", "nu"),
    "ScaleByRStdDevWithCountState": ("mu", "nu"),
    "ScaleBySM3State": ("mu",),
}
"""Fields that share a bound: the centred second moment is ν − μ²; SM3 stores the largest sums of a row or a column."""


class Leaf(NamedTuple):
    """One leaf of an optax state.

    Attributes:
        path: path of the leaf, as JAX writes it.
        fields: class and field of every named tuple, and "" and key of every dictionary, along the path.
        shape: shape of the leaf for one path of a run.
        dtype: dtype of the leaf in the optax state.
        law: one of `LEAF_KINDS`.
    """

    path: str
    fields: tuple[tuple[str, str], ...]
    shape: tuple[int, ...]
    dtype: Any
    law: str


def leaves_of(state: Any, positive: tuple[str, ...] = ()) -> list[Leaf]:
    """The leaves of an optax state; `positive` names further fields that are never negative.

    Raises:
        TypeError: if there is no law for a leaf; the message names it.
    """
    found = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        fields = tuple(_fields(state, path))
        label = jax.tree_util.keystr(path)
        found.append(Leaf(label, fields, array.shape, array.dtype, _law(label, fields, array, positive)))
    return found


def leaf_kinds_of(state: Any) -> Any:
    """The laws of an optax state's leaves, as a pytree of the same structure."""
    return jax.tree.unflatten(jax.tree.structure(state), [leaf.law for leaf in leaves_of(state)])


def _fields(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[str, str]]:
    for key in path:
        if isinstance(key, jax.tree_util.GetAttrKey):
            yield type(node).__name__, key.name
            node = getattr(node, key.name)
        elif isinstance(key, jax.tree_util.SequenceKey):
            node = node[key.idx]
        elif isinstance(key, jax.tree_util.DictKey):
            yield "", str(key.key)
            node = node[key.key]
        else:
            return


def _law(label: str, fields: tuple[tuple[str, str], ...], leaf: Any, positive: tuple[str, ...]) -> str:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) or (leaf.dtype == jnp.uint32 and leaf.shape[-1:] == (2,)):
        return "key"  # jax.random.PRNGKey returns two words of 32 bits
    if jnp.issubdtype(leaf.dtype, jnp.integer) or jnp.issubdtype(leaf.dtype, jnp.bool_):
        return "counter"
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise TypeError(
            f"transformation: the state has a leaf {label} of type {leaf.dtype}; an SDE needs a state of real "
            "numbers, integers, Booleans and random keys."
        )
    if label in positive:
        return "positive"
    for owner, name in fields:
        if name in positive or name in POSITIVE.get(owner, ()):
            return "positive"
        if name in BOUND.get(owner, ()):
            return "bound"
    return "free"
