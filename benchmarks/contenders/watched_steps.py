"""Training steps of a small transformer with accumulated micro-batches, watched or not."""

import contextlib
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

__all__ = ["train"]

_VOCABULARY, _LENGTH = 64, 64


class _Transformer(nn.Module):
    """A causal language model."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_VOCABULARY, width)
        self.position = nn.Parameter(0.02 * torch.randn(_LENGTH, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, _VOCABULARY)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(_LENGTH))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.embedding(tokens) + self.position, mask=self.mask, is_causal=True))


def train(keep: str | None, width: int, layers: int, batch: int, micro: int) -> Callable[[int, int, int], None]:
    """Steps of AdamW.

    Args:
        keep: of `sdelens.torch.watch`; None to train without it, ``"log"`` for sums with numbers for a logger at the
            end.
        width: of the model.
        layers: of the model.
        batch: sequences of a micro-batch.
        micro: micro-batches of a step.
    """
    from sdelens.torch import watch

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = _Transformer(width, layers).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def run(seed: int, paths: int, steps: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        watched = contextlib.nullcontext()
        if keep is not None:
            watched = watch(model, batch_size=batch, scale=1 / micro, keep="sums" if keep == "log" else keep)
        with watched as noise:
            for _ in range(steps):
                for _ in range(micro):
                    tokens = torch.randint(_VOCABULARY, (batch, _LENGTH + 1), generator=generator).to(device)
                    logits = model(tokens[:, :-1]).flatten(0, 1)
                    (functional.cross_entropy(logits, tokens[:, 1:].flatten()) / micro).backward()
                optimizer.step()
                optimizer.zero_grad()
            if keep == "log":
                noise.log()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run
