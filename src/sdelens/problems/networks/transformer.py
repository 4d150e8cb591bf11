"""The causal language model."""

import equinox as eqx
import numpy as np
from jax import Array

from sdelens.problems.networks._attention import Block, blocks
from sdelens.problems.networks._layers import Dense, LayerNorm, normal

__all__ = ["Transformer"]


class Transformer(eqx.Module):
    """Embedded characters, learned positions, causal pre-layer-norm blocks, layer-norm, a dense layer to characters.

    A decoder like GPT-2 (Radford et al. 2019), but the last layer does not share the weights of the embedding.
    """

    embedding: Array
    positions: Array
    blocks: tuple[Block, ...]
    norm: LayerNorm
    head: Dense

    @classmethod
    def initialise(
        cls, vocabulary: int, context: int, seed: int, *, width: int, depth: int, heads: int, mlp: int
    ) -> "Transformer":
        """Normal weights with variance 1 / fan-in, divided by 2 depth in the last layer of each residual branch.

        Embeddings of characters and positions have variance ½ each, so that their sum has variance 1.

        Args:
            vocabulary: number of characters.
            context: number of positions in a window.
            seed: seed of the initialisation, which depends on it alone.
            width: width of the embedding.
            depth: number of blocks.
            heads: number of attention heads.
            mlp: number of hidden units in a block.

        Raises:
            ValueError: if `heads` does not divide the width.
        """
        rng = np.random.default_rng(seed)
        return cls(
            normal(rng, (vocabulary, width), 0.5),
            normal(rng, (context, width), 0.5),
            blocks(rng, depth, width, heads, mlp, causal=True),
            LayerNorm.initialise(width),
            Dense.initialise(rng, width, vocabulary, 1.0),
        )

    def logits(self, features: Array) -> Array:
        """Logits of the next character, shape (n, t, vocabulary), from characters of shape (n, t), t ≤ context."""
        hidden = self.embedding[features] + self.positions[: features.shape[1]]
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden))
