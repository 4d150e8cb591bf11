"""The block of a transformer."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sdelens.problems.networks._layers import Dense, LayerNorm, widened

__all__ = ["Block", "blocks"]


class Block(eqx.Module):
    """Pre-layer-norm block: x + attention(norm x), then x + W₂ gelu(W₁ norm x), with GELU's tanh form.

    x has shape (n, positions, width); every head uses width / heads channels, and its scores are divided by the square
    root of that number.
    """

    attention_norm: LayerNorm
    qkv: Dense
    out: Dense
    mlp_norm: LayerNorm
    up: Dense
    down: Dense
    heads: int = eqx.field(static=True)
    causal: bool = eqx.field(static=True)

    @classmethod
    def initialise(
        cls, rng: np.random.Generator, width: int, heads: int, mlp: int, branches: int, causal: bool
    ) -> "Block":
        """Normal weights with variance 1 / fan-in, divided by `branches` in the last layer of each branch."""
        return cls(
            LayerNorm.initialise(width),
            Dense.initialise(rng, width, 3 * width, 1.0),
            Dense.initialise(rng, width, width, 1.0 / branches),
            LayerNorm.initialise(width),
            Dense.initialise(rng, width, mlp, 1.0),
            Dense.initialise(rng, mlp, width, 1.0 / branches),
            heads,
            causal,
        )

    def __call__(self, x: Array) -> Array:
        """Output in the shape of x; all but the attention acts on rows, as `LayerNorm` does."""
        rows = x.reshape(-1, x.shape[-1])
        rows = rows + self.out(self._attend(self.qkv(self.attention_norm(rows)), x.shape[1]))
        rows = rows + self.down(jax.nn.gelu(self.up(self.mlp_norm(rows)), approximate=True))
        return rows.reshape(x.shape)

    def _attend(self, qkv: Array, positions: int) -> Array:
        """Attention within every `positions` consecutive rows: (rows, width) from queries, keys and values."""
        q, k, v = jnp.moveaxis(qkv.reshape(-1, positions, 3, self.heads, qkv.shape[-1] // (3 * self.heads)), 2, 0)
        scores = widened(jnp.einsum("nthc,nshc->nhts", q, k)) / np.sqrt(q.shape[-1]).astype(np.float32)
        if self.causal:
            scores = jnp.where(np.tril(np.ones((positions, positions), bool)), scores, -1e30)
        weights = jax.nn.softmax(scores.reshape(-1, positions), axis=-1).astype(v.dtype)
        attended = jnp.einsum("nhts,nshc->nthc", weights.reshape(scores.shape), v)
        return attended.reshape(qkv.shape[0], -1)


def blocks(rng: np.random.Generator, depth: int, width: int, heads: int, mlp: int, causal: bool) -> tuple[Block, ...]:
    """`depth` blocks whose 2 depth branches together add a variance of the order of 1.

    Raises:
        ValueError: if `heads` does not divide `width`.
    """
    if width % heads:
        raise ValueError(f"heads: got {heads}, which does not divide the width {width}; give a divisor of the width.")
    return tuple(Block.initialise(rng, width, heads, mlp, 2 * depth, causal) for _ in range(depth))
