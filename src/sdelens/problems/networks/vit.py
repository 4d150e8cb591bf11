"""The vision transformer."""

import equinox as eqx
import numpy as np
from jax import Array

from sdelens.problems.networks._attention import Block, blocks
from sdelens.problems.networks._layers import Dense, LayerNorm, normal

__all__ = ["ViT"]


class ViT(eqx.Module):
    """Square patches, linear embedding, learned positions, pre-layer-norm blocks, layer-norm, mean, a dense layer.

    Dosovitskiy et al. 2021, arXiv 2010.11929, with the mean over patches in place of a class token and
    GELU's tanh form.
    """

    embedding: Dense
    positions: Array
    blocks: tuple[Block, ...]
    norm: LayerNorm
    head: Dense
    patch: int = eqx.field(static=True)

    @classmethod
    def initialise(
        cls,
        shape: tuple[int, ...],
        classes: int,
        seed: int,
        *,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        mlp: int,
    ) -> "ViT":
        """Normal weights of variance 1 / fan-in, over 2 depth in the last layer of a residual branch; positions 0.02².

        Args:
            shape: height, width and channels of an image.
            classes: number of classes.
            seed: seed of the initialisation, which depends on it alone.
            patch: side of a patch in pixels.
            width: width of the embedding.
            depth: number of blocks.
            heads: number of attention heads.
            mlp: number of hidden units in a block.

        Raises:
            ValueError: if `patch` does not divide the image's sides, or `heads` does not divide the width.
        """
        if shape[0] % patch or shape[1] % patch:
            raise ValueError(
                f"patch: got {patch}, which does not divide the sides of images of {shape[0]} × {shape[1]} pixels; "
                "give a common divisor."
            )
        rng = np.random.default_rng(seed)
        tokens = (shape[0] // patch) * (shape[1] // patch)
        return cls(
            Dense.initialise(rng, patch * patch * shape[2], width, 1.0),
            normal(rng, (tokens, width), 0.02**2),
            blocks(rng, depth, width, heads, mlp, causal=False),
            LayerNorm.initialise(width),
            Dense.initialise(rng, width, classes, 1.0),
            patch,
        )

    def logits(self, features: Array) -> Array:
        """Logits of shape (n, classes) from images of shape (n, height, width, channels)."""
        n, height, width, channels = features.shape
        p = self.patch
        grid = features.astype(self.positions.dtype).reshape(n, height // p, p, width // p, p, channels)
        hidden = self.embedding(grid.transpose(0, 1, 3, 2, 4, 5).reshape(n, -1, p * p * channels)) + self.positions
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden).mean(axis=1))
