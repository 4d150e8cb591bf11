"""Parameters as one flat vector: splitting a pytree into floating arrays and the rest, and back."""

import functools
import math
import operator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

__all__ = ["Layout", "column", "flatten_parameters", "over_paths", "sum_coordinates"]

_UNROLL = 16


@dataclass(frozen=True)
class Layout:
    """How the coordinates of a flat vector lie in a pytree of parameters.

    Attributes:
        treedef: structure of the pytree.
        shapes: shape per leaf; None where the leaf is not a parameter.
        dtypes: name of the dtype per leaf; None where the leaf is not a parameter.
        names: path of every leaf, such as ``['dense'].weight``.
        static: the leaves that are not parameters (functions, strings, …), None elsewhere.
    """

    treedef: Any
    shapes: tuple[tuple[int, ...] | None, ...]
    dtypes: tuple[str | None, ...]
    names: tuple[str, ...]
    static: tuple[Any, ...]

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return sum(int(np.prod(s)) for s in self.shapes if s is not None)

    def unravel(self, flat: Array) -> Any:
        """The pytree whose floating leaves are filled from `flat`, of shape (size,)."""
        leaves, offset = [], 0
        for shape, dtype, static in zip(self.shapes, self.dtypes, self.static, strict=True):
            if shape is None:
                leaves.append(static)
                continue
            count = int(np.prod(shape))
            leaves.append(flat[offset : offset + count].reshape(shape).astype(dtype))
            offset += count
        return jax.tree.unflatten(self.treedef, leaves)

    def split(self, flat: Array) -> list[Array]:
        """The parameters of `flat`, shape (size,) or (size, P), each in its shape, with the axis P last."""
        shapes = [shape for shape in self.shapes if shape is not None]
        ends = np.cumsum([math.prod(shape) for shape in shapes])
        parts = zip(shapes, ends, strict=True)
        return [flat[end - math.prod(shape) : end].reshape(*shape, *flat.shape[1:]) for shape, end in parts]

    def ravel(self, tree: Any) -> Array:
        """The flat vector of the floating leaves of a pytree of this layout."""
        leaves = jax.tree.leaves(tree, is_leaf=_is_none)
        parts = [jnp.ravel(a) for a, s in zip(leaves, self.shapes, strict=True) if s is not None]
        return jnp.concatenate(parts)

    def matches(self, tree: Any) -> bool:
        """Whether the parameters have more than one leaf and `tree` has their structure."""
        if len(self.shapes) < 2:
            return False
        try:
            self.treedef.flatten_up_to(tree)
        except ValueError:
            return False
        return True

    def broadcast(self, name: str, tree: Any) -> np.ndarray:
        """One number per coordinate from a pytree of the same structure, each leaf broadcast to the parameter's.

        Raises:
            ValueError: if the structures differ or a shape does not fit; the message names the first such leaf.
        """
        try:
            leaves = self.treedef.flatten_up_to(tree)
        except ValueError as error:
            raise ValueError(
                f"{name}: got a pytree whose structure differs from that of the parameters, which have the leaves "
                f"{', '.join(self.names)}; give a scalar or a pytree of the same structure."
            ) from error
        parts = []
        for leaf, shape, label in zip(leaves, self.shapes, self.names, strict=True):
            if shape is None:
                continue
            try:
                parts.append(np.broadcast_to(np.asarray(leaf, dtype=np.float64), shape).ravel())
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"{name}: leaf {label or 'parameters'} has shape {np.shape(leaf)}, but the parameter has shape "
                    f"{shape}; give a scalar or an array that broadcasts to it."
                ) from error
        return np.concatenate(parts)


def flatten_parameters(tree: Any, name: str = "start") -> tuple[Array, Layout]:
    """Split `tree` into one flat vector of its floating arrays and a `Layout` that reverses this.

    Floating arrays (NumPy or JAX) are the parameters; functions, strings, Python numbers and None are left unchanged.

    Raises:
        TypeError: if a leaf is an integer or Boolean array, a complex array or a random key.
        ValueError: if there is no parameter, or one is not finite.
    """
    with_paths, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_none)
    names: list[str] = []
    shapes: list[tuple[int, ...] | None] = []
    dtypes: list[str | None] = []
    static: list[Any] = []
    parts: list[np.ndarray] = []
    for path, leaf in with_paths:
        label = jax.tree_util.keystr(path)
        names.append(label)
        if not isinstance(leaf, np.ndarray | np.generic | jax.Array):
            shapes.append(None)
            dtypes.append(None)
            static.append(leaf)
            continue
        where = f"{name}{label}"
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise TypeError(
                f"{where}: got a random key; parameters must be floating arrays. Use the key inside the loss "
                "function instead of passing it as a parameter."
            )
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"{where}: got an array of {leaf.dtype}; parameters must be floating arrays. Cast it with "
                ".astype('float32'), or use it inside the loss function if it is not to be trained."
            )
        array = np.asarray(leaf)  # in NumPy: not tied to a device, and nothing to compile
        array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype))
        if not np.isfinite(array).all():
            raise ValueError(f"{where}: has entries that are not finite; start from finite parameters.")
        shapes.append(array.shape)
        dtypes.append(array.dtype.name)
        static.append(None)
        parts.append(array.ravel())
    if not parts or sum(p.size for p in parts) == 0:
        raise ValueError(
            f"{name}: has no floating array among its {len(names)} leaves; give the parameters as arrays, "
            "for example jnp.array([1.0, 2.0])."
        )
    dtype = jnp.result_type(*[p.dtype for p in parts])
    flat = jax.device_put(np.concatenate([p.astype(dtype) for p in parts]))
    return flat, Layout(treedef, tuple(shapes), tuple(dtypes), tuple(names), tuple(static))


def over_paths(leaf: Array, paths: int) -> Array:
    """A leaf of a state with a column for each of P paths: (n, P) from (n,), (n, 1) or (n, P); a number as it is."""
    return jnp.broadcast_to(leaf.reshape(leaf.shape[0], -1), (leaf.shape[0], paths)) if leaf.ndim else leaf


def column(values: Array, like: Array) -> Array:
    """`values`, a scalar or one per coordinate, shaped to multiply `like`: (d,) or (d, P)."""
    values = jnp.asarray(values)
    return values[:, None] if values.ndim == 1 and like.ndim == 2 else values


def sum_coordinates(values: Array) -> Array:
    """Sum over the first axis: () for (d,), (P,) for (d, P).

    XLA's CPU reduction over a leading axis is scalar code, 5 to 50 times slower than this code (measured at d = 10).
    """
    if values.ndim == 1:
        return jnp.sum(values)
    if values.shape[0] == 1:
        return values.reshape(values.shape[1:])
    if values.shape[0] <= _UNROLL:
        return functools.reduce(operator.add, values)
    return jnp.matmul(jnp.ones(values.shape[0], values.dtype), values, precision="highest")


def _is_none(leaf: Any) -> bool:
    return leaf is None
