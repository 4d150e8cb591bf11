"""The gradient noise of a loop with optax: two sums per leaf and micro-batch, kept in the optimizer's state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from sdelens.core import check
from sdelens.core.limits import CONFIDENCE
from sdelens.diagnosis import GradientNoise
from sdelens.diagnosis.gradients import Groups, as_groups
from sdelens.diagnosis.windows import Windows

__all__ = ["NoiseSums", "add_stack", "noise_of", "noise_sums"]


class NoiseSums(NamedTuple):
    """The state of `noise_sums`.

    Attributes:
        total: sum s of the gradients of the present step, a pytree like a gradient.
        rows: ‖g‖² and gᵀs of every micro-batch and leaf, shape (windows, n, leaves, 2).
        seen: number of micro-batches so far.
    """

    total: Any
    rows: Array
    seen: Array


def noise_sums(accumulate: int, *, windows: int = 20) -> optax.GradientTransformation:
    r"""A transformation that measures the noise of the gradients which pass through it, and does not change them.

    For `accumulate` = n micro-batches per step, their gradients gᵢ and sums s of those before them,

        ‖S‖² = Σ ‖g‖² + 2 Σ gᵀs,   ‖∇f‖² ≈ (‖S‖² − Σ‖g‖²)/(n(n − 1)),   tr Σ ≈ b (Σ‖g‖² − ‖S‖²/n)/(n − 1),

    so that two numbers per leaf and micro-batch suffice. Place it before what accumulates and clips; all of it is
    jit-able, and nothing is read before `noise_of`:

        tx = optax.chain(noise_sums(4), optax.MultiSteps(optax.adamw(1e-3), 4).gradient_transformation())

    Memory is one gradient, for s. Gradients that come as a stack, of examples or micro-batches, are given to
    `add_stack`. Under data parallelism, give it the gradients before they are averaged.

    Args:
        accumulate: number of micro-batches of a step, 2 or more.
        windows: number of latest steps that are kept.

    Raises:
        ValueError: if an argument is out of its range.
    """
    number, kept = check.at_least("accumulate", accumulate, 2), check.at_least("windows", windows, 1)

    def init(params: Any) -> NoiseSums:
        total = jax.tree.map(lambda p: jnp.zeros(p.shape, _wide(p)), params)
        leaves = len(jax.tree.leaves(params))
        return NoiseSums(total, jnp.full((kept, number, leaves, 2), jnp.nan), jnp.zeros((), jnp.int32))

    def update(updates: Any, state: NoiseSums, params: Any = None) -> tuple[Any, NoiseSums]:
        window, place = state.seen // number % kept, state.seen % number
        total = jax.tree.map(lambda s: jnp.where(place == 0, 0, s), state.total)
        wide = jax.tree.map(lambda g, s: g.astype(s.dtype), updates, total)
        pairs = zip(jax.tree.leaves(wide), jax.tree.leaves(total), strict=True)
        row = jnp.stack([jnp.stack([_dot(g, g), _dot(g, s)]) for g, s in pairs])
        rows = state.rows.at[window, place].set(row.astype(state.rows.dtype))
        return updates, NoiseSums(jax.tree.map(jnp.add, total, wide), rows, state.seen + 1)

    return optax.GradientTransformation(init, update)


def add_stack(state: NoiseSums, stack: Any) -> NoiseSums:
    """The state after the gradients of a stack, one after another.

    Args:
        state: a state of `noise_sums`, whose `accumulate` divides the number of gradients.
        stack: gradients of micro-batches or examples, a pytree of arrays with a first axis more than the parameters.
    """
    kept, number = state.rows.shape[:2]
    tx = noise_sums(number, windows=kept)
    found: NoiseSums = jax.lax.scan(lambda s, g: (tx.update(g, s)[1], None), state, stack)[0]
    return found


def noise_of(state: Any, *, batch_size: float, groups: Groups = None, confidence: float = CONFIDENCE) -> GradientNoise:
    """The noise of the latest steps, from an optax state that contains a `NoiseSums` anywhere.

    Args:
        state: the state of the optimizer; steps that are not complete, or have gradients that are not finite, are left
            out.
        batch_size: number of samples of a micro-batch, 1 for gradients of examples.
        groups: as in `sdelens.gradient_noise`.
        confidence: confidence of the limits.

    Raises:
        ValueError: if there is no `NoiseSums`, or more than one, or no complete step.
    """
    size = float(check.positive("batch_size", batch_size))
    leaves = jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, NoiseSums))
    found = [part for part in leaves if isinstance(part, NoiseSums)]
    if len(found) != 1:
        raise ValueError(f"state: contains {len(found)} NoiseSums; give an optax state with one noise_sums in it.")
    (sums,) = found
    paths, treedef = jax.tree_util.tree_flatten_with_path(sums.total)
    names = tuple(jax.tree_util.keystr(path, simple=True, separator=".") or "gradient" for path, _ in paths)
    shapes = tuple(leaf.shape for _, leaf in paths)
    layout = as_groups(names, shapes, lambda parts: jax.tree_util.tree_unflatten(treedef, parts), groups)
    rows = np.asarray(sums.rows, float)
    kept, number = rows.shape[:2]
    steps, begun = divmod(int(sums.seen), number)
    order = [k % kept for k in range(max(steps - kept + (begun > 0), 0), steps)]
    windows = [window for window in rows[order] if np.isfinite(window).all()]
    if not windows:
        raise ValueError(
            f"state: has seen {int(sums.seen)} micro-batches, and no complete step of {number} with finite gradients; "
            "measure later."
        )
    grouped = np.zeros((len(windows), number, len(layout.groups), 2))
    for leaf, group in enumerate(layout.group):
        grouped[:, :, group] += np.stack(windows)[:, :, leaf]
    return GradientNoise(Windows(layout, size, list(grouped)), "sample", None, confidence)


def _dot(a: Array, b: Array) -> Array:
    return jnp.real(jnp.vdot(b, a))


def _wide(leaf: Any) -> Any:
    return jnp.promote_types(leaf.dtype, jnp.float32)
